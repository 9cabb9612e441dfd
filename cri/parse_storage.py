"""Parsers of -v, --mount and --tmpfs.

What belongs here: their grammar and what is wrong by itself (a relative target, `ro,rw`). What
must not: opening or making anything; a source is opened once, by who mounts it.
"""

from __future__ import annotations

import os

from scow.cri.options import Mount, Tmpfs
from scow.cri.parse import check_path, invalid, parse_bool, parse_int, parse_size, quote
from scow.native.errors import Unsupported

PROPAGATIONS = frozenset(("rprivate", "private", "rshared", "shared", "rslave", "slave"))
_VOLUME_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def parse_target(option: str, text: str, target: str) -> str:
    """Where something is mounted: absolute, not the root, no `..`; slashes tidied."""
    check_path(option, target)
    if not target.startswith("/"):
        raise invalid(option, text, f"target {quote(target)} must be an absolute path")
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise invalid(option, text, f"target {quote(target)} must not contain '..'")
    if not parts:
        raise invalid(option, text, "target '/' is the container's root and cannot be covered")
    return "/" + "/".join(parts)


def parse_volume_name(option: str, text: str, name: str) -> str:
    """A volume's name."""
    if len(name) > 255 or not name[:1].isalnum() or not _VOLUME_NAME.issuperset(name):
        raise invalid(
            option,
            text,
            f"{quote(name)} is not a volume name (letters, digits, '_', '.', '-')",
            hint="a directory of the host begins with '/' or './'",
        )
    return name


def parse_volume(option: str, text: str) -> Mount:
    """`[SOURCE:]TARGET[:OPTIONS]`: a path is a bind mount, a word a volume, none an anonymous one.

    As with Docker a bind source that is missing becomes an empty directory; --mount refuses.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise invalid(option, text, "not of the form [SOURCE:]TARGET[:ro]")
    if len(parts) == 1:
        return Mount("volume", "", parse_target(option, text, parts[0]))
    source, target = parts[0], parse_target(option, text, parts[1])
    flags = _volume_flags(option, text, parts[2]) if len(parts) == 3 else {}
    if source.startswith(("/", "./", "../")) or source in (".", ".."):
        if "copy_up" in flags:
            raise invalid(option, text, "'nocopy' is for volumes, not for a directory of the host")
        path = os.path.abspath(check_path(option, source))
        return Mount("bind", path, target, create_source=True, **flags)  # type: ignore[arg-type]  # the keys are fields of the right types
    parse_volume_name(option, text, source)
    return Mount("volume", source, target, **flags)  # type: ignore[arg-type]  # as above


def _volume_flags(option: str, text: str, flags: str) -> dict[str, bool | str]:
    found: dict[str, bool | str] = {}
    key: str
    value: bool | str
    for flag in flags.split(","):
        if flag in ("ro", "rw"):
            key, value = "read_only", flag == "ro"
        elif flag in PROPAGATIONS:
            found["recursive"] = True
            key, value = "propagation", flag
        elif flag == "nocopy":
            key, value = "copy_up", False
        elif flag in ("z", "Z"):
            _require_no_selinux(option, text)
            continue
        else:
            raise invalid(
                option, text, f"unknown option {quote(flag)}; ro, rw, nocopy or a propagation"
            )
        if key in found:
            raise invalid(option, text, f"option {quote(flag)} contradicts or repeats another one")
        found[key] = value
    return found


def _require_no_selinux(option: str, text: str) -> None:
    # Without SELinux there is nothing to relabel and the wish is met; with it, it would not be.
    if os.path.exists("/sys/fs/selinux/enforce"):
        raise Unsupported(f"invalid {option} {quote(text)}: scow does not relabel for SELinux")


def _fields(option: str, text: str) -> list[tuple[str, str | None]]:
    if '"' in text:
        import csv

        try:
            rows = list(csv.reader([text]))
        except csv.Error as error:  # a line break outside of quotes
            raise invalid(option, text, str(error)) from None
        words = rows[0] if rows else []
    else:
        words = text.split(",")
    pairs: list[tuple[str, str | None]] = []
    for word in words:
        key, equals, value = word.partition("=")
        pairs.append((key.strip().lower(), value if equals else None))
    return pairs


_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
}
_KEYS = {
    "bind": {"bind-propagation", "bind-recursive", "bind-nonrecursive"},
    "volume": {"volume-nocopy", "volume-subpath"},
    "tmpfs": {"tmpfs-size", "tmpfs-mode"},
}
_SWITCHES = ("readonly", "bind-nonrecursive", "volume-nocopy")
_COMMON = {"type", "source", "target", "readonly"}


def parse_mount(option: str, text: str) -> Mount | Tmpfs:
    """`type=bind,source=/srv,target=/data,readonly`; type is bind, volume or tmpfs."""
    values: dict[str, str] = {}
    for key, value in _fields(option, text):
        key = _ALIASES.get(key, key)
        if key in values:
            raise invalid(option, text, f"{quote(key)} is given twice")
        if value is None and key not in _SWITCHES:
            raise invalid(option, text, f"{quote(key)} is not known or needs a value")
        values[key] = "true" if value is None else value
    kind = values.get("type", "volume")
    if kind not in _KEYS:
        raise invalid(option, text, f"type {quote(kind)} is not one of bind, volume, tmpfs")
    for key in values:
        if key not in _COMMON | _KEYS[kind]:
            known = ", ".join(sorted(_COMMON | _KEYS[kind]))
            raise invalid(option, text, f"unknown key {quote(key)} for type {kind}; one of {known}")
    if "target" not in values:
        raise invalid(option, text, "needs target=PATH, where it appears in the container")
    target = parse_target(option, text, values["target"])
    read_only = parse_bool(option, values.get("readonly", "false"))
    if kind == "tmpfs":
        return _tmpfs_mount(option, text, values, target, read_only)
    if kind == "volume":
        return _volume_mount(option, text, values, target, read_only)
    return _bind_mount(option, text, values, target, read_only)


def _bind_mount(
    option: str, text: str, values: dict[str, str], target: str, read_only: bool
) -> Mount:
    source = values.get("source", "")
    if not source.startswith(("/", "./", "../")) and source not in (".", ".."):
        raise invalid(option, text, "a bind mount needs source=PATH, beginning with '/' or './'")
    path = os.path.abspath(check_path(option, source))
    if not os.path.lexists(path):
        raise invalid(
            option,
            text,
            f"source {quote(path)} does not exist",
            hint=f"create it first: mkdir -p {path}",
        )
    propagation = values.get("bind-propagation", "rprivate")
    if propagation not in PROPAGATIONS:
        raise invalid(option, text, f"bind-propagation is one of {', '.join(sorted(PROPAGATIONS))}")
    recursive = not parse_bool(option, values.get("bind-nonrecursive", "false"))
    mode = values.get("bind-recursive", "enabled")
    if mode not in ("enabled", "disabled"):
        raise invalid(option, text, "bind-recursive is enabled or disabled")
    return Mount(
        "bind",
        path,
        target,
        read_only=read_only,
        propagation=propagation,
        recursive=recursive and mode == "enabled",
    )


def _volume_mount(
    option: str, text: str, values: dict[str, str], target: str, read_only: bool
) -> Mount:
    name = values.get("source", "")
    if name:
        parse_volume_name(option, text, name)
    if values.get("volume-subpath"):
        raise Unsupported(f"invalid {option} {quote(text)}: scow mounts whole volumes only")
    copy_up = not parse_bool(option, values.get("volume-nocopy", "false"))
    return Mount("volume", name, target, read_only=read_only, copy_up=copy_up)


def _tmpfs_mount(
    option: str, text: str, values: dict[str, str], target: str, read_only: bool
) -> Tmpfs:
    if "source" in values:
        raise invalid(option, text, "a tmpfs has no source")
    size = values.get("tmpfs-size")
    return Tmpfs(
        target,
        size_bytes=parse_size(option, size) or None if size is not None else None,
        mode=_mode(option, text, values.get("tmpfs-mode", "1777")),
        read_only=read_only,
    )


def _mode(option: str, text: str, mode: str) -> int:
    if not mode or len(mode) > 5 or not set(mode) <= set("01234567") or int(mode, 8) > 0o7777:
        raise invalid(option, text, f"mode {quote(mode)} is not octal, such as 1777")
    return int(mode, 8)


def parse_tmpfs(option: str, text: str) -> Tmpfs:
    """`/path[:size=64m,mode=1777,ro,exec,suid,dev,uid=1,gid=1,nr_inodes=1k]`."""
    target, colon, options = text.partition(":")
    target = parse_target(option, text, target)
    switches: dict[str, bool] = {}
    values: dict[str, int] = {}
    for word in options.split(",") if colon else []:
        key, equals, value = word.partition("=")
        if key in ("ro", "rw") and not equals:
            name, setting = "read_only", key == "ro"
        elif key.removeprefix("no") in ("exec", "suid", "dev") and not equals:
            name, setting = "no" + key.removeprefix("no"), key.startswith("no")
        elif equals and key in ("size", "mode", "uid", "gid", "nr_inodes"):
            if key in values:
                raise invalid(option, text, f"{quote(key)} is given twice")
            values[key] = _tmpfs_value(option, text, key, value)
            continue
        else:
            raise invalid(option, text, f"unknown option {quote(word)}")
        if name in switches:
            raise invalid(option, text, f"option {quote(word)} contradicts or repeats another one")
        switches[name] = setting
    return Tmpfs(
        target,
        size_bytes=values.get("size") or None,
        mode=values.get("mode", 0o1777),
        uid=values.get("uid"),
        gid=values.get("gid"),
        inodes=values.get("nr_inodes") or None,
        **switches,
    )


def _tmpfs_value(option: str, text: str, key: str, value: str) -> int:
    if key == "mode":
        return _mode(option, text, value)
    if key in ("size", "nr_inodes"):
        return parse_size(option, value)
    return parse_int(option, value, low=0, high=2**31 - 1)
