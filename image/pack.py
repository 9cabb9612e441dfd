"""Trees as tar streams: what `export` writes, and each member of a layer.

What belongs here: one node of a stack -> one member, exact. Links between names of one file stay
links; holes stay holes; sockets have no place in a tar and are left out, as every program does.
"""

from __future__ import annotations

import os
import stat

from scow.image.tarwriter import (
    BLOCKDEV,
    CHAR,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    Member,
    TarWriter,
)
from scow.image.trees import Node, Stack, Xattrs, read_xattrs

# The first name of a file with several, by tree and inode.
Links = dict[tuple[int, int], bytes]


def export_tree(stack: Stack, tar: TarWriter) -> None:
    """Everything that the stack shows, in the order of the names, with the end of the archive."""
    links: Links = {}
    for node in stack.walk():
        add_node(tar, stack, node, links)
    tar.finish()


def add_node(tar: TarWriter, stack: Stack, node: Node, links: Links) -> None:
    """Add one file, directory, link or device; what is gone meanwhile is left out."""
    try:
        _add(tar, stack, node, links)
    except FileNotFoundError:
        pass  # a running container removes what it likes


def _add(tar: TarWriter, stack: Stack, node: Node, links: Links) -> None:
    found, name = node.found, os.fsencode(node.path)
    status = found.stat
    is_directory = stat.S_ISDIR(status.st_mode)
    if stat.S_ISSOCK(status.st_mode):
        return
    if status.st_nlink > 1 and not is_directory:
        first = links.setdefault((found.tree, status.st_ino), name)
        if first != name:
            tar.add(_member(name, status, LINK, link=first))
            return
    if stat.S_ISREG(status.st_mode):
        _add_file(tar, stack, node, name)
        return
    xattrs = stack.xattrs(found.tree, node.path)
    if is_directory:
        tar.add(_member(name + b"/", status, DIRECTORY, xattrs=xattrs))
    elif stat.S_ISLNK(status.st_mode):
        target = os.fsencode(stack.readlink(found.tree, node.path))
        tar.add(_member(name, status, SYMLINK, link=target, xattrs=xattrs))
    elif stat.S_ISFIFO(status.st_mode):
        tar.add(_member(name, status, FIFO, xattrs=xattrs))
    else:
        kind = CHAR if stat.S_ISCHR(status.st_mode) else BLOCKDEV
        device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        tar.add(_member(name, status, kind, device=device, xattrs=xattrs))


def _add_file(tar: TarWriter, stack: Stack, node: Node, name: bytes) -> None:
    with stack.open(node.found.tree, node.path) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return  # swapped since; it never was what it is now
        xattrs = read_xattrs(file.fileno())
        member = _member(name, status, FILE, size=status.st_size, xattrs=xattrs)
        tar.add_file(member, file.fileno())


def _member(
    name: bytes,
    status: os.stat_result,
    kind: bytes,
    *,
    size: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Xattrs = (),
) -> Member:
    return Member(
        name,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        size,
        link,
        device,
        xattrs,
    )
