"""The whole static core, compiled with ASan and UBSan, runs a container: a report ends the process."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from fixtures.bundle import Bundle
from scow.native import plan as p
from scow.native import spawn
from scow.native import sys as s
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.runtime import monitor as m
from scow.runtime.oci_create import CreateOptions, create
from scow.runtime.oci_destroy import destroy
from scow.runtime.oci_start import release

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[2]
EXTENSION_ONLY = {"ext_sys.c", "launch.c", "embed.c", "_scow.c"}
FLAGS = ["-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE", "-fsanitize=address,undefined"]
FLAGS += ["-fno-sanitize-recover=all", "-static-libasan", "-static-libubsan"]
NAMESPACES = s.CLONE_NEWNS | s.CLONE_NEWPID | s.CLONE_NEWNET | s.CLONE_NEWIPC | s.CLONE_NEWUTS
ALLOW_ALL = struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)


@pytest.fixture(scope="module", autouse=True)
def _executable() -> None:
    """The memfd of the monitor is made once per process and stays: no residue of the first test."""
    spawn.monitor_memfd()


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sanitized") / "scow-monitor"
    sources = [
        path
        for path in (ROOT / "native").glob("*.c")
        if path.name not in EXTENSION_ONLY and not path.name.startswith("front")  # scow-oci's own
    ]
    sources.append(ROOT / "tests/unit/c/test_native_asan.c")
    subprocess.run(["gcc", *FLAGS, "-o", target, *sources], check=True)
    return target


@pytest.fixture
def tree(tmp_path: Path) -> OwnedFd:
    program = tmp_path / "program"
    source = ROOT / "tests/payload/probe.c"
    subprocess.run(["musl-gcc", "-static", "-Os", "-o", program, source], check=True)
    with OwnedFd(s.fsopen("tmpfs")) as context:
        s.fsconfig_create(context.fileno())
        tree = OwnedFd(s.fsmount(context.fileno(), 0))
    with Root(tree.fileno()) as top:
        top.write_file("/probe", program.read_bytes(), 0o755)
    os.symlink("real", "link", dir_fd=tree.fileno())
    (tmp_path / "at").mkdir()
    return tree


def drive(plan: p.Plan) -> tuple[str, m.Failed | None]:
    launched = spawn.launch(plan)
    connection = m.MonitorConnection(launched.control.steal())
    text, failed = "", None
    while (event := connection.recv()) is not None:
        if isinstance(event, m.Ready):
            connection.attach(stdout=True, stderr=True)
            connection.start()
        elif isinstance(event, m.Output):
            text += event.data.decode()
        elif isinstance(event, m.Failed):
            failed = event
        elif isinstance(event, m.Exited):
            break
    connection.close()
    launched.pidfd.close()
    status = os.waitstatus_to_exitcode(os.waitpid(launched.pid, 0)[1])
    assert status == int(failed is not None), failed
    return text, failed


@pytest.mark.parametrize("terminal", [False, True])
def test_nearly_every_operation(
    sanitized: Path, tree: OwnedFd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    executable = OwnedFd(os.open(sanitized, os.O_RDONLY | os.O_CLOEXEC))
    monkeypatch.setattr(spawn, "_cached_memfd", executable)
    clone = OwnedFd(s.open_tree(-100, str(tmp_path), s.OPEN_TREE_CLONE))
    devpts = (("newinstance", None), ("ptmxmode", "0666"), ("gid", "5"))
    stdio = p.Terminal(24, 80, 1000) if terminal else p.StdioFromMonitor(1000, 1000)

    def plan(argv: tuple[str, ...]) -> p.Plan:
        ops = (
            p.MountPropagation(),
            p.AttachRoot(tree.fileno(), str(tmp_path / "at")),
            p.MountFilesystem("proc", "/proc"),
            p.MountFilesystem("tmpfs", "/dev", 0, (("mode", "755"),)),
            p.MountFilesystem("devpts", "/dev/pts", 0, devpts),
            p.MountTree(clone.fileno(), "/link/deep/./volume", s.MOUNT_ATTR_RDONLY),
            p.MakeDirectory("/a/b", 0o700, 1, 1),
            p.MakeDevice("/dev/null", stat.S_IFCHR | 0o666, 1, 3),
            p.MakeSymlink("x", "/dev/y"),
            p.SetMountAttributes("/dev", s.MOUNT_ATTR_NOSUID, s.MOUNT_ATTR_NODEV),
            p.Mask("/proc/keys"),
            p.Mask("/proc/fs"),
            p.ReadOnlyPath("/proc/sys"),
            p.SetHostname("box"),
            p.SetSysctl("net/ipv4/ip_unprivileged_port_start", "7"),
            stdio,
            p.PivotRoot(),
            p.RemountRootReadOnly(),
            p.SetOomScoreAdj(3),
            p.NewSessionKeyring("box"),
            p.AwaitStart(),
            p.DropBounding(0),
            p.SetUser(1000, 1000, (1, 2, 3)),
            p.SetCwd("/a"),
            p.SetCapabilities(0, 0),
            p.NoNewPrivileges(),
            p.LoadSeccomp(ALLOW_ALL),
            p.Execute(argv, ("PATH=:/nowhere:/", "X=" + "y" * 5000)),
        )
        config = p.MonitorConfig("c1", terminal=terminal, cleanup_argv=("/bin/true", "x"))
        return p.Plan(ops=ops, namespaces=NAMESPACES, monitor=config)

    try:
        text, failed = drive(plan(("probe", "show")))
        assert failed is None
        assert "ids 1000 1000 1000 1000" in text
    finally:
        executable.close()
        clone.close()
        tree.close()


def test_a_missing_command(
    sanitized: Path, tree: OwnedFd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tree, OwnedFd(os.open(sanitized, os.O_RDONLY | os.O_CLOEXEC)) as executable:
        monkeypatch.setattr(spawn, "_cached_memfd", executable)
        attach = p.AttachRoot(tree.fileno(), str(tmp_path / "at"))
        run = p.Execute(("missing",), ("PATH=" + "/very" * 900 + ":/x:",))
        ops = (p.MountPropagation(), attach, p.StdioFromMonitor(), p.PivotRoot(), run)
        _, failed = drive(p.Plan(ops=ops, namespaces=NAMESPACES))
    assert failed is not None
    assert failed.failure.errno == errno.ENOENT


@pytest.mark.parametrize("way", ["plain", "terminal", "no-pivot", "user", "joined"])
def test_containers_without_a_monitor(
    sanitized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """scow-oci's operations: hooks, devices, propagation, scheduling, an agent's filter."""
    with OwnedFd(os.open(sanitized, os.O_RDONLY | os.O_CLOEXEC)) as executable:
        monkeypatch.setattr(spawn, "_cached_memfd", executable)
        bundle = Bundle(tmp_path / "bundle", f"/scow-native-{os.getpid()}")
        bundle.path.chmod(0o755)
        bundle.config["mounts"] += [
            {"destination": "/t", "type": "tmpfs", "options": ["rshared", "rslave"]},
            {"destination": "/dev/shm", "options": ["remount", "rro"]},
        ]
        hook = {"path": "/bin/true", "args": ["true"], "env": ["A=b"]}
        bundle.config["hooks"] = {"createContainer": [hook], "startContainer": [hook]}
        bundle.linux["devices"] = [{"path": "/srv/p", "type": "p"}]
        bundle.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
        bundle.linux["personality"] = {"domain": "LINUX32"}
        bundle.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 1}
        bundle.process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 3}
        bundle.process["args"] = ["true"]
        maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        if way == "user":
            bundle.linux["namespaces"].append({"type": "user"})
            bundle.linux.update(uidMappings=maps, gidMappings=maps)
            for name in ("t", "srv"):
                (bundle.rootfs / name).mkdir()
            os.chown(bundle.rootfs / "srv", 100000, 100000)
        if way == "joined":
            for item in bundle.linux["namespaces"]:
                if item["type"] == "pid":
                    item["path"] = "/proc/self/ns/pid"
        bundle.process["terminal"] = way == "terminal"
        bundle.write()
        options = CreateOptions(bundle=str(bundle.path), detach=False, no_pivot=way == "no-pivot")
        made = create(str(tmp_path / "state"), "x", options)
        try:
            release(made.directory, made.record)
            assert os.waitstatus_to_exitcode(os.waitpid(made.child.pid, 0)[1]) == 0
        finally:
            made.child.kill()
            for fd in (made.child.pidfd, made.master):
                if fd is not None:
                    fd.close()
            destroy(made.directory, made.record)
