"""WebSocket, from the request that asks for it to messages, on wsproto (docs/adr/010).

What must not go in: what the messages mean (channels.py).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import select

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import RemoteProtocolError

from scow.cri.api.connect import failure
from scow.cri.api.http import LINGER_S, READ_BYTES, Headers, Request, Response

MESSAGE_MAX = 1024 * 1024
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""What we speak, the best first."""

NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED_DATA, TOO_BIG = 1000, 1001, 1002, 1003, 1009
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


def handshake(request: Request) -> tuple[str, Headers] | Response:
    """The protocol that was chosen and the headers of the 101, or the answer that says no."""
    headers = request.headers
    if request.method != "GET":
        return failure(405, "unimplemented", "a stream is opened by GET", ("allow", "GET"))
    if headers.get("upgrade", "").lower() != "websocket":
        text = "a stream needs a WebSocket: Upgrade: websocket"
        return failure(426, "failed_precondition", text, ("upgrade", "websocket"))
    if headers.get("sec-websocket-version") != "13":
        text = "only WebSocket version 13 is known"
        return failure(426, "failed_precondition", text, ("sec-websocket-version", "13"))
    key = headers.get("sec-websocket-key", "")
    with contextlib.suppress(ValueError, binascii.Error):
        if len(base64.b64decode(key, validate=True)) == 16:
            return _choose(headers.get("sec-websocket-protocol", ""), key)
    return failure(400, "invalid_argument", "Sec-WebSocket-Key must be 16 bytes in base64")


def _choose(offered: str, key: str) -> tuple[str, Headers] | Response:
    names = {name.strip() for name in offered.split(",")}
    chosen = next((name for name in PROTOCOLS if name in names), None)
    if chosen is None:
        text = f"Sec-WebSocket-Protocol must offer {' or '.join(PROTOCOLS)}"
        return failure(400, "invalid_argument", text)
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()
    return chosen, (
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-accept", accept),
        ("sec-websocket-protocol", chosen),
    )


class WebSocket:
    """Binary messages, one after another, over a connection that was upgraded."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ahead: bytes,
        kind: ConnectionType = ConnectionType.SERVER,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = Connection(kind)
        self._parts: list[bytes] = []
        self._size = 0
        self._closed = False
        if ahead:
            self._frames.receive_data(ahead)

    async def receive(self) -> bytes | None:
        """The next message; None when the client has closed, or has broken the rules."""
        while not self._closed:
            try:
                for event in self._frames.events():
                    if (message := await self._handle(event)) is not None:
                        return message
                    if self._closed:
                        return None
                data = await self._reader.read(READ_BYTES)
                if not data:
                    self._closed = True
                    return None
                self._frames.receive_data(data)
            except RemoteProtocolError as error:
                await self.close(PROTOCOL_ERROR, str(error)[:100])
            except ConnectionError:
                self._closed = True
        return None

    async def _handle(self, event: object) -> bytes | None:
        if isinstance(event, BytesMessage):
            self._parts.append(bytes(event.data))
            self._size += len(event.data)
            if self._size > MESSAGE_MAX:
                await self.close(TOO_BIG, f"a message may have {MESSAGE_MAX} bytes")
            elif event.message_finished:
                message = b"".join(self._parts)
                self._parts.clear()
                self._size = 0
                return message
        elif isinstance(event, TextMessage):
            await self.close(UNSUPPORTED_DATA, "messages are binary")
        elif isinstance(event, Ping):
            await self._write(self._frames.send(event.response()))
        elif isinstance(event, CloseConnection):
            self._closed = True
            with contextlib.suppress(ConnectionError):
                await self._write(self._frames.send(event.response()))
        return None

    async def send(self, message: bytes) -> None:
        """Send a message, and wait as long as the client does not read. ConnectionError: it is gone."""
        if self._closed:
            raise ConnectionResetError("the client has closed")
        await self._write(self._frames.send(BytesMessage(message)))

    async def close(self, code: int, reason: str = "") -> None:
        """Say that this is the end, and give the client a moment to say so, too."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ConnectionError, TimeoutError, RemoteProtocolError):
            async with asyncio.timeout(LINGER_S):
                await self._write(self._frames.send(CloseConnection(code, reason)))
                while data := await self._reader.read(READ_BYTES):
                    self._frames.receive_data(data)
                    if any(isinstance(event, CloseConnection) for event in self._frames.events()):
                        return

    def is_gone(self) -> bool:
        """Whether the client has hung up; seen also while what it had sent before is not read."""
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return self._closed or bool(poll.poll(0))

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
