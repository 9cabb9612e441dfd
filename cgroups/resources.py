"""The limits a container asks for, in the shape of the OCI runtime specification.

What belongs here: the typed values, their ranges, and the way from and to the specification's
JSON (`linux.resources`, camelCase). What must not: control files and anything a kernel says;
those are `v1_limits` and `v2_limits`. Unset is always None (or an empty tuple): partial updates
leave unset values alone. msgspec structs and not dataclasses, because the codec maps camelCase
only for those, and because they are made in a tenth of the time when the module is imported.
"""

from __future__ import annotations

import msgspec

from scow.native.errors import InvalidArgument

MAX_INT64 = 2**63 - 1
# The kernel's PID_MAX_LIMIT on 64-bit machines: no pids.max above it is taken.
MAX_PIDS = 4 * 1024 * 1024
MIN_PERIOD_US, MAX_PERIOD_US = 1_000, 1_000_000
MIN_QUOTA_US = 1_000
MIN_SHARES, MAX_SHARES = 2, 262_144
MIN_BLKIO_WEIGHT, MAX_BLKIO_WEIGHT = 10, 1_000


class _Document(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class Memory(_Document, frozen=True):
    """Bytes; -1 means unlimited. `swap` is memory plus swap, as in the specification."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = msgspec.field(default=None, name="kernelTCP")
    swappiness: int | None = None
    disable_oom_killer: bool | None = msgspec.field(default=None, name="disableOOMKiller")
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class Cpu(_Document, frozen=True):
    """Times in microseconds; `cpus` and `mems` are lists like `0-2,5`."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: int | None = None


class Pids(_Document, frozen=True):
    """-1 means unlimited; 0 is a real limit (specification 1.3)."""

    limit: int | None = None


class BlockDeviceValue(_Document, frozen=True):
    """A rate (bytes or operations per second) or a weight of one whole disk."""

    major: int
    minor: int
    rate: int | None = None
    weight: int | None = None
    leaf_weight: int | None = None


class BlockIO(_Document, frozen=True):
    """Weights 10 to 1000; throttles per disk."""

    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[BlockDeviceValue, ...] = ()
    throttle_read_bps_device: tuple[BlockDeviceValue, ...] = ()
    throttle_write_bps_device: tuple[BlockDeviceValue, ...] = ()
    throttle_read_iops_device: tuple[BlockDeviceValue, ...] = msgspec.field(
        default=(), name="throttleReadIOPSDevice"
    )
    throttle_write_iops_device: tuple[BlockDeviceValue, ...] = msgspec.field(
        default=(), name="throttleWriteIOPSDevice"
    )


class DeviceRule(_Document, frozen=True):
    """One line of the device list; the order of the lines matters, the last match decides.

    `type` is `a` (all), `b`, `c`, or `u` (the same as c); None for a number is a wildcard.
    """

    allow: bool
    type: str | None = "a"
    major: int | None = None
    minor: int | None = None
    access: str | None = "rwm"


class HugepageLimit(_Document, frozen=True):
    """`page_size` like `2MB` or `1GB`; bytes."""

    page_size: str
    limit: int


class InterfacePriority(_Document, frozen=True):
    """net_prio: what a packet of this cgroup gets on that interface."""

    name: str
    priority: int


class NetworkClass(_Document, frozen=True):
    """net_cls and net_prio, cgroup v1 only."""

    class_id: int | None = msgspec.field(default=None, name="classID")
    priorities: tuple[InterfacePriority, ...] = ()


class RdmaLimit(_Document, frozen=True):
    """Per RDMA device."""

    hca_handles: int | None = None
    hca_objects: int | None = None


class Resources(_Document, frozen=True):
    """All limits of one container. `devices` None means: leave the device list alone."""

    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIO | None = msgspec.field(default=None, name="blockIO")
    devices: tuple[DeviceRule, ...] | None = None
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: NetworkClass | None = None
    rdma: dict[str, RdmaLimit] = {}
    unified: dict[str, str] = {}


def decode_resources(document: bytes) -> Resources:
    """Decode `linux.resources`; unknown properties are ignored, as the specification asks.

    Raises InvalidArgument that names the property.
    """
    try:
        return msgspec.json.decode(document, type=Resources)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"cannot read the resources: {error}") from error


def encode_resources(resources: Resources) -> bytes:
    """The specification's JSON for `resources`, without what is unset."""
    return msgspec.json.encode(resources)


def validate_resources(resources: Resources) -> None:
    """Refuse values that no kernel can take; raises InvalidArgument that names the value."""
    if resources.memory is not None:
        _validate_memory(resources.memory)
    if resources.cpu is not None:
        _validate_cpu(resources.cpu)
    if resources.pids is not None:
        _check_range("pids limit", resources.pids.limit, -1, MAX_PIDS)
    if resources.block_io is not None:
        _validate_block_io(resources.block_io)
    for huge in resources.hugepage_limits:
        _check_range(f"hugepage limit for '{huge.page_size}'", huge.limit, 0, 2**64 - 1)
    for key in resources.unified:
        _validate_unified_key(key)


def _check_range(what: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidArgument(f"{what} '{value}' is not between {low} and {high}")


def _validate_memory(memory: Memory) -> None:
    for what, value in (
        ("memory limit", memory.limit),
        ("memory reservation", memory.reservation),
        ("memory and swap limit", memory.swap),
    ):
        _check_range(what, value, -1, MAX_INT64)
    _check_range("memory swappiness", memory.swappiness, 0, 100)
    limit, swap, reservation = memory.limit or 0, memory.swap or 0, memory.reservation or 0
    if swap > 0 and limit == 0:
        raise InvalidArgument(
            f"memory and swap limit '{swap}' needs a memory limit",
            hint="set the memory limit too; the swap value is memory plus swap",
        )
    if swap > 0 and (limit < 0 or swap < limit):
        raise InvalidArgument(
            f"memory and swap limit '{swap}' is below the memory limit '{limit}'",
            hint="the swap value is memory plus swap; -1 means unlimited swap",
        )
    if reservation > 0 and 0 < limit < reservation:
        raise InvalidArgument(f"memory reservation '{reservation}' is above the limit '{limit}'")


def _validate_cpu(cpu: Cpu) -> None:
    if cpu.shares:
        _check_range("cpu shares", cpu.shares, MIN_SHARES, MAX_SHARES)
    if cpu.period:
        _check_range("cpu period (us)", cpu.period, MIN_PERIOD_US, MAX_PERIOD_US)
    if cpu.quota is not None and cpu.quota > 0:
        _check_range("cpu quota (us)", cpu.quota, MIN_QUOTA_US, MAX_INT64)
    _check_range("cpu burst (us)", cpu.burst, 0, MAX_INT64)
    _check_range("cpu idle", cpu.idle, 0, 1)
    if cpu.idle == 1 and cpu.shares:
        raise InvalidArgument("cpu shares cannot be set together with cpu idle")
    runtime, period = cpu.realtime_runtime, cpu.realtime_period
    if runtime and period and runtime > period:
        raise InvalidArgument(f"realtime runtime '{runtime}' is above its period '{period}'")
    if cpu.cpus or cpu.mems:
        from scow.cgroups.cpulist import parse_cpu_list

        parse_cpu_list(cpu.cpus or "", what="cpus")
        parse_cpu_list(cpu.mems or "", what="memory nodes")


def _validate_block_io(block_io: BlockIO) -> None:
    low, high = MIN_BLKIO_WEIGHT, MAX_BLKIO_WEIGHT
    for what, value in (("weight", block_io.weight), ("leaf weight", block_io.leaf_weight)):
        if value:
            _check_range(f"block io {what}", value, low, high)
    for device in block_io.weight_device:
        if device.weight:
            name = f"{device.major}:{device.minor}"
            _check_range(f"block io weight of '{name}'", device.weight, low, high)


def _validate_unified_key(key: str) -> None:
    # The key becomes a file name: one path component, and of the kernel's own alphabet.
    plain = key.replace(".", "").replace("_", "")
    if not plain.isalnum() or not plain.isascii() or key[0] in "._" or ".." in key:
        raise InvalidArgument(f"unified key '{key}' is not the name of a control file")
    if key.startswith("cgroup."):
        raise InvalidArgument(f"unified key '{key}' is not a limit")
