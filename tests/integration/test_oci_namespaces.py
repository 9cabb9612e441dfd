"""Namespaces joined by path, clocks, and what of a joining process can be seen; the ways into a root."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fixtures.bundle import SCOW_OCI, Bundle, Runtime

MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]
KINDS = ("pid", "network", "ipc", "uts", "cgroup", "time", "user")
FILES = {"network": "net"}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", "x")


def make_bundle(path: Path, name: str) -> Bundle:
    made = Bundle(path, f"/scow-oci-ns-{os.getpid()}/{name}")
    made.path.chmod(0o755)
    made.process["args"] = ["sleep", "100"]
    return made


def start(oci: Runtime, bundle: Bundle, name: str, *flags: str) -> int:
    bundle.write()
    assert oci.quiet("run", "-d", "-b", str(bundle.path), *flags, name).code == 0
    return json.loads(oci.ok("state", name))["pid"]


@pytest.fixture
def holder(oci: Runtime, tmp_path: Path) -> int:
    """A container with all kinds of namespaces but its own user namespace: its pid."""
    bundle = make_bundle(tmp_path / "holder", "holder")
    bundle.linux["namespaces"] = [{"type": kind} for kind in ("mount", *KINDS[:-1])]
    bundle.linux["timeOffsets"] = {"boottime": {"secs": 5_000_000}, "monotonic": {"nanosecs": 7}}
    return start(oci, bundle, "holder")


def link(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{FILES.get(kind, kind)}")


def join(bundle: Bundle, pid: int, *kinds: str) -> None:
    path = f"/proc/{pid}/ns"
    others = [{"type": "mount"}]
    joined = [{"type": kind, "path": f"{path}/{FILES.get(kind, kind)}"} for kind in kinds]
    bundle.linux["namespaces"] = others + joined
    if "uts" in kinds:
        bundle.config.pop("hostname", None)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_each_kind_is_joined_alone(oci: Runtime, bundle: Bundle, holder: int, kind: str) -> None:
    bundle.config.pop("hostname", None)
    join(bundle, holder, kind)
    pid = start(oci, bundle, "x")
    for other in KINDS:
        shared = holder if other == kind else "self"
        assert link(pid, other) == link(shared, other), other
    assert link(pid, "mnt") not in (link(holder, "mnt"), link("self", "mnt"))


def test_all_of_them_at_once(oci: Runtime, bundle: Bundle, holder: int) -> None:
    join(bundle, holder, *KINDS[:-1])
    pid = start(oci, bundle, "x")
    assert [link(pid, kind) for kind in KINDS[:-1]] == [link(holder, kind) for kind in KINDS[:-1]]
    assert float(oci.ok("exec", "x", "cat", "/proc/uptime").split()[0]) > 5_000_000
    # one procfs for both, with both in it
    assert oci.ok("exec", "x", "cat", "/proc/1/comm") == "sleep\n"
    assert oci.ok("exec", "holder", "ps").count("sleep") == 2
    oci.ok("delete", "--force", "x")
    assert json.loads(oci.ok("state", "holder"))["status"] == "running"


def test_a_user_namespace_is_joined_with_what_it_owns(
    oci: Runtime, bundle: Bundle, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "holder", "holder")
    other.linux["namespaces"] = [{"type": kind} for kind in ("mount", *KINDS)]
    other.linux.update(uidMappings=MAPS, gidMappings=MAPS)
    pid = start(oci, other, "holder")
    join(bundle, pid, *KINDS)
    bundle.linux.update(uidMappings=MAPS, gidMappings=MAPS)
    mine = start(oci, bundle, "x")
    assert [link(mine, kind) for kind in KINDS] == [link(pid, kind) for kind in KINDS]
    out = oci.ok("exec", "x", "sh", "-c", "id -u; cat /proc/self/uid_map; cat /proc/1/comm")
    assert out.split() == ["0", "0", "100000", "65536", "sleep"]


def test_a_network_of_the_host_in_a_user_namespace_cannot_be_changed(
    oci: Runtime, bundle: Bundle, holder: int
) -> None:
    """Its owner is the host: to be in it is all that a new user namespace gets."""
    join(bundle, holder, "network")
    bundle.linux["namespaces"] += [{"type": "user"}, {"type": "pid"}, {"type": "uts"}]
    bundle.linux.update(uidMappings=MAPS, gidMappings=MAPS)
    pid = start(oci, bundle, "x")
    assert link(pid, "network") == link(holder, "network")
    assert oci("exec", "x", "busybox", "ip", "link", "set", "lo", "mtu", "999").code != 0


@pytest.mark.parametrize(
    ("namespace", "words"),
    [
        ({"type": "time", "path": "/proc/self/ns/time"}, "timeOffsets"),
        ({"type": "uts", "path": "/proc/self/ns/ipc"}, "not a uts"),
        ({"type": "uts", "path": "/etc/passwd"}, "cannot open"),
        ({"type": "uts", "path": "/nowhere"}, "cannot open"),
        ({"type": "uts", "path": "self"}, "not absolute"),
    ],
)
def test_what_cannot_be_joined(
    oci: Runtime, bundle: Bundle, namespace: dict[str, str], words: str
) -> None:
    kinds = [{"type": "mount"}, {"type": "pid"}, namespace]
    bundle.linux["namespaces"] = kinds
    bundle.linux["timeOffsets"] = {"boottime": {"secs": 1}} if namespace["type"] == "time" else {}
    bundle.config.pop("hostname", None)
    bundle.write()
    done = oci("create", "-b", str(bundle.path), "x")
    assert (done.code, words in done.err) == (1, True), done.err


@pytest.mark.parametrize(("clock", "field"), [("monotonic", 0), ("boottime", 0)])
def test_clocks(oci: Runtime, bundle: Bundle, clock: str, field: int) -> None:
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = {clock: {"secs": 86400, "nanosecs": 500_000_000}}
    bundle.script("cat /proc/self/timens_offsets")
    bundle.write()
    out = oci.ok("run", "-b", str(bundle.path), "x").splitlines()
    offsets = {line.split()[0]: line.split()[1:] for line in out}
    assert offsets[clock] == ["86400", "500000000"]


@pytest.mark.parametrize(
    "offsets", [{"realtime": {"secs": 1}}, {"boottime": {"secs": 1, "nanosecs": 1_000_000_000}}]
)
def test_clocks_that_are_none(oci: Runtime, bundle: Bundle, offsets: dict[str, Any]) -> None:
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = offsets
    bundle.write()
    assert oci("create", "-b", str(bundle.path), "x").code == 1


# --- who lives in a joined pid namespace sees nothing of the host --------------------------------

WATCH = """
import ctypes, os, sys, time
known = {int(name) for name in os.listdir("/proc") if name.isdigit()}
print("watching", flush=True)
seen = set()
end = time.monotonic() + 30
while time.monotonic() < end:
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in known:
            continue
        try:
            for fd in os.listdir(f"/proc/{name}/fd"):
                if os.path.exists(f"/proc/{name}/fd/{fd}{sys.argv[1]}"):
                    seen.add("fd of the host")
                if int(fd) > 2:
                    seen.add("fd " + os.readlink(f"/proc/{name}/fd/{fd}").split(":")[0])
            seen.add("root " + ("host" if os.path.exists(f"/proc/{name}/root" + sys.argv[1]) else "own"))
            if open(f"/proc/{name}/comm").read() == "sleep\\n":
                end = 0
        except OSError:
            pass
print(*sorted(seen), sep="\\n")
"""


def test_a_joining_process_brings_nothing_along(
    oci: Runtime, bundle: Bundle, holder: int, tmp_path: Path
) -> None:
    """The most powerful neighbour: root of the host's user namespace, in the joined pid namespace."""
    mark = tmp_path / "mark"
    mark.touch()
    join(bundle, holder, "pid")
    bundle.config.pop("hostname", None)
    argv = ["nsenter", f"--pid=/proc/{holder}/ns/pid", "unshare", "-m", "sh", "-c",
            'mount -t proc proc /proc && exec python3 -I -c "$0" "$1"', WATCH, str(mark)]  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"
        start(oci, bundle, "x")
        told = watcher.stdout.read().splitlines()
    assert "root own" in told
    assert "root host" not in told
    # The connection to who started it, the socket of `start`, its own root: no plan, nothing else.
    assert set(told) <= {"root own", "fd socket", "fd /"}, told


def test_hooks_terminal_and_descriptors_of_a_joining_process(
    oci: Runtime, bundle: Bundle, holder: int
) -> None:
    """All that comes after the first process has become another one."""
    join(bundle, holder, "pid", "ipc")
    told = bundle.rootfs / "told"
    bundle.config.pop("hostname", None)
    hooks = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} >> {where}"], "env": ["PATH=/bin"]}]
        for kind, where in (("createRuntime", told), ("createContainer", told), ("startContainer", "/told"), ("poststop", told))
    }  # fmt: skip
    bundle.config["hooks"] = hooks
    bundle.process.update(terminal=True, user={"uid": 1000, "gid": 1000})
    bundle.script("tty; id -u; readlink /proc/self; stat -c %t /dev/console; echo end")
    bundle.write()
    told.touch()
    told.chmod(0o666)
    done = oci("run", "-b", str(bundle.path), "x")
    lines = done.out.split("\r\n")
    assert (lines[0], lines[1], lines[3]) == ("/dev/pts/0", "1000", "88"), done
    assert int(lines[2]) > 1
    assert told.read_text().split() == list(hooks)


def test_a_joining_process_that_cannot_run_is_told_at_create(
    oci: Runtime, bundle: Bundle, holder: int
) -> None:
    join(bundle, holder, "pid")
    bundle.config.pop("hostname", None)
    bundle.process["args"] = ["nope"]
    bundle.write()
    assert "executable file not found" in oci("create", "-b", str(bundle.path), "x").err
    assert oci.ok("list", "-q") == "holder\n"


def test_a_pid_namespace_without_a_procfs_to_take(oci: Runtime, bundle: Bundle) -> None:
    """No process tells where its procfs is: the first process is born in it, and mounts a new one."""
    argv = ["unshare", "--pid", "--fork", "sleep", "100"]
    with subprocess.Popen(argv) as outside:
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
        deadline = time.monotonic() + 60
        while not children.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first = int(children.read_text())
        try:
            join(bundle, first, "pid")
            bundle.config.pop("hostname", None)
            pid = start(oci, bundle, "x")
            assert link(pid, "pid") == link(first, "pid")
            assert oci.ok("exec", "x", "ps").count("sleep") == 2
            oci.ok("delete", "--force", "x")
        finally:
            os.kill(first, signal.SIGKILL)
            outside.wait(10)


# --- the ways into the root, and out to who waits -------------------------------------------------


# A host on which no other chroot has a procfs of its own: below a private directory it could not be
# hidden by a user namespace, and that is an error.
ALONE = [
    "unshare", "-m", "sh", "-c",
    "awk '/ - (proc|sysfs) / && $5 != \"/proc\" && $5 != \"/sys\" { print $5 }' /proc/self/mountinfo | "
    'tac | xargs -r umount -l; exec "$@"', "sh",
]  # fmt: skip


@pytest.mark.parametrize("in_user_namespace", [False, True])
def test_without_pivot_root(oci: Runtime, bundle: Bundle, in_user_namespace: bool) -> None:
    if in_user_namespace:
        bundle.linux["namespaces"].append({"type": "user"})
        bundle.linux.update(uidMappings=MAPS, gidMappings=MAPS)
    bundle.linux["maskedPaths"] = ["/proc/filesystems"]
    pid = start(Runtime([*ALONE, *SCOW_OCI], oci.root), bundle, "x", "--no-pivot")
    assert oci.ok("exec", "x", "ls", "/..").split() == ["bin", "dev", "etc", "home", "proc", "sys", "tmp"]  # fmt: skip
    assert oci.ok("exec", "x", "sh", "-c", "cat /proc/1/comm; ls -d /../../work 2>&1 | wc -l").split() == ["sleep", "1"]  # fmt: skip
    assert oci.ok("exec", "x", "cat", "/proc/filesystems") == ""
    # The host's procfs is gone, too: the kernel lets a user namespace mount a new one, without our
    # masks, only while it sees one that has none (mount_too_revealing).
    attack = [
        "unshare",
        "-U",
        "-r",
        "-m",
        "-p",
        "-f",
        "busybox",
        "mount",
        "-t",
        "proc",
        "p",
        "/tmp",
    ]
    done = oci("exec", "x", "busybox", *attack)
    assert (done.code, "ermitted" in done.err + done.out) == (1, True), done
    assert pid > 1


def test_the_process_itself_is_sent(oci: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "pidfd"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        pid = start(oci, bundle, "x", "--pidfd-socket", str(path))
        first = receive(listener)
        assert oci.quiet("exec", "-d", "--pidfd-socket", str(path), "x", "sleep", "99").code == 0
        second = receive(listener)
    try:
        assert told_pid(first) == pid != told_pid(second)
        signal.pidfd_send_signal(second, signal.SIGKILL)
        signal.pidfd_send_signal(first, signal.SIGKILL)
        for fd in (first, second):
            assert select.select([fd], [], [], 10)[0]
    finally:
        os.close(first)
        os.close(second)


def receive(listener: socket.socket) -> int:
    connection, _ = listener.accept()
    with connection:
        _, [fd], _, _ = socket.recv_fds(connection, 64, 1)
    return fd


def told_pid(pidfd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise AssertionError("no pidfd")


def test_a_pidfd_socket_that_nobody_listens_at_is_an_error(oci: Runtime, bundle: Bundle) -> None:
    bundle.write()
    words = ("--pidfd-socket", str(bundle.path / "none"))
    assert "pidfd socket" in oci("create", "-b", str(bundle.path), *words, "x").err
    assert oci.ok("list", "-q") == ""
