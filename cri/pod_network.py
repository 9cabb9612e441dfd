"""How a pod is connected: by CNI where the host has a configuration, else by scow's own bridge.

The two halves are called around the making of the namespaces: `prepare` takes what must be known before,
`connect` runs while a process is in there, `finish` when they are pinned. What CNI answered is kept in
the pod's directory, which outlives a boot: plugins keep addresses on the disk, and want their DEL.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from scow.cri.pod_namespaces import pin_path
from scow.cri.pod_records import PodRecord, PodStore
from scow.native.errors import ScowError
from scow.native.fs import write_atomic

if TYPE_CHECKING:
    from scow.netns.cni import Connection, Endpoint, NetworkList
    from scow.netns.network import BridgeNetwork
    from scow.netns.records import Attachment


class Link(msgspec.Struct):
    """A pod's connection while it is being made."""

    addresses: tuple[str, ...] = ()
    inside: bytes = b""
    sysctls: tuple[tuple[str, str], ...] = ()
    attachment: Attachment | None = None
    cni: NetworkList | None = None


class PodNetwork:
    """The networks of one service."""

    def __init__(
        self,
        store: PodStore,
        bridge: Callable[[], BridgeNetwork],
        config_dir: str,
        plugin_dirs: tuple[str, ...],
        passed_over: str = "",
    ) -> None:
        self._store = store
        self._bridge = bridge
        self.config_dir = config_dir
        self._plugin_dirs = plugin_dirs
        self._passed_over = passed_over

    def configuration(self) -> NetworkList | None:
        """The CNI list in force; None: scow's own bridge. InvalidArgument for a broken one."""
        if not os.path.isdir(self.config_dir):
            return None  # without loading a module, as on most hosts
        from scow.netns.cni import load_network

        return load_network(self.config_dir, self._passed_over)

    def describe(self) -> str:
        """What connects pods now, in words."""
        try:
            network = self.configuration()
        except ScowError as error:
            return str(error)
        return "the bridge scow0" if network is None else f"CNI: {network.path}"

    def complaint(self) -> str:
        """Why no pod can be connected now; empty when one can."""
        network = self.configuration()
        if network is None:
            return ""
        from scow.netns.cni import Plugins

        missing = Plugins(self._plugin_dirs).missing(network)
        return f"CNI plugins are missing: {', '.join(missing)}" if missing else ""

    def prepare(self, record: PodRecord, network: NetworkList | None) -> Link:
        """Take an address and the ports of the pod, where that comes first."""
        from scow.netns.veth import inside_sysctls, loopback_messages

        if network is not None:
            return Link(inside=loopback_messages(), cni=network)
        bridge = self._bridge()
        attachment = bridge.attach(record.id, ports=record.options.ports)
        messages = bridge.attachment_messages(attachment)
        return Link((attachment.address,), messages.inside, inside_sysctls(), attachment)

    def connect(self, link: Link, pid: int) -> None:
        """Make the host's half of the cable to the namespace of a process."""
        if link.attachment is None:
            return
        from scow.netns.rtnetlink import NetlinkSocket

        messages = self._bridge().attachment_messages(link.attachment)
        with NetlinkSocket() as netlink:
            netlink.execute(messages.host_for(pid))

    def finish(self, record: PodRecord, link: Link) -> None:
        """Let packets pass, or have the plugins do all of it; sets the link's addresses."""
        if link.attachment is not None:
            bridge = self._bridge()
            bridge.settle(link.attachment)
            bridge.open_ports(link.attachment)
        elif link.cni is not None:
            from scow.netns.cni import Connection, Plugins, addresses

            path = f"{self._store.directory(record.id)}/cni.json"
            # Before the first plugin runs: whoever finds a dead attempt can undo it.
            with open(path, "wb") as file:
                file.write(msgspec.json.encode(Connection(link.cni)))
            result = Plugins(self._plugin_dirs).add(link.cni, self._endpoint(record))
            write_atomic(
                self._store.directory(record.id),
                "cni.json",
                msgspec.json.encode(Connection(link.cni, result)),
            )
            link.addresses = tuple(addresses(result))

    def release(self, record: PodRecord) -> None:
        """Give back what the pod took; again is fine."""
        kept = self._kept(record.id)
        if kept is not None:
            from scow.netns.cni import Plugins

            Plugins(self._plugin_dirs).delete(kept.network, self._endpoint(record), kept.result)
            os.unlink(f"{self._store.directory(record.id)}/cni.json")
        elif record.options.network == "own":
            # The kernel takes the link with the namespace, which nothing keeps any more.
            self._bridge().detach(record.id, drop_link=False)

    def addresses(self, record: PodRecord) -> tuple[str, ...]:
        """The addresses that the pod holds now."""
        if record.options.network != "own":
            return ()
        kept = self._kept(record.id) if record.network_config else None
        if kept is not None:
            from scow.netns.cni import addresses

            return tuple(addresses(kept.result))
        attachment = None if record.network_config else self._bridge().attachment(record.id)
        return (attachment.address,) if attachment is not None else ()

    def check(self, record: PodRecord) -> None:
        """Ask the plugins whether the connection is whole; ScowError says what is not."""
        kept = self._kept(record.id)
        if kept is not None:
            from scow.netns.cni import Plugins

            Plugins(self._plugin_dirs).check(kept.network, self._endpoint(record), kept.result)

    def _kept(self, pod_id: str) -> Connection | None:
        try:
            with open(f"{self._store.directory(pod_id)}/cni.json", "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        from scow.netns.cni import decode_connection

        return decode_connection(data)

    def _endpoint(self, record: PodRecord) -> Endpoint:
        from scow.netns.cni import Endpoint

        metadata = record.options.metadata
        path = pin_path(self._store.run_dir(record.id), "network")
        ports = [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                "hostIP": "" if port.host_ip == "0.0.0.0" else port.host_ip,
            }
            for port in record.options.ports
        ]
        dns = {
            "servers": list(record.options.dns_servers),
            "searches": list(record.options.dns_searches),
            "options": list(record.options.dns_options),
        }
        return Endpoint(
            container_id=record.id,
            netns=path if os.path.exists(path) else "",
            arguments=(
                ("IgnoreUnknown", "1"),
                ("K8S_POD_NAMESPACE", metadata.namespace),
                ("K8S_POD_NAME", metadata.name),
                ("K8S_POD_INFRA_CONTAINER_ID", record.id),
                ("K8S_POD_UID", metadata.uid),
            ),
            offers={"portMappings": ports, "dns": dns},
        )
