"""Traffic counters of a container, as the container sees them."""

from __future__ import annotations

import struct

import msgspec

from scow.native.errors import NotFound
from scow.netns import rtnetlink as nl


class Counters(msgspec.Struct, frozen=True):
    """What an interface received and sent since it was made."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


def stats(target: int | str) -> Counters:
    """Counters by the name of the host's end of a veth, or of all interfaces around a pid.

    Raises NotFound when the interface or the process is gone.
    """
    return _of_process(target) if isinstance(target, int) else _of_host_interface(target)


def _of_host_interface(name: str) -> Counters:
    with nl.NetlinkSocket() as netlink:
        (links,) = netlink.ask(nl.link_by_name(name))
    if isinstance(links, int) or not links:
        raise NotFound(f"cannot read the counters of interface '{name}': it is gone")
    # struct rtnl_link_stats64; what the host's end receives, the container sent.
    values = struct.unpack_from("=8Q", nl.parse_link(links[0]).attributes[nl.IFLA_STATS64])
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_err, tx_err, rx_drop, tx_drop = values
    return Counters(tx_bytes, tx_packets, tx_err, tx_drop, rx_bytes, rx_packets, rx_err, rx_drop)


def _of_process(pid: int) -> Counters:
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            rows = file.readlines()[2:]
    except OSError as error:
        raise NotFound(f"cannot read the counters of process {pid}: it is gone") from error
    totals = [0] * 8
    for row in rows:
        name, _, rest = row.partition(":")
        if name.strip() == "lo":
            continue
        fields = [int(word) for word in rest.split()]
        # Columns: bytes packets errs drop fifo frame compressed multicast, twice.
        for index, value in enumerate(fields[0:4] + fields[8:12]):
            totals[index] += value
    return Counters(*totals)
