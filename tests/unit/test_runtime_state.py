"""The life of a container: the table, asked for every pair."""

from __future__ import annotations

import itertools

import pytest

from scow.native.errors import InvalidState
from scow.runtime.state import TRANSITIONS, Operation, State, follow, require

REFUSED = {
    (State.CREATED, Operation.KILL),
    (State.CREATED, Operation.PAUSE),
    (State.CREATED, Operation.UNPAUSE),
    (State.CREATED, Operation.EXEC),
    (State.CREATED, Operation.ATTACH),
    (State.RUNNING, Operation.START),
    (State.RUNNING, Operation.UNPAUSE),
    (State.RUNNING, Operation.REMOVE),
    (State.PAUSED, Operation.START),
    (State.PAUSED, Operation.PAUSE),
    (State.PAUSED, Operation.EXEC),
    (State.PAUSED, Operation.ATTACH),
    (State.PAUSED, Operation.REMOVE),
    (State.EXITED, Operation.KILL),
    (State.EXITED, Operation.PAUSE),
    (State.EXITED, Operation.UNPAUSE),
    (State.EXITED, Operation.EXEC),
    (State.EXITED, Operation.ATTACH),
}


@pytest.mark.parametrize(("state", "operation"), list(itertools.product(State, Operation)))
def test_every_pair_is_either_allowed_or_refused_by_name(
    state: State, operation: Operation
) -> None:
    if (state, operation) in REFUSED:
        assert follow(state, operation) is None
        with pytest.raises(InvalidState) as caught:
            require("web", state, operation)
        assert "'web'" in str(caught.value)
        assert state.value in str(caught.value)
    else:
        assert require("web", state, operation) is TRANSITIONS[state, operation]


def test_a_refused_remove_says_what_to_do() -> None:
    with pytest.raises(InvalidState) as caught:
        require("web", State.RUNNING, Operation.REMOVE)
    assert caught.value.hint is not None
    assert "rm -f" in caught.value.hint
