"""What a configuration asks of the scheduler, the allocator and the limits, read where it is: /proc."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fixtures import kernel
from fixtures.bundle import SCOW_OCI, Bundle, Runtime

NAME = "c1"
SYS_SCHED_GETATTR, SYS_IOPRIO_GET = 315, 252
OTHER, FIFO, RR, BATCH, IDLE, DEADLINE = 0, 1, 2, 3, 5, 6
RESET_ON_FORK = 1


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    kernel.need(kernel.mount_refused)
    made = Bundle(tmp_path / "bundle", f"/scow-oci-test/{os.getpid()}")
    made.process["args"] = ["sleep", "100"]
    return made


def start(oci: Runtime, bundle: Bundle) -> int:
    bundle.write()
    done = oci.quiet("run", "-d", "-b", str(bundle.path), NAME)
    assert done.code == 0
    return json.loads(oci.ok("state", NAME))["pid"]


def fails(oci: Runtime, bundle: Bundle) -> str:
    bundle.write()
    done = oci("create", "-b", str(bundle.path), NAME)
    assert done.code == 1
    assert oci.ok("list", "-q") == ""
    return done.err


def run(oci: Runtime, bundle: Bundle, script: str) -> str:
    bundle.script(script)
    bundle.write()
    done = oci("run", "-b", str(bundle.path), NAME)
    assert done.code == 0, done.err
    return done.out


# --- scheduler ------------------------------------------------------------------------------------


def attributes(pid: int) -> tuple[int, ...]:
    """policy, flags, nice, priority, runtime, deadline, period: struct sched_attr after its size."""
    buffer = ctypes.create_string_buffer(56)
    assert ctypes.CDLL(None).syscall(SYS_SCHED_GETATTR, pid, buffer, 56, 0) == 0
    return struct.unpack("<4xIQiIQQQ", buffer.raw[:48])


MS = 1_000_000


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"policy": "SCHED_OTHER", "nice": 7}, (OTHER, 0, 7, 0)),
        ({"policy": "SCHED_BATCH", "nice": -3}, (BATCH, 0, -3, 0)),
        ({"policy": "SCHED_IDLE"}, (IDLE, 0, 0, 0)),
        ({"policy": "SCHED_FIFO", "priority": 5}, (FIFO, 0, 0, 5)),
        (
            {"policy": "SCHED_RR", "priority": 9, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
            (RR, RESET_ON_FORK, 0, 9),
        ),
    ],
)
def test_scheduler(
    oci: Runtime, bundle: Bundle, asked: dict[str, Any], found: tuple[int, ...]
) -> None:
    bundle.process["scheduler"] = asked
    if found[3]:
        # With CONFIG_RT_GROUP_SCHED a group has no real time of its own to begin with.
        bundle.linux["cgroupsPath"] = f"/scow-oci-rt-{os.getpid()}"
        if Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists():
            cpu = {"realtimePeriod": 1_000_000, "realtimeRuntime": 10_000}
            bundle.linux["resources"] = {"cpu": cpu}
    pid = start(oci, bundle)
    assert attributes(pid)[:4] == found
    # exec takes what the container's process has
    out = oci.ok("exec", NAME, "sh", "-c", "cut -d' ' -f19,41 /proc/self/stat")
    if found[0] in (OTHER, BATCH):
        assert out.split() == [str(found[2]), str(found[0])]


def test_a_deadline_and_the_clones_that_it_forbids(oci: Runtime, bundle: Bundle) -> None:
    times = {"runtime": 2 * MS, "deadline": 50 * MS, "period": 100 * MS}
    bundle.process["scheduler"] = {"policy": "SCHED_DEADLINE", **times}
    hook = {"path": "/bin/true", "args": ["true"]}
    bundle.config["hooks"] = {"startContainer": [hook]}
    pid = start(oci, bundle)
    told = attributes(pid)
    assert (told[0], *told[4:]) == (DEADLINE, *times.values())
    out = oci.ok("exec", NAME, "busybox", "cut", "-d ", "-f41", "/proc/self/stat")
    assert out == f"{DEADLINE}\n"


@pytest.mark.parametrize(
    "asked",
    [
        {"policy": "SCHED_ISO"},  # a number without a scheduler behind it
        {"policy": "SCHED_NO"},
        {"policy": "SCHED_FIFO"},
        {"policy": "SCHED_OTHER", "priority": 1},
        {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NO"]},
    ],
)
def test_schedulers_that_are_none(oci: Runtime, bundle: Bundle, asked: dict[str, Any]) -> None:
    bundle.process["scheduler"] = asked
    assert "scheduler" in fails(oci, bundle)


@pytest.mark.parametrize(
    ("asked", "value"),
    [(("RT", 2), 1 << 13 | 2), (("BE", 6), 2 << 13 | 6), (("IDLE", 0), 3 << 13)],
)
def test_io_priority(oci: Runtime, bundle: Bundle, asked: tuple[str, int], value: int) -> None:
    name, level = asked
    bundle.process["ioPriority"] = {"class": f"IOPRIO_CLASS_{name}", "priority": level}
    pid = start(oci, bundle)
    assert ctypes.CDLL(None).syscall(SYS_IOPRIO_GET, 1, pid) == value


@pytest.mark.parametrize("asked", [("IOPRIO_CLASS_NO", 0), ("IOPRIO_CLASS_BE", 8)])
def test_io_priorities_that_are_none(oci: Runtime, bundle: Bundle, asked: tuple[str, int]) -> None:
    bundle.process["ioPriority"] = {"class": asked[0], "priority": asked[1]}
    assert "io priority" in fails(oci, bundle)


# --- processors and memory ------------------------------------------------------------------------


def test_affinity_is_not_the_callers(oci: Runtime, bundle: Bundle) -> None:
    """runc 1.3 and crun reset it, too: a caller that is bound binds its containers no more."""
    alone = Runtime(["taskset", "1", *SCOW_OCI], oci.root)
    pid = start(alone, bundle)
    cpus = Path("/sys/fs/cgroup/cpuset/cpuset.cpus")
    assert os.sched_getaffinity(pid) == os.sched_getaffinity(0), cpus
    assert oci.ok("exec", NAME, "grep", "Cpus_allowed:", "/proc/self/status") == run_status(pid)


def run_status(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines(keepends=True)
    return next(line for line in lines if line.startswith("Cpus_allowed:"))


def test_affinity_of_an_exec(oci: Runtime, bundle: Bundle) -> None:
    bundle.process["execCPUAffinity"] = {"initial": "0-1", "final": "0"}
    pid = start(oci, bundle)
    assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
    show = ["/bin/grep", "Cpus_allowed_list", "/proc/self/status"]
    assert oci.ok("exec", NAME, *show).split() == ["Cpus_allowed_list:", "0"]
    document = bundle.path / "process.json"
    process = {"cwd": "/", "args": show}
    document.write_text(json.dumps(process))
    assert oci.ok("exec", "--process", str(document), NAME).split()[1] == "0"
    process["execCPUAffinity"] = {"final": "1"}
    document.write_text(json.dumps(process))
    assert oci.ok("exec", "--process", str(document), NAME).split()[1] == "1"
    process["execCPUAffinity"] = {"final": "x"}
    document.write_text(json.dumps(process))
    assert oci("exec", "--process", str(document), NAME).code == 255


@pytest.mark.parametrize(
    ("mode", "nodes", "flags", "words"),
    [
        ("DEFAULT", "", [], "default"),
        ("BIND", "0", [], "bind:0"),
        ("BIND", "0", ["STATIC_NODES"], "bind=static:0"),
        ("INTERLEAVE", "0", ["RELATIVE_NODES"], "interleave=relative:0"),
        ("WEIGHTED_INTERLEAVE", "0", [], "weighted interleave:0"),
        ("PREFERRED", "0", [], "prefer:0"),
        ("PREFERRED_MANY", "0", [], "prefer (many):0"),
        ("LOCAL", "", [], "local"),
    ],
)
def test_memory_policy(
    oci: Runtime, bundle: Bundle, mode: str, nodes: str, flags: list[str], words: str
) -> None:
    bundle.linux["memoryPolicy"] = {
        "mode": f"MPOL_{mode}",
        "nodes": nodes,
        "flags": [f"MPOL_F_{name}" for name in flags],
    }
    pid = start(oci, bundle)
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        assert line.split(" ", 1)[1].startswith(words), line


@pytest.mark.parametrize(
    "asked",
    [
        {"mode": "MPOL_NO"},
        {"mode": "MPOL_BIND"},
        {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NO"]},
        {"mode": "MPOL_BIND", "nodes": "1000"},
        {"mode": "MPOL_DEFAULT", "nodes": "0"},
    ],
)
def test_memory_policies_that_are_none(oci: Runtime, bundle: Bundle, asked: dict[str, Any]) -> None:
    bundle.linux["memoryPolicy"] = asked
    assert "memory" in fails(oci, bundle)


def test_shares_of_caches_need_resctrl(oci: Runtime, bundle: Bundle) -> None:
    if "resctrl" in Path("/proc/self/mountinfo").read_text():
        pytest.skip("resctrl is mounted: these groups are the host's")
    bundle.linux["intelRdt"] = {"closID": "x", "l3CacheSchema": "L3:0=f"}
    assert "no resctrl file system is mounted" in fails(oci, bundle)


# --- the rest of the process ----------------------------------------------------------------------


@pytest.mark.parametrize(("domain", "machine"), [("LINUX", "x86_64"), ("LINUX32", "i686")])
def test_personality(oci: Runtime, bundle: Bundle, domain: str, machine: str) -> None:
    bundle.linux["personality"] = {"domain": domain}
    assert run(oci, bundle, "uname -m") == f"{machine}\n"


@pytest.mark.parametrize("asked", [{"domain": "NO"}, {"domain": "LINUX", "flags": ["x"]}])
def test_personalities_that_are_none(oci: Runtime, bundle: Bundle, asked: dict[str, Any]) -> None:
    bundle.linux["personality"] = asked
    assert "personality" in fails(oci, bundle)


def test_limits_groups_and_masks(oci: Runtime, bundle: Bundle) -> None:
    unlimited = 2**64 - 1
    bundle.process.update(
        rlimits=[
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": unlimited},
            {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 2 << 20},
        ],
        user={"uid": 7, "gid": 8, "umask": 0o137, "additionalGids": [9, 2_000_000_000]},
        oomScoreAdj=77,
    )
    script = """grep -E '^Max (open|core|stack)' /proc/self/limits | tr -s ' '
        umask; id -u; id -g; grep ^Groups /proc/self/status; cat /proc/self/oom_score_adj"""
    assert [line.split() for line in run(oci, bundle, script).splitlines()] == [
        ["Max", "stack", "size", "1048576", "2097152", "bytes"],
        ["Max", "core", "file", "size", "0", "unlimited", "bytes"],
        ["Max", "open", "files", "100", "200", "files"],
        ["0137"],
        ["7"],
        ["8"],
        ["Groups:", "9", "2000000000"],
        ["77"],
    ]


def test_ambient_capabilities_that_cannot_be_are_a_warning(oci: Runtime, bundle: Bundle) -> None:
    kill, chown = "CAP_KILL", "CAP_CHOWN"
    bundle.process["capabilities"] = {
        "bounding": [kill, chown],
        "permitted": [kill, chown],
        "effective": [kill],
        "inheritable": [kill],
        "ambient": [kill, chown],
    }
    bundle.script("grep CapAmb /proc/self/status")
    bundle.write()
    done = oci("run", "-b", str(bundle.path), NAME)
    assert done.out.split() == ["CapAmb:", f"{1 << 5:016x}"]
    assert "ambient" in done.err
    assert chown in done.err


def test_an_exec_in_a_user_namespace_gets_its_oom_score(oci: Runtime, bundle: Bundle) -> None:
    """In there it cannot be lowered: it is set before the namespace is entered."""
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux.update(uidMappings=maps, gidMappings=maps)
    bundle.process["oomScoreAdj"] = 55
    bundle.path.chmod(0o755)
    start(oci, bundle)
    assert oci.ok("exec", NAME, "cat", "/proc/1/oom_score_adj") == "55\n"
    assert oci.ok("exec", NAME, "cat", "/proc/self/oom_score_adj") == "55\n"


def test_groups_where_they_cannot_be_set(oci: Runtime, bundle: Bundle) -> None:
    """user_namespaces(7): ids that are not mapped do not exist in there."""
    maps = [{"containerID": 0, "hostID": 100000, "size": 10}]
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux.update(uidMappings=maps, gidMappings=maps)
    bundle.process["user"] = {"uid": 0, "gid": 0, "additionalGids": [70]}
    bundle.path.chmod(0o755)
    bundle.write()
    done = oci("run", "-b", str(bundle.path), NAME)
    assert done.code == 1
    assert "invalid argument" in done.err


def test_the_caller_may_have_fewer_descriptors_than_the_container(
    oci: Runtime, bundle: Bundle
) -> None:
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 900, "hard": 900}]
    bundle.script("ulimit -n; ulimit -Hn")
    bundle.write()
    words = ["prlimit", "--nofile=200:1024", *oci.argv, "run", "-b", str(bundle.path), NAME]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stdout.split() == [b"900", b"900"]
