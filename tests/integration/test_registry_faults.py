"""Debian's docker-registry behind a proxy that spoils its answers: badinput.md F.

Where the rows are: F1 test_image_tls.py, and here; F2 and F3 test_image_registry.py,
test_registry_auth.py; F4 to F9 here, in test_image_registry.py and, at mirrors, in
test_image_hosts.py; F10 test_image_registry.py (credentials); F11 tests/fault. C1 to C3
test_reference_grammar.py, C4 and C5 test_image_registry.py, test_image_pull.py, and here.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures import faults
from fixtures.faults import Exchange, Fault, FaultProxy
from fixtures.handmade import Archive, file, pack
from fixtures.registry import Registry
from scow.image import hosts, tls
from scow.image.progress import SilentProgress
from scow.image.pull import pull_image
from scow.image.store import Image, ImageStore
from scow.image.transport import Patience
from scow.native.errors import (
    IntegrityError,
    NotFound,
    PermissionDenied,
    RegistryError,
    ScowError,
)

QUICK = Patience(
    connect_s=10,
    idle_s=10,
    stall_window_s=0.5,
    stall_bytes=10_000,
    attempts=3,
    backoff_s=0.01,
    retry_after_limit_s=0.5,
)
HASTY = replace(QUICK, idle_s=1.5)  # where silence is what is tried
SIZE = 700_000  # of the one layer, which does not compress


@pytest.fixture(scope="module")
def blobs() -> dict[str, str]:
    """What the image has, by kind."""
    return {}


@pytest.fixture(scope="module")
def name(
    registry: Registry, blobs: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A small image at the real registry: `faults/app:1`."""
    archive = Archive()
    archive.add("app", [pack([file("bin/app", os.urandom(SIZE), 0o755)])])
    path = archive.write(tmp_path_factory.mktemp("faults") / "app.tar")
    registry.push(f"oci-archive:{path}:app", "faults/app:1")
    manifest = json.loads(
        registry.get(
            "/v2/faults/app/manifests/1", Accept="application/vnd.oci.image.manifest.v1+json"
        )
    )
    blobs |= {
        "layer": manifest["layers"][0]["digest"],
        "config": manifest["config"]["digest"],
        "size": str(manifest["layers"][0]["size"]),
    }
    return "faults/app:1"


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy.start(registry.host) as proxy:
        yield proxy


@pytest.fixture
def store(scow_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setattr(hosts, "HOSTS_DIRS", (str(tmp_path / "certs.d"),))
    monkeypatch.setattr(tls, "CERTIFICATE_DIRS", (str(tmp_path / "certs.d"),))
    return ImageStore(str(scow_root))


class Warnings(SilentProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, message: str) -> None:
        self.texts.append(message)


def pull(store: ImageStore, proxy: FaultProxy, name: str, patience: Patience = QUICK) -> Image:
    return pull_image(store, f"{proxy.host}/{name}", patience=patience)


def layer(blobs: dict[str, str]) -> str:
    return f"GET .*/blobs/{blobs['layer']}"


# -- what scow gets over --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "times", "offsets"),
    [
        pytest.param(faults.cut(0), 1, [0, 0], id="F5-closed-at-once"),
        pytest.param(faults.cut(350_000), 1, [0, 350_000], id="F5-closed-at-half"),
        pytest.param(faults.stall(100_000), 1, [0, 100_000], id="F5-stall"),
        pytest.param(faults.length(lambda n: str(n + 99)), 1, [0], id="F5-length-too-long"),
        pytest.param(faults.length(lambda n: str(n - 99)), 1, [0, -99], id="F5-length-too-short"),
        pytest.param(faults.length(lambda n: "-5"), 1, [0], id="F5-length-negative"),
        pytest.param(faults.length(lambda n: "1" * 18), 1, [0], id="F5-length-huge"),
        pytest.param(faults.no_length, 1, [0], id="F5-no-length"),
        pytest.param(faults.chunked(), 1, [0], id="F5-chunked"),
        pytest.param(faults.chunked(250_000), 1, [0, 250_000], id="F5-chunked-broken"),
        pytest.param(faults.slow(2_000_000), 1, [0], id="F5-slow-but-alive"),
        pytest.param(faults.status(500), 2, [0, 0, 0], id="F4-500"),
        pytest.param(faults.status(503, Retry_After="0"), 1, [0, 0], id="F4-503"),
        pytest.param(faults.status(429, Retry_After="0"), 2, [0, 0, 0], id="F4-429"),
        pytest.param(faults.status(401), 0, [0], id="nothing"),
    ],
)
def test_a_layer_comes_in_spite_of(
    store: ImageStore,
    proxy: FaultProxy,
    name: str,
    blobs: dict[str, str],
    fault: Fault,
    times: int,
    offsets: list[int],
    request: pytest.FixtureRequest,
) -> None:
    """The blob is resumed where it stopped: negative offsets count from its end."""
    proxy.spoil(layer(blobs), fault, times=times)
    image = pull(store, proxy, name, HASTY if "stall" in request.node.name else QUICK)
    asked = [int(h.get("Range", "bytes=0-")[6:].split("-")[0]) for h in proxy.asked(layer(blobs))]
    size = int(blobs["size"])
    assert asked == [o if o >= 0 else size + o for o in offsets]
    assert len(image.diff_ids) == 1
    assert store.verify() == []


@pytest.mark.parametrize(
    ("second", "offsets"),
    [
        pytest.param(faults.ignore_range, [0, 300_000], id="F6-range-ignored"),
        pytest.param(faults.content_range("bytes 0-9/10"), [0, 300_000, 0], id="F6-another-range"),
        pytest.param(faults.content_range("garbage"), [0, 300_000, 0], id="F6-garbage"),
        pytest.param(faults.status(416), [0, 300_000, 0], id="F6-416"),
    ],
)
def test_resuming_in_spite_of(
    store: ImageStore,
    proxy: FaultProxy,
    name: str,
    blobs: dict[str, str],
    second: Fault,
    offsets: list[int],
) -> None:
    proxy.spoil(layer(blobs), faults.cut(300_000), times=1)
    proxy.spoil(layer(blobs), second, times=1)
    pull(store, proxy, name)
    asked = [int(h.get("Range", "bytes=0-")[6:].split("-")[0]) for h in proxy.asked(layer(blobs))]
    assert asked == offsets
    assert store.verify() == []


def changed(body: bytes, etag: str) -> Fault:
    """Another content at the same address, as after a proxy's cache was damaged."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.ask()
        data = body[len(body) - len(answer.body) :]
        exchange.head(answer.status, {**answer.headers, "Etag": etag})
        exchange.send(data[: len(data) // 2])
        exchange.end()

    return fault


def test_content_that_changes_under_way(
    store: ImageStore, proxy: FaultProxy, name: str, blobs: dict[str, str]
) -> None:
    """F6, ETag changed: half of one content and half of another; then all again, from byte 0."""
    wrong = bytes(int(blobs["size"]))
    proxy.spoil(layer(blobs), changed(wrong, '"other"'), times=1)
    pull(store, proxy, name)
    offsets = [int(h.get("Range", "bytes=0-")[6:].split("-")[0]) for h in proxy.asked(layer(blobs))]
    assert offsets == [0, len(wrong) // 2, 0]
    assert store.verify() == []


def test_a_cut_manifest(store: ImageStore, proxy: FaultProxy, name: str) -> None:
    proxy.spoil("GET .*/manifests/", faults.cut(20), times=1)
    pull(store, proxy, name)
    assert len(proxy.asked("GET .*/manifests/")) == 2


# -- what scow refuses ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        pytest.param(faults.drip(), RegistryError, "sends too slowly", id="F5-slow-loris"),
        pytest.param(faults.stall(10), RegistryError, "stopped answering", id="F5-stalls-for-ever"),
        pytest.param(faults.two_lengths, RegistryError, "malformed", id="F5-two-lengths"),
        pytest.param(faults.endless, IntegrityError, "got more", id="F5-never-ending"),
        pytest.param(faults.flip(1000), IntegrityError, "expected this digest, got sha256:", id="F9-one-bit"),
        pytest.param(faults.flip(0), IntegrityError, "expected this digest", id="F9-no-gzip-any-more"),
        pytest.param(faults.status(403), PermissionDenied, "denies access", id="F4-403"),
        pytest.param(faults.status(404), NotFound, "has no blob", id="F4-404"),
        pytest.param(faults.status(500), RegistryError, "failed with status 500", id="F4-500"),
        pytest.param(faults.status(502), RegistryError, "failed with status 502", id="F4-502"),
        pytest.param(faults.status(504), RegistryError, "failed with status 504", id="F4-504"),
        pytest.param(faults.status(429, Retry_After="61"), RegistryError, "too many requests", id="F4-429"),
        pytest.param(faults.status(429, Retry_After="1000000000"), RegistryError, "too many requests", id="F4-429-1e9"),
        pytest.param(faults.status(429, Retry_After="Fri, 21 Nov 2036 00:00:00 GMT"), RegistryError, "too many requests", id="F4-429-date"),
        pytest.param(faults.status(429, Retry_After="soon"), RegistryError, "too many requests", id="F4-429-garbage"),
        pytest.param(faults.status(200, b"<html>", Content_Type="text/html"), RegistryError, "sent 6 of", id="F4-html"),
        pytest.param(faults.status(302), RegistryError, "status 302", id="F2-no-location"),
        pytest.param(faults.redirect(lambda path: path), RegistryError, "redirects more than 5 times", id="F2-loop"),
        pytest.param(faults.redirect(lambda path: "http://169.254.169.254/x"), RegistryError, "plain http", id="F2-metadata"),
        pytest.param(faults.redirect(lambda path: "https://[fd00:ec2::254]/x"), RegistryError, "link-local", id="F2-metadata-ipv6"),
        pytest.param(faults.redirect(lambda path: "https://100.100.100.200/x"), RegistryError, "link-local", id="F2-metadata-alibaba"),
        pytest.param(faults.redirect(lambda path: "file:///etc/passwd"), RegistryError, "not an http", id="F2-file"),
        pytest.param(faults.more_headers(b"X: " + b"y" * (1 << 20) + b"\r\n"), RegistryError, "malformed", id="F8-header-1MiB"),
        pytest.param(faults.more_headers(b"".join(b"X-%d: y\r\n" % i for i in range(10_000))), RegistryError, "malformed", id="F8-10000-headers"),
    ],
)  # fmt: skip
def test_a_layer_is_refused(
    store: ImageStore,
    proxy: FaultProxy,
    name: str,
    blobs: dict[str, str],
    fault: Fault,
    kind: type[ScowError],
    says: str,
    request: pytest.FixtureRequest,
) -> None:
    """One clear line, no name, no layer; and once the registry is well again, so is the pull."""
    proxy.spoil(layer(blobs), fault)
    with pytest.raises(kind) as caught:
        pull(store, proxy, name, HASTY if "stall" in request.node.name else QUICK)
    assert says in caught.value.message
    assert len(caught.value.message) < 600
    assert store.list() == []
    assert [n for n in os.listdir(Path(store.root, "layers")) if n[0] != "."] == []
    proxy.heal()
    pull(store, proxy, name)
    store.verify(repair=True)
    assert store.verify() == []


@pytest.mark.parametrize(
    ("pattern", "fault", "kind", "says"),
    [
        pytest.param("/manifests/", faults.status(404), NotFound, "no such image", id="F4-404"),
        pytest.param("/manifests/", faults.status(403), PermissionDenied, "denies access", id="F4-403"),
        pytest.param("/manifests/", faults.status(200, b"<html>", Content_Type="text/html"), RegistryError, "is not a registry", id="F4-html"),
        pytest.param("GET .*/manifests/", faults.flip(-1), IntegrityError, "the registry says digest", id="F7-digest-header"),
        pytest.param("GET .*/manifests/", faults.endless, RegistryError, "sent more than", id="F5-never-ending"),
        pytest.param("GET .*/manifests/", faults.cut(20), RegistryError, "closed the connection too early", id="F5-cut"),
        pytest.param("GET .*/manifests/", faults.status(200, b"{}", Content_Type="application/vnd.docker.distribution.manifest.v1+prettyjws"), ScowError, "schema 1", id="D2-schema1"),
        pytest.param("/config", faults.flip(3), IntegrityError, "expected digest sha256:", id="F9-config"),
    ],
)  # fmt: skip
def test_a_manifest_is_refused(
    store: ImageStore,
    proxy: FaultProxy,
    name: str,
    blobs: dict[str, str],
    pattern: str,
    fault: Fault,
    kind: type[ScowError],
    says: str,
) -> None:
    proxy.spoil(pattern.replace("/config", f"/blobs/{blobs['config']}"), fault)
    with pytest.raises(kind) as caught:
        pull(store, proxy, name)
    assert says in caught.value.message
    assert proxy.asked(layer(blobs)) == []
    assert store.list() == []


def test_content_type_lies_about_the_right_bytes(
    store: ImageStore, proxy: FaultProxy, name: str
) -> None:
    """F7: asked by digest, the bytes are what was meant, whatever the server calls them."""
    digest = pull(store, proxy, name).manifest_digest

    def lie(exchange: Exchange) -> None:
        answer = exchange.ask()
        exchange.head(200, answer.headers | {"Content-Type": "text/plain"})
        exchange.send(answer.body)

    store.remove(store.list()[0].id)
    proxy.spoil("GET .*/manifests/", lie)
    image = pull(store, proxy, f"{name.rpartition(':')[0]}@{digest}")
    assert image.manifest_digest == digest


def test_the_tag_vanishes(store: ImageStore, proxy: FaultProxy, name: str) -> None:
    """C5: between the HEAD and the GET."""
    proxy.spoil("GET .*/manifests/", faults.status(404))
    with pytest.raises(NotFound, match="no such image"):
        pull(store, proxy, name)


# -- nobody there, or somebody else (F1) ----------------------------------------------------------


def test_a_tls_server_that_says_nothing(store: ImageStore, tmp_path: Path) -> None:
    """It accepts connections, and that is all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reference = f"127.0.0.1:{silent.getsockname()[1]}/a"
        with pytest.raises(RegistryError, match=r"stopped answering \(timeout\)"):
            pull_image(store, reference, patience=replace(HASTY, connect_s=0.5))


def test_garbage_instead_of_http(store: ImageStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):  # the second connection is to see whether it speaks TLS
                client, _address = server.accept()
                with client:
                    client.recv(1000)
                    client.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(
                RegistryError, match=r"malformed answer|does not speak TLS|TLS with"
            ):
                pull_image(store, f"127.0.0.1:{server.getsockname()[1]}/a", patience=QUICK)
        finally:
            thread.join(20)


def test_old_tls(store: ImageStore, tmp_path: Path) -> None:
    """TLS 1.1 and older is not spoken."""
    from fixtures.tokens import make_certificate

    certificate, key = make_certificate(tmp_path, "old", "IP:127.0.0.1", kind="ec")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        place = tmp_path / "certs.d" / host
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes(certificate.read_bytes())

        def answer() -> None:
            client, _address = server.accept()
            with client, pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(client, server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(RegistryError, match=r"TLS with registry .* failed"):
                pull_image(store, f"{host}/a", patience=QUICK)
        finally:
            thread.join(20)
