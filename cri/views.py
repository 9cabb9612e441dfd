"""What lists and stats show of a container: flat, typed values; words and columns are the CLI's."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from scow.cri.launch import container_cgroup
from scow.cri.records import Record, RecordStore
from scow.cri.status import Status
from scow.native.errors import NotFound

if TYPE_CHECKING:
    from scow.netns.ports import PortMapping


class ContainerView(msgspec.Struct, frozen=True):
    """One container as a list shows it; times in ns since 1970, 0 where there is none."""

    id: str
    name: str
    image: str
    image_id: str
    command: tuple[str, ...]
    created_ns: int
    state: str
    pid: int
    exit_code: int
    oom_killed: bool
    started_ns: int
    finished_ns: int
    ports: tuple[PortMapping, ...]
    exposed_ports: tuple[str, ...]
    labels: dict[str, str]
    networks: tuple[str, ...]
    mounts: tuple[str, ...]


class StatsView(msgspec.Struct, frozen=True):
    """One measurement of a running container; bytes, nanoseconds, counts since its start."""

    id: str
    name: str
    time_ns: int
    cpu_ns: int
    system_cpu_ns: int
    online_cpus: int
    memory_bytes: int
    memory_limit_bytes: int
    network_received_bytes: int
    network_sent_bytes: int
    block_read_bytes: int
    block_written_bytes: int
    pids: int


def view(record: Record, status: Status, store: RecordStore) -> ContainerView:
    """Show a container; ports are those in force while it runs."""
    options = record.options
    running = status.state.value in ("running", "paused")
    return ContainerView(
        id=record.id,
        name=record.name,
        image=record.image_name,
        image_id=record.image_id,
        command=record.argv,
        created_ns=record.created_ns,
        state=status.state.value,
        pid=status.pid,
        exit_code=status.exit_code,
        oom_killed=status.oom_killed,
        started_ns=status.started_ns,
        finished_ns=status.finished_ns,
        ports=_ports(record, store) if running else (),
        exposed_ports=record.exposed_ports if running else (),
        labels=record.labels,
        networks=(str(options.network.mode),),
        mounts=tuple(m.source for m in options.mounts if m.kind == "bind")
        + tuple(use.name for use in record.volumes),
    )


def _ports(record: Record, store: RecordStore) -> tuple[PortMapping, ...]:
    if not record.options.network.ports:
        return ()
    from scow.netns.network import BridgeNetwork

    attachment = BridgeNetwork(store.run).attachment(record.id)
    return attachment.ports if attachment else record.options.network.ports


def measure(record: Record, status: Status, store: RecordStore) -> StatsView:
    """Measure a running container; NotFound where it does not run."""
    if status.pid == 0:
        raise NotFound(f"cannot measure container '{record.name}': it is {status.state.value}")
    stats = container_cgroup(record).stats()
    received, sent = _network_bytes(status.pid)
    return StatsView(
        id=record.id,
        name=record.name,
        time_ns=time.monotonic_ns(),
        cpu_ns=stats.cpu_ns,
        system_cpu_ns=time.monotonic_ns() * (os.cpu_count() or 1),
        online_cpus=os.cpu_count() or 1,
        memory_bytes=stats.memory_used_bytes,
        memory_limit_bytes=min(stats.memory_limit_bytes or _host_memory(), _host_memory()),
        network_received_bytes=received,
        network_sent_bytes=sent,
        block_read_bytes=stats.read_bytes,
        block_written_bytes=stats.write_bytes,
        pids=stats.pids,
    )


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _network_bytes(pid: int) -> tuple[int, int]:
    """Sum the counters of all interfaces but lo, as the process itself sees them."""
    received = sent = 0
    try:
        with open(f"/proc/{pid}/net/dev", "rb") as file:
            lines = file.read().split(b"\n")[2:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, rest = line.partition(b":")
        fields = rest.split()
        if len(fields) >= 9 and name.strip() != b"lo":
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent
