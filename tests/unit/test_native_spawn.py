"""Starting the static binary from several threads at once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from scow.native import spawn


def test_threads_share_one_executable(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first ones all found no cached memfd, and the one that was replaced was closed under its user.
    for _ in range(20):
        monkeypatch.setattr(spawn, "_cached_memfd", None)
        with ThreadPoolExecutor(8) as pool:
            fds = list(pool.map(lambda _: spawn.monitor_memfd(), range(8)))
        assert len(set(fds)) == 1
        assert os.readlink(f"/proc/self/fd/{fds[0]}").startswith("/memfd:scow-monitor")
