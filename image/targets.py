"""Which addresses a registry may send us to, by a redirect or a token realm.

A registry's answer is a stranger's wish: it must not make this host talk to its own services or to a
cloud's metadata address, and not move a conversation from HTTPS to HTTP (CVE-2020-15157,
CVE-2019-10214, badinput.md F2). The rule: never to an address more internal than the registry's own.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import SplitResult, urlsplit

from scow.image.digest import quote
from scow.native.errors import RegistryError

PUBLIC, PRIVATE, LOOPBACK, LINK_LOCAL = range(4)
# Where clouds tell a machine its own secrets, besides 169.254.169.254: EC2 (IPv6), Alibaba, Azure,
# Oracle. They are no registry's CDN.
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9a-fA-F:.]{2,45}")


def split_url(url: str, what: str) -> SplitResult:
    """`url` in parts; RegistryError unless it is plain http(s) with an ASCII host."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise RegistryError(f"{what} is not a valid URL: {quote(url)}") from e
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RegistryError(f"{what} is not an http or https URL: {quote(url)}")
    if parts.username is not None or parts.password is not None:
        raise RegistryError(f"{what} holds a user name or password")
    if not _HOST.fullmatch(parts.hostname) or port == 0:
        raise RegistryError(f"{what} has an invalid host: {quote(url)}")
    return parts


def check_target(
    url: str, registry_url: str, *, plain_http: bool, is_proxied: bool, what: str
) -> SplitResult:
    """Raise RegistryError unless the registry may send us to `url`; returns its parts.

    `what` begins the message. A name is looked up here and again when connecting; a registry that
    changes its DNS in between gets past this check, but never gets credentials of others.
    """
    target = split_url(url, what)
    registry = urlsplit(registry_url)
    host, own_host = target.hostname or "", registry.hostname or ""
    if host == own_host and target.scheme == registry.scheme:
        return target
    level = address_level(host, look_up=not is_proxied)
    own_level = address_level(own_host, look_up=not is_proxied)
    if target.scheme == "http":
        if registry.scheme == "https":
            raise RegistryError(f"{what} leads from https to plain http: {quote(url)}")
        if not (plain_http or host == own_host or level == LOOPBACK):
            raise RegistryError(f"{what} leads to plain http: {quote(url)}")
    if host != own_host and level > own_level:
        kind = {PRIVATE: "a private", LOOPBACK: "a loopback", LINK_LOCAL: "a link-local"}[level]
        raise RegistryError(f"{what} leads to {kind} address: {quote(url)}")
    return target


def address_level(host: str, *, look_up: bool) -> int:
    """How internal the addresses behind `host` are: the most internal one counts."""
    try:
        return _level(ipaddress.ip_address(host))
    except ValueError:
        pass
    if host == "localhost" or host.endswith(".localhost"):
        return LOOPBACK
    # Spellings like 2130706433 and 0x7f.1 are numbers to the resolver: these are always looked up.
    if not look_up and not re.fullmatch(r"[0-9a-fA-FxX.]+", host):
        return PUBLIC
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return PUBLIC  # the connection will fail with the right words
    return max((_level(ipaddress.ip_address(str(f[4][0]).split("%")[0])) for f in found), default=0)


def _level(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            address = ipaddress.IPv4Address(address.packed[-4:])
        elif address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    if address in _METADATA:
        return LINK_LOCAL
    if address.is_loopback or address.is_unspecified:
        return LOOPBACK
    if address.is_link_local or address.is_multicast:
        return LINK_LOCAL
    return PUBLIC if address.is_global else PRIVATE
