"""cAdvisor's metrics, one table: name, help, labels beside the usual ones, and where it comes from.

What this host's kernel does not count per cgroup reads 0. CRI's values are whole numbers, so times are
in whole seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from scow.cri.launch import container_cgroup

if TYPE_CHECKING:
    from scow.cgroups.stats import Stats
    from scow.cri.api.answers import Answer
    from scow.cri.pod_records import PodRecord
    from scow.cri.records import Record
    from scow.cri.status import Status
    from scow.cri.usage import Usage
    from scow.netns.stats import Counters

_LABELS = ("id", "name", "namespace", "pod", "container", "image")
_SECOND = 10**9


class Sample(msgspec.Struct, frozen=True):
    """All that is known of one container at one moment."""

    record: Record
    status: Status
    stats: Stats
    usage: Usage
    disk_bytes: int
    disk_inodes: int
    disk_inodes_free: int
    descriptors: int
    sockets: int
    threads: int


Values = Iterable[tuple[tuple[str, ...], int]]


class Metric(msgspec.Struct, frozen=True):
    """One metric; `read` gives (further label values, value) of a container."""

    name: str
    kind: str
    help: str
    read: Callable[[Sample], Values]
    labels: tuple[str, ...] = ()


def _one(read: Callable[[Sample], int]) -> Callable[[Sample], Values]:
    return lambda sample: (((), read(sample)),)


def _counter(name: str, words: str, read: Callable[[Sample], int]) -> Metric:
    return Metric(f"container_{name}", "COUNTER", words, _one(read))


def _gauge(name: str, words: str, read: Callable[[Sample], int]) -> Metric:
    return Metric(f"container_{name}", "GAUGE", words, _one(read))


def _faults(sample: Sample) -> Values:
    for kind, value in (
        ("pgfault", sample.stats.page_faults),
        ("pgmajfault", sample.stats.major_page_faults),
    ):
        yield (kind, "container"), value


def _devices(sample: Sample) -> Values:
    yield ("", "Read"), sample.stats.read_bytes
    yield ("", "Write"), sample.stats.write_bytes


_METRICS: tuple[Metric, ...] = (
    Metric(
        "container_blkio_device_usage_total", "COUNTER", "Bytes moved to and from block devices",
        _devices, ("device", "operation"),
    ),
    _counter("cpu_usage_seconds_total", "CPU time", lambda s: s.stats.cpu_ns // _SECOND),
    _counter("cpu_user_seconds_total", "User CPU time", lambda s: s.stats.cpu_user_ns // _SECOND),
    _counter("cpu_system_seconds_total", "System CPU time", lambda s: s.stats.cpu_system_ns // _SECOND),
    _counter("cpu_cfs_periods_total", "Enforcement periods", lambda s: s.stats.cpu_periods),
    _counter(
        "cpu_cfs_throttled_periods_total", "Throttled periods",
        lambda s: s.stats.cpu_throttled_periods,
    ),
    _counter(
        "cpu_cfs_throttled_seconds_total", "Time it was throttled",
        lambda s: s.stats.cpu_throttled_ns // _SECOND,
    ),
    _gauge("file_descriptors", "Open descriptors of the first process", lambda s: s.descriptors),
    _gauge("fs_inodes_free", "Free inodes of its file system", lambda s: s.disk_inodes_free),
    _gauge("fs_inodes_total", "Inodes of its file system", lambda s: s.disk_inodes),
    _gauge("fs_limit_bytes", "Size of its file system", lambda s: s.disk_bytes),
    _gauge("fs_usage_bytes", "What its own files take", lambda s: s.usage.used_bytes),
    _counter("fs_reads_bytes_total", "Bytes read", lambda s: s.stats.read_bytes),
    _counter("fs_reads_total", "Reads", lambda s: s.stats.read_operations),
    _counter("fs_writes_bytes_total", "Bytes written", lambda s: s.stats.write_bytes),
    _counter("fs_writes_total", "Writes", lambda s: s.stats.write_operations),
    _gauge("last_seen", "When it was measured", lambda s: s.stats.time_ns // _SECOND),
    _gauge("memory_cache", "Page cache", lambda s: s.stats.memory_file_bytes),
    _counter("memory_failcnt", "How often it met its limit", lambda s: s.stats.memory_failures),
    Metric(
        "container_memory_failures_total", "COUNTER", "Page faults", _faults,
        ("failure_type", "scope"),
    ),
    _gauge("memory_kernel_usage", "Kernel memory", lambda s: s.stats.memory_kernel_bytes),
    _gauge("memory_mapped_file", "Mapped files", lambda s: s.stats.memory_mapped_bytes),
    _gauge("memory_max_usage_bytes", "Highest usage", lambda s: s.stats.memory_peak_bytes or 0),
    _gauge("memory_rss", "Anonymous memory", lambda s: s.stats.memory_rss_bytes),
    _gauge("memory_swap", "Swap", lambda s: s.stats.swap_bytes or 0),
    _gauge("memory_usage_bytes", "All memory", lambda s: s.stats.memory_bytes),
    _gauge("memory_working_set_bytes", "Memory in use", lambda s: s.stats.memory_used_bytes),
    _counter("oom_events_total", "Processes killed for memory", lambda s: s.stats.oom_kills),
    _gauge("processes", "Processes and threads", lambda s: s.stats.pids),
    _gauge("sockets", "Open sockets of the first process", lambda s: s.sockets),
    _gauge(
        "spec_cpu_period", "CPU period in microseconds",
        lambda s: s.record.options.limits.cpu_period_us or 100_000,
    ),
    _gauge("spec_cpu_shares", "CPU shares", lambda s: s.record.options.limits.cpu_shares or 1024),
    _gauge(
        "spec_memory_limit_bytes", "Memory limit", lambda s: s.record.options.limits.memory_bytes or 0
    ),
    _gauge(
        "spec_memory_swap_limit_bytes", "Memory and swap limit",
        lambda s: max(0, s.record.options.limits.memory_swap_bytes or 0),
    ),
    _gauge("start_time_seconds", "When it started", lambda s: s.status.started_ns // _SECOND),
    _gauge("threads", "Threads of the first process", lambda s: s.threads),
    _gauge("threads_max", "Limit of processes", lambda s: s.stats.pids_limit or 0),
)  # fmt: skip

_NETWORK: tuple[tuple[str, str, str], ...] = tuple(
    (f"container_network_{direction}_{name}_total", words, f"{short}_{field}")
    for direction, short in (("receive", "rx"), ("transmit", "tx"))
    for name, words, field in (
        ("bytes", "Bytes of the pod's network", "bytes"),
        ("errors", "Errors of the pod's network", "errors"),
        ("packets_dropped", "Packets that were dropped", "dropped"),
        ("packets", "Packets of the pod's network", "packets"),
    )
)


def descriptors() -> list[Answer]:
    """All MetricDescriptors."""
    found: list[Answer] = [
        {"name": metric.name, "help": metric.help, "label_keys": [*_LABELS, *metric.labels]}
        for metric in _METRICS
    ]
    found += [
        {"name": name, "help": words, "label_keys": [*_LABELS, "interface"]}
        for name, words, _ in _NETWORK
    ]
    return found


def measure_pod(record: PodRecord, counters: Counters | None) -> list[Answer]:
    """The metrics of a pod's network; none in the host's."""
    if counters is None:
        return []
    metadata = record.options.metadata
    labels = [record.id, record.name, metadata.namespace, metadata.name, "", "", "eth0"]
    return [
        _metric(name, "COUNTER", labels, int(getattr(counters, field)))
        for name, _, field in _NETWORK
    ]


def measure_container(record: Record, status: Status, pod: PodRecord, usage: Usage) -> list[Answer]:
    """The metrics of a running container; NotFound when it is gone."""
    disk = os.statvfs("/")
    descriptors_, sockets, threads = _process(status.pid)
    sample = Sample(
        record=record,
        status=status,
        stats=container_cgroup(record).stats(),
        usage=usage,
        disk_bytes=disk.f_blocks * disk.f_frsize,
        disk_inodes=disk.f_files,
        disk_inodes_free=disk.f_ffree,
        descriptors=descriptors_,
        sockets=sockets,
        threads=threads,
    )
    metadata = pod.options.metadata
    name = record.member.name if record.member is not None else record.name
    labels = [record.id, record.name, metadata.namespace, metadata.name, name, record.image_name]
    return [
        _metric(metric.name, metric.kind, [*labels, *more], value)
        for metric in _METRICS
        for more, value in metric.read(sample)
    ]


def _metric(name: str, kind: str, labels: list[str], value: int) -> Answer:
    return {
        "name": name,
        "timestamp": time.time_ns(),
        "metric_type": kind,
        "label_values": labels,
        "value": {"value": value},
    }


def _process(pid: int) -> tuple[int, int, int]:
    """Descriptors, sockets and threads of a process; zeros when it is gone."""
    sockets = 0
    try:
        names = os.listdir(f"/proc/{pid}/fd")
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0, 0, 0
    for name in names:
        with suppress(OSError):  # it has closed that one meanwhile
            sockets += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    return len(names), sockets, threads
