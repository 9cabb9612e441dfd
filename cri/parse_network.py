"""Parsers of names, addresses, namespace modes and sysctls.

Ports have their own parser in `scow.netns.ports`, which also knows what a port needs.
"""

from __future__ import annotations

from scow.cri.options import HostEntry, NamespaceMode
from scow.cri.parse import ALNUM, NAME, invalid, quote

MAX_NAMESERVERS = 3  # resolv.conf(5): MAXNS, resolvers read no more


def parse_hostname(option: str, text: str) -> str:
    """A host or domain name by RFC 1123, at most 64 bytes (sethostname(2))."""
    parts = text.split(".")
    if len(text) > 64 or not all(_is_host_label(part) for part in parts):
        raise invalid(option, text, "at most 64 letters, digits, '-' and '.' (RFC 1123)")
    return text


def _is_host_label(part: str) -> bool:
    ends = part[:1] in ALNUM and part[-1:] in ALNUM
    return bool(part) and len(part) <= 63 and ends and (ALNUM | {"-"}).issuperset(part)


def parse_namespace(option: str, text: str, kinds: tuple[str, ...]) -> NamespaceMode:
    """One of `kinds`; "container" among them stands for `container:NAME`."""
    kind, colon, name = text.partition(":")
    if kind in kinds and bool(colon) == (kind == "container") and bool(name) == bool(colon):
        return NamespaceMode(kind, name)
    shown = ", ".join("container:NAME" if k == "container" else k for k in kinds)
    raise invalid(option, text, f"one of {shown}")


def parse_network(option: str, text: str) -> NamespaceMode:
    """`bridge` (also `default`), `none`, `host` or `container:NAME`."""
    if text == "default":
        text = "bridge"
    return parse_namespace(option, text, ("bridge", "none", "host", "container"))


def parse_sysctl(option: str, text: str) -> tuple[str, str]:
    """`net.core.somaxconn=1024`; only what belongs to a namespace of the container."""
    key, equals, value = text.partition("=")
    name = key.replace("/", ".")
    parts = name.split(".")
    if not equals or not all(part and (NAME | {":"}).issuperset(part) for part in parts):
        raise invalid(option, text, "not of the form NAME=VALUE, such as net.core.somaxconn=1024")
    if len(value) > 4096 or any(not c.isprintable() and c != "\t" for c in value):
        raise invalid(option, key, "the value holds control characters or is too long")
    namespaced = name.startswith(("net.", "fs.mqueue.", "kernel.msg", "kernel.shm"))
    if not namespaced and name != "kernel.sem":
        raise invalid(
            option,
            key,
            "not a setting of a container's own namespaces, it would change the host",
            hint="net.*, fs.mqueue.*, kernel.msg*, kernel.shm* and kernel.sem can be set",
        )
    return name, value


def is_ip(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address, in full."""
    import socket

    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def parse_ip(option: str, text: str) -> str:
    """An IPv4 or IPv6 address."""
    if not is_ip(text):
        raise invalid(option, text, "not an IP address")
    return text


def parse_ipv4(option: str, text: str) -> str:
    """An IPv4 address."""
    if ":" in text or not is_ip(text):
        raise invalid(option, text, "not an IPv4 address such as 10.89.0.7")
    return text


def parse_mac(option: str, text: str) -> str:
    """A unicast MAC address, `02:42:ac:11:00:02`."""
    parts = text.lower().split(":")
    hexadecimal = frozenset("0123456789abcdef")
    if len(parts) != 6 or not all(len(p) == 2 and hexadecimal.issuperset(p) for p in parts):
        raise invalid(option, text, "not a MAC address such as 02:42:ac:11:00:02")
    if int(parts[0], 16) & 1 or text.strip("0:") == "":
        raise invalid(option, text, "a multicast or empty address cannot belong to an interface")
    return text.lower()


def parse_add_host(option: str, text: str) -> HostEntry:
    """`NAME:ADDRESS` or `NAME=ADDRESS`; the address may be `host-gateway`."""
    separator = "=" if "=" in text else ":"
    name, found, address = text.partition(separator)
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if not found or not name or (NAME | {"_"}).isdisjoint(name) or not NAME.issuperset(name):
        raise invalid(option, text, "not of the form NAME:ADDRESS")
    if address != "host-gateway" and not is_ip(address):
        raise invalid(option, text, f"{quote(address)} is not an IP address or 'host-gateway'")
    return HostEntry(name, address)


def parse_dns_option(option: str, text: str) -> str:
    """One word of resolv.conf's `options` line."""
    if not text or len(text) > 64 or not (NAME | {":"}).issuperset(text):
        raise invalid(option, text, "one option of resolv.conf, such as ndots:2")
    return text


def parse_dns_search(option: str, text: str) -> str:
    """A search domain; `.` clears the host's."""
    if text == ".":
        return text
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or not all(_is_host_label(part.replace("_", "x")) for part in labels):
        raise invalid(option, text, "not a domain name")
    return text
