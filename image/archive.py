"""Loading images from files: OCI archives, OCI layouts, docker archives.

What belongs here: telling the formats apart, and finding the images of a layout. What must not:
unpacking; blobs go through install.py like those of a registry.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

import msgspec

from scow.image.archive_files import ArchiveFiles, DirectoryFiles, TarFiles, seekable_tar
from scow.image.content import REF_NAME
from scow.image.digest import digest_bytes, hex_of, quote
from scow.image.docker_archive import load_docker_images
from scow.image.document import MAX_DOCUMENT_BYTES, decode_document
from scow.image.dropped import take_back
from scow.image.gc import leased
from scow.image.install import (
    BlobSource,
    Chunks,
    install_image,
    read_image_document,
    read_small_blob,
)
from scow.image.loaded import CONTAINERD_NAME, Loaded, name_loaded
from scow.image.manifest import (
    MAX_INDEX_DEPTH,
    Descriptor,
    Index,
    Platform,
    candidates,
    host_platform,
    is_attestation,
    is_beside,
    parse_document,
    parse_platform,
)
from scow.image.media_types import OCI_INDEX
from scow.image.progress import ProgressSink, SilentProgress
from scow.image.reference import Reference, parse_reference
from scow.image.tarindex import TarIndex
from scow.native.errors import InvalidArgument, NotFound, Unsupported

if TYPE_CHECKING:
    from scow.image.content import Lease
    from scow.image.store import Image, ImageStore


LAYOUT_VERSION = "1.0.0"


class _LayoutFile(msgspec.Struct, rename="camel"):
    image_layout_version: str


def load_archive(
    store: ImageStore,
    source: IO[bytes] | str,
    *,
    platform: str | None = None,
    progress: ProgressSink | None = None,
) -> list[str]:
    """Load every image of an archive or of a layout's directory; returns docker's lines about it.

    Nothing gets a name unless all of it was right.
    """
    sink = progress or SilentProgress()
    asked = parse_platform(platform) if platform else None
    if isinstance(source, str) and os.path.isdir(source):
        return _load(store, DirectoryFiles(source), asked, sink)
    with seekable_tar(store, source) as fd:
        return _load(store, TarFiles(TarIndex(fd)), asked, sink)


def _load(
    store: ImageStore, files: ArchiveFiles, asked: Platform | None, sink: ProgressSink
) -> list[str]:
    with leased(store) as lease:
        # A `docker save` of today is both kinds in one; its layout is the half with digests.
        if files.has("index.json") and files.has("oci-layout"):
            loaded = [_install(store, files, entry, lease, asked, sink) for entry in _named(files)]
        elif files.has("version") and files.has("manifest.json"):
            loaded = [_install_flat(store, files, lease, asked, sink)]
        elif files.has("manifest.json"):
            loaded = load_docker_images(store, files, lease, asked, sink)
        else:
            raise InvalidArgument(
                "not an image archive: it has neither 'index.json' nor 'manifest.json'",
                hint="`scow load` reads what `docker save` and `podman save` write, and OCI layouts; "
                "`scow import` takes a bare root file system",
            )
        lines = name_loaded(store, loaded)
        lease.finish()
    return lines


def load_layout(
    store: ImageStore, path: str, name: str, *, progress: ProgressSink | None = None
) -> Image:
    """Take in the one image of a layout directory as `name`."""
    files = DirectoryFiles(path)
    entries = _layout_entries(files)
    if len(entries) != 1:
        raise InvalidArgument(f"'{path}' holds {len(entries)} images, not one")
    reference = parse_reference(name)
    with leased(store) as lease:
        wanted = (entries[0], reference)
        loaded = _install(store, files, wanted, lease, None, progress or SilentProgress())
        name_loaded(store, [loaded])
        lease.finish()
    return store.get(str(reference))


def _named(files: ArchiveFiles) -> list[tuple[Descriptor, Reference | None]]:
    """The images of a layout, all of their names checked before anything is taken in."""
    return [(entry, _entry_name(entry)) for entry in _layout_entries(files)]


def _layout_entries(files: ArchiveFiles) -> list[Descriptor]:
    layout = decode_document(
        files.read("oci-layout", MAX_DOCUMENT_BYTES), _LayoutFile, "'oci-layout'"
    )
    if layout.image_layout_version != LAYOUT_VERSION:
        raise Unsupported(
            f"the OCI layout has version {quote(layout.image_layout_version)}, not {LAYOUT_VERSION}"
        )
    data = files.read("index.json", MAX_DOCUMENT_BYTES)
    document = parse_document(data, OCI_INDEX, "'index.json'")
    assert isinstance(document, Index)
    entries = [entry for entry in document.manifests if not is_attestation(entry)]
    if not entries:
        raise InvalidArgument("the OCI layout holds no image")
    return entries


def _entry_name(entry: Descriptor) -> Reference | None:
    """The name that an archive gives an image; a bare tag, as skopeo writes, names nothing."""
    annotations = entry.annotations or {}
    name = annotations.get(CONTAINERD_NAME, "")
    if not name:
        name = annotations.get(REF_NAME, "")
        if ":" not in name and "/" not in name:
            return None
    reference = parse_reference(name)
    return reference if reference.digest is None else None


def _install(
    store: ImageStore,
    files: ArchiveFiles,
    wanted: tuple[Descriptor, Reference | None],
    lease: Lease,
    asked: Platform | None,
    sink: ProgressSink,
) -> Loaded:
    entry, name = wanted
    what = quote(name.familiar) if name else f"image {entry.digest}"
    manifest = _choose(files, entry, what, asked or host_platform())
    data = read_small_blob(files, manifest, f"manifest of {what}")
    document = read_image_document(data, manifest.digest, manifest.media_type, what)
    new = install_image(store, files, document, lease, what=what, platform=asked, progress=sink)
    take_back(store, files, document.manifest.layers)
    return Loaded(new, [name] if name else [])


class _FlatFiles:
    """The blobs of one image in one directory, by the digits of their digests."""

    def __init__(self, files: ArchiveFiles) -> None:
        self._files = files

    def open_blob(self, descriptor: Descriptor, offset: int) -> Chunks:
        return self._files.open(hex_of(descriptor.digest), offset)


def _install_flat(
    store: ImageStore,
    files: ArchiveFiles,
    lease: Lease,
    asked: Platform | None,
    sink: ProgressSink,
) -> Loaded:
    """What skopeo calls `dir:` and podman docker-dir: a manifest and its blobs, without a name."""
    data = files.read("manifest.json", MAX_DOCUMENT_BYTES)
    document = read_image_document(data, digest_bytes(data), None, "'manifest.json'")
    source = _FlatFiles(files)
    entry = install_image(
        store, source, document, lease, what="the image", platform=asked, progress=sink
    )
    take_back(store, source, document.manifest.layers)
    return Loaded(entry, [])


def _choose(
    files: BlobSource, entry: Descriptor, what: str, platform: Platform, depth: int = 0
) -> Descriptor:
    data = read_small_blob(files, entry, f"manifest of {what}")
    document = parse_document(data, entry.media_type, f"manifest of {what}")
    if not isinstance(document, Index):
        if depth and is_beside(entry, document.artifact):
            raise NotFound(f"{what} is not available for {platform}")
        return entry
    if depth >= MAX_INDEX_DEPTH:
        raise InvalidArgument(f"{what}: indexes are nested more than {MAX_INDEX_DEPTH} deep")
    for candidate in candidates(document, platform, what):
        try:
            return _choose(files, candidate, what, platform, depth + 1)
        except NotFound:
            if candidate.platform is not None:
                raise
    raise NotFound(f"{what} is not available for {platform}")
