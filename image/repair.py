"""Mending the image store: from what is here, or from where it came.

What belongs here: the deeds of `scow system check --repair`. What must not: finding faults
(verify.py). What is not understood is set aside below images/aside, never deleted.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scow.image.artifacts import artifact_entry
from scow.image.content import (
    IMAGE_ID,
    INDEX,
    INDEX_COPY,
    LAYOUT,
    LAYOUT_TEXT,
    MAX_INDEX_BYTES,
    ContentStore,
    IndexEntry,
)
from scow.image.digest import Digest, parse_digest, quote
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.files import checked, read_file, sync_directory, unchecked
from scow.image.gc import leased
from scow.image.install import install_image, read_image_document
from scow.image.policy import drops_blobs
from scow.image.progress import SilentProgress
from scow.image.reference import parse_reference
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, ScowError

if TYPE_CHECKING:
    from scow.image.store import ImageStore


def stored_blobs(store: ImageStore) -> list[Digest]:
    """Every blob that is here, named by an image or not; other names are nobody's business."""
    found: list[Digest] = []
    base = os.path.join(store.content.root, "blobs")
    for algorithm in ("sha256", "sha512"):
        directory = os.path.join(base, algorithm)
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            try:
                found.append(parse_digest(f"{algorithm}:{name}"))
            except InvalidArgument:
                continue
    return found


def set_aside(store: ImageStore, path: str, *, keep: bool = True) -> None:
    """Move a thing that is not what its name says out of the way; with `keep` false, delete a file."""
    if not keep and os.path.isfile(path) and not os.path.islink(path):
        os.unlink(path)
        sync_directory(os.path.dirname(path))
        return
    above = store.root if path == store.content.root else store.content.root
    directory = os.path.join(above, "aside")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    target = os.path.join(directory, f"{os.path.basename(path)}.{os.urandom(4).hex()}")
    try:
        os.rename(path, target)
    except FileNotFoundError:
        return
    sync_directory(directory)
    sync_directory(os.path.dirname(path))


def write_layout(store: ImageStore) -> None:
    """Make the layout's marker file as the image-spec wants it."""
    os.makedirs(store.content.ingest_dir, mode=0o700, exist_ok=True)
    with store.content.locked():
        store.content.replace_file(LAYOUT, LAYOUT_TEXT)


def compare_copy(content: ContentStore) -> tuple[str, bool]:
    """What is wrong with an index that can be read, "" for nothing, and whether its copy is right.

    The caller holds the store's lock, unless the disk is read-only.
    """
    index, copy = (os.path.join(content.root, name) for name in (INDEX, INDEX_COPY))
    try:
        copied = read_file(copy, MAX_INDEX_BYTES)
        data = read_file(index, MAX_INDEX_BYTES)
        if copied in (b"", checked(data)) or copied.endswith(b"}"):
            return "", True  # never synced, or an older scow's
        unchecked(copied, copy)
    except FileNotFoundError:
        return "", True
    except (OSError, IntegrityError):
        return "", False
    if os.stat(index).st_mtime_ns > os.stat(copy).st_mtime_ns:
        return "", True  # another program's change, or one that was cut short
    return f"'{index}' is not as it was written", True


def recovered_entries(store: ImageStore) -> list[IndexEntry]:
    """What a damaged index held: the entries of its copy, and every manifest there is."""
    try:
        copied = store.content.read_index(INDEX_COPY)
    except ScowError:
        copied = []
    kept = [
        entry
        for entry in copied
        if not entry.digest or store.content.has_blob(parse_digest(entry.digest), entry.size)
    ]
    known = {entry.digest for entry in kept}
    return [*kept, *(e for e in _entries_from_blobs(store) if e.digest not in known)]


def _entries_from_blobs(store: ImageStore) -> list[IndexEntry]:
    """An entry, without its name, for every image manifest in the store."""
    entries: list[IndexEntry] = []
    for digest in stored_blobs(store):
        try:
            if os.stat(store.content.blob_path(digest)).st_size > MAX_DOCUMENT_BYTES:
                continue
            data = store.content.read_blob(digest, MAX_DOCUMENT_BYTES)
            document = read_image_document(data, digest, None, f"blob {digest}")
        except (ScowError, NotFound, ValueError, OSError):
            continue  # a layer, a config, or damaged
        if document.manifest.artifact:
            entries.append(artifact_entry(document))
            continue
        config = document.manifest.config.digest
        entries.append(
            IndexEntry(document.media_type, digest, len(data), annotations={IMAGE_ID: config})
        )
    return entries


def fetch_again(store: ImageStore, entry: IndexEntry, entries: list[IndexEntry]) -> None:
    """Get what lacks of an image from the repository that it came from; NotFound without one."""
    from scow.image.registry import Registry

    same = (e.repo_digest for e in entries if e.digest == entry.digest and e.repo_digest)
    source = next(same, None)
    if source is None:
        raise NotFound("it cannot be fetched again, its registry is not known")
    reference = parse_reference(source)
    what = quote(reference.familiar)
    with Registry(reference) as registry, leased(store) as lease:
        data, digest, media_type = registry.get_manifest(entry.digest)
        document = read_image_document(data, digest, media_type or entry.media_type, what)
        progress = SilentProgress()
        install_image(
            store,
            registry,
            document,
            lease,
            what=what,
            platform=None,
            progress=progress,
            origin=source if drops_blobs() else "",
        )
        lease.finish()
