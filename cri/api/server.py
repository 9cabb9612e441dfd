"""The server: listeners, connections, which path leads where, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import msgspec

from scow.cri.api import metrics_text
from scow.cri.api.channels import serve_process
from scow.cri.api.connect import Caller, failure
from scow.cri.api.forward import ports_of, serve_ports
from scow.cri.api.http import Answer, Connection, Peer, Request, Response, Upgrade
from scow.cri.api.listeners import Listener, is_loopback, unix_peer
from scow.cri.api.pools import Pools
from scow.cri.api.tokens import PortSession, ProcessSession, Tokens
from scow.cri.api.websocket import PROTOCOLS, WebSocket, handshake
from scow.native.errors import InvalidArgument, ScowError, Unsupported

CONNECTIONS_MAX = 1024
GRACE_S = 20.0
"""How long calls that run may take to end when the service stops."""
TLS_HANDSHAKE_S = 10.0
READ_LIMIT = 64 * 1024

_JSON = ("content-type", "application/json")
_HTML = ("content-type", "text/html; charset=utf-8")
_TEXT = ("content-type", "text/plain; charset=utf-8")
# The page has its style and script inside and talks to nobody but us.
_POLICY = (
    "content-security-policy",
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'",
)
_RUNTIME = "/runtime.v1.RuntimeService"

Labelled = dict[tuple[str, ...], int]

log = logging.getLogger("scow.api")


class Server:
    """Serves two services on any number of listeners. Make it inside the running loop."""

    def __init__(
        self, services: Mapping[str, object], tokens: Tokens, openapi: Mapping[str, Any]
    ) -> None:
        self._pools = Pools()
        self._caller = Caller(services, self._pools)
        self._tokens = tokens
        self._openapi = msgspec.json.encode(openapi)
        with open(os.path.join(os.path.dirname(__file__), "page.html"), "rb") as file:
            self._page = file.read()
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def busy_calls(self) -> int:
        """How many calls have not ended."""
        return sum(self._pools.busy().values())

    async def run(self, listeners: list[Listener], stop: asyncio.Event) -> None:
        """Serve until `stop` is set and what ran then has ended; the listeners are closed by this."""
        servers = [await self._listen(listener) for listener in listeners]
        try:
            await stop.wait()
        finally:
            await _stop_accepting(servers)
            for listener in listeners:
                listener.close()
            await self._finish()
            self._pools.close()

    async def _listen(self, listener: Listener) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(listener, reader, writer)

        handshake_s = TLS_HANDSHAKE_S if listener.tls else None
        start = asyncio.start_unix_server if listener.is_unix else asyncio.start_server
        return await start(
            serve,
            sock=listener.sock.dup(),
            ssl=listener.tls,
            ssl_handshake_timeout=handshake_s,
            limit=READ_LIMIT,
            backlog=CONNECTIONS_MAX,
        )

    async def _serve(
        self, listener: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(reader, writer, _peer(listener, writer), self)
        self._connections[task] = connection
        try:
            await connection.run()
        except asyncio.CancelledError:
            writer.transport.abort()  # the service stops and this one took too long
        except Exception as error:  # one connection's fault must not end the others
            log.error("connection of %s: %s", connection.peer.text, error, exc_info=error)
            writer.transport.abort()
        finally:
            del self._connections[task]

    async def _finish(self) -> None:
        """Let calls that run come to their end; idle connections and streams end at once."""
        self._caller.stop()
        self._stopped.set_result(None)
        for connection in self._connections.values():
            connection.stopping = True
            if not connection.is_busy:
                connection.writer.close()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=GRACE_S)
        left = list(self._connections)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # --- paths --------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Answer:
        """Answer one request. Paths are compared as they came: nothing is decoded or cleaned."""
        if (refused := _refuse_foreign(request)) is not None:
            return refused
        kind, _, token = request.path.removeprefix("/").partition("/")
        if kind in ("exec", "attach", "portforward") and token:
            return self._open_stream(request, kind, token)
        if request.peer.streams_only:
            return failure(404, "not_found", "only stream URLs are served here")
        if request.path == "/healthz":
            return _get(request, b"ok\n", _TEXT)
        if len(self._connections) > CONNECTIONS_MAX:
            return failure(503, "unavailable", f"more than {CONNECTIONS_MAX} connections", _CLOSE)
        if request.path.startswith("/runtime.v1."):
            return await self._caller.answer(request)
        if request.path == "/metrics":
            return await self._metrics(request)
        if request.path == "/openapi.json":
            return _get(request, self._openapi, _JSON)
        if request.path == "/":
            return _get(request, self._page, _HTML, _POLICY)
        return failure(404, "not_found", f"there is nothing at '{request.path[:256]}'")

    def refusal(self, status: int, reason: str) -> Response:
        """What a request that is not good HTTP is told."""
        codes = {408: "deadline_exceeded", 413: "resource_exhausted", 431: "resource_exhausted"}
        return failure(status, codes.get(status, "invalid_argument"), f"bad request: {reason}")

    async def _metrics(self, request: Request) -> Response:
        try:
            described = await self._caller.call(f"{_RUNTIME}/ListMetricDescriptors")
            measured = await self._caller.call(f"{_RUNTIME}/ListPodSandboxMetrics")
        except Unsupported:
            described, measured = {}, {}
        except ScowError as error:
            return failure(error.http_status, error.code, str(error))
        text = metrics_text.render(
            described.get("descriptors", ()), measured.get("pod_metrics", ()), self._own_metrics()
        )
        return _get(request, text, ("content-type", metrics_text.CONTENT_TYPE))

    def _own_metrics(self) -> list[metrics_text.Family]:
        counts: Labelled = dict(sorted(self._caller.counts.items()))
        busy: Labelled = {(kind,): count for kind, count in self._pools.busy().items()}
        return [
            metrics_text.Family(
                "scow_api_calls_total",
                "counter",
                "Calls that have ended.",
                ("method", "code"),
                counts,
            ),
            metrics_text.Family(
                "scow_api_busy_calls", "gauge", "Calls that run or wait.", ("kind",), busy
            ),
            metrics_text.Family(
                "scow_api_connections",
                "gauge",
                "Connections that are open.",
                (),
                {(): len(self._connections)},
            ),
        ]

    # --- streams ------------------------------------------------------------------------------

    def _open_stream(self, request: Request, kind: str, token: str) -> Answer:
        chosen = handshake(request)
        if isinstance(chosen, Response):
            return chosen
        session = self._tokens.take(kind, token)
        if session is None:
            text = "this URL is unknown, used, or older than a minute"
            return failure(404, "not_found", text)
        protocol, headers = chosen
        try:
            run = self._stream_runner(request, kind, session, protocol)
        except InvalidArgument as error:
            return failure(400, error.code, str(error))
        log.info("%s opens %s", request.peer.text, kind)
        return Upgrade(headers, run)

    def _stream_runner(
        self, request: Request, kind: str, session: ProcessSession | PortSession, protocol: str
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]:
        half = protocol == PROTOCOLS[0]
        if kind == "portforward":
            to_ports = cast("PortSession", session)  # the kind of a token says what it is for
            ports = ports_of(to_ports, request.query)
            return lambda reader, writer, ahead: serve_ports(
                WebSocket(reader, writer, ahead),
                to_ports,
                ports,
                can_half_close=half,
                pools=self._pools,
                stopped=self._stopped,
            )
        to_process = cast("ProcessSession", session)
        return lambda reader, writer, ahead: serve_process(
            WebSocket(reader, writer, ahead),
            to_process,
            is_exec=kind == "exec",
            can_half_close=half,
            pools=self._pools,
            stopped=self._stopped,
        )


async def _stop_accepting(servers: list[asyncio.Server]) -> None:
    """Close the servers when whoever was just accepted has become a connection of ours.

    Python 3.11: to close a server between accept(2) and the making of the transport leaves a socket
    that nobody closes. So first no more is accepted, then the loop turns, then they are closed.
    """
    loop = asyncio.get_running_loop()
    for server in servers:
        for sock in server.sockets:
            loop.remove_reader(sock.fileno())
    for _ in range(10):
        await asyncio.sleep(0)
    for server in servers:
        server.close()


_CLOSE = ("connection", "close")


def _get(request: Request, body: bytes, *headers: tuple[str, str]) -> Response:
    if request.method not in ("GET", "HEAD"):
        return failure(405, "unimplemented", "this is read by GET", ("allow", "GET, HEAD"))
    return Response(200, body, (*headers, ("cache-control", "no-store")))


def _refuse_foreign(request: Request) -> Response | None:
    """Refuse what a web page of somebody else makes a browser send to loopback.

    A name that is not ours in Host is DNS rebinding; an Origin that is not us is another site.
    """
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if request.peer.is_plain and name.lower() != "localhost" and not is_loopback(name.strip("[]")):
        return failure(403, "permission_denied", "the Host header does not name loopback")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return failure(403, "permission_denied", "requests of other sites are not taken")
    return None


def _peer(listener: Listener, writer: asyncio.StreamWriter) -> Peer:
    sock = writer.get_extra_info("socket")
    if listener.is_unix:
        pid, uid = unix_peer(sock)
        return Peer(f"pid {pid} uid {uid}", is_local=True)
    with contextlib.suppress(OSError):
        # A peer whose machine is gone says nothing: the kernel asks for it (tcp(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    address = writer.get_extra_info("peername") or ("?", 0)
    text = f"{address[0]}:{address[1]}"
    certificate = writer.get_extra_info("peercert")
    if certificate:
        names = [pair[1] for part in certificate.get("subject", ()) for pair in part]
        name = ", ".join(names)
        # A line of the log is ours alone: a name may hold whatever its authority let pass.
        text = f"{text} ({''.join(c if c.isprintable() else '?' for c in name)})"
    return Peer(text, is_plain=listener.tls is None, streams_only=listener.streams_only)
