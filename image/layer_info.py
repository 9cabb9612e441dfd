"""What a layer's directory says of itself: layer.json and needs-lower.

What belongs here: their forms, reading and writing. What must not: trees, locks, and when a layer
gets its name (layers.py).
"""

from __future__ import annotations

import os

import msgspec

from scow.image.digest import DiffID, chain_ids, hex_of
from scow.image.unpack import LowerNeeds
from scow.native import fs
from scow.native.errors import IntegrityError, NotFound
from scow.native.failpoint import failpoint


class LayerInfo(msgspec.Struct, frozen=True):
    """layer.json: a layer that exists. `size` counts the bytes of its files, holes left out."""

    diff_id: DiffID
    size: int
    tar_bytes: int
    entries: int
    refers_lower: bool = False
    # The stack that a chain-<hex> layer completes, bottom first; empty for a plain layer.
    stack: tuple[DiffID, ...] = ()


def write_info(layer_fd: int, info: LayerInfo) -> None:
    """Whole, but not yet on the disk: it goes there with the tree."""
    failpoint("layer.json")
    fs.write_atomic(layer_fd, "layer.json", msgspec.json.encode(info), durable=False)


def read_info(root_dir: str, name: str) -> LayerInfo:
    """NotFound where there is no such layer, IntegrityError where its file is damaged."""
    data = _read(root_dir, name, "layer.json")
    if data is None:
        raise NotFound(f"no such layer: '{name}'")
    try:
        info = msgspec.json.decode(data, type=LayerInfo)
    except ValueError as error:
        raise _damaged(name, f"bad layer.json: {error}") from error
    chain = hex_of(chain_ids(info.stack)[-1]) if info.stack else ""
    if name not in (hex_of(info.diff_id), f"chain-{chain}"):
        raise _damaged(name, "its layer.json is of another layer")
    return info


def write_needs(layer_fd: int, needs: LowerNeeds) -> None:
    """As `write_info`. Not JSON: names in a layer are bytes, not text."""
    data = msgspec.msgpack.encode(needs)
    fs.write_atomic(layer_fd, "needs-lower", data, durable=False)


def read_needs(root_dir: str, diff_id: DiffID) -> LowerNeeds:
    """What the layer needs of lower ones, mostly nothing."""
    data = _read(root_dir, hex_of(diff_id), "needs-lower")
    if data is None:
        return LowerNeeds()
    try:
        return msgspec.msgpack.decode(data, type=LowerNeeds)
    except ValueError as error:
        raise _damaged(hex_of(diff_id), f"bad needs-lower: {error}") from error


def _read(root_dir: str, name: str, file: str) -> bytes | None:
    try:
        with open(os.path.join(root_dir, name, file), "rb") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _damaged(name: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"layer '{name}' is damaged: {why}", hint="`scow system check --repair` mends it"
    )
