"""Resources as writes to cgroup v2's control files; pure.

The specification speaks v1; `convert` has the numbers. What must not be here: opening files.
"""

from __future__ import annotations

from collections.abc import Iterator

from scow.cgroups import convert
from scow.cgroups.control import Write
from scow.cgroups.resources import BlockIO, Cpu, Memory, Resources
from scow.cgroups.v1_limits import rdma_line
from scow.native.errors import Unsupported

# Checked against each other by the kernel, see v1_limits.RETRIED.
RETRIED = frozenset(("cpu.max", "cpu.max.burst"))


def limit_writes(resources: Resources, *, current_cpu_max: str = "") -> list[Write]:
    """All writes but the device program, in order.

    `current_cpu_max` is cpu.max as it is, for an update of only one half of it. The raw `unified`
    entries come last, so that they win over the typed ones.
    """
    writes: list[Write] = []
    if resources.memory is not None:
        writes.extend(_memory(resources.memory))
    if resources.cpu is not None:
        writes.extend(_cpu(resources.cpu, current_cpu_max))
    if resources.pids is not None and resources.pids.limit is not None:
        writes.append(Write("pids", "pids.max", convert.limit_text(resources.pids.limit)))
    if resources.block_io is not None:
        writes.extend(_block_io(resources.block_io))
    for huge in resources.hugepage_limits:
        base = f"hugetlb.{huge.page_size}"
        writes.append(Write("hugetlb", f"{base}.rsvd.max", str(huge.limit), None, True))
        writes.append(Write("hugetlb", f"{base}.max", str(huge.limit)))
    if resources.network is not None and (
        resources.network.class_id or resources.network.priorities
    ):
        raise Unsupported(
            "network class and priorities need the cgroup v1 controllers net_cls, net_prio"
        )
    for name, rdma in resources.rdma.items():
        writes.append(
            Write("rdma", "rdma.max", rdma_line(name, rdma.hca_handles, rdma.hca_objects))
        )
    for name, value in resources.unified.items():
        # A file with several lines (io.max) takes one line per write.
        controller = name.partition(".")[0]
        writes.extend(Write(controller, name, line) for line in value.splitlines())
    return writes


def _memory(memory: Memory) -> Iterator[Write]:
    if memory.kernel or memory.kernel_tcp:
        raise Unsupported(
            "kernel memory limits are not supported on cgroup v2",
            hint="kernel memory counts towards the memory limit",
        )
    if memory.swappiness is not None:
        raise Unsupported("memory swappiness cannot be set per cgroup on cgroup v2")
    # disable_oom_killer has no file in v2 and is left out, as the other runtimes do.
    if memory.limit:
        yield Write("memory", "memory.max", convert.limit_text(memory.limit))
    swap = convert.swap_max(memory.limit, memory.swap)
    if swap is not None:
        # Without swap accounting both "no limit" and "no swap" hold already.
        yield Write("memory", "memory.swap.max", swap, None, swap in ("max", "0"))
    if memory.reservation:
        yield Write("memory", "memory.low", convert.limit_text(memory.reservation))


def _cpu(cpu: Cpu, current_cpu_max: str) -> Iterator[Write]:
    if cpu.realtime_runtime or cpu.realtime_period:
        raise Unsupported("realtime limits are not supported on cgroup v2")
    # Before the weight: leaving SCHED_IDLE resets it.
    if cpu.idle is not None:
        yield Write("cpu", "cpu.idle", str(cpu.idle))
    if cpu.shares:
        yield Write("cpu", "cpu.weight", str(convert.cpu_weight(cpu.shares)))
    line = convert.cpu_max(cpu.quota, cpu.period, current_cpu_max)
    if line is not None:
        yield Write("cpu", "cpu.max", line)
    if cpu.burst is not None:
        yield Write("cpu", "cpu.max.burst", str(cpu.burst))
    if cpu.cpus:
        yield Write("cpuset", "cpuset.cpus", cpu.cpus)
    if cpu.mems:
        yield Write("cpuset", "cpuset.mems", cpu.mems)


def _block_io(block_io: BlockIO) -> Iterator[Write]:
    if block_io.leaf_weight or any(d.leaf_weight for d in block_io.weight_device):
        raise Unsupported("block io leaf weights exist on cgroup v1 only")
    if block_io.weight:
        # bfq keeps the v1 range (1..1000); io.weight has its own (1..10000). v2 chooses.
        yield Write("io", "io.bfq.weight", str(block_io.weight), "io.weight")
    for device in block_io.weight_device:
        if device.weight:
            line = f"{device.major}:{device.minor} {device.weight}"
            yield Write("io", "io.bfq.weight", line, "io.weight")
    for key, devices in (
        ("rbps", block_io.throttle_read_bps_device),
        ("wbps", block_io.throttle_write_bps_device),
        ("riops", block_io.throttle_read_iops_device),
        ("wiops", block_io.throttle_write_iops_device),
    ):
        for device in devices:
            rate = str(device.rate) if device.rate else "max"
            yield Write("io", "io.max", f"{device.major}:{device.minor} {key}={rate}")
    # cgroup-v2.rst "io.max": each key of a line is kept until it is written again, so one line
    # per key adds up.


def io_weight_line(bfq_line: str) -> str:
    """The io.weight form of a line for io.bfq.weight."""
    *device, weight = bfq_line.split(" ")
    return " ".join([*device, str(convert.io_weight(int(weight)))])
