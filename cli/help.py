"""Help, made by Typer from the same tables that the parser uses.

Typer takes 50 ms to import, so this file is loaded only when somebody asks for help.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import typer
from scow.cli import registry
from scow.cli.table import FLAG, MANY, Argument, Command, Option

INTRO = """scow runs containers: a program from an image, isolated and limited.

Try: scow run --rm scow/hello"""

GLOBAL_NOTE = """\b
Before the command:
  --debug         show a traceback when scow itself fails
  --root DIR      where images and containers are kept (/var/lib/scow)
  --run-root DIR  where the state of this boot is kept (/run/scow)
  -v, --version   print the version

\b
'scow COMMAND --help' explains a command. scow needs root: it makes
namespaces, mounts and cgroups."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def show_all() -> int:
    """`scow --help`."""
    app = _new_app(INTRO, GLOBAL_NOTE)
    for section, names in registry.SECTIONS:
        for name in names:
            _add(app, registry.load(name), name, section)
    return _run(app, ["--help"], "scow")


def show_group(group: str) -> int:
    """`scow container --help`: the commands of one group."""
    app = _new_app(
        f"Commands about {group}s." if group != "system" else "Commands about this host.", ""
    )
    for alias, name in registry.ALIASES.items():
        if alias.startswith(group + " "):
            _add(app, registry.load(name), alias.removeprefix(group + " "), "Commands")
    for name in registry.COMMANDS:
        if name.startswith(group + " "):
            _add(app, registry.load(name), name.removeprefix(group + " "), "Commands")
    return _run(app, ["--help"], f"scow {group}")


def show_command(command: Command) -> int:
    """`scow COMMAND --help`."""
    app = _new_app("", "")
    _add(app, command, command.name, "")
    return _run(app, ["--help"], f"scow {command.name}")


def _new_app(text: str, epilog: str) -> typer.Typer:
    # Plain text: rich would double the time, and its boxes do not survive a pipe or a pager.
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    if text:
        app.callback(help=text, epilog=epilog, context_settings=_CONTEXT)(_nothing)
    return app


def _nothing() -> None:
    """A group without options of its own."""


def _run(app: typer.Typer, words: list[str], program: str) -> int:
    # A terminal gets its own width, a pipe always the same, so that diffs of help are stable.
    os.environ.setdefault("COLUMNS", "100") if not os.isatty(1) else None
    app(words, prog_name=program, standalone_mode=False)
    return 0


def _add(app: typer.Typer, command: Command, name: str, section: str) -> None:
    text = command.summary + (f"\n\n{command.description}" if command.description else "")
    app.command(
        name,
        help=text,
        short_help=command.summary,
        epilog=_examples(command),
        context_settings=_CONTEXT,
        rich_help_panel=section or None,
    )(_function(command))


def _examples(command: Command) -> str:
    if not command.examples:
        return ""
    width = max(len(line) for line, _ in command.examples)
    if width > 60:
        lines = [f"  {line}\n      {what}" for line, what in command.examples]
    else:
        lines = [f"  {line.ljust(width)}  {what}" for line, what in command.examples]
    return "\b\nExamples:\n" + "\n".join(lines)


def _function(command: Command) -> Callable[..., None]:
    """A function whose signature tells Typer the table."""

    def run(**_values: Any) -> None:
        return None

    parameters = [_argument(argument) for argument in command.arguments]
    parameters += [_option(option) for option in command.options if not option.hidden]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(
        name.lower().replace("-", "_"), kind, annotation=annotation, default=default
    )


def _argument(argument: Argument) -> inspect.Parameter:
    optional = argument.count in "?*"
    default = typer.Argument(
        None if optional else ..., metavar=argument.metavar, help=argument.help, show_default=False
    )
    annotation = list[str] if argument.count in "+*" else str
    return _parameter("argument_" + argument.metavar, annotation, default)


def _option(option: Option) -> inspect.Parameter:
    if option.kind == FLAG:
        default = typer.Option(
            option.default, *option.names, help=_help(option), show_default=False
        )
        return _parameter("option_" + option.key, bool, default)
    default = typer.Option(
        None, *option.names, metavar=option.metavar, help=_help(option), show_default=False
    )
    return _parameter("option_" + option.key, list[str] if option.kind == MANY else str, default)


def _help(option: Option) -> str:
    if option.kind == FLAG:
        return option.help + ("  [on; turn off with =false]" if option.default else "")
    return option.help + (f"  [default: {option.default}]" if option.default else "")
