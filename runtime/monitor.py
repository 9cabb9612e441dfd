"""The monitor as Python sees it: its connection and the records that it leaves.

What belongs here: the wire of native/protocol.h and the two JSON records of native/exitrec.c. What
must not: when to start, attach or clean up, and what a failure means to a user.

The events and records are msgspec Structs because every command that starts or follows a process
imports this: making them costs 0.4 ms, the same dataclasses 4.4.
"""

from __future__ import annotations

import os
import select
import struct
import time
from typing import TypeAlias

import msgspec

from scow.native.fd import OwnedFd

MESSAGE_MAX = 65536
STDIN_MAX = 16384
"""Of input in one message: the monitor looks at a whole message again each time that the container
takes a part of it."""

NO_INDEX = 0xFFFFFFFF

_FAILURE = struct.Struct("<IiII")
_READY = struct.Struct("<I")
_EXIT = struct.Struct("<iBqq")
_WINSIZE = struct.Struct("<cHH")
_REOPENED = struct.Struct("<i")


class Failure(msgspec.Struct, frozen=True):
    """The fixed record of a step that failed: `step` is an op code or a step of native/spawn.h,
    `index` that of the operation in the plan (-1: none), `detail` what the step says it is."""

    step: int
    errno: int
    index: int = -1
    detail: int = 0


class Ready(msgspec.Struct, frozen=True):
    """The process exists, set up and waiting for `start`; its pid as the host sees it."""

    pid: int


class Started(msgspec.Struct, frozen=True):
    """execve has worked."""


class Failed(msgspec.Struct, frozen=True):
    """Set-up has failed; `Exited` follows when there is a process to bury."""

    failure: Failure
    text: str = ""


class Warned(msgspec.Struct, frozen=True):
    """A step that may fail did; set-up goes on."""

    failure: Failure


class Output(msgspec.Struct, frozen=True):
    """Bytes that the process wrote; stream 1 is stdout (or the terminal), 2 stderr."""

    stream: int
    data: bytes


class Exited(msgspec.Struct, frozen=True):
    """The process has ended, its output is complete, the exit record is written."""

    status: int
    oom_killed: bool
    started_ns: int
    finished_ns: int
    timed_out: bool = False
    """Killed because its time (MonitorConfig.time_limit_ms) was over."""

    @property
    def signal(self) -> int:
        """The signal that ended it, or 0."""
        return self.status & 0x7F

    @property
    def exit_code(self) -> int:
        """Its own exit code, or 128 + the signal."""
        return 128 + self.signal if self.signal else (self.status >> 8) & 0xFF


class Reopened(msgspec.Struct, frozen=True):
    """The answer to `reopen_log`; with an errno the old file goes on."""

    errno: int


class Dropped(msgspec.Struct, frozen=True):
    """The monitor lets go of us; nothing more comes."""

    too_slow: bool
    """Otherwise the monitor has as many clients as it takes."""


Event: TypeAlias = Ready | Started | Failed | Warned | Output | Exited | Reopened | Dropped


class ExitRecord(msgspec.Struct, frozen=True):
    """What the monitor wrote when the process had ended. Times are nanoseconds since 1970;
    `started_at` 0 means that it never started."""

    pid: int
    status: int
    exit_code: int
    signal: int
    oom_killed: bool
    started_at: int
    finished_at: int
    error: Failure | None = None
    log_lost_bytes: int = 0
    """Bytes of output that the disk did not take."""
    log_errno: int = 0
    """Why it did not."""


class StatusRecord(msgspec.Struct, frozen=True):
    """Who runs: a pid names a process only together with its start time (proc(5), field 22)."""

    id: str
    pid: int
    start_time: int
    monitor_pid: int
    monitor_start_time: int
    created_at: int


def read_exit_record(path: str) -> ExitRecord | None:
    """The exit record at `path`; None as long as there is none."""
    data = _read_record(path)
    return None if data is None else msgspec.json.decode(data, type=ExitRecord)


def read_status_record(path: str) -> StatusRecord | None:
    """The status record at `path`; None as long as there is none.

    It is not synced: after a power loss it may be empty, which is as good as none.
    """
    data = _read_record(path)
    return None if not data else msgspec.json.decode(data, type=StatusRecord)


def _read_record(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with OwnedFd(fd):
        return os.read(fd, 65536)


class MonitorConnection(OwnedFd):
    """One connection to a monitor: the control socket of who started it, or one by path.

    `fileno` can be polled: readable means that `recv` does not wait, writable that `send_stdin` takes
    something. Requests raise BrokenPipeError or ConnectionResetError when the monitor is gone;
    what it had said can still be received then.
    """

    __slots__ = ()

    @classmethod
    def pair(cls) -> tuple[MonitorConnection, OwnedFd]:
        """A control socket for a monitor that is to be started: our end, and its end."""
        import socket

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours.detach()), OwnedFd(theirs.detach())

    @classmethod
    def connect(cls, path: str) -> MonitorConnection:
        """Connect to the monitor's path socket.

        FileNotFoundError and ConnectionRefusedError mean that no monitor serves it (any more). The
        current state is told at once: `Ready`, and `Started` if it runs.
        """
        import socket

        directory, name = os.path.split(path)
        # sun_path holds 108 bytes; through the directory's descriptor any length of path will do.
        with (
            OwnedFd(os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as at,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock,
        ):
            try:
                sock.connect(f"/proc/self/fd/{at.fileno()}/{name}")
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            return cls(sock.detach())

    def recv(self, until: float | None = None) -> Event | None:
        """Wait for the next event; None when the monitor has closed the connection.

        Messages of a kind that this version does not know are passed over. TimeoutError at `until`, a
        moment of time.monotonic().
        """
        while True:
            if until is not None and not self._comes(until):
                raise TimeoutError
            try:
                message = os.read(self.fileno(), MESSAGE_MAX)
            except ConnectionResetError:
                continue  # it closed with words of ours unread: said once, ahead of its own words
            if not message:
                return None
            event = _decode(message)
            if event is not None:
                return event

    def wait(self) -> Exited | Failed | None:
        """Wait for the end, passing over everything before it; None: the connection ended first."""
        while True:
            event = self.recv()
            if event is None or isinstance(event, Exited | Failed):
                return event
            if isinstance(event, Dropped):
                return None

    def start(self) -> None:
        """Let the program run, now or as soon as it is set up."""
        self._request(b"s")

    def attach(
        self,
        *,
        stdout: bool = True,
        stderr: bool = True,
        stdin: bool = False,
        lossless: bool = False,
    ) -> None:
        """Ask for output from now on, and for the right to send input.

        With `lossless` the container waits when we read slowly; else we are dropped then. To miss
        nothing attach before `start`.
        """
        flags = stdout * 1 | stderr * 2 | stdin * 4 | lossless * 8
        self._request(bytes((ord("a"), flags)))

    def send_stdin(self, data: bytes) -> int:
        """Send input without waiting; how many bytes were taken, 0 when it must be tried later."""
        sent = 0
        while sent < len(data) and self._has_room():
            piece = data[sent : sent + STDIN_MAX]
            os.write(self.fileno(), b"i" + piece)
            sent += len(piece)
        return sent

    def close_stdin(self) -> bool:
        """End the input after what was sent; False when there is no room for it now.

        The container sees the end only where its input ends with the first client's (stdin_once)
        and is not a terminal.
        """
        return self._try(b"c")

    def resize(self, rows: int, columns: int) -> bool:
        """Set the terminal's size; False when there is no room for it now."""
        return self._try(_WINSIZE.pack(b"w", rows, columns))

    def watch(self) -> None:
        """Promise to clean up after the end; holds as long as this connection lives."""
        self._request(b"W")

    def reopen_log(self) -> None:
        """Open the log's path anew, after it was renamed; `Reopened` is the answer."""
        self._request(b"l")

    def _comes(self, until: float) -> bool:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        while not poll.poll(min(max(0, until - time.monotonic()), 3600) * 1000):
            if time.monotonic() >= until:
                return False
        return True

    def _request(self, message: bytes) -> None:
        os.write(self.fileno(), message)

    def _try(self, message: bytes) -> bool:
        if not self._has_room():
            return False
        self._request(message)
        return True

    def _has_room(self) -> bool:
        # unix(7): writable means that a message of any size of ours is taken whole
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        return bool(poll.poll(0))


def _decode(message: bytes) -> Event | None:
    kind, payload = message[:1], message[1:]
    match kind:
        case b"o" | b"e":
            return Output(1 if kind == b"o" else 2, payload)
        case b"R":
            return Ready(*_READY.unpack_from(payload))
        case b"S":
            return Started()
        case b"F":
            text = payload[_FAILURE.size :].decode(errors="replace")
            return Failed(_decode_failure(payload), text)
        case b"N":
            return Warned(_decode_failure(payload))
        case b"X":
            status, oom_killed, started_ns, finished_ns = _EXIT.unpack_from(payload)
            late = payload[_EXIT.size : _EXIT.size + 1] == b"\x01"
            return Exited(status, bool(oom_killed), started_ns, finished_ns, late)
        case b"L":
            return Reopened(*_REOPENED.unpack_from(payload))
        case b"D":
            return Dropped(too_slow=payload[:1] != b"\x02")
        case _:
            return None


def _decode_failure(payload: bytes) -> Failure:
    step, errno, index, detail = _FAILURE.unpack_from(payload)
    return Failure(step, errno, -1 if index == NO_INDEX else index, detail)
