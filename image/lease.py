"""Leases: what a pull under way needs, so that the collector leaves it alone.

What belongs here: the files `ingest/lease-PID-TIME`. A lease lives as long as somebody holds the flock
on its file: the kernel gives that back with the process, and no clock, no pid that was used again and
no reboot can make a dead one look alive. The wall clock only says how long a dead one's leftovers
are kept for a retry.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from scow.image.digest import DiffID, Digest
from scow.image.files import read_exactly, storage_errors, write_all
from scow.native.failpoint import failpoint
from scow.native.fd import Closing

if TYPE_CHECKING:
    from scow.image.content import ContentStore

MAX_LEASE_BYTES = 16 << 20
Around = Callable[[Callable[[], None]], None]


class _Held(msgspec.Struct):
    blobs: list[str] = []
    layers: list[str] = []


class LeaseRecord(msgspec.Struct, frozen=True):
    """What the collector sees of a lease. `age_s` is negative when the clock was put back."""

    path: str
    is_alive: bool
    age_s: float
    blobs: frozenset[str]
    layers: frozenset[str]


class Lease(Closing):
    """A promise of the collector not to touch some content."""

    def __init__(self, store: ContentStore, path: str, fd: int, make_room: Around) -> None:
        self._store = store
        self._make_room = make_room
        self.path = path
        self.is_finished = False
        self._fd = fd
        self._held = _Held()

    def hold(
        self, *, blobs: list[Digest] | None = None, layers: list[DiffID] | None = None
    ) -> None:
        """Add content; do so before looking whether it is there."""
        self._held.blobs += blobs or []
        self._held.layers += layers or []
        with self._store.locked():
            self._make_room(self._write)

    def _write(self) -> None:
        with storage_errors(self.path):
            failpoint("lease.hold")
            os.lseek(self._fd, 0, os.SEEK_SET)
            write_all(self._fd, msgspec.json.encode(self._held))  # only ever longer than before

    def finish(self) -> None:
        """All of it is named by the index now: the record has no further use."""
        self.is_finished = True

    def close(self) -> None:
        """End the promise; closing twice is fine.

        Unless `finish` was called the record stays, dead: a retry finds the content still there, and
        the collector finds what nobody came back for.
        """
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                if self.is_finished or not (self._held.blobs or self._held.layers):
                    failpoint("lease.end")
                    os.unlink(self.path)
            finally:
                os.close(fd)


def open_lease(store: ContentStore, make_room: Around = lambda write: write()) -> Lease:
    """Begin a lease; the caller holds the store's lock. `make_room` is around what it writes later."""
    path = os.path.join(store.ingest_dir, f"lease-{os.getpid()}-{time.monotonic_ns()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with storage_errors(path):
        failpoint("lease.begin")
        fd = os.open(path, flags, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return Lease(store, path, fd, make_room)


def read_lease(path: str) -> LeaseRecord | None:
    """A lease, alive or left by a pull that failed or died; None for what is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        is_alive = False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_alive = True
        status = os.fstat(fd)
        try:
            data = read_exactly(fd, min(status.st_size, MAX_LEASE_BYTES))
            held = msgspec.json.decode(data, type=_Held)
        except (ValueError, OSError):
            held = _Held()  # its process died before or while it wrote: then it holds nothing
        age_s = time.time() - status.st_mtime
        return LeaseRecord(path, is_alive, age_s, frozenset(held.blobs), frozenset(held.layers))
    finally:
        os.close(fd)
