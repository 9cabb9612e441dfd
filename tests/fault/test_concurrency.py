"""Many clients at once: on the same few containers, on one name, on the bridge, on an image."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fixtures.state import OUTRUN, State

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

NAMES = ("c0", "c1", "c2", "c3")
HANG_S = 30.0
SLEEPER = ("busybox", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
VERBS: tuple[tuple[str, ...], ...] = (
    ("create", "--network", "none", "--name", "NAME", *SLEEPER),
    ("run", "-d", "--network", "none", "--name", "NAME", *SLEEPER),
    ("start", "NAME"),
    ("start", "NAME"),
    ("exec", "NAME", "true"),
    ("kill", "NAME"),
    ("pause", "NAME"),
    ("unpause", "NAME"),
    ("stop", "-t", "1", "NAME"),
    ("rm", "NAME"),
    ("rm", "-f", "NAME"),
    ("inspect", "NAME"),
    ("logs", "NAME"),
    ("ps", "-a"),
    ("stats", "--no-stream", "NAME"),
)
STATES = {"created", "running", "paused", "exited"}


def client(state: State, seed: int, until: float) -> list[str]:
    """Random commands in one process of its own after the other; what went wrong."""
    dice = random.Random(seed)
    wrong: list[str] = []
    while time.monotonic() < until:
        name = dice.choice(NAMES)
        verb = dice.choice(VERBS)
        words = [name if word == "NAME" else word for word in verb]
        began = time.monotonic()
        try:
            done = state.scow(*words, timeout_s=3 * HANG_S)
        except subprocess.TimeoutExpired:
            wrong.append(f"{words}: hangs")
            continue
        took = time.monotonic() - began
        if took > HANG_S:
            wrong.append(f"{words}: took {took:.1f} s")
        if "Traceback" in done.err or "internal error" in done.err:
            wrong.append(f"{words}: {done.err}")
        elif (
            done.code != 0
            and not OUTRUN.search(done.err)
            and not (verb[0] == "exec" and done.code == 137)
        ):
            wrong.append(f"{words}: exit {done.code}: {done.out} {done.err}")
        if verb[0] == "inspect" and done.code == 0:
            found = json.loads(done.out)[0]["State"]["Status"]
            if found not in STATES:
                wrong.append(f"{words}: state {found}")
    return wrong


def hammer(state: State, clients: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(clients) as pool:
        jobs = [
            pool.submit(client, state, random.randrange(1 << 30), until) for _ in range(clients)
        ]
        wrong = [line for job in jobs for line in job.result()]
    counted = collections.Counter(wrong)
    assert not wrong, "\n".join(f"{count} x {line}" for line, count in counted.most_common(30))
    state.scow("rm", "-f", *NAMES)
    assert state.ok("ps", "-aq") == ""
    assert state.ok("system", "check") == "nothing damaged, nothing left behind\n"
    state.expect_clean()


def test_clients_on_the_same_containers(state: State) -> None:
    hammer(state, 4, 8)


@pytest.mark.slow
def test_clients_on_the_same_containers_for_long(state: State) -> None:
    hammer(state, 8, 60)


@pytest.mark.slow
def test_clients_while_others_are_killed(state: State) -> None:
    """The same, and a kill -9 of some command each second: mended by the next ones."""
    until = time.monotonic() + 30
    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(client, state, random.randrange(1 << 30), until) for _ in range(4)]
        dice = random.Random()
        while time.monotonic() < until:
            name = dice.choice(NAMES)
            words = [name if word == "NAME" else word for word in dice.choice(VERBS)]
            process = state.scow.spawn(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(dice.uniform(0.05, 0.4))
            process.kill()
            process.wait()
        wrong = [line for job in jobs for line in job.result()]
    counted = collections.Counter(wrong)
    assert not wrong, "\n".join(f"{count} x {line}" for line, count in counted.most_common(30))
    state.scow("rm", "-f", *NAMES)
    state.ok("system", "check", "--repair")
    state.expect_clean()


def test_one_of_many_gets_the_name(state: State) -> None:
    racers = [
        state.scow.spawn("create", "--name", "same", "--network", "none", "busybox", "true")
        for _ in range(12)
    ]
    ended = [(racer.communicate(timeout=60), racer.returncode) for racer in racers]
    assert sorted(code for _, code in ended) == [0] + [125] * 11
    (winner,) = (out.decode().strip() for (out, _), code in ended if code == 0)
    for (_, errors), code in ended:
        assert code == 0 or f"container {winner[:12]} has it".encode() in errors
    state.ok("rm", "same")
    state.expect_clean()


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_run_rm_in_parallel_on_the_bridge(state: State, count: int) -> None:
    """Each has an address of its own and reaches the gateway."""
    script = "ip -4 addr show eth0 | grep -o 'inet [0-9.]*'; ip route | grep -q default"
    running = [state.scow.spawn("run", "--rm", "busybox", "sh", "-c", script) for _ in range(count)]
    addresses: set[bytes] = set()
    for process in running:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        addresses.add(out)
    assert len(addresses) == count
    state.expect_clean()


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_many_containers(state: State, count: int) -> None:
    began = time.monotonic()
    for number in range(count):
        state.ok("run", "-d", "--name", f"n{number}", "busybox", "sleep", "1000")
    started = time.monotonic()
    listed = state.scow.ok("ps")
    shown = time.monotonic()
    assert len(listed.splitlines()) == count + 1
    names = [f"n{number}" for number in range(count)]
    halves = [state.scow.spawn("stop", "-t", "0", *names[side::2]) for side in (0, 1)]
    for half in halves:
        assert half.communicate(timeout=120)[1] == b""
    stopped = time.monotonic()
    assert len(state.ok("ps").splitlines()) == 1
    state.ok("rm", *names)
    removed = time.monotonic()
    state.expect_clean()
    print(
        f"{count} containers: run {started - began:.1f} s, ps {shown - started:.2f} s,"
        f" stop {stopped - shown:.1f} s, rm {removed - stopped:.1f} s"
    )


@pytest.mark.parametrize("count", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_oom_is_told_from_a_kill(state: State, count: int) -> None:
    eat = "i=0; x=0123456789abcdef; while :; do x=$x$x; done"
    for number in range(count):
        state.ok(
            "create",
            "--name",
            f"oom{number}",
            "--network",
            "none",
            "-m",
            "8m",
            "busybox",
            "sh",
            "-c",
            eat,
        )
        state.ok(
            "run",
            "-d",
            "--name",
            f"kill{number}",
            "--network",
            "none",
            "-m",
            "8m",
            "busybox",
            "sleep",
            "1000",
        )
    for number in range(count):
        state.ok("start", f"oom{number}")
        pid = int(state.ok("inspect", "-f", "{{.State.Pid}}", f"kill{number}"))
        os.kill(pid, signal.SIGKILL)
    for number in range(count):
        assert state.ok("wait", f"oom{number}", f"kill{number}") == "137\n137\n"
    form = "{{.Name}} {{.State.OOMKilled}} {{.State.ExitCode}}"
    for kind, flag in (("oom", "true"), ("kill", "false")):
        lines = state.ok("inspect", "-f", form, *(f"{kind}{n}" for n in range(count))).splitlines()
        assert [line.split()[1:] for line in lines] == [[flag, "137"]] * count
    state.ok("rm", *(f"{kind}{n}" for n in range(count) for kind in ("oom", "kill")))
    state.expect_clean()
