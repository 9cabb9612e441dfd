"""The veth pair of a container, as two batches of rtnetlink messages.

The pair is born in its final state: the host's end with its name, up and in the bridge; the other
end under the name `eth0` and straight inside the container's network namespace. Nothing is renamed
or moved afterwards, because moving a link between namespaces waits for an RCU grace period
(dev_change_net_namespace -> synchronize_net, 5-30 ms) and being created there does not.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from array import array
from contextlib import suppress

import msgspec

from scow.netns import rtnetlink as nl

PID_PLACEHOLDER = 0xFFFFFFFF
CONTAINER_INTERFACE = "eth0"
# The inside index is chosen by us so that the address can be added without asking for it first. It
# lies above what the fallback tunnels of a fresh namespace take (tunl0, gre0, sit0, ...; see
# net.core.fb_tunnels_only_for_init_net).
CONTAINER_INDEX = 100
LOOPBACK_INDEX = 1
_SIOCETHTOOL = 0x8946
_ETHTOOL_GLINK = 0x0000000A
# The host's end is numbered after its address, which is leased to one container at a time. So is
# the name, and a left-over of a dead attempt is found without a search. veth takes a given index
# for the peer only when this end has one, too (veth_newlink).
_HOST_INDEX_BASE = 0x01000000


class NetworkMessages(msgspec.Struct, frozen=True):
    """Two batches: `host` for the host's namespace, `inside` for the container's.

    `host` has a 32-bit hole, PID_PLACEHOLDER, at each of `host_pid_offsets`, for the pid of a
    process in the container's network namespace as the sender of the batch sees it.
    """

    host: bytes
    host_pid_offsets: tuple[int, ...]
    inside: bytes

    def host_for(self, pid: int) -> bytes:
        """Fill the holes with a pid."""
        batch = bytearray(self.host)
        for offset in self.host_pid_offsets:
            struct.pack_into("=I", batch, offset, pid)
        return bytes(batch)


def host_index(address: str) -> int:
    """The host's interface index for the container with this address."""
    return _HOST_INDEX_BASE + (int.from_bytes(socket.inet_aton(address)) & 0xFFFFFF)


def host_name(address: str) -> str:
    """The host's interface name for the container with this address (at most 15 bytes)."""
    return f"scow-{int.from_bytes(socket.inet_aton(address)):08x}"


def address_of_link(link: nl.Link) -> str | None:
    """The address a link of ours stands for, None for everybody else's links."""
    prefix, digits = link.name[:5], link.name[5:]
    if prefix != "scow-" or len(digits) != 8 or digits.strip("0123456789abcdef"):
        return None
    address = socket.inet_ntoa(bytes.fromhex(digits))
    return address if link.index == host_index(address) else None


def inside_sysctls() -> tuple[tuple[str, str], ...]:
    """Sysctls for the container's namespace once `eth0` is there, as (key with '/', value).

    Without an address of its own eth0 would still believe a router advertisement of a neighbour
    (CVE-2020-13401). Empty on a host whose kernel has no IPv6.
    """
    if not os.path.exists("/proc/sys/net/ipv6"):
        return ()
    return ((f"net/ipv6/conf/{CONTAINER_INTERFACE}/disable_ipv6", "1"),)


def settle(*names: str) -> None:
    """Make the kernel act at once on carrier that these links have got.

    The bridge lets nothing through a port, and drops what it should send, until linkwatch has run
    (net/core/link_watch.c), from a work queue that waits for a lock others hold for long. A first
    packet lost to that is sent again after a second. Asking for the link state by ethtool runs it
    here and now (linkwatch_sync_dev). A link that is gone is nobody's loss.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        for name in names:
            value = array("I", (_ETHTOOL_GLINK, 0))
            request = struct.pack("16sP16x", name.encode(), value.buffer_info()[0])
            with suppress(OSError):
                fcntl.ioctl(sock, _SIOCETHTOOL, request)


def enslave(address: str, bridge_index: int) -> tuple[bytes, bytes]:
    """The messages that put an existing host's end into a bridge again."""
    body = nl.link_body(index=host_index(address)) + nl.u32(nl.IFLA_MASTER, bridge_index)
    return nl.message(nl.RTM_NEWLINK, nl.NLM_F_ACK, body), _hairpin(address)


def _hairpin(address: str) -> bytes:
    """Let the bridge send a frame back through the port it came from.

    Where br_netfilter is loaded, a container that calls its own published port is translated
    inside the bridge and would be dropped there (br_nf_pre_routing_finish, should_deliver).
    """
    port = nl.attribute(nl.IFLA_BRPORT_MODE, b"\x01")
    info = nl.nested(
        nl.IFLA_LINKINFO,
        nl.text(nl.IFLA_INFO_SLAVE_KIND, "bridge"),
        nl.nested(nl.IFLA_INFO_SLAVE_DATA, port),
    )
    body = nl.link_body(index=host_index(address)) + info
    return nl.message(nl.RTM_NEWLINK, nl.NLM_F_ACK, body)


def mac_for(address: str) -> str:
    """A locally administered MAC that belongs to the address.

    A new holder of an address then also has its old MAC, so no neighbour keeps a stale entry.
    """
    return "02:5c:" + ":".join(f"{byte:02x}" for byte in socket.inet_aton(address))


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _no_ipv6_address() -> bytes:
    # Networks are IPv4 only: without a link-local address there is nothing to be reached by, and
    # no duplicate address detection on the way (CVE-2024-32473).
    mode = nl.attribute(nl.IFLA_INET6_ADDR_GEN_MODE, bytes([nl.IN6_ADDR_GEN_MODE_NONE]))
    return nl.nested(nl.IFLA_AF_SPEC, nl.nested(socket.AF_INET6, mode))


def host_batch(
    address: str, mac: str, bridge_index: int, mtu: int, group: int = 0
) -> tuple[bytes, tuple[int, ...]]:
    """The batch for the host's namespace, and the offsets of its pid holes.

    `group` marks the host's end, so that its owner knows it again.
    """
    pid = nl.u32(nl.IFLA_NET_NS_PID, PID_PLACEHOLDER)
    peer = (
        nl.link_body(index=CONTAINER_INDEX)
        + nl.text(nl.IFLA_IFNAME, CONTAINER_INTERFACE)
        + nl.attribute(nl.IFLA_ADDRESS, _mac_bytes(mac))
        + nl.u32(nl.IFLA_MTU, mtu)
        + pid
    )
    create = nl.message(
        nl.RTM_NEWLINK,
        nl.NLM_F_ACK | nl.NLM_F_CREATE | nl.NLM_F_EXCL,
        nl.link_body(index=host_index(address), flags=nl.IFF_UP, change=nl.IFF_UP)
        + nl.text(nl.IFLA_IFNAME, host_name(address))
        + nl.u32(nl.IFLA_MTU, mtu)
        + nl.u32(nl.IFLA_MASTER, bridge_index)
        + nl.u32(nl.IFLA_GROUP, group)
        + nl.nested(
            nl.IFLA_LINKINFO,
            nl.text(nl.IFLA_INFO_KIND, "veth"),
            # The peer is the last attribute and the pid the last of it: its value ends the message.
            nl.nested(nl.IFLA_INFO_DATA, nl.nested(nl.VETH_INFO_PEER, peer)),
        ),
    )
    return create + _hairpin(address), (len(create) - 4,)


def loopback_messages() -> bytes:
    """The batch that brings `lo` up: all that `--network none` needs."""
    body = nl.link_body(index=LOOPBACK_INDEX, flags=nl.IFF_UP, change=nl.IFF_UP)
    return nl.message(nl.RTM_NEWLINK, nl.NLM_F_ACK, body)


def inside_batch(address: str, prefix_length: int, gateway: str) -> bytes:
    """The batch for the container's namespace: lo and eth0 up, the address, the default route."""
    local = socket.inet_aton(address)
    host_bits = (1 << (32 - prefix_length)) - 1
    broadcast = (int.from_bytes(local) | host_bits).to_bytes(4)
    still_down = nl.link_body(index=CONTAINER_INDEX)
    up = nl.link_body(index=CONTAINER_INDEX, flags=nl.IFF_UP, change=nl.IFF_UP)
    return b"".join(
        (
            loopback_messages(),
            # Two messages: within one, do_setlink() raises the flags before it reads AF_SPEC.
            nl.message(nl.RTM_NEWLINK, nl.NLM_F_ACK, still_down + _no_ipv6_address()),
            nl.message(nl.RTM_NEWLINK, nl.NLM_F_ACK, up),
            nl.message(
                nl.RTM_NEWADDR,
                nl.NLM_F_ACK | nl.NLM_F_CREATE | nl.NLM_F_EXCL,
                nl.address_body(index=CONTAINER_INDEX, prefix_length=prefix_length)
                + nl.attribute(nl.IFA_LOCAL, local)
                + nl.attribute(nl.IFA_ADDRESS, local)
                + nl.attribute(nl.IFA_BROADCAST, broadcast),
            ),
            nl.message(
                nl.RTM_NEWROUTE,
                nl.NLM_F_ACK | nl.NLM_F_CREATE | nl.NLM_F_EXCL,
                nl.route_body(0) + nl.attribute(nl.RTA_GATEWAY, socket.inet_aton(gateway)),
            ),
        )
    )
