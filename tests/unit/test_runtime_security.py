"""Capabilities and covered paths: what is combined, and what comes out."""

from __future__ import annotations

import pytest

from scow.native.errors import InvalidArgument
from scow.runtime import security


@pytest.fixture(autouse=True)
def _hold_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "held_capabilities", lambda: frozenset(security.CAPABILITY_NAMES))


def test_the_numbers_are_the_kernels() -> None:
    assert security.mask_of(("CAP_CHOWN",)) == 1 << 0
    assert security.mask_of(("NET_RAW",)) == 1 << 13
    assert security.mask_of(("SYS_ADMIN",)) == 1 << 21
    assert security.mask_of(("CHECKPOINT_RESTORE",)) == 1 << 40
    assert len(security.CAPABILITY_NAMES) == 41


def test_the_default_is_eleven_without_raw_sockets() -> None:
    held = security.combine_capabilities((), (), privileged=False)
    assert len(held) == 11
    assert not held & {"NET_RAW", "MKNOD", "SYS_ADMIN", "AUDIT_WRITE"}


@pytest.mark.parametrize(
    ("add", "drop", "privileged", "expected"),
    [
        ((), ("ALL",), False, set()),
        (("NET_ADMIN",), ("ALL",), False, {"NET_ADMIN"}),
        (("cap_net_raw",), ("all",), False, {"NET_RAW"}),
        (("NET_ADMIN",), ("NET_ADMIN",), False, set(security.DEFAULT_CAPABILITIES)),
        (("ALL",), ("SYS_ADMIN",), False, set(security.CAPABILITY_NAMES) - {"SYS_ADMIN"}),
        ((), (), True, set(security.CAPABILITY_NAMES)),
    ],
)
def test_adding_and_dropping(
    add: tuple[str, ...], drop: tuple[str, ...], privileged: bool, expected: set[str]
) -> None:
    assert security.combine_capabilities(add, drop, privileged=privileged) == expected


def test_nothing_that_we_do_not_hold_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "held_capabilities", lambda: frozenset({"CHOWN"}))
    assert security.combine_capabilities((), (), privileged=True) == {"CHOWN"}


@pytest.mark.parametrize("text", ["", "CAP_", "CAP_NOPE", "21", "SYS ADMIN"])
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        security.parse_capability(text)


def test_masks_and_names_are_inverse() -> None:
    mask = security.mask_of(security.DEFAULT_CAPABILITIES)
    assert set(security.names_of(mask)) == security.DEFAULT_CAPABILITIES
