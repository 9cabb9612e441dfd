"""Writing tar streams: PAX headers, in bytes.

What belongs here: one member after another, to a stream that cannot be seeked. What must not: which
files, in which order. Python's tarfile is not used for this: it writes no sparse files, and takes
names and attributes for text. Sources: POSIX pax "Interchange Format"; GNU tar "PAX Format, Version
1.0" for sparse files, which Go, GNU tar, libarchive and scow-untar read.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = 512
COPY_BYTES = 1 << 20
# A hole has to be worth a place in the map; smaller ones are written as zeros.
MIN_HOLE_BYTES = 64 << 10
MAX_SEGMENTS = 100_000  # scow-untar takes more, other programs keep the map in memory
_MAX_OCTAL_7 = 0o7777777
_MAX_OCTAL_11 = 0o77777777777

FILE, LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


@dataclass(frozen=True, slots=True)
class Member:
    """What a header tells. Names are bytes, as the kernel has them; directories end with a slash."""

    name: bytes
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()


class TarWriter:
    """A tar stream into `write`, which takes bytes of any size."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self.members = 0

    def add(self, member: Member, data: bytes = b"") -> None:
        """A member with all of its data, which there is none of unless it is a regular file."""
        assert member.size == len(data)
        self.begin(member)
        if data:
            self._write(data + _padding(len(data)))

    def begin(self, member: Member, records: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """A header; the caller writes `member.size` bytes and their padding after it."""
        self.members += 1
        extra = b"".join(_record(k, v) for k, v in (*records, *_records(member)))
        if extra:
            name = b"PaxHeaders.0/" + os.path.basename(member.name.rstrip(b"/"))
            header = _header(Member(name, b"x", size=len(extra)))
            self._write(header + extra + _padding(len(extra)))
        self._write(_header(member))

    def add_file(self, member: Member, fd: int) -> None:
        """A regular file's header and data, with its holes.

        `member.size` is what the file had when it was looked at; if it grows meanwhile the rest is left
        out, if it shrinks zeros stand for what is gone, as GNU tar does it.
        """
        segments = data_segments(fd, member.size) if member.size >= MIN_HOLE_BYTES else None
        if segments is None:
            self.begin(member)
            self._copy(fd, 0, member.size)
            self._write(_padding(member.size))
            return
        lines = [len(segments), *(number for segment in segments for number in segment)]
        text = b"".join(b"%d\n" % number for number in lines)
        text += _padding(len(text))
        total = sum(length for _, length in segments)
        records = (
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", member.name),
            (b"GNU.sparse.realsize", b"%d" % member.size),
        )
        # Programs that do not know it unpack the map and the data under this name, which tells.
        head, _, tail = member.name.rpartition(b"/")
        name = head + b"/GNUSparseFile.0/" + tail if head else b"GNUSparseFile.0/" + tail
        stored = Member(
            name, FILE, member.mode, member.uid, member.gid, member.mtime_ns, len(text) + total
        )
        self.begin(stored, (*records, *_xattr_records(member)))
        self._write(text)
        for offset, length in segments:
            self._copy(fd, offset, length)
        self._write(_padding(total))

    def finish(self) -> None:
        """The end of the archive."""
        self._write(bytes(2 * BLOCK))

    def _copy(self, fd: int, offset: int, size: int) -> None:
        end = offset + size
        while offset < end:
            chunk = os.pread(fd, min(COPY_BYTES, end - offset), offset)
            if not chunk:
                chunk = bytes(min(COPY_BYTES, end - offset))
            self._write(chunk)
            offset += len(chunk)

    def pad(self, size: int) -> None:
        """What follows `size` bytes of data that the caller has written."""
        self._write(_padding(size))


def data_segments(fd: int, size: int) -> list[tuple[int, int]] | None:
    """Where a file has data, as (offset, length); None where it has no hole worth the trouble."""
    if os.fstat(fd).st_blocks * 512 >= size:
        return None
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole from here on
            break
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < at:
            found.append((start, at - start))
    gap = MIN_HOLE_BYTES
    joined = _join(found, size, gap)
    while len(joined) > MAX_SEGMENTS:
        gap *= 4
        joined = _join(joined, size, gap)
    if joined == [(0, size)]:
        return None
    # GNU tar tells a hole at the end by an empty segment there.
    return joined if joined and sum(joined[-1]) == size else [*joined, (size, 0)]


def _join(segments: list[tuple[int, int]], size: int, gap: int) -> list[tuple[int, int]]:
    """Segments with the holes between them that are smaller than `gap` filled."""
    joined: list[tuple[int, int]] = []
    end = 0
    for start, length in segments:
        if start - end < gap:
            first = joined.pop()[0] if joined else 0
            joined.append((first, start + length - first))
        else:
            joined.append((start, length))
        end = start + length
    if joined and size - end < gap:
        first = joined.pop()[0]
        joined.append((first, size - first))
    return joined


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def _header(member: Member) -> bytes:
    seconds = member.mtime_ns // 10**9
    parts = (
        member.name[:100].ljust(100, b"\0"),
        _octal(member.mode & 0o7777, 8),
        _octal(_fitting(member.uid, _MAX_OCTAL_7), 8),
        _octal(_fitting(member.gid, _MAX_OCTAL_7), 8),
        _octal(_fitting(member.size, _MAX_OCTAL_11), 12),
        _octal(_fitting(seconds, _MAX_OCTAL_11), 12),
        b" " * 8,
        member.kind,
        member.link[:100].ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),
        _octal(_fitting(member.device[0], _MAX_OCTAL_7), 8),
        _octal(_fitting(member.device[1], _MAX_OCTAL_7), 8),
        bytes(167),
    )
    header = b"".join(parts)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _fitting(number: int, largest: int) -> int:
    """What does not fit stands in a record, which is what counts then."""
    return number if 0 <= number <= largest else 0


def _records(member: Member) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    if len(member.name) > 100:
        found.append((b"path", member.name))
    if len(member.link) > 100:
        found.append((b"linkpath", member.link))
    numbers = (
        (b"uid", member.uid, _MAX_OCTAL_7),
        (b"gid", member.gid, _MAX_OCTAL_7),
        (b"size", member.size, _MAX_OCTAL_11),
        (b"SCHILY.devmajor", member.device[0], _MAX_OCTAL_7),
        (b"SCHILY.devminor", member.device[1], _MAX_OCTAL_7),
    )
    found += [(key, b"%d" % number) for key, number, largest in numbers if number > largest]
    seconds, rest = divmod(member.mtime_ns, 10**9)
    if rest or not 0 <= seconds <= _MAX_OCTAL_11:
        found.append((b"mtime", _time(member.mtime_ns)))
    return [*found, *_xattr_records(member)]


def _time(time_ns: int) -> bytes:
    # Sign and magnitude: -0.5 s is "-0.500000000".
    seconds, rest = divmod(abs(time_ns), 10**9)
    text = b"%d.%09d" % (seconds, rest) if rest else b"%d" % seconds
    return b"-" + text if time_ns < 0 else text


def _xattr_records(member: Member) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for name, value in member.xattrs:
        key = os.fsencode(name)
        if b"=" in key:  # would end the record's key; libarchive's form can say it
            escaped = key.replace(b"%", b"%25").replace(b"=", b"%3D")
            found.append((b"LIBARCHIVE.xattr." + escaped, base64.b64encode(value)))
        else:
            found.append((b"SCHILY.xattr." + key, value))
    return found


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE`, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
