"""The three name files of a container: /etc/hosts, /etc/hostname, /etc/resolv.conf, as bytes.

What must not be here: writing them (runtime/), name service (none yet).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from scow.native.errors import InvalidArgument

# What Docker falls back to as well: a container cannot reach the host's own loopback resolver.
FALLBACK_DNS = ("8.8.8.8", "8.8.4.4")
HOST_GATEWAY = "host-gateway"
_RESOLVED_STUB = "127.0.0.53"
_HOST_FILES = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
_FILE_LIMIT = 1 << 20
_SERVERS_LIMIT = 16
_LOCALHOST = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
)


def hosts_file(
    hostname: str,
    address: str | None,
    *,
    domainname: str = "",
    extra: Sequence[tuple[str, str]] = (),
    gateway: str | None = None,
) -> bytes:
    """The content of /etc/hosts.

    `extra` holds (name, address) of `--add-host`; the address `host-gateway` stands for `gateway`.
    Raises InvalidArgument for a name or address that would break the file.
    """
    lines = list(_LOCALHOST)
    for name, target in extra:
        lines.append((_extra_address(name, target, gateway), _checked_name(name)))
    if address and hostname:
        full = f"{hostname}.{domainname} {hostname}" if domainname else hostname
        lines.append((address, full))
    return "".join(f"{target}\t{names}\n" for target, names in lines).encode()


def hostname_file(hostname: str) -> bytes:
    """The content of /etc/hostname."""
    return f"{hostname}\n".encode()


def resolv_conf(
    host_text: str,
    *,
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    shares_host_network: bool = False,
) -> bytes:
    """The content of /etc/resolv.conf, from the host's unless the user said otherwise.

    The host's loopback resolvers mean nothing in a container, and its IPv6 ones cannot be reached
    from an IPv4 network: they are left out, and public ones stand in when none remains. With the
    host's own network the host's are all right. `search` of "." alone means none.
    """
    host = _parse(host_text)
    for server in dns:
        _family(server)
    if len(dns) > _SERVERS_LIMIT:
        raise InvalidArgument(f"cannot use {len(dns)} DNS servers: at most {_SERVERS_LIMIT}")
    servers = list(dns) or [
        s for s in host["nameserver"] if shares_host_network or _is_reachable(s)
    ]
    if not servers and not shares_host_network:
        servers = list(FALLBACK_DNS)
    domains = [d for d in (list(search) or host["search"]) if d != "."]
    settings = list(options) or host["options"]
    for word in (*search, *options):
        _refuse_space(word)
    lines = [f"nameserver {server}" for server in servers]
    if domains:
        lines.append("search " + " ".join(domains))
    if settings:
        lines.append("options " + " ".join(settings))
    return "".join(f"{line}\n" for line in lines).encode()


def read_host_resolv_conf(root: str = "") -> str:
    """The host's resolv.conf; where it only names systemd-resolved's stub, the file behind that."""
    first, behind = (f"{root}{path}" for path in _HOST_FILES)
    content = _read(first)
    servers = _parse(content)["nameserver"]
    if servers == [_RESOLVED_STUB] and os.path.exists(behind):
        return _read(behind)
    return content


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_FILE_LIMIT).decode(errors="replace")
    except OSError:
        # No file means no servers (resolv.conf(5)).
        return ""


def _parse(content: str) -> dict[str, list[str]]:
    """Name servers, search domains (the last line wins) and options of a resolv.conf."""
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in content.splitlines():
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        match words[0]:
            case "nameserver":
                found["nameserver"] += words[1:2]
            case "search" | "domain":
                found["search"] = words[1:]
            case "options":
                found["options"] += words[1:]
            case _:
                # sortlist and whatever else: nothing a container needs.
                continue
    return found


def _family(address: str) -> socket.AddressFamily:
    plain = address.partition("%")[0]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, plain)
        except (OSError, ValueError):
            continue
        return family
    raise InvalidArgument(f"'{repr(address[:64])[1:-1]}' is not an IP address")


def _is_reachable(server: str) -> bool:
    try:
        return _family(server) == socket.AF_INET and not server.startswith("127.")
    except InvalidArgument:
        return False


def _extra_address(name: str, target: str, gateway: str | None) -> str:
    if target != HOST_GATEWAY:
        _family(target)
        return target
    if gateway is None:
        raise InvalidArgument(
            f"cannot add host '{name:.64}': there is no gateway to stand for '{HOST_GATEWAY}'",
            hint="use --network bridge, or give an address",
        )
    return gateway


def _checked_name(name: str) -> str:
    if not name or name.startswith("#"):
        raise InvalidArgument(f"'{name:.64}' is not a host name")
    return _refuse_space(name)


def _refuse_space(word: str) -> str:
    if not word or any(c.isspace() or not c.isprintable() for c in word):
        raise InvalidArgument(
            f"'{repr(word[:64])[1:-1]}' is empty or has a space or control character"
        )
    return word
