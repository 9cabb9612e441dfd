"""The Connect protocol, JSON codec: unary calls and server streams (connectrpc.com/docs/protocol).

What belongs here: from a request to a method of the service and back. What must not: sockets, and
what any method means.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import struct
import time
import types
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import msgspec

from scow.cri.api import codec
from scow.cri.api.http import Answer, Request, Response, StreamResponse
from scow.cri.api.message import Message
from scow.cri.api.pools import Pools, kind_of
from scow.cri.api.schema import Method, schema
from scow.native.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    ScowError,
    Unsupported,
)

JSON = "application/json"
STREAM = "application/connect+json"
GZIP_MIN = 1024
_PREFIX = struct.Struct(">BI")
_COMPRESSED, _END = 1, 2
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}

log = logging.getLogger("scow.api")


class Caller:
    """Calls the service for the door. `services` are the objects by the names that CRI gives them."""

    def __init__(self, services: Mapping[str, object], pools: Pools) -> None:
        self._services = services
        self._pools = pools
        self._stopped = asyncio.get_running_loop().create_future()
        self.counts: dict[tuple[str, str], int] = {}
        """Calls that have ended, by method and code ("ok" for those that did not fail)."""

    async def answer(self, request: Request) -> Answer:
        """Answer a request for a path under /runtime.v1."""
        method = schema().methods.get(request.path)
        if method is None:
            return failure(404, "unimplemented", f"there is no method '{request.path[:256]}'")
        if request.method != "POST":
            return failure(405, "unimplemented", "a method is called by POST", ("allow", "POST"))
        wanted = STREAM if method.streams else JSON
        if not _is_type(request.headers.get("content-type", ""), wanted):
            text = f"{method.name} is called with Content-Type: {wanted}"
            return failure(415, "unimplemented", text, ("accept-post", wanted))
        if method.streams:
            return await self._stream(method, request)
        return await self._unary(method, request)

    def stop(self) -> None:
        """End every stream; calls go on to their end."""
        if not self._stopped.done():
            self._stopped.set_result(None)

    async def call(self, path: str) -> dict[str, Any]:
        """Call a method for ourselves, with an empty request; its answer in canonical form."""
        method = schema().methods[path]
        bound = self._bind(method)
        found: dict[str, Any] = await self._pools.submit(
            kind_of(method.name), lambda: bound(Message(method.request))
        )
        return found

    # --- unary --------------------------------------------------------------------------------

    async def _unary(self, method: Method, request: Request) -> Response:
        begun = time.monotonic()
        try:
            timeout_s = _timeout(request.headers)
            _check_version(request.headers)
            bound = self._bind(method)

            def work() -> Response:
                # All in the thread: ExecSync's answer may have 40 MB, which would hold up everyone.
                body = _unpack(request.body, request.headers.get("content-encoding", "identity"))
                message = codec.decode(method.request, body)
                found = codec.encode(method.response, bound(message))
                return _maybe_gzip(found, request.headers.get("accept-encoding", ""))

            running = self._pools.submit(kind_of(method.name), work)
            answer = await _within(timeout_s, running, method)
        except Exception as error:  # the border: one request's fault must not end the service
            answer = _error_response(self._failed(method, error))
        else:
            self._count(method, "ok")
        self._log(method, request, answer.status, begun)
        return answer

    def _bind(self, method: Method) -> Callable[[Message], Any]:
        bound = getattr(self._services.get(method.service), method.python_name, None)
        if bound is None:
            raise Unsupported(f"{method.name} is not offered by this service")
        return bound  # type: ignore[no-any-return]  # found by its name; the schema says its types

    def _failed(self, method: Method, error: Exception) -> ScowError:
        """Give what the client is told, and tell the log of what is our fault."""
        told = _as_scow_error(error)
        self._count(method, told.code)
        if told.code == "internal":
            log.error("%s: %s", method.name, error, exc_info=error)
        return told

    def _count(self, method: Method, code: str) -> None:
        self.counts[method.name, code] = self.counts.get((method.name, code), 0) + 1

    def _log(self, method: Method, request: Request, status: int, begun: float) -> None:
        # Readers poll every second; who changes something is worth a line.
        is_dull = status == 200 and kind_of(method.name) == "read"
        log.log(
            logging.DEBUG if is_dull else logging.INFO,
            "%s %s %d %.1f ms",
            request.peer.text,
            method.name,
            status,
            (time.monotonic() - begun) * 1000,
        )

    # --- server streams -----------------------------------------------------------------------

    async def _stream(self, method: Method, request: Request) -> StreamResponse:
        """The status is 200 whatever happens: the last envelope tells of errors."""
        gzip = "gzip" in request.headers.get("connect-accept-encoding", "")
        headers = [("content-type", STREAM), ("connect-accept-encoding", "gzip")]
        if gzip:
            headers.append(("connect-content-encoding", "gzip"))
        return StreamResponse(self._envelopes(method, request, gzip), tuple(headers))

    async def _envelopes(
        self, method: Method, request: Request, gzip: bool
    ) -> AsyncIterator[bytes]:
        begun = time.monotonic()
        end: dict[str, Any] = {}
        try:
            timeout_s = _timeout(request.headers)
            _check_version(request.headers)
            bound = self._bind(method)
            encoding = request.headers.get("connect-content-encoding", "identity")
            message = codec.decode(method.request, _open_envelope(request.body, encoding))
            source = _Source(self._pools, bound, message, method)
            ends = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
            try:
                await source.open(ends, self._stopped)
                yield b""  # the head of the answer says that the service listens
                while (body := await source.next(ends, self._stopped)) is not None:
                    yield _envelope(0, body, gzip)
            finally:
                source.close()
        except Exception as error:  # the border, as above
            end = {"error": _error_body(self._failed(method, error))}
        else:
            self._count(method, "ok")
        self._log(method, request, 500 if end else 200, begun)
        yield _envelope(_END, msgspec.json.encode(end), gzip)


class _Source:
    """A service's iterator, read one item at a time in a thread."""

    def __init__(
        self,
        pools: Pools,
        bound: Callable[[Message], Any],
        message: Message,
        method: Method,
    ) -> None:
        self._pools = pools
        self._call: Callable[[], Iterator[dict[str, Any]]] = lambda: iter(bound(message))
        self._method = method
        self._items: Iterator[dict[str, Any]] = iter(())
        self._running: asyncio.Future[bytes | None] | None = None
        self._closed = False

    async def open(self, ends: float | None, stopped: asyncio.Future[None]) -> None:
        """Make the call: from here on nothing is missed."""
        await self._run(self._begin, ends, stopped)

    async def next(self, ends: float | None, stopped: asyncio.Future[None]) -> bytes | None:
        """The next item, encoded; None at the end."""
        return await self._run(self._step, ends, stopped)

    async def _run(
        self,
        work: Callable[[], bytes | None],
        ends: float | None,
        stopped: asyncio.Future[None],
    ) -> bytes | None:
        running = self._running = self._pools.submit("stream", work)
        left = None if ends is None else max(0.0, ends - asyncio.get_running_loop().time())
        # wait() cancels nothing: `close` must see whether the thread still waits.
        await asyncio.wait((running, stopped), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        if stopped.done():
            raise _Stopping(f"{self._method.name}: the service stops", hint="connect again")
        raise DeadlineExceeded(f"{self._method.name}: its time is over")

    def _begin(self) -> None:
        self._items = self._call()
        if self._closed:
            self._close_items()

    def _step(self) -> bytes | None:
        try:
            item = next(self._items, None)
        finally:
            if self._closed:
                self._close_items()
        return None if item is None else codec.encode(self._method.response, item)

    def close(self) -> None:
        """Let the service know that nobody listens; may be called while `next` waits."""
        self._closed = True
        waits = False
        if self._running is not None and not self._running.done():
            waits = True
            self._running.add_done_callback(_ignore)
        if not (waits and isinstance(self._items, types.GeneratorType)):
            # A generator that runs cannot be closed (ValueError): its thread does that, in _step.
            self._close_items()

    def _close_items(self) -> None:
        close = getattr(self._items, "close", None)
        if close is not None:
            close()


# --- the words of the protocol ----------------------------------------------------------------


def failure(status: int, code: str, message: str, *headers: tuple[str, str]) -> Response:
    """An answer that says no, in Connect's form."""
    body = msgspec.json.encode({"code": code, "message": message})
    return Response(status, body, (("content-type", JSON), *headers))


def _error_body(error: ScowError) -> dict[str, str]:
    hint = f"; hint: {error.hint}" if error.hint else ""
    return {"code": error.code, "message": _printable(f"{error}{hint}")}


def _error_response(error: ScowError) -> Response:
    too_large = isinstance(error, _TooLarge)
    accept = (("accept-encoding", "gzip"),) if isinstance(error, _UnknownEncoding) else ()
    body = msgspec.json.encode(_error_body(error))
    status = 413 if too_large else error.http_status
    return Response(status, body, (("content-type", JSON), *accept))


def _printable(text: str) -> str:
    # A path or an argument may hold bytes that are not UTF-8 (surrogateescape); JSON may not.
    return text.encode("utf-8", "backslashreplace").decode()


def _as_scow_error(error: Exception) -> ScowError:
    if isinstance(error, ScowError):
        return error
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        about = f" '{error.filename}'" if error.filename else ""
        return ResourceExhausted(f"cannot go on{about}: {(error.strerror or str(error)).lower()}")
    return ScowError(f"internal error: {type(error).__name__}: {error}")


def _ignore(done: asyncio.Future[Any]) -> None:
    """Look at a result that nobody waits for any more, so that asyncio does not complain."""
    if not done.cancelled():
        done.exception()


class _Stopping(ScowError):
    """Another instance will answer."""

    code = "unavailable"
    http_status = 503


class _TooLarge(ResourceExhausted):
    """HTTP has a status of its own for it."""


class _UnknownEncoding(Unsupported):
    """The client is told which one we know."""


def _is_type(header: str, wanted: str) -> bool:
    name, _, parameter = header.partition(";")
    if parameter.strip().lower() not in ("", "charset=utf-8", 'charset="utf-8"'):
        return False
    return name.strip().lower() == wanted


def _check_version(headers: Mapping[str, str]) -> None:
    version = headers.get("connect-protocol-version", "1")
    if version != "1":
        raise InvalidArgument(f"Connect-Protocol-Version must be 1, not '{version[:64]}'")


def _timeout(headers: Mapping[str, str]) -> float | None:
    text = headers.get("connect-timeout-ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InvalidArgument(f"Connect-Timeout-Ms must have 1 to 10 digits, not '{text[:64]}'")
    return int(text) / 1000


async def _within(
    timeout_s: float | None, running: asyncio.Future[Response], method: Method
) -> Response:
    try:
        async with asyncio.timeout(timeout_s):
            # Shielded: a thread cannot be stopped, and a call is never left half-done.
            return await asyncio.shield(running)
    except TimeoutError:
        if running.done():
            raise  # the service's own
        running.add_done_callback(_ignore)
        raise DeadlineExceeded(
            f"{method.name}: not done within {timeout_s:g} s", hint="it goes on; ask for its status"
        ) from None


def _unpack(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        unpacker = zlib.decompressobj(wbits=31)
        try:
            body = unpacker.decompress(body, codec.BODY_MAX + 1)
        except zlib.error as error:
            raise InvalidArgument(f"the body is not gzip: {error}") from None
        if not unpacker.eof and len(body) <= codec.BODY_MAX:
            raise InvalidArgument("the body is not gzip: it ends too early")
    elif encoding != "identity":
        raise _UnknownEncoding(f"cannot decode a body in '{encoding[:64]}', only gzip")
    if len(body) > codec.BODY_MAX:
        raise _TooLarge(f"a message may have {codec.BODY_MAX} bytes, this one has more")
    return body


def _pack(body: bytes) -> bytes:
    from isal import igzip  # several times as fast as zlib

    packed: bytes = igzip.compress(body, 0)
    return packed


def _maybe_gzip(body: bytes, accepted: str) -> Response:
    headers = (("content-type", JSON),)
    if len(body) >= GZIP_MIN and "gzip" in accepted:
        return Response(200, _pack(body), (*headers, ("content-encoding", "gzip")))
    return Response(200, body, headers)


def _open_envelope(body: bytes, encoding: str) -> bytes:
    if len(body) < _PREFIX.size:
        raise InvalidArgument("the body is shorter than an envelope's prefix of 5 bytes")
    flags, length = _PREFIX.unpack_from(body)
    if length != len(body) - _PREFIX.size:
        raise InvalidArgument("a server stream takes one message: the envelope must fill the body")
    if flags not in (0, _COMPRESSED) or (flags and encoding == "identity"):
        raise InvalidArgument(f"the envelope's flags are {flags}, with encoding '{encoding[:64]}'")
    return _unpack(body[_PREFIX.size :], encoding if flags else "identity")


def _envelope(flags: int, body: bytes, gzip: bool) -> bytes:
    if gzip and len(body) >= GZIP_MIN:
        flags, body = flags | _COMPRESSED, _pack(body)
    return _PREFIX.pack(flags, len(body)) + body
