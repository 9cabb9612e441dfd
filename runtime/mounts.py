"""OCI mounts and their options, turned into operations of the plan.

Policy only: which filesystem, which flags, in which order. Sources of bind mounts are opened here,
in the host's mount namespace, as detached trees (open_tree(2), OPEN_TREE_CLONE), so that the child
never resolves a host path; destinations are resolved by the child, inside the root only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping

from scow.native import sys as kernel
from scow.native.errors import InvalidArgument, NotFound, PermissionDenied, ScowError
from scow.native.fd import OwnedFd
from scow.native.plan import (
    MakeSymlink,
    MountFilesystem,
    MountTree,
    Operation,
    SetMountAttributes,
)
from scow.runtime.spec import SpecMount

# option -> (bits to set, bits to clear): mount_setattr(2).
_ATTRIBUTES: dict[str, tuple[int, int]] = {
    "ro": (kernel.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, kernel.MOUNT_ATTR_RDONLY),
    "nosuid": (kernel.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, kernel.MOUNT_ATTR_NOSUID),
    "nodev": (kernel.MOUNT_ATTR_NODEV, 0),
    "dev": (0, kernel.MOUNT_ATTR_NODEV),
    "noexec": (kernel.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, kernel.MOUNT_ATTR_NOEXEC),
    "nodiratime": (kernel.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, kernel.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (kernel.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, kernel.MOUNT_ATTR_NOSYMFOLLOW),
    # The atime bits are one field: whoever sets one must clear the field first.
    "relatime": (kernel.MOUNT_ATTR_RELATIME, kernel.MOUNT_ATTR__ATIME),
    "noatime": (kernel.MOUNT_ATTR_NOATIME, kernel.MOUNT_ATTR__ATIME),
    "strictatime": (kernel.MOUNT_ATTR_STRICTATIME, kernel.MOUNT_ATTR__ATIME),
}
PROPAGATION: dict[str, tuple[int, bool]] = {
    "private": (kernel.MS_PRIVATE, False),
    "rprivate": (kernel.MS_PRIVATE, True),
    "slave": (kernel.MS_SLAVE, False),
    "rslave": (kernel.MS_SLAVE, True),
    "shared": (kernel.MS_SHARED, False),
    "rshared": (kernel.MS_SHARED, True),
    "unbindable": (kernel.MS_UNBINDABLE, False),
    "runbindable": (kernel.MS_UNBINDABLE, True),
}
_IGNORED = frozenset({"defaults", "async", "norelatime", "silent", "loud", "nofail"})

# What may lie on /proc: files that lxcfs and its like replace, by exact name (CVE-2019-19921).
_PROC_FILES = frozenset({
    "/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/net/dev",
    "/proc/slabinfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
    "/proc/sys/kernel/ns_last_pid",
})  # fmt: skip

# Filesystem types that the new mount API knows under a name the kernel offers in namespaces.
_FILESYSTEMS = frozenset({"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"})


class Options:
    """The options of one mount, sorted into what each system call wants."""

    __slots__ = (
        "bind", "clear", "data", "propagation", "recursive",
        "recursive_propagation", "set", "tree_clear", "tree_set",
    )  # fmt: skip

    def __init__(self, mount: SpecMount) -> None:
        self.set = self.clear = self.propagation = 0
        self.bind = mount.type == "bind"
        self.recursive = self.recursive_propagation = False
        self.tree_set = self.tree_clear = 0  # what the r-forms (rro, ...) ask for
        self.data: list[tuple[str, str | None]] = []
        for option in mount.options:
            self._take(option)

    def _take(self, option: str) -> None:
        if option in ("bind", "rbind"):
            self.bind = True
            self.recursive = self.recursive or option == "rbind"
        elif option in _ATTRIBUTES:
            self._attribute(option)
        elif option[:1] == "r" and option[1:] in _ATTRIBUTES:
            self._attribute(option[1:])
            to_set, to_clear = _ATTRIBUTES[option[1:]]
            self.tree_set = (self.tree_set & ~to_clear) | to_set
            self.tree_clear = (self.tree_clear & ~to_set) | to_clear
        elif option in PROPAGATION:
            self.propagation, recursive = PROPAGATION[option]
            self.recursive_propagation = self.recursive_propagation or recursive
        elif option not in _IGNORED:
            key, equals, value = option.partition("=")
            self.data.append((key, value if equals else None))

    def _attribute(self, option: str) -> None:
        to_set, to_clear = _ATTRIBUTES[option]
        self.set = (self.set & ~to_clear) | to_set
        self.clear = (self.clear & ~to_set) | to_clear


def mount_operations(
    mounts: tuple[SpecMount, ...],
    hold: Callable[[OwnedFd], int],
    reasons: dict[str, str],
    relative_to: str = "/",
    trees: Mapping[str, int] | None = None,
) -> list[Operation]:
    """Turn OCI mounts into operations, in the order given.

    `hold` takes ownership of every descriptor opened here and lends its number; `reasons` gives
    words for --explain by destination; relative bind sources start at `relative_to` (the bundle).
    `trees` are sources that are open already, by destination.
    """
    found: list[Operation] = []
    for index, mount in enumerate(mounts):
        check_destination(index, mount)
        options = Options(mount)
        why = reasons.get(mount.destination, "")
        if options.bind:
            fd = (trees or {}).get(mount.destination)
            if fd is None:
                source = os.path.join(relative_to, mount.source)
                fd = hold(open_bind_source(source, recursive=options.recursive))
            found.append(_bind(index, mount, options, fd, why))
        elif mount.type == "cgroup":
            found += cgroup_mounts(mount.destination, options.set, why)
        elif mount.type in _FILESYSTEMS:
            data = tuple(options.data)
            attributes = options.set
            found.append(
                MountFilesystem(
                    mount.type,
                    mount.destination,
                    flags=attributes,
                    options=data,
                    source=mount.source or mount.type,
                    why=why,
                )
            )
        else:
            raise InvalidArgument(
                f"cannot mount '{mount.type}' on '{mount.destination}': mounts[{index}] has a "
                "filesystem type that scow does not mount"
            )
    return found


def cgroup_mounts(dest: str, attributes: int, why: str) -> list[Operation]:
    """Mount the cgroup file systems as the host has them.

    Inside a cgroup namespace each shows the container's own cgroup as its root
    (cgroup_namespaces(7)). v1: a tmpfs with one directory for each hierarchy, and links for the
    single names of controllers that are mounted together, as everywhere.
    """
    from scow.cgroups.detect import Mode, hierarchies

    host = hierarchies()
    if host.mode is Mode.V2:
        return [MountFilesystem("cgroup2", dest, flags=attributes, source="cgroup", why=why)]
    writable = attributes & ~kernel.MOUNT_ATTR_RDONLY
    size = (("mode", "755"), ("size", "64k"))
    found: list[Operation] = [
        MountFilesystem("tmpfs", dest, flags=writable, options=size, source="tmpfs", why=why)
    ]
    for hierarchy in host.v1:
        name = os.path.basename(hierarchy.directory)
        data: tuple[tuple[str, str | None], ...]
        if hierarchy.controllers:
            data = tuple((controller, None) for controller in hierarchy.controllers)
        else:
            data = (("none", None), ("name", hierarchy.name))
        place = f"{dest}/{name}"
        found.append(
            MountFilesystem("cgroup", place, flags=attributes, options=data, source="cgroup")
        )
        if len(hierarchy.controllers) > 1:
            found += [MakeSymlink(name, f"{dest}/{alias}") for alias in hierarchy.controllers]
    if host.unified:
        place = f"{dest}/unified"
        found.append(MountFilesystem("cgroup2", place, flags=attributes, source="cgroup"))
    if attributes & kernel.MOUNT_ATTR_RDONLY:
        read_only = kernel.MOUNT_ATTR_RDONLY
        found.append(
            SetMountAttributes(dest, read_only, why="every directory for a hierarchy is made")
        )
    return found


def check_destination(index: int, mount: SpecMount) -> None:
    path = os.path.normpath(mount.destination)
    if not mount.destination.startswith("/") or path == "/":
        raise InvalidArgument(
            f"invalid mount destination '{mount.destination}': mounts[{index}] needs an absolute "
            "path other than '/'"
        )
    if path == "/proc" and mount.type != "proc":
        raise InvalidArgument(f"cannot mount on '/proc': mounts[{index}] would replace procfs")
    if path.startswith("/proc/") and path not in _PROC_FILES:
        raise InvalidArgument(
            f"cannot mount on '{path}': mounts[{index}] lies inside procfs (CVE-2019-19921)"
        )


def _bind(
    index: int,
    mount: SpecMount,
    options: Options,
    fd: int,
    why: str,
) -> Operation:
    if options.data:
        name = options.data[0][0]
        raise InvalidArgument(
            f"invalid option '{name}' of the bind mount on '{mount.destination}': "
            f"the kernel would drop it (mounts[{index}])"
        )
    return MountTree(
        fd,
        mount.destination,
        attr_set=options.set,
        attr_clr=options.clear,
        recursive=bool(options.tree_set or options.tree_clear),
        propagation=options.propagation or kernel.MS_PRIVATE,
        propagate_below=options.recursive_propagation,
        is_dir=stat.S_ISDIR(os.fstat(fd).st_mode),
        why=why,
    )


def open_bind_source(path: str, *, recursive: bool) -> OwnedFd:
    """Clone the mount tree at the host path `path`, detached; errors name the path."""
    flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC
    if recursive:
        flags |= kernel.AT_RECURSIVE
    try:
        return OwnedFd(kernel.open_tree(kernel.AT_FDCWD, path, flags))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound(
                f"cannot bind mount '{path}': it does not exist on the host",
                hint="--mount never creates its source; -v makes a missing directory",
            ) from error
        if error.errno in (errno.EPERM, errno.EACCES):
            raise PermissionDenied(f"cannot bind mount '{path}': {error.strerror}") from error
        raise ScowError(f"cannot bind mount '{path}': {error.strerror}") from error
