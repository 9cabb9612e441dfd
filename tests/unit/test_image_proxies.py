"""Proxies between scow and registries: HTTP_PROXY, HTTPS_PROXY, NO_PROXY."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.fake_registry import QUICK, FakeRegistry, Handler
from fixtures.tokens import make_certificate
from scow.image import tls
from scow.image.reference import parse_reference
from scow.image.registry import Registry
from scow.image.transport import proxies_for
from scow.native.errors import RegistryError

REFERENCE = parse_reference("reg.example/team/app")  # nowhere to be found without the proxy


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tls, "CERTIFICATE_DIRS", (str(tmp_path / "certs.d"),))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Takes itself for a proxy, too: the request then names the host in full."""
    fake = FakeRegistry()
    fake.add_image(b"x")

    def hook(handler: Handler) -> bool:
        handler.path = handler.path.removeprefix("http://reg.example")
        return False

    fake.hooks.append(hook)
    yield fake
    fake.close()


def test_which_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inner.example,10.0.0.0/8,.suffix.example")
    assert proxies_for("https://quay.io/v2/")["https"] == "http://proxy.example:3128"
    for host in ("inner.example", "10.1.2.3:5000", "a.suffix.example"):
        assert proxies_for(f"https://{host}/v2/").get("https") is None
    for host in ("localhost:5000", "127.0.0.1:5000", "[::1]:5000"):
        assert proxies_for(f"https://{host}/v2/") == {}


def test_http_by_proxy(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:s3cret@{registry.host}")
    with Registry(REFERENCE, plain_http=True, patience=QUICK) as client:
        assert client.head_manifest("latest") is not None
    (headers,) = registry.requests("http://reg.example/v2/team/app/")
    assert headers["Host"] == "reg.example"
    assert headers["Proxy-Authorization"].startswith("Basic ")


def test_errors_name_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cret@127.0.0.1:{port}")
        with Registry(REFERENCE, patience=QUICK) as client, pytest.raises(RegistryError) as caught:
            client.head_manifest("latest")
    assert caught.value.message == (
        "cannot connect to the proxy for registry 'reg.example': connection refused"
    )
    assert "s3cret" not in f"{caught.value!r} {caught.value.hint}"


@contextlib.contextmanager
def tunnel(target: str, refuse: bool = False) -> Iterator[tuple[str, list[str]]]:
    """A proxy that answers CONNECT, whatever the host, with a way to `target`."""
    asked: list[str] = []
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):  # either side may hang up
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(4096)
                if not data:
                    return
                head += data
            asked.append(head.decode())
            if refuse:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            host, _, port = target.partition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not ended.is_set():
                    for source in select.select([client, server], [], [], 0.05)[0]:
                        data = source.recv(65536)
                        if not data:
                            return
                        (server if source is client else client).sendall(data)

    def accept() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                client = listener.accept()[0]
                threads.append(threading.Thread(target=serve, args=(client,)))
                threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            ended.set()
            for thread in (acceptor, *threads):
                thread.join()


def test_https_by_proxy(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is the registry's, through the tunnel, and is checked like any."""
    certificate, key = make_certificate(tmp_path, "reg", "DNS:reg.example", kind="ec")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    registry.server.socket = context.wrap_socket(
        registry.server.socket, server_side=True, do_handshake_on_connect=False
    )
    with tunnel(registry.host) as (proxy, asked):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cret@{proxy}")
        client = Registry(REFERENCE, patience=QUICK)
        with client, pytest.raises(RegistryError, match="is self-signed"):
            client.head_manifest("latest")
        place = tmp_path / "certs.d/reg.example"
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes(certificate.read_bytes())
        with Registry(REFERENCE, patience=QUICK) as client:
            assert client.head_manifest("latest") is not None
    assert all(head.startswith("CONNECT reg.example:443 HTTP/1.") for head in asked)
    assert "Proxy-Authorization: Basic" in asked[0]
    # What is for the proxy goes no further.
    assert all("Proxy-Authorization" not in headers for _, _, headers in registry.log)


def test_a_proxy_that_wants_another_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with tunnel("", refuse=True) as (proxy, _asked):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cret@{proxy}")
        with Registry(REFERENCE, patience=QUICK) as client, pytest.raises(RegistryError) as caught:
            client.head_manifest("latest")
    assert "the proxy for registry 'reg.example'" in caught.value.message
    assert "407" in caught.value.message
    assert "s3cret" not in str(caught.value)
