"""Pushing a list: its images that the registry lacks, and the list itself last of all.

What belongs here: the order of these things, and what to say when an image cannot be had. What must
not: how one image is pushed (push.py). The list goes out byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from scow.image.digest import Digest, parse_digest, quote
from scow.image.gc import leased, named_by
from scow.image.install import ImageDocument
from scow.image.lists import ImageList, ListEntry, get_list, members_here
from scow.image.manifest import Index, Manifest, parse_document
from scow.image.push import (
    Pushed,
    PushSink,
    SilentPush,
    check_target,
    push_blobs,
    push_manifest,
)
from scow.image.reference import parse_reference
from scow.image.registry_write import RegistryWriter
from scow.native.errors import NotFound

if TYPE_CHECKING:
    from scow.image.registry import Connection
    from scow.image.store import ImageStore
    from scow.image.transport import Patience


def push_list(
    store: ImageStore,
    name: str,
    *,
    destination: str | None = None,
    everything: bool = True,
    progress: PushSink | None = None,
    patience: Patience | None = None,
    **how: Unpack[Connection],
) -> Pushed:
    """Give a registry the list `name`, and with `everything` the images that it names.

    Raises what `push_image` raises; NotFound before anything is sent where an image is neither here
    nor in that registry.
    """
    found = get_list(store, name)
    reference = check_target(parse_reference(destination) if destination else found.reference)
    assert reference.tag is not None
    sink = progress or SilentPush()
    sink.begin(reference.repository)
    registry = RegistryWriter(reference, patience=patience, warn=sink.warning, **how)
    with registry, leased(store) as lease:
        try:
            blobs, _ = named_by(store, [found.entry], [])
            lease.hold(blobs=[parse_digest(text) for text in sorted(blobs)])
            work = _ListPush(store, found, registry, sink)
            for entry, data in work.missing() if everything else ():
                work.push(data, entry.media_type, entry.digest)
            registry.put_manifest(reference.tag, found.data, found.media_type)
        finally:
            lease.finish()
    return Pushed(reference, found.digest, len(found.data))


class _ListPush:
    def __init__(
        self, store: ImageStore, found: ImageList, registry: RegistryWriter, sink: PushSink
    ) -> None:
        self._store = store
        self._list = found
        self._registry = registry
        self._sink = sink

    def missing(self) -> list[tuple[ListEntry, bytes]]:
        """The members that the repository lacks; NotFound where one of them cannot be had."""
        found: list[tuple[ListEntry, bytes]] = []
        lost: list[ListEntry] = []
        for entry, data in members_here(self._store, self._list):
            if self._has(parse_digest(entry.digest)):
                self._sink.exists(entry.digest, entry.size)
            elif data is None or not self._can_push(data, entry.media_type, entry.digest):
                lost.append(entry)
            else:
                found.append((entry, data))
        if lost:
            raise self._lost(lost)
        return found

    def _has(self, digest: Digest) -> bool:
        try:
            return self._registry.head_manifest(digest) == digest
        except NotFound:
            return False

    def _can_push(self, data: bytes, media_type: str, digest: str) -> bool:
        """Whether all of it is here, or in the registry that it goes to."""
        if self._source(digest):
            return True
        document = parse_document(data, media_type, f"manifest {digest}")
        if isinstance(document, Index):
            return False  # of another program's making, and too deep for us
        blobs = [document.config, *document.layers]
        return all(
            self._store.content.has_blob(blob.digest, blob.size)
            or self._registry.has_blob(blob.digest)
            for blob in blobs
        )

    def _source(self, digest: str) -> str:
        """The repository of the same registry that the member came from."""
        name = self._list.sources.get(digest)
        source = parse_reference(name) if name else None
        target = self._registry.reference
        if source is None or source.host != target.host or source.path == target.path:
            return ""
        return source.path

    def _lost(self, lost: list[ListEntry]) -> NotFound:
        first = lost[0]
        told = [
            f"{entry.platform.os}/{entry.platform.architecture}" if entry.platform else entry.digest
            for entry in lost
        ]
        source = self._list.sources.get(first.digest, "IMAGE")
        platform = f"--platform {told[0]} " if first.platform else ""
        return NotFound(
            f"cannot push list {self._list.name}: neither here nor in registry "
            f"{quote(self._registry.reference.host)} are its images for {', '.join(told)}",
            hint=f"fetch them first: scow pull {platform}{source}",
        )

    def push(self, data: bytes, media_type: str, digest: str) -> None:
        """Push one member."""
        document = parse_document(data, media_type, f"manifest {digest}")
        assert isinstance(document, Manifest)  # _can_push
        image = ImageDocument(data, parse_digest(digest), document.media_type, document)
        push_blobs(
            self._store, self._registry, image, None, self._sink, source=self._source(digest)
        )
        push_manifest(self._registry, digest, data, document.media_type)
