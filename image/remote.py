"""What a registry has under a name, looked at and taken away, without a pull.

What belongs here: single documents. What must not: layers, and what lies in the store.
"""

from __future__ import annotations

from dataclasses import dataclass

from scow.image.digest import quote
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.manifest import MAX_INDEX_DEPTH, Descriptor, Index, parse_document
from scow.image.media_types import INDEX_TYPES, MANIFEST_TYPES
from scow.image.reference import Reference
from scow.image.registry_list import RegistryLists
from scow.image.registry_write import RegistryWriter
from scow.native.errors import InvalidArgument, Unsupported


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index with its exact bytes."""

    reference: Reference
    descriptor: Descriptor
    data: bytes


class RemoteImage:
    """What the reference of `registry` names."""

    def __init__(self, registry: RegistryLists) -> None:
        self.reference = registry.reference
        self._registry = registry

    @property
    def target(self) -> str:
        """The digest, or else the tag."""
        return self.reference.digest or self.reference.tag or ""

    def document(self) -> Document:
        """What the name stands for now."""
        data, digest, media_type = self._registry.get_manifest(self.target)
        parsed = parse_document(data, media_type, f"manifest of {quote(self.reference.familiar)}")
        descriptor = Descriptor(parsed.media_type, digest, len(data))
        return Document(self.reference, descriptor, data)

    def manifests(self) -> list[Document]:
        """Every manifest that the name leads to: one, or those of an index."""
        found: list[Document] = []
        self._collect(self.document(), found, MAX_INDEX_DEPTH)
        return found

    def _collect(self, document: Document, found: list[Document], depth: int) -> None:
        what = f"manifest {document.descriptor.digest}"
        parsed = parse_document(document.data, document.descriptor.media_type, what)
        if not isinstance(parsed, Index):
            found.append(document)
            return
        if not depth:
            raise InvalidArgument(f"{what}: indexes are nested more than {MAX_INDEX_DEPTH} deep")
        for entry in parsed.manifests:
            if entry.media_type in MANIFEST_TYPES | INDEX_TYPES:
                if entry.size > MAX_DOCUMENT_BYTES:
                    raise InvalidArgument(f"manifest {entry.digest} has {entry.size} bytes")
                data = self._registry.get_manifest(entry.digest, entry)[0]
                reference = self.reference.with_digest(entry.digest)
                self._collect(Document(reference, entry, data), found, depth - 1)

    def referrers(self, artifact_type: str) -> list[Descriptor]:
        """What says that it belongs to this image."""
        digest = self.reference.digest or self._registry.head_manifest(self.target)
        return self._registry.referrers(digest or self.document().descriptor.digest, artifact_type)


def remove_manifest(registry: RegistryWriter) -> None:
    """Remove a digest with all its tags, or a tag alone."""
    reference = registry.reference
    target = reference.digest or reference.tag or ""
    try:
        registry.delete_manifest(target)
    except Unsupported as e:
        digest = registry.head_manifest(target)
        raise Unsupported(
            e.message,
            hint="this removes the content with all of its tags: scow registry rm "
            f"{reference.familiar_repository}@{digest}",
        ) from e


def remove_blob(registry: RegistryWriter) -> None:
    """Remove a blob from the repository: the digest is the blob's."""
    if registry.reference.digest is None:
        raise InvalidArgument("a blob has no tag: NAME@DIGEST")
    registry.delete_blob(registry.reference.digest)
