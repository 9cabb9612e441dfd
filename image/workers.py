"""Threads whose end nobody waits for without end: a dead disk keeps a thread for ever.

What belongs here: as much of concurrent.futures' pool as an install needs. Its own joins all threads at
the end of the block and once more at the end of the process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
GRACE_S = 10.0  # after a failure; what has not ended by then is left behind
HASTE_S = 2.0  # after a signal: somebody waits, and the process is about to end


class Workers:
    """At most `count` daemon threads; at the end of the block they have ended, or hang."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._threads: list[threading.Thread] = []
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._futures: list[Future[object]] = []

    def submit(self, call: Callable[P, T], *words: P.args, **more: P.kwargs) -> Future[T]:
        """Have a thread make this call."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(*words, **more))
                except BaseException as e:
                    future.set_exception(e)

        self._futures.append(future)  # type: ignore[arg-type]  # only to be cancelled
        self._work.put(run)
        if len(self._threads) < self._count:
            thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def _loop(self) -> None:
        while (run := self._work.get()) is not None:
            run()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for future in self._futures:
            future.cancel()
        for _ in self._threads:
            self._work.put(None)
        is_signal = kind is not None and not issubclass(kind, Exception)
        deadline = time.monotonic() + (HASTE_S if is_signal else GRACE_S)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
