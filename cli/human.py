"""Sizes, durations and ids as Docker words them."""

from __future__ import annotations

import time

SECOND_NS = 1_000_000_000


def decimal_size(count: float, *, digits: int = 3) -> str:
    """`5.61MB`: powers of 1000."""
    return _size(count, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB", "EB"), digits)


def binary_size(count: float) -> str:
    """`15.53MiB`: powers of 1024."""
    return _size(count, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"), 4)


def _size(count: float, base: float, units: tuple[str, ...], digits: int) -> str:
    position = 0
    while count >= base and position < len(units) - 1:
        count /= base
        position += 1
    return f"{count:.{digits}g}{units[position]}"


def duration(seconds: float) -> str:
    """`3 minutes`, `About an hour`, `Less than a second`."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{whole // 3600 // 24 // 365} years"


def ago(since_ns: int, now_ns: int | None = None) -> str:
    """`3 minutes ago`."""
    now_ns = time.time_ns() if now_ns is None else now_ns
    return duration(max(0, now_ns - since_ns) / SECOND_NS) + " ago"


def local_time(at_ns: int) -> str:
    """`2026-11-20 18:02:01 +0000 UTC`, as Docker's CreatedAt."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(at_ns // SECOND_NS))


def short_id(digest_or_id: str) -> str:
    """The first 12 hexadecimal digits."""
    return digest_or_id.rpartition(":")[2][:12]


def ellipsis(text: str, width: int) -> str:
    """At most `width` characters; `…` stands for what is cut."""
    return text if len(text) <= width else text[: width - 1] + "…"
