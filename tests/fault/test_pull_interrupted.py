"""A pull that is stopped in the middle: by a full disk, by a signal."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fixtures.disk import Disk
from fixtures.images import ImageFactory
from fixtures.state import State, expect_refusal

pytestmark = pytest.mark.root


def test_pull_says_so_and_can_be_repeated(tmp_path: Path, images: ImageFactory) -> None:
    reference = images.busybox()
    disk = Disk(tmp_path)
    try:
        state = State(str(disk.path / "root"), str(tmp_path / "run"))
        state.log = str(tmp_path / "victim.log")
        state.ok("images")
        disk.fill()
        with open(disk.path / "ballast", "r+b") as file:
            file.truncate(os.path.getsize(file.name) - (400 << 10))
        expect_refusal(state, "pull", reference)
        assert len(state.ok("images").splitlines()) == 1
        disk.free()
        state.ok("pull", reference)
        state.ok("run", "--rm", "--network", "none", reference, "true")
        state.ok("system", "check", "--repair")
        assert state.ok("system", "check") == "nothing damaged, nothing left behind\n"
    finally:
        disk.close()


class SlowWay:
    """A TCP relay to a registry that lets so many bytes a second through."""

    def __init__(self, port: int, bytes_per_s: int) -> None:
        self._target = port
        self._pause_s = 4096 / bytes_per_s
        self._ended = threading.Event()
        self.flows = threading.Event()  # a layer is on its way
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while select.select([self._server], [], [], 0.1)[0] or not self._ended.is_set():
            if self._ended.is_set():
                return
            self._server.settimeout(0.1)
            with suppress(TimeoutError):
                client, _ = self._server.accept()
                thread = threading.Thread(target=self._relay, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _relay(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(("127.0.0.1", self._target)) as server,
            suppress(OSError),
        ):
            while not self._ended.is_set():
                for source in select.select([client, server], [], [], 0.1)[0]:
                    data = source.recv(4096)
                    if not data:
                        return
                    if source is server and len(data) == 4096:
                        self.flows.set()
                    (server if source is client else client).sendall(data)
                    self._ended.wait(self._pause_s if source is server else 0)

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._server.close()


@contextmanager
def slow_way(reference: str, bytes_per_s: int) -> Iterator[tuple[str, threading.Event]]:
    host, _, rest = reference.partition("/")
    way = SlowWay(int(host.rpartition(":")[2]), bytes_per_s)
    try:
        yield f"127.0.0.1:{way.port}/{rest}", way.flows
    finally:
        way.close()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=str,
)
def test_a_pull_that_gets_a_signal(
    tmp_path: Path, images: ImageFactory, number: signal.Signals, status: int
) -> None:
    state = State(str(tmp_path / "root"), str(tmp_path / "run"))
    with slow_way(images.busybox(), 500_000) as (reference, flows):
        for words in (("pull", reference), ("run", "--rm", "--network", "none", reference, "true")):
            flows.clear()
            process = state.scow.spawn(*words, stderr=subprocess.PIPE)
            assert flows.wait(60)
            process.send_signal(number)
            began = time.monotonic()
            _, errors = process.communicate(timeout=60)
            assert time.monotonic() - began < 30
            assert process.returncode == status, errors
            assert b"Traceback" not in errors
            assert len(state.scow.ok("images").splitlines()) == 1
            assert state.scow.ok("ps", "-aq") == ""
    state.scow.ok("pull", images.busybox())
    state.scow.ok("run", "--rm", "--network", "none", images.busybox(), "true")
    state.scow.ok("system", "check", "--repair")
    assert state.scow.ok("system", "check") == "nothing damaged, nothing left behind"
