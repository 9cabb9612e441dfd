"""linux.netDevices: interfaces of the runtime's network namespace become the container's.

They keep their permanent global addresses, MTU and MAC, may get another name, and are set up; when
the container ends nothing is moved back (runtime-spec 1.3, config-linux.md). Spoken by rtnetlink(7)
directly: the room of networks is not below this one, and pyroute2 costs more than all of `create`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator

import msgspec

from scow.native import sys as kernel
from scow.native.errors import InvalidArgument, ScowError
from scow.native.fd import OwnedFd
from scow.runtime.spec import Spec

_HEADER, _LINK, _ADDRESS = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=4Bi")
_NEWLINK, _GETLINK, _SETLINK, _NEWADDR, _GETADDR = 16, 18, 19, 20, 22
_REQUEST, _ACK, _DUMP, _CREATE, _EXCLUSIVE = 1, 4, 0x300, 0x400, 0x200
_ERROR, _DONE = 2, 3
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_PERMANENT, _NODAD, _NO_PREFIX_ROUTE = 0x80, 0x02, 0x200
_UP = 1
NAME_LIMIT = 15  # IFNAMSIZ with its zero


class _Device(msgspec.Struct, frozen=True):
    """An interface as it was where it came from."""

    index: int
    name: str
    is_up: bool
    addresses: tuple[bytes, ...]  # payloads of RTM_NEWADDR, the index left out


def check_devices(spec: Spec) -> None:
    """Refuse what cannot be, before anything is made."""
    if not any(item.type == "network" for item in spec.linux.namespaces):
        raise InvalidArgument("unable to move network devices without a network namespace")
    names: set[str] = set()
    for device, properties in spec.linux.net_devices.items():
        name = properties.get("name") or device
        for word in (device, name):
            bad = not word or word in (".", "..") or len(os.fsencode(word)) > NAME_LIMIT
            if bad or any(c in "/:" or c.isspace() for c in word):
                raise InvalidArgument(f"invalid network device name '{word[:64]}'")
        if "%" not in name and name in names:
            raise InvalidArgument(f"two network devices are to be called '{name}'")
        names.add(name)


def move_devices(spec: Spec, pid: int, undo: Callable[[Callable[[], None]], object]) -> None:
    """Move them into the network namespace of `pid`; `undo` gets what moves each of them back."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    own, theirs = (OwnedFd(os.open(f"/proc/{who}/ns/net", flags)) for who in ("self", pid))
    with own, theirs:
        if os.fstat(own.fileno()).st_ino == os.fstat(theirs.fileno()).st_ino:
            raise InvalidArgument("unable to move network devices without a network namespace")
        with _socket_in(own, own) as here, _socket_in(theirs, own) as there:
            for name, properties in spec.linux.net_devices.items():
                device = _find(here, name)
                wanted, before = properties.get("name") or name, _indexes(there)
                try:
                    moved = _move(device, wanted, (here, there), theirs, is_up=True)
                except ScowError:
                    # The kernel moves first and renames then: a name that is taken is found too late.
                    for index in _indexes(there) - before:
                        _move_back(pid, index, device)
                    raise

                def move_back(index: int = moved, device: _Device = device) -> None:
                    _move_back(pid, index, device)

                undo(move_back)


def _move_back(pid: int, index: int, device: _Device) -> None:
    """A create that fails leaves what was there: the device with its name, addresses and state."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        own, theirs = (OwnedFd(os.open(f"/proc/{who}/ns/net", flags)) for who in ("self", pid))
        with own, theirs, _socket_in(own, own) as here, _socket_in(theirs, own) as there:
            placed = msgspec.structs.replace(device, index=index)
            _move(placed, device.name, (there, here), own, is_up=device.is_up)
    except (OSError, ScowError):
        pass  # the namespace went with its last process: physical devices fall back by themselves


def _socket_in(namespace: OwnedFd, own: OwnedFd) -> socket.socket:
    """A socket belongs to the namespace that it was made in, wherever its owner goes."""
    kernel.setns(namespace.fileno(), kernel.CLONE_NEWNET)
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    finally:
        kernel.setns(own.fileno(), kernel.CLONE_NEWNET)


def _find(sock: socket.socket, name: str) -> _Device:
    for payload in _dump(sock, _GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
        _, _, index, flags, _ = _LINK.unpack_from(payload)
        if _attributes(payload[_LINK.size :]).get(_IFLA_IFNAME) == os.fsencode(name) + b"\0":
            addresses = _dump(sock, _GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0))
            kept = tuple(text for payload in addresses if (text := _kept(payload, index)))
            return _Device(index, name, bool(flags & _UP), kept)
    raise ScowError(f"unable to move network device '{name}': there is none of that name")


def _kept(payload: bytes, index: int) -> bytes:
    """What a permanent global address of this device is made with again; else empty."""
    family, prefix, short_flags, scope, at = _ADDRESS.unpack_from(payload)
    found = _attributes(payload[_ADDRESS.size :])
    flags = int.from_bytes(found.get(_IFA_FLAGS, bytes([short_flags])), "little")
    if at != index or scope != 0 or not flags & _PERMANENT:
        return b""
    text = _ADDRESS.pack(family, prefix, 0, 0, 0)
    for kind in (_IFA_LOCAL, _IFA_ADDRESS, _IFA_BROADCAST):
        if kind in found:
            text += _attribute(kind, found[kind])
    return text + _attribute(_IFA_FLAGS, struct.pack("=I", flags & (_NODAD | _NO_PREFIX_ROUTE)))


def _move(
    device: _Device,
    name: str,
    sockets: tuple[socket.socket, socket.socket],
    target: OwnedFd,
    *,
    is_up: bool,
) -> int:
    """Gives the index that it has there: its own may be taken."""
    here, there = sockets
    what = f"unable to move network device '{device.name}' to '{name}'"
    before = _indexes(there)
    text = _LINK.pack(0, 0, device.index, 0, 0)
    text += _attribute(_IFLA_NET_NS_FD, struct.pack("=I", target.fileno()))
    text += _attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0")
    _ask(here, _SETLINK, 0, text, what)
    [index] = _indexes(there) - before
    for address in device.addresses:
        family, prefix, _, _, _ = _ADDRESS.unpack_from(address)
        text = _ADDRESS.pack(family, prefix, 0, 0, index) + address[_ADDRESS.size :]
        _ask(there, _NEWADDR, _CREATE | _EXCLUSIVE, text, f"{what}: cannot keep its address")
    if is_up:
        _ask(there, _NEWLINK, 0, _LINK.pack(0, 0, index, _UP, _UP), f"{what}: cannot set it up")
    return index


def _indexes(sock: socket.socket) -> set[int]:
    links = _dump(sock, _GETLINK, _LINK.pack(0, 0, 0, 0, 0))
    return {_LINK.unpack_from(payload)[2] for payload in links}


# --- messages -------------------------------------------------------------------------------------


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[4:size]  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
        data = data[size + -size % 4 :]
    return found


def _send(sock: socket.socket, kind: int, flags: int, payload: bytes) -> None:
    size = _HEADER.size + len(payload)
    sock.send(_HEADER.pack(size, kind, _REQUEST | flags, 1, 0) + payload)


def _messages(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        data = sock.recv(1 << 16)
        while data:
            size, kind, _, _, _ = _HEADER.unpack_from(data)
            yield kind, data[_HEADER.size : size]
            data = data[size + -size % 4 :]


def _dump(sock: socket.socket, kind: int, payload: bytes) -> list[bytes]:
    _send(sock, kind, _DUMP, payload)
    found: list[bytes] = []
    for answer, text in _messages(sock):
        if answer == _ERROR:
            number = -struct.unpack_from("=i", text)[0]
            raise OSError(number, os.strerror(number))
        if answer == _DONE:
            break
        found.append(text)
    return found


def _ask(sock: socket.socket, kind: int, flags: int, payload: bytes, what: str) -> None:
    _send(sock, kind, flags | _ACK, payload)
    for answer, text in _messages(sock):
        if answer == _ERROR:
            number = -struct.unpack_from("=i", text)[0]
            if number:
                raise ScowError(f"{what}: {os.strerror(number).lower()}")
            return
