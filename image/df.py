"""What images take on the disk, and how much of it they share.

What belongs here: bytes as `du` counts them (blocks, whole directories), each owned by the images that
need it. What must not: words and columns. Layers never change, yet they are walked: it is what du does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from scow.image.digest import hex_of, parse_digest
from scow.image.repair import stored_blobs
from scow.image.tree import disk_bytes

if TYPE_CHECKING:
    from scow.image.store import ImageStore, ImageSummary, SummaryFile

_PENDING = ("images/ingest", "images/aside", "layers/.staging", "layers/.trash", "layers/.aside")


class ImageUsage(msgspec.Struct, frozen=True):
    """One image: `shared_bytes` others need, too, `unique_bytes` would go with it."""

    image: ImageSummary
    shared_bytes: int
    unique_bytes: int


class StoreUsage(msgspec.Struct, frozen=True):
    """All of the store. Of what lies below images/ and layers/ only directories and the index are in none."""

    images: tuple[ImageUsage, ...]
    image_bytes: int  # what all images need, each piece once
    active_bytes: int  # of that, what images in use need
    pending_bytes: (
        int  # partial downloads, layers half unpacked or half removed, content without name
    )
    pending_count: int
    alive_count: int  # pulls under way


def store_usage(store: ImageStore, active_ids: set[str]) -> StoreUsage:
    """Measure; `active_ids` are the images that containers stand on."""
    pieces: dict[str, int] = {}
    owners: dict[str, set[str]] = {}
    for summary_file in _summaries(store):
        for path in _pieces_of(store, summary_file):
            owners.setdefault(path, set()).add(summary_file.id)
            if path not in pieces:
                pieces[path] = disk_bytes(path)
    found: list[ImageUsage] = []
    for image in store.list():
        own = [path for path, ids in owners.items() if image.id in ids]
        unique = sum(pieces[path] for path in own if len(owners[path]) == 1)
        found.append(ImageUsage(image, sum(pieces[path] for path in own) - unique, unique))
    active = sum(size for path, size in pieces.items() if owners[path] & active_ids)
    loose = [path for path in _content(store) if path not in pieces]
    waiting = [os.path.join(store.root, name) for name in _PENDING]
    loose += [os.path.join(path, name) for path in waiting for name in _names(path)]
    return StoreUsage(
        tuple(found),
        sum(pieces.values()),
        active,
        sum(disk_bytes(path) for path in loose),
        len(loose),
        _alive(store),
    )


def _alive(store: ImageStore) -> int:
    if not os.path.isdir(store.content.ingest_dir):
        return 0
    with store.content.locked():
        return sum(lease.is_alive for lease in store.content.leases())


def _summaries(store: ImageStore) -> list[SummaryFile]:
    entries = [e for e in store.content.read_index() if e.image_id and not e.is_deleting]
    found = (store.read_summary(entry) for entry in entries)
    return [summary for summary in found if summary is not None]


def _pieces_of(store: ImageStore, summary: SummaryFile) -> set[str]:
    """The files and directories that an image consists of."""
    content = store.content
    layers = os.path.join(store.root, "layers")
    lowers = {name.partition("/")[0] for name in summary.lower_names}
    return {
        os.path.join(content.summary_dir, hex_of(summary.manifest_digest) + ".json"),
        *(content.blob_path(parse_digest(text)) for text in summary.blobs),
        *(os.path.join(layers, name) for name in lowers),
        *(os.path.join(layers, hex_of(diff_id)) for diff_id in summary.diff_ids),
    }


def _content(store: ImageStore) -> list[str]:
    """Every blob and every layer that is here, whoever needs it."""
    layers = os.path.join(store.root, "layers")
    blobs = [store.content.blob_path(digest) for digest in stored_blobs(store)]
    return blobs + [os.path.join(layers, n) for n in _names(layers) if not n.startswith(".")]


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
