"""Where a plan meets the host: cgroups, rtnetlink, user namespaces, descriptors, dead namespaces."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scow.native import plan as p
from scow.native import spawn
from scow.native import sys as s
from scow.native.fd import OwnedFd
from scow.native.fs import Root, mounts_below, remove_tree
from scow.runtime import monitor as m

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[2]
RTM_NEWLINK, NLM_F_REQUEST, NLM_F_CREATE, NLM_F_EXCL = 16, 1, 0x400, 0x200
IFLA_IFNAME, IFLA_LINKINFO, IFLA_NET_NS_PID = 3, 18, 19
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER, IFF_UP = 1, 2, 1, 1


@pytest.fixture(scope="module", autouse=True)
def _executable() -> None:
    """The memfd of the monitor is made once per process and stays: no residue of the first test."""
    spawn.monitor_memfd()


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("probe") / "probe"
    source = ROOT / "tests/payload/probe.c"
    subprocess.run(["musl-gcc", "-static", "-Os", "-o", target, source], check=True)
    return target


def make_root(probe: Path) -> OwnedFd:
    """A detached tmpfs with the probe in it; it can be attached once."""
    with OwnedFd(s.fsopen("tmpfs")) as context:
        s.fsconfig_create(context.fileno())
        tree = OwnedFd(s.fsmount(context.fileno(), 0))
    for name in ("proc", "sys"):
        os.mkdir(name, dir_fd=tree.fileno())
    with Root(tree.fileno()) as top:
        top.write_file("/probe", probe.read_bytes(), 0o755)
    return tree


@pytest.fixture
def root(probe: Path, tmp_path: Path) -> Iterator[OwnedFd]:
    (tmp_path / "at").mkdir()
    with make_root(probe) as tree:
        yield tree


def finish(
    plan: p.Plan, hold: list[int] | None = None
) -> tuple[dict[str, str], m.Failed | None, m.Exited | None]:
    """Run a plan to its end: facts, failure, exit."""
    launched = spawn.launch(plan)
    connection = m.MonitorConnection(launched.control.steal())
    text, failed, exited = "", None, None
    while (event := connection.recv()) is not None:
        if isinstance(event, m.Ready):
            if hold is not None:
                hold.append(event.pid)
            connection.attach(stdout=True, stderr=True)
            connection.start()
        elif isinstance(event, m.Output):
            text += event.data.decode()
        elif isinstance(event, m.Failed):
            failed = event
        elif isinstance(event, m.Exited):
            exited = event
            break
    connection.close()
    launched.pidfd.close()
    os.waitpid(launched.pid, 0)
    facts = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    return facts | {"text": text}, failed, exited


def simple(
    root: OwnedFd, at: Path, argv: tuple[str, ...], *ops: p.Operation, **more: object
) -> p.Plan:
    flags = s.CLONE_NEWNS | s.CLONE_NEWPID | s.CLONE_NEWNET
    steps = (
        p.MountPropagation(),
        p.AttachRoot(root.fileno(), str(at)),
        p.MountFilesystem("proc", "/proc"),
        p.MountFilesystem("sysfs", "/sys"),
        *ops,
        p.StdioFromMonitor(),
        p.PivotRoot(),
        p.AwaitStart(),
        p.Execute(argv, ("PATH=/",)),
    )
    first = more.pop("first", ())
    assert isinstance(first, tuple)
    return p.Plan(ops=(*first, *steps), namespaces=flags, **more)  # type: ignore[arg-type]


@pytest.fixture
def cgroups() -> Iterator[dict[str, Path]]:
    """One group of ours in a v1 hierarchy and one in the v2 hierarchy, where there are such."""
    base = Path("/sys/fs/cgroup")
    unified = base / "unified" if (base / "unified").is_dir() else base
    found: dict[str, Path] = {}
    if (unified / "cgroup.procs").exists():
        found["v2"] = unified
    if (base / "pids/tasks").exists():
        found["v1"] = base / "pids"
    name = f"scow-test-native-{os.getpid()}"
    for kind, path in found.items():
        (path / name).mkdir()
        found[kind] = path / name
    yield found
    for path in found.values():
        path.rmdir()


def test_cgroups_of_both_kinds(root: OwnedFd, tmp_path: Path, cgroups: dict[str, Path]) -> None:
    first: tuple[p.Operation, ...] = ()
    more: dict[str, object] = {}
    held: list[OwnedFd] = []
    if "v1" in cgroups:
        held.append(OwnedFd(os.open(cgroups["v1"] / "tasks", os.O_WRONLY)))
        first = (p.JoinCgroups((held[-1].fileno(),)),)
    if "v2" in cgroups:
        held.append(OwnedFd(os.open(cgroups["v2"], os.O_RDONLY | os.O_DIRECTORY)))
        more["cgroup_fd"] = held[-1].fileno()
    argv = ("probe", "read", "/proc/self/cgroup")
    facts, failed, _ = finish(simple(root, tmp_path / "at", argv, first=first, **more))
    for fd in held:
        fd.close()
    assert failed is None
    assert facts["text"].count("/scow-test-native-") == len(cgroups)


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("<HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def link_message(flags: int, index: int, change: int, attributes: bytes) -> bytes:
    body = struct.pack("<BxHiII", socket.AF_UNSPEC, 0, index, change, change) + attributes
    return struct.pack("<IHHII", 16 + len(body), RTM_NEWLINK, flags, 0, 0) + body


def veth_message(name: str) -> bytes:
    inner = attribute(IFLA_IFNAME, b"eth0\0") + attribute(IFLA_NET_NS_PID, b"\xff" * 4)
    peer = attribute(VETH_INFO_PEER, struct.pack("<BxHiII", 0, 0, 0, 0, 0) + inner)
    info = attribute(IFLA_INFO_KIND, b"veth\0") + attribute(IFLA_INFO_DATA, peer)
    attributes = attribute(IFLA_IFNAME, name.encode() + b"\0") + attribute(IFLA_LINKINFO, info)
    return link_message(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, 0, 0, attributes)


def test_network_from_both_sides(root: OwnedFd, tmp_path: Path) -> None:
    message = veth_message("scowtest0")
    inside = link_message(NLM_F_REQUEST, 1, IFF_UP, b"")
    plan = simple(
        root,
        tmp_path / "at",
        ("probe", "read", "/sys/class/net/eth0/ifindex"),
        p.AwaitParent(),
        p.Netlink(inside),
        host_netlink=message,
        pid_offsets=(message.index(b"\xff" * 4),),
    )
    facts, failed, _ = finish(plan)
    assert failed is None
    assert facts["text"].strip().isdigit()
    end = time.monotonic() + 60  # the kernel takes a dead namespace apart in its own time
    while "scowtest0" in Path("/proc/net/dev").read_text() and time.monotonic() < end:
        time.sleep(0.02)
    assert "scowtest0" not in Path("/proc/net/dev").read_text()


def test_refused_messages_are_counted(root: OwnedFd, tmp_path: Path) -> None:
    up = link_message(NLM_F_REQUEST, 1, IFF_UP, b"")
    missing = link_message(NLM_F_REQUEST, 4242, IFF_UP, b"")
    plan = simple(root, tmp_path / "at", ("probe",), p.Netlink(up + missing))
    _, failed, _ = finish(plan)
    assert failed is not None
    assert (failed.failure.step, failed.failure.errno) == (p.Netlink.code, errno.ENODEV)
    assert failed.failure.detail == 1
    plan = simple(root, tmp_path / "at", ("probe",), p.AwaitParent(), host_netlink=missing)
    _, failed, _ = finish(plan)
    assert failed is not None
    assert (failed.failure.step, failed.failure.errno) == (1004, errno.ENODEV)


def test_user_namespace_with_maps(root: OwnedFd, tmp_path: Path) -> None:
    plan = p.Plan(
        ops=(
            p.AwaitParent(),
            p.SetUser(0, 0),
            p.StdioFromMonitor(),
            p.AwaitStart(),
            p.Execute(("/proc/self/exe",)),
        ),
        namespaces=s.CLONE_NEWUSER,
        uid_map="0 100000 1000\n",
        gid_map="0 100000 1000\n",
    )
    pids: list[int] = []
    _, failed, _ = finish(plan, pids)
    # the sealed memfd is what runs, and it is nobody's but ours: EACCES for the mapped root
    assert failed is not None
    assert (failed.failure.step, failed.failure.errno) == (p.Execute.code, errno.EACCES)


def test_exec_into_a_dead_namespace(root: OwnedFd, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    with OwnedFd(os.pidfd_open(child)) as pidfd:
        os.waitpid(child, 0)
        join = p.JoinNamespace(pidfd.fileno(), s.CLONE_NEWPID | s.CLONE_NEWNS)
        plan = p.Plan(mode="exec", ops=(join, p.Execute(("/probe",))))
        _, failed, _ = finish(plan)
    assert failed is not None
    assert (failed.failure.step, failed.failure.errno) == (p.JoinNamespace.code, errno.ESRCH)


def test_leaked_descriptors_reach_nobody(root: OwnedFd, tmp_path: Path) -> None:
    leaks = [os.dup(0) for _ in range(20)]
    leaks += [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(20)]
    for fd in leaks:
        os.set_inheritable(fd, True)
    pids: list[int] = []
    facts, _, _ = finish(simple(root, tmp_path / "at", ("probe", "show")), pids)
    for fd in leaks:
        os.close(fd)
    assert {name for name in facts if name.startswith("fd.")} == {"fd.0", "fd.1", "fd.2"}


@pytest.mark.parametrize("below", ["", "/..", "/etc"])
def test_cwd_outside_of_the_root_is_refused(root: OwnedFd, tmp_path: Path, below: str) -> None:
    # the first descriptor of a plan is 5 in the child: here a directory of the host (CVE-2024-21626)
    with OwnedFd(os.open("/", os.O_RDONLY | os.O_DIRECTORY)) as host:
        config = p.MonitorConfig(oom_fd=host.fileno())
        plan = simple(root, tmp_path / "at", ("probe", "show"), monitor=config)
        cwd = p.SetCwd(f"/proc/self/fd/5{below}")
        ops = (*plan.ops[:-1], cwd, plan.ops[-1])
        _, failed, _ = finish(p.Plan(ops=ops, namespaces=plan.namespaces, monitor=config))
    assert failed is not None
    assert failed.failure.step == p.SetCwd.code
    assert failed.failure.errno in (errno.EXDEV, errno.ENOENT)


def test_an_applet_that_is_not_there() -> None:
    pid, pidfd = spawn.run_applet("scow-nothing")
    pidfd.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 127


def test_the_monitors_executable_is_sealed() -> None:
    fd = spawn.monitor_memfd()
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o500


@pytest.mark.parametrize("others", [1, 100], ids=["few names", "many names"])
@pytest.mark.parametrize("is_dir", [True, False], ids=["directory", "file"])
def test_a_tree_with_a_mount_below_is_not_touched(
    tmp_path: Path, is_dir: bool, others: int
) -> None:
    (tmp_path / "tree/a b").mkdir(parents=True)
    for number in range(others):
        (tmp_path / f"tree/{number}").write_text("")
    precious, target = tmp_path / "precious", tmp_path / "tree/a b/mounted"
    for place in (precious, target):
        place.mkdir() if is_dir else place.write_text("")
    if is_dir:
        (precious / "file").write_text("")
    s.mount(str(precious), str(target), None, s.MS_BIND)
    try:
        with Root(OwnedFd(os.open(tmp_path, os.O_RDONLY))) as parent:
            assert mounts_below(parent.fileno()) == [str(target)]
            with pytest.raises(OSError) as caught:
                remove_tree(parent.fileno(), "tree")
            assert caught.value.errno == errno.EBUSY
            assert caught.value.filename == str(target)
        assert len(list((tmp_path / "tree").iterdir())) == others + 1
    finally:
        s.umount2(str(target), s.MNT_DETACH)
    assert (precious / "file").exists() if is_dir else precious.exists()
    with OwnedFd(os.open(tmp_path, os.O_RDONLY)) as parent_fd:
        remove_tree(parent_fd.fileno(), "tree")
    assert not (tmp_path / "tree").exists()


def test_killed_while_waiting_for_start(root: OwnedFd, tmp_path: Path) -> None:
    launched = spawn.launch(simple(root, tmp_path / "at", ("probe", "sleep", "60")))
    connection = m.MonitorConnection(launched.control.steal())
    event = connection.recv()
    assert isinstance(event, m.Ready)
    os.kill(event.pid, signal.SIGKILL)
    assert connection.wait() is not None
    connection.close()
    launched.pidfd.close()
    os.waitpid(launched.pid, 0)


def swap_for_ever(volume: Path, target: str) -> None:
    """Until killed: `a` is a directory, then a link to the host's directory, then a directory..."""
    os.chdir(volume)
    os.symlink(target, "link")
    os.mkdir("a")
    while True:
        os.rename("a", "kept")
        os.rename("link", "a")
        os.rename("a", "link")
        os.rename("kept", "a")


def test_a_swapped_component_never_leads_out(probe: Path, tmp_path: Path) -> None:
    (tmp_path / "at").mkdir()
    canary, volume = tmp_path / "canary", tmp_path / "volume"
    canary.mkdir()
    volume.mkdir()
    swapper = os.fork()
    if swapper == 0:
        try:
            swap_for_ever(volume, str(canary))
        finally:
            os._exit(1)
    outcomes: set[bool] = set()
    try:
        for _ in range(150):
            clone = s.open_tree(-100, str(volume), s.OPEN_TREE_CLONE)
            with OwnedFd(clone) as tree, make_root(probe) as root:
                plan = simple(
                    root,
                    tmp_path / "at",
                    ("probe", "exit", "0"),
                    p.MountTree(tree.fileno(), "/vol"),
                    p.MountFilesystem("tmpfs", "/vol/a/made/deep"),
                    p.MakeDevice("/vol/a/null", stat.S_IFCHR | 0o666, 1, 3),
                    p.MakeSymlink("x", "/vol/a/sym"),
                )
                outcomes.add(finish(plan)[1] is None)
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    assert True in outcomes
    assert list(canary.iterdir()) == []
