"""Naming what was loaded, in docker's words.

What belongs here: the lines that docker-py parses. An archive may name anybody's image, so a name
that moves is told (CVE-2026-50195).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scow.image.content import IndexEntry
from scow.image.reference import Reference

if TYPE_CHECKING:
    from scow.image.store import ImageStore


CONTAINERD_NAME = "io.containerd.image.name"


def add_loaded(store: ImageStore, entry: IndexEntry, name: Reference | None) -> list[str]:
    if name is None:
        store.add(entry)
        return [f"Loaded image ID: {entry.image_id}"]
    loser = store.add(entry.annotated(name=str(name)))
    lines = [f"Loaded image: {name.familiar}"]
    if loser is not None:
        lines.insert(
            0,
            f"The image {name.familiar} already exists, "
            f"renaming the old one with ID {loser} to empty string",
        )
    return lines
