"""The system calls that Python 3.11 lacks: new mount API, openat2, namespaces, bpf.

What belongs here: one thin function per call, which raises `OSError` with the file name, and the
constants. What must not: any idea of what a container is.
"""

from __future__ import annotations

import os
from typing import Final

from scow.native._scow import ffi as _ffi
from scow.native._scow import lib as _lib
from scow.native.errors import InvalidArgument

AT_EMPTY_PATH: Final = _lib.AT_EMPTY_PATH
AT_NO_AUTOMOUNT: Final = _lib.AT_NO_AUTOMOUNT
AT_RECURSIVE: Final = _lib.AT_RECURSIVE
AT_SYMLINK_NOFOLLOW: Final = _lib.AT_SYMLINK_NOFOLLOW
CLONE_NEWCGROUP: Final = _lib.CLONE_NEWCGROUP
CLONE_NEWIPC: Final = _lib.CLONE_NEWIPC
CLONE_NEWNET: Final = _lib.CLONE_NEWNET
CLONE_NEWNS: Final = _lib.CLONE_NEWNS
CLONE_NEWPID: Final = _lib.CLONE_NEWPID
CLONE_NEWTIME: Final = _lib.CLONE_NEWTIME
CLONE_NEWUSER: Final = _lib.CLONE_NEWUSER
CLONE_NEWUTS: Final = _lib.CLONE_NEWUTS
FSMOUNT_CLOEXEC: Final = _lib.FSMOUNT_CLOEXEC
FSOPEN_CLOEXEC: Final = _lib.FSOPEN_CLOEXEC
MNT_DETACH: Final = _lib.MNT_DETACH
MNT_FORCE: Final = _lib.MNT_FORCE
UMOUNT_NOFOLLOW: Final = _lib.UMOUNT_NOFOLLOW
MOUNT_ATTR_IDMAP: Final = _lib.MOUNT_ATTR_IDMAP
MOUNT_ATTR_NOATIME: Final = _lib.MOUNT_ATTR_NOATIME
MOUNT_ATTR_NODEV: Final = _lib.MOUNT_ATTR_NODEV
MOUNT_ATTR_NODIRATIME: Final = _lib.MOUNT_ATTR_NODIRATIME
MOUNT_ATTR_NOEXEC: Final = _lib.MOUNT_ATTR_NOEXEC
MOUNT_ATTR_NOSUID: Final = _lib.MOUNT_ATTR_NOSUID
MOUNT_ATTR_NOSYMFOLLOW: Final = _lib.MOUNT_ATTR_NOSYMFOLLOW
MOUNT_ATTR_RDONLY: Final = _lib.MOUNT_ATTR_RDONLY
MOUNT_ATTR_RELATIME: Final = _lib.MOUNT_ATTR_RELATIME
MOUNT_ATTR_STRICTATIME: Final = _lib.MOUNT_ATTR_STRICTATIME
MOUNT_ATTR__ATIME: Final = _lib.MOUNT_ATTR__ATIME
MOVE_MOUNT_F_EMPTY_PATH: Final = _lib.MOVE_MOUNT_F_EMPTY_PATH
MOVE_MOUNT_F_SYMLINKS: Final = _lib.MOVE_MOUNT_F_SYMLINKS
MOVE_MOUNT_T_EMPTY_PATH: Final = _lib.MOVE_MOUNT_T_EMPTY_PATH
MS_BIND: Final = _lib.MS_BIND
MS_NODEV: Final = _lib.MS_NODEV
MS_NOEXEC: Final = _lib.MS_NOEXEC
MS_NOSUID: Final = _lib.MS_NOSUID
MS_PRIVATE: Final = _lib.MS_PRIVATE
MS_RDONLY: Final = _lib.MS_RDONLY
MS_REC: Final = _lib.MS_REC
MS_REMOUNT: Final = _lib.MS_REMOUNT
MS_SHARED: Final = _lib.MS_SHARED
MS_SLAVE: Final = _lib.MS_SLAVE
MS_UNBINDABLE: Final = _lib.MS_UNBINDABLE
OPEN_TREE_CLOEXEC: Final = _lib.OPEN_TREE_CLOEXEC
OPEN_TREE_CLONE: Final = _lib.OPEN_TREE_CLONE
RESOLVE_BENEATH: Final = _lib.RESOLVE_BENEATH
RESOLVE_IN_ROOT: Final = _lib.RESOLVE_IN_ROOT
RESOLVE_NO_MAGICLINKS: Final = _lib.RESOLVE_NO_MAGICLINKS
RESOLVE_NO_SYMLINKS: Final = _lib.RESOLVE_NO_SYMLINKS
RESOLVE_NO_XDEV: Final = _lib.RESOLVE_NO_XDEV

AT_FDCWD: Final = -100


def _path(path: str | bytes) -> bytes:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise InvalidArgument(f"a null byte in {path[:64]!r}")
    return raw


def _check(result: int, name: str | bytes | None = None) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), name)
    return result


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below `dirfd`; always O_CLOEXEC; EAGAIN is retried a bounded number of times."""
    return _check(_lib.scow_openat2(dirfd, _path(path), flags, mode, resolve), path)


def open_tree(dirfd: int, path: str | bytes, flags: int) -> int:
    """open_tree(2), close-on-exec."""
    return _check(_lib.scow_open_tree(dirfd, _path(path), flags), path)


def move_mount(
    from_fd: int, source: str | bytes, to_fd: int, target: str | bytes, flags: int
) -> None:
    """move_mount(2)."""
    _check(_lib.scow_move_mount(from_fd, _path(source), to_fd, _path(target), flags), target)


def fsopen(fstype: str) -> int:
    """A file system context, close-on-exec."""
    return _check(_lib.scow_fsopen(_path(fstype)), fstype)


def fsconfig_string(fd: int, key: str, value: str | bytes) -> None:
    """FSCONFIG_SET_STRING."""
    _check(_lib.scow_fsconfig_string(fd, _path(key), _path(value)), key)


def fsconfig_flag(fd: int, key: str) -> None:
    """FSCONFIG_SET_FLAG."""
    _check(_lib.scow_fsconfig_flag(fd, _path(key)), key)


def fsconfig_create(fd: int) -> None:
    """FSCONFIG_CMD_CREATE; what the kernel says in words is read by `fs_messages`."""
    _check(_lib.scow_fsconfig_create(fd))


def fs_messages(fd: int) -> list[str]:
    """What the kernel logged on a file system context (`e lowerdir: ...`), oldest first."""
    messages: list[str] = []
    while len(messages) < 64:
        try:
            messages.append(os.read(fd, 4096).decode(errors="replace").rstrip("\n"))
        except OSError:  # ENODATA: no more
            break
    return messages


def fsmount(fd: int, attributes: int = 0) -> int:
    """A detached mount of a created context, close-on-exec."""
    return _check(_lib.scow_fsmount(fd, attributes))


def mount_setattr(
    dirfd: int,
    path: str | bytes,
    flags: int,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2)."""
    result = _lib.scow_mount_setattr(
        dirfd, _path(path), flags, attr_set, attr_clr, propagation, userns_fd
    )
    _check(result, path)


def mount(
    source: str | bytes | None,
    target: str | bytes,
    fstype: str | None,
    flags: int,
    data: str | bytes | None = None,
) -> None:
    """mount(2)."""
    result = _lib.scow_mount(
        _ffi.NULL if source is None else _path(source),
        _path(target),
        _ffi.NULL if fstype is None else _path(fstype),
        flags,
        _ffi.NULL if data is None else _path(data),
    )
    _check(result, target)


def umount2(target: str | bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_lib.scow_umount2(_path(target), flags), target)


def setns(fd: int, kinds: int) -> None:
    """setns(2) for this thread; a process with threads cannot join mount or user namespaces."""
    _check(_lib.scow_setns(fd, kinds))


def unshare(flags: int) -> None:
    """unshare(2) for this thread."""
    _check(_lib.scow_unshare(flags))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy of another process's descriptor, close-on-exec; needs the right to trace it (5.6)."""
    return _check(_lib.scow_pidfd_getfd(pidfd, fd))


def set_fs_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2) for this thread, for good; the capabilities stay."""
    _check(_lib.scow_set_fs_ids(uid, gid))


def landlock_abi() -> int:
    """The ABI of the kernel's Landlock, 0 where it has none or it is turned off."""
    return max(0, _lib.scow_landlock_abi())


def syncfs(fd: int) -> None:
    """Write all of the file system that `fd` is on to its disk; others' faults show, too (5.8)."""
    _check(_lib.scow_syncfs(fd))


def bpf(command: int, attributes: bytes | bytearray) -> int:
    """bpf(2): `attributes` is the packed union; what the kernel writes to it stays in a bytearray."""
    if isinstance(attributes, bytearray):
        pointer = _ffi.from_buffer("char[]", attributes, require_writable=True)
    else:
        pointer = _ffi.new("char[]", attributes)
    return _check(_lib.scow_bpf(command, pointer, len(attributes)))
