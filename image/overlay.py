"""Overlay mounts as detached trees: a descriptor, attached nowhere on the host.

What belongs here: lower directories and perhaps an upper one -> a mount descriptor. What must not:
where the directories come from (layers.py), where the mount goes (the child attaches it).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from scow.native import sys
from scow.native.errors import InvalidArgument, ResourceExhausted, SetupError, Unsupported
from scow.native.fd import OwnedFd
from scow.native.idmap import IdMap, open_mapped_tree, open_user_namespace

# fs/overlayfs/params.c: OVL_MAX_STACK.
MAX_LOWERS = 500
# fsconfig(2) copies at most 256 bytes of a value, NUL included.
_MAX_VALUE = 255
# mount(2) takes one page of options.
_MAX_OPTIONS = 4095
_OPTIONS_LOWERS = 200  # of /proc/self/fd/NNNN: on that page
# Some distributions turn these on: a renamed directory or a changed mode would then be a mere note in
# the upper directory, which no layer can tell (`commit`), instead of the files themselves.
_WHOLE_UPPER = [("redirect_dir", "off"), ("metacopy", "off")]


def mount_overlay(
    lowers: Sequence[str],
    upper: str | None = None,
    work: str | None = None,
    *,
    attributes: int = 0,
    idmap: IdMap | None = None,
) -> OwnedFd:
    """A detached overlay of `lowers`, top first; writable with `upper` and `work` (same file system).

    Without `upper` it is read-only and needs two lower directories, as the kernel does. `attributes`
    are MOUNT_ATTR_*. The mount lives as long as the descriptor, or as where the child attaches it.

    With `idmap` every directory is seen through it, `upper` too: what lies on the disk as 0 is the
    root of a user namespace with these maps, and what that root writes lies on the disk as 0.
    So no image is copied or chowned, the same layer serves any number of maps at once, and a
    container may get another map at its next start. Who is not in the map, as the host's root, can
    make nothing in the mount (EOVERFLOW): use `sys.set_fs_ids`, or do it in the namespace.
    """
    if not lowers or (len(lowers) < 2 and upper is None):
        raise InvalidArgument("an overlay needs a lower and an upper directory, or two lower ones")
    if (upper is None) != (work is None):
        raise InvalidArgument("an overlay's upper and work directories come together")
    if len(lowers) > MAX_LOWERS:
        raise ResourceExhausted(
            f"cannot mount an overlay of {len(lowers)} layers: the kernel takes {MAX_LOWERS}"
        )
    if idmap is not None:
        return _mount_mapped(lowers, upper, work, attributes, idmap)
    return _mount(lowers, upper, work, attributes)


def _mount(lowers: Sequence[str], upper: str | None, work: str | None, attributes: int) -> OwnedFd:
    with ExitStack() as stack:
        options = [("lowerdir+", _short(path, stack)) for path in lowers]
        if upper is not None and work is not None:
            options += [("upperdir", _short(upper, stack)), ("workdir", _short(work, stack))]
            options += _WHOLE_UPPER
        try:
            return _mount_by_context(options, attributes)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise _setup_error(error, lowers) from error
        # Before Linux 6.8 there is no `lowerdir+`; before 6.5 overlay takes any option of fsconfig(2)
        # and complains when the mount is created. What is wrong in itself fails here again.
        try:
            layers = ":".join(_fd_name(path, stack) for path in lowers)
            if len(layers) <= _MAX_VALUE:
                joined = [("lowerdir", layers), *options[len(lowers) :]]
                return _mount_by_context(joined, attributes)
            return _mount_by_options(lowers, upper, work, attributes)
        except OSError as error:
            raise _setup_error(error, lowers) from error


def _mount_mapped(
    lowers: Sequence[str], upper: str | None, work: str | None, attributes: int, idmap: IdMap
) -> OwnedFd:
    """Overlay on id-mapped clones of the directories, which live as long as the overlay does."""
    paths = list(dict.fromkeys(lowers))
    above = ""
    if upper is not None and work is not None:
        above = os.path.commonpath((upper, work))  # overlayfs wants the two on one mount
        paths.append(above)
    with ExitStack() as stack:
        namespace = stack.enter_context(open_user_namespace(idmap))
        try:
            trees = {path: stack.enter_context(open_mapped_tree(path, namespace)) for path in paths}
        except OSError as error:
            raise _setup_error(error, lowers) from error

        def shown(path: str, tree: str) -> str:
            return f"/proc/self/fd/{trees[tree].fileno()}{path.removeprefix(tree)}"

        def mount() -> OwnedFd:
            # overlayfs does its own work on the disk as who mounts it, who must be in the map, too.
            sys.set_fs_ids(idmap.host_uid, idmap.host_gid)
            found = [shown(path, path) for path in lowers]
            own = [None if path is None else shown(path, above) for path in (upper, work)]
            try:
                return _mount(found, own[0], own[1], attributes)
            except SetupError as error:
                if error.errno != errno.EINVAL:
                    raise
            # Before Linux 6.15 it takes only what is attached in the mount namespace of who mounts.
            sys.unshare(sys.CLONE_NEWNS)
            sys.mount(None, "/", None, sys.MS_REC | sys.MS_PRIVATE)
            for path, tree in trees.items():
                sys.move_mount(tree.fileno(), "", sys.AT_FDCWD, path, sys.MOVE_MOUNT_F_EMPTY_PATH)
            return _mount(lowers, upper, work, attributes)

        try:
            return _in_a_thread(mount)
        except SetupError as error:
            if error.errno != errno.EINVAL:
                raise
            raise Unsupported(
                f"{error} on id-mapped directories", hint="overlayfs takes them from Linux 5.19 on"
            ) from error


def _in_a_thread(function: Callable[[], OwnedFd]) -> OwnedFd:
    """Call `function` in a thread that ends with it, and with it the ids and the namespace it took."""
    import threading

    done: list[OwnedFd | BaseException] = []

    def work() -> None:
        try:
            done.append(function())
        except BaseException as error:  # raised again below
            done.append(error)

    thread = threading.Thread(target=work, name="overlay")
    thread.start()
    thread.join()
    (result,) = done
    if isinstance(result, BaseException):
        raise result
    return result


def _short(path: str, stack: ExitStack) -> str:
    """`path`, or a name of it that fits into an option: a descriptor's, while `stack` lives."""
    if len(os.fsencode(path)) <= _MAX_VALUE:
        return path
    return _fd_name(path, stack)


def _fd_name(path: str, stack: ExitStack) -> str:
    fd = stack.enter_context(OwnedFd(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
    return f"/proc/self/fd/{fd.fileno()}"


def _mount_by_context(options: list[tuple[str, str]], attributes: int) -> OwnedFd:
    with OwnedFd(sys.fsopen("overlay")) as context:
        try:
            sys.fsconfig_string(context.fileno(), "source", "overlay")
            for key, value in options:
                sys.fsconfig_string(context.fileno(), key, value)
            sys.fsconfig_create(context.fileno())
            return OwnedFd(sys.fsmount(context.fileno(), attributes))
        except OSError as error:
            messages = sys.fs_messages(context.fileno())
            if messages:
                error.strerror = f"{error.strerror} ({messages[-1].removeprefix('e ')})"
            raise


def _mount_by_options(
    lowers: Sequence[str], upper: str | None, work: str | None, attributes: int
) -> OwnedFd:
    """mount(2) where nobody looks, cloned into a detached tree and taken away again."""
    import tempfile

    with ExitStack() as stack:
        names = ":".join(_fd_name(path, stack) for path in lowers)
        data = f"lowerdir={names}"
        if upper is not None and work is not None:
            data += f",upperdir={_fd_name(upper, stack)},workdir={_fd_name(work, stack)}"
            data += "".join(f",{key}={value}" for key, value in _WHOLE_UPPER)
        if len(data) > _MAX_OPTIONS:
            raise ResourceExhausted(
                f"cannot mount an overlay of {len(lowers)} layers: this kernel takes {_OPTIONS_LOWERS}",
                hint="Linux 6.8 and later take 500",
            )
        target = stack.enter_context(tempfile.TemporaryDirectory(prefix="scow-overlay-"))
        sys.mount("overlay", target, "overlay", 0, data)
        try:
            tree = OwnedFd(sys.open_tree(sys.AT_FDCWD, target, sys.OPEN_TREE_CLONE))
        finally:
            sys.umount2(target, sys.MNT_DETACH)
        # Below a shared mount it became shared, too, and pivot_root(2) refuses a root like that.
        sys.mount_setattr(
            tree.fileno(), "", sys.AT_EMPTY_PATH, attributes, propagation=sys.MS_PRIVATE
        )
        return tree


def _setup_error(error: OSError, lowers: Sequence[str]) -> SetupError:
    return SetupError(
        f"cannot mount overlay of {len(lowers)} layers, the top one '{lowers[0]}': {error.strerror}",
        step="mount overlay",
        errno=error.errno or 0,
        path=lowers[0],
    )
