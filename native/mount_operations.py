"""The operations that make the container's file tree.

What belongs here: mounts, nodes and paths, as operands and in words. What must not: which mounts a
container gets (runtime/). The code numbers are those of plan.h.
"""

from __future__ import annotations

import struct
from typing import Final

from scow.native import sys
from scow.native.block import NONE, BlockWriter, Text
from scow.native.operation import Operation, flag_names, show

_ATTR_NAMES: Final = {
    sys.MOUNT_ATTR_RDONLY: "MOUNT_ATTR_RDONLY",
    sys.MOUNT_ATTR_NOSUID: "MOUNT_ATTR_NOSUID",
    sys.MOUNT_ATTR_NODEV: "MOUNT_ATTR_NODEV",
    sys.MOUNT_ATTR_NOEXEC: "MOUNT_ATTR_NOEXEC",
    sys.MOUNT_ATTR_NOATIME: "MOUNT_ATTR_NOATIME",
    sys.MOUNT_ATTR_STRICTATIME: "MOUNT_ATTR_STRICTATIME",
    sys.MOUNT_ATTR_NODIRATIME: "MOUNT_ATTR_NODIRATIME",
    sys.MOUNT_ATTR_NOSYMFOLLOW: "MOUNT_ATTR_NOSYMFOLLOW",
}
_PROPAGATION_NAMES: Final = {
    sys.MS_PRIVATE: "MS_PRIVATE",
    sys.MS_SLAVE: "MS_SLAVE",
    sys.MS_SHARED: "MS_SHARED",
    sys.MS_UNBINDABLE: "MS_UNBINDABLE",
}


class MountPropagation(Operation, frozen=True):
    """How mounts travel between the host and the container's mount namespace."""

    code = 4
    step = "set mount propagation"
    flags: int = sys.MS_SLAVE
    top_only: bool = False

    def describe(self) -> str:
        recursive = "" if self.top_only else "MS_REC|"
        return f"mount(/, {recursive}{flag_names(self.flags, _PROPAGATION_NAMES)})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.flags, self.top_only))


class AttachRoot(Operation, frozen=True):
    """Attach the detached root tree at `at`, a directory of the host, in our own mount namespace."""

    code = 5
    step = "attach root"
    fd: int
    at: Text

    def describe(self) -> str:
        return f"move_mount(root, {show(self.at)})"

    def subject(self) -> str | None:
        return show(self.at)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, fd=self.fd, texts=(self.at,))


class MountFilesystem(Operation, frozen=True):
    """A new file system (proc, tmpfs, ...) at `dest` in the root, which is made when missing."""

    code = 6
    step = "mount"
    fstype: str
    dest: Text
    flags: int = 0
    options: tuple[tuple[str, str | None], ...] = ()
    source: Text = ""

    def describe(self) -> str:
        words = ",".join(key if value is None else f"{key}={value}" for key, value in self.options)
        flags = flag_names(self.flags, _ATTR_NAMES) if self.flags else "0"
        return f"fsmount({self.fstype}, {flags}, {words!r}); move_mount({show(self.dest)})"

    def subject(self) -> str | None:
        return show(self.dest)

    def encode(self, writer: BlockWriter) -> bytes:
        pairs: list[int] = []
        for key, value in self.options:
            pairs += (writer.data.text(key), NONE if value is None else writer.data.text(value))
        return writer.record(
            self.code,
            texts=(self.fstype, self.dest, self.source),
            blob=struct.pack(f"<{len(pairs)}I", *pairs),
            count=len(self.options),
            numbers=(self.flags,),
        )


class MountJoinedProc(Operation, frozen=True):
    """The procfs of a pid namespace that is joined, taken from a container that lives in it."""

    code = 37
    step = "mount"
    mount_namespace_fd: int
    pid_namespace_fd: int
    dest: Text
    flags: int = 0

    def describe(self) -> str:
        flags = flag_names(self.flags, _ATTR_NAMES) if self.flags else "0"
        return (
            "setns(CLONE_NEWNS); open_tree(/proc, OPEN_TREE_CLONE); setns(CLONE_NEWNS); "
            f"mount_setattr({flags}); move_mount({show(self.dest)})"
        )

    def subject(self) -> str | None:
        return show(self.dest)

    def encode(self, writer: BlockWriter) -> bytes:
        indexes = [writer.fd(self.mount_namespace_fd), writer.fd(self.pid_namespace_fd)]
        blob = struct.pack("<2I", *indexes)
        return writer.record(
            self.code, texts=(self.dest,), blob=blob, count=2, numbers=(self.flags,)
        )


class MountTree(Operation, frozen=True):
    """A detached tree (open_tree(OPEN_TREE_CLONE)) onto `dest`; made as directory or empty file."""

    code = 7
    step = "mount"
    fd: int
    dest: Text
    attr_set: int = 0
    attr_clr: int = 0
    recursive: bool = False
    propagation: int = 0
    is_dir: bool = True
    propagate_below: bool = False
    """Propagation is of the whole tree, also where the attributes are of its top alone."""

    def describe(self) -> str:
        words = f"move_mount({show(self.dest)})"
        if self.attr_set or self.attr_clr or self.propagation:
            parts = [flag_names(self.attr_set, _ATTR_NAMES) if self.attr_set else "0"]
            if self.attr_clr:
                parts.append(f"clear {flag_names(self.attr_clr, _ATTR_NAMES)}")
            if self.propagation:
                parts.append(flag_names(self.propagation, _PROPAGATION_NAMES))
            if self.recursive:
                parts.append("AT_RECURSIVE")
            words = f"mount_setattr({', '.join(parts)}); {words}"
        return words

    def subject(self) -> str | None:
        return show(self.dest)

    def encode(self, writer: BlockWriter) -> bytes:
        shape = int(self.recursive) | int(self.is_dir) << 1 | int(self.propagate_below) << 2
        numbers = (self.attr_set, self.attr_clr, self.propagation, shape)
        return writer.record(self.code, fd=self.fd, texts=(self.dest,), numbers=numbers)


class MakeDirectory(Operation, frozen=True):
    """mkdir -p in the root; what the image has keeps its mode and owner."""

    code = 8
    step = "make directory"
    path: Text
    mode: int = 0o755
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        return f"mkdirat({show(self.path)}, {self.mode:04o}, {self.uid}:{self.gid})"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.path,), numbers=(self.mode, self.uid, self.gid))


class MakeDevice(Operation, frozen=True):
    """A device node or fifo; `mode` with its S_IFCHR, S_IFBLK or S_IFIFO."""

    code = 9
    step = "make device"
    path: Text
    mode: int
    major: int = 0
    minor: int = 0
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        return f"mknodat({show(self.path)}, {self.mode:06o}, {self.major}:{self.minor})"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        numbers = (self.mode, self.major << 32 | self.minor, self.uid, self.gid)
        return writer.record(self.code, texts=(self.path,), numbers=numbers)


class MakeSymlink(Operation, frozen=True):
    """A symbolic link; whatever is there already stays."""

    code = 10
    step = "make symlink"
    target: Text
    path: Text

    def describe(self) -> str:
        return f"symlinkat({show(self.target)}, {show(self.path)})"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.target, self.path))


class Mask(Operation, frozen=True):
    """Cover a path with an empty read-only directory or file; a missing path is fine, a link is not."""

    code = 11
    step = "mask"
    path: Text

    def describe(self) -> str:
        return f"open_tree(empty, OPEN_TREE_CLONE); move_mount({show(self.path)})"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.path,))


class ReadOnlyPath(Operation, frozen=True):
    """Bind a path on itself, read-only with all below; a missing path is fine."""

    code = 12
    step = "make read-only"
    path: Text

    def describe(self) -> str:
        return f"mount_setattr({show(self.path)}, MOUNT_ATTR_RDONLY, AT_RECURSIVE)"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.path,))


class SetMountAttributes(Operation, frozen=True):
    """Change the attributes of one mount that is there already, or of all below it, too."""

    code = 35
    step = "set mount attributes"
    path: Text
    attr_set: int
    attr_clr: int = 0
    recursive: bool = False

    def describe(self) -> str:
        parts = [show(self.path), flag_names(self.attr_set, _ATTR_NAMES) if self.attr_set else "0"]
        if self.attr_clr:
            parts.append(f"clear {flag_names(self.attr_clr, _ATTR_NAMES)}")
        if self.recursive:
            parts.append("AT_RECURSIVE")
        return f"mount_setattr({', '.join(parts)})"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        numbers = (self.attr_set, self.attr_clr, 0, self.recursive)
        return writer.record(self.code, texts=(self.path,), numbers=numbers)


class SetPropagation(Operation, frozen=True):
    """How mounts travel from and to one that is there already (MS_SHARED and the like)."""

    code = 52
    step = "set mount propagation"
    path: Text
    flags: int
    recursive: bool = False

    def describe(self) -> str:
        more = ", AT_RECURSIVE" if self.recursive else ""
        flags = flag_names(self.flags, _PROPAGATION_NAMES)
        return f"mount_setattr({show(self.path)}, {flags}{more})"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        numbers = (0, 0, self.flags, self.recursive)
        return writer.record(self.code, texts=(self.path,), numbers=numbers)


class HideHost(Operation, frozen=True):
    """Take a mount of the host's away, or cover it, where the host's root stays below the container's."""

    code = 53
    step = "hide the host's mount"
    path: Text

    def describe(self) -> str:
        return f"umount2({show(self.path)}, MNT_DETACH)"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.path,))


class PivotRoot(Operation, frozen=True):
    """Make the attached root the root, and let go of the host's."""

    code = 20
    step = "pivot root"
    keep_host: bool = False
    """chroot(2) to the root that lies on top: for a host whose own root is a ramfs."""

    def describe(self) -> str:
        return "chroot(.)" if self.keep_host else "pivot_root(., .); umount2(., MNT_DETACH)"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.keep_host,))


class RemountRootReadOnly(Operation, frozen=True):
    """--read-only."""

    code = 21
    step = "make root read-only"

    def describe(self) -> str:
        return "mount_setattr(/, MOUNT_ATTR_RDONLY)"
