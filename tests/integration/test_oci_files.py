"""Devices, covered paths, sysctls and hooks: what the specification's tables say of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fixtures.bundle import SCOW_OCI, Bundle, Runtime, without_unified

MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]
TOP = f"scow-oci-files-{os.getpid()}"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / "bundle", f"/{TOP}/x")
    made.path.chmod(0o755)
    return made


def run(oci: Runtime, bundle: Bundle, script: str) -> list[str]:
    bundle.script(script)
    bundle.write()
    done = oci("run", "-b", str(bundle.path), "x")
    assert done.code == 0, done.err
    return done.out.splitlines()


def fails(oci: Runtime, bundle: Bundle) -> str:
    bundle.write()
    done = oci("create", "-b", str(bundle.path), "x")
    assert done.code == 1
    return done.err


def in_user_namespace(bundle: Bundle) -> None:
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux.update(uidMappings=MAPS, gidMappings=MAPS)


# --- devices --------------------------------------------------------------------------------------

STAT = "stat -c '%F %t:%T %a %u:%g'"


def test_devices_as_they_are_listed(oci: Runtime, bundle: Bundle) -> None:
    bundle.linux["devices"] = [
        {"path": "/dev/deep/c", "type": "c", "major": 1, "minor": 7, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"path": "/srv/b", "type": "b", "major": 7, "minor": 200, "fileMode": 0o60600},
        {"path": "/dev/u", "type": "u", "major": 1, "minor": 3},
        {"path": "/dev/p", "type": "p", "fileMode": 0o622, "uid": 5},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
    ]  # fmt: skip
    names = "/dev/deep/c /srv/b /dev/u /dev/p /dev/null /dev/zero"
    links = "for x in ptmx fd stdin; do readlink /dev/$x; done"
    assert run(oci, bundle, f"{STAT} {names}; {links}") == [
        "character special file 1:7 640 3:4",
        "block special file 7:c8 600 0:0",
        "character special file 1:3 666 0:0",
        "fifo 0:0 622 5:0",
        "character special file 1:3 600 0:0",
        "character special file 1:5 666 0:0",
        "pts/ptmx",
        "/proc/self/fd",
        "/proc/self/fd/0",
    ]


def test_a_device_that_is_there_must_be_the_same(oci: Runtime, bundle: Bundle) -> None:
    device = {"path": "/srv/x", "type": "c", "major": 1, "minor": 3}
    bundle.linux["devices"] = [device]
    (bundle.rootfs / "srv").mkdir()
    os.mknod(bundle.rootfs / "srv/x", 0o020600, os.makedev(1, 3))
    assert run(oci, bundle, f"{STAT} /srv/x") == ["character special file 1:3 600 0:0"]
    (bundle.rootfs / "srv/x").unlink()
    (bundle.rootfs / "srv/x").touch()
    assert "/srv/x" in fails(oci, bundle)


def test_a_link_in_the_image_leads_no_device_out(
    oci: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    """CVE-2026-41579 and its like: /dev of the image is a link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (bundle.rootfs / "links").symlink_to(outside)
    bundle.linux["devices"] = [{"path": "/links/x", "type": "c", "major": 1, "minor": 3}]
    assert run(oci, bundle, f"{STAT} /links/x")[0].startswith("character special file 1:3")
    assert list(outside.iterdir()) == []


def test_devices_of_a_user_namespace(oci: Runtime, bundle: Bundle) -> None:
    in_user_namespace(bundle)
    bundle.linux["devices"] = [{"path": "/dev/pipe", "type": "p", "fileMode": 0o620, "uid": 9}]
    assert run(oci, bundle, f"{STAT} /dev/pipe; {STAT} /dev/zero; grep ' /dev/zero ' /proc/self/mountinfo | wc -l") == [
        "fifo 0:0 620 9:0",
        "character special file 1:5 666 65534:65534",
        "1",
    ]  # fmt: skip
    bundle.linux["devices"] = [{"path": "/dev/zero", "type": "c", "major": 1, "minor": 3}]
    assert "is not c 1:3" in fails(oci, bundle)


@pytest.mark.parametrize("change", [{"type": "x"}, {"path": "dev/x"}])
def test_devices_that_are_none(oci: Runtime, bundle: Bundle, change: dict[str, Any]) -> None:
    bundle.linux["devices"] = [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, **change}]
    assert "invalid device" in fails(oci, bundle)


# --- covered paths --------------------------------------------------------------------------------


def test_covered_paths(oci: Runtime, bundle: Bundle) -> None:
    for name in ("secret/below", "fixed/below"):
        (bundle.rootfs / name).mkdir(parents=True)
    (bundle.rootfs / "file").write_text("secret")
    bundle.linux["maskedPaths"] = ["/secret", "/file", "/proc/filesystems", "/not/there"]
    bundle.linux["readonlyPaths"] = ["/fixed", "/proc/sys", "/not/there"]
    script = (
        "ls /secret; cat /file /proc/filesystems; touch /secret/x /fixed/x /fixed/below/x; "
        "echo 1 > /file; echo 1 > /proc/sys/kernel/domainname; echo end"
    )
    bundle.script(f"exec 2>&1; {script}")
    out = run(oci, bundle, f"exec 2>&1; {script}")
    assert sum("Read-only file system" in line or "can't create" in line for line in out) == 5
    assert out[-1] == "end"
    assert "secret" not in "".join(line for line in out if "touch" not in line)


@pytest.mark.parametrize("key", ["maskedPaths", "readonlyPaths"])
def test_a_link_is_not_covered_instead_of_its_target(
    oci: Runtime, bundle: Bundle, key: str
) -> None:
    """CVE-2025-31133: an image decides where its links lead; what is behind must not stay open."""
    (bundle.rootfs / "link").symlink_to("/proc/sys")
    bundle.linux[key] = ["/link"]
    assert "/link" in fails(oci, bundle)
    bundle.linux[key] = ["relative"]
    assert "not absolute" in fails(oci, bundle)


# --- sysctls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kernel.msgmax", "9000"),
        ("kernel/sem", "33 32001 101 129"),
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "11"),
        ("net.ipv4.ip_forward", "1"),
        ("net/ipv4/ip_local_port_range", "2000 3000"),
        ("net.ipv4.conf.lo.forwarding", "1"),
        ("kernel.domainname", "example.org"),
    ],
)
def test_sysctls_of_the_containers_own(oci: Runtime, bundle: Bundle, key: str, value: str) -> None:
    bundle.linux["sysctl"] = {key: value}
    path = key if "/" in key else key.replace(".", "/")
    assert run(oci, bundle, f"cat /proc/sys/{path}")[0].split() == value.split()


def test_sysctls_of_a_user_namespace(oci: Runtime, bundle: Bundle) -> None:
    in_user_namespace(bundle)
    bundle.linux["sysctl"] = {"user.max_mnt_namespaces": "7", "net.ipv4.ip_forward": "1"}
    script = "cat /proc/sys/user/max_mnt_namespaces /proc/sys/net/ipv4/ip_forward"
    assert run(oci, bundle, script) == ["7", "1"]


@pytest.mark.parametrize(
    "key",
    ["kernel.hostname", "kernel.panic", "vm.swappiness", "user.max_mnt_namespaces", "net", "",
     "net..ipv4", "net/../kernel/panic", "fs.file-max", "kernel.shmmax/x"],
)  # fmt: skip
def test_sysctls_of_the_host(oci: Runtime, bundle: Bundle, key: str) -> None:
    bundle.linux["sysctl"] = {key: "1"}
    assert "sysctl" in fails(oci, bundle)


@pytest.mark.parametrize("kind", ["network", "ipc"])
def test_sysctls_of_a_namespace_that_is_missing(oci: Runtime, bundle: Bundle, kind: str) -> None:
    spaces = [item for item in bundle.linux["namespaces"] if item["type"] != kind]
    bundle.linux["sysctl"] = (
        {"net.ipv4.ip_forward": "1"} if kind == "network" else {"kernel.msgmax": "9"}
    )
    own = "/proc/self/ns/net" if kind == "network" else "/proc/self/ns/ipc"
    for namespaces in (spaces, [*spaces, {"type": kind, "path": own}]):
        bundle.linux["namespaces"] = namespaces
        assert "not the container's own" in fails(oci, bundle)


def test_sysctls_of_a_pods_network(oci: Runtime, bundle: Bundle) -> None:
    """containerd makes the network first and gives the pod's sysctls to who joins it."""
    name = f"{TOP}-net"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for item in bundle.linux["namespaces"]:
            if item["type"] == "network":
                item["path"] = f"/run/netns/{name}"
        bundle.linux["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "0"}
        path = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
        assert run(oci, bundle, f"cat {path}") == ["0"]
        assert Path(path).read_text() != "0\n"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


# --- hooks ----------------------------------------------------------------------------------------

OUTSIDE = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")


HOOK = "pwd; cat mark 2>/dev/null || echo none; env | grep -v -e PWD -e SHLVL | sort | tr '\\n' ' '; umask"


def hook(kind: str, where: str) -> dict[str, Any]:
    script = f"{{ echo {kind}; {HOOK}; }} >> {where}"
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=1", "PATH=/bin:/usr/bin"]}


@pytest.mark.cgroup_v1
def test_hooks_start_where_the_peers_start_them(tmp_path: Path) -> None:
    """With their own environment and no other; order and states: test_oci_lifecycle."""
    for name in ("runc", "crun"):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    crun = without_unified(["crun"], tmp_path / "empty")
    for name, argv in (("scow", SCOW_OCI), ("runc", ["runc"]), ("crun", crun)):
        bundle = Bundle(tmp_path / name, f"/{TOP}/x")
        log = bundle.rootfs / "log"
        (bundle.rootfs / "mark").write_text("in the root\n")
        bundle.config["hooks"] = {kind: [hook(kind, str(log))] for kind in OUTSIDE}
        bundle.config["hooks"]["startContainer"] = [hook("startContainer", "/log")]
        bundle.process["cwd"] = "/home"
        bundle.script("sleep 0.2")
        bundle.write()
        done = Runtime(argv, tmp_path / f"state-{name}")("run", "-b", str(bundle.path), "x")
        assert done.code == 0, done.err
        lines = log.read_text().replace(str(bundle.path), "BUNDLE").splitlines()
        found[name] = {lines[at]: tuple(lines[at + 1 : at + 4]) for at in range(0, len(lines), 4)}
    for parent in Path("/sys/fs/cgroup").glob(f"*/{TOP}"):
        parent.rmdir()  # runc and crun leave it
    own = "A=1 PATH=/bin:/usr/bin 0022"
    # The root is attached on "/", where runc has it at its path; crun starts that hook in the bundle.
    assert found["scow"].pop("createContainer") == ("/", "in the root", own)
    assert found["runc"].pop("createContainer") == ("BUNDLE/rootfs", "in the root", own)
    assert found["scow"] == found["runc"]
    assert found["scow"] == {
        **dict.fromkeys(("prestart", "createRuntime", "poststart", "poststop"), ("BUNDLE", "none", own)),
        "startContainer": ("/home", "none", own),
    }  # fmt: skip


def test_a_hook_that_does_not_read_its_state_is_no_failure(oci: Runtime, bundle: Bundle) -> None:
    hook = {"path": "/bin/true"}
    bundle.config["hooks"] = {kind: [hook] for kind in OUTSIDE}
    bundle.config["annotations"] = {"key": "x" * 200_000}
    bundle.write()
    oci.ok("run", "-b", str(bundle.path), "x")


@pytest.mark.parametrize("kind", [*OUTSIDE, "startContainer"])
@pytest.mark.parametrize("change", [{"path": "bin/true"}, {"timeout": 0}, {"timeout": -1}])
def test_hooks_that_cannot_be(
    oci: Runtime, bundle: Bundle, kind: str, change: dict[str, Any]
) -> None:
    bundle.config["hooks"] = {kind: [{"path": "/bin/true", **change}]}
    assert "hook" in fails(oci, bundle)


def test_failing_hooks_of_start_and_of_the_end(oci: Runtime, bundle: Bundle) -> None:
    told = bundle.path / "told"
    bad, good = {"path": "/bin/false"}, {
        "path": "/bin/sh", "args": ["sh", "-c", f"cat >> {told}; echo >> {told}"],
    }  # fmt: skip
    bundle.process["args"] = ["sleep", "100"]
    bundle.config["hooks"] = {"poststart": [bad], "poststop": [bad, good]}
    bundle.write()
    oci.quiet("create", "-b", str(bundle.path), "x")
    assert "poststart" in oci("start", "x").err
    assert json.loads(oci.ok("state", "x"))["status"] == "stopped"
    done = oci("delete", "x")
    # poststop: a failure is a warning, and those that follow run
    assert (done.code, "poststop" in done.err) == (0, True)
    state = json.loads(told.read_text())
    assert (state["status"], "pid" in state) == ("stopped", False)
