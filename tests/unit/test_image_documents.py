"""Manifests, indexes and configs: rows of badinput.md D and cves.md sections 8 and 9."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scow.image.config_document import parse_config
from scow.image.digest import digest_bytes
from scow.image.document import MAX_DOCUMENT_BYTES, check_document
from scow.image.manifest import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    candidates,
    check_layers,
    parse_document,
    parse_platform,
    platform_matches,
)
from scow.image.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, ScowError, Unsupported

SHA = "sha256:" + "a" * 64


def descriptor(**changes: Any) -> dict[str, Any]:
    return {"mediaType": OCI_LAYER, "digest": SHA, "size": 5} | changes


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(mediaType=OCI_CONFIG),
        "layers": [descriptor()],
    } | changes


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


GOOD = encode(manifest())


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b'"x"', b"1", GOOD[:-5], GOOD + b"{}", GOOD + b"x",
        b"\xef\xbb\xbf" + GOOD, GOOD.decode().encode("utf-16"), b'{"schemaVersion": NaN}',
        b'{"schemaVersion": Infinity}', GOOD.replace(b'"schemaVersion": 2', b'"schemaVersion": 2, "schemaVersion": 2'),
        b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"schemaVersion": ' + b"2" * 1_000_000 + b"}", b'{"schemaVersion": 2.' + b"2" * 1_000_000 + b"}",
        GOOD + b" " * (5 << 20), b"\xff\xfe", b'{"schemaVersion": "2"}', b'{"schemaVersion": true}',
    ],
    ids=range(21),
)  # fmt: skip
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_document(data, OCI_MANIFEST)
    assert caught.value.message.startswith("invalid manifest: ")
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"manifests": [descriptor()]}, "both"),
        ({"manifests": []}, "both"),
        ({"mediaType": OCI_INDEX}, "announced"),
        ({"mediaType": "application/x"}, "announced"),
        ({"schemaVersion": 3}, "schemaVersion is 3"),
        ({"schemaVersion": 1}, "schema 1"),
        ({"config": None}, "no config"),
        ({"layers": None}, "no layers"),
        ({"layers": [descriptor(digest="sha256:../../v2/other")]}, "layers[0]"),
        ({"layers": [descriptor(digest="md5:00")]}, "algorithm"),
        ({"layers": [descriptor(size=-1)]}, "size -1"),
        ({"layers": [descriptor(size=2**63)]}, "size"),
        ({"layers": [descriptor(size="5")]}, "layers"),
        ({"layers": [descriptor()] * 128}, "128 layers"),
        ({"layers": [descriptor()] * 10_000}, "10000 layers"),
        ({"layers": {}}, "layers"),
    ],
)
def test_wrong_manifests(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ScowError) as caught:
        parse_document(encode(manifest(**changes)), OCI_MANIFEST)
    assert says in caught.value.message


def test_good_manifests() -> None:
    parsed = parse_document(GOOD, OCI_MANIFEST)
    assert isinstance(parsed, Manifest)
    assert parsed.layers == (Descriptor(OCI_LAYER, parsed.layers[0].digest, 5),)
    without_type = encode({k: v for k, v in manifest().items() if k != "mediaType"})
    assert isinstance(parse_document(without_type, None), Manifest)
    docker = encode(manifest(mediaType=DOCKER_MANIFEST, annotations=None, unknown={"x": 1}))
    assert parse_document(docker, DOCKER_MANIFEST).media_type == DOCKER_MANIFEST
    empty = parse_document(encode(manifest(layers=[])), None)
    assert isinstance(empty, Manifest)
    assert empty.layers == ()


def test_index_announced_as_manifest_is_refused() -> None:
    index = encode({"schemaVersion": 2, "manifests": [descriptor(mediaType=OCI_MANIFEST)]})
    with pytest.raises(InvalidArgument, match="not of its media type"):
        parse_document(index, OCI_MANIFEST)
    with pytest.raises(InvalidArgument, match="not of its media type"):
        parse_document(encode({k: v for k, v in manifest().items() if k != "mediaType"}), OCI_INDEX)


def test_schema_one_is_named() -> None:
    old = encode({"schemaVersion": 1, "name": "a", "fsLayers": [{"blobSum": SHA}]})
    with pytest.raises(Unsupported, match="obsolete schema 1"):
        parse_document(old, None)
    with pytest.raises(Unsupported, match="obsolete schema 1"):
        parse_document(old, "application/vnd.docker.distribution.manifest.v1+prettyjws")


def test_inline_data_is_verified() -> None:
    data = b"hello"
    good = descriptor(data=base64.b64encode(data).decode(), digest=digest_bytes(data), size=5)
    parsed = parse_document(encode(manifest(layers=[good])), None)
    assert isinstance(parsed, Manifest)
    assert parsed.layers[0].data == data
    for wrong in (good | {"size": 4}, good | {"digest": SHA}):
        with pytest.raises(IntegrityError, match="expected"):
            parse_document(encode(manifest(layers=[wrong])), None)


def test_artifacts_are_named() -> None:
    helm = parse_document(
        encode(manifest(config=descriptor(mediaType="application/vnd.cncf.helm.config.v1+json"))),
        None,
    )
    assert isinstance(helm, Manifest)
    assert helm.artifact == "application/vnd.cncf.helm.config.v1+json"
    check_layers(helm, "'x'")
    odd = parse_document(encode(manifest(layers=[descriptor(mediaType="text/html")])), None)
    assert isinstance(odd, Manifest)
    with pytest.raises(Unsupported, match="layer 0"):
        check_layers(odd, "'x'")
    assert odd.artifact == ""
    typed = encode(manifest(config=descriptor(mediaType=OCI_EMPTY), artifactType="a/b"))
    parsed = parse_document(typed, None)
    assert isinstance(parsed, Manifest)
    assert parsed.artifact == "a/b"
    bad = encode(manifest(config=descriptor(mediaType=OCI_EMPTY), artifactType="a/b\n\x1b[2J"))
    parsed = parse_document(bad, None)
    assert isinstance(parsed, Manifest)
    with pytest.raises(Unsupported, match="is no media type"):
        check_layers(parsed, "'x'")


def index_of(*platforms: str | None, media_type: str = OCI_MANIFEST) -> Index:
    entries = []
    for number, text in enumerate(platforms):
        entry = descriptor(mediaType=media_type, digest=f"sha256:{number:064x}")
        if text is not None:
            system, architecture, *variant = text.split("/")
            entry["platform"] = {"os": system, "architecture": architecture}
            if variant:
                entry["platform"]["variant"] = variant[0]
        entries.append(entry)
    parsed = parse_document(encode({"schemaVersion": 2, "manifests": entries}), OCI_INDEX)
    assert isinstance(parsed, Index)
    return parsed


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64/v1"], 1),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], 1),
        ("linux/arm", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/amd64", ["unknown/unknown", None, "linux/amd64"], 2),
        ("linux/amd64", ["unknown/unknown", None], 1),
        ("linux/riscv64", ["linux/amd64", "linux/riscv64"], 1),
        ("linux/riscv64", ["linux/riscv64/rva22u64", "linux/riscv64/rva20u64"], 1),
        ("linux/ppc64le/power9", ["linux/ppc64le/power10", "linux/ppc64le"], 1),
    ],
)
def test_platform_choice(wanted: str, offered: list[str | None], chosen: int) -> None:
    found = candidates(index_of(*offered), parse_platform(wanted), "x")
    assert found[0].digest == f"sha256:{chosen:064x}"


def test_what_needs_more_of_the_system_is_no_choice() -> None:
    """containerd puts images of erofs layers beside the ordinary ones like this."""
    index = {"schemaVersion": 2, "manifests": [
        descriptor(mediaType=OCI_MANIFEST, digest=f"sha256:{number:064x}", platform=platform)
        for number, platform in enumerate((
            {"os": "linux", "architecture": "amd64", "os.features": ["erofs"]},
            {"os": "linux", "architecture": "amd64", "os.features": []},
        ))
    ]}  # fmt: skip
    parsed = parse_document(encode(index), OCI_INDEX)
    assert isinstance(parsed, Index)
    (found,) = candidates(parsed, parse_platform("amd64"), "'x'")
    assert found.digest == f"sha256:{1:064x}"
    with pytest.raises(NotFound) as caught:
        candidates(Index(OCI_INDEX, parsed.manifests[:1]), parse_platform("amd64"), "'x'")
    assert caught.value.hint == "available: linux/amd64 with erofs"


def test_an_entry_with_a_digest_of_tomorrow_is_passed_over() -> None:
    entries = [
        descriptor(mediaType=OCI_MANIFEST, digest="blake3:" + "a" * 64),
        descriptor(mediaType=OCI_MANIFEST),
    ]
    parsed = parse_document(encode({"schemaVersion": 2, "manifests": entries}), OCI_INDEX)
    assert isinstance(parsed, Index)
    assert [entry.digest for entry in parsed.manifests] == [SHA]
    for wrong in ("blake3", "sha256:zz", "Sha256:" + "a" * 64, "md5:../x"):
        entries[0] = descriptor(mediaType=OCI_MANIFEST, digest=wrong)
        with pytest.raises(InvalidArgument, match="digest"):
            parse_document(encode({"schemaVersion": 2, "manifests": entries}), OCI_INDEX)


def test_no_platform_lists_those_there_are() -> None:
    with pytest.raises(NotFound) as caught:
        candidates(index_of("linux/arm64", "unknown/unknown"), parse_platform("linux/s390x"), "'x'")
    assert caught.value.hint == "available: linux/arm64"
    with pytest.raises(NotFound):
        candidates(index_of("linux/amd64", media_type="text/x"), parse_platform("amd64"), "x")


def test_index_of_ten_thousand() -> None:
    with pytest.raises(InvalidArgument, match="10000 entries"):
        index_of(*["linux/amd64"] * 10_000)
    listed = encode({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": []})
    assert isinstance(parse_document(listed, DOCKER_LIST), Index)


@pytest.mark.parametrize(
    "text", ["linux/banana", "beos/amd64", "a/b/c/d", "", "linux/", "linux/amd64/v\n"]
)
def test_bad_platforms(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_platform(text)


def test_platform_aliases() -> None:
    assert parse_platform("x86_64") == Platform("linux", "amd64")
    assert parse_platform("linux/aarch64") == Platform("linux", "arm64")
    assert parse_platform("armhf") == Platform("linux", "arm", "v7")
    assert platform_matches(Platform("linux", "amd64"), parse_platform("linux/amd64"))
    assert not platform_matches(Platform("linux", "arm64"), parse_platform("linux/amd64"))


# -- configs --------------------------------------------------------------------------------------


def config(inner: dict[str, Any] | None = None, **changes: Any) -> bytes:
    document: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [SHA]},
        "config": inner or {},
    }
    return encode(document | changes)


@pytest.mark.parametrize(
    ("inner", "says"),
    [
        ({"Env": ["HOME"]}, "'HOME'"),
        ({"Env": ["*"]}, "KEY=VALUE"),
        ({"Env": ["=x"]}, "KEY=VALUE"),
        ({"Env": [""]}, "KEY=VALUE"),
        ({"Env": ["A=b\0c"]}, "NUL"),
        ({"Env": "A=b"}, "Env"),
        ({"Entrypoint": "/bin/sh"}, "Entrypoint"),
        ({"Cmd": [1]}, "Cmd"),
        ({"Cmd": ["a\0"]}, "NUL"),
        ({"User": "u" * 257}, "longer"),
        ({"User": "a:b:c"}, "USER[:GROUP]"),
        ({"User": "root\n"}, "USER[:GROUP]"),
        ({"WorkingDir": "app"}, "absolute"),
        ({"WorkingDir": "/a/../../b"}, "'..'"),
        ({"WorkingDir": "/" + "a" * 5000}, "4095"),
        ({"ExposedPorts": {"99999/foo": {}}}, "99999/foo"),
        ({"ExposedPorts": {"99999/tcp": {}}}, "65535"),
        ({"ExposedPorts": {"9-8/tcp": {}}}, "65535"),
        ({"Volumes": {"/../..": {}}}, "'..'"),
        ({"Volumes": {"/": {}}}, "whole image"),
        ({"Volumes": {"data": {}}}, "absolute"),
        ({"Volumes": []}, "Volumes"),
        ({"StopSignal": "SIGFOO"}, "SIGFOO"),
        ({"StopSignal": "99"}, "99"),
        ({"StopSignal": "RTMIN+99"}, "RTMIN+99"),
        ({"Healthcheck": {"Test": ["CMD", "x"], "Interval": -1}}, "negative"),
        ({"Labels": {"a": 1}}, "Labels"),
        ({"Labels": {"": "x"}}, "without a name"),
    ],
)
def test_config_that_would_steer_wrongly(inner: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_config(config(inner))
    assert says in caught.value.message
    assert caught.value.message.startswith("invalid image config: ")


def test_cosmetic_nonsense_is_tolerated() -> None:
    document = parse_config(
        config({}, created="yesterday", history=[1, 2], author=3, moby={"x": 1})
    )
    assert document.created == ""
    assert document.author == ""


def test_good_config() -> None:
    inner = {
        "Env": ["PATH=/bin", "EMPTY=", "A=b=c"],
        "Entrypoint": ["/e"],
        "Cmd": None,
        "User": "1000:www",
        "WorkingDir": "/app/",
        "ExposedPorts": {"80": {}, "53/UDP": {}, "8000-8010/tcp": {}},
        "Volumes": {"/data": {}},
        "StopSignal": "SIGRTMIN+3",
        "Labels": {"org.example": "x"},
        "Healthcheck": {"Test": ["NONE"]},
        "OnBuild": None,
    }
    document = parse_config(config(inner, created="2024-01-02T03:04:05.678Z"))
    parsed = document.config
    assert parsed.env == ("PATH=/bin", "EMPTY=", "A=b=c")
    assert parsed.entrypoint == ("/e",)
    assert parsed.cmd is None
    assert parsed.exposed_ports == ("53/udp", "80/tcp", "8000-8010/tcp")
    assert parsed.healthcheck is not None
    assert document.created == "2024-01-02T03:04:05.678Z"
    assert parse_config(config(None, config=None)).config.env == ()


def test_rootfs_must_be_layers() -> None:
    with pytest.raises(InvalidArgument, match=r"rootfs\.type"):
        parse_config(config(rootfs={"type": "x", "diff_ids": []}))
    with pytest.raises(InvalidArgument, match="diff_ids"):
        parse_config(config(rootfs={"type": "layers", "diff_ids": [1]}))
    with pytest.raises(InvalidArgument, match="digest"):
        parse_config(config(rootfs={"type": "layers", "diff_ids": ["sha256:../x"]}))


# -- anything -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "artifactType", "platform"]


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON), st.sampled_from([None, OCI_MANIFEST, OCI_INDEX])
)
def test_any_json_parses_or_is_refused(document: dict[str, Any], media_type: str | None) -> None:
    try:
        parse_document(encode({"schemaVersion": 2} | document), media_type)
    except ScowError:
        pass


@settings(max_examples=200, deadline=None)
@given(
    JSON,
    st.sampled_from(["Env", "Entrypoint", "User", "WorkingDir", "Volumes", "Labels", "StopSignal"]),
)
def test_any_config_value_parses_or_is_refused(value: Any, key: str) -> None:
    try:
        parse_config(config({key: value}))
    except InvalidArgument:
        pass


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        parse_document(data, None)
    except ScowError:
        pass


def test_the_limit_is_exact() -> None:
    check_document(b"1" + b" " * (MAX_DOCUMENT_BYTES - 1), "x")
    with pytest.raises(InvalidArgument):
        check_document(b"1" + b" " * MAX_DOCUMENT_BYTES, "x")
