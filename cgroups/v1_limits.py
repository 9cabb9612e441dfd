"""Resources as writes to cgroup v1's control files; pure.

What must not be here: opening files. Order matters where the kernel checks one file against
another; `v1` retries the ones in `RETRIED` after the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from scow.cgroups.control import Write
from scow.cgroups.resources import BlockIO, Cpu, Memory, Resources
from scow.native.errors import Unsupported

# Files that are checked against each other: on an update the right order depends on the old
# values (limit <= memsw, quota/period <= the parent's, burst <= quota), so a refusal is retried.
RETRIED = frozenset(
    (
        "memory.limit_in_bytes",
        "cpu.cfs_period_us",
        "cpu.cfs_quota_us",
        "cpu.cfs_burst_us",
        "cpu.rt_runtime_us",
        "cpu.rt_period_us",
    )
)


def limit_writes(resources: Resources) -> list[Write]:
    """All writes but the device list's, in order. Raises Unsupported for what v1 never has."""
    if resources.unified:
        name = next(iter(resources.unified))
        raise Unsupported(f"cannot set '{name}': unified limits need a cgroup v2 host")
    writes: list[Write] = []
    if resources.memory is not None:
        writes.extend(_memory(resources.memory))
    if resources.cpu is not None:
        writes.extend(_cpu(resources.cpu))
    if resources.pids is not None and resources.pids.limit is not None:
        limit = resources.pids.limit
        writes.append(Write("pids", "pids.max", "max" if limit < 0 else str(limit)))
    if resources.block_io is not None:
        writes.extend(_block_io(resources.block_io))
    writes.extend(_rare(resources))
    return writes


def _memory(memory: Memory) -> Iterator[Write]:
    if memory.kernel:
        raise Unsupported(
            "kernel memory limits are not supported: the kernel dropped them in 5.16",
            hint="kernel memory counts towards the memory limit",
        )
    swap = memory.swap
    if memory.limit == -1 and not swap:
        swap = -1  # an unlimited memory under an old memsw limit would be refused
    if memory.limit:
        yield Write("memory", "memory.limit_in_bytes", str(memory.limit))
    if swap:
        yield Write("memory", "memory.memsw.limit_in_bytes", str(swap), None, swap < 0)
    if memory.reservation:
        yield Write("memory", "memory.soft_limit_in_bytes", str(memory.reservation))
    if memory.kernel_tcp:
        yield Write("memory", "memory.kmem.tcp.limit_in_bytes", str(memory.kernel_tcp))
    if memory.swappiness is not None:
        yield Write("memory", "memory.swappiness", str(memory.swappiness))
    if memory.disable_oom_killer is not None:
        yield Write("memory", "memory.oom_control", "1" if memory.disable_oom_killer else "0")


def _cpu(cpu: Cpu) -> Iterator[Write]:
    # Before shares: leaving SCHED_IDLE resets them.
    if cpu.idle is not None:
        yield Write("cpu", "cpu.idle", str(cpu.idle))
    if cpu.shares:
        yield Write("cpu", "cpu.shares", str(cpu.shares))
    if cpu.realtime_period:
        yield Write("cpu", "cpu.rt_period_us", str(cpu.realtime_period))
    if cpu.realtime_runtime:
        yield Write("cpu", "cpu.rt_runtime_us", str(cpu.realtime_runtime))
    if cpu.period:
        yield Write("cpu", "cpu.cfs_period_us", str(cpu.period))
    if cpu.quota:
        yield Write("cpu", "cpu.cfs_quota_us", str(max(cpu.quota, -1)))
    if cpu.burst is not None:
        yield Write("cpu", "cpu.cfs_burst_us", str(cpu.burst))
    if cpu.cpus:
        yield Write("cpuset", "cpuset.cpus", cpu.cpus)
    if cpu.mems:
        yield Write("cpuset", "cpuset.mems", cpu.mems)


def _block_io(block_io: BlockIO) -> Iterator[Write]:
    if block_io.weight:
        yield Write("blkio", "blkio.weight", str(block_io.weight), "blkio.bfq.weight")
    if block_io.leaf_weight:
        yield Write("blkio", "blkio.leaf_weight", str(block_io.leaf_weight))
    for device in block_io.weight_device:
        number = f"{device.major}:{device.minor}"
        if device.weight:
            yield Write(
                "blkio",
                "blkio.weight_device",
                f"{number} {device.weight}",
                "blkio.bfq.weight_device",
            )
        if device.leaf_weight:
            yield Write("blkio", "blkio.leaf_weight_device", f"{number} {device.leaf_weight}")
    for word, unit, devices in (
        ("read", "bps", block_io.throttle_read_bps_device),
        ("write", "bps", block_io.throttle_write_bps_device),
        ("read", "iops", block_io.throttle_read_iops_device),
        ("write", "iops", block_io.throttle_write_iops_device),
    ):
        for device in devices:
            line = f"{device.major}:{device.minor} {device.rate or 0}"
            yield Write("blkio", f"blkio.throttle.{word}_{unit}_device", line)


def _rare(resources: Resources) -> Iterator[Write]:
    for huge in resources.hugepage_limits:
        base = f"hugetlb.{huge.page_size}"
        # Reservation counting, where the kernel has it (5.7), also counts what is only mapped.
        yield Write("hugetlb", f"{base}.rsvd.limit_in_bytes", str(huge.limit), None, True)
        yield Write("hugetlb", f"{base}.limit_in_bytes", str(huge.limit))
    if resources.network is not None:
        if resources.network.class_id:
            yield Write("net_cls", "net_cls.classid", str(resources.network.class_id))
        for item in resources.network.priorities:
            yield Write("net_prio", "net_prio.ifpriomap", f"{item.name} {item.priority}")
    for device_name, rdma in resources.rdma.items():
        yield Write("rdma", "rdma.max", rdma_line(device_name, rdma.hca_handles, rdma.hca_objects))


def rdma_line(device: str, handles: int | None, objects: int | None) -> str:
    """The line for rdma.max, the same in both versions."""
    line = device
    if handles is not None:
        line += f" hca_handle={handles}"
    if objects is not None:
        line += f" hca_object={objects}"
    return line
