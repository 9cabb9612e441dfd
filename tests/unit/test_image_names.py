"""What a name stands for, asked of a registry: badinput.md C, the rows that need one.

C1 and C2, the grammar, are in test_reference_grammar.py; indexes of many shapes in
test_image_registry.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.fake_registry import QUICK, FakeRegistry, Handler, sha
from fixtures.hashinglayers import HashingLayers
from scow.image.media_types import OCI_INDEX, OCI_MANIFEST
from scow.image.pull import pull_image
from scow.image.store import Image, ImageStore
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, ScowError


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    yield fake
    fake.close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return ImageStore(str(tmp_path / "scow"), HashingLayers(str(tmp_path / "scow")))


def pull(store: ImageStore, registry: FakeRegistry, name: str = "", platform: str = "") -> Image:
    reference = f"{registry.host}/team/app{name}"
    return pull_image(store, reference, patience=QUICK, platform=platform or None)


A64 = "a" * 64


@pytest.mark.parametrize(
    "name",
    ["", " ", ":", "@", "/", "a/", "//a", "a//b", "A/b", "a:", "a:t:t", "a@", "a@sha256:", "a@sha256:zz",
     "a@md5:" + "0" * 32, "-a", "a..b", "a___b", "a:" + "t" * 129, "a/" * 128 + "a", "http://h/a",
     "h.x/a?x=1", "h.x/a#f", "user:pw@h.x/a", "h:99999/a", "h\\@evil/a", "b\u00fccher.example/a", A64,
     "a\n", "a\0b", "../a", "a/../b", "[::1/a", "[fe80::1%25eth0]/a"],
)  # fmt: skip
def test_a_bad_name_touches_nothing(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """C1, C2: refused before anything is looked up, connected to, or written."""

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"something was asked for {name!r}")

    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    with pytest.raises(InvalidArgument) as caught:
        pull_image(store, name)
    assert "pw" not in caught.value.message.replace("password", "")
    assert not os.path.exists(store.content.root)


def test_what_is_asked_for(store: ImageStore, registry: FakeRegistry) -> None:
    """All four kinds of manifest, and bytes as they are."""
    registry.add_image(b"x")
    pull(store, registry)
    for headers in registry.requests("/manifests/"):
        assert set(headers["Accept"].split(", ")) == {
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    assert all(headers["Accept-Encoding"] == "identity" for _, _, headers in registry.log)


def test_digest_beats_tag(store: ImageStore, registry: FakeRegistry) -> None:
    """C3: the tag is for show; another one there, or none, changes nothing."""
    wanted = registry.add_image(b"wanted", tag="1")["digest"]
    registry.add_image(b"other", tag="2")
    for tag in ("1", "2", "gone"):
        assert pull(store, registry, f":{tag}@{wanted}").manifest_digest == wanted
    assert registry.requests("/manifests/2") == []
    # A tag that was not resolved is not given.
    assert pull(store, registry, f":2@{wanted}").names == ()


def test_digest_of_another_repository(store: ImageStore, registry: FakeRegistry) -> None:
    """C3: that the content is here does not make it an image of that name."""
    wanted = registry.add_image(b"x")["digest"]
    pull(store, registry)
    with pytest.raises(NotFound, match="no such image"):
        pull_image(store, f"{registry.host}/evil/app@{wanted}", patience=QUICK)


def test_a_registry_that_only_says_that_it_has_it(
    store: ImageStore, registry: FakeRegistry
) -> None:
    """C3, name-and-digest: what is here from elsewhere is not given the name of who knows its digest."""
    wanted = registry.add_image(b"x")["digest"]
    pull(store, registry)
    registry.hooks.append(
        lambda h: (
            h.command == "HEAD"
            and "/evil/" in h.path
            and (h.reply(200, b"", {"Docker-Content-Digest": wanted}) or True)
        )
    )
    for name in ("evil/app", f"evil/app@{wanted}"):
        with pytest.raises(NotFound, match="no such image"):
            pull_image(store, f"{registry.host}/{name}", patience=QUICK)


def test_digest_of_an_index_and_of_one_manifest(store: ImageStore, registry: FakeRegistry) -> None:
    """C3: both are names for the same image."""
    one = registry.add_image(b"x")
    entry = one | {"platform": {"os": "linux", "architecture": "amd64"}}
    index = registry.add_manifest(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}, OCI_INDEX
    )
    assert pull(store, registry, f"@{index['digest']}").manifest_digest == one["digest"]
    assert pull(store, registry, f"@{one['digest']}").manifest_digest == one["digest"]
    assert len(store.list()) == 1


def test_sha512(store: ImageStore, registry: FakeRegistry) -> None:
    """C3: of the manifest, and of the blobs in it."""
    registry.add_image(b"x" * 5000)
    document = json.loads(registry.manifests["latest"][1])
    for descriptor in (document["config"], *document["layers"]):
        data = registry.blobs[descriptor["digest"]]
        descriptor["digest"] = f"sha512:{hashlib.sha512(data).hexdigest()}"
        registry.blobs[descriptor["digest"]] = data
    data = json.dumps(document).encode()
    digest = f"sha512:{hashlib.sha512(data).hexdigest()}"
    registry.manifests[digest] = (OCI_MANIFEST, data)
    registry.hooks.append(
        lambda h: (
            "sha512" in h.path
            and "/manifests/" in h.path
            and (h.reply(200, data, {"Content-Type": OCI_MANIFEST}) or True)
        )
    )
    assert pull(store, registry, f"@{digest}").manifest_digest == digest
    assert store.verify() == []
    layer = document["layers"][0]["digest"]
    registry.blobs[layer] = registry.blobs[layer][:-1] + b"?"
    other = ImageStore(str(Path(store.root) / "other"), HashingLayers(store.root))
    with pytest.raises(IntegrityError, match="sha512:"):
        pull(other, registry, f"@{digest}")


def add_index(registry: FakeRegistry) -> None:
    entries = []
    for number, platform in enumerate(
        [
            {"os": "unknown", "architecture": "unknown"},
            {"os": "linux", "architecture": "arm", "variant": "v7"},
            {"os": "linux", "architecture": "arm64", "variant": "v8"},
            {"os": "linux", "architecture": "amd64"},
            {"os": "windows", "architecture": "amd64", "os.version": "10.0.20348.1"},
        ]
    ):
        config = {k: v for k, v in platform.items() if k != "os.version"}
        image = registry.add_image(b"%d" % number, tag=f"only-{number}", config=config)
        entries.append(image | {"platform": platform})
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    registry.add_manifest(document, OCI_INDEX, tag="latest")


@pytest.mark.parametrize("platform", ["linux/riscv64", "linux/arm/v5"])
def test_no_such_platform(store: ImageStore, registry: FakeRegistry, platform: str) -> None:
    """C4: what there is, is told; attestations are no platform."""
    add_index(registry)
    with pytest.raises(NotFound) as caught:
        pull(store, registry, platform=platform)
    assert f"is not available for {platform}" in caught.value.message
    told = f"{caught.value.message} {caught.value.hint}"
    assert "linux/arm64" in told
    assert "linux/amd64" in told
    assert "unknown" not in told


@pytest.mark.parametrize(
    "platform",
    ["linux/banana", "plan9/amd64", "/", "linux/", "linux/amd64/v1/x", "linux/AMD 64", "../x"],
)
def test_what_is_no_platform(store: ImageStore, registry: FakeRegistry, platform: str) -> None:
    with pytest.raises(ScowError, match="platform"):
        pull(store, registry, platform=platform)
    assert registry.log == []


def test_variants(store: ImageStore, registry: FakeRegistry) -> None:
    """C4: without a variant the architecture's usual one is meant; a newer CPU runs an older image."""
    add_index(registry)
    assert pull(store, registry, platform="linux/arm64").architecture == "arm64"
    assert pull(store, registry, platform="linux/arm").architecture == "arm"
    assert pull(store, registry, platform="linux/arm/v8").architecture == "arm"


@pytest.mark.parametrize("moment", ["before-the-manifest", "before-the-layers"])
def test_tag_moves_under_way(store: ImageStore, registry: FakeRegistry, moment: str) -> None:
    """C5: one image or the other, never a mixture."""
    first = registry.add_image(b"one" * 100, b"two" * 100)["digest"]
    moved = [False]

    def move(handler: Handler) -> bool:
        part = "/manifests/latest" if moment == "before-the-manifest" else "/blobs/"
        if part in handler.path and handler.command == "GET" and not moved[0]:
            moved[0] = True
            registry.add_image(b"three" * 100, b"two" * 100)
        return False

    registry.hooks.append(move)
    image = pull(store, registry)
    second = sha(registry.manifests["latest"][1])
    assert second != first
    assert image.manifest_digest == (second if moment == "before-the-manifest" else first)
    assert image.digests == (f"{registry.host}/team/app@{image.manifest_digest}",)
    assert store.verify() == []
