"""Fail points: named places just before a step that must last, where a test makes it fail.

What belongs here: reading SCOW_FAILPOINTS once and doing what it says. Unset, a point costs one look
at an empty dict. The text is `NAME=ACTION[@N]` with commas between: the Nth time only, else each time;
the name `*` means every point. Actions (after FreeBSD's fail(9)):

    kill            SIGKILL to ourselves: the step is not done
    error:ENOSPC    the step fails with this errno
    delay:0.5       the step is late by so many seconds
    log:/PATH       a line with the name of each point that is reached
"""

from __future__ import annotations

import os

_actions: dict[str, list[tuple[str, str, int]]] = {}  # name -> (action, argument, N or 0)
_hits: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Be the place `name`."""
    if _actions:
        _hit(name)


def arm(text: str) -> None:
    """Take these fail points instead of those before; none with an empty text."""
    _actions.clear()
    _hits.clear()
    for word in filter(None, text.split(",")):
        name, _, what = word.partition("=")
        what, _, count = what.partition("@")
        action, _, argument = what.partition(":")
        if action not in ("kill", "error", "delay", "log"):
            raise ValueError(f"SCOW_FAILPOINTS: unknown action in '{word}'")
        _actions.setdefault(name, []).append((action, argument, int(count or 0)))


def _hit(name: str) -> None:
    number = _hits[name] = _hits.get(name, 0) + 1
    for action, argument, wanted in [*_actions.get("*", ()), *_actions.get(name, ())]:
        if wanted in (0, number):
            _act(name, action, argument)


def _act(name: str, action: str, argument: str) -> None:
    import errno
    import signal
    import time

    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "delay":
        time.sleep(float(argument))
    elif action == "log":
        fd = os.open(argument, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, name.encode() + b"\n")
        finally:
            os.close(fd)
    else:
        number: int = getattr(errno, argument)
        raise OSError(number, os.strerror(number), f"failpoint {name}")


arm(os.environ.get("SCOW_FAILPOINTS", ""))
