"""What an upper directory changes of the stack below it: `diff`, and the layer that `commit` makes.

What belongs here: comparing, and the tar of a layer with whiteouts in OCI's form. What must not: where
the directories come from. The words are Docker's: a directory is changed when its attributes are, or
when something in it is. Source: image-spec layer.md.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from typing import NamedTuple

from scow.image.digest import quote
from scow.image.pack import add_node
from scow.image.tarwriter import Member, TarWriter
from scow.image.trees import Found, Node, Stack, is_whiteout
from scow.native.errors import InvalidState, Unsupported

ADDED, CHANGED, DELETED = "A", "C", "D"
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
_NOTES = ("trusted.overlay.redirect", "trusted.overlay.metacopy")


class Change(NamedTuple):
    """One line of `scow diff`; `path` begins with a slash."""

    kind: str
    path: str


class _Pair(NamedTuple):
    """A name in a directory of the upper trees: as it is now, and as it is without them."""

    path: str
    now: Found | None
    before: Found | None


def changes(stack: Stack, top: int, ignored: Collection[str] = ()) -> list[Change]:
    """What the first `top` trees change of the others, by path.

    `ignored` are places that something was mounted on: made for that, empty, and no change.
    """
    found: dict[str, str] = {}
    for pair in _pairs(stack, top):
        kind = _judge(stack, pair)
        if kind == ADDED and _is_mount_point(stack, pair, ignored):
            continue
        if kind is not None:
            found[pair.path] = kind
            parent = os.path.dirname(pair.path)
            while parent and parent not in found:
                found[parent] = CHANGED  # Docker tells of a directory with changes in it
                parent = os.path.dirname(parent)
    return [Change(found[path], f"/{path}") for path in sorted(found, key=os.fsencode)]


def _pairs(stack: Stack, top: int) -> Iterator[_Pair]:
    """Every name that the upper trees have or hide; a directory comes before what is in it."""
    waiting = [("", stack.chain(), stack.chain(top))]
    while waiting:
        path, chain, lower = waiting.pop()
        now, before = stack.merged(path, chain), stack.merged(path, lower)
        names: set[str] = set()
        for tree in chain:
            if tree < top:
                names.update(stack.raw(tree, path))
        # A directory that was made anew hides all that the one before it had.
        if set(lower) - set(chain):
            names.update(before)
        for name in sorted(names, key=os.fsencode, reverse=True):
            pair = _Pair(f"{path}/{name}" if path else name, now.get(name), before.get(name))
            yield pair
            if pair.now is not None and pair.now.chain:
                below = pair.before.chain if pair.before is not None else ()
                waiting.append((pair.path, pair.now.chain, below))


def _judge(stack: Stack, pair: _Pair) -> str | None:
    now, before = pair.now, pair.before
    if now is None:
        return DELETED if before is not None else None
    if before is None:
        return ADDED
    return None if _is_same(stack, pair.path, now, before) else CHANGED


def _is_same(stack: Stack, path: str, now: Found, before: Found) -> bool:
    """Whether a copied-up file or directory is what it was."""
    if now.tree == before.tree:
        return True
    a, b = now.stat, before.stat
    if (a.st_mode, a.st_uid, a.st_gid, a.st_rdev) != (b.st_mode, b.st_uid, b.st_gid, b.st_rdev):
        return False
    if not stat.S_ISDIR(a.st_mode) and (a.st_mtime_ns, a.st_size) != (b.st_mtime_ns, b.st_size):
        return False
    return stack.xattrs(now.tree, path) == stack.xattrs(before.tree, path)


def _is_mount_point(stack: Stack, pair: _Pair, ignored: Collection[str]) -> bool:
    now = pair.now
    if pair.path not in ignored or now is None:
        return False
    if now.chain:
        return not stack.merged(pair.path, now.chain)
    return stat.S_ISREG(now.stat.st_mode) and now.stat.st_size == 0


class _Directory(NamedTuple):
    path: str
    before: dict[str, Found]  # what the trees below have there
    members: Iterator[tuple[str, os.stat_result]]


class LayerWriter:
    """The layer that the first tree of a stack is upon the others, as a tar.

    Directories that were only copied up, with nothing changed in them, are left out, and so are
    sockets. Names are sorted: the same tree gives the same bytes.
    """

    def __init__(self, stack: Stack, tar: TarWriter, ignored: Collection[str] = ()) -> None:
        self._stack = stack
        self._tar = tar
        self._ignored = ignored
        self._links: dict[tuple[int, int], bytes] = {}
        self._held: list[Node] = []  # directories on the way here that nothing needed so far

    def run(self) -> None:
        """Write all members; the end of the archive is the caller's."""
        waiting = [self._directory("", self._stack.chain(1))]
        while waiting:
            step = next(waiting[-1].members, None)
            if step is None:
                path = waiting.pop().path
                if self._held and self._held[-1].path == path:
                    self._held.pop()
                continue
            entered = self._member(waiting[-1], *step)
            if entered is not None:
                waiting.append(entered)

    def _directory(self, path: str, chain: tuple[int, ...]) -> _Directory:
        found = self._stack.raw(0, path)
        before = self._stack.merged(path, chain) if found else {}
        return _Directory(path, before, iter(sorted(found.items(), key=_by_bytes)))

    def _member(self, parent: _Directory, name: str, status: os.stat_result) -> _Directory | None:
        """Write one thing; of a directory, what is in it is to be written next."""
        path = f"{parent.path}/{name}" if parent.path else name
        before = parent.before.get(name)
        if is_whiteout(status):
            if before is not None:
                self._mark(f"{parent.path}/{WHITEOUT}{name}" if parent.path else WHITEOUT + name)
            return None
        if name.startswith(WHITEOUT):
            raise InvalidState(
                f"cannot make a layer of {quote('/' + path)}: names that begin with '.wh.' "
                "stand for removed files in images",
                hint="remove or rename the file",
            )
        found = Found(0, status, (0,) if stat.S_ISDIR(status.st_mode) else ())
        if before is None and _is_mount_point(self._stack, _Pair(path, found, None), self._ignored):
            return None
        node = Node(path, found)
        if not found.chain:
            self._flush()
            add_node(self._tar, self._stack, node, self._links)
            return None
        self._refuse_notes(path)
        chain = before.chain if before is not None else ()
        self._held.append(node)
        if before is None or not _is_same(self._stack, path, found, before):
            self._flush()
        if chain and self._stack.is_opaque(0, path):
            self._mark(f"{path}/{OPAQUE}")
            chain = ()
        return self._directory(path, chain)

    def _flush(self) -> None:
        for node in self._held:
            add_node(self._tar, self._stack, node, self._links)
        self._held = []

    def _mark(self, path: str) -> None:
        self._flush()
        self._tar.add(Member(os.fsencode(path), mode=0))

    def _refuse_notes(self, path: str) -> None:
        with self._stack.open(0, path, os.O_DIRECTORY) as directory:
            notes = [n for n in _NOTES if n in os.listxattr(directory.fileno())]
        if notes:
            raise Unsupported(
                f"cannot make a layer of {quote('/' + path)}: the kernel only noted that it was renamed "
                f"('{notes[0]}')",
                hint="the overlay module has redirect_dir on; copy the directory in the container",
            )


def _by_bytes(item: tuple[str, object]) -> bytes:
    return os.fsencode(item[0])
