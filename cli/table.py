"""The words a command is declared with: one table per command is the single truth.

The parser reads the tables on every call, help and completion only when asked. Plain classes,
since dataclasses would cost a third of the start time of `scow ps`.
"""

from __future__ import annotations

from collections.abc import Callable

from scow.native.errors import InvalidArgument

FLAG, TEXT, MANY = "flag", "text", "many"


class UsageError(InvalidArgument):
    """The command line is not well formed; nothing was done."""


class Option:
    """One option: its spellings (the first long one names it), kind, help and default."""

    __slots__ = ("complete", "default", "help", "hidden", "kind", "metavar", "names", "section")

    def __init__(
        self,
        kind: str,
        names: tuple[str, ...],
        help: str,
        *,
        metavar: str = "",
        default: str | bool | None = None,
        section: str = "Options",
        complete: str = "",
        hidden: bool = False,
    ) -> None:
        self.kind = kind
        self.names = names
        self.help = help
        self.metavar = metavar
        self.default = default
        self.section = section
        self.complete = complete
        self.hidden = hidden

    @property
    def key(self) -> str:
        """The name in `Values`: the first long spelling without dashes."""
        return next(n for n in self.names if n.startswith("--"))[2:]


def flag(*names: str, help: str, default: bool = False, section: str = "Options") -> Option:
    """An option that is there or not; `--name=false` turns it off."""
    return Option(FLAG, names, help, default=default, section=section)


def text(
    *names: str,
    help: str,
    metavar: str,
    default: str | None = None,
    section: str = "Options",
    complete: str = "",
) -> Option:
    """An option with one value; the last one given wins."""
    return Option(
        TEXT, names, help, metavar=metavar, default=default, section=section, complete=complete
    )


def many(
    *names: str, help: str, metavar: str, section: str = "Options", complete: str = ""
) -> Option:
    """An option that may be repeated."""
    return Option(MANY, names, help, metavar=metavar, section=section, complete=complete)


class Argument:
    """A positional argument. `count` is "1", "?", "+" or "*"; `complete` names what to offer."""

    __slots__ = ("complete", "count", "help", "metavar")

    def __init__(self, metavar: str, help: str, *, count: str = "1", complete: str = "") -> None:
        self.metavar = metavar
        self.help = help
        self.count = count
        self.complete = complete


class Values:
    """What the parser found. A getter with the wrong kind or name is a programming error."""

    __slots__ = ("_found", "_options", "_words")

    def __init__(self, options: dict[str, Option]) -> None:
        self._options = options
        self._found: dict[str, str | bool | list[str]] = {}
        self._words: dict[str, list[str]] = {}

    def put(self, option: Option, value: str | bool) -> None:
        """Note one occurrence."""
        if option.kind == MANY:
            found = self._found.setdefault(option.key, [])
            assert isinstance(found, list)
            assert isinstance(value, str)
            found.append(value)
        else:
            self._found[option.key] = value

    def put_words(self, argument: Argument, words: list[str]) -> None:
        """Note the words of one argument."""
        self._words[argument.metavar] = words

    def given(self, key: str) -> bool:
        """Whether the option was on the command line."""
        return key in self._found

    def flag(self, key: str) -> bool:
        """A flag."""
        value = self._found.get(key, self._options[key].default)
        assert isinstance(value, bool)
        return value

    def text(self, key: str) -> str | None:
        """A value, its default, or None."""
        value = self._found.get(key, self._options[key].default)
        assert value is None or isinstance(value, str)
        return value

    def many(self, key: str) -> list[str]:
        """Every value, in order."""
        assert self._options[key].kind == MANY
        value = self._found.get(key, [])
        assert isinstance(value, list)
        return value

    def words(self, metavar: str) -> list[str]:
        """The words of an argument."""
        return self._words[metavar]

    def word(self, metavar: str) -> str:
        """The word of an argument with count "1"."""
        return self._words[metavar][0]


class Command:
    """One verb: how it is called, what it says about itself, what runs it.

    `examples` are (command line, what it does). `interspersed` False: options end at the first
    positional word, the rest belongs to the program in the container. `needs_root` says why; an
    empty text means that it does not.
    """

    __slots__ = (
        "arguments",
        "description",
        "examples",
        "hidden",
        "interspersed",
        "name",
        "needs_root",
        "options",
        "run",
        "summary",
        "uses_service",
    )

    def __init__(
        self,
        name: str,
        summary: str,
        run: Callable[[Values], int],
        *,
        description: str = "",
        arguments: tuple[Argument, ...] = (),
        options: tuple[Option, ...] = (),
        examples: tuple[tuple[str, str], ...] = (),
        interspersed: bool = True,
        needs_root: str = "it reads state that belongs to root",
        hidden: bool = False,
        uses_service: bool = False,
    ) -> None:
        self.name = name
        self.summary = summary
        self.uses_service = uses_service
        self.run = run
        self.description = description
        self.arguments = arguments
        self.options = options
        self.examples = examples
        self.interspersed = interspersed
        self.needs_root = needs_root
        self.hidden = hidden

    @property
    def usage(self) -> str:
        """`scow run [OPTIONS] IMAGE [COMMAND...]`."""
        parts = [f"scow {self.name}"]
        if self.options:
            parts.append("[OPTIONS]")
        shapes = {"1": "{}", "?": "[{}]", "+": "{}...", "*": "[{}...]"}
        parts += [shapes[argument.count].format(argument.metavar) for argument in self.arguments]
        return " ".join(parts)
