"""Writing images as archives.

What belongs here: the one format that both OCI tools and `docker load` read. The same images give
the same bytes.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import msgspec

from scow.image.content import REF_NAME, IndexEntry
from scow.image.digest import Digest, algorithm_of, hex_of
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.install import read_image_document
from scow.image.loaded import CONTAINERD_NAME
from scow.image.manifest import Descriptor
from scow.image.media_types import OCI_INDEX
from scow.image.reference import Reference, parse_reference
from scow.native.errors import InvalidArgument, ScowError

if TYPE_CHECKING:
    import tarfile

    from scow.image.store import Image, ImageStore


def save_archive(store: ImageStore, names: list[str], output: IO[bytes]) -> None:
    """Write images as an OCI archive that is a docker archive, too (as docker does since 25).

    The same images give the same bytes. Nothing is written before all of it is known to be here.
    """
    if not names:
        raise InvalidArgument("nothing to save: no image was named")
    entries: list[IndexEntry] = []
    docker: list[dict[str, object]] = []
    blobs: dict[Digest, int] = {}
    for name in names:
        image, tags = _what_to_save(store, name)
        entry, parts = _saved_entry(store, image)
        blobs.update({d.digest: d.size for d in parts})
        docker.append(
            {
                "Config": _blob_name(parts[1].digest),
                "RepoTags": [tag.familiar for tag in tags] or None,
                "Layers": [_blob_name(d.digest) for d in parts[2:]],
            }
        )
        entries += [_named_entry(entry, tag) for tag in tags] or [entry]
    documents = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": msgspec.json.encode(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        ),
        "manifest.json": msgspec.json.encode(docker),
    }
    _write_tar(store, blobs, documents, output)


def _what_to_save(store: ImageStore, name: str) -> tuple[Image, list[Reference]]:
    """The image, and the names that go along: the one asked for, or all when asked by id."""
    image = store.get(name)
    try:
        asked = parse_reference(name)
    except InvalidArgument:
        asked = None
    if asked is not None and asked.familiar in image.names:
        return image, [asked]
    return image, [parse_reference(n) for n in image.names]


def _saved_entry(store: ImageStore, image: Image) -> tuple[IndexEntry, list[Descriptor]]:
    data = store.content.read_blob(image.manifest_digest, MAX_DOCUMENT_BYTES)
    document = read_image_document(data, image.manifest_digest, None, f"image {image.id}")
    manifest = document.manifest
    top = Descriptor(document.media_type, document.digest, len(data))
    parts = [top, manifest.config, *manifest.layers]
    for part in parts:
        if not store.content.has_blob(part.digest, part.size):
            raise ScowError(
                f"cannot save image {image.id}: blob {part.digest} is missing",
                hint="pull the image again",
            )
    return IndexEntry(top.media_type, top.digest, top.size), parts


def _named_entry(entry: IndexEntry, name: Reference) -> IndexEntry:
    annotations = {CONTAINERD_NAME: str(name), REF_NAME: str(name)}
    return msgspec.structs.replace(entry, annotations=annotations)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{algorithm_of(digest)}/{hex_of(digest)}"


def _write_tar(
    store: ImageStore, blobs: dict[Digest, int], documents: dict[str, bytes], output: IO[bytes]
) -> None:
    import io
    import tarfile

    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, data in documents.items():
            tar.addfile(_tar_header(name, len(data)), io.BytesIO(data))
        for digest, size in sorted(blobs.items()):
            with open(store.content.blob_path(digest), "rb") as blob:
                tar.addfile(_tar_header(_blob_name(digest), size), blob)


def _tar_header(name: str, size: int) -> tarfile.TarInfo:
    import tarfile

    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o644
    return header
