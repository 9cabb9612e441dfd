"""Digests: the names of all immutable content.

What belongs here: the grammar, hashing and chain ids. What must not: files, sockets, documents.
A digest enters scow only through `parse_digest`, because digests become file names and URL paths
(CVE-2014-9358, CVE-2024-3727).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NewType, Protocol

from scow.native.errors import IntegrityError, InvalidArgument

# Three things that all look like "sha256:..." and must never be mixed up.
Digest = NewType("Digest", str)  # of bytes as stored or sent: blobs, manifests, configs
DiffID = NewType("DiffID", str)  # of one layer's uncompressed tar
ChainID = NewType("ChainID", str)  # of a stack of diff ids

HEX_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = frozenset("0123456789abcdef")


class Hasher(Protocol):
    """The part of hashlib's objects that scow uses."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def parse_digest(text: str) -> Digest:
    """Check `text` against the grammar (image-spec, descriptor.md, Digests) and return it typed.

    Only algorithms that scow can verify pass; an unverifiable name for content is worthless.
    """
    algorithm, colon, encoded = text.partition(":")
    if not colon:
        raise InvalidArgument(f"invalid digest {quote(text)}: not of the form ALGORITHM:HEX")
    length = HEX_LENGTHS.get(algorithm)
    if length is None:
        raise InvalidArgument(
            f"invalid digest {quote(text)}: unsupported algorithm {quote(algorithm)}",
            hint="supported are sha256 and sha512",
        )
    if len(encoded) != length or not _HEX.issuperset(encoded):
        raise InvalidArgument(
            f"invalid digest {quote(text)}: {algorithm} needs {length} lower-case hex digits"
        )
    return Digest(text)


def is_unknown_digest(text: str) -> bool:
    """Whether this is a digest by its grammar, of an algorithm that scow does not know (blake3)."""
    import re  # indexes only: the start of a container needs none of it

    match = re.fullmatch(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):[A-Za-z0-9=_-]+", text)
    return match is not None and match[1] not in HEX_LENGTHS


def parse_diff_id(text: str) -> DiffID:
    """Like `parse_digest`, for the digest of an uncompressed layer."""
    return DiffID(parse_digest(text))


def hex_of(digest: Digest | DiffID | ChainID) -> str:
    """The part after the colon; safe as a file name because parse_digest checked it."""
    return digest.partition(":")[2]


def algorithm_of(digest: Digest | DiffID | ChainID) -> str:
    """The part before the colon."""
    return digest.partition(":")[0]


def new_hasher(algorithm: str = "sha256") -> Hasher:
    """A hashlib object (OpenSSL's: it uses the CPU's SHA extensions and releases the GIL)."""
    import hashlib  # not at the top: `scow run` of a local image never hashes

    return hashlib.new(algorithm, usedforsecurity=True)


def digest_bytes(data: bytes, algorithm: str = "sha256") -> Digest:
    """The digest of `data`."""
    hasher = new_hasher(algorithm)
    hasher.update(data)
    return Digest(f"{algorithm}:{hasher.hexdigest()}")


def verify_bytes(data: bytes, digest: Digest, size: int | None, what: str) -> None:
    """Raise IntegrityError unless `data` has this size and digest; the size is looked at first."""
    if size is not None and len(data) != size:
        raise IntegrityError(f"{what}: expected {size} bytes, got {len(data)}")
    actual = digest_bytes(data, algorithm_of(digest))
    if actual != digest:
        raise IntegrityError(f"{what}: expected digest {digest}, got {actual}")


def chain_ids(diff_ids: Iterable[DiffID]) -> list[ChainID]:
    """The chain id of every prefix of the stack, bottom first (image-spec, config.md, ChainID)."""
    chain: list[ChainID] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(ChainID(diff_id))
        else:
            chain.append(ChainID(digest_bytes(f"{chain[-1]} {diff_id}".encode())))
    return chain


def quote(text: str, limit: int = 256) -> str:
    """`text` in single quotes for a message: control characters escaped, cut at `limit`."""
    shown = text if len(text) <= limit else text[:limit] + "..."
    return "'" + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown) + "'"
