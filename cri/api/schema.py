"""CRI v1 as data: services, messages, fields, enums (schema.json, which build_schema.py makes).

What must not go in: the JSON mapping (codec.py), anything about HTTP.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cache

SCALARS = frozenset(
    (
        "string",
        "bytes",
        "bool",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "double",
        "map<string,string>",
    )
)
_ZEROS: dict[str, object] = {
    "string": "",
    "bytes": b"",
    "bool": False,
    "int32": 0,
    "int64": 0,
    "uint32": 0,
    "uint64": 0,
    "double": 0.0,
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `type` is a scalar's name, `map<string,string>`, or that of a message or enum."""

    number: int
    name: str
    json_name: str
    type: str
    repeated: bool
    deprecated: bool


@dataclass(frozen=True, slots=True)
class Method:
    """One method: `name` as on the wire, `python_name` as on the class that serves it."""

    service: str
    name: str
    python_name: str
    request: str
    response: str
    streams: bool

    @property
    def path(self) -> str:
        """The path of its URL."""
        return f"/runtime.v1.{self.service}/{self.name}"


@dataclass(frozen=True, slots=True)
class Schema:
    """All of it, by name."""

    source: str
    methods: dict[str, Method]
    """By path."""
    enums: dict[str, dict[str, int]]
    messages: dict[str, dict[str, Field]]
    """Fields by their own name, in the order of the proto file."""

    def default(self, field: Field) -> object:
        """What an absent field reads as (proto3): zero, the first name of an enum, None."""
        if field.repeated:
            return []
        if field.type == "map<string,string>":
            return {}
        if field.type in self.enums:
            return next(iter(self.enums[field.type]))
        return _ZEROS.get(field.type)


@cache
def schema() -> Schema:
    """The schema; read once."""
    with open(os.path.join(os.path.dirname(__file__), "schema.json"), encoding="utf-8") as file:
        facts = json.load(file)
    methods = [
        _method(service, name, line)
        for service, lines in facts["services"].items()
        for name, line in lines.items()
    ]
    return Schema(
        source=facts["source"],
        methods={method.path: method for method in methods},
        enums=facts["enums"],
        messages={
            name: {field.name: field for field in map(_field, lines)}
            for name, lines in facts["messages"].items()
        },
    )


def snake_case(name: str) -> str:
    """`RunPodSandbox` as `run_pod_sandbox`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _method(service: str, name: str, line: str) -> Method:
    request, *stream, response = line.split()
    return Method(service, name, snake_case(name), request, response, bool(stream))


def _field(line: str) -> Field:
    number, name, type_name, *marks = line.split()
    parts = name.split("_")
    json_name = parts[0] + "".join(part[:1].upper() + part[1:] for part in parts[1:])
    return Field(
        int(number), name, json_name, type_name, "repeated" in marks, "deprecated" in marks
    )
