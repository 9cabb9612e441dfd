"""Make `schema.json`: the names, numbers and types of CRI v1, one line of text for each field.

Run by hand when CRI grows: build_schema.py FACTS, where FACTS is a JSON document that lists what
kubernetes/cri-api's api.proto says: `services`, `enums`, and for each message its fields as objects
of name, number, type, repeated, deprecated. The result goes beside this file and is checked in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def compact(facts: dict[str, Any]) -> str:
    """The schema as text: stable, and readable in a diff."""
    sections = {
        "services": {
            service: {name: _method(method) for name, method in methods.items()}
            for service, methods in facts["services"].items()
        },
        "enums": facts["enums"],
        "messages": {
            name: [_field(field) for field in fields] for name, fields in facts["messages"].items()
        },
    }
    lines = [
        f"{json.dumps(title)}: {{\n{_entries(entries)}\n}}" for title, entries in sections.items()
    ]
    head = [f'"{key}": {json.dumps(facts[key])}' for key in ("package", "source")]
    return "{\n" + ",\n".join(head + lines) + "\n}\n"


def _entries(entries: dict[str, Any]) -> str:
    return ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())


def _method(method: dict[str, Any]) -> str:
    stream = " stream" if method.get("server_streaming") else ""
    return f"{method['input']}{stream} {method['output']}"


def _field(field: dict[str, Any]) -> str:
    parts = field["name"].split("_")
    json_name = parts[0] + "".join(part[:1].upper() + part[1:] for part in parts[1:])
    if json_name != field["json"]:
        raise SystemExit(f"{field['name']}: its JSON name is {field['json']}, not {json_name}")
    marks = [mark for mark in ("repeated", "deprecated") if field.get(mark)]
    return " ".join([str(field["number"]), field["name"], field["type"], *marks])


if __name__ == "__main__":
    facts = json.loads(Path(sys.argv[1]).read_text())
    Path(__file__).with_name("schema.json").write_text(compact(facts))
