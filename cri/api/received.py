"""Answers as the client reads them: structs that are made of the schema, filled by msgspec alone.

A service's answer is canonical already (codec.py writes it so), and a list may hold thousands of
messages: what codec.decode looks for in a stranger's request, a piece of C looks for here.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

import msgspec

from scow.cri.api.schema import Field, schema
from scow.native.errors import ScowError


class Received(msgspec.Struct):
    """A message; its fields are attributes, absent ones read as in message.py."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def type_name(self) -> str:
        """The message's name in the schema."""
        return type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """A copy in canonical form, without what is at its default."""
        known = schema()
        return {
            name: _plain(value)
            for name, field in known.messages[self.type_name].items()
            if (value := getattr(self, name)) != known.default(field)
        }

    def __repr__(self) -> str:
        # Names only: a value may be a password (verbose statuses hold environments).
        return f"{self.type_name}({', '.join(self.to_dict())})"


def read(type_name: str, body: bytes) -> Received:
    """Read an answer; ScowError where it is none."""
    try:
        return _decoder(type_name).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ScowError(f"the service's answer is no {type_name}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Received):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, list) else value


@cache
def _decoder(type_name: str) -> msgspec.json.Decoder[Received]:
    # Not strict: proto3-JSON has 64-bit integers as strings.
    return msgspec.json.Decoder(_struct(type_name), strict=False)


@cache
def _struct(type_name: str) -> type[Received]:
    fields = schema().messages[type_name]
    struct = msgspec.defstruct(
        type_name,
        [(field.name, _type(field), _default(field)) for field in fields.values()],
        bases=(Received,),
        rename={field.name: field.json_name for field in fields.values()},
    )
    return cast("type[Received]", struct)  # by its bases


_TYPES: dict[str, Any] = {
    "bytes": bytes,
    "bool": bool,
    "double": float,
    "int32": int,
    "int64": int,
    "uint32": int,
    "uint64": int,
    "map<string,string>": dict[str, str],
}


def _type(field: Field) -> Any:
    is_message = field.type in schema().messages
    one: Any = _struct(field.type) if is_message else _TYPES.get(field.type, str)
    if field.repeated:
        return list[one]
    return one | None if is_message else one


def _default(field: Field) -> Any:
    default = schema().default(field)
    # A list or map of its own for each.
    return msgspec.field(default_factory=type(default)) if default in ([], {}) else default
