"""Reading what a v2 cgroup has used (slow path of `v2`)."""

from __future__ import annotations

import time

from scow.cgroups import control
from scow.cgroups.stats import Pressure, Pressures, Stats


def _number(fd: int, name: str) -> int | None:
    """The file's number; None for `max` and for a file that this host does not have."""
    text = control.read_or(fd, name, "").strip()
    return int(text) if text.isdigit() else None


def read(fd: int) -> Stats:
    """Collect the numbers of the cgroup whose directory is `fd`."""
    cpu = control.keyed_values(control.read_or(fd, "cpu.stat", ""))
    memory = control.keyed_values(control.read_or(fd, "memory.stat", ""))
    events = control.keyed_values(control.read_or(fd, "memory.events", ""))
    block_io = _block_io(control.read_or(fd, "io.stat", ""))
    return Stats(
        time_ns=time.time_ns(),
        cpu_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        cpu_periods=cpu.get("nr_periods", 0),
        cpu_throttled_periods=cpu.get("nr_throttled", 0),
        cpu_throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        memory_bytes=_number(fd, "memory.current") or 0,
        memory_cache_bytes=memory.get("inactive_file", 0),
        memory_peak_bytes=_number(fd, "memory.peak"),
        memory_limit_bytes=_number(fd, "memory.max"),
        swap_bytes=_number(fd, "memory.swap.current"),
        oom_kills=events.get("oom_kill", 0),
        pids=_number(fd, "pids.current") or 0,
        pids_limit=_number(fd, "pids.max"),
        read_bytes=block_io.get("rbytes", 0),
        write_bytes=block_io.get("wbytes", 0),
        read_operations=block_io.get("rios", 0),
        write_operations=block_io.get("wios", 0),
        memory_rss_bytes=memory.get("anon", 0),
        memory_file_bytes=memory.get("file", 0),
        memory_mapped_bytes=memory.get("file_mapped", 0),
        memory_kernel_bytes=memory.get("kernel", 0),
        memory_failures=events.get("max", 0),
        page_faults=memory.get("pgfault", 0),
        major_page_faults=memory.get("pgmajfault", 0),
        pressure={
            kind: found
            for kind in ("cpu", "memory", "io")
            if (found := parse_pressure(control.read_or(fd, f"{kind}.pressure", ""))) is not None
        },
    )


def parse_pressure(text: str) -> Pressures | None:
    """`some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same of `full` (psi.rst)."""
    found: dict[str, Pressure] = {}
    for line in text.splitlines():
        kind, *words = line.split()
        values = {key: value for key, _, value in (word.partition("=") for word in words)}
        found[kind] = Pressure(
            int(values["total"]),
            float(values["avg10"]),
            float(values["avg60"]),
            float(values["avg300"]),
        )
    return Pressures(found["some"], found.get("full")) if "some" in found else None


def _block_io(text: str) -> dict[str, int]:
    totals: dict[str, int] = {}
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, _, number = word.partition("=")
            if number.isdigit():
                totals[key] = totals.get(key, 0) + int(number)
    return totals
