"""linux.resources and exec --cgroup through scow-oci: which files say what, on both versions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fixtures import kernel
from fixtures.bundle import Bundle, Runtime

pytestmark = [pytest.mark.root, pytest.mark.guest]

NAME = "c1"
TOP = "/sys/fs/cgroup"
PATH = f"scow-oci-test/{os.getpid()}"
IS_UNIFIED = kernel.cgroup_v2_missing() is None


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    kernel.need(kernel.mount_refused)
    made = Bundle(tmp_path / "bundle", f"/{PATH}")
    made.process["args"] = ["sleep", "1000"]
    return made


def start(oci: Runtime, bundle: Bundle, **resources: Any) -> int:
    """Start a container with these resources; its first process."""
    bundle.linux["resources"] = resources
    bundle.write()
    log = bundle.path / "log"
    done = oci.quiet("--log", str(log), "run", "-d", "-b", str(bundle.path), NAME)
    assert done.code == 0, log.read_text()
    return int(json.loads(oci.ok("state", NAME))["pid"])


def refused(oci: Runtime, bundle: Bundle, **resources: Any) -> str:
    """What is said of a container that cannot have these resources; nothing of it is left."""
    bundle.linux["resources"] = resources
    bundle.write()
    done = oci("run", "-d", "-b", str(bundle.path), NAME)
    assert done.code == 1
    assert not (oci.root / NAME).exists()
    assert not os.path.exists(place("freezer"))
    return done.err


def place(controller: str) -> Path:
    """The container's cgroup: the one, or that of a v1 controller."""
    return Path(TOP, PATH) if IS_UNIFIED else Path(TOP, controller, PATH)


def values(*names: str) -> list[str]:
    return [(Path(TOP, PATH) / name).read_text().strip() for name in names]


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.cgroup_v2
def test_limits_in_the_files_of_v2(oci: Runtime, bundle: Bundle) -> None:
    start(
        oci,
        bundle,
        memory={
            "limit": 64 << 20,
            "swap": 64 << 20,
            "reservation": 16 << 20,
            "disableOOMKiller": True,
        },
        cpu={"shares": 512, "quota": 50000, "burst": 1000, "cpus": "0", "mems": "0"},
        pids={"limit": -1},
        hugepageLimits=[{"pageSize": "2MB", "limit": 4 << 20}],
        unified={"memory.high": "1M\n50M", "memory.low": "1M", "memory.oom.group": "1"},
    )
    found = values("memory.max", "memory.swap.max", "memory.low", "memory.high", "memory.oom.group")
    assert found == [str(64 << 20), "0", str(1 << 20), str(50 << 20), "1"]
    assert values("cpu.weight", "cpu.max", "cpu.max.burst") == ["59", "50000 100000", "1000"]
    assert values("cpuset.cpus", "cpuset.mems", "pids.max") == ["0", "0", "max"]
    assert values("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max") == [str(4 << 20)] * 2


@pytest.mark.cgroup_v2
@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"rdma": {"mlx5_0": {"hcaHandles": 3}}}, "rdma.max"),
        ({"hugepageLimits": [{"pageSize": "3MB", "limit": 0}]}, "hugetlb.3MB.max"),
        ({"unified": {"memory.nonsense": "1"}}, "memory.nonsense"),
        ({"unified": {"nonsense.max": "1"}}, "controller 'nonsense' is not available"),
        ({"unified": {"../x": "1"}}, "../x"),
        ({"unified": {"cgroup.freeze": "1"}}, "cgroup.freeze"),
        ({"memory": {"swappiness": 10}}, "swappiness"),
        ({"memory": {"limit": 1 << 20, "swap": 1}}, "below the memory limit"),
        ({"cpu": {"realtimeRuntime": 5000}}, "realtime"),
        ({"cpu": {"cpus": "4000"}}, "cpuset.cpus"),
        ({"cpu": {"idle": 1, "shares": 100}}, "idle"),
        ({"network": {"classID": 7}}, "cgroup v1"),
        ({"blockIO": {"leafWeight": 100}}, "cgroup v1 only"),
        ({"blockIO": {"throttleReadBpsDevice": [{"major": 99, "minor": 0, "rate": 1}]}}, "io.max"),
    ],
)
def test_limits_that_v2_does_not_take(
    oci: Runtime, bundle: Bundle, resources: dict[str, Any], words: str
) -> None:
    assert words in refused(oci, bundle, **resources)


@pytest.mark.cgroup_v2
def test_each_flag_of_update(oci: Runtime, bundle: Bundle) -> None:
    start(oci, bundle, cpu={"shares": 1024}, memory={"limit": 64 << 20})
    flags = ("--memory", "48m", "--memory-swap", "50m", "--memory-reservation", "8m")
    oci.ok("update", *flags, "--pids-limit", "17", "--cpu-share", "2", NAME)
    assert values("memory.max", "memory.swap.max", "memory.low") == [
        str(48 << 20),
        str(2 << 20),
        str(8 << 20),
    ]
    assert values("pids.max", "cpu.weight") == ["17", "1"]
    oci.ok("update", "--cpu-period", "20000", NAME)
    assert values("cpu.max") == ["max 20000"]
    oci.ok("update", "--cpu-quota", "5000", "--cpu-burst", "100", NAME)
    assert values("cpu.max", "cpu.max.burst") == ["5000 20000", "100"]
    oci.ok("update", "--cpu-quota", "-1", "--cpuset-cpus", "0", "--cpuset-mems", "0", NAME)
    assert values("cpu.max", "cpuset.cpus", "cpuset.mems") == ["max 20000", "0", "0"]
    oci.ok("update", "--cpu-idle", "1", NAME)
    assert values("cpu.idle") == ["1"]
    oci.ok("update", "--cpu-idle", "0", "--cpu-share", "1024", NAME)
    assert values("cpu.idle", "cpu.weight") == ["0", "100"]
    oci.ok("update", "--memory", "-1", NAME)
    assert values("memory.max", "memory.swap.max") == ["max", "max"]


@pytest.mark.cgroup_v2
def test_a_limit_below_the_usage_is_looked_at_first(oci: Runtime, bundle: Bundle) -> None:
    start(oci, bundle, memory={"limit": 64 << 20})
    change = {"memory": {"limit": 4096, "checkBeforeUpdate": True}}
    (bundle.path / "change").write_text(json.dumps(change))
    assert "usage is" in oci("update", "-r", str(bundle.path / "change"), NAME).err
    assert values("memory.max") == [str(64 << 20)]
    assert json.loads(oci.ok("state", NAME))["status"] == "running"


def test_no_room_for_another_process(oci: Runtime, bundle: Bundle) -> None:
    """A pids limit of 0 is a limit, since version 1.3 of the specification."""
    bundle.config["ociVersion"] = "1.3.0"
    pid = start(oci, bundle, pids={"limit": 0})
    assert (place("pids") / "pids.max").read_text() == "0\n"
    assert (place("pids") / "cgroup.procs").read_text() == f"{pid}\n"


@pytest.mark.cgroup_v2
@pytest.mark.parametrize(("mode", "words"), [("rw", "mine"), ("ro", "not mine")])
def test_a_cgroup_that_the_container_may_divide(
    oci: Runtime, bundle: Bundle, mode: str, words: str
) -> None:
    """It belongs to the container's root when all that leads to it does, and not otherwise."""
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    kinds = ("pid", "network", "ipc", "uts", "mount", "user", "cgroup")
    bundle.linux["namespaces"] = [{"type": kind} for kind in kinds]
    bundle.linux.update(uidMappings=maps, gidMappings=maps)
    entry = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
    bundle.config["mounts"].append({**entry, "options": ["nosuid", "nodev", mode]})
    bundle.script(
        "cd /sys/fs/cgroup; mkdir a && echo 1 > a/cgroup.procs && echo +pids > cgroup.subtree_control"
        " && ! echo max > pids.max && echo mine || echo not mine"
    )
    bundle.path.chmod(0o755)
    bundle.write()
    done = oci("run", "-b", str(bundle.path), NAME)
    assert done.out == f"{words}\n", done.err
    assert not place("").exists()


# --- exec -----------------------------------------------------------------------------------------


@pytest.fixture
def divided(oci: Runtime, bundle: Bundle) -> Runtime:
    """A container that has made cgroups of its own, and on v2 given its controllers to them."""
    pid = start(oci, bundle, pids={"limit": 50})
    if not IS_UNIFIED:
        for procs in Path(TOP).glob(f"*/{PATH}/cgroup.procs"):
            (procs.parent / "part").mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):  # an empty one takes no process
                if (procs.parent / name).exists():
                    text = (procs.parent / name).read_text()
                    (procs.parent / "part" / name).write_text(text)
        (place("memory") / "other").mkdir()
        return oci
    for name in ("part", "other"):
        (place("") / name).mkdir()
    (place("") / "part/cgroup.procs").write_text(str(pid))
    (place("") / "cgroup.subtree_control").write_text("+memory +pids")
    return oci


def where(oci: Runtime, *words: str) -> dict[str, str]:
    """Controllers -> cgroup of an exec'ed process, below the container's."""
    lines = oci.ok("exec", *words, NAME, "cat", "/proc/self/cgroup").splitlines()
    found = dict(line.split(":", 2)[1:] for line in lines)
    assert all(path.startswith(f"/{PATH}") for path in found.values()), found
    return {names: path[len(PATH) + 1 :] for names, path in found.items()}


@pytest.mark.cgroup_v2
def test_exec_goes_where_processes_may_be(divided: Runtime) -> None:
    """cgroup-v2.rst: a cgroup whose controllers are given on holds no process itself."""
    assert where(divided) == {"": "/part"}
    assert where(divided, "--cgroup", "other") == {"": "/other"}
    assert where(divided, "--cgroup", "/part/") == {"": "/part"}
    done = divided("exec", "--cgroup", "/", NAME, "true")
    assert (done.code, "busy" in done.err) == (255, True)
    done = divided("exec", "--cgroup", "memory:part", NAME, "true")
    assert (done.code, "v1 only" in done.err) == (255, True)


@pytest.mark.cgroup_v1
def test_exec_in_a_part_of_each_hierarchy(divided: Runtime) -> None:
    assert set(where(divided).values()) == {""}
    assert set(where(divided, "--cgroup", "/").values()) == {""}
    found = where(divided, "--cgroup", "part", "--cgroup", "memory:other")
    found.pop("", None)  # of cgroup2 on a hybrid host, where there are no limits
    assert found.pop("memory") == "/other"
    assert set(found.values()) == {"/part"}
    found = where(divided, "--cgroup", "memory,pids:part")
    assert {names for names, path in found.items() if path == "/part"} == {"memory", "pids"}
    assert "no cgroup controller 'nope'" in divided("exec", "--cgroup", "nope:x", NAME, "true").err


@pytest.mark.parametrize("word", ["nowhere", "../x", "part/../..", "/sys", "pids:..", ":x"])
def test_exec_in_no_part_of_the_container(divided: Runtime, word: str) -> None:
    done = divided("exec", "--cgroup", word, NAME, "true")
    assert done.code == 255
    assert "cgroup" in done.err
