"""A state directory on a small file system that is full: clear errors, and nothing gets stuck."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.disk import Disk
from fixtures.hostile import until
from fixtures.state import State, expect_refusal

pytestmark = pytest.mark.root

NAME = "full"
PRINTER = (
    "busybox",
    "sh",
    "-c",
    "trap 'exit 3' TERM; i=0; while :; do i=$((i+1)); echo line $i; done",
)
SLEEPER = ("busybox", "sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")


@pytest.fixture
def disk(tmp_path: Path, busybox_root: Path, own_network: None) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    try:
        yield disk
    finally:
        disk.close()


@pytest.fixture
def state(disk: Disk, tmp_path: Path, busybox_root: Path) -> Iterator[State]:
    """State on the disk, busybox in it."""
    subprocess.run(["cp", "-a", busybox_root / "root", disk.path / "root"], check=True)
    state = State(str(disk.path / "root"), str(tmp_path / "run"))
    state.log = str(tmp_path / "victim.log")
    yield state
    disk.free()
    state.scow.remove_all()
    state.ok("system", "check", "--repair")
    state.expect_clean()


FILLS = ["bytes", "inodes"]


def written(pid: str) -> int:
    """How many bytes a process has written."""
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("wchar")).split()[1])


def holds_socket(pid: int) -> bool:
    links = (f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd"))
    return any(os.readlink(link).startswith("socket:") for link in links if os.path.lexists(link))


def fill(disk: Disk, kind: str) -> None:
    if kind == "bytes":
        disk.fill()
    else:
        disk.fill_inodes()


@pytest.mark.parametrize("kind", FILLS)
def test_create_and_run_say_so_and_leave_nothing(disk: Disk, state: State, kind: str) -> None:
    fill(disk, kind)
    expect_refusal(state, "create", "--name", NAME, "--network", "none", *SLEEPER)
    expect_refusal(state, "run", "-d", "--name", NAME, "-p", "80", *SLEEPER)
    expect_refusal(state, "run", "--rm", "--name", NAME, "--network", "none", *SLEEPER)
    assert state.ok("ps", "-aq") == ""
    state.expect_clean()
    disk.free()
    state.ok("run", "-d", "--name", NAME, "-p", "80", *SLEEPER)
    state.ok("rm", "-f", NAME)


@pytest.mark.parametrize("kind", FILLS)
def test_start_says_so_and_can_be_repeated(disk: Disk, state: State, kind: str) -> None:
    state.ok("create", "--name", NAME, "-p", "80", *SLEEPER)
    fill(disk, kind)
    expect_refusal(state, "start", NAME)
    assert "Created" in state.ok("ps", "-a")
    assert os.listdir(f"{state.run}/containers") == []
    disk.free()
    state.ok("start", NAME)
    state.ok("rm", "-f", NAME)


@pytest.mark.parametrize("kind", FILLS)
def test_what_runs_can_be_seen_stopped_and_removed(disk: Disk, state: State, kind: str) -> None:
    state.ok("run", "-d", "--name", NAME, "-p", "80", *SLEEPER)
    state.ok("run", "-d", "--name", "other", "--network", "none", *SLEEPER)
    until(lambda: state.ok("logs", NAME) == "ready\n")
    fill(disk, kind)
    assert "Up" in state.ok("ps")
    assert state.ok("logs", NAME) == "ready\n"
    assert state.ok("exec", NAME, "echo", "here") == "here\n"
    state.ok("inspect", NAME)
    state.ok("stop", "-t", "60", NAME)
    assert "Exited (3)" in state.ok("ps", "-a")
    state.ok("rm", NAME)
    state.ok("rm", "-f", "other")
    state.expect_clean()


def test_a_full_log_does_not_hold_the_program(disk: Disk, state: State) -> None:
    state.ok("run", "-d", "--name", NAME, "--network", "none", *PRINTER)
    until(lambda: "line 1\n" in state.ok("logs", NAME))
    disk.fill()
    # More than a pipe holds and the last block takes: the monitor has been refused, and reads on.
    pid = state.ok("inspect", "-f", "{{.State.Pid}}", NAME).strip()
    before = written(pid)
    until(lambda: written(pid) > before + 200_000)
    assert "Up" in state.ok("ps")
    assert "line 1\n" in state.ok("logs", NAME)
    state.ok("stop", "-t", "60", NAME)
    assert "Exited (3)" in state.ok("ps", "-a")
    error = state.ok("inspect", "-f", "{{.State.Error}}", NAME)
    assert "bytes of its log were lost" in error
    assert "No space left" in error
    disk.free()
    state.ok("start", NAME)


@pytest.mark.parametrize("kind", FILLS)
def test_a_run_that_ends_while_the_disk_is_full(disk: Disk, state: State, kind: str) -> None:
    state.ok(
        "run", "-d", "--rm", "--name", NAME, "-p", "80", "busybox",
        "sh", "-c", "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done",
    )  # fmt: skip
    until(lambda: state.ok("logs", NAME) == "ready\n")
    fill(disk, kind)
    with state.scow.spawn("wait", NAME) as waiting:
        until(lambda: holds_socket(waiting.pid))  # the monitor's: it is told of the end
        state.ok("kill", "-s", "TERM", NAME)
        out, errors = waiting.communicate(timeout=60)
    assert out == b"4\n", errors
    state.expect_clean()


@pytest.mark.parametrize("kind", FILLS)
def test_load_says_so_and_can_be_repeated(
    disk: Disk, state: State, tmp_path: Path, kind: str
) -> None:
    archive = str(tmp_path / "busybox.tar")
    state.ok("save", "-o", archive, "busybox")
    state.ok("rmi", "-f", *{line.split()[2] for line in state.ok("images").splitlines()[1:]})
    if kind == "bytes":
        disk.fill()
        # A little, so that it fails in the middle of a layer.
        with open(disk.path / "ballast", "r+b") as file:
            file.truncate(os.path.getsize(file.name) - (300 << 10))
    else:
        disk.fill_inodes()
        for number in range(6):
            (disk.path / "ballast.d" / str(number)).unlink()
    expect_refusal(state, "load", "-i", archive)
    assert len(state.ok("images").splitlines()) == 1
    disk.free()
    state.ok("load", "-i", archive)
    state.ok("run", "--rm", "--network", "none", "busybox", "true")
    os.unlink(archive)
