"""The instructions of a seccomp filter: tests of a call's number and arguments, and where they lead.

What belongs here: classic BPF (linux/filter.h). What must not: what a profile means (`seccomp`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scow.runtime.seccomp import Argument, Branch

LOAD, _AND, _RET, _JA = 0x20, 0x54, 0x06, 0x05
JEQ, _JGT, JGE = 0x15, 0x25, 0x35
# struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}, little endian
_OFFSET_ARGS = 16

Insn = tuple[int, int, int, int]


def returning(action: int) -> list[Insn]:
    """End with an action."""
    return [(_RET, 0, 0, action)]


def choose(op: int, value: int, yes: list[Insn], no: list[Insn]) -> list[Insn]:
    """Compare the loaded word; both sides end in a return. Jumps reach 255, so far ones go by JA."""
    if len(no) <= 255:
        return [(op, len(no), 0, value), *no, *yes]
    return [(op, 0, 1, value), (_JA, 0, 0, len(no)), *no, *yes]


class _Test(NamedTuple):
    """A comparison whose two ways out are `next`, `fail` (next branch) or `hold` (it is true)."""

    op: int
    value: int
    yes: str
    no: str


# Arguments are 64 bits wide and BPF's words 32: the high half decides unless it is equal.
COMPARISONS = {
    "SCMP_CMP_EQ": (("=", "next", "fail"), ("=", "hold", "fail")),
    "SCMP_CMP_MASKED_EQ": (("=", "next", "fail"), ("=", "hold", "fail")),
    "SCMP_CMP_NE": (("=", "next", "hold"), ("=", "fail", "hold")),
    "SCMP_CMP_GT": ((">", "hold", "next"), ("=", "next", "fail"), (">", "hold", "fail")),
    "SCMP_CMP_GE": ((">", "hold", "next"), ("=", "next", "fail"), (">=", "hold", "fail")),
    "SCMP_CMP_LT": ((">", "fail", "next"), ("=", "next", "hold"), (">=", "fail", "hold")),
    "SCMP_CMP_LE": ((">", "fail", "next"), ("=", "next", "hold"), (">", "fail", "hold")),
}
_OPCODES = {"=": JEQ, ">": _JGT, ">=": JGE}


def _condition(argument: Argument) -> list[Insn | _Test]:
    """Load, mask and compare one argument, high word first."""
    masked = argument.op == "SCMP_CMP_MASKED_EQ"
    value = argument.value_two if masked else argument.value
    offset = _OFFSET_ARGS + 8 * argument.index
    steps = COMPARISONS[argument.op]
    code: list[Insn | _Test] = []
    for half, shift in ((4, 32), (0, 0)):
        code.append((LOAD, 0, 0, offset + half))
        if masked:
            code.append((_AND, 0, 0, argument.value >> shift & 0xFFFFFFFF))
        for word, yes, no in steps[:-1] if half else steps[-1:]:
            code.append(_Test(_OPCODES[word], value >> shift & 0xFFFFFFFF, yes, no))
    return code


def branch_code(branch: Branch) -> list[Insn]:
    """All conditions in a row, then the action; any that fails goes behind it."""
    parts = [_condition(argument) for argument in branch.arguments]
    end = sum(len(part) for part in parts) + 1
    code: list[Insn] = []
    for part in parts:
        hold = len(code) + len(part)
        for item in part:
            if not isinstance(item, _Test):
                code.append(item)
                continue
            after = len(code) + 1
            targets = {"next": 0, "hold": hold - after, "fail": end - after}
            code.append((item.op, targets[item.yes], targets[item.no], item.value))
    return code + returning(branch.action)
