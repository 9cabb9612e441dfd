"""What run, start, attach and exec have in common once a container's streams are connected."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from scow.cli.relay import Detached, Impatient, Relay
from scow.cli.session import service
from scow.native.errors import InvalidArgument, ScowError

if TYPE_CHECKING:
    from scow.runtime.monitor import Exited, MonitorConnection


def require_terminal(command: str, *, stdin: bool, terminal: bool) -> None:
    """-t with input that is not a terminal can never work: say so before anything is made."""
    if stdin and terminal and not os.isatty(0):
        raise InvalidArgument(
            f"{command}: cannot use -t: the input is not a terminal",
            hint="leave -t out when the input is a pipe or a file",
        )


def follow(
    container_id: str,
    name: str,
    connection: MonitorConnection,
    *,
    terminal: bool,
    stdin: bool,
    detach_keys: bytes,
    forward_signals: bool = True,
    streams: frozenset[int] = frozenset((1, 2)),
    finish: bool = False,
) -> int:
    """Relay until the container ends or the user lets go; the status to exit with.

    `finish`: we promised to clean up after it.
    """
    relay = Relay(
        connection,
        terminal=terminal,
        stdin=stdin,
        streams=streams,
        detach_keys=detach_keys,
        forward=(lambda number: service().kill(container_id, number)) if forward_signals else None,
    )
    sys.stdout.flush()
    try:
        with connection:
            exited = relay.run()
    except Detached:
        print(f"scow: detached; '{name}' runs on ('scow attach {name}' returns)", file=sys.stderr)
        return 0
    except Impatient:
        print(f"scow: '{name}' does not end on Ctrl-C and runs on", file=sys.stderr)
        print(f"hint: 'scow stop {name}' ends it", file=sys.stderr)
        return 130
    if exited is None:
        if finish:
            service().finish(container_id)
        raise ScowError(
            f"lost the connection to container '{name}'",
            hint="its monitor was killed; 'scow ps -a' and 'scow system check' tell how it is",
        )
    if finish:
        service().finish(container_id)
    return tell_end(exited)


def tell_end(exited: Exited) -> int:
    """The status that stands for the end of the process; says when memory was the reason."""
    if exited.oom_killed and exited.exit_code == 137:
        print("scow: killed by the kernel: out of memory (OOMKilled)", file=sys.stderr)
        print("hint: the limit is that of --memory; give more, or use less", file=sys.stderr)
    return exited.exit_code
