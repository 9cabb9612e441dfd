"""A command line against its table: Docker's grammar, exactly.

`-dit`, `-p80`, `-p=80`, `-p 80`, `--flag`, `--flag=false`, `--name=x`, `--name x`; `--` ends the
options. Wrong lines raise `UsageError` with the nearest right spelling.
"""

from __future__ import annotations

from scow.cli.table import FLAG, Argument, Command, Option, UsageError, Values


class HelpWanted(Exception):
    """The line asks for the help of the command."""


def parse(command: Command, words: list[str]) -> Values:
    """The values of a well-formed line."""
    by_name = {name: option for option in command.options for name in option.names}
    values = Values({option.key: option for option in command.options})
    positional: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            positional += words[position:]
            break
        if len(word) < 2 or word[0] != "-":
            positional.append(word)
            if not command.interspersed:
                positional += words[position:]
                break
        elif word.startswith("--"):
            position = _long(command, by_name, values, words, position)
        else:
            position = _cluster(command, by_name, values, words, position)
    _bind(command, values, positional)
    return values


def _long(
    command: Command, by_name: dict[str, Option], values: Values, words: list[str], position: int
) -> int:
    name, equals, value = words[position - 1].partition("=")
    option = by_name.get(name)
    if option is None:
        if name == "--help":
            raise HelpWanted
        raise unknown_option(command, name)
    if option.kind == FLAG:
        values.put(option, _boolean(command, name, value) if equals else True)
        return position
    if not equals:
        if position >= len(words):
            raise _needs_value(command, option, name)
        value = words[position]
        position += 1
    values.put(option, value)
    return position


def _cluster(
    command: Command, by_name: dict[str, Option], values: Values, words: list[str], position: int
) -> int:
    letters = words[position - 1][1:]
    while letters:
        name, letters = "-" + letters[0], letters[1:]
        option = by_name.get(name)
        if option is None:
            if name == "-h":
                raise HelpWanted
            raise unknown_option(command, name, words[position - 1])
        if option.kind == FLAG:
            if letters.startswith("="):
                values.put(option, _boolean(command, name, letters[1:]))
                return position
            values.put(option, True)
            continue
        if letters:
            values.put(option, letters.removeprefix("="))
            return position
        if position >= len(words):
            raise _needs_value(command, option, name)
        values.put(option, words[position])
        return position + 1
    return position


def _boolean(command: Command, name: str, value: str) -> bool:
    if value.lower() in ("true", "t", "1"):
        return True
    if value.lower() in ("false", "f", "0"):
        return False
    raise UsageError(f"{command.name}: invalid {name}={value}: true or false")


def _needs_value(command: Command, option: Option, name: str) -> UsageError:
    return UsageError(
        f"{command.name}: option {name} needs a value: {name} {option.metavar}",
        hint=f"'scow {command.name} --help' explains it",
    )


def unknown_option(command: Command, name: str, word: str = "") -> UsageError:
    """The error for an option that the command has not, with the nearest that it has."""
    import difflib

    known = [n for option in command.options if not option.hidden for n in option.names]
    known.append("--help")
    tried = word if word and not word.startswith("--") and len(word) > 2 else name
    close: list[str] = []
    if name.startswith("--"):
        close = difflib.get_close_matches(name, known, 1, cutoff=0.6)
    elif tried != name:  # `-name` for `--name`
        close = difflib.get_close_matches("-" + tried, known, 1, cutoff=0.8)
    where = f" in '{printable(word)}'" if tried != name else ""
    suggestion = f"did you mean '{close[0]}'? " if close else ""
    return UsageError(
        f"{command.name}: unknown option '{printable(name)}'{where}",
        hint=f"{suggestion}'scow {command.name} --help' lists the options",
    )


def printable(text: str) -> str:
    """A word of the command line on one line of a terminal, whatever it holds."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:256])


def _bind(command: Command, values: Values, words: list[str]) -> None:
    rest = list(words)
    for argument in command.arguments:
        rest = _take(command, values, argument, rest)
    if rest:
        raise UsageError(
            f"{command.name}: too many arguments: '{printable(rest[0])}'",
            hint=f"usage: {command.usage}",
        )


def _take(command: Command, values: Values, argument: Argument, words: list[str]) -> list[str]:
    if argument.count in "1+" and not words:
        raise UsageError(
            f"{command.name}: needs {_article(argument.metavar)} {argument.metavar}",
            hint=f"usage: {command.usage}",
        )
    taken = len(words) if argument.count in "+*" else min(1, len(words))
    values.put_words(argument, words[:taken])
    return words[taken:]


def _article(word: str) -> str:
    return "an" if word[0] in "AEIOU" else "a"
