"""Removing content that nothing names any more.

What belongs here: deciding what is garbage and deleting it. Roots are the entries of the index and
the live leases; only what a removed image or a dead lease named is ever deleted, so that a damaged
index can never cost a layer that a container stands on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from scow.image.content import IndexEntry, LeaseRecord
from scow.image.digest import DiffID, hex_of, parse_diff_id, parse_digest

if TYPE_CHECKING:
    from scow.image.store import ImageStore

DEAD_LEASE_KEEP_S = 24 * 3600


def collect(store: ImageStore, *, now: bool = True) -> list[str]:
    """Finish removals and drop what failed pulls left; returns the diff ids that were deleted.

    With `now` false, the leftovers of failed pulls stay a day for a retry to use.
    """
    content = store.content
    if not os.path.isdir(content.ingest_dir):
        return []
    with content.locked():
        entries = content.read_index()
        leases = content.leases()
        dead = [
            lease
            for lease in leases
            if not lease.is_alive and (now or lease.age_s > DEAD_LEASE_KEEP_S)
        ]
        deleting = [entry for entry in entries if entry.is_deleting]
        if not dead and not deleting:
            return []
        kept = [entry for entry in entries if not entry.is_deleting]
        blobs, layers = _named_by(store, kept, (lease for lease in leases if lease not in dead))
        old_blobs, old_layers = _named_by(store, deleting, dead)
        deleted = _delete_layers(store, sorted(old_layers - layers))
        _delete_blobs(store, sorted(old_blobs - blobs))
        _delete_summaries(store, deleting, kept)
        # The entries go last: until then another run would do all of this again.
        if deleting:
            content.write_index(kept)
        for lease in dead:
            os.unlink(lease.path)
    if deleted:
        store.layers.empty_trash()  # seconds of work that nobody has to wait for
    return deleted


def _named_by(
    store: ImageStore, entries: Iterable[IndexEntry], leases: Iterable[LeaseRecord]
) -> tuple[set[str], set[str]]:
    blobs: set[str] = set()
    layers: set[str] = set()
    for entry in entries:
        blobs.add(entry.digest)
        if not entry.image_id:
            continue  # written by another program: its other blobs are not ours to judge
        summary = store.read_summary(entry)
        if summary is not None:
            blobs.update(summary.blobs)
            layers.update(summary.diff_ids)
    for lease in leases:
        blobs |= lease.blobs
        layers |= lease.layers
    return blobs, layers


def _delete_layers(store: ImageStore, diff_ids: list[str]) -> list[str]:
    deleted: list[str] = []
    for text in diff_ids:
        diff_id: DiffID = parse_diff_id(text)
        if store.layers.has(diff_id):
            store.layers.remove(diff_id)
            deleted.append(diff_id)
    return deleted


def _delete_blobs(store: ImageStore, digests: list[str]) -> None:
    for text in digests:
        digest = parse_digest(text)
        for path in (store.content.blob_path(digest), store.content.ingest_path(digest)):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass


def _delete_summaries(
    store: ImageStore, deleting: list[IndexEntry], kept: list[IndexEntry]
) -> None:
    still_used = {entry.digest for entry in kept}
    for entry in deleting:
        if entry.digest not in still_used:
            path = os.path.join(
                store.content.summary_dir, hex_of(parse_digest(entry.digest)) + ".json"
            )
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
