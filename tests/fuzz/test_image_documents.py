"""Manifests, indexes and image configs under change: parsed, or refused by one clear line.

Good documents in which one or two values, or some bytes, are others. Rows D1, D2, D3 and D8 of the checklist of bad
inputs; CVE-2021-21285.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.layouts import INDEX, LAYER, MANIFEST, Json, Layout, digest, encode
from scow.image.config_document import parse_config
from scow.image.manifest import Index, candidates, host_platform, parse_document
from scow.native.errors import ScowError

TAR = b"no tar"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def paths_of(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(document, dict):
        for key, value in document.items():
            yield from paths_of(value, (*at, key))
    if isinstance(document, list):
        for number, value in enumerate(document):
            yield from paths_of(value, (*at, number))


def put(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy = document.copy()
    copy[at[0]] = put(document[at[0]], at[1:], value)
    return copy


def some_manifest() -> Json:
    layout = Layout()
    layers = [layout.blob(TAR, LAYER, annotations={"a": "b"}), layout.blob(b"", LAYER, data="")]
    document: Json = json.loads(layout.manifest(layout.config(TAR, b""), layers, artifactType=""))
    return document | {"annotations": {"c": "d"}, "subject": layers[0]}


def some_index() -> Json:
    more = {"platform": {"os": "linux", "architecture": "arm", "variant": "v7"}, "data": "e30="}
    inner = Layout().blob(b"{}", MANIFEST, annotations={"a": "b"}, urls=["http://x/"], **more)
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner, inner], "subject": inner}


RICH_CONFIG = {
    "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(TAR)]},
    "created": "2024-01-02T03:04:05Z", "history": [{"created_by": "x", "empty_layer": True}],
    "config": {
        "Env": ["A=b"], "Entrypoint": ["/e"], "Cmd": ["c"], "User": "1:2", "WorkingDir": "/w",
        "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGTERM", "Labels": {"l": "1"},
        "Healthcheck": {"Test": ["CMD", "x"], "Interval": 1, "Retries": 2},
    },
}  # fmt: skip
DOCUMENTS: dict[str, Any] = {
    "manifest": some_manifest(),
    "index": some_index(),
    "config": RICH_CONFIG,
}


def fuzz(kind: str, data: bytes) -> None:
    """Parsed, or refused by an error of ours; what is parsed can be asked for a platform."""
    refusal = ""
    try:
        parsed = parse_config(data) if kind == "config" else parse_document(data, None)
        if isinstance(parsed, Index):
            candidates(parsed, host_platform(), "x")
    except ScowError as error:
        refusal = error.message
    assert len(refusal) < 2000
    assert "\n" not in refusal


@pytest.mark.parametrize("kind", DOCUMENTS)
@given(chance=st.data())
def test_any_value_anywhere(kind: str, chance: st.DataObject) -> None:
    """D1, D2, D3, D8: one or two values of a good document are replaced by any other."""
    document = DOCUMENTS[kind]
    for _ in range(chance.draw(st.integers(1, 2))):
        at = chance.draw(st.sampled_from(sorted(paths_of(document), key=repr)))
        document = put(document, at, chance.draw(JSON))
    fuzz(kind, encode(document))


@pytest.mark.parametrize("kind", DOCUMENTS)
@given(at=st.integers(0, 10_000), by=st.binary(max_size=6), cut=st.integers(0, 6))
def test_any_bytes_anywhere(kind: str, at: int, by: bytes, cut: int) -> None:
    """D1: bytes are put in, taken out, changed."""
    data = encode(DOCUMENTS[kind])
    at %= len(data)
    fuzz(kind, data[:at] + by + data[at + cut :])
