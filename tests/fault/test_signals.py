"""Ctrl-C and SIGTERM before each step, streams that are closed or full: undone, told, no traceback."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable

import pytest

from fixtures.state import State

pytestmark = pytest.mark.root

NAME = "stopped"
SLEEPER = ("busybox", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
BRIDGED = ("--name", NAME, "-p", "80", "-v", "/data")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
NUMBERS = list(STATUS)


def interrupted(state: State, words: tuple[str, ...], step: int, number: signal.Signals) -> bool:
    """Whether the signal came while the command was at work; then nothing is left."""
    done = state.forked(*words, kill_at=step, number=number)
    assert "Traceback" not in done.output, f"step {step}: {done.output}"
    if done.status == 0:
        state.ok("rm", "-f", "-v", NAME)
        return False
    assert done.status == STATUS[number], f"step {step}: {done}"
    if done.output.strip() or (state.ok("ps", "-q") and words[0] == "run"):
        # It came when all was done, and before the id was out.
        assert "Up" in state.ok("ps", "-a") or words[0] == "create", f"step {step}: {done}"
        state.ok("rm", "-f", "-v", NAME)
        state.expect_clean()
        return False
    try:
        state.expect_clean()
    except AssertionError as error:
        raise AssertionError(f"step {step}: {error}") from None
    return True


CREATORS = [("run", "-d", *BRIDGED, *SLEEPER), ("create", *BRIDGED, *SLEEPER)]


@pytest.mark.parametrize("number", NUMBERS, ids=str)
@pytest.mark.parametrize("words", CREATORS, ids=lambda words: words[0])
def test_interrupted_at_some_steps(
    state: State, words: tuple[str, ...], number: signal.Signals
) -> None:
    most = 280 if words[0] == "run" else 50
    for step in random.sample(range(1, most), 12):
        interrupted(state, words, step, number)
    state.ok(*words)
    state.ok("rm", "-f", "-v", NAME)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", NUMBERS, ids=str)
@pytest.mark.parametrize("words", CREATORS, ids=lambda words: words[0])
def test_interrupted_at_every_step(
    state: State, words: tuple[str, ...], number: signal.Signals
) -> None:
    step = 1
    while interrupted(state, words, step, number):
        step += 1
    assert step > 20
    print(f"{words[0]}: {step - 1} steps")


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(random.sample(range(1, 330), 12), id="some"),
        pytest.param(range(1, 330), id="all", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_a_start_that_is_interrupted_can_be_repeated(
    state: State, number: signal.Signals, steps: Iterable[int]
) -> None:
    state.ok("create", *BRIDGED, *SLEEPER)
    for step in steps:
        done = state.forked("start", NAME, kill_at=step, number=number)
        assert done.status in (0, STATUS[number]), f"step {step}: {done}"
        assert "Traceback" not in done.output
        if "Up" in state.ok("ps", "-a"):
            state.ok("stop", "-t", "1", NAME)
        else:
            assert os.listdir(f"{state.run}/containers") == [], f"step {step}"
            leases = f"{state.run}/net/leases"
            assert not os.path.isdir(leases) or os.listdir(leases) == [], f"step {step}"
    state.ok("start", NAME)
    state.ok("rm", "-f", "-v", NAME)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_streams_that_are_closed(state: State, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    for words, status in (
        (
            (
                "run",
                "--rm",
                "--network",
                "none",
                "busybox",
                "sh",
                "-c",
                "echo out; echo err >&2; exit 6",
            ),
            6,
        ),
        (("run", "-d", "--name", NAME, "--network", "none", *SLEEPER), 0),
        (("exec", NAME, "true"), 0),
        (("ps", "-a"), 0),
        (("rm", "-f", NAME), 0),
    ):
        process = state.scow.spawn(*words, preexec_fn=close)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        assert errors in (b"", b"err\n")
    state.expect_clean()


def test_an_output_that_nobody_reads(state: State) -> None:
    state.ok(
        "run",
        "-d",
        "--name",
        NAME,
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "seq 100000; exec sleep 1000",
    )
    for words in (("ps", "-a"), ("logs", NAME), ("inspect", NAME), ("exec", NAME, "seq", "100000")):
        reader, writer = os.pipe()
        os.close(reader)
        process = state.scow.spawn(*words, stdout=writer)
        os.close(writer)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 141, (words, errors)
        assert errors == b""
    with open("/dev/full", "wb") as full:
        process = state.scow.spawn("ps", "-a", stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 125
    assert b"no space left on device" in errors.lower()
    assert b"Traceback" not in errors
    assert "Up" in state.ok("ps")
    state.ok("rm", "-f", NAME)


def test_run_rm_whose_reader_goes_away_is_cleaned_up_after_its_end(state: State) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.005; done"
    process = state.scow.spawn("run", "--rm", "busybox", "sh", "-c", script)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    state.expect_clean()


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_a_signal_to_run_reaches_the_program(state: State, number: signal.Signals) -> None:
    script = "trap 'exit 7' TERM INT; echo ready; while :; do sleep 0.05; done"
    process = state.scow.spawn("run", "--rm", "--network", "none", "busybox", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.wait(60) == 7
    process.communicate()
    state.expect_clean()


def test_stop_that_is_interrupted(state: State) -> None:
    state.ok(
        "run",
        "-d",
        "--name",
        NAME,
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done",
    )
    wait_for_log(state, "ready")
    process = state.scow.spawn("stop", "-t", "100", NAME)
    wait_for_log(state, "asked")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    assert "Up" in state.ok("ps")
    state.ok("rm", "-f", NAME)
    state.expect_clean()


def wait_for_log(state: State, word: str) -> None:
    deadline = time.monotonic() + 60
    while word not in state.ok("logs", NAME):
        assert time.monotonic() < deadline
