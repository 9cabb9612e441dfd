"""What registries say about themselves in headers: limits that are reached, waits, warnings.

What belongs here: turning those headers into words. What must not: waiting (transport.py).
Sources: RFC 9110 section 10.2.3; the RateLimit headers of Docker Hub ("100;w=21600": so many in so
many seconds); `Warning: 299 - "text"` of the distribution-spec.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping

from scow.image.digest import quote

MAX_WARNINGS_OF_ANSWER = 5
_LIMIT = re.compile(r"([0-9]{1,9})(?:[ \t]*;.*?\bw=([0-9]{1,9}))?")
_WARNING = re.compile(r'299 [^ ",]+ "((?:[^"\\]|\\.){1,1000})"')


def read_warnings(headers: Mapping[str, str]) -> Iterator[str]:
    """What follows "registry X" in a line for the user."""
    for number, match in enumerate(_WARNING.finditer(headers.get("Warning", ""))):
        if number == MAX_WARNINGS_OF_ANSWER:
            break
        text = re.sub(r"\\(.)", r"\1", match[1])
        yield f"says: {quote(text)}"
    left = _LIMIT.match(headers.get("RateLimit-Remaining", "").strip())
    if left is not None and int(left[1]) == 0:
        yield f"allows no more pulls for now{_limit(headers)}"


def explain_limit(headers: Mapping[str, str], host: str) -> tuple[str, str]:
    """How an error about status 429 ends, and its hint."""
    wait_s = retry_after_s(headers)
    first = f"it asks to wait {in_words(wait_s)}; " if wait_s >= 1 else ""
    return _limit(headers), (
        f"{first}logging in to {host} may raise the limit, and a mirror avoids it (docs/registries.md)"
    )


def retry_after_s(headers: Mapping[str, str]) -> float:
    """The Retry-After header in seconds: a number or a date; 0 for garbage or none."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    if not text:
        return 0
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0


def in_words(seconds: float) -> str:
    """A time in its largest unit, rounded up: "3 hours"."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size or unit == "second":
            count = -int(-seconds // size)
            return f"{count} {unit}" + ("s" if count != 1 else "")
    raise AssertionError("unreachable")


def _limit(headers: Mapping[str, str]) -> str:
    """The limit, where the registry tells it: " (100 in 6 hours)"."""
    match = _LIMIT.match(headers.get("RateLimit-Limit", "").strip())
    if match is None:
        return ""
    window = f" in {in_words(int(match[2]))}" if match[2] else ""
    return f" (its limit is {match[1]}{window})"
