"""Checking the whole image store against its digests (`scow system check`).

What belongs here: reading everything and saying what is wrong, and with `repair` making what is left
consistent again. What must not: guessing content; what is damaged is removed, never patched.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from scow.image.content import IMAGE_ID, IndexEntry
from scow.image.digest import DiffID, Digest, parse_digest
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.gc import collect
from scow.image.install import read_image_document
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, ScowError

if TYPE_CHECKING:
    from scow.image.store import ImageStore


def verify_store(store: ImageStore, *, repair: bool = False) -> list[str]:
    """One line per fault; with `repair`, each is mended by the time this returns.

    Mending means: a damaged blob is removed, an image that lacks something loses its entry (a pull
    brings it back), a damaged index is made again from the manifests there are.
    """
    content = store.content
    if not os.path.exists(os.path.join(content.root, "oci-layout")):
        return []
    faults: list[str] = []
    try:
        entries = content.read_index()
    except IntegrityError as e:
        faults.append(e.message)
        entries = _entries_from_blobs(store)
        if repair:
            with content.locked():
                content.write_index(entries)
    damaged = _damaged_blobs(store)
    faults += [f"blob {digest} is damaged" for digest in damaged]
    if repair:
        for digest in damaged:
            os.unlink(content.blob_path(digest))
    lost: list[IndexEntry] = []
    for entry in entries:
        if entry.image_id and not entry.is_deleting:
            missing = _missing_parts(store, entry, set(damaged))
            if missing:
                lost.append(entry)
                name = entry.name or entry.image_id
                faults += [f"image '{name}' lacks {part}" for part in missing]
    if repair and lost:
        with content.locked():
            content.write_index([e for e in content.read_index() if e not in lost])
    faults += _left_over(store, repair=repair)
    if repair:
        collect(store)
    return faults


def _all_blobs(store: ImageStore) -> list[Digest]:
    found: list[Digest] = []
    base = os.path.join(store.content.root, "blobs")
    for algorithm in sorted(os.listdir(base)):
        for name in sorted(os.listdir(os.path.join(base, algorithm))):
            try:
                found.append(parse_digest(f"{algorithm}:{name}"))
            except InvalidArgument:
                continue
    return found


def _damaged_blobs(store: ImageStore) -> list[Digest]:
    damaged: list[Digest] = []
    for digest in _all_blobs(store):
        try:
            for _ in store.content.read_chunks(digest):
                pass
        except FileNotFoundError:
            continue  # removed meanwhile, by somebody's `rmi`
        except (IntegrityError, OSError):
            damaged.append(digest)
    return damaged


def _missing_parts(store: ImageStore, entry: IndexEntry, damaged: set[Digest]) -> list[str]:
    summary = store.read_summary(entry)
    if summary is None:
        return ["its manifest or config"]
    blobs = [parse_digest(text) for text in summary.blobs]
    missing = [
        f"blob {digest}"
        for digest in dict.fromkeys(blobs)
        if digest in damaged or not store.content.has_blob(digest)
    ]
    unpacked: dict[DiffID, None] = dict.fromkeys(summary.diff_ids)
    return missing + [f"layer {diff_id}" for diff_id in unpacked if not store.layers.has(diff_id)]


def _entries_from_blobs(store: ImageStore) -> list[IndexEntry]:
    """An entry, without its name, for every image manifest in the store."""
    entries: list[IndexEntry] = []
    for digest in _all_blobs(store):
        try:
            if os.stat(store.content.blob_path(digest)).st_size > MAX_DOCUMENT_BYTES:
                continue
            data = store.content.read_blob(digest, MAX_DOCUMENT_BYTES)
            document = read_image_document(data, digest, None, f"blob {digest}")
        except (ScowError, NotFound, msgspec.DecodeError):
            continue  # a layer, a config, or damaged
        config = document.manifest.config.digest
        entries.append(
            IndexEntry(document.media_type, digest, len(data), annotations={IMAGE_ID: config})
        )
    return entries


def _left_over(store: ImageStore, *, repair: bool) -> list[str]:
    """Files of writers that died: nobody holds their lock and no lease remembers them."""
    faults: list[str] = []
    with store.content.locked():
        leased = {lease.path for lease in store.content.leases() if lease.is_alive}
        for directory in (store.content.ingest_dir, store.content.summary_dir):
            for name in sorted(os.listdir(directory)):
                path = os.path.join(directory, name)
                if path in leased or name.endswith(".json") or store.content.is_claimed(path):
                    continue
                faults.append(f"'{path}' was left by a pull that did not end well")
                if repair and not name.startswith("lease-"):
                    os.unlink(path)
    return faults
