"""The functions of --format templates: Go's own and those that Docker adds."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NO_VALUE = "<no value>"


def show(value: object) -> str:
    """How Go prints a value (`%v`)."""
    if value is None:
        return NO_VALUE
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + " ".join(show(item) for item in value) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return str(value)


def truth(value: object) -> bool:
    """Go's truth: everything but nil, false, zero and the empty."""
    return bool(value)


def to_json(value: object) -> str:
    """Compact JSON."""
    import json

    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def _join(items: object, separator: object = "") -> str:
    # Docker's order is `join LIST SEP`; a pipe (`.List | join ","`) gives the list last.
    if isinstance(items, str) and not isinstance(separator, str):
        items, separator = separator, items
    if items is None:
        return ""
    if not isinstance(items, Sequence):
        raise TypeError("not a list")
    return str(separator).join(show(item) for item in items)


def _index(value: Any, *keys: Any) -> object:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(value):
            value = value[key]
        else:
            raise IndexError(f"no element {show(key)}")
    return value


def _slice(value: Any, *bounds: int) -> object:
    if len(bounds) > 2 or any(not 0 <= bound <= len(value) for bound in bounds):
        raise IndexError("out of range")
    return value[slice(*bounds)] if len(bounds) == 2 else value[bounds[0] if bounds else 0 :]


def _not(value: object) -> bool:
    return not truth(value)


def _lower(text: object) -> str:
    return str(text).lower()


def _upper(text: object) -> str:
    return str(text).upper()


def _eq(left: object, *others: object) -> bool:
    if not others:
        raise TypeError("needs something to compare with")
    return any(left == other for other in others)


def _title(text: object) -> str:
    return re.sub(r"\b\w", lambda match: match[0].upper(), str(text))


def _pad(text: object, before: int, after: int) -> str:
    return " " * min(before, 1000) + str(text) + " " * min(after, 1000) if text else str(text)


def _truncate(text: object, length: int) -> str:
    return str(text)[:length]


def _split(text: object, separator: object) -> list[str]:
    return str(text).split(str(separator)) if separator else list(str(text))


def _quoted(text: object) -> str:
    import json

    return json.dumps(show(text), ensure_ascii=False)


def printf(form: object, *values: object) -> str:
    """Go's Printf for the verbs that templates use."""
    rest = list(values)

    def one(match: re.Match[str]) -> str:
        flags, width, precision, verb = match[1], match[2], match[3], match[4]
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        value: Any = rest.pop(0)
        if len(width) > 3 or len(precision or "") > 4:
            raise ValueError("width too large")
        if verb in "dxXoceEfgG" and isinstance(value, int | float) and not isinstance(value, bool):
            return f"%{flags}{width}{precision or ''}{verb}" % value
        if verb == "q":
            value = _quoted(value)
        elif verb not in "svt":
            return f"%!{verb}({show(value)})"
        text = show(value)
        return f"%{flags.replace('0', '').replace('#', '')}{width}{precision or ''}s" % text

    text = re.sub(r"%([-+# 0]*)(\d*)(\.\d+)?([a-zA-Z%])", one, str(form))
    return text + (f"%!(EXTRA {' '.join(show(value) for value in rest)})" if rest else "")


def _print(*values: object) -> str:
    # Go's Print puts a blank between two operands when neither is a string.
    out = ""
    for position, value in enumerate(values):
        gap = position and not isinstance(value, str) and not isinstance(values[position - 1], str)
        out += (" " if gap else "") + show(value)
    return out


FUNCTIONS: dict[str, Callable[..., object]] = {
    "json": to_json,
    "join": _join,
    "lower": _lower,
    "upper": _upper,
    "title": _title,
    "split": _split,
    "pad": _pad,
    "truncate": _truncate,
    "len": len,
    "index": _index,
    "slice": _slice,
    "not": _not,
    "and": lambda *values: None,  # the compiler short-circuits these two
    "or": lambda *values: None,
    "eq": _eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "print": _print,
    "println": lambda *values: " ".join(show(value) for value in values) + "\n",
    "printf": printf,
}
