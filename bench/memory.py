"""What a runtime's own processes take while one `run` stays in front: looked at as often as it goes.

The container's program is not counted. ru_maxrss would not do: it also remembers what the process was
before its execve, which is the one that measures.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress

from cases import Result
from runtimes import Failed

LOOK_S = 0.6
_TIMES = 3


def measure(taking_part: dict[str, tuple[list[str], dict[str, str]]], bundle: str) -> list[Result]:
    """The peak of the biggest process, and of the proportional sum of all of them.

    `taking_part`: by name, the whole command line up to the command, and its environment.
    """
    biggest = Result("Memory: the biggest process of one `run`, peak resident", "MB")
    together = Result("Memory: all processes of one `run`, peak of the proportional sum", "MB")
    for _ in range(_TIMES):
        for name, (program, environment) in taking_part.items():
            try:
                peak, total = _watch(program, {**os.environ, **environment}, bundle)
            except Failed as error:
                biggest.errors[name] = together.errors[name] = str(error)
                continue
            biggest.samples.setdefault(name, []).append(peak / 1024)
            together.samples.setdefault(name, []).append(total / 1024)
    return [biggest, together]


def _watch(program: list[str], environment: dict[str, str], bundle: str) -> tuple[int, int]:
    """Both in KiB, of one run."""
    null = subprocess.DEVNULL
    peaks: dict[int, int] = {}
    total = 0
    argv = [*program, "run", "--bundle", bundle, "bench-memory"]
    with subprocess.Popen(argv, env=environment, stdin=null, stdout=null, stderr=null) as running:
        roots = [running.pid, *_warm(program, environment)]
        end = time.monotonic() + LOOK_S
        while time.monotonic() < end:
            found = {pid for root in roots for pid in tree(root) if not _is_program(pid)}
            for pid in found:
                peaks[pid] = max(peaks.get(pid, 0), _kib(pid, "status", "VmHWM"))
            total = max(total, sum(_kib(pid, "smaps_rollup", "Pss") for pid in found))
        early = running.poll() is not None
        for command in (["kill", "bench-memory", "KILL"], ["delete", "--force", "bench-memory"]):
            done = [*program, *command]
            subprocess.run(done, env=environment, stdout=null, stderr=null, check=False)
            with suppress(subprocess.TimeoutExpired):
                running.wait(1)
    if early:
        raise Failed("its run ended early")
    return max(peaks.values()), total


def _warm(program: list[str], environment: dict[str, str]) -> list[int]:
    """scow-oci's warm process: it is part of the price."""
    if not environment.get("SCOW_OCI_WARM", "").startswith("/"):
        return []
    done = subprocess.run([*program, "warm"], env=environment, capture_output=True, check=False)
    return [int(word) for word in done.stdout.split()[:1]]


def tree(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    with suppress(OSError):
        for task in os.listdir(f"/proc/{root}/task"):
            with open(f"/proc/{root}/task/{task}/children") as stream:
                for child in stream.read().split():
                    yield from tree(int(child))


def _is_program(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/comm") as stream:
        return stream.read().strip() in ("sleep", "busybox", "sh", "unshare", "mount", "mktemp")
    return True


def _kib(pid: int, name: str, key: str) -> int:
    with suppress(OSError), open(f"/proc/{pid}/{name}") as stream:
        found = re.search(rf"^{key}:\s+(\d+)", stream.read(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def await_end(pid: int) -> None:
    """Wait until a process is gone, or only its parent's to reap."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as stream:
                if stream.read().rpartition(")")[2].split()[0] in "ZX":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.001)
    raise Failed(f"process {pid} does not end")
