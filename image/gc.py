"""Removing content that nothing names any more.

What belongs here: deciding what is garbage and deleting it. Roots are the entries of the index and
the live leases; only what a removed image or a dead lease named is ever deleted, so that a damaged
index can never cost a layer that a container stands on.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from scow.image.content import ContentStore, IndexEntry, Lease, LeaseRecord
from scow.image.digest import DiffID, hex_of, parse_diff_id, parse_digest, quote
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.files import sync_directory
from scow.native.errors import InvalidArgument, NotFound, ScowError
from scow.native.failpoint import failpoint

if TYPE_CHECKING:
    from scow.image.store import ImageStore

DEAD_LEASE_KEEP_S = 24 * 3600


class Collected(msgspec.Struct, frozen=True):
    """What a collection deleted; the bytes are zero unless they were asked for."""

    diff_ids: tuple[str, ...] = ()
    freed_bytes: int = 0


@contextmanager
def leased(store: ImageStore, *, spends_reserve: bool = False) -> Generator[Lease]:
    """Hold content while the block runs; what others removed meanwhile goes with the lease."""
    with store.content.lease(spends_reserve=spends_reserve) as lease:
        try:
            yield lease
        finally:
            if lease.is_finished:
                with suppress(ScowError, OSError):  # the next one does it
                    collect(store, now=False, over=lease)


def collect(
    store: ImageStore, *, now: bool = True, measure: bool = False, over: Lease | None = None
) -> Collected:
    """Finish removals and drop what failed pulls left.

    With `now` false, the leftovers of failed pulls stay a day for a retry to use. With `measure` the
    files of deleted layers are counted before they go, which takes as long again. `over` is a lease of
    the caller's that counts no more.
    """
    content = store.content
    if not os.path.isdir(content.ingest_dir):
        return Collected()
    with content.locked():
        entries = content.read_index()
        leases = [lease for lease in content.leases() if over is None or lease.path != over.path]
        dead = [lease for lease in leases if _is_over(lease, now=now)]
        deleting = [entry for entry in entries if entry.is_deleting]
        if not dead and not deleting:
            return Collected()
        kept = [entry for entry in entries if not entry.is_deleting]
        live = [lease for lease in leases if lease not in dead]
        # Its entry is all that remembers what somebody still needs of a removed image.
        held = [entry for entry in deleting if is_held(store, entry, live)]
        blobs, layers = named_by(store, kept, live)
        old_blobs, old_layers = named_by(store, deleting, dead)
        deleted = _delete_layers(store, sorted(old_layers - layers))
        freed = delete_blobs(store, sorted(old_blobs - blobs))
        _delete_summaries(store, deleting, [*kept, *held])
        # The entries go last: until then another run would do all of this again.
        if len(held) < len(deleting):
            failpoint("gc.entries")
            content.write_index([*kept, *held], removes=True)
        for lease in dead:
            failpoint("gc.lease")
            os.unlink(lease.path)
    content.keep_reserve()
    if deleted:
        if measure:
            freed += store.layers.trash_bytes()
        store.layers.empty_trash()  # seconds of work that nobody has to wait for
    return Collected(tuple(deleted), freed)


def hold_image(store: ImageStore, lease: Lease, digest: str, what: str) -> None:
    """Hold all of an image that was looked up just now; NotFound where it went meanwhile."""
    blobs, _ = named_by(store, _entries_of(store, digest), ())
    lease.hold(blobs=[parse_digest(text) for text in sorted(blobs)])
    if not _entries_of(store, digest):  # a removal that comes from here on sees the lease
        raise NotFound(f"no such image: {quote(what)} was removed meanwhile")


def _entries_of(store: ImageStore, digest: str) -> list[IndexEntry]:
    entries = store.content.read_index()
    return [entry for entry in entries if entry.digest == digest and not entry.is_deleting][:1]


def is_held(store: ImageStore, entry: IndexEntry, leases: Iterable[LeaseRecord]) -> bool:
    """Whether one of these leases names anything of an image."""
    blobs, layers = named_by(store, [entry], ())
    return any(blobs & lease.blobs or layers & lease.layers for lease in leases)


def _is_over(lease: LeaseRecord, *, now: bool) -> bool:
    """A clock that was put back makes an age negative, and that is no reason to delete anything."""
    return not lease.is_alive and (now or lease.age_s > DEAD_LEASE_KEEP_S)


def named_by(
    store: ImageStore, entries: Iterable[IndexEntry], leases: Iterable[LeaseRecord]
) -> tuple[set[str], set[str]]:
    """The blobs and the layers that these entries and leases stand for."""
    blobs: set[str] = set()
    layers: set[str] = set()
    for entry in entries:
        if entry.foreign:
            blobs |= reachable(store.content, entry.digest)
            continue
        blobs.add(entry.digest)
        summary = store.read_summary(entry)
        if summary is not None:
            blobs.update(summary.blobs)
            layers.update(summary.diff_ids)
    for lease in leases:
        blobs |= lease.blobs
        layers |= lease.layers
    return blobs, layers


def reachable(content: ContentStore, digest: str) -> set[str]:
    """All that an image of another program needs, whatever kind of document names it."""
    found: set[str] = set()
    pending = [digest]
    while pending:
        text = pending.pop()
        try:
            known = parse_digest(text)
        except InvalidArgument:
            continue
        if known in found:
            continue
        found.add(known)
        try:
            document = msgspec.json.decode(content.read_blob(known, MAX_DOCUMENT_BYTES))
        except (ValueError, ScowError, OSError):
            continue  # a layer, or not here
        pending += _digests_in(document)
    return found


def _digests_in(document: object) -> Iterator[str]:
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "digest" and isinstance(value, str):
                yield value
            else:
                yield from _digests_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from _digests_in(value)


def _delete_layers(store: ImageStore, diff_ids: list[str]) -> list[str]:
    deleted: list[str] = []
    for text in diff_ids:
        diff_id: DiffID = parse_diff_id(text)
        if store.layers.has(diff_id):
            failpoint("gc.layer")
            store.layers.remove(diff_id)
            deleted.append(diff_id)
    return deleted


def delete_blobs(store: ImageStore, digests: list[str]) -> int:
    """Delete blobs, whole, in part or dropped; gives the bytes that this frees."""
    content = store.content
    freed = 0
    changed: set[str] = set()
    for text in digests:
        digest = parse_digest(text)
        # The note last: it is what remains of a blob that was dropped.
        for path_of in (content.blob_path, content.ingest_path, content.note_path):
            path = path_of(digest)
            try:
                failpoint("gc.blob")
                size = os.lstat(path).st_blocks * 512
                os.unlink(path)
                freed += size
                changed.add(os.path.dirname(path))
            except FileNotFoundError:
                pass
    for directory in sorted(changed):
        failpoint("gc.sync-names")
        sync_directory(directory)
    return freed


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
