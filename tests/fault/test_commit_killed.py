"""kill -9 of a commit while it keeps the container frozen: whoever looks next thaws it."""

from __future__ import annotations

import os

import pytest

from fixtures.state import State

pytestmark = pytest.mark.root

NAME = "victim"
# Each with what the freezer is like afterwards.
LOOKS = {
    ("ps",): "going",
    ("unpause", NAME): "going",
    ("exec", NAME, "true"): "going",
    ("commit", NAME): "going",
    ("system", "check"): "going",
    ("pause", NAME): "frozen",
}


def kill_commit(state: State, point: str) -> None:
    assert state.forked("commit", NAME, points=f"{point}=kill").killed


def freezer(state: State) -> str:
    """What the kernel says, asked without scow's status."""
    from scow.cri.launch import container_cgroup
    from scow.cri.records import RecordStore

    store = RecordStore(state.root, state.run)
    (container_id,) = store.ids()
    note = os.path.exists(f"{store.run_dir(container_id)}/frozen-by")
    is_frozen = container_cgroup(store.read(container_id)).is_frozen()
    return f"{'frozen' if is_frozen else 'going'}{', noted' if note else ''}"


def test_the_next_look_thaws(state: State) -> None:
    state.ok("run", "-d", "--name", NAME, "--network", "none", "busybox", "sleep", "600")
    for words, then in LOOKS.items():
        kill_commit(state, "freeze.done")
        assert freezer(state) == "frozen, noted"
        done = state.forked(*words)
        told = f"container {NAME} was left frozen by a commit (mended)\n" in done.output
        assert (done.status, told) == ((1, True) if words[0] == "system" else (0, False)), done
        assert freezer(state) == then, words
    state.ok("unpause", NAME)
    kill_commit(state, "freeze.done")
    state.ok("stop", "-t", "0", NAME)
    state.ok("rm", NAME)


def test_a_user_s_pause_stays(state: State) -> None:
    """After a kill between thaw and the end of the note; and beside a commit that is going on."""
    state.ok("run", "-d", "--name", NAME, "--network", "none", "busybox", "sleep", "600")
    kill_commit(state, "freeze.over")
    assert freezer(state) == "going, noted"
    state.ok("pause", NAME)
    assert freezer(state) == "frozen"
    state.ok("ps")
    state.ok("commit", NAME)
    state.ok("system", "check")
    assert freezer(state) == "frozen"
    state.ok("unpause", NAME)
    assert freezer(state) == "going"
    state.ok("rm", "-f", NAME)
