"""Ending the processes of a cgroup, without ever hitting another one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from scow.native.errors import DeadlineExceeded

# Long enough for a kernel to tear down a big address space; after that it is uninterruptible.
KILL_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 0.02


def signal_all(list_pids: Callable[[], list[int]], number: int = signal.SIGKILL) -> int:
    """Send `number` to each listed process; gives how many took it.

    A pid can be reused between the list and the signal. So: pidfds first, then the list once
    more. A pid that is listed again after its pidfd was opened is either the process that the
    pidfd names, or that process has ended and the signal goes nowhere (ESRCH).
    """
    opened: list[tuple[int, int]] = []
    try:
        for pid in list_pids():
            try:
                opened.append((pid, os.pidfd_open(pid)))
            except OSError:
                continue  # it ended, or is a thread; a threaded cgroup is killed by its leader
        still = set(list_pids())
        sent = 0
        for pid, fd in opened:
            if pid <= 1 or pid not in still:
                continue
            try:
                signal.pidfd_send_signal(fd, number)
                sent += 1
            except ProcessLookupError:
                continue
        return sent
    finally:
        for _, fd in opened:
            os.close(fd)


def wait_until_empty(
    list_pids: Callable[[], list[int]],
    *,
    what: str,
    again: Callable[[], object] | None = None,
    timeout_s: float = KILL_TIMEOUT_S,
) -> None:
    """Wait until no process is listed; `again` is called for those that take long.

    Not at once: freezing what is just about to die, to signal it a second time, makes it live
    longer. Raises DeadlineExceeded that names who stays.
    """
    deadline = time.monotonic() + timeout_s
    pause = 0.0002
    while pids := list_pids():
        if time.monotonic() >= deadline:
            names = ", ".join(map(str, pids[:8]))
            raise DeadlineExceeded(
                f"processes of '{what}' did not end within {timeout_s:g} s of SIGKILL: {names}",
                hint="they wait for a device or a network file system; removal is pending",
            )
        time.sleep(pause)
        if pause >= _LONGEST_PAUSE_S and again is not None:
            again()
        pause = min(pause * 2, _LONGEST_PAUSE_S)
