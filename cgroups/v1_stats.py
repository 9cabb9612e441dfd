"""Reading what a v1 cgroup has used (slow path of `v1`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from scow.cgroups import control
from scow.cgroups.stats import Stats
from scow.native.fd import OwnedFd

# The kernel's PAGE_COUNTER_MAX, rounded to pages: what an unset limit reads as.
_UNLIMITED = (2**63 - 1) // 65536 * 65536


class _Reader:
    """Files of one cgroup by controller; empty text for what this host does not have."""

    def __init__(self, directory_of: Callable[[str], str | None]) -> None:
        self._directory_of = directory_of

    def text(self, controller: str, name: str) -> str:
        directory = self._directory_of(controller)
        if directory is None:
            return ""
        try:
            with OwnedFd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
                return control.read_or(fd.fileno(), name, "")
        except OSError:
            return ""  # it is being removed; the numbers are nobody's any more

    def number(self, controller: str, name: str) -> int:
        text = self.text(controller, name).strip()
        return int(text) if text.isdigit() else 0

    def limit(self, controller: str, name: str) -> int | None:
        text = self.text(controller, name).strip()
        return int(text) if text.isdigit() and int(text) < _UNLIMITED else None


def read(directory_of: Callable[[str], str | None]) -> Stats:
    """Collect the numbers; `directory_of` gives a controller's directory or None."""
    reader = _Reader(directory_of)
    throttled = control.keyed_values(reader.text("cpu", "cpu.stat"))
    memory = control.keyed_values(reader.text("memory", "memory.stat"))
    used = reader.number("memory", "memory.usage_in_bytes")
    with_swap = reader.text("memory", "memory.memsw.usage_in_bytes").strip()
    oom = control.keyed_values(reader.text("memory", "memory.oom_control"))
    read_bytes, write_bytes = _block_io(reader, "io_service_bytes")
    read_count, write_count = _block_io(reader, "io_serviced")
    return Stats(
        time_ns=time.time_ns(),
        cpu_ns=reader.number("cpuacct", "cpuacct.usage"),
        cpu_user_ns=reader.number("cpuacct", "cpuacct.usage_user"),
        cpu_system_ns=reader.number("cpuacct", "cpuacct.usage_sys"),
        cpu_periods=throttled.get("nr_periods", 0),
        cpu_throttled_periods=throttled.get("nr_throttled", 0),
        cpu_throttled_ns=throttled.get("throttled_time", 0),
        memory_bytes=used,
        memory_cache_bytes=memory.get("total_inactive_file", 0),
        memory_peak_bytes=reader.number("memory", "memory.max_usage_in_bytes"),
        memory_limit_bytes=reader.limit("memory", "memory.limit_in_bytes"),
        swap_bytes=max(0, int(with_swap) - used) if with_swap.isdigit() else None,
        oom_kills=oom.get("oom_kill", 0),
        pids=reader.number("pids", "pids.current"),
        pids_limit=reader.limit("pids", "pids.max"),
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        read_operations=read_count,
        write_operations=write_count,
        memory_rss_bytes=memory.get("total_rss", 0),
        memory_file_bytes=memory.get("total_cache", 0),
        memory_mapped_bytes=memory.get("total_mapped_file", 0),
        memory_kernel_bytes=reader.number("memory", "memory.kmem.usage_in_bytes"),
        memory_failures=reader.number("memory", "memory.failcnt"),
        page_faults=memory.get("total_pgfault", 0),
        major_page_faults=memory.get("total_pgmajfault", 0),
    )


def _block_io(reader: _Reader, what: str) -> tuple[int, int]:
    text = reader.text("blkio", f"blkio.throttle.{what}_recursive")
    totals = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in totals:
            totals[words[1]] += int(words[2])
    return totals["Read"], totals["Write"]
