"""The seccomp and the device compilers against the plainest reading of what they compile."""

from __future__ import annotations

import errno
import json
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fixtures.programs import (
    ERRNO,
    HOLDS,
    I386,
    KILL,
    NUMBERS,
    X86_64,
    KernelDeviceList,
    run_filter,
    run_program,
)
from scow.cgroups import bpf, devices
from scow.cgroups.resources import DeviceRule
from scow.native.errors import ScowError
from scow.runtime import seccomp, syscalls_x86_64
from scow.runtime.security import DEFAULT_CAPABILITIES

TABLES = {X86_64: NUMBERS, I386: syscalls_x86_64.i386()}
CODES = {
    "SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_TRAP": 0x30000, "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_ERRNO": ERRNO, "SCMP_ACT_TRACE": 0x7FF00000,
}  # fmt: skip
NUMBERED = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
words = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]),
)
arguments = st.fixed_dictionaries(
    {
        "index": st.integers(0, 5),
        "value": words,
        "valueTwo": words,
        "op": st.sampled_from(sorted(HOLDS)),
    }
)
names = st.sampled_from(sorted({*NUMBERS, *TABLES[I386], "no_such_call"}))
actions = st.sampled_from(sorted(CODES))
rules = st.fixed_dictionaries(
    {"names": st.lists(names, min_size=1, max_size=12), "action": actions},
    optional={"args": st.lists(arguments, max_size=6), "errnoRet": st.integers(0, 4095)},
)
profiles = st.fixed_dictionaries(
    {"defaultAction": actions, "syscalls": st.lists(rules, max_size=12)},
    optional={
        "architectures": st.sampled_from(
            [[], ["SCMP_ARCH_X86_64"], ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]]
        )
    },
)
calls = st.lists(
    st.tuples(st.one_of(st.integers(0, 500), st.integers(0, 2**32 - 1)), st.lists(words, min_size=6, max_size=6),
              st.sampled_from([X86_64, X86_64, I386, 0x40000028])),
    min_size=1, max_size=30,
)  # fmt: skip


def code(action: str, number: int | None) -> int:
    if action in NUMBERED:
        return CODES[action] | (errno.EPERM if number is None else number)
    return CODES[action]


def meaning(profile: dict[str, Any], number: int, args: list[int], arch: int) -> int:
    """What the profile says of one call."""
    has_i386 = "SCMP_ARCH_X86" in profile.get("architectures", ())
    if arch not in TABLES or (arch == I386 and not has_i386):
        return KILL
    if arch == X86_64 and number >= 0x40000000:
        return ERRNO | errno.ENOSYS
    table = TABLES[arch]
    default = code(profile["defaultAction"], None)
    fitting: int | None = None
    newest = max(
        (table[n] for r in profile["syscalls"] for n in r["names"] if n in table), default=None
    )
    for rule in profile["syscalls"]:
        action = code(rule["action"], rule.get("errnoRet"))
        if action == default or number not in [table.get(name) for name in rule["names"]]:
            continue
        conditions = rule.get("args", [])
        if not conditions:
            return action
        hold = [HOLDS[c["op"]](args[c["index"]], c["value"], c["valueTwo"]) for c in conditions]
        several = len({c["index"] for c in conditions}) < len(conditions)
        if fitting is None and (any(hold) if several else all(hold)):
            fitting = action
    if fitting is not None:
        return fitting
    lets_through = profile["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
    return (
        ERRNO | errno.ENOSYS
        if newest is not None and number > newest and not lets_through
        else default
    )


def kernel_takes(program: bytes) -> None:
    """seccomp_check_filter(): jumps forward and inside, loads of whole words inside of seccomp_data."""
    insns = list(struct.iter_unpack("<HBBI", program))
    assert 0 < len(insns) <= 4096
    for at, (op, yes, no, value) in enumerate(insns):
        if op in (0x15, 0x25, 0x35):
            assert at + 1 + max(yes, no) < len(insns)
        elif op == 0x05:
            assert at + 1 + value < len(insns)
        elif op == 0x20:
            assert value % 4 == 0
            assert value < 64
        else:
            assert op in (0x06, 0x54)
    assert insns[-1][0] == 0x06


@given(profiles, calls)
def test_a_filter_says_what_its_profile_says(
    profile: dict[str, Any], tried: list[tuple[int, list[int], int]]
) -> None:
    for rule in profile["syscalls"]:
        if rule["action"] not in NUMBERED:
            rule.pop("errnoRet", None)
    program = seccomp.compile_profile(json.dumps(profile).encode(), capabilities=frozenset())
    kernel_takes(program)
    named = [(table[n], [0] * 6, arch) for arch, table in TABLES.items() for r in profile["syscalls"] for n in r["names"] if n in table]  # fmt: skip
    for number, args, arch in tried + named:
        for values in (args, [0] * 6):
            assert run_filter(program, number, tuple(values), arch) == meaning(
                profile, number, values, arch
            )


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["SCMP_ACT_ERRNO", "read"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["names", "action", "args", "index", "op", "includes", "caps"]), inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip
KEYS = [
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "archMap",
    "flags",
    "syscalls",
    "listenerPath",
    "listenerMetadata",
]


@given(st.dictionaries(st.sampled_from(KEYS), junk), st.binary(max_size=64), st.integers(0, 30_000))
def test_what_is_no_profile_is_refused(document: dict[str, Any], noise: bytes, at: int) -> None:
    text = seccomp.default_profile()
    for data in (
        json.dumps(document).encode(),
        noise,
        text[: at % len(text)] + noise + text[at % len(text) :],
    ):
        try:
            kernel_takes(
                seccomp.compile_profile(data, capabilities=frozenset(DEFAULT_CAPABILITIES))
            )
        except ScowError:
            pass


numbers = st.one_of(st.none(), st.integers(-1, 4), st.integers(0, 4095))
device_rules = st.lists(
    st.builds(
        DeviceRule, allow=st.booleans(), type=st.sampled_from([None, "a", "b", "c", "u"]), major=numbers,
        minor=numbers, access=st.sampled_from([None, "r", "w", "m", "rw", "rm", "wm", "rwm", "mr"]),
    ),
    max_size=24,
)  # fmt: skip


@given(
    device_rules, st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)), max_size=10)
)
def test_device_programs_and_lists_say_what_the_rules_say(
    rules: list[DeviceRule], more: list[tuple[int, int]]
) -> None:
    checked = devices.check_rules(rules)
    program = bpf.device_program(checked)
    try:
        wanted = devices.device_list(checked)
    except ScowError:
        wanted = None
    kernel = KernelDeviceList()
    for file, line in devices.v1_writes(wanted) if wanted else ():
        kernel.write(file, line)
    places = (
        {(r.major or 0, r.minor or 0) for r in rules}
        | {(a, b) for a in range(3) for b in range(3)}
        | set(more)
    )
    for kind in "bc":
        for major, minor in places:
            for bits in (1, 2, 4, 6):
                if major < 0 or minor < 0:
                    continue
                says = devices.is_allowed(checked, kind, major, minor, bits)
                assert run_program(program, kind, major, minor, bits) == says
                assert not wanted or kernel.is_allowed(kind, major, minor, bits) == says


@given(st.lists(st.tuples(st.booleans(), st.text(max_size=3), st.integers(), st.integers(), st.text(max_size=4)), max_size=4))  # fmt: skip
def test_bad_device_rules_are_refused(rows: list[tuple[bool, str, int, int, str]]) -> None:
    try:
        bpf.device_program(devices.check_rules([DeviceRule(*row) for row in rows]))
    except ScowError:
        pass
