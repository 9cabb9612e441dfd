"""Pushing: from an image in the store to a tag in a registry.

What belongs here: the order of things: which blobs the registry lacks, from where it can take them,
and the manifest last of all. What must not: HTTP, compressors; each has its own module. What lies in
the store goes out byte for byte, so that the digest is the same everywhere.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from scow.image.compress import (
    check_level,
    is_compressed,
    layer_type,
    recompress,
    renew_manifest,
)
from scow.image.content import IndexEntry
from scow.image.digest import Digest, digest_bytes, parse_digest, quote
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.dropped import borrowing, fetch_blobs, read_note
from scow.image.gc import hold_image, leased
from scow.image.install import ImageDocument, read_image_document
from scow.image.lists import find_list
from scow.image.manifest import (
    Descriptor,
    Platform,
    acceptable_platforms,
    candidates,
    parse_platform,
    platform_matches,
    platform_of,
)
from scow.image.media_types import DOCKER_LAYER, OCI_LAYER
from scow.image.reference import Reference, parse_reference
from scow.image.registry_write import RegistryWriter
from scow.image.store import find_entry
from scow.image.tee import Cancelled
from scow.image.upload import BlobFile, BlobUpload, UploadProgress
from scow.native.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from scow.image.credentials import Credentials
    from scow.image.lists import ImageList
    from scow.image.store import ImageStore
    from scow.image.transport import Patience

PARALLEL_BLOBS = 4
POST_BYTES = (
    64 << 10
)  # of a blob in one request: more would be lost where the registry takes no such
_HEAD_BYTES = 6  # the longest magic


class PushSink(UploadProgress, Protocol):
    """Receives events, from several threads; `blob` is the digest that the manifest here names.

    `begin` comes once, when the image was found. Per blob: `exists`, `mounted`, or `start`, any mix of sent/restarted, `done`. Before them
    `compressing` where the blob is made anew.
    """

    def begin(self, repository: str) -> None: ...
    def exists(self, blob: str, size: int) -> None: ...
    def mounted(self, blob: str, size: int, source: str) -> None: ...
    def compressing(self, blob: str, size: int) -> None: ...
    def start(self, blob: str, size: int) -> None: ...
    def done(self, blob: str) -> None: ...
    def warning(self, message: str) -> None: ...


class SilentPush:
    """A sink that drops everything."""

    def begin(self, repository: str) -> None: ...
    def exists(self, blob: str, size: int) -> None: ...
    def mounted(self, blob: str, size: int, source: str) -> None: ...
    def compressing(self, blob: str, size: int) -> None: ...
    def start(self, blob: str, size: int) -> None: ...
    def sent(self, blob: str, count: int) -> None: ...
    def restarted(self, blob: str) -> None: ...
    def done(self, blob: str) -> None: ...
    def warning(self, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Compression:
    """What layers are to be made of: "gzip" or "zstd"; with a level all, else those that differ."""

    kind: str
    level: int | None = None


@dataclass(frozen=True, slots=True)
class Pushed:
    """What the registry has now."""

    reference: Reference
    digest: Digest
    size: int  # of the manifest


class _Subject(msgspec.Struct, rename="camel"):
    digest: str


class _Config(msgspec.Struct, rename="camel"):
    media_type: str


class _Extras(msgspec.Struct, rename="camel"):
    subject: _Subject | None = None
    config: _Config | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


def push_image(
    store: ImageStore,
    name: str,
    *,
    destination: str | None = None,
    platform: str | None = None,
    compression: Compression | None = None,
    plain_http: bool = False,
    tls_verify: bool = True,
    progress: PushSink | None = None,
    patience: Patience | None = None,
    credentials: Credentials | None = None,
) -> Pushed:
    """Give a registry the image `name`, under that name or under `destination`.

    With `platform` that one of several: of a list made here, or of what was pulled from one.
    InvalidArgument, NotFound, PermissionDenied, RegistryError, IntegrityError and ResourceExhausted.
    """
    if compression is not None:
        check_level(compression.kind, compression.level)
    entry, reference = _what_to_push(store, name, destination, platform)
    if compression is not None and entry.artifact_type:
        raise InvalidArgument(f"{quote(name)} is an artifact: it is pushed as it is")
    sink = progress or SilentPush()
    sink.begin(reference.repository)
    if platform is None and _came_from_index(entry, reference):
        sink.warning(
            f"{quote(name)} came from a list of images for several platforms; "
            f"what is pushed is the one that is here, for {_platform_of(entry)}"
        )
    registry = RegistryWriter(
        reference,
        plain_http=plain_http,
        tls_verify=tls_verify,
        patience=patience,
        warn=sink.warning,
        credentials=credentials,
    )
    with borrowing(store), registry, leased(store, spends_reserve=True) as lease:
        try:
            digest = parse_digest(entry.digest)
            hold_image(store, lease, digest, name)
            data = store.content.read_blob(digest, MAX_DOCUMENT_BYTES)
            document = read_image_document(data, digest, entry.media_type, quote(name))
            data, media_type = push_blobs(store, registry, document, compression, sink)
            pushed = Pushed(reference, digest_bytes(data), len(data))
            assert reference.tag is not None
            push_manifest(registry, reference.tag, data, media_type)
        finally:
            lease.finish()
    if pushed.digest == entry.digest and entry.name == str(reference):
        _remember(store, entry, str(reference.with_digest(pushed.digest)))
    return pushed


def tags_of(store: ImageStore, repository: str) -> list[str]:
    """The names here with this repository; `repository` has no tag."""
    reference = parse_reference(repository)
    entries = store.content.read_index()
    names = [parse_reference(e.name) for e in entries if e.name and not e.is_deleting]
    found = sorted(n.familiar for n in names if n.repository == reference.repository)
    if not found:
        raise NotFound(f"no such image: {quote(reference.familiar_repository)}")
    return found


def _what_to_push(
    store: ImageStore, name: str, destination: str | None, platform: str | None
) -> tuple[IndexEntry, Reference]:
    entries = [e for e in store.content.read_index() if e.image_id and not e.is_deleting]
    made = find_list(store, name) if platform else None
    entry = find_entry(entries, name) if made is None else None
    try:
        reference = parse_reference(destination or name)
    except InvalidArgument:
        if destination is not None:
            raise
        reference = None
    if destination is None and (reference is None or (entry and entry.name != str(reference))):
        raise InvalidArgument(
            f"cannot push {quote(name)}: it does not say where to",
            hint="push it by a name, or say where to: scow push IMAGE HOST/NAME:TAG",
        )
    assert reference is not None
    if platform is not None:
        wanted = parse_platform(platform)
        entry = _for_platform(entries, entry, name, wanted) if entry else _member(made, wanted)
    assert entry is not None
    return entry, check_target(reference)


def check_target(reference: Reference) -> Reference:
    """Raise InvalidArgument unless one can push to this name."""
    if reference.digest is not None:
        raise InvalidArgument(
            f"cannot push to {quote(str(reference))}: a digest is not a tag",
            hint="leave the digest away; the registry works it out from the content",
        )
    return reference


def _member(made: ImageList | None, wanted: Platform) -> IndexEntry:
    assert made is not None
    found = candidates(made.index(), wanted, f"list {made.name}")[0]
    return IndexEntry(found.media_type, found.digest, found.size)


def _for_platform(
    entries: list[IndexEntry], entry: IndexEntry, name: str, wanted: Platform
) -> IndexEntry:
    """Of all that was pulled from one list the best image for this platform."""
    siblings = [e for e in entries if entry.repo_digest and e.repo_digest == entry.repo_digest]
    by_platform = {_platform_of(e): e for e in [*siblings, entry]}
    for offered in acceptable_platforms(wanted):
        for here, found in by_platform.items():
            if platform_matches(here, offered):
                return found
    raise NotFound(
        f"{quote(name)} is not here for {wanted}",
        hint=f"here: {', '.join(map(str, by_platform))}; fetch it: "
        f"scow pull --platform {wanted} {name}",
    )


def _platform_of(entry: IndexEntry) -> Platform:
    return platform_of(entry.platform)


def _came_from_index(entry: IndexEntry, reference: Reference) -> bool:
    """Whether the push puts one image where there was a list of them."""
    if not entry.repo_digest:
        return False
    known = parse_reference(entry.repo_digest)
    return known.repository == reference.repository and known.digest != entry.digest


def _remember(store: ImageStore, entry: IndexEntry, repo_digest: str) -> None:
    """Note what the image is called at the registry, unless its name has moved meanwhile."""
    with store.content.locked():
        entries = store.content.read_index()
        if entry in entries:
            changed = entry.annotated(repo_digest=repo_digest)
            store.content.write_index([changed if e == entry else e for e in entries])


def push_manifest(registry: RegistryWriter, target: str, data: bytes, media_type: str) -> None:
    """Push a manifest under a tag or digest, and make its subject know of it."""
    knows_subject = registry.put_manifest(target, data, media_type)
    extras = msgspec.json.decode(data, type=_Extras)
    if extras.subject is None or knows_subject:
        return
    entry: dict[str, object] = {
        "mediaType": media_type,
        "digest": digest_bytes(data),
        "size": len(data),
    }
    # distribution-spec, "Pushing Manifests with Subject": without a type of its own the config's.
    kind = extras.artifact_type or (extras.config.media_type if extras.config else "")
    if kind:
        entry["artifactType"] = kind
    if extras.annotations:
        entry["annotations"] = extras.annotations
    registry.add_referrer(parse_digest(extras.subject.digest), entry)


def _mount_sources(store: ImageStore, target: Reference) -> dict[str, str]:
    """For each blob another repository of the same registry that has it, as far as we know."""
    sources: dict[str, str] = {}
    for entry in store.content.read_index():
        if not entry.repo_digest or entry.is_deleting:
            continue
        known = parse_reference(entry.repo_digest)
        if known.host == target.host and known.path != target.path:
            summary = store.read_summary(entry)
            for blob in summary.blobs if summary is not None else ():
                sources.setdefault(blob, known.path)
    return sources


def push_blobs(
    store: ImageStore,
    registry: RegistryWriter,
    document: ImageDocument,
    compression: Compression | None,
    sink: PushSink,
    *,
    source: str = "",
) -> tuple[bytes, str]:
    """Push config and layers; returns the manifest that names what was pushed, and its type.

    `source` is a repository of the same registry that should have all of them.
    """
    from concurrent.futures import ThreadPoolExecutor, as_completed

    manifest = document.manifest
    work = _BlobPush(store, registry, manifest.media_type, sink, source)
    # Alone: how the registry wants to be spoken to is settled before there are several who speak.
    has_config = work.is_there(manifest.config, manifest.config.digest)
    with ThreadPoolExecutor(PARALLEL_BLOBS, thread_name_prefix="scow-push") as pool:
        # The large ones first: the last one to end should be a small one.
        layers = sorted({d.digest: d for d in manifest.layers}.values(), key=lambda d: -d.size)
        futures = {pool.submit(work.layer, d, compression): d.digest for d in layers}
        if not has_config and manifest.config.digest not in futures.values():
            futures[pool.submit(work.kept, manifest.config)] = manifest.config.digest
        try:
            pushed = {futures[future]: future.result() for future in as_completed(futures)}
        except BaseException:
            # The first failure decides; the others end at their next piece.
            work.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if work.uncompressed:
        sink.warning(
            f"layers that were sent without compression: {work.uncompressed}; "
            "with --compression-format zstd they would be smaller"
        )
    new_layers = [pushed[d.digest] for d in manifest.layers]
    if new_layers == [*manifest.layers]:
        return document.data, document.media_type
    return renew_manifest(document.data, document.media_type, new_layers)


class _BlobPush:
    """What the blobs of one push have in common."""

    def __init__(
        self,
        store: ImageStore,
        registry: RegistryWriter,
        manifest_type: str,
        sink: PushSink,
        source: str,
    ) -> None:
        self.stop = threading.Event()
        self.uncompressed = 0
        self._store = store
        self._registry = registry
        self._manifest_type = manifest_type
        self._sink = sink
        self._sources = _mount_sources(store, registry.reference)
        self._source = source

    def layer(self, layer: Descriptor, compression: Compression | None) -> Descriptor:
        """Push a layer as it lies, or in another format; returns what was pushed."""
        if compression is None or self._is_made_so(layer, compression):
            return self.plain(layer)
        return self._recompressed(layer, compression)

    def _is_made_so(self, layer: Descriptor, compression: Compression) -> bool:
        if compression.level is not None:
            return False
        try:
            with open(self._store.content.blob_path(layer.digest), "rb") as file:
                return is_compressed(file.read(_HEAD_BYTES), compression.kind)
        except FileNotFoundError:
            if read_note(self._store.content, layer.digest) is None:
                return True  # nothing can be made of it; the registry may have it
            return layer.media_type.endswith(compression.kind)

    def _have(self, blob: Descriptor) -> None:
        fetch_blobs(self._store, [blob], self._sink.warning)

    def plain(self, blob: Descriptor) -> Descriptor:
        """Push a blob byte for byte."""
        return blob if self.is_there(blob, blob.digest) else self.kept(blob)

    def kept(self, blob: Descriptor) -> Descriptor:
        """Push a blob that the repository lacks."""
        path = self._store.content.blob_path(blob.digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if self._is_mounted(blob.digest, blob.size):
                return blob
            self._have(blob)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            was_sent = self._upload(BlobFile(fd, blob.digest, blob.size), blob.digest)
        finally:
            os.close(fd)
        self.uncompressed += was_sent and blob.media_type in (OCI_LAYER, DOCKER_LAYER)
        return blob

    def _is_mounted(self, digest: Digest, size: int) -> bool:
        """Whether the registry has it in another of its repositories and takes it from there."""
        source = self._source_of(digest)
        session = self._registry.mount(digest, source) if source else None
        if session is not None:
            self._registry.cancel_upload(session)
        elif source:
            self._sink.mounted(digest, size, source)
        return bool(source) and session is None

    def _source_of(self, digest: Digest) -> str:
        return self._sources.get(digest) or self._source

    def _recompressed(self, layer: Descriptor, compression: Compression) -> Descriptor:
        import tempfile

        self._have(layer)
        self._sink.compressing(layer.digest, layer.size)
        directory = self._store.content.ingest_dir
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            chunks = self._until_stopped(layer.digest)
            fd = file.fileno()
            digest, size = recompress(chunks, compression.kind, compression.level, fd, directory)
            kind = layer_type(self._manifest_type, compression.kind)
            made = Descriptor(kind, digest, size)
            if not self.is_there(made, layer.digest):
                self._upload(BlobFile(fd, digest, size), layer.digest)
        return made

    def _until_stopped(self, digest: Digest) -> Iterator[bytes]:
        for chunk in self._store.content.read_chunks(digest):
            if self.stop.is_set():
                raise Cancelled("given up")
            yield chunk

    def is_there(self, blob: Descriptor, name: str) -> bool:
        """Whether the repository has the blob; `name` is what the sink calls it."""
        if self.stop.is_set():
            raise Cancelled("given up")
        if not self._registry.has_blob(blob.digest):
            return False
        self._sink.exists(name, blob.size)
        return True

    def _upload(self, blob: BlobFile, name: str) -> bool:
        """Bring a blob into the repository; False where the registry had it in another."""
        source = self._source_of(blob.digest)
        session = self._registry.mount(blob.digest, source) if source else None
        if source and session is None:
            self._sink.mounted(name, blob.size, source)
            return False
        self._sink.start(name, blob.size)
        is_small = session is None and 0 < blob.size <= POST_BYTES
        if is_small:
            session = self._registry.offer(blob.digest, os.pread(blob.fd, blob.size, 0))
        if is_small and session is None:
            self._sink.sent(name, blob.size)
        else:
            upload = BlobUpload(
                self._registry,
                blob,
                session or self._registry.begin_upload(),
                self._sink,
                layer=name,
                stop=self.stop,
            )
            upload.run()
        self._sink.done(name)
        return True
