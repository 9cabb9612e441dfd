"""Flows the kernel remembers, forgotten when their translation is no longer right.

Rules are asked once per flow (nf_nat(8): the first packet decides). A client that keeps sending
datagrams keeps its old entry alive for ever: after a container is gone they would still go to its
address, and before it came they went to the host. Works since Linux 5.8 (CTA_FILTER in dumps).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence

from scow.netns import rtnetlink as nl
from scow.netns.ports import PortMapping

_SUBSYS = 1 << 8
_GET = _SUBSYS | 1
_DELETE = _SUBSYS | 2
_CTA_TUPLE_ORIG = 1
_CTA_TUPLE_REPLY = 2
_CTA_STATUS = 3
_CTA_FILTER = 25
_CTA_FILTER_ORIG_FLAGS = 1
_CTA_FILTER_REPLY_FLAGS = 2
_FILTER_IP_SRC = 1 << 0
_FILTER_PROTO_NUM = 1 << 3
_CTA_TUPLE_IP = 1
_CTA_TUPLE_PROTO = 2
_CTA_IP_V4_SRC = 1
_CTA_PROTO_NUM = 1
_CTA_PROTO_DST_PORT = 3
_TRANSLATED = 0x30  # IPS_SRC_NAT | IPS_DST_NAT
_NFGENMSG = struct.pack("=BBH", socket.AF_INET, 0, 0)


def _filter(kind: int, flags: int) -> bytes:
    """Both flag words are required; a zero one compares nothing."""
    orig = flags if kind == _CTA_TUPLE_ORIG else 0
    reply = flags if kind == _CTA_TUPLE_REPLY else 0
    return nl.nested(
        _CTA_FILTER, nl.u32(_CTA_FILTER_ORIG_FLAGS, orig), nl.u32(_CTA_FILTER_REPLY_FLAGS, reply)
    )


def forget_address(address: str) -> int:
    """Forget the flows that a container with this address answers; how many there were."""
    source = nl.attribute(_CTA_IP_V4_SRC, socket.inet_aton(address))
    body = nl.nested(_CTA_TUPLE_REPLY, nl.nested(_CTA_TUPLE_IP, source))
    return _forget(body + _filter(_CTA_TUPLE_REPLY, _FILTER_IP_SRC), lambda _entry: True)


def forget_untranslated(mappings: Sequence[PortMapping]) -> int:
    """Forget datagram flows to ports that were not published when the flow began."""
    ranges = [range(m.host_port, m.host_port + m.count) for m in mappings if m.protocol == "udp"]
    if not ranges:
        return 0

    def is_ours(entry: dict[int, bytes]) -> bool:
        status = int.from_bytes(entry.get(_CTA_STATUS, b""))
        original = dict(nl.attributes(entry.get(_CTA_TUPLE_ORIG, b"")))
        protocol = dict(nl.attributes(original.get(_CTA_TUPLE_PROTO, b"")))
        port = int.from_bytes(protocol.get(_CTA_PROTO_DST_PORT, b""))
        return not status & _TRANSLATED and any(port in ports for ports in ranges)

    number = nl.attribute(_CTA_PROTO_NUM, bytes([socket.IPPROTO_UDP]))
    body = nl.nested(_CTA_TUPLE_ORIG, nl.nested(_CTA_TUPLE_PROTO, number))
    return _forget(body + _filter(_CTA_TUPLE_ORIG, _FILTER_PROTO_NUM), is_ours)


def _forget(body: bytes, is_wanted: Callable[[dict[int, bytes]], bool]) -> int:
    count = 0
    with nl.NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        (replies,) = netlink.ask(nl.message(_GET, nl.NLM_F_DUMP, _NFGENMSG + body))
        # An errno means an old kernel, or no conntrack at all: then flows end by their own time
        # limit (30 to 120 s without a packet), ignoring.
        for reply in replies if isinstance(replies, list) else ():
            entry = dict(nl.attributes(reply.body[len(_NFGENMSG) :]))
            if not is_wanted(entry):
                continue
            original = nl.attribute(_CTA_TUPLE_ORIG | nl.NLA_F_NESTED, entry[_CTA_TUPLE_ORIG])
            # ENOENT: the flow ended by itself in between.
            netlink.ask(nl.message(_DELETE, nl.NLM_F_ACK, _NFGENMSG + original))
            count += 1
    return count
