"""Lists of processors and memory nodes (`0-2,5`), as intervals that are never expanded.

CVE-2018-20699: a parser that expands `0-2147483647` takes the memory of the host.
"""

from __future__ import annotations

from scow.native.errors import InvalidArgument

# The kernel's own limit for a write to cpuset.cpus is of this order; nobody's list is longer.
MAX_TEXT = 4096
MAX_NUMBER = 2**31 - 1

Intervals = tuple[tuple[int, int], ...]


def parse_cpu_list(text: str, *, what: str = "cpus") -> Intervals:
    """Parse a kernel list; sorted, overlaps merged. Raises InvalidArgument with the bad part."""
    if len(text) > MAX_TEXT:
        raise InvalidArgument(f"list of {what} is longer than {MAX_TEXT} characters")
    text = text.strip()
    if not text:
        return ()
    found = sorted(_parse_range(part, text, what) for part in text.split(","))
    merged: list[tuple[int, int]] = []
    for low, high in found:
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _parse_range(part: str, text: str, what: str) -> tuple[int, int]:
    low, dash, high = part.partition("-")
    digits = low.isascii() and low.isdigit() and (not dash or (high.isascii() and high.isdigit()))
    if not digits or len(low) > 10 or len(high) > 10:
        raise InvalidArgument(f"list of {what} '{text}' is wrong at '{part}'")
    first, last = int(low), int(high) if dash else int(low)
    if last < first or last > MAX_NUMBER:
        raise InvalidArgument(f"list of {what} '{text}' is wrong at '{part}'")
    return first, last


def first_outside(wanted: Intervals, available: Intervals) -> int | None:
    """The first number of `wanted` that is not in `available` (which is sorted and merged)."""
    for low, high in wanted:
        cursor = low
        for start, end in available:
            if start <= cursor <= end:
                cursor = end + 1
        if cursor <= high:
            return cursor
    return None


def count(intervals: Intervals) -> int:
    """How many numbers the intervals hold."""
    return sum(high - low + 1 for low, high in intervals)
