"""How long a registry may take over one piece of an answer, however often it sends a byte.

What belongs here: the clock below http.client, which has none: its time limit is for a single recv(2), so a
head that drips, interim answers without end, a chunk's length or trailers that never end would hold a pull
for ever. What must not: how long that is for a whole body (transport.py).
"""

from __future__ import annotations

import errno
import io
import time
from http.client import HTTPResponse
from socket import socket
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

# Times the limit for silence: a head, or a call for more of the body, takes no longer.
SILENCES = 5


class _Clocked(io.RawIOBase):
    """The raw end of an answer, until a deadline."""

    def __init__(self, raw: io.RawIOBase, limit_s: float | None) -> None:
        self._raw = raw
        self._limit_s = limit_s
        self.restart()

    def restart(self) -> None:
        """The next piece begins."""
        self._until = float("inf") if self._limit_s is None else time.monotonic() + self._limit_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._until:
            raise OSError(errno.ETIME, "it sends too slowly")
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class Answer(HTTPResponse):
    """http.client's, with a clock."""

    def __init__(self, sock: socket, *words: Any, **more: Any) -> None:
        super().__init__(sock, *words, **more)
        silence_s = sock.gettimeout()
        limit_s = None if silence_s is None else SILENCES * silence_s
        self._clocked = _Clocked(self.fp.detach(), limit_s)
        self.fp = io.BufferedReader(self._clocked)

    def read(self, amt: int | None = None) -> bytes:
        """See HTTPResponse."""
        self._clocked.restart()
        return super().read(amt)

    def read1(self, n: int = -1) -> bytes:
        """See HTTPResponse."""
        self._clocked.restart()
        return super().read1(n)


class _PlainConnection(HTTPConnection):
    response_class = Answer


class _TlsConnection(HTTPSConnection):
    response_class = Answer


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection  # pyright: ignore[reportAssignmentType]  # as urllib3's own


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection  # pyright: ignore[reportAssignmentType]  # as urllib3's own


POOLS: dict[str, type[HTTPConnectionPool]] = {"http": _PlainPool, "https": _TlsPool}
