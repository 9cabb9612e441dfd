"""Results as text: what was measured, on what, and whether the aims are met."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
from pathlib import Path

from cases import Result
from runtimes import Failed, Runtime

VERDICT = {True: "met", False: "**missed**", None: "not measured"}


def machine() -> list[str]:
    """What a reader has to know about the machine."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    hybrid = os.path.exists("/sys/fs/cgroup/unified")
    return [
        f"- processors: {os.cpu_count()} x {cpu[1] if cpu else platform.machine()}",
        f"- memory: {int(memory[1]) // 1024 if memory else '?'} MiB",
        f"- kernel: {platform.release()}",
        f"- cgroups: {'v2' if unified else 'hybrid (limits in v1)' if hybrid else 'v1'}",
        f"- load at the start: {os.getloadavg()[0]:.2f}",
    ]


def versions(runtimes: list[Runtime]) -> list[str]:
    """Who took part."""
    lines: list[str] = []
    for one in runtimes:
        if one.program:
            try:
                lines.append(f"- {one.name}: {one.version()}")
            except Failed as error:
                lines.append(f"- {one.name}: {error}")
    return lines


def table(result: Result) -> list[str]:
    """One case."""
    lines = [
        f"## {result.title}",
        "",
        f"| | median, {result.unit} | {'p99 | ' if result.tail else ''}min | max | n |",
        f"|---|---|{'---|' if result.tail else ''}---|---|---|",
    ]
    for name, samples in sorted(
        result.samples.items(), key=lambda item: statistics.median(item[1])
    ):
        cells = [statistics.median(samples), min(samples), max(samples)]
        if result.tail:
            cells.insert(1, result.quantile(name, 0.99) or 0.0)
        shown = " | ".join(f"{value:.1f}" if value >= 1 else f"{value:.2f}" for value in cells)
        lines.append(f"| {name} | {shown} | {len(samples)} |")
    gap = " |" * (4 if result.tail else 3)
    lines += [f"| {name} | failed: {error[:120]} |{gap}" for name, error in result.errors.items()]
    lines.append("")
    lines += [f"- {text}: {VERDICT[met]}" for text, met in result.aims]
    return [*lines, ""]


def write(directory: Path, head: list[str], results: list[Result], suffix: str = "") -> Path:
    """Write the page; its name is the time."""
    now = datetime.datetime.now(datetime.UTC)
    lines = [f"# {now:%Y-%m-%d %H:%M} UTC", "", *head, ""]
    for result in results:
        lines += table(result)
    path = directory / f"{now:%Y-%m-%d-%H%M}{suffix}.md"
    path.write_text("\n".join(lines))
    return path
