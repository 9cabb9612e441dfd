"""A pull's own clock: it runs out when nothing at all moves, neither on the network nor on the disk.

What belongs here: what counts as progress. What must not: the network's own limits (transport.py).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait

from scow.image.disk_sync import is_syncing
from scow.image.progress import ProgressSink
from scow.image.waiting import Holder, find_holder
from scow.native.errors import DeadlineExceeded
from scow.native.fd import OwnedFd

STALL_S = 300.0
DISK_S = 900.0  # a disk that is asked for all it has may take its time
LOOK_S = 1.0


def _holder_of(path: str) -> Holder | None:
    try:
        with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            return find_holder(fd.fileno())
    except OSError:
        return None


class StallWatch:
    """A sink that passes everything on, and knows when it last heard of anything."""

    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink
        self._moved = time.monotonic()
        self._was_syncing = False
        self._awaited: set[str] = set()  # what others are writing

    def touch(self) -> None:
        """Something moved."""
        self._moved = time.monotonic()

    def check(self) -> None:
        """Raise DeadlineExceeded if nothing has moved for STALL_S, or the disk not for DISK_S."""
        syncs = is_syncing()
        if self._was_syncing and not syncs:
            self.touch()
        self._was_syncing = syncs
        limit = DISK_S if syncs else STALL_S
        if time.monotonic() - self._moved <= limit:
            return
        holder = next(filter(None, map(_holder_of, sorted(self._awaited))), None)
        if syncs:
            why, hint = (
                "the disk does not take what was unpacked",
                "look at the kernel's log (dmesg)",
            )
        elif holder:
            why, hint = f"it waits for a layer that another fetches: {holder}", holder.hint
        else:
            why, hint = "nothing was fetched or unpacked", "what is here stays; pull again to go on"
        raise DeadlineExceeded(f"the pull made no progress for {limit:.0f} s: {why}", hint=hint)

    def see_to_end(self, waiting: Collection[Future[None]], stop: threading.Event) -> None:
        """Wait for all; the first failure, or the clock, decides: the others end at their next chunk."""
        left = {*waiting}
        try:
            while left:
                done, left = wait(left, LOOK_S, FIRST_COMPLETED)
                for future in done:
                    future.result()
                self.check()
        except BaseException:
            stop.set()
            raise

    def growing(self, path: str, then: Callable[[], bool]) -> Callable[[], bool]:
        """`then`, to be called while somebody else writes `path`: that counts, too."""
        size = -1

        def look() -> bool:
            nonlocal size
            self._awaited.add(path)
            try:
                now = os.stat(path).st_size
            except FileNotFoundError:
                now = -1
            if now != size:
                size = now
                self.touch()
            return then()

        return look

    def arrived(self, path: str) -> None:
        """Nobody waits for `path` any more."""
        self._awaited.discard(path)

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
