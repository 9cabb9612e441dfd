"""What a cgroup has used, in one shape for both versions."""

from __future__ import annotations

import msgspec


class Pressure(msgspec.Struct, frozen=True):
    """How long tasks waited (psi.rst): the sum in microseconds, and percent of the last 10 to 300 s."""

    total_us: int
    avg10: float
    avg60: float
    avg300: float


class Pressures(msgspec.Struct, frozen=True):
    """Of one kind: when some of the tasks waited, and when all of them did."""

    some: Pressure
    full: Pressure | None = None  # cpu has none on older kernels


class Stats(msgspec.Struct, frozen=True):
    """Counters since the cgroup was made; None means unlimited, or not counted on this host.

    `memory_bytes` is what the kernel charges; `memory_cache_bytes` the part of it that it can
    take back at once (inactive file pages), which `docker stats` leaves out.
    """

    time_ns: int
    cpu_ns: int
    cpu_user_ns: int
    cpu_system_ns: int
    cpu_periods: int
    cpu_throttled_periods: int
    cpu_throttled_ns: int
    memory_bytes: int
    memory_cache_bytes: int
    memory_peak_bytes: int | None
    memory_limit_bytes: int | None
    swap_bytes: int | None
    oom_kills: int
    pids: int
    pids_limit: int | None
    read_bytes: int
    write_bytes: int
    read_operations: int
    write_operations: int
    memory_rss_bytes: int = 0
    memory_file_bytes: int = 0
    memory_mapped_bytes: int = 0
    memory_kernel_bytes: int = 0
    memory_failures: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    pressure: dict[str, Pressures] = {}  # "cpu", "memory", "io"; empty on v1

    @property
    def memory_used_bytes(self) -> int:
        """Memory without the cache that can be dropped, as people expect to see it."""
        return max(0, self.memory_bytes - self.memory_cache_bytes)
