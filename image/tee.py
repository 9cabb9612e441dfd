"""A blob's bytes on their way in: to its file and to the unpacker at once.

What belongs here: the stream of one blob, and who may have one. What must not: what becomes of it
(install.py), where the bytes come from.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from scow.native.errors import ScowError

if TYPE_CHECKING:
    from scow.image.content import BlobIngest
    from scow.image.install import Chunks
    from scow.image.manifest import Descriptor
    from scow.image.progress import ProgressSink
    from scow.image.ranges import Fetcher

PARALLEL_BLOBS = 3  # as Docker; a zstd layer takes its window beside, 8 MiB as most tools write it


class Cancelled(ScowError):
    """This layer was given up because another one failed."""


def stop_of(source: object) -> threading.Event:
    """What ends all work on a source: its own event, which ends its waiting, too, or a new one."""
    return getattr(source, "stop", None) or threading.Event()


class Turn:
    """To be held while a blob's bytes come: as many layers as memory allows, and until one fails."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self._free = threading.BoundedSemaphore(PARALLEL_BLOBS)

    def check(self) -> None:
        """Give up with the others."""
        if self.stop.is_set():
            raise Cancelled("given up")

    def __enter__(self) -> None:
        self._free.acquire()
        try:
            self.check()
        except Cancelled:
            self._free.release()
            raise

    def __exit__(self, *exc: object) -> None:
        self._free.release()


class BlobTee:
    """An iterator over a blob's bytes that stores and hashes them on their way to the unpacker."""

    def __init__(
        self,
        ingest: BlobIngest,
        source: Fetcher,
        descriptor: Descriptor,
        progress: ProgressSink,
        turn: Turn,
    ) -> None:
        self.error: BaseException | None = None
        self._ingest = ingest
        self._progress = progress
        self._layer = descriptor.digest
        self._turn = turn
        self._handed_out = 0
        self._chunks = self._run(source, descriptor)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._handed_out:
            self._progress.unpacked(self._layer, self._handed_out)
            self._handed_out = 0
        try:
            chunk = next(self._chunks)
        except StopIteration:
            raise
        except BaseException as e:
            self.error = e
            raise
        self._handed_out = len(chunk)
        return chunk

    def drain(self) -> None:
        """Take what the unpacker did not want: bytes after the end of the archive."""
        for _ in self:
            pass

    def check(self) -> None:
        """Raise IntegrityError if the blob, all of it read by now, is not what its digest says."""
        self._ingest.verify()

    def close(self) -> None:
        """End the transfer; the bytes so far stay where they are."""
        self._chunks.close()

    def _run(self, source: Fetcher, descriptor: Descriptor) -> Chunks:
        with self._turn:
            for chunk in self._ingest.resume():
                self._count(chunk)
                yield chunk
            if self._ingest.offset == descriptor.size and descriptor.size:
                return
            with closing(source.open_blob(descriptor, self._ingest.offset)) as chunks:
                for chunk in chunks:
                    self._ingest.write(chunk)
                    self._count(chunk)
                    yield chunk

    def _count(self, chunk: bytes) -> None:
        self._turn.check()
        self._progress.fetched(self._layer, len(chunk))
