"""The life of a container as one table.

Rules for this file: states, operations and the table only. No I/O, no clock, no records: whoever
holds a container's lock asks `require` before it acts, and the table is tested for every pair.
The states are the OCI runtime's (spec "Lifecycle") plus `paused`, as runc, crun and Docker have it.
"""

from __future__ import annotations

from enum import Enum

from scow.native.errors import InvalidState


class State(Enum):
    """What a container is, as `ps` and `inspect` show it (Docker's words)."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"


class Operation(Enum):
    """What can be asked of a container."""

    START = "start"
    STOP = "stop"
    KILL = "kill"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    EXEC = "exec"
    ATTACH = "attach"
    REMOVE = "remove"


# What follows when the operation is done; a pair that is absent is refused.
# EXEC and ATTACH leave the state; KILL and STOP thaw what is paused, so that the signal arrives.
TRANSITIONS: dict[tuple[State, Operation], State] = {
    (State.CREATED, Operation.START): State.RUNNING,
    (State.CREATED, Operation.STOP): State.CREATED,
    (State.CREATED, Operation.REMOVE): State.EXITED,
    (State.RUNNING, Operation.STOP): State.EXITED,
    (State.RUNNING, Operation.KILL): State.RUNNING,
    (State.RUNNING, Operation.PAUSE): State.PAUSED,
    (State.RUNNING, Operation.EXEC): State.RUNNING,
    (State.RUNNING, Operation.ATTACH): State.RUNNING,
    (State.PAUSED, Operation.STOP): State.EXITED,
    (State.PAUSED, Operation.KILL): State.PAUSED,
    (State.PAUSED, Operation.UNPAUSE): State.RUNNING,
    (State.EXITED, Operation.START): State.RUNNING,
    (State.EXITED, Operation.STOP): State.EXITED,
    (State.EXITED, Operation.REMOVE): State.EXITED,
}

_HINTS: dict[tuple[State, Operation], str] = {
    (State.RUNNING, Operation.REMOVE): "stop it first, or use 'rm -f'",
    (State.PAUSED, Operation.REMOVE): "stop it first, or use 'rm -f'",
    (State.PAUSED, Operation.EXEC): "unpause it first",
    (State.PAUSED, Operation.ATTACH): "unpause it first",
    (State.CREATED, Operation.EXEC): "start it first",
    (State.EXITED, Operation.EXEC): "start it first",
}


def follow(state: State, operation: Operation) -> State | None:
    """Give the state after `operation`, or None where the table refuses it."""
    return TRANSITIONS.get((state, operation))


def require(name: str, state: State, operation: Operation) -> State:
    """Give the state after `operation` on container `name`, or raise InvalidState."""
    after = follow(state, operation)
    if after is None:
        raise InvalidState(
            f"cannot {operation.value} container '{name}': it is {state.value}",
            hint=_HINTS.get((state, operation)),
        )
    return after
