"""--systemd-cgroup: scopes of systemd, and what is said where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.bundle import SCOW_OCI, Bundle, Runtime

NAME = "c1"
UNIT = "scow-test-c1.scope"
SLICE = "scowtest-a.slice"
CGROUP = Path("/sys/fs/cgroup/scowtest.slice/scowtest-a.slice", UNIT)
on_systemd = pytest.mark.cgroup_v2


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    kernel.need(kernel.mount_refused)
    made = Bundle(tmp_path / "bundle", f"{SLICE}:scow-test:{NAME}")
    made.process["args"] = ["sleep", "1000"]
    return made


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime([*SCOW_OCI, "--systemd-cgroup"], tmp_path / "state")
    yield runtime
    runtime.remove_all()
    if os.path.isdir("/run/systemd/system"):
        systemctl("stop", "scowtest.slice")  # systemd made it and keeps it


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def prop(name: str) -> str:
    return systemctl("show", "-P", name, UNIT)


def create(oci: Runtime, bundle: Bundle, name: str = NAME) -> None:
    bundle.write()
    log = bundle.path / "log"
    done = oci.quiet("--log", str(log), "create", "-b", str(bundle.path), name)
    assert done.code == 0, log.read_text()


def value(name: str) -> str:
    return (CGROUP / name).read_text().strip()


def is_gone() -> bool:
    return not CGROUP.exists() and prop("LoadState") == "not-found"


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ((), ("not booted by systemd", "leave out --systemd-cgroup")),
        (("/run/systemd/system",), ("no connection to systemd over D-Bus", "dbus installed")),
    ],
)
def test_without_systemd_it_says_so(
    oci: Runtime, bundle: Bundle, there: tuple[str, ...], words: tuple[str, ...]
) -> None:
    bundle.write()
    script = 'mount -t tmpfs none /run && for d in $0; do mkdir -p "$d"; done && exec "$@"'
    wrapped = Runtime(
        ["unshare", "-m", "sh", "-c", script, " ".join(there), *oci.argv[:-2]], oci.root
    )
    done = wrapped("create", "-b", str(bundle.path), NAME)
    assert done.code == 1
    assert all(word in done.err for word in words), done.err
    assert not (oci.root / NAME).exists()


@pytest.mark.parametrize(
    "path",
    ["/a/b", "a:b", "a.slice:b:", "a/b.slice:x:y", "a--b.slice:x:y", "x:y:z", "::a b", "::a+b"],
)
def test_paths_that_name_no_scope(oci: Runtime, bundle: Bundle, path: str) -> None:
    bundle.linux["cgroupsPath"] = path
    bundle.write()
    done = oci("create", "-b", str(bundle.path), NAME)
    assert done.code == 1
    assert "slice" in done.err or "scope" in done.err
    assert not (oci.root / NAME).exists()


@on_systemd
def test_a_scope_lives_as_long_as_its_container(oci: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {
        "memory": {"limit": 64 << 20, "swap": 80 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 2000, "quota": 12345, "period": 50000, "cpus": "0"},
        "pids": {"limit": 30},
        "unified": {"memory.high": str(60 << 20)},
    }
    bundle.config["annotations"] = {"org.systemd.property.MemoryMax": "uint64 1000"}
    create(oci, bundle)
    pid = json.loads(oci.ok("state", NAME))["pid"]
    assert Path(f"/proc/{pid}/cgroup").read_text() == f"0::{str(CGROUP)[len('/sys/fs/cgroup') :]}\n"
    assert value("cgroup.procs") == str(pid)
    expected = {
        "ActiveState": "active",
        "Slice": SLICE,
        "Delegate": "yes",
        "MemoryMax": str(64 << 20),
        "MemorySwapMax": str(16 << 20),
        "MemoryLow": str(32 << 20),
        "MemoryHigh": str(60 << 20),
        "CPUWeight": "170",
        "CPUQuotaPerSecUSec": "250ms",
        "CPUQuotaPeriodUSec": "50ms",
        "TasksMax": "30",
        "AllowedCPUs": "0",
    }
    assert {name: prop(name) for name in expected} == expected
    assert value("cpu.max") == "12345 50000"
    assert value("memory.max") == str(64 << 20)
    oci.ok("start", NAME)
    oci.ok("update", "--memory", "50331648", "--memory-swap", "-1", "--pids-limit", "40", NAME)
    oci.ok("update", "--cpu-quota", "23456", NAME)
    changed = {"MemoryMax": "50331648", "MemorySwapMax": "infinity", "TasksMax": "40"}
    assert {name: prop(name) for name in changed} == changed
    assert (value("pids.max"), value("cpu.max")) == ("40", "23456 50000")
    systemctl("daemon-reload")
    assert (value("pids.max"), value("memory.max")) == ("40", "50331648")
    assert oci.ok("exec", NAME, "id", "-u") == "0\n"
    oci.ok("pause", NAME)
    assert json.loads(oci.ok("state", NAME))["status"] == "paused"
    assert len(json.loads(oci.ok("ps", "-f", "json", NAME))) == 1
    oci.ok("resume", NAME)
    oci.ok("delete", "--force", NAME)
    assert is_gone()


@on_systemd
def test_an_update_that_the_kernel_refuses_changes_nothing(oci: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"pids": {"limit": 30}}
    create(oci, bundle)
    change = {"pids": {"limit": 50}, "unified": {"memory.oom.group": "7"}}
    (bundle.path / "change").write_text(json.dumps(change))
    done = oci("update", "-r", str(bundle.path / "change"), NAME)
    assert done.code == 1
    assert "memory.oom.group" in done.err
    assert (prop("TasksMax"), value("pids.max")) == ("30", "30")


@on_systemd
def test_devices_outlast_a_reload_of_systemd(oci: Runtime, bundle: Bundle) -> None:
    """runc issues 3551 and 4568: systemd wrote its own idea of the devices over the runtime's."""
    for name in ("capabilities",):
        sets = bundle.process[name]
        bundle.process[name] = {kind: [*had, "CAP_MKNOD"] for kind, had in sets.items()}
    create(oci, bundle)
    oci.ok("start", NAME)
    look = "mknod /tmp/k c 1 11 2>/dev/null; cat /tmp/k 2>&1; echo x > /dev/null && tty < /dev/pts/ptmx"
    told = []
    (bundle.rootfs / "bin/mknod").symlink_to("busybox")
    for _ in range(2):
        told.append(oci("exec", NAME, "sh", "-c", look).out)
        systemctl("daemon-reload")
    assert "Operation not permitted" in told[0]
    assert "/dev/null" not in told[0]
    assert told[0] == told[1]


@on_systemd
def test_room_for_one_process(oci: Runtime, bundle: Bundle) -> None:
    """The process that keeps the scope while there is no other does not count."""
    bundle.linux["resources"] = {"pids": {"limit": 1}}
    create(oci, bundle)
    assert (value("pids.max"), prop("TasksMax")) == ("1", "1")
    oci.ok("start", NAME)
    assert len(value("cgroup.procs").split()) == 1


@on_systemd
def test_a_scope_ends_with_its_container(oci: Runtime, bundle: Bundle) -> None:
    bundle.script("exit 3")
    bundle.write()
    assert oci("run", "-b", str(bundle.path), NAME).code == 3
    assert is_gone()
    bundle.linux["cgroupsPath"] = ""
    bundle.script("cat /proc/self/cgroup; exit 7")
    bundle.write()
    done = oci("run", "-b", str(bundle.path), NAME)
    assert (done.code, done.out) == (7, f"0::/system.slice/scow-{NAME}.scope\n")
    assert systemctl("show", "-P", "LoadState", f"scow-{NAME}.scope") == "not-found"


@on_systemd
def test_a_failed_create_leaves_no_unit(oci: Runtime, bundle: Bundle) -> None:
    bundle.process["args"] = ["nope"]
    bundle.write()
    assert "executable file not found" in oci("create", "-b", str(bundle.path), NAME).err
    assert is_gone()
    bundle.linux["resources"] = {"unified": {"memory.oom.group": "7"}}
    bundle.write()
    assert "memory.oom.group" in oci("create", "-b", str(bundle.path), NAME).err
    assert is_gone()


@on_systemd
def test_the_name_of_a_living_unit_is_refused(oci: Runtime, bundle: Bundle) -> None:
    create(oci, bundle)
    done = oci("create", "-b", str(bundle.path), "second")
    assert done.code == 1
    assert "exists already" in done.err
    oci.ok("delete", "--force", "second")
    assert json.loads(oci.ok("state", NAME))["status"] == "created"
    oci.ok("delete", NAME)
    assert is_gone()


@on_systemd
def test_a_killed_create_leaves_no_unit(oci: Runtime, bundle: Bundle) -> None:
    bundle.write()
    for delay in (0.5, 0.8, 1.1, 1.4, 1.7):
        argv = [*oci.argv, "create", "-b", str(bundle.path), NAME]
        with subprocess.Popen(argv, stdin=-3, stdout=-3, stderr=-3) as creating:
            time.sleep(delay)
            creating.kill()
        oci.ok("delete", "--force", NAME)
        assert is_gone(), delay


@on_systemd
def test_out_of_memory_is_no_failed_unit(oci: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    bundle.script("a=x; while :; do a=$a$a; done")
    bundle.write()
    assert oci("run", "-b", str(bundle.path), NAME).code == 137
    assert is_gone()
