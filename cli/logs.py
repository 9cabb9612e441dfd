"""logs: what containers have written."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from scow.cli.session import service
from scow.cli.table import Argument, Command, Values, flag, text
from scow.native.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scow.cri.logs import LogEntry

_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


def parse_time(option: str, words: str, now_ns: int | None = None) -> int:
    """Nanoseconds since 1970 from `10m`, `1h30m`, `2026-11-20T18:00:00Z`, or seconds since 1970."""
    now_ns = time.time_ns() if now_ns is None else now_ns
    wrong = InvalidArgument(
        f"invalid {option} {ascii(words)[:100]}: a duration (10m, 1h30m) or a time "
        "(2026-11-20T18:00:00Z, or seconds since 1970)"
    )
    if not words or len(words) > 64 or not words.isascii():
        raise wrong
    seconds, _, fraction = words.partition(".")
    if seconds.isdigit() and (fraction.isdigit() or not fraction) and words[-1] != ".":
        return int(seconds) * 10**9 + int((fraction or "0")[:9].ljust(9, "0"))
    ago_ns = _duration(words)
    if ago_ns is not None:
        return now_ns - ago_ns
    from datetime import datetime

    try:
        moment = datetime.fromisoformat(words)
        return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000
    except (ValueError, OverflowError, OSError):
        raise wrong from None


def _duration(words: str) -> int | None:
    import re

    if not re.fullmatch(r"(?:\d{1,12}(?:\.\d{1,9})?(?:ns|us|ms|s|m|h))+", words):
        return None
    parts = re.findall(r"([\d.]+)(ns|us|ms|s|m|h)", words)
    return int(sum(float(number) * _UNITS_NS[unit] for number, unit in parts))


def parse_tail(words: str | None) -> int | None:
    """A number of lines; None for all of them."""
    if words in (None, "all", "-1"):
        return None
    from scow.cri.parse import parse_int

    assert words is not None
    return parse_int("--tail", words, low=0, note="a number of lines, or all")


def _logs(values: Values) -> int:
    since, until = values.text("since"), values.text("until")
    container_id = service().find(values.word("CONTAINER"))
    entries = service().logs(
        container_id,
        follow=values.flag("follow"),
        tail=parse_tail(values.text("tail")),
        since_ns=None if since is None else parse_time("--since", since),
        until_ns=None if until is None else parse_time("--until", until),
    )
    sys.stdout.flush()
    write_entries(entries, times=values.flag("timestamps"), flush=values.flag("follow"))
    return 0


def write_entries(entries: Iterator[LogEntry], *, times: bool, flush: bool) -> None:
    """Write each line where it belongs."""
    # Bytes as they came: the log of a program is its own business, and text may be any encoding.
    pending: dict[int, list[bytes]] = {1: [], 2: []}
    size = 0
    is_start = {1: True, 2: True}
    for entry in entries:
        fd = 2 if entry.stream == "stderr" else 1
        if size and (flush or size > 65536 or not pending[fd]):
            size = _drain(pending)
        if times and is_start[fd]:
            pending[fd].append(entry.time_text.encode() + b" ")
        pending[fd].append(entry.line)
        is_start[fd] = entry.line.endswith(b"\n")
        size += len(entry.line) + 1
        if flush:
            size = _drain(pending)
    _drain(pending)


def _drain(pending: dict[int, list[bytes]]) -> int:
    for fd, pieces in pending.items():
        data = b"".join(pieces)
        pieces.clear()
        while data:
            data = data[os.write(fd, data) :]
    return 0


LOGS = Command(
    "logs",
    "Show what a container has written",
    _logs,
    description="Standard output goes to standard output, errors to standard error.",
    arguments=(
        Argument("CONTAINER", "Name or id, or the beginning of an id", complete="containers"),
    ),
    options=(
        flag("-f", "--follow", help="Go on until the container ends"),
        text("-n", "--tail", metavar="LINES", default="all", help="Only the last lines"),
        flag("-t", "--timestamps", help="Put the time before each line"),
        text(
            "--since", metavar="TIME", help="Only what is newer: 10m, 1h30m or 2026-11-20T18:00:00Z"
        ),
        text("--until", metavar="TIME", help="Only what is older"),
    ),
    examples=(("scow logs -f -n 20 web", "the last 20 lines, and then what comes"),),
)
