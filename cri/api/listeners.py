"""Where the service listens: unix socket, TCP with mutual TLS, loopback, sockets given by systemd.

Plain TCP is for loopback only, and who reaches the API is root on this host: a unix socket of mode
0600 and a client certificate say who that is, loopback does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import ssl
import stat
import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

from scow.cri.tls import mutual_context
from scow.native.errors import AlreadyExists, InvalidArgument, ScowError
from scow.native.fd import OwnedFd

BACKLOG = 1024
PROBE_S = 2.0
FIRST_FD = 3  # sd_listen_fds(3)
_PEERCRED = struct.Struct("3i")  # unix(7): struct ucred


@dataclass(slots=True)
class Listener:
    """One socket that is listened on. `tls` None: plain. `path`: ours to remove at the end."""

    sock: socket.socket
    tls: ssl.SSLContext | None = None
    streams_only: bool = False
    path: str | None = None

    @property
    def is_unix(self) -> bool:
        """Whether only this host can reach it, and peers have a uid."""
        return self.sock.family == socket.AF_UNIX

    def url(self) -> str:
        """The URL of it, for stream URLs and for the log."""
        if self.is_unix:
            return f"unix://{self.sock.getsockname()}"
        host, port = self.sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{port}"

    def close(self) -> None:
        """Stop listening."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.sock.close()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: our certificate and key, and the authority that clients' certificates are from."""

    certificate: str
    key: str
    client_ca: str


def open_listener(address: str, tls: TlsFiles | None) -> Listener:
    """Listen on `unix:///path`, `tcp://host:port` (mutual TLS) or `http://127.0.0.1:port` (plain)."""
    if address.startswith("/"):
        return _open_unix(address)
    parts = urlsplit(address)
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        return _open_unix(parts.path)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if (
        parts.scheme not in ("tcp", "http")
        or not host
        or port is None
        or parts.path not in ("", "/")
    ):
        raise InvalidArgument(
            f"cannot listen on '{address}': it is no address that scow knows",
            hint="unix:///run/scow/scow.sock, tcp://0.0.0.0:7443 (TLS) or http://127.0.0.1:7480",
        )
    if parts.scheme == "http":
        return open_loopback(host, port)
    if tls is None:
        raise InvalidArgument(
            f"cannot listen on '{address}': TCP needs mutual TLS",
            hint="give --tls-cert, --tls-key and --tls-client-ca",
        )
    return Listener(_open_tcp(host, port), server_context(tls))


def open_loopback(host: str, port: int, *, streams_only: bool = False) -> Listener:
    """Listen without TLS; only a literal loopback address will do."""
    if not is_loopback(host):
        raise InvalidArgument(
            f"cannot listen on '{host}' without TLS: it is not a loopback address",
            hint="use 127.0.0.1 or [::1], or tcp:// with certificates",
        )
    return Listener(_open_tcp(host, port), None, streams_only)


def activated(tls: TlsFiles | None) -> list[Listener]:
    """The sockets that systemd passed to us (sd_listen_fds(3)); none is given on to children."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return [_adopt(fd, tls) for fd in range(FIRST_FD, FIRST_FD + count)]


def _adopt(fd: int, tls: TlsFiles | None) -> Listener:
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    if sock.family == socket.AF_UNIX:
        return Listener(sock)
    if tls is not None:
        return Listener(sock, server_context(tls))
    if not is_loopback(sock.getsockname()[0]):
        raise InvalidArgument(
            "cannot serve the TCP socket that systemd passed: it needs mutual TLS",
            hint="give --tls-cert, --tls-key and --tls-client-ca",
        )
    return Listener(sock)


def server_context(tls: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 with a client certificate, or nothing."""
    return mutual_context(ssl.PROTOCOL_TLS_SERVER, tls.certificate, tls.key, tls.client_ca)


def is_loopback(host: str) -> bool:
    """Whether a host is a literal loopback address; a name may change its meaning."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def unix_peer(sock: socket.socket) -> tuple[int, int]:
    """Pid and uid of who connected; the pid as it was then."""
    pid, uid, _ = _PEERCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    )
    return pid, uid


def _open_unix(path: str) -> Listener:
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with OwnedFd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as lock:
            # Two that start at once: nobody answers between bind and listen, and who came then
            # would take the other's place, which would serve on without a name.
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
            return Listener(_bind_unix(path), path=path)
    except OSError as error:
        raise ScowError(f"cannot listen on '{path}': {error.strerror or error}") from error


def _bind_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        # The mode is the access control, so it is right from the first moment: Linux makes the file
        # with the mode of the socket's own inode. A umask would be that of other threads as well.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket of a service that was killed; one that answers is an error."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise AlreadyExists(f"cannot listen on '{path}': it exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(path)
            # A process that was killed while it made a child listens until that child's execve(2).
            probe.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            probe.recv(1)
        except TimeoutError:
            pass  # somebody who is busy
        except ConnectionError:
            os.unlink(path)
            return
    raise AlreadyExists(
        f"cannot listen on '{path}': a service answers there already",
        hint="'systemctl status scow' tells which",
    )


def _open_tcp(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        raise InvalidArgument(f"cannot listen on '{host}': it is not an IP address") from None
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ScowError(f"cannot listen on '{host}' port {port}: {error.strerror}") from error
    return sock
