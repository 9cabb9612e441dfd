"""Waiting for the end of a container, whoever started it."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from scow.native.errors import ScowError
from scow.runtime.monitor import Exited, MonitorConnection

# Between the end of a killed monitor's sockets and its own are microseconds, on a busy host more.
MONITOR_GONE_S = 2.0


def goes_on(is_running: Callable[[], bool], path: str) -> bool:
    """Whether a container runs, and is not just losing the monitor whose socket is at `path`.

    A process that is killed closes its sockets a moment before it is gone from /proc: who saw that
    end may be faster than the kernel.
    """
    deadline = time.monotonic() + MONITOR_GONE_S
    while is_running():
        with Watcher(path, cleans=False) as watcher:
            if watcher.is_connected or time.monotonic() > deadline:
                return True
        time.sleep(0.005)
    return False


class Watcher:
    """A connection to a monitor, or nothing where there is none.

    With `cleans` it tells the monitor that its owner gives back what the container took.
    """

    def __init__(self, path: str, *, cleans: bool) -> None:
        self.exit_code: int | None = None
        try:
            self._connection: MonitorConnection | None = MonitorConnection.connect(path)
            if cleans:
                self._connection.watch()
        except (OSError, ScowError):
            self._connection = None

    @property
    def is_connected(self) -> bool:
        """Whether a monitor answers."""
        return self._connection is not None

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until something happened at the monitor, or the time is over."""
        if self._connection is None:
            time.sleep(0.02 if timeout_s is None else min(0.02, timeout_s))
            return
        poller = select.poll()
        poller.register(self._connection.fileno(), select.POLLIN)
        if not poller.poll(None if timeout_s is None else max(1, int(timeout_s * 1000))):
            return
        event = self._connection.recv()
        if isinstance(event, Exited):
            self.exit_code = event.exit_code
        if event is None:
            self._connection.close()
            self._connection = None
