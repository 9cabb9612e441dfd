"""What every operation of a plan is.

What belongs here: the base class and how flags are put in words. The operations themselves are in
`mount_operations` and `process_operations`; users of plans import them all from `plan`.

Structs and not dataclasses (house style, section 7): 34 dataclasses cost 9 ms at every start of the
command, 34 structs 0.2.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from scow.native.block import BlockWriter, Text


def flag_names(value: int, names: dict[int, str]) -> str:
    """`A|B|0x40` for a set of flags."""
    parts = [name for bit, name in names.items() if value & bit]
    rest = value
    for bit in names:
        rest &= ~bit
    if rest or not parts:
        parts.append(hex(rest))
    return "|".join(parts)


def show(text: Text) -> str:
    return text if isinstance(text, str) else text.decode(errors="backslashreplace")


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan; `why` says in plain words what it is good for."""

    code: ClassVar[int] = 0
    step: ClassVar[str] = ""  # the name in error messages and in `SetupError.step`
    why: str = ""

    def describe(self) -> str:
        """The system calls, with their flags."""
        raise NotImplementedError

    def subject(self) -> str | None:
        """The path or name it is about, for error messages."""
        return None

    def vectors_size(self) -> int:
        """The bytes that it takes in the region of arrays."""
        return 0

    def encode(self, writer: BlockWriter) -> bytes:
        """The record of 64 bytes."""
        return writer.record(self.code)
