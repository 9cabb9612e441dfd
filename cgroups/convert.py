"""Numbers of the OCI specification (which are cgroup v1's) turned into cgroup v2's; pure."""

from __future__ import annotations

import math

from scow.native.errors import InvalidArgument

DEFAULT_PERIOD_US = 100_000


def cpu_weight(shares: int) -> int:
    """cpu.weight for cpu.shares; 0 stays 0 (unset).

    The quadratic in log2(shares) that crun 1.23, runc 1.3.2 and youki agreed on in 2025: it goes
    through 2 -> 1, 1024 -> 100 and 262144 -> 10000, so that both defaults mean the same.
    """
    if shares == 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262_144:
        return 10_000
    log = math.log2(shares)
    exponent = (log * log + 125 * log) / 612.0 - 7.0 / 34.0
    # 1024 must be exactly 100: without the guard a last bit of the power makes it 101.
    return math.ceil(math.pow(10, exponent) - 1e-9)


def io_weight(blkio_weight: int) -> int:
    """io.weight (1..10000) for blkio.weight (10..1000)."""
    if blkio_weight == 0:
        return 0
    return 1 + (blkio_weight - 10) * 9999 // 990


def limit_text(value: int) -> str:
    """A v2 limit: `max` for -1."""
    return "max" if value < 0 else str(value)


def cpu_max(quota: int | None, period: int | None, current: str = "") -> str | None:
    """The line for cpu.max, or None when neither is set.

    `current` is the file's content on an update: an unset half keeps its value.
    """
    if not quota and not period:
        return None
    had = current.split()
    if quota:
        first = "max" if quota < 0 else str(quota)
    else:
        first = had[0] if had else "max"
    if not period:
        period = int(had[1]) if len(had) > 1 else DEFAULT_PERIOD_US
    return f"{first} {period}"


def swap_max(limit: int | None, swap: int | None) -> str | None:
    """memory.swap.max for the specification's memory plus swap; None leaves it alone."""
    if not swap:
        return "max" if limit is not None and limit < 0 else None
    if swap < 0:
        return "max"
    if not limit or limit < 0:
        raise InvalidArgument(f"memory and swap limit '{swap}' needs a memory limit")
    if swap < limit:
        raise InvalidArgument(f"memory and swap limit '{swap}' is below the memory limit '{limit}'")
    return str(swap - limit)
