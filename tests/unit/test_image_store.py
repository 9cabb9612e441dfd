"""The store's own files: names, removal, leases, archives, and what kill -9 leaves."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.hashinglayers import HashingLayers
from scow.image.content import BlobIngest, ContentStore
from scow.image.digest import DiffID, Digest, parse_digest
from scow.image.gc import collect
from scow.image.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from scow.image.store import Image, ImageStore
from scow.image.tarindex import TarIndex
from scow.native.errors import (
    IntegrityError,
    InvalidArgument,
    InvalidState,
    NotFound,
    ScowError,
    Unsupported,
)


def sha(data: bytes) -> Digest:
    return parse_digest("sha256:" + hashlib.sha256(data).hexdigest())


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return new_store(tmp_path / "scow")


def new_store(path: Path) -> ImageStore:
    return ImageStore(str(path), HashingLayers(str(path)))


def tar_of(files: dict[str, bytes], **options: Any) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    return out.getvalue()


def layout_files(*contents: bytes, name: str = "", **changes: Any) -> dict[str, bytes]:
    """The files of an OCI layout with one image."""
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        files["blobs/sha256/" + sha(data)[7:]] = data
        return {"mediaType": media_type, "digest": sha(data), "size": len(data)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha(c) for c in contents]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": add(json.dumps(config).encode(), OCI_CONFIG),
        "layers": [add(gzip.compress(c, mtime=0), OCI_LAYER + "+gzip") for c in contents],
    }
    entry = add(json.dumps(manifest).encode(), OCI_MANIFEST)
    if name:
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]} | changes).encode()
    return files


def load(store: ImageStore, *contents: bytes, name: str = "example.com/a:1") -> Image:
    lines = store.load(BytesIO(tar_of(layout_files(*contents, name=name))))
    assert lines[-1].startswith("Loaded image")
    return store.get(name) if name else store.get(lines[-1].rpartition(" ")[2])


# -- finding --------------------------------------------------------------------------------------


def test_empty_store_is_not_made_by_looking(store: ImageStore) -> None:
    assert store.list() == []
    with pytest.raises(NotFound, match="no such image: 'a'"):
        store.get("a")
    assert store.verify() == []
    assert not os.path.exists(store.root)


def test_lookup_order(store: ImageStore) -> None:
    image = load(store, b"x", name="a:latest")
    prefix = image.id[7:15]
    assert store.get("a") == store.get("docker.io/library/a:latest") == image
    assert store.get(prefix) == store.get("sha256:" + prefix) == store.get(image.id) == image
    other = load(store, b"y", name=f"{prefix}:latest")
    assert store.get(prefix) == other
    assert store.get("sha256:" + prefix) == image
    for wrong in ("b", "a:2", "0" * 64, "sha256:" + "0" * 64, "sha256:"):
        with pytest.raises(ScowError):
            store.get(wrong)
    with pytest.raises(InvalidArgument, match="invalid reference"):
        store.get("A//b")


def test_ambiguous_prefix(store: ImageStore) -> None:
    # Of 17 ids two begin with the same digit.
    ids = [load(store, bytes([n]), name=f"a:{n}").id[7] for n in range(17)]
    twice = next(c for c in ids if ids.count(c) > 1)
    with pytest.raises(InvalidArgument, match="ambiguous"):
        store.get(twice)


def test_summary_is_derived(store: ImageStore) -> None:
    image = load(store, b"x")
    path = next(Path(store.content.summary_dir).iterdir())
    for damage in (b"", b"{", b'{"format":99}'):
        path.write_bytes(damage)
        assert store.get(image.id) == image
    path.unlink()
    assert store.get(image.id) == image


# -- names ----------------------------------------------------------------------------------------


def test_tag_and_remove(store: ImageStore) -> None:
    image = load(store, b"x")
    store.tag("example.com/a:1", "b")
    store.tag(image.id, "c:2")
    store.tag("b", "b")
    assert store.get("c:2").names == ("example.com/a:1", "c:2", "b:latest")
    with pytest.raises(InvalidArgument, match="digest"):
        store.tag("b", "c@" + image.id)
    with pytest.raises(InvalidState, match="several repositories"):
        store.remove(image.id)
    assert store.remove("b") == ["Untagged: b:latest"]
    with pytest.raises(NotFound):
        store.remove("b")
    lines = store.remove(image.id, force=True)
    assert lines == [
        "Untagged: example.com/a:1",
        "Untagged: c:2",
        f"Deleted: {image.id}",
        f"Deleted: {image.diff_ids[0]}",
    ]
    assert store.list() == []
    assert list(Path(store.content.summary_dir).iterdir()) == []
    assert list(Path(store.content.ingest_dir).iterdir()) == []


def test_name_moves_to_another_image(store: ImageStore) -> None:
    old = load(store, b"old")
    lines = store.load(BytesIO(tar_of(layout_files(b"new", name="example.com/a:1"))))
    assert lines == [
        "The image example.com/a:1 already exists, "
        f"renaming the old one with ID {old.id} to empty string",
        "Loaded image: example.com/a:1",
    ]
    assert store.get(old.id).names == ()
    store.tag(old.id, "kept")
    assert store.get("kept").names == ("kept:latest",)
    assert len(store.list()) == 2


def test_killed_removal_is_finished_by_the_next(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = load(store, b"x", b"shared")
    kept = load(store, b"y", b"shared", name="kept:1")
    layers = store.layers

    def killed(diff_id: DiffID) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(layers, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            store.remove(image.id)
    assert [s.id for s in store.list()] == [kept.id]
    with pytest.raises(NotFound):
        store.get(image.id)
    assert collect(store).diff_ids == (image.diff_ids[0],)
    assert store.get("kept:1") == kept
    assert store.verify() == []


def test_live_lease_protects(store: ImageStore) -> None:
    image = load(store, b"x")
    with store.content.lease() as lease:
        lease.hold(blobs=[image.manifest_digest], layers=list(image.diff_ids))
        store.remove(image.id)
        assert store.content.has_blob(image.manifest_digest)
        assert store.layers.has(image.diff_ids[0])
    collect(store, now=False)
    assert store.content.has_blob(image.manifest_digest)
    collect(store)
    assert not store.content.has_blob(image.manifest_digest)
    assert not store.layers.has(image.diff_ids[0])
    assert os.listdir(store.content.ingest_dir) == []


# -- blobs ----------------------------------------------------------------------------------------


def write_and_commit(ingest: BlobIngest, data: bytes) -> None:
    with ingest:
        ingest.restart()
        ingest.write(data)
        ingest.commit()


def test_blob_gets_its_name_only_when_right(store: ImageStore) -> None:
    content, data = store.content, b"hello"
    for wrong, says in ((b"hell", "got 4"), (b"hallo", "got sha256:"), (b"hello!", "got more")):
        ingest = content.ingest(sha(data), len(data))
        assert ingest is not None
        with pytest.raises(IntegrityError, match=says):
            write_and_commit(ingest, wrong)
        assert not content.has_blob(sha(data))
        assert os.listdir(content.ingest_dir) == []
    content.write_blob(data, sha(data))
    assert content.read_blob(sha(data), 10) == data
    assert content.ingest(sha(data), len(data)) is None
    Path(content.blob_path(sha(data))).write_bytes(b"hullo")
    with pytest.raises(IntegrityError, match="expected digest"):
        content.read_blob(sha(data), 10)
    with pytest.raises(IntegrityError, match="more than 2"):
        content.read_blob(sha(data), 2)
    with pytest.raises(IntegrityError, match="damaged"):
        list(content.read_chunks(sha(data)))


def test_waiting_for_a_blob_can_be_given_up(store: ImageStore) -> None:
    digest = sha(b"x")
    first = store.content.ingest(digest, 1)
    assert first is not None
    with first, pytest.raises(ScowError, match="cancelled"):
        store.content.ingest(digest, 1, is_cancelled=lambda: True)
    again = store.content.ingest(digest, 1)
    assert again is not None
    again.close()


def test_damage_is_found_and_mended(store: ImageStore) -> None:
    good, bad = load(store, b"good", name="good:1"), load(store, b"bad", name="bad:1")
    layer = sha(gzip.compress(b"bad", mtime=0))
    Path(store.content.blob_path(layer)).write_bytes(b"x" * 23)
    assert store.verify() == [
        f"blob {layer} is damaged",
        f"image '{name_of(bad)}' lacks blob {layer}",
    ]
    (_, line) = store.verify(repair=True)
    assert "not mended: it cannot be fetched again" in line
    assert "only save and push need it" in line, "its layer is there: containers of it run"
    assert {s.id for s in store.list()} == {good.id, bad.id}, "nothing is lost by mending"
    assert store.verify() == [f"image '{name_of(bad)}' lacks blob {layer}"]
    store.remove("bad:1")
    assert store.verify() == []


def name_of(image: Image) -> str:
    return "docker.io/library/" + image.names[0]


def test_damaged_index(store: ImageStore) -> None:
    image = load(store, b"x")
    index = Path(store.content.root, "index.json")
    index.write_bytes(index.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match=r"cannot read .*index\.json"):
        store.list()
    assert len(store.verify(repair=True)) == 1
    assert store.get(image.id).diff_ids == image.diff_ids
    assert store.verify() == []


def test_store_is_a_valid_layout(store: ImageStore) -> None:
    load(store, b"x")
    root = Path(store.content.root)
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((root / "index.json").read_text())
    assert index["schemaVersion"] == 2
    assert (
        index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
        == "example.com/a:1"
    )
    assert oct(root.stat().st_mode & 0o777) == "0o700"
    other = ContentStore(str(root))
    other.prepare()
    assert len(other.read_index()) == 1


# -- archives -------------------------------------------------------------------------------------


def docker_archive(content: bytes, **changes: Any) -> dict[str, bytes]:
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha(content)]},
        }
    ).encode()
    name = sha(config)[7:] + ".json"
    image = {"Config": name, "RepoTags": ["old/app:1"], "Layers": ["abc/layer.tar"]} | changes
    return {name: config, "abc/layer.tar": content, "manifest.json": json.dumps([image]).encode()}


def test_save_and_load(store: ImageStore, tmp_path: Path) -> None:
    image = load(store, b"x", b"y")
    store.tag("example.com/a:1", "b:2")
    out = BytesIO()
    store.save(["b:2"], out)
    other = new_store(tmp_path / "other")
    assert other.load(BytesIO(out.getvalue())) == ["Loaded image: b:2"]
    assert other.get("b:2").id == image.id
    both = BytesIO()
    store.save([image.id], both)
    assert len(new_store(tmp_path / "third").load(BytesIO(both.getvalue()))) == 2
    with pytest.raises(NotFound):
        store.save(["c"], BytesIO())
    with pytest.raises(InvalidArgument):
        store.save([], BytesIO())


def test_docker_archive(store: ImageStore) -> None:
    files = docker_archive(b"layer")
    assert store.load(BytesIO(tar_of(files))) == ["Loaded image: old/app:1"]
    assert store.get("old/app:1").diff_ids == (sha(b"layer"),)
    assert store.verify() == []
    nameless = docker_archive(b"other", RepoTags=None)
    lines = store.load(BytesIO(tar_of(nameless)))
    assert lines == ["Loaded image ID: sha256:" + next(iter(nameless)).removesuffix(".json")]


def test_docker_archive_with_links(store: ImageStore) -> None:
    files = docker_archive(b"layer", Layers=["linked/layer.tar"])
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo("./" + name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
        link = tarfile.TarInfo("linked/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../abc/layer.tar"
        tar.addfile(link)
    data.seek(0)
    assert store.load(data) == ["Loaded image: old/app:1"]


@pytest.mark.parametrize(
    ("files", "kind", "says"),
    [
        ({"x": b""}, InvalidArgument, "neither"),
        (layout_files(b"x") | {"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'}, Unsupported, "2.0.0"),
        (layout_files(b"x") | {"oci-layout": b"{}"}, InvalidArgument, "imageLayoutVersion"),
        (layout_files(b"x", manifests=[]), InvalidArgument, "no image"),
        (layout_files(b"x", name="A//b:1"), InvalidArgument, "invalid reference"),
        ({k: v for k, v in layout_files(b"x").items() if "blobs" not in k}, InvalidArgument, "no file"),
        ({k: v[:-1] if "blobs" in k else v for k, v in layout_files(b"x").items()}, IntegrityError, "expected"),
        (layout_files(b"x") | {"index.json": b" " * (5 << 20)}, InvalidArgument, "more than"),
        (docker_archive(b"x", Layers=["../../etc/passwd"]), InvalidArgument, "no file"),
        (docker_archive(b"x", Layers=["/etc/passwd"]), InvalidArgument, "no file"),
        (docker_archive(b"x", Layers=["abc/layer.tar"] * 128), Unsupported, "128 layers"),
        (docker_archive(b"x", Layers=[]), InvalidArgument, "1 diff ids for 0 layers"),
        (docker_archive(b"x", Config="../x"), InvalidArgument, "no file"),
        (docker_archive(b"x", RepoTags=["evil/../x"]), InvalidArgument, "invalid reference"),
        (docker_archive(b"x") | {"abc/layer.tar": b"y"}, IntegrityError, "expected diff id"),
        (docker_archive(b"x") | {"manifest.json": b"[]"}, InvalidArgument, "no image"),
    ],
    ids=range(16),
)  # fmt: skip
def test_bad_archives(
    store: ImageStore, files: dict[str, bytes], kind: type[ScowError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        store.load(BytesIO(tar_of(files)))
    assert says in caught.value.message
    assert store.list() == []


def test_config_named_after_other_bytes(store: ImageStore) -> None:
    files = docker_archive(b"x")
    name = next(iter(files))
    files[name] += b" "
    with pytest.raises(IntegrityError, match="expected digest"):
        store.load(BytesIO(tar_of(files)))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\0" * 10240, b"\x1f\x8b" + b"x" * 100, b"BZh9x" * 100]
)
def test_what_is_no_archive(store: ImageStore, data: bytes) -> None:
    with pytest.raises(ScowError):
        store.load(BytesIO(data))


def test_cut_archive(store: ImageStore, tmp_path: Path) -> None:
    whole = tar_of(layout_files(os.urandom(5000), name="a:1"))
    for cut in (600, 2000, 6000):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        with pytest.raises(ScowError):
            store.load(str(path))
    assert store.list() == []
    with pytest.raises(NotFound, match="cannot open"):
        store.load(str(tmp_path / "missing"))


def index_bytes(data: bytes, tmp_path: Path) -> TarIndex:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return TarIndex(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects(tmp_path: Path, form: int) -> None:
    name = "d" * 90 + "/" + "f" * 90 if form == tarfile.USTAR_FORMAT else "d/" * 200 + "é"
    index = index_bytes(tar_of({name: b"abc", "./z": b""}, format=form), tmp_path)
    assert name in index
    assert "z" in index
    assert index.find("/z").size == 0


def test_tar_loops_and_huge_headers(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a")
    link.type, link.linkname = tarfile.SYMTYPE, "a"
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(link)
    with pytest.raises(InvalidArgument, match="circles"):
        index_bytes(out.getvalue(), tmp_path).find("a")
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2 << 20
    with pytest.raises(InvalidArgument, match="extended header of the archive has 2097152 bytes"):
        index_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(3 << 20), tmp_path)


@given(st.binary(max_size=1200), st.integers(0, 1500))
def test_any_bytes_as_archive(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    good = tar_of({"a": b"x" * 100, "b": b"y"}, format=tarfile.PAX_FORMAT)
    data = good[:at] + noise + good[at + len(noise) :]
    try:
        index_bytes(data, tmp_path_factory.getbasetemp())
    except ScowError:
        pass
