"""Users and groups of a container, read from its own /etc/passwd and /etc/group.

The files are hostile: they are opened inside the root only, must be regular, and are read up to a
limit (CVE-2024-9676, CVE-2026-47262). Numbers and names arrive already told apart, so that an
all-digits name is never looked up (CVE-2016-3697, CVE-2026-46680).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from scow.native.errors import InvalidArgument
from scow.native.fs import Root

PASSWD_LIMIT = 10 << 20
# (uid_t)-1 means "no change" to the kernel, so 2^32-2 is the largest real id (setuid(2)).
MAX_ID = 2**32 - 2


class User(msgspec.Struct, frozen=True):
    """Who the process is: numeric ids, supplementary groups, and the home for HOME."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def resolve_user(
    root: Root,
    user: int | str,
    group: int | str | None,
    group_add: tuple[int | str, ...] = (),
    policy: str = "",
) -> User:
    """Look `user` and `group` up in the files below `root`; numbers need no entry.

    Without a group the passwd entry's group and the supplementary groups of the name apply; with
    one they do not (image-spec config.md, `User`). A `policy` decides it otherwise: "merge" takes the
    supplementary groups of the name in any case, "strict" in none. Raises InvalidArgument for
    unknown names.
    """
    entry = _find_passwd(root, user)
    if entry is None and isinstance(user, str):
        raise InvalidArgument(f"unknown user '{quote(user)}': not in the image's /etc/passwd")
    uid = entry.uid if entry and isinstance(user, str) else int(user)
    groups: list[int] = []
    if group is not None:
        gid = _resolve_group(root, group)
    else:
        gid = entry.gid if entry else 0
    if entry and policy != "strict" and (group is None or policy == "merge"):
        groups = _member_of(root, entry.name)
    groups += [_resolve_group(root, extra) for extra in group_add]
    # The primary group is listed too, so that a rule "group X may not" holds (CVE-2022-36109).
    ordered = tuple(dict.fromkeys([gid, *groups]))
    return User(uid=uid, gid=gid, groups=ordered, home=entry.home if entry and entry.home else "/")


class _PasswdEntry(msgspec.Struct, frozen=True):
    name: bytes
    uid: int
    gid: int
    home: str


def _rows(root: Root, path: str) -> Iterator[list[bytes]]:
    """One after the other: 10 MiB of short lines are half a gigabyte of lists."""
    try:
        data = root.read_file(path, PASSWD_LIMIT)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidArgument(f"cannot read '{path}' of the image: {error.strerror}") from error
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        if end > start and data[start] != 0x23:
            yield data[start:end].split(b":", 7)
        start = end + 1


def _number(field: bytes) -> int | None:
    return int(field) if field.isdigit() and len(field) <= 10 and int(field) <= MAX_ID else None


def _find_passwd(root: Root, wanted: int | str) -> _PasswdEntry | None:
    name = None if isinstance(wanted, int) else wanted.encode("utf-8", "surrogateescape")
    for row in _rows(root, "/etc/passwd"):
        if len(row) < 6:
            continue
        uid, gid = _number(row[2]), _number(row[3])
        if uid is None or gid is None:
            continue
        if row[0] == name or (name is None and uid == wanted):
            home = row[5].decode("utf-8", "surrogateescape")
            return _PasswdEntry(row[0], uid, gid, home)
    return None


def _resolve_group(root: Root, group: int | str) -> int:
    if isinstance(group, int):
        return group
    name = group.encode("utf-8", "surrogateescape")
    for row in _rows(root, "/etc/group"):
        number = _number(row[2]) if len(row) >= 3 else None
        if number is not None and row[0] == name:
            return number
    raise InvalidArgument(f"unknown group '{quote(group)}': not in the image's /etc/group")


def _member_of(root: Root, name: bytes) -> list[int]:
    found: list[int] = []
    for row in _rows(root, "/etc/group"):
        number = _number(row[2]) if len(row) >= 4 else None
        if number is not None and b",%b," % name in b",%b," % row[3].strip():
            found.append(number)
    return found


def quote(text: str) -> str:
    """Make text of a stranger fit for one line of an error: escaped, cut at 256 characters."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:256])
