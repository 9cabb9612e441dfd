"""Hostile manifests, indexes, configs and archives, row by row (D1 to D11 of the checklist of bad inputs).

Each comes as an archive whose digests are right, into a store with an image in it: what is refused is refused by
one clear line, before any layer is unpacked where the document alone says enough; the other image stays. Single
values of a config have their table in tests/unit/test_image_documents.py. Each test's id begins with its row.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.layertar import END, entry
from fixtures.layouts import CONFIG, INDEX, LAYER, MANIFEST, Layout, digest, encode, tar_of
from scow.image.gc import collect
from scow.image.manifest import Index, candidates, host_platform, parse_document
from scow.image.store import ImageStore
from scow.native import spawn
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, ScowError, Unsupported

pytestmark = pytest.mark.root

TAR = entry(b"f", b"1") + END
OTHER = entry(b"g", b"2") + END


class Store:
    """A store that holds one image, which has to stay as it is."""

    def __init__(self, base: Path) -> None:
        (base / "root").mkdir()
        self.images = ImageStore(str(base / "root"))
        kept = Layout()
        kept.image(entry(b"kept") + END, name="kept:1")
        self.images.load(kept.archive())
        self._kept = self.images.list()
        self._layers = self.layers()

    def layers(self) -> set[str]:
        names = os.listdir(f"{self.images.root}/layers")
        return {name for name in names if not name.startswith(".")}

    def refused(self, layout: Layout, says: str, kind: type[ScowError], *good: bytes) -> None:
        """`good` are the layers that may be there nevertheless, for the next try."""
        with pytest.raises(kind, match=says) as caught:
            self.images.load(layout.archive())
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 600
        assert self.images.list() == self._kept
        allowed = {digest(tar).removeprefix("sha256:") for tar in good}
        assert self.layers() - self._layers <= allowed

    def close(self) -> None:
        collect(self.images)
        assert self.images.verify() == []
        assert "kept:1" in [name for image in self._kept for name in image.names]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    spawn.monitor_memfd()  # kept by the process on purpose
    made = Store(tmp_path)
    yield made
    made.close()


def manifest_of(layout: Layout, *tars: bytes, **more: Any) -> bytes:
    layers = [layout.blob(tar, LAYER) for tar in tars or (TAR,)]
    return layout.manifest(layout.config(*(tars or (TAR,))), layers, **more)


def raw(change: Callable[[bytes], bytes], **more: Any) -> Callable[[Layout], None]:
    """A good manifest whose bytes are changed before they are digested."""

    def make(layout: Layout) -> None:
        layout.add(change(manifest_of(layout, **more)))

    return make


def with_layer(**changes: Any) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        layer = layout.blob(TAR, LAYER) | changes
        layout.add(layout.manifest(layout.config(TAR), [layer]))

    return make


def many_layers(count: int) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        layer = layout.blob(TAR, LAYER)
        layout.add(layout.manifest(layout.config(*[TAR] * count), [layer] * count))

    return make


def index_of(count: int, kind: str = MANIFEST) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        inner = layout.blob(manifest_of(layout), kind)
        layout.add(encode({"schemaVersion": 2, "manifests": [inner] * count}), INDEX)

    return make


def nested(depth: int) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        inner = layout.blob(manifest_of(layout), MANIFEST)
        for _ in range(depth - 1):
            inner = layout.blob(encode({"schemaVersion": 2, "manifests": [inner]}), INDEX)
        layout.add(encode({"schemaVersion": 2, "manifests": [inner]}), INDEX)

    return make


def with_config(**changes: Any) -> Callable[[Layout], None]:
    """The descriptor of the config is changed."""

    def make(layout: Layout) -> None:
        config = layout.config(TAR) | changes
        layout.add(layout.manifest(config, [layout.blob(TAR, LAYER)]))

    return make


def config_document(**changes: Any) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        layout.image(TAR, **changes)

    return make


def artifact(config_type: str, **more: Any) -> Callable[[Layout], None]:
    def make(layout: Layout) -> None:
        config = layout.blob(b"{}", config_type)
        layer = layout.blob(b"chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
        layout.add(layout.manifest(config, [layer], **more))

    return make


def missing_blob(layout: Layout) -> None:
    layout.image(TAR)
    name = digest(TAR).replace(":", "/")
    del layout.files[f"blobs/{name}"]


def inline(data: bytes, **changes: Any) -> Callable[[Layout], None]:
    return with_layer(data=base64.b64encode(data).decode(), **changes)


BAD, SPOILT, NOT_OURS = InvalidArgument, IntegrityError, Unsupported
REFUSED: dict[str, tuple[Callable[[Layout], None], str, type[ScowError]]] = {
    "D1 empty": (raw(lambda _: b""), "it is empty", BAD),
    "D1 null": (raw(lambda _: b"null"), "invalid manifest", BAD),
    "D1 array": (raw(lambda _: b"[]"), "invalid manifest", BAD),
    "D1 truncated": (raw(lambda data: data[:-9]), "offset", BAD),
    "D1 trailing": (raw(lambda data: data + b"{}"), "offset", BAD),
    "D1 BOM": (raw(lambda data: b"\xef\xbb\xbf" + data), "offset|BOM", BAD),
    "D1 UTF-16": (raw(lambda data: data.decode().encode("utf-16")), "not UTF-8", BAD),
    "D1 NaN": (raw(lambda data: data[:-1] + b',"x":NaN}'), "NaN", BAD),
    "D1 duplicates": (raw(lambda data: data[:-1] + b',"layers":[]}'), "duplicate key", BAD),
    "D1 depth": (raw(lambda data: data[:-1] + b',"x":' + b"[" * 100_000 + b"}"), "deep", BAD),
    "D1 digits": (raw(lambda data: data[:-1] + b',"x":' + b"9" * 10**6 + b"}"), "digits", BAD),
    "D1 5 MiB": (raw(lambda data: data + b" " * (5 << 20)), "more than 4194304", BAD),
    "D2 both": (raw(lambda data: data, manifests=[]), "both an index and a manifest", BAD),
    "D2 other type": (raw(lambda data: data, mediaType=INDEX), "announced as", BAD),
    "D2 unknown type": (raw(lambda data: data, mediaType="text/html"), "announced as", BAD),
    "D2 schema 1": (raw(lambda data: data, schemaVersion=1), "obsolete schema 1", NOT_OURS),
    "D2 schema 3": (raw(lambda data: data, schemaVersion=3), "schemaVersion is 3", NOT_OURS),
    "D2 schema of text": (raw(lambda data: data, schemaVersion="2"), "schemaVersion|schema_version", BAD),
    "D3 digest": (with_layer(digest="sha256:../../x"), r"layers\[0\].*digest", BAD),
    "D3 upper case": (with_layer(digest="sha256:" + "A" * 64), r"layers\[0\].*digest", BAD),
    "D3 algorithm": (with_layer(digest="md5:" + "0" * 32), "algorithm", BAD),
    "D3 size -1": (with_layer(size=-1), "size -1", BAD),
    "D3 size 2^63": (with_layer(size=2**63), "size", BAD),
    "D3 size of text": (with_layer(size="5"), "layers", BAD),
    "D3 size one more": (with_layer(size=len(TAR) + 1), f"expected {len(TAR) + 1} bytes", SPOILT),
    "D3 size one less": (with_layer(size=len(TAR) - 1), f"expected {len(TAR) - 1} bytes", SPOILT),
    "D3 size 0": (with_layer(size=0), "expected 0 bytes", SPOILT),
    "D4 128 layers": (many_layers(128), "128 layers, more than 127", NOT_OURS),
    "D4 10,000 layers": (many_layers(10_000), "10000 layers, more than 127", NOT_OURS),
    "D5 20 deep": (nested(20), "nested more than 3 deep", BAD),
    "D5 10,000 entries": (index_of(10_000), "10000 entries, more than 1000", BAD),
    "D5 no image in it": (index_of(3, "text/html"), "not available", NotFound),
    "D6 missing": (with_config(digest=digest(b"none")), "no file", BAD),
    "D6 wrong size": (with_config(size=3), "expected 3 bytes", SPOILT),
    "D6 size one more": (
        lambda layout: with_config(size=layout.config(TAR)["size"] + 1)(layout), r"expected \d+ bytes, got \d", SPOILT,
    ),
    "D6 is a layer": (
        lambda layout: with_config(**(layout.blob(TAR, CONFIG)))(layout), "invalid config|not UTF-8|offset", BAD,
    ),
    "D6 in-toto": (
        lambda layout: layout.add(layout.manifest(layout.config(TAR), [layout.blob(b"{}", "application/vnd.in-toto+json")])),
        "layer 0 has the unknown media type 'application/vnd.in-toto", NOT_OURS,
    ),
    "D7 count": (
        lambda layout: layout.add(layout.manifest(layout.config(TAR, OTHER), [layout.blob(TAR, LAYER)])),
        "2 diff ids for 1 layers", BAD,
    ),
    "D7 other content": (
        lambda layout: layout.add(layout.manifest(layout.config(OTHER), [layout.blob(TAR, LAYER)])),
        "layer 0: .*expected diff id", SPOILT,
    ),
    "D8 Env": (config_document(config={"Env": ["HOME"]}), "KEY=VALUE", BAD),
    "D8 Entrypoint": (config_document(config={"Entrypoint": "/bin/sh"}), "Entrypoint", BAD),
    "D8 WorkingDir": (config_document(config={"WorkingDir": "/a/../../x"}), r"'\.\.'", BAD),
    "D8 Volumes": (config_document(config={"Volumes": {"/../..": {}}}), r"'\.\.'", BAD),
    "D9 windows": (config_document(os="windows"), "is for 'windows/amd64', not for linux", NOT_OURS),
    "D10 inline, longer": (inline(TAR + b"x"), "expected", SPOILT),
    "D10 inline, other": (inline(bytes(len(TAR))), "expected", SPOILT),
    "D10 inline, no base64": (with_layer(data="*"), "layers", BAD),
    "D10 foreign, elsewhere": (missing_blob, "no file", BAD),
    "D11 layer missing": (missing_blob, "no file", BAD),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(store: Store, case: str) -> None:
    make, says, kind = REFUSED[case]
    layout = Layout()
    make(layout)
    # The tar itself was right, to its last byte: it is a layer, whatever else was said of it.
    store.refused(layout, says, kind, *([TAR] if case == "D3 size one more" else []))


ACCEPTED: dict[str, Callable[[Layout], Any]] = {
    "D3 sha512": lambda layout: layout.add(
        layout.manifest(layout.config(TAR), [layout.blob(TAR, LAYER, "sha512")])
    ),
    "D4 no layers": many_layers(0),
    "D4 127 layers": many_layers(127),
    "D5 3 deep": nested(3),
    "D6 helm": artifact("application/vnd.cncf.helm.config.v1+json"),
    "D6 cosign": artifact(
        "application/vnd.oci.empty.v1+json",
        artifactType="application/vnd.dev.cosign.artifact.sig.v1+json",
    ),
    "D5 attestation beside it": lambda layout: (
        layout.image(TAR),
        layout.add(b"{}", name="", platform={"os": "unknown", "architecture": "unknown"}),
    ),
    "D8 cosmetic": config_document(created="yesterday", history=[1, 2, 3], author=7),
    "D9 other architecture": config_document(architecture="s390x"),
    "D10 inline": inline(TAR),
    "D10 subject": raw(
        lambda data: data,
        subject={"mediaType": MANIFEST, "digest": digest(b"x"), "size": 1},
        annotations={"a": "b"},
    ),
    "D10 urls": with_layer(
        urls=["http://169.254.169.254/"],
        mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(store: Store, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no address that a document names is asked."""

    def connect(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.create_connection", connect)
    layout = Layout()
    ACCEPTED[case](layout)
    assert store.images.load(layout.archive()) == ["Loaded image: evil:1"]
    [entry_] = [e for e in store.images.content.read_index() if e.name.endswith("evil:1")]
    kept = store.images.content.read_blob(entry_.digest, 1 << 20)
    assert kept in layout.files.values()  # as it came: annotations and all that is not known


def test_good_layers_of_a_bad_image_serve_the_next(store: Store) -> None:
    """D7: the layer before the bad one is used when the image comes again, right."""
    layout = Layout()
    layers = [layout.blob(tar, LAYER) for tar in (TAR, OTHER)]
    layout.add(layout.manifest(layout.config(TAR, b"other"), layers))
    store.refused(layout, "layer 1: .*expected diff id", SPOILT, TAR)
    right = Layout()
    right.image(TAR, OTHER)
    assert store.images.load(right.archive()) == ["Loaded image: evil:1"]


# --- indexes ------------------------------------------------------------------------------------------------


def test_four_forms_of_an_index_and_what_is_skipped() -> None:
    """D5: OCI's and Docker's, with and without the type in the document; attestations and strangers are no image."""
    layout = Layout()
    host = host_platform()
    platform = {"os": host.os, "architecture": host.architecture}
    inner = layout.blob(b"{}", MANIFEST, platform=platform)
    others = [
        layout.blob(b"1", MANIFEST, platform={"os": "unknown", "architecture": "unknown"}),
        layout.blob(b"2", "application/vnd.example", platform=platform),
        layout.blob(b"3", MANIFEST, platform={"os": host.os, "architecture": "s390x"}),
    ]
    for kind in (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"):
        for told in ({"mediaType": kind}, {}):
            data = encode({"schemaVersion": 2, "manifests": [*others, inner], **told})
            parsed = parse_document(data, kind)
            assert isinstance(parsed, Index)
            assert [e.digest for e in candidates(parsed, host, "x")] == [inner["digest"]]


# --- archives -----------------------------------------------------------------------------------------------

DOCKER_CONFIG = encode(
    {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(TAR)]},
    }
)


def docker(**changes: Any) -> dict[str, bytes]:
    image = {"Config": "c.json", "Layers": ["l/layer.tar"], "RepoTags": ["old:1"]} | changes
    return {"manifest.json": encode([image]), "c.json": DOCKER_CONFIG, "l/layer.tar": TAR}


ARCHIVES: dict[str, tuple[dict[str, bytes], str]] = {
    "D11 no manifest.json": ({"c.json": DOCKER_CONFIG}, "neither 'index.json' nor 'manifest.json'"),
    "D11 path": (docker(Layers=["../../etc/passwd"]), "no file"),
    "D11 absolute path": (docker(Layers=["/etc/passwd"]), "no file"),
    "D11 config path": (docker(Config="../../../etc/hostname"), "no file"),
    "D11 not a list": (docker() | {"manifest.json": b"{}"}, "invalid 'manifest.json'"),
    "D11 bad name": (docker(RepoTags=["../x:1"]), "invalid reference"),
    "D11 other layer": (docker() | {"l/layer.tar": OTHER}, "expected diff id"),
    "D11 index of 5 MiB": (
        {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b" " * (5 << 20)}, "more than",
    ),
    "D11 layout 2.0": ({"oci-layout": b'{"imageLayoutVersion":"2.0.0"}', "index.json": b"{}"}, "2.0.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(store: Store, case: str) -> None:
    files, says = ARCHIVES[case]
    layout = Layout()
    layout.whole = tar_of(files).getvalue()
    store.refused(layout, says, ScowError)


def test_a_name_that_moves_is_told(store: Store) -> None:
    """D11, CVE-2026-50195: an archive that names the user's image says so; the old one stays, by its id."""
    layout = Layout()
    layout.image(TAR, name="kept:1")
    lines = store.images.load(layout.archive())
    assert re.fullmatch(r"The image kept:1 already exists, renaming .* to empty string", lines[0])
    assert len(store.images.list()) == 2


def test_cut_archives(store: Store) -> None:
    """D11: at every place of a small one."""
    layout = Layout()
    layout.image(TAR)
    whole = layout.archive().getvalue()
    for size in range(0, len(whole) - 10240, 1511):
        layout.whole = whole[:size]
        store.refused(layout, "", ScowError, TAR)


def test_every_row_has_a_test() -> None:
    rows = {case.split()[0] for case in [*REFUSED, *ACCEPTED, *ARCHIVES]}
    assert rows == {f"D{number}" for number in range(1, 12)}
