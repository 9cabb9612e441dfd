"""Copying files from one tree to another, where either may be a container's.

What belongs here: finding the source and the place, as `docker cp` does, and making each thing there.
What must not: whose trees these are. Both are reached from descriptors of their roots; below the place
no link is followed and nothing that is a directory is replaced, whatever the other side plants there
meanwhile (CVE-2018-15664, CVE-2021-41089).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO

from scow.image.digest import quote
from scow.image.pack import Links, add_node
from scow.image.tarwriter import COPY_BYTES, TarWriter, data_segments
from scow.image.trees import KEPT_XATTRS, Found, Node, Stack, Xattrs, read_xattrs
from scow.native import sys
from scow.native.errors import AlreadyExists, InvalidArgument, NotFound
from scow.native.fd import Closing, OwnedFd
from scow.native.fs import Root

_MAX_LINKS = 40
_BELOW = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_MAGICLINKS
# What is mounted there is no file of anybody's; not even all of it can be read to its end.
_KERNELS = ("/dev", "/proc", "/sys")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Thing:
    """What is to be made; `mode` with the kind of file in it, as stat(2) has it."""

    path: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: str = ""  # of a symlink its target, of a regular file another name of it
    device: int = 0
    xattrs: Xattrs = ()


class Source(Closing):
    """What is copied: the directory that it is in, and its name there; "" is the directory itself."""

    def __init__(self, root: Root, path: str, *, follow: bool) -> None:
        self.contents_only = path.endswith("/.") or path in (".", "/")
        self.path = _final(root, path) if follow or path.endswith(("/", "/.")) else _plain(path)
        above, self.name = _split(self.path)
        try:
            self.status = root.stat(self.path, follow=False)
            self._above = root.open(above, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"cannot copy {quote(path)}: no such file or directory") from error
        self.stack = Stack([self._above.fileno()], crossing=True)
        self.is_directory = stat.S_ISDIR(self.status.st_mode)
        if path.endswith("/") and not self.is_directory:
            raise InvalidArgument(f"{quote(path)} is not a directory")

    def nodes(self) -> Iterator[Node]:
        """The thing itself and all below it, volumes too; but no file system of the kernel's."""
        chain = (0,) if self.is_directory else ()
        yield Node(self.name, Found(0, self.status, chain))
        if self.is_directory:
            yield from self.stack.walk(self.name, chain, self._is_of_files)

    def _is_of_files(self, node: Node) -> bool:
        where = f"{os.path.dirname(self.path)}/{node.path}".replace("//", "/")
        return where not in _KERNELS or node.found.stat.st_dev == self.status.st_dev

    def close(self) -> None:
        self._above.close()


def pack_source(source: Source, tar: TarWriter) -> None:
    """The source as a tar, with its own name first in all names."""
    links: Links = {}
    for node in source.nodes():
        if node.path:
            add_node(tar, source.stack, node, links)
    tar.finish()


def copy_source(source: Source, root: Root, path: str, *, archive: bool) -> list[str]:
    """Copy by the rules of `docker cp`; returns a line for each thing that was left out.

    With `archive` owners stay; else all belongs to root, and nothing makes its user root.
    """
    with _find_place(source, root, path) as place:
        placer = Placer(place.directory, archive=archive)
        links: Links = {}
        for node in source.nodes():
            rest = node.path[len(source.name) :].lstrip("/")
            name = "/".join(part for part in (place.name, rest) if part)
            if name:
                _copy_node(placer, source.stack, node, name, links)
        placer.finish()
    return placer.left_out


@dataclass(slots=True)
class _Place:
    """An open directory, and the name in it; "" for the directory itself."""

    _fd: OwnedFd
    name: str

    @property
    def directory(self) -> int:
        return self._fd.fileno()

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *exc: object) -> None:
        self._fd.close()


def _find_place(source: Source, root: Root, path: str) -> _Place:
    final = _final(root, path)
    try:
        status = root.stat(final, follow=False)
    except FileNotFoundError:
        status = None
    if status is not None and stat.S_ISDIR(status.st_mode):
        return _Place(open_directory(root, final), "" if source.contents_only else source.name)
    if status is not None and source.is_directory:
        raise AlreadyExists(f"cannot copy a directory onto {quote(path)}, which is none")
    if path.endswith(("/", "/.")) and not (status is None and source.is_directory):
        raise NotFound(f"no such directory: {quote(path)}")
    above, name = _split(final)
    return _Place(open_directory(root, above), name)


def open_directory(root: Root, path: str) -> OwnedFd:
    """A directory to copy into."""
    try:
        return root.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"no such directory: {quote(path)}") from error


def _final(root: Root, path: str) -> str:
    """`path` with the links at its end followed; those before it are the kernel's affair."""
    path = _plain(path)
    for _ in range(_MAX_LINKS):
        try:
            status = root.stat(path, follow=False)
        except FileNotFoundError:
            return path
        if not stat.S_ISLNK(status.st_mode):
            return path
        target = root.readlink(path)
        path = _plain(target if target.startswith("/") else f"{os.path.dirname(path)}/{target}")
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _plain(path: str) -> str:
    """With one slash before each part; "." goes, ".." is resolved where it is known to be right."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts and parts[-1] == "..":
        raise InvalidArgument(f"cannot copy {quote(path)}: the path ends with '..'")
    return "/" + "/".join(parts)


def _split(path: str) -> tuple[str, str]:
    above, _, name = path.rpartition("/")
    return above or "/", name


def _copy_node(placer: Placer, stack: Stack, node: Node, name: str, links: Links) -> None:
    status = node.found.stat
    thing = Thing(
        name,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        device=status.st_rdev,
    )
    try:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            first = links.setdefault((status.st_dev, status.st_ino), os.fsencode(name))
            if first != os.fsencode(name):
                placer.link(thing, os.fsdecode(first))
                return
        if stat.S_ISREG(status.st_mode):
            with stack.open(0, node.path) as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    xattrs = read_xattrs(file.fileno())
                    placer.put(replace(thing, xattrs=xattrs), file.fileno())
            return
        if stat.S_ISLNK(status.st_mode):
            thing = replace(thing, link=stack.readlink(0, node.path))
        placer.put(replace(thing, xattrs=stack.xattrs(0, node.path)))
    except FileNotFoundError:
        if name not in placer.made:
            return  # gone from the source while it was copied
        raise


class Placer:
    """Makes things below an open directory."""

    def __init__(self, directory: int, *, archive: bool) -> None:
        self._top = directory
        self._archive = archive
        self._directories: list[Thing] = []
        self.made: set[str] = set()
        self.left_out: list[str] = []

    def put(self, thing: Thing, data: int | IO[bytes] | None = None) -> None:
        """Make one thing; what has its name gives way unless it is a directory."""
        self.made.add(thing.path)
        if not self._archive:
            thing = _harmless(thing)
        with self._parent(thing.path) as parent:
            name = os.path.basename(thing.path)
            if stat.S_ISDIR(thing.mode):
                self._put_directory(parent.fileno(), name, thing)
                return
            if stat.S_ISSOCK(thing.mode):
                return
            is_device = stat.S_ISBLK(thing.mode) or stat.S_ISCHR(thing.mode)
            if is_device and not self._archive:
                self.left_out.append(f"left out {quote(thing.path)}: a device; -a copies it")
                return
            _clear(parent.fileno(), name, thing.path)
            if stat.S_ISREG(thing.mode):
                self._put_file(parent.fileno(), name, thing, data)
            elif stat.S_ISLNK(thing.mode):
                os.symlink(thing.link, name, dir_fd=parent.fileno())
                _set_named(parent.fileno(), name, thing)
            else:
                os.mknod(name, thing.mode, thing.device, dir_fd=parent.fileno())
                _set_named(parent.fileno(), name, thing)

    def link(self, thing: Thing, target: str) -> None:
        """Make a further name of a file that was made before."""
        if target not in self.made:
            raise InvalidArgument(f"a link to {quote(target)}, which is not copied along")
        with self._parent(thing.path) as parent, self._parent(target) as other:
            _clear(parent.fileno(), os.path.basename(thing.path), thing.path)
            os.link(
                os.path.basename(target),
                os.path.basename(thing.path),
                src_dir_fd=other.fileno(),
                dst_dir_fd=parent.fileno(),
                follow_symlinks=False,
            )

    def finish(self) -> None:
        """Give the new directories their modes and times, which their contents have changed."""
        for thing in reversed(self._directories):
            fd = sys.openat2(self._top, thing.path, _DIRECTORY, 0, _BELOW)
            with OwnedFd(fd) as directory:
                _set_opened(directory.fileno(), thing)

    def _parent(self, path: str) -> OwnedFd:
        above = os.path.dirname(path) or "."
        try:
            return OwnedFd(sys.openat2(self._top, above, _DIRECTORY, 0, _BELOW))
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise AlreadyExists(
                    f"cannot copy {quote(path)}: {quote(above)} is no directory there"
                ) from error
            raise

    def _put_directory(self, parent: int, name: str, thing: Thing) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
            self._directories.append(thing)
        except FileExistsError:
            there = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(there.st_mode):
                raise AlreadyExists(
                    f"cannot copy directory {quote(thing.path)}: there is another thing of that name"
                ) from None

    def _put_file(self, parent: int, name: str, thing: Thing, data: int | IO[bytes] | None) -> None:
        with OwnedFd(os.open(name, _CREATE, 0o600, dir_fd=parent)) as file:
            if isinstance(data, int):
                _copy_data(data, file.fileno())
            elif data is not None:
                while chunk := data.read(COPY_BYTES):
                    _write(file.fileno(), chunk)
            _set_opened(file.fileno(), thing)


def _harmless(thing: Thing) -> Thing:
    """As root's own: a bit that makes its user the owner was never meant for this owner."""
    mode = thing.mode if stat.S_ISDIR(thing.mode) else thing.mode & ~(stat.S_ISUID | stat.S_ISGID)
    xattrs = tuple(x for x in thing.xattrs if x[0] != "security.capability")
    return replace(thing, mode=mode, uid=0, gid=0, xattrs=xattrs)


def _clear(parent: int, name: str, path: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError) as error:
        raise AlreadyExists(
            f"cannot copy {quote(path)}: there is a directory of that name"
        ) from error


def _copy_data(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    segments = data_segments(source, size)
    for offset, length in [(0, size)] if segments is None else segments:
        os.lseek(target, offset, os.SEEK_SET)
        end = offset + length
        while offset < end and (chunk := os.pread(source, min(COPY_BYTES, end - offset), offset)):
            _write(target, chunk)
            offset += len(chunk)
    os.ftruncate(target, size)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _set_opened(fd: int, thing: Thing) -> None:
    os.fchown(fd, thing.uid, thing.gid)
    os.fchmod(fd, stat.S_IMODE(thing.mode))  # after the owner, whose change takes bits away
    for name, value in thing.xattrs:
        if name.startswith(KEPT_XATTRS):
            _set_xattr(fd, name, value)
    os.utime(fd, ns=(thing.mtime_ns, thing.mtime_ns))


def _set_named(parent: int, name: str, thing: Thing) -> None:
    os.chown(name, thing.uid, thing.gid, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISLNK(thing.mode):
        # By a handle: chmod(2) follows links, and the name may have become one.
        with OwnedFd(sys.openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, 0, _BELOW)) as handle:
            if not stat.S_ISLNK(os.fstat(handle.fileno()).st_mode):
                os.chmod(f"/proc/self/fd/{handle.fileno()}", stat.S_IMODE(thing.mode))
    os.utime(name, ns=(thing.mtime_ns, thing.mtime_ns), dir_fd=parent, follow_symlinks=False)


def _set_xattr(fd: int, name: str, value: bytes) -> None:
    try:
        os.setxattr(fd, name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # this file system has none
            raise
