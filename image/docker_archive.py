"""Loading what `docker save` wrote before it wrote OCI layouts.

What belongs here: manifest.json and its files without digests. Their layers are hashed first, then
taken in under a manifest of our making.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from scow.image.archive_files import ArchiveFiles
from scow.image.digest import Digest, digest_bytes, hex_of, new_hasher, quote
from scow.image.document import MAX_DOCUMENT_BYTES, check_document, decode_document
from scow.image.dropped import take_back
from scow.image.install import Chunks, ImageDocument, install_image, read_image_document
from scow.image.loaded import Loaded
from scow.image.manifest import MAX_INDEX_ENTRIES, MAX_LAYERS, Descriptor, Platform
from scow.image.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from scow.image.progress import ProgressSink
from scow.image.reference import parse_reference
from scow.native.errors import IntegrityError, InvalidArgument, Unsupported

if TYPE_CHECKING:
    from scow.image.content import Lease
    from scow.image.store import ImageStore


class _DockerImage(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _DockerSource:
    """Blobs of a docker archive: files with names of their own, hashed beforehand."""

    def __init__(self, files: ArchiveFiles) -> None:
        self._files = files
        self._names: dict[Digest, str] = {}
        self._layers: dict[str, Descriptor] = {}

    def add(self, name: str) -> Descriptor:
        """Hash a layer file, once for all that name it, and remember where it is."""
        if name not in self._layers:
            self._layers[name] = self._hash(name)
        return self._layers[name]

    def _hash(self, name: str) -> Descriptor:
        hasher = new_hasher()
        size, head = 0, b""
        for chunk in self._files.open(name, 0):
            head = head or chunk[:4]
            size += len(chunk)
            hasher.update(chunk)
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        self._names[digest] = name
        return Descriptor(_layer_type(head), digest, size)

    def add_config(self, name: str, data: bytes) -> Descriptor:
        """Remember the config file."""
        digest = digest_bytes(data)
        self._names[digest] = name
        return Descriptor(OCI_CONFIG, digest, len(data))

    def open_blob(self, descriptor: Descriptor, offset: int) -> Chunks:
        return self._files.open(self._names[descriptor.digest], offset)


def _layer_type(head: bytes) -> str:
    if head.startswith(b"\x1f\x8b"):
        return OCI_LAYER + "+gzip"
    return OCI_LAYER + "+zstd" if head.startswith(b"\x28\xb5\x2f\xfd") else OCI_LAYER


def load_docker_images(
    store: ImageStore,
    files: ArchiveFiles,
    lease: Lease,
    platform: Platform | None,
    sink: ProgressSink,
) -> list[Loaded]:
    """Take in every image of the archive; the caller names them and holds `lease` until then."""
    data = files.read("manifest.json", MAX_DOCUMENT_BYTES)
    images = decode_document(data, list[_DockerImage], "'manifest.json'")
    if not images:
        raise InvalidArgument("the docker archive holds no image")
    if len(images) > MAX_INDEX_ENTRIES:
        raise InvalidArgument(
            f"the docker archive holds {len(images)} images, more than {MAX_INDEX_ENTRIES}"
        )
    # All names are checked before anything is taken in.
    names = [[parse_reference(tag) for tag in image.repo_tags or []] for image in images]
    source = _DockerSource(files)
    loaded: list[Loaded] = []
    for image, references in zip(images, names, strict=True):
        what = quote(references[0].familiar) if references else "the image"
        document = _read_docker_image(files, source, image, what)
        entry = install_image(
            store, source, document, lease, what=what, platform=platform, progress=sink
        )
        take_back(store, source, document.manifest.layers)
        loaded.append(Loaded(entry, references))
    return loaded


def _read_docker_image(
    files: ArchiveFiles, source: _DockerSource, image: _DockerImage, what: str
) -> ImageDocument:
    """The manifest that the image would have had, had its program known of manifests."""
    if len(image.layers) > MAX_LAYERS:
        raise Unsupported(f"{what} has {len(image.layers)} layers, more than {MAX_LAYERS}")
    config = files.read(image.config, MAX_DOCUMENT_BYTES)
    check_document(config, f"config of {what}")
    stem = os.path.basename(image.config).removesuffix(".json")
    config_descriptor = source.add_config(image.config, config)
    if len(stem) == 64 and stem != hex_of(config_descriptor.digest):
        raise IntegrityError(
            f"config of {what}: expected digest sha256:{stem}, got {config_descriptor.digest}"
        )
    manifest = make_manifest(config_descriptor, [source.add(name) for name in image.layers])
    return read_image_document(manifest, digest_bytes(manifest), OCI_MANIFEST, what)


def make_manifest(config: Descriptor, layers: list[Descriptor]) -> bytes:
    """An OCI manifest of these parts."""
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _wire(config),
            "layers": [_wire(layer) for layer in layers],
        }
    )


def _wire(descriptor: Descriptor) -> dict[str, str | int]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
