"""index.json of an OCI layout: which images there are, and what they are called.

What belongs here: its entries and their encoding. What must not: files. Other programs (skopeo,
umoci) may write into the same layout: what is not scow's is given back byte for byte.
"""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from scow.image.digest import parse_digest
from scow.image.media_types import OCI_INDEX
from scow.native.errors import IntegrityError, InvalidArgument, Unsupported

SCHEMA_VERSION = 2  # image-spec, image-index.md
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_ID = "io.scow.image.id"
REPO_DIGEST = "io.scow.image.repo-digest"
DELETING = "io.scow.image.deleting"


class IndexEntry(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """One descriptor of index.json, as much of it as scow writes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    platform: dict[str, str] | None = None
    artifact_type: str | None = None
    # Of an entry that another program wrote, all of it as it was: it goes back unchanged. Such an
    # entry has nothing else but its digest, if it has one.
    foreign: bytes = b""

    @property
    def name(self) -> str:
        """The canonical reference, or "" for an image without a name."""
        return self.annotations.get(REF_NAME, "")

    @property
    def image_id(self) -> str:
        """The digest of the config (of an artifact: its own), or "" where another program wrote the entry."""
        return self.annotations.get(IMAGE_ID, "")

    @property
    def repo_digest(self) -> str:
        """`HOST/PATH@DIGEST` as the registry has it, or ""."""
        return self.annotations.get(REPO_DIGEST, "")

    @property
    def is_deleting(self) -> bool:
        """Whether a removal began; such an entry exists only for the collector."""
        return DELETING in self.annotations

    @property
    def is_being_deleted(self) -> bool:
        """Whether the process that removes it is alive, and so may be at it."""
        return os.path.exists(f"/proc/{self.annotations.get(DELETING, 'none')}")

    def deleted(self) -> IndexEntry:
        """A copy for the collector, by this process."""
        return self.annotated(name="", deleting=str(os.getpid()))

    def annotated(self, **changes: str) -> IndexEntry:
        """A copy with annotations set (name, repo_digest, deleting), or dropped where empty."""
        keys = {"name": REF_NAME, "repo_digest": REPO_DIGEST, "deleting": DELETING}
        annotations = dict(self.annotations)
        for word, value in changes.items():
            annotations[keys[word]] = value
        return msgspec.structs.replace(
            self, annotations={k: v for k, v in annotations.items() if v}
        )


class _IndexFile(msgspec.Struct, rename="camel", omit_defaults=True):
    schema_version: int
    manifests: list[msgspec.Raw]
    media_type: str | None = None
    annotations: dict[str, str] | None = None


def _read_entry(raw: msgspec.Raw) -> IndexEntry:
    """One descriptor; whatever scow did not write is kept as it is, be it right or not."""
    data = bytes(raw)
    try:
        entry = msgspec.json.decode(data, type=IndexEntry)
        parse_digest(entry.digest)
    except (ValueError, InvalidArgument):
        return IndexEntry("", "", 0, foreign=data)
    with suppress(InvalidArgument):
        if entry.image_id and parse_digest(entry.image_id):
            return msgspec.structs.replace(entry, foreign=b"")
    return IndexEntry(entry.media_type, entry.digest, entry.size, foreign=data)


def damaged_index(path: str, why: str) -> IntegrityError:
    """What to raise about an index that cannot be read."""
    return IntegrityError(
        f"cannot read '{path}': {why}", hint="`scow system check --repair` rebuilds it"
    )


def decode_index(data: bytes, path: str) -> list[IndexEntry]:
    """The entries; IntegrityError for what is no index, Unsupported for one of a later version."""
    try:
        index = msgspec.json.decode(data, type=_IndexFile)
    except ValueError as e:
        raise damaged_index(path, str(e)) from e
    if index.schema_version != SCHEMA_VERSION:
        raise Unsupported(
            f"'{path}' has schemaVersion {index.schema_version}, this scow reads {SCHEMA_VERSION}",
            hint="a newer program wrote it: use that one, or another --root",
        )
    return [_read_entry(raw) for raw in index.manifests]


def encode_index(entries: list[IndexEntry]) -> bytes:
    """The whole file."""
    manifests = [msgspec.Raw(entry.foreign or msgspec.json.encode(entry)) for entry in entries]
    return msgspec.json.encode(_IndexFile(SCHEMA_VERSION, manifests, OCI_INDEX))
