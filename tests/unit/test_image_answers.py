"""Answers that go on for ever without a single silence: F5 and F8 of the checklist, below http.client."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.fake_registry import QUICK
from scow.image import answer
from scow.image.reference import parse_reference
from scow.image.registry import Registry
from scow.image.transport import Transport
from scow.native.errors import RegistryError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
# What comes first, what comes for ever, and the pause between the two.
ENDLESS: dict[str, tuple[bytes, bytes, float]] = {
    "F5 a head by drops": (HEAD + b"X: ", b"y", 0.02),
    "F5 interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0),
    "F5 a chunk's length by drops": (CHUNKED + b"5", b";", 0.02),
    "F8 trailers": (CHUNKED + b"5\r\nhello\r\n0\r\n", b"X: y\r\n" * 100, 0),
}


class Server:
    """One that sends what it is told to everybody, until they hang up or it is closed."""

    def __init__(self) -> None:
        self.first, self.rest, self.pause_s = b"", b"", 0.0
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.02)
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, run: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client = self._listener.accept()[0]
            except TimeoutError:
                continue
            self._start(lambda client=client: self._serve(client))  # type: ignore[misc]  # its default is its own

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(5)
        with client:
            try:
                client.recv(1 << 16)
                client.sendall(self.first)
                while self.rest and not self._over.wait(self.pause_s):
                    client.sendall(self.rest)
            except OSError:
                pass  # they hung up, as they should

    def close(self) -> None:
        self._over.set()
        self._threads[0].join(20)
        for thread in self._threads:
            thread.join(20)
        self._listener.close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with closing(Server()) as made:
        yield made


@pytest.mark.parametrize("case", ENDLESS)
def test_an_answer_without_end_or_silence(
    server: Server, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the clock this never ends; 20 s tell it from that on any machine."""
    monkeypatch.setattr(answer, "SILENCES", 0.03)
    server.first, server.rest, server.pause_s = ENDLESS[case]
    caught: list[BaseException] = []

    def ask() -> None:
        with Registry(parse_reference(f"{server.host}/a/b"), patience=QUICK) as registry:
            try:
                registry.get_manifest("latest")
            except BaseException as error:
                caught.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(20)
    [error] = caught
    assert isinstance(error, RegistryError)
    assert "sends too slowly" in error.message


def test_whoever_reads_slowly_is_not_the_registry(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: the clock runs only while we wait for the other side."""
    monkeypatch.setattr(answer, "SILENCES", 0.03)
    size = 4 << 20
    server.first = HEAD + b"Content-Length: %d\r\n\r\n" % size + bytes(size)
    transport = Transport(f"http://{server.host}", plain_http=True, patience=QUICK)
    with closing(transport), transport.get(f"http://{server.host}/x") as response:
        total = 0
        for number, chunk in enumerate(response.chunks()):
            total += len(chunk)
            if number < 2:
                time.sleep(0.4)  # longer than the limit
    assert total == size


def test_every_way_has_the_clock() -> None:
    """With TLS and by a proxy, too."""
    transport = Transport("https://registry.example")
    with closing(transport):
        adapter = transport._adapter("https://registry.example/v2/")
        for manager in (adapter.poolmanager, adapter.proxy_manager_for("http://127.0.0.1:1")):
            for pool in manager.pool_classes_by_scheme.values():
                assert issubclass(pool.ConnectionCls.response_class, answer.Answer)
