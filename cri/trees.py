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


def open_tree_of(
    mount: Mount, image_layers: Callable[[str], list[str]], ids: IdMap | None
) -> OwnedFd:
    """Open the source of a mount of kind "image", or of a bind mount with id maps.

    `ids` are those of the container, by which an image's files are seen.
    """
    if mount.kind == "image":
        return _open_image(mount, image_layers(mount.source), ids)
    tree = open_bind_source(mount.source, recursive=mount.recursive)
    return _map_ids(tree, IdMap(mount.uid_map, mount.gid_map), mount.target)


def open_mapped(path: str, target: str, ids: IdMap) -> OwnedFd:
    """Open a directory of scow's own as a container with these ids sees it."""
    return _map_ids(open_bind_source(path, recursive=False), ids, target)


def open_device(path: str) -> OwnedFd:
    """Open a device node of the host to be bound: no user namespace may make one."""
    return open_bind_source(path, recursive=False)


def _map_ids(tree: OwnedFd, ids: IdMap, target: str) -> OwnedFd:
    try:
        _set_id_map(tree, ids, target)
    except BaseException:
        tree.close()
        raise
    return tree


def _set_id_map(tree: OwnedFd, ids: IdMap, target: str) -> None:
    with open_user_namespace(ids) as namespace:
        try:
            kernel.mount_setattr(
                tree.fileno(),
                "",
                kernel.AT_EMPTY_PATH | kernel.AT_RECURSIVE,
                kernel.MOUNT_ATTR_IDMAP,
                0,
                0,
                namespace.fileno(),
            )
        except OSError as error:
            raise Unsupported(
                f"cannot map the ids of the mount on '{target}': {error.strerror}",
                hint="the file system of its source may not support it",
            ) from error


def _open_image(mount: Mount, layers: list[str], ids: IdMap | None) -> OwnedFd:
    """Stack the layers, read-only; one layer alone is its directory (overlayfs wants two)."""
    if len(layers) == 1:
        whole = open_bind_source(layers[0], recursive=False)
        if ids is not None:
            whole = _map_ids(whole, ids, mount.target)
    else:
        whole = mount_overlay(layers, None, None, idmap=ids)
    if not mount.sub_path:
        return whole
    with whole:
        return _open_sub_path(mount, Root(whole.fileno()))


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
