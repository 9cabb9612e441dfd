"""What each layer of an image adds, and what it hides of the layers below: bytes that nobody sees.

What belongs here: walking the layers from the bottom, and counting. A file with several names counts
once in its layer. Holes do not count, as in the sizes of layers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from scow.image.artifacts import no_image
from scow.image.digest import DiffID, hex_of
from scow.image.trees import Stack, is_whiteout

if TYPE_CHECKING:
    from scow.image.store import Image, ImageStore


class FileSize(msgspec.Struct, frozen=True):
    """A file, and what it takes."""

    path: str
    bytes: int


class LayerShare(msgspec.Struct, frozen=True):
    """One layer of an image."""

    diff_id: DiffID
    files: int  # that it brings: everything but directories and whiteouts
    bytes: int
    removed: int  # names that it takes away
    hidden_files: int  # of lower layers, by removing or replacing them
    hidden_bytes: int
    biggest: tuple[FileSize, ...]  # of its own
    wasted: tuple[FileSize, ...]  # lower files that it hides, the biggest first


class Waste(msgspec.Struct, frozen=True):
    """The whole image, bottom layer first; what is seen and what is hidden add up to the total."""

    layers: tuple[LayerShare, ...]
    total_bytes: int
    visible_bytes: int
    hidden_bytes: int


class _File:
    """A file of some layer; it is hidden when the last of its names is."""

    __slots__ = ("bytes", "names")

    def __init__(self, size: int) -> None:
        self.bytes, self.names = size, 0

    def hide_name(self) -> int:
        """One name less; the bytes that nobody sees any more."""
        self.names -= 1
        return 0 if self.names else self.bytes


class _Directory:
    """A directory of the merged tree so far."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: dict[str, _Directory | _File] = {}

    def files(self, path: str) -> Iterator[tuple[str, _File]]:
        """Every file below, by path."""
        waiting: list[tuple[str, _Directory | _File]] = [(path, self)]
        while waiting:
            at, entry = waiting.pop()
            if isinstance(entry, _File):
                yield at, entry
            else:
                waiting += [(f"{at}/{name}", below) for name, below in entry.entries.items()]


class _Layer:
    """The counting of one layer onto the tree of those below."""

    def __init__(self, stack: Stack, root: _Directory, keep: int) -> None:
        self._stack, self._root, self._keep = stack, root, keep
        self._files: dict[int, _File] = {}
        self.own: list[FileSize] = []
        self.hidden: list[FileSize] = []
        self.removed = 0

    def run(self) -> None:
        waiting = [("", self._root)]
        while waiting:
            path, into = waiting.pop()
            if self._stack.is_opaque(0, path):
                self._hide(path, into)
                into.entries.clear()
            for name, status in self._stack.raw(0, path).items():
                below = self._take(f"{path}/{name}" if path else name, name, status, into)
                if below is not None:
                    waiting.append(below)

    def _take(
        self, path: str, name: str, status: os.stat_result, into: _Directory
    ) -> tuple[str, _Directory] | None:
        known = into.entries.get(name)
        if stat.S_ISDIR(status.st_mode):
            if not isinstance(known, _Directory):
                self._hide(path, known)
                known = into.entries[name] = _Directory()
            return path, known
        self._hide(path, known)
        if is_whiteout(status):
            self.removed += 1
            into.entries.pop(name, None)
            return None
        file = self._file(status)
        into.entries[name] = file
        self.own.append(FileSize(f"/{path}", file.bytes if file.names == 0 else 0))
        file.names += 1
        return None

    def _file(self, status: os.stat_result) -> _File:
        known = self._files.get(status.st_ino) if status.st_nlink > 1 else None
        if known is None:
            is_regular = stat.S_ISREG(status.st_mode)
            known = _File(min(status.st_size, status.st_blocks * 512) if is_regular else 0)
            self._files[status.st_ino] = known
        return known

    def _hide(self, path: str, known: _Directory | _File | None) -> None:
        if isinstance(known, _File):
            self.hidden.append(FileSize(f"/{path}", known.hide_name()))
        elif known is not None:
            top = f"/{path}" if path else ""
            self.hidden += [FileSize(at, file.hide_name()) for at, file in known.files(top)]

    def share(self, diff_id: DiffID) -> LayerShare:
        return LayerShare(
            diff_id,
            files=len(self.own),
            bytes=sum(file.bytes for file in self.own),
            removed=self.removed,
            hidden_files=len(self.hidden),
            hidden_bytes=sum(file.bytes for file in self.hidden),
            biggest=_biggest(self.own, self._keep),
            wasted=_biggest(self.hidden, self._keep),
        )


def _biggest(files: list[FileSize], keep: int) -> tuple[FileSize, ...]:
    return tuple(sorted(files, key=lambda file: (-file.bytes, file.path))[:keep])


def find_waste(store: ImageStore, image: Image, *, keep: int = 10) -> Waste:
    """Look at every layer of an image; `keep` says how many of the biggest files are named."""
    if image.artifact_type:
        raise no_image(image)
    base = os.path.join(store.root, "layers")
    root = _Directory()
    shares: list[LayerShare] = []
    # overlayfs takes a layer once: of one that stands twice in the stack the upper place counts.
    for diff_id in reversed(dict.fromkeys(reversed(image.diff_ids))):
        try:
            with Stack.at([os.path.join(base, hex_of(diff_id), "diff")]) as stack:
                layer = _Layer(stack, root, keep)
                layer.run()
        except FileNotFoundError:
            store.get(image.id)  # no such image: it was removed meanwhile
            raise
        shares.append(layer.share(diff_id))
    total = sum(share.bytes for share in shares)
    hidden = sum(share.hidden_bytes for share in shares)
    return Waste(tuple(shares), total, total - hidden, hidden)
