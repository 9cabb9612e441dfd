"""Addresses: which subnet a network has, and which container holds which address.

A lease is a symbolic link `leases/<address>` whose target is the container's id: symlink(2) is
atomic and fails with EEXIST, so a claim needs no lock and no ledger, and it says by itself whom it
belongs to. A lease whose container is gone (no directory of that id) is void. What must not be
here: links, routes and rules.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import msgspec

from scow.native.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from scow.native.fd import close_surely

# Wide private ranges that home routers, VPNs and clouds seldom use first. The low 24 bits of all of
# them differ, which veth.host_index relies on.
SUBNET_POOL = (
    *(f"10.{second}.0.0/16" for second in range(89, 128)),
    *(f"172.{second}.0.0/16" for second in range(20, 32)),
)


def to_int(address: str) -> int:
    """An IPv4 address in dotted form as a number; InvalidArgument for anything else."""
    try:
        # inet_pton knows the dotted form with four plain decimals only; inet_aton takes "1" and
        # "0x7f.1", too.
        return int.from_bytes(socket.inet_pton(socket.AF_INET, address))
    except (OSError, ValueError, TypeError):
        raise InvalidArgument(f"'{address!s:.64}' is not an IPv4 address") from None


def to_text(number: int) -> str:
    """The dotted form of an address."""
    return socket.inet_ntoa(number.to_bytes(4))


class Subnet(msgspec.Struct, frozen=True):
    """An IPv4 network; the first host address is the gateway's, which the bridge has."""

    base: int
    prefix_length: int

    @classmethod
    def parse(cls, spec: str) -> Subnet:
        """Read `address/length`; the host bits must be zero."""
        address, slash, length = spec.partition("/")
        if (
            not slash
            or not length.isascii()
            or not length.isdecimal()
            or not 0 <= int(length) <= 32
        ):
            raise InvalidArgument(f"'{spec:.64}' is not a subnet: expected ADDRESS/LENGTH")
        subnet = cls(to_int(address), int(length))
        if subnet.base & (subnet.size - 1):
            raise InvalidArgument(f"'{spec:.64}' is not a subnet: it has host bits set")
        return subnet

    @property
    def size(self) -> int:
        """Number of addresses, the unusable ones too."""
        return 1 << (32 - self.prefix_length)

    @property
    def gateway(self) -> str:
        """The bridge's own address."""
        return to_text(self.base + 1)

    @property
    def broadcast(self) -> str:
        """The last address."""
        return to_text(self.base + self.size - 1)

    def overlaps(self, other: Subnet) -> bool:
        """Whether any address is in both."""
        length = min(self.prefix_length, other.prefix_length)
        return (self.base ^ other.base) >> (32 - length) == 0

    def __contains__(self, address: str) -> bool:
        return 0 <= to_int(address) - self.base < self.size

    def __str__(self) -> str:
        return f"{to_text(self.base)}/{self.prefix_length}"


def choose_subnet(routes: Iterable[Subnet], pool: Iterable[str] = SUBNET_POOL) -> Subnet:
    """The first subnet of the pool that no route of the host overlaps (default routes aside)."""
    taken = [route for route in routes if route.prefix_length]
    for spec in pool:
        subnet = Subnet.parse(spec)
        if not any(subnet.overlaps(route) for route in taken):
            return subnet
    raise ResourceExhausted(
        "cannot choose a subnet for the network: every candidate overlaps a route of this host",
        hint="see `ip route show table all`",
    )


@contextmanager
def locked(path: str) -> Generator[None, None, None]:
    """Hold the network's lock file; the kernel releases it when the holder dies (flock(2))."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        close_surely(fd)


class LeaseStore:
    """The leases of all networks of a run directory.

    `is_live` tells whether a container id still stands for something. Claims take no lock. Every
    removal happens with the network's lock held by the caller, so that nobody removes a lease that
    was voided and claimed anew in between.
    """

    def __init__(self, net_dir: str, is_live: Callable[[str], bool], begin: int = 0) -> None:
        """`begin` says where in a subnet the first claim looks, counted from its first address."""
        self._dir = f"{net_dir}/leases"
        self._hint = f"{net_dir}/last"
        self._is_live = is_live
        self._begin = begin

    def prepare(self) -> None:
        """Make the directory."""
        os.makedirs(self._dir, mode=0o700, exist_ok=True)

    def holder(self, address: str) -> str | None:
        """The container id that a lease names, live or not."""
        try:
            return os.readlink(f"{self._dir}/{address}")
        except FileNotFoundError:
            return None

    def all(self) -> dict[str, str]:
        """Every lease: address to container id."""
        leases: dict[str, str] = {}
        for address in os.listdir(self._dir):
            owner = self.holder(address)
            if owner is not None:
                leases[address] = owner
        return leases

    def address_of(self, container_id: str) -> str | None:
        """The address that a container holds."""
        for address, owner in self.all().items():
            if owner == container_id:
                return address
        return None

    def claim(self, container_id: str, address: str) -> bool:
        """Claim one address; False when it is taken."""
        try:
            os.symlink(container_id, f"{self._dir}/{address}")
        except FileExistsError:
            return False
        return True

    def release(self, container_id: str, address: str) -> None:
        """Give the address back if it is this container's. Needs the lock."""
        if self.holder(address) == container_id:
            os.unlink(f"{self._dir}/{address}")

    def void(self) -> list[tuple[str, str]]:
        """Remove the leases of dead containers; they are returned. Needs the lock."""
        dead = [(a, owner) for a, owner in self.all().items() if not self._is_live(owner)]
        for address, owner in dead:
            self.release(owner, address)
        return dead

    def claim_any(self, container_id: str, subnet: Subnet, limit: int) -> str | None:
        """Claim the next free address after the last one that was given; None if there is none.

        `limit` is how many leases the network bears, whatever the subnet's size.

        Going round, instead of taking the lowest, keeps an address unused for a while after its
        container is gone, so that old flows of others do not land at a stranger.
        """
        first, count = subnet.base + 2, subnet.size - 3
        if count <= 0:
            return None
        last = self._last()
        is_known = first <= last < first + count
        start = ((last + 1 - first) if is_known else self._begin) % count
        taken = frozenset(os.listdir(self._dir))
        if len(taken) >= limit and sum(address in subnet for address in taken) >= limit:
            return None
        for offset in range(count):
            address = to_text(first + (start + offset) % count)
            if address not in taken and self.claim(container_id, address):
                self._remember(address)
                return address
        return None

    def claim_given(self, container_id: str, subnet: Subnet, address: str) -> None:
        """Claim an address the user asked for. Needs the lock, since a void lease may go.

        Raises InvalidArgument when it cannot be a container's, AlreadyExists when it is taken.
        """
        refuse_unusable(subnet, address)
        owner = self.holder(address)
        if owner is not None and not self._is_live(owner):
            self.release(owner, address)
        if not self.claim(container_id, address):
            raise AlreadyExists(
                f"cannot use address '{address}': container '{self.holder(address)}' has it"
            )

    def _last(self) -> int:
        # Only a hint: with no file, a torn one, or two writers, the search starts elsewhere.
        try:
            with open(self._hint, encoding="ascii") as file:
                return to_int(file.read())
        except (OSError, ValueError, InvalidArgument):
            return 0

    def _remember(self, address: str) -> None:
        fd = os.open(self._hint, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, address.encode())
        finally:
            os.close(fd)


def refuse_unusable(subnet: Subnet, address: str) -> None:
    """Refuse an address that no container of the subnet can have, saying why."""
    if address not in subnet:
        raise InvalidArgument(f"cannot use address '{address}': it is not in the subnet {subnet}")
    reserved = {
        to_text(subnet.base): "it is the network address",
        subnet.gateway: "it is the gateway",
        subnet.broadcast: "it is the broadcast address",
    }
    if address in reserved:
        raise InvalidArgument(f"cannot use address '{address}': {reserved[address]} of {subnet}")


def parse_mac(mac: str) -> str:
    """Check a MAC address for a container: six pairs of hex digits, unicast, not zero."""
    pairs = mac.split(":")
    digits = "0123456789abcdefABCDEF"
    if len(pairs) != 6 or any(len(pair) != 2 or pair.strip(digits) for pair in pairs):
        raise InvalidArgument(
            f"'{mac:.64}' is not a MAC address: expected six pairs like 02:5c:0a:59:00:02"
        )
    if int(pairs[0], 16) & 1:
        raise InvalidArgument(f"cannot use MAC address '{mac}': it is a multicast address")
    if not any(int(pair, 16) for pair in pairs):
        raise InvalidArgument(f"cannot use MAC address '{mac}': all zero")
    return mac.lower()
