"""Artifacts: what registries have besides images. Kept, named, moved and removed; never unpacked, never run."""

from __future__ import annotations

import base64
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from fixtures.fake_registry import QUICK, FakeRegistry, Handler, HashingLayers, sha
from scow.cli.inspect import describe_image
from scow.cri.merge import check_platform
from scow.image.history import read_details
from scow.image.media_types import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST
from scow.image.pull import pull_image
from scow.image.save import save_archive
from scow.image.store import Image, ImageStore
from scow.image.usage import usage
from scow.image.waste import find_waste
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, ScowError, Unsupported

CHART = "application/vnd.cncf.helm.config.v1+json"
EMPTY = {"mediaType": OCI_EMPTY, "digest": sha(b"{}"), "size": 2}
DATE = "2026-11-21T07:00:00Z"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    fake = FakeRegistry()
    yield fake
    fake.close()


def new_store(path: Path) -> ImageStore:
    return ImageStore(str(path), HashingLayers(str(path)))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return new_store(tmp_path / "scow")


def add(registry: FakeRegistry, *contents: bytes, tag: str = "a", **more: Any) -> dict[str, Any]:
    """An artifact as oras makes it: files with titles, and the empty config, which is no blob here."""
    files = [
        registry.add_blob(data, "text/plain")
        | {"annotations": {"org.opencontainers.image.title": f"file{number}"}}
        for number, data in enumerate(contents)
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.notes",
        "config": EMPTY,
        "layers": files or [EMPTY],
        "annotations": {"org.opencontainers.image.created": DATE},
    }
    return registry.add_manifest(document | more, tag=tag)


def pull(store: ImageStore, registry: FakeRegistry, tag: str = "a", **how: Any) -> Image:
    return pull_image(store, f"{registry.host}/team/app:{tag}", patience=QUICK, **how)


def blobs(store: ImageStore) -> set[str]:
    directory = os.path.join(store.content.root, "blobs", "sha256")
    return {f"sha256:{name}" for name in os.listdir(directory)}


def test_it_is_kept_and_told(store: ImageStore, registry: FakeRegistry) -> None:
    top = add(registry, b"one" * 1000, b"two")
    artifact = pull(store, registry)
    assert artifact.id == artifact.manifest_digest == top["digest"]
    assert artifact.artifact_type == "application/vnd.example.notes"
    assert (artifact.size, artifact.created, artifact.diff_ids) == (3005, DATE, ())
    assert blobs(store) == {top["digest"], sha(b"{}"), sha(b"one" * 1000), sha(b"two")}
    assert os.listdir(store.content.ingest_dir) == []
    assert os.listdir(store.content.summary_dir) == [], "it needs none"
    entry, = store.content.read_index()  # fmt: skip
    assert (entry.artifact_type, entry.platform) == (artifact.artifact_type, None)
    summary, = store.list()  # fmt: skip
    assert summary.artifact_type == artifact.artifact_type
    assert usage(store)[artifact.id].unique == 3005
    told = describe_image(store, artifact)
    assert told["ArtifactType"] == artifact.artifact_type
    assert told["RepoTags"] == [f"{registry.host}/team/app:a"]
    assert told["Blobs"] == [
        {"MediaType": "text/plain", "Digest": sha(data), "Size": len(data), "Title": f"file{n}",
         "Annotations": {"org.opencontainers.image.title": f"file{n}"}}
        for n, data in enumerate((b"one" * 1000, b"two"))
    ]  # fmt: skip
    assert store.verify() == []
    registry.log.clear()
    assert pull(store, registry) == artifact
    assert [method for method, _, _ in registry.log] == ["HEAD"], "a second pull is one request"


def test_where_an_image_is_needed(store: ImageStore, registry: FakeRegistry) -> None:
    add(registry, b"chart", config=registry.add_blob(b'{"name":"x"}', CHART), artifactType=None)
    chart = pull(store, registry)
    says = rf"'{registry.host}/team/app:a' is not a container image \(media type '.*helm.*'\)"
    with pytest.raises(Unsupported, match=says) as caught:
        check_platform(chart, "x")  # what `scow run` does first
    assert "image inspect" in (caught.value.hint or "")
    with pytest.raises(Unsupported, match=says):
        store.layer_paths(chart)
    with pytest.raises(Unsupported, match=says):
        read_details(store, chart)
    with pytest.raises(Unsupported, match=says):
        find_waste(store, chart)


def test_two_with_the_same_config_are_two(store: ImageStore, registry: FakeRegistry) -> None:
    """Most of them have the empty one: it is no identity."""
    first, second = add(registry, b"1", tag="a"), add(registry, tag="b", artifactType="x/y")
    one, two = pull(store, registry, "a"), pull(store, registry, "b")
    assert (one.id, two.id) == (first["digest"], second["digest"])
    store.tag(one.id, "further:1")
    assert store.get("further:1").names == (f"{registry.host}/team/app:a", "further:1")
    lines = store.remove(one.id, force=True)
    assert lines[-1] == f"Deleted: {one.id}"
    assert [found.id for found in store.list()] == [two.id]
    assert blobs(store) == {two.id, sha(b"{}")}
    store.remove(two.id)
    assert blobs(store) == set()
    assert store.content.read_index() == []


def test_content_in_the_manifest_needs_no_request(
    store: ImageStore, registry: FakeRegistry
) -> None:
    small = registry.add_blob(b"small", "text/plain")
    del registry.blobs[sha(b"small")]
    add(registry, layers=[small | {"data": base64.b64encode(b"small").decode()}])
    pull(store, registry)
    assert store.content.read_blob(small["digest"], 100) == b"small"
    assert not registry.requests("blobs/")


def test_an_index_leads_to_images(store: ImageStore, registry: FakeRegistry) -> None:
    """What stands beside them there is no choice for a machine; under its own digest it can be had."""
    image = registry.add_image(b"x", tag="image")
    signature = add(registry, b"sig", tag="sig")
    told = signature | {"artifactType": "application/vnd.example.notes"}
    for tag, entries in (("i", [signature, told, image]), ("none", [signature])):
        registry.add_manifest({"schemaVersion": 2, "manifests": entries}, OCI_INDEX, tag)
    assert pull(store, registry, "i").manifest_digest == image["digest"]
    assert store.get(f"{registry.host}/team/app:i").artifact_type == ""
    with pytest.raises(NotFound, match="is not available for"):
        pull(store, registry, "none")
    name = f"{registry.host}/team/app@{signature['digest']}"
    assert pull_image(store, name, patience=QUICK).id == signature["digest"]
    # With a platform it is meant: oras makes such lists of programs.
    placed = signature | {"platform": {"os": "linux", "architecture": "arm64"}}
    registry.add_manifest({"schemaVersion": 2, "manifests": [placed]}, OCI_INDEX, "program")
    assert pull(store, registry, "program", platform="linux/arm64").id == signature["digest"]


WRONG: dict[str, tuple[dict[str, Any], type[ScowError], str]] = {
    "type": ({"artifactType": "notes\n\x1b[2J"}, Unsupported, "no media type"),
    "no type": (
        {"config": EMPTY | {"mediaType": ""}, "artifactType": ""},
        Unsupported,
        "no media type",
    ),
    "annotations": ({"annotations": {"a": 1}}, InvalidArgument, "annotations"),
    "subject": ({"subject": {"digest": "x"}}, InvalidArgument, "subject"),
    "too many": ({"layers": [EMPTY] * 1001}, Unsupported, "1001 layers, more than 1000"),
    "lost": ({"layers": [EMPTY | {"digest": sha(b"?")}]}, NotFound, "has no blob"),
    "inline": ({"layers": [EMPTY | {"data": "eA=="}]}, IntegrityError, "expected"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused(store: ImageStore, registry: FakeRegistry, case: str) -> None:
    change, kind, says = WRONG[case]
    add(registry, b"good", **change)
    with pytest.raises(kind, match=says) as caught:
        pull(store, registry)
    assert "\n" not in caught.value.message
    assert store.list() == []


def test_wrong_and_cut_blobs(store: ImageStore, registry: FakeRegistry) -> None:
    data = os.urandom(3 << 20)
    add(registry, data, b"second")
    registry.blobs[sha(data)] = bytes(len(data))
    with pytest.raises(IntegrityError, match=f"{sha(data)}: expected this digest"):
        pull(store, registry)
    assert [n for n in os.listdir(store.content.ingest_dir) if not n.startswith("lease-")] == []
    registry.blobs[sha(data)] = data
    cuts = [0, 1 << 20]

    def cut(handler: Handler) -> bool:
        if sha(data) not in handler.path or not cuts:
            return False
        cuts.pop()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: 1 << 20])
        handler.close_connection = True
        return True

    registry.hooks.append(cut)
    pull(store, registry)
    assert store.content.has_blob(sha(data), len(data))  # type: ignore[arg-type]  # a digest
    assert [r.get("Range") for r in registry.requests(sha(data))][-1] == f"bytes={1 << 20}-"


def test_blobs_come_several_at_once(store: ImageStore, registry: FakeRegistry) -> None:
    """Each is answered only when all of them are asked for."""
    together = threading.Barrier(3)

    def meet(handler: Handler) -> bool:
        if "/blobs/" in handler.path:
            together.wait(60)
        return False

    registry.hooks.append(meet)
    add(registry, b"1", b"2", b"3")
    pull(store, registry)
    assert not together.broken


def test_archives(store: ImageStore, registry: FakeRegistry, tmp_path: Path) -> None:
    add(registry, b"notes")
    registry.add_image(b"x", tag="image")
    artifact, image = pull(store, registry), pull(store, registry, "image")
    for form in ("oci-archive", "docker-archive"):
        out = BytesIO()
        save_archive(store, [*artifact.names, *image.names], out, form=form, platform="linux/amd64")
        with tarfile.open(fileobj=BytesIO(out.getvalue())) as tar:
            if form == "docker-archive":
                listed = tar.extractfile("manifest.json")
                assert listed is not None
                tags = [tag for one in json.load(listed) for tag in one["RepoTags"]]
                assert tags == [*image.names], "docker load would stumble over an artifact"
        other = new_store(tmp_path / form)
        lines = other.load(BytesIO(out.getvalue()))
        assert lines == [f"Loaded image: {name}" for name in (*artifact.names, *image.names)]
        there = other.get(artifact.id)
        assert (there.id, there.artifact_type) == (artifact.id, artifact.artifact_type)
        assert other.verify() == []
    alone = BytesIO()
    save_archive(store, [*artifact.names], alone)
    assert b"manifest.json" not in alone.getvalue()
    assert new_store(tmp_path / "alone").load(BytesIO(alone.getvalue()))


def test_damage_is_found_and_mended(store: ImageStore, registry: FakeRegistry) -> None:
    add(registry, b"notes", b"more")
    artifact = pull(store, registry)
    path = Path(store.content.blob_path(sha(b"notes")))  # type: ignore[arg-type]  # a digest
    path.write_bytes(b"NOTES")
    assert store.verify() == [
        f"blob {sha(b'notes')} is damaged",
        f"image '{registry.host}/team/app:a' lacks blob {sha(b'notes')}",
    ]
    store.verify(repair=True)
    assert path.read_bytes() == b"notes"
    assert store.verify() == []
    # Without the index and its copy it comes back without its name.
    for name in ("index.json", "index.copy"):
        Path(store.content.root, name).write_bytes(b"{")
    assert "(mended)" in store.verify(repair=True)[0]
    assert store.verify() == []
    again = store.get(artifact.id)
    assert (again.names, again.artifact_type) == ((), artifact.artifact_type)
