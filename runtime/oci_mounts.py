"""Mounts of an OCI configuration, with all the options that the specification has.

`mounts` does the same for what `scow run` asks for, which is less; the words for options are its.
Sources are opened here, on the host; destinations are the child's to resolve, inside the root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import msgspec

from scow.native import plan as p
from scow.native import sys as kernel
from scow.native.errors import InvalidArgument, ScowError, Unsupported
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.native.idmap import IdMap, open_user_namespace
from scow.runtime.mounts import (
    PROPAGATION,
    Options,
    cgroup_mounts,
    check_destination,
    open_bind_source,
)
from scow.runtime.spec import IdMapping, Spec, SpecMount

# Flags of the superblock: fsconfig(2) knows them by these names, a bind mount has none of its own.
_SUPERBLOCK = frozenset({"sync", "dirsync", "lazytime", "mand", "iversion"})
_OURS = frozenset({
    "tmpcopyup", "idmap", "ridmap", "remount", "nolazytime", "noiversion", "nomand", "nosync",
})  # fmt: skip
# What takes one way to keep access times back leaves what mount(2) does by itself since 2.6.30.
_TIMES = {"atime": "noatime", "nostrictatime": "strictatime", "norelatime": ""}
# The kernel labels what it makes up itself, by the policy.
_UNLABELLED = frozenset({"proc", "sysfs", "mqueue", "cgroup", "cgroup2"})


class MountCompiler:
    """Turns the mounts of one configuration into operations, in their order."""

    def __init__(
        self,
        spec: Spec,
        root_fd: int,
        hold: Callable[[OwnedFd], int],
        *,
        bundle: str,
        cgroup: str,
    ) -> None:
        self._spec = spec
        self._cgroup = cgroup
        self._root = Root(root_fd)
        self._hold = hold
        self._bundle = bundle
        kinds = {item.type: item for item in spec.linux.namespaces}
        self._has_user = "user" in kinds
        self._has_network = "network" in kinds and not kinds["network"].path
        self._made: set[str] = set()

    def operations(self) -> list[p.Operation]:
        """The operations of all mounts."""
        found: list[p.Operation] = []
        for index, mount in enumerate(self._spec.mounts):
            if not mount.destination.startswith("/"):
                # Relative is deprecated, and means: from the root.
                mount = _replace(mount, destination=f"/{mount.destination}")
            found += self._mount(index, mount)
            self._made.add(os.path.normpath(mount.destination))
        return found

    def _mount(self, index: int, mount: SpecMount) -> list[p.Operation]:
        check_destination(index, mount)
        words = frozenset(mount.options)
        options = Options(_replace(mount, options=_known_words(mount.options)))
        if os.path.normpath(mount.destination) == "/dev" and not options.bind:
            # Read-only once its devices and the console are made: `read_only_dev`.
            options.set &= ~kernel.MOUNT_ATTR_RDONLY
        return self._made_as(index, mount, options, words) + _propagation(mount, options)

    def _made_as(
        self, index: int, mount: SpecMount, options: Options, words: frozenset[str]
    ) -> list[p.Operation]:
        if "remount" in words:
            return _remount(mount, options)
        if options.bind:
            return [self._bind(index, mount, options, words)]
        if "idmap" in words or "ridmap" in words or mount.uid_mappings:
            raise InvalidArgument(f"id-mapped mount on '{mount.destination}' is not a bind mount")
        if mount.type == "cgroup":
            if not any(item.type == "cgroup" for item in self._spec.linux.namespaces):
                return self._own_cgroups(mount, options)
            return cgroup_mounts(mount.destination, options.set, "")
        if mount.type == "sysfs" and self._has_user and not self._has_network:
            # sysfs shows the network namespace, which is not of our user namespace: EPERM.
            return [self._bind(index, _replace(mount, source="/sys", type="bind"), options, words)]
        if "tmpcopyup" in words and not self._is_covered(mount.destination):
            return [self._copy_up(mount, options)]
        return self._filesystem(mount, options)

    # --- new file systems ---------------------------------------------------------------------

    def _filesystem(self, mount: SpecMount, options: Options) -> list[p.Operation]:
        if not mount.type:
            raise InvalidArgument(f"mount on '{mount.destination}' has no type")
        found: list[p.Operation] = [
            p.MountFilesystem(
                mount.type,
                mount.destination,
                flags=options.set,
                options=tuple(self._data(mount, options)),
                source=mount.source or mount.type,
            )
        ]
        label = self._spec.linux.mount_label
        if label and mount.type == "mqueue":
            # Its superblock is the IPC namespace's and takes no context: the inode is labelled.
            found.append(p.LabelMount(mount.destination, label, why="linux.mountLabel"))
        return found

    def _data(self, mount: SpecMount, options: Options) -> list[tuple[str, str | None]]:
        data = list(options.data)
        label = self._spec.linux.mount_label
        if label and mount.type not in _UNLABELLED:
            data.append(("context", label))
        has_mode = any(key == "mode" for key, _ in data)
        if mount.type == "tmpfs" and not has_mode and not self._is_covered(mount.destination):
            mode = self._mode_of(mount.destination)
            if mode is not None:
                data.append(("mode", f"{mode:o}"))
        if mount.type == "devpts" and self._has_user:
            data = [item for item in data if item[0] != "gid" or self._maps_gid(item[1])]
        return data

    def _mode_of(self, destination: str) -> int | None:
        """The mode that a tmpfs inherits from the directory it covers; None: it is not there."""
        try:
            return stat.S_IMODE(self._root.stat(destination).st_mode)
        except OSError:
            return None

    def _is_covered(self, destination: str) -> bool:
        """Whether an earlier mount hides what the image has there."""
        path = os.path.normpath(destination)
        return any(path == made or path.startswith(f"{made}/") for made in self._made)

    def _maps_gid(self, text: str | None) -> bool:
        gid = int(text) if text and text.isdigit() else -1
        maps = self._spec.linux.gid_mappings
        return any(m.container_id <= gid < m.container_id + m.size for m in maps)

    def _own_cgroups(self, mount: SpecMount, options: Options) -> list[p.Operation]:
        """Without a cgroup namespace: the container's own cgroup of each hierarchy, and no other."""
        from scow.cgroups.detect import Mode, hierarchies

        host, path = hierarchies(), self._cgroup
        if host.mode is Mode.V2:
            return [self._bind_cgroup(f"{host.unified}/{path}", mount.destination, options)]
        found: list[p.Operation] = [
            p.MountFilesystem(
                "tmpfs",
                mount.destination,
                flags=options.set & ~kernel.MOUNT_ATTR_RDONLY,
                options=(("mode", "755"), ("size", "64k")),
                source="tmpfs",
            )
        ]
        for hierarchy in host.v1:
            name = os.path.basename(hierarchy.directory)
            place = f"{mount.destination}/{name}"
            found.append(self._bind_cgroup(f"{hierarchy.directory}/{path}", place, options))
            if len(hierarchy.controllers) > 1:
                found += [
                    p.MakeSymlink(name, f"{mount.destination}/{controller}")
                    for controller in hierarchy.controllers
                ]
        if options.set & kernel.MOUNT_ATTR_RDONLY:
            found.append(p.SetMountAttributes(mount.destination, kernel.MOUNT_ATTR_RDONLY))
        return found

    def _bind_cgroup(self, source: str, place: str, options: Options) -> p.Operation:
        tree = self._hold(open_bind_source(source, recursive=False))
        return p.MountTree(tree, place, attr_set=options.set, propagation=kernel.MS_PRIVATE)

    def _copy_up(self, mount: SpecMount, options: Options) -> p.Operation:
        if mount.type != "tmpfs":
            raise InvalidArgument(f"tmpcopyup on '{mount.destination}', which is no tmpfs")
        with OwnedFd(kernel.fsopen("tmpfs")) as context:
            kernel.fsconfig_string(context.fileno(), "source", "tmpfs")
            for key, value in self._data(mount, options):
                if value is None:
                    kernel.fsconfig_flag(context.fileno(), key)
                else:
                    kernel.fsconfig_string(context.fileno(), key, value)
            kernel.fsconfig_create(context.fileno())
            tree = self._hold(OwnedFd(kernel.fsmount(context.fileno(), 0)))
        try:
            with self._root.open(mount.destination, os.O_RDONLY | os.O_DIRECTORY) as source:
                from scow.runtime.copyup import copy_tree

                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                with OwnedFd(os.open(".", flags, dir_fd=tree)) as target:
                    copy_tree(source.fileno(), target.fileno())
        except FileNotFoundError:
            pass
        return p.MountTree(tree, mount.destination, attr_set=options.set)

    # --- binds --------------------------------------------------------------------------------

    def _bind(
        self, index: int, mount: SpecMount, options: Options, words: frozenset[str]
    ) -> p.Operation:
        data = [key for key, _ in options.data if key not in _SUPERBLOCK]
        if data:
            raise InvalidArgument(
                f"invalid option '{data[0]}' of the bind mount on '{mount.destination}': "
                f"the kernel would drop it (mounts[{index}])"
            )
        if not mount.source:
            raise InvalidArgument(f"bind mount on '{mount.destination}' has no source")
        fd = self._hold(
            open_bind_source(os.path.join(self._bundle, mount.source), recursive=options.recursive)
        )
        self._map_ids(fd, mount, words)
        if "shared" not in self._spec.linux.rootfs_propagation:
            # A clone of a shared mount is its peer: what is mounted below would show on the host.
            everywhere = kernel.AT_EMPTY_PATH | kernel.AT_RECURSIVE
            kernel.mount_setattr(fd, "", everywhere, 0, 0, kernel.MS_SLAVE)
        if options.tree_set or options.tree_clear:
            kernel.mount_setattr(
                fd,
                "",
                kernel.AT_EMPTY_PATH | kernel.AT_RECURSIVE,
                options.tree_set,
                options.tree_clear,
            )
        propagation = options.propagation or kernel.MS_PRIVATE
        return p.MountTree(
            fd,
            mount.destination,
            attr_set=options.set,
            attr_clr=options.clear,
            propagation=propagation,
            propagate_below=options.recursive_propagation or not options.propagation,
            is_dir=stat.S_ISDIR(os.fstat(fd).st_mode),
        )

    def _map_ids(self, fd: int, mount: SpecMount, words: frozenset[str]) -> None:
        uids, gids = mount.uid_mappings, mount.gid_mappings
        wanted = "idmap" in words or "ridmap" in words
        if bool(uids) != bool(gids):
            raise InvalidArgument(
                f"mount on '{mount.destination}': uidMappings and gidMappings come together"
            )
        if not wanted and not uids:
            return
        if not uids:
            uids, gids = self._spec.linux.uid_mappings, self._spec.linux.gid_mappings
        if not uids:
            raise InvalidArgument(
                f"id-mapped mount on '{mount.destination}' without mappings, "
                "and the container has no user namespace"
            )
        flags = kernel.AT_EMPTY_PATH | (kernel.AT_RECURSIVE if "ridmap" in words else 0)
        with user_namespace(uids, gids) as namespace:
            try:
                kernel.mount_setattr(
                    fd, "", flags, kernel.MOUNT_ATTR_IDMAP, 0, 0, namespace.fileno()
                )
            except OSError as error:
                raise ScowError(
                    f"cannot map the ids of the mount on '{mount.destination}': {error.strerror}"
                ) from error


def _known_words(options: tuple[str, ...]) -> tuple[str, ...]:
    """The options that `Options` or the file system is to see."""
    found: list[str] = []
    for word in options:
        prefix = "r" if word.startswith("r") and word[1:] in _TIMES else ""
        undone = _TIMES.get(word.removeprefix(prefix)) if word not in _OURS else None
        if word in _OURS or undone == "":
            continue
        if undone is not None:
            others = {"noatime", "strictatime"} - {undone}
            if others.isdisjoint(found):
                found.append(f"{prefix}relatime")
            continue
        found.append(word)
    return tuple(found)


def _remount(mount: SpecMount, options: Options) -> list[p.Operation]:
    data = [key for key, _ in options.data]
    if data:
        raise Unsupported(f"option '{data[0]}' of the remount of '{mount.destination}'")
    found: list[p.Operation] = [p.SetMountAttributes(mount.destination, options.set, options.clear)]
    if options.tree_set or options.tree_clear:
        found.append(
            p.SetMountAttributes(
                mount.destination, options.tree_set, options.tree_clear, recursive=True
            )
        )
    return found


def _propagation(mount: SpecMount, options: Options) -> list[p.Operation]:
    """In their order, each on what the one before left; the last one of a bind is made with it."""
    asked = [PROPAGATION[word] for word in mount.options if word in PROPAGATION]
    if options.bind and "remount" not in mount.options and len(asked) < 2:
        return []
    return [p.SetPropagation(mount.destination, flags, recursive) for flags, recursive in asked]


def read_only_dev(spec: Spec) -> list[p.Operation]:
    """What makes /dev read-only, where a file system of its own is to be that."""
    words = [
        word
        for mount in spec.mounts
        if os.path.normpath(mount.destination) == "/dev"
        for word in mount.options
    ]
    options = Options(SpecMount("/dev", options=tuple(words)))
    if options.bind or not options.set & kernel.MOUNT_ATTR_RDONLY:
        return []
    return [p.SetMountAttributes("/dev", kernel.MOUNT_ATTR_RDONLY, why="its devices are made")]


def _replace(mount: SpecMount, **changes: object) -> SpecMount:
    return msgspec.structs.replace(mount, **changes)


def map_text(mappings: tuple[IdMapping, ...]) -> str:
    """The lines of uid_map or gid_map."""
    return "".join(f"{m.container_id} {m.host_id} {m.size}\n" for m in mappings)


def user_namespace(uids: tuple[IdMapping, ...], gids: tuple[IdMapping, ...]) -> OwnedFd:
    """A user namespace with these maps, kept by its descriptor alone."""
    ids = IdMap(
        tuple((m.container_id, m.host_id, m.size) for m in uids),
        tuple((m.container_id, m.host_id, m.size) for m in gids),
    )
    return open_user_namespace(ids)
