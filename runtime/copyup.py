"""Copying an image's directory into a tmpfs (`tmpcopyup`), by descriptors only.

The source is hostile: nothing is followed, nothing is opened that is not a file or a directory, and
the number of entries has a limit.
"""

from __future__ import annotations

import os
import stat

from scow.native.errors import ResourceExhausted

MAX_ENTRIES = 100_000
MAX_DEPTH = 64
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: int, target: int) -> None:
    """Copy all below `source` to below `target`, with modes, owners and links."""
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    _copy_directory(source, target, 0, [MAX_ENTRIES])


def _copy_directory(source: int, target: int, depth: int, left: list[int]) -> None:
    with os.scandir(source) as entries:
        names = [entry.name for entry in entries]
    left[0] -= len(names)
    if left[0] < 0 or depth > MAX_DEPTH:
        raise ResourceExhausted(f"tmpcopyup copies at most {MAX_ENTRIES} entries, {MAX_DEPTH} deep")
    for name in names:
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISDIR(info.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            below = os.open(name, _READ | os.O_DIRECTORY, dir_fd=source)
            try:
                made = os.open(name, _READ | os.O_DIRECTORY, dir_fd=target)
                try:
                    _copy_directory(below, made, depth + 1, left)
                    os.fchown(made, info.st_uid, info.st_gid)
                    os.fchmod(made, stat.S_IMODE(info.st_mode))
                finally:
                    os.close(made)
            finally:
                os.close(below)
        elif stat.S_ISREG(info.st_mode):
            _copy_file(source, target, name)


def _copy_file(source: int, target: int, name: str) -> None:
    original = os.open(name, _READ, dir_fd=source)
    try:
        info = os.fstat(original)
        if not stat.S_ISREG(info.st_mode):
            return  # it was replaced meanwhile
        copy = os.open(name, _MAKE, 0o600, dir_fd=target)
        try:
            while os.sendfile(copy, original, None, 1 << 20):
                pass
            os.fchown(copy, info.st_uid, info.st_gid)
            os.fchmod(copy, stat.S_IMODE(info.st_mode))
        finally:
            os.close(copy)
    finally:
        os.close(original)
