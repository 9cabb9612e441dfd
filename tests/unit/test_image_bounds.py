"""What is hostile by its number only, outside of layers: documents, archives, indexes (D1, D5, D11 of the checklist)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.fake_registry import QUICK, FakeRegistry, HashingLayers, sha
from fixtures.layertar import END, entry, pax
from fixtures.layouts import encode, tar_of
from scow.image import pull as pull_module
from scow.image.document import check_document
from scow.image.media_types import OCI_INDEX
from scow.image.pull import pull_image
from scow.image.store import ImageStore
from scow.image.tarindex import MAX_NAME_BYTES, TarIndex
from scow.native.errors import InvalidArgument, NotFound


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("HOME", str(tmp_path))
    return ImageStore(str(tmp_path / "scow"), HashingLayers(str(tmp_path / "scow")))


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    yield fake
    fake.close()


@pytest.mark.parametrize("pair", [b"[]", b"{}"])
def test_many_small_things_in_a_document(pair: bytes) -> None:
    """D1: 4 MiB of empty lists would be thirty times that in memory."""
    with pytest.raises(InvalidArgument, match="more than 200000 lists and objects"):
        check_document(b'{"x":[' + b",".join([pair] * 1_000_000) + b"]}", "manifest")
    check_document(b'{"x":[' + b",".join([pair] * 199_000) + b"]}", "manifest")


def nested(registry: FakeRegistry, fan: int, depth: int) -> None:
    """Indexes in indexes; only the last has entries for another machine."""
    away = {"mediaType": OCI_INDEX, "digest": sha(b"x"), "size": 1, "platform": {"os": "linux", "architecture": "mips"}}  # fmt: skip
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [away]}
    for _ in range(depth):
        inner = registry.add_manifest(document, OCI_INDEX, "latest")
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner] * fan}
    registry.add_manifest(document, OCI_INDEX, "latest")


def test_indexes_that_fan_out(
    store: ImageStore, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D5: a thousand entries that lead to a thousand each would be a million requests."""
    monkeypatch.setattr(pull_module, "MAX_RESOLVED", 10)
    nested(registry, 5, 2)
    with pytest.raises(InvalidArgument, match="no image in the first 10 of its index"):
        pull_image(store, f"{registry.host}/team/app", patience=QUICK)
    registry.log.clear()
    nested(registry, 2, 2)  # the twin: all are looked at
    with pytest.raises(NotFound, match="not available"):
        pull_image(store, f"{registry.host}/team/app", patience=QUICK)
    assert len(registry.requests("/manifests/")) == 8  # by HEAD, by GET, and six


def index_of(tmp_path: Path, data: bytes) -> TarIndex:
    path = tmp_path / "archive.tar"
    path.write_bytes(data)
    with open(path, "rb") as file:
        return TarIndex(file.fileno())


@pytest.mark.parametrize("key", [b"path", b"linkpath"])
def test_names_of_an_archive_are_bounded_together(tmp_path: Path, key: bytes) -> None:
    """D11: each as long as its header may be, they would fill the memory."""
    names = [b"%03d" % i + b"n" * 1_000_000 for i in range(MAX_NAME_BYTES // 1_000_000 + 1)]
    tar = b"".join(
        pax((key, name)) + entry(b"f%d" % i, kind=b"2" if key == b"linkpath" else b"0")
        for i, name in enumerate(names)
    )
    with pytest.raises(InvalidArgument, match="names of more than 16777216 bytes"):
        index_of(tmp_path, tar + END)
    assert (b"n" * 3000).decode() in index_of(tmp_path, pax((b"path", b"n" * 3000)) + entry(b"x"))


def docker_archive(tmp_path: Path, layer: bytes, count: int, layers: int) -> str:
    config = encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha(layer)] * layers},
        }
    )
    image = {"Config": "c.json", "Layers": ["l"] * layers}
    files = {"manifest.json": encode([image] * count), "c.json": config, "l": layer}
    path = tmp_path / "docker.tar"
    path.write_bytes(tar_of(files).getvalue())
    return str(path)


def test_a_layer_that_is_named_often_is_read_once(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D11: 127 names in each of thousands of images would make days of hashing out of one layer."""
    layer = entry(b"f", bytes(1 << 20)) + END
    real, read = os.pread, list[int]()

    def pread(fd: int, size: int, offset: int) -> bytes:
        data = real(fd, size, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", pread)
    assert len(store.load(docker_archive(tmp_path, layer, 5, 100))) == 5
    assert sum(read) < 4 * len(layer)


def test_an_archive_of_too_many_images(store: ImageStore, tmp_path: Path) -> None:
    """D11: as many as an index may have."""
    with pytest.raises(InvalidArgument, match="1001 images, more than 1000"):
        store.load(docker_archive(tmp_path, END, 1001, 1))
    assert store.list() == []
