"""Getting unpacked layers onto the disk.

What belongs here: syncfs(2), early and shared. What must not: what is synced, and when it gets a name.
syncfs writes all of a file system: layers that come in together share one, and while they come the
disk is kept busy, so that little is left to wait for at the end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from scow.image.files import storage_errors
from scow.native import sys

FLUSH_BYTES = 64 << 20  # unpacked; then the disk may begin to write


class DiskSync:
    """One file system, for as long as somebody unpacks onto it; safe to use from several threads."""

    def __init__(self, fd: int) -> None:
        # The kernel tells a fault of the disk once per open file: all share this one, so that
        # whichever call is told can tell the others.
        self._fd = os.dup(fd)
        self._users = 0
        self._changed = threading.Condition()
        self._begun = 0  # syncs, by number
        self._ended = 0
        self._faults: list[OSError] = []
        self._unwritten = 0

    @property
    def is_running(self) -> bool:
        """Whether the disk is being written right now."""
        return self._begun != self._ended

    def wrote(self, count: int) -> None:
        """So many bytes more; now and then this starts the disk in the background."""
        with self._changed:
            self._unwritten += count
            if self._unwritten < FLUSH_BYTES or self.is_running:
                return
            self._begin()
            self._users += 1
        threading.Thread(target=self._background, name="scow-sync", daemon=True).start()

    def sync(self) -> None:
        """Return when everything that was written before the call is on the disk."""
        with self._changed:
            wanted = self._begun + 1  # what runs already may have passed by our files
            while self.is_running and self._ended < wanted:
                self._changed.wait()
            if self._ended >= wanted:
                return  # somebody else's did
            self._begin()
        self._run()

    def check(self, known: int) -> None:
        """Raise if a sync has failed since there were `known` faults, whoever asked for it."""
        if len(self._faults) > known:
            fault = self._faults[known]
            with storage_errors("the layers' disk"):
                raise fault

    def _begin(self) -> None:
        self._begun += 1
        self._unwritten = 0

    def _background(self) -> None:
        try:
            self._run()
        finally:
            self.release()

    def _run(self) -> None:
        fault = None
        try:
            sys.syncfs(self._fd)
        except OSError as error:
            fault = error
        with self._changed:
            if fault is not None:
                self._faults.append(fault)
            self._ended += 1
            self._changed.notify_all()

    def join(self) -> int:
        """One user more; returns how many faults there were before."""
        with self._changed:
            self._users += 1
            return len(self._faults)

    def release(self) -> None:
        """One user less."""
        with _lock, self._changed:
            self._users -= 1
            if self._users == 0:
                _disks.pop(os.fstat(self._fd).st_dev, None)
                os.close(self._fd)


_lock = threading.Lock()
_disks: dict[int, DiskSync] = {}


def is_syncing() -> bool:
    """Whether a disk is being written for us right now."""
    return any(disk.is_running for disk in list(_disks.values()))


@contextmanager
def disk_of(fd: int) -> Iterator[DiskSync]:
    """The disk that `fd` is on; at the end of the block all that was written is there, or it raises."""
    with _lock:
        device = os.fstat(fd).st_dev
        disk = _disks.get(device)
        if disk is None:
            disk = _disks[device] = DiskSync(fd)
        known = disk.join()
    try:
        yield disk
        disk.sync()
        disk.check(known)
    finally:
        disk.release()
