"""Starting the static monitor: from a sealed memfd, in a session of its own.

What belongs here: how a process of ours is born. What must not: what it is told to do (plan.py), how
to talk with it (runtime/monitor.py).
"""

from __future__ import annotations

import fcntl
import os
from _thread import allocate_lock  # `threading` costs every start a millisecond
from collections.abc import Callable, Mapping, Sequence

import msgspec

from scow.native._scow import ffi, lib
from scow.native.block import Text, encode_text
from scow.native.fd import OwnedFd
from scow.native.plan import Plan
from scow.native.unix import pair

# From linux/fcntl.h; Python 3.11 has them in `fcntl` on Linux.
_PLAN_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_cached_memfd: OwnedFd | None = None
_cache_lock = allocate_lock()


class Launched(msgspec.Struct, frozen=True):
    """A monitor: its pid, and what to wait for it and talk to it with. The caller reaps it."""

    pid: int
    pidfd: OwnedFd
    control: OwnedFd


def monitor_memfd() -> int:
    """The sealed executable, made once per process; borrowed."""
    global _cached_memfd
    # Layers are unpacked by several threads; the second must not replace what the first one uses.
    with _cache_lock:
        if _cached_memfd is None:
            fd = lib.scow_monitor_memfd()
            if fd < 0:
                raise OSError(-fd, os.strerror(-fd), "scow-monitor")
            _cached_memfd = OwnedFd(fd)
        return _cached_memfd.fileno()


def keep_memfd(lowest: int) -> None:
    """Make the executable now, as a descriptor that is not below `lowest`."""
    global _cached_memfd
    low = OwnedFd(os.dup(monitor_memfd()))
    with low:
        _cached_memfd = OwnedFd(fcntl.fcntl(low.fileno(), fcntl.F_DUPFD_CLOEXEC, lowest))


def _start(
    argv: Sequence[Text], env: Sequence[Text], stdio: Sequence[int], fds: Sequence[int]
) -> int:
    keep = [ffi.new("char[]", encode_text(text)) for text in (*argv, *env)]
    arguments = ffi.new("char *[]", [*keep[: len(argv)], ffi.NULL])
    environment = ffi.new("char *[]", [*keep[len(argv) :], ffi.NULL])
    pid = lib.scow_launch(
        monitor_memfd(),
        arguments,
        environment,
        ffi.new("int[]", list(stdio)),
        ffi.new("int[]", [*fds, -1]),
        len(fds),
    )
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid), argv[0])
    return pid


def launch(plan: Plan) -> Launched:
    """Start a monitor with this plan; what comes of it is told over `control`."""
    control, theirs = pair()
    with theirs:
        pid, pidfd = launch_controlled(plan, theirs.fileno())
    return Launched(pid, pidfd, control)


def launch_controlled(plan: Plan, control_fd: int) -> tuple[int, OwnedFd]:
    """Start a monitor whose end of the control socket is given (borrowed); its pid and pidfd.

    The caller has the other end before there is a monitor: a signal that interrupts us at any point
    cannot lose it, and a monitor whose control socket is closed before the start ends by itself.
    """
    block, fds = plan.build()
    with OwnedFd(os.memfd_create("scow-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)) as memfd:
        view = memoryview(block)
        while view:
            view = view[os.write(memfd.fileno(), view) :]
        fcntl.fcntl(memfd.fileno(), fcntl.F_ADD_SEALS, _PLAN_SEALS)
        pid = _start(("scow-monitor",), (), (-1, -1, -1), (memfd.fileno(), control_fd, *fds))
    return pid, OwnedFd(os.pidfd_open(pid))


def start_init(stdio: Sequence[int], fds: Sequence[int]) -> int:
    """Start the binary for a container without a monitor, as a child of ours; its pid."""
    return _start(("scow-init",), (), stdio, fds)


def launch_direct(
    plan: Plan,
    stdio: tuple[int, int, int],
    start: Callable[[Sequence[int], Sequence[int]], int] = start_init,
) -> tuple[int, OwnedFd]:
    """Start the binary with a direct plan; its pid (its parent reaps it), and the socket that the
    container's first process will be heard on. -1 for a standard descriptor is /dev/null.

    `start` gets the standard descriptors and those that are the binary's from 3 on (borrowed).
    """
    block, fds = plan.build()
    with OwnedFd(os.memfd_create("scow-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)) as memfd:
        view = memoryview(block)
        while view:
            view = view[os.write(memfd.fileno(), view) :]
        control, theirs = pair()
        with theirs:
            pid = start(stdio, (memfd.fileno(), theirs.fileno(), *fds))
    return pid, control


def run_applet(
    name: str,
    argv: Sequence[Text] = (),
    fds: Sequence[int] = (),
    *,
    stdin: int = -1,
    stdout: int = -1,
    stderr: int = -1,
    env: Mapping[str, str] | None = None,
) -> tuple[int, OwnedFd]:
    """Start an applet of the static binary with `fds` at 3, 4, ...; its pid and pidfd.

    -1 for a standard descriptor is /dev/null. The caller reaps it.
    """
    environment = [f"{key}={value}" for key, value in (env or {}).items()]
    pid = _start((name, *argv), environment, (stdin, stdout, stderr), fds)
    return pid, OwnedFd(os.pidfd_open(pid))
