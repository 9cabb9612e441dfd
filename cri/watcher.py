"""Waiting for the end of a container, whoever started it."""

from __future__ import annotations

import select
import time

from scow.native.errors import ScowError
from scow.runtime.monitor import Exited, MonitorConnection


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
