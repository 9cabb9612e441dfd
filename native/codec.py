"""The codec, imported so that it costs what it must: msgspec is C, what it imports need not be."""

from __future__ import annotations

import sys


def import_codec() -> None:
    """Import msgspec without typing_extensions, which it prefers where it is installed.

    From Python 3.11 on `typing` has all that it looks for, and it falls back on that. Typer's
    typing_extensions would bring inspect, ast and tokenize: 6 ms of every start (bare Python: 8).
    """
    if "msgspec" in sys.modules or "typing_extensions" in sys.modules:
        return
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]  # import system: "not there"
    try:
        __import__("msgspec")
    finally:
        del sys.modules["typing_extensions"]
