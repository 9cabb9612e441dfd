"""Reading config documents.

What belongs here: the wire form and its checks. Everything in it is a stranger's wish; cosmetic
nonsense is tolerated, what steers a process is not. Source: image-spec config.md.
"""

from __future__ import annotations

import re

import msgspec

from scow.image.config import ConfigDocument, Healthcheck, ImageConfig
from scow.image.digest import parse_diff_id, quote
from scow.image.document import decode_document
from scow.native.errors import InvalidArgument

MAX_USER_LENGTH = 256
MAX_ENTRIES = 10_000  # env, argv, labels, volumes, ports: each

_SIGNAL = re.compile(r"(?:SIG)?(?:[A-Z][A-Z0-9]*|RTMIN(?:\+[0-9]{1,2})?|RTMAX(?:-[0-9]{1,2})?)")
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)


class _WireHealthcheck(msgspec.Struct, rename="pascal"):
    test: list[str] | None = None
    interval: int | None = None
    timeout: int | None = None
    start_period: int | None = None
    start_interval: int | None = None
    retries: int | None = None


class _WireConfig(msgspec.Struct, rename="pascal"):
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    user: str | None = None
    working_dir: str | None = None
    volumes: dict[str, object] | None = None
    exposed_ports: dict[str, object] | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None
    healthcheck: _WireHealthcheck | None = None


class _WireRootfs(msgspec.Struct):
    type: str
    diff_ids: list[str] | None = None


class _WireDocument(msgspec.Struct):
    architecture: str
    os: str
    rootfs: _WireRootfs
    variant: str | None = None
    created: object = None
    author: object = None
    config: _WireConfig | None = None


def parse_config(data: bytes, what: str = "image config") -> ConfigDocument:
    """Parse and check a config document; raises InvalidArgument that names the field."""
    wire = decode_document(data, _WireDocument, what)
    if wire.rootfs.type != "layers":
        raise InvalidArgument(
            f"invalid {what}: rootfs.type is {quote(wire.rootfs.type)}, not 'layers'"
        )
    try:
        return ConfigDocument(
            architecture=_plain_word("architecture", wire.architecture),
            os=_plain_word("os", wire.os),
            variant=_plain_word("variant", wire.variant or ""),
            created=parse_date(wire.created),
            author=wire.author if isinstance(wire.author, str) else "",
            config=_make_config(wire.config or _WireConfig()),
            diff_ids=tuple(parse_diff_id(d) for d in wire.rootfs.diff_ids or ()),
        )
    except InvalidArgument as e:
        raise InvalidArgument(f"invalid {what}: {e.message}", hint=e.hint) from e


def _make_config(wire: _WireConfig) -> ImageConfig:
    return ImageConfig(
        env=tuple(_check_env(entry) for entry in _bounded("Env", wire.env or [])),
        entrypoint=_check_argv("Entrypoint", wire.entrypoint),
        cmd=_check_argv("Cmd", wire.cmd),
        user=_check_user(wire.user or ""),
        working_dir=_check_path("WorkingDir", wire.working_dir) if wire.working_dir else "",
        volumes=tuple(
            sorted(_check_volume(v) for v in _bounded("Volumes", [*(wire.volumes or ())]))
        ),
        exposed_ports=tuple(
            sorted(_check_port(p) for p in _bounded("ExposedPorts", [*(wire.exposed_ports or ())]))
        ),
        stop_signal=_check_signal(wire.stop_signal or ""),
        labels=_check_labels(wire.labels or {}),
        healthcheck=_check_healthcheck(wire.healthcheck),
    )


def _bounded(name: str, entries: list[str]) -> list[str]:
    if len(entries) > MAX_ENTRIES:
        raise InvalidArgument(f"{name} has {len(entries)} entries, more than {MAX_ENTRIES}")
    return entries


def _no_nul(name: str, text: str) -> str:
    if "\0" in text:
        raise InvalidArgument(f"{name} {quote(text)} holds a NUL byte")
    return text


def _plain_word(name: str, text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,64}", text):
        raise InvalidArgument(f"{name} {quote(text)} is not a plain word")
    return text


def _check_env(entry: str) -> str:
    # A bare key must not take its value from the host (CVE-2026-57231).
    key, equals, _ = entry.partition("=")
    if not equals or not key:
        raise InvalidArgument(f"Env entry {quote(entry)} is not of the form KEY=VALUE")
    return _no_nul("Env entry", entry)


def _check_argv(name: str, argv: list[str] | None) -> tuple[str, ...] | None:
    if argv is None:
        return None
    return tuple(_no_nul(f"{name} argument", a) for a in _bounded(name, argv))


def _check_user(user: str) -> str:
    if len(user) > MAX_USER_LENGTH:
        raise InvalidArgument(f"User is longer than {MAX_USER_LENGTH} characters")
    if not all(c.isprintable() for c in user) or user.count(":") > 1:
        raise InvalidArgument(f"User {quote(user)} is not of the form USER[:GROUP]")
    return user


def _check_path(name: str, path: str) -> str:
    _no_nul(name, path)
    if not path.startswith("/"):
        raise InvalidArgument(f"{name} {quote(path)} is not an absolute path")
    if ".." in path.split("/"):
        raise InvalidArgument(f"{name} {quote(path)} goes up with '..'")
    if len(path.encode("utf-8", "surrogatepass")) > 4095:
        raise InvalidArgument(f"{name} is longer than 4095 bytes")
    return path


def _check_volume(path: str) -> str:
    if not _check_path("Volumes entry", path).strip("/"):
        raise InvalidArgument("Volumes entry '/' would hide the whole image")
    return path


def _check_port(text: str) -> str:
    match = _PORT.fullmatch(text)
    if match is None:
        raise InvalidArgument(
            f"ExposedPorts entry {quote(text)} is not of the form PORT[/PROTOCOL]"
        )
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not 1 <= first <= last <= 65535:
        raise InvalidArgument(f"ExposedPorts entry {quote(text)} is not within 1 to 65535")
    numbers = f"{first}-{last}" if match[2] else f"{first}"
    return f"{numbers}/{(match[3] or 'tcp').lower()}"


def _check_signal(text: str) -> str:
    if not text:
        return ""
    name = text.upper()
    if re.fullmatch(r"[0-9]{1,2}", text):
        known = 1 <= int(text) <= 64
    else:
        known = _SIGNAL.fullmatch(name) is not None and _is_signal_name(name.removeprefix("SIG"))
    if not known:
        raise InvalidArgument(f"StopSignal {quote(text)} is not a signal")
    return text


def _is_signal_name(name: str) -> bool:
    import signal

    base, sign, offset = name.partition("+" if name.startswith("RTMIN") else "-")
    if base in ("RTMIN", "RTMAX"):
        return not sign or int(offset) <= signal.SIGRTMAX - signal.SIGRTMIN
    return "SIG" + name in signal.Signals.__members__


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    _bounded("Labels", list(labels))
    if "" in labels:
        raise InvalidArgument("Labels has an entry without a name")
    return labels


def _check_healthcheck(wire: _WireHealthcheck | None) -> Healthcheck | None:
    if wire is None:
        return None
    numbers = {
        "Interval": wire.interval or 0,
        "Timeout": wire.timeout or 0,
        "StartPeriod": wire.start_period or 0,
        "StartInterval": wire.start_interval or 0,
        "Retries": wire.retries or 0,
    }
    for name, value in numbers.items():
        if value < 0:
            raise InvalidArgument(f"Healthcheck.{name} {value} is negative")
    return Healthcheck(_check_argv("Healthcheck", wire.test) or (), *numbers.values())


def parse_date(value: object) -> str:
    """RFC 3339 or nothing: many builders write 1970, some garbage, and nobody's life hangs on it."""
    if isinstance(value, str) and re.fullmatch(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})", value
    ):
        return value
    return ""
