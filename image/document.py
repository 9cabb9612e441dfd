"""Reading JSON that strangers wrote: strict, bounded, and the same for every document.

What belongs here: the checks that hold for manifests, indexes, configs, tokens and archives alike.
What must not: what any of these documents means.
"""

from __future__ import annotations

from typing import NoReturn, TypeVar

import msgspec

from scow.native.errors import InvalidArgument

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 4 << 20  # distribution-spec: clients should take manifests up to 4 MiB
MAX_NUMBER_DIGITS = 20  # an int64 has 19 and a sign
MAX_CONTAINERS = 200_000  # lists and objects: an empty one has 2 bytes here, and 64 in memory


def decode_document(data: bytes, kind: type[T], what: str) -> T:
    """Decode `data` into `kind`; raise InvalidArgument that names `what` and the field.

    Refused besides wrong types: more than MAX_DOCUMENT_BYTES, anything but UTF-8, duplicate keys
    (two readers would see two documents), NaN and Infinity, deep nesting, endless numbers.
    """
    check_document(data, what)
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as e:
        raise InvalidArgument(f"invalid {what}: {_lower_first(str(e))}") from e


def check_document(data: bytes, what: str) -> None:
    """The checks of `decode_document` without the decoding."""
    import json  # the fast path reads only files of our own making

    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidArgument(
            f"invalid {what}: it has {len(data)} bytes, more than {MAX_DOCUMENT_BYTES}"
        )
    if not data:
        raise InvalidArgument(f"invalid {what}: it is empty")
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:  # those in strings count, too
        raise InvalidArgument(
            f"invalid {what}: it has more than {MAX_CONTAINERS} lists and objects"
        )
    try:
        text = data.decode("utf-8")
        # json's own BOM and UTF-16 guessing works on bytes only; as str it is strict.
        json.loads(
            text,
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_check_number,
            parse_float=_check_number,
        )
    except UnicodeDecodeError as e:
        raise InvalidArgument(f"invalid {what}: not UTF-8 at offset {e.start}") from e
    except json.JSONDecodeError as e:
        raise InvalidArgument(f"invalid {what}: {_lower_first(e.msg)} at offset {e.pos}") from e
    except RecursionError as e:
        raise InvalidArgument(f"invalid {what}: nested too deeply") from e
    except ValueError as e:
        raise InvalidArgument(f"invalid {what}: {e}") from e


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key[:64]!a}")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_number(digits: str) -> None:
    # The value itself is msgspec's business; here it must only be bounded (int() is quadratic).
    if len(digits) > 2 * MAX_NUMBER_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
