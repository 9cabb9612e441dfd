"""exec: a further program in a running container."""

from __future__ import annotations

from scow.cli.container_flags import DETACH_KEYS
from scow.cli.session import service
from scow.cli.table import Argument, Command, Values, flag, many, text


def _exec(values: Values) -> int:
    from scow.cli.attachment import follow, require_terminal
    from scow.cli.process_options import exec_options
    from scow.cli.terminal import parse_detach_keys

    name = values.word("CONTAINER")
    options = exec_options(values, values.words("COMMAND"))
    keys = parse_detach_keys("--detach-keys", values.text("detach-keys") or "")
    if not options.detach:
        require_terminal("exec", stdin=options.open_stdin, terminal=options.terminal)
    container_id = service().find(name)
    connection = service().exec(container_id, options)
    if options.detach:
        connection.close()
        return 0
    return follow(
        container_id,
        name,
        connection,
        terminal=options.terminal,
        stdin=options.open_stdin,
        detach_keys=keys,
        forward_signals=False,  # as Docker: Ctrl-C ends the exec's client, not the container
    )


EXEC = Command(
    "exec",
    "Run a further program in a running container",
    _exec,
    description="It gets the namespaces, limits and rights of the container. "
    "The exit code is the program's own; 126 when it cannot be executed, 127 when it is not there.",
    arguments=(
        Argument("CONTAINER", "Name or id, or the beginning of an id", complete="running"),
        Argument("COMMAND", "Program and its arguments", count="+"),
    ),
    options=(
        flag("-d", "--detach", help="Run it in the background"),
        flag("-i", "--interactive", help="Give standard input to the program"),
        flag("-t", "--tty", help="Give the program a terminal"),
        many("-e", "--env", metavar="KEY=VALUE", help="Set an environment variable"),
        many("--env-file", metavar="FILE", help="Read variables from a file", complete="files"),
        text("-w", "--workdir", metavar="DIR", help="Working directory inside"),
        text("-u", "--user", metavar="USER[:GROUP]", help="Run as this user of the container"),
        flag("--privileged", help="Give it every capability"),
        DETACH_KEYS,
    ),
    examples=(
        ("scow exec -it web sh", "look around in a running container"),
        ("scow exec web cat /etc/os-release", "run one command"),
    ),
    interspersed=False,
    needs_root="it joins the namespaces of another process",
)
