"""start: run containers that exist."""

from __future__ import annotations

from scow.cli.container_flags import DETACH_KEYS, SIG_PROXY
from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag
from scow.cli.targets import each


def _start(values: Values) -> int:
    names = values.words("CONTAINER")
    if values.flag("attach") or values.flag("interactive"):
        if len(names) > 1:
            raise UsageError("start: -a and -i work with one container only")
        return _start_attached(values, names[0])

    def start(name: str) -> str:
        service().start(service().find(name), attach=False)
        return name

    return each(names, start)


def _start_attached(values: Values, name: str) -> int:
    from scow.cli.attachment import follow, require_terminal
    from scow.cli.terminal import parse_detach_keys

    keys = parse_detach_keys("--detach-keys", values.text("detach-keys") or "")
    container_id = service().find(name)
    options = service().store.read(container_id).options
    stdin = values.flag("interactive") and options.open_stdin
    require_terminal("start", stdin=stdin, terminal=options.terminal)
    connection = service().start(container_id, attach=True)
    assert connection is not None
    return follow(
        container_id,
        name,
        connection,
        terminal=options.terminal,
        stdin=stdin,
        detach_keys=keys,
        forward_signals=values.flag("sig-proxy"),
        finish=True,
    )


START = Command(
    "start",
    "Start containers that were created or have ended",
    _start,
    arguments=(
        Argument(
            "CONTAINER", "Name or id, or the beginning of an id", count="+", complete="stopped"
        ),
    ),
    options=(
        flag("-a", "--attach", help="Show its output and pass signals on; exit as it exits"),
        flag("-i", "--interactive", help="Give it standard input, too"),
        DETACH_KEYS,
        SIG_PROXY,
    ),
    examples=(("scow start web", "in the background"), ("scow start -ai shell", "and go into it")),
    needs_root="it makes namespaces, mounts and cgroups",
)
