"""A layer's seal: one digest of all of it, written once it was compared with what its blob unpacks to.

What belongs here: making and comparing it. What must not: where layers lie, and locks (layers.py). A
seal is no proof against a forger, only against a disk that forgets: who can write it can write all.
"""

from __future__ import annotations

import itertools
import os
from contextlib import suppress

from scow.image.digest import new_hasher
from scow.image.tree import differences, tree_digest
from scow.native import fs
from scow.native.failpoint import failpoint
from scow.native.fd import OwnedFd

MOST_DIFFERENCES = 5  # told of one layer
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_sealed(layer_dir: str) -> bool:
    """Whether the layer is, to the last byte, as it was when it got its seal."""
    try:
        with OwnedFd(os.open(layer_dir, _DIR)) as layer:
            seal = _read(layer.fileno(), "seal")
            return seal is not None and seal == _measure(layer.fileno())
    except OSError:
        return False


def write_seal(layer_dir: str, *, durable: bool = False, cold: bool = True) -> None:
    """Seal a layer. On a full or read-only disk there is none, and the next check takes longer.

    Unless `cold` what the kernel remembers of its files is enough: it was written just now.
    """
    with suppress(OSError), OwnedFd(os.open(layer_dir, _DIR)) as layer:
        failpoint("layer.seal")
        seal = _measure(layer.fileno(), cold=cold)
        fs.write_atomic(layer.fileno(), "seal", seal, durable=durable)


def differing(layer_dir: str, staging_fd: int) -> list[str]:
    """Where a layer differs from one that was just unpacked; some of the places, not all."""
    try:
        with OwnedFd(os.open(layer_dir, _DIR)) as layer:
            if _read(layer.fileno(), "needs-lower") != _read(staging_fd, "needs-lower"):
                return ["needs-lower"]
            with (
                OwnedFd(os.open("diff", _DIR, dir_fd=layer.fileno())) as there,
                OwnedFd(os.open("diff", _DIR, dir_fd=staging_fd)) as anew,
            ):
                found = differences(there.fileno(), anew.fileno())
                return [*itertools.islice(found, MOST_DIFFERENCES)]
    except OSError:
        return ["diff"]


def _measure(layer_fd: int, *, cold: bool = True) -> bytes:
    hasher = new_hasher()
    for name in ("layer.json", "needs-lower"):
        data = _read(layer_fd, name)
        # An empty file is a damaged one; a missing one need not be.
        hasher.update((b"" if data is None else data or b"empty") + b"\0")
    with OwnedFd(os.open("diff", _DIR, dir_fd=layer_fd)) as diff:
        hasher.update(tree_digest(diff.fileno(), cold=cold))
    return hasher.hexdigest().encode()


def _read(layer_fd: int, name: str) -> bytes | None:
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with OwnedFd(os.open(name, flags, dir_fd=layer_fd)) as file:
            return os.read(file.fileno(), os.fstat(file.fileno()).st_size)
    except (FileNotFoundError, IsADirectoryError):
        return None
