"""update, events, features and spec; checkpoint and restore have a file of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import msgspec

from scow.cgroups.cgroup import Cgroup, open_cgroup
from scow.cgroups.resources import BlockIO, Cpu, Memory, Pids, Resources, decode_resources
from scow.native.errors import AlreadyExists, InvalidArgument, InvalidState, Unsupported
from scow.runtime import oci_state
from scow.runtime.oci_args import Flags, number, one_operand, switch, text
from scow.runtime.oci_state import ContainerDir, StateRecord

Tell = Callable[[str, str], None]
_FIXED_LINES = 1 << 20


def _running(root: str, operands: list[str]) -> tuple[StateRecord, Cgroup]:
    directory = ContainerDir(root, one_operand(operands))
    record = directory.load()
    if not oci_state.is_running(record):
        raise InvalidState("container not running")
    return record, open_cgroup(record.cgroup, foreign=True)


# --- update ---------------------------------------------------------------------------------------

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(value: str, flag: str) -> int | None:
    """Bytes, with a unit or without; -1 is unlimited. None for an empty text."""
    if not value:
        return None
    if value == "-1":
        return -1
    digits = value.lower().removesuffix("b").rstrip("kmgt")
    unit = value.lower().removesuffix("b")[len(digits) :]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19) or unit not in _UNITS:
        raise InvalidArgument(f"invalid value for {flag}: {value!r}")
    return int(digits) * _UNITS[unit]


def _from_flags(flags: Flags) -> Resources:
    memory = Memory(
        limit=parse_size(text(flags, "memory"), "memory"),
        reservation=parse_size(text(flags, "memory-reservation"), "memory-reservation"),
        swap=parse_size(text(flags, "memory-swap"), "memory-swap"),
    )
    cpu = Cpu(
        shares=number(flags, "cpu-share"),
        quota=number(flags, "cpu-quota"),
        period=number(flags, "cpu-period"),
        burst=number(flags, "cpu-burst"),
        realtime_period=number(flags, "cpu-rt-period"),
        realtime_runtime=number(flags, "cpu-rt-runtime"),
        cpus=text(flags, "cpuset-cpus") or None,
        mems=text(flags, "cpuset-mems") or None,
        idle=number(flags, "cpu-idle"),
    )
    weight = number(flags, "blkio-weight")
    limit = number(flags, "pids-limit")
    return Resources(
        memory=memory if memory != Memory() else None,
        cpu=cpu if cpu != Cpu() else None,
        pids=Pids(limit) if limit is not None else None,
        block_io=BlockIO(weight=weight) if weight else None,
    )


def _update(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    record, cgroup = _running(root, operands)
    path = text(flags, "resources")
    if path:
        if path == "-":
            data = sys.stdin.buffer.read(_FIXED_LINES)
        else:
            with open(path, "rb") as file:
                data = file.read(_FIXED_LINES)
        resources = decode_resources(data)
    else:
        resources = _from_flags(flags)
        _update_schemata(root, flags, operands)
    if record.unit:
        from scow.runtime.oci_cgroup import update

        update(record.cgroup, cgroup, resources)
    else:
        cgroup.update(resources)
    return 0


def _update_schemata(root: str, flags: Flags, operands: list[str]) -> None:
    schemas = text(flags, "l3-cache-schema"), text(flags, "mem-bw-schema")
    if not any(schemas):
        return
    from scow.runtime.oci_rdt import mount_point, update
    from scow.runtime.spec import decode_spec

    directory = ContainerDir(root, one_operand(operands))
    intel = decode_spec(directory.config(), "config.json").linux.intel_rdt
    if intel is None:
        raise InvalidArgument("the container has no intelRdt in its configuration")
    update(intel, directory.name, mount_point(), *schemas)


# --- events ---------------------------------------------------------------------------------------


def stats_document(cgroup: Cgroup) -> dict[str, object]:
    """`data` of a stats event, in runc's shape."""
    stats = cgroup.stats()
    unlimited = 2**64 - 1
    limit = stats.memory_limit_bytes
    usage = {
        "limit": unlimited if limit is None else limit,
        "usage": stats.memory_bytes,
        "max": stats.memory_peak_bytes or 0,
        "failcnt": 0,
    }
    device = {"major": 0, "minor": 0}
    return {
        "cpu": {
            "usage": {
                "total": stats.cpu_ns,
                "percpu": [],
                "kernel": stats.cpu_system_ns,
                "user": stats.cpu_user_ns,
            },
            "throttling": {
                "periods": stats.cpu_periods,
                "throttledPeriods": stats.cpu_throttled_periods,
                "throttledTime": stats.cpu_throttled_ns,
            },
        },
        "cpuset": {},
        "memory": {
            "cache": stats.memory_cache_bytes,
            "usage": usage,
            "swap": {"limit": 0, "usage": stats.swap_bytes or 0, "max": 0, "failcnt": 0},
            "kernel": {"limit": 0, "failcnt": 0},
            "kernelTCP": {"limit": 0, "failcnt": 0},
            "raw": {"total_inactive_file": stats.memory_cache_bytes},
        },
        "pids": {"current": stats.pids, "limit": stats.pids_limit or 0},
        "blkio": {
            "ioServiceBytesRecursive": [
                {**device, "op": "Read", "value": stats.read_bytes},
                {**device, "op": "Write", "value": stats.write_bytes},
            ]
        },
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _events(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    from scow.runtime.oci_events import follow_events, parse_interval

    record, cgroup = _running(root, operands)
    interval_s = parse_interval(text(flags, "interval", "5s"))
    if switch(flags, "stats"):
        event = {"type": "stats", "id": record.id, "data": stats_document(cgroup)}
        os.write(1, msgspec.json.encode(event) + b"\n")
        return 0
    follow_events(record, cgroup, interval_s)
    return 0


# --- features and spec ----------------------------------------------------------------------------


def _features(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    from scow.runtime.oci_features import features

    data = msgspec.json.format(msgspec.json.encode(features()), indent=2)
    os.write(1, data + b"\n")
    return 0


def _spec(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    from scow.runtime.oci_example import example_spec

    if switch(flags, "rootless"):
        raise Unsupported("spec --rootless is not supported")
    path = f"{text(flags, 'bundle') or '.'}/config.json"
    data = msgspec.json.format(msgspec.json.encode(example_spec()), indent=4)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise AlreadyExists(
            f"File {path} exists. Remove it first, or use --bundle to write elsewhere"
        ) from None
    with os.fdopen(fd, "wb") as file:
        file.write(data + b"\n")
    return 0


def _checkpoint(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    from scow.runtime.oci_checkpoint import checkpoint

    return checkpoint(root, flags, operands, tell)


def _restore(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    from scow.runtime.oci_restore import restore

    return restore(root, flags, operands, tell)


COMMANDS: dict[str, Callable[[str, Flags, list[str], Tell], int]] = {
    "update": _update,
    "events": _events,
    "features": _features,
    "spec": _spec,
    "checkpoint": _checkpoint,
    "restore": _restore,
}
