"""Unix sockets by the bare extension: the `socket` module costs every start 3 ms (its enums).

What belongs here: pairs, paths, one descriptor at a time. What must not: what is said over them.
"""

from __future__ import annotations

import _socket
import os
import struct

from scow.native.fd import OwnedFd

_INT = struct.Struct("i")
SEQPACKET, STREAM = _socket.SOCK_SEQPACKET, _socket.SOCK_STREAM


def pair() -> tuple[OwnedFd, OwnedFd]:
    """Two ends of a packet socket, close-on-exec."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    return OwnedFd(ours.detach()), OwnedFd(theirs.detach())


def _at(path: str) -> tuple[OwnedFd, str]:
    # sun_path holds 108 bytes; through the directory's descriptor any length of path will do.
    directory, name = os.path.split(path)
    at = OwnedFd(os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    return at, f"/proc/self/fd/{at.fileno()}/{name}"


def listen(path: str, backlog: int = 8) -> OwnedFd:
    """A new packet socket that listens at `path`."""
    at, name = _at(path)
    with at:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            sock.bind(name)
            sock.listen(backlog)
            return OwnedFd(sock.detach())
        finally:
            sock.close()


def connect(path: str, kind: int = SEQPACKET) -> OwnedFd:
    """A connection to who listens at `path`."""
    at, name = _at(path)
    with at:
        sock = _socket.socket(_socket.AF_UNIX, kind)
        try:
            sock.connect(name)
            return OwnedFd(sock.detach())
        finally:
            sock.close()


def accept(fd: int) -> OwnedFd:
    """The next connection to a packet socket that listens. BlockingIOError when there is none."""
    sock = _of(fd)
    try:
        sock.setblocking(False)
        low, _ = sock._accept()  # type: ignore[attr-defined]  # pyright: ignore  # what socket.accept calls
        return OwnedFd(low)
    finally:
        sock.detach()


def _of(fd: int) -> _socket.socket:
    """A packet socket by its descriptor (borrowed: detach it); told what it is, nobody asks the kernel."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)


def receive(fd: int, size: int) -> tuple[bytes, OwnedFd | None]:
    """One message and the descriptor that came with it; empty at the end, however it came."""
    sock = _of(fd)
    try:
        space = _socket.CMSG_SPACE(_INT.size)
        data, ancillary, _, _ = sock.recvmsg(size, space, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", None
    finally:
        sock.detach()
    for level, kind, content in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            return data, OwnedFd(_INT.unpack_from(content)[0])
    return data, None


def send_with(fd: int, data: bytes, passed: int) -> None:
    """One message with a descriptor."""
    sock = _socket.socket(fileno=fd)
    try:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _INT.pack(passed))
        sock.sendmsg([data], [rights])
    finally:
        sock.detach()
