"""Descriptors are kept back for those who look and stop: what has no end is refused before the last is gone.

Each running container takes one or two for as long as it runs. Without a reserve the list could not be read, nor
anything be stopped, as soon as one container too many had been started.
"""

from __future__ import annotations

import os
import resource

from scow.native.errors import ResourceExhausted

RESERVE = 64


def _counts() -> tuple[int, int]:
    # proc(5): the size of the directory is how many are open, since Linux 6.2.
    count = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    return count, resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def are_rare() -> bool:
    """Whether half of all are in use: to do without, where one can."""
    count, limit = _counts()
    return count > limit // 2


def require_some() -> None:
    """Raise ResourceExhausted when nothing should be begun that keeps a descriptor."""
    count, limit = _counts()
    if count >= limit - RESERVE:
        raise ResourceExhausted(
            "cannot start one more container: too many open files",
            hint="raise LimitNOFILE= of the service, or 'ulimit -n'",
        )
