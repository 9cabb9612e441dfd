"""A network that fails now and then: what is tried again, and what the user reads."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.fake_registry import QUICK, FakeRegistry, Handler, HashingLayers, sha
from scow.image.pull import pull_image
from scow.image.store import ImageStore
from scow.image.transport import Transport
from scow.image.transport_errors import TransportError, explain
from scow.native.errors import RegistryError


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    registry = FakeRegistry()
    registry.add_image(b"layer" * 1000)
    yield registry
    registry.close()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "root"), HashingLayers(str(tmp_path / "layers")))


def pull(store: ImageStore, registry: FakeRegistry) -> None:
    pull_image(store, f"{registry.host}/team/app", patience=QUICK)


def cut_headers(handler: Handler) -> None:
    """http.client takes it for an answer without headers and without a body."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


@pytest.mark.parametrize("part", ["GET /v2/team/app/manifests", "/blobs/", "GET /token"])
@pytest.mark.parametrize("times", [1, 99])
def test_an_answer_cut_in_its_headers(
    store: ImageStore, registry: FakeRegistry, part: str, times: int
) -> None:
    left = times

    def hook(handler: Handler) -> bool:
        nonlocal left
        if left and part in f"{handler.command} {handler.path}":
            left -= 1
            cut_headers(handler)
            return True
        if handler.path.startswith("/token"):
            handler.reply(200, b'{"token":"t"}')
            return True
        if part.endswith("token") and not handler.headers.get("Authorization"):
            realm = f'Bearer realm="http://{registry.host}/token",service="x"'
            handler.reply(401, headers={"WWW-Authenticate": realm})
            return True
        return False

    registry.hooks.append(hook)
    if times == 1:
        pull(store, registry)
        return
    with pytest.raises(RegistryError, match="closed the connection too early") as caught:
        pull(store, registry)
    assert "pull again" in (caught.value.hint or "")
    registry.hooks.clear()
    pull(store, registry)


def test_an_error_in_no_known_letters(store: ImageStore, registry: FakeRegistry) -> None:
    def hook(handler: Handler) -> bool:
        handler.reply(500, b'{"errors":[{"message":"\xe7\xff"}]}')
        return True

    registry.hooks.append(hook)
    with pytest.raises(RegistryError, match="failed with status 500"):
        pull(store, registry)


@pytest.mark.parametrize(
    "fault",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_who_was_there_may_come_again(
    store: ImageStore, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, fault: OSError
) -> None:
    """A network that is gone for a moment amid a pull: at its begin it is told at once."""
    real, left = Transport._adapter, 2
    refused: list[str] = []

    def adapter(self: Transport, url: str) -> object:
        nonlocal left
        if left and "/blobs/" in url:
            left -= 1
            refused.append(url)
            raise fault
        return real(self, url)

    monkeypatch.setattr(Transport, "_adapter", adapter)
    pull(store, registry)
    assert len(refused) == 2
    assert not explain(fault, "there").is_transient
    assert explain(fault, "there").hint


def test_a_resolver_that_does_not_answer_is_asked_again() -> None:
    fault = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert explain(fault, "there").is_transient
    assert "DNS" in (explain(fault, "there").hint or "")


@pytest.mark.parametrize("setting", ["no proxy url", "socks5://127.0.0.1:1", "http://"])
def test_a_proxy_setting_that_makes_no_sense(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", setting)
    with pytest.raises(TransportError, match="proxy") as caught:
        pull_image(store, "registry.invalid/a", patience=QUICK)
    assert "HTTPS_PROXY" in (caught.value.hint or "")


def test_a_cut_layer_goes_on_in_the_next_pull(store: ImageStore, registry: FakeRegistry) -> None:
    data = os.urandom(3 << 20)
    registry.add_image(data, tag="big")
    layer = next(digest for digest, blob in registry.blobs.items() if len(blob) > len(data))
    half = len(registry.blobs[layer]) // 2

    def hook(handler: Handler) -> bool:
        if layer not in handler.path:
            return False
        if "Range" in handler.headers:
            cut_headers(handler)
        else:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(registry.blobs[layer])))
            handler.end_headers()
            handler.wfile.write(registry.blobs[layer][:half])
            handler.close_connection = True
        return True

    registry.hooks.append(hook)
    with pytest.raises(RegistryError):
        pull_image(store, f"{registry.host}/team/app:big", patience=QUICK)
    registry.hooks.clear()
    registry.log.clear()
    image = pull_image(store, f"{registry.host}/team/app:big", patience=QUICK)
    assert [h.get("Range") for h in registry.requests(layer)] == [f"bytes={half}-"]
    assert image.diff_ids == (sha(data),)
