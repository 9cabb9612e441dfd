"""What is hostile by its number only, outside of layers: documents, archives, indexes (D1, D5, D11 of the checklist)."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from fixtures.fake_registry import QUICK, FakeRegistry, Handler, HashingLayers, sha
from fixtures.layertar import END, entry, header, pax
from fixtures.layouts import Layout, encode, tar_of
from scow.image import archive_files, install, tarindex
from scow.image import pull as pull_module
from scow.image.archive_files import plain_chunks
from scow.image.config_document import parse_config
from scow.image.content import CHUNK_BYTES
from scow.image.document import check_document
from scow.image.media_types import OCI_INDEX, OCI_LAYER
from scow.image.pull import pull_image
from scow.image.store import ImageStore
from scow.image.tarindex import MAX_NAME_BYTES, TarIndex
from scow.native.errors import (
    IntegrityError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ScowError,
    Unsupported,
)


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


# --- archives, their numbers and their compression ---------------------------------------------------------


def test_members_of_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D11: each is remembered, so there is a limit."""
    monkeypatch.setattr(tarindex, "MAX_MEMBERS", 100)
    index_of(tmp_path, header(b"x") * 100 + END)
    with pytest.raises(InvalidArgument, match="more than 100 members"):
        index_of(tmp_path, header(b"x") * 101 + END)


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80\0\0\0\x40" + bytes(7)]
)
def test_sizes_of_members_that_no_file_has(tmp_path: Path, size: bytes) -> None:
    """D11: the number itself is refused, before anything is computed with it."""
    with pytest.raises(IntegrityError, match="damaged at offset"):
        index_of(tmp_path, header(b"x", size=size) + END)


def test_a_document_of_an_archive_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """D11: its header tells how large it is; the descriptor is closed here, so that reading would fail."""
    index = index_of(tmp_path, entry(b"index.json", b"x" * 100) + END)
    with pytest.raises(InvalidArgument, match=r"'index.json' has 100 bytes, more than 99"):
        index.read("index.json", 99)


def test_a_damaged_header_of_an_archive(tmp_path: Path) -> None:
    """D11: what does not add up, or is longer than the archive, is no member."""
    good = header(b"x")
    with pytest.raises(IntegrityError, match="damaged at offset 512"):
        index_of(tmp_path, good + b"y" + good[1:] + END)
    with pytest.raises(IntegrityError, match="cut off: it should have at least 6024 bytes"):
        index_of(tmp_path, good + header(b"y", size=5000) + bytes(512))


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_slow_bombs_come_in_pieces(pack: Any) -> None:
    """D11, E27: xz and bzip2, which only archives may have; 64 MiB of zeros are some bytes."""
    pieces = [len(piece) for piece in plain_chunks(BytesIO(pack(bytes(64 << 20))))]
    assert max(pieces) <= CHUNK_BYTES
    assert sum(pieces) == 64 << 20


def test_an_archive_bomb(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """D11, E28: what an archive may be when it is decompressed; nothing of it stays."""
    monkeypatch.setattr(archive_files, "MAX_ARCHIVE_BYTES", 1 << 20)
    with pytest.raises(InvalidArgument, match="more than 1048576 bytes"):
        store.load(BytesIO(bz2.compress(tar_of({"x": bytes(4 << 20)}).getvalue())))
    assert [n for n in os.listdir(store.content.ingest_dir) if not n.startswith("lease")] == []


def test_xz_memory(store: ImageStore) -> None:
    """D11, E27: a dictionary of a gigabyte is not made."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(b"x" * 1000, filters=filters))
    place = data.index(bytes([0x21, 0x01])) + 2  # LZMA2, one byte of properties
    data[place] = 37  # 2 GiB
    size = (data[12] + 1) * 4  # of the block's header, its checksum last
    crc = zlib.crc32(bytes(data[12 : 12 + size - 4]))
    data[12 + size - 4 : 12 + size] = crc.to_bytes(4, "little")
    with pytest.raises(IntegrityError, match="Memory usage limit"):
        list(plain_chunks(BytesIO(bytes(data))))


def test_too_many_layers_of_a_docker_archive(store: ImageStore, tmp_path: Path) -> None:
    """D4: refused before one is read."""
    with pytest.raises(Unsupported, match="128 layers, more than 127"):
        store.load(docker_archive(tmp_path, END, 1, 128))


def test_the_docker_config_is_checked_like_any_other(store: ImageStore, tmp_path: Path) -> None:
    """D1, D11: two readers would see two documents."""
    config = b'{"architecture":"amd64","os":"linux","os":"linux","rootfs":{"type":"layers"}}'
    files = {"manifest.json": encode([{"Config": "c.json", "Layers": []}]), "c.json": config}
    with pytest.raises(InvalidArgument, match="config of the image: duplicate key"):
        store.load(tar_of(files))


def test_a_directory_whose_blobs_are_links(store: ImageStore, tmp_path: Path) -> None:
    """D11: a link of a layout leads to files of the layout; one that leads out leads nowhere."""
    layout = Layout()
    tar = entry(b"f") + END
    layout.image(tar)
    place = tmp_path / "layout"
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": layout.entries}
    for name, data in {"index.json": encode(index), **layout.files}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    blob = place / "blobs" / sha(tar).replace(":", "/")
    blob.rename(tmp_path / "outside")
    blob.symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidArgument, match=r"cannot read .*: no such file"):
        store.load(str(place))
    blob.unlink()
    (tmp_path / "outside").rename(place / "elsewhere")
    blob.symlink_to("../../elsewhere")
    assert store.load(str(place)) == ["Loaded image: evil:1"]


# --- images ------------------------------------------------------------------------------------------------


def test_a_layer_has_its_limit(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """E28: the layer store is told it by all that take images in."""
    asked: list[int] = []
    real = store.layers.unpack

    def unpack(diff_id: Any, chunks: Any, *, limit_bytes: int) -> Any:
        asked.append(limit_bytes)
        return real(diff_id, chunks)

    monkeypatch.setattr(store.layers, "unpack", unpack)
    layout = Layout()
    layout.image(entry(b"f") + END)
    store.load(layout.archive())
    assert asked == [install.UNPACK_LIMIT_BYTES]


def test_one_blob_twice_with_two_meanings(store: ImageStore) -> None:
    """D3, D7: one digest cannot be two layers; the same layer twice may be."""
    tar, other = entry(b"f") + END, entry(b"g") + END
    for sizes, tars in (((0, 1), (tar, tar)), ((0, 0), (tar, other))):
        layout = Layout()
        layers = [layout.blob(tar, OCI_LAYER) for _ in sizes]
        for layer, more in zip(layers, sizes, strict=True):
            layer["size"] += more
        layout.add(layout.manifest(layout.config(*tars), layers))
        with pytest.raises(InvalidArgument, match="layers 0 and 1 are one blob"):
            store.load(layout.archive())


def test_a_config_without_end_of_entries() -> None:
    """D8: variables, arguments, labels, volumes, ports: each has a limit."""
    many = range(10_001)
    for name, value in {
        "Env": [f"A{i}=1" for i in many],
        "Cmd": ["x" for _ in many],
        "Labels": {f"l{i}": "" for i in many},
        "Volumes": {f"/v{i}": {} for i in many},
        "ExposedPorts": {f"{i + 1}/tcp": {} for i in many},
    }.items():
        rootfs = {"type": "layers", "diff_ids": []}
        document = {"architecture": "a", "os": "linux", "rootfs": rootfs, "config": {name: value}}
        with pytest.raises(InvalidArgument, match=f"{name} has 10001 entries, more than 10000"):
            parse_config(encode(document))


def change_config(registry: FakeRegistry, **changes: Any) -> str:
    """The image's manifest with another descriptor of the config; that blob's digest."""
    top = registry.add_image(b"x")
    document = json.loads(registry.manifests[top["digest"]][1])
    document["config"] |= changes
    registry.add_manifest(document, tag="latest")
    return str(document["config"]["digest"])


def test_a_config_of_a_terabyte(store: ImageStore, registry: FakeRegistry) -> None:
    """D6: nobody asks for it."""
    digest = change_config(registry, size=1 << 40)
    with pytest.raises(InvalidArgument, match="has 1099511627776 bytes, more than 4194304"):
        pull_image(store, f"{registry.host}/team/app", patience=QUICK)
    assert registry.requests(digest) == []


def test_a_config_that_never_ends(store: ImageStore, registry: FakeRegistry) -> None:
    """F5: not a chunk more than its size."""
    digest = change_config(registry)
    sent: list[int] = []

    def endless(handler: Handler) -> bool:
        if not handler.path.endswith(digest):
            return False
        handler.send_response(200)
        handler.end_headers()
        return handler.pour(sent)

    registry.hooks.append(endless)
    with pytest.raises(ScowError, match="got more"):
        pull_image(store, f"{registry.host}/team/app", patience=QUICK)
    assert sum(sent) < 64 << 20


# --- registries --------------------------------------------------------------------------------------------


def test_a_redirect_with_a_body_is_not_read(store: ImageStore, registry: FakeRegistry) -> None:
    """F2, CVE-2026-21441: neither read nor decompressed, however long it is."""
    registry.add_image(b"x")
    sent: list[int] = []

    def away(handler: Handler) -> bool:
        if "/blobs/" not in handler.path or "moved" in handler.path:
            return False
        handler.send_response(307)
        handler.send_header("Location", handler.path + "?moved")
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        return handler.pour(sent)

    registry.hooks.append(away)
    pull_image(store, f"{registry.host}/team/app", patience=QUICK)
    assert sum(sent) < 64 << 20


def test_whoever_we_are_sent_to_asks_for_our_password(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    """F3, CVE-2020-15157: a 401 of another host is not the registry's, and is not answered."""
    registry.add_image(b"x")
    pair = base64.b64encode(b"sailor:s3cret").decode()
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": {registry.host: {"auth": pair}}}))  # fmt: skip
    (tmp_path / ".docker/config.json").chmod(0o600)
    other = FakeRegistry()
    try:
        asks = {"WWW-Authenticate": 'Basic realm="r"'}
        other.hooks.append(lambda h: h.reply(401, b"", asks) or True)
        to = f"http://{other.host}"
        registry.hooks.append(
            lambda h: "/blobs/" in h.path and (h.reply(307, b"", {"Location": to + h.path}) or True)
        )
        with pytest.raises(PermissionDenied, match="at a host that it redirects to"):
            pull_image(store, f"{registry.host}/team/app", patience=QUICK)
        assert other.log
        assert all("Authorization" not in headers for _, _, headers in other.log + registry.log)
    finally:
        other.close()
