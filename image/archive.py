"""Loading images from files: OCI archives, OCI layouts, docker archives.

What belongs here: telling the formats apart, and finding the images of a layout. What must not:
unpacking; blobs go through install.py like those of a registry.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import msgspec

from scow.image.archive_files import ArchiveFiles, DirectoryFiles, TarFiles, seekable_tar
from scow.image.content import REF_NAME
from scow.image.digest import quote
from scow.image.docker_archive import load_docker_images
from scow.image.document import MAX_DOCUMENT_BYTES, decode_document
from scow.image.install import (
    BlobSource,
    install_image,
    read_image_document,
    read_small_blob,
)
from scow.image.loaded import CONTAINERD_NAME, add_loaded
from scow.image.manifest import (
    MAX_INDEX_DEPTH,
    Descriptor,
    Index,
    candidates,
    host_platform,
    parse_document,
)
from scow.image.media_types import OCI_INDEX
from scow.image.progress import ProgressSink, SilentProgress
from scow.image.reference import Reference, parse_reference
from scow.image.tarindex import TarIndex
from scow.native.errors import InvalidArgument, NotFound, Unsupported

if TYPE_CHECKING:
    from scow.image.store import Image, ImageStore


LAYOUT_VERSION = "1.0.0"


class _LayoutFile(msgspec.Struct, rename="camel"):
    image_layout_version: str


def load_archive(
    store: ImageStore, source: IO[bytes] | str, *, progress: ProgressSink | None = None
) -> list[str]:
    """Load every image of an archive; returns docker's lines about it."""
    sink = progress or SilentProgress()
    with seekable_tar(store, source) as fd:
        files = TarFiles(TarIndex(fd))
        # A `docker save` of today is both kinds in one; its layout is the half with digests.
        if files.has("index.json") and files.has("oci-layout"):
            return _load_layout_images(store, files, sink)
        if files.has("manifest.json"):
            return load_docker_images(store, files, sink)
    raise InvalidArgument(
        "not an image archive: it has neither 'index.json' nor 'manifest.json'",
        hint="`scow load` reads archives of `docker save`, `podman save` and OCI layouts",
    )


def load_layout(
    store: ImageStore, path: str, name: str, *, progress: ProgressSink | None = None
) -> Image:
    """Take in the one image of a layout directory as `name`."""
    files = DirectoryFiles(path)
    entries = _layout_entries(files)
    if len(entries) != 1:
        raise InvalidArgument(f"'{path}' holds {len(entries)} images, not one")
    reference = parse_reference(name)
    _install(store, files, entries[0], reference, progress or SilentProgress())
    return store.get(str(reference))


def _load_layout_images(store: ImageStore, files: ArchiveFiles, sink: ProgressSink) -> list[str]:
    lines: list[str] = []
    for entry in _layout_entries(files):
        lines += _install(store, files, entry, _entry_name(entry), sink)
    return lines


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
    if not document.manifests:
        raise InvalidArgument("the OCI layout holds no image")
    return list(document.manifests)


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
    entry: Descriptor,
    name: Reference | None,
    sink: ProgressSink,
) -> list[str]:
    what = quote(name.familiar) if name else f"image {entry.digest}"
    with store.content.lease() as lease:
        manifest = _choose(files, entry, what, 0)
        data = read_small_blob(files, manifest, f"manifest of {what}")
        document = read_image_document(data, manifest.digest, manifest.media_type, what)
        new = install_image(store, files, document, lease, what=what, platform=None, progress=sink)
        lines = add_loaded(store, new, name)
        lease.finish()
    return lines


def _choose(files: BlobSource, entry: Descriptor, what: str, depth: int) -> Descriptor:
    data = read_small_blob(files, entry, f"manifest of {what}")
    document = parse_document(data, entry.media_type, f"manifest of {what}")
    if not isinstance(document, Index):
        return entry
    if depth >= MAX_INDEX_DEPTH:
        raise InvalidArgument(f"{what}: indexes are nested more than {MAX_INDEX_DEPTH} deep")
    for candidate in candidates(document, host_platform(), what):
        return _choose(files, candidate, what, depth + 1)
    raise NotFound(f"{what} is not available for {host_platform()}")
