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


def log_paths(path: str) -> list[str]:
    """Give the existing files of a log, oldest first."""
    found = [path] if os.path.exists(path) else []
    number = 1
    while os.path.exists(f"{path}.{number}"):
        found.insert(0, f"{path}.{number}")
        number += 1
    return found


class _Reader:
    """Follows one log by inode: a rotated file is read to its end before the next is opened."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._rest = b""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def all_lines(self) -> Iterator[bytes]:
        for path in log_paths(self._path):
            yield from self._open_and_read(path)

    def last_lines(self, count: int) -> list[bytes]:
        """Give the last `count` lines of the whole log, newest file first until there are enough."""
        kept: list[bytes] = []
        for path in reversed(log_paths(self._path)):
            lines = list(self._open_and_read(path, keep=path == self._path))
            # Parts of a long line belong to the line they begin.
            kept = lines + kept
            if sum(1 for line in kept if b" F " in line[:64]) > count:
                break
        taken = 0
        for position in range(len(kept) - 1, -1, -1):
            if kept[position].split(b" ", 3)[2:3] == [b"F"]:
                taken += 1
                if taken > count:
                    return kept[position + 1 :]
        return kept if count else []

    def _open_and_read(self, path: str, *, keep: bool = True) -> Iterator[bytes]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        saved = self._fd, self._rest
        if keep:
            self.close()
        self._fd, self._rest = fd, b""
        yield from self._read_to_end()
        if not keep:
            os.close(fd)
            self._fd, self._rest = saved

    def _read_to_end(self) -> Iterator[bytes]:
        while chunk := os.read(self._fd, READ_CHUNK):
            lines = (self._rest + chunk).split(b"\n")
            self._rest = lines.pop()
            for line in lines:
                yield line + b"\n"

    def new_lines(self) -> Iterator[bytes]:
        if self._fd < 0:
            yield from self._open_and_read(self._path)
            return
        rotated = self._rotated()
        yield from self._read_to_end()
        if rotated:
            yield from self._since_rotation()

    def _rotated(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        here = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def _since_rotation(self) -> Iterator[bytes]:
        """Read the files that were begun after ours, oldest first."""
        ours = os.fstat(self._fd).st_ino
        paths = log_paths(self._path)
        inodes = [os.stat(path).st_ino for path in paths]
        start = inodes.index(ours) + 1 if ours in inodes else 0
        for path in paths[start:]:
            yield from self._open_and_read(path)
