"""Threads for the blocking methods of the service: bounded, one pool for each kind of call.

A kind that may wait for long cannot keep another from running: StopContainer must get its thread
while 64 ExecSync that never end hold theirs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from scow.native.errors import ResourceExhausted

T = TypeVar("T")

SIZES = {"read": 16, "change": 32, "pull": 8, "exec": 64, "stream": 64}
WAITING_MAX = 512
"""Calls of one kind that may wait for a thread."""

_KINDS = {
    "ExecSync": "exec",
    "PullImage": "pull",
    **dict.fromkeys(
        (
            "RunPodSandbox",
            "StopPodSandbox",
            "RemovePodSandbox",
            "CreateContainer",
            "StartContainer",
            "StopContainer",
            "RemoveContainer",
            "UpdateContainerResources",
            "UpdatePodSandboxResources",
            "CheckpointContainer",
            "CheckpointPod",
            "RestorePod",
            "RemoveImage",
        ),
        "change",
    ),
}


def kind_of(method: str) -> str:
    """The pool that a method runs in."""
    return _KINDS.get(method, "read")


class Pools:
    """All of them. Threads start when they are first needed."""

    def __init__(self) -> None:
        self._pools = {
            kind: ThreadPoolExecutor(size, thread_name_prefix=f"scow-{kind}")
            for kind, size in SIZES.items()
        }
        self._busy = dict.fromkeys(SIZES, 0)
        self._lock = threading.Lock()

    def busy(self) -> dict[str, int]:
        """How many calls of each kind run or wait."""
        return dict(self._busy)

    def submit(self, kind: str, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run `work` in a thread of this kind. A stream does not wait for a thread: it may be for ever."""
        limit = SIZES[kind] + (0 if kind == "stream" else WAITING_MAX)
        with self._lock:
            if self._busy[kind] >= limit:
                raise ResourceExhausted(
                    f"too many calls at once: {limit} of this kind run or wait already",
                    hint="try again when some have ended",
                )
            self._busy[kind] += 1
        running = self._pools[kind].submit(work)
        running.add_done_callback(lambda _: self._done(kind))
        return asyncio.wrap_future(running)

    def _done(self, kind: str) -> None:
        with self._lock:
            self._busy[kind] -= 1

    def close(self) -> None:
        """Take no more work; what runs goes on to its end."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
