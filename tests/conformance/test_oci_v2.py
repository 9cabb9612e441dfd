"""cgroup v2 and systemd: what scow-oci, runc and crun make of the same limits must be the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.bundle import SCOW_OCI, Bundle, Runtime

pytestmark = [pytest.mark.cgroup_v2, pytest.mark.root]

NAME = "x"
RESOURCES = {
    "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
    "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
    "pids": {"limit": 77},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
    "unified": {"memory.high": str(60 << 20)},
}
FILES = (
    "memory.max memory.swap.max memory.low memory.high cpu.max pids.max cpuset.cpus cpuset.mems "
    "hugetlb.2MB.max cgroup.subtree_control cgroup.type cgroup.freeze"
)
# cpu.weight is not here: the peers of Debian 12 have the formula of before 2025.
PROPERTIES = (
    "Slice Delegate ActiveState MemoryMax MemoryLow MemorySwapMax TasksMax CPUQuotaPerSecUSec "
    "CPUQuotaPeriodUSec AllowedCPUs AllowedMemoryNodes CPUAccounting MemoryAccounting "
    "TasksAccounting DefaultDependencies"
)


@pytest.fixture
def runtimes(tmp_path: Path) -> Iterator[dict[str, Runtime]]:
    kernel.need(kernel.mount_refused)
    for name in ("runc", "crun"):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
    argvs = {"scow": SCOW_OCI, "runc": ["runc"], "crun": ["crun"]}
    found = {kind: Runtime(argv, tmp_path / kind) for kind, argv in argvs.items()}
    yield found
    for runtime in found.values():
        runtime("delete", "--force", NAME)


def show(unit: str) -> dict[str, str]:
    words = ["systemctl", "show", *(f"-p{name}" for name in PROPERTIES.split()), unit]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def facts(runtime: Runtime, bundle: Bundle, flags: list[str]) -> dict[str, str]:
    """The cgroup's files, and its unit's properties if it has one, while the container runs."""
    bundle.write()
    argv = Runtime([*runtime.argv[:-2], *flags], runtime.root)
    done = argv.quiet("run", "-d", "-b", str(bundle.path), NAME)
    assert done.code == 0, runtime.argv
    pid = json.loads(argv.ok("state", NAME))["pid"]
    path = Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")
    found = {
        name: Path(f"/sys/fs/cgroup{path}/{name}").read_text().strip() for name in FILES.split()
    }
    found["path"] = path
    if flags:
        found |= show(os.path.basename(path))
    argv.ok("delete", "--force", NAME)
    assert not os.path.exists(f"/sys/fs/cgroup{path}")
    return found


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        ([], f"/scow-oci-v2-{os.getpid()}/x"),
        (["--systemd-cgroup"], "scowtest.slice:peer:x"),
    ],
)
def test_limits(runtimes: dict[str, Runtime], tmp_path: Path, flags: list[str], path: str) -> None:
    bundle = Bundle(tmp_path / "bundle", path)
    bundle.process["args"] = ["sleep", "1000"]
    bundle.linux["resources"] = RESOURCES
    try:
        found = {kind: facts(runtime, bundle, flags) for kind, runtime in runtimes.items()}
    finally:
        subprocess.run(["systemctl", "stop", "scowtest.slice"], check=False)
        parent = Path(f"/sys/fs/cgroup/scow-oci-v2-{os.getpid()}")
        if parent.exists():
            parent.rmdir()  # the peers leave it
    scow, peers = found["scow"], (found["runc"], found["crun"])
    # Where the peers differ from each other, either is right.
    strange = {
        name: (value, [peer.get(name) for peer in peers])
        for name, value in scow.items()
        if value not in [peer.get(name) for peer in peers]
    }
    assert strange == {}
