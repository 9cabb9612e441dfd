"""A request as the service sees it, and what the service and the door promise each other.

The service has one class for RuntimeService and one for ImageService; a method for each RPC is
named in snake_case, takes a `Message` and gives a plain dict of the same canonical form:

- fields by their proto name (`pod_sandbox_id`), every number an int, `bytes` as bytes, enums as their
  name, messages as dicts, maps as dicts, repeated fields as lists;
- a field that is absent, None or at its zero is left out of the JSON; a message ({} too) is kept.

A method that streams gives an iterator of such dicts. When the client goes away the door calls the
iterator's `close()`: for a generator only between two items; any other object must allow the call
from another thread, and then end a waiting `__next__` by StopIteration.

Errors are raised as scow.native.errors; what else is raised is a fault of ours ("internal").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scow.cri.api.schema import schema


class Message:
    """A read-only view of a message: its fields are attributes.

    An absent scalar reads as zero, an absent enum as its first name, an absent message as None, an
    absent list or map as an empty one. A name that the message does not have is an AttributeError,
    so a misspelt field shows at its first use. Any, since the types are the schema's, not Python's.
    """

    __slots__ = ("_type", "_values")

    def __init__(self, type_name: str, values: Mapping[str, Any] | None = None) -> None:
        """`values` may hold dicts or Messages where the schema has messages; nothing is checked."""
        self._type = type_name
        self._values: dict[str, Any] = {}
        if values:
            fields = schema().messages[type_name]
            for name, value in values.items():
                if value is not None:
                    self._values[name] = _wrap(fields[name].type, value)

    @classmethod
    def of(cls, type_name: str, values: dict[str, Any]) -> Message:
        """Take values as they are, without a look: what messages are in them are Messages, none is None."""
        message = cls(type_name)
        message._values = values
        return message

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            pass
        known = schema()
        field = known.messages[self._type].get(name)
        if field is None:
            raise AttributeError(f"{self._type} has no field '{name}'")
        return known.default(field)

    def has(self, name: str) -> bool:
        """Whether the field was given; a scalar at its zero may have been left out or not."""
        if name not in schema().messages[self._type]:
            raise AttributeError(f"{self._type} has no field '{name}'")
        return name in self._values

    @property
    def type_name(self) -> str:
        """The message's name in the schema."""
        return self._type

    def to_dict(self) -> dict[str, Any]:
        """A copy in canonical form, of what was given; `Message(type_name, copy)` reads it again."""
        return {name: _unwrap(value) for name, value in self._values.items()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return self._type == other._type and self._values == other._values

    __hash__ = None  # type: ignore[assignment]  # it compares by content, like a dict

    def __repr__(self) -> str:
        # Names only: a value may be a password (AuthConfig).
        return f"{self._type}({', '.join(self._values)})"


def _wrap(type_name: str, value: Any) -> Any:
    if type_name not in schema().messages:
        return value
    if isinstance(value, list):
        return [_wrap(type_name, item) for item in value]
    return value if isinstance(value, Message) else Message(type_name, value)


def _unwrap(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_dict()
    if isinstance(value, list):
        return [_unwrap(item) for item in value]
    return dict(value) if isinstance(value, dict) else value
