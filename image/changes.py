"""--change: single lines of a Dockerfile that change an image's configuration.

What belongs here: the instructions that `commit` and `import` take, into the config's JSON. What must
not: building. What is not named by a line stays as it is, fields that scow does not know included.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence

from scow.image.digest import quote
from scow.native.errors import InvalidArgument

Json = dict[str, object]
KNOWN = "CMD ENTRYPOINT ENV EXPOSE LABEL ONBUILD STOPSIGNAL USER VOLUME WORKDIR".split()  # noqa: SIM905
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def apply_changes(config: Json, lines: Sequence[str]) -> None:
    """Apply instructions in order; raises InvalidArgument that quotes the line."""
    had_command = False
    for line in (part.strip() for text in lines for part in text.split("\n")):
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        name, rest = word.upper(), rest.strip()
        if name not in KNOWN:
            raise InvalidArgument(
                f"invalid --change {quote(line)}: unknown instruction {quote(word)}",
                hint=f"known are {' '.join(KNOWN)}",
            )
        if not rest:
            raise InvalidArgument(f"invalid --change {quote(line)}: {name} needs a value")
        try:
            _INSTRUCTIONS[name](config, rest)
        except ValueError as error:
            raise InvalidArgument(f"invalid --change {quote(line)}: {error}") from error
        had_command |= name == "CMD"
        if name == "ENTRYPOINT" and not had_command:
            config.pop("Cmd", None)  # as in a Dockerfile: it was meant for another program


def _cmd(config: Json, text: str) -> None:
    config["Cmd"] = _argv(config, text)


def _entrypoint(config: Json, text: str) -> None:
    config["Entrypoint"] = _argv(config, text)


def _env(config: Json, text: str) -> None:
    variables = _variables(config)
    variables |= _pairs(text, variables)
    config["Env"] = [f"{key}={value}" for key, value in variables.items()]


def _label(config: Json, text: str) -> None:
    labels = _dict(config, "Labels")
    config["Labels"] = {**labels, **_pairs(text, _variables(config))}


def _expose(config: Json, text: str) -> None:
    ports = _split(text, _variables(config))
    known = {port if "/" in port else f"{port}/tcp": _empty() for port in ports}
    config["ExposedPorts"] = {**_dict(config, "ExposedPorts"), **known}


def _onbuild(config: Json, text: str) -> None:
    first = text.split(maxsplit=1)[0].upper()
    if first in ("ONBUILD", "FROM", "MAINTAINER"):
        raise ValueError(f"{first} is not allowed as a trigger")
    config["OnBuild"] = [*_list(config, "OnBuild"), text]


def _stopsignal(config: Json, text: str) -> None:
    config["StopSignal"] = _one(config, text)


def _user(config: Json, text: str) -> None:
    config["User"] = _one(config, text)


def _volume(config: Json, text: str) -> None:
    paths = _exec_form(text) or _split(text, _variables(config))
    config["Volumes"] = {**_dict(config, "Volumes"), **{path: _empty() for path in paths}}


def _workdir(config: Json, text: str) -> None:
    base = config.get("WorkingDir")
    joined = posixpath.join(base if isinstance(base, str) and base else "/", _one(config, text))
    config["WorkingDir"] = posixpath.normpath(joined)


_INSTRUCTIONS: dict[str, Callable[[Json, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def _empty() -> Json:
    return {}


def _dict(config: Json, key: str) -> Json:
    value = config.get(key)
    return dict(value) if isinstance(value, dict) else {}


def _list(config: Json, key: str) -> list[object]:
    value = config.get(key)
    return list(value) if isinstance(value, list) else []


def _variables(config: Json) -> dict[str, str]:
    parts = (str(entry).partition("=") for entry in _list(config, "Env"))
    return {key: value for key, _, value in parts}


def _one(config: Json, text: str) -> str:
    words = _split(text, _variables(config))
    if len(words) != 1:
        raise ValueError("exactly one value is needed")
    return words[0]


def _argv(config: Json, text: str) -> list[str]:
    """`["a", "b"]` as it is; anything else is a line for the shell."""
    exact = _exec_form(text)
    if exact is not None:
        return exact
    shell = [str(word) for word in _list(config, "Shell")] or ["/bin/sh", "-c"]
    return [*shell, text]


def _exec_form(text: str) -> list[str] | None:
    import msgspec

    try:
        return msgspec.json.decode(text, type=list[str])
    except ValueError:
        return None


def _pairs(text: str, variables: dict[str, str]) -> dict[str, str]:
    """`KEY=VALUE ...`, or the old `KEY VALUE` with all of the rest as its value."""
    first, _, rest = text.partition(" ")
    if "=" not in first:
        if not rest.strip():
            raise ValueError("KEY=VALUE is needed")
        return {first: " ".join(_split(rest, variables))}
    found: dict[str, str] = {}
    for word in _split(text, variables):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{quote(word)} is not of the form KEY=VALUE")
        found[key] = value
    return found


def _split(text: str, variables: dict[str, str]) -> list[str]:
    """Words with quotes, backslashes and variables, as a Dockerfile has them."""
    words: list[str] = []
    word: str | None = None
    quoted, at = "", 0
    while at < len(text):
        c = text[at]
        variable = _VARIABLE.match(text, at) if c == "$" and quoted != "'" else None
        if variable is not None:
            word = (word or "") + variables.get(variable[1] or variable[2], "")
            at = variable.end()
            continue
        if c == "\\" and quoted != "'" and at + 1 < len(text):
            at += 1
            word = (word or "") + text[at]
        elif c == quoted:
            quoted = ""
        elif not quoted and c in "'\"":
            quoted, word = c, word or ""
        elif not quoted and c.isspace():
            if word is not None:
                words.append(word)
            word = None
        else:
            word = (word or "") + c
        at += 1
    if quoted:
        raise ValueError("a quote is not closed")
    return [*words, word] if word is not None else words
