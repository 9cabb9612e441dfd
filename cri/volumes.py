"""Volumes: directories that outlive containers, named or anonymous.

`<root>/volumes/<name>/data`. A new, empty volume is filled once from the directory it covers in
the image (CVE-2020-1726: never one that has content); the image's side is read only through its
root, so that no link leads out (CVE-2022-23648).
"""

from __future__ import annotations

import errno
import os
import stat

from scow.native.errors import NotFound, ScowError
from scow.native.fs import Root, remove_tree

COPY_CHUNK = 1 << 20


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

    def stage(self, staging: str, name: str, root: Root, path: str) -> None:
        """Make a new volume in `staging`, filled from `path` of the image; `adopt` gives it its name."""
        os.makedirs(f"{staging}/{name}/data", mode=0o755)
        os.chmod(f"{staging}/{name}", 0o701)
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
            _copy_directory(source.fileno(), target)
        except OSError as error:
            raise ScowError(
                f"cannot fill volume '{name}' from '{path}' of the image: {error.strerror}"
            ) from error
        finally:
            os.close(target)


def _copy_directory(source: int, target: int) -> None:
    """Copy what is below one directory descriptor to another; links are never followed."""
    info = os.fstat(source)
    for name in os.listdir(source):
        _copy_entry(source, target, name)
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _copy_entry(source: int, target: int, name: str) -> None:
    info = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        return
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    if stat.S_ISDIR(info.st_mode):
        os.mkdir(name, 0o700, dir_fd=target)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=source)
        copy = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=target)
        try:
            _copy_directory(below, copy)
        finally:
            os.close(below)
            os.close(copy)
    elif stat.S_ISREG(info.st_mode):
        _copy_file(source, target, name, flags)


def _copy_file(source: int, target: int, name: str, flags: int) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=source)
    writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=target)
    try:
        info = os.fstat(reader)
        while os.sendfile(writer, reader, None, COPY_CHUNK):
            pass
        os.fchown(writer, info.st_uid, info.st_gid)
        os.fchmod(writer, stat.S_IMODE(info.st_mode))
        os.utime(writer, ns=(info.st_atime_ns, info.st_mtime_ns))
    finally:
        os.close(reader)
        os.close(writer)
