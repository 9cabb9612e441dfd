"""Real images of other programs, from a real registry, into a real store."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from fixtures.images import MANY_LAYERS, ImageFactory
from fixtures.registry import Registry
from scow.image import transport
from scow.image.overlay import mount_overlay
from scow.image.pull import pull_image
from scow.image.store import Image, ImageStore
from scow.native.errors import IntegrityError, NotFound, PermissionDenied, RegistryError


@pytest.fixture
def store(scow_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ImageStore:
    # Whatever the machine's administrator logged in to is not for tests.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return ImageStore(str(scow_root))


def skopeo(*argv: str) -> str:
    return subprocess.run(["skopeo", *argv], check=True, capture_output=True, text=True).stdout


def inspect_remote(reference: str, *options: str) -> dict[str, Any]:
    """What skopeo finds at the registry."""
    answer = skopeo("inspect", "--tls-verify=false", *options, f"docker://{reference}")
    document: dict[str, Any] = json.loads(answer)
    return document


def read_merged(store: ImageStore, image: Image, path: str) -> bytes:
    paths = store.layer_paths(image)
    # A read-only overlay needs two lower directories: give it an empty one at the bottom.
    empty = os.path.join(store.root, "layers", ".empty")
    with mount_overlay([*paths, empty], None, None) as root:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root.fileno())
        with os.fdopen(fd, "rb") as file:
            return file.read()


@pytest.mark.parametrize(
    "name", ["busybox", "debian", "debian_zstd", "debian_docker", "python", "python_zstd", "many"]
)
def test_pull_agrees_with_skopeo(store: ImageStore, images: ImageFactory, name: str) -> None:
    reference = getattr(images, name)()
    image = store.pull(reference)
    theirs = inspect_remote(reference)
    assert image.digests == (f"{reference.rpartition(':')[0]}@{theirs['Digest']}",)
    assert image.manifest_digest == theirs["Digest"]
    config = inspect_remote(reference, "--config")
    assert list(image.diff_ids) == config["rootfs"]["diff_ids"]
    assert list(image.config.env) == config["config"].get("Env", [])
    assert image.names == (reference,)
    assert store.get(reference) == image
    assert all(os.path.isdir(path) for path in store.layer_paths(image))
    assert store.verify() == []


def test_other_tools_read_our_layout(store: ImageStore, images: ImageFactory) -> None:
    reference = images.busybox()
    image = store.pull(reference)
    layout = f"oci:{store.content.root}:{reference}"
    assert json.loads(skopeo("inspect", layout))["Digest"] == image.manifest_digest
    listed = subprocess.run(
        ["umoci", "list", "--layout", store.content.root],
        check=True,
        capture_output=True,
        text=True,
    )
    assert reference in listed.stdout.split()


def test_many_layers_are_one_tree(store: ImageStore, images: ImageFactory) -> None:
    image = store.pull(images.many())
    assert len(image.diff_ids) == MANY_LAYERS + 1
    assert read_merged(store, image, "stack/top") == f"{MANY_LAYERS - 1}\n".encode()
    with pytest.raises(FileNotFoundError):
        read_merged(store, image, "stack/000")
    assert read_merged(store, image, "stack/001") == b"layer 1\n"


def test_shared_layers_stay_until_the_last_image(store: ImageStore, images: ImageFactory) -> None:
    base, derived = store.pull(images.debian()), store.pull(images.python())
    assert base.diff_ids[0] == derived.diff_ids[0]
    lines = store.remove(base.names[0])
    assert lines[0] == f"Untagged: {base.names[0]}"
    assert f"Deleted: {base.id}" in lines
    assert store.layers.has(derived.diff_ids[0])
    assert store.verify() == []
    assert read_merged(store, derived, "usr/bin/python3.11")[:4] == b"\x7fELF"
    lines = store.remove(derived.id)
    assert f"Deleted: {derived.diff_ids[0]}" in lines
    assert store.list() == []
    blobs = [n for _, _, names in os.walk(os.path.join(store.content.root, "blobs")) for n in names]
    assert blobs == []
    assert [n for n in os.listdir(os.path.join(store.root, "layers")) if n[0] != "."] == []


def test_an_image_in_use_stays(store: ImageStore, images: ImageFactory) -> None:
    from scow.native.errors import InvalidState

    image = store.pull(images.busybox())
    with pytest.raises(InvalidState, match="container abcdef is using it"):
        store.remove(image.names[0], in_use=lambda image_id: ["abcdef"])
    store.remove(image.names[0], force=True, in_use=lambda image_id: ["abcdef"])
    assert store.get(image.id).names == ()
    assert all(os.path.isdir(path) for path in store.layer_paths(image))
    assert f"Deleted: {image.id}" in store.remove(image.id)


def test_password(
    store: ImageStore, password_registry: Registry, images: ImageFactory, tmp_path: Path
) -> None:
    reference = password_registry.push(f"oci:{images.layout('busybox')}:latest", "box:1")
    with pytest.raises(PermissionDenied, match="authentication required"):
        store.pull(reference)
    import base64

    pair = f"{Registry.USER}:{Registry.PASSWORD}".encode()
    (tmp_path / ".docker").mkdir()
    config = tmp_path / ".docker/config.json"
    auths = {password_registry.host: {"auth": base64.b64encode(pair).decode()}}
    config.write_text(json.dumps({"auths": auths}))
    config.chmod(0o600)
    assert store.pull(reference).names == (reference,)


def test_unknown_image(store: ImageStore, registry: Registry) -> None:
    with pytest.raises(NotFound, match="no such image"):
        store.pull(f"{registry.host}/nobody/nothing:1")
    assert store.list() == []
    assert os.listdir(store.content.ingest_dir) == []


def test_damaged_at_the_registry(
    store: ImageStore, registry: Registry, images: ImageFactory
) -> None:
    reference = registry.push(f"oci:{images.layout('busybox')}:latest", "damaged:1")
    digest = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{reference}"))[
        "layers"
    ][0]["digest"]
    path = registry.blob_path(digest)
    good = path.read_bytes()
    try:
        path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        with pytest.raises(IntegrityError, match=f"{digest}: expected this digest"):
            store.pull(reference)
        path.write_bytes(good[:-1])
        with pytest.raises(RegistryError, match=r"sent|closed"):
            pull_image(store, reference, patience=transport.Patience(attempts=1))
    finally:
        path.write_bytes(good)
    assert store.list() == []
    store.pull(reference)


@pytest.fixture
def index_reference(registry: Registry, images: ImageFactory, tmp_path: Path) -> Iterator[str]:
    """An index with busybox for this machine and another for arm64."""
    layout = tmp_path / "index"
    subprocess.run(["cp", "-a", images.layout("busybox"), layout], check=True)
    index = json.loads((layout / "index.json").read_text())
    ours = {k: v for k, v in index["manifests"][0].items() if k != "annotations"}
    entries = [
        ours | {"platform": {"os": "linux", "architecture": "arm64"}, "digest": ours["digest"]},
        ours | {"platform": {"os": "linux", "architecture": "amd64"}},
    ]
    # The arm64 one is the same but for its config.
    blob = layout / "blobs/sha256" / ours["digest"][7:]
    manifest = json.loads(blob.read_text())
    config = json.loads((layout / "blobs/sha256" / manifest["config"]["digest"][7:]).read_text())

    def add(document: dict[str, Any]) -> dict[str, Any]:
        import hashlib

        data = json.dumps(document).encode()
        name = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    manifest["config"] |= add(config | {"architecture": "arm64"})
    entries[0] |= add(manifest)
    media_type = "application/vnd.oci.image.index.v1+json"
    top = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
    index["manifests"] = [
        add(top)
        | {"mediaType": media_type, "annotations": {"org.opencontainers.image.ref.name": "all"}}
    ]
    (layout / "index.json").write_text(json.dumps(index))
    return registry.push(f"oci:{layout}:all", "multi:1", "--all")


def test_index(store: ImageStore, index_reference: str) -> None:
    image = store.pull(index_reference, platform="linux/amd64")
    assert image.architecture == "amd64"
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{index_reference}")
    import hashlib

    assert image.digests[0].endswith("@sha256:" + hashlib.sha256(raw.encode()).hexdigest())
    arm = store.pull(index_reference, platform="linux/arm64")
    assert arm.architecture == "arm64"
    assert arm.diff_ids == image.diff_ids
    with pytest.raises(NotFound, match="linux/riscv64"):
        store.pull(index_reference, platform="linux/riscv64")


def test_save_and_load(store: ImageStore, images: ImageFactory, tmp_path: Path) -> None:
    image = store.pull(images.python_zstd())
    archive = tmp_path / "image.tar"
    with archive.open("wb") as file:
        store.save([image.names[0]], file)
    again = BytesIO()
    store.save([image.names[0]], again)
    assert again.getvalue() == archive.read_bytes()
    theirs = skopeo("inspect", f"oci-archive:{archive}")
    assert json.loads(theirs)["Digest"] == image.manifest_digest
    other = ImageStore(str(tmp_path / "other"))
    assert other.load(str(archive)) == [f"Loaded image: {image.names[0]}"]
    loaded = other.get(image.names[0])
    assert (loaded.id, loaded.manifest_digest) == (image.id, image.manifest_digest)
    assert other.verify() == []
    with archive.open("rb") as stream:
        unseekable = subprocess.Popen(["cat"], stdin=stream, stdout=subprocess.PIPE)
        assert unseekable.stdout is not None
        third = ImageStore(str(tmp_path / "third"))
        assert third.load(unseekable.stdout) == [f"Loaded image: {image.names[0]}"]
        unseekable.stdout.close()
        unseekable.wait()
    for each in (other, third):
        each.remove(image.id)


@pytest.mark.parametrize("compress", ["", "gzip", "zstd", "xz", "bzip2"])
def test_load_docker_archive(
    store: ImageStore, images: ImageFactory, tmp_path: Path, compress: str
) -> None:
    archive = tmp_path / "docker.tar"
    source = f"oci:{images.layout('busybox')}:latest"
    skopeo("copy", "-q", source, f"docker-archive:{archive}:example.com/box:2")
    path = str(archive)
    if compress:
        path += ".packed"
        with open(path, "wb") as packed:
            subprocess.run([compress, "-c", archive], stdout=packed, check=True)
    assert store.load(path) == ["Loaded image: example.com/box:2"]
    image = store.get("example.com/box:2")
    assert (
        list(image.diff_ids)
        == json.loads(skopeo("inspect", "--config", source))["rootfs"]["diff_ids"]
    )
    assert read_merged(store, image, "etc/group").startswith(b"root:")
    assert store.verify() == []


def test_load_layout(store: ImageStore, images: ImageFactory) -> None:
    image = store.load_layout(str(images.layout("busybox")), "scow/box")
    assert image.names == ("scow/box:latest",)
    store.tag("scow/box", "other:1")
    assert store.get("other:1").names == ("scow/box:latest", "other:1")
    assert store.remove("scow/box") == ["Untagged: scow/box:latest"]
    assert store.get("other:1").id == image.id
