"""What a list is made of: images that are here or in a registry, with their platforms.

What belongs here: from the names of images to the entries of a list. What must not: how a list is
kept (lists.py). Of an image in a registry only the manifest is fetched: its layers stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Unpack

import msgspec

from scow.image.digest import digest_bytes, parse_digest, quote
from scow.image.document import MAX_DOCUMENT_BYTES, decode_document
from scow.image.gc import leased
from scow.image.install import read_small_blob
from scow.image.lists import (
    Change,
    ImageList,
    ListEntry,
    ListFile,
    ListPlatform,
    change_list,
    find_list,
)
from scow.image.manifest import (
    MAX_INDEX_DEPTH,
    MAX_INDEX_ENTRIES,
    Descriptor,
    Index,
    Manifest,
    candidates,
    host_platform,
    parse_document,
)
from scow.image.media_types import CONFIG_TYPES, INDEX_TYPES, MANIFEST_TYPES
from scow.image.reference import Reference, parse_reference
from scow.image.registry import Registry
from scow.image.store import find_entry
from scow.native.errors import AlreadyExists, InvalidArgument, NotFound

if TYPE_CHECKING:
    from scow.image.registry import Connection
    from scow.image.store import ImageStore

REMOTE = "docker://"  # as skopeo and podman say: never mind what is here


@dataclass(frozen=True, slots=True)
class _Member:
    """An entry with its manifest, and the name that it came by, if by any."""

    entry: ListEntry
    data: bytes
    source: str


class _ConfigPlatform(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")


def add_to_list(
    store: ImageStore,
    name: str,
    images: list[str],
    *,
    is_new: bool = False,
    may_be_new: bool = False,
    everything: bool = False,
    alter: Change = lambda file, sources: None,
    dress: Callable[[ListEntry], None] = lambda entry: None,
    warn: Callable[[str], None] = lambda message: None,
    **how: Unpack[Connection],
) -> ImageList:
    """Add images to a list: what is here by a name, else what its registry has.

    Of an image that is itself a list all are added with `everything`, else the one for this machine.
    `dress` may change each new entry, `alter` the list after that. With `is_new` there must not be such
    a list yet, with `may_be_new` there need not be.
    """
    if is_new and find_list(store, name) is not None:
        raise AlreadyExists(
            f"list {quote(name)} is there already", hint="add to it with --amend, or remove it"
        )
    with leased(store) as lease:
        members: list[_Member] = []
        for image in images:
            members += _find(store, image, everything=everything, **how)
        for member in members:
            digest = parse_digest(member.entry.digest)
            lease.hold(blobs=[digest])
            store.content.write_blob(member.data, digest)
            dress(member.entry)

        def change(file: ListFile, sources: dict[str, str]) -> None:
            for member in members:
                _put(file, sources, member, warn)
            alter(file, sources)

        changed = change_list(store, name, change, may_be_new=is_new or may_be_new)
        lease.finish()
    return changed


def _put(
    file: ListFile, sources: dict[str, str], member: _Member, warn: Callable[[str], None]
) -> None:
    """Add a member, in the place of one that is the same or came by the same name."""
    entry = member.entry
    replaced = {d for d, source in sources.items() if source == member.source}
    replaced.add(entry.digest)
    places = [i for i, known in enumerate(file.manifests) if known.digest in replaced]
    kept = [known for known in file.manifests if known.digest not in replaced]
    if entry.platform and any(known.platform == entry.platform for known in kept):
        warn(
            "the list has two images for "
            f"{quote(entry.platform.os)} on {quote(entry.platform.architecture)}; "
            "who pulls it gets the first of them"
        )
    kept.insert(places[0] if places else len(kept), entry)
    file.manifests = kept
    for digest in replaced:
        sources.pop(digest, None)
    if member.source:
        sources[entry.digest] = member.source


# -- finding --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the documents of an image are."""

    what: str  # for messages
    reference: Reference | None  # None: it was named by its id
    read: Callable[[Descriptor], bytes]  # a manifest
    read_config: Callable[[Descriptor], bytes]


def _find(
    store: ImageStore, name: str, *, everything: bool, **how: Unpack[Connection]
) -> list[_Member]:
    if not name.startswith(REMOTE):
        found = _find_here(store, name, everything=everything)
        if found is not None:
            return found
    reference = parse_reference(name.removeprefix(REMOTE))
    what = quote(reference.familiar)
    with Registry(reference, **how) as registry:
        place = _Place(
            what,
            reference,
            lambda descriptor: registry.get_manifest(descriptor.digest, descriptor)[0],
            lambda descriptor: read_small_blob(registry, descriptor, f"config of {what}"),
        )
        data, _, media_type = registry.get_manifest(reference.digest or reference.tag or "")
        return _members(data, media_type, place, everything=everything)


def _find_here(store: ImageStore, name: str, *, everything: bool) -> list[_Member] | None:
    entries = [e for e in store.content.read_index() if e.image_id and not e.is_deleting]

    def read(descriptor: Descriptor) -> bytes:
        return store.content.read_blob(descriptor.digest, MAX_DOCUMENT_BYTES)

    try:
        entry = find_entry(entries, name)
    except (NotFound, InvalidArgument):
        known = find_list(store, name)
        if known is None:
            return None
        place = _Place(quote(name), None, read, read)
        return _members(known.data, known.media_type, place, everything=everything)
    by_name = (
        parse_reference(entry.name) if entry.name and not _is_id(entry.image_id, name) else None
    )
    place = _Place(quote(name), by_name, read, read)
    data = store.content.read_blob(parse_digest(entry.digest), MAX_DOCUMENT_BYTES)
    return _members(data, entry.media_type, place, everything=everything)


def _is_id(image_id: str, name: str) -> bool:
    return image_id.removeprefix("sha256:").startswith(name.removeprefix("sha256:"))


def _members(
    data: bytes, media_type: str | None, place: _Place, *, everything: bool
) -> list[_Member]:
    document = parse_document(data, media_type, f"manifest of {place.what}")
    source = str(place.reference or "")
    if isinstance(document, Manifest):
        return [_Member(_describe(data, document, place), data, source)]
    images = _flat(data, document, place, everything=everything, depth=1)
    found = [*islice(images, MAX_INDEX_ENTRIES + 1)]  # what is too many is refused later
    if len(found) == 1:
        return [_Member(*found[0], source)]
    # One name for all would make them take each other's place.
    return [
        _Member(entry, manifest, _by_digest(place.reference, entry)) for entry, manifest in found
    ]


def _by_digest(reference: Reference | None, entry: ListEntry) -> str:
    return str(reference.with_digest(parse_digest(entry.digest))) if reference else ""


def _flat(
    data: bytes, index: Index, place: _Place, *, everything: bool, depth: int
) -> Iterator[tuple[ListEntry, bytes]]:
    """The images of an index and of those in it, as they are described there."""
    if depth > MAX_INDEX_DEPTH:
        raise InvalidArgument(f"{place.what}: indexes are nested more than {MAX_INDEX_DEPTH} deep")
    chosen = index.manifests
    if not everything:
        chosen = (candidates(index, host_platform(), place.what)[0],)
    described = {e.digest: e for e in decode_document(data, ListFile, place.what).manifests}
    for descriptor in chosen:
        if descriptor.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            continue
        if descriptor.size > MAX_DOCUMENT_BYTES:
            raise InvalidArgument(f"manifest {descriptor.digest} has {descriptor.size} bytes")
        manifest = place.read(descriptor)
        what = f"manifest {descriptor.digest} of {place.what}"
        document = parse_document(manifest, descriptor.media_type, what)
        if isinstance(document, Index):
            yield from _flat(manifest, document, place, everything=everything, depth=depth + 1)
            continue
        entry = described[descriptor.digest]
        entry.data = None
        entry.platform = entry.platform or _platform(document, place)
        yield entry, manifest


def _describe(data: bytes, manifest: Manifest, place: _Place) -> ListEntry:
    entry = ListEntry(manifest.media_type, digest_bytes(data), len(data))
    entry.platform = _platform(manifest, place)
    if entry.platform is None:
        entry.artifact_type = manifest.artifact_type or manifest.config.media_type
    return entry


def _platform(manifest: Manifest, place: _Place) -> ListPlatform | None:
    """What the image's config says; None for what is no image."""
    if manifest.config.media_type not in CONFIG_TYPES:
        return None
    data = place.read_config(manifest.config)
    found = decode_document(data, _ConfigPlatform, f"config of {place.what}")
    if not (found.architecture and found.os):
        return None
    return ListPlatform(
        found.architecture, found.os, found.os_version, found.os_features, found.variant or None
    )
