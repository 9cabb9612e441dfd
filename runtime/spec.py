"""The OCI runtime configuration (config.json) as typed documents.

Field names and meanings are the runtime-spec's (1.2, config.md and config-linux.md). Only what
scow acts on is listed; unknown properties are ignored as the spec demands, unknown *values* of
known properties are refused by who reads them. These are msgspec structs and not dataclasses
because the spec's camelCase names are mapped by the codec (`rename="camel"`).
"""

from __future__ import annotations

from typing import TypeVar

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


class Scheduler(_Document, frozen=True):
    policy: str
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class IoPriority(_Document, frozen=True):
    cls: str = msgspec.field(name="class")
    priority: int = 0


class CpuAffinity(_Document, frozen=True):
    initial: str = ""
    final: str = ""


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
    scheduler: Scheduler | None = None
    io_priority: IoPriority | None = None
    exec_cpu_affinity: CpuAffinity | None = msgspec.field(default=None, name="execCPUAffinity")
    apparmor_profile: str = ""
    selinux_label: str = ""


class RootFilesystem(_Document, frozen=True):
    path: str
    readonly: bool = False


class IdMapping(_Document, frozen=True):
    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int = 0


class SpecMount(_Document, frozen=True):
    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


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


class TimeOffset(_Document, frozen=True):
    secs: int = 0
    nanosecs: int = 0


class Personality(_Document, frozen=True):
    domain: str = ""
    flags: tuple[str, ...] = ()


class IntelRdt(_Document, frozen=True):
    clos_id: str = msgspec.field(default="", name="closID")
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: tuple[str, ...] = ()
    enable_monitoring: bool = False
    enable_cmt: bool = msgspec.field(default=False, name="enableCMT")
    enable_mbm: bool = msgspec.field(default=False, name="enableMBM")


class MemoryPolicy(_Document, frozen=True):
    mode: str = ""
    nodes: str = ""
    flags: tuple[str, ...] = ()


class Linux(_Document, frozen=True):
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    time_offsets: dict[str, TimeOffset] = {}
    mount_label: str = ""
    personality: Personality | None = None
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None
    net_devices: dict[str, dict[str, str]] = {}
    namespaces: tuple[Namespace, ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: msgspec.Raw = msgspec.Raw()  # scow.cgroups.resources.decode_resources reads it
    sysctl: dict[str, str] = {}
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    rootfs_propagation: str = ""
    seccomp: msgspec.Raw = msgspec.Raw()


class Hook(_Document, frozen=True):
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Hooks(_Document, frozen=True):
    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Spec(_Document, frozen=True):
    oci_version: str
    root: RootFilesystem
    hooks: Hooks = Hooks()
    process: Process | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[SpecMount, ...] = ()
    annotations: dict[str, str] = {}
    linux: Linux = Linux()


def decode_spec(data: bytes, origin: str) -> Spec:
    """Decode config.json; `origin` names it in the error, which tells the field (`$.process.cwd`)."""
    return _decode(data, Spec, origin)


_T = TypeVar("_T")


def _decode(data: bytes, kind: type[_T], origin: str) -> _T:
    try:
        # No path, name or variable of the kernel's can hold one, and Python refuses it in as many ways.
        if b"\\u0000" in data and _has_nul(msgspec.json.decode(data)):
            raise InvalidArgument(f"invalid configuration in '{origin}': a null byte in a string")
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError as error:
            if "null" not in str(error):
                raise
            # Go writes an empty list as null in places, and means: unset.
            plain = _without_nulls(msgspec.json.decode(data))
            return msgspec.json.decode(msgspec.json.encode(plain), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"invalid configuration in '{origin}': {error}") from error


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(part) for item in value.items() for part in item)
    return isinstance(value, list) and any(_has_nul(item) for item in value)


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def decode_process(data: bytes, origin: str) -> Process:
    """Decode the `process` of an exec."""
    return _decode(data, Process, origin)
