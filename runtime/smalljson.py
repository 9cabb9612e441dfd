"""JSON of our own small documents, for commands whose whole life is shorter than a codec's import.

msgspec costs 13 ms of a bare interpreter's start (typing, uuid, decimal, datetime), the json module 3
(re); the scanner in C underneath it costs nothing. What must not be read with it: documents of others.
"""

from __future__ import annotations

import _json


class _Context:
    """What the scanner asks of a json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def decode(data: bytes) -> object:
    """The value of a document. ValueError when it is not one."""
    text = data.decode().strip()
    try:
        scan = _json.make_scanner(_Context())  # type: ignore[arg-type]  # by its attributes
        value, end = scan(text, 0)
    except StopIteration as error:
        raise ValueError(f"not a JSON document, at {error.value}") from None
    except SystemError:
        # What the scanner does when it wants to raise an error of json.decoder, which is not imported.
        raise ValueError("not a JSON document") from None
    if end != len(text):
        raise ValueError(f"more than one JSON document, at {end}")
    return value


def encode(value: object, indent: str = "") -> str:
    """A document; with `indent` (two spaces) on several lines."""
    return _encode(value, indent, "\n" if indent else "")


def _encode(value: object, step: str, line: str) -> str:
    if isinstance(value, str):
        return _json.encode_basestring_ascii(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    deeper = line + step
    colon = ": " if step else ":"
    if isinstance(value, dict):
        parts = [
            f"{_json.encode_basestring_ascii(str(key))}{colon}{_encode(item, step, deeper)}"
            for key, item in value.items()
        ]
        return "{" + deeper + f",{deeper}".join(parts) + line + "}" if parts else "{}"
    if isinstance(value, list):
        parts = [_encode(item, step, deeper) for item in value]
        return "[" + deeper + f",{deeper}".join(parts) + line + "]" if parts else "[]"
    raise TypeError(f"no JSON for {type(value).__name__}")
