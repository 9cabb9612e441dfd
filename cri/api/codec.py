"""The proto3-JSON mapping of CRI's messages, both ways.

In: lowerCamelCase or proto names, integers as numbers or strings, bytes as base64 (standard or URL
alphabet), enums by name or number, null for absent, unknown fields passed over. Out: lowerCamelCase,
64-bit integers as strings, enums by name, defaults left out.
(protobuf.dev/programming-guides/json; protojson decides where that page is silent.)

An error names the field by its path, and shows a value only of a number, flag or enum: a text may be
a password.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec

from scow.cri.api.message import Message
from scow.cri.api.schema import Field, schema
from scow.native.errors import InvalidArgument

BODY_MAX = 4 * 1024 * 1024
"""Bytes of one message, as gRPC has it by default. Answers are not limited."""

_RANGES = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, (1 << 64) - 1),
}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
_LONGEST_NUMBER = 400
"""A double needs at most some 330 digits; int() of a million of them takes minutes."""
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class _Wrong(Exception):
    """What is wrong with a value; its path grows on the way up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def under(self, step: str) -> _Wrong:
        dot = "." if self.path and not self.path.startswith("[") else ""
        self.path = f"{step}{dot}{self.path}"
        return self


class _Number(str):
    """A number as it was written, not yet a float or an int; NaN and Infinity are among them."""

    __slots__ = ()


class _Twice:
    """An object in which a key came twice; refused where the schema knows the field."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key = key


def decode(type_name: str, body: bytes) -> Message:
    """Read a message; InvalidArgument says what is wrong, and where."""
    return from_json(type_name, parse(body))


def parse(body: bytes) -> Any:
    """Read JSON strictly: UTF-8, no NaN; numbers and doubled keys are kept for who knows the field."""
    if not body:
        raise InvalidArgument("the body is empty; a message without fields is '{}'")
    try:
        # Decoded here: json.loads(bytes) would guess UTF-16 and UTF-32 too (RFC 8259 section 8.1).
        return _PARSER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"the body is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"the body is not JSON: {error.msg} at character {error.pos}"
        ) from None
    except RecursionError:
        raise InvalidArgument("the body is nested too deeply") from None


def from_json(type_name: str, value: Any) -> Message:
    """Give the message that a value of `parse` stands for."""
    try:
        return _read_message(type_name, value)
    except _Wrong as error:
        where = f"{error.path}: " if error.path else ""
        raise InvalidArgument(f"{where}{error.reason}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Twice:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return _Twice(key)
        seen.add(key)
    raise AssertionError("no key came twice")


def _integer(text: str) -> int | _Number:
    return int(text) if len(text) <= 20 else _Number(text)


_PARSER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_Number, parse_constant=_Number
)


# --- reading ----------------------------------------------------------------------------------


@cache
def _readers(type_name: str) -> dict[str, tuple[str, Callable[[Any], Any], bool]]:
    """By either of its names: a field's own name, what reads one value of it, whether it repeats."""
    found: dict[str, tuple[str, Callable[[Any], Any], bool]] = {}
    for field in schema().messages[type_name].values():
        entry = (field.name, _reader(field.type), field.repeated)
        found[field.name] = found[field.json_name] = entry
    return found


def _reader(type_name: str) -> Callable[[Any], Any]:
    known = schema()
    if type_name in known.messages:
        return lambda value: _read_message(type_name, value)
    if type_name in known.enums:
        return lambda value: _read_enum(type_name, value)
    if type_name in _RANGES:
        return lambda value: _read_integer(type_name, value)
    return {
        "string": _read_string,
        "bytes": _read_bytes,
        "bool": _read_bool,
        "double": _read_double,
        "map<string,string>": _read_map,
    }[type_name]


def _read_message(type_name: str, value: Any) -> Message:
    if type(value) is not dict:
        raise _not_a("an object", value)
    readers = _readers(type_name)
    fields: dict[str, Any] = {}
    for key, item in value.items():
        found = readers.get(key)
        if found is None or item is None:
            continue
        name, read, repeated = found
        if name in fields:
            raise _Wrong("given twice, under both its names").under(key)
        try:
            fields[name] = _read_list(read, item) if repeated else read(item)
        except _Wrong as error:
            raise error.under(key) from None
    return Message.of(type_name, fields)


def _read_list(read: Callable[[Any], Any], value: Any) -> list[Any]:
    if type(value) is not list:
        raise _not_a("a list", value)
    found: list[Any] = []
    for index, item in enumerate(value):
        try:
            if item is None:
                raise _Wrong("null is not allowed in a list")
            found.append(read(item))
        except _Wrong as error:
            raise error.under(f"[{index}]") from None
    return found


def _read_map(value: Any) -> dict[str, str]:
    if type(value) is not dict:
        raise _not_a("an object", value)
    for key, item in value.items():
        try:
            _read_string(key)
            _read_string(item)
        except _Wrong as error:
            raise error.under(f"[{_shown(key)}]") from None
    return value


def _read_string(value: Any) -> str:
    if type(value) is not str:
        raise _not_a("a string", value)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _Wrong("half of a surrogate pair is not a character") from None
    return value


def _read_bytes(value: Any) -> bytes:
    if type(value) is not str:
        raise _not_a("a string in base64", value)
    text = value.rstrip("=").translate(_TO_STANDARD)
    try:
        if len(value) - len(text) > 2:
            raise ValueError
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise _Wrong("not base64") from None


_TO_STANDARD = str.maketrans("-_", "+/")


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _not_a("true or false", value)
    return value


def _read_enum(type_name: str, value: Any) -> str:
    names = schema().enums[type_name]
    if type(value) is str:
        if value in names:
            return value
    elif type(value) is int or type(value) is _Number:
        number = _read_integer("int32", value)
        for name, known in names.items():
            if known == number:
                return name
    else:
        raise _not_a("the name of a value", value)
    few = ", ".join(list(names)[:8]) + (", ..." if len(names) > 8 else "")
    raise _Wrong(f"{_shown(value)} is no {type_name}; known are {few}")


def _read_integer(type_name: str, value: Any) -> int:
    if type(value) is int:
        number = value
    elif type(value) is _Number or type(value) is str:
        number = _whole(value)
    else:
        raise _not_a("a whole number", value)
    low, high = _RANGES[type_name]
    if not low <= number <= high:
        raise _Wrong(f"{_shown(value)} is out of range: {type_name} is {low} to {high}")
    return number


def _whole(text: str) -> int:
    # As nearly all are written; a leading zero is not JSON, and left to the pattern.
    if len(text) < 20 and text.isascii() and text.isdecimal() and text[0] != "0":
        return int(text)
    if not _NUMBER.fullmatch(text):
        raise _Wrong(f"{_shown(text)} is not a whole number")
    if len(text) > _LONGEST_NUMBER:
        raise _Wrong(f"{_shown(text)} has too many digits")
    number = Decimal(text)
    # The exponent first: int(Decimal("1e999999999")) would fill the memory.
    if number and number.adjusted() > 20:
        raise _Wrong(f"{_shown(text)} is out of range")
    if number != number.to_integral_value():
        raise _Wrong(f"{_shown(text)} is not a whole number")
    return int(number)


def _read_double(value: Any) -> float:
    if type(value) is str and value in _SPECIAL:
        return _SPECIAL[value]
    if type(value) is int:
        return float(value)
    if type(value) is not _Number and type(value) is not str:
        raise _not_a("a number", value)
    if not _NUMBER.fullmatch(value):
        raise _Wrong(f"{_shown(value)} is not a number")
    if len(value) > _LONGEST_NUMBER:
        raise _Wrong(f"{_shown(value)} has too many digits")
    number = float(value)
    if math.isinf(number):
        raise _Wrong(f"{_shown(value)} is out of range")
    return number


def _not_a(wanted: str, value: Any) -> _Wrong:
    if type(value) is _Twice:
        return _Wrong(f"the key {_shown(value.key)} comes twice")
    if value is None:
        return _Wrong("null is not a value here")
    kinds = {bool: "true or false", str: "a string", dict: "an object", list: "a list"}
    return _Wrong(f"must be {wanted}, not {kinds.get(type(value), 'a number')}")


def _shown(value: object) -> str:
    text = str(value)
    shown = json.dumps(text[:64] + ("..." if len(text) > 64 else ""))
    return shown if type(value) is str else shown[1:-1]


# --- writing ----------------------------------------------------------------------------------


def encode(type_name: str, values: dict[str, Any]) -> bytes:
    """Write a message given in canonical form. A wrong field or type is our own fault: TypeError."""
    return msgspec.json.encode(to_json(type_name, values))


class Kept(dict[str, Any]):
    """A message that many lists hold and nobody changes: it is encoded for the first of them only."""

    __slots__ = ("_wire",)
    _wire: msgspec.Raw

    def to_wire(self, type_name: str) -> msgspec.Raw:
        """Its bytes; always asked for as the same type."""
        try:
            return self._wire
        except AttributeError:
            self._wire = msgspec.Raw(encode(type_name, self))
            return self._wire


def to_json(type_name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The same, as an object that is ready to be written."""
    writers = _writers(type_name)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        try:
            json_name, wanted, write, zero = writers[name]
        except KeyError:
            raise TypeError(f"{type_name} has no field '{name}'") from None
        if type(value) is not wanted:
            value = _as(wanted, value, f"{type_name}.{name}")
        if value != zero:
            found[json_name] = write(value) if write is not None else value
    return found


_Writer = tuple[str, type[Any], Callable[[Any], Any] | None, object]
_ABSENT = object()
_PYTHON_TYPES: dict[str, type[Any]] = {"string": str, "bytes": bytes, "bool": bool, "double": float}


@cache
def _writers(type_name: str) -> dict[str, _Writer]:
    """By its own name: JSON name, Python type, what converts it (None: nothing), what is left out."""
    return {name: _writer(field) for name, field in schema().messages[type_name].items()}


def _writer(field: Field) -> _Writer:
    write = _converter(field.type)
    if field.repeated:
        return field.json_name, list, None if write is None else _each(write), []
    known = schema()
    if field.type in known.messages:
        return field.json_name, dict, write, _ABSENT
    if field.type in known.enums:
        return field.json_name, str, write, known.default(field)
    if field.type == "map<string,string>":
        return field.json_name, dict, None, {}
    return field.json_name, _PYTHON_TYPES.get(field.type, int), write, known.default(field)


def _each(write: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [write(value) for value in values]


def _converter(type_name: str) -> Callable[[Any], Any] | None:
    known = schema()
    if type_name in known.messages:
        return lambda value: (
            value.to_wire(type_name) if type(value) is Kept else to_json(type_name, value)
        )
    if type_name in known.enums:
        return lambda value: _write_enum(type_name, value)
    converters: dict[str, Callable[[Any], Any]] = {
        "int64": str,
        "uint64": str,
        "bytes": lambda value: base64.b64encode(value).decode(),
        "double": _write_double,
    }
    return converters.get(type_name)


def _write_enum(type_name: str, value: str) -> str:
    if value not in schema().enums[type_name]:
        raise TypeError(f"{type_name} has no value '{value}'")
    return value


def _write_double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _as(wanted: type[Any], value: Any, what: str) -> Any:
    """Forgive what means the same: a Message, a tuple for a list, an int for a float."""
    if wanted is dict and isinstance(value, Kept):
        return dict(value)
    if isinstance(value, Message):
        return value.to_dict()
    if wanted is list and isinstance(value, tuple):
        return list(value)
    if wanted is float and type(value) is int:
        return float(value)
    raise TypeError(f"{what} is a {wanted.__name__}, not {type(value).__name__}")
