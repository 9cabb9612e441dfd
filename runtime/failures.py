"""From the child's record {step, errno, index} to an error a person can act on.

A command that cannot be executed is looked at again, inside the container's root: the kernel says
ENOENT for a missing file and for a missing interpreter alike, and which one it is matters most.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from scow.native.errors import CommandNotExecutable, CommandNotFound, SetupError
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.native.plan import (
    AttachRoot,
    Execute,
    MountFilesystem,
    MountTree,
    Operation,
    Plan,
    setup_error,
)
from scow.runtime.monitor import Failure
from scow.runtime.users import quote

_MACHINES = {3: "386", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64", 21: "ppc64le"}
_HEAD = 4096


class _View:
    """The container's files as it would see them: its root, and what the plan mounts on it.

    The child is dead and its mounts are gone; the trees that were to be mounted are still held.
    """

    def __init__(self, plan: Plan, root: Root) -> None:
        self._root = root
        trees = [op for op in plan.ops if isinstance(op, MountTree)]
        # The last mount on the longest path is the one that is seen.
        self._trees = sorted(trees, key=lambda op: len(op.dest), reverse=True)

    def _find(self, path: str) -> tuple[Root, str]:
        for op in self._trees:
            dest = os.fsdecode(op.dest).rstrip("/")
            if path == dest:
                return Root(op.fd), ""
            if path.startswith(f"{dest}/"):
                return Root(op.fd), path[len(dest) :]
        return self._root, path

    def stat(self, path: str) -> os.stat_result:
        """Stat, following links inside the tree that the path lies in."""
        root, below = self._find(path)
        return root.stat(below) if below else os.fstat(root.fileno())

    def head(self, path: str) -> bytes:
        """Read the first bytes of a regular file; none of what cannot be read."""
        root, below = self._find(path)
        try:
            if not below:
                # Our own descriptor, so /proc/self/fd is no way out.
                fd = OwnedFd(os.open(f"/proc/self/fd/{root.fileno()}", os.O_RDONLY | os.O_NONBLOCK))
            else:
                fd = root.open(below, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return b""
        with fd:
            if not stat.S_ISREG(os.fstat(fd.fileno()).st_mode):
                return b""
            return os.read(fd.fileno(), _HEAD)


def explain_failure(plan: Plan, failure: Failure, root: Root | None) -> SetupError:
    """Make the error for a failed step; `root` is the container's root while it can be read."""
    number, index = failure.errno, failure.index
    op = plan.ops[index] if 0 <= index < len(plan.ops) else None
    if isinstance(op, Execute):
        return _explain_execute(op, number, index, _View(plan, root) if root else None)
    error = setup_error(plan, failure.step, number, index, failure.detail)
    error.hint = _hint(op, number)
    return error


def _hint(op: Operation | None, number: int) -> str | None:
    if number == errno.ENOSPC and isinstance(op, MountFilesystem | MountTree | AttachRoot):
        return "the limit fs.mount-max is reached"
    if number == errno.EPERM:
        return "scow needs root with CAP_SYS_ADMIN in the host's user namespace"
    return None


def _explain_execute(op: Execute, number: int, index: int, root: _View | None) -> SetupError:
    name = quote(os.fsdecode(op.argv[0]))
    found = _find_command(op, root) if root is not None else None
    if number == errno.ENOENT and found is not None:
        missing = _interpreter(root, found) if root is not None else None
        if missing:
            return CommandNotFound(
                f"cannot execute '{name}': its interpreter '{missing}' is not in the image",
                step="Execute",
                errno=number,
                index=index,
                path=found,
            )
    if number in (errno.ENOENT, errno.ENOTDIR):
        where = "" if "/" in name else " in $PATH"
        return CommandNotFound(
            f"cannot execute '{name}': not found{where} of the image",
            step="Execute",
            errno=number,
            index=index,
            path=name,
        )
    reason = _why_not_executable(number, found, root)
    return CommandNotExecutable(
        f"cannot execute '{found or name}': {reason}",
        step="Execute",
        errno=number,
        index=index,
        path=found or name,
    )


def _why_not_executable(number: int, found: str | None, root: _View | None) -> str:
    if number == errno.EACCES and found is not None and root is not None:
        try:
            mode = root.stat(found).st_mode
        except OSError:
            mode = 0
        if stat.S_ISDIR(mode):
            return "it is a directory"
        if mode and not mode & 0o111:
            return "it has no execute permission"
    if number == errno.ENOEXEC and found is not None and root is not None:
        head = root.head(found)
        if head[:4] == b"\x7fELF" and len(head) >= 20:
            machine = struct.unpack_from("<H", head, 18)[0]
            theirs = _MACHINES.get(machine, f"machine {machine}")
            return f"exec format error: it is built for {theirs}, this host is {os.uname().machine}"
        if not head.startswith(b"#!"):
            return "exec format error: neither a program nor a script that begins with '#!'"
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def _find_command(op: Execute, root: _View | None) -> str | None:
    """Find what execvp(3) would have tried last: the first candidate that exists."""
    name = os.fsdecode(op.argv[0])
    if "/" in name:
        candidates = [name]
    else:
        path = "/usr/local/bin:/usr/bin:/bin"
        for entry in map(os.fsdecode, op.env):
            if entry.startswith("PATH="):
                path = entry.removeprefix("PATH=")
        candidates = [f"{directory}/{name}" for directory in path.split(":") if directory]
    for candidate in candidates:
        try:
            if root is not None and stat.S_IFMT(root.stat(candidate).st_mode):
                return candidate
        except OSError:
            continue
    return None


def _interpreter(root: _View | None, path: str) -> str | None:
    """Give the missing interpreter of a script (#!) or program (PT_INTERP), if that is the fault."""
    if root is None:
        return None
    head = root.head(path)
    wanted = ""
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split()
        wanted = os.fsdecode(words[0]) if words else ""
    elif head[:4] == b"\x7fELF":
        wanted = _elf_interpreter(head)
    if not wanted:
        return None
    try:
        root.stat(wanted)
    except OSError:
        return quote(wanted)
    return None


def _elf_interpreter(head: bytes) -> str:
    """Read PT_INTERP of a 64-bit little-endian ELF file from its first bytes (elf(5))."""
    if len(head) < 64 or head[4] != 2 or head[5] != 1:
        return ""
    offset = struct.unpack_from("<Q", head, 32)[0]
    size, count = struct.unpack_from("<HH", head, 54)
    for number in range(min(count, 64)):
        start = offset + number * size
        if start + 56 > len(head):
            break
        kind, _flags, where, _va, _pa, length = struct.unpack_from("<IIQQQQ", head, start)
        if kind == 3 and where + length <= len(head):
            return os.fsdecode(head[where : where + length].rstrip(b"\0"))
    return ""
