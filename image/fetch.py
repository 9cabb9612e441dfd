"""Blobs into the content store as they are, several at once: artifacts, and layers that were dropped.

What belongs here: what install.py does for layers, without unpacking. What must not: which blobs are
wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

from scow.image.digest import digest_bytes
from scow.image.install import has_another_source
from scow.image.manifest import Descriptor
from scow.image.progress import ProgressSink, SilentProgress
from scow.image.ranges import Fetcher
from scow.image.stall import StallWatch
from scow.image.tee import PARALLEL_BLOBS, BlobTee, Turn, stop_of
from scow.image.workers import Workers
from scow.native.errors import IntegrityError, ScowError

if TYPE_CHECKING:
    from scow.image.content import BlobIngest
    from scow.image.install import BlobSource
    from scow.image.store import ImageStore

EMPTY = b"{}"  # image-spec manifest.md, "Guidance for an Empty Descriptor": needs no request
EMPTY_DIGEST = digest_bytes(EMPTY)


def fetch_all(
    store: ImageStore,
    source: BlobSource,
    blobs: Iterable[Descriptor],
    progress: ProgressSink | None = None,
    *,
    explain: Callable[[Descriptor, ScowError], ScowError] = lambda blob, error: error,
) -> None:
    """Have all of these blobs here, each verified; the caller's lease holds them.

    The first failure ends all; `explain` may put it in better words.
    """
    stop = stop_of(source)
    watch = StallWatch(progress or SilentProgress())
    # The largest first: else the end is one long blob alone.
    wanted = sorted({blob.digest: blob for blob in blobs}.values(), key=lambda blob: -blob.size)
    with Fetcher(source, stop) as fetcher, Workers(PARALLEL_BLOBS, "scow-blob") as pool:
        work = _Fetch(store, fetcher, watch, Turn(stop))
        waiting = {pool.submit(work.one, blob, explain) for blob in wanted}
        watch.see_to_end(waiting, stop)


class _Fetch:
    """What the blobs of one call have in common."""

    def __init__(self, store: ImageStore, source: Fetcher, watch: StallWatch, turn: Turn) -> None:
        self._content = store.content
        self._source = source
        self._watch = watch
        self._turn = turn

    def one(self, blob: Descriptor, explain: Callable[[Descriptor, ScowError], ScowError]) -> None:
        """Have one blob here."""
        if self._content.has_blob(blob.digest, blob.size):
            self._watch.exists(blob.digest, blob.size)
            return
        self._watch.start(blob.digest, blob.size)
        try:
            self._get(blob)
        except ScowError as e:
            raise explain(blob, e) from e
        self._watch.done(blob.digest)

    def _get(self, blob: Descriptor) -> None:
        inline = EMPTY if blob.digest == EMPTY_DIGEST else blob.data
        if inline is not None and len(inline) == blob.size:
            self._content.write_blob(inline, blob.digest)
            return
        path = self._content.ingest_path(blob.digest)
        look = self._watch.growing(path, self._turn.stop.is_set)
        ingest = self._content.ingest(blob.digest, blob.size, look)
        self._watch.arrived(path)
        if ingest is None:
            return
        with ingest:
            may_resume = True
            while not self._attempt(ingest, blob, may_resume=may_resume):
                # What a dead attempt or a bad mirror left is no part of this blob: again, from 0.
                self._watch.restarted(blob.digest)
                may_resume = False

    def _attempt(self, ingest: BlobIngest, blob: Descriptor, *, may_resume: bool) -> bool:
        """Fetch it; False when it turned out damaged and another try is worth it."""
        if not may_resume:
            ingest.restart()
        was_resumed = ingest.resumable_bytes > 0
        try:
            with closing(BlobTee(ingest, self._source, blob, self._watch, self._turn)) as tee:
                tee.drain()
            ingest.commit()
        except IntegrityError:
            if was_resumed or has_another_source(self._source, blob.digest):
                return False
            ingest.discard()
            raise
        return True
