"""Completing a layer on one stack: what its tar took for granted from the layers below.

What belongs here: hard links whose target is a lower file (copied, as overlayfs would copy them up) and
attributes of directories that the tar did not list. What must not: where layers live. All trees are
hostile: they are reached from descriptors, inside their root, and no last symlink is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from scow.image.digest import quote
from scow.image.overlay import mount_overlay
from scow.image.unpack import LowerNeeds
from scow.native import sys
from scow.native.errors import IntegrityError
from scow.native.fd import OwnedFd

_RESOLVE = sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS
_XATTRS = ("user.", "security.capability", "system.posix_acl_")


def complete(
    dest_fd: int, needs: LowerNeeds, paths: Sequence[str], below: Sequence[str], empty: str
) -> int:
    """Fill the directory `dest_fd` for a layer with `needs`; returns how many things it got.

    `paths` is the stack with the layer, `below` the one without, both top first; `empty` an empty
    directory. Raises IntegrityError for a link whose target is nowhere.
    """
    made = 0
    if needs.implied and below:
        with _merged(below, empty) as lower:
            made += sum(_copy_directory(dest_fd, lower, path) for path in needs.implied)
    if needs.links:
        with _merged(paths, empty) as merged, OwnedFd(os.open(paths[0], os.O_PATH)) as own:
            copied: dict[tuple[int, int], bytes] = {}
            for name, target in needs.links:
                if _stat_in(own.fileno(), name) is None:  # else a later entry took the name
                    _copy_link(dest_fd, merged, name, target, copied)
                    made += 1
    return made


@contextmanager
def _merged(lowers: Sequence[str], empty: str) -> Generator[int]:
    """A read-only view of the stack; the kernel wants two directories, so an empty one is added."""
    with mount_overlay([*lowers, empty]) as mount:
        yield mount.fileno()


def _split(path: bytes) -> tuple[bytes, bytes]:
    directory, _, name = path.rpartition(b"/")
    return directory or b".", name


def _open_in(root_fd: int, path: bytes, flags: int) -> OwnedFd | None:
    try:
        return OwnedFd(sys.openat2(root_fd, path, flags, 0, _RESOLVE))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _stat_in(root_fd: int, path: bytes) -> os.stat_result | None:
    found = _open_in(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
    if found is None:
        return None
    with found:
        return os.fstat(found.fileno())


def _copy_directory(dest_fd: int, lower_fd: int, path: bytes) -> bool:
    """Give an implied directory (0755 root) the attributes that the lower one has, if others."""
    found = _open_in(lower_fd, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if found is None:
        return False
    with found:
        st = os.fstat(found.fileno())
        plain = (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (0, 0, 0o755)
        if plain and not _xattr_names(found.fileno()):
            return False
    with _make_directory(dest_fd, lower_fd, path):
        return True


def _make_directory(dest_fd: int, model_fd: int, path: bytes) -> OwnedFd:
    """Make `path` and its parents below `dest_fd`, each with the attributes of the model's."""
    at = OwnedFd(os.dup(dest_fd))
    done = b""
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        done = done + b"/" + name if done else name
        try:
            os.mkdir(name, 0o755, dir_fd=at.fileno())
            fresh = True
        except FileExistsError:
            fresh = False
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        following = OwnedFd(os.open(name, flags, dir_fd=at.fileno()))
        at.close()
        at = following
        model = _open_in(model_fd, done, os.O_RDONLY | os.O_DIRECTORY) if fresh else None
        if model is not None:
            with model:
                _copy_attributes(model.fileno(), at.fileno())
    return at


def _copy_link(
    dest_fd: int,
    merged_fd: int,
    name: bytes,
    target: bytes,
    copied: dict[tuple[int, int], bytes],
) -> None:
    directory, base = _split(target)
    parent = _open_in(merged_fd, directory, os.O_RDONLY | os.O_DIRECTORY)
    st = _stat_in(merged_fd, target)
    if parent is None or st is None or stat.S_ISDIR(st.st_mode):
        if parent is not None:
            parent.close()
        raise IntegrityError(
            f"corrupt layer: entry {quote(os.fsdecode(name))}: hard link to "
            f"{quote(os.fsdecode(target))}, which is no file in this or a lower layer"
        )
    into, new = _split(name)
    with parent, _make_directory(dest_fd, merged_fd, into) as dest:
        first = copied.setdefault((st.st_dev, st.st_ino), name)
        if first != name:
            os.link(first, new, src_dir_fd=dest_fd, dst_dir_fd=dest.fileno(), follow_symlinks=False)
        else:
            _copy_file(parent.fileno(), base, dest.fileno(), new)


def _copy_file(from_fd: int, base: bytes, to_fd: int, name: bytes) -> None:
    st = os.stat(base, dir_fd=from_fd, follow_symlinks=False)
    if stat.S_ISREG(st.st_mode):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            OwnedFd(os.open(base, flags, dir_fd=from_fd)) as source,
            OwnedFd(os.open(name, create, 0o600, dir_fd=to_fd)) as dest,
        ):
            while os.sendfile(dest.fileno(), source.fileno(), None, 1 << 30):
                pass
            _copy_attributes(source.fileno(), dest.fileno())
        return
    if stat.S_ISLNK(st.st_mode):
        os.symlink(os.readlink(base, dir_fd=from_fd), name, dir_fd=to_fd)
    else:
        os.mknod(name, st.st_mode, st.st_rdev, dir_fd=to_fd)
    os.chown(name, st.st_uid, st.st_gid, dir_fd=to_fd, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(name, stat.S_IMODE(st.st_mode), dir_fd=to_fd)  # just made, in a directory of ours
    os.utime(name, ns=(st.st_mtime_ns, st.st_mtime_ns), dir_fd=to_fd, follow_symlinks=False)


def _xattr_names(fd: int) -> list[str]:
    return [name for name in os.listxattr(fd) if name.startswith(_XATTRS)]


def _copy_attributes(from_fd: int, to_fd: int) -> None:
    """Owner first: chown(2) takes set-id bits and capabilities away."""
    st = os.fstat(from_fd)
    os.fchown(to_fd, st.st_uid, st.st_gid)
    os.fchmod(to_fd, stat.S_IMODE(st.st_mode))
    for name in _xattr_names(from_fd):
        os.setxattr(to_fd, name, os.getxattr(from_fd, name))
    os.utime(to_fd, ns=(st.st_mtime_ns, st.st_mtime_ns))
