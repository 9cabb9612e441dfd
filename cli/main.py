"""The way in: global options, the verb, and every error told once, as one line.

Nothing slow may be imported at the top: `scow ps` pays for each module here.
"""

from __future__ import annotations

import os
import sys

from scow.cli.session import session
from scow.cli.table import Command, UsageError
from scow.native.codec import import_codec
from scow.native.errors import ScowError

CLOSED_OUTPUT_STATUS = 141  # as if SIGPIPE (13) had ended us
_GLOBAL = {"--root": "root", "--run-root": "run", "--host": "host"}


class Terminated(SystemExit):
    """SIGTERM or SIGHUP came while something was half-made; unwinding cleans it up.

    A SystemExit, because asyncio (below pyroute2) lets only that and KeyboardInterrupt through.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def main() -> int:
    """Run the command line of this process; the result is the exit status."""
    return run(sys.argv[1:])


def run(words: list[str]) -> int:
    """Run one command line."""
    import signal

    _open_standard_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1) stays in force
            signal.signal(number, _raise_terminated)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except ScowError as error:
        return _report(error)
    except BrokenPipeError:
        return _closed_output()
    except KeyboardInterrupt:
        return 130
    except Terminated as error:
        return 128 + error.number
    except OSError as error:
        from scow.cli.targets import from_os_error

        reported = from_os_error(error)
        reported.__cause__ = error
        return _report(reported)
    except Exception as error:  # the last line of defence: a fault of ours is one line, too
        if (signalled := _status_of_signal(error)) is not None:
            return signalled
        if session.debug:
            raise
        _say(f"scow: internal error: {type(error).__name__}: {error}")
        _say("hint: this is a fault in scow; 'scow --debug ...' shows where, please report it")
        return ScowError.exit_code


def _status_of_signal(error: BaseException | None) -> int | None:
    """The status when a signal was behind an error: a library's clean-up may fail and hide it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return 130
        if isinstance(error, Terminated):
            return 128 + error.number
        error = error.__context__
    return None


def _raise_terminated(number: int, _frame: object) -> None:
    raise Terminated(number)


def _open_standard_streams() -> None:
    # A caller may have closed 0, 1 or 2; the next descriptor opened would take the number, and
    # what is printed would land in a database or a socket.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (lives as long as we do)
        elif hasattr(stream, "reconfigure"):
            # Names and arguments may hold any bytes; print gives them back as they came.
            stream.reconfigure(errors="surrogateescape")


def _dispatch(words: list[str]) -> int:
    rest = _global_options(words)
    if rest is None:
        return 0
    if not rest or rest[0] in ("-h", "--help", "help"):
        return _help(rest)
    from scow.cli import registry

    found = registry.find(rest)
    if found is None:
        return _unknown_verb(rest)
    name, arguments = found
    command = registry.load(name)
    if session.host is None and name not in registry.HERE:
        session.host = os.environ.get("SCOW_HOST") or None
    from scow.cli.parser import HelpWanted, parse

    try:
        values = parse(command, arguments)
    except HelpWanted:
        from scow.cli.help import show_command

        return show_command(command)
    if session.host is not None and not command.uses_service:
        from scow.cli import remote

        return remote.run(command, values)
    _require_root(command)
    if command.needs_root:
        import_codec()
    return command.run(values)


def _global_options(words: list[str]) -> list[str] | None:
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-h", "--help"):
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--debug":
            session.debug = True
        elif word in ("-v", "--version"):
            from scow.cli.system import version_line

            print(version_line())
            return None
        elif name in _GLOBAL:
            if not equals:
                if not rest:
                    kind = "ADDRESS" if name == "--host" else "DIR"
                    raise UsageError(f"option {name} needs a value: {name} {kind}")
                value = rest.pop(0)
            if name != "--host" and not value.startswith("/"):
                raise UsageError(f"option {name} needs an absolute path")
            setattr(session, _GLOBAL[name], value)
        else:
            raise UsageError(
                f"unknown option '{word[:256]!s}' before the command",
                hint="'scow --help' lists the commands; options of a command come after it",
            )
    return rest


def _help(words: list[str]) -> int:
    from scow.cli import help, registry

    found = registry.find(words[1:]) if words else None
    if found is not None:
        return help.show_command(registry.load(found[0]))
    if len(words) > 1:
        return _unknown_verb(words[1:])
    return help.show_all()


def _unknown_verb(words: list[str]) -> int:
    import difflib

    from scow.cli import help, registry
    from scow.cli.parser import printable

    if words[0] in registry.GROUPS and (len(words) == 1 or words[1] in ("-h", "--help")):
        return help.show_group(words[0])
    tried = " ".join(words[:2]) if words[0] in registry.GROUPS else words[0]
    known = [name for name in (*registry.COMMANDS, *registry.ALIASES) if not name.startswith("_")]
    close = difflib.get_close_matches(tried, known, 1)
    suggestion = f"did you mean '{close[0]}'? " if close else ""
    raise UsageError(
        f"unknown command '{printable(tried)}'",
        hint=f"{suggestion}'scow --help' lists the commands",
    )


def _require_root(command: Command) -> None:
    if command.needs_root and os.geteuid() != 0:
        from scow.native.errors import PermissionDenied

        raise PermissionDenied(
            f"{command.name}: needs root: {command.needs_root}",
            hint=f"run it as 'sudo scow {command.name} ...'",
        )


def _say(line: str) -> None:
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    try:
        print(shown, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # nobody can be told; the exit status still says it


def _report(error: ScowError) -> int:
    if session.debug:
        import traceback

        traceback.print_exception(error)
    try:
        sys.stdout.flush()
    except OSError:
        _closed_output()
    _say(f"scow: {error}")
    if error.hint:
        _say(f"hint: {error.hint}")
    return error.exit_code


def _closed_output() -> int:
    # The reader has what it wanted (`scow ps | head -1`), or the disk is full. Python would complain
    # once more when it flushes at exit, so stdout must lead somewhere.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
    except OSError:
        pass
    return CLOSED_OUTPUT_STATUS


if __name__ == "__main__":
    sys.exit(main())
