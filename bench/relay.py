"""A relay to a registry that counts what is asked for, and how many bytes of blobs pass."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 256 << 10


class Relay:
    """Listens on a port of its own while it is used as a context; `host` is what a name begins with."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.requests = 0
        self.blob_bytes = 0
        self.on_bytes: Callable[[int], None] = lambda total: None
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.relay = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._server.server_port}"

    def reset(self) -> None:
        """Count from 0."""
        with self.lock:
            self.requests = self.blob_bytes = 0
            self.on_bytes = lambda total: None

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    relay: Relay
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """A client that was killed is what some cases are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Pass the request on, and the answer back."""
        relay = self.server.relay
        with relay.lock:
            relay.requests += 1
        upstream = http.client.HTTPConnection(relay.upstream, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            upstream.request(self.command, self.path, headers={**headers, "Host": relay.upstream})
            answer = upstream.getresponse()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                self._pass_on(relay, answer)
        finally:
            upstream.close()

    def _pass_on(self, relay: Relay, answer: http.client.HTTPResponse) -> None:
        is_blob = "/blobs/" in self.path
        while data := answer.read1(PIECE):
            self.wfile.write(data)
            if is_blob:
                with relay.lock:
                    relay.blob_bytes += len(data)
                relay.on_bytes(relay.blob_bytes)

    do_HEAD = do_GET
