"""The files of an archive or layout, wherever they lie, and the plain tar behind a stream.

What belongs here: opening, decompressing, reading by name. What must not: what the files mean.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol

from scow.image.content import CHUNK_BYTES
from scow.image.digest import algorithm_of, hex_of, quote
from scow.image.files import storage_errors, write_all
from scow.image.install import Chunks
from scow.image.manifest import Descriptor
from scow.image.tarindex import TarIndex
from scow.native.errors import IntegrityError, InvalidArgument, NotFound
from scow.native.fs import Root

if TYPE_CHECKING:
    from scow.image.store import ImageStore


MAX_ARCHIVE_BYTES = 1 << 40
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Readable(Protocol):
    """A stream of bytes; b"" at its end."""

    def read(self, size: int, /) -> bytes: ...


class ArchiveFiles:
    """Documents and blobs of a layout, in a tar or in a directory."""

    def read(self, name: str, limit: int) -> bytes:
        raise NotImplementedError

    def open(self, name: str, offset: int) -> Chunks:
        raise NotImplementedError

    def has(self, name: str) -> bool:
        raise NotImplementedError

    def open_blob(self, descriptor: Descriptor, offset: int) -> Chunks:
        """BlobSource for layouts: blobs lie under their digests."""
        digest = descriptor.digest
        return self.open(f"blobs/{algorithm_of(digest)}/{hex_of(digest)}", offset)


class TarFiles(ArchiveFiles):
    def __init__(self, index: TarIndex) -> None:
        self._index = index

    def read(self, name: str, limit: int) -> bytes:
        return self._index.read(name, limit)

    def open(self, name: str, offset: int) -> Chunks:
        return self._index.chunks(self._index.find(name), offset)

    def has(self, name: str) -> bool:
        return name in self._index


class DirectoryFiles(ArchiveFiles):
    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, name: str, limit: int) -> bytes:
        data = b""
        for chunk in self.open(name, 0):
            data += chunk
            if len(data) > limit:
                raise InvalidArgument(f"'{self._path}/{name}' has more than {limit} bytes")
        return data

    def open(self, name: str, offset: int) -> Chunks:
        # A docker archive's manifest may ask for any name, and links in the directory lead anywhere.
        try:
            with Root.at(self._path) as root:
                file = root.open(name, _FLAGS)
        except OSError as e:
            why = (e.strerror or "").lower()
            raise InvalidArgument(f"cannot read '{self._path}/{quote(name)[1:-1]}': {why}") from e
        with file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgument(f"'{self._path}/{quote(name)[1:-1]}' is not a regular file")
            while chunk := os.pread(file.fileno(), CHUNK_BYTES, offset):
                offset += len(chunk)
                yield chunk

    def has(self, name: str) -> bool:
        with Root.at(self._path) as root:
            return root.exists(name)


@contextmanager
def seekable_tar(store: ImageStore, source: IO[bytes] | str) -> Iterator[int]:
    """A descriptor of the plain tar: the file itself, or a nameless copy of what was decompressed."""
    if isinstance(source, str):
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise NotFound(f"cannot open '{source}': {(e.strerror or '').lower()}") from e
        with os.fdopen(fd, "rb", buffering=0) as file, seekable_tar(store, file) as plain:
            yield plain
        return
    head = _read_head(source)
    is_regular = _is_regular(source)
    if is_regular and not _is_compressed(head):
        yield source.fileno()
        return
    store.content.prepare()
    copy = os.open(store.content.ingest_dir, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        total = 0
        for chunk in _decompressed(head, source):
            total += len(chunk)
            if total > MAX_ARCHIVE_BYTES:
                raise InvalidArgument(f"the archive has more than {MAX_ARCHIVE_BYTES} bytes")
            with storage_errors(store.content.ingest_dir):
                write_all(copy, chunk)
        yield copy
    finally:
        os.close(copy)


def plain_chunks(source: Readable) -> Iterator[bytes]:
    """The bytes of a stream, decompressed if they are compressed."""
    return _decompressed(_read_head(source), source)


def _read_head(source: Readable) -> bytes:
    head = source.read(6)
    while len(head) < 6 and (more := source.read(6 - len(head))):
        head += more
    return head


def _is_regular(source: IO[bytes]) -> bool:
    """Whether pread on its descriptor sees the whole archive."""
    try:
        fd = source.fileno()
    except (OSError, AttributeError):
        return False
    # What was read from a pipe is gone; a file that was not at its start is not meant whole.
    return stat.S_ISREG(os.fstat(fd).st_mode) and source.tell() <= 6


def _is_compressed(head: bytes) -> bool:
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"))


def _decompressed(head: bytes, source: Readable) -> Iterator[bytes]:
    def raw() -> Iterator[bytes]:
        yield head
        while chunk := source.read(CHUNK_BYTES):
            yield chunk

    try:
        if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            yield from _layer_decompressed(raw())
        elif head.startswith((b"BZh", b"\xfd7zXZ\0")):
            yield from _slowly_decompressed(head, raw())
        else:
            yield from raw()
    except EOFError as e:
        raise IntegrityError("the archive's compressed data is cut off") from e


def _layer_decompressed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    from scow.image.decompress import Decompressor

    decompressor = Decompressor()
    for chunk in chunks:
        yield from decompressor.feed(chunk)
    yield from decompressor.finish()


def _slowly_decompressed(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """bzip2 and xz: rare, so the standard library does; several streams in a row are one file."""
    import bz2
    import lzma

    def new() -> bz2.BZ2Decompressor | lzma.LZMADecompressor:
        return (
            bz2.BZ2Decompressor() if head[:1] == b"B" else lzma.LZMADecompressor(memlimit=1 << 27)
        )

    stream = new()
    for chunk in chunks:
        data = chunk
        while data or not (stream.needs_input or stream.eof):
            if stream.eof:
                stream = new()
            try:
                yield stream.decompress(data, CHUNK_BYTES)
            except (OSError, lzma.LZMAError, EOFError) as e:
                raise IntegrityError(f"the archive's compressed data is damaged: {e}") from e
            data = stream.unused_data if stream.eof else b""
    if not stream.eof:
        raise IntegrityError("the archive's compressed data is cut off")
