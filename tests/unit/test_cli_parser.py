"""The grammar of command lines."""

from __future__ import annotations

import pytest

from scow.cli import registry
from scow.cli.parser import HelpWanted, parse
from scow.cli.table import UsageError, Values
from scow.native.errors import ScowError


def run_line(*words: str) -> Values:
    return parse(registry.load("run"), list(words))


def test_clusters_and_values() -> None:
    values = run_line(
        "-dit",
        "-p80:80",
        "-p=81:81",
        "-p",
        "82:82",
        "-e",
        "A=1",
        "--name=x",
        "--memory",
        "64m",
        "img",
        "-it",
        "--rm",
    )
    assert values.flag("detach")
    assert values.flag("interactive")
    assert values.flag("tty")
    assert not values.flag("rm")
    assert values.many("publish") == ["80:80", "81:81", "82:82"]
    assert values.many("env") == ["A=1"]
    assert values.text("name") == "x"
    assert values.text("memory") == "64m"
    assert values.word("IMAGE") == "img"
    assert values.words("COMMAND") == ["-it", "--rm"]


def test_options_end() -> None:
    assert run_line("--", "img", "a").word("IMAGE") == "img"
    assert run_line("img", "--", "a").words("COMMAND") == ["--", "a"]
    assert parse(registry.load("rm"), ["a", "-f", "b"]).words("CONTAINER") == ["a", "b"]
    assert parse(registry.load("rm"), ["a", "--", "-f"]).words("CONTAINER") == ["a", "-f"]


def test_booleans() -> None:
    assert run_line("--sig-proxy=false", "x").flag("sig-proxy") is False
    assert run_line("x").flag("sig-proxy") is True
    assert run_line("-d=true", "x").flag("detach") is True
    with pytest.raises(UsageError, match="true or false"):
        run_line("--rm=maybe", "x")


def test_aliases_share_a_key() -> None:
    assert run_line("--net", "host", "x").text("network") == "host"
    assert run_line("--net=none", "--network", "host", "x").text("network") == "host"
    assert parse(registry.load("stop"), ["--time", "3", "x"]).text("timeout") == "3"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (["--memroy", "1g", "x"], "--memory"),
        (["--memroy=1g", "x"], "--memory"),
        (["-name", "x", "y"], "--name"),
        (["--privilegd", "x"], "--privileged"),
    ],
)
def test_suggestions(line: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_line(*line)
    assert f"did you mean '{hint}'" in (caught.value.hint or "")
    assert caught.value.exit_code == 125


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "needs an IMAGE"),
        (["-m"], "option -m needs a value"),
        (["--name"], "option --name needs a value"),
        (["-X", "y"], "unknown option '-X'"),
        (["--\x1b[31m", "x"], r"unknown option '--\\x1b\[31m'"),
    ],
)
def test_wrong_lines(line: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_line(*line)
    with pytest.raises(UsageError, match="too many"):
        parse(registry.load("version"), ["x"])


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_is_wanted(word: str) -> None:
    for name in registry.COMMANDS:
        command = registry.load(name)
        if not command.hidden:
            with pytest.raises(HelpWanted):
                parse(command, [word])
    assert run_line("img", word).words("COMMAND") == [word]


def test_registry() -> None:
    assert registry.find(["container", "ls", "-a"]) == ("ps", ["-a"])
    assert registry.find(["system", "check"]) == ("system check", [])
    assert registry.find(["run", "ps"]) == ("run", ["ps"])
    assert registry.find(["nope"]) is None
    assert registry.find([]) is None


def test_tables_are_sound() -> None:
    listed = {name for _, names in registry.SECTIONS for name in names}
    for name in registry.COMMANDS:
        command = registry.load(name)
        assert command.name == name
        assert command.hidden == (name not in listed)
        spellings = [n for option in command.options for n in option.names]
        assert len(spellings) == len(set(spellings))
        assert "-h" not in spellings
        assert all(option.help for option in command.options)
        if not command.hidden:
            assert command.examples, f"{name} has no example"
            for line, _ in command.examples:
                assert "scow" in line
    for target in registry.ALIASES.values():
        assert target in registry.COMMANDS


def test_examples_parse() -> None:
    import re
    import shlex

    for name in registry.COMMANDS:
        for line, _ in registry.load(name).examples:
            words = shlex.split(re.split(" [|<>] ", re.sub(r"\$\(.*\)", "x", line))[0])
            if words[0] != "scow":
                continue
            found = registry.find(words[1:])
            assert found is not None, line
            try:
                parse(registry.load(found[0]), found[1])
            except ScowError as error:
                raise AssertionError(line) from error
