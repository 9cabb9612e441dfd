"""A pull's own clock: it runs out when nothing at all moves, neither on the network nor on the disk.

What belongs here: what counts as progress. What must not: the network's own limits (transport.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from scow.image.disk_sync import is_syncing
from scow.image.progress import ProgressSink
from scow.native.errors import DeadlineExceeded

STALL_S = 300.0
LOOK_S = 1.0


class StallWatch:
    """A sink that passes everything on, and knows when it last heard of anything."""

    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink
        self._moved = time.monotonic()

    def touch(self) -> None:
        """Something moved."""
        self._moved = time.monotonic()

    def check(self) -> None:
        """Raise DeadlineExceeded if nothing has moved for STALL_S."""
        if is_syncing():  # a disk may take its time
            self.touch()
        elif time.monotonic() - self._moved > STALL_S:
            raise DeadlineExceeded(
                f"the pull made no progress for {STALL_S:.0f} s: nothing was fetched or unpacked",
                hint="what is here stays; pull again to go on. If another pull of this image runs, "
                "this one waits for it",
            )

    def growing(self, path: str, then: Callable[[], bool]) -> Callable[[], bool]:
        """`then`, to be called while somebody else writes `path`: that counts, too."""
        size = -1

        def look() -> bool:
            nonlocal size
            try:
                now = os.stat(path).st_size
            except FileNotFoundError:
                now = -1
            if now != size:
                size = now
                self.touch()
            return then()

        return look

    def resolved(self, reference: str, digest: str) -> None:
        """See ProgressSink."""
        self._sink.resolved(reference, digest)

    def exists(self, layer: str, size: int) -> None:
        """See ProgressSink."""
        self.touch()
        self._sink.exists(layer, size)

    def start(self, layer: str, size: int) -> None:
        """See ProgressSink."""
        self.touch()
        self._sink.start(layer, size)

    def fetched(self, layer: str, count: int) -> None:
        """See ProgressSink."""
        self.touch()
        self._sink.fetched(layer, count)

    def unpacked(self, layer: str, count: int) -> None:
        """See ProgressSink."""
        self.touch()
        self._sink.unpacked(layer, count)

    def restarted(self, layer: str) -> None:
        """See ProgressSink."""
        self.touch()
        self._sink.restarted(layer)

    def done(self, layer: str) -> None:
        """See ProgressSink."""
        self.touch()
        self._sink.done(layer)

    def warning(self, message: str) -> None:
        """See ProgressSink."""
        self._sink.warning(message)
