"""Pulling from a registry that misbehaves: badinput.md D and F, cves.md section 8.

The registry is a thread on loopback; the layer store is a stand-in that hashes.
"""

from __future__ import annotations

import base64
import gc
import gzip
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.fake_registry import (
    QUICK,
    FakeRegistry,
    Handler,
    sha,
)
from fixtures.hashinglayers import HashingLayers
from scow.image.auth import Challenge, parse_challenges
from scow.image.credentials import Credentials, find_credentials
from scow.image.media_types import OCI_INDEX, OCI_MANIFEST
from scow.image.pull import pull_image
from scow.image.store import Image, ImageStore
from scow.image.targets import check_target
from scow.native.errors import (
    IntegrityError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RegistryError,
    ScowError,
    Unsupported,
)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    yield fake
    fake.close()


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    yield fake
    fake.close()


@pytest.fixture(autouse=True)
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    return home / ".docker" / "config.json"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "scow"), HashingLayers(str(tmp_path / "scow")))


def pull(store: ImageStore, registry: FakeRegistry, name: str = "", **options: Any) -> Image:
    return pull_image(
        store, f"{registry.host}/team/app{name}", patience=options.pop("patience", QUICK), **options
    )


def refused(
    store: ImageStore,
    registry: FakeRegistry,
    kind: type[ScowError],
    says: str,
    name: str = "",
    **options: Any,
) -> ScowError:
    """A pull fails in this way and leaves neither a name nor a piece."""
    with pytest.raises(kind) as caught:
        pull(store, registry, name, **options)
    assert says in caught.value.message, caught.value.message
    assert len(caught.value.message) < 500
    assert store.list() == []
    left = [n for n in os.listdir(store.content.ingest_dir) if not n.startswith("lease-")]
    assert left == []
    return caught.value


def random_bytes(count: int) -> bytes:
    return os.urandom(count)


# -- what works -----------------------------------------------------------------------------------


def test_pull_and_use(store: ImageStore, registry: FakeRegistry) -> None:
    top = registry.add_image(b"one" * 1000, b"two" * 1000)
    image = pull(store, registry)
    assert image.names == (f"{registry.host}/team/app:latest",)
    assert image.digests == (f"{registry.host}/team/app@{top['digest']}",)
    assert image.manifest_digest == top["digest"]
    assert image.config.cmd == ("/bin/true",)
    assert image.size == 6000
    for name in (image.names[0], image.digests[0], image.id, image.id[7:19], image.id[7:]):
        assert store.get(name) == image
    assert [p.split("/")[-2] for p in store.layer_paths(image)] == [
        d[7:] for d in reversed(image.diff_ids)
    ]
    assert store.verify() == []


def test_second_pull_moves_no_blob(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"one", b"two")
    first = pull(store, registry)
    registry.log.clear()
    assert pull(store, registry) == first
    assert [(m, p.split("/")[-2]) for m, p, _ in registry.log] == [("HEAD", "manifests")]


def test_shared_layer_is_fetched_once(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"base", b"a", tag="a")
    registry.add_image(b"base", b"b", tag="b")
    pull(store, registry, ":a")
    registry.log.clear()
    pull(store, registry, ":b")
    assert registry.requests(sha(gzip.compress(b"base", 1, mtime=0))) == []


def test_no_layers_and_repeated_layers(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(tag="empty")
    assert store.layer_paths(pull(store, registry, ":empty")) == []
    registry.add_image(b"x", b"y", b"x", tag="twice")
    image = pull(store, registry, ":twice")
    assert len(image.diff_ids) == 3
    assert len(store.layer_paths(image)) == 2
    assert store.layer_paths(image)[0].split("/")[-2] == sha(b"x")[7:]


def test_tag_moves(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"old")
    old = pull(store, registry)
    registry.add_image(b"new")
    new = pull(store, registry)
    assert new.id != old.id
    assert store.get(old.id).names == ()
    assert store.get(old.id).digests == old.digests
    assert len(store.list()) == 2


def test_pull_by_digest(store: ImageStore, registry: FakeRegistry) -> None:
    top = registry.add_image(b"x")
    image = pull(store, registry, "@" + top["digest"])
    assert image.names == ()
    assert image.digests == (f"{registry.host}/team/app@{top['digest']}",)
    assert pull(store, registry, "").names == (f"{registry.host}/team/app:latest",)
    assert len(store.list()) == 1


def test_content_under_one_name_is_no_proof_for_another(
    store: ImageStore, registry: FakeRegistry
) -> None:
    top = registry.add_image(b"x")
    pull(store, registry, "@" + top["digest"])
    with pytest.raises(NotFound):
        store.get(f"{registry.host}/victim/app@{top['digest']}")
    with pytest.raises(NotFound):
        pull_image(store, f"{registry.host}/victim/app@{top['digest']}", patience=QUICK)


def test_progress_counts(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(random_bytes(3_000_000))
    counts = {"fetched": 0, "unpacked": 0, "start": 0}
    events: list[str] = []

    class Sink:
        def __getattr__(self, name: str) -> Callable[..., None]:
            def note(*args: Any) -> None:
                events.append(name)
                if name in counts:
                    counts[name] += args[1]

            return note

    pull(store, registry, progress=Sink())
    assert counts["fetched"] == counts["unpacked"] == counts["start"] > 3_000_000
    assert events[0] == "resolved"
    assert events[-1] == "done"
    pull(store, registry, progress=Sink())
    assert events[-1] == "exists"


def test_one_download_for_two_pulls(store: ImageStore, registry: FakeRegistry) -> None:
    top = registry.add_image(random_bytes(2_000_000))
    registry.hooks.append(lambda h: "/blobs/" in h.path and bool(time.sleep(0.2)))
    stores = [store, ImageStore(store.root, store.layers)]
    threads = [threading.Thread(target=pull, args=(s, registry)) for s in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    layer = json.loads(registry.manifests[top["digest"]][1])["layers"][0]["digest"]
    assert len(registry.requests(layer)) == 1
    assert store.verify() == []


# -- platforms ------------------------------------------------------------------------------------


def add_index(
    registry: FakeRegistry, *entries: dict[str, Any], tag: str = "latest"
) -> dict[str, Any]:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    return registry.add_manifest(document, OCI_INDEX, tag)


def test_index(store: ImageStore, registry: FakeRegistry) -> None:
    arm = registry.add_image(b"arm", tag="arm", config={"architecture": "arm64"})
    amd = registry.add_image(b"amd", tag="amd")
    note = registry.add_image(b"note", tag="note")
    top = add_index(
        registry,
        note | {"platform": {"os": "unknown", "architecture": "unknown"}},
        arm | {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        amd | {"platform": {"os": "linux", "architecture": "amd64"}},
    )
    image = pull(store, registry, platform="linux/amd64")
    assert image.manifest_digest == amd["digest"]
    assert image.digests == (f"{registry.host}/team/app@{top['digest']}",)
    registry.log.clear()
    assert pull(store, registry, platform="linux/amd64") == image
    assert len(registry.log) == 1
    assert pull(store, registry, platform="linux/arm64").architecture == "arm64"
    with pytest.raises(NotFound) as caught:
        pull(store, registry, platform="linux/s390x")
    assert "linux/amd64, linux/arm64/v8" in (caught.value.hint or "")


def test_nested_indexes(store: ImageStore, registry: FakeRegistry) -> None:
    inner = registry.add_image(b"x", tag="inner")
    entry = inner | {"platform": {"os": "linux", "architecture": "amd64"}}
    two = add_index(registry, add_index(registry, entry, tag="one"), tag="two")
    add_index(registry, two)
    assert pull(store, registry, platform="linux/amd64").manifest_digest == inner["digest"]
    for level in range(20):
        two = add_index(registry, two, tag=f"deep{level}")
    with pytest.raises(InvalidArgument, match="nested more than 3 deep"):
        pull(store, registry, ":deep19")


def test_single_manifest_of_another_architecture(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"x", config={"architecture": "s390x"})
    warnings: list[str] = []

    class Sink:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return warnings.append if name == "warning" else lambda *args: None

    with pytest.raises(NotFound, match="not available for linux/amd64"):
        pull(store, registry, platform="linux/amd64")
    pull(store, registry, progress=Sink())
    assert "linux/s390x" in warnings[0]


def test_windows(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"x", config={"os": "windows"})
    refused(store, registry, Unsupported, "windows/amd64")


# -- documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "media_type", "kind", "says"),
    [
        (b"", OCI_MANIFEST, InvalidArgument, "empty"),
        (b"null", OCI_MANIFEST, InvalidArgument, "invalid manifest"),
        (b"<html>hello</html>", "text/html; charset=utf-8", RegistryError, "not a registry"),
        (b'{"schemaVersion":1,"fsLayers":[]}', "application/json", Unsupported, "schema 1"),
        (b'{"schemaVersion":2,"schemaVersion":2}', OCI_MANIFEST, InvalidArgument, "duplicate key"),
        (b"[" * 100_000, OCI_MANIFEST, InvalidArgument, "nested"),
        (b" " * (5 << 20), OCI_MANIFEST, RegistryError, "more than 4194304 bytes"),
    ],
)
def test_bodies_that_are_no_manifest(
    store: ImageStore,
    registry: FakeRegistry,
    body: bytes,
    media_type: str,
    kind: type[ScowError],
    says: str,
) -> None:
    registry.manifests["latest"] = (media_type, body)
    refused(store, registry, kind, says)


def test_content_type_lies(store: ImageStore, registry: FakeRegistry) -> None:
    top = registry.add_image(b"x")
    data = registry.manifests["latest"][1]
    registry.manifests["latest"] = (OCI_INDEX, data)
    refused(store, registry, InvalidArgument, "announced")
    # By digest the bytes are certain, whatever they are called.
    registry.manifests[top["digest"]] = (OCI_INDEX, data)
    pull(store, registry, "@" + top["digest"])


def test_digest_header_differs(store: ImageStore, registry: FakeRegistry) -> None:
    """F7: the bytes decide."""
    registry.add_image(b"x")
    media_type, data = registry.manifests["latest"]
    headers = {"Content-Type": media_type, "Docker-Content-Digest": "sha256:" + "0" * 64}

    def lie(handler: Handler) -> bool:
        if handler.path.endswith("/latest"):
            handler.reply(200, data, headers)
            return True
        return False

    registry.hooks.append(lie)
    refused(store, registry, IntegrityError, "the registry says digest")


def test_wrong_body_for_digest(store: ImageStore, registry: FakeRegistry) -> None:
    top = registry.add_image(b"x")
    media_type, data = registry.manifests[top["digest"]]
    registry.manifests[top["digest"]] = (media_type, data + b" ")
    refused(store, registry, IntegrityError, "expected digest", "@" + top["digest"])


def test_artifact(store: ImageStore, registry: FakeRegistry) -> None:
    helm = registry.add_blob(b"{}", "application/vnd.cncf.helm.config.v1+json")
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": helm, "layers": []}
    registry.add_manifest(document, tag="latest")
    assert pull(store, registry).artifact_type == helm["mediaType"]


def test_a_foreign_layer_that_is_elsewhere(
    store: ImageStore, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """badinput.md D10: its address is not asked, whoever is there."""
    top = registry.add_image(b"x")
    document = json.loads(registry.manifests[top["digest"]][1])
    layer = document["layers"][0]
    layer["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    layer["urls"] = [f"http://{other.host}/v2/team/app/blobs/{layer['digest']}"]
    registry.add_manifest(document, tag="latest")
    other.blobs[layer["digest"]] = registry.blobs.pop(layer["digest"])
    error = refused(store, registry, NotFound, "has no blob")
    assert "foreign layer" in (error.hint or "")
    assert other.log == []


def test_config_faults(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"x", config={"rootfs": {"type": "layers", "diff_ids": []}})
    refused(store, registry, InvalidArgument, "0 diff ids for 1 layers")
    registry.add_image(b"x", config={"config": {"Env": ["HOME"]}})
    refused(store, registry, InvalidArgument, "KEY=VALUE")
    top = registry.add_image(b"y")
    config = json.loads(registry.manifests[top["digest"]][1])["config"]["digest"]
    data = registry.blobs.pop(config)
    refused(store, registry, NotFound, "no blob")
    registry.blobs[config] = data[:-1]
    refused(store, registry, RegistryError, "sent")
    registry.blobs[config] = b"x" + data[1:]
    refused(store, registry, IntegrityError, "expected digest")


def test_wrong_diff_id(store: ImageStore, registry: FakeRegistry) -> None:
    wrong = {"rootfs": {"type": "layers", "diff_ids": [sha(b"good"), sha(b"something else")]}}
    registry.add_image(b"good", b"bad", config=wrong)
    refused(store, registry, IntegrityError, "layer 1: expected diff id")


# -- blobs ----------------------------------------------------------------------------------------


def blob_hook(
    registry: FakeRegistry, digest: str, answer: Callable[[Handler, bytes, int], bool]
) -> list[int]:
    """`answer(handler, data, try)` for each request of a blob; returns the list of offsets asked."""
    offsets: list[int] = []

    def hook(handler: Handler) -> bool:
        if not handler.path.endswith(digest):
            return False
        asked = handler.headers.get("Range", "bytes=0-")
        offsets.append(int(asked.removeprefix("bytes=").rstrip("-")))
        return answer(handler, registry.blobs[digest], len(offsets))

    registry.hooks.append(hook)
    return offsets


def add_big(registry: FakeRegistry, size: int = 300_000) -> str:
    top = registry.add_image(random_bytes(size))
    return str(json.loads(registry.manifests[top["digest"]][1])["layers"][0]["digest"])


def hang_up(handler: Handler, data: bytes, length: int) -> bool:
    """Announce `length`, send `data`, and go."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(data)
    handler.wfile.flush()
    handler.close_connection = True
    return True


def test_early_close_is_resumed(store: ImageStore, registry: FakeRegistry) -> None:
    digest = add_big(registry)
    offsets = blob_hook(
        registry, digest, lambda h, data, n: n == 1 and hang_up(h, data[:150_000], len(data))
    )
    pull(store, registry)
    assert offsets == [0, 150_000]


def test_range_ignored(store: ImageStore, registry: FakeRegistry) -> None:
    digest = add_big(registry)
    registry.ignores_ranges = True
    offsets = blob_hook(
        registry, digest, lambda h, data, n: n == 1 and hang_up(h, data[:150_000], len(data))
    )
    pull(store, registry)
    assert offsets == [0, 150_000]


@pytest.mark.parametrize("span", ["bytes 0-9/10", "garbage", "", "bytes 150001-299999/300000"])
def test_wrong_content_range(store: ImageStore, registry: FakeRegistry, span: str) -> None:
    """F6: what is not the range that was asked for is not appended."""
    digest = add_big(registry)

    def answer(handler: Handler, data: bytes, count: int) -> bool:
        if count == 1:
            return hang_up(handler, data[:150_000], len(data))
        if "Range" in handler.headers:
            handler.reply(206, data[150_000:], {"Content-Range": span})
            return True
        return False

    offsets = blob_hook(registry, digest, answer)
    pull(store, registry)
    assert offsets == [0, 150_000, 0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (lambda h, d, n: h.reply(200, d[:-1]) or True, RegistryError, "sent"),
        (lambda h, d, n: h.reply(200, d + b"x") or True, IntegrityError, "got more"),
        (lambda h, d, n: h.reply(200, bytes([d[0]]) + d[1:-1] + b"?") or True, IntegrityError, "expected this digest"),
        (lambda h, d, n: h.reply(404) or True, NotFound, "no blob"),
        (lambda h, d, n: h.reply(403) or True, PermissionDenied, "denies access"),
        (lambda h, d, n: hang_up(h, b"", len(d)), RegistryError, "closed the connection too early"),
        (lambda h, d, n: hang_up(h, b"", 1 << 60), RegistryError, "closed the connection too early"),
        (lambda h, d, n: h.reply(200, d, {"Content-Length": "-5"}) or True, None, ""),
        (lambda h, d, n: h.reply(200, d, {"Content-Length": "1, 2"}) or True, RegistryError, "malformed"),
    ],
    ids=range(9),
)  # fmt: skip
def test_wrong_blobs(
    store: ImageStore, registry: FakeRegistry, answer: Any, kind: type[ScowError] | None, says: str
) -> None:
    digest = add_big(registry)

    def once(handler: Handler, data: bytes, count: int) -> bool:
        handler.close_connection = True
        return bool(answer(handler, data, count))

    blob_hook(registry, digest, once)
    if kind is None:
        pull(store, registry)
    else:
        refused(store, registry, kind, says)
    # urllib3 drops the socket of an answer with two lengths; let that be noticed here, not later.
    gc.collect()


def test_body_without_end(store: ImageStore, registry: FakeRegistry) -> None:
    digest = add_big(registry)
    sent = [0]

    def endless(handler: Handler, data: bytes, count: int) -> bool:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        while sent[0] < 1 << 30:
            sent[0] += handler.wfile.write(bytes(65536))
        return True

    blob_hook(registry, digest, endless)
    refused(store, registry, IntegrityError, "got more")
    assert sent[0] < 64 << 20


def test_broken_chunks(store: ImageStore, registry: FakeRegistry) -> None:
    digest = add_big(registry)

    def broken(handler: Handler, data: bytes, count: int) -> bool:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write(b"10\r\n" + data[:16] + b"\r\nzz\r\n")
        return True

    blob_hook(registry, digest, broken)
    refused(store, registry, RegistryError, "closed the connection")


def test_good_chunks(store: ImageStore, registry: FakeRegistry) -> None:
    digest = add_big(registry)

    def chunked(handler: Handler, data: bytes, count: int) -> bool:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(data), 10_000):
            piece = data[start : start + 10_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")
        return True

    blob_hook(registry, digest, chunked)
    pull(store, registry)


def test_stall_and_slow_loris(store: ImageStore, registry: FakeRegistry) -> None:
    """F5: silence, and next to nothing."""
    digest = add_big(registry)

    def stall(handler: Handler, data: bytes, count: int) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:10])
        time.sleep(1)
        handler.close_connection = True
        return True

    blob_hook(registry, digest, stall)
    hasty = replace(QUICK, idle_s=0.5)
    refused(store, registry, RegistryError, "stopped answering", patience=hasty)
    registry.hooks.clear()

    def drip(handler: Handler, data: bytes, count: int) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.close_connection = True
        for position in range(100):
            handler.wfile.write(data[position : position + 1])
            time.sleep(0.03)
        return True

    blob_hook(registry, digest, drip)
    started = time.monotonic()
    refused(store, registry, RegistryError, "too slowly")
    assert time.monotonic() - started < 2


def test_partial_blob_is_continued_by_the_next_pull(
    store: ImageStore, registry: FakeRegistry
) -> None:
    digest = add_big(registry, 3_000_000)
    blob_hook(
        registry,
        digest,
        lambda h, d, n: hang_up(h, d[:2_000_000], len(d)) if n == 1 else hang_up(h, b"", 5),
    )
    with pytest.raises(RegistryError):
        pull(store, registry)
    assert os.listdir(store.content.ingest_dir) != []
    registry.hooks.clear()
    offsets = blob_hook(registry, digest, lambda h, d, n: False)
    pull(store, registry)
    assert offsets == [2_000_000]
    assert store.verify() != []  # the dead lease of the first pull is still known ...
    store.verify(repair=True)
    assert store.verify() == []  # ... until somebody cleans up


def test_wrong_partial_blob_is_thrown_away(store: ImageStore, registry: FakeRegistry) -> None:
    digest = add_big(registry, 3_000_000)
    store.content.prepare()
    path = os.path.join(store.content.ingest_dir, digest.replace(":", "-"))
    Path(path).write_bytes(bytes(2_000_000))
    offsets = blob_hook(registry, digest, lambda h, d, n: False)
    pull(store, registry)
    assert offsets == [2_000_000, 0]


def test_content_encoding_is_not_decoded(store: ImageStore, registry: FakeRegistry) -> None:
    digest = add_big(registry)
    blob_hook(
        registry, digest, lambda h, d, n: h.reply(200, d, {"Content-Encoding": "gzip"}) or True
    )
    pull(store, registry)
    assert registry.requests(digest)[0]["Accept-Encoding"] == "identity"


def test_full_disk(
    store: ImageStore, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F11: said, and nothing is left."""
    import errno

    from scow.image import content
    from scow.native.errors import ResourceExhausted

    add_big(registry)

    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.content.prepare()
    monkeypatch.setattr(content, "write_all", full)
    refused(store, registry, ResourceExhausted, "no space left on device")


# -- statuses -------------------------------------------------------------------------------------


def answer_all(registry: FakeRegistry, *replies: tuple[int, dict[str, str]]) -> None:
    """The first requests get these answers, the last one for ever."""
    left = list(replies)

    def hook(handler: Handler) -> bool:
        status, headers = left.pop(0) if len(left) > 1 else left[0]
        if status == 200:
            return False
        handler.reply(status, b"", headers)
        return True

    registry.hooks.append(hook)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "says"),
    [
        (403, {}, PermissionDenied, "denies access"),
        (404, {}, NotFound, "no such image"),
        (418, {}, RegistryError, "status 418"),
        (429, {}, RegistryError, "too many requests"),
        (429, {"Retry-After": "1000000000"}, RegistryError, "too many requests"),
        (429, {"Retry-After": "garbage"}, RegistryError, "too many requests"),
        (500, {}, RegistryError, "failed with status 500"),
        (503, {"Retry-After": "9" * 100}, RegistryError, "failed with status 503"),
    ],
)
def test_statuses(
    store: ImageStore,
    registry: FakeRegistry,
    status: int,
    headers: dict[str, str],
    kind: type[ScowError],
    says: str,
) -> None:
    """F4: each in words of its own, and soon."""
    answer_all(registry, (status, headers))
    started = time.monotonic()
    error = refused(store, registry, kind, says)
    assert registry.host in error.message or status == 404
    assert time.monotonic() - started < 4


def test_transient_statuses_are_retried(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"x")
    answer_all(registry, (503, {}), (429, {"Retry-After": "0"}), (200, {}))
    pull(store, registry)


def test_head_not_supported(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"x")
    registry.hooks.append(lambda h: h.command == "HEAD" and (h.reply(405) or True))
    pull(store, registry)


def test_registry_words_are_shown_safely(store: ImageStore, registry: FakeRegistry) -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "go\x1b[31m away\n" * 100}]}).encode()
    registry.hooks.append(lambda h: h.command == "GET" and (h.reply(403, body) or True))
    registry.hooks.append(lambda h: h.command == "HEAD" and (h.reply(405) or True))
    error = refused(store, registry, PermissionDenied, "go\\x1b[31m away")
    assert "\n" not in error.message


@pytest.mark.parametrize("bad", [b"X" * 70_000, b"a: b\r\n" * 10_000])
def test_endless_headers(store: ImageStore, registry: FakeRegistry, bad: bytes) -> None:
    """F8: one of 70,000 bytes, 10,000 of a few."""

    def hook(handler: Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + bad + b"\r\n\r\n")
        handler.close_connection = True
        return True

    registry.hooks.append(hook)
    refused(store, registry, RegistryError, "malformed")


# -- nobody there ---------------------------------------------------------------------------------


def test_refused_and_unknown_host(store: ImageStore) -> None:
    """F1: each in words of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(RegistryError, match="connection refused"):
        pull_image(store, f"127.0.0.1:{port}/a", patience=QUICK)
    with pytest.raises(RegistryError, match=r"cannot find registry 'no-such-host\.invalid'"):
        pull_image(store, "no-such-host.invalid/a", patience=QUICK)


def test_plain_http_where_tls_is_needed(
    store: ImageStore, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: HTTP only where it was allowed in so many words."""
    from scow.image import hosts as module

    registry.add_image(b"x")
    monkeypatch.setattr(module, "is_loopback_host", lambda host: False)
    refused(store, registry, RegistryError, "does not speak TLS")
    assert registry.log == []
    pull(store, registry, plain_http=True)


# -- redirects ------------------------------------------------------------------------------------


def redirect_blobs(registry: FakeRegistry, target: Callable[[str], str], status: int = 307) -> None:
    def hook(handler: Handler) -> bool:
        if "/blobs/" not in handler.path:
            return False
        handler.reply(status, b"x" * 100, {"Location": target(handler.path)})
        return True

    registry.hooks.append(hook)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_another_host_loses_credentials(
    store: ImageStore,
    registry: FakeRegistry,
    other: FakeRegistry,
    no_credentials: Path,
    status: int,
) -> None:
    registry.add_image(b"x" * 1000)
    other.blobs = registry.blobs
    log_in(no_credentials, registry)
    need_basic(registry)
    redirect_blobs(registry, lambda path: f"http://{other.host}{path}", status)
    pull(store, registry)
    assert len(other.log) == 2
    assert all("Authorization" not in headers for _, _, headers in other.log)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("http://169.254.169.254/latest", "plain http"),
        ("https://169.254.169.254/latest", "link-local"),
        ("https://[fe80::1]/x", "link-local"),
        ("file:///etc/passwd", "not an http"),
        ("ftp://h/x", "not an http"),
        ("http://user:pw@127.0.0.1/x", "user name or password"),
        ("http://[::1/x", "not a valid URL"),
        ("http://127.0.0.1:99999/x", "not a valid URL"),
        ("http://exa\xadmple.com/x", "invalid host"),
        ("/v2/team/app/blobs/loop", "redirects more than 5"),
    ],
)
def test_redirects_that_are_refused(
    store: ImageStore, registry: FakeRegistry, target: str, says: str
) -> None:
    """F2: nothing more internal, nothing less safe, and not for ever."""
    registry.add_image(b"x")
    redirect_blobs(registry, lambda path: target)
    refused(store, registry, RegistryError, says)
    assert len(registry.requests("/blobs/")) <= 6


@pytest.mark.parametrize(
    ("url", "registry_url", "ok"),
    [
        ("https://cdn.example/x", "https://8.8.8.8", True),
        ("http://8.8.4.4/x", "https://8.8.8.8", False),
        ("http://8.8.8.8/x", "https://8.8.8.8", False),
        ("https://127.0.0.1/x", "https://8.8.8.8", False),
        ("https://2130706433/x", "https://8.8.8.8", False),
        ("https://0x7f.1/x", "https://8.8.8.8", False),
        ("https://[::ffff:127.0.0.1]/x", "https://8.8.8.8", False),
        ("https://[::ffff:127.0.0.1]/x", "https://10.0.0.2", False),
        ("https://[::ffff:169.254.169.254]/x", "https://10.0.0.2", False),
        ("https://0.0.0.0/x", "https://8.8.8.8", False),
        ("https://[64:ff9b::a9fe:a9fe]/x", "https://8.8.8.8", False),
        ("https://[64:ff9b::808:404]/x", "https://8.8.8.8", True),
        ("https://168.63.129.16/x", "https://8.8.8.8", False),
        ("https://[fd00:ec2::254]/x", "https://10.0.0.2", False),
        ("https://[fd00:ec2::254]/x", "https://[fd00:ec2::254]", True),
        ("https://localhost/x", "https://8.8.8.8", False),
        ("https://10.0.0.1/x", "https://8.8.8.8", False),
        ("https://10.0.0.1/x", "https://10.0.0.2", True),
        ("https://127.0.0.1/x", "https://10.0.0.2", False),
        ("https://169.254.169.254/x", "https://127.0.0.1", False),
        ("http://127.0.0.1:1/x", "http://127.0.0.1:2", True),
        ("http://8.8.8.8/x", "http://127.0.0.1:2", False),
        ("https://8.8.8.8\\@127.0.0.1/x", "https://8.8.8.8", False),
        ("https://exam\u3002ple/x", "https://8.8.8.8", False),
    ],
)
def test_targets(url: str, registry_url: str, ok: bool) -> None:
    def check() -> None:
        check_target(url, registry_url, plain_http=False, is_proxied=True, what="x")

    if ok:
        check()
    else:
        with pytest.raises(RegistryError):
            check()


# -- authentication -------------------------------------------------------------------------------

PASSWORD = "s3cret-pass:word"


def log_in(path: Path, registry: FakeRegistry, **entry: str) -> None:
    auth = base64.b64encode(f"sailor:{PASSWORD}".encode()).decode()
    path.write_text(json.dumps({"auths": {registry.host: entry or {"auth": auth}}}))
    path.chmod(0o600)


def need_basic(registry: FakeRegistry, challenge: str = 'Basic realm="r"') -> None:
    good = "Basic " + base64.b64encode(f"sailor:{PASSWORD}".encode()).decode()

    def hook(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == good:
            return False
        handler.reply(401, b"", {"WWW-Authenticate": challenge} if challenge else {})
        return True

    registry.hooks.append(hook)


def need_bearer(
    registry: FakeRegistry, realm: str = "", answer: Any = None, token: str = "t0k"
) -> list[dict[str, str]]:
    """Ask for a token of `realm`, by default our own /token; returns the token requests' headers."""
    asked: list[dict[str, str]] = []

    def hook(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            length = int(handler.headers.get("Content-Length", 0))
            body = handler.rfile.read(length).decode()
            asked.append(dict(handler.headers) | {"path": handler.path, "body": body})
            data = answer if answer is not None else json.dumps({"token": token}).encode()
            handler.reply(200, data)
            return True
        if handler.headers.get("Authorization") == f"Bearer {token}":
            return False
        at = realm or f"http://{registry.host}/token"
        challenge = f'Bearer realm="{at}",service="svc",scope="repository:*:*"'
        handler.reply(401, b"", {"WWW-Authenticate": challenge})
        return True

    registry.hooks.append(hook)
    return asked


def test_basic(store: ImageStore, registry: FakeRegistry, no_credentials: Path) -> None:
    registry.add_image(b"x", b"y")
    need_basic(registry)
    error = refused(store, registry, PermissionDenied, "authentication required")
    assert "login" in (error.hint or "")
    log_in(no_credentials, registry)
    pull(store, registry)
    # The first request asks without, all others know.
    refusals = [h for _, _, h in registry.log[2:] if "Authorization" not in h]
    assert len(refusals) == 0


def test_basic_refused(store: ImageStore, registry: FakeRegistry, no_credentials: Path) -> None:
    registry.add_image(b"x")
    need_basic(registry)
    log_in(no_credentials, registry, auth=base64.b64encode(b"sailor:wrong-pass").decode())
    error = refused(store, registry, PermissionDenied, "needs other credentials")
    assert "wrong-pass" not in str(error)
    assert len(registry.log) == 2


@pytest.mark.parametrize(
    ("challenge", "kind", "says"),
    [
        ("", PermissionDenied, "does not say how"),
        ("Negotiate", PermissionDenied, "does not speak"),
        ("Negotiate abc==, Digest realm=x", PermissionDenied, "'negotiate', 'digest'"),
        ('Bearer realm="', RegistryError, "malformed"),
        ("Bearer", RegistryError, "not an http"),
        ("x" * 17_000, RegistryError, "endless"),
    ],
)
def test_odd_challenges(
    store: ImageStore, registry: FakeRegistry, challenge: str, kind: type[ScowError], says: str
) -> None:
    """F3: guessing whom a challenge means would be guessing whom to give a password."""
    need_basic(registry, challenge)
    refused(store, registry, kind, says)


def test_bearer_anonymous(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"x", b"y", b"z")
    asked = need_bearer(registry)
    pull(store, registry)
    assert len(asked) == 1
    assert asked[0]["path"] == "/token?service=svc&scope=repository%3Ateam%2Fapp%3Apull"
    assert "Authorization" not in asked[0]


def test_bearer_with_password(
    store: ImageStore, registry: FakeRegistry, no_credentials: Path
) -> None:
    registry.add_image(b"x")
    asked = need_bearer(registry)
    log_in(no_credentials, registry)
    pull(store, registry)
    assert asked[0]["Authorization"].startswith("Basic ")
    assert "account=sailor" in asked[0]["path"]


def test_bearer_with_identity_token(
    store: ImageStore, registry: FakeRegistry, no_credentials: Path
) -> None:
    registry.add_image(b"x")
    asked = need_bearer(registry)
    log_in(no_credentials, registry, identitytoken="id-tok")
    pull(store, registry)
    assert "refresh_token=id-tok" in asked[0]["body"]
    assert "grant_type=refresh_token" in asked[0]["body"]


def test_bearer_expired_token_is_renewed(store: ImageStore, registry: FakeRegistry) -> None:
    registry.add_image(b"x")
    tokens = iter(["one", "two", "three"])
    valid = [""]

    def hook(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            valid[0] = next(tokens)
            handler.reply(200, json.dumps({"access_token": valid[0], "expires_in": 3600}).encode())
            return True
        if handler.headers.get("Authorization") == f"Bearer {valid[0]}":
            if "/blobs/" in handler.path and valid[0] == "one":
                valid[0] = "expired"
            else:
                return False
        handler.reply(
            401, b"", {"WWW-Authenticate": f'Bearer realm="http://{registry.host}/token"'}
        )
        return True

    registry.hooks.append(hook)
    pull(store, registry)
    assert valid == ["two"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "empty"),
        (b"[]", "token"),
        (b"{}", "no usable token"),
        (b'{"token":"a\\r\\nX: y"}', "characters"),
        (b'{"token":"' + b"t" * 70_000 + b'"}', "no usable token"),
        (b'{"token":"' + b"t" * 1_000_000 + b'"}', "more than"),
        (b'{"token":1}', "token"),
        (b'{"token":"a","expires_in":"x"}', "expires_in"),
    ],
)
def test_bad_tokens(store: ImageStore, registry: FakeRegistry, answer: bytes, says: str) -> None:
    """F3: tokens are documents of strangers, too."""
    need_bearer(registry, answer=answer)
    refused(store, registry, RegistryError, says)


def test_refused_for_ever(store: ImageStore, registry: FakeRegistry) -> None:
    """F3: one more try, and that is all."""
    asked = need_bearer(registry, answer=b'{"token":"other"}')
    refused(store, registry, PermissionDenied, "does not exist, or needs other credentials")
    assert len(asked) == 1
    assert len(registry.log) == 3


@pytest.mark.parametrize(
    ("realm", "says"),
    [
        ("http://169.254.169.254/token", "plain http"),
        ("https://169.254.169.254/token", "link-local"),
        ("file:///etc/passwd", "not an http"),
        ("https://u:p@127.0.0.1/t", "user name or password"),
        ("http://8.8.8.8/token", "plain http"),
        ("", "127.0.0.1"),
    ],
)
def test_realms_that_get_no_password(
    store: ImageStore, registry: FakeRegistry, no_credentials: Path, realm: str, says: str
) -> None:
    log_in(no_credentials, registry)
    if realm:
        need_bearer(registry, realm=realm)
        refused(store, registry, RegistryError, says)


def test_challenge_grammar() -> None:
    assert parse_challenges("") == []
    assert parse_challenges(
        'Bearer realm="https://a/t",service="a, b",scope="x:y:pull,push z"'
    ) == [
        Challenge("bearer", {"realm": "https://a/t", "service": "a, b", "scope": "x:y:pull,push z"})
    ]
    assert parse_challenges('Negotiate, Basic realm="a\\"b", Bearer realm = x') == [
        Challenge("negotiate", {}),
        Challenge("basic", {"realm": 'a"b'}),
        Challenge("bearer", {"realm": "x"}),
    ]
    assert parse_challenges("NTLM TlRMTVNT==,, Basic") == [
        Challenge("ntlm", {}),
        Challenge("basic", {}),
    ]
    for bad in (
        'Basic realm="a',
        "=",
        'Basic realm="a"x',
        "Basic realm=a, realm=b",
        '"x"',
    ):
        with pytest.raises(RegistryError):
            parse_challenges(bad)


# -- credentials ----------------------------------------------------------------------------------


def make_helper(directory: Path, name: str, script: str) -> None:
    path = directory / f"docker-credential-{name}"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def test_helpers(helpers: Path, no_credentials: Path) -> None:
    make_helper(helpers, "one", 'read -r h; echo "{\\"Username\\":\\"u\\",\\"Secret\\":\\"$h\\"}"')
    make_helper(helpers, "two", 'echo \'{"Username":"<token>","Secret":"idt"}\'')
    make_helper(helpers, "none", 'echo "credentials not found in native keychain"; exit 1')
    no_credentials.write_text(
        json.dumps(
            {"credHelpers": {"h1": "one", "h2": "none"}, "credsStore": "two", "auths": {"h1": {}}}
        )
    )
    assert find_credentials("h1", "a") == Credentials("u", "h1")
    assert find_credentials("h2", "a") is None
    assert find_credentials("h3", "a") == Credentials(identity_token="idt")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 1", "status 1"),
        ("echo secret-garbage", "invalid answer"),
        ("yes secret-noise", "more than"),
        ("sleep 60", "did not answer"),
        (None, "cannot run"),
    ],
)
def test_broken_helpers(
    helpers: Path,
    no_credentials: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str | None,
    says: str,
) -> None:
    """F10: never "no credentials"."""
    from scow.image import credentials

    monkeypatch.setattr(credentials, "HELPER_TIMEOUT_S", 0.3 if script == "sleep 60" else 20.0)
    if script is not None:
        make_helper(helpers, "bad", script)
    no_credentials.write_text(json.dumps({"credsStore": "bad"}))
    with pytest.raises(ScowError) as caught:
        find_credentials("h", "a")
    assert says in caught.value.message
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/bin/sh", "a b", ""])
def test_helper_names(no_credentials: Path, name: str) -> None:
    no_credentials.write_text(json.dumps({"credHelpers": {"h": name}}))
    if name:
        with pytest.raises(InvalidArgument, match="not a valid name"):
            find_credentials("h", "a")
    else:
        assert find_credentials("h", "a") is None


def test_credential_files(
    no_credentials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(text: str) -> dict[str, str]:
        return {"auth": base64.b64encode(text.encode()).decode()}

    warnings: list[str] = []
    auths = {
        "https://index.docker.io/v1/": entry("hub:a:b"),
        "quay.io/team": entry("team:x"),
        "quay.io": entry("all:x"),
        "https://old.example/v2/": entry("old:x"),
    }
    no_credentials.write_text(json.dumps({"auths": auths}))
    no_credentials.chmod(0o644)
    assert find_credentials("docker.io", "library/a", warnings.append) == Credentials("hub", "a:b")
    assert "0644" in warnings[0]
    assert find_credentials("quay.io", "team/app") == Credentials("team", "x")
    assert find_credentials("quay.io", "teams/app") == Credentials("all", "x")
    assert find_credentials("old.example", "a") == Credentials("old", "x")
    assert find_credentials("other.example", "a") is None
    assert "a:b" not in repr(find_credentials("docker.io", "library/a"))
    other = tmp_path / "auth.json"
    other.write_text(json.dumps({"auths": {"quay.io": entry("file:x")}}))
    other.chmod(0o600)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(other))
    assert find_credentials("quay.io", "team/app") == Credentials("file", "x")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"auths": 1}',
        '{"auths":{"h":{"auth":"%%%"}}}',
        '{"auths":{"h":{"auth":"YWI="}}}',
    ],
)
def test_broken_credential_files(no_credentials: Path, text: str) -> None:
    """F10: going on without would look like a wrong password."""
    no_credentials.write_text(text)
    with pytest.raises(InvalidArgument, match="credentials file"):
        find_credentials("h", "a")
    assert stat.S_ISREG(no_credentials.stat().st_mode)
