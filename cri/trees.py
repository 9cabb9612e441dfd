"""Sources of mounts that need more than a path: images as volumes, and mapped ids.

Each is opened as a detached tree (open_tree(2), fsmount(2)) before the launch; the child attaches it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from scow.cri.options import Mount
from scow.image.overlay import mount_overlay
from scow.native import sys as kernel
from scow.native.errors import InvalidArgument, ScowError, Unsupported
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.native.idmap import IdMap, open_user_namespace
from scow.runtime.mounts import open_bind_source


class Trees:
    """The trees of one launch. Making a user namespace forks us: one for each map, not for each mount."""

    def __init__(self, hold: Callable[[OwnedFd], int], ids: IdMap | None) -> None:
        """`hold` keeps descriptors until the launch; `ids` are those of the container."""
        self._hold = hold
        self._ids = ids
        self._namespaces: dict[IdMap, int] = {}

    def open_mount(self, mount: Mount, image_layers: Callable[[str], list[str]]) -> int:
        """Open the source of a mount of kind "image", or of a bind mount with id maps."""
        if mount.kind == "image":
            return self._open_image(mount, image_layers(mount.source))
        tree = self._hold(open_bind_source(mount.source, recursive=mount.recursive))
        return self._map_ids(tree, IdMap(mount.uid_map, mount.gid_map), mount.target)

    def open_own(self, path: str, target: str) -> int:
        """Open a directory of scow's own, as the container sees it."""
        tree = self._hold(open_bind_source(path, recursive=False))
        return tree if self._ids is None else self._map_ids(tree, self._ids, target)

    def open_device(self, path: str) -> int:
        """Open a device node of the host to be bound: no user namespace may make one."""
        return self._hold(open_bind_source(path, recursive=False))

    def _open_image(self, mount: Mount, layers: list[str]) -> int:
        """Stack the layers, read-only; one layer alone is its directory (overlayfs wants two)."""
        if len(layers) == 1:
            whole = self.open_own(layers[0], mount.target)
        else:
            whole = self._hold(mount_overlay(layers, None, None, idmap=self._ids))
        return self._hold(_open_sub_path(mount, Root(whole))) if mount.sub_path else whole

    def _map_ids(self, tree: int, ids: IdMap, target: str) -> int:
        if ids not in self._namespaces:
            self._namespaces[ids] = self._hold(open_user_namespace(ids))
        try:
            kernel.mount_setattr(
                tree,
                "",
                kernel.AT_EMPTY_PATH | kernel.AT_RECURSIVE,
                kernel.MOUNT_ATTR_IDMAP,
                userns_fd=self._namespaces[ids],
            )
        except OSError as error:
            raise Unsupported(
                f"cannot map the ids of the mount on '{target}': {error.strerror}",
                hint="the file system of its source may not support it",
            ) from error
        return tree


def _open_sub_path(mount: Mount, root: Root) -> OwnedFd:
    what = f"sub path '{mount.sub_path[:256]}' of the image on '{mount.target}'"
    if any(part == ".." for part in mount.sub_path.split("/")):
        raise InvalidArgument(f"ImageVolumeMountFailed: {what} has a '..'")
    try:
        inside = root.open(mount.sub_path, os.O_PATH)
    except OSError as error:
        raise InvalidArgument(
            f"ImageVolumeMountFailed: {what}: {(error.strerror or '').lower()}"
        ) from error
    with inside:
        flags = kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC
        try:
            return OwnedFd(kernel.open_tree(inside.fileno(), "", flags))
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise Unsupported(
                    f"cannot mount {what}: the kernel clones no part of a detached mount",
                    hint="it does from Linux 6.15 on",
                ) from error
            raise ScowError(f"ImageVolumeMountFailed: {what}: {error.strerror}") from error
