"""Between the user's streams and a container: output, input, signals, window size.

One poll loop. Nothing in it waits for one party while another one has something to say: output
goes out in pieces when the reader has room, and a reader that is slow makes the container wait
(the connection is lossless), not the signals. What must not go in: what an exit means.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
from collections.abc import Callable, Container
from contextlib import ExitStack
from typing import TYPE_CHECKING

from scow.cli.terminal import DetachKeys, RawTerminal, terminal_size
from scow.native.errors import ScowError

if TYPE_CHECKING:
    from scow.runtime.monitor import Exited, MonitorConnection

READ_BYTES = 16384
PIPE_PIECE = 4096  # pipe(7): POLLOUT promises room for PIPE_BUF bytes
RETRY_MS = 50
FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
PATIENCE = 3  # as many Ctrl-C as Docker takes before it stops waiting


class Detached(Exception):
    """The user let go; the container runs on."""


class Impatient(Exception):
    """The user pressed Ctrl-C again and again, and the container does not end."""


class Relay:
    """One attachment. `forward` sends a signal to the container; None: signals are ours."""

    def __init__(
        self,
        connection: MonitorConnection,
        *,
        terminal: bool = False,
        stdin: bool = False,
        streams: frozenset[int] = frozenset((1, 2)),
        forward: Callable[[int], None] | None = None,
        detach_keys: bytes = b"",
    ) -> None:
        self._connection = connection
        self._terminal = terminal
        self._stdin = stdin
        self._streams = streams
        self._forward = forward
        self._keys = DetachKeys(detach_keys if terminal else b"")
        self._output: dict[int, bytes] = {}
        self._input = b""
        self._input_ended = not stdin
        self._end_told = not stdin
        self._resize_wanted = False
        self._signals: list[int] = []
        self._interrupts = 0
        self._closed: set[int] = set()

    def run(self) -> Exited | None:
        """Relay until the process ends; None when the connection ended without saying so."""
        with ExitStack() as stack:
            wake = _catch_signals(stack, self._caught(), self._signals)
            if self._terminal and self._stdin and os.isatty(0):
                stack.enter_context(RawTerminal(0))
            self._resize_wanted = self._terminal
            return self._loop(wake)

    def _caught(self) -> tuple[int, ...]:
        caught: tuple[int, ...] = (signal.SIGWINCH,) if self._terminal else ()
        return caught + (FORWARDED if self._forward and not self._terminal else ())

    def _loop(self, wake: int) -> Exited | None:
        from scow.runtime.monitor import Dropped, Exited, Failed, Output

        while True:
            ready = self._wait(wake)
            if wake in ready:
                os.read(wake, 512)
            self._handle_signals()
            self._flush(ready)
            self._send()
            if 0 in ready and not self._input_ended and not self._input:
                self._read_input()
                self._send()
            if self._output or not ready.get(self._connection.fileno(), 0) & ~select.POLLOUT:
                continue
            event = self._connection.recv()
            if isinstance(event, Output):
                self._accept(event.stream, event.data)
            elif event is None or isinstance(event, Exited):
                return event
            elif isinstance(event, Dropped):
                raise ScowError(
                    "lost the container's output: it came faster than it was read",
                    hint="the container runs on; 'scow logs' shows everything",
                )
            elif isinstance(event, Failed):
                raise ScowError(f"the process could not be started: {event.text or 'unknown step'}")

    def _wait(self, wake: int) -> dict[int, int]:
        poller = select.poll()
        poller.register(wake, select.POLLIN)
        for fd in self._output:
            poller.register(fd, select.POLLOUT)
        waiting = bool(self._input) or self._resize_wanted or self._end_told < self._input_ended
        events = (select.POLLOUT if waiting else 0) | (0 if self._output else select.POLLIN)
        if events:
            poller.register(self._connection.fileno(), events)
        if not self._input_ended and not self._input:
            poller.register(0, select.POLLIN)
        return dict(poller.poll(RETRY_MS if waiting else None))

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGWINCH:
                self._resize_wanted = True
                continue
            if number == signal.SIGINT:
                self._interrupts += 1
                if self._interrupts >= PATIENCE:
                    raise Impatient
            if self._forward is not None:
                try:
                    self._forward(number)
                except ScowError:
                    pass  # it has just ended; the end arrives as an event

    def _accept(self, stream: int, data: bytes) -> None:
        if stream in self._streams and stream not in self._closed:
            self._output[stream] = data
            self._flush((stream,))

    def _flush(self, ready: Container[int]) -> None:
        for fd in [fd for fd in self._output if fd in ready]:
            data = self._output[fd]
            try:
                written = os.write(fd, data[: _piece(fd)])
            except BlockingIOError:
                continue
            except OSError as error:
                if fd == 2 and error.errno in (errno.EPIPE, errno.EIO):
                    self._closed.add(fd)  # nobody listens there; stdout still counts
                    del self._output[fd]
                    continue
                raise
            if written < len(data):
                self._output[fd] = data[written:]
            else:
                del self._output[fd]

    def _read_input(self) -> None:
        try:
            data = os.read(0, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: the terminal is gone
        if not data:
            self._input_ended = True
            return
        self._input, detached = self._keys.feed(data)
        if detached:
            self._send()
            raise Detached

    def _send(self) -> None:
        try:
            if self._resize_wanted:
                self._resize_wanted = not self._connection.resize(*terminal_size())
            if self._input:
                self._input = self._input[self._connection.send_stdin(self._input) :]
            if self._input_ended and not self._end_told and not self._input:
                self._end_told = self._connection.close_stdin()
        except (BrokenPipeError, ConnectionResetError):
            # The process has ended; what the monitor still says can be read.
            self._input, self._input_ended, self._end_told = b"", True, True
            self._resize_wanted = False


def _piece(fd: int) -> int:
    return READ_BYTES * 4 if stat.S_ISREG(os.fstat(fd).st_mode) else PIPE_PIECE


def _catch_signals(stack: ExitStack, numbers: tuple[int, ...], into: list[int]) -> int:
    """Collect signals, and give a descriptor that becomes readable when one came."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)

    def note(number: int, _frame: object) -> None:
        into.append(number)

    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    stack.callback(signal.set_wakeup_fd, old_fd)
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1) stays in force
            stack.callback(signal.signal, number, signal.signal(number, note))
    return reader
