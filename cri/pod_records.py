"""Pods on disk: one record each, and the names that are reserved for them.

A pod's record is written when all that it says is there: a client that hears of a pod can use it. What
it will be is in `pending.json` before anything is taken, so that whoever finds a dead attempt knows
what to give back. The namespaces and their pins are in pod_namespaces.py.
"""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from scow.cri.objects import ObjectStore
from scow.cri.options import Limits
from scow.cri.records import Plain
from scow.native.fs import write_atomic
from scow.netns.ports import PortMapping

RECORD_VERSION = 1
_NAME_MAX = 200
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")


class PodMetadata(msgspec.Struct, frozen=True):
    """What names a pod: all four together are unique."""

    name: str
    uid: str
    namespace: str
    attempt: int = 0


class PodOptions(msgspec.Struct, frozen=True):
    """What a pod shall be: typed, checked, nothing left to interpret.

    `network`: "own" or "host"; `pid`: "pod" (one namespace for all its containers), "container"
    (one each) or "host"; `ipc`: "pod" or "host". `cgroup_parent` "" is scow's own. `resources` and
    `overhead` are what the request said, `limits` their sum, in force for the pod's cgroup.
    """

    metadata: PodMetadata
    hostname: str = ""
    log_directory: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    runtime_handler: str = ""
    dns_servers: tuple[str, ...] = ()
    dns_searches: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    has_dns: bool = False
    ports: tuple[PortMapping, ...] = ()
    network: str = "own"
    pid: str = "container"
    ipc: str = "pod"
    sysctls: dict[str, str] = {}
    privileged: bool = False
    cgroup_parent: str = ""
    limits: Limits = Limits(pids=-1)
    resources: Plain = {}
    overhead: Plain = {}


class PodRecord(msgspec.Struct, frozen=True):
    """A pod. `addresses` are those of its network namespace; `network_config` names the CNI list
    that they came by, "" is scow's own bridge."""

    id: str
    name: str  # what is reserved
    created_ns: int
    cgroup: str
    options: PodOptions
    addresses: tuple[str, ...] = ()
    network_config: str = ""
    version: int = RECORD_VERSION


_DECODER = msgspec.json.Decoder(PodRecord)


class PodStore(ObjectStore[PodRecord]):
    """The pods of one host."""

    noun = "pod"
    remover = "scow pod rm"
    folder = "pods"
    names = "pod-names"

    def __init__(self, root: str, run: str) -> None:
        super().__init__(root, run, _DECODER)

    def write_pending(self, record: PodRecord) -> None:
        """Note what is going to be taken. No fsync: what it leads to dies with the boot, too."""
        path = f"{self.directory(record.id)}/pending.json"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(record))
        finally:
            os.close(fd)

    def read_pending(self, pod_id: str) -> PodRecord | None:
        """What a dead attempt was about to take; None where it had not come so far."""
        try:
            with open(f"{self.directory(pod_id)}/pending.json", "rb") as file:
                return _DECODER.decode(file.read())
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def finish(self, record: PodRecord) -> None:
        """Write the record: from here on the pod exists."""
        write_atomic(self.directory(record.id), "record.json", msgspec.json.encode(record))
        with suppress(FileNotFoundError):
            os.unlink(f"{self.directory(record.id)}/pending.json")


def reserved_name(*parts: str) -> str:
    """One file name for several words of any kind, different for different words."""
    text = "_".join("".join(_escaped(c) for c in part) for part in parts)
    if len(text) <= _NAME_MAX:
        return text
    import hashlib

    return f"{text[:100]}_{hashlib.sha256(text.encode()).hexdigest()}"


def _escaped(character: str) -> str:
    if character in _PLAIN:
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def container_name(pod_id: str, name: str, attempt: int) -> str:
    """What is reserved for a container of a pod: (name, attempt) is unique in it."""
    return reserved_name(name, str(attempt), pod_id[:12])
