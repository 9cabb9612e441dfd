"""Handles of the host that a container must never get: executables, descriptors, directories, terminals.

Through scow-oci, as an engine drives it. The table of the attacks is docs/security.md; each test ends
with the look at the host's canary (the `world` fixture).
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.bundle import Bundle
from fixtures.canary import SECRET
from fixtures.command import Terminal
from fixtures.hostile import World, bind, capabilities, facts, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
ROOT = Path(__file__).resolve().parents[2]


# --- the runtime's own executable -------------------------------------------------------------------


def test_the_executable_of_a_created_container_is_sealed(world: World) -> None:
    """CVE-2019-5736: until execve, /proc/PID/exe is a memfd that nobody can change, not even the host."""
    box = world.bundle()
    box.write()
    world.oci.quiet("create", "-b", str(box.path), "--pid-file", str(box.path / "pid"), "box")
    exe = f"/proc/{(box.path / 'pid').read_text()}/exe"
    assert os.readlink(exe).startswith("/memfd:")
    fd = os.open(exe, os.O_RDONLY)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    os.close(fd)
    # ETXTBSY while it runs; EPERM by the seal once nothing runs it any more.
    with pytest.raises(OSError):
        os.close(os.open(exe, os.O_WRONLY))
    with pytest.raises(OSError):
        os.truncate(exe, 0)


def test_an_entrypoint_that_is_the_runtime_itself(world: World) -> None:
    """CVE-2019-5736: what runs is the container's own shell or an inert memfd, and nothing is written."""
    for number, line in enumerate(("#!/proc/self/exe", "#!/proc/self/exe scow-init", "#!/link")):
        box = world.bundle(f"exe{number}")
        (box.rootfs / "entry").write_text(f"{line}\n")
        (box.rootfs / "entry").chmod(0o755)
        (box.rootfs / "link").symlink_to("/proc/self/exe")
        box.process["args"] = ["/entry"]
        done = world.run(box)
        assert done.code != 0
        assert "Traceback" not in done.err


def test_no_write_to_the_executable_of_whoever_enters(world: World) -> None:
    """CVE-2019-5736: a loop in the container tries to write to the program of each process that appears."""
    box = world.bundle()
    box.script(
        "cp /bin/busybox /own; n=0; while :; do for d in /proc/[0-9]*; do [ $d = /proc/1 ] && continue; "
        "if ( : >> $d/exe ) 2>/dev/null; then echo WROTE $(readlink $d/exe); fi; done; done"
    )
    world.start(box)
    for done in world.turns(30, "exec", "box", "/bin/busybox", "true"):
        assert done.code == 0, done
    wrote = (box.path / "output").read_text()
    assert [line for line in wrote.splitlines() if "busybox" not in line] == []


def test_a_tracer_finds_nothing_of_the_host_in_an_exec(world: World) -> None:
    """CVE-2016-9962: pid 1 with CAP_SYS_PTRACE looks at descriptors, root and exe of each new process."""
    box = world.bundle()
    box.process["args"] = ["probe", "hunt", "100"]
    box.process["capabilities"] = capabilities("SYS_PTRACE", "KILL")
    world.start(box)
    turns = world.turns(40, "exec", "box", "probe", "exit", "7")
    turns += world.turns(
        20, "exec", "-u", "1000:1000", "--cwd", "/tmp", "box", "probe", "exit", "7"
    )
    assert {done.code for done in turns} == {7}
    assert "escape" not in (box.path / "output").read_text()


def test_a_created_container_is_not_dumpable(world: World) -> None:
    """CVE-2016-9962: proc(5) gives the files of such a process to root, not to the user that it runs as."""
    box = world.bundle()
    world.base.chmod(0o755)
    box.path.chmod(0o755)
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    box.linux["namespaces"].append({"type": "user"})
    box.linux.update(uidMappings=maps, gidMappings=maps)
    box.process["args"] = ["sleep", "100"]
    box.write()
    words = ("-b", str(box.path), "--pid-file", str(box.path / "pid"), "box")
    assert world.oci.quiet("create", *words).code == 0, world.oci("create", *words)
    pid = (box.path / "pid").read_text()
    assert "Uid:\t100000" in Path(f"/proc/{pid}/status").read_text()
    assert os.stat(f"/proc/{pid}/fd").st_uid == 0
    world.oci.ok("start", "box")
    assert os.stat(f"/proc/{pid}/fd").st_uid == 100000  # the program itself is as any other


# --- descriptors and directories --------------------------------------------------------------------


def leaky(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    """Run scow-oci from a parent that leaks directories of the host, as 3 to 22."""
    leaked = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in ("/", "/etc", str(world.canary), "/sys/fs/cgroup") * 5]  # fmt: skip
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd in leaked]
    redirect = " ".join(f"{3 + i}<&{fd}" for i, fd in enumerate(high))
    try:
        return subprocess.run(
            ["bash", "-c", f'exec {redirect}; exec "$@"', "sh", *world.oci.argv, *words],
            pass_fds=high, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=60,
        )  # fmt: skip
    finally:
        for fd in leaked + high:
            os.close(fd)


def test_descriptors_of_the_caller_stay_with_the_caller(world: World) -> None:
    """CVE-2024-21626, CVE-2016-8649: twenty directories of the host leak into run and into exec."""
    box = world.bundle()
    box.process["args"] = ["probe", "show"]
    box.write()
    done = leaky(world, "run", "-b", str(box.path), "box")
    assert done.returncode == 0, done
    assert {name for name in facts(done.stdout) if name.startswith("fd.")} == {
        "fd.0",
        "fd.1",
        "fd.2",
    }
    box.process["args"] = ["sleep", "100"]
    world.start(box)
    done = leaky(world, "exec", "box", "probe", "show")
    assert {name for name in facts(done.stdout) if name.startswith("fd.")} == {
        "fd.0",
        "fd.1",
        "fd.2",
    }


def test_descriptors_that_are_meant_to_be_passed_are(world: World) -> None:
    """The positive twin: --preserve-fds gives all of them, in their order, and no more."""
    box = world.bundle()
    box.script("for i in 3 4 5 6 7 8 9; do cat <&$i; done; exec probe show")
    box.write()
    pipes = [os.pipe() for _ in range(7)]
    for number, (_, writing) in enumerate(pipes, 3):
        os.write(writing, f"text {number}\n".encode())
        os.close(writing)
    high = [fcntl.fcntl(reading, fcntl.F_DUPFD, 200) for reading, _ in pipes]
    redirect = " ".join(f"{3 + i}<&{fd}" for i, fd in enumerate(high))
    argv = ["bash", "-c", f'exec {redirect}; exec "$@"', "sh", *world.oci.argv]
    words = ["run", "-b", str(box.path), "--preserve-fds", "7", "box"]
    done = subprocess.run(
        [*argv, *words], pass_fds=high, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )  # fmt: skip
    for fd in (*high, *(reading for reading, _ in pipes)):
        os.close(fd)
    assert done.stdout.splitlines()[:7] == [f"text {number}" for number in range(3, 10)], done
    seen = {name for name in facts(done.stdout) if name.startswith("fd.")}
    assert seen == {f"fd.{number}" for number in range(10)}


def test_no_descriptor_is_a_working_directory(world: World) -> None:
    """CVE-2024-21626: process.cwd by number, with "..", through a link of the image, and by exec."""
    box = world.bundle()
    box.script(f"pwd; cat secret ../../etc/shadow {world.canary}/secret")
    for number in range(3, 24):
        (box.rootfs / f"cwd{number}").symlink_to(f"/proc/self/fd/{number}")
    tails = ("", "/", "/..", "/../../..")
    paths = [f"/proc/self/fd/{number}{tails[number % 4]}" for number in range(3, 24)]
    paths += [f"/cwd{number}" for number in range(3, 24, 3)] + ["/proc/1/fd/8", "/proc/self/fd/8"]
    changes = [lambda box, path=path: box.process.update(cwd=path) for path in paths]
    for done in world.variants(box, changes):
        assert "cwd" in world.clean_refusal(box, done)
    box.process.update(cwd=paths[5])
    box.write()
    done = leaky(world, "run", "-b", str(box.path), "box")
    assert (done.returncode, done.stdout) == (1, ""), done
    box.process.update(cwd="/", args=["sleep", "100"])
    world.start(box)
    for path in paths[::5]:
        done = leaky(world, "exec", "--cwd", path, "box", "cat", "secret")
        assert (done.returncode, done.stdout) == (255, ""), done
        assert "cwd" in done.stderr


def test_no_file_of_a_descriptor_is_a_command(world: World) -> None:
    """CVE-2024-21626: execve of /proc/self/fd/N/... must not find programs of the host."""
    box = world.bundle()
    for path in ("/proc/self/fd/7/../../bin/true", "/proc/self/fd/9", "/proc/self/fd/5/usr/bin/id"):  # fmt: skip
        box.process["args"] = [path]
        box.write()
        done = leaky(world, "run", "-b", str(box.path), "box")
        assert (done.returncode, done.stdout) == (1, ""), done


def test_working_directories_of_real_images(world: World) -> None:
    """The positive twins: missing, linked inside of the root, only the user may enter, a magic name."""
    box = world.bundle()
    (box.rootfs / "real").mkdir()
    (box.rootfs / "abs").symlink_to("/real")
    (box.rootfs / "dangling").symlink_to("real/made")
    (box.rootfs / "home/own").mkdir(mode=0o700)
    os.chown(box.rootfs / "home/own", 1000, 1000)
    box.process["args"] = ["pwd", "-P"]
    found = {"/new/a/b": "/new/a/b", "/abs/x": "/real/x", "/dangling/y": "/real/made/y", "/proc/self/root": "/"}  # fmt: skip
    for path, wanted in found.items():
        box.process["cwd"] = path
        assert world.ok(box) == f"{wanted}\n", path
    box.process.update(cwd="/home/own", user={"uid": 1000, "gid": 1000})
    assert world.ok(box) == "/home/own\n"


def test_a_working_directory_on_the_host_by_a_link(world: World) -> None:
    """CVE-2026-55686: the directory is made, and owned, inside of the root."""
    box = world.bundle()
    (box.rootfs / "a").symlink_to(str(world.canary))
    (box.rootfs / "b").symlink_to(f"/proc/1/root{world.canary}")
    box.process.update(args=["pwd", "-P"], cwd="/a/b/c")
    assert world.ok(box) == f"{world.canary}/b/c\n"
    assert (box.rootfs / str(world.canary)[1:] / "b/c").is_dir()
    box.process["cwd"] = "/b/c"
    world.refused(box, says="cwd")


# --- stdio and terminals ----------------------------------------------------------------------------


def test_output_goes_to_the_callers_pipe_whatever_dev_says(world: World) -> None:
    """CVE-2015-3627: /dev/stdout of the image is a link; output never reaches what it names."""
    box = world.bundle()
    box.config["mounts"] = [
        m for m in box.config["mounts"] if m["destination"] in ("/proc", "/sys")
    ]
    for name in ("stdout", "stderr", "fd", "console"):
        (box.rootfs / "dev" / name).symlink_to(f"{world.canary}/secret")
    box.script("echo one; echo two >&2; echo three > /proc/self/fd/1")
    done = world.run(box)
    # Where the image has names of its own in /dev they stay, and lead into its own root only.
    assert (done.code, done.out, done.err) == (0, "one\nthree\n", "two\n"), done


def test_stdio_of_the_caller_keeps_its_owner_unless_it_is_a_pipe(
    world: World, tmp_path: Path
) -> None:
    """A directory or file of the host that the caller has as 0, 1 or 2 is not given to the container's user."""
    box = world.bundle()
    box.process.update(args=["true"], user={"uid": 1000, "gid": 1000})
    box.write()
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    before = [(tmp_path / name).stat().st_uid for name in ("dir", "file")]
    for name in ("dir", "file"):
        fd = os.open(tmp_path / name, os.O_RDONLY)
        subprocess.run([*world.oci.argv, "run", "-b", str(box.path), "box"], stdin=fd, check=False, capture_output=True)  # fmt: skip
        os.close(fd)
    assert [(tmp_path / name).stat().st_uid for name in ("dir", "file")] == before
    box.script("echo x > /dev/stdout")  # the twin: a pipe is, so that a program can open it again
    assert world.ok(box) == "x\n"


PUSH = """
#include <sys/ioctl.h>
#include <fcntl.h>
#include <stdio.h>
int main(void) {
    const char *text = "echo pushed\\n"; int ok = 0, tty = open("/dev/tty", O_RDWR);
    for (int fd = 0; fd < 4; fd++)
        for (const char *c = text; *c; c++) {
            char paste[2] = {12, *c};
            ok += ioctl(fd, TIOCSTI, c) == 0; ok += ioctl(fd, 0x541C /* TIOCLINUX */, paste) == 0;
        }
    if (tty >= 0) for (const char *c = text; *c; c++) ok += ioctl(tty, TIOCSTI, c) == 0;
    printf("tried %d\\n", ok); return 0;
}
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_pushed_into_the_callers_terminal(world: World, terminal: bool) -> None:
    """CVE-2016-10124, CVE-2017-5226: TIOCSTI and TIOCLINUX on all there is, by run and by exec."""
    box = world.bundle()
    (world.base / "push.c").write_text(PUSH)
    target = box.rootfs / "bin/push"
    subprocess.run(["musl-gcc", "-static", "-o", target, world.base / "push.c"], check=True)
    box.process.update(args=["push"], terminal=terminal)
    box.write()
    keeper = world.bundle("keeper")
    keeper.process["args"] = ["sleep", "100"]
    (keeper.rootfs / "bin/push").write_bytes(target.read_bytes())
    (keeper.rootfs / "bin/push").chmod(0o755)
    world.start(keeper)
    flags = ["-t"] if terminal else []
    for words in (["run", "-b", str(box.path), "box"], ["exec", *flags, "keeper", "push"]):
        pid, master = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [*world.oci.argv, *words])
        caller = Terminal(pid, master)
        try:
            caller.expect(r"tried \d+")
            assert caller.wait() == 0
            time.sleep(0.05)
            assert waiting(caller.master) == 0
        finally:
            caller.close()


def waiting(master: int) -> int:
    """How many bytes lie in the input of the terminal that `master` belongs to."""
    import struct
    import termios

    number = struct.unpack("i", fcntl.ioctl(master, 0x80045430, b"\0" * 4))[0]  # TIOCGPTN
    slave = os.open(f"/dev/pts/{number}", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        return int(struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, b"\0" * 4))[0])
    finally:
        os.close(slave)


def console(world: World, box: Bundle) -> tuple[int, str]:
    """Run with a console socket; the exit code of create, and what came out of the terminal."""
    box.process["terminal"] = True
    box.write()
    path = world.base / "console"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)
        code = world.oci.quiet(
            "create", "-b", str(box.path), "--console-socket", str(path), "box"
        ).code
        if code:
            return code, ""
        connection, _ = listener.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 64, 1)
    world.oci.ok("start", "box")
    text = b""
    ends = 0
    # EIO: nobody has it open any more. n_tty_read looks for the end after it has looked for data, and
    # what came in between is there for the next read.
    os.set_blocking(fds[0], True)  # else EAGAIN would count as an end
    os.write(fds[0], b"\x04")  # end of file, for who reads the console
    while ends < 2:
        try:
            text += os.read(fds[0], 4096)
        except OSError:
            ends += 1
    os.close(fds[0])
    until(lambda: '"stopped"' in world.oci.ok("state", "box"))
    world.oci.ok("delete", "box")
    return 0, text.decode()


@pytest.mark.parametrize("form", ["link", "proc", "fifo", "directory"])
def test_a_console_that_is_something_else(world: World, form: str) -> None:
    """CVE-2025-52565: /dev/console and /dev/pts/N of the image are links, a fifo, a directory."""
    box = world.bundle()
    box.config["mounts"] = [m for m in box.config["mounts"] if m["destination"] != "/dev"]
    target = box.rootfs / "dev/console"
    if form == "link":
        target.symlink_to(f"{world.canary}/secret")
    elif form == "proc":
        target.symlink_to("/proc/sys/kernel/core_pattern")
    elif form == "fifo":
        os.mkfifo(target)
    else:
        target.mkdir()
    box.script("tty; cat /dev/console < /dev/null; echo end")
    code, text = console(world, box)
    if form in ("proc", "directory"):
        assert code == 1
    else:
        assert text.split()[0] == "/dev/pts/0"
        assert SECRET not in text
    # The positive twin: no /dev/console in the image at all, and it is the terminal.
    if form == "link":
        plain = world.bundle("plain")
        plain.script("tty; stat -c %t:%T /dev/console; echo x > /dev/console")
        plain.path.rename(world.base / "kept")
        (world.base / "kept").rename(plain.path)
        assert console(world, plain)[1].split() == ["/dev/pts/0", "88:0", "x"]


def test_a_ptmx_that_is_none(world: World) -> None:
    """CVE-2025-52565: without a devpts in the configuration the image's /dev/pts/ptmx is not believed."""
    box = world.bundle()
    box.config["mounts"] = [
        m for m in box.config["mounts"] if not m["destination"].startswith("/dev")
    ]
    (box.rootfs / "dev/pts").mkdir()
    os.mknod(box.rootfs / "dev/pts/ptmx", 0o020666, os.makedev(5, 2))
    box.script("tty")
    assert console(world, box)[0] == 1
    (box.rootfs / "dev/pts/ptmx").unlink()
    os.mknod(box.rootfs / "dev/pts/ptmx", 0o020666, os.makedev(1, 3))
    assert console(world, box)[0] == 1


# --- what is left after errors ----------------------------------------------------------------------

COUNT = """
import os, sys
from scow.runtime import oci_cli
def fds(): return os.listdir("/proc/self/fd")
def turn(n):
    for words in (sys.argv[1:], [*sys.argv[1:-1], "nosuch"]):
        assert oci_cli.run(words) == 1
turn(0); before = fds()
for n in range(40): turn(n)
after = fds()
print(len(before), len(after)); assert len(before) == len(after), set(after) - set(before)
"""


@pytest.mark.parametrize("what", ["command", "cwd", "mount", "hook", "sysctl", "terminal"])
def test_failing_creates_leave_no_descriptor_open(world: World, what: str) -> None:
    """runc 1.3.4, 1.4.1: error paths that forget to close; here in one process, many times."""
    box = world.bundle()
    change = {
        "command": lambda: box.process.update(args=["nosuch"]),
        "cwd": lambda: box.process.update(cwd="/proc/self/fd/7"),
        "mount": lambda: box.config["mounts"].append(bind("/etc/hostname", "/bin/sh/below")),
        "hook": lambda: box.config.update(hooks={"prestart": [{"path": "/bin/false"}]}),
        "sysctl": lambda: box.linux.update(sysctl={"net.core.nosuch": "1"}),
        "terminal": lambda: box.process.update(terminal=True),
    }[what]
    change()
    box.write()
    words = [*world.oci.argv[-2:], "run", "-d", "-b", str(box.path)]
    flags = ["--console-socket", "/nonexistent/socket"] if what == "terminal" else []
    argv = [sys.executable, "-I", "-c", COUNT, *words, *flags, "box"]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.fullmatch(r"\d+ \d+\n", done.stdout)


def test_no_abstract_socket_and_none_that_others_can_reach(world: World) -> None:
    """CVE-2020-15257, CVE-2014-3499: a host-network container sees no socket of ours that it could use."""
    box = world.bundle()
    box.linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    waiting_one = world.bundle("waiting")
    waiting_one.write()
    world.oci.quiet("create", "-b", str(waiting_one.path), "waiting")
    box.script("cat /proc/net/unix; ls /proc/1/root" + str(world.oci.root))
    out = world.run(box).out
    ours = [line for line in out.splitlines() if "start.sock" in line or "scow" in line.lower()]
    assert ours
    assert not [line for line in ours if "@" in line]
    for path in (world.oci.root, world.oci.root / "waiting"):
        assert path.stat().st_mode & 0o077 == 0
