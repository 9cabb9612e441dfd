"""The sandbox of a container: its namespaces, its network and the files that name it.

`scow run` makes a sandbox of one. Its namespaces live as long as its processes do and need no pin
(docs/adr/006): when the last process goes, the kernel takes the network namespace and the veth
pair with it. What the kernel does not take (address, published ports) is released by `release`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from scow.cri.options import NamespaceMode
from scow.cri.records import SHORT_ID, Record, RecordStore
from scow.native.errors import InvalidArgument, InvalidState
from scow.native.fd import OwnedFd
from scow.native.idmap import IdMap
from scow.runtime.spec import Namespace

if TYPE_CHECKING:
    from scow.netns.network import BridgeNetwork
    from scow.netns.records import Attachment


class Sandbox(msgspec.Struct, frozen=True):
    """What a start needs of the sandbox."""

    namespaces: tuple[Namespace, ...]
    hostname: str
    etc_dir: str  # holds hosts, hostname, resolv.conf
    attachment: Attachment | None = None
    host_netlink: bytes = b""
    pid_offsets: tuple[int, ...] = ()
    inside_netlink: bytes = b""
    sysctls: tuple[tuple[str, str], ...] = ()  # of the network itself, (key with '/', value)
    shm_source: str = ""  # a host path to bind on /dev/shm, for shared IPC
    own_network: bool = False
    ids: IdMap | None = None  # of the user namespace
    notes: dict[str, str] = {}


def prepare(
    record: Record,
    store: RecordStore,
    network: Callable[[], BridgeNetwork],
    pid_of: Callable[[str], tuple[str, int]],
    *,
    dry_run: bool = False,
) -> Sandbox:
    """Take what the container's sandbox needs: namespaces to join or make, address, ports, files.

    `pid_of` gives (id, pid) of another running container; `network` the bridge, only when used.
    With `dry_run` no address and no port is taken.
    """
    options = record.options
    mode = options.network.mode
    _check(record)
    namespaces = [Namespace("mount")]
    if options.cgroup.kind != "host":
        namespaces.append(Namespace("cgroup"))
    namespaces += _pid_like("pid", options.pid, pid_of)
    namespaces += _pid_like("ipc", options.ipc, pid_of)
    if options.uts.kind != "host":
        namespaces.append(Namespace("uts"))
    hostname = _hostname(record)
    etc_dir = store.run_dir(record.id)
    link = _Link()
    if mode.kind == "container":
        other, pid = pid_of(mode.container)
        mark_shared(store, other)
        namespaces.append(Namespace("network", f"/proc/{pid}/ns/net"))
        etc_dir = store.run_dir(other)
        hostname = _hostname_of(etc_dir) or hostname
    elif mode.kind != "host":
        namespaces.append(Namespace("network"))
        link = _connect(record, network, dry_run=dry_run)
    if dry_run and not os.path.isdir(etc_dir):
        etc_dir = "/etc"  # to show which files are mounted; nothing is made for that
    elif mode.kind != "container" and not dry_run:
        write_names(record, etc_dir, hostname, link.attachment, host_network=mode.kind == "host")
    return Sandbox(
        namespaces=tuple(namespaces),
        hostname=hostname if options.uts.kind != "host" else "",
        etc_dir=etc_dir,
        attachment=link.attachment,
        host_netlink=link.host,
        pid_offsets=link.offsets,
        inside_netlink=link.inside,
        sysctls=link.sysctls,
        shm_source=_shm_source(options.ipc, store, pid_of, record.id),
        own_network=mode.kind not in ("host", "container"),
        ids=options.ids,
    )


class _Link(msgspec.Struct, frozen=True):
    """How an own network namespace is filled."""

    attachment: Attachment | None = None
    host: bytes = b""
    offsets: tuple[int, ...] = ()
    inside: bytes = b""
    sysctls: tuple[tuple[str, str], ...] = ()


def _connect(record: Record, network: Callable[[], BridgeNetwork], *, dry_run: bool) -> _Link:
    from scow.netns.veth import inside_sysctls, loopback_messages

    options = record.options.network
    if options.mode.kind != "bridge":
        return _Link(inside=loopback_messages())
    bridge = network()
    if dry_run:
        attachment = bridge.attachment(record.id) or _example(record)
    else:
        attachment = bridge.attach(record.id, ip=options.ip, mac=options.mac, ports=options.ports)
    messages = bridge.attachment_messages(attachment)
    return _Link(
        attachment, messages.host, messages.host_pid_offsets, messages.inside, inside_sysctls()
    )


def _hostname(record: Record) -> str:
    options = record.options
    shares = options.uts.kind == "host" or options.network.mode.kind == "host"
    if options.uts.kind == "host" or (shares and options.hostname is None):
        return os.uname().nodename
    return options.hostname or record.id[:SHORT_ID]


def _shared_mark(store: RecordStore, container_id: str) -> str:
    return f"{store.run_dir(container_id)}/network-is-shared"


def mark_shared(store: RecordStore, container_id: str) -> None:
    """Note that another container has joined this one's network, and may outlive it there."""
    os.close(os.open(_shared_mark(store, container_id), os.O_CREAT | os.O_CLOEXEC, 0o600))


def is_shared(store: RecordStore, container_id: str) -> bool:
    """Whether the network namespace may be alive when the container is not."""
    return os.path.exists(_shared_mark(store, container_id))


def _example(record: Record) -> Attachment:
    """Stand in for an attachment where none is taken: what a plan looks like, without an address."""
    from scow.netns.records import Attachment

    return Attachment(
        container_id=record.id,
        network="scow0",
        address=record.options.network.ip or "10.89.0.2",
        prefix_length=16,
        gateway="10.89.0.1",
        mac="02:5c:0a:59:00:02",
        host_interface="veth",
        bridge_index=0,
        mtu=1500,
    )


def _check(record: Record) -> None:
    mode = record.options.network.mode.kind
    if record.options.network.ports and mode != "bridge":
        raise InvalidArgument(
            f"cannot publish ports with network '{mode}': there is no address to forward to",
            hint="leave out -p, or use --network bridge",
        )


def _pid_like(
    kind: str, mode: NamespaceMode, pid_of: Callable[[str], tuple[str, int]]
) -> list[Namespace]:
    if mode.kind == "host":
        return []
    if mode.kind == "container":
        _, pid = pid_of(mode.container)
        return [Namespace(kind, f"/proc/{pid}/ns/{kind}")]
    return [Namespace(kind)]


def _shm_source(
    mode: NamespaceMode, store: RecordStore, pid_of: Callable[[str], tuple[str, int]], own: str
) -> str:
    if mode.kind == "host":
        return "/dev/shm"
    if mode.kind == "shareable":
        return f"{store.run_dir(own)}/shm"
    if mode.kind == "container":
        other, _ = pid_of(mode.container)
        path = f"{store.run_dir(other)}/shm"
        if not os.path.ismount(path):
            raise InvalidState(
                f"cannot share the IPC namespace of container '{mode.container}': it is private",
                hint="start that container with --ipc shareable",
            )
        return path
    return ""


def _hostname_of(etc_dir: str) -> str:
    try:
        with open(f"{etc_dir}/hostname", encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def write_names(
    record: Record,
    etc_dir: str,
    hostname: str,
    attachment: Attachment | None,
    *,
    host_network: bool,
) -> None:
    """Write hosts, hostname and resolv.conf, private to the container, for its next run."""
    from scow.netns import names

    options = record.options.network
    files = {
        "hostname": names.hostname_file(hostname),
        "hosts": names.hosts_file(
            hostname,
            attachment.address if attachment else None,
            domainname=record.options.domainname or "",
            extra=[(entry.name, entry.address) for entry in options.extra_hosts],
            gateway=attachment.gateway if attachment else None,
        ),
        "resolv.conf": names.resolv_conf(
            names.read_host_resolv_conf(),
            dns=options.dns,
            search=options.dns_search,
            options=options.dns_options,
            shares_host_network=host_network,
        ),
    }
    for name, data in files.items():
        # Derived from the record at each start: they die with the boot, and need no rename.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with OwnedFd(os.open(f"{etc_dir}/{name}", flags, 0o644)) as fd:
            os.fchmod(fd.fileno(), 0o644)
            if record.options.ids is not None:
                os.fchown(fd.fileno(), record.options.ids.host_uid, record.options.ids.host_gid)
            os.write(fd.fileno(), data)
