"""The options of a process, which exec and run share, and reading values by their parsers.

Apart from container_options.py because exec is short: it should not load what only run needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from scow.cri import parse
from scow.cri.options import ExecOptions

if TYPE_CHECKING:
    from scow.cli.table import Values

T = TypeVar("T")


def one(values: Values, key: str, parser: Callable[[str, str], T]) -> T | None:
    """The parsed value of an option that is given once, or None."""
    found = values.text(key)
    return None if found is None else parser("--" + key, found)


def every(values: Values, key: str, parser: Callable[[str, str], T]) -> tuple[T, ...]:
    """The parsed values of an option that may be given often."""
    return tuple([parser("--" + key, found) for found in values.many(key)])


def exec_options(values: Values, command: list[str]) -> ExecOptions:
    """The options of one exec."""
    terminal = values.flag("tty")
    return ExecOptions(
        command=tuple(parse.check_text("command", word, "argument") for word in command),
        environment=environment(values),
        working_dir=one(values, "workdir", parse.parse_working_dir),
        user=one(values, "user", parse.parse_user) if values.text("user") else None,
        terminal=terminal,
        terminal_size=size() if terminal else (24, 80),
        open_stdin=values.flag("interactive"),
        detach=values.flag("detach"),
        privileged=values.flag("privileged"),
    )


def environment(values: Values) -> tuple[str, ...]:
    """Variables of files first, so that -e wins over --env-file."""
    found: list[str] = []
    for path in values.many("env-file"):
        found += parse.read_env_file("--env-file", path)
    for text in values.many("env"):
        variable = parse.parse_env("--env", text)
        if variable is not None:
            found.append(variable)
    return tuple(found)


def size() -> tuple[int, int]:
    """Rows and columns of the caller's terminal."""

    from scow.cli.terminal import terminal_size

    return terminal_size()
