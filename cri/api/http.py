"""One HTTP/1.1 connection: requests in, answers out, on h11 (docs/adr/010).

What belongs here: framing, limits, time-outs, back-pressure. What must not: paths, and what a
request means: that is the application's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Protocol

import h11

HEAD_MAX = 32 * 1024
BODY_MAX = 5 * 1024 * 1024 - 1
"""More than a message may have: an envelope, and gzip that does not help, come on top."""
IDLE_S = 120.0
HEAD_S = 10.0
BODY_S = 60.0
STALL_S = 30.0
"""A reader that takes nothing for so long is given up."""
LINGER_S = 2.0
READ_BYTES = 64 * 1024

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the log shows it; `is_local` is for a unix socket."""

    text: str
    is_local: bool = False
    is_plain: bool = False
    """TCP without TLS, which is on loopback only."""
    streams_only: bool = False
    """The listener serves stream URLs and nothing else."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Header names are lower case; of a name that comes twice the values are joined."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    peer: Peer


@dataclass(frozen=True, slots=True)
class Response:
    """An answer that is complete."""

    status: int
    body: bytes = b""
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class StreamResponse:
    """An answer in pieces; its head goes with the first, which may be empty.

    The iterator is closed when the client goes away.
    """

    chunks: AsyncIterator[bytes]
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Another protocol from here on; `run` has the connection to itself, and what was read ahead."""

    headers: Headers
    run: Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


Answer = Response | StreamResponse | Upgrade


class Application(Protocol):
    """What answers requests. It raises nothing but what ends the connection."""

    async def answer(self, request: Request) -> Answer: ...

    def refusal(self, status: int, reason: str) -> Response: ...


class _Gone(Exception):
    """The client is not there any more, or takes nothing."""


@dataclass(slots=True)
class Connection:
    """One client. `run` returns when the connection is to be closed."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: Peer
    app: Application
    is_busy: bool = False
    """A request is being answered; a graceful stop waits for it."""
    stopping: bool = False
    _http: h11.Connection = field(init=False)

    def __post_init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)

    async def run(self) -> None:
        """Answer request after request; returns when there will be no more."""
        try:
            while await self._serve_one():
                pass
        except (ConnectionError, _Gone, TimeoutError):
            self.writer.transport.abort()
        finally:
            self.writer.close()
            try:
                async with asyncio.timeout(LINGER_S):
                    await self.writer.wait_closed()
            except (OSError, TimeoutError):
                self.writer.transport.abort()  # close() alone waits for the last byte to be read

    async def _serve_one(self) -> bool:
        try:
            request = await self._read_request()
        except h11.RemoteProtocolError as error:
            # It has not told what it wants in HTTP, so what follows cannot be made sense of either.
            return await self._refuse(error.error_status_hint, str(error))
        except TimeoutError:
            if self._http.their_state is h11.IDLE and not self._http.trailing_data[0]:
                return False
            return await self._refuse(408, "the request took too long to arrive")
        except _Refused as error:
            return await self._refuse(error.status, error.reason)
        if request is None:
            return False
        answer = await self.app.answer(request)
        if isinstance(answer, Upgrade):
            await self._upgrade(answer)
            return False
        if isinstance(answer, StreamResponse):
            await self._send_stream(answer)
        else:
            await self._send(answer, request.method)
        self.is_busy = False
        if self.stopping or self._http.our_state is not h11.DONE:
            return False
        if self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    # --- reading ------------------------------------------------------------------------------

    async def _read_request(self) -> Request | None:
        async with asyncio.timeout(IDLE_S) as clock:
            head = await self._next_event(clock)
            if not isinstance(head, h11.Request):
                return None
            self.is_busy = True
            _reschedule(clock, BODY_S)
            if head.http_version not in (b"1.1", b"1.0"):
                raise _Refused(505, "only HTTP/1.1 is spoken here")
            headers = _join(head)
            if "content-length" in headers and "transfer-encoding" in headers:
                # RFC 9112 section 6.3: two lengths are how requests are smuggled.
                raise _Refused(400, "both Content-Length and Transfer-Encoding")
            length = headers.get("content-length", "0")
            if len(length) > 12 or int(length) > BODY_MAX:
                raise _Refused(413, f"the body is larger than {BODY_MAX} bytes")
            body = await self._read_body()
        target = head.target.decode("ascii", "replace")
        path, _, query = target.partition("?")
        return Request(head.method.decode("ascii"), path, query, headers, body, self.peer)

    async def _read_body(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        if self._http.they_are_waiting_for_100_continue:
            await self._write(
                self._http.send(h11.InformationalResponse(status_code=100, headers=[]))
            )
        while True:
            event = await self._next_event(None)
            if isinstance(event, h11.Data):
                size += len(event.data)
                if size > BODY_MAX:
                    raise _Refused(413, f"the body is larger than {BODY_MAX} bytes")
                pieces.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return b"".join(pieces)
            else:
                raise _Gone

    async def _next_event(self, clock: asyncio.Timeout | None) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]  # mypy cannot narrow a sentinel class
            data = await self.reader.read(READ_BYTES)
            if clock is not None:
                _reschedule(clock, HEAD_S)  # the first bytes are here: no more idling
                clock = None
            self._http.receive_data(data)

    # --- writing ------------------------------------------------------------------------------

    async def _send(self, answer: Response, method: str) -> None:
        headers = [*answer.headers, ("content-length", str(len(answer.body))), _date()]
        if self.stopping:
            headers.append(("connection", "close"))
        data = self._http.send(h11.Response(status_code=answer.status, headers=headers)) or b""
        if answer.body and method != "HEAD":
            data += self._http.send(h11.Data(answer.body)) or b""
        await self._write(data + (self._http.send(h11.EndOfMessage()) or b""))

    async def _send_stream(self, answer: StreamResponse) -> None:
        head = h11.Response(status_code=200, headers=[*answer.headers, _date()])
        sender = asyncio.ensure_future(self._send_chunks(head, answer.chunks))
        watcher = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait((sender, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not sender.done():
                raise _Gone
            await sender
        finally:
            for task in (sender, watcher):
                task.cancel()
            await asyncio.gather(sender, watcher, return_exceptions=True)

    async def _send_chunks(self, head: h11.Response, chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            if self._http.our_state is h11.SEND_RESPONSE:
                await self._write(self._http.send(head))
            if chunk:
                await self._write(self._http.send(h11.Data(chunk)))
        await self._write(self._http.send(h11.EndOfMessage()))

    async def _watch(self) -> None:
        """Return when the client is gone, or sends so much that it cannot be meant."""
        ahead = 0
        while ahead < READ_BYTES and (data := await self.reader.read(READ_BYTES)):
            self._http.receive_data(data)
            ahead += len(data)

    async def _refuse(self, status: int, reason: str) -> bool:
        """Answer once more and hang up, in a way that lets the client read the answer."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise _Gone
        answer = self.app.refusal(status, reason)
        headers = [*answer.headers, ("connection", "close"), _date()]
        headers.append(("content-length", str(len(answer.body))))
        # Not by h11, which has given up on this connection when the request was not HTTP.
        wire = h11.Connection(h11.SERVER)
        data = wire.send(h11.Response(status_code=status, headers=headers)) or b""
        await self._write(data + (wire.send(h11.Data(answer.body)) or b""))
        with contextlib.suppress(TimeoutError, OSError):
            if self.writer.can_write_eof():
                self.writer.write_eof()
            # close(2) with bytes unread makes the kernel send a reset, which throws away what the
            # client has not read yet: so read a while.
            async with asyncio.timeout(LINGER_S):
                while await self.reader.read(READ_BYTES):
                    pass
        return False

    async def _upgrade(self, answer: Upgrade) -> None:
        head = h11.InformationalResponse(status_code=101, headers=[*answer.headers])
        await self._write(self._http.send(head))
        ahead, _ = self._http.trailing_data
        await answer.run(self.reader, self.writer, ahead)

    async def _write(self, data: bytes | None) -> None:
        if data:
            self.writer.write(data)
            await drain(self.writer)


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


async def drain(writer: asyncio.StreamWriter) -> None:
    """Wait until there is room again; a reader that makes no progress raises."""
    transport = writer.transport
    while left := transport.get_write_buffer_size():
        try:
            async with asyncio.timeout(STALL_S):
                await writer.drain()
                return
        except TimeoutError:
            if transport.get_write_buffer_size() >= left:
                raise _Gone from None


def _reschedule(clock: asyncio.Timeout, seconds: float) -> None:
    clock.reschedule(asyncio.get_running_loop().time() + seconds)


def _join(head: h11.Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


_clock: tuple[int, str] = (0, "")


def _date() -> tuple[str, str]:
    global _clock  # one text a second serves every answer
    now = int(time.time())
    if _clock[0] != now:
        _clock = (now, formatdate(now, usegmt=True))
    return ("date", _clock[1])
