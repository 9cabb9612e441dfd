"""User namespaces: of pods, as CRI asks for them, and of `scow run`."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.command import Scow
from fixtures.pods import Cri
from scow.native.errors import InvalidArgument

pytestmark = pytest.mark.timeout(300)
HOST_UID, HOST_GID, COUNT = 700_000, 800_000, 65536


@pytest.fixture
def cri(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cri]:
    made = Cri(str(tmp_path / "root"), str(tmp_path / "run"))
    made.take_busybox(request)
    yield made
    made.remove_all()
    made.close()
    assert made.service.check() == []


def mapping(host: int, inside: int = 0, length: int = COUNT) -> dict[str, int]:
    return {"host_id": host, "container_id": inside, "length": length}


USERS = {"mode": "POD", "uids": [mapping(HOST_UID)], "gids": [mapping(HOST_GID)]}


def spaces(users: dict[str, Any] | None = None, pid: str = "CONTAINER") -> dict[str, Any]:
    options = {"pid": pid, "userns_options": USERS if users is None else users}
    return {"security_context": {"namespace_options": options}}


def pid_of(cri: Cri, container: str) -> int:
    return int(cri.service.status(cri.service.store.read(container)).pid)


def status_of(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{key}:")).split(":")[1].strip()


def namespace(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def test_status_tells(cri: Cri) -> None:
    assert {
        handler["features"]["user_namespaces"] for handler in cri.status()["runtime_handlers"]
    } == {True}


@pytest.mark.guest
def test_who_is_who(cri: Cri) -> None:
    pod = cri.pod(linux=spaces())
    container = cri.running(pod)
    asked = cri.pod_state(pod)["linux"]["namespaces"]["options"]["userns_options"]
    assert asked == USERS
    assert cri.sh(container, "cat /proc/self/uid_map").split() == ["0", str(HOST_UID), str(COUNT)]
    assert cri.sh(container, "cat /proc/self/gid_map").split() == ["0", str(HOST_GID), str(COUNT)]
    pid = pid_of(cri, container)
    assert status_of(pid, "Uid").split() == [str(HOST_UID)] * 4
    assert status_of(pid, "Gid").split() == [str(HOST_GID)] * 4
    # All of the pod's namespaces are the user namespace's, and an exec is where the program is.
    script = "for i in user net ipc uts mnt pid cgroup; do readlink /proc/self/ns/$i; done"
    kinds = ("user", "net", "ipc", "uts", "mnt", "pid", "cgroup")
    assert cri.sh(container, script).split() == [namespace(pid, kind) for kind in kinds]
    assert all(namespace(pid, kind) != namespace("self", kind) for kind in kinds)
    sailor = cri.running(pod, linux={"security_context": {"run_as_username": "sailor"}})
    assert status_of(pid_of(cri, sailor), "Uid").split() == [str(HOST_UID + 1000)] * 4
    assert (
        cri.sh(sailor, "id -u; echo out > /dev/stdout; cat /etc/hostname > /dev/stderr")[:5]
        == "1000\n"
    )
    assert cri.container_state(sailor)["user"]["linux"]["uid"] == 1000


@pytest.mark.guest
def test_files_belong_to_root_inside_and_to_nobody_outside(cri: Cri) -> None:
    pod = cri.pod(linux=spaces())
    container = cri.running(pod)
    assert (
        cri.sh(container, "stat -c %u:%g / /bin/busybox /etc /etc/passwd /dev /dev/shm").split()
        == ["0:0"] * 6
    )
    cri.sh(container, "echo mine > /new; chown 1000:7 /new; mkdir /d; echo x >> /etc/hosts")
    cri.sh(
        container, "echo 127.0.0.9 more >> /etc/hosts; echo > /dev/shm/x; mount | grep -q mqueue"
    )
    root = f"/proc/{pid_of(cri, container)}/root"
    there = os.stat(f"{root}/new")
    assert (there.st_uid, there.st_gid) == (HOST_UID + 1000, HOST_GID + 7)
    # On the disk they are as in any image: `commit` and `diff` need not know.
    upper = Path(cri.service.store.container_dir(container)) / "upper"
    assert ((upper / "new").stat().st_uid, (upper / "new").stat().st_gid) == (1000, 7)
    assert (upper / "d").stat().st_uid == 0
    # The layers are the same ones that a plain pod uses.
    plain = cri.running(cri.pod())
    assert cri.sh(plain, "stat -c %u /bin/busybox") == "0"


def test_what_root_inside_may_not(cri: Cri, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    (secret / "key").write_text("x")
    mounts = [{"host_path": str(secret), "container_path": "/secret"}]
    capabilities = {"add_capabilities": ["ALL"]}
    container = cri.running(
        cri.pod(linux=spaces()),
        mounts=mounts,
        linux={"security_context": {"capabilities": capabilities}},
    )
    for script in (
        "cat /secret/key",
        "mknod /d b 8 0",
        "echo 1 > /proc/sys/kernel/panic",
        "chown 0 /secret",
        "hostname other && sysctl -w kernel.hostname=other && date -s 2000-01-01",
    ):
        done = cri.exec_sync(container_id=container, cmd=["sh", "-c", script])
        assert done["exit_code"] != 0, script
    # What is its own it may: it has all rights in there.
    cri.sh(container, "hostname other; ip addr add 10.9.9.9/32 dev lo; mount -t tmpfs none /var")


@pytest.mark.guest
def test_the_network(cri: Cri) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ports = [{"container_port": 80, "host_port": port, "host_ip": "127.0.0.1"}]
    pod = cri.pod(
        linux={**spaces(), "sysctls": {"net.ipv4.ip_default_ttl": "77"}}, port_mappings=ports
    )
    server = cri.running(
        pod,
        ["sh", "-c", "mkdir /www; echo hello > /www/x; exec httpd -f -p 80 -h /www"],
        linux={"security_context": {"run_as_username": ""}},
    )
    assert cri.sh(server, "cat /proc/sys/net/ipv4/ip_default_ttl") == "77"
    assert cri.sh(server, "cat /proc/sys/net/ipv4/ping_group_range").split() == ["0", "65535"]
    assert cri.sh(server, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start") == "0"
    # Everyone may ping: a socket that is given only to groups of ping_group_range.
    inside = ["nsenter", "-t", str(pid_of(cri, server)), "-U", "-n", "-S", "1000", "-G", "65535"]
    script = "import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM, s.IPPROTO_ICMP)"
    subprocess.run([*inside, sys.executable, "-I", "-c", script], check=True)
    deadline = time.monotonic() + 60
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(b"GET /x HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: client.recv(4096), b""))
                break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert answer.endswith(b"hello\n")


def test_mounts_with_their_own_maps(cri: Cri, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    (data / "mine").write_text("x")
    os.chmod(tmp_path, 0o755)
    mapped = {
        "host_path": str(data),
        "container_path": "/mapped",
        "uidMappings": USERS["uids"],
        "gidMappings": USERS["gids"],
    }
    plain = {"host_path": str(data), "container_path": "/plain"}
    image = {"image": {"image": "busybox"}, "container_path": "/image", "readonly": True}
    container = cri.running(cri.pod(linux=spaces()), mounts=[mapped, plain, image])
    assert cri.sh(container, "stat -c %u /mapped/mine /image/bin/busybox") == "0\n0"
    assert cri.sh(container, "stat -c %u /plain/mine") == "65534"
    cri.sh(container, "echo new > /mapped/new; chown 5:6 /mapped/new")
    there = (data / "new").stat()
    assert (there.st_uid, there.st_gid) == (5, 6)
    assert cri.exec_sync(container_id=container, cmd=["touch", "/plain/x"])["exit_code"] == 1


@pytest.mark.guest
def test_a_shared_pid_namespace_and_a_terminal(cri: Cri) -> None:
    pod = cri.pod(linux=spaces(pid="POD"))
    linux = {"security_context": {"namespace_options": {"pid": "POD"}}}
    one = cri.running(pod, ["sleep", "4711"], linux=linux)
    two = cri.running(pod, tty=True, linux=linux)
    assert "sleep 4711" in cri.sh(two, "ps")
    assert cri.sh(two, "cat /proc/1/status | head -1") == "Name:\tscow-init"
    assert namespace(pid_of(cri, one), "pid") == namespace(pid_of(cri, two), "pid")
    console = os.stat(f"/proc/{pid_of(cri, two)}/fd/0")
    assert stat.S_ISCHR(console.st_mode)
    assert (console.st_uid, console.st_gid) == (HOST_UID, HOST_GID + 5)
    target = {"security_context": {"namespace_options": {"pid": "TARGET", "target_id": one}}}
    three = cri.running(pod, linux=target)
    assert "sleep 4711" in cri.sh(three, "ps")


def test_the_score_of_the_oom_killer_can_be_lowered(cri: Cri) -> None:
    linux = {"resources": {"oom_score_adj": 300, "memory_limit_in_bytes": 50 << 20}}
    container = cri.running(cri.pod(linux=spaces()), linux=linux)
    assert cri.sh(container, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj") == "300\n300"


@pytest.mark.parametrize(
    ("users", "words"),
    [
        ({**USERS, "uids": [mapping(1), mapping(5, 70000)]}, "one mapping"),
        ({**USERS, "gids": []}, "one mapping"),
        ({**USERS, "uids": [mapping(HOST_UID, 1)]}, "id 0"),
        ({**USERS, "uids": [mapping(HOST_UID, length=0)]}, "range"),
        ({**USERS, "uids": [mapping(2**32 - 10)]}, "range"),
        ({**USERS, "mode": "NODE"}, "NODE"),
        ({**USERS, "mode": "CONTAINER"}, "CONTAINER"),
        ({**USERS, "mode": "TARGET"}, "TARGET"),
    ],
)
def test_what_is_refused_of_a_pod(cri: Cri, users: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        cri.pod(linux=spaces(users))


def test_what_is_refused_beside_it(cri: Cri) -> None:
    for name in ("network", "ipc", "pid"):
        linux = spaces()
        linux["security_context"]["namespace_options"][name] = "NODE"
        with pytest.raises(InvalidArgument, match="user namespace"):
            cri.pod(linux=linux)
    pod = cri.pod(linux=spaces())
    assert cri.running(pod, linux=spaces())
    for users in ({"mode": "NODE"}, {**USERS, "uids": [mapping(900_000)]}):
        with pytest.raises(InvalidArgument, match="not those of pod"):
            cri.container(pod, linux=spaces(users))
    with pytest.raises(InvalidArgument, match="not those of pod"):
        cri.container(cri.pod(), linux=spaces())
    stranger = {"security_context": {"run_as_user": {"value": 70000}}}
    container = cri.container(pod, linux=stranger)
    with pytest.raises(InvalidArgument, match="70000"):
        cri.start_container(container_id=container)


def test_it_survives_the_service(cri: Cri, tmp_path: Path) -> None:
    pod = cri.pod(linux=spaces())
    container = cri.running(pod)
    other = Cri(str(tmp_path / "root"), str(tmp_path / "run"))
    assert other.pod_state(pod)["state"] == "SANDBOX_READY"
    assert other.sh(container, "id -u") == "0"
    assert other.sh(other.running(pod), "cat /proc/self/uid_map").split()[1] == str(HOST_UID)
    other.stop_pod_sandbox(pod_sandbox_id=pod)
    other.close()


# --- scow run and scow pod --------------------------------------------------------------------


@pytest.fixture
def scow(cri: Cri, tmp_path: Path) -> Scow:
    return Scow(str(tmp_path / "root"), str(tmp_path / "run"))


def ranges(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "root/id-ranges").iterdir()} - {"lock"}


def test_run_with_a_range_of_its_own(scow: Scow, tmp_path: Path) -> None:
    command = ["--userns", "auto", "-v", "kept:/kept", "busybox"]
    script = "cat /proc/self/uid_map; stat -c %u / /kept; touch /kept/x"
    words = scow.ok("run", "--rm", *command, "sh", "-c", script).split()
    assert (words[0], words[2:]) == ("0", [str(COUNT), "0", "0"])
    one, two = (scow.ok("run", "-d", *command, "sleep", "1000").strip() for _ in range(2))
    first, second = (scow.ok("exec", c, "cat", "/proc/self/uid_map").split()[1] for c in (one, two))
    assert first != second
    host = scow.inspect(one)["HostConfig"]
    assert host["UsernsMode"] == "private"
    assert host["IDMappings"]["UidMap"] == [f"0:{first}:{COUNT}"]
    assert ranges(tmp_path) == {first, second}
    scow.ok("rm", "-f", one)
    assert ranges(tmp_path) == {second}
    # What was written lasts, also when the container runs again.
    scow.ok("exec", two, "sh", "-c", "echo x > /file; chown 3 /file")
    scow.ok("stop", "-t", "0", two)
    scow.ok("start", two)
    assert scow.ok("exec", "-u", "1000", two, "sh", "-c", "stat -c %u /file; id -u") == "3\n1000"
    scow.ok("rm", "-f", two)
    assert ranges(tmp_path) == set()
    assert (tmp_path / "root/volumes/kept/data/x").stat().st_uid == 0


def test_run_with_a_map(scow: Scow) -> None:
    maps = ["--uidmap", "0:700000:1000", "--uidmap", "1000:1000:1", "--gidmap", "0:700000:2000"]
    out = scow.ok(
        "run", "--rm", *maps, "busybox", "cat", "/proc/self/uid_map", "/proc/self/gid_map"
    )
    assert out.split() == ["0", "700000", "1000", "1000", "1000", "1", "0", "700000", "2000"]
    for words, complaint in (
        (["--uidmap", "1:700000:10"], "does not map id 0"),
        (["--uidmap", "0:1"], "CONTAINER:HOST:SIZE"),
        (["--uidmap", "0:700000:10", "--uidmap", "5:900000:10"], "overlap"),
        (["--userns", "auto", "--uidmap", "0:700000:10"], "exclude each other"),
        (["--userns", "auto", "--network", "host"], "exclude each other"),
        (["--userns", "keep"], "host or auto"),
    ):
        done = scow("run", "--rm", *words, "busybox", "true")
        assert done.code == 125
        assert complaint in done.err
    assert scow.ok("run", "--rm", "--userns", "host", "busybox", "id", "-u") == "0"


def test_pods_with_ranges_of_their_own(scow: Scow, tmp_path: Path) -> None:
    for name in ("one", "two"):
        scow.ok("pod", "create", "--userns", "auto", name)
    found = {
        scow.ok("run", "--rm", "--pod", name, "busybox", "cat", "/proc/self/uid_map").split()[1]
        for name in ("one", "two")
    }
    assert ranges(tmp_path) == found
    assert len(found) == 2
    scow.ok("pod", "rm", "-f", "one", "two")
    assert ranges(tmp_path) == set()
