"""Real containers from hand-made plans: every operation, its failures, hostile root file systems."""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scow.native import plan as p
from scow.native import spawn
from scow.native import sys as s
from scow.native.errors import SetupError
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.runtime import monitor as m

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[2]

NAMESPACES = s.CLONE_NEWNS | s.CLONE_NEWPID | s.CLONE_NEWNET | s.CLONE_NEWIPC | s.CLONE_NEWUTS
SAFE = s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NODEV | s.MOUNT_ATTR_NOEXEC
DEFAULT_CAPS = 0xA80425FB
RLIMIT_NOFILE = 7


@dataclass
class Result:
    """What one container or exec came to."""

    output: str = ""
    errors: str = ""
    failed: m.Failed | None = None
    exited: m.Exited | None = None
    warnings: list[m.Warned] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, str]:
        lines = self.output.replace("\r", "").splitlines()
        return dict(line.split(" ", 1) for line in lines if " " in line)


class Running:
    """A started monitor and what it tells."""

    def __init__(self, plan: p.Plan) -> None:
        self.plan = plan
        launched = spawn.launch(plan)
        self.monitor_pid = launched.pid
        launched.pidfd.close()
        self.connection = m.MonitorConnection(launched.control.steal())
        self.result = Result()
        self.pid = 0

    def until(self, *kinds: type[object]) -> m.Event | None:
        while (event := self.connection.recv()) is not None:
            if isinstance(event, m.Ready):
                self.pid = event.pid
            elif isinstance(event, m.Output):
                text = event.data.decode(errors="replace")
                if event.stream == 1:
                    self.result.output += text
                else:
                    self.result.errors += text
            elif isinstance(event, m.Failed):
                self.result.failed = event
            elif isinstance(event, m.Warned):
                self.result.warnings.append(event)
            elif isinstance(event, m.Exited):
                self.result.exited = event
            if isinstance(event, kinds):
                return event
        return None

    def start(self) -> None:
        self.until(m.Ready, m.Failed)
        if self.result.failed is None:
            self.connection.attach(stdout=True, stderr=True)
            self.connection.start()

    def finish(self) -> Result:
        self.until(m.Exited)
        self.connection.close()
        os.waitpid(self.monitor_pid, 0)
        return self.result

    def error(self) -> SetupError:
        assert self.result.failed is not None
        record = self.result.failed.failure
        return p.setup_error(self.plan, record.step, record.errno, record.index, record.detail)


Runner = Callable[..., Running]


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


@pytest.fixture
def rootfs(tmp_path: Path, probe: Path) -> Path:
    lower = tmp_path / "lower"
    for name in ("bin", "proc", "sys", "dev", "etc", "data"):
        (lower / name).mkdir(parents=True)
    (lower / "bin/probe").write_bytes(probe.read_bytes())
    (lower / "bin/probe").chmod(0o755)
    (lower / "bin/file").write_text("of the image")
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/keep").write_text("host")
    for name in ("upper", "work", "at"):
        (tmp_path / name).mkdir()
    return lower


def overlay(tmp_path: Path) -> OwnedFd:
    """A detached overlay mount of lower, upper and work."""
    with OwnedFd(s.fsopen("overlay")) as context:
        for key, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")):
            s.fsconfig_string(context.fileno(), key, str(tmp_path / name))
        s.fsconfig_create(context.fileno())
        return OwnedFd(s.fsmount(context.fileno(), 0))


def mounts() -> tuple[p.Operation, ...]:
    devpts = (("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5"))
    return (
        p.MountFilesystem("proc", "/proc", SAFE, (), "proc"),
        p.MountFilesystem("tmpfs", "/dev", s.MOUNT_ATTR_NOSUID, (("mode", "755"),), "tmpfs"),
        p.MountFilesystem("devpts", "/dev/pts", SAFE & ~s.MOUNT_ATTR_NODEV, devpts, "devpts"),
        p.MountFilesystem("mqueue", "/dev/mqueue", SAFE, (), "mqueue"),
        p.MountFilesystem("sysfs", "/sys", SAFE | s.MOUNT_ATTR_RDONLY, (), "sysfs"),
        p.MakeDevice("/dev/null", stat.S_IFCHR | 0o666, 1, 3),
        p.MakeSymlink("pts/ptmx", "/dev/ptmx"),
        p.Mask("/proc/keys"),
        p.Mask("/proc/timer_list"),
        p.Mask("/proc/fs"),
        p.Mask("/proc/does-not-exist"),
        p.ReadOnlyPath("/proc/sys"),
        p.ReadOnlyPath("/proc/irq"),
    )


def build(
    root: OwnedFd,
    at: Path,
    argv: tuple[str, ...],
    *extra: p.Operation,
    late: tuple[p.Operation, ...] = (),
    user: tuple[int, int] = (0, 0),
    caps: int = DEFAULT_CAPS,
    cwd: str = "/",
    env: tuple[str, ...] = ("PATH=/usr/bin:/bin", "A=b"),
    namespaces: int = NAMESPACES,
    config: p.MonitorConfig | None = None,
    first: tuple[p.Operation, ...] = (),
    holder: tuple[int, int] | None = None,
    **more: object,
) -> p.Plan:
    config = config or p.MonitorConfig()
    stdio: p.Operation = p.StdioFromMonitor(*user)
    if config.terminal:
        stdio = p.Terminal(24, 80, user[0])
    before, after = (stdio,), ()  # type: tuple[p.Operation, ...], tuple[p.Operation, ...]
    file_tree = mounts()
    if holder:  # the mount and pid namespaces of who lives in the one that is joined
        before, after = (), (p.DropBounding(caps), p.EnterPidNamespace(caps | 0xC1), stdio)
        file_tree = (p.MountJoinedProc(*holder, "/proc", SAFE), *file_tree[1:])
    ops = (
        *first,
        p.MountPropagation(s.MS_SLAVE),
        p.AttachRoot(root.fileno(), str(at)),
        *file_tree,
        *extra,
        p.SetHostname("box"),
        p.SetDomainname("example"),
        p.SetSysctl("net/ipv4/ip_unprivileged_port_start", "7"),
        p.Unshare(s.CLONE_NEWCGROUP),
        *before,
        p.PivotRoot(),
        p.SetRlimit(RLIMIT_NOFILE, 1000, 2000),
        p.SetOomScoreAdj(100),
        p.NewSessionKeyring("box"),
        p.ResetAffinity(),
        *after,
        p.AwaitStart(),
        p.SetUmask(0o27),
        p.DropBounding(caps),
        p.SetUser(*user, (10, 11)),
        p.SetCwd(cwd),
        p.SetCapabilities(0 if user[0] else caps, 0 if user[0] else caps),
        p.NoNewPrivileges(),
        *late,
        p.Execute(argv, env),
    )
    return p.Plan(ops=ops, namespaces=namespaces, monitor=config, **more)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path, rootfs: Path) -> Iterator[Runner]:
    del rootfs

    def go(argv: tuple[str, ...], *extra: p.Operation, **options: object) -> Running:
        with overlay(tmp_path) as root:
            running = Running(build(root, tmp_path / "at", argv, *extra, **options))  # type: ignore[arg-type]
        running.start()
        return running

    yield go
    assert (tmp_path / "canary/keep").read_text() == "host"
    assert [entry.name for entry in (tmp_path / "canary").iterdir()] == ["keep"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_what_a_container_sees(run: Runner) -> None:
    result = run(("probe", "show"), cwd="/work/dir").finish()
    facts = result.facts
    assert result.exited.exit_code == 0
    assert facts["ids"] == "0 0 0 0"
    assert (facts["pid"], facts["sid"], facts["hostname"]) == ("1", "1", "box")
    assert facts["cwd"] == "/work/dir"
    assert facts["Groups"].split() == ["10", "11"]
    assert facts["nofile"] == "1000 2000"
    assert facts["Umask"] == "0027"
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["keepcaps"]) == ("1", "0", "0")
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == DEFAULT_CAPS
    assert int(facts["CapInh"], 16) == int(facts["CapAmb"], 16) == 0
    for name in ("SigBlk", "SigIgn", "SigCgt"):
        assert int(facts[name], 16) == 0, name
    assert {name for name in facts if name.startswith("fd.")} == {"fd.0", "fd.1", "fd.2"}
    assert facts["fd.0"] == "/dev/null"
    for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert facts[f"ns.{name}"] != os.readlink(f"/proc/self/ns/{name}"), name


def test_null_on_stdin_is_not_the_hosts(run: Runner) -> None:
    before = os.stat("/dev/null")
    running = run(("probe", "sleep", "5"))
    running.until(m.Output)
    inside = os.stat(f"/proc/{running.pid}/fd/0")
    assert (inside.st_dev, inside.st_rdev) != (before.st_dev, 0)
    assert inside.st_dev != before.st_dev
    os.kill(running.pid, signal.SIGKILL)
    assert running.finish().exited.signal == signal.SIGKILL


def test_masks_and_read_only_paths(run: Runner) -> None:
    writes = (
        "/proc/keys",
        "/proc/sys/kernel/hostname",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    )
    facts = run(("probe", "open", "w", *writes, "/proc/self/comm")).finish().facts
    assert [facts[path] for path in writes] == ["EROFS"] * 3
    assert facts["/proc/self/comm"] == "0"
    assert run(("probe", "read", "/proc/timer_list")).finish().output == ""
    path = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    assert run(("probe", "read", path)).finish().output == "7\n"
    assert run(("probe", "read", "/proc/self/oom_score_adj")).finish().output == "100\n"


def test_user_without_capabilities(run: Runner) -> None:
    facts = run(("probe", "show"), user=(1000, 1001)).finish().facts
    assert facts["ids"] == "1000 1000 1001 1001"
    assert int(facts["CapPrm"], 16) == int(facts["CapEff"], 16) == 0
    assert int(facts["CapBnd"], 16) == DEFAULT_CAPS


def test_ambient_capabilities_survive_execve(run: Runner) -> None:
    late = (p.SetCapabilities(1 << 10, 1 << 10, 1 << 10, 1 << 10),)
    # the first SetCapabilities of the plan must leave the bit in the permitted set
    extra = run(("probe", "show"), late=late).finish()
    facts = extra.facts
    assert int(facts["CapAmb"], 16) == int(facts["CapEff"], 16) & (1 << 10) == 1 << 10


def instruction(code: int, value: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jt, jf, value)


def test_seccomp_filter(run: Runner) -> None:
    # load nr; getppid (110) -> EINVAL; everything else is allowed
    program = instruction(0x20, 0) + instruction(0x15, 110, 0, 1)
    program += instruction(0x06, 0x00050000 | errno.EINVAL) + instruction(0x06, 0x7FFF0000)
    late = (p.LoadSeccomp(program),)
    assert run(("probe", "call", "110"), late=late).finish().facts["call"] == "EINVAL"
    assert run(("probe", "show"), late=late).finish().facts["Seccomp"] == "2"
    running = run(("nothing-there",), late=late)
    running.finish()
    assert running.error().exit_code == 127


def test_terminal(run: Runner) -> None:
    config = p.MonitorConfig(terminal=True)
    running = run(("probe", "show"), user=(1000, 1000), config=config)
    facts = running.finish().facts
    assert facts["tty"] == "/dev/pts/0"
    assert {name for name in facts if name.startswith("fd.")} == {"fd.0", "fd.1", "fd.2"}
    facts = run(("probe", "open", "w", "/dev/console"), config=config).finish().facts
    assert facts["/dev/console"] == "0"


def test_arguments_and_environment_are_exact(run: Runner) -> None:
    env = ("PATH=/bin", "EMPTY=", "RAW=\udcff", "LONG=" + "x" * 100_000)
    result = run(("probe", "env"), env=env).finish()
    assert result.output.splitlines()[:2] == ["PATH=/bin", "EMPTY="]
    assert len(result.output) > 100_000


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("missing",), 127),
        (("/bin/missing",), 127),
        (("",), 127),
        (("/etc",), 126),
        (("/etc/data.txt",), 126),
        (("/etc/text",), 126),
    ],
)
def test_commands_that_cannot_run(
    run: Runner, rootfs: Path, argv: tuple[str, ...], code: int
) -> None:
    (rootfs / "etc/data.txt").write_text("no program")
    (rootfs / "etc/text").write_text("no program")
    (rootfs / "etc/text").chmod(0o755)
    running = run(argv)
    running.finish()
    assert running.error().exit_code == code
    assert running.error().step == "execute"


def test_a_failing_step_is_named(run: Runner) -> None:
    running = run(("probe",), p.MountFilesystem("nosuchfs", "/data"))
    running.finish()
    assert str(running.error()) == "cannot mount nosuchfs on '/data': no such device (ENODEV)"
    running = run(("probe",), p.SetSysctl("no/such/key", "1"))
    running.finish()
    assert (running.error().errno, running.error().path) == (errno.ENOENT, "no/such/key")
    running = run(("probe",), p.SetSysctl("../sysrq-trigger", "h"))
    running.finish()
    assert running.error().errno in (errno.EXDEV, errno.ENOENT)


@pytest.mark.parametrize("name", ["dev", "etc", "data", "work", "dev/pts", "var"])
@pytest.mark.parametrize("shape", ["absolute", "relative"])
def test_links_in_the_image_stay_in_the_image(
    run: Runner, rootfs: Path, tmp_path: Path, name: str, shape: str
) -> None:
    victim = rootfs / name
    if victim.is_dir():
        victim.rmdir()
    canary = str(tmp_path / "canary")
    victim.symlink_to(canary if shape == "absolute" else "../" * 12 + canary.lstrip("/"))
    extra = (
        p.MakeDirectory("/var/lib/x"),
        p.MakeDirectory("/etc/x"),
        p.MakeSymlink("/proc/mounts", "/etc/mtab"),
        p.MakeDevice("/data/zero", stat.S_IFCHR | 0o666, 1, 5),
        p.MountFilesystem("tmpfs", "/data/m"),
        p.MountFilesystem("tmpfs", "/dev/shm"),
    )
    running = run(("probe", "show"), *extra, cwd="/work/a/b")
    result = running.finish()
    assert result.exited is not None
    if result.failed is None:
        assert result.facts["hostname"] == "box"


@pytest.mark.parametrize(("name", "error"), [("proc", errno.ELOOP), ("sys", errno.ELOOP)])
def test_proc_and_sys_must_be_directories(run: Runner, rootfs: Path, name: str, error: int) -> None:
    (rootfs / name).rmdir()
    (rootfs / name).symlink_to("/etc")
    running = run(("probe",))
    running.finish()
    assert (running.error().errno, running.error().path) == (error, f"/{name}")


def test_a_link_leads_no_mount_onto_proc(run: Runner, rootfs: Path) -> None:
    (rootfs / "data").rmdir()
    (rootfs / "data").symlink_to("proc/sys")
    running = run(("probe",), p.MountFilesystem("tmpfs", "/data"))
    running.finish()
    assert running.error().errno == errno.EPERM


def test_bind_mounts(run: Runner, tmp_path: Path) -> None:
    source = tmp_path / "volume"
    source.mkdir()
    (source / "file").write_text("from the volume")
    flags = s.OPEN_TREE_CLONE | s.AT_RECURSIVE
    with OwnedFd(s.open_tree(-100, str(source), flags)) as tree:
        extra = p.MountTree(tree.fileno(), "/new/volume", s.MOUNT_ATTR_RDONLY, recursive=True)
        facts = run(("probe", "open", "w", "/new/volume/file"), extra).finish().facts
    assert facts["/new/volume/file"] == "EROFS"
    with OwnedFd(s.open_tree(-100, str(source / "file"), s.OPEN_TREE_CLONE)) as tree:
        extra = p.MountTree(tree.fileno(), "/etc/one", is_dir=False)
        assert run(("probe", "read", "/etc/one"), extra).finish().output == "from the volume"


def test_attributes_of_one_mount_and_none_below(run: Runner) -> None:
    extra = (
        p.MountFilesystem("tmpfs", "/outer"),
        p.MountFilesystem("tmpfs", "/outer/inner"),
        p.SetMountAttributes("/outer", s.MOUNT_ATTR_RDONLY),
    )
    paths = ("/outer", "/outer/inner")
    facts = run(("probe", "create", *paths), *extra).finish().facts
    assert (facts["/outer"], facts["/outer/inner"]) == ("EROFS", "0")
    failed = run(("probe",), p.SetMountAttributes("/bin", s.MOUNT_ATTR_RDONLY))
    failed.finish()
    assert (failed.error().step, failed.error().errno) == ("set mount attributes", errno.EINVAL)


def test_read_only_root(run: Runner) -> None:
    read_only = p.RemountRootReadOnly()
    result = run(("probe", "open", "w", "/bin/file", "/dev/null"), read_only).finish()
    assert (result.facts["/bin/file"], result.facts["/dev/null"]) == ("EROFS", "0")


def exec_plan(pid: int, argv: tuple[str, ...], terminal: bool = False) -> tuple[p.Plan, OwnedFd]:
    pidfd = OwnedFd(os.pidfd_open(pid))
    stdio: p.Operation = p.StdioFromMonitor()
    if terminal:
        stdio = p.Terminal(10, 20, 0)
    ops = (
        p.JoinNamespace(pidfd.fileno(), NAMESPACES | s.CLONE_NEWCGROUP),
        p.DropBounding(DEFAULT_CAPS),
        p.EnterPidNamespace(DEFAULT_CAPS),
        stdio,
        p.AwaitStart(),  # or a short program has ended before anybody could attach
        p.SetUser(0, 0),
        p.SetCwd("/etc"),
        p.SetCapabilities(DEFAULT_CAPS, DEFAULT_CAPS),
        p.Execute(argv, ("PATH=/bin",)),
    )
    plan = p.Plan(mode="exec", ops=ops, monitor=p.MonitorConfig(terminal=terminal))
    return plan, pidfd


def execute(pid: int, argv: tuple[str, ...], terminal: bool = False) -> Running:
    plan, pidfd = exec_plan(pid, argv, terminal)
    with pidfd:
        running = Running(plan)
    running.start()
    running.finish()
    return running


@pytest.mark.parametrize("terminal", [False, True])
def test_exec_joins_everything(run: Runner, terminal: bool) -> None:
    running = run(("probe", "sleep", "20"))
    running.until(m.Output)
    executed = execute(running.pid, ("probe", "show"), terminal)
    facts = executed.result.facts
    assert executed.result.exited is not None
    assert executed.result.exited.exit_code == 0
    assert int(facts["pid"]) > 1
    assert executed.pid != int(facts["pid"])  # what we are told is the pid that the host sees
    assert (facts["cwd"], facts["hostname"]) == ("/etc", "box")
    assert facts["tty"] == ("/dev/pts/0" if terminal else "-")
    for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert facts[f"ns.{name}"] == os.readlink(f"/proc/{running.pid}/ns/{name}"), name
    assert {name for name in facts if name.startswith("fd.")} == {"fd.0", "fd.1", "fd.2"}
    failing = execute(running.pid, ("nothing",))
    assert failing.error().exit_code == 127
    os.kill(running.pid, signal.SIGKILL)
    running.finish()
    assert not os.path.exists(f"/proc/{executed.pid}")


def test_exec_gives_a_tracer_nothing_of_the_host(run: Runner) -> None:
    caps = DEFAULT_CAPS | 1 << 19  # CAP_SYS_PTRACE
    running = run(("probe", "hunt", "3"), caps=caps)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        execute(running.pid, ("probe", "exit", "0"))
    facts = running.finish().facts
    assert running.result.exited is not None, running.result
    assert int(facts.get("rounds", 0)) > 10, running.result
    assert facts["successes"] == "0", running.result.output


def test_joining_namespaces_of_a_sandbox(run: Runner) -> None:
    holder = run(("probe", "sleep", "20"))
    holder.until(m.Output)
    fds = {
        kind: OwnedFd(os.open(f"/proc/{holder.pid}/ns/{name}", os.O_RDONLY))
        for name, kind in (("net", s.CLONE_NEWNET), ("pid", s.CLONE_NEWPID))
    }
    first = tuple(p.JoinNamespace(fd.fileno(), kind) for kind, fd in fds.items())
    fds[0] = OwnedFd(os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY))
    new = NAMESPACES & ~s.CLONE_NEWNET & ~s.CLONE_NEWPID
    living = (fds[0].fileno(), fds[s.CLONE_NEWPID].fileno())
    member = run(("probe", "show"), first=first, holder=living, namespaces=new)
    facts = member.finish().facts
    assert int(facts["pid"]) > 1
    assert member.pid != int(facts["pid"])
    for name in ("net", "pid"):
        assert facts[f"ns.{name}"] == os.readlink(f"/proc/{holder.pid}/ns/{name}")
    # The procfs must be of the namespace that is joined, and a plan that joins must enter.
    own = OwnedFd(os.open("/proc/self/ns/pid", os.O_RDONLY))
    living = (fds[0].fileno(), own.fileno())
    wrong = run(("probe",), first=first, holder=living, namespaces=new)
    wrong.finish()
    assert (wrong.error().step, wrong.error().errno, wrong.error().path) == (
        "mount",
        errno.EPERM,
        "/proc",
    )
    astray = Running(p.Plan(ops=(first[1], p.AwaitStart(), p.Execute(("/bin/true",)))))
    astray.start()
    assert astray.finish().failed is not None
    assert astray.error().errno == errno.EINVAL
    for fd in (own, *fds.values()):
        fd.close()
    os.kill(holder.pid, signal.SIGKILL)
    holder.finish()


def test_plan_that_is_refused_is_told(tmp_path: Path) -> None:
    running = Running(p.Plan(ops=(p.Execute(("/bin/true",)), p.PivotRoot())))
    running.finish()
    assert running.error().step == "accept the plan"


def test_root_of_a_running_container_can_be_read(run: Runner) -> None:
    running = run(("probe", "sleep", "20"))
    running.until(m.Output)
    with Root.at(f"/proc/{running.pid}/root") as root:
        assert root.exists("/bin/probe")
        assert root.stat("/proc/self", follow=False).st_mode & stat.S_IFLNK
    os.kill(running.pid, signal.SIGKILL)
    running.finish()
