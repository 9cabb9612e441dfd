"""Which hosts serve a registry's images, in which order: its mirrors, and then itself.

What belongs here: containerd's hosts.toml and the two keys of docker's daemon.json that say such
things (docs/registries.md is the users' page). What must not: talking to any of them.
Source: containerd docs/hosts.md and core/remotes/docker/config/hosts.go.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from scow.image.digest import quote
from scow.image.document import MAX_DOCUMENT_BYTES, decode_document
from scow.image.reference import DEFAULT_HOST, is_loopback_host, split_port
from scow.image.targets import split_url
from scow.image.tls import NO_FILES, TlsFiles, find_tls_files
from scow.native.errors import InvalidArgument, PermissionDenied, RegistryError

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCKER_HUB_HOST = "registry-1.docker.io"
HOSTS_DIRS = ("/etc/scow/certs.d", "/etc/containerd/certs.d")
DOCKER_DAEMON_FILE = "/etc/docker/daemon.json"
_HUB_NAMES = frozenset({DOCKER_HUB_HOST, "index.docker.io", DEFAULT_HOST})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{0,9})?)(h|ms|m|s|us|µs|ns)")  # Go's
_SECONDS = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
MAX_CONNECT_S = 600
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]{0,8190}[\x21-\x7e])?|")

Capability = Literal["pull", "resolve", "push"]
ALL: frozenset[Capability] = frozenset({"pull", "resolve", "push"})


@dataclass(frozen=True, slots=True)
class Host:
    """One way to reach a repository."""

    url: str  # scheme://host[:port], nothing after it
    root: str = "/v2"  # path of the API
    name: str = ""  # by which credentials are kept: "docker.io", "mirror.example:5000"
    is_mirror: bool = False  # another host than the one that the image's name begins with
    capabilities: frozenset[Capability] = ALL  # pull: by digest; resolve: what a tag stands for
    tls_verify: bool = True
    tls_files: TlsFiles = NO_FILES
    headers: Mapping[str, str] = field(default_factory=dict)
    connect_s: float | None = None  # how long to wait for a connection
    may_upgrade: bool = False  # HTTP is tried first; a host that wants HTTPS gets it


class _HostFields(msgspec.Struct, kw_only=True):
    capabilities: list[Capability] | None = None
    skip_verify: bool = False
    ca: str | list[str] = []
    client: str | list[str | list[str]] = []
    header: dict[str, str | list[str]] = {}
    override_path: bool = False
    dial_timeout: str = ""


class _HostsFile(_HostFields, kw_only=True):
    server: str = ""
    host: dict[str, dict[str, Any]] = {}


class _DockerDaemonFile(msgspec.Struct, rename="kebab"):
    registry_mirrors: list[str] = []
    insecure_registries: list[str] = []


def find_hosts(
    host: str,
    *,
    plain_http: bool = False,
    tls_verify: bool = True,
    warn: Callable[[str], None] = lambda message: None,
) -> list[Host]:
    """The hosts to ask for images of registry `host`, in order; the last one is the registry.

    `plain_http` and `tls_verify` are what the user said now, and hold for the registry, not for its
    mirrors. Raises InvalidArgument or PermissionDenied about a file that cannot be used.
    """
    path = _find_file(host)
    daemon = _read_daemon_file()
    if path is None:
        mirrors = daemon.registry_mirrors if host == DEFAULT_HOST else []
        hosts = [_make_host(url, host, _HostFields(), DOCKER_DAEMON_FILE) for url in mirrors]
        hosts.append(_origin(host, _is_insecure(host, daemon.insecure_registries)))
    else:
        hosts = _read_hosts_file(path, host, warn)
    last = hosts[-1]
    if plain_http:
        last = replace(last, url=f"http://{urlsplit(last.url).netloc}", may_upgrade=False)
    return [*hosts[:-1], replace(last, tls_verify=last.tls_verify and tls_verify)]


def _origin(host: str, is_insecure: bool = False) -> Host:
    """The registry itself, as far as no file says otherwise.

    HTTP is for loopback hosts, and those that docker's daemon.json calls insecure; never where the
    administrator set up certificates.
    """
    netloc = DOCKER_HUB_HOST if host == DEFAULT_HOST else host
    may_be_http = (is_loopback_host(netloc) or is_insecure) and find_tls_files(netloc) == NO_FILES
    return Host(
        f"{'http' if may_be_http else 'https'}://{netloc}",
        name=host,
        may_upgrade=may_be_http,
        tls_verify=not is_insecure,
    )


# -- hosts.toml -----------------------------------------------------------------------------------


def _find_file(host: str) -> str | None:
    """The file of this registry; of several directories the first, before any `_default`."""
    names = [host, "_default"]
    bare, port = split_port(host)
    if port is not None:
        names.insert(0, f"{bare}_{port}_")  # containerd's, for file systems without ':'
    for name in names:
        for base in HOSTS_DIRS:
            path = os.path.join(base, name, "hosts.toml")
            if os.path.exists(path):
                return path
    return None


def _read_hosts_file(path: str, host: str, warn: Callable[[str], None]) -> list[Host]:
    import tomllib

    try:
        document = tomllib.loads(_read(path).decode("utf-8"))
        file = msgspec.convert(document, _HostsFile)
        tables = {url: msgspec.convert(table, _HostFields) for url, table in file.host.items()}
    except (ValueError, RecursionError) as e:  # of toml, of UTF-8, and of msgspec
        raise InvalidArgument(f"invalid '{path}': {str(e)[:1].lower()}{str(e)[1:]}") from e
    keys = set(_HostsFile.__struct_fields__)
    unknown = set(document) - keys
    for table in file.host.values():
        unknown |= set(table) - set(_HostFields.__struct_fields__)
    for key in sorted(unknown):
        warn(f"'{path}' has the unknown key {quote(key, 64)}, ignoring it")
    hosts = [_make_host(url, host, table, path) for url, table in tables.items()]
    if file.server:
        return [*hosts, _make_host(file.server, host, file, path)]
    fields = _fields(file, path)
    return [*hosts, replace(_origin(host), **fields)]


def _make_host(url: str, registry: str, table: _HostFields, path: str) -> Host:
    if "://" not in url:
        url = f"https://{url}"
    try:
        parts = split_url(url, "a host")
    except RegistryError as e:
        raise InvalidArgument(f"invalid '{path}': {e.message}") from e
    if parts.query or parts.fragment or not re.fullmatch(r"[A-Za-z0-9._~/-]*", parts.path):
        raise InvalidArgument(f"invalid '{path}': host {quote(url)} has more than a path")
    root = parts.path.rstrip("/")
    if not table.override_path and not root.endswith("/v2"):
        root += "/v2"
    netloc = name = parts.netloc.lower()
    if (
        name in _HUB_NAMES
    ):  # containerd's own example has "https://docker.io", which serves no images
        netloc, name = DOCKER_HUB_HOST, DEFAULT_HOST
    return Host(
        f"{parts.scheme}://{netloc}",
        root,
        name,
        is_mirror=name != registry,
        **_fields(table, path),
    )


def _fields(table: _HostFields, path: str) -> dict[str, Any]:
    """What a table says about a host besides its URL."""
    fields: dict[str, Any] = {
        "capabilities": ALL if table.capabilities is None else frozenset(table.capabilities),
        "headers": _headers(table, path),
        "tls_files": _tls_files(table, path),
    }
    if table.skip_verify:
        fields["tls_verify"] = False
    if table.dial_timeout:
        fields["connect_s"] = _duration_s(table.dial_timeout, path)
    return fields


def _duration_s(text: str, path: str) -> float:
    """A duration as Go has it: `5s`, `1m30s`, `500ms`."""
    parts = _DURATION.findall(text)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    is_whole = "".join(number + unit for number, unit in parts) == text
    if not (is_whole and 0 < seconds <= MAX_CONNECT_S):
        raise InvalidArgument(
            f"invalid '{path}': dial_timeout {quote(text, 64)} is not a time like '10s', "
            f"up to {MAX_CONNECT_S} s"
        )
    return seconds


def _headers(table: _HostFields, path: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in table.header.items():
        text = value if isinstance(value, str) else ", ".join(value)
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(text):
            # The value is in no message: it may be a password.
            raise InvalidArgument(f"invalid '{path}': header {quote(name, 64)} cannot be sent")
        headers[name] = text
    return headers


def _tls_files(table: _HostFields, path: str) -> TlsFiles:
    """Paths are relative to the file that names them."""
    base = os.path.dirname(path)
    ca = [table.ca] if isinstance(table.ca, str) else table.ca
    pairs: list[tuple[str, str]] = []
    for entry in [table.client] if isinstance(table.client, str) else table.client:
        files = [entry] if isinstance(entry, str) else entry
        if not 1 <= len(files) <= 2:
            raise InvalidArgument(f"invalid '{path}': 'client' is not a list of [CERT, KEY]")
        pairs.append((os.path.join(base, files[0]), os.path.join(base, files[-1])))
    return TlsFiles(tuple(os.path.join(base, name) for name in ca), tuple(pairs))


# -- docker's daemon.json -------------------------------------------------------------------------


def _read_daemon_file() -> _DockerDaemonFile:
    """Nothing where docker is not set up; its file is written by hand, and may be wrong."""
    if not os.path.exists(DOCKER_DAEMON_FILE):
        return _DockerDaemonFile()
    data = _read(DOCKER_DAEMON_FILE)
    if not data.strip():
        return _DockerDaemonFile()
    return decode_document(data, _DockerDaemonFile, f"'{DOCKER_DAEMON_FILE}'")


def _is_insecure(host: str, entries: list[str]) -> bool:
    """Whether docker's `insecure-registries` name this host: as it is, or by a net of its addresses.

    A name is looked up only where there are nets. All of its addresses must be in them, where docker
    takes any: who can add one to an answer of the DNS shall not turn TLS off by that.
    """
    if host in entries:
        return True
    nets: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for entry in entries:
        try:
            nets += [ipaddress.ip_network(entry, False)] if "/" in entry else []
        except ValueError:
            continue
    if not nets or host == DEFAULT_HOST:
        return False
    addresses = _addresses(split_port(host)[0].strip("[]"))
    return bool(addresses) and all(any(a in net for net in nets) for a in addresses)


def _addresses(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        return [ipaddress.ip_address(name)]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # the connection will fail with the right words
    return [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as e:
        raise PermissionDenied(f"cannot read '{path}': {(e.strerror or '').lower()}") from e
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidArgument(f"invalid '{path}': it has more than {MAX_DOCUMENT_BYTES} bytes")
    return data
