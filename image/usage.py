"""How large each image is alone and together with others.

What belongs here: adding up what the layers say of themselves, quick enough for a list. What must not:
measuring what they take on the disk (df.py).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from scow.image.digest import DiffID, Digest
from scow.native.errors import IntegrityError, NotFound

if TYPE_CHECKING:
    from scow.image.store import ImageStore


class Usage(NamedTuple):
    """Bytes of an image's unpacked layers, or an artifact's; `shared` ones belong to other images, too."""

    shared: int
    unique: int


def usage(store: ImageStore) -> dict[Digest, Usage]:
    """The usage of every image that is here, by its id."""
    summaries = store.list()
    layers = {summary.id: _layers_of(store, summary.id) for summary in summaries}
    artifacts = {summary.id: summary.size for summary in summaries if summary.artifact_type}
    users = Counter(diff_id for diff_ids in layers.values() for diff_id in diff_ids)
    sizes = {diff_id: _size(store, diff_id) for diff_id in users}
    return {
        image_id: Usage(
            shared=sum(sizes[d] for d in diff_ids if users[d] > 1),
            unique=sum(sizes[d] for d in diff_ids if users[d] == 1) + artifacts.get(image_id, 0),
        )
        for image_id, diff_ids in layers.items()
    }


def _layers_of(store: ImageStore, image_id: Digest) -> frozenset[DiffID]:
    try:
        return frozenset(store.get(image_id).diff_ids)
    except IntegrityError:
        return frozenset()  # damaged: `scow system check` tells


def _size(store: ImageStore, diff_id: DiffID) -> int:
    try:
        return store.layers.info(diff_id).size
    except NotFound:
        return 0  # lost or damaged, too
