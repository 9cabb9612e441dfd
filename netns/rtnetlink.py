"""Netlink messages as bytes, and a socket that sends them and waits for their acknowledgements.

This is the hot path: importing pyroute2 costs more than everything else `scow run` does, so the few
messages that every container needs are packed here by hand. What belongs here: the wire format
(netlink(7), rtnetlink(7)) and the socket. What must not: which messages a container needs
(veth.py), firewall rules (nft.py), anything that is made once per boot (bridge.py, by pyroute2).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import msgspec

from scow.native.fd import Closing

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLMSG_ERROR = 2
NLMSG_DONE = 3

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_NEWROUTE = 24

IFF_UP = 0x1

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_NET_NS_PID = 19
IFLA_STATS64 = 23
IFLA_AF_SPEC = 26
IFLA_GROUP = 27
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_KIND = 4
IFLA_INFO_SLAVE_DATA = 5
IFLA_BRPORT_MODE = 4
VETH_INFO_PEER = 1
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4
RTA_GATEWAY = 5
RT_TABLE_MAIN = 254
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RTN_UNICAST = 1

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 64 * 1024


def attribute(kind: int, payload: bytes) -> bytes:
    """Pack one attribute, padded to four bytes (netlink(7): NLA_ALIGNTO)."""
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def nested(kind: int, *members: bytes) -> bytes:
    """Pack an attribute whose payload is attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(members))


def text(kind: int, value: str) -> bytes:
    """Pack a NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """Pack a 32-bit attribute in the host's byte order."""
    return attribute(kind, struct.pack("=I", value))


def message(kind: int, flags: int, body: bytes, *, sequence: int = 1) -> bytes:
    """Pack one whole netlink message, padded, ready to stand in a batch."""
    length = _HEADER.size + len(body)
    head = _HEADER.pack(length, kind, flags | NLM_F_REQUEST, sequence, 0)
    return head + body + b"\0" * (-length % 4)


def link_body(*, index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """Pack `struct ifinfomsg`."""
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, change)


def address_body(*, index: int, prefix_length: int) -> bytes:
    """Pack `struct ifaddrmsg` for an IPv4 address."""
    return _IFADDR.pack(socket.AF_INET, prefix_length, 0, RT_SCOPE_UNIVERSE, index)


def route_body(destination_length: int) -> bytes:
    """Pack `struct rtmsg` for an IPv4 unicast route in the main table; length 0 is the default."""
    return _RTMSG.pack(
        socket.AF_INET,
        destination_length,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        RT_SCOPE_UNIVERSE,
        RTN_UNICAST,
        0,
    )


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Walk the attributes in `data`; a malformed rest ends the walk."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Reply(msgspec.Struct, frozen=True):
    """One message from the kernel, header taken off."""

    kind: int
    sequence: int
    body: bytes

    @property
    def error(self) -> int:
        """The positive errno of an NLMSG_ERROR, 0 for an acknowledgement."""
        return -int(struct.unpack_from("=i", self.body)[0]) if self.kind == NLMSG_ERROR else 0


def split(data: bytes) -> Iterator[Reply]:
    """Cut a batch of bytes into messages."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield Reply(kind, sequence, data[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


class NetlinkSocket(Closing):
    """A netlink socket in the network namespace of the thread that opens it."""

    __slots__ = ("_socket",)

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        # The kernel answers in the caller's own context, so a reply is there when send returns;
        # the time limit only keeps a bug from hanging a command for ever.
        self._socket.settimeout(5)

    def close(self) -> None:
        """Close the socket; closing twice is fine."""
        self._socket.close()

    def execute(self, batch: bytes) -> None:
        """Send messages that each ask for an acknowledgement; stop at the first refusal.

        They go one by one: the kernel carries on after a failed message of a batch, and what
        follows a refusal here must not happen. Raises OSError with the kernel's errno.
        """
        for request in _requests(batch):
            self._socket.send(request)
            reply = next(split(self._socket.recv(_RECEIVE_BYTES)))
            if reply.error:
                raise OSError(reply.error, os.strerror(reply.error))

    def ask(self, *requests: bytes) -> list[list[Reply] | int]:
        """Send requests and give, for each, the kernel's answers or a positive errno.

        A request is a plain get (answered by one message), a get with NLM_F_DUMP (many and a
        DONE), or anything with NLM_F_ACK.
        """
        return [self._ask_one(request) for request in requests]

    def _ask_one(self, request: bytes) -> list[Reply] | int:
        flags = int(struct.unpack_from("=H", request, 6)[0])
        self._socket.send(request)
        replies: list[Reply] = []
        while True:
            for reply in split(self._socket.recv(_RECEIVE_BYTES)):
                if reply.kind == NLMSG_ERROR:
                    return reply.error or replies
                if reply.kind == NLMSG_DONE:
                    return replies
                replies.append(reply)
            if not flags & (NLM_F_ACK | NLM_F_DUMP):
                return replies


def _requests(batch: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + _HEADER.size <= len(batch):
        length = (int(struct.unpack_from("=I", batch, offset)[0]) + 3) & ~3
        if length < _HEADER.size:
            raise ValueError(f"malformed netlink batch at offset {offset}")
        yield batch[offset : offset + length]
        offset += length


def link_by_name(name: str) -> bytes:
    """Ask for a link by its name; the answer is RTM_NEWLINK or ENODEV."""
    return message(RTM_GETLINK, 0, link_body() + text(IFLA_IFNAME, name))


def link_by_index(index: int) -> bytes:
    """Ask for a link by its index; the answer is RTM_NEWLINK or ENODEV."""
    return message(RTM_GETLINK, 0, link_body(index=index))


def all_links() -> bytes:
    """Ask for every link of this namespace."""
    return message(RTM_GETLINK, NLM_F_DUMP, link_body())


def delete_link(index: int) -> bytes:
    """Remove the link with this index; deleting one end of a veth removes both (veth(4))."""
    return message(RTM_DELLINK, NLM_F_ACK, link_body(index=index))


class Link(msgspec.Struct, frozen=True):
    """What one RTM_NEWLINK says about an interface."""

    index: int
    is_up: bool
    attributes: dict[int, bytes]

    @property
    def name(self) -> str:
        """The interface name."""
        return self.attributes.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")

    @property
    def group(self) -> int:
        """What marks links that belong together; 0 where nobody has said any."""
        return int(struct.unpack("=I", self.attributes.get(IFLA_GROUP, bytes(4)))[0])

    @property
    def kind(self) -> str:
        """The kind of a virtual link (`bridge`, `veth`), empty for hardware."""
        info = dict(attributes(self.attributes.get(IFLA_LINKINFO, b"")))
        return info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")


def parse_link(reply: Reply) -> Link:
    """Read the body of an RTM_NEWLINK."""
    _family, _type, index, flags, _change = _IFINFO.unpack_from(reply.body)
    return Link(index, bool(flags & IFF_UP), dict(attributes(reply.body[_IFINFO.size :])))
