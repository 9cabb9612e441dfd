"""Compiled seccomp programs against an evaluator of the profile itself."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.programs import ALLOW, ERRNO, HOLDS, I386, KILL, NUMBERS, evaluate, run_filter
from scow.native.errors import InvalidArgument, ResourceExhausted, ScowError, Unsupported
from scow.runtime import seccomp, syscalls_x86_64

NUMBERS_I386 = syscalls_x86_64.i386()
_CAPABILITIES = """
    CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT
"""
_REFUSED = """
    mount umount2 unshare setns bpf keyctl add_key io_uring_setup reboot userfaultfd kexec_load
    init_module open_by_handle_at perf_event_open move_mount open_tree open_tree_attr fsopen
    pivot_root swapon acct settimeofday iopl pidfd_getfd set_mempolicy syslog sethostname
"""
DEFAULT_CAPABILITIES = frozenset(_CAPABILITIES.split())


_NAMES = ["read", "write", "open", "socket", "clone", "openat", "clone3", "mseal", "file_setattr"]
_VALUES = st.sampled_from(
    [0, 1, 5, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 5 * 2**32, 5 * 2**32 + 5, 2**63, 2**64 - 1]
)
_ARGUMENTS = st.fixed_dictionaries(
    {
        "index": st.integers(0, 2),
        "value": _VALUES,
        "valueTwo": _VALUES,
        "op": st.sampled_from(sorted(HOLDS)),
    }
)
_ACTIONS = st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRAP", "SCMP_ACT_ERRNO"])
_RULES = st.fixed_dictionaries(
    {
        "names": st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4),
        "action": _ACTIONS,
        "args": st.lists(_ARGUMENTS, max_size=3),
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries({"defaultAction": _ACTIONS, "syscalls": st.lists(_RULES, max_size=6)}),
    st.lists(st.tuples(_VALUES, _VALUES, _VALUES), min_size=1, max_size=8),
)
def test_program_says_what_the_profile_says(
    profile: dict[str, Any], calls: list[tuple[int, int, int]]
) -> None:
    program = seccomp.compile_profile(json.dumps(profile).encode(), capabilities=frozenset())
    for name in _NAMES:
        for args in calls:
            assert run_filter(program, NUMBERS[name], args) == evaluate(profile, name, args), (
                name,
                args,
            )


def _default(*more: str) -> bytes:
    return seccomp.compile_profile(
        seccomp.default_profile(), capabilities=DEFAULT_CAPABILITIES.union(more)
    )


def test_default_profile_allows_what_programs_need() -> None:
    program = _default()
    for name in ("read", "openat", "execve", "futex", "statx", "rseq", "ptrace", "chroot", "mseal"):
        assert run_filter(program, NUMBERS[name]) == ALLOW, name
    for name in ("socketcall", "clock_gettime64", "mmap2", "waitpid"):
        assert run_filter(program, NUMBERS_I386[name], arch=I386) == ALLOW, name


@pytest.mark.parametrize("name", _REFUSED.split())
def test_default_profile_refuses(name: str) -> None:
    assert run_filter(_default(), NUMBERS[name]) == ERRNO | errno.EPERM
    if name in NUMBERS_I386:
        assert run_filter(_default(), NUMBERS_I386[name], arch=I386) == ERRNO | errno.EPERM


def test_capabilities_open_their_calls() -> None:
    assert run_filter(_default("SYS_ADMIN"), NUMBERS["mount"]) == ALLOW
    assert run_filter(_default("CAP_SYS_ADMIN"), NUMBERS["clone3"]) == ALLOW
    assert run_filter(_default("SYS_TIME"), NUMBERS["settimeofday"]) == ALLOW
    assert run_filter(_default("BPF"), NUMBERS["bpf"]) == ALLOW
    assert run_filter(_default("SYS_ADMIN"), NUMBERS["keyctl"]) == ERRNO | errno.EPERM


def test_clone_takes_no_namespace_flags() -> None:
    program = _default()
    assert run_filter(program, NUMBERS["clone"], (0x01200011,)) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert run_filter(program, NUMBERS["clone"], (flag | 17,)) == ERRNO | errno.EPERM
    assert run_filter(program, NUMBERS["clone3"]) == ERRNO | errno.ENOSYS
    assert run_filter(_default("SYS_ADMIN"), NUMBERS["clone"], (0x20000,)) == ALLOW


def test_socket_families() -> None:
    """The kernel reads 32 bits of the family: high bits must not get a refused one through."""
    program = _default()
    for family in range(64):
        expected = ERRNO | errno.EPERM if family in (38, 40) else ALLOW
        for high in (0, 2**32, 2**63):
            assert run_filter(program, NUMBERS["socket"], (high | family,)) == expected, family
    assert run_filter(program, NUMBERS["socket"], (64,)) == ERRNO | errno.EPERM


def test_personality_values() -> None:
    program = _default()
    for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert run_filter(program, NUMBERS["personality"], (value,)) == ALLOW
    for value in (0x40000, 0x400000, 2**32 | 0x40000):
        assert run_filter(program, NUMBERS["personality"], (value,)) == ERRNO | errno.EPERM


def test_unknown_architectures_and_x32() -> None:
    program = _default()
    assert run_filter(program, 0, arch=0xC00000B7) == KILL
    assert run_filter(program, 0x40000000 | NUMBERS["read"]) == ERRNO | errno.ENOSYS
    assert run_filter(program, 0xFFFFFFFF) == ERRNO | errno.ENOSYS
    lone = b'{"defaultAction":"SCMP_ACT_ALLOW"}'
    assert run_filter(seccomp.compile_profile(lone, capabilities=frozenset()), 1, arch=I386) == KILL


def test_calls_newer_than_the_profile_do_not_exist() -> None:
    program = _default()
    assert run_filter(program, NUMBERS["open_tree_attr"]) == ERRNO | errno.EPERM
    assert run_filter(program, NUMBERS["open_tree_attr"] + 1) == ERRNO | errno.ENOSYS
    assert run_filter(program, 2**30 - 1) == ERRNO | errno.ENOSYS


def test_far_jumps() -> None:
    rules = [
        {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [_argument(value=number)]}
        for number, name in enumerate(sorted(NUMBERS))
    ]
    profile = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}).encode()
    program = seccomp.compile_profile(profile, capabilities=frozenset())
    assert len(program) // 8 > 1000
    for number, name in enumerate(sorted(NUMBERS)):
        assert run_filter(program, NUMBERS[name], (number,)) == ALLOW
        assert run_filter(program, NUMBERS[name], (number + 1,)) == ERRNO | 1


def _argument(value: int) -> dict[str, Any]:
    return {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}


def test_a_profile_too_large_for_the_kernel() -> None:
    rules = [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [_argument(value=number)]}
        for number in range(2000)
    ]
    profile = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}).encode()
    with pytest.raises(ResourceExhausted, match="4096"):
        seccomp.compile_profile(profile, capabilities=frozenset())


@pytest.mark.parametrize(
    ("document", "kind", "text"),
    [
        (b"", InvalidArgument, "empty"),
        (b"{}", InvalidArgument, "defaultAction"),
        (b"[1]", InvalidArgument, "object"),
        (b"{", InvalidArgument, "cannot read"),
        (b'{"defaultAction":"SCMP_ACT_MAYBE"}', InvalidArgument, "MAYBE"),
        (b'{"defaultAction":"SCMP_ACT_NOTIFY"}', InvalidArgument, "NOTIFY"),
        (b'{"defaultAction":"SCMP_ACT_LOG","architectures":["X"]}', InvalidArgument, "'X'"),
        (b'{"defaultAction":"SCMP_ACT_KILL","defaultErrnoRet":1}', InvalidArgument, "errnoRet"),
        (b'{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}', InvalidArgument, "4095"),
        (b'{"defaultAction":"SCMP_ACT_ERRNO","flags":["X"]}', Unsupported, "'X'"),
        (
            b'{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],'
            b'"action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}',
            InvalidArgument,
            "'6'",
        ),
        (
            b'{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],'
            b'"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"~"}]}]}',
            InvalidArgument,
            "'~'",
        ),
    ],
)
def test_bad_profiles(document: bytes, kind: type[ScowError], text: str) -> None:
    with pytest.raises(kind, match=text):
        seccomp.compile_profile(document, capabilities=frozenset())


def test_flags() -> None:
    def flags(text: str) -> int:
        document = f'{{"defaultAction":"SCMP_ACT_ALLOW"{text}}}'.encode()
        return seccomp.compile_filter(document, capabilities=frozenset()).flags

    assert flags("") == seccomp.FLAG_SPEC_ALLOW
    assert flags(',"flags":[]') == 0
    assert flags(',"flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC"]') == 2


def test_conditions_of_docker_profiles() -> None:
    def allowed(conditions: dict[str, Any]) -> bool:
        rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW", **conditions}
        document = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}).encode()
        program = seccomp.compile_profile(document, capabilities=frozenset(["CAP_KILL"]))
        return run_filter(program, 0) == ALLOW

    assert allowed({"includes": {"caps": ["CAP_KILL"], "minKernel": "4.8", "arches": ["amd64"]}})
    assert not allowed({"includes": {"minKernel": "99.0"}})
    assert not allowed({"includes": {"arches": ["s390"]}})
    assert not allowed({"excludes": {"caps": ["CAP_KILL"]}})
    assert not allowed({"excludes": {"arches": ["amd64"]}})
    assert allowed({"excludes": {"minKernel": "99.0"}, "name": "nosuchcall"})


def test_cache(tmp_path: Path) -> None:
    profile = seccomp.default_profile()
    cache = str(tmp_path / "cache")
    first = seccomp.cached_filter(cache, profile, DEFAULT_CAPABILITIES)
    assert first == seccomp.compile_filter(profile, capabilities=DEFAULT_CAPABILITIES)
    (stored,) = os.listdir(cache)
    assert seccomp.cached_filter(cache, profile, DEFAULT_CAPABILITIES) == first
    # A file that was cut short is not a program: compiled anew.
    os.truncate(f"{cache}/{stored}", 5)
    assert seccomp.cached_filter(cache, profile, DEFAULT_CAPABILITIES) == first
    assert seccomp.cached_filter(cache, profile, frozenset(["SYS_ADMIN"])) != first
    assert len(os.listdir(cache)) == 2
    blocked = tmp_path / "file"
    blocked.touch()
    assert seccomp.cached_filter(str(blocked / "x"), profile, DEFAULT_CAPABILITIES) == first
