"""The grammar of image references: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`.

What belongs here: parsing, normalising and printing. What must not: looking anything up. There is
one default registry and no search list: an unqualified name means exactly one image everywhere.
Sources: distribution/reference grammar, distribution-spec "Pulling manifests", cves.md section 8.
"""

from __future__ import annotations

from typing import NoReturn

import msgspec

from scow.image.digest import Digest, parse_digest, quote
from scow.native.errors import InvalidArgument

DEFAULT_HOST = "docker.io"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
MAX_NAME_LENGTH = 255
MAX_TAG_LENGTH = 128

# Not regular expressions: importing and compiling them costs more than all of `scow run`'s lookup.
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_WORD = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_TAG = _WORD | frozenset("_.-")
_SEPARATORS = ("__", "_", ".")  # between runs of letters and digits; or any number of "-"
_HEX = frozenset("0123456789abcdef")


class Reference(msgspec.Struct, frozen=True):
    """A normalised reference: the host is explicit, docker.io's `library/` too."""

    host: str  # as the user knows it, with the port: "docker.io", "localhost:5000", "[::1]:5000"
    path: str
    tag: str | None
    digest: Digest | None

    @property
    def repository(self) -> str:
        """`host/path`, the part that says whose image it is."""
        return f"{self.host}/{self.path}"

    @property
    def familiar_repository(self) -> str:
        """The repository in its shortest form, as `docker images` prints it."""
        if self.host != DEFAULT_HOST:
            return self.repository
        return self.path.removeprefix(DEFAULT_NAMESPACE + "/")

    @property
    def familiar(self) -> str:
        """The whole reference in its shortest form."""
        return self.familiar_repository + self._suffix()

    def with_digest(self, digest: Digest) -> Reference:
        """The same repository at exactly this content."""
        return Reference(self.host, self.path, None, digest)

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return tag + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.repository + self._suffix()


def parse_reference(text: str) -> Reference:
    """Parse and normalise `text`; without tag and digest the tag is `latest`.

    Where both are given the digest decides the content and the tag is kept for show only.
    Raises InvalidArgument that names the position; nothing is looked up.
    """
    _refuse_foreign_syntax(text)
    name, at, digest_text = text.partition("@")
    digest = None
    if at:
        try:
            digest = parse_digest(digest_text)
        except InvalidArgument as e:
            raise InvalidArgument(
                f"invalid reference {quote(text)}: {e.message} at position {len(name) + 2}",
                hint=e.hint,
            ) from e
    host, rest, offset = _split_host(text, name)
    path, colon, tag = rest.partition(":")
    _check_path(text, path, offset)
    if colon:
        _check_tag(text, tag, offset + len(path) + 1)
    if host == DEFAULT_HOST and "/" not in path:
        path = f"{DEFAULT_NAMESPACE}/{path}"
    if len(host) + 1 + len(path) > MAX_NAME_LENGTH:
        _fail(text, MAX_NAME_LENGTH, f"the name is longer than {MAX_NAME_LENGTH} characters")
    if not colon and digest is None:
        tag = DEFAULT_TAG
    return Reference(host, path, tag or None, digest)


def is_loopback_host(host: str) -> bool:
    """Whether `host` (with or without port) is this machine by its very name, without a lookup."""
    name = split_port(host)[0]
    if name.startswith("["):
        return name == "[::1]"
    parts = name.split(".")
    is_127 = len(parts) == 4 and parts[0] == "127" and all(_is_number(p, 3) for p in parts)
    return name == "localhost" or is_127


def split_port(host: str) -> tuple[str, int | None]:
    """`host[:port]` of a parsed reference as (host, port)."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        return host, None
    return name, int(port)


def _fail(text: str, position: int, why: str, hint: str | None = None) -> NoReturn:
    raise InvalidArgument(
        f"invalid reference {quote(text)}: {why} at position {position + 1}", hint=hint
    )


def _refuse_foreign_syntax(text: str) -> None:
    """Name the common mistakes: URLs, credentials, whitespace, an id in place of a name."""
    if not text:
        raise InvalidArgument("invalid reference '': it is empty")
    if len(text) > 2 * MAX_NAME_LENGTH + MAX_TAG_LENGTH:
        _fail(text, MAX_NAME_LENGTH, f"the name is longer than {MAX_NAME_LENGTH} characters")
    # First of all, so that no message repeats a password.
    before_at, at, after_at = text.partition("@")
    if at and ("/" in after_at or ("/" not in before_at and "." in after_at)):
        raise InvalidArgument(
            "invalid reference: it holds a user name or password before '@'",
            hint="credentials come from ~/.docker/config.json",
        )
    if "://" in text:
        scheme = text.index("://")
        _fail(text, scheme, "a reference has no scheme", f"leave {quote(text[: scheme + 3])} away")
    for position, char in enumerate(text):
        if not char.isascii() or not (char.isalnum() or char in "._-/:@[]+"):
            _fail(text, position, f"character {quote(char)} is not allowed")


def _split_host(text: str, name: str) -> tuple[str, str, int]:
    """Split into (host, rest, offset of rest); the default host where the first part is no host."""
    first, slash, rest = name.partition("/")
    looks_like_host = "." in first or ":" in first or first == "localhost" or first[:1] == "["
    if not slash or not (looks_like_host and first[:1] not in ".-:"):
        if len(name) == 64 and _HEX.issuperset(name):
            _fail(text, 0, "64 hex digits are an image id, not a name")
        return DEFAULT_HOST, name, 0
    host = _check_host(text, first)
    return host, rest, len(first) + 1


def _check_host(text: str, host: str) -> str:
    if host.startswith("["):
        address, bracket, port_part = host.partition("]")
        if not bracket or not _is_ipv6(address[1:]):
            _fail(text, 0, "the IPv6 address in brackets is not valid")
        name, colon, port = address + "]", port_part[:1], port_part[1:]
        if port_part and colon != ":":
            _fail(text, len(name), "only a port may follow the ']'")
    else:
        name, colon, port = host.partition(":")
        for label in name.split("."):
            if not _is_label(label):
                _fail(text, 0, f"{quote(name)} is not a host name")
    if colon and not (_is_number(port, 5) and 0 < int(port) < 65536):
        _fail(text, len(name) + 1, f"port {quote(port)} is not a number from 1 to 65535")
    name = name.lower()
    if name == "index.docker.io":
        name = DEFAULT_HOST
    return f"{name}:{int(port)}" if colon else name


def _is_number(text: str, digits: int) -> bool:
    return 1 <= len(text) <= digits and text.isascii() and text.isdigit()


def _is_label(label: str) -> bool:
    ends = label[:1] + label[-1:]
    return 1 <= len(label) <= 63 and "-" not in ends and (_WORD | {"-"}).issuperset(label)


def _is_component(text: str) -> bool:
    """`[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*`: each separator stands between letters or digits."""
    if not text or text[0] not in _LOWER or text[-1] not in _LOWER:
        return False
    run = ""
    for char in text:
        if char not in _LOWER:
            run += char
        elif run:
            if run not in _SEPARATORS and run.strip("-"):
                return False
            run = ""
    return True


def _is_ipv6(address: str) -> bool:
    import socket

    try:
        socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        return False
    return True


def _check_path(text: str, path: str, offset: int) -> None:
    position = offset
    for component in path.split("/"):
        if not component:
            _fail(text, position, "a part of the name is empty")
        if not _is_component(component):
            why = f"{quote(component)} is not a valid name"
            if component != component.lower():
                _fail(text, position, why + " (names are lower case)")
            _fail(text, position, why)
        position += len(component) + 1


def _check_tag(text: str, tag: str, position: int) -> None:
    if not tag:
        _fail(text, position - 1, "the tag is empty")
    if len(tag) > MAX_TAG_LENGTH:
        _fail(text, position, f"the tag is longer than {MAX_TAG_LENGTH} characters")
    if not _TAG.issuperset(tag) or tag[0] in ".-":
        _fail(text, position, f"tag {quote(tag)} is not valid")
