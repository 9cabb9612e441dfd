"""kill -9 of a command before each of its steps: the next commands mend it, and the verb works again."""

from __future__ import annotations

import random
import subprocess
import time

import pytest

from fixtures.state import State

pytestmark = pytest.mark.root

PORT = "80"
NAME = "victim"
SLEEPER = ("busybox", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
BRIDGED = ("--name", NAME, "--network", "bridge", "-p", PORT, "-v", "/data")
# A verb, what comes before it, and the status with which it ends when nobody kills it.
VERBS: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...], int]] = {
    "run -d": ((), ("run", "-d", *BRIDGED, *SLEEPER), 0),
    "run --rm": ((), ("run", "--rm", *BRIDGED, "busybox", "sh", "-c", "exit 5"), 5),
    "create": ((), ("create", *BRIDGED, *SLEEPER), 0),
    "start": ((("create", *BRIDGED, *SLEEPER),), ("start", NAME), 0),
    "stop": ((("run", "-d", *BRIDGED, *SLEEPER),), ("stop", "-t", "5", NAME), 0),
    "rm -f": ((("run", "-d", *BRIDGED, *SLEEPER),), ("rm", "-f", "-v", NAME), 0),
    "rm": (
        (("run", "-d", *BRIDGED, *SLEEPER), ("stop", "-t", "0", NAME)),
        ("rm", "-v", NAME),
        0,
    ),
}
MOST_STEPS = 2000


def kill_at_step(state: State, verb: str, step: int) -> int:
    """Kill the verb before this step and see it mended; how many steps it has when it has fewer, else 0."""
    before, words, status = VERBS[verb]
    for command in before:
        state.ok(*command)
    done = state.forked(*words, kill_at=step)
    assert done.killed or done.status == status, f"step {step}: {done.status} {done.output}"
    # Whatever was left: both ways of looking at it work.
    listed = state.forked("ps", "-a")
    assert listed.status == 0, f"step {step}: {listed.output}"
    removed = state.forked("rm", "-f", "-v", NAME)
    assert removed.status == 0, f"step {step}: {removed.output}"
    repaired = state.forked("system", "check", "--repair")
    assert repaired.status == 0, f"step {step}: {repaired.output}"
    checked = state.forked("system", "check")
    assert checked.output == "nothing damaged, nothing left behind\n", f"step {step}"
    try:
        state.expect_clean()
    except AssertionError as error:
        raise AssertionError(f"step {step} of {verb}: {error}\n{repaired.output}") from None
    return done.steps


def works_again(state: State, verb: str) -> None:
    before, words, status = VERBS[verb]
    for command in before:
        state.ok(*command)
    done = state.forked(*words)
    assert done.status == status, done.output
    assert state.forked("rm", "-f", "-v", NAME).status == 0
    state.expect_clean()


@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_some_steps(state: State, verb: str) -> None:
    steps = kill_at_step(state, verb, MOST_STEPS)
    assert steps > 10
    for step in random.sample(range(1, steps + 1), 9):
        kill_at_step(state, verb, step)
    works_again(state, verb)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_every_step(state: State, verb: str) -> None:
    step = 1
    while not kill_at_step(state, verb, step):
        if step % 25 == 0:
            works_again(state, verb)
        step += 1
    assert step > 10
    works_again(state, verb)
    print(f"{verb}: killed before each of {step - 1} steps")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_any_time(state: State, verb: str) -> None:
    """The whole process, interpreter included, at random times."""
    before, words, _status = VERBS[verb]
    for _ in range(12):
        for command in before:
            state.ok(*command)
        process = state.scow.spawn(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.02, 0.3))
        process.kill()
        process.wait()
        state.ok("rm", "-f", "-v", NAME)
        state.ok("system", "check", "--repair")
        state.expect_clean()
    works_again(state, verb)
