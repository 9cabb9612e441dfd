"""What is kept under `/run/scow/net`: networks and attachments, one small file each.

All of it dies with the boot, as the kernel's half does. A record is written before the kernel is
asked for what it says, and removed after that is given back. What must not be here: decisions.
"""

from __future__ import annotations

import os
from typing import TypeVar

import msgspec

from scow.native.errors import InvalidArgument
from scow.netns.bridge import NetworkState
from scow.netns.ports import PortMapping

T = TypeVar("T")


class Attachment(msgspec.Struct, frozen=True):
    """A container's place in a network. `host_interface` exists while its namespace does."""

    container_id: str
    network: str
    address: str
    prefix_length: int
    gateway: str
    mac: str
    host_interface: str
    bridge_index: int
    mtu: int
    ports: tuple[PortMapping, ...] = ()


class RecordStore:
    """The records of a run directory."""

    def __init__(self, net_dir: str) -> None:
        self._networks = f"{net_dir}/networks"
        self._attachments = f"{net_dir}/attachments"

    def prepare(self) -> None:
        """Make the directories."""
        os.makedirs(self._networks, mode=0o700, exist_ok=True)
        os.makedirs(self._attachments, mode=0o700, exist_ok=True)

    def network(self, name: str) -> NetworkState | None:
        """What is known of a network; a damaged record counts as none."""
        return _read(f"{self._networks}/{name}.json", NetworkState)

    def networks(self) -> dict[str, NetworkState]:
        """Every network by name, in a fixed order."""
        names = sorted(n.removesuffix(".json") for n in _names(self._networks))
        found = {name: self.network(name) for name in names}
        return {name: state for name, state in found.items() if state is not None}

    def write_network(self, name: str, state: NetworkState) -> None:
        """Keep a network."""
        _write(f"{self._networks}/{name}.json", msgspec.json.encode(state))

    def remove_network(self, name: str) -> None:
        """Forget a network."""
        _remove(f"{self._networks}/{name}.json")

    def attachment(self, container_id: str) -> Attachment | None:
        """The attachment of a container; a damaged record counts as none."""
        return _read(f"{self._attachments}/{refuse_path(container_id)}.json", Attachment)

    def attachments(self) -> list[Attachment]:
        """Every attachment."""
        names = (n.removesuffix(".json") for n in _names(self._attachments))
        return [record for record in map(self.attachment, names) if record is not None]

    def write_attachment(self, record: Attachment) -> None:
        """Keep an attachment."""
        path = f"{self._attachments}/{refuse_path(record.container_id)}.json"
        _write(path, msgspec.json.encode(record))

    def remove_attachment(self, container_id: str) -> None:
        """Forget an attachment."""
        path = f"{self._attachments}/{refuse_path(container_id)}.json"
        _remove(path)
        _remove(f"{path}.tmp")  # of a writer that was killed


def refuse_path(container_id: str) -> str:
    """Refuse an id that would name another file (CVE-2021-20206)."""
    if not container_id or container_id[0] == "." or "/" in container_id or "\0" in container_id:
        raise InvalidArgument(f"{container_id[:64]!r} is not a container id")
    return container_id


def _names(directory: str) -> list[str]:
    return [name for name in os.listdir(directory) if name.endswith(".json")]


def _read(path: str, kind: type[T]) -> T | None:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=kind)
    except (FileNotFoundError, ValueError):
        return None


def _write(path: str, data: bytes) -> None:
    """Replace a file whole. No fsync: /run is memory, a crash of the host takes it all.

    Every file has one writer at a time: whoever has the container's lock, or the network's.
    """
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
