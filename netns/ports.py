"""Published ports: what the user wrote, and whether the host can give it.

A port is free when a socket can really be bound to it; the sockets stay bound until the rules are
in. No process listens afterwards, the kernel translates (nft.py). What must not be here: rules.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

import msgspec

from scow.native.errors import (
    AlreadyExists,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    ScowError,
    Unsupported,
)
from scow.native.fd import Closing

WILDCARD = "0.0.0.0"
PROTOCOLS = ("tcp", "udp")
_FORM = "expected [[HOST_IP:][HOST_PORT]:]CONTAINER_PORT[/tcp|/udp], ports may be ranges FIRST-LAST"
# Beyond this many, a range is checked but its sockets are not held: the limit of open files is
# often 1024, and our own containers are kept apart by their records anyway.
_HELD_SOCKETS = 256
_PORT_ZERO_TRIES = 64


class PortMapping(msgspec.Struct, frozen=True):
    """Host ports that lead to container ports.

    `count` consecutive host ports lead to as many container ports, one to one. `host_port` 0 lets
    the kernel choose one. `choices` above 1 is a host range for one container port: the first
    free one of `host_port`..`host_port + choices - 1` is taken. A chosen mapping has neither.
    """

    host_ip: str
    host_port: int
    container_port: int
    protocol: str
    count: int = 1
    choices: int = 1

    def overlaps(self, other: PortMapping) -> bool:
        """Whether a packet could match both (a wildcard address matches every address)."""
        return (
            self.protocol == other.protocol
            and (self.host_ip == other.host_ip or WILDCARD in (self.host_ip, other.host_ip))
            and self.host_port < other.host_port + other.count
            and other.host_port < self.host_port + self.count
        )

    def __str__(self) -> str:
        """Docker's notation, like `0.0.0.0:8000-8010->80-90/tcp`."""
        last = self.count - 1
        host = f"{self.host_port}-{self.host_port + last}" if last else str(self.host_port)
        inner = (
            f"{self.container_port}-{self.container_port + last}"
            if last
            else str(self.container_port)
        )
        return f"{self.host_ip}:{host}->{inner}/{self.protocol}"


def parse_port(spec: str) -> list[PortMapping]:
    """Read one `-p` value in Docker's grammar; InvalidArgument or Unsupported otherwise.

    A container range with no host ports gives one mapping per port, each with its own choice.
    """
    rest, slash, protocol = spec.partition("/")
    protocol = _parse_protocol(spec, protocol) if slash else "tcp"
    host_ip, host_text, container_text = _split(spec, rest)
    first, last = _parse_range(spec, "container port", container_text)
    count = last - first + 1
    if not host_text:
        return [PortMapping(host_ip, 0, port, protocol) for port in range(first, last + 1)]
    host_first, host_last = _parse_range(spec, "host port", host_text)
    host_count = host_last - host_first + 1
    if host_count == count:
        return [PortMapping(host_ip, host_first, first, protocol, count=count)]
    if count == 1:
        return [PortMapping(host_ip, host_first, first, protocol, choices=host_count)]
    raise _bad(spec, f"{host_count} host ports cannot lead to {count} container ports")


def parse_ports(specs: Iterable[str]) -> list[PortMapping]:
    """Read all `-p` values of one command; a port that is published twice is an error."""
    mappings = [mapping for spec in specs for mapping in parse_port(spec)]
    refuse_duplicates(mappings)
    return mappings


def refuse_duplicates(mappings: Sequence[PortMapping]) -> None:
    """Refuse host ports that one container publishes twice."""
    fixed = [m for m in mappings if m.host_port and m.choices == 1]
    # Sorted by port, only neighbours that begin before the other ends can overlap.
    fixed.sort(key=lambda m: m.host_port)
    for index, mapping in enumerate(fixed):
        for other in fixed[index + 1 :]:
            if other.host_port >= mapping.host_port + mapping.count:
                break
            if mapping.overlaps(other):
                raise InvalidArgument(
                    f"cannot publish '{other}': '{mapping}' has the same host port"
                )


def _bad(spec: str, reason: str) -> InvalidArgument:
    shown = repr(spec[:256])[1:-1]
    return InvalidArgument(f"invalid port '{shown}': {reason}", hint=_FORM)


def _parse_protocol(spec: str, protocol: str) -> str:
    lowered = protocol.lower()
    if lowered in PROTOCOLS:
        return lowered
    if lowered == "sctp":
        raise Unsupported(f"cannot publish '{spec:.64}': SCTP is not supported, only tcp and udp")
    raise _bad(spec, f"'{repr(protocol[:64])[1:-1]}' is not a protocol")


def _split(spec: str, rest: str) -> tuple[str, str, str]:
    """Split into host address, host ports, container ports."""
    if rest.startswith("["):
        literal, bracket, after = rest[1:].partition("]")
        if not bracket or not after.startswith(":"):
            raise _bad(spec, "an IPv6 address stands in [brackets] and a colon follows")
        try:
            socket.inet_pton(socket.AF_INET6, literal)
        except (OSError, ValueError):
            raise _bad(spec, f"'{literal:.64}' is not an IPv6 address") from None
        raise Unsupported(
            f"cannot publish '{spec:.64}': networks are IPv4 only for now",
            hint="use an IPv4 host address, or none",
        )
    parts = rest.split(":")
    if len(parts) > 3:
        raise _bad(spec, "too many colons; an IPv6 host address needs [brackets]")
    container = parts[-1]
    host_port = parts[-2] if len(parts) > 1 else ""
    if len(parts) < 3 or not parts[0]:
        return WILDCARD, host_port, container
    return _parse_host_ip(spec, parts[0]), host_port, container


def _parse_host_ip(spec: str, host_ip: str) -> str:
    try:
        socket.inet_pton(socket.AF_INET, host_ip)
    except (OSError, ValueError):
        raise _bad(spec, f"'{repr(host_ip[:64])[1:-1]}' is not an IPv4 address") from None
    return host_ip


def _parse_range(spec: str, what: str, value: str) -> tuple[int, int]:
    first_text, dash, last_text = value.partition("-")
    first = _parse_number(spec, what, first_text)
    last = _parse_number(spec, what, last_text) if dash else first
    if last < first:
        raise _bad(spec, f"the {what} range '{value}' runs backwards")
    return first, last


def _parse_number(spec: str, what: str, value: str) -> int:
    if not value:
        raise _bad(spec, f"the {what} is missing")
    # int() would take spaces, signs, underscores and other scripts' digits.
    if not (value.isascii() and value.isdecimal()):
        raise _bad(spec, f"the {what} '{repr(value[:64])[1:-1]}' is not a number")
    number = int(value) if len(value) <= 5 else 65536
    if number > 65535:
        raise _bad(spec, f"the {what} {value:.20} is above 65535")
    if number == 0:
        advice = "; leave it out to have one chosen" if what == "host port" else ""
        raise _bad(spec, f"the {what} cannot be 0{advice}")
    return number


class Reservation(Closing):
    """Host ports chosen for one container, their sockets bound until it is closed."""

    def __init__(
        self, taken: Mapping[str, Sequence[PortMapping]], describe: Callable[[str], str]
    ) -> None:
        """`taken` maps container ids to what they publish; `describe` makes an id a name."""
        self._taken = taken
        self._describe = describe
        self._sockets = ExitStack()
        self._held = 0
        self._chosen: list[PortMapping] = []

    def close(self) -> None:
        """Let the sockets go."""
        self._sockets.close()

    def add(self, mapping: PortMapping) -> PortMapping:
        """Reserve one mapping and give it with its host port filled in.

        Raises AlreadyExists naming who has the port, InvalidArgument for an address that is not
        this host's, ResourceExhausted when no port of a choice is free.
        """
        if mapping.host_port == 0:
            chosen = self._choose_any(mapping)
        elif mapping.choices > 1:
            chosen = self._choose_of(mapping)
        else:
            chosen = mapping
            self._take(chosen)
        self._chosen.append(chosen)
        return chosen

    def _choose_of(self, mapping: PortMapping) -> PortMapping:
        for port in range(mapping.host_port, mapping.host_port + mapping.choices):
            chosen = msgspec.structs.replace(mapping, host_port=port, choices=1)
            try:
                self._take(chosen)
            except AlreadyExists:
                continue
            return chosen
        last = mapping.host_port + mapping.choices - 1
        raise ResourceExhausted(
            f"cannot publish port {mapping.container_port}/{mapping.protocol}: none of the host "
            f"ports {mapping.host_port}-{last} is free"
        )

    def _choose_any(self, mapping: PortMapping) -> PortMapping:
        for _ in range(_PORT_ZERO_TRIES):
            held = self._bind(mapping, 0)
            chosen = msgspec.structs.replace(mapping, host_port=held.getsockname()[1])
            if self._owner(chosen) is None:
                self._keep(held)
                return chosen
            held.close()
        raise ResourceExhausted(
            f"cannot publish port {mapping.container_port}/{mapping.protocol}: found no free host port"
        )

    def _owner(self, mapping: PortMapping) -> str | None:
        if any(mapping.overlaps(mine) for mine in self._chosen):
            return "this container"
        for container_id, theirs in self._taken.items():
            if any(mapping.overlaps(other) for other in theirs):
                return f"container '{self._describe(container_id)}'"
        return None

    def _take(self, mapping: PortMapping) -> None:
        owner = self._owner(mapping)
        if owner is not None:
            raise AlreadyExists(f"cannot publish '{mapping}': the host port is in use by {owner}")
        for port in range(mapping.host_port, mapping.host_port + mapping.count):
            self._keep(self._bind(mapping, port))

    def _keep(self, held: socket.socket) -> None:
        if self._held < _HELD_SOCKETS:
            self._held += 1
            self._sockets.enter_context(held)
        else:
            held.close()

    def _bind(self, mapping: PortMapping, port: int) -> socket.socket:
        kind = socket.SOCK_STREAM if mapping.protocol == "tcp" else socket.SOCK_DGRAM
        held = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
        try:
            if mapping.protocol == "tcp":
                # Connections in TIME_WAIT must not count; a listener still does (socket(7)).
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((mapping.host_ip, port))
        except OSError as error:
            held.close()
            raise _explain(error, mapping, port) from error
        return held


def _explain(error: OSError, mapping: PortMapping, port: int) -> ScowError:
    what = f"cannot publish host port {mapping.host_ip}:{port}/{mapping.protocol}"
    if error.errno == errno.EADDRINUSE:
        return AlreadyExists(f"{what}: it is in use by {_find_process(mapping.protocol, port)}")
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidArgument(f"{what}: this host does not have the address {mapping.host_ip}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"{what}: not permitted to bind it", hint="run scow as root")
    name = errno.errorcode.get(error.errno or 0, "?")
    return ScowError(f"{what}: {os.strerror(error.errno or 0).lower()} ({name})")


def _find_process(protocol: str, port: int) -> str:
    """Name the process that has the port, for the error message only."""
    sockets = _inodes_on_port(protocol, port)
    for pid in filter(str.isdecimal, os.listdir("/proc")) if sockets else ():
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in sockets:
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                        return f"process '{file.read().strip()}' (pid {pid})"
        except OSError:
            # It ended, or closed the descriptor, while we looked.
            continue
    return "another process"


def _inodes_on_port(protocol: str, port: int) -> set[str]:
    """Links like `socket:[123]` of the sockets on a local port (proc_net_tcp.rst)."""
    found: set[str] = set()
    for table in (protocol, f"{protocol}6"):
        try:
            with open(f"/proc/self/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        # TCP state 0A is LISTEN; connections on the same port do not stand in the way.
        found |= {
            f"socket:[{row[9]}]"
            for row in rows
            if int(row[1].rpartition(":")[2], 16) == port and (protocol == "udp" or row[3] == "0A")
        }
    return found
