"""prctl(2) on our own process, a typed face of python-prctl (which has no types).

What must not be here: what the child does after clone3; that is C, where no interpreter may run.
"""

from __future__ import annotations

from typing import Protocol, cast


class _Prctl(Protocol):
    def set_dumpable(self, value: int) -> None: ...
    def capbset_read(self, capability: int) -> bool: ...
    def get_seccomp(self) -> int: ...
    def get_securebits(self) -> int: ...
    def set_name(self, name: str) -> None: ...


def _module() -> _Prctl:
    import prctl  # late: only a few verbs need it

    return cast(_Prctl, prctl)


def forbid_dumps() -> None:
    """Keep our memory out of core files and debuggers; for processes that hold passwords."""
    _module().set_dumpable(0)


def may_be_given(capability: int) -> bool:
    """Whether a capability (its number) is in our bounding set: no child of ours can have others."""
    return _module().capbset_read(capability)


def set_name(name: str) -> None:
    """What ps and /proc/PID/comm show us as; the kernel keeps 15 bytes."""
    _module().set_name(name)


def securebits() -> int:
    """How root's capabilities are treated (capabilities(7), PR_GET_SECUREBITS)."""
    return _module().get_securebits()


def has_seccomp() -> bool:
    """Whether the kernel was built with seccomp (PR_GET_SECCOMP gives EINVAL without)."""
    try:
        _module().get_seccomp()
    except (OSError, ValueError):
        return False
    return True
