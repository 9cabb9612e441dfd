"""scheduler, ioPriority, personality and memoryPolicy of a configuration, as operations."""

from __future__ import annotations

import struct

from scow.cgroups.cpulist import parse_cpu_list
from scow.native import plan as p
from scow.native.errors import InvalidArgument
from scow.runtime.spec import IoPriority, Linux, MemoryPolicy, Personality, Process, Scheduler

# uapi/linux/sched.h
_POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4,
    "SCHED_IDLE": 5, "SCHED_DEADLINE": 6,
}  # fmt: skip
_SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20, "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
MAX_CPUS = 8192
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_PERSONAS = {"LINUX": 0, "LINUX32": 8}
_MEMORY_MODES = {
    "MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6,
}  # fmt: skip
_MEMORY_FLAGS = {
    "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_STATIC_NODES": 1 << 15,
}


def scheduling_operations(process: Process, linux: Linux) -> list[p.Operation]:
    """What of it the configuration has."""
    found: list[p.Operation] = []
    if linux.personality is not None:
        found.append(_personality(linux.personality))
    if linux.memory_policy is not None:
        found.append(_memory(linux.memory_policy))
    if process.scheduler is not None:
        found.append(_scheduler(process.scheduler))
    if process.io_priority is not None:
        found.append(_io(process.io_priority))
    return found


def cpu_mask(text: str, what: str) -> bytes:
    """A list like `0-3,7` as a mask in whole words; empty for an empty list."""
    if not text.strip():
        return b""
    mask = 0
    for low, high in parse_cpu_list(text, what=what):
        if high >= MAX_CPUS:
            raise InvalidArgument(f"list of {what} '{text[:64]}' goes beyond {MAX_CPUS - 1}")
        mask |= (1 << high + 1) - (1 << low)
    size = (mask.bit_length() + 63) // 64 * 8
    return mask.to_bytes(size, "little")


def _look_up(table: dict[str, int], name: str, what: str) -> int:
    if name not in table:
        raise InvalidArgument(f"invalid {what}: '{name}'")
    return table[name]


def _scheduler(asked: Scheduler) -> p.Operation:
    policy = _look_up(_POLICIES, asked.policy, "scheduler policy")
    flags = 0
    for name in asked.flags:
        flags |= _look_up(_SCHED_FLAGS, name, "scheduler flag")
    numbers = (asked.nice, asked.priority, asked.runtime, asked.deadline, asked.period)
    try:
        # with room for the clamps of utilization (5.3), without which their flags are refused
        packed = struct.pack("<IIQiIQQQII", 56, policy, flags, *numbers, 0, 0)
    except struct.error:
        raise InvalidArgument("process.scheduler has a number that is out of range") from None
    return p.SetScheduler(packed, why="process.scheduler")


def _io(asked: IoPriority) -> p.Operation:
    kind = _look_up(_IO_CLASSES, asked.cls, "io priority class")
    if not 0 <= asked.priority <= 7:
        raise InvalidArgument(f"invalid io priority: {asked.priority}")
    return p.SetIoPriority(kind << 13 | asked.priority, why="process.ioPriority")


def _personality(asked: Personality) -> p.Operation:
    if asked.flags:
        raise InvalidArgument("personality flags are not supported by the specification")
    return p.SetPersonality(_look_up(_PERSONAS, asked.domain, "personality domain"))


def _memory(asked: MemoryPolicy) -> p.Operation:
    mode = _look_up(_MEMORY_MODES, asked.mode, "memory policy mode")
    flags = 0
    for name in asked.flags:
        flags |= _look_up(_MEMORY_FLAGS, name, "memory policy flag")
    return p.SetMemoryPolicy(mode | flags, cpu_mask(asked.nodes, "memory nodes"))
