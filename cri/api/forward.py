"""Port-forward over a WebSocket: for the n-th port channel 2n carries data, 2n+1 an error's text.

On each channel the server first sends the port, two bytes, least significant first (Kubernetes'
first WebSocket form of it). One connection into the pod for each port and WebSocket; with v5
channel 255 ends the sending of the data channel that it names.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
import struct
from collections.abc import Sequence
from urllib.parse import parse_qs

from scow.cri.api.channels import cancel
from scow.cri.api.pools import Pools
from scow.cri.api.tokens import PortSession
from scow.cri.api.websocket import GOING_AWAY, NORMAL, WebSocket
from scow.native.errors import InvalidArgument, ScowError

PIECE = 32 * 1024
QUEUE_MAX = 32
LOOK_S = 1.0
PORTS_MAX = 100
CLOSE = 255


def ports_of(session: PortSession, query: str) -> Sequence[int]:
    """The ports to forward: those of the call, else those of the URL (`?port=80&port=443`)."""
    ports = list(session.ports)
    if not ports:
        words = [word for value in parse_qs(query).get("port", []) for word in value.split(",")]
        if not all(word.isascii() and word.isdigit() and len(word) <= 5 for word in words):
            raise InvalidArgument("port: each must be a number")
        ports = [int(word) for word in words]
    if not 0 < len(ports) <= PORTS_MAX:
        raise InvalidArgument(f"port: needs 1 to {PORTS_MAX} ports, here or in the call")
    if bad := [port for port in ports if not 0 < port < 65536]:
        raise InvalidArgument(f"port: {bad[0]} is not 1 to 65535")
    return ports


async def serve_ports(
    socket: WebSocket,
    session: PortSession,
    ports: Sequence[int],
    *,
    can_half_close: bool,
    pools: Pools,
    stopped: asyncio.Future[None],
) -> None:
    """Carry the ports' bytes until every connection has ended, the client goes, or we stop."""
    lines = [_Line(socket, session, port, index, pools) for index, port in enumerate(ports)]
    tasks = [asyncio.ensure_future(line.run()) for line in lines]
    everything = asyncio.ensure_future(asyncio.wait(tasks))
    inputs = asyncio.ensure_future(_input(socket, lines, can_half_close))
    try:
        await asyncio.wait((everything, inputs, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        # All, before the last words: only one at a time may read.
        await cancel(inputs, everything, *tasks)
    if not everything.cancelled():
        await socket.close(NORMAL)
    elif stopped.done():
        await socket.close(GOING_AWAY, "the service stops")


async def _input(socket: WebSocket, lines: list[_Line], can_half_close: bool) -> None:
    while (message := await socket.receive()) is not None:
        if not message:
            continue
        channel, data = message[0], message[1:]
        if channel == CLOSE and can_half_close and len(data) == 1:
            channel, data = data[0], b""
        elif not data:
            continue
        if channel % 2 == 0 and channel // 2 < len(lines):
            await lines[channel // 2].give(data)


class _Line:
    """One port: a connection into the pod, and its two channels."""

    def __init__(
        self, socket: WebSocket, session: PortSession, port: int, index: int, pools: Pools
    ) -> None:
        self._socket = socket
        self._session = session
        self._port = port
        self._data, self._error = bytes((2 * index,)), bytes((2 * index + 1,))
        self._pools = pools
        # Of its own, so that a program that does not read holds up its own port only, for a while.
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_MAX)
        self._ended = False

    async def give(self, data: bytes) -> None:
        """Queue what the client sent; empty is the end of it."""
        while not (self._ended or self._socket.is_gone()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._queue.put(data)
                    return

    async def run(self) -> None:
        """Connect and carry, until the program in the pod closes."""
        try:
            number = struct.pack("<H", self._port)
            await self._socket.send(self._data + number)
            await self._socket.send(self._error + number)
            await self._carry()
        except ConnectionError:
            pass
        finally:
            self._ended = True
            while not self._queue.empty():  # let `give` go on, if it waits
                self._queue.get_nowait()

    async def _carry(self) -> None:
        try:
            connection = await self._connect()
        except (ScowError, OSError) as error:
            text = f"cannot connect to port {self._port} in the pod: {error}"
            await self._socket.send(self._error + text.encode("utf-8", "backslashreplace"))
            return
        with connection:
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            writer = asyncio.ensure_future(self._write(connection))
            try:
                while data := await loop.sock_recv(connection, PIECE):
                    await self._socket.send(self._data + data)
            finally:
                await cancel(writer)

    async def _connect(self) -> sockets.socket:
        running = self._pools.submit("exec", lambda: self._session.connect(self._port))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(_close_late)
            raise

    async def _write(self, connection: sockets.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await self._queue.get():
                await loop.sock_sendall(connection, data)
            connection.shutdown(sockets.SHUT_WR)
        while True:  # the program takes no more: what still comes is thrown away
            await self._queue.get()


def _close_late(running: asyncio.Future[sockets.socket]) -> None:
    if not running.cancelled() and running.exception() is None:
        running.result().close()
