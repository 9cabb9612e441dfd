"""/openapi.json: the API as OpenAPI 3.1, made from the schema."""

from __future__ import annotations

from typing import Any

from scow.cri.api.schema import Field, Method, Schema, schema
from scow.native.errors import ScowError

_INTEGER = r"^-?[0-9]+$"
_SCALARS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "bool": {"type": "boolean"},
    "int32": {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1},
    "uint32": {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
    "int64": {"type": "string", "pattern": _INTEGER, "format": "int64"},
    "uint64": {"type": "string", "pattern": r"^[0-9]+$", "format": "uint64"},
    "double": {"type": ["number", "string"]},
    "map<string,string>": {"type": "object", "additionalProperties": {"type": "string"}},
}


def document(version: str) -> dict[str, Any]:
    """The whole document."""
    known = schema()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "scow",
            "version": version,
            "summary": "CRI v1 as the Connect protocol with JSON",
            "description": "Send lowerCamelCase or proto names; 64-bit integers are strings. "
            f"Messages: {known.source}.",
        },
        "paths": {
            **{method.path: {"post": _operation(method)} for method in known.methods.values()},
            "/healthz": {"get": _page("Whether the service answers", "text/plain")},
            "/metrics": {"get": _page("Prometheus metrics", "text/plain")},
        },
        "components": {"schemas": _schemas(known)},
    }


def _page(summary: str, kind: str) -> dict[str, Any]:
    text = {"content": {kind: {"schema": {"type": "string"}}}, "description": summary}
    return {"summary": summary, "operationId": summary.split()[-1], "responses": {"200": text}}


def _operation(method: Method) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": method.name,
        "tags": [method.service],
    }
    if method.streams:
        # An envelope is bytes, of which OpenAPI knows no form; the messages are named.
        note = f"Server stream. Send one envelope of {method.request}, read those of {method.response}."
        binary = {"application/connect+json": {"schema": {"type": "string"}}}
        operation["description"] = note
        operation["requestBody"] = {"content": binary, "required": True}
        operation["responses"] = {"200": {"description": "envelopes", "content": binary}}
        return operation
    operation["requestBody"] = {"content": _json(method.request), "required": True}
    operation["responses"] = {
        "200": {"description": method.response, "content": _json(method.response)},
        **{
            str(status): {"description": "an error", "content": _json("connect.error")}
            for status in sorted(_statuses())
        },
    }
    return operation


def _statuses() -> set[int]:
    found = {401, 404, 405, 408, 413, 415, 503}
    classes = [ScowError]
    while classes:
        one = classes.pop()
        found.add(one.http_status)
        classes += one.__subclasses__()
    return found


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _schemas(known: Schema) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: {"type": "string", "enum": list(values)} for name, values in known.enums.items()
    }
    for name, fields in known.messages.items():
        found[name] = {
            "type": "object",
            "properties": {field.json_name: _field(field) for field in fields.values()},
        }
    found["connect.error"] = {
        "type": "object",
        "required": ["code", "message"],
        "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
    }
    return found


def _field(field: Field) -> dict[str, Any]:
    found: dict[str, Any] = {"$ref": f"#/components/schemas/{field.type}"}
    if field.type in _SCALARS:
        found = dict(_SCALARS[field.type])
    if field.repeated:
        found = {"type": "array", "items": found}
    if field.deprecated:
        found["deprecated"] = True
    return found
