"""Id maps of containers and pods: what may be asked for, and who gets which range of the host's ids.

A range that was chosen here is a link `<root>/id-ranges/<first>` to the object that has it, and void when
that object is gone. The namespaces themselves are made elsewhere (pod_namespaces.py, launch.py).
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

from scow.native.errors import InvalidArgument, ResourceExhausted
from scow.native.idmap import IdMap
from scow.netns.ipam import locked

RANGE = 1 << 16
# systemd's UIDS-GIDS.md sets these aside for containers, in steps of 65536.
_FIRST, _LAST = 0x00080000, 0x6FFF0000
_MAX_ID = 2**32 - 2  # the last one is (uid_t)-1, which is nobody
_MAX_LINES = 340  # user_namespaces(7)
_TRIES = 1000

Lines = tuple[tuple[int, int, int], ...]


def parse_id_map(option: str, texts: Sequence[str]) -> Lines:
    """`CONTAINER:HOST:SIZE`, as often as it is given."""
    found: list[tuple[int, int, int]] = []
    for text in texts:
        parts = text.split(":")
        if len(parts) != 3 or not all(p.isascii() and p.isdigit() and len(p) < 11 for p in parts):
            raise InvalidArgument(f"invalid {option} '{text[:64]}': it is CONTAINER:HOST:SIZE")
        inside, outside, count = map(int, parts)
        found.append((inside, outside, count))
    return check_id_map(option, tuple(found))


def parse_user_namespace(
    mode: str | None, uids: Sequence[str], gids: Sequence[str]
) -> tuple[bool, IdMap | None]:
    """What --userns, --uidmap and --gidmap ask for: whether ids are to be chosen, and those given.

    One of the two maps stands for both.
    """
    if mode not in (None, "", "host", "auto"):
        raise InvalidArgument(f"invalid --userns '{mode[:64]}': it is host or auto")
    users, groups = parse_id_map("--uidmap", uids), parse_id_map("--gidmap", gids)
    ids = IdMap(users or groups, groups or users) if users or groups else None
    if ids is not None and mode in ("host", "auto"):
        why = "they make a namespace" if mode == "host" else "it chooses the ids itself"
        raise InvalidArgument(f"--userns {mode} and --uidmap, --gidmap exclude each other: {why}")
    return mode == "auto", ids


def check_id_map(what: str, lines: Lines) -> Lines:
    """Refuse what the kernel would, and a map without a root: somebody must make the mounts."""
    if len(lines) > _MAX_LINES:
        raise InvalidArgument(f"{what} has {len(lines)} lines, the kernel takes {_MAX_LINES}")
    for inside, outside, count in lines:
        if count < 1 or min(inside, outside) < 0 or max(inside, outside) + count - 1 > _MAX_ID:
            raise InvalidArgument(f"{what} {inside}:{outside}:{count} is out of range")
    for side in (0, 1):
        end = -1
        for line in sorted(lines, key=lambda line: line[side]):
            if line[side] <= end:
                raise InvalidArgument(f"{what}: two lines overlap at id {line[side]}")
            end = line[side] + line[2] - 1
    if lines and not any(line[0] == 0 for line in lines):
        raise InvalidArgument(f"{what} does not map id 0, the container's root")
    return lines


def has_user_namespaces() -> bool:
    """Whether the kernel gives user namespaces, and overlayfs takes mapped layers (Linux 5.19)."""
    release = [int(part) for part in os.uname().release.split("-")[0].split(".")[:2]]
    if release < [5, 19]:
        return False
    try:
        with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as file:
            return int(file.read()) > 0
    except FileNotFoundError:
        return False


def ping_group_range(ids: IdMap | None) -> str:
    """Everyone, as far as the kernel takes a group for one: all ids must be in the map."""
    if ids is None:
        return "0 2147483647"
    return f"0 {next(count for inside, _, count in ids.gid if inside == 0) - 1}"


def claim_range(root: str, owner: str) -> IdMap:
    """A range of 65536 ids that nobody has, for the object at `owner`, a path below `root`."""
    directory = f"{root}/id-ranges"
    os.makedirs(directory, mode=0o700, exist_ok=True)
    taken = _delegated()
    with locked(f"{directory}/lock"):
        for _ in range(_TRIES):
            first = random.randrange(_FIRST, _LAST + 1, RANGE)
            path = f"{directory}/{first}"
            if any(begin < first + RANGE and first < end for begin, end in taken):
                continue
            if os.path.islink(path):
                if os.path.isdir(f"{root}/{os.readlink(path)}"):
                    continue
                os.unlink(path)
            os.symlink(owner, path)
            line = ((0, first, RANGE),)
            return IdMap(line, line)
    raise ResourceExhausted("no range of 65536 user ids is free on this host")


def release_range(root: str, ids: IdMap | None, owner: str) -> None:
    """Give a range back; one that was never claimed, or is given back, is fine."""
    if ids is None:
        return
    path = f"{root}/id-ranges/{ids.uid[0][1]}"
    try:
        if os.readlink(path) == owner:
            os.unlink(path)
    except OSError:
        return  # never claimed: the ids were given


def _delegated() -> list[tuple[int, int]]:
    """What the administrator has given to users (subuid(5)), as (first, past the last)."""
    found: list[tuple[int, int]] = []
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = [line.strip().split(":") for line in file]
        except FileNotFoundError:
            continue
        for line in lines:
            if len(line) == 3 and line[1].isdigit() and line[2].isdigit():
                found.append((int(line[1]), int(line[1]) + int(line[2])))
    return found
