"""A bridge network: containers join it, leave it, and publish ports through it.

The order of steps is the point of this file. A lease is claimed before anything that uses the
address, and released after all of it is gone, so that whatever a killed process leaves is found by
`detach` or `reconcile` from the lease. IPv4 only for now: no container gets an IPv6 address, and
the bridge itself has IPv6 switched off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress

import msgspec

from scow.native.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidState,
    ResourceExhausted,
    ScowError,
)
from scow.netns import bridge, conntrack, nft, veth
from scow.netns import rtnetlink as nl
from scow.netns.ipam import LeaseStore, Subnet, locked, parse_mac
from scow.netns.ports import PortMapping, Reservation, refuse_duplicates
from scow.netns.records import Attachment, RecordStore, refuse_path
from scow.netns.veth import NetworkMessages

__all__ = ["Attachment", "BridgeNetwork", "NetworkMessages"]


def _short(container_id: str) -> str:
    return container_id[:12]


def _has_entries(directory: str) -> bool:
    try:
        with os.scandir(directory) as found:
            return any(found)
    except FileNotFoundError:
        return False


class BridgeNetwork:
    """The network of this name; one object per process is enough, several do not disturb.

    A container counts as live while `<run_dir>/containers/<id>` exists, a pod while `<run_dir>/pods/<id>`
    does, which the caller makes before `attach` and removes after `detach`. `describe` turns an id into what the user calls it.
    """

    def __init__(
        self,
        run_dir: str = "/run/scow",
        name: str = "scow0",
        *,
        describe: Callable[[str], str] | None = None,
    ) -> None:
        if not name or len(name) > 15 or not name.replace("-", "").isalnum() or not name.isascii():
            raise InvalidArgument(f"{name[:64]!r} cannot be the name of a network interface")
        self.name = name
        self._owners = (f"{run_dir}/containers", f"{run_dir}/pods")
        self._run_dir = run_dir
        self._net_dir = f"{run_dir}/net"
        self._describe = describe or _short
        self._records = RecordStore(self._net_dir)
        self._mark = nft.run_mark(run_dir)
        # Several scows on one bridge begin at different places, so they seldom meet.
        begin = 0 if run_dir == nft.DEFAULT_RUN else self._mark
        self._leases = LeaseStore(self._net_dir, self._is_live, begin)
        self._is_prepared = False
        self._held: dict[str, Reservation] = {}  # until `open_ports` or `detach`, by container

    def attach(
        self,
        container_id: str,
        *,
        ip: str | None = None,
        ports: Sequence[PortMapping] = (),
        mac: str | None = None,
    ) -> Attachment:
        """Take an address and the ports; the messages make the link, `open_ports` the rules.

        Errors name what is in the way: InvalidArgument, AlreadyExists (an address or port, and who
        has it), ResourceExhausted. After an error nothing is held.
        """
        refuse_path(container_id)
        refuse_duplicates(ports)
        mac = parse_mac(mac) if mac else None
        subnet, index, mtu = self._ensure()
        if self._records.attachment(container_id):
            # The leftovers of an attempt that died.
            self.detach(container_id)
        address = self._claim(container_id, subnet, ip)
        try:
            record = Attachment(
                container_id=container_id,
                network=self.name,
                address=address,
                prefix_length=subnet.prefix_length,
                gateway=subnet.gateway,
                mac=mac or veth.mac_for(address),
                host_interface=veth.host_name(address),
                bridge_index=index,
                mtu=mtu,
            )
            if ports:
                return self._publish(record, ports)
            self._records.write_attachment(record)
        except BaseException:
            # The first error is the one to tell; what detach cannot do now, reconcile will.
            with suppress(ScowError, OSError):
                self.detach(container_id)
            raise
        return record

    def detach(self, container_id: str, *, drop_link: bool = True) -> None:
        """Give everything back; nothing to do is fine, half an attachment too.

        Deleting a link waits 15-20 ms for RCU grace periods. Where the container's namespace has
        lost its last process the kernel deletes the link by itself a moment later, and
        `drop_link=False` leaves it to that. Whoever gets the address next looks again.
        """
        self._prepare()
        self._let_go(container_id)
        record = self._records.attachment(container_id)
        address = record.address if record else self._leases.address_of(container_id)
        if address is None:
            return
        with self._locked(), ExitStack() as undo:
            # Backwards, and each step even if one before it fails; the lease goes last.
            undo.callback(self._leases.release, container_id, address)
            if drop_link and self._leases.holder(address) == container_id:
                undo.callback(self._drop_link, address)
            # Without a record there may have been ports all the same: the record goes first.
            if record is None or record.ports:
                undo.callback(conntrack.forget_address, address)
                undo.callback(self._write_rules)
            undo.callback(self._records.remove_attachment, container_id)

    def attachment(self, container_id: str) -> Attachment | None:
        """What `attach` gave, from the records."""
        self._prepare()
        return self._records.attachment(container_id)

    def attachment_messages(self, attachment: Attachment) -> NetworkMessages:
        """The two netlink batches that make the attachment's link."""
        host, offsets = veth.host_batch(
            attachment.address,
            attachment.mac,
            attachment.bridge_index,
            attachment.mtu,
            self._mark,
        )
        inside = veth.inside_batch(attachment.address, attachment.prefix_length, attachment.gateway)
        return NetworkMessages(host, offsets, inside)

    def settle(self, attachment: Attachment) -> None:
        """Call when both batches have been carried out, before the container's program starts.

        Without it the first packet may be lost, and sent again after a second.
        """
        veth.settle(attachment.host_interface, attachment.network)

    def open_ports(self, attachment: Attachment) -> None:
        """Forward the ports that `attach` has reserved; call it when the link is settled.

        A client that came before the link is up would wait a second for an answer to its first
        packet, where one that is refused asks again at once.
        """
        if attachment.ports:
            with self._locked():
                self._write_rules()
            conntrack.forget_untranslated(attachment.ports)
        self._let_go(attachment.container_id)

    def reconcile(self, is_live: Callable[[str], bool] | None = None) -> list[str]:
        """Remove what dead containers left, restore what live ones need; lines tell what was done."""
        self._prepare()
        alive = is_live or self._is_live
        with self._locked():
            done = self._bury(alive) + self._drop_orphans()
            if not self._records.networks():
                return done
            if done or not self._rules_are_in_place():
                if not done:
                    done.append("restored the firewall table")
                self._write_rules()
        mine = any(record.network == self.name for record in self._records.attachments())
        if mine and self._bridge_index() is None:
            self._ensure()
            done.append(f"restored the bridge '{self.name}'")
        return done

    def findings(self, is_live: Callable[[str], bool] | None = None) -> list[str]:
        """What `reconcile` would mend, without touching it."""
        self._prepare()
        alive = is_live or self._is_live
        found = [
            f"address {address} belongs to dead container {owner[:12]}"
            for address, owner in self._leases.all().items()
            if not alive(owner)
        ]
        attachments = self._records.attachments()
        # Without a container the table may go: another run directory's scow takes it for stale.
        if attachments and not self._rules_are_in_place():
            with self._locked():  # was it just being written?
                if not self._rules_are_in_place():
                    found.append("the firewall table is missing or was changed")
        mine = any(record.network == self.name for record in attachments)
        if mine and self._bridge_index() is None:
            found.append(f"the bridge '{self.name}' is missing or was changed")
        return found

    def remove(self) -> None:
        """Remove the network: bridge, rules, state. InvalidState while a container is in it."""
        self._prepare()
        with self._locked():
            self._bury(self._is_live)
            for record in self._records.attachments():
                if record.network == self.name:
                    raise InvalidState(
                        f"cannot remove the network '{self.name}': container "
                        f"'{self._describe(record.container_id)}' is in it"
                    )
            bridge.remove(self.name)
            self._records.remove_network(self.name)
            if self._records.networks():
                self._write_rules()
            else:
                nft.remove(self._run_dir)

    def _is_live(self, container_id: str) -> bool:
        return any(os.path.exists(f"{owners}/{container_id}") for owners in self._owners)

    def _prepare(self) -> None:
        if not self._is_prepared:
            self._leases.prepare()
            self._records.prepare()
            self._is_prepared = True

    def _locked(self) -> AbstractContextManager[None]:
        return locked(f"{self._net_dir}/lock")

    def _networks(self) -> list[nft.NetworkRules]:
        return [nft.NetworkRules(name, s.subnet) for name, s in self._records.networks().items()]

    def _bridge_index(self) -> int | None:
        state = self._records.network(self.name)
        return bridge.is_ready(self.name, Subnet.parse(state.subnet)) if state else None

    def _ensure(self) -> tuple[Subnet, int, int]:
        """Subnet, bridge index and MTU of a network that works, made or mended where it does not."""
        self._prepare()
        state = self._records.network(self.name)
        index = self._bridge_index()
        bridge.enable_forwarding()
        if state and index and self._rules_are_in_place():
            return Subnet.parse(state.subnet), index, state.mtu
        with self._locked():
            if not state or not index:
                state = bridge.make(self.name, state)
                self._records.write_network(self.name, state)
                index = self._bridge_index()
                if index is None:
                    raise InvalidState(f"cannot use the bridge '{self.name}': it is not up")
                self._enslave_again(index)
            # In every case: a new bridge needs its sysctl, too.
            self._write_rules(self._stale_tables())
        return Subnet.parse(state.subnet), index, state.mtu

    def _enslave_again(self, index: int) -> None:
        """Put the links of running containers back into a bridge that was deleted under them."""
        with nl.NetlinkSocket() as netlink:
            for record in self._records.attachments():
                if record.network == self.name:
                    # ENODEV: that container has no link yet, or no more.
                    netlink.ask(*veth.enslave(record.address, index))

    def _rules_are_in_place(self) -> bool:
        return nft.is_in_place(self._networks(), self._run_dir)

    def _stale_tables(self) -> list[str]:
        """The tables of run directories that hold no container any more."""
        return [
            name
            for name, run in nft.others(self._run_dir).items()
            if run and not any(_has_entries(f"{run}/{kind}") for kind in ("containers", "pods"))
        ]

    def _claim(self, container_id: str, subnet: Subnet, ip: str | None) -> str:
        if ip:
            with self._locked():
                self._leases.claim_given(container_id, subnet, ip)
                if not self._drop_link(ip):
                    self._leases.release(container_id, ip)
                    raise AlreadyExists(
                        f"cannot use address '{ip}': a container of another run directory has it"
                    )
            return ip
        address = self._claim_free(container_id, subnet)
        if address is None:
            with self._locked():
                self._bury(self._is_live)
                self._write_rules()
            address = self._claim_free(container_id, subnet)
        if address is None:
            limit = min(bridge.MAX_PORTS, max(subnet.size - 3, 0))
            raise ResourceExhausted(
                f"cannot attach to the network '{self.name}': all {limit} places are taken",
                hint="remove containers, or run `scow system check --repair`",
            )
        return address

    def _claim_free(self, container_id: str, subnet: Subnet) -> str | None:
        for _ in range(bridge.MAX_PORTS):
            address = self._leases.claim_any(container_id, subnet, bridge.MAX_PORTS)
            if address is None or self._drop_link(address):
                return address
            with self._locked():
                self._leases.release(container_id, address)
        return None

    def _publish(self, record: Attachment, ports: Sequence[PortMapping]) -> Attachment:
        with self._locked():
            taken = {r.container_id: r.ports for r in self._records.attachments() if r.ports}
            dead = [container_id for container_id in taken if not self._is_live(container_id)]
            if dead:
                self._bury(self._is_live)
                taken = {key: value for key, value in taken.items() if key not in dead}
            with ExitStack() as undo:
                reservation = undo.enter_context(Reservation(taken, self._describe))
                chosen = tuple(reservation.add(mapping) for mapping in ports)
                record = msgspec.structs.replace(record, ports=chosen)
                self._records.write_attachment(record)
                self._held[record.container_id] = reservation
                undo.pop_all()
        return record

    def _let_go(self, container_id: str) -> None:
        reservation = self._held.pop(container_id, None)
        if reservation is not None:
            reservation.close()

    def _write_rules(self, stale: Sequence[str] = ()) -> None:
        """Write the table from the records, and take `stale` ones away. Needs the lock."""
        networks = self._networks()
        if not networks:
            return
        records = self._records.attachments()
        nft.apply(
            nft.render(
                networks,
                (nft.Publication(port, r.address) for r in records for port in r.ports),
                self._run_dir,
                stale,
            )
        )
        publishing = {r.network for r in records if r.ports}
        shared = not publishing and bool(nft.others(self._run_dir))
        for network in networks:
            if shared:
                continue  # others may publish on the same bridge
            if os.path.exists(f"/proc/sys/net/ipv4/conf/{network.bridge}"):
                bridge.set_route_localnet(network.bridge, network.bridge in publishing)

    def _bury(self, is_live: Callable[[str], bool]) -> list[str]:
        """Give back what dead containers hold; the caller writes the rules. Needs the lock."""
        done: list[str] = []
        for record in self._records.attachments():
            if not is_live(record.container_id):
                self._records.remove_attachment(record.container_id)
                if record.ports:
                    conntrack.forget_address(record.address)
                done.append(f"removed the ports of dead container {record.container_id[:12]}")
        for address, owner in self._leases.all().items():
            if not is_live(owner):
                self._drop_link(address)
                self._leases.release(owner, address)
                done.append(f"released address {address} of dead container {owner[:12]}")
        return done

    def _drop_link(self, address: str) -> bool:
        """Delete the link that belongs to an address; False where it is another run directory's."""
        index = veth.host_index(address)
        with nl.NetlinkSocket() as netlink:
            (links,) = netlink.ask(nl.link_by_index(index))
            if isinstance(links, int) or not links:
                return True
            link = nl.parse_link(links[0])
            if link.name != veth.host_name(address) or link.group != self._mark:
                return False
            # ENODEV: its namespace died in between and took it along.
            netlink.ask(nl.delete_link(index))
            return True

    def _drop_orphans(self) -> list[str]:
        """Delete links of ours whose address nobody has. Needs the lock."""
        done: list[str] = []
        with nl.NetlinkSocket() as netlink:
            (replies,) = netlink.ask(nl.all_links())
        for link in map(nl.parse_link, replies if isinstance(replies, list) else ()):
            address = veth.address_of_link(link) if link.group == self._mark else None
            # The claim keeps a new container from taking the address while we delete.
            if address and self._leases.claim("reconcile", address):
                self._drop_link(address)
                self._leases.release("reconcile", address)
                done.append(f"removed the link {link.name}, which belonged to nobody")
        return done
