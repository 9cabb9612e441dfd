"""Writing a plan's flat block: records of 64 bytes, strings and arrays by offset (native/plan.h).

What belongs here: offsets, alignment, packing. What must not: what an operation means.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from scow.native.errors import InvalidArgument

NONE: Final = 0xFFFFFFFF
RECORD: Final = struct.Struct("<8I4Q")
_U64: Final = 0xFFFFFFFFFFFFFFFF

Text = str | bytes


def encode_text(text: Text) -> bytes:
    """The bytes of a string for C; surrogates become the bytes they stand for."""
    raw = os.fsencode(text)
    if b"\0" in raw:
        raise InvalidArgument(f"a null byte in {text!r}")
    return raw


def _align(data: bytearray) -> None:
    data.extend(b"\0" * (-len(data) % 8))


class Region:
    """One growing part of the block that begins at a known offset."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.data = bytearray()
        self._texts: dict[bytes, int] = {}

    @property
    def end(self) -> int:
        """The offset after the last byte, aligned to 8."""
        return self.base + len(self.data) + -len(self.data) % 8

    def text(self, text: Text) -> int:
        """Put a NUL-terminated string, once; its offset."""
        raw = encode_text(text)
        offset = self._texts.get(raw)
        if offset is None:
            offset = self._texts[raw] = self.base + len(self.data)
            self.data += raw
            self.data.append(0)
        return offset

    def blob(self, raw: bytes) -> int:
        """Put bytes at an aligned place; the offset."""
        _align(self.data)
        offset = self.base + len(self.data)
        self.data += raw
        return offset

    def padded(self) -> bytes:
        """The bytes, with the padding that `end` counts."""
        _align(self.data)
        return bytes(self.data)


class BlockWriter:
    """What operations write themselves with."""

    def __init__(self, vectors_base: int, data_base: int) -> None:
        self.vectors = Region(vectors_base)
        self.data = Region(data_base)
        self._fds: dict[int, int] = {}

    @property
    def fds(self) -> tuple[int, ...]:
        """The distinct descriptors in the order of their indexes."""
        return tuple(self._fds)

    def fd(self, raw: int) -> int:
        """The index under which the monitor will find this descriptor."""
        if raw < 0:
            raise InvalidArgument(f"not a descriptor: {raw}")
        return self._fds.setdefault(raw, len(self._fds))

    def vector(self, texts: Iterable[Text], region: Region | None = None) -> int:
        """An array of offsets of strings, closed by a zero."""
        region = region or self.data
        offsets = [region.text(text) for text in texts]
        return self.vectors.blob(struct.pack(f"<{len(offsets)}QQ", *offsets, 0))

    def record(
        self,
        code: int,
        *,
        fd: int | None = None,
        texts: Sequence[Text] = (),
        blob: bytes | int | None = None,
        blob_len: int = 0,
        count: int = 0,
        numbers: Sequence[int] = (),
    ) -> bytes:
        """One operation; `blob` is bytes to put down, or an offset with its length."""
        offsets = [self.data.text(text) for text in texts]
        offsets += [NONE] * (3 - len(offsets))
        if isinstance(blob, bytes):
            blob_len = len(blob)
            blob = self.data.blob(blob)
        values = [number & _U64 for number in numbers]
        values += [0] * (4 - len(values))
        index = NONE if fd is None else self.fd(fd)
        return RECORD.pack(
            code, index, *offsets, count, NONE if blob is None else blob, blob_len, *values
        )
