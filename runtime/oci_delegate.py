"""A cgroup that the container may divide: on cgroup v2, it belongs to the container's own root.

Only where all of it is the container's (runtime-spec, config-linux.md "Cgroup ownership"): cgroup v2, a
cgroup namespace of its own, and a cgroup mount that it may write to. cgroup v1 is not made for that.
"""

from __future__ import annotations

import os

from scow.cgroups import detect
from scow.native.fd import OwnedFd
from scow.runtime.spec import IdMapping, Spec

# Which files to hand on, as the kernel says it (cgroup-v2.rst "Model of Delegation"), and of before 4.15.
_NAMES = "/sys/kernel/cgroup/delegate"
_USUAL = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")


def delegate(spec: Spec, path: str) -> None:
    """Give the cgroup at `path` to the container's root, where that is to be so."""
    linux = spec.linux
    uid, gid = _root(linux.uid_mappings), _root(linux.gid_mappings)
    is_own = any(item.type == "cgroup" and not item.path for item in linux.namespaces)
    mounts = [mount for mount in spec.mounts if mount.type in ("cgroup", "cgroup2")]
    is_writable = any("ro" not in mount.options and "rro" not in mount.options for mount in mounts)
    host = detect.hierarchies()
    if (
        host.mode is not detect.Mode.V2
        or uid is None
        or gid is None
        or not (is_own and is_writable)
    ):
        return
    try:
        with open(_NAMES, encoding="ascii") as file:
            names = file.read().split()
    except FileNotFoundError:
        names = list(_USUAL)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with OwnedFd(os.open(f"{host.unified}/{path}", flags)) as fd:
        os.fchown(fd.fileno(), uid, gid)
        for name in names:
            try:
                os.chown(name, uid, gid, dir_fd=fd.fileno(), follow_symlinks=False)
            except FileNotFoundError:
                continue  # of a controller that is not enabled here


def _root(mappings: tuple[IdMapping, ...]) -> int | None:
    return next((item.host_id for item in mappings if item.container_id == 0), None)
