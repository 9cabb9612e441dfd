"""Volumes: directories that outlive containers, named or anonymous.

`<root>/volumes/<name>/data`. A new, empty volume is filled once from the directory it covers in
the image (CVE-2020-1726: never one that has content); the image's side is read only through its
root, so that no link leads out (CVE-2022-23648).
"""

from __future__ import annotations

import errno
import os
import stat

from scow.native import sys as kernel
from scow.native.errors import NotFound, ScowError
from scow.native.fd import OwnedFd
from scow.native.fs import Root, remove_tree

COPY_CHUNK = 1 << 20
# Two descriptors and two calls a level.
MAX_DEPTH = 200
_BELOW = (
    kernel.RESOLVE_BENEATH
    | kernel.RESOLVE_NO_SYMLINKS
    | kernel.RESOLVE_NO_XDEV
    | kernel.RESOLVE_NO_MAGICLINKS
)


class VolumeStore:
    """The volumes below `root`."""

    def __init__(self, root: str) -> None:
        self._dir = f"{root}/volumes"

    def data_dir(self, name: str) -> str:
        """Give the directory that is mounted."""
        return f"{self._dir}/{name}/data"

    def exists(self, name: str) -> bool:
        """Whether there is such a volume."""
        return os.path.isdir(self.data_dir(name))

    def stage(self, staging: str, name: str, root: Root, path: str | None) -> None:
        """Make a new volume in `staging`, filled from `path` of the image unless that is None.

        `adopt` gives it its name.
        """
        os.makedirs(f"{staging}/{name}/data", mode=0o755)
        os.chmod(f"{staging}/{name}", 0o701)
        if path is not None:
            _fill(f"{staging}/{name}/data", name, root, path)

    def adopt(self, staging: str) -> None:
        """Move what was staged to its place, whole; a volume that is there by now stays."""
        try:
            names = os.listdir(staging)
        except FileNotFoundError:
            return
        os.makedirs(self._dir, mode=0o701, exist_ok=True)
        fd = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                try:
                    os.rename(name, f"{self._dir}/{name}", src_dir_fd=fd)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    remove_tree(fd, name)
        finally:
            os.close(fd)
        os.rmdir(staging)

    def new_name(self) -> str:
        """Give the name of an anonymous volume."""
        return os.urandom(32).hex()

    def remove(self, name: str) -> None:
        """Delete a volume with its data; NotFound where there is none."""
        # Also what a removal left that was killed half-way.
        if not os.path.isdir(f"{self._dir}/{name}"):
            raise NotFound(f"no such volume: '{name}'")
        fd = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(fd, name)
        finally:
            os.close(fd)


def _fill(data_dir: str, name: str, root: Root, path: str) -> None:
    """Copy the image's directory `path` into a new volume, owners, modes and links included."""
    try:
        source = root.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    with source:
        target = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _Copier(target).directory(source.fileno(), target)
        except OSError as error:
            raise ScowError(
                f"cannot fill volume '{name}' from '{path}' of the image: {error.strerror}"
            ) from error
        finally:
            os.close(target)


class _Copier:
    """One copy of a tree between directory descriptors; links are never followed.

    Both sides may change meanwhile: the image's belongs to a stranger, and a named volume may be
    mounted in another container already.
    """

    def __init__(self, target: int) -> None:
        self._top = target
        # (device, inode) of a file with several names -> where its copy is
        self._names: dict[tuple[int, int], str] = {}

    def directory(self, source: int, target: int, path: str = "", depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise OSError(errno.ENAMETOOLONG, f"more than {MAX_DEPTH} directories deep")
        info = os.fstat(source)
        for name in os.listdir(source):
            self._entry(source, target, name, f"{path}{name}", depth)
        os.fchown(target, info.st_uid, info.st_gid)
        os.fchmod(target, stat.S_IMODE(info.st_mode))
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))

    def _entry(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        if stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISDIR(info.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            with (
                OwnedFd(
                    os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=source)
                ) as below,
                OwnedFd(os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=target)) as copy,
            ):
                self.directory(below.fileno(), copy.fileno(), f"{path}/", depth + 1)
        elif stat.S_ISREG(info.st_mode):
            first = self._names.get((info.st_dev, info.st_ino))
            if first is not None:
                self._link(first, target, name)
                return
            _copy_file(source, target, name, flags)
            if info.st_nlink > 1:
                self._names[info.st_dev, info.st_ino] = path

    def _link(self, first: str, target: int, name: str) -> None:
        parent, _, base = first.rpartition("/")
        flags = os.O_PATH | os.O_DIRECTORY
        with OwnedFd(kernel.openat2(self._top, parent or ".", flags, 0, _BELOW)) as above:
            os.link(base, name, src_dir_fd=above.fileno(), dst_dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str, flags: int) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=source)
    writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=target)
    try:
        info = os.fstat(reader)
        os.ftruncate(writer, info.st_size)
        _copy_data(reader, writer)
        os.fchown(writer, info.st_uid, info.st_gid)
        os.fchmod(writer, stat.S_IMODE(info.st_mode))
        os.utime(writer, ns=(info.st_atime_ns, info.st_mtime_ns))
    finally:
        os.close(reader)
        os.close(writer)


def _copy_data(reader: int, writer: int) -> None:
    """Copy what is data; a hole of a terabyte costs nothing in the image and nothing here."""
    end = 0
    while True:
        try:
            start = os.lseek(reader, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(reader, start, os.SEEK_HOLE)
        os.lseek(writer, start, os.SEEK_SET)
        while start < end:
            done = os.sendfile(writer, reader, start, min(COPY_CHUNK, end - start))
            if not done:
                return
            start += done
