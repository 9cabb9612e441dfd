"""config.json, process.json and our own state under change: a container's plan, or one clear refusal.

Valid configurations are changed in a few places (structure and values), and compiled as `create` does it,
up to the block that the C core reads; nothing is started.
"""

from __future__ import annotations

import copy
import json
import os
import time
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fixtures import kernel
from fixtures.bundle import BASE
from scow.cgroups.resources import validate_resources
from scow.cri.logs import parse_line
from scow.native import sys as calls
from scow.native.errors import InvalidArgument, ScowError
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.runtime import oci_args, smalljson
from scow.runtime.oci_compile import Ends, compile_create
from scow.runtime.oci_complete import complete
from scow.runtime.oci_create import cgroup_path, check_spec, resources_of, seccomp_filter
from scow.runtime.oci_state import record_of
from scow.runtime.spec import CONFIG_LIMIT, Process, decode_process, decode_spec

pytestmark = pytest.mark.root
ALL: dict[str, Any] = copy.deepcopy(BASE)
ALL["annotations"] = {"a": "b"}
ALL["domainname"] = "example"
ALL["process"].update(
    rlimits=[{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}], oomScoreAdj=5, apparmorProfile="", selinuxLabel="",
    scheduler={"policy": "SCHED_OTHER", "nice": 1, "priority": 0, "flags": []}, ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 1},
    consoleSize={"height": 1, "width": 2}, execCPUAffinity={"initial": "0", "final": "0-1"},
)  # fmt: skip
ALL["process"]["user"] = {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]}
ALL["hooks"] = {
    kind: [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 3}]
    for kind in (
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    )
}
ALL["mounts"] += [
    {"destination": "/etc/x", "type": "bind", "source": "/etc/hostname", "options": ["rbind", "ro", "rprivate", "rnosuid"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    {"destination": "/up", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m"]},
]  # fmt: skip
ALL["linux"].update(
    devices=[{"path": "/dev/full", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}],
    sysctl={"net.core.somaxconn": "7"}, rootfsPropagation="rslave", personality={"domain": "LINUX", "flags": []},
    memoryPolicy={"mode": "MPOL_DEFAULT", "nodes": "", "flags": []}, cgroupsPath="/scow-fuzz/x", mountLabel="",
    timeOffsets={"boottime": {"secs": 1, "nanosecs": 2}}, uidMappings=[{"containerID": 0, "hostID": 1, "size": 5}],
    gidMappings=[{"containerID": 0, "hostID": 1, "size": 5}],
    namespaces=[{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup", "user", "time")],
    seccomp={"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"], "flags": [],
             "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]},
    resources={
        "devices": [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}], "memory": {"limit": 1 << 20, "swap": 2 << 20},
        "cpu": {"shares": 100, "quota": 1000, "period": 10000, "cpus": "0-1", "mems": "0"}, "pids": {"limit": 5},
        "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]}, "unified": {"memory.high": "1"},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 5}], "network": {"classID": 5, "priorities": [{"name": "lo", "priority": 3}]},
        "rdma": {"mlx5": {"hcaHandles": 3}},
    },
)  # fmt: skip
PLAIN = copy.deepcopy(BASE)
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**400, 1.5, 1e400,
    "", "/", "/etc", "/nonexistent", "..", "../../etc", "a\0b", "/a\0b", "\n", "x" * 70000, "é\u2028", "\ud800", "=", "A=", "0-99999999999",
    "/proc/self/fd/3", "/proc", "/proc/sys", "rw", "bind", "SCMP_ACT_ALLOW", "CAP_SYS_ADMIN", "mount", "c", "LINUX32", "rbind",
    [], {}, [[]], [None], [{}], {"": ""}, {"a": {}}, ["/"] * 300, "０", "SCHED_DEADLINE", "MPOL_BIND", "unbindable", "idmap", "remount",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value of a document."""
    found = [path] if path else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        found += places(item, (*path, key))
    return found


changes = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["set", "set", "set", "drop", "double", "add"]), st.one_of(st.sampled_from(VALUES), st.text(max_size=20), st.integers())),
    min_size=1, max_size=4,
)  # fmt: skip


def changed(document: dict[str, Any], what: list[tuple[int, str, Any]]) -> dict[str, Any]:
    document = copy.deepcopy(document)
    for number, how, value in what:
        every = places(document)
        *way, last = every[number % len(every)]
        parent = document
        for key in way:
            parent = parent[key]
        if how == "set":
            parent[last] = value
        elif how == "drop":
            del parent[last]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]) if how == "double" else value)
        else:
            parent[f"{last}x" if how == "double" else "unknown"] = value
    return document


@pytest.fixture(scope="module")
def root() -> Any:
    """An empty tmpfs that no name leads to."""
    kernel.need(kernel.mount_refused)
    with OwnedFd(calls.fsopen("tmpfs")) as context:
        calls.fsconfig_create(context.fileno())
        with OwnedFd(calls.fsmount(context.fileno(), 0)) as tree:
            yield tree.fileno()


def build(data: bytes, root: int, cache: str) -> None:
    """What create does before it starts anything."""
    spec = decode_spec(data, "config.json")
    check_spec(spec)
    with ExitStack() as held:
        process = spec.process or Process(cwd="/", args=("/",))
        process, _ = complete(spec, process, Root(root), 0o22)
        cgroup_path(spec, "x")
        validate_resources(resources_of(spec))
        ends = Ends(hold=lambda fd: held.enter_context(fd).fileno(), seccomp=seccomp_filter(spec, process, cache), start_socket=0)  # fmt: skip
        block, fds = compile_create(spec, process, root, "/", ends).build()
        assert len(block) <= 16 << 20
        assert len(fds) <= 512


def once(data: bytes, root: int, cache: str) -> bool:
    begin, descriptors = time.monotonic(), len(os.listdir("/proc/self/fd"))
    try:
        build(data, root, cache)
        return True
    except (ScowError, OSError):
        return False
    finally:
        assert time.monotonic() - begin < 10
        assert len(os.listdir("/proc/self/fd")) == descriptors


@given(st.sampled_from([ALL, PLAIN]), changes)
@example(PLAIN, [(0, "add", "x")])
def test_a_changed_configuration_is_a_plan_or_a_refusal(
    root: int,
    tmp_path_factory: pytest.TempPathFactory,
    document: dict[str, Any],
    what: list[tuple[int, str, Any]],
) -> None:
    cache = str(tmp_path_factory.getbasetemp())
    once(json.dumps(changed(document, what)).encode(), root, cache)


def test_the_unchanged_ones_are_plans(root: int, tmp_path: Any) -> None:
    assert once(json.dumps(PLAIN).encode(), root, str(tmp_path))
    assert once(json.dumps(ALL).encode(), root, str(tmp_path))


@given(st.integers(0, 10_000), st.binary(max_size=12), st.integers(0, 40))
def test_a_damaged_text_is_refused(
    root: int, tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes, lost: int
) -> None:
    text = json.dumps(ALL).encode()
    at %= len(text)
    once(text[:at] + noise + text[at + lost :], root, str(tmp_path_factory.getbasetemp()))


@pytest.mark.parametrize("data", [b"", b"[" * 10**6, b'{"a":' * 10**6, b'{"ociVersion":' + b"9" * 10**6, b"\xff\xfe", b"\xef\xbb\xbf{}", b"null", b"{}" * 2, b'{"process":{"args":[' + b'"a",' * 10**6, b'"' + b"a" * CONFIG_LIMIT])  # fmt: skip
def test_large_and_deep_documents_are_refused(data: bytes) -> None:
    for decode in (decode_spec, decode_process):
        with pytest.raises(InvalidArgument):
            decode(data, "config.json")


@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")),
    )
)
def test_small_documents_of_ours(data: bytes) -> None:
    try:
        record_of(smalljson.decode(data))
    except (ValueError, RecursionError):
        pass
    parse_line(data)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)
    ),
)


@given(json_values)
def test_our_encoder_writes_what_json_reads(value: Any) -> None:
    for indent in ("", "  "):
        assert json.loads(smalljson.encode(value, indent)) == value
    assert smalljson.decode(smalljson.encode(value).encode()) == value


@given(st.sampled_from(sorted(oci_args.COMMANDS)), st.lists(st.one_of(st.sampled_from(["-f", "--force", "--", "-", "-e", "--env=x", "--root", "-abc", "--pid-file", "=", "-="]), st.text(max_size=8)), max_size=6))  # fmt: skip
def test_command_lines(command: str, words: list[str]) -> None:
    for table in (oci_args.COMMANDS[command], oci_args.GLOBAL):
        for strict in (True, False):
            try:
                flags, _ = oci_args.read_flags(words, table, strict_order=strict)
                oci_args.number(flags, "preserve-fds")
            except InvalidArgument:
                pass
