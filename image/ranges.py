"""Fetching a large blob by several connections, where one alone is slow.

What belongs here: when to do it, and putting the parts in order again. What must not: HTTP, files.
The bytes come out in order, so all that is behind (hashing, unpacking, resuming) does not know.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from scow.image.digest import Digest
from scow.image.manifest import Descriptor
from scow.image.workers import Workers
from scow.native.errors import ScowError

if TYPE_CHECKING:
    from scow.image.install import BlobSource, Chunks

PART_BYTES = 4 << 20
# Parts in memory or on their way, of all layers of a pull together.
MAX_PARTS = 5
# A connection that brings more is not what a pull waits for (on loopback it is 300 MB/s and more).
FAST_BYTES_PER_S = 20e6


@runtime_checkable
class RangedSource(Protocol):
    """A source whose `open_blob` also takes an end."""

    has_ranges: bool

    def open_blob(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Chunks:
        """The bytes from `offset` up to `end`; beyond it where the other side knows no ranges."""
        ...


class Fetcher:
    """All downloads of one pull; used as a context."""

    def __init__(self, source: BlobSource, stop: threading.Event) -> None:
        self._source = source
        self._stop = stop
        self._free = threading.Semaphore(MAX_PARTS)
        # Not concurrent.futures' pool: it would wait for a connection that is silent.
        self._pool: Workers | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._pool is not None:
            self._pool.__exit__(kind, *exc)

    def open_blob(self, descriptor: Descriptor, offset: int) -> Chunks:
        """The blob's bytes from `offset` on, in order."""
        source, position = self._source, offset
        if isinstance(source, RangedSource) and descriptor.size - offset > 4 * PART_BYTES:
            waited_s = 0.0
            asked = time.monotonic()
            with closing(source.open_blob(descriptor, offset, offset + PART_BYTES)) as chunks:
                for chunk in chunks:
                    waited_s += time.monotonic() - asked
                    position += len(chunk)
                    yield chunk
                    asked = time.monotonic()
            is_slow = position - offset < FAST_BYTES_PER_S * waited_s
            if is_slow and source.has_ranges:
                yield from self._parts(source, descriptor, position)
                return
        if position < descriptor.size or not descriptor.size:
            with closing(source.open_blob(descriptor, position)) as chunks:
                yield from chunks

    def distrust(self, digest: Digest) -> bool:
        """Whether a blob that was wrong is worth another read: a source with mirrors decides."""
        distrust = getattr(self._source, "distrust", None)
        return distrust is not None and bool(distrust(digest))

    def _parts(
        self, source: RangedSource, descriptor: Descriptor, position: int
    ) -> Iterator[bytes]:
        ahead: deque[Future[bytes]] = deque()
        asked = position  # up to where parts were asked for
        try:
            while position < descriptor.size:
                while asked < descriptor.size and self._free.acquire(blocking=False):
                    end = min(asked + PART_BYTES, descriptor.size)
                    ahead.append(self._submit(source, descriptor, asked, end))
                    asked = end
                if ahead:
                    part = ahead[0].result()
                    ahead.popleft()
                    self._free.release()
                    position += len(part)
                    yield part
                else:  # the other layers have all the room there is
                    end = asked = min(position + PART_BYTES, descriptor.size)
                    for chunk in self._part(source, descriptor, position, end):
                        position += len(chunk)
                        yield chunk
        finally:
            for future in ahead:
                future.cancel()
                self._free.release()

    def _submit(
        self, source: RangedSource, descriptor: Descriptor, offset: int, end: int
    ) -> Future[bytes]:
        with self._lock:
            if self._pool is None:
                self._pool = Workers(MAX_PARTS, "scow-part")
        return self._pool.submit(lambda: b"".join(self._part(source, descriptor, offset, end)))

    def _part(
        self, source: RangedSource, descriptor: Descriptor, offset: int, end: int
    ) -> Iterator[bytes]:
        """Exactly the bytes of the part; who verifies the blob sees if they are the right ones."""
        position = offset
        with closing(source.open_blob(descriptor, offset, end)) as chunks:
            for chunk in chunks:
                if self._stop.is_set():
                    raise ScowError("given up")
                wanted = chunk[: end - position]
                position += len(wanted)
                yield wanted
                if position >= end:
                    return
