"""Pushes to a real registry, read back by other programs; and what those pushed, pushed on.

The digests are the proof: the same bytes everywhere, whoever carries them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.command import run
from fixtures.images import ImageFactory
from fixtures.registry import Registry
from fixtures.tokens import PASSWORD, USER, TokenServer, make_certificate
from scow.image.credentials import Credentials
from scow.image.login import Server, check_login, store_login
from scow.image.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from scow.image.push import Compression, SilentPush, push_image
from scow.image.reference import parse_reference
from scow.image.registry_list import RegistryLists
from scow.image.registry_write import RegistryWriter
from scow.image.remote import RemoteImage, remove_manifest
from scow.image.store import ImageStore
from scow.native.errors import NotFound, PermissionDenied, RegistryError, Unsupported


@pytest.fixture
def store(scow_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ImageStore:
    # Whatever the machine's administrator logged in to is not for tests.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return ImageStore(str(scow_root))


def raw(reference: object, *options: str) -> bytes:
    """The manifest as skopeo finds it."""
    return run(
        "skopeo", "inspect", "--tls-verify=false", "--raw", *options, f"docker://{reference}"
    ).encode()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def podman() -> Iterator[Callable[..., str]]:
    """A podman with a store of its own, at a short path: it refuses a long one."""
    with tempfile.TemporaryDirectory(prefix="scow-p") as top:
        argv = ["podman", "--root", f"{top}/root", "--runroot", f"{top}/run", "--storage-driver"]
        yield lambda *words: run(*argv, "vfs", *words)
        run(*argv, "vfs", "rmi", "-a", "-f")


class Told(SilentPush):
    """Remembers what became of each blob."""

    def __init__(self) -> None:
        self.events: dict[str, str] = {}

    def exists(self, blob: str, size: int) -> None:
        self.events[blob] = "exists"

    def mounted(self, blob: str, size: int, source: str) -> None:
        self.events[blob] = f"from {source}"

    def done(self, blob: str) -> None:
        self.events[blob] = "sent"


@pytest.mark.parametrize(
    "image",
    ["busybox", pytest.param("many", marks=pytest.mark.slow), "debian_zstd", "docker"],
)
def test_others_push_scow_pulls_and_pushes_on(
    store: ImageStore, registry: Registry, images: ImageFactory, other: Registry, image: str
) -> None:
    """buildah's, umoci's and skopeo's; OCI and Docker types; plain, gzip and zstd layers."""
    if image == "docker":
        reference = images.push("busybox", "latest", "box:docker", "--format", "v2s2")
    else:
        reference = getattr(images, image)()
    store.pull(reference)
    pushed = push_image(store, reference, destination=f"{other.host}/copy/{image}:1")
    theirs = raw(reference)
    assert raw(pushed.reference) == theirs
    assert (pushed.digest, pushed.size) == (sha(theirs), len(theirs))
    # Every byte is there and right: skopeo verifies what it copies.
    run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{pushed.reference}",
        f"dir:{store.root}/copy")  # fmt: skip


def test_podman_in_both_directions(
    store: ImageStore, images: ImageFactory, other: Registry, podman: Callable[..., str]
) -> None:
    reference = images.busybox()
    store.pull(reference)
    ours = push_image(store, reference, destination=f"{other.host}/box:ours")
    podman("pull", "-q", "--tls-verify=false", ours.reference)
    inspected = json.loads(podman("image", "inspect", ours.reference))[0]
    assert inspected["Digest"] == ours.digest
    theirs = f"{other.host}/box:theirs"
    podman("push", "-q", "--tls-verify=false", ours.reference, theirs)
    image = store.pull(theirs)
    assert image.id == f"sha256:{inspected['Id']}"
    # What scow makes of the layers is podman's to read, too.
    zstd = f"{other.host}/box:zstd"
    push_image(store, theirs, destination=zstd, compression=Compression("zstd"))
    podman("pull", "-q", "--tls-verify=false", zstd)
    again = push_image(store, theirs, destination=f"{other.host}/third/box:again")
    assert raw(again.reference) == raw(theirs)


def test_only_what_is_missing(
    store: ImageStore, registry: Registry, images: ImageFactory, other: Registry
) -> None:
    base, derived = images.debian(), images.python()
    shared = store.pull(base)
    store.pull(derived)
    push_image(store, base, destination=f"{other.host}/debian:12")
    told = Told()
    push_image(store, derived, destination=f"{other.host}/debian:python", progress=told)
    layers = json.loads(raw(base))["layers"]
    assert told.events.pop(layers[0]["digest"]) == "exists"
    assert set(told.events.values()) == {"sent"}
    # Under the registry's other name nothing at all is sent.
    store.tag(base, f"{registry.host}/moved/debian:1")
    told = Told()
    pushed = push_image(store, f"{registry.host}/moved/debian:1", progress=told)
    assert set(told.events.values()) == {"from debian"}
    assert f"{registry.host}/moved/debian@{pushed.digest}" in store.get(shared.id).digests


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("source", ["busybox", "docker"])
def test_another_compression(
    store: ImageStore, images: ImageFactory, other: Registry, tmp_path: Path, kind: str, source: str
) -> None:
    if source == "docker":
        reference = images.push("busybox", "latest", "box:docker", "--format", "v2s2")
    else:
        reference = images.busybox()
    image = store.pull(reference)
    compression = Compression(kind, 1 if source == "docker" else None)
    pushed = push_image(
        store, reference, destination=f"{other.host}/made:{kind}", compression=compression
    )
    manifest = json.loads(raw(pushed.reference))
    assert manifest["config"]["digest"] == image.id
    is_docker = source == "docker" and kind == "gzip"  # Docker's manifests know no zstd
    assert ("docker" in manifest["mediaType"]) == is_docker
    assert all(layer["mediaType"].endswith(kind) for layer in manifest["layers"])
    assert ("docker" in manifest["layers"][0]["mediaType"]) == is_docker
    fresh = ImageStore(str(tmp_path / "fresh"))
    assert fresh.pull(str(pushed.reference)).diff_ids == image.diff_ids
    # What has the format already stays as it is, unless a level is asked for.
    again = push_image(
        fresh,
        str(pushed.reference),
        destination=f"{other.host}/made:again",
        compression=Compression(kind),
    )
    assert again.digest == pushed.digest
    best = push_image(
        fresh,
        str(pushed.reference),
        destination=f"{other.host}/made:best",
        compression=Compression(kind, 9),
    )
    sizes = [
        sum(layer["size"] for layer in json.loads(raw(p.reference))["layers"])
        for p in (best, pushed)
    ]
    assert sizes[0] < sizes[1]


def test_password_and_tls(
    store: ImageStore, images: ImageFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, "good", "IP:127.0.0.1", kind="ec")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    reference = images.busybox()
    store.pull(reference)
    (tmp_path / "tls").mkdir()
    with Registry.start(tmp_path / "tls", password=True, tls=certificate) as secure:
        target = f"{secure.host}/safe/box:1"
        with pytest.raises(PermissionDenied, match="authentication required"):
            push_image(store, reference, destination=target)
        server = Server(secure.host)
        with pytest.raises(PermissionDenied, match="user name or password is wrong"):
            check_login(server, Credentials(Registry.USER, "wrong"))
        good = Credentials(Registry.USER, Registry.PASSWORD)
        check_login(server, good)
        store_login(server, good, str(tmp_path / ".docker/config.json"))
        pushed = push_image(store, reference, destination=target)
        authfile = f"--authfile={tmp_path}/.docker/config.json"
        assert sha(raw(pushed.reference, authfile)) == pushed.digest
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(RegistryError, match="self-signed"):
            push_image(store, reference, destination=target)
        push_image(store, reference, destination=target, tls_verify=False)


def test_tokens(store: ImageStore, images: ImageFactory, tmp_path: Path) -> None:
    """The scopes of docker-registry's own token checks: pull,push, and pull on a mount's source."""
    reference = images.busybox()
    store.pull(reference)
    with TokenServer.start(tmp_path) as tokens:
        (tmp_path / "r").mkdir()
        with Registry.start(tmp_path / "r", auth=tokens.settings()) as guarded:
            server = Server(guarded.host)
            with pytest.raises(PermissionDenied, match="user name or password is wrong"):
                check_login(server, Credentials(USER, "wrong"))
            good = Credentials(USER, PASSWORD)
            check_login(server, good)
            store_login(server, good, str(tmp_path / ".docker/config.json"))
            first, second = f"{guarded.host}/one/box:1", f"{guarded.host}/two/box:1"
            store.tag(reference, first)
            store.tag(reference, second)
            tokens.log.clear()
            pushed = push_image(store, first)
            assert [entry["scope"] for entry in tokens.log] == [["repository:one/box:pull,push"]]
            told = Told()
            push_image(store, second, progress=told)
            assert set(told.events.values()) == {"from one/box"}
            assert ["repository:two/box:pull,push", "repository:one/box:pull"] in [
                entry["scope"] for entry in tokens.log
            ]
            with pytest.raises(PermissionDenied):
                push_image(
                    store, reference, destination=f"{guarded.host}/public/box:1",
                    credentials=Credentials("nobody", "knows"),
                )  # fmt: skip
            with RegistryLists(parse_reference(first)) as lists:
                assert list(lists.tags()) == ["1"]
            assert pushed.digest == store.get(reference).manifest_digest


def test_lists_and_removal(
    store: ImageStore, images: ImageFactory, other: Registry, registry: Registry
) -> None:
    reference = images.busybox()
    store.pull(reference)
    names = [f"{other.host}/listed/box:{n}" for n in range(5)]
    for name in names:
        push_image(store, reference, destination=name)
    with RegistryLists(parse_reference(names[0])) as lists:
        assert sorted(lists.tags()) == list("01234")
    with RegistryLists(parse_reference(f"{other.host}/x")) as lists, pytest.raises(NotFound):
        list(lists.tags())
    manifest = json.loads(raw(names[0]))
    with RegistryWriter(parse_reference(names[0])) as writer:
        document = RemoteImage(writer).document()
        assert document.data == raw(names[0])
        with pytest.raises(Unsupported, match="cannot remove a tag") as caught:
            remove_manifest(writer)
        assert document.descriptor.digest in (caught.value.hint or "")
        writer.delete_manifest(document.descriptor.digest)
        assert list(writer.tags()) == []
        layer = manifest["layers"][0]["digest"]
        assert writer.has_blob(layer)
        writer.delete_blob(layer)
        assert not writer.has_blob(layer)


def test_an_artifact_that_refers_to_an_image(
    store: ImageStore, images: ImageFactory, other: Registry, tmp_path: Path
) -> None:
    """docker-registry 2 keeps no list of referrers: the client has to."""
    reference = images.busybox()
    store.pull(reference)
    name = f"{other.host}/signed/box:1"
    image = push_image(store, reference, destination=name)
    layout = tmp_path / "signature"
    signature = make_layout(layout, {
        "digest": image.digest, "size": image.size, "mediaType": OCI_MANIFEST,
    })  # fmt: skip
    store.load_layout(str(layout), f"{other.host}/signed/box:signature")
    pushed = push_image(store, f"{other.host}/signed/box:signature")
    assert pushed.digest == signature
    with RegistryLists(parse_reference(name)) as lists:
        found = RemoteImage(lists).referrers("")
        assert [d.digest for d in found] == [signature]
        assert RemoteImage(lists).referrers("text/none") == []


def make_layout(path: Path, subject: dict[str, Any]) -> str:
    """An OCI layout with one image whose manifest names a subject; returns its digest."""
    (path / "blobs/sha256").mkdir(parents=True)

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        (path / "blobs/sha256" / sha(data)[7:]).write_bytes(data)
        return {"mediaType": media_type, "digest": sha(data), "size": len(data)}

    tar = b"\0" * 1024
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha(tar)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": add(json.dumps(config).encode(), OCI_CONFIG),
        "layers": [add(gzip.compress(tar, mtime=0), OCI_LAYER + "+gzip")],
        "subject": subject,
    }
    entry = add(json.dumps(manifest).encode(), OCI_MANIFEST)
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    digest: str = entry["digest"]
    return digest


def test_the_store_is_clean_after_all(store: ImageStore, images: ImageFactory) -> None:
    """A push, good or refused, leaves nothing of its own."""
    reference = images.busybox()
    store.pull(reference)
    with pytest.raises(RegistryError):
        push_image(store, reference, destination="127.0.0.1:1/nobody/listens:1")
    assert os.listdir(store.content.ingest_dir) == []
    assert store.verify() == []
