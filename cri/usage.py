"""How much of the disk a container's own files take.

The tree is the container's and hostile: it is walked by native/fs.py only.
"""

from __future__ import annotations

import time

import msgspec

from scow.native.errors import NotFound
from scow.native.fs import scan_tree

# Walking costs the disk; kubelets ask every ten seconds.
FRESH_S = 10.0


class Usage(msgspec.Struct, frozen=True):
    """What a tree takes, and when that was measured (ns since 1970)."""

    time_ns: int
    used_bytes: int
    inodes: int


def measure_tree(path: str) -> Usage:
    """Walk a tree; what vanishes meanwhile is not counted."""
    used = inodes = 0
    for info in scan_tree(path):
        used += info.st_blocks * 512
        inodes += 1
    return Usage(time.time_ns(), used, inodes)


class Usages:
    """Measurements that are fresh enough, by path."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Usage]] = {}

    def get(self, path: str) -> Usage:
        """What a tree takes, as it was a few seconds ago at most; NotFound where there is none."""
        now = time.monotonic()
        found = self._known.get(path)
        if found is not None and now - found[0] < FRESH_S:
            return found[1]
        for old in [key for key, (at, _) in self._known.items() if now - at > 6 * FRESH_S]:
            self._known.pop(old, None)
        try:
            usage = measure_tree(path)
        except FileNotFoundError:
            raise NotFound(f"cannot measure '{path}': it is gone") from None
        self._known[path] = (now, usage)
        return usage
