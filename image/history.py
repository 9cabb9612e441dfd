"""How an image came about: its config's history beside the sizes of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scow.image.artifacts import no_image
from scow.image.digest import DiffID
from scow.image.document import MAX_DOCUMENT_BYTES, check_document
from scow.native.errors import NotFound

if TYPE_CHECKING:
    from scow.image.store import Image, ImageStore


class Step(msgspec.Struct, frozen=True):
    """One step, whatever its author wrote into it; `diff_id` is of the layer it made, if any."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    diff_id: DiffID | None = None
    size: int = 0


class Details(msgspec.Struct, frozen=True):
    """What only the whole config tells of an image."""

    author: str
    steps: tuple[Step, ...]  # the first one first
    onbuild: tuple[str, ...]


class _Config(msgspec.Struct, rename="pascal"):
    on_build: object = None


class _Document(msgspec.Struct):
    author: object = None
    history: object = None
    config: _Config | None = None


def read_details(store: ImageStore, image: Image) -> Details:
    """Read an image's config again; nonsense in what is only for show reads as nothing.

    Raises Unsupported for an artifact.
    """
    if image.artifact_type:
        raise no_image(image)
    data = store.content.read_blob(image.id, MAX_DOCUMENT_BYTES)
    check_document(data, f"config of image {image.id}")
    document = msgspec.json.decode(data, type=_Document)
    onbuild = document.config.on_build if document.config else None
    return Details(
        _text(document.author),
        tuple(_steps(store, image, document.history)),
        tuple(_text(line) for line in onbuild) if isinstance(onbuild, list) else (),
    )


def _steps(store: ImageStore, image: Image, history: object) -> list[Step]:
    layers = list(image.diff_ids)
    steps: list[Step] = []
    for entry in history if isinstance(history, list) else []:
        if not isinstance(entry, dict):
            continue
        has_layer = entry.get("empty_layer") is not True and layers
        diff_id = layers.pop(0) if has_layer else None
        texts = {
            key: _text(entry.get(key)) for key in ("created", "created_by", "author", "comment")
        }
        steps.append(Step(**texts, diff_id=diff_id, size=_size(store, diff_id)))
    # Layers that no step tells of: many builders write less history than layers, or none.
    steps += [Step(diff_id=diff_id, size=_size(store, diff_id)) for diff_id in layers]
    return steps


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _size(store: ImageStore, diff_id: DiffID | None) -> int:
    if diff_id is None:
        return 0
    try:
        return store.layers.info(diff_id).size
    except NotFound:
        return 0
