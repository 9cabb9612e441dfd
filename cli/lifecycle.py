"""stop, kill, pause, unpause, wait, rm: verbs that change the state of containers."""

from __future__ import annotations

from scow.cli.session import service
from scow.cli.table import Argument, Command, Values, flag, text
from scow.cli.targets import each, each_at_once

_NAMES = Argument(
    "CONTAINER", "Name or id, or the beginning of an id", count="+", complete="containers"
)
_RUNNING = Argument(
    "CONTAINER", "Name or id, or the beginning of an id", count="+", complete="running"
)
_WHY = "it signals and removes processes of other users"


def _stop(values: Values) -> int:
    from scow.cri.parse import parse_signal, parse_timeout

    seconds, signal = values.text("timeout"), values.text("signal")
    timeout = None if seconds is None else parse_timeout("--timeout", seconds)
    number = None if signal is None else parse_signal("--signal", signal)

    def stop(name: str) -> str:
        service().stop(service().find(name), timeout, number)
        return name

    return each_at_once(values.words("CONTAINER"), stop)


STOP = Command(
    "stop",
    "Stop containers: ask the program to end, kill it when it does not in time",
    _stop,
    description="Sends the stop signal (TERM unless the image or --stop-signal says otherwise), "
    "waits, then sends KILL. Several containers are stopped at once.",
    arguments=(_RUNNING,),
    options=(
        text(
            "-t",
            "--timeout",
            "--time",
            metavar="SECONDS",
            help="How long to wait before KILL; -1 waits for ever (10, or --stop-timeout of run)",
        ),
        text(
            "-s",
            "--signal",
            metavar="SIGNAL",
            help="Ask with this signal instead",
            complete="signals",
        ),
    ),
    examples=(
        ("scow stop web", "stop it politely"),
        ("scow stop -t 1 web db", "wait one second only"),
    ),
    needs_root=_WHY,
)


def _kill(values: Values) -> int:
    from scow.cri.parse import parse_signal

    number = parse_signal("--signal", values.text("signal") or "KILL")

    def kill(name: str) -> str:
        service().kill(service().find(name), number)
        return name

    return each(values.words("CONTAINER"), kill)


KILL = Command(
    "kill",
    "Send a signal to the first process of containers",
    _kill,
    arguments=(_RUNNING,),
    options=(
        text(
            "-s",
            "--signal",
            metavar="SIGNAL",
            default="KILL",
            help="A name or a number",
            complete="signals",
        ),
    ),
    examples=(("scow kill -s HUP web", "tell a server to read its configuration again"),),
    needs_root=_WHY,
)


def _pause(values: Values) -> int:
    def pause(name: str) -> str:
        service().pause(service().find(name))
        return name

    return each(values.words("CONTAINER"), pause)


PAUSE = Command(
    "pause",
    "Freeze every process of containers",
    _pause,
    description="The processes keep their memory and get no CPU until 'scow unpause'.",
    arguments=(_RUNNING,),
    examples=(("scow pause web", "hold it still"),),
    needs_root=_WHY,
)


def _unpause(values: Values) -> int:
    def unpause(name: str) -> str:
        service().unpause(service().find(name))
        return name

    return each(values.words("CONTAINER"), unpause)


UNPAUSE = Command(
    "unpause",
    "Let paused containers go on",
    _unpause,
    arguments=(_RUNNING,),
    examples=(("scow unpause web", "let it go on"),),
    needs_root=_WHY,
)


def _wait(values: Values) -> int:
    return each_at_once(
        values.words("CONTAINER"), lambda name: str(service().wait(service().find(name)))
    )


WAIT = Command(
    "wait",
    "Wait until containers stop, then print their exit codes",
    _wait,
    arguments=(_NAMES,),
    examples=(("scow wait job", "prints 0 when the job went well"),),
)


def _rm(values: Values) -> int:
    from scow.native.errors import NotFound

    force = values.flag("force")

    def remove(name: str) -> str | None:
        try:
            service().remove(service().find(name), force=force, volumes=values.flag("volumes"))
        except NotFound:
            if not force:
                raise
            return None  # -f asks for it to be gone, and it is
        return name

    return each_at_once(values.words("CONTAINER"), remove)


RM = Command(
    "rm",
    "Remove containers",
    _rm,
    description="What the program wrote in the container is lost; images and named volumes stay.",
    arguments=(_NAMES,),
    options=(
        flag("-f", "--force", help="Kill it first when it runs; no error when it does not exist"),
        flag("-v", "--volumes", help="Remove its anonymous volumes, too"),
    ),
    examples=(("scow rm web", "remove a stopped container"), ("scow rm -f web", "running or not")),
    needs_root=_WHY,
)
