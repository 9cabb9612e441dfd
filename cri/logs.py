"""Reading a container's log: CRI format, across rotations, following while it grows.

The monitor writes `<time> <stream> <P|F> <text>\\n` and renames full files to `.1`, `.2`, ...;
readers hold the file they read open, so a rename under them loses nothing. The file lies in a
directory that no container can write, and is opened without following links (CVE-2026-53489).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import msgspec

READ_CHUNK = 1 << 20
POLL_S = 0.05


class LogEntry(msgspec.Struct, frozen=True):
    """One line, or a part of one longer than 16 KiB; a whole one ends with its newline."""

    time_text: str
    stream: str
    line: bytes

    @property
    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return parse_time_ns(self.time_text)


def parse_time_ns(text: str) -> int:
    """Read the monitor's time stamp (RFC 3339, nanoseconds, UTC or an offset)."""
    from datetime import datetime

    seconds, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789")
    digits = rest[: len(rest) - len(zone)][:9]
    zone = (zone or "Z").replace("Z", "+00:00")
    whole = datetime.fromisoformat(f"{seconds.removesuffix('Z')}{zone}")
    return int(whole.timestamp()) * 10**9 + int(digits.ljust(9, "0"))


def read_log(
    path: str,
    *,
    follow: bool,
    tail: int | None,
    since_ns: int | None,
    until_ns: int | None,
    is_running: Callable[[], bool],
) -> Iterator[LogEntry]:
    """Yield entries oldest first; `tail` counts from the end, `follow` goes on while it runs."""
    reader = _Reader(path)
    try:
        for line in reader.all_lines() if tail is None else reader.last_lines(tail):
            entry = parse_line(line)
            if entry is not None and _within(entry, since_ns, until_ns):
                yield entry
        while follow:
            # Asked before reading: what was written before the end is still read below.
            running = is_running()
            for line in reader.new_lines():
                entry = parse_line(line)
                if entry is not None and _within(entry, since_ns, until_ns):
                    yield entry
            if not running:
                return
            if until_ns is not None and time.time_ns() > until_ns:
                return
            time.sleep(POLL_S)
    finally:
        reader.close()


def _within(entry: LogEntry, since_ns: int | None, until_ns: int | None) -> bool:
    if since_ns is None and until_ns is None:
        return True
    at = entry.time_ns
    return (since_ns is None or at >= since_ns) and (until_ns is None or at <= until_ns)


def parse_line(line: bytes) -> LogEntry | None:
    """Read one line of the file; None for one that was cut by a full disk."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[2] not in (b"F", b"P"):
        return None
    text = parts[3]
    return LogEntry(
        parts[0].decode("ascii", "replace"),
        parts[1].decode("ascii", "replace"),
        text if parts[2] == b"F" else text[:-1],
    )


def open_files(path: str, until_inode: int | None = None) -> list[int]:
    """Open the files of a log, newest first, up to the one with `until_inode`, which is left out.

    A rotation may happen meanwhile: files only move to higher numbers, the way this scan goes, so
    none is missed; one that is met twice is kept once. A number that is missing for the moment
    between two renames does not end the scan. The caller closes the descriptors.
    """
    found: list[int] = []
    seen: set[int] = set()
    number = missing = 0
    while missing < 2:
        try:
            name = f"{path}.{number}" if number else path
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            number, missing = number + 1, missing + 1
            continue
        number, missing = number + 1, 0
        inode = os.fstat(fd).st_ino
        if inode in seen or inode == until_inode:
            os.close(fd)
            if inode == until_inode:
                break
            continue
        seen.add(inode)
        found.append(fd)
    return found


class _Reader:
    """Follows one log by inode: a rotated file is read to its end before the next is begun."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._rest = b""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def all_lines(self) -> Iterator[bytes]:
        yield from self._read_files(open_files(self._path))

    def last_lines(self, count: int) -> list[bytes]:
        """Give the last `count` lines; the parts of a long line belong to the line they begin."""
        files = open_files(self._path)
        kept: list[bytes] = []
        rest = b""
        for position, fd in enumerate(files):
            lines = list(self._read_to_end(fd))
            if position == 0:
                self._fd, rest = fd, self._rest
            else:
                os.close(fd)
            self._rest = b""
            kept = lines + kept
            if sum(map(_is_whole, kept)) > count:
                for other in files[position + 1 :]:
                    os.close(other)
                break
        self._rest = rest
        return _tail(kept, count)

    def new_lines(self) -> Iterator[bytes]:
        if self._fd < 0:
            yield from self.all_lines()
            return
        # Asked before reading: a file that was rotated away gets no more lines.
        newer = self._newer_files()
        yield from self._read_to_end(self._fd)
        if newer:
            self._rest = b""
            self.close()
            yield from self._read_files(newer)

    def _newer_files(self) -> list[int]:
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return []
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            return []
        return open_files(self._path, ours.st_ino)

    def _read_files(self, files: list[int]) -> Iterator[bytes]:
        """Read newest-first descriptors from the oldest on; the newest becomes ours."""
        while files:
            self.close()
            self._fd, self._rest = files.pop(), b""
            yield from self._read_to_end(self._fd)

    def _read_to_end(self, fd: int) -> Iterator[bytes]:
        while chunk := os.read(fd, READ_CHUNK):
            lines = (self._rest + chunk).split(b"\n")
            self._rest = lines.pop()
            for line in lines:
                yield line + b"\n"


def _is_whole(line: bytes) -> bool:
    return line.split(b" ", 3)[2:3] == [b"F"]


def _tail(lines: list[bytes], count: int) -> list[bytes]:
    taken = 0
    for position in range(len(lines) - 1, -1, -1):
        if _is_whole(lines[position]):
            taken += 1
            if taken > count:
                return lines[position + 1 :]
    return lines if count else []
