"""A stack of directories as overlayfs merges it, read without a mount.

What belongs here: which file of which directory a name shows; whiteouts and opaque directories. What
must not: tar, images, containers. The trees are hostile: each is reached from a descriptor of its
root, and no link in them is followed. Nothing is mounted, so a container that runs may be read:
overlayfs forbids a second mount of its upper directory. Source: kernel's overlayfs.rst.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from scow.image.digest import quote
from scow.native import sys
from scow.native.errors import ScowError
from scow.native.fd import OwnedFd

_RESOLVE = sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_MAGICLINKS
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
# The others are this host's business: labels of SELinux, overlayfs's own notes.
KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")
Xattrs = tuple[tuple[str, bytes], ...]


class Found(NamedTuple):
    """What a name of the merged directory shows."""

    tree: int  # the topmost tree that has it: its attributes count
    stat: os.stat_result
    chain: tuple[int, ...]  # of a directory: the trees that add to it, top first


class Node(NamedTuple):
    """One thing on a walk; `path` is without a slash at its beginning."""

    path: str
    found: Found


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it stands for a removed name of the trees below."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


class Stack:
    """Directories top first; the first ones may be looked at apart from those below.

    With `crossing` what is mounted in them belongs to them.
    """

    def __init__(self, roots: Sequence[int], *, crossing: bool = False) -> None:
        self._roots = roots
        self._resolve = _RESOLVE | (0 if crossing else sys.RESOLVE_NO_XDEV)

    def __len__(self) -> int:
        return len(self._roots)

    @classmethod
    @contextmanager
    def at(cls, paths: Sequence[str]) -> Generator[Stack]:
        """The directories at trusted paths."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        with ExitStack() as held:
            fds = [held.enter_context(OwnedFd(os.open(path, flags))) for path in paths]
            yield cls([fd.fileno() for fd in fds])

    def open(self, tree: int, path: str, flags: int = 0) -> OwnedFd:
        """A file or directory of one tree, for reading; never a link, and never waits."""
        try:
            return OwnedFd(
                sys.openat2(self._roots[tree], path or ".", _FLAGS | flags, 0, self._resolve)
            )
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ScowError(
                    f"cannot read {quote(path[:64])}...: its path has more than 4095 bytes"
                ) from error
            raise

    def raw(self, tree: int, path: str) -> dict[str, os.stat_result]:
        """The names of one tree's directory, whiteouts among them; none where it has no such."""
        found: dict[str, os.stat_result] = {}
        try:
            directory = self.open(tree, path, os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return found
        with directory, os.scandir(directory.fileno()) as entries:
            for entry in entries:
                try:
                    found[entry.name] = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # a running container has removed it
        return found

    def is_opaque(self, tree: int, path: str) -> bool:
        """Whether the directory hides what the trees below have under its name."""
        try:
            with self.open(tree, path, os.O_DIRECTORY) as directory:
                return os.getxattr(directory.fileno(), _OPAQUE) == b"y"
        except OSError:
            return False

    def merged(self, path: str, chain: Sequence[int]) -> dict[str, Found]:
        """The merged directory `path`, to which the trees of `chain` add, top first."""
        found: dict[str, Found] = {}
        closed: set[str] = set()
        for position, tree in enumerate(chain):
            for name, status in self.raw(tree, path).items():
                if name in closed:
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    closed.add(name)
                    if name not in found and not is_whiteout(status):
                        found[name] = Found(tree, status, ())
                elif (known := found.get(name)) is not None:
                    found[name] = known._replace(chain=(*known.chain, tree))
                else:
                    found[name] = Found(tree, status, (tree,))
                is_last = position + 1 == len(chain)
                if not is_last and name not in closed and self.is_opaque(tree, _join(path, name)):
                    closed.add(name)
        return found

    def chain(self, start: int = 0) -> tuple[int, ...]:
        """The trees from `start` on that show at the root: none below one that hides the others."""
        found: list[int] = []
        for tree in range(start, len(self)):
            found.append(tree)
            if self.is_opaque(tree, ""):
                break
        return tuple(found)

    def walk(
        self,
        path: str = "",
        chain: Sequence[int] | None = None,
        enter: Callable[[Node], bool] = lambda node: True,
    ) -> Iterator[Node]:
        """Everything below a directory: each one before what is in it, by the bytes of their names.

        `enter` says of each directory whether it is walked, too.
        """
        waiting = self._nodes(path, self.chain() if chain is None else chain)
        while waiting:
            node = waiting.pop()
            yield node
            if node.found.chain and enter(node):
                waiting += self._nodes(node.path, node.found.chain)

    def _nodes(self, path: str, chain: Sequence[int]) -> list[Node]:
        """The last one first, as a stack wants it."""
        names = sorted(self.merged(path, chain).items(), key=_by_bytes, reverse=True)
        return [Node(_join(path, name), found) for name, found in names]

    def xattrs(self, tree: int, path: str) -> Xattrs:
        """The attributes that belong to the file, by name."""
        head, _, name = path.rpartition("/")
        with self.open(tree, head, os.O_DIRECTORY) as parent:
            # Beside O_PATH there is no call for a link's or a device's by descriptor.
            return read_xattrs(f"/proc/self/fd/{parent.fileno()}/{name or '.'}")

    def readlink(self, tree: int, path: str) -> str:
        """The target of a link."""
        head, _, name = path.rpartition("/")
        with self.open(tree, head, os.O_DIRECTORY) as parent:
            return os.readlink(name, dir_fd=parent.fileno())


def read_xattrs(place: str | int) -> Xattrs:
    """The kept attributes of a path's last name itself, or of a descriptor."""
    kept: list[tuple[str, bytes]] = []
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ()
        raise
    for name in sorted(names):
        if name.startswith(KEPT_XATTRS):
            try:
                kept.append((name, os.getxattr(place, name, follow_symlinks=follow)))
            except OSError as error:
                if error.errno != errno.ENODATA:  # gone since
                    raise
    return tuple(kept)


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _by_bytes(item: tuple[str, object]) -> bytes:
    return os.fsencode(item[0])
