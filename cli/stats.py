"""stats: what running containers use, once or again and again."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from scow.cli import human
from scow.cli.format import Row, write_rows
from scow.cli.session import service
from scow.cli.table import Argument, Command, Values, flag, text
from scow.native.errors import ScowError

if TYPE_CHECKING:
    from scow.cri.views import StatsView

INTERVAL_S = 1.0
HEADINGS = {
    "ID": "CONTAINER ID",
    "Container": "CONTAINER",
    "Name": "NAME",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
}
_COLUMNS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")


def cpu_percent(now: StatsView, before: StatsView | None) -> float:
    """CPU time between two measurements, 100 % for each CPU that was busy."""
    if before is None or now.time_ns <= before.time_ns:
        return 0.0
    return 100.0 * max(0, now.cpu_ns - before.cpu_ns) / (now.time_ns - before.time_ns)


def row(now: StatsView, before: StatsView | None, *, typed: str, full: bool) -> Row:
    """The fields of one container."""
    share = 100.0 * now.memory_bytes / now.memory_limit_bytes if now.memory_limit_bytes else 0.0
    memory = f"{human.binary_size(now.memory_bytes)} / {human.binary_size(now.memory_limit_bytes)}"
    size = human.decimal_size
    return {
        "ID": now.id if full else now.id[:12],
        "Container": typed,
        "Name": now.name,
        "CPUPerc": f"{cpu_percent(now, before):.2f}%",
        "MemUsage": memory,
        "MemPerc": f"{share:.2f}%",
        "NetIO": f"{size(now.network_received_bytes)} / {size(now.network_sent_bytes)}",
        "BlockIO": f"{size(now.block_read_bytes)} / {size(now.block_written_bytes)}",
        "PIDs": str(now.pids),
    }


def _empty_row(container_id: str, name: str, *, typed: str, full: bool) -> Row:
    cells = dict.fromkeys(HEADINGS, "--")
    cells |= {"ID": container_id if full else container_id[:12], "Container": typed, "Name": name}
    cells["MemUsage"] = cells["NetIO"] = cells["BlockIO"] = "-- / --"
    return cells


def _targets(values: Values) -> list[tuple[str, str, str]]:
    """What to show: (id, name, as typed)."""
    names = values.words("CONTAINER")
    if names:
        ids = [(service().find(name), name) for name in names]
        return [(i, service().store.read(i).name, name) for i, name in ids]
    every = values.flag("all")
    return [
        (view.id, view.name, view.id[:12])
        for view in service().list()
        if every or view.state in ("running", "paused")
    ]


def _measure(targets: list[tuple[str, str, str]]) -> dict[str, StatsView]:
    found: dict[str, StatsView] = {}
    for container_id, _, _ in targets:
        try:
            found[container_id] = service().stats(container_id)
        except (ScowError, OSError):
            continue  # it does not run, or has just ended: shown as dashes
    return found


def _stats(values: Values) -> int:
    form, full = values.text("format"), values.flag("no-trunc")
    live = not values.flag("no-stream")
    redraw = live and sys.stdout.isatty() and form in (None, "", "table")
    before: dict[str, StatsView] = {}
    first = _measure(_targets(values))
    while True:
        if before or live or first:
            time.sleep(INTERVAL_S)
        before = before or first
        targets = _targets(values)
        now = _measure(targets)
        rows = [
            row(now[i], before.get(i), typed=typed, full=full)
            if i in now
            else _empty_row(i, name, typed=typed, full=full)
            for i, name, typed in targets
        ]
        if redraw:
            sys.stdout.write("\x1b[H\x1b[J")
        write_rows(rows, columns=_COLUMNS, headings=HEADINGS, form=form)
        sys.stdout.flush()
        before = now
        if not live:
            return 0


STATS = Command(
    "stats",
    "Show what running containers use: CPU, memory, network, disk",
    _stats,
    description="Goes on every second until Ctrl-C. 100 % CPU is one CPU.",
    arguments=(
        Argument(
            "CONTAINER", "Only these; all that run when left out", count="*", complete="running"
        ),
    ),
    options=(
        flag("-a", "--all", help="Show stopped containers, too"),
        flag("--no-stream", help="Measure once"),
        flag("--no-trunc", help="Show whole ids"),
        text("--format", metavar="FORMAT", help="'table', 'json', or a Go template"),
    ),
    examples=(("scow stats --no-stream", "one look"),),
)
