"""The device model against cgroup v1's kernel rules and against the v2 program, by property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.programs import KernelDeviceList, run_program
from scow.cgroups import bpf, devices
from scow.cgroups.devices import Rule
from scow.cgroups.resources import DeviceRule
from scow.native.errors import InvalidArgument, Unsupported

_DENY_ALL = DeviceRule(False)
_NUMBERS = st.one_of(st.none(), st.integers(0, 3))
_RULES = st.builds(
    DeviceRule,
    allow=st.booleans(),
    type=st.sampled_from(["a", "b", "c"]),
    major=_NUMBERS,
    minor=_NUMBERS,
    access=st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"]),
)
_LISTS = st.lists(st.one_of(st.just(_DENY_ALL), st.just(DeviceRule(True)), _RULES), max_size=8)


# An open asks for r, w or both; mknod asks for m alone.
_ACCESSES = [
    (kind, major, minor, bits)
    for kind in "bc"
    for major in range(5)
    for minor in range(5)
    for bits in (devices.MKNOD, devices.READ, devices.WRITE, devices.READ | devices.WRITE)
]


@given(_LISTS)
def test_program_says_what_the_model_says(rules: list[DeviceRule]) -> None:
    checked = devices.check_rules(rules)
    program = bpf.device_program(checked)
    for access in _ACCESSES:
        assert run_program(program, *access) == devices.is_allowed(checked, *access), access


@given(_LISTS)
def test_v1_list_says_what_the_model_says(rules: list[DeviceRule]) -> None:
    checked = devices.check_rules(rules)
    try:
        wanted = devices.device_list(checked)
    except Unsupported:
        return
    kernel = KernelDeviceList()
    for file, line in devices.v1_writes(wanted):
        kernel.write(file, line)
    for access in _ACCESSES:
        assert kernel.is_allowed(*access) == devices.is_allowed(checked, *access), access


@given(_LISTS, _LISTS)
def test_v1_update_reaches_the_new_list(old: list[DeviceRule], new: list[DeviceRule]) -> None:
    try:
        before = devices.device_list(devices.check_rules(old))
        wanted = devices.device_list(devices.check_rules(new))
    except Unsupported:
        return
    kernel = KernelDeviceList()
    for file, line in devices.v1_writes(before):
        kernel.write(file, line)
    writes = devices.v1_writes(wanted, devices.parse_device_list(kernel.text()))
    if not before.allow_all and not wanted.allow_all:
        assert ("devices.deny", "a") not in writes
    for file, line in writes:
        kernel.write(file, line)
    if not (before.allow_all and before.exceptions):  # which the kernel does not show
        for access in _ACCESSES:
            assert kernel.is_allowed(*access) == devices.is_allowed(
                devices.check_rules(new), *access
            )


def test_a_later_deny_inside_a_range_is_refused_on_v1() -> None:
    rules = [_DENY_ALL, DeviceRule(True, "b"), DeviceRule(False, "b", 8, 0)]
    with pytest.raises(Unsupported, match="b 8:0 rwm"):
        devices.device_list(devices.check_rules(rules))


def test_read_and_write_by_two_rules_open_for_both() -> None:
    rules = [_DENY_ALL, DeviceRule(True, "c", 1, None, "r"), DeviceRule(True, "c", None, 3, "w")]
    wanted = devices.device_list(devices.check_rules(rules))
    assert Rule(True, "c", 1, 3, devices.READ | devices.WRITE) in wanted.exceptions


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (DeviceRule(True, "p"), "'p'"),
        (DeviceRule(True, "c", 1, 3, "rwx"), "'rwx'"),
        (DeviceRule(True, "c", 1, 3, ""), "without any"),
        (DeviceRule(True, "c", -2, 3), "'-2'"),
        (DeviceRule(True, "c", 1, 2**20), "'1048576'"),
    ],
)
def test_bad_rules_are_named(rule: DeviceRule, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        devices.check_rules([rule])


def test_too_many_rules() -> None:
    with pytest.raises(InvalidArgument, match="1024"):
        devices.check_rules([DeviceRule(True, "c", 1, 3)] * 1025)
    with pytest.raises(InvalidArgument, match="instructions"):
        bpf.device_program(devices.check_rules([DeviceRule(True, "c", 1, 3, "r")] * 1000))
