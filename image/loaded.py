"""Naming what was loaded, in docker's words.

What belongs here: the lines that docker-py parses. An archive may name anybody's image, so a name
that moves is told (CVE-2026-50195). All names are given in one step: either the whole archive was
right, or nothing is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from scow.image.content import IndexEntry
from scow.image.reference import Reference
from scow.image.store import place_entry

if TYPE_CHECKING:
    from scow.image.store import ImageStore


CONTAINERD_NAME = "io.containerd.image.name"


class Loaded(NamedTuple):
    """An image whose content is here, and the names that its archive gives it."""

    entry: IndexEntry
    names: Sequence[Reference]


def name_loaded(store: ImageStore, images: Sequence[Loaded]) -> list[str]:
    """Put the images into the index, under a lease that the caller holds; docker's lines about it."""
    lines: list[str] = []
    with store.content.locked():
        entries = store.content.read_index()
        for image in images:
            if not image.names:
                entries = place_entry(entries, image.entry)
                lines.append(f"Loaded image ID: {image.entry.image_id}")
            for name in image.names:
                if loser := _loser(entries, image.entry, name):
                    lines.append(
                        f"The image {name.familiar} already exists, "
                        f"renaming the old one with ID {loser} to empty string"
                    )
                entries = place_entry(entries, image.entry.annotated(name=str(name)))
                lines.append(f"Loaded image: {name.familiar}")
        store.content.write_index(entries)
    return lines


def _loser(entries: Sequence[IndexEntry], new: IndexEntry, name: Reference) -> str | None:
    named = (e.image_id for e in entries if e.name == str(name))
    return next((image_id for image_id in named if image_id != new.image_id), None)
