"""attach: back to the input and output of a running container."""

from __future__ import annotations

from scow.cli.container_flags import DETACH_KEYS, SIG_PROXY
from scow.cli.session import service
from scow.cli.table import Argument, Command, Values, flag


def _attach(values: Values) -> int:
    from scow.cli.attachment import follow, require_terminal
    from scow.cli.terminal import parse_detach_keys

    name = values.word("CONTAINER")
    keys = parse_detach_keys("--detach-keys", values.text("detach-keys") or "")
    container_id = service().find(name)
    options = service().store.read(container_id).options
    stdin = options.open_stdin and not values.flag("no-stdin")
    require_terminal("attach", stdin=stdin, terminal=options.terminal)
    connection = service().attach(container_id, stdin=stdin)
    return follow(
        container_id,
        name,
        connection,
        terminal=options.terminal,
        stdin=stdin,
        detach_keys=keys,
        forward_signals=values.flag("sig-proxy"),
    )


ATTACH = Command(
    "attach",
    "Connect to the input and output of a running container",
    _attach,
    description="Shows what comes from now on; 'scow logs' has what came before. "
    "The detach keys let go and leave it running.",
    arguments=(Argument("CONTAINER", "Name or id, or the beginning of an id", complete="running"),),
    options=(flag("--no-stdin", help="Do not give it standard input"), DETACH_KEYS, SIG_PROXY),
    examples=(("scow attach web", "watch it; Ctrl-P Ctrl-Q lets go when it has a terminal"),),
    needs_root="the container's socket belongs to root",
)
