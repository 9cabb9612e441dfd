"""The OCI runtime configuration (config.json) as typed documents.

Field names and meanings are the runtime-spec's (1.2, config.md and config-linux.md). Only what
scow acts on is listed; unknown properties are ignored as the spec demands, unknown *values* of
known properties are refused by who reads them. These are msgspec structs and not dataclasses
because the spec's camelCase names are mapped by the codec (`rename="camel"`).
"""

from __future__ import annotations

import msgspec

from scow.native.errors import InvalidArgument

CONFIG_LIMIT = 4 << 20


class _Document(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What all documents share; `frozen` is repeated below because type checkers want it said."""


class ConsoleSize(_Document, frozen=True):
    height: int = 0
    width: int = 0


class ProcessUser(_Document, frozen=True):
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


class Capabilities(_Document, frozen=True):
    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(_Document, frozen=True):
    type: str
    soft: int
    hard: int


class Process(_Document, frozen=True):
    cwd: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: ProcessUser = ProcessUser()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None


class RootFilesystem(_Document, frozen=True):
    path: str
    readonly: bool = False


class SpecMount(_Document, frozen=True):
    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()


class Namespace(_Document, frozen=True):
    type: str
    path: str = ""


class Device(_Document, frozen=True):
    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int = 0
    gid: int = 0


class Linux(_Document, frozen=True):
    namespaces: tuple[Namespace, ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: msgspec.Raw | None = None  # scow.cgroups.resources.resources_from_oci reads it
    sysctl: dict[str, str] = {}
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    rootfs_propagation: str = ""
    seccomp: msgspec.Raw | None = None


class Spec(_Document, frozen=True):
    oci_version: str
    root: RootFilesystem
    process: Process | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[SpecMount, ...] = ()
    annotations: dict[str, str] = {}
    linux: Linux = Linux()


_DECODER = msgspec.json.Decoder(Spec)
_ENCODER = msgspec.json.Encoder()


def decode_spec(data: bytes, origin: str) -> Spec:
    """Decode config.json; `origin` names it in the error, which tells the field (`$.process.cwd`)."""
    try:
        return _DECODER.decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InvalidArgument(f"invalid configuration in '{origin}': {error}") from error


def encode_spec(spec: Spec) -> bytes:
    """Encode for config.json; the inverse of `decode_spec` for what scow knows."""
    return _ENCODER.encode(spec)
