"""Users and groups of a container, read from its own /etc/passwd and /etc/group.

The files are hostile: they are opened inside the root only, must be regular, and are read up to a
limit (CVE-2024-9676, CVE-2026-47262). An all-digits name is a number and nothing else
(CVE-2016-3697, CVE-2026-46680): no fallback from a failed number to a name or back.
"""

from __future__ import annotations

from dataclasses import dataclass

from scow.native.errors import InvalidArgument
from scow.native.fs import Root

PASSWD_LIMIT = 10 << 20
# (uid_t)-1 means "no change" to the kernel, so 2^32-2 is the largest real id (setuid(2)).
MAX_ID = 2**32 - 2


@dataclass(frozen=True, slots=True)
class User:
    """Who the process is: numeric ids, supplementary groups, and the home for HOME."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def resolve_user(root: Root, text: str, group_add: tuple[str, ...] = ()) -> User:
    """Resolve Docker's user form (``name``, ``uid``, ``name:group``, ``uid:gid``, mixes).

    Without a group the passwd entry's group and the supplementary groups of the name apply; with
    one they do not (image-spec config.md, `User`). Raises InvalidArgument for unknown names.
    """
    user_text, colon, group_text = text.partition(":")
    if (colon and not group_text) or ":" in group_text:
        raise InvalidArgument(f"invalid user '{_quote(text)}': expected user[:group]")
    entry = _find_passwd(root, user_text or "0")
    uid = _to_id(user_text or "0", "user")
    if uid is None:
        if entry is None:
            raise InvalidArgument(
                f"unknown user '{_quote(user_text)}': not in the image's /etc/passwd"
            )
        uid = entry.uid
    groups: list[int] = []
    if colon:
        gid = _resolve_group(root, group_text)
    else:
        gid = entry.gid if entry else 0
        if entry:
            groups = _member_of(root, entry.name)
    groups += [_resolve_group(root, extra) for extra in group_add]
    # The primary group is listed too, so that a rule "group X may not" holds (CVE-2022-36109).
    ordered = tuple(dict.fromkeys([gid, *groups]))
    return User(uid=uid, gid=gid, groups=ordered, home=entry.home if entry and entry.home else "/")


@dataclass(frozen=True, slots=True)
class _PasswdEntry:
    name: bytes
    uid: int
    gid: int
    home: str


def _to_id(text: str, kind: str) -> int | None:
    """Give the number that `text` is, None where it is a name; refuse everything in between."""
    if text.isascii() and text.isdigit():
        value = int(text) if len(text) <= 10 else MAX_ID + 1
        if value > MAX_ID:
            raise InvalidArgument(
                f"invalid {kind} '{_quote(text)}': an id is a number from 0 to {MAX_ID}"
            )
        return value
    if not text or text[0] in "+-" or text[0].isdigit() or not text.isprintable() or "/" in text:
        raise InvalidArgument(
            f"invalid {kind} '{_quote(text)}': expected a name or a number from 0 to {MAX_ID}"
        )
    return None


def _rows(root: Root, path: str) -> list[list[bytes]]:
    try:
        data = root.read_file(path, PASSWD_LIMIT)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidArgument(f"cannot read '{path}' of the image: {error.strerror}") from error
    return [line.split(b":") for line in data.split(b"\n") if line and line[0] != 0x23]


def _number(field: bytes) -> int | None:
    return int(field) if field.isdigit() and len(field) <= 10 and int(field) <= MAX_ID else None


def _find_passwd(root: Root, wanted: str) -> _PasswdEntry | None:
    name = wanted.encode("utf-8", "surrogateescape")
    number = _number(name)
    for row in _rows(root, "/etc/passwd"):
        if len(row) < 6:
            continue
        uid, gid = _number(row[2]), _number(row[3])
        if uid is None or gid is None:
            continue
        if uid == number if number is not None else row[0] == name:
            home = row[5].decode("utf-8", "surrogateescape")
            return _PasswdEntry(row[0], uid, gid, home)
    return None


def _resolve_group(root: Root, text: str) -> int:
    gid = _to_id(text, "group")
    if gid is not None:
        return gid
    name = text.encode("utf-8", "surrogateescape")
    for row in _rows(root, "/etc/group"):
        number = _number(row[2]) if len(row) >= 3 else None
        if number is not None and row[0] == name:
            return number
    raise InvalidArgument(f"unknown group '{_quote(text)}': not in the image's /etc/group")


def _member_of(root: Root, name: bytes) -> list[int]:
    found: list[int] = []
    for row in _rows(root, "/etc/group"):
        number = _number(row[2]) if len(row) >= 4 else None
        if number is not None and name in row[3].strip().split(b","):
            found.append(number)
    return found


def _quote(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:256])
