"""Decompression of layers as a push stream: bytes in, bounded pieces out.

What belongs here: finding the format by magic bytes (media types lie) and undoing it. What must not:
tar, digests, files. Everything is hostile: no call returns more than MAX_PIECE bytes, whatever
the ratio, and a zstd window may not exceed 128 MiB. The heavy work releases the GIL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

from scow.native.errors import IntegrityError, Unsupported

if TYPE_CHECKING:
    import zstandard

# What a zstd block has at most (RFC 8878, 3.1.1.2.3). With many layers at once, each with a queue of
# pieces, this decides how much memory a pull takes.
MAX_PIECE = 128 << 10
MAX_ZSTD_WINDOW = 128 << 20

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_UNSUPPORTED = (
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x1f\x9d", "compress"),
    (b"LZIP", "lzip"),
)
_MAGIC_BYTES = 6  # the longest of them
_ZSTD_DICT_ID_SIZES = (0, 1, 2, 4)
_ZSTD_CONTENT_SIZES = (0, 2, 4, 8)


class _Format(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...
    def finish(self) -> None: ...


class Decompressor:
    """Undoes gzip (of several members), zstd (of several and skippable frames) or nothing.

    `feed` must be iterated to its end before the next call; `finish` raises when the stream stops in
    the middle. Damage is an `IntegrityError`, a format that scow does not read `Unsupported`.
    """

    def __init__(self) -> None:
        self._head = b""
        self._format: _Format | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The next bytes, decompressed, in pieces of at most MAX_PIECE."""
        if self._format is None:
            self._head += data
            if len(self._head) < _MAGIC_BYTES:
                return
            data, self._head = self._head, b""
            self._format = _find_format(data)
        yield from self._format.feed(data)

    def finish(self) -> Iterator[bytes]:
        """What is left (of a stream shorter than any magic); checks that nothing is missing."""
        if self._format is None:
            if self._head.startswith(_GZIP_MAGIC) or _is_zstd(self._head):
                raise IntegrityError("compressed data ends in the middle")
            if self._head:
                yield self._head
            return
        self._format.finish()


def _is_zstd(head: bytes) -> bool:
    return head.startswith(_ZSTD_MAGIC) or _is_skippable(head)


def _is_skippable(head: bytes) -> bool:
    return head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def _find_format(head: bytes) -> _Format:
    if head.startswith(_GZIP_MAGIC):
        return _Gzip()
    if _is_zstd(head):
        return _Zstd()
    for magic, name in _UNSUPPORTED:
        if head.startswith(magic):
            raise Unsupported(
                f"unsupported compression '{name}'", hint="supported are gzip, zstd and none"
            )
    return _Plain()


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), MAX_PIECE):
            yield data[start : start + MAX_PIECE]

    def finish(self) -> None:
        pass


class _Gzip:
    """igzip of ISA-L: about three times as fast as zlib; it checks CRC and length of each member."""

    def __init__(self) -> None:
        from isal import igzip_lib

        self._library = igzip_lib
        self._error = cast("type[Exception]", igzip_lib.error)
        self._member: Any = None
        self._head = b""
        self._padding = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data or (self._member is not None and not self._member.needs_input):
            if self._member is None:
                data = self._start(data)
                continue
            try:
                piece = self._member.decompress(data, MAX_PIECE)
            except (self._error, EOFError) as error:
                raise IntegrityError(f"bad gzip data: {error}") from error
            data = b""
            if self._member.eof:
                data = self._member.unused_data
                self._member = None
            if piece:
                yield piece

    def _start(self, data: bytes) -> bytes:
        """Begin a member if its magic is there; zero padding may follow the last one."""
        data = self._head + data
        self._head = b""
        if self._padding or data.startswith(b"\0"):
            self._padding = True
            if data.strip(b"\0"):
                raise IntegrityError("bad gzip data: junk after the end")
            return b""
        if not _GZIP_MAGIC.startswith(data[:2]):
            raise IntegrityError("bad gzip data: junk after the end")
        if len(data) < 2:
            self._head = data
            return b""
        self._member = self._library.IgzipDecompressor(flag=self._library.DECOMP_GZIP)
        return data

    def finish(self) -> None:
        if self._member is not None or self._head:
            raise IntegrityError("gzip data ends in the middle")


class _Zstd:
    """Cuts the stream at block borders itself, which libzstd's streaming call cannot tell us.

    So output stays bounded (a block of 4 bytes may regenerate 128 KiB), a missing end is noticed and
    skippable frames (zstd:chunked, eStargz) pass.
    """

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._context = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._buffer = bytearray()
        self._skip = 0  # bytes of a skippable frame still to come
        self._has_checksum = False
        self._in_blocks = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        start = 0
        while True:
            if self._skip:
                n = min(self._skip, len(self._buffer) - start)
                self._skip -= n
                start += n
            elif not self._in_blocks:
                n = self._begin_frame(start)
                start += n
            else:
                n = self._take_block(start)
                if n:
                    piece = self._decompress(bytes(memoryview(self._buffer)[start : start + n]))
                    start += n
                    if piece:
                        yield piece
            if n == 0:
                break
        del self._buffer[:start]

    def _begin_frame(self, at: int) -> int:
        """Read a whole frame header; returns its size, 0 if more bytes are needed."""
        head = bytes(self._buffer[at : at + 18])
        if len(head) < 8:
            if head and not _is_zstd(head) and len(head) >= 4:
                raise IntegrityError("bad zstd data: junk after the end")
            return 0
        if _is_skippable(head):
            self._skip = int.from_bytes(head[4:8], "little")
            return 8
        if not head.startswith(_ZSTD_MAGIC):
            raise IntegrityError("bad zstd data: junk after the end")
        flags = head[4]
        single = bool(flags & 0x20)
        content = _ZSTD_CONTENT_SIZES[flags >> 6] or int(single)
        size = 5 + (not single) + _ZSTD_DICT_ID_SIZES[flags & 3] + content
        if len(head) < size:
            return 0
        if flags & 3:
            raise Unsupported("unsupported compression 'zstd with a dictionary'")
        self._check_window(head, single=single, content=content)
        self._has_checksum = bool(flags & 4)
        self._in_blocks = True
        self._frame = self._context.decompressobj()
        self._decompress(head[:size])
        return size

    def _check_window(self, head: bytes, *, single: bool, content: int) -> None:
        if single:
            window = int.from_bytes(head[5 : 5 + content], "little") + (256 if content == 2 else 0)
        else:
            window = 1 << (10 + (head[5] >> 3))
            window += window // 8 * (head[5] & 7)
        if window > MAX_ZSTD_WINDOW:
            raise Unsupported(
                f"zstd window of {window} bytes is larger than {MAX_ZSTD_WINDOW}",
                hint="compress the layer without --long or --ultra",
            )

    def _take_block(self, start: int) -> int:
        """The size of the next whole block (RFC 8878, 3.1.1.2), 0 if not all of it is here yet."""
        if len(self._buffer) - start < 3:
            return 0
        head = int.from_bytes(self._buffer[start : start + 3], "little")
        size = 3 + (1 if head & 6 == 2 else head >> 3)  # run-length: one byte
        if head & 1 and self._has_checksum:
            size += 4
        if size > (128 << 10) + 7:
            raise IntegrityError("bad zstd data: a block is too large")
        if len(self._buffer) - start < size:
            return 0
        self._in_blocks = not head & 1  # the last one ends the frame
        return size

    def _decompress(self, data: bytes) -> bytes:
        assert self._frame is not None
        try:
            return self._frame.decompress(data)
        except self._error as error:
            raise IntegrityError(f"bad zstd data: {error}") from error

    def finish(self) -> None:
        if self._in_blocks or self._skip or self._buffer:
            raise IntegrityError("zstd data ends in the middle")
