"""The operations a plan is made of: what the child may do between clone3 and execve, one class each.

What belongs here: operands, their encoding, and the words for `--explain`. What must not: which
operations a container needs and in what order (runtime/). The code numbers are those of plan.h.

Structs and not dataclasses (house style, section 7): 34 dataclasses cost 9 ms at every start of the
command, 34 structs 0.2.
"""

from __future__ import annotations

import struct
from typing import ClassVar, Final

import msgspec

from scow.native import sys
from scow.native.block import NONE, BlockWriter, Text
from scow.native.errors import InvalidArgument

NAMESPACE_NAMES: Final = {
    sys.CLONE_NEWNS: "CLONE_NEWNS",
    sys.CLONE_NEWPID: "CLONE_NEWPID",
    sys.CLONE_NEWNET: "CLONE_NEWNET",
    sys.CLONE_NEWIPC: "CLONE_NEWIPC",
    sys.CLONE_NEWUTS: "CLONE_NEWUTS",
    sys.CLONE_NEWCGROUP: "CLONE_NEWCGROUP",
    sys.CLONE_NEWUSER: "CLONE_NEWUSER",
    sys.CLONE_NEWTIME: "CLONE_NEWTIME",
}
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


def flag_names(value: int, names: dict[int, str]) -> str:
    """`A|B|0x40` for a set of flags."""
    parts = [name for bit, name in names.items() if value & bit]
    rest = value
    for bit in names:
        rest &= ~bit
    if rest or not parts:
        parts.append(hex(rest))
    return "|".join(parts)


def _show(text: Text) -> str:
    return text if isinstance(text, str) else text.decode(errors="backslashreplace")


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan; `why` says in plain words what it is good for."""

    code: ClassVar[int] = 0
    step: ClassVar[str] = ""  # the name in error messages and in `SetupError.step`
    why: str = ""

    def describe(self) -> str:
        """The system calls, with their flags."""
        raise NotImplementedError

    def subject(self) -> str | None:
        """The path or name it is about, for error messages."""
        return None

    def encode(self, writer: BlockWriter) -> bytes:
        """The record of 64 bytes."""
        return writer.record(self.code)


class JoinCgroups(Operation, frozen=True):
    """Write "0" to each `tasks` file (cgroup v1; on v2 the child is born inside)."""

    code = 1
    step = "join cgroups"
    fds: tuple[int, ...]

    def describe(self) -> str:
        return f'write("0") to tasks of {len(self.fds)} hierarchies'

    def encode(self, writer: BlockWriter) -> bytes:
        indexes = [writer.fd(fd) for fd in self.fds]
        blob = struct.pack(f"<{len(indexes)}I", *indexes)
        return writer.record(self.code, blob=blob, count=len(indexes))


class JoinNamespace(Operation, frozen=True):
    """setns to a namespace descriptor, or to several namespaces at once of a pidfd."""

    code = 2
    step = "join namespace"
    fd: int
    kind: int

    def describe(self) -> str:
        return f"setns({flag_names(self.kind, NAMESPACE_NAMES)})"

    def subject(self) -> str | None:
        return flag_names(self.kind, NAMESPACE_NAMES)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, fd=self.fd, numbers=(self.kind,))


class Unshare(Operation, frozen=True):
    """unshare after the clone: the cgroup namespace has its root where the child is by then."""

    code = 3
    step = "unshare"
    flags: int

    def describe(self) -> str:
        return f"unshare({flag_names(self.flags, NAMESPACE_NAMES)})"

    def subject(self) -> str | None:
        return flag_names(self.flags, NAMESPACE_NAMES)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.flags,))


class MountPropagation(Operation, frozen=True):
    """How mounts travel between the host and the container's mount namespace."""

    code = 4
    step = "set mount propagation"
    flags: int = sys.MS_SLAVE

    def describe(self) -> str:
        return f"mount(/, MS_REC|{flag_names(self.flags, _PROPAGATION_NAMES)})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.flags,))


class AttachRoot(Operation, frozen=True):
    """Attach the detached root tree at `at`, a directory of the host, in our own mount namespace."""

    code = 5
    step = "attach root"
    fd: int
    at: Text

    def describe(self) -> str:
        return f"move_mount(root, {_show(self.at)})"

    def subject(self) -> str | None:
        return _show(self.at)

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
        return f"fsmount({self.fstype}, {flags}, {words!r}); move_mount({_show(self.dest)})"

    def subject(self) -> str | None:
        return _show(self.dest)

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

    def describe(self) -> str:
        words = f"move_mount({_show(self.dest)})"
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
        return _show(self.dest)

    def encode(self, writer: BlockWriter) -> bytes:
        shape = int(self.recursive) | int(self.is_dir) << 1
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
        return f"mkdirat({_show(self.path)}, {self.mode:04o}, {self.uid}:{self.gid})"

    def subject(self) -> str | None:
        return _show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(
            self.code, texts=(self.path,), numbers=(self.mode, self.uid, self.gid)
        )


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
        return f"mknodat({_show(self.path)}, {self.mode:06o}, {self.major}:{self.minor})"

    def subject(self) -> str | None:
        return _show(self.path)

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
        return f"symlinkat({_show(self.target)}, {_show(self.path)})"

    def subject(self) -> str | None:
        return _show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.target, self.path))


class Mask(Operation, frozen=True):
    """Cover a path with an empty read-only directory or file; a missing path is fine, a link is not."""

    code = 11
    step = "mask"
    path: Text

    def describe(self) -> str:
        return f"open_tree(empty, OPEN_TREE_CLONE); move_mount({_show(self.path)})"

    def subject(self) -> str | None:
        return _show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.path,))


class ReadOnlyPath(Operation, frozen=True):
    """Bind a path on itself, read-only with all below; a missing path is fine."""

    code = 12
    step = "make read-only"
    path: Text

    def describe(self) -> str:
        return f"mount_setattr({_show(self.path)}, MOUNT_ATTR_RDONLY, AT_RECURSIVE)"

    def subject(self) -> str | None:
        return _show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.path,))


class SetHostname(Operation, frozen=True):
    """sethostname in the container's UTS namespace."""

    code = 13
    step = "set hostname"
    name: Text

    def describe(self) -> str:
        return f"sethostname({_show(self.name)})"

    def subject(self) -> str | None:
        return _show(self.name)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.name,))


class SetDomainname(Operation, frozen=True):
    """setdomainname in the container's UTS namespace."""

    code = 14
    step = "set domainname"
    name: Text

    def describe(self) -> str:
        return f"setdomainname({_show(self.name)})"

    def subject(self) -> str | None:
        return _show(self.name)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.name,))


class SetSysctl(Operation, frozen=True):
    """Write below /proc/sys through a private procfs; `key` with slashes."""

    code = 15
    step = "set sysctl"
    key: str
    value: str

    def describe(self) -> str:
        return f"write(/proc/sys/{self.key}, {self.value!r})"

    def subject(self) -> str | None:
        return self.key

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.key, self.value))


class AwaitParent(Operation, frozen=True):
    """Wait until the monitor has made the host's part of the network and the id maps."""

    code = 16
    step = "wait for the monitor"

    def describe(self) -> str:
        return "wait for the host's end of the network"


class Netlink(Operation, frozen=True):
    """rtnetlink messages in the container's network namespace, one after the other, each acknowledged."""

    code = 17
    step = "configure network"
    messages: bytes

    def describe(self) -> str:
        return f"sendto(NETLINK_ROUTE, {len(self.messages)} bytes)"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, blob=self.messages)


class Terminal(Operation, frozen=True):
    """A new session with a pty of the container's own devpts as stdin, stdout, stderr and console."""

    code = 18
    step = "open terminal"
    rows: int = 0
    cols: int = 0
    uid: int = 0
    console: bool = True

    def describe(self) -> str:
        words = "setsid(); open(/dev/pts/ptmx); ioctl(TIOCGPTPEER); ioctl(TIOCSCTTY)"
        return words + ("; move_mount(/dev/console)" if self.console else "")

    def subject(self) -> str | None:
        return "/dev/pts/ptmx"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.rows, self.cols, self.uid, self.console))


class StdioFromMonitor(Operation, frozen=True):
    """A new session with the monitor's pipes; without open stdin the container's own /dev/null."""

    code = 19
    step = "connect stdio"
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        return f"setsid(); fchown(pipes, {self.uid}:{self.gid}); dup2(0, 1, 2)"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.uid, self.gid))


class PivotRoot(Operation, frozen=True):
    """Make the attached root the root, and let go of the host's."""

    code = 20
    step = "pivot root"

    def describe(self) -> str:
        return "pivot_root(., .); umount2(., MNT_DETACH)"


class RemountRootReadOnly(Operation, frozen=True):
    """--read-only."""

    code = 21
    step = "make root read-only"

    def describe(self) -> str:
        return "mount_setattr(/, MOUNT_ATTR_RDONLY)"


class SetCwd(Operation, frozen=True):
    """chdir, made before if missing; refused when it is not inside of the root."""

    code = 22
    step = "change directory"
    path: Text

    def describe(self) -> str:
        return f"chdir({_show(self.path)}); getcwd()"

    def subject(self) -> str | None:
        return _show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.path,))


class SetRlimit(Operation, frozen=True):
    """One resource limit; -1 is infinity."""

    code = 23
    step = "set rlimit"
    resource: int
    soft: int
    hard: int

    def describe(self) -> str:
        return f"prlimit({self.resource}, {self.soft}, {self.hard})"

    def subject(self) -> str | None:
        return str(self.resource)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.resource, self.soft, self.hard))


class SetOomScoreAdj(Operation, frozen=True):
    """Who is killed first when memory runs out."""

    code = 24
    step = "set oom score"
    value: int

    def describe(self) -> str:
        return f"write(/proc/self/oom_score_adj, {self.value})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.value,))


class SetUmask(Operation, frozen=True):
    """The umask of the program."""

    code = 25
    step = "set umask"
    mode: int = 0o022

    def describe(self) -> str:
        return f"umask({self.mode:04o})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.mode,))


class NewSessionKeyring(Operation, frozen=True):
    """Leave the host's session keyring; a kernel without keys or room for them is a warning."""

    code = 26
    step = "make session keyring"
    name: Text

    def describe(self) -> str:
        return f"keyctl(JOIN_SESSION_KEYRING, {_show(self.name)})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.name,))


class ResetAffinity(Operation, frozen=True):
    """Every processor that the cgroup's cpuset allows, whatever the caller was bound to."""

    code = 27
    step = "reset affinity"

    def describe(self) -> str:
        return "sched_setaffinity(all)"


class AwaitStart(Operation, frozen=True):
    """Report that the container is created; go on at `start`."""

    code = 28
    step = "wait for start"

    def describe(self) -> str:
        return "report READY; wait for start"


class DropBounding(Operation, frozen=True):
    """Take every capability that is not in `keep_mask` out of the bounding set."""

    code = 29
    step = "drop bounding capabilities"
    keep_mask: int

    def describe(self) -> str:
        return f"prctl(PR_CAPBSET_DROP, ~{self.keep_mask:#x})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.keep_mask,))


class SetUser(Operation, frozen=True):
    """setgroups, setresgid, setresuid; the permitted capabilities stay until SetCapabilities."""

    code = 30
    step = "set user"
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def describe(self) -> str:
        groups = ",".join(map(str, self.groups))
        return f"setgroups([{groups}]); setresgid({self.gid}); setresuid({self.uid})"

    def subject(self) -> str | None:
        return f"{self.uid}:{self.gid}"

    def encode(self, writer: BlockWriter) -> bytes:
        for value in (self.uid, self.gid, *self.groups):
            if not 0 <= value < NONE:
                raise InvalidArgument(f"not a user or group id: {value}")
        blob = struct.pack(f"<{len(self.groups)}I", *self.groups)
        numbers = (self.uid, self.gid)
        return writer.record(self.code, blob=blob, count=len(self.groups), numbers=numbers)


class SetCapabilities(Operation, frozen=True):
    """capset, then the ambient set; masks of bits."""

    code = 31
    step = "set capabilities"
    effective: int
    permitted: int
    inheritable: int = 0
    ambient: int = 0

    def describe(self) -> str:
        return f"capset(e={self.effective:#x}, p={self.permitted:#x}, i={self.inheritable:#x}); ambient {self.ambient:#x}"

    def encode(self, writer: BlockWriter) -> bytes:
        numbers = (self.effective, self.permitted, self.inheritable, self.ambient)
        return writer.record(self.code, numbers=numbers)


class NoNewPrivileges(Operation, frozen=True):
    """Set-user-id programs and file capabilities give nothing any more."""

    code = 32
    step = "set no_new_privs"

    def describe(self) -> str:
        return "prctl(PR_SET_NO_NEW_PRIVS, 1)"


class LoadSeccomp(Operation, frozen=True):
    """A compiled filter (struct sock_filter, 8 bytes each)."""

    code = 33
    step = "load seccomp filter"
    program: bytes
    flags: int = 0

    def describe(self) -> str:
        count = len(self.program) // 8
        return f"seccomp(SECCOMP_SET_MODE_FILTER, {self.flags:#x}, {count} instructions)"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, blob=self.program, numbers=(self.flags,))


class Execute(Operation, frozen=True):
    """execve; a name without a slash is looked up in PATH of `env`."""

    code = 34
    step = "execute"
    argv: tuple[Text, ...]
    env: tuple[Text, ...] = ()

    def describe(self) -> str:
        return f"execve({', '.join(map(_show, self.argv))})"

    def subject(self) -> str | None:
        return _show(self.argv[0])

    def encode(self, writer: BlockWriter) -> bytes:
        if not self.argv:
            raise InvalidArgument("no command to execute")
        blob = writer.vector(self.argv)
        writer.vector(self.env)
        size = (len(self.argv) + len(self.env) + 2) * 8
        return writer.record(
            self.code, blob=blob, blob_len=size, numbers=(len(self.argv), len(self.env))
        )


OPERATIONS: Final[dict[int, type[Operation]]] = {
    kind.code: kind for kind in Operation.__subclasses__()
}
