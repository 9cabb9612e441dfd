"""URLs for streams: exec, attach and port-forward answer with one, and the client connects to it.

A URL is good once, for one minute, and cannot be guessed (160 random bits): who has it may use the
stream, as CRI has it. A token lives in memory: after a restart of the service the client asks again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from scow.native.errors import ResourceExhausted

if TYPE_CHECKING:
    import socket

    from scow.runtime.monitor import MonitorConnection

LIFETIME_S = 60.0
TOKENS_MAX = 1000


class ProcessSession(Protocol):
    """What exec and attach make: a process whose streams wait for a client.

    `open` may wait (it runs in a thread); an exec starts its process there. The connection belongs
    to the caller, with output and, where `stdin`, input already asked for. Closing it lets the
    process of an attachment go on, and ends that of an exec if its service says so.
    """

    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool

    def open(self) -> MonitorConnection: ...


class PortSession(Protocol):
    """What port-forward makes: connections to loopback inside the pod's network namespace."""

    ports: Sequence[int]
    """What the client asked for; empty: any."""

    def connect(self, port: int) -> socket.socket: ...


class Streams(Protocol):
    """What the service is given to make URLs with; `kind` is exec, attach or portforward."""

    def token(self, kind: str, session: ProcessSession | PortSession) -> str: ...


class Tokens:
    """The sessions that wait for their client. `base_url` is asked when a URL is made."""

    def __init__(
        self, base_url: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._base_url = base_url
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[float, str, ProcessSession | PortSession]] = {}

    def token(self, kind: str, session: ProcessSession | PortSession) -> str:
        """Note a session and give the URL that leads to it."""
        token = secrets.token_urlsafe(20)
        with self._lock:
            self._forget_old()
            if len(self._waiting) >= TOKENS_MAX:
                raise ResourceExhausted(
                    f"cannot give a URL for {kind}: {TOKENS_MAX} of them wait for their client",
                    hint="each is forgotten after a minute",
                )
            self._waiting[token] = (self._clock() + LIFETIME_S, kind, session)
        return f"{self._base_url()}/{kind}/{token}"

    def take(self, kind: str, token: str) -> ProcessSession | PortSession | None:
        """The session of a token, which is used up by this; None: unknown, used or too old."""
        with self._lock:
            self._forget_old()
            found = self._waiting.get(token)
            if found is None or found[1] != kind:
                return None
            del self._waiting[token]
            return found[2]

    def _forget_old(self) -> None:
        now = self._clock()
        # Insertion order is the order of ends, since every token lives equally long.
        for token in list(self._waiting):
            if self._waiting[token][0] > now:
                break
            del self._waiting[token]
