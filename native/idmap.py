"""Id maps: a user namespace that holds one, and mount trees that are seen through it.

What belongs here: three numbers a line -> a namespace, a mapped tree. What must not: whose ids these
are, and which mounts get them.
"""

from __future__ import annotations

import errno
import os

import msgspec

from scow.native import sys
from scow.native.errors import InvalidArgument, ScowError, Unsupported
from scow.native.fd import OwnedFd


class IdMap(msgspec.Struct, frozen=True):
    """The lines of uid_map and gid_map: (id inside, id on the host, count)."""

    uid: tuple[tuple[int, int, int], ...]
    gid: tuple[tuple[int, int, int], ...]

    @property
    def host_uid(self) -> int:
        """Who the root of a namespace with these maps is on the host; without a root its first user."""
        return _host_id(self.uid)

    @property
    def host_gid(self) -> int:
        """The same for groups."""
        return _host_id(self.gid)


def _host_id(lines: tuple[tuple[int, int, int], ...]) -> int:
    return min(lines)[1]


def to_host(lines: tuple[tuple[int, int, int], ...], number: int) -> int:
    """What an id inside is on the host; InvalidArgument where it is nobody's."""
    for inside, outside, count in lines:
        if inside <= number < inside + count:
            return outside + number - inside
    raise InvalidArgument(f"id {number} is not in the id map of the user namespace")


def open_user_namespace(ids: IdMap) -> OwnedFd:
    """A user namespace with these maps, kept by its descriptor alone."""
    told, tell = os.pipe()
    wait, free = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            # Of all descriptors only these: two of us at once would hold each other's ends, for ever.
            first, second = sorted((tell, wait))
            os.closerange(0, first)
            os.closerange(first + 1, second)
            os.closerange(second + 1, 1 << 30)
            sys.unshare(sys.CLONE_NEWUSER)
            os.write(tell, b"x")
            os.read(wait, 1)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        if not os.read(told, 1):
            raise ScowError("cannot make a user namespace for an id-mapped mount")
        write_id_maps(pid, ids)
        return OwnedFd(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for end in (told, wait, free):
            os.close(end)
        os.waitpid(pid, 0)


def write_id_maps(pid: int, ids: IdMap) -> None:
    """Say what the ids of a process in a new user namespace are on the host; once, and nobody else may."""
    for name, lines in (("uid_map", ids.uid), ("gid_map", ids.gid)):
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in lines)
        try:
            with OwnedFd(os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)) as fd:
                os.write(fd.fileno(), text.encode())
        except OSError as error:
            number = errno.errorcode.get(error.errno or 0, "?")
            raise ScowError(f"cannot write {name} of a user namespace: {number}") from error


def open_mapped_tree(path: str, namespace: OwnedFd) -> OwnedFd:
    """A private, detached clone of `path`, without mounts below it, as `namespace` maps its ids."""
    tree = OwnedFd(sys.open_tree(sys.AT_FDCWD, path, sys.OPEN_TREE_CLONE))
    try:
        sys.mount_setattr(
            tree.fileno(),
            "",
            sys.AT_EMPTY_PATH,
            sys.MOUNT_ATTR_IDMAP,
            propagation=sys.MS_PRIVATE,
            userns_fd=namespace.fileno(),
        )
    except OSError as error:
        tree.close()
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise Unsupported(
            f"cannot map the ids of '{path}': {error.strerror}",
            hint="the kernel maps ids on ext4 and XFS from 5.12, btrfs from 5.15, tmpfs from 6.3",
        ) from error
    return tree
