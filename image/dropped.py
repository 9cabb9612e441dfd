"""Compressed layers that are not kept once they are unpacked, and getting them back.

What belongs here: the notes `images/dropped/ALG-HEX`, one for each such blob, dropping and fetching.
What must not: whether that is wanted (policy.py). The order of truth: the layer is on the disk and has
its seal (without the blob nothing else could tell a flipped bit), then the note, then the blob goes. A
blob that nobody could give back is never dropped. A note beside its blob does no harm.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from scow.image.digest import DiffID, Digest, parse_digest, quote
from scow.image.files import checked, read_file, storage_errors, sync_directory, unchecked
from scow.image.gc import leased, reachable
from scow.image.manifest import Descriptor
from scow.image.media_types import OCI_LAYER
from scow.image.policy import drops_blobs
from scow.image.reference import parse_reference
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, RegistryError, ScowError
from scow.native.failpoint import failpoint

if TYPE_CHECKING:
    from scow.image.content import BlobIngest, ContentStore, IndexEntry
    from scow.image.install import BlobSource
    from scow.image.store import ImageStore, SummaryFile

MAX_NOTE_BYTES = 1 << 16


class Note(msgspec.Struct, frozen=True):
    """What is known of a blob that is not here."""

    source: str  # HOST/PATH@DIGEST: an image that it belongs to, in the registry that has it
    diff_id: DiffID  # what it unpacked to
    size: int


class Dropped(NamedTuple):
    """What `drop_blobs` did: a line for each blob, and the bytes that this gave back."""

    lines: list[str]
    freed_bytes: int


def read_note(content: ContentStore, digest: Digest) -> Note | None:
    """The note on a blob, if it was dropped."""
    try:
        path = content.note_path(digest)
        return msgspec.json.decode(unchecked(read_file(path, MAX_NOTE_BYTES), path), type=Note)
    except (OSError, ValueError, IntegrityError):
        return None


def _note(store: ImageStore, digest: Digest, note: Note) -> None:
    """Durably; the caller holds the store's lock."""
    path = os.path.relpath(store.content.note_path(digest), store.content.root)
    os.makedirs(store.content.note_dir, mode=0o700, exist_ok=True)
    store.content.replace_file(path, checked(msgspec.json.encode(note)), point="note")


def is_spared(store: ImageStore, blob: Descriptor, diff_id: DiffID, origin: str) -> bool:
    """Whether a blob need not come: its layer is here, and the blob was dropped before.

    With an `origin` blobs are not kept, so that one that was never here is as good as dropped.
    """
    if not store.layers.has_seal(diff_id):
        return False
    note = read_note(store.content, blob.digest)
    if note is not None or not origin:
        return note is not None and (note.diff_id, note.size) == (diff_id, blob.size)
    with store.content.locked():
        _note(store, blob.digest, Note(origin, diff_id, blob.size))
    return True


def drop_incoming(
    store: ImageStore, ingest: BlobIngest, diff_id: DiffID, origin: str, *, is_new: bool
) -> bool:
    """Give up a blob that has just come in whole; False where it has to stay.

    `is_new` says that its layer was unpacked just now: then it is what the seal is to witness.
    """
    ingest.verify()
    if is_new:
        store.layers.seal(diff_id)
    if not store.layers.has_seal(diff_id):
        return False  # the disk is full, or the layer was never compared with a blob
    with store.content.locked():
        _note(store, ingest.digest, Note(origin, diff_id, ingest.size))
    with storage_errors(store.content.ingest_path(ingest.digest)):
        failpoint("drop.incoming")
        ingest.discard()
    return True


def drop_blobs(store: ImageStore, wanted: Collection[Digest] | None = None) -> Dropped:
    """Drop each blob, of those `wanted`, whose layer is unpacked and that a registry can give back.

    A layer without a seal is compared with its blob first; where they differ, the blob stays.
    """
    lines: list[str] = []
    freed = 0
    if wanted is not None and not any(store.content.has_blob(digest) for digest in wanted):
        return Dropped(lines, freed)
    for digest, note in _droppable(store).items():
        if wanted is None or digest in wanted:
            is_sealed = store.layers.has_seal(note.diff_id) or _compare(store, digest, note)
            size = _drop(store, digest, note) if is_sealed else 0
            lines += [f"Dropped: {digest}"] if size else []
            freed += size
    return Dropped(lines, freed)


@contextmanager
def borrowing(store: ImageStore) -> Generator[None]:
    """Around the lease of a save or push: what it has fetched is not kept, where that is the policy."""
    drops = drops_blobs()  # a setting that makes no sense is told before the work
    try:
        yield
    finally:
        if drops:
            drop_blobs(store, noted_blobs(store.content))


def _droppable(store: ImageStore) -> dict[Digest, Note]:
    """The layers' blobs that are here, and where they can be had again."""
    found: dict[Digest, Note] = {}
    foreign: set[str] = set()
    for entry, summary in _images(store):
        if summary is None:
            foreign |= reachable(store.content, entry.digest)
            continue
        for diff_id, text in layers_of(summary):
            digest = parse_digest(text)
            known = read_note(store.content, digest)
            source = known.source if known else entry.repo_digest
            if source and store.layers.has(diff_id):
                with suppress(FileNotFoundError):
                    size = os.stat(store.content.blob_path(digest)).st_size
                    found.setdefault(digest, Note(source, diff_id, size))
    return {digest: note for digest, note in found.items() if digest not in foreign}


def _images(store: ImageStore) -> Iterator[tuple[IndexEntry, SummaryFile | None]]:
    """Our images, and None for the summary of other programs' ones: these say nothing of layers."""
    for entry in store.content.read_index():
        if entry.foreign:
            yield entry, None
        elif entry.image_id and not entry.is_deleting:
            summary = store.read_summary(entry)
            if summary is not None:
                yield entry, summary


def noted_blobs(content: ContentStore) -> list[Digest]:
    """Every blob that has a note."""
    names = os.listdir(content.note_dir) if os.path.isdir(content.note_dir) else []
    found: list[Digest] = []
    for name in sorted(names):
        with suppress(InvalidArgument):
            found.append(parse_digest(name.replace("-", ":", 1)))
    return found


def layers_of(summary: SummaryFile) -> list[tuple[DiffID, str]]:
    """Each layer with its blob: manifest and config come first among the blobs."""
    return list(zip(summary.diff_ids, summary.blobs[2:], strict=False))


def _compare(store: ImageStore, digest: Digest, note: Note) -> bool:
    """The blob is the only witness of its layer: before it goes, it is heard once."""
    with leased(store) as lease:
        lease.hold(blobs=[digest], layers=[note.diff_id])
        try:
            chunks = store.content.read_chunks(digest)
            store.layers.compare(note.diff_id, chunks, mend=False)
        except (IntegrityError, FileNotFoundError):
            return False  # damaged, which `scow system check` tells; or removed meanwhile
        finally:
            lease.finish()
    return store.layers.has_seal(note.diff_id)


def _drop(store: ImageStore, digest: Digest, note: Note) -> int:
    """Drop one blob, unless a pull, save or push needs it; returns the bytes that it took."""
    content = store.content
    with content.locked():
        if any(digest in lease.blobs for lease in content.leases() if lease.is_alive):
            return 0
        path = content.blob_path(digest)
        try:
            size = os.lstat(path).st_blocks * 512
        except FileNotFoundError:
            return 0
        _note(store, digest, note)
        with storage_errors(path):
            failpoint("drop.blob")
            os.unlink(path)
            failpoint("drop.sync-name")
            sync_directory(os.path.dirname(path))
    return size


# -- getting them back ----------------------------------------------------------------------------


def fetch_blobs(
    store: ImageStore, blobs: Iterable[Descriptor], warn: Callable[[str], None] = lambda text: None
) -> None:
    """Have these blobs here, fetching the dropped ones again; the caller's lease holds them.

    Raises NotFound for one that was not dropped, and RegistryError.
    """
    wanted: dict[str, list[Descriptor]] = {}
    for blob in blobs:
        if store.content.has_blob(blob.digest, blob.size):
            continue
        note = read_note(store.content, blob.digest)
        if note is None:
            raise NotFound(
                f"blob {blob.digest} is missing: it is not kept here, and no note says where it is",
                hint="pull the image again",
            )
        wanted.setdefault(note.source, []).append(blob)
    for source, missing in wanted.items():
        _fetch_from(store, source, missing, warn)


def fetch_dropped(store: ImageStore, digest: Digest) -> None:
    """The same for one blob of which no more is known than its note."""
    note = read_note(store.content, digest)
    fetch_blobs(store, [Descriptor(OCI_LAYER, digest, note.size if note else 0)])


def _fetch_from(
    store: ImageStore, source: str, missing: list[Descriptor], warn: Callable[[str], None]
) -> None:
    from scow.image.fetch import fetch_all
    from scow.image.registry import Registry

    reference = parse_reference(source)
    place = reference.familiar_repository
    count = "1 layer is" if len(missing) == 1 else f"{len(missing)} layers are"
    warn(f"{count} not kept here: fetching again from {place}")

    def explain(blob: Descriptor, error: ScowError) -> ScowError:
        return RegistryError(
            f"blob {blob.digest} is not kept here, and {quote(place)} does not give it "
            f"again: {error.message}",
            hint=error.hint or "an image that has this layer can be pulled: scow pull IMAGE",
        )

    with Registry(reference, warn=warn) as registry:
        fetch_all(store, registry, missing, explain=explain)


def take_back(store: ImageStore, source: BlobSource, layers: Iterable[Descriptor]) -> None:
    """Have those of these blobs here that were dropped, from `source`, which stays nobody's to ask again.

    Their notes go: what a user brought by hand is not dropped because a registry once had it.
    """
    from scow.image.fetch import fetch_all

    noted = [blob for blob in layers if os.path.exists(store.content.note_path(blob.digest))]
    fetch_all(store, source, noted)
    with store.content.locked():
        for blob in noted:
            with suppress(FileNotFoundError):
                os.unlink(store.content.note_path(blob.digest))
        if noted:
            sync_directory(store.content.note_dir)
