"""The monitor killed by SIGKILL: its container dies with it, nothing calls it running, all is removed."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from fixtures.state import State

pytestmark = pytest.mark.root

NAME = "orphan"
LIMIT_S = 30.0


def status_of(state: State) -> dict[str, int]:
    (container,) = os.listdir(f"{state.run}/containers")
    with open(f"{state.run}/containers/{container}/status.json", encoding="utf-8") as file:
        return json.load(file)


def kill_monitor(state: State) -> int:
    """Kill it; the pid of the container's first process."""
    status = status_of(state)
    os.kill(status["monitor_pid"], signal.SIGKILL)
    return status["pid"]


def expect_dead(pid: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.002)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def remove(state: State) -> None:
    state.ok("rm", "-f", "-v", NAME)
    state.expect_clean()


@pytest.mark.parametrize(
    "options",
    [
        ("--network", "bridge", "-p", "80"),
        ("--network", "none", "--init"),
        ("--network", "none", "-u", "1000"),
        ("--network", "none", "--privileged"),
        ("--network", "none", "--security-opt", "no-new-privileges"),
        ("--network", "none", "--pid", "host"),
    ],
    ids=" ".join,
)
def test_the_container_dies_with_its_monitor(state: State, options: tuple[str, ...]) -> None:
    state.ok("run", "-d", "--name", NAME, *options, "busybox", "sh", "-c", "sleep 1000; true")
    expect_dead(kill_monitor(state))
    assert "Exited (137)" in state.ok("ps", "-a")
    assert NAME not in state.ok("ps")
    state.ok("start", NAME)
    assert NAME in state.ok("ps")
    expect_dead(kill_monitor(state))
    state.ok("system", "check", "--repair")
    assert "Exited (137)" in state.ok("ps", "-a")
    remove(state)


def test_what_outlives_the_first_process_is_killed_by_its_cgroup(state: State) -> None:
    script = "sleep 1000 & exec sleep 1001"
    state.ok(
        "run",
        "-d",
        "--name",
        NAME,
        "--network",
        "none",
        "--pid",
        "host",
        "busybox",
        "sh",
        "-c",
        script,
    )
    pid = kill_monitor(state)
    expect_dead(pid)
    remove(state)


def test_a_program_that_takes_the_death_signal_back(state: State) -> None:
    """Frozen, it cannot die either: the release thaws and kills."""
    state.ok("run", "-d", "--name", NAME, "--network", "none", "busybox", "sleep", "1000")
    state.ok("pause", NAME)
    pid = kill_monitor(state)
    assert "Exited (137)" in state.ok("ps", "-a")
    remove(state)
    expect_dead(pid)


def test_an_exec_dies_with_its_own_monitor_only(state: State) -> None:
    state.ok("run", "-d", "--name", NAME, "--network", "none", "busybox", "sleep", "1000")
    execution = state.scow.spawn("exec", NAME, "sleep", "1002")
    deadline = time.monotonic() + 60
    while not (own := children_of(execution.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    for pid in own:
        os.kill(pid, signal.SIGKILL)
    assert execution.wait(60) == 125
    execution.communicate()
    processes = state.ok("exec", NAME, "ps")
    assert "sleep 1002" not in processes
    assert "sleep 1000" in processes
    remove(state)


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def test_everybody_who_waits_is_told(state: State) -> None:
    tick = "while :; do echo tick; sleep 0.1; done"
    state.ok("run", "-d", "--name", NAME, "--network", "none", "busybox", "sh", "-c", tick)
    waiting = state.scow.spawn("wait", NAME)
    following = state.scow.spawn("logs", "-f", NAME)
    attached = state.scow.spawn("attach", NAME)
    for process in (following, attached):
        assert process.stdout is not None
        assert process.stdout.readline() == b"tick\n"
    kill_monitor(state)
    assert waiting.communicate(timeout=60)[0] == b"137\n"
    following.communicate(timeout=60)
    assert following.returncode == 0
    assert b"lost the connection" in attached.communicate(timeout=60)[1]
    assert attached.returncode == 125
    remove(state)


def test_run_rm_removes_it_all_the_same(state: State) -> None:
    process = state.scow.spawn(
        "run", "--rm", "--name", NAME, "--network", "none", "busybox", "sleep", "1000"
    )
    deadline = time.monotonic() + 60
    while not any(
        os.path.exists(f"{state.run}/containers/{name}/status.json")
        for name in os.listdir(f"{state.run}/containers")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    kill_monitor(state)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 125, errors
    assert b"lost the connection" in errors
    state.expect_clean()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_lost_monitors(state: State) -> None:
    """At random times from the start on."""
    worst = 0.0
    for number in range(100):
        state.ok("run", "-d", "--name", NAME, "--network", "none", "busybox", "sleep", "1000")
        pid = kill_monitor(state)
        began = time.monotonic()
        expect_dead(pid)
        worst = max(worst, time.monotonic() - began)
        assert "Exited (137)" in state.ok("ps", "-a"), number
        remove(state)
    print(f"the slowest of 100 died within {worst * 1000:.1f} ms")
