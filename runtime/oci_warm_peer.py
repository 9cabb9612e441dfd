"""The other half of native/front.c: what a front asks, whether it is like us, and asking it in turn.

What belongs here: the protocol (native/front.h), comparing the caller with this process, becoming what a
cold start of the caller's would have been. What must not: the life of the warm process (oci_warm).
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import resource
import select
import signal
import struct
from collections.abc import Sequence

from scow.native.fd import OwnedFd
from scow.native.spawn import monitor_memfd
from scow.runtime.oci_parent import StartCold

HIGH = 512  # our own descriptors are from here on; below are the caller's, by its own numbers
_VERSION, _FDS_MAX, _TEXT_MAX = 1, 250, 128 * 1024
_REQUEST = struct.Struct("<IIII")
_INT, _STDIO = struct.Struct("<i"), struct.Struct("<iii")
_SOL, _RIGHTS = _socket.SOL_SOCKET, _socket.SCM_RIGHTS
_PEER = struct.Struct("iII")

_NAMESPACES = (
    "cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts",
)  # fmt: skip
# proc(5), status: what a process of the caller's may do, and how it is seen
_STATUS = (
    b"Uid", b"Gid", b"Groups", b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb",
    b"NoNewPrivs", b"Seccomp", b"Seccomp_filters",
)  # fmt: skip
_LIMITS = tuple(
    sorted(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
)


class FrontGone(BaseException):
    """The front was killed, and with it what it was asked for. Undone like an interrupt from the keyboard."""


class Nature:
    """What another process must have in common with us, so that we can do its work."""

    def __init__(self, process: str) -> None:
        """Of the process with this directory in /proc."""
        at = os.open(process, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with OwnedFd(at):  # by descriptor: the pid cannot be reused meanwhile
            self.namespaces = tuple(_link(f"ns/{name}", at) for name in _NAMESPACES)
            self.root = _link("root", at)
            self.label = _read("attr/current", at)
            found = dict(line.split(b":", 1) for line in _read("status", at).splitlines())
        self.rights = tuple(found.get(name) for name in _STATUS)
        self.umask = int(found.get(b"Umask", b"0"), 8)

    def difference(self, other: Nature) -> str:
        """What differs, empty when nothing does."""
        for name, ours, theirs in zip(_NAMESPACES, self.namespaces, other.namespaces, strict=True):
            if ours != theirs or not ours:
                return f"other {name} namespace"
        if self.root != other.root:
            return "other root directory"
        for field, mine, its in zip(_STATUS, self.rights, other.rights, strict=True):
            if mine != its:
                return f"other {field.decode()}"
        return "" if self.label == other.label else "other security label"


def _link(name: str, at: int) -> str:
    try:
        return os.readlink(name, dir_fd=at)
    except OSError:
        return ""  # a namespace for children that has no process yet; or of another user


def _read(name: str, at: int) -> bytes:
    try:
        with OwnedFd(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)) as fd:
            return os.read(fd.fileno(), 16384)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return b""  # attr/current where there is no security module
        raise


class Front:
    """The caller's process, seen from here: a Parent (oci_parent) over a socket."""

    def __init__(self, connection: OwnedFd) -> None:
        """`connection` was just accepted; it is moved out of the caller's numbers."""
        with connection:
            high = fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH)
        self._sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, high)
        self._binary = 0
        self.arguments: list[str] = []

    # --- being asked --------------------------------------------------------------------------

    def adopt(self, ours: Nature, securebits: int) -> None:
        """Become what a cold start would have been: its descriptors, directory, limits, environment.

        Raises StartCold with the reason where we cannot. Descriptors below HIGH are all closed when
        this is called: the kernel gives received ones the lowest free numbers, in their order.
        """
        words, environment, numbers, bits = self._receive_request()
        pid, uid, _ = _PEER.unpack(self._sock.getsockopt(_SOL, _socket.SO_PEERCRED, _PEER.size))
        for at, number in reversed(list(enumerate(numbers))):
            if at != number:  # always upwards, so the highest first
                os.dup2(at, number)
        taken = set(numbers)
        for at in range(len(numbers)):
            if at not in taken:
                os.close(at)
        if uid != 0 or pid == 0:
            raise StartCold("not root, or another pid namespace")
        if bits != securebits:
            raise StartCold("other securebits")
        try:
            nature = Nature(f"/proc/{pid}")
            if difference := ours.difference(nature):
                raise StartCold(difference)
            become_like(pid, nature, environment)
        except (OSError, ValueError) as error:
            raise StartCold(f"cannot become its like: {error}") from error
        self.arguments = [os.fsdecode(word) for word in words[1:]]

    def _receive_request(self) -> tuple[list[bytes], dict[bytes, bytes], list[int], int]:
        space = _socket.CMSG_SPACE(_FDS_MAX * _INT.size)
        size = _REQUEST.size + _FDS_MAX * _INT.size + _TEXT_MAX
        data, ancillary, _, _ = self._sock.recvmsg(size, space)
        if len(data) < _REQUEST.size:
            raise FrontGone
        version, argc, count, bits = _REQUEST.unpack_from(data)
        if version != _VERSION:
            raise StartCold("another version")
        received = b"".join(content for _, kind, content in ancillary if kind == _RIGHTS)
        text = _REQUEST.size + count * _INT.size
        numbers = list(struct.unpack_from(f"<{count}i", data, _REQUEST.size))
        if struct.unpack(f"{count}i", received) != tuple(range(count)):
            raise StartCold("descriptors of ours are in the way")
        strings = data[text:].split(b"\0")[:-1]
        pairs = (entry.split(b"=", 1) for entry in strings[argc:] if b"=" in entry[1:])
        return strings[:argc], dict(pairs), numbers, bits

    def take(self) -> None:
        """Say that it is being worked on; from now on FrontGone is raised when the front is gone."""
        self._send(b"T")
        signal.signal(signal.SIGIO, self._on_change)
        fcntl.fcntl(self._sock.fileno(), fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(self._sock.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(self._sock.fileno(), fcntl.F_SETFL, flags | os.O_ASYNC)

    def _on_change(self, _number: int, _frame: object) -> None:
        poller = select.poll()
        poller.register(self._sock.fileno(), select.POLLIN)
        if any(events & select.POLLHUP for _, events in poller.poll(0)):
            signal.signal(signal.SIGIO, signal.SIG_IGN)  # what is undone now is undone in peace
            raise FrontGone

    # --- answering ----------------------------------------------------------------------------

    def refuse(self, reason: str) -> None:
        """Let it start an interpreter; nothing has been changed."""
        self._send(b"C" + reason.encode(errors="replace")[:100])

    def leave(self, code: int) -> None:
        """The end: what it exits with."""
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        self._send(b"X" + _INT.pack(code))

    def _send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(_SOL, _RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        try:
            self._sock.sendmsg([message], rights, _socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            raise FrontGone from None

    def _ask(self, message: bytes, fds: Sequence[int] = ()) -> int:
        self._send(message, fds)
        try:
            packet = self._sock.recv(_INT.size)
        except ConnectionResetError:
            packet = b""
        if len(packet) != _INT.size:
            raise FrontGone
        return int(_INT.unpack(packet)[0])

    # --- oci_parent.Parent --------------------------------------------------------------------

    def start(self, stdio: Sequence[int], fds: Sequence[int]) -> int:
        passed = [monitor_memfd(), *fds]
        while len(passed) > _FDS_MAX:
            self._send(b"F", passed[:_FDS_MAX])
            del passed[:_FDS_MAX]
        pid = self._ask(b"L" + _STDIO.pack(*stdio), passed)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid), "scow-init")
        self._binary = pid
        return pid

    def bury(self, pid: int) -> None:
        if pid <= 0 or pid == self._binary:
            return  # the front has waited for the binary itself
        try:
            self._ask(b"R" + _INT.pack(pid))
        except FrontGone:
            pass  # then its child has another parent, which does it

    def hold_signals(self) -> None:
        self._send(b"H")

    def need_terminal(self) -> None:
        raise StartCold("a terminal to relay")

    def wait(self, pid: int, pidfd: int, master: OwnedFd | None) -> int:
        assert master is None
        return self._ask(b"W" + _INT.pack(pid))


def become_like(pid: int, nature: Nature, environment: dict[bytes, bytes]) -> None:
    """Take over what hooks inherit, and what counts for what we write ourselves."""
    os.chdir(f"/proc/{pid}/cwd")
    os.umask(nature.umask)
    for limit in _LIMITS:
        wanted = resource.prlimit(pid, limit)
        if wanted != resource.getrlimit(limit):
            resource.setrlimit(limit, wanted)
    os.environb.clear()
    os.environb.update(environment)
