"""Exec and attach over a WebSocket, in Kubernetes' channels (v5.channel.k8s.io, v4).

The first byte of a message is its channel: 0 stdin, 1 stdout, 2 stderr, 3 the end as a
metav1.Status, 4 the terminal's size; with v5 channel 255 closes the one that it names, which is how
stdin ends. No threads: the monitor's connection is polled by the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec

from scow.cri.api.pools import Pools
from scow.cri.api.tokens import ProcessSession
from scow.cri.api.websocket import GOING_AWAY, NORMAL, WebSocket
from scow.native.errors import ScowError
from scow.runtime.monitor import Dropped, Exited, Failed, MonitorConnection, Output

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
LOOK_S = 1.0
"""How often we look whether a client is still there while the process does not take its input."""

log = logging.getLogger("scow.api")


class Size(msgspec.Struct):
    """A terminal's size, as Kubernetes' clients send it."""

    Width: int
    Height: int


def success() -> dict[str, object]:
    """The metav1.Status of a good end."""
    return {"metadata": {}, "status": "Success"}


def exit_status(code: int) -> dict[str, object]:
    """The metav1.Status of a process's end."""
    if code == 0:
        return success()
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failure_status(error: Exception) -> dict[str, object]:
    """The metav1.Status of a stream that could not be made, or broke."""
    known = isinstance(error, ScowError)
    text = str(error) if known else f"internal error: {type(error).__name__}: {error}"
    # 126 and 127 are the shell's words for a program that is no program, or not there.
    code = error.exit_code if isinstance(error, ScowError) else ScowError.exit_code
    return {
        "metadata": {},
        "status": "Failure",
        "message": text.encode("utf-8", "backslashreplace").decode(),
        "reason": "InternalError",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        "code": error.http_status if isinstance(error, ScowError) else 500,
    }


async def serve_process(
    socket: WebSocket,
    session: ProcessSession,
    *,
    is_exec: bool,
    can_half_close: bool,
    pools: Pools,
    stopped: asyncio.Future[None],
) -> None:
    """Carry a process's streams until it ends, the client goes, or the service stops."""
    opening = pools.submit("exec", session.open)
    try:
        connection = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_late)
        raise
    except Exception as error:  # told to the client; what is our own fault also to the log
        if not isinstance(error, ScowError):
            log.error("cannot open a stream: %s", error, exc_info=error)
        await _end(socket, failure_status(error))
        return
    with connection:
        os.set_blocking(connection.fileno(), False)
        relay = _Relay(socket, session, connection, can_half_close)
        output = asyncio.ensure_future(relay.output())
        inputs = asyncio.ensure_future(relay.input())
        try:
            await asyncio.wait((output, inputs, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Both, before the last words: only one at a time may read or write.
            await cancel(inputs, output)
    await _conclude(socket, output, is_exec=is_exec, stops=stopped.done())


async def _conclude(
    socket: WebSocket, output: asyncio.Future[int], *, is_exec: bool, stops: bool
) -> None:
    if output.cancelled():
        if stops:
            await socket.close(GOING_AWAY, "the service stops")
        return  # else the client has gone
    try:
        code = output.result()
        await _end(socket, exit_status(code) if is_exec else success())
    except ScowError as error:
        await _end(socket, failure_status(error))
    except ConnectionError:
        pass  # the client went while it was told something


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs, and wait until it has let go."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _end(socket: WebSocket, status: dict[str, object]) -> None:
    with contextlib.suppress(ConnectionError):
        await socket.send(bytes((ERROR,)) + msgspec.json.encode(status))
        await socket.close(NORMAL)


def _close_late(opening: asyncio.Future[MonitorConnection]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class _Relay:
    def __init__(
        self,
        socket: WebSocket,
        session: ProcessSession,
        connection: MonitorConnection,
        can_half_close: bool,
    ) -> None:
        self._socket = socket
        self._session = session
        self._connection = connection
        self._can_half_close = can_half_close
        self._wanted = {1: session.stdout, 2: session.stderr}

    async def output(self) -> int:
        """Send what the process writes until it ends; its exit code."""
        while True:
            try:
                event = self._connection.recv()
            except BlockingIOError:
                await _ready(self._connection.fileno(), write=False)
                continue
            if isinstance(event, Output):
                if self._wanted[event.stream]:
                    await self._socket.send(bytes((event.stream,)) + event.data)
            elif isinstance(event, Exited):
                return event.exit_code
            elif isinstance(event, Dropped):
                raise ScowError("the stream was read too slowly; the container runs on")
            elif isinstance(event, Failed):
                raise ScowError(f"the process could not be started: {event.text or 'unknown step'}")
            elif event is None:
                raise ScowError("the connection to the container's monitor was lost")

    async def input(self) -> None:
        """Pass on what the client sends until it closes."""
        while (message := await self._socket.receive()) is not None:
            channel, data = message[:1], message[1:]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # When the process has ended nobody takes input; `output` learns of the end.
                if channel == b"\x00" and self._session.stdin:
                    await self._feed(data)
                elif channel == b"\x04" and self._session.tty:
                    await self._resize(data)
                elif channel == b"\xff" and self._can_half_close and data == b"\x00":
                    await self._until(self._connection.close_stdin)

    async def _feed(self, data: bytes) -> None:
        while data:
            sent = self._connection.send_stdin(data)
            data = data[sent:]
            if data and not await self._room():
                return

    async def _resize(self, data: bytes) -> None:
        try:
            size = msgspec.json.decode(data, type=Size)
        except ValueError:
            return  # as a terminal does with a size that makes no sense: it stays as it is
        if 0 < size.Width < 65536 and 0 < size.Height < 65536:
            await self._until(lambda: self._connection.resize(size.Height, size.Width))

    async def _until(self, attempt: Callable[[], bool]) -> None:
        while not attempt() and await self._room():
            pass

    async def _room(self) -> bool:
        """Wait until the monitor takes more; False when the client has gone meanwhile."""
        while not self._socket.is_gone():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await _ready(self._connection.fileno(), write=True)
                    return True
        return False


async def _ready(fd: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    waiting = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )

    def wake() -> None:
        if not waiting.done():
            waiting.set_result(None)

    add(fd, wake)
    try:
        await waiting
    finally:
        remove(fd)
