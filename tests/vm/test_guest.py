"""A short tour of the command line on a systemd host with nothing but cgroup v2."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cgroup_v2, pytest.mark.root]

ARCHIVE = Path("/work/busybox.tar")
IMAGE = "busybox"
V2 = "/sys/fs/cgroup"


def scow(*argv: str, status: int = 0) -> str:
    """Run the command, check its exit code, return what it printed."""
    done = subprocess.run(["scow", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == status, f"scow {argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def busybox() -> Iterator[None]:
    scow("load", "-i", str(ARCHIVE))
    yield
    scow("rmi", IMAGE)


def test_a_stack_of_many_layers() -> None:
    """Debian's kernel takes one page of overlay options, in which 65 paths do not fit."""
    scow("load", "-i", "/work/many.tar")
    try:
        told = scow("run", "--rm", "--network", "none", "many", "cat", "/stack/top")
        assert told == "63\n"
    finally:
        scow("rmi", "many")


def test_hello_tells_the_limits() -> None:
    told = scow("run", "--rm", "-m", "64m", "--cpus", "0.5", "--pids-limit", "64", "scow/hello")
    assert "64 MiB" in told
    assert "0.5 of a processor" in told
    assert "first process of my own PID namespace" in told


def test_limits_are_files_of_v2() -> None:
    limits = ["-m", "32m", "--memory-swap", "48m", "--cpus", "0.25", "--pids-limit", "20"]
    files = ["memory.max", "memory.swap.max", "cpu.max", "pids.max"]
    told = scow(
        "run", "--rm", "--network", "none", *limits, IMAGE, "cat", *[f"{V2}/{n}" for n in files]
    )
    assert told.splitlines() == [str(32 << 20), str(16 << 20), "25000 100000", "20"]


def test_out_of_memory_is_told() -> None:
    program = "a=x; while :; do a=$a$a; done"
    limits = ["-m", "16m", "--memory-swap", "16m", "--name", "eater", "--network", "none"]
    scow("run", *limits, IMAGE, "sh", "-c", program, status=137)
    [state] = json.loads(scow("inspect", "eater"))
    scow("rm", "eater")
    assert state["State"]["OOMKilled"] is True


def test_devices_are_refused_by_the_program_of_the_cgroup() -> None:
    """/dev/kmsg is not on the list: making its node is allowed, opening it is not."""
    script = "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg"
    done = subprocess.run(
        ["scow", "run", "--rm", "--network", "none", IMAGE, "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr


def test_exec_pause_and_a_published_port() -> None:
    serve = "echo afloat > /tmp/index.html; exec httpd -f -p 80 -h /tmp"
    scow("run", "-d", "--name", "web", "-p", "127.0.0.1:8088:80", IMAGE, "sh", "-c", serve)
    try:
        assert scow("exec", "web", "hostname").strip() in scow("ps", "-q", "--no-trunc")
        scow("pause", "web")
        assert "Paused" in scow("ps")
        scow("unpause", "web")
        with urllib.request.urlopen("http://127.0.0.1:8088/", timeout=10) as answer:
            assert answer.read() == b"afloat\n"
    finally:
        scow("rm", "-f", "web")
