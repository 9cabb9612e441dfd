"""Manifests and indexes: what a digest in a registry or a layout stands for.

What belongs here: descriptors, the two documents in OCI's and Docker's spelling, platforms.
What must not: fetching. The bytes of a document are its identity and are kept as they came; what
is parsed here is only read (house style, section 7). Sources: image-spec manifest.md,
image-index.md, descriptor.md; Docker "Image Manifest V2, Schema 2".
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

import msgspec

from scow.image.digest import Digest, is_unknown_digest, parse_digest, quote, verify_bytes
from scow.image.document import decode_document
from scow.image.media_types import (
    CONFIG_TYPES,
    DOCKER_SCHEMA1,
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
)
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, Unsupported

FOREIGN_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer\.nondistributable\.v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.foreign\.diff\.tar(\.gzip)?)"
)

MAX_LAYERS = 127  # what scow stacks in one overlay mount; Docker's limit, too
MAX_ARTIFACT_BLOBS = 1000
MAX_INDEX_ENTRIES = 1000
MAX_INDEX_DEPTH = 3
MAX_BLOB_BYTES = 1 << 40
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]{0,126}/[A-Za-z0-9][\w!#$&^.+-]{0,126}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Platform:
    """What a program was built for, in Go's names (image-spec, image-index.md)."""

    os: str
    architecture: str
    variant: str = ""
    os_features: tuple[str, ...] = ()  # what it cannot run without

    def __str__(self) -> str:
        text = "/".join(part for part in (self.os, self.architecture, self.variant) if part)
        return f"{text} with {', '.join(self.os_features)}" if self.os_features else text


def platform_of(words: dict[str, str] | None) -> Platform:
    """What an entry of the store's index says of its image; an artifact has nothing there."""
    known = words or {}
    return Platform(known.get("os", ""), known.get("architecture", ""), known.get("variant", ""))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A typed pointer to content; sizes in bytes."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str = ""
    data: bytes | None = None  # the content itself, verified when parsed


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: a config and its layers, bottom first. Or an artifact: any blobs."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str = ""

    @property
    def artifact(self) -> str:
        """The type of the artifact that it is of; "" for a container image."""
        if self.config.media_type in CONFIG_TYPES:
            return ""
        return self.artifact_type or self.config.media_type


@dataclass(frozen=True, slots=True)
class Index:
    """Images for several platforms, in order of preference."""

    media_type: str
    manifests: tuple[Descriptor, ...]


class _WirePlatform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str | None = None
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")


class _WireDescriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int
    platform: _WirePlatform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    data: bytes | None = None


class _WireDocument(msgspec.Struct, rename="camel"):
    schema_version: int
    media_type: str | None = None
    config: _WireDescriptor | None = None
    layers: list[_WireDescriptor] | None = None
    manifests: list[_WireDescriptor] | None = None
    artifact_type: str | None = None


class _Schema1(msgspec.Struct, rename="camel"):
    schema_version: int
    fs_layers: list[msgspec.Raw] | None = None


def parse_document(data: bytes, media_type: str | None, what: str = "manifest") -> Manifest | Index:
    """Parse a manifest or an index; `media_type` is what the descriptor or the server said.

    None means that nothing trustworthy was said. A document that could be read as both kinds is
    refused, and so is one whose own mediaType differs (CVE-2021-41190).
    """
    if media_type is not None and media_type.startswith(DOCKER_SCHEMA1):
        raise _obsolete(what)
    probe = decode_document(data, _Schema1, what)
    if probe.schema_version == 1 or probe.fs_layers is not None:
        raise _obsolete(what)
    if probe.schema_version != 2:
        raise Unsupported(f"unsupported {what}: schemaVersion is {probe.schema_version}, not 2")
    try:
        wire = msgspec.json.decode(data, type=_WireDocument)
    except (ValueError, RecursionError) as e:
        text = str(e)
        raise InvalidArgument(f"invalid {what}: {text[:1].lower()}{text[1:]}") from e
    own_type = _agreed_type(wire, media_type, what)
    is_index = wire.manifests is not None
    if is_index and (wire.layers is not None or wire.config is not None):
        raise InvalidArgument(f"invalid {what}: it is both an index and a manifest")
    if own_type is not None and is_index != (own_type in INDEX_TYPES):
        raise InvalidArgument(
            f"invalid {what}: the content is not of its media type {quote(own_type)}"
        )
    if is_index:
        return _make_index(wire, own_type or OCI_INDEX, what)
    return _make_manifest(wire, own_type or OCI_MANIFEST, what)


def _obsolete(what: str) -> Unsupported:
    return Unsupported(
        f"unsupported {what}: the obsolete schema 1 is not supported",
        hint="push the image again with a current program",
    )


def _agreed_type(wire: _WireDocument, media_type: str | None, what: str) -> str | None:
    said = wire.media_type
    if said and media_type and said != media_type:
        raise InvalidArgument(
            f"invalid {what}: its mediaType is {quote(said)} but it was announced as {quote(media_type)}"
        )
    agreed = said or media_type
    if agreed is not None and agreed not in MANIFEST_TYPES | INDEX_TYPES:
        raise Unsupported(f"unsupported {what}: media type {quote(agreed)}")
    return agreed


def _make_index(wire: _WireDocument, media_type: str, what: str) -> Index:
    entries = wire.manifests or []
    if len(entries) > MAX_INDEX_ENTRIES:
        raise InvalidArgument(
            f"invalid {what}: {len(entries)} entries, more than {MAX_INDEX_ENTRIES}"
        )
    return Index(
        media_type,
        tuple(
            _make_descriptor(d, f"{what}: manifests[{i}]")
            for i, d in enumerate(entries)
            if not is_unknown_digest(d.digest)  # nobody's choice here, and no reason to take none
        ),
    )


def _make_manifest(wire: _WireDocument, media_type: str, what: str) -> Manifest:
    if wire.config is None:
        raise InvalidArgument(f"invalid {what}: it has no config")
    if wire.layers is None:
        raise InvalidArgument(f"invalid {what}: it has no layers")
    limit = MAX_LAYERS if wire.config.media_type in CONFIG_TYPES else MAX_ARTIFACT_BLOBS
    if len(wire.layers) > limit:
        raise Unsupported(f"unsupported {what}: {len(wire.layers)} layers, more than {limit}")
    return Manifest(
        media_type,
        _make_descriptor(wire.config, f"{what}: config"),
        tuple(_make_descriptor(d, f"{what}: layers[{i}]") for i, d in enumerate(wire.layers)),
        wire.artifact_type or "",
    )


def _make_descriptor(wire: _WireDescriptor, what: str) -> Descriptor:
    if not 0 <= wire.size <= MAX_BLOB_BYTES:
        raise InvalidArgument(f"invalid {what}: size {wire.size} is not from 0 to {MAX_BLOB_BYTES}")
    try:
        digest = parse_digest(wire.digest)
    except InvalidArgument as e:
        raise InvalidArgument(f"invalid {what}: {e.message}", hint=e.hint) from e
    if wire.data is not None:
        try:
            verify_bytes(wire.data, digest, wire.size, "its inline data")
        except IntegrityError as e:
            raise IntegrityError(f"invalid {what}: {e.message}") from e
    platform = None
    if wire.platform is not None:
        platform = Platform(
            wire.platform.os,
            wire.platform.architecture,
            wire.platform.variant or "",
            tuple(wire.platform.os_features or ()),
        )
    return Descriptor(
        wire.media_type,
        digest,
        wire.size,
        platform,
        wire.annotations,
        wire.artifact_type or "",
        wire.data,
    )


def check_layers(manifest: Manifest, what: str) -> None:
    """Raise Unsupported unless scow can unpack the layers, or need not: those of an artifact."""
    if manifest.config.media_type not in CONFIG_TYPES:
        if not _MEDIA_TYPE.fullmatch(manifest.artifact):
            raise Unsupported(f"{what}: its type {quote(manifest.artifact)} is no media type")
        return
    for number, layer in enumerate(manifest.layers):
        if FOREIGN_LAYER.fullmatch(layer.media_type):
            continue  # fetched from the registry like any other; its `urls` are never followed
        if layer.media_type not in LAYER_TYPES:
            raise Unsupported(
                f"{what}: layer {number} has the unknown media type {quote(layer.media_type)}"
            )


# -- platforms ------------------------------------------------------------------------------------

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
}
_ALIASES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "i386": "386",
}
_ARCHITECTURES = frozenset(
    [
        "386",
        "amd64",
        "arm",
        "arm64",
        "loong64",
        "mips",
        "mips64",
        "mips64le",
        "mipsle",
        "ppc64",
        "ppc64le",
        "riscv64",
        "s390x",
        "wasm",
    ]
)
_SYSTEMS = frozenset({"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "wasip1"})
_VARIANTS = {
    "arm": ("v8", "v7", "v6", "v5"),
    "arm64": ("v9", "v8"),
    "amd64": ("v4", "v3", "v2", "v1"),
    "ppc64le": ("power10", "power9", "power8"),  # these two are Go's GOPPC64 and GORISCV64
    "riscv64": ("rva23u64", "rva22u64", "rva20u64"),
}
_DEFAULT_VARIANT = {
    "arm64": "v8",
    "amd64": "v1",
    "arm": "v7",
    "ppc64le": "power8",
    "riscv64": "rva20u64",
}


def host_platform() -> Platform:
    """The platform of this machine."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def parse_platform(text: str) -> Platform:
    """Parse `[OS/]ARCHITECTURE[/VARIANT]`; raises InvalidArgument for what nobody builds for."""
    parts = text.lower().split("/")
    if len(parts) == 1 and parts[0] in _SYSTEMS:
        host = host_platform()
        return Platform(parts[0], host.architecture, host.variant)
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(
            f"invalid platform {quote(text)}: not of the form OS/ARCHITECTURE[/VARIANT]"
        )
    system, architecture, variant = parts[0], parts[1], parts[2] if len(parts) == 3 else ""
    if architecture == "armhf" and not variant:
        variant = "v7"
    architecture = _ALIASES.get(architecture, architecture)
    if system not in _SYSTEMS:
        raise InvalidArgument(f"invalid platform {quote(text)}: unknown system {quote(system)}")
    if architecture not in _ARCHITECTURES:
        raise InvalidArgument(
            f"invalid platform {quote(text)}: unknown architecture {quote(architecture)}",
            hint="for example linux/amd64 or linux/arm64",
        )
    if variant and not re.fullmatch(r"[a-z0-9.]{1,16}", variant):
        raise InvalidArgument(f"invalid platform {quote(text)}: unknown variant {quote(variant)}")
    return Platform(system, architecture, variant)


def acceptable_platforms(wanted: Platform) -> list[Platform]:
    """`wanted` and what else runs on it, best first: older variants, arm on arm64."""
    variants = _VARIANTS.get(wanted.architecture)
    if variants is None:
        return [wanted]
    variant = wanted.variant or _DEFAULT_VARIANT[wanted.architecture]
    if variant not in variants:
        return [wanted]
    result = [
        Platform(wanted.os, wanted.architecture, v) for v in variants[variants.index(variant) :]
    ]
    if wanted.architecture == "arm64" and not wanted.variant:
        result += [Platform(wanted.os, "arm", v) for v in _VARIANTS["arm"]]
    return result


def platform_matches(offered: Platform, wanted: Platform) -> bool:
    """Whether an image for `offered` runs where `wanted` is asked for.

    scow has none of the features of systems that there are names for: containerd's `erofs` layers, say.
    """
    return _normal(offered) in acceptable_platforms(wanted)


def _normal(platform: Platform) -> Platform:
    default = _DEFAULT_VARIANT.get(platform.architecture, "")
    return replace(platform, variant=platform.variant or default)


def is_attestation(entry: Descriptor) -> bool:
    """Whether an index entry is metadata beside the images (BuildKit writes `unknown/unknown`)."""
    platform = entry.platform
    return platform is not None and (platform.os == "unknown" or platform.architecture == "unknown")


def is_beside(entry: Descriptor, artifact_type: str) -> bool:
    """Whether an index entry for something of this type is no choice for any platform."""
    return artifact_type not in {"", *CONFIG_TYPES} and entry.platform is None


def candidates(index: Index, wanted: Platform, what: str) -> list[Descriptor]:
    """The entries of `index` worth trying for `wanted`, best first.

    Entries without a platform and nested indexes come last, as only their content can tell. Raises
    NotFound that lists the platforms that there are.
    """
    usable = [
        entry
        for entry in index.manifests
        if entry.media_type in MANIFEST_TYPES | INDEX_TYPES
        and not is_attestation(entry)
        and not is_beside(entry, entry.artifact_type)
    ]
    order = acceptable_platforms(wanted)
    exact = [e for e in usable if e.platform is not None and _normal(e.platform) in order]
    exact.sort(key=lambda e: order.index(_normal(e.platform)) if e.platform else 0)
    untold = [e for e in usable if e.platform is None]
    if not exact and not untold:
        offered = sorted({str(e.platform) for e in usable})
        raise NotFound(
            f"{what} is not available for {wanted}",
            hint="available: " + ", ".join(offered) if offered else "the index holds no image",
        )
    return exact + untold
