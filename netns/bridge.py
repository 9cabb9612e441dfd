"""The bridge of a network: made once per boot by pyroute2, looked at on every start without it.

What belongs here: the bridge link, its address, its sysctls, the choice of its subnet. What must
not: addresses of containers (ipam.py), rules (nft.py).
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import msgspec

from scow.native.errors import AlreadyExists, ScowError, SetupError
from scow.netns import rtnetlink as nl
from scow.netns.ipam import Subnet, choose_subnet
from scow.netns.veth import mac_for

if TYPE_CHECKING:
    from pyroute2 import IPRoute  # type: ignore[import-untyped]  # it has no stubs

# BR_MAX_PORTS is 1024 and port number 0 is not given out (net/bridge/br_private.h).
MAX_PORTS = 1023
_RTN_LOCAL = 2
_RTM_GETROUTE = 26
_RTA_DST = 1
_DEFAULT_MTU = 1500


class NetworkState(msgspec.Struct, frozen=True):
    """What is kept of a network in `net/<name>.json` until the next boot."""

    subnet: str
    mtu: int = _DEFAULT_MTU


def is_ready(name: str, subnet: Subnet) -> int | None:
    """The index of the bridge if it is there, is a bridge, is up and has its address."""
    to_gateway = nl.route_body(32) + nl.attribute(_RTA_DST, socket.inet_aton(subnet.gateway))
    with nl.NetlinkSocket() as netlink:
        links, routes = netlink.ask(nl.link_by_name(name), nl.message(_RTM_GETROUTE, 0, to_gateway))
    if isinstance(links, int) or isinstance(routes, int) or not links or not routes:
        return None
    link = nl.parse_link(links[0])
    is_local = routes[0].body[7] == _RTN_LOCAL
    return link.index if link.is_up and link.kind == "bridge" and is_local else None


def make(name: str, known: NetworkState | None) -> NetworkState:
    """Make or mend the bridge. Needs the lock; imports pyroute2.

    A bridge of this name that has an address keeps it; a `known` subnet is used again unless a
    route of the host has taken it since.
    """
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as ipr:
            index = _find_bridge(ipr, name)
            address = _address_of(ipr, index) if index else None
            mtu = _default_mtu(ipr)
            subnet = address or _pick(ipr, known)
            if not index:
                # A fixed MAC: without one the bridge takes the lowest of its ports' and changes
                # it as containers come and go, under the neighbours' caches.
                ipr.link(
                    "add",
                    ifname=name,
                    kind="bridge",
                    address=mac_for(subnet.gateway),
                    br_stp_state=0,
                    br_forward_delay=0,
                    mtu=mtu,
                )
                (index,) = ipr.link_lookup(ifname=name)
            _set_sysctls(name)
            if not address:
                ipr.addr(
                    "add",
                    index=index,
                    address=subnet.gateway,
                    prefixlen=subnet.prefix_length,
                    broadcast=subnet.broadcast,
                )
            ipr.link("set", index=index, state="up")
    except NetlinkError as error:
        name_of = errno.errorcode.get(error.code, "?")
        raise SetupError(
            f"cannot make the bridge '{name}': {os.strerror(error.code).lower()} ({name_of})",
            step="bridge",
            errno=error.code,
            path=name,
        ) from error
    return NetworkState(str(subnet), mtu)


def remove(name: str) -> None:
    """Remove the bridge if it is there."""
    with nl.NetlinkSocket() as netlink:
        (links,) = netlink.ask(nl.link_by_name(name))
        if isinstance(links, list) and links:
            netlink.execute(nl.delete_link(nl.parse_link(links[0]).index))


def set_route_localnet(name: str, wanted: bool) -> None:
    """Let 127.0.0.1 lead to containers, only while ports are published.

    The bridge alone gets it, never `all` (CVE-2020-8558).
    """
    write_sysctl(f"net/ipv4/conf/{name}/route_localnet", "1" if wanted else "0")


def enable_forwarding() -> None:
    """Turn on net.ipv4.ip_forward, without which no container reaches anything."""
    write_sysctl("net/ipv4/ip_forward", "1")


def write_sysctl(key: str, value: str) -> None:
    """Set one sysctl of the current network namespace unless it has the value already."""
    path = f"/proc/sys/{key}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.read(fd, 64).strip() == value.encode():
                return
        finally:
            os.close(fd)
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        number = error.errno or 0
        raise SetupError(
            f"cannot set '{key.replace('/', '.')}' to {value}: {os.strerror(number).lower()} "
            f"({errno.errorcode.get(number, '?')})",
            step="sysctl",
            errno=number,
            path=path,
        ) from error


def _set_sysctls(name: str) -> None:
    """IPv4 only: the host must not take router advertisements from a container (CVE-2020-13401)."""
    if os.path.exists(f"/proc/sys/net/ipv6/conf/{name}"):
        write_sysctl(f"net/ipv6/conf/{name}/accept_ra", "0")
        write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")


def _find_bridge(ipr: IPRoute, name: str) -> int | None:
    for link in ipr.get_links():
        if link.get("ifname") != name:
            continue
        if link.get(("linkinfo", "kind")) != "bridge":
            raise AlreadyExists(
                f"cannot make the bridge '{name}': another kind of interface has this name"
            )
        return int(link["index"])
    return None


def _address_of(ipr: IPRoute, index: int) -> Subnet | None:
    for address in ipr.get_addr(family=socket.AF_INET, index=index):
        length = int(address["prefixlen"])
        text = str(address.get("local") or address.get("address"))
        number = int.from_bytes(socket.inet_aton(text))
        subnet = Subnet(number & ~((1 << (32 - length)) - 1), length)
        if subnet.gateway == text:
            return subnet
    return None


def _pick(ipr: IPRoute, known: NetworkState | None) -> Subnet:
    routes: list[Subnet] = []
    for route in ipr.get_routes(family=socket.AF_INET):
        text, length = route.get("dst"), int(route["dst_len"])
        if text:
            routes.append(
                Subnet(int.from_bytes(socket.inet_aton(str(text).partition("/")[0])), length)
            )
    try:
        return choose_subnet(routes, (known.subnet,) if known else ())
    except ScowError:
        return choose_subnet(routes)


def _default_mtu(ipr: IPRoute) -> int:
    """The MTU of the way out, so that no packet of a container is too big for it."""
    for route in ipr.get_default_routes(family=socket.AF_INET):
        for link in ipr.get_links(int(route.get("oif") or 0)):
            return min(int(link.get("mtu") or _DEFAULT_MTU), _DEFAULT_MTU)
    return _DEFAULT_MTU
