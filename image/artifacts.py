"""Artifacts: what is in a registry like an image and is none, such as charts, signatures, models.

What belongs here: keeping them and telling what they are. Nothing of them is parsed but the manifest,
nothing is unpacked. Their id is the manifest's digest: many of them share one empty config.
Source: image-spec manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scow.image.config import ImageConfig
from scow.image.config_document import parse_date
from scow.image.content import IMAGE_ID, IndexEntry
from scow.image.digest import quote
from scow.image.document import MAX_DOCUMENT_BYTES, decode_document
from scow.image.manifest import Descriptor
from scow.image.store import SUMMARY_FORMAT, SummaryFile
from scow.native.errors import Unsupported

if TYPE_CHECKING:
    from scow.image.install import BlobSource, ImageDocument
    from scow.image.progress import ProgressSink
    from scow.image.store import Image, ImageStore

CREATED = "org.opencontainers.image.created"
TITLE = "org.opencontainers.image.title"


class _Subject(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int


class _Blob(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None


class _Artifact(msgspec.Struct, rename="camel"):
    """What the manifest of an artifact says besides its type."""

    config: _Blob
    layers: list[_Blob]
    annotations: dict[str, str] | None = None
    subject: _Subject | None = None


def install_artifact(
    store: ImageStore,
    source: BlobSource,
    document: ImageDocument,
    *,
    what: str,
    progress: ProgressSink,
) -> IndexEntry:
    """Have all of it in the content store; returns its entry, still without a name.

    The caller's lease holds it. There is no summary: it is as quickly made as read.
    """
    from scow.image.fetch import fetch_all

    _read(document.data, f"manifest of {what}")
    fetch_all(store, source, _blobs(document), progress)
    store.content.write_blob(document.data, document.digest)
    return artifact_entry(document)


def _read(data: bytes, what: str) -> _Artifact:
    return decode_document(data, _Artifact, what)


def _blobs(document: ImageDocument) -> list[Descriptor]:
    return [document.manifest.config, *document.manifest.layers]


def artifact_entry(document: ImageDocument) -> IndexEntry:
    """The entry of an artifact, still without a name."""
    return IndexEntry(
        document.media_type,
        document.digest,
        len(document.data),
        annotations={IMAGE_ID: document.digest},
        artifact_type=document.manifest.artifact,
    )


def summarise_artifact(document: ImageDocument) -> SummaryFile:
    """What the store tells of it quickly."""
    blobs = _blobs(document)
    sizes = {blob.digest: blob.size for blob in blobs}
    annotations = _read(document.data, f"manifest {document.digest}").annotations or {}
    return SummaryFile(
        format=SUMMARY_FORMAT,
        id=document.digest,
        manifest_digest=document.digest,
        blobs=(document.digest, *(blob.digest for blob in blobs)),
        architecture="",
        os="",
        variant="",
        created=parse_date(annotations.get(CREATED, "")),
        size=sum(sizes.values()),
        config=ImageConfig(),
        diff_ids=(),
        lower_names=(),
        artifact_type=document.manifest.artifact,
    )


def no_image(artifact: Image) -> Unsupported:
    """What to raise where an image is needed."""
    name = artifact.names[0] if artifact.names else str(artifact.id)
    return Unsupported(
        f"{quote(name)} is not a container image (media type {quote(artifact.artifact_type)})",
        hint=f"it is an artifact: scow image inspect {name}",
    )


def describe_artifact(store: ImageStore, artifact: Image) -> dict[str, object]:
    """All there is to say of one, in words like Docker's."""
    data = store.content.read_blob(artifact.manifest_digest, MAX_DOCUMENT_BYTES)
    manifest = _read(data, f"manifest of {artifact.id}")
    return {
        "Id": artifact.id,
        "RepoTags": list(artifact.names),
        "RepoDigests": list(artifact.digests),
        "ArtifactType": artifact.artifact_type,
        "Created": artifact.created,
        "Size": artifact.size,
        "Annotations": manifest.annotations,
        "Subject": _described(manifest.subject) if manifest.subject else None,
        "Config": _described(manifest.config),
        "Blobs": [_described(blob) for blob in manifest.layers],
        "Descriptor": {"digest": artifact.manifest_digest},
    }


def _described(blob: _Blob | _Subject) -> dict[str, object]:
    described: dict[str, object] = {
        "MediaType": blob.media_type,
        "Digest": blob.digest,
        "Size": blob.size,
    }
    if isinstance(blob, _Blob) and blob.annotations:
        described["Title"] = blob.annotations.get(TITLE, "")
        described["Annotations"] = blob.annotations
    return described
