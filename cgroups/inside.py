"""Where in a container's cgroup another process of it goes: a part of it that is named, or found.

The parts are the container's own and anything but trusted: their names are taken below an open
directory, one component at a time is checked, and cgroup file systems have no symbolic links.
"""

from __future__ import annotations

import os

from scow.cgroups import detect, tree
from scow.cgroups.cgroup import Cgroup
from scow.native.errors import InvalidArgument, InvalidState, NotFound
from scow.native.fd import OwnedFd

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def places(
    cgroup: Cgroup, first_pid: int, words: tuple[str, ...]
) -> tuple[list[OwnedFd], OwnedFd | None]:
    """What `join_fds` and `dir_fd` give, for the parts that `exec --cgroup` names.

    `PATH` or, on v1, `CONTROLLER[,CONTROLLER]:PATH`, several times; `/` is the top. Without any: the
    part that the first process is in, where the top may hold none.
    """
    asked = _parse(words)
    if detect.mode() is detect.Mode.V2:
        if asked.keys() - {""}:
            raise InvalidArgument("exec --cgroup: a controller can be named on cgroup v1 only")
        part = asked.get("") if words else _part_of(first_pid, cgroup.path)
        return [], _open_part(cgroup, part or "")
    _require_known(asked)
    tasks: list[OwnedFd] = []
    try:
        for hierarchy in detect.hierarchies().v1:
            names = hierarchy.controllers or (f"name={hierarchy.name}",)
            part = next((asked[name] for name in names if name in asked), asked.get("", ""))
            top = f"{hierarchy.directory}/{cgroup.path}"
            tasks.append(_open(f"{top}/{part}/tasks", os.O_WRONLY | os.O_CLOEXEC, part))
        return tasks, cgroup.dir_fd()
    except BaseException:
        for fd in tasks:
            fd.close()
        raise


def _parse(words: tuple[str, ...]) -> dict[str, str]:
    """Controller, or nothing for all -> path below the container's cgroup."""
    asked: dict[str, str] = {}
    for word in words:
        names, colon, path = word.rpartition(":")
        parts = [part for part in path.split("/") if part]
        for part in parts:
            tree.check_component(part, path)
        for name in names.split(",") if colon else [""]:
            if name in asked or (colon and not name):
                raise InvalidArgument(f"invalid exec --cgroup argument: {word!r}")
            asked[name] = "/".join(parts)
    return asked


def _require_known(asked: dict[str, str]) -> None:
    known = {""}
    for hierarchy in detect.hierarchies().v1:
        known.update(hierarchy.controllers or (f"name={hierarchy.name}",))
    if unknown := asked.keys() - known:
        raise InvalidArgument(f"exec --cgroup: no cgroup controller '{unknown.pop()}' on this host")


def _part_of(pid: int, path: str) -> str:
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("0::"):
                found = line.removeprefix("0::/").rstrip("\n")
                # What has left its cgroup must not take others with it.
                if f"{found}/".startswith(f"{path}/"):
                    return found[len(path) :].strip("/")
    raise InvalidState(f"the container's first process is not in its cgroup '{path}'")


def _open_part(cgroup: Cgroup, part: str) -> OwnedFd | None:
    top = cgroup.dir_fd()
    if top is None or not part:
        return top
    with top:
        return _open(part, _DIRECTORY, part, top.fileno())


def _open(path: str, flags: int, part: str, directory: int | None = None) -> OwnedFd:
    try:
        return OwnedFd(os.open(path, flags, dir_fd=directory))
    except FileNotFoundError:
        raise NotFound(f"exec --cgroup: the container has no cgroup '{part}'") from None
