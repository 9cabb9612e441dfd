"""Pods on disk: one record each, and the names that are reserved for them.

A pod's record gets its name when all that it says is there: a client that hears of a pod can use it.
Before that, and before anything is taken, it is `pending.json`, so that whoever finds a dead attempt
knows what to give back. The namespaces and their pins are in pod_namespaces.py.
"""

from __future__ import annotations

import os

import msgspec

from scow.cri.objects import ObjectStore
from scow.cri.options import Limits
from scow.cri.records import Plain
from scow.native.fd import OwnedFd
from scow.native.idmap import IdMap
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
    (one each) or "host"; `ipc`: "pod" or "host". `ids` are those of its user namespace, None the host's;
    `auto_ids` has them chosen. `cgroup_parent` "" is scow's own. `resources` and
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
    auto_ids: bool = False
    ids: IdMap | None = None
    cgroup_parent: str = ""
    limits: Limits = Limits(pids=-1)
    resources: Plain = {}
    overhead: Plain = {}


class PodRecord(msgspec.Struct, frozen=True):
    """A pod. `network_config` names the CNI list that connects it, "" is scow's own bridge."""

    id: str
    name: str  # what is reserved
    created_ns: int
    cgroup: str
    options: PodOptions
    network_config: str = ""
    version: int = RECORD_VERSION


_DECODER = msgspec.json.Decoder(PodRecord)


class Pending:
    """A record on its way: it is written down to the disk while the pod is being made."""

    def __init__(self, directory: str, data: bytes) -> None:
        from threading import Thread

        self._directory = directory
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = OwnedFd(os.open(f"{directory}/pending.json", flags, 0o600))
        self._failed: OSError | None = None
        os.write(self._file.fileno(), data)
        self._thread = Thread(target=self._sync, name="scow-fsync")
        self._thread.start()

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._failed = error

    def __enter__(self) -> Pending:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._file.close()

    def publish(self) -> None:
        """Give the record its name: from here on the pod exists."""
        self._thread.join()
        if self._failed is not None:
            raise self._failed
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with OwnedFd(os.open(self._directory, flags)) as directory:
            os.rename(f"{self._directory}/pending.json", f"{self._directory}/record.json")
            os.fsync(directory.fileno())


class PodStore(ObjectStore[PodRecord]):
    """The pods of one host."""

    noun = "pod"
    remover = "scow pod rm"
    folder = "pods"
    names = "pod-names"

    def __init__(self, root: str, run: str) -> None:
        super().__init__(root, run, _DECODER)

    def begin(self, record: PodRecord) -> Pending:
        """Note what is going to be taken; `publish` makes it the pod's record."""
        return Pending(self.directory(record.id), msgspec.json.encode(record))

    def read_pending(self, pod_id: str) -> PodRecord | None:
        """What a dead attempt was about to take; None where it had not come so far."""
        try:
            with open(f"{self.directory(pod_id)}/pending.json", "rb") as file:
                return _DECODER.decode(file.read())
        except (FileNotFoundError, ValueError):
            return None


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
