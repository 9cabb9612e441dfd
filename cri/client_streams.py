"""The client's side of exec, attach and port-forward: channels over a WebSocket.

stream = ProcessStream.open(client, client.call("Exec", {...}).url)
stream.send_stdin(b"...")
for channel, data in stream.output():
    ...
code = stream.exit_code
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
)
from wsproto.utilities import RemoteProtocolError

from scow.cri.client import Client, Unavailable, error_of
from scow.native.errors import ScowError
from scow.native.fd import Closing

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
PROTOCOL = "v5.channel.k8s.io"
READ_BYTES = 65536


class Channels(Closing):
    """Messages of (channel, bytes), both ways, until the service closes."""

    def __init__(self, client: Client, url: str) -> None:
        """Connect to a stream URL, by way of the service that gave it, whatever host it names."""
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        self._sock = client.connect()
        self._sock.settimeout(None)
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._parts: list[bytes] = []
        self._events: Iterator[Event] = iter(())
        try:
            self._shake_hands(target)
        except BaseException:
            self._sock.close()
            raise

    def _shake_hands(self, target: str) -> None:
        request = Request(host="localhost", target=target, subprotocols=[PROTOCOL])
        self._sock.sendall(self._ws.send(request))
        rejected: bytes | None = None
        status = 0
        while True:
            event = self._next_event()
            if isinstance(event, AcceptConnection):
                return
            if isinstance(event, RejectConnection):
                rejected, status = b"", event.status_code
                if not event.has_body:
                    raise error_of(b"", status)
            elif isinstance(event, RejectData) and rejected is not None:
                rejected += bytes(event.data)
                if event.body_finished:
                    raise error_of(rejected, status)
            elif event is None:
                raise Unavailable("the service hung up instead of opening the stream")

    def _next_event(self) -> Event | None:
        while True:
            for event in self._events:
                return event
            try:
                data = self._sock.recv(READ_BYTES)
                self._ws.receive_data(data or None)
                self._events = self._ws.events()
            except (OSError, RemoteProtocolError):
                return None
            if not data:
                return next(self._events, None)

    def send(self, channel: int, data: bytes) -> None:
        """Send on a channel; waits while the service does not read. ConnectionError: it is gone."""
        self._sock.sendall(self._ws.send(BytesMessage(bytes((channel,)) + data)))

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """What the service sends, until it closes."""
        while (event := self._next_event()) is not None:
            if isinstance(event, BytesMessage):
                self._parts.append(bytes(event.data))
                if event.message_finished:
                    message = b"".join(self._parts)
                    self._parts.clear()
                    if message:
                        yield message[0], message[1:]
            elif isinstance(event, Ping):
                self._sock.sendall(self._ws.send(event.response()))
            elif isinstance(event, CloseConnection):
                try:
                    self._sock.sendall(self._ws.send(event.response()))
                except OSError:
                    pass  # it has said all
                return

    def fileno(self) -> int:
        """For poll; with TLS there may be more than it shows, so read until nothing comes."""
        return self._sock.fileno()

    def close(self) -> None:
        """Hang up; a program that was attached to goes on."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()


class ProcessStream(Channels):
    """An exec or an attachment. One thread may read while another one writes."""

    def __init__(self, client: Client, url: str) -> None:
        super().__init__(client, url)
        self.exit_code: int | None = None
        """Known when `output` has ended; of an attachment always 0."""

    def send_stdin(self, data: bytes) -> None:
        """Give the process input."""
        self.send(STDIN, data)

    def close_stdin(self) -> None:
        """End the process's input; its output goes on."""
        self.send(CLOSE, bytes((STDIN,)))

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size."""
        self.send(RESIZE, json.dumps({"Width": width, "Height": height}).encode())

    def output(self) -> Iterator[tuple[int, bytes]]:
        """(STDOUT or STDERR, bytes) until the process ends; then `exit_code` is set.

        ScowError: it could not be started, or the stream broke.
        """
        for channel, data in self.messages():
            if channel == ERROR:
                self.exit_code = _exit_code(data)
            elif channel in (STDOUT, STDERR):
                yield channel, data
        if self.exit_code is None:
            raise Unavailable("the stream ended before the process did")


class PortStream(Channels):
    """A connection to one port in a pod."""

    def read(self) -> Iterator[bytes]:
        """What the program sends, until it closes. ScowError: nobody listens there."""
        heads = {0: b"", 1: b""}
        for channel, data in self.messages():
            if channel in heads and len(heads[channel]) < 2:
                heads[channel] += data  # the port's number, which we know
                continue
            if channel == 1:
                raise ScowError(data.decode("utf-8", "replace"))
            yield data

    def write(self, data: bytes) -> None:
        """Send to the program."""
        self.send(0, data)

    def close_write(self) -> None:
        """End what we send; the program's answer still comes."""
        self.send(CLOSE, struct.pack("B", 0))


def _exit_code(data: bytes) -> int:
    status = json.loads(data)
    if status.get("status") == "Success":
        return 0
    causes = status.get("details", {}).get("causes", ())
    codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
    if codes and status.get("reason") == "NonZeroExitCode":
        return codes[0]
    error = ScowError(status.get("message") or "the stream failed")
    if codes:
        error.exit_code = codes[0]  # 127: there is no such program; 126: it is none
    raise error
