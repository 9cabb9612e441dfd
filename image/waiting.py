"""Waiting for a lock that another process has: not for ever, and it is said who has it.

What belongs here: flock with a clock. What must not: which locks there are. The clock stands still while
the holder works (its processor time grows); it runs while it is stopped, or stuck in the kernel.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import NamedTuple

from scow.native.errors import DeadlineExceeded

PATIENCE_S = 60.0
_POLL_S = 0.02
_STATES = {
    "T": "is stopped",
    "t": "is stopped by a debugger",
    "D": "is stuck in the kernel (state D)",
}


class Holder(NamedTuple):
    """A process that has a lock; `state` as in proc(5), "" where it has ended."""

    pid: int
    command: str
    state: str
    ticks: int  # processor time so far

    def __str__(self) -> str:
        if not self.state:
            return "a child of a process that has ended has it"
        does = _STATES.get(self.state, "does not let go of it")
        return f"process {self.pid} ('{self.command}') has it, and {does}"

    @property
    def hint(self) -> str:
        """What the user can do about it."""
        if self.state == "T":
            return f"let it go on: kill -CONT {self.pid}; or end it: kill -KILL {self.pid}"
        if self.state == "D":
            return (
                "a disk or a network file system does not answer: look at the kernel's log (dmesg)"
            )
        return f"end it: kill {self.pid}" if self.state else "try again"


def lock_file(fd: int, what: str, *, most_s: float | None = None) -> None:
    """flock(2), exclusively; DeadlineExceeded where the holder does nothing for PATIENCE_S.

    With `most_s` that is the end of the wait, whatever the holder does.
    """
    patience_s = PATIENCE_S if most_s is None else most_s
    pause = 0.0005
    known: Holder | None = None
    since = 0.0
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = time.monotonic()
            if not since or now - since > patience_s:
                holder = find_holder(fd)
                stands_still = holder is None or holder[::3] == (known or holder)[::3]
                if since and (stands_still or most_s is not None):
                    told = holder or "it is not known who has it"
                    raise DeadlineExceeded(
                        f"waited {patience_s:.0f} s for {what}: {told}",
                        hint=holder.hint if holder else None,
                    ) from None
                known, since = holder, now
        time.sleep(pause)
        pause = min(pause * 2, _POLL_S)


def find_holder(fd: int) -> Holder | None:
    """Who has the flock of an open file; None where nobody, or another pid namespace's process."""
    info = os.fstat(fd)
    place = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as file:
            # proc(5): number, kind, mode, access, pid, place; those that wait have a "->" after the number.
            rows = (line.split() for line in file)
            pids = [int(row[4]) for row in rows if row[1] == "FLOCK" and row[5] == place]
    except OSError:
        return None
    return describe(pids[0]) if pids and pids[0] > 0 else None


def describe(pid: int) -> Holder:
    """What a process is and does."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return Holder(pid, "", "", 0)
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(words).strip())
    return Holder(pid, shown[:120], fields[0].decode(), int(fields[11]) + int(fields[12]))
