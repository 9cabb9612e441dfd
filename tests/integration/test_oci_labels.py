"""AppArmor profiles of scow-oci's containers, on a kernel that enforces them: the guest's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import apparmor
from fixtures.bundle import Bundle, Runtime

# Chosen by the guest (tests/vm/run.py), whose kernel has AppArmor enabled.
pytestmark = [pytest.mark.cgroup_v2, pytest.mark.root]

PROFILES = """
profile scow-test-tight flags=(attach_disconnected) {
  file,
  capability,
  signal,
  deny /tmp/secret rw,
}
profile scow-test-other flags=(attach_disconnected) {
  file,
  capability,
  signal,
}
"""
TIGHT, OTHER = "scow-test-tight", "scow-test-other"
SHOW = "cat /proc/self/attr/current; cat /tmp/secret 2>&1"


@pytest.fixture(scope="module", autouse=True)
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with apparmor.loaded(PROFILES, tmp_path_factory.mktemp("apparmor")):
        yield


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / "bundle", f"/scow-oci-test/{os.getpid()}")
    (made.rootfs / "tmp/secret").write_text("secret\n")
    made.process["apparmorProfile"] = TIGHT
    return made


def run(oci: Runtime, bundle: Bundle) -> list[str]:
    bundle.script(SHOW)
    bundle.write()
    return oci("run", "-b", str(bundle.path), "x").out.splitlines()


@pytest.mark.parametrize("new_privileges", [False, True])
def test_the_program_runs_under_its_profile(
    oci: Runtime, bundle: Bundle, new_privileges: bool
) -> None:
    bundle.process["noNewPrivileges"] = not new_privileges
    assert run(oci, bundle) == [f"{TIGHT} (enforce)", "cat: can't open '/tmp/secret': Permission denied"]  # fmt: skip
    bundle.process["apparmorProfile"] = OTHER
    assert run(oci, bundle) == [f"{OTHER} (enforce)", "secret"]


def test_a_user_namespace_with_a_covered_procfs_is_no_way_out(oci: Runtime, bundle: Bundle) -> None:
    """In there no new procfs can be mounted (mount_too_revealing): ours is made before."""
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux.update(uidMappings=maps, gidMappings=maps)
    bundle.path.chmod(0o755)
    assert run(oci, bundle)[0] == f"{TIGHT} (enforce)"


def test_hooks_of_the_host_run_without_the_profile(oci: Runtime, bundle: Bundle) -> None:
    told = bundle.path / "hook"
    script = f"cat /proc/self/attr/current > {told}"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}
    bundle.config["hooks"] = {"createContainer": [hook]}
    assert run(oci, bundle)[0] == f"{TIGHT} (enforce)"
    assert told.read_text() == "unconfined\n"


def test_exec_has_the_profile_of_the_container_or_its_own(oci: Runtime, bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "100"]
    bundle.write()
    assert oci.quiet("run", "-d", "-b", str(bundle.path), "x").code == 0
    words = ("x", "cat", "/proc/self/attr/current")
    assert oci.ok("exec", *words) == f"{TIGHT} (enforce)\n"
    assert oci.ok("exec", "--apparmor", OTHER, *words) == f"{OTHER} (enforce)\n"
    process = bundle.path / "process.json"
    process.write_text('{"cwd": "/", "args": ["/bin/cat", "/proc/self/attr/current"]}')
    assert oci.ok("exec", "--process", str(process), "x") == f"{TIGHT} (enforce)\n"
    done = oci("exec", "--apparmor", "scow-test-none", *words)
    assert (done.code, "scow-test-none" in done.err) == (255, True)
    oci.ok("delete", "--force", "x")


def test_a_profile_that_is_not_loaded_is_an_error(oci: Runtime, bundle: Bundle) -> None:
    bundle.process["apparmorProfile"] = "scow-test-none"
    bundle.write()
    done = oci("create", "-b", str(bundle.path), "x")
    assert done.code == 1
    assert "scow-test-none" in done.err
    assert oci.ok("list", "-q") == ""


def test_a_procfs_of_the_image_is_not_believed(oci: Runtime, bundle: Bundle) -> None:
    """CVE-2019-16884: a volume on /proc once took what was meant for the kernel."""
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if m["destination"] != "/proc"]
    attributes = bundle.rootfs / "proc/self/attr/apparmor"
    attributes.mkdir(parents=True)
    for name in ("current", "exec"):
        (attributes / name).write_text("")
        (attributes.parent / name).write_text("")
    bundle.script("cat /tmp/secret 2>&1")
    bundle.linux.update(maskedPaths=[], readonlyPaths=[])
    bundle.write()
    assert "Permission denied" in oci("run", "-b", str(bundle.path), "x").out
