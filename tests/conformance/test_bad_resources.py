"""Limits, devices, ports and names that cannot be, typed on the command line.

Rows B and J of the bad-input list. Each: one clear line that quotes the value, exit 125, and no
container, cgroup, address or port is left. The parsers have their own tests; here the whole command
is run, so that no door is without a lock.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.command import Scow
from fixtures.handmade import Archive, busybox_layer

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
CPUS = os.cpu_count() or 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Scow:
    base = tmp_path_factory.mktemp("bad")
    archive = Archive()
    archive.add("box:latest", [busybox_layer()], {"Cmd": ["true"]})
    scow = Scow(str(base / "root"), str(base / "run"))
    scow.ok("load", "-i", str(archive.write(base / "box.tar")))
    return scow


@pytest.fixture
def scow(shared: Scow) -> Iterator[Scow]:
    yield shared
    shared.remove_all()


# row, options, what the line must name
RESOURCES = [
    ("B1", ["-m", "5m"], "6291456"),
    ("B1", ["-m", "1e3"], "1e3"),
    ("B1", ["-m", "inf"], "inf"),
    ("B1", ["-m", "9999999999g"], "9999999999g"),
    ("B1", ["-m", " 512m"], "' 512m'"),
    ("B1", ["-m", "0x10m"], "0x10m"),
    ("B1", ["-m", str(2**64)], str(2**64)),
    ("B1", ["--memory=-1"], "negative"),
    ("B2", ["-m", "64m", "--memory-swap", "32m"], "--memory-swap"),
    ("B2", ["--memory-swap", "64m"], "--memory"),
    ("B2", ["-m", "64m", "--memory-swappiness", "101"], "101"),
    ("B4", ["-m", "32m", "--memory-reservation", "64m"], "--memory-reservation"),
    ("B4", ["--kernel-memory", "32m"], "--kernel-memory"),
    ("B5", ["--cpus", "0"], "--cpus"),
    ("B5", ["--cpus=-1"], "-1"),
    ("B5", ["--cpus", "1e9"], "1e9"),
    ("B5", ["--cpus", "0.001"], "0.001"),
    ("B5", ["--cpus", str(CPUS + 1)], str(CPUS)),
    ("B5", ["--cpu-period", "999"], "1000"),
    ("B5", ["--cpu-period", "1000001"], "1000000"),
    ("B5", ["--cpu-quota", "999"], "1000"),
    ("B5", ["--cpu-shares", "1"], "262144"),
    ("B5", ["--cpu-shares", "262145"], "262144"),
    ("B5", ["--cpus", "0.5", "--cpu-quota", "50000"], "--cpu-quota"),
    ("B6", ["--cpuset-cpus", "0-2147483647"], f"no cpu {CPUS} "),
    ("B6", ["--cpuset-cpus", "3-1"], "3-1"),
    ("B6", ["--cpuset-cpus", "0,,1"], "0,,1"),
    ("B6", ["--cpuset-cpus", "a"], "'a'"),
    ("B6", ["--cpuset-cpus", "0," * 60_000], "too long"),
    ("B6", ["--cpuset-mems", "9"], "no node 9"),
    ("B7", ["--pids-limit=-2"], "-2"),
    ("B7", ["--pids-limit", str(2**31)], str(2**31)),
    ("B7", ["--pids-limit", str(2**63)], str(2**63)),
    ("B8", ["--ulimit", "nofile=2048:1024"], "soft"),
    ("B8", ["--ulimit", "nofile=-5"], "-5"),
    ("B8", ["--ulimit", "files=5"], "files"),
    ("B8", ["--ulimit", "nofile=5", "--ulimit", "nofile=6"], "twice"),
    ("B8", ["--ulimit", "nofile=99999999999"], "nr_open"),
    ("B9", ["--blkio-weight", "9"], "1000"),
    ("B9", ["--blkio-weight", "1001"], "1000"),
    ("B9", ["--device-read-bps", "/dev/nosuch:1mb"], "/dev/nosuch"),
    ("B9", ["--device-write-iops", "/dev/null:5"], "/dev/null"),
    ("B9", ["--device-read-bps", "/dev:1mb"], "/dev"),
    ("B9", ["--device-read-bps", "sda"], "sda"),
    ("B11", ["--shm-size=-1"], "-1"),
    ("B11", ["--shm-size", "64q"], "64q"),
    ("B11", ["--shm-size", str(2**63)], str(2**63)),
    ("B11", ["--tmpfs", "/x:size=-1"], "size"),
    ("B11", ["--tmpfs", "/x:foo=bar"], "foo=bar"),
    ("B11", ["--tmpfs", "/x:ro,rw"], "rw"),
    ("B11", ["--tmpfs", "relative"], "relative"),
    ("B12", ["--device", "/dev/nosuch"], "/dev/nosuch"),
    ("B12", ["--device", "/etc/passwd"], "/etc/passwd"),
    ("B12", ["--device", "/dev/../dev/null"], "/dev/../dev/null"),
    ("B12", ["--device", "/dev/null:/dev/x:rwx"], "rwx"),
    ("B12", ["--device", "/dev/null:/dev/x", "--device", "/dev/zero:/dev/x"], "/dev/x"),
    ("B13", ["--cgroup-parent", "../x"], "../x"),
    ("B13", ["--cgroup-parent", "/a/../../b"], "/a/../../b"),
    ("B13", ["--cgroup-parent", ""], "--cgroup-parent"),
    ("B13", ["--cgroup-parent", "a\nb"], "a\\nb"),
    ("B15", ["--oom-score-adj=-1001"], "-1001"),
    ("B15", ["--oom-score-adj", "1001"], "1001"),
]

NETWORK = [
    ("J1", ["-p", "0:80"], "0:80"),
    ("J1", ["-p", "70000:80"], "70000"),
    ("J1", ["-p", "80:0"], "80:0"),
    ("J1", ["-p", "a:b"], "a:b"),
    ("J1", ["-p", "1-5:1-4"], "1-5:1-4"),
    ("J1", ["-p", "80:80/sctpx"], "sctpx"),
    ("J1", ["-p", "1.2.3.4.5:80:80"], "1.2.3.4.5"),
    ("J1", ["-p", "::1:80:80"], "["),
    ("J1", ["-p", "192.0.2.77:8080:80"], "192.0.2.77"),
    ("J1", ["-p", "8080:80", "-p", "8080:81"], "8080"),
    ("J1", ["-p", ""], "''"),
    ("J1", ["-p", "80:80:80:80:80"], "80:80:80:80:80"),
    ("J3", ["--ip", "192.168.77.1"], "192.168.77.1"),
    ("J3", ["--ip", "10.89.0.0"], "10.89.0.0"),
    ("J3", ["--ip", "10.89.255.255"], "10.89.255.255"),
    ("J3", ["--ip", "10.89.0.1"], "10.89.0.1"),
    ("J3", ["--ip", "10.89.0.300"], "10.89.0.300"),
    ("J3", ["--mac-address", "01:00:00:00:00:01"], "01:00:00:00:00:01"),
    ("J3", ["--mac-address", "banana"], "banana"),
    ("J3", ["--network", "none", "--ip", "10.89.0.9"], "--ip"),
    ("J5", ["--dns", "bad"], "bad"),
    ("J5", [word for n in range(100) for word in ("--dns", f"9.9.9.{n}")], "100"),
    ("J5", ["--dns-search", "a b"], "a b"),
    ("J5", ["--dns-option", "a\nnameserver 1.1.1.1"], "\\n"),
    ("J5", ["--add-host", "a:b:c"], "b:c"),
    ("J5", ["--add-host", "a:1.1.1.1\n2.2.2.2 b"], "\\n"),
    ("J5", ["--add-host", "a b:1.1.1.1"], "a b"),
    ("J5", ["--add-host", "a"], "NAME:ADDRESS"),
    ("J5", ["--network", "none", "-p", "8080:80"], "-p"),
    ("J5", ["--network", "host", "-p", "8080:80"], "-p"),
    ("J5", ["--network", "container:nosuch"], "nosuch"),
    ("J5", ["--network", "nosuch"], "nosuch"),
    ("J5", ["--network", "container:"], "container:"),
    ("J5", ["--network", "host", "--sysctl", "net.core.somaxconn=1"], "net.core.somaxconn"),
    ("J5", ["--hostname", "a" * 65], "64"),
    ("J5", ["--hostname", "a\nb"], "\\n"),
    ("J6", ["-v", "rel/path:/x"], "rel/path"),
    ("J6", ["-v", ":"], ":"),
    ("J6", ["-v", "/a:/b:c:d"], "/a:/b:c:d"),
    ("J6", ["-v", "/tmp:/x:ro,rw"], "rw"),
    ("J6", ["-v", "/tmp:rel"], "rel"),
    ("J6", ["-v", "/tmp:/"], "/"),
    ("J6", ["-v", "/tmp:/x", "-v", "/etc:/x"], "/x"),
    ("J6", ["-v", "/tmp:/x/../.."], ".."),
    ("J6", ["--mount", "type=bind,src=/nonexistent,dst=/x"], "/nonexistent"),
    ("J6", ["--mount", "type=volume,src=v,dst=/x,volume-subpath=a"], "volume-subpath"),
    ("A5", ["--privileged", "--security-opt", "seccomp=/etc/passwd"], "seccomp"),
    ("A5", ["--cap-add", "NET_RAW", "--cap-drop", "NET_RAW"], "NET_RAW"),
    ("A5", ["--cap-add", "NET_ROW"], "NET_RAW"),
    ("A5", ["--security-opt", "apparmor=docker-default"], "AppArmor"),
    ("A5", ["--security-opt", "seccomp="], "seccomp"),
    ("A5", ["--security-opt", "seccomp=/dev/null"], "/dev/null"),
    ("A5", ["--security-opt", "label=level:s0"], "SELinux"),
    ("A5", ["--security-opt", "no-new-privileges=maybe"], "maybe"),
    ("A5", ["--pid", "container:nosuch"], "nosuch"),
    ("A5", ["--pid", "banana"], "banana"),
    ("A5", ["--uts", "host", "--hostname", "x"], "--hostname"),
]  # fmt: skip


def check(scow: Scow, options: list[str], named: str) -> None:
    begin = time.monotonic()
    done = scow("run", "--rm", "--name", "bad", *options, "box", "true")
    assert done.code == 125, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert lines[0].startswith("scow: "), done.err
    assert len(lines) <= 2, done.err
    assert all(len(line) < 700 for line in lines), "a value is not cut"
    assert all(line.isprintable() for line in lines), done.err
    assert named in done.err, done.err
    assert time.monotonic() - begin < 60
    left = Path(scow.env["SCOW_ROOT"], "containers")
    assert not left.exists() or not [name for name in os.listdir(left) if len(name) == 64]


def rows(table: list[tuple[str, list[str], str]]) -> list[str]:
    """The rows that a table has, once each."""
    return list(dict.fromkeys(row for row, _, _ in table))


@pytest.mark.parametrize("row", rows(RESOURCES))
def test_resources(scow: Scow, row: str) -> None:
    for found, options, named in RESOURCES:
        if found == row:
            check(scow, options, named)


@pytest.mark.parametrize("row", rows(NETWORK))
def test_network_storage_and_security(scow: Scow, row: str) -> None:
    for found, options, named in NETWORK:
        if found == row:
            check(scow, options, named)


def test_nothing_at_all_is_left(scow: Scow) -> None:
    assert scow.ok("ps", "-aq") == ""
    done = scow("system", "check")
    assert done.code == 0, done.out


def test_a_foreign_port_and_a_port_of_ours_are_named(scow: Scow) -> None:
    for kind, word in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            port = taken.getsockname()[1]
            check(scow, ["-p", f"{port}:80/{word}"], str(port))
            check(scow, ["-p", f"127.0.0.1:{port}:80/{word}"], str(port))
    # A range is taken whole or not at all.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check(scow, ["-p", f"{port - 2}-{port}:80-82"], str(port))
    scow.ok(
        "run", "-d", "--name", "holder", "-p", f"{port - 2}-{port}:80-82", "box", "sleep", "1000"
    )
    done = scow("run", "--rm", "-p", f"{port - 1}:80", "box", "true")
    assert done.code == 125
    assert "holder" in done.err or scow.inspect("holder")["Id"][:12] in done.err
    address = scow.inspect("holder")["NetworkSettings"]["IPAddress"]
    done = scow("run", "--rm", "--ip", address, "box", "true")
    assert done.code == 125
    assert address in done.err


EDGES = [
    ["-m", "0"], ["-m", "6m"], ["-m", "1.5g"], ["--pids-limit", "0"], ["--pids-limit=-1"], ["--cpu-shares", "0"],
    ["--shm-size", "0"], ["--memory-swap=-1", "-m", "64m"], ["-m", "64m", "--memory-swap", "64m"],
    ["--cpus", str(CPUS)], ["--cpuset-cpus", "0"], ["--ulimit", "core=-1"], ["--oom-score-adj", "1000"],
    ["--device", "/dev/zero:/dev/nought:r"], ["--cgroup-parent", "/scow-test-parent/x"], ["--cpu-quota=-1"],
    ["--security-opt", "apparmor=unconfined"], ["--cgroupns", "host"], ["--hostname", "a" * 63],
    ["--dns", "9.9.9.9"], ["--mac-address", "02:42:0a:00:00:09"],
]  # fmt: skip


def test_the_edges_of_what_is_right(scow: Scow) -> None:
    for options in EDGES:
        network = () if "--mac-address" in options else ("--network", "none")
        assert scow.ok("run", "--rm", *network, *options, "box", "echo", "ran") == "ran"
