"""The bytes of the hot path, read back by another implementation (pyroute2)."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from scow.netns import rtnetlink as nl
from scow.netns import veth


def parsed(batch: bytes) -> list[Any]:
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl

    return list(MarshalRtnl().parse(batch))


def test_host_batch_makes_the_pair_in_its_final_state() -> None:
    batch, offsets = veth.host_batch("10.89.0.2", "02:5c:0a:59:00:02", 7, 1400)
    link, port = parsed(batch)
    assert port["index"] == link["index"]
    assert port.get(("linkinfo", "slave_kind")) == "bridge"
    assert link["index"] == veth.host_index("10.89.0.2")
    assert link.get("ifname") == "scow-0a590002"
    assert link.get("master") == 7
    assert link.get("mtu") == 1400
    assert link["flags"] & nl.IFF_UP
    assert link.get(("linkinfo", "kind")) == "veth"
    peer = link.get(("linkinfo", "data", "veth_info_peer"))
    assert peer["index"] == veth.CONTAINER_INDEX
    assert peer.get("ifname") == "eth0"
    assert peer.get("address") == "02:5c:0a:59:00:02"
    assert peer.get("mtu") == 1400
    assert peer.get("net_ns_pid") == veth.PID_PLACEHOLDER
    assert len(offsets) == 1


def test_the_pid_goes_where_the_hole_is() -> None:
    batch, offsets = veth.host_batch("10.89.0.2", "02:5c:0a:59:00:02", 7, 1500)
    filled = veth.NetworkMessages(batch, offsets, b"").host_for(4242)
    link, _port = parsed(filled)
    assert link.get(("linkinfo", "data", "veth_info_peer")).get("net_ns_pid") == 4242
    assert b"\xff\xff\xff\xff" not in filled


def test_inside_batch() -> None:
    loopback, modes, eth0, address, route = parsed(veth.inside_batch("10.89.1.2", 16, "10.89.0.1"))
    assert loopback["index"] == 1
    assert loopback["flags"] & nl.IFF_UP
    assert (modes["index"], modes["flags"]) == (veth.CONTAINER_INDEX, 0)
    assert (eth0["index"], eth0["flags"]) == (veth.CONTAINER_INDEX, nl.IFF_UP)
    assert address["prefixlen"] == 16
    assert address.get("local") == "10.89.1.2"
    assert address.get("broadcast") == "10.89.255.255"
    assert route.get("gateway") == "10.89.0.1"
    assert route["dst_len"] == 0


def test_every_message_is_aligned_and_wants_an_acknowledgement() -> None:
    host, _ = veth.host_batch("10.89.0.2", "02:5c:0a:59:00:02", 7, 1500)
    for batch in (host, veth.inside_batch("10.89.0.2", 16, "10.89.0.1"), veth.loopback_messages()):
        assert len(batch) % 4 == 0
        offset = 0
        while offset < len(batch):
            length = int.from_bytes(batch[offset : offset + 4], "little")
            flags = int.from_bytes(batch[offset + 6 : offset + 8], "little")
            assert flags & nl.NLM_F_ACK
            assert flags & nl.NLM_F_REQUEST
            offset += (length + 3) & ~3
        assert offset == len(batch)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02\0\x01\0", b"\xff\xff\x01\0abcd"])
def test_broken_attributes_end_the_walk(data: bytes) -> None:
    assert list(nl.attributes(data)) == []


def test_split_stops_at_a_short_message() -> None:
    whole = nl.message(3, 0, b"abcd")
    assert [reply.body for reply in nl.split(whole + whole[:10])] == [b"abcd"]


def test_names_and_indexes_come_from_the_address() -> None:
    for address in ("10.89.0.2", "10.127.255.254", "172.20.0.2"):
        link = nl.Link(
            veth.host_index(address),
            True,
            {nl.IFLA_IFNAME: veth.host_name(address).encode() + b"\0"},
        )
        assert veth.address_of_link(link) == address
        assert len(veth.host_name(address)) <= 15
        assert veth.mac_for(address).startswith("02:5c:")
    for name in ("scow0", "scow-", "scow-zzzzzzzz", "scow-0a590003", "eth0"):
        link = nl.Link(veth.host_index("10.89.0.2"), True, {nl.IFLA_IFNAME: name.encode() + b"\0"})
        assert veth.address_of_link(link) is None
    assert socket.AF_INET == 2
