"""Files below a hostile directory, deleting trees, durable writes: the Python face of paths.c.

What belongs here: reaching a name below a descriptor so that no link, no ".." and no rename leads
out of it. What must not: any knowledge of images or containers. All paths given to `Root` are of the
world inside: "/etc/passwd" is below the root, and links in it are followed inside of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from scow.native import sys
from scow.native.fd import Closing, OwnedFd

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_IN_ROOT: Final = sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS
_CHILD: Final = (
    sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_XDEV | sys.RESOLVE_NO_MAGICLINKS
)
_MAX_LINKS: Final = 40
# Deeper directories are moved up before they are emptied, so that a tree of any depth costs at most
# this many descriptors.
_MAX_DEPTH: Final = 64
_FEW_NAMES: Final = 64


def _error(number: int, path: str | bytes | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


class Root(Closing):
    """A directory that everything is reached from; an int is borrowed, an OwnedFd becomes ours."""

    __slots__ = ("_fd", "_owned")

    def __init__(self, fd: int | OwnedFd) -> None:
        self._owned = fd if isinstance(fd, OwnedFd) else None
        self._fd = fd if isinstance(fd, int) else fd.fileno()

    @classmethod
    def at(cls, path: str) -> Root:
        """The root at a trusted path of the host."""
        return cls(OwnedFd(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))

    def fileno(self) -> int:
        """Lend the descriptor."""
        return self._fd if self._owned is None else self._owned.fileno()

    def close(self) -> None:
        """Close it, when it is ours."""
        if self._owned is not None:
            self._owned.close()

    def _open(self, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
        return sys.openat2(self.fileno(), path or ".", flags, mode, _IN_ROOT | resolve)

    def open(self, path: str, flags: int, mode: int = 0) -> OwnedFd:
        """Open below the root. Creating without O_EXCL is refused: it would follow a planted link."""
        if flags & os.O_CREAT and not flags & os.O_EXCL:
            raise ValueError("O_CREAT without O_EXCL below a hostile root")
        return OwnedFd(self._open(path, flags, mode))

    def read_file(self, path: str, limit: int) -> bytes:
        """A regular file of at most `limit` bytes; a fifo or device never blocks or acts."""
        with self.open(path, os.O_PATH) as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise _error(errno.EINVAL, path)
        # Between the two opens the name may become a fifo or a device: hence no block, no tty.
        with self.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise _error(errno.EINVAL, path)
            parts: list[bytes] = []
            left = limit + 1
            while left > 0 and (part := os.read(file.fileno(), min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
        if left <= 0:
            raise _error(errno.EFBIG, path)
        return b"".join(parts)

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """What the path, or the link at its end, is."""
        flags = os.O_PATH | (0 if follow else os.O_NOFOLLOW)
        with self.open(path, flags) as handle:
            return os.fstat(handle.fileno())

    def exists(self, path: str) -> bool:
        """Whether the path leads to something, links followed."""
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def readlink(self, path: str) -> str:
        """The target of the link at the end of the path."""
        with self.open(path, os.O_PATH | os.O_NOFOLLOW) as handle:
            return os.readlink("", dir_fd=handle.fileno())

    def makedirs(self, path: str, mode: int = 0o755) -> OwnedFd:
        """mkdir -p, dangling links followed inside; an O_PATH descriptor of the directory.

        `mode` is of the last one, those above it get 0755.
        """
        links = 0
        done = ""
        rest = [part for part in path.split("/") if part not in ("", ".")]
        while rest:
            name = rest.pop(0)
            parent, done = done, f"{done}/{name}"
            try:
                os.close(self._open(done, os.O_PATH | os.O_DIRECTORY))
                continue
            except FileNotFoundError:
                pass
            with OwnedFd(self._open(parent, os.O_PATH | os.O_DIRECTORY)) as above:
                try:
                    os.mkdir(name, 0o755 if rest else mode, dir_fd=above.fileno())
                    continue
                except FileExistsError:
                    try:
                        target = os.readlink(name, dir_fd=above.fileno())
                    except OSError:  # no link: somebody made the directory meanwhile
                        continue
            links += 1
            if links > _MAX_LINKS:
                raise _error(errno.ELOOP, path)
            done = "" if target.startswith("/") else parent
            rest = [part for part in target.split("/") if part not in ("", ".")] + rest
        return OwnedFd(self._open(done, os.O_PATH | os.O_DIRECTORY))

    def write_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A new file; what is there already, link or not, is an error. Parents must exist."""
        parent, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            raise _error(errno.EINVAL, path)
        with OwnedFd(self._open(parent, os.O_PATH | os.O_DIRECTORY)) as above:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with OwnedFd(sys.openat2(above.fileno(), name, flags, mode, _CHILD)) as file:
                _write_all(file.fileno(), data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _open_child(parent_fd: int, name: str) -> OwnedFd:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    return OwnedFd(sys.openat2(parent_fd, name, flags, 0, _CHILD))


def _count_names(fd: int, most: int) -> int:
    """Open every name below a directory, over no mount (EXDEV): how many of `most` names are left."""
    with os.scandir(fd) as entries:
        for entry in entries:
            most -= 1
            if most < 0:
                raise _error(errno.E2BIG, entry.name)
            if entry.is_dir(follow_symlinks=False):
                with _open_child(fd, entry.name) as child:
                    most = _count_names(child.fileno(), most)
            else:
                os.close(sys.openat2(fd, entry.name, os.O_PATH | os.O_NOFOLLOW, 0, _CHILD))
    return most


def _is_free_of_mounts(fd: int) -> bool:
    """Whether a directory is small and nothing is mounted below; False means that nobody knows.

    For the table of all mounts the kernel writes 3 us for each of the host's, where every pod has four.
    """
    try:
        _count_names(fd, _FEW_NAMES)
    except OSError:
        return False
    return True


def _unescape(field: bytes) -> bytes:
    """The octal escapes of mountinfo (space, tab, newline, backslash)."""
    parts = field.split(b"\\")
    return parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])


def mounts_below(fd: int) -> list[str]:
    """The mount points of our namespace at or below a directory."""
    top = os.readlink(f"/proc/self/fd/{fd}".encode())
    prefix = top.rstrip(b"/") + b"/"
    found: list[str] = []
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            point = _unescape(line.split(b" ", 5)[4])
            if point == top or point.startswith(prefix):
                found.append(os.fsdecode(point))
    return found


class _Remover:
    """Empties one directory; errors are kept and the rest goes on."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.moved: list[str] = []
        self.first_error: OSError | None = None

    def note(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) and self.first_error is None:
            self.first_error = error

    def empty(self, fd: int, depth: int) -> None:
        with os.scandir(fd) as entries:
            listing = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_dir in listing:
            try:
                if not is_dir:
                    os.unlink(name, dir_fd=fd)
                elif depth < _MAX_DEPTH:
                    with _open_child(fd, name) as child:
                        self.empty(child.fileno(), depth + 1)
                    os.rmdir(name, dir_fd=fd)
                else:
                    self.move_up(fd, name)
            except OSError as error:
                self.note(error)

    def move_up(self, fd: int, name: str) -> None:
        fresh = f".scow-deep-{os.urandom(8).hex()}"
        os.rename(name, fresh, src_dir_fd=fd, dst_dir_fd=self.top)
        self.moved.append(fresh)

    def run(self) -> None:
        self.empty(self.top, 1)
        while self.moved:
            name = self.moved.pop()
            try:
                with _open_child(self.top, name) as child:
                    self.empty(child.fileno(), 2)
                os.rmdir(name, dir_fd=self.top)
            except OSError as error:
                self.note(error)


def remove_tree(parent_fd: int, name: str) -> None:
    """Delete `name` and all below; gone already is fine. Never follows a link.

    Never crosses a mount, and deletes nothing at all when something is mounted below (EBUSY): a bind
    mount that leaked must not cost the host its files.
    """
    if name in ("", ".", "..") or "/" in name:
        raise _error(errno.EINVAL, name)
    try:
        info = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode):
            os.unlink(name, dir_fd=parent_fd)
            return
        with _open_child(parent_fd, name) as top:
            mounted = [] if _is_free_of_mounts(top.fileno()) else mounts_below(top.fileno())
            if mounted:
                raise _error(errno.EBUSY, mounted[0])
            remover = _Remover(top.fileno())
            remover.run()
        if remover.first_error is not None:
            raise remover.first_error
        os.rmdir(name, dir_fd=parent_fd)
    except FileNotFoundError:
        pass


def move_to_trash(parent_fd: int, name: str, trash_fd: int) -> str | None:
    """Take a name away in one step, under a new name in the trash; None when it is gone already.

    The new name says whose it is: see `is_in_use`.
    """
    fresh = f"{name}.{os.urandom(8).hex()}.{os.getpid()}"
    try:
        os.rename(name, fresh, src_dir_fd=parent_fd, dst_dir_fd=trash_fd)
    except FileNotFoundError:
        return None
    return fresh


def is_in_use(name: str) -> bool:
    """Whether who put this into the trash is alive, and so may be about to delete it."""
    return os.path.exists(f"/proc/{name.rpartition('.')[2]}")


def empty_trash(trash_fd: int) -> None:
    """Delete everything in the trash, what dead attempts left there included; the first error is raised."""
    first: OSError | None = None
    for name in os.listdir(trash_fd):
        try:
            remove_tree(trash_fd, name)
        except OSError as error:
            first = first or error
    if first is not None:
        raise first


def write_atomic(
    directory: int | str, name: str, data: bytes, mode: int = 0o600, durable: bool = True
) -> None:
    """Write `name` so that readers see the old file or the new one, also after a power cut."""
    if name in ("", ".", "..") or "/" in name:
        raise _error(errno.EINVAL, name)
    with contextlib.ExitStack() as stack:
        if isinstance(directory, str):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            directory = stack.enter_context(OwnedFd(os.open(directory, flags))).fileno()
        fresh = f".{name}.{os.urandom(6).hex()}.tmp"
        create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = stack.enter_context(OwnedFd(os.open(fresh, create, mode, dir_fd=directory)))
        try:
            os.fchmod(file.fileno(), mode)  # the umask is not ours to know
            _write_all(file.fileno(), data)
            if durable:
                os.fsync(file.fileno())
            os.rename(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(fresh, dir_fd=directory)
            if isinstance(error, OSError) and error.errno and error.filename is None:
                # write(2) knows no name, but whoever reads "no space left on device" asks where.
                where = os.readlink(f"/proc/self/fd/{directory}")
                raise _error(error.errno, f"{where}/{name}") from error
            raise
        if durable:
            os.fsync(directory)


def scan_tree(path: str) -> Iterator[os.stat_result]:
    """What lies below a directory that may be hostile: of every name what lstat(2) says, over no mount.

    One directory is open at a time. What vanishes meanwhile is left out, and a directory whose path is
    longer than the kernel takes. OSError is about `path` itself.
    """
    with OwnedFd(os.open(path, _DIRECTORY | os.O_CLOEXEC)) as top:
        pending = ["."]
        while pending:
            here = pending.pop()
            try:
                with (
                    OwnedFd(sys.openat2(top.fileno(), here, _DIRECTORY, 0, _CHILD)) as fd,
                    os.scandir(fd.fileno()) as entries,
                ):
                    for entry in entries:
                        yield entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(f"{here}/{entry.name}")
            except OSError:
                continue
