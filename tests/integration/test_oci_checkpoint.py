"""checkpoint and restore by CRIU: a container goes on where it was; and what is said where it cannot.

SCOW_TEST_CRIU names a CRIU for hosts whose kernel is newer than Debian's package: what is marked `guest`
runs with that one in the guest, whose kernel is older. Tried by hand with 4.1.1 on 6.18, all of it.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fixtures import kernel
from fixtures.bundle import SCOW_OCI, Bundle, Runtime
from fixtures.configs import hooks, linux, mount, namespaces, place, resources, user_namespace
from fixtures.engines import OURS, missing, podman, wait_until

NAME = "c1"
COUNT = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"
works = pytest.mark.criu


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    kernel.need(kernel.mount_refused)
    made = Bundle(tmp_path / "bundle", f"/scow-oci-criu-{os.getpid()}/{NAME}")
    made.script(COUNT)
    made.process["noNewPrivileges"] = False  # CRIU 3.17 does not keep it
    return made


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime([*SCOW_OCI, "--criu", kernel.criu_program()], tmp_path / "state")
    yield runtime
    runtime.remove_all()


class Pipe:
    """What is the container's output: a pipe, since CRIU cannot bring back a file of the host's."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def run(self, oci: Runtime, *words: str) -> None:
        """A command whose container writes into the pipe."""
        null = subprocess.DEVNULL
        done = subprocess.run(
            [*oci.argv, *words], stdin=null, stdout=self.write, stderr=null, check=False
        )
        assert done.returncode == 0, words

    def numbers(self) -> list[int]:
        """What has come until nobody writes any more, or by now."""
        return [int(line) for line in os.read(self.read, 1 << 20).split()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.read)
    os.close(made.write)


def start(oci: Runtime, bundle: Bundle, pipe: Pipe) -> int:
    place(bundle, 0)
    pipe.run(oci, "run", "--detach", "--bundle", str(bundle.path), NAME)
    assert select.select([pipe.read], [], [], 20)[0]  # it runs
    return pid_of(oci)


def pid_of(oci: Runtime) -> int:
    return int(state(oci)["pid"])


def state(oci: Runtime) -> dict[str, Any]:
    return json.loads(oci.ok("state", NAME))


def restore(oci: Runtime, bundle: Bundle, pipe: Pipe, *flags: str) -> int:
    words = ("--image-path", images(bundle), "--work-path", f"{bundle.path}/work")
    try:
        pipe.run(oci, "restore", "--detach", "--bundle", str(bundle.path), *words, *flags, NAME)
    except AssertionError:
        print(Path(f"{bundle.path}/work/restore.log").read_text()[-3000:])
        raise
    return pid_of(oci)


def images(bundle: Bundle) -> str:
    return f"{bundle.path}/images"


def facts(pid: int) -> dict[str, str]:
    """What must be as it was: rights, filters, mounts, cgroups, names."""
    proc = Path("/proc", str(pid))
    kept = [
        "Uid",
        "Gid",
        "Groups",
        "Umask",
        "SigIgn",
        "SigCgt",
        "Cap",
        "NoNewPrivs",
        "Seccomp:",
        "Cpus_allowed_list",
    ]
    status = (proc / "status").read_text().splitlines()
    lines = [line for line in status if line.startswith(tuple(kept))]
    mounts: list[str] = []
    for line in (proc / "mountinfo").read_text().splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        flags = ",".join(sorted(fields[5].split(",")))
        mounts.append(f"{fields[4]} {flags} {'' if 'scow-mask' in line else kind}")
    return {
        "status": "\n".join(lines),
        "mounts": "\n".join(sorted(mounts)),
        "cgroup": (proc / "cgroup").read_text(),
        "limits": (proc / "limits").read_text(),
        "environ": (proc / "environ").read_text(),
        "descriptors": " ".join(sorted(os.listdir(proc / "fd"))),
    }


CASES: dict[str, Callable[[Bundle], None]] = {
    "plain": lambda bundle: None,
    "limits": resources(memory={"limit": 64 << 20}, pids={"limit": 50}, cpu={"shares": 512}),
    "masked files": linux(maskedPaths=["/proc/kcore", "/proc/keys", "/sys/firmware", "/tmp"]),
    "host network": namespaces("pid", "ipc", "uts", "mount"),
    "tmpfs": mount("/home/t", "tmpfs", "tmpfs", "size=64k", "nosuid"),
    "cgroups": mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro"),
    "queues": mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
    "seccomp": linux(
        seccomp={
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}],
        }
    ),
}


@works
@pytest.mark.parametrize("case", CASES)
def test_goes_on_where_it_was(case: str, oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    CASES[case](bundle)
    before = facts(start(oci, bundle, pipe))
    first = state(oci)
    oci.ok("checkpoint", "--image-path", images(bundle), NAME)
    assert oci("state", NAME).code == 1  # as with runc: what is written to files is deleted
    last = pipe.numbers()[-1]
    pid = restore(oci, bundle, pipe)
    assert pipe.numbers()[0] == last + 1
    assert facts(pid) == before
    after = state(oci)
    assert after["status"] == "running"
    assert set(after) == set(first)
    assert oci.ok("exec", NAME, "cat", "/proc/1/comm") == "sh\n"
    oci.ok("kill", NAME, "KILL")


@works
@pytest.mark.guest
def test_no_new_privileges(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    """Kept, or not restored at all: setuid programs would count again."""
    bundle.process["noNewPrivileges"] = True
    start(oci, bundle, pipe)
    oci.ok("checkpoint", "--image-path", images(bundle), NAME)
    words = ("--bundle", str(bundle.path), "--image-path", images(bundle))
    null = subprocess.DEVNULL
    argv = [*oci.argv, "--log", f"{bundle.path}/log", "restore", "--detach", *words, NAME]
    done = subprocess.run(argv, stdin=null, stdout=pipe.write, stderr=null, check=False)
    if done.returncode == 0:
        assert "NoNewPrivs:\t1\n" in Path(f"/proc/{pid_of(oci)}/status").read_text()
    else:
        assert "without its no_new_privs" in (bundle.path / "log").read_text()
        assert oci.ok("list", "-q") == ""


@works
def test_leave_running_and_a_second_one(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    pid = start(oci, bundle, pipe)
    oci.ok("checkpoint", "--leave-running", "--image-path", images(bundle), NAME)
    assert pid_of(oci) == pid
    assert state(oci)["status"] == "running"
    oci.ok("pause", NAME)
    oci.ok("checkpoint", "--image-path", f"{images(bundle)}2", NAME)
    assert oci.ok("list", "-q") == ""


@works
def test_binds_come_from_the_new_bundle(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    for name in ("old", "new"):
        (bundle.path / name).mkdir()
        (bundle.path / name / "f").write_text(f"{name}\n")
    mount("/data", "bind", "old", "rbind", "ro")(bundle)
    mount("/etc/one", "bind", "old/f", "bind")(bundle)
    start(oci, bundle, pipe)
    oci.ok("checkpoint", "--image-path", images(bundle), NAME)
    for entry in bundle.config["mounts"][-2:]:
        entry["source"] = entry["source"].replace("old", "new")
    (bundle.rootfs / "etc/one").unlink()  # as in a root file system that is made anew
    place(bundle, 0)
    restore(oci, bundle, pipe)
    assert oci.ok("exec", NAME, "cat", "/data/f", "/etc/one") == "new\nnew\n"
    assert oci("exec", NAME, "touch", "/data/x").code == 1


@works
def test_read_only_stays_so(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    """CRIU gives the second mount of the same files no flags: it would be writable."""
    (bundle.path / "data").mkdir()
    for name in ("/one", "/two"):
        mount(name, "bind", "data", "bind", "ro", "nosuid")(bundle)
    mount("/three", "bind", "data", "bind")(bundle)
    bundle.linux["maskedPaths"] = ["/sys/firmware", "/tmp", "/home"]
    bundle.process["capabilities"]["effective"] += ["CAP_DAC_OVERRIDE"]
    bundle.process["capabilities"]["permitted"] += ["CAP_DAC_OVERRIDE"]
    start(oci, bundle, pipe)
    oci.ok("checkpoint", "--image-path", images(bundle), NAME)
    restore(oci, bundle, pipe)
    for where in ("/one", "/two", "/tmp", "/home"):
        done = oci("exec", NAME, "touch", f"{where}/x")
        assert "Read-only file system" in done.err
    oci.ok("exec", NAME, "touch", "/three/x")


@works
def test_mounts_below_a_bind(oci: Runtime, bundle: Bundle, pipe: Pipe, tmp_path: Path) -> None:
    below = tmp_path / "volume/below"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        (below / "f").write_text("below\n")
        mount("/data", "bind", str(below.parent), "rbind")(bundle)
        start(oci, bundle, pipe)
        oci.ok("checkpoint", "--image-path", images(bundle), NAME)
        restore(oci, bundle, pipe)
        assert oci.ok("exec", NAME, "cat", "/data/below/f") == "below\n"
        oci.ok("delete", "--force", NAME)
    finally:
        subprocess.run(["umount", below], check=True)


@works
def test_files_of_a_tmpfs_come_back(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    bundle.script(f"echo kept > /dev/shm/f; {COUNT}")
    start(oci, bundle, pipe)
    oci.ok("checkpoint", "--image-path", images(bundle), NAME)
    restore(oci, bundle, pipe)
    assert oci.ok("exec", NAME, "cat", "/dev/shm/f") == "kept\n"


@works
@pytest.mark.guest
def test_in_front(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    """restore without --detach is the parent, passes signals on, gives the exit status, and deletes."""
    bundle.script("trap 'exit 9' TERM; " + COUNT)
    start(oci, bundle, pipe)
    oci.ok("checkpoint", "--image-path", images(bundle), NAME)
    words = ["restore", "--bundle", str(bundle.path), "--image-path", images(bundle), NAME]
    front = subprocess.Popen([*oci.argv, *words], stdin=subprocess.DEVNULL, stdout=pipe.write)
    deadline = time.monotonic() + 60
    while oci("state", NAME).code or state(oci)["status"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stat = Path(f"/proc/{pid_of(oci)}/stat").read_text()
    assert int(stat.rpartition(")")[2].split()[1]) == front.pid
    front.terminate()
    assert front.wait(60) == 9
    assert oci.ok("list", "-q") == ""


@works
@pytest.mark.guest
def test_terminal(oci: Runtime, bundle: Bundle) -> None:
    bundle.script("while read -r x; do echo got $x; tty; done")
    bundle.process["terminal"] = True
    place(bundle, 0)
    words = ("--detach", "--bundle", str(bundle.path), "--console-socket")
    with terminal(oci, bundle, ("run", *words), b"one"):
        oci.ok("checkpoint", "--image-path", images(bundle), NAME)
    with terminal(oci, bundle, ("restore", "--image-path", images(bundle), *words), b"two"):
        pass


@contextmanager
def terminal(oci: Runtime, bundle: Bundle, words: tuple[str, ...], said: bytes) -> Iterator[None]:
    """Start something with a terminal, and have a word with it."""
    path = f"{bundle.path}/{said.decode()}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(20)
        assert oci.quiet(*words, path, NAME).code == 0
        connection, _ = listener.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 64, 1)
    os.write(fds[0], said + b"\n")
    heard = b""
    while b"got " + said + b"\r\n/dev/pts/0\r\n" not in heard:
        assert select.select([fds[0]], [], [], 20)[0], heard
        heard += os.read(fds[0], 4096)
    yield
    os.close(fds[0])


@works
def test_hooks(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    """Those that prepare a container's namespaces, and those of its end; not those of its program."""
    start(oci, bundle, pipe)
    oci.ok("checkpoint", "--image-path", images(bundle), NAME)
    kinds = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ]
    hooks(**dict.fromkeys(kinds, "true"))(bundle)
    place(bundle, 0)
    restore(oci, bundle, pipe)
    oci.ok("delete", "--force", NAME)
    lines = (bundle.rootfs / "hooks").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [
        "prestart", "createRuntime", "poststart", "poststop"
    ]  # fmt: skip
    assert [line.split()[3].split(":")[1] for line in lines] == [
        '"creating"', '"creating"', '"running"', '"stopped"'
    ]  # fmt: skip


@works
def test_joined_network(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    holder = subprocess.Popen(["unshare", "-n", "sleep", "60"])
    try:
        # until unshare(1) has become sleep(1)
        wait_until(lambda: "sleep" in Path(f"/proc/{holder.pid}/comm").read_text(), "sleep")
        own = os.stat(f"/proc/{holder.pid}/ns/net").st_ino
        namespaces("pid", "ipc", "uts", "mount", network=f"/proc/{holder.pid}/ns/net")(bundle)
        assert os.stat(f"/proc/{start(oci, bundle, pipe)}/ns/net").st_ino == own
        oci.ok("checkpoint", "--image-path", images(bundle), NAME)
        assert os.stat(f"/proc/{restore(oci, bundle, pipe)}/ns/net").st_ino == own
    finally:
        holder.kill()
        holder.wait()


@works
def test_in_two_steps(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    start(oci, bundle, pipe)
    first = oci("checkpoint", "--pre-dump", "--image-path", f"{images(bundle)}/1", NAME)
    if kernel.criu_feature_missing("mem_dirty_track"):
        assert first.code == 1
        assert "criu failed" in first.err
        return
    assert first.code == 0, first.err
    whole = f"{images(bundle)}/2"
    oci.ok("checkpoint", "--image-path", whole, "--parent-path", "../1", NAME)
    pipe.run(oci, "restore", "-d", "--bundle", str(bundle.path), "--image-path", whole, NAME)


@works
def test_a_failed_restore_leaves_nothing(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    start(oci, bundle, pipe)
    oci.ok("checkpoint", "--image-path", images(bundle), NAME)
    Path(images(bundle), "core-1.img").write_bytes(b"damaged")
    words = ("--bundle", str(bundle.path), "--image-path", images(bundle))
    done = oci("restore", "--detach", *words, NAME)
    assert done.code == 1
    assert "criu failed to restore: Error" in done.err
    assert oci.ok("list", "-q") == ""


@works
def test_podman(tmp_path: Path, oci: Runtime) -> None:
    if reason := missing("podman", "conmon"):
        pytest.skip(reason)
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(oci.argv[:-2])} "$@"\n')
    program.chmod(0o755)
    with podman(tmp_path, str(program)) as engines:
        engine = engines[OURS]
        engine.start("n", "busy", "sh", "-c", COUNT)
        wait_until(lambda: len(engine.ok("logs", "n").split()) > 3, "some lines")
        engine.ok("container", "checkpoint", "n")
        count = len(engine.ok("logs", "n").split())
        engine.ok("container", "restore", "n")
        wait_until(lambda: len(engine.ok("logs", "n").split()) > count, "more lines")
        numbers = [int(line) for line in engine.ok("logs", "n").split()]
        engine.ok("rm", "-f", "-t", "0", "n")
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > count


# --- what is said where it cannot be done: on every host ------------------------------------------


def test_says_that_there_is_no_criu(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    start(oci, bundle, pipe)
    without = Runtime([*SCOW_OCI, "--criu", "/nope/criu"], oci.root)
    done = without("checkpoint", NAME)
    assert done.code == 1
    assert "checkpoint and restore need CRIU: '/nope/criu' is not there" in done.err
    done = without("restore", "--bundle", str(bundle.path), "other")
    assert "need CRIU" in done.err
    assert without.ok("list", "-q") == f"{NAME}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds", "CRIU 4.1 or newer"),
        ("Error (criu/x.c:1): x: no such feature", "x: no such feature"),
    ],
)
def test_says_why_criu_does_not_work(
    text: str, said: str, oci: Runtime, bundle: Bundle, pipe: Pipe, tmp_path: Path
) -> None:
    fake = tmp_path / "criu"
    fake.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
    fake.chmod(0o755)
    start(oci, bundle, pipe)
    done = Runtime([*SCOW_OCI, "--criu", str(fake)], oci.root)(
        "checkpoint", "--image-path", images(bundle), NAME
    )
    assert done.code == 1
    assert "criu failed to dump" in done.err
    assert said in done.err
    assert state(oci)["status"] == "running"


def test_refusals(oci: Runtime, bundle: Bundle, pipe: Pipe) -> None:
    kernel.need(lambda: missing("criu"))
    place(bundle, 0)
    assert oci.quiet("create", "--bundle", str(bundle.path), NAME).code == 0
    assert "cannot be checkpointed in created state" in oci("checkpoint", NAME).err
    oci.ok("delete", "--force", NAME)
    assert "container does not exist" in oci("checkpoint", NAME).err
    done = oci("restore", "--bundle", str(bundle.path), "--image-path", "/nope", NAME)
    assert "'/nope' does not exist" in done.err
    assert oci.ok("list", "-q") == ""
    start(oci, bundle, pipe)
    assert "--lazy-pages is not supported" in oci("checkpoint", "--lazy-pages", NAME).err
    assert "--empty-ns: only network" in oci("checkpoint", "--empty-ns", "uts", NAME).err
    assert "must be relative" in oci("checkpoint", "--parent-path", "/x", NAME).err
    assert "invalid manage-cgroups-mode" in oci("checkpoint", "--manage-cgroups-mode=x", NAME).err
    oci.ok("delete", "--force", NAME)
    user_namespace()(bundle)
    start(oci, bundle, pipe)
    assert "in a user namespace" in oci("checkpoint", NAME).err


def test_is_announced(oci: Runtime) -> None:
    """Podman asks for the help of the commands, to know whether they are there."""
    for command in ("checkpoint", "restore"):
        assert "--image-path" in oci.ok(command, "--help")
