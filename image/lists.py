"""Lists of images for several platforms, made here: `scow manifest create` and what follows it.

What belongs here: finding, changing, writing and removing such lists. What must not: where their
members come from (members.py), registries (push_list.py). A list is an ordinary index under a name in
the store's index.json, where any OCI tool can read it, or may have put it; the collector keeps all
that it leads to (gc.py). Its name is no image's: as with docker the two do not get in each other's
way, so that what was pushed as a list can be pulled under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from scow.image.content import REF_NAME, IndexEntry
from scow.image.digest import Digest, digest_bytes, parse_digest, quote
from scow.image.document import MAX_DOCUMENT_BYTES, decode_document
from scow.image.gc import delete_blobs, leased, named_by
from scow.image.manifest import MAX_INDEX_ENTRIES, Index, parse_document
from scow.image.media_types import DOCKER_LIST, DOCKER_MANIFEST, INDEX_TYPES, OCI_INDEX
from scow.image.reference import Reference, parse_reference
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, ResourceExhausted

if TYPE_CHECKING:
    from scow.image.store import ImageStore

SOURCE = "io.scow.list.source."  # and a member's digest: the name that it was added by
MAX_TRIES = 100  # of a change that others get ahead of


class ListPlatform(msgspec.Struct, omit_defaults=True):
    """As Go writes it, so that our bytes are those of other tools."""

    architecture: str
    os: str
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")
    variant: str | None = None
    features: list[str] | None = None


class ListEntry(msgspec.Struct, rename="camel", omit_defaults=True):
    """A descriptor with all that the spec knows, in Go's order."""

    media_type: str
    digest: str
    size: int
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    data: str | None = None
    platform: ListPlatform | None = None
    artifact_type: str | None = None


class ListFile(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """An index with all that the spec knows, in Go's order."""

    schema_version: int
    media_type: str = ""
    artifact_type: str | None = None
    manifests: list[ListEntry]
    subject: ListEntry | None = None
    annotations: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ImageList:
    """A list that is here, with its exact bytes."""

    reference: Reference
    digest: Digest
    media_type: str
    data: bytes
    sources: dict[str, str]  # by a member's digest
    entry: IndexEntry

    @property
    def name(self) -> str:
        """For messages."""
        return quote(self.reference.familiar)

    def index(self) -> Index:
        """Its members, checked."""
        document = parse_document(self.data, self.media_type, f"list {self.name}")
        assert isinstance(document, Index)  # by its type
        return document

    def file(self) -> ListFile:
        """The same to be changed."""
        self.index()
        return decode_document(self.data, ListFile, f"list {self.name}")


class _Named(msgspec.Struct):
    annotations: dict[str, str] = {}


def find_list(store: ImageStore, name: str) -> ImageList | None:
    """The list of this name, if there is one."""
    try:
        reference = parse_reference(name)
    except InvalidArgument:
        return None
    found = _entry_of(store, reference)
    while found is not None:
        try:
            return _read(store, reference, *found)
        except NotFound:
            # Between the two looks somebody may have changed the list, and removed the old one.
            before, found = found, _entry_of(store, reference)
            if found == before:
                raise
    return None


def _read(
    store: ImageStore, reference: Reference, entry: IndexEntry, annotations: dict[str, str]
) -> ImageList:
    digest = parse_digest(entry.digest)
    data = store.content.read_blob(digest, MAX_DOCUMENT_BYTES)
    sources = {k.removeprefix(SOURCE): v for k, v in annotations.items() if k.startswith(SOURCE)}
    return ImageList(reference, digest, entry.media_type, data, sources, entry)


def get_list(store: ImageStore, name: str) -> ImageList:
    """The list of this name; NotFound."""
    found = find_list(store, name)
    if found is None:
        raise _no_such(name)
    return found


def all_lists(store: ImageStore) -> list[ImageList]:
    """Every list that has a name, by its name; what is damaged is left out."""
    named = {
        msgspec.json.decode(entry.foreign, type=_Named).annotations.get(REF_NAME, "")
        for entry in store.content.read_index()
        if entry.foreign and entry.media_type in INDEX_TYPES
    }
    found: list[ImageList] = []
    for name in sorted(named - {""}):
        with suppress(NotFound, IntegrityError):
            found += [one for one in [find_list(store, name)] if one is not None]
    return found


def _no_such(name: str) -> NotFound:
    return NotFound(
        f"no such list: {quote(name)}", hint="make one: scow manifest create LIST IMAGE..."
    )


def _entry_of(store: ImageStore, reference: Reference) -> tuple[IndexEntry, dict[str, str]] | None:
    """Its entry and the annotations of that; also of one that another program wrote."""
    for entry in store.content.read_index():
        if entry.foreign and entry.media_type in INDEX_TYPES:
            annotations = msgspec.json.decode(entry.foreign, type=_Named).annotations
            if _is_name_of(annotations.get(REF_NAME, ""), reference):
                return entry, annotations
    return None


def _is_name_of(text: str, reference: Reference) -> bool:
    try:
        return parse_reference(text) == reference
    except InvalidArgument:
        return False  # layouts may have names that no registry has


# -- changing -------------------------------------------------------------------------------------


Change = Callable[[ListFile, dict[str, str]], None]


def find_member(store: ImageStore, found: ImageList, word: str) -> Digest:
    """The member that a user means: a digest or its beginning, or the name that it came by."""
    digests = [entry.digest for entry in found.index().manifests]
    wanted = word.rpartition("@")[2]
    if wanted.startswith(("sha256:", "sha512:")):
        digests = [d for d in digests if d.startswith(wanted)] if len(wanted) > 10 else []
        if len(digests) == 1:
            return digests[0]
    else:
        name = str(parse_reference(word))
        by_name = [d for d in digests if found.sources.get(d) == name]
        if not by_name:
            known = [e for e in store.content.read_index() if e.name == name]
            by_name = [d for d in digests if any(e.digest == d for e in known)]
        if by_name:
            return by_name[0]
    raise NotFound(
        f"list {found.name} has no member {quote(word)}",
        hint=f"'scow manifest inspect {found.reference.familiar}' shows their digests",
    )


def change_list(
    store: ImageStore, name: str, change: Change, *, may_be_new: bool = False
) -> ImageList:
    """Let `change` alter a list's file and its members' sources; with `may_be_new` also one of none.

    It may be called more than once: whoever was quicker has written what this then begins with.
    """
    reference = parse_reference(name)
    if reference.digest is not None:
        raise InvalidArgument(f"{quote(name)} cannot be a list's name: it has a digest")
    for _ in range(MAX_TRIES):
        old = find_list(store, name) if may_be_new else get_list(store, name)
        file = ListFile(schema_version=2, manifests=[]) if old is None else old.file()
        sources = {} if old is None else dict(old.sources)
        change(file, sources)
        if _write(store, reference, file, sources, old):
            return get_list(store, name)
    raise ResourceExhausted(f"list {quote(name)} is changed by too many at once")


def _write(
    store: ImageStore,
    reference: Reference,
    file: ListFile,
    sources: dict[str, str],
    old: ImageList | None,
) -> bool:
    """Put a list in the place of `old`; False where that is not there any more."""
    if len(file.manifests) > MAX_INDEX_ENTRIES:
        raise InvalidArgument(f"a list has at most {MAX_INDEX_ENTRIES} members")
    file.media_type = _type_of(file)
    data = msgspec.json.encode(file)
    digest = digest_bytes(data)
    named = {SOURCE + d: name for d, name in sources.items()}
    entry = IndexEntry(
        file.media_type, digest, len(data), annotations={REF_NAME: str(reference), **named}
    )
    with leased(store) as lease:
        lease.hold(blobs=[digest])
        store.content.write_blob(data, digest)
        with store.content.locked():
            found = _entry_of(store, reference)
            is_done = (found[0] if found else None) == (old.entry if old else None)
            if is_done:
                # Only now is it certain that nobody removes them.
                for member in file.manifests:
                    if not store.content.has_blob(parse_digest(member.digest)):
                        raise NotFound(f"image {member.digest} was removed meanwhile")
                others = [e for e in store.content.read_index() if old is None or e != old.entry]
                store.content.write_index([*others, entry])
        lease.finish()
    if not is_done:
        _forget(store, {digest})
    elif old is not None and old.digest != digest:
        _forget(store, named_by(store, [old.entry], [])[0])
    return is_done


def _type_of(file: ListFile) -> str:
    """Docker's own form holds Docker's images only, and knows no annotations."""
    is_docker = bool(file.manifests) and all(
        entry.media_type == DOCKER_MANIFEST and not entry.annotations for entry in file.manifests
    )
    return DOCKER_LIST if is_docker and not file.annotations else OCI_INDEX


def remove_list(store: ImageStore, name: str) -> None:
    """Remove a list, be it damaged; images that it names stay if they have names of their own."""
    with store.content.locked():
        found = _entry_of(store, parse_reference(name))
        if found is None:
            raise _no_such(name)
        entries = store.content.read_index()
        store.content.write_index([e for e in entries if e != found[0]], removes=True)
    _forget(store, named_by(store, [found[0]], [])[0])


def _forget(store: ImageStore, blobs: set[str]) -> None:
    """Delete those of these blobs that nothing names any more.

    Killed before this, the blobs stay until `scow image prune` or `scow system check --repair`.
    """
    with store.content.locked():
        kept, _ = named_by(store, store.content.read_index(), store.content.leases())
        delete_blobs(store, sorted(blobs - kept))


def members_here(store: ImageStore, found: ImageList) -> Iterator[tuple[ListEntry, bytes | None]]:
    """Each member with its manifest, or None where that is not here."""
    for entry in found.file().manifests:
        try:
            yield entry, store.content.read_blob(parse_digest(entry.digest), MAX_DOCUMENT_BYTES)
        except (NotFound, IntegrityError):
            yield entry, None
