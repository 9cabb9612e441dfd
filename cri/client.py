"""A client of `scow serve`: CRI's methods as calls, over a unix socket or TCP with mutual TLS.

    with Client("unix:///run/scow/scow.sock") as client:
        pod = client.call("RunPodSandbox", {"config": config}).pod_sandbox_id
        for event in client.stream("GetContainerEvents"):
            ...

Requests are dicts of the proto's own field names, answers have them as attributes
(scow.cri.api.received); what fails raises the error that the service raised. A client belongs to one thread at a time. Exec,
attach and port-forward: scow.cri.client_streams.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from scow.cri.api import codec, received
from scow.cri.api.received import Received
from scow.cri.api.schema import Method, schema
from scow.cri.tls import mutual_context
from scow.native.errors import (
    AlreadyExists,
    DeadlineExceeded,
    IntegrityError,
    InvalidArgument,
    InvalidState,
    NotFound,
    PermissionDenied,
    RegistryError,
    ResourceExhausted,
    ScowError,
    Unsupported,
)
from scow.native.fd import Closing

DEFAULT_ADDRESS = "unix:///run/scow/scow.sock"
CONNECT_S = 10.0
GRACE_S = 5.0
"""How much later than the service we give up: its answer says more than our own clock."""

_PREFIX = struct.Struct(">BI")
_END = 2
_ERRORS: dict[str, type[ScowError]] = {
    error.code: error
    for error in (
        AlreadyExists,
        DeadlineExceeded,
        IntegrityError,
        InvalidArgument,
        InvalidState,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        Unsupported,
    )
}


class Unavailable(RegistryError):
    """The service cannot be reached, or it stops just now."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files: our certificate and key, and the authority that the service's certificate is from."""

    certificate: str
    key: str
    ca: str

    def context(self) -> ssl.SSLContext:
        """TLS 1.3, both sides known."""
        return mutual_context(ssl.PROTOCOL_TLS_CLIENT, self.certificate, self.key, self.ca)


class Client(Closing):
    """One service, by its address; a connection is made when needed and kept."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, tls: ClientTls | None = None) -> None:
        self.address = address
        parts = urlsplit(address if "://" in address else f"unix://{address}")
        self._path = parts.path if parts.scheme == "unix" else None
        self._host, self._port = "scow", 0
        self._tls: ssl.SSLContext | None = None
        if self._path is None:
            self._host, self._port = self._tcp(parts.scheme, parts.netloc, tls)
        self._connection: http.client.HTTPConnection | None = None

    def _tcp(self, scheme: str, netloc: str, tls: ClientTls | None) -> tuple[str, int]:
        parts = urlsplit(f"//{netloc}")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if scheme not in ("tcp", "http") or not host or not port:
            raise InvalidArgument(
                f"'{self.address}' is no address of a service",
                hint="unix:///run/scow/scow.sock, tcp://host:7443 (TLS) or http://127.0.0.1:7480",
            )
        if scheme == "tcp":
            if tls is None:
                raise InvalidArgument(f"'{self.address}' needs a client certificate, key and CA")
            self._tls = tls.context()
        return host, port

    @property
    def is_local(self) -> bool:
        """Whether the service is on this machine for certain: its files are ours."""
        return self._path is not None

    # --- calls --------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        request: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Received:
        """Call a unary method by its CRI name. With `timeout_s` the service, too, gives up then."""
        found = method_named(method)
        body = codec.encode(found.request, dict(request or {}))
        answer = self._post(found, "application/json", body, timeout_s)
        data = self._read(answer)
        if answer.status != 200:
            raise error_of(data, answer.status)
        return received.read(found.response, data)

    def stream(
        self,
        method: str,
        request: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Iterator[Received]:
        """Call a method that streams; closing the iterator ends the call."""
        found = method_named(method)
        body = codec.encode(found.request, dict(request or {}))
        envelope = _PREFIX.pack(0, len(body)) + body
        answer = self._post(found, "application/connect+json", envelope, timeout_s)
        if answer.status != 200:
            raise error_of(self._read(answer), answer.status)
        try:
            while True:
                flags, length = _PREFIX.unpack(self._exactly(answer, _PREFIX.size))
                data = self._exactly(answer, length)
                if flags & _END:
                    answer.read()
                    if b'"error"' in data:
                        raise error_of(data, 200)
                    return
                yield received.read(found.response, data)
        finally:
            if not answer.isclosed():
                self.close()  # what is left of the answer would be in the way of the next one

    def text(self, path: str) -> str:
        """Read one of the pages: /healthz, /metrics, /openapi.json."""
        connection = self._connected(CONNECT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        data = self._read(answer)
        if answer.status != 200:
            raise error_of(data, answer.status)
        return data.decode()

    def connect(self) -> socket.socket:
        """A new connection to the service, for a stream URL."""
        sock = self._connect_plain()
        if self._tls is None:
            return sock
        try:
            return self._tls.wrap_socket(sock, server_hostname=self._host)
        except OSError as error:
            sock.close()
            raise self._unreachable(error) from error

    # --- the connection -----------------------------------------------------------------------

    def _post(
        self, method: Method, kind: str, body: bytes, timeout_s: float | None
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": kind, "Connect-Protocol-Version": "1"}
        if timeout_s is not None:
            headers["Connect-Timeout-Ms"] = str(max(1, int(timeout_s * 1000)))
        connection = self._connected(None if timeout_s is None else timeout_s + GRACE_S)
        try:
            connection.request("POST", method.path, body, headers)
            return connection.getresponse()
        except TimeoutError as error:
            self.close()
            raise DeadlineExceeded(f"{method.name}: no answer in time: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error

    def _connected(self, timeout_s: float | None) -> http.client.HTTPConnection:
        if self._connection is not None and _is_stale(self._connection.sock):
            self.close()
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, self._port or None)
            self._connection.sock = self.connect()
        self._connection.sock.settimeout(timeout_s)
        return self._connection

    def _connect_plain(self) -> socket.socket:
        try:
            if self._path is None:
                return socket.create_connection((self._host, self._port), CONNECT_S)
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(CONNECT_S)
                sock.connect(self._path)
            except BaseException:
                sock.close()
                raise
            return sock
        except OSError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"cannot reach the service at '{self.address}': {error.strerror or error}",
            hint="is it running? 'systemctl status scow', or 'scow serve'",
        )

    def _lost(self, error: Exception) -> Unavailable:
        self.close()
        return Unavailable(f"lost the service at '{self.address}': {error}")

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        try:
            return answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error

    def _exactly(self, answer: http.client.HTTPResponse, size: int) -> bytes:
        try:
            data = answer.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        if len(data) != size:
            raise self._lost(ConnectionError("the stream ended in the middle"))
        return data

    def close(self) -> None:
        """Hang up; the next call connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def method_named(name: str) -> Method:
    """The method of either service that has this CRI name."""
    for method in schema().methods.values():
        if method.name == name:
            return method
    raise InvalidArgument(f"CRI has no method '{name}'")


def error_of(body: bytes, status: int) -> ScowError:
    """The error that an answer tells of."""
    try:
        found = codec.parse(body)
        told = found.get("error", found)
        code, message = told["code"], told["message"]
    except (InvalidArgument, AttributeError, KeyError, TypeError):
        return ScowError(f"the service answered with HTTP status {status}")
    text, _, hint = str(message).partition("; hint: ")
    kind = Unavailable if code == "unavailable" else _ERRORS.get(code, ScowError)
    return kind(text, hint=hint or None)


def _is_stale(sock: socket.socket | None) -> bool:
    # Between two calls nothing comes but the end of an idle connection. Sending on it would fail
    # after the fact, when nobody can tell whether the call was made.
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
