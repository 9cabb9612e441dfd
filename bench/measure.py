"""One command: how long it took, what it and its daemons used of the processors and of memory."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from memory import tree
from runtimes import Failed

LOOK_S = 0.05
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """What one command cost."""

    wall_ms: float
    cpu_ms: float
    peak_mb: float


class _Watch(threading.Thread):
    """Looks at the memory of some processes and of all below them until it is told to stop."""

    def __init__(self, roots: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.roots = roots
        self.peak_kb = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """The thread."""
        while not self.ended.wait(LOOK_S):
            pids = [pid for root in self.roots for pid in tree(root)]
            self.peak_kb = max(self.peak_kb, sum(map(_pss_kb, pids)))


def _pss_kb(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as stream:
        found = re.search(r"^Pss:\s+(\d+) kB", stream.read(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def _cpu_ms(pid: int) -> float:
    """Of a process and its children, those that it has waited for included."""
    total = 0.0
    for each in tree(pid):
        with suppress(OSError), open(f"/proc/{each}/stat") as stream:
            total += sum(map(int, stream.read().rpartition(")")[2].split()[11:15])) * _TICK_MS
    return total


def measure(
    argv: Sequence[str], environment: Mapping[str, str], daemons: Sequence[int] = ()
) -> Sample:
    """Run it to its end; Failed with its last words when that is not a success."""
    before = sum(map(_cpu_ms, daemons))
    with tempfile.TemporaryFile() as output:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
        ]
        begin = time.perf_counter()
        pid = os.posix_spawnp(argv[0], argv, {**os.environ, **environment}, file_actions=actions)
        watch = _Watch((pid, *daemons))
        watch.start()
        _, status, usage = os.wait4(pid, 0)
        wall_s = time.perf_counter() - begin
        watch.ended.set()
        watch.join()
        if status != 0:
            output.seek(0)
            words = output.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Failed(" ".join(words) or f"{argv[0]} ended with status {status}")
    own = 1000 * (usage.ru_utime + usage.ru_stime)
    beside = sum(map(_cpu_ms, daemons)) - before
    return Sample(1000 * wall_s, own + beside, watch.peak_kb / 1024)
