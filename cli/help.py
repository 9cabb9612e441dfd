"""Help, made by Typer from the same tables that the parser uses.

Typer takes 50 ms to import, so this file is loaded only when somebody asks for help. Its own
layout is one flat list; run has 70 options, so here they come in sections.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import typer
import typer.core

from scow.cli import registry
from scow.cli.table import FLAG, MANY, Command, Option

INTRO = """scow runs containers: programs from an image, isolated and limited.

Try it: scow run --rm scow/hello"""

GLOBAL = (
    ("--debug", "Show a traceback when scow itself fails"),
    (
        "--host ADDRESS",
        "Act on the service there (unix:///path, tcp://host:port), where a command can",
    ),
    ("--root DIR", "Keep images and containers there (/var/lib/scow)"),
    ("--run-root DIR", "Keep the state of this boot there (/run/scow)"),
    ("-v, --version", "Print the version"),
    ("-h, --help", "Show this; 'scow COMMAND --help' explains a command"),
)
CLOSING = """scow needs root: it makes namespaces, mounts and cgroups. When something does not work,
'sudo scow info' says what this machine lacks."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Help(typer.core.TyperCommand):
    """One command's help, in the table's own words."""

    table: Command

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write(f"Usage: {self.table.usage}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        if self.table.arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(a.metavar, a.help) for a in self.table.arguments])
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for option in self.table.options:
            if not option.hidden:
                sections.setdefault(option.section, []).append((_spelling(option), _help(option)))
        sections["Options"].append(("-h, --help", "Show this"))
        sections["Options"] = sections.pop("Options")  # the general ones come last
        for name, rows in sections.items():
            with formatter.section(name):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_examples(self.table))


class _GroupHelp(typer.core.TyperGroup):
    """The list of commands, in sections."""

    sections: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    has_global_options: bool

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write(f"Usage: {ctx.info_name} COMMAND [OPTIONS] ...\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for name, rows in self.sections:
            with formatter.section(name):
                formatter.write_dl(rows)
        if self.has_global_options:
            with formatter.section("Before the command"):
                formatter.write_dl(GLOBAL)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.has_global_options:
            formatter.write(f"\n{CLOSING}\n")


def show_all() -> int:
    """`scow --help`."""
    sections = tuple(
        (name, tuple((verb, registry.load(verb).summary) for verb in verbs))
        for name, verbs in registry.SECTIONS
    )
    return _show_group("scow", INTRO, sections, has_global_options=True)


def show_group(group: str) -> int:
    """`scow container --help`: the commands of one group."""
    names = [
        name for name in (*registry.COMMANDS, *registry.ALIASES) if name.startswith(group + " ")
    ]
    rows = tuple(
        (name.removeprefix(group + " "), registry.load(registry.ALIASES.get(name, name)).summary)
        for name in names
    )
    text = {
        "system": "Commands about scow on this machine.",
        "registry": "Commands about what registries have.",
    }.get(group, f"Commands about {group}s.")
    return _show_group(f"scow {group}", text, (("Commands", rows),), has_global_options=False)


def show_command(command: Command) -> int:
    """`scow COMMAND --help`."""
    app = typer.Typer(**_PLAIN)
    about = command.summary + (f"\n\n{command.description}" if command.description else "")
    kind = type("Help", (_Help,), {"table": command})
    app.command(command.name, cls=kind, help=about, context_settings=_CONTEXT)(_function(command))
    return _run(app, f"scow {command.name}")


# Plain text: rich would double the time, and its boxes do not survive a pipe or a pager.
_PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "add_completion": False,
    "pretty_exceptions_enable": False,
}


def _show_group(program: str, text: str, sections: Any, *, has_global_options: bool) -> int:
    attributes = {"sections": sections, "has_global_options": has_global_options}
    app = typer.Typer(**_PLAIN, cls=type("GroupHelp", (_GroupHelp,), attributes))
    app.callback(help=text, context_settings=_CONTEXT)(_nothing)
    return _run(app, program)


def _nothing() -> None:
    """A group without options of its own."""


def _run(app: typer.Typer, program: str) -> int:
    if not os.isatty(1):  # a pipe always gets the same width, so that help can be compared
        os.environ.setdefault("COLUMNS", "100")
    # Into a buffer first: Typer ends the process with 1 when its output is closed, we say 141.
    buffer = io.StringIO()
    with redirect_stdout(buffer):
        app(["--help"], prog_name=program, standalone_mode=False)
    sys.stdout.write(buffer.getvalue())
    return 0


def _examples(command: Command) -> str:
    if not command.examples:
        return ""
    width = max(len(line) for line, _ in command.examples)
    if width > 56:
        lines = [f"  {line}\n      {what}" for line, what in command.examples]
    else:
        lines = [f"  {line.ljust(width)}  {what}" for line, what in command.examples]
    return "\nExamples:\n" + "\n".join(lines) + "\n"


def _function(command: Command) -> Callable[..., None]:
    """A function whose signature tells Typer the table."""

    def run(**_values: Any) -> None:
        return None

    parameters = [
        _parameter(
            "argument_" + a.metavar, list[str] if a.count in "+*" else str, typer.Argument(None)
        )
        for a in command.arguments
    ]
    parameters += [_option(option) for option in command.options if not option.hidden]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    plain = re.sub(r"\W", "_", name.lower())
    return inspect.Parameter(plain, kind, annotation=annotation, default=default)


def _option(option: Option) -> inspect.Parameter:
    if option.kind == FLAG:
        default = typer.Option(option.default, *option.names, help=option.help)
        return _parameter("option_" + option.key, bool, default)
    default = typer.Option(None, *option.names, metavar=option.metavar, help=option.help)
    return _parameter("option_" + option.key, list[str] if option.kind == MANY else str, default)


def _spelling(option: Option) -> str:
    names = ", ".join(option.names)
    return f"{names} {option.metavar}" if option.metavar else names


def _help(option: Option) -> str:
    if option.kind == FLAG:
        return option.help + (f" (on; --{option.key}=false)" if option.default else "")
    return option.help + (f" ({option.default})" if option.default else "")
