"""Directories of one hierarchy: make, mark, list, remove.

The invariant of the whole room lives here: nothing is touched unless its path is well formed and
scow made it. Two things tell:

- The sticky bit, which means nothing else on a cgroup: mkdir(2) gives it in the same step, so that
  whoever is killed right after it leaves a directory of which it can still be seen who made it.
- A container's cgroup has a mark besides, an extended attribute (`trusted.scow`; kernfs keeps it in
  memory, and trusted.* needs CAP_SYS_ADMIN in the initial user namespace, so a container cannot forge
  it) which may name the container. Only what has one may hold processes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable

from scow.native.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidState,
    NotFound,
    PermissionDenied,
)

MARK = "trusted.scow"
CONTAINER = b"container"
# Of a pod: has limits of its own and holds the cgroups of containers; stays when it is empty.
POD = b"pod"
# mkdir(2) honours the permission bits and the sticky bit, and kernfs keeps them.
_MODE = 0o755 | stat.S_ISVTX
# The tree that is ours without being told so; other parents must exist before.
OWN_TOP = "scow"
# What scow-oci takes where its configuration names no parent.
OCI_TOP = "scow-oci"
_MAX_COMPONENT = 255
_MAX_PATH = 3000
REMOVE_TIMEOUT_S = 2.0


def check_path(path: str, *, foreign: bool = False) -> str:
    """Give `path` back when it may name a container's cgroup; raises InvalidArgument.

    Relative to the hierarchy's root, at least two components, so that an empty path, a root and a
    top-level cgroup (a slice of the host) can never be meant. A `foreign` path may be at the top:
    there `adopt` looks closer.
    """
    if len(path) > _MAX_PATH:
        raise InvalidArgument(f"cgroup path is longer than {_MAX_PATH} characters")
    parts = path.split("/")
    if len(parts) < 2 and not foreign:
        raise InvalidArgument(f"cgroup path '{path}' is not 'parent/container'")
    for part in parts:
        check_component(part, path)
    return path


def check_component(part: str, path: str) -> None:
    """Refuse a component that leads elsewhere or that a kernel refuses."""
    if part in ("", ".", ".."):
        raise InvalidArgument(f"cgroup path '{path}' has an empty component, '.' or '..'")
    if not part.isprintable() or len(os.fsencode(part)) > _MAX_COMPONENT:
        raise InvalidArgument(f"cgroup path {path!r} has a component that is no file name")
    if part.startswith("cgroup."):
        raise InvalidArgument(f"cgroup path '{path}' has a component reserved by the kernel")


def read_mark(directory: str) -> bytes | None:
    """Our mark on `directory`, None without one. Raises FileNotFoundError."""
    try:
        return os.getxattr(directory, MARK)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def set_mark(directory: str, owner: str = "", *, pod: bool = False) -> None:
    """Say that a directory is a container's cgroup (or a pod's), and whose if that has a name."""
    kind = POD if pod else CONTAINER
    os.setxattr(directory, MARK, kind + os.fsencode(f" {owner}" if owner else ""))


def make(directory: str) -> None:
    """mkdir, so that it shows who made it. Raises OSError."""
    os.mkdir(directory, _MODE)


def is_container(directory: str) -> bool:
    """Whether `directory` is a container's cgroup. Raises FileNotFoundError."""
    return (read_mark(directory) or b"").startswith(CONTAINER)


def is_own_parent(directory: str) -> bool:
    """Whether scow made `directory` and has not marked it: to hold containers, or killed before."""
    return bool(os.stat(directory).st_mode & stat.S_ISVTX) and not is_container(directory)


def require_ours(directory: str, owner: str = "") -> bool:
    """Refuse a cgroup that scow did not make, or not for `owner`; False when it does not exist."""
    try:
        mark = read_mark(directory)
        if mark is None and is_own_parent(directory) and not _content(directory):
            return True  # whoever made it was killed before the mark
    except FileNotFoundError:
        return False
    if mark is None or not mark.startswith((CONTAINER, POD)):
        raise PermissionDenied(f"cgroup '{directory}' was not made by scow, leaving it alone")
    marked = os.fsdecode(mark).partition(" ")[2]
    if owner and marked and owner != marked:
        raise PermissionDenied(f"cgroup '{directory}' belongs to '{marked}', leaving it alone")
    return True


def _content(directory: str, keeper: int = 0) -> str:
    """What makes a cgroup a slice of the host or another's container; empty without such."""
    if pids := [pid for pid in list_pids(directory) if pid != keeper]:
        return f"has processes {pids[:8]}"
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = child_names(fd)
        return f"holds other cgroups {names[:4]}" if names else ""
    finally:
        os.close(fd)


def adopt(directory: str, owner: str = "", keeper: int = 0) -> bool:
    """Make an empty cgroup that somebody else made a container's; False when it is one already.

    Whoever configures a container may have made its cgroup before. Refuses (InvalidState) one with
    processes, but for `keeper`, or with cgroups below.
    """
    if is_container(directory):
        return False
    if content := _content(directory, keeper):
        raise InvalidState(f"container's cgroup is not empty: '{directory}' {content}")
    set_mark(directory, owner)
    return True


def require_parent(roots: Iterable[str], path: str) -> None:
    """Refuse a parent that is nowhere, unless it is of our own tree, which we make as needed."""
    parent = path.rpartition("/")[0]
    if parent.startswith(OWN_TOP) or any(os.path.isdir(f"{root}/{parent}") for root in roots):
        return
    raise NotFound(
        f"cgroup parent '{parent}' does not exist",
        hint="make it first, or leave the parent out to use scow's own",
    )


def refuse_container_above(root: str, path: str) -> None:
    """Refuse a parent that is, or is inside, the cgroup of a container."""
    parts = path.split("/")[:-1]
    if parts == [OWN_TOP]:
        return  # the usual case; we make no container there
    directory = root
    for part in parts:
        directory = f"{directory}/{part}"
        try:
            is_taken = is_container(directory)
        except FileNotFoundError:
            return
        if is_taken:
            raise InvalidArgument(f"cgroup parent '{directory}' is the cgroup of a container")


def make_parents(root: str, path: str) -> list[str]:
    """Make what is missing above the last component; gives what was made, top first."""
    made: list[str] = []
    directory = root
    for part in path.split("/")[:-1]:
        directory = f"{directory}/{part}"
        try:
            make(directory)
        except FileExistsError:
            continue
        made.append(directory)
    return made


def remove_empty_parents(root: str, path: str) -> None:
    """Remove parents that we made for this container alone; the own tops stay for the next one."""
    parts = path.split("/")[:-1]
    while parts not in ([OWN_TOP], [OCI_TOP]):
        directory = "/".join((root, *parts))
        try:
            if not parts or not is_own_parent(directory):
                return
            if read_mark(directory) == POD:
                return  # it goes with its pod
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError:
            return  # another container lives there: the last one removes it
        parts.pop()


def already_exists(directory: str) -> AlreadyExists:
    """The error for a cgroup that is there and not ours to replace."""
    return AlreadyExists(
        f"cgroup '{directory}' exists already", hint="is a container with this id running"
    )


def child_names(directory_fd: int) -> list[str]:
    """The sub-cgroups of an open cgroup."""
    with os.scandir(directory_fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def list_pids(directory: str) -> list[int]:
    """All processes in `directory` and below; empty when it does not exist.

    0 stands for a process of another pid namespace; such cannot be signalled and is left out.
    """
    found: list[int] = []
    pending = [directory]
    while pending:
        current = pending.pop()
        try:
            fd = os.open(current, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENAMETOOLONG):
                continue
            raise
        try:
            found.extend(_read_pids(fd))
            pending.extend(f"{current}/{name}" for name in child_names(fd))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # removed while we looked
                raise
        finally:
            os.close(fd)
    return [pid for pid in found if pid > 1]


def _read_pids(directory_fd: int) -> list[int]:
    for name in ("cgroup.procs", "cgroup.threads"):
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
            with os.fdopen(fd, "rb") as file:
                return [int(line) for line in file]
        except OSError as error:
            # cgroups(7): the procs file of a threaded v2 cgroup cannot be read, threads can.
            if error.errno != errno.EOPNOTSUPP:
                raise
    return []


def remove_tree(directory: str, *, deadline: float | None = None) -> None:
    """Remove a cgroup and all below it; fine when it is gone. Processes are not killed here.

    Retries for a while: a process that has just been reaped can still hold its cgroup for a
    moment. `deadline` is on the monotonic clock. Raises InvalidState that names who stays.
    """
    if deadline is None:
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
    pause = 0.0001
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        _remove_children(directory)
        pids = list_pids(directory)
        if time.monotonic() >= deadline:
            names = ", ".join(map(str, pids[:8])) or "none visible"
            raise InvalidState(f"cannot remove cgroup '{directory}': still has processes: {names}")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _remove_children(directory: str) -> None:
    """Remove every sub-cgroup that can be removed, deepest first, with two descriptors.

    Walks with `..` instead of a stack: a container that may make cgroups may nest them deeper
    than our descriptors or PATH_MAX reach.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        trail: list[tuple[str, list[str]]] = []
        names = child_names(fd)
        while True:
            if names:
                down = os.open(names[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = down
                trail.append((names.pop(), names))
                names = child_names(fd)
                continue
            if not trail:
                return
            up = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = up
            name, names = trail.pop()
            try:
                os.rmdir(name, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise
    except FileNotFoundError:
        return  # it went away under us; the caller looks again
    finally:
        os.close(fd)
