"""`scow --host ADDRESS exec`: a program in a container of another service, over a WebSocket."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from scow.cli.remote import container
from scow.cli.session import session
from scow.cli.table import UsageError, Values

if TYPE_CHECKING:
    from scow.cri.client_streams import ProcessStream

CHUNK = 32768


def execute(values: Values) -> int:
    """Run a command; the result is its own status."""
    from scow.cri.client_streams import STDERR, ProcessStream

    terminal, stdin = values.flag("tty"), values.flag("interactive")
    if terminal and not sys.stdin.isatty():
        raise UsageError(
            "exec: -t needs a terminal, and standard input is not one", hint="leave -t out"
        )
    asked = {"cmd": values.words("COMMAND"), "tty": terminal, "stdin": stdin, "stdout": True}
    with ExitStack() as stack:
        client = stack.enter_context(session.client())
        asked["container_id"] = container(client, values.word("CONTAINER")).id
        asked["stderr"] = not terminal
        stream = ProcessStream(client, client.call("Exec", asked).url)
        stack.callback(stream.close)
        wake = _join_terminal(stack) if terminal else None
        if stdin or wake is not None:
            argument = (stream, 0 if stdin else None, wake)
            threading.Thread(target=_feed, args=argument, daemon=True).start()
        for channel, data in stream.output():
            _write(2 if channel == STDERR else 1, data)
    return stream.exit_code or 0


def _join_terminal(stack: ExitStack) -> int:
    """Raw mode; the result is a descriptor that tells of a window that has changed."""
    from scow.cli.terminal import RawTerminal

    heard, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def changed(*_: object) -> None:
        with suppress(BlockingIOError):
            os.write(tell, b"w")

    changed()
    stack.callback(signal.signal, signal.SIGWINCH, signal.signal(signal.SIGWINCH, changed))
    stack.enter_context(RawTerminal(0))
    return heard


def _feed(stream: ProcessStream, stdin: int | None, wake: int | None) -> None:
    """Send what is typed and how large the window is; all from this one thread."""
    from scow.cli.terminal import terminal_size

    poller = select.poll()
    for fd in (stdin, wake):
        if fd is not None:
            poller.register(fd, select.POLLIN)
    # OSError: the program has ended, or the service has gone: the other thread tells which.
    with suppress(OSError):
        while True:
            for fd, _ in poller.poll():
                data = os.read(fd, CHUNK)
                if fd == wake:
                    rows, columns = terminal_size()
                    stream.resize(columns, rows)
                elif data:
                    stream.send_stdin(data)
                else:
                    stream.close_stdin()
                    poller.unregister(fd)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
