"""Pulling: from a reference to an image in the store.

What belongs here: the order of things: resolve, choose the platform, install, name. What must not:
HTTP, files, formats; each has its own module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scow.image.digest import Digest, parse_digest, quote
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.dropped import drop_blobs
from scow.image.gc import leased
from scow.image.install import ImageDocument, install_image, read_image_document
from scow.image.manifest import (
    MAX_INDEX_DEPTH,
    Descriptor,
    Index,
    Platform,
    candidates,
    host_platform,
    is_beside,
    parse_document,
    parse_platform,
    platform_matches,
    platform_of,
)
from scow.image.policy import drops_blobs
from scow.image.progress import ProgressSink, SilentProgress
from scow.image.reference import Reference, parse_reference
from scow.image.registry import Registry
from scow.image.transport import Patience
from scow.image.transport_errors import TransportError
from scow.native.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from scow.image.credentials import Credentials
    from scow.image.store import Image, ImageStore


def pull_image(
    store: ImageStore,
    name: str,
    *,
    platform: str | None = None,
    plain_http: bool = False,
    tls_verify: bool = True,
    progress: ProgressSink | None = None,
    patience: Patience | None = None,
    credentials: Credentials | None = None,
) -> Image:
    """Fetch what `name` stands for now, and give it that name here.

    Everything is decided by the digests of one resolution, so a tag that moves meanwhile does not
    mix two images. Raises InvalidArgument, NotFound, PermissionDenied, RegistryError,
    IntegrityError, ResourceExhausted and Unsupported.
    """
    reference = parse_reference(name)
    asked = parse_platform(platform) if platform else None
    sink = progress or SilentProgress()
    drops = drops_blobs()
    registry = Registry(
        reference,
        plain_http=plain_http,
        tls_verify=tls_verify,
        patience=patience,
        warn=sink.warning,
        credentials=credentials,
    )
    with _hinting(), registry, leased(store) as lease:
        resolution = _Resolution(store, registry, asked or host_platform())
        top_digest, document = resolution.resolve(reference)
        sink.resolved(reference.familiar, top_digest)
        repo_digest = str(reference.with_digest(top_digest))
        entry = install_image(
            store,
            registry,
            document,
            lease,
            what=quote(reference.familiar),
            platform=asked,
            progress=sink,
            origin=repo_digest if drops else "",
        )
        tag = str(reference) if reference.tag and not reference.digest else ""
        store.add(entry.annotated(name=tag, repo_digest=repo_digest))
        lease.finish()
    if drops:  # what came before that was the policy, or with an attempt that was cut
        drop_blobs(store, [layer.digest for layer in document.manifest.layers])
    return store.get(str(reference.with_digest(top_digest)) if reference.digest else tag)


MAX_RESOLVED = 100  # documents on the way to one image: indexes may lead to a thousand more each


@contextmanager
def _hinting() -> Iterator[None]:
    """What to do about a network that fails now and then."""
    try:
        yield
    except TransportError as e:
        if e.is_transient and not e.hint:
            e.hint = (
                "it was tried several times; what has come stays, pull again to go on from there"
            )
        raise


class _Resolution:
    """From a tag or digest to the one manifest for a platform, through any indexes."""

    def __init__(self, store: ImageStore, registry: Registry, platform: Platform) -> None:
        self._store = store
        self._registry = registry
        self._platform = platform
        self._looked_at = 0

    def resolve(self, reference: Reference) -> tuple[Digest, ImageDocument]:
        """(digest that the reference stands for, manifest to install)."""
        what = quote(reference.familiar)
        target = reference.digest or reference.tag or ""
        # The registry is asked even about a digest: that it is here says nothing about whose it is.
        found = self._registry.head_manifest(target)
        if found is not None and reference.digest in (None, found):
            known = self._known(reference, found, what)
            if known is not None:
                return found, known
        data, digest, media_type = self._registry.get_manifest(target)
        document = parse_document(data, media_type, f"manifest of {what}")
        if isinstance(document, Index):
            return digest, self._choose(document, what, depth=1)
        return digest, read_image_document(data, digest, media_type, what)

    def _known(self, reference: Reference, found: Digest, what: str) -> ImageDocument | None:
        """What the same digest of the same repository led to before, for the same platform."""
        repo_digest = str(reference.with_digest(found))
        for entry in self._store.content.read_index():
            offered = platform_of(entry.platform)
            if entry.repo_digest == repo_digest and not entry.is_deleting:
                digest = parse_digest(entry.digest)
                fits = entry.artifact_type or platform_matches(offered, self._platform)
                if fits and self._store.content.has_blob(digest):
                    data = self._store.content.read_blob(digest, MAX_DOCUMENT_BYTES)
                    return read_image_document(data, digest, entry.media_type, what)
        return None

    def _choose(self, index: Index, what: str, depth: int) -> ImageDocument:
        """The first entry that fits; entries that do not tell are looked into."""
        if depth > MAX_INDEX_DEPTH:
            raise InvalidArgument(f"{what}: indexes are nested more than {MAX_INDEX_DEPTH} deep")
        for entry in candidates(index, self._platform, what):
            self._looked_at += 1
            if self._looked_at > MAX_RESOLVED:
                raise InvalidArgument(f"{what}: no image in the first {MAX_RESOLVED} of its index")
            data, media_type = self._fetch(entry)
            document = parse_document(data, media_type, f"manifest {entry.digest} of {what}")
            if not isinstance(document, Index):
                if is_beside(entry, document.artifact):
                    continue
                return read_image_document(data, entry.digest, media_type, what)
            try:
                return self._choose(document, what, depth + 1)
            except NotFound:
                if entry.platform is not None:
                    raise
        raise NotFound(f"{what} is not available for {self._platform}")

    def _fetch(self, entry: Descriptor) -> tuple[bytes, str]:
        if entry.data is not None:
            return entry.data, entry.media_type
        if self._store.content.has_blob(entry.digest, entry.size):
            return self._store.content.read_blob(entry.digest, MAX_DOCUMENT_BYTES), entry.media_type
        if entry.size > MAX_DOCUMENT_BYTES:
            raise InvalidArgument(f"manifest {entry.digest} has {entry.size} bytes, too many")
        return self._registry.get_manifest(entry.digest, entry)[0], entry.media_type
