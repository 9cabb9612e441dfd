"""Reading a layer's tree: what it takes on the disk, its digest, where two trees differ.

What belongs here: looking at every name and byte of a tree. What must not: deciding what to do about
it. Trees are hostile and deep: they are reached from a descriptor, one directory open at a time, over
no link and no mount.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress

from scow.image.digest import new_hasher
from scow.native import sys
from scow.native.fd import OwnedFd
from scow.native.fs import scan_tree

_BLOCK = 1 << 20
_ZEROS = bytes(_BLOCK)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_BELOW = (
    sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_XDEV | sys.RESOLVE_NO_MAGICLINKS
)
# What scow-untar writes; others (security.selinux, security.ima) are the host's.
_XATTRS = ("user.", "security.capability", "system.posix_acl_", "trusted.overlay.")

Inode = tuple[int, int]


def disk_bytes(path: str, seen: set[Inode] | None = None) -> int:
    """What `du` says of a tree: blocks, a file with several names once; 0 where there is nothing.

    `seen` holds the inodes that were counted already, for several trees in a row.
    """
    seen = set() if seen is None else seen
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    total = _blocks(info, seen)
    if stat.S_ISDIR(info.st_mode):
        with suppress(FileNotFoundError, NotADirectoryError):  # it is being removed
            for below in scan_tree(path):
                total += _blocks(below, seen)
    return total


def _blocks(info: os.stat_result, seen: set[Inode]) -> int:
    if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
        if (info.st_dev, info.st_ino) in seen:
            return 0
        seen.add((info.st_dev, info.st_ino))
    return info.st_blocks * 512


def tree_digest(root_fd: int, *, cold: bool = True) -> bytes:
    """One digest of all names, attributes and contents below a directory."""
    hasher = new_hasher()
    pending = ["."]
    while pending:
        here = pending.pop()
        hasher.update(b"D" + os.fsencode(here) + b"\0")
        for name, (fingerprint, is_dir) in sorted(_listing(root_fd, here, cold=cold).items()):
            hasher.update(os.fsencode(name) + b"\0" + fingerprint)
            if is_dir:
                pending.append(f"{here}/{name}")
    return bytes.fromhex(hasher.hexdigest())


def differences(first_fd: int, second_fd: int) -> Iterator[str]:
    """The paths below two directories that are not alike in both; the second was just written."""
    pending = ["."]
    while pending:
        here = pending.pop()
        first, second = _listing(first_fd, here), _listing(second_fd, here, cold=False)
        for name in sorted({*first, *second}):
            path = f"{here}/{name}"
            if first.get(name) != second.get(name):
                yield path[2:]
            elif first[name][1]:
                pending.append(path)


def _listing(root_fd: int, path: str, *, cold: bool = True) -> dict[str, tuple[bytes, bool]]:
    """Name -> (all there is to know of it but what is below, whether it is a directory)."""
    found: dict[str, tuple[bytes, bool]] = {}
    try:
        with OwnedFd(sys.openat2(root_fd, path, _DIRECTORY, 0, _BELOW)) as fd:
            for name in os.listdir(fd.fileno()):
                info = os.stat(name, dir_fd=fd.fileno(), follow_symlinks=False)
                is_dir = stat.S_ISDIR(info.st_mode)
                found[name] = (_fingerprint(fd.fileno(), name, info, cold), is_dir)
            if path == ".":
                own = os.fstat(fd.fileno())
                found["."] = (_attributes(own) + _xattrs(f"/proc/self/fd/{fd.fileno()}/."), False)
    except OSError as error:
        # A directory that the disk cannot give back differs from any that it can.
        found["."] = (b"unreadable: %d" % (error.errno or 0), False)
    return found


def _attributes(info: os.stat_result) -> bytes:
    if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
        return b"whiteout"  # overlayfs looks at nothing else of it, and its time is of no tar
    # A directory that the tar does not list has the time of its unpacking.
    is_dir = stat.S_ISDIR(info.st_mode)
    size, mtime, links = (0, 0, 0) if is_dir else (info.st_size, info.st_mtime_ns, info.st_nlink)
    # Nanoseconds of the year 2446, ext4's last, are more than 64 bits hold.
    seconds, rest = divmod(mtime, 10**9)
    numbers = (info.st_mode, info.st_uid, info.st_gid, size, seconds, rest, links, info.st_rdev)
    return struct.pack("<IIIqqIqQ", *numbers)


def _fingerprint(dir_fd: int, name: str, info: os.stat_result, cold: bool) -> bytes:
    parts = [_attributes(info), _xattrs(f"/proc/self/fd/{dir_fd}/{name}")]
    if stat.S_ISLNK(info.st_mode):
        parts.append(os.fsencode(os.readlink(name, dir_fd=dir_fd)))
    elif stat.S_ISREG(info.st_mode) and info.st_size:
        parts.append(_content(dir_fd, name, info.st_size, cold))
    return b"\0".join(parts)


def _xattrs(path: str) -> bytes:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        pairs = [
            os.fsencode(name) + b"=" + os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(names)
            if name.startswith(_XATTRS)
        ]
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return b""
        raise
    return b"\0".join(pairs)


def _content(dir_fd: int, name: str, size: int, cold: bool) -> bytes:
    """The digest of a file's bytes; blocks of zeros are left out, so that a hole costs nothing."""
    hasher = new_hasher()
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC
        with OwnedFd(os.open(name, flags, dir_fd=dir_fd)) as file:
            # What the disk holds is asked for, not what is remembered of it.
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in _data_blocks(file.fileno(), size):
                block = os.pread(file.fileno(), _BLOCK, offset)
                if block != _ZEROS[: len(block)]:
                    hasher.update(offset.to_bytes(8, "little"))
                    hasher.update(block)
    except OSError as error:
        return b"unreadable: %d" % (error.errno or 0)
    return bytes.fromhex(hasher.hexdigest())


def _data_blocks(fd: int, size: int) -> Iterator[int]:
    offset = 0
    while offset < size:
        if size > _BLOCK:
            try:
                offset = os.lseek(fd, offset, os.SEEK_DATA) // _BLOCK * _BLOCK
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    return
                raise
        yield offset
        offset += _BLOCK
