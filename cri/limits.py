"""From the limits a user asks for to the OCI resources that the cgroups room takes.

Defaults are chosen here; ranges and what the kernel offers are checked where they are written.
"""

from __future__ import annotations

import os
import stat

from scow.cgroups.detect import counts_swap
from scow.cgroups.resources import (
    BlockDeviceValue,
    BlockIO,
    Cpu,
    DeviceRule,
    HugepageLimit,
    Memory,
    Pids,
    Resources,
)
from scow.cri.options import DeviceRate, Limits
from scow.native.errors import InvalidArgument, NotFound
from scow.runtime.security import DEFAULT_DEVICE_RULES

# A fork bomb must not take the host down (Podman's number); `--pids-limit -1` lifts it.
DEFAULT_PIDS = 2048
CPU_PERIOD_US = 100_000

Rule = tuple[str, int, int, str]  # type, major, minor, access


def build_resources(limits: Limits, devices: list[Rule], *, privileged: bool) -> Resources:
    """Build the resources; `devices` are allowed besides the default ones."""
    return Resources(
        memory=_memory(limits),
        cpu=_cpu(limits),
        pids=Pids(DEFAULT_PIDS if limits.pids is None else limits.pids),
        block_io=_block_io(limits),
        devices=_device_rules(devices, privileged=privileged),
        hugepage_limits=tuple(HugepageLimit(size, value) for size, value in limits.hugepages),
        unified=limits.unified,
    )


def _memory(limits: Limits) -> Memory | None:
    given = (
        limits.memory_bytes,
        limits.memory_swap_bytes,
        limits.memory_reservation_bytes,
        limits.memory_swappiness,
    )
    if all(value is None for value in given):
        return None
    limit, swap = limits.memory_bytes, limits.memory_swap_bytes
    if limit and limit > 0 and not swap and counts_swap():
        # As Docker: as much swap again as memory. Without it a limit would only mean more swapping.
        swap = 2 * limit
    # 0 is "unlimited" on the command line and "unset" in the specification.
    return Memory(
        limit=limit or None,
        swap=swap or None,
        reservation=limits.memory_reservation_bytes or None,
        swappiness=limits.memory_swappiness,
    )


def _cpu(limits: Limits) -> Cpu | None:
    quota, period = limits.cpu_quota_us, limits.cpu_period_us
    if limits.nano_cpus:
        _check_cpus(limits.nano_cpus)
        period = CPU_PERIOD_US
        quota = limits.nano_cpus * CPU_PERIOD_US // 10**9
    given = (limits.cpu_shares, quota, period, limits.cpuset_cpus, limits.cpuset_mems)
    if not any(given):
        return None
    return Cpu(
        shares=limits.cpu_shares or None,
        quota=quota,
        period=period,
        cpus=limits.cpuset_cpus,
        mems=limits.cpuset_mems,
    )


def _check_cpus(nano_cpus: int) -> None:
    count = os.cpu_count() or 1
    if nano_cpus > count * 10**9:
        raise InvalidArgument(
            f"cannot give {nano_cpus / 10**9:g} CPUs: this host has {count}",
            hint=f"use a value from 0.01 to {count}",
        )


def _block_io(limits: Limits) -> BlockIO | None:
    throttles = (
        limits.device_read_bps,
        limits.device_write_bps,
        limits.device_read_iops,
        limits.device_write_iops,
    )
    if not limits.blkio_weight and not any(throttles):
        return None
    read_bps, write_bps, read_iops, write_iops = (
        tuple(_rate(rate) for rate in rates) for rates in throttles
    )
    return BlockIO(
        weight=limits.blkio_weight or None,
        throttle_read_bps_device=read_bps,
        throttle_write_bps_device=write_bps,
        throttle_read_iops_device=read_iops,
        throttle_write_iops_device=write_iops,
    )


def _rate(rate: DeviceRate) -> BlockDeviceValue:
    try:
        info = os.stat(rate.host_path)
    except OSError as error:
        raise NotFound(f"cannot limit device '{rate.host_path}': {error.strerror}") from error
    if not stat.S_ISBLK(info.st_mode):
        raise InvalidArgument(f"cannot limit device '{rate.host_path}': it is not a block device")
    return BlockDeviceValue(os.major(info.st_rdev), os.minor(info.st_rdev), rate=rate.rate_per_s)


def _device_rules(devices: list[Rule], *, privileged: bool) -> tuple[DeviceRule, ...]:
    if privileged:
        return (DeviceRule(allow=True),)
    # Deny all first; on a live cgroup the list is never written twice.
    return (
        DeviceRule(allow=False),
        *(
            DeviceRule(True, kind, major, minor, access)
            for kind, major, minor, access in DEFAULT_DEVICE_RULES
        ),
        *(DeviceRule(True, kind, major, minor, access) for kind, major, minor, access in devices),
    )
