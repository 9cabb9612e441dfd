"""Which cgroup hierarchies this host has, and where.

What belongs here: reading /proc/self/cgroup, and /proc/self/mountinfo only when the usual places
do not answer. What must not: making, changing or removing anything.
"""

from __future__ import annotations

import enum
import os
from typing import NamedTuple

from scow.native.errors import Unsupported

_LIMITS = frozenset(("memory", "cpu", "pids", "devices", "freezer"))
USUAL_ROOT = "/sys/fs/cgroup"


class Mode(enum.Enum):
    """How the host uses cgroups; hybrid has its limits in v1, as systemd and Docker treat it."""

    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"


class Hierarchy(NamedTuple):
    """One mounted v1 hierarchy; `controllers` is empty for a named one (name=systemd)."""

    name: str
    controllers: tuple[str, ...]
    directory: str


class Hierarchies(NamedTuple):
    """All hierarchies of a host; `unified` is the directory of cgroup2 or None."""

    mode: Mode
    v1: tuple[Hierarchy, ...] = ()
    unified: str | None = None

    def with_controller(self, controller: str) -> Hierarchy | None:
        """The v1 hierarchy that holds `controller`."""
        for hierarchy in self.v1:
            if controller in hierarchy.controllers:
                return hierarchy
        return None


_found: Hierarchies | None = None


def hierarchies() -> Hierarchies:
    """What this host has; asked once per process. Raises Unsupported where there is nothing."""
    global _found
    if _found is None:
        with open("/proc/self/cgroup", "rb") as file:
            _found = detect(file.read().decode())
    return _found


def mode() -> Mode:
    """How this host uses cgroups."""
    return hierarchies().mode


def detect(
    proc_cgroup: str, *, root: str = USUAL_ROOT, mountinfo: str | None = None
) -> Hierarchies:
    """Find the hierarchies that `/proc/self/cgroup` names.

    The kernel lists each hierarchy with its controllers, so only the mount point has to be found;
    by convention it is below /sys/fs/cgroup under the controllers' names.
    """
    v1: list[Hierarchy] = []
    unified: str | None = None
    mounts: dict[str, str] | None = None
    for line in proc_cgroup.splitlines():
        number, names, _ = line.split(":", 2)
        is_unified = number == "0" and not names
        directory = _usual_unified(root) if is_unified else _usual_v1(root, names)
        if directory is None:
            if mounts is None:
                mounts = _read_mounts(mountinfo)
            directory = mounts.get(names)
        if directory is None:
            continue  # a hierarchy that exists but is mounted nowhere here: not ours to use
        if is_unified:
            unified = directory
        else:
            controllers = () if names.startswith("name=") else tuple(names.split(","))
            v1.append(Hierarchy(names.removeprefix("name="), controllers, directory))
    # Only these make a v1 host: some v2 hosts have net_cls mounted alone for old firewalls.
    if any(_LIMITS.intersection(hierarchy.controllers) for hierarchy in v1):
        return Hierarchies(Mode.HYBRID if unified else Mode.V1, _primary_first(v1), unified)
    if unified is None:
        raise Unsupported(
            "no cgroup hierarchy is mounted",
            hint="mount one: mount -t cgroup2 none /sys/fs/cgroup",
        )
    return Hierarchies(Mode.V2, (), unified)


def _primary_first(found: list[Hierarchy]) -> tuple[Hierarchy, ...]:
    # The first hierarchy carries our mark and answers which processes are inside; the freezer,
    # because it can also stop them while they are counted.
    order = ("freezer", "pids", "devices", "memory")

    def rank(hierarchy: Hierarchy) -> int:
        ranks = [order.index(name) for name in hierarchy.controllers if name in order]
        return min(ranks, default=len(order))

    return tuple(sorted(found, key=rank))


def _usual_v1(root: str, names: str) -> str | None:
    directory = f"{root}/{names.removeprefix('name=')}"
    return directory if os.access(f"{directory}/cgroup.procs", os.F_OK) else None


def _usual_unified(root: str) -> str | None:
    for directory in (root, f"{root}/unified"):
        if os.access(f"{directory}/cgroup.controllers", os.F_OK):
            return directory
    return None


def _read_mounts(mountinfo: str | None) -> dict[str, str]:
    """Names as in /proc/self/cgroup (empty for cgroup2) -> mount point."""
    if mountinfo is None:
        with open("/proc/self/mountinfo", "rb") as file:
            mountinfo = os.fsdecode(file.read())
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        # proc_pid_mountinfo(5): optional fields end with a lone dash, then type source options.
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(rest) < 3:
            continue
        where = _unescape(fields[4])
        if rest[0] == "cgroup2":
            found.setdefault("", where)
        elif rest[0] == "cgroup":
            found.setdefault(_controllers_of(rest[2]), where)
    return found


_MOUNT_FLAGS = frozenset(
    ("rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "none", "favordynmods")
)


def _controllers_of(options: str) -> str:
    words = [word for word in options.split(",") if word not in _MOUNT_FLAGS]
    return ",".join(word for word in words if not word.startswith("release_agent="))


def _unescape(path: str) -> str:
    for escape, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escape, char)
    return path


def counts_swap() -> bool:
    """Whether this host can limit swap: v1 only with `swapaccount=1`, v2 wherever there is swap."""
    host = hierarchies()
    memory = host.with_controller("memory")
    if memory is not None:
        return os.access(f"{memory.directory}/memory.memsw.limit_in_bytes", os.F_OK)
    return os.access("/proc/swaps", os.F_OK)
