"""Containers on disk and their records.

`<root>/containers/<id>/` holds what outlives a boot (record, upper, work, log); `<run>/containers/<id>/`
what dies with it (monitor's socket and status, name files). Policy and processes do not belong here.
"""

from __future__ import annotations

import os

import msgspec

from scow.cri.objects import ID_LENGTH, SHORT_ID, ObjectStore
from scow.cri.options import ContainerOptions, UserSpec

__all__ = [
    "DEFAULT_ROOT",
    "DEFAULT_RUN",
    "ID_LENGTH",
    "SHORT_ID",
    "Member",
    "Record",
    "RecordStore",
]

RECORD_VERSION = 1
DEFAULT_ROOT = "/var/lib/scow"
DEFAULT_RUN = "/run/scow"

# Objects of CRI messages in canonical form, kept to be told back as they came.
Plain = dict[str, object]


class VolumeUse(msgspec.Struct, frozen=True):
    """A volume that this container mounts; anonymous ones go with it on `rm -v` and --rm."""

    name: str
    target: str
    anonymous: bool


class Member(msgspec.Struct, frozen=True):
    """What a container of a pod has besides: its place in the pod, and what its maker told of it."""

    pod_id: str
    name: str
    attempt: int
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    image: Plain = {}
    mounts: tuple[Plain, ...] = ()
    resources: Plain = {}
    log_path: str = ""  # absolute; empty: the container's own log alone
    stop_signal: str = "SIGNAL_RUNTIME_DEFAULT"


class Record(msgspec.Struct, frozen=True):
    """All that is needed to start a container again: the wish, merged with its image once."""

    id: str
    name: str
    created_ns: int
    image_name: str
    image_id: str
    diff_ids: tuple[str, ...]
    argv: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: UserSpec
    stop_signal: int
    labels: dict[str, str]
    cgroup: str  # its path below each hierarchy's mount
    options: ContainerOptions
    volumes: tuple[VolumeUse, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    member: Member | None = None  # of a pod; None: a sandbox of its own
    version: int = RECORD_VERSION


_DECODER = msgspec.json.Decoder(Record)


class RecordStore(ObjectStore[Record]):
    """The containers of one host."""

    noun = "container"
    folder = "containers"
    # The upper's mode and owner show as those of `/` in the container: 0755, as in images.
    contents = (("upper", 0o755), ("work", 0o700))

    def __init__(self, root: str, run: str) -> None:
        super().__init__(root, run, _DECODER)

    @property
    def cgroup_prefix(self) -> str:
        """What the names of our cgroups begin with, so that no two run directories meet in one.

        A prefix and no parent of its own: that would be ten directories more to make and remove.
        """
        return cgroup_prefix(self.run)

    def container_dir(self, container_id: str) -> str:
        """Give the kept directory of a container."""
        return self.directory(container_id)

    def log_path(self, record: Record) -> str:
        """Where the container's log is written."""
        own = f"{self.directory(record.id)}/container.log"
        return record.member.log_path or own if record.member else own


def cgroup_prefix(run: str) -> str:
    """Give what the cgroups of the run directory `run` begin with."""
    if run == DEFAULT_RUN:
        return ""
    from zlib import crc32

    return f"{crc32(os.fsencode(run)):08x}-"
