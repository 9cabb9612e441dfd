"""The operations that make the process: namespaces, network, stdio, limits, identity, execve.

What belongs here: their operands, as bytes and in words. What must not: which of them a container
needs and in what order (runtime/). The code numbers are those of plan.h.
"""

from __future__ import annotations

import struct
from typing import Final

from scow.native import sys
from scow.native.block import NONE, BlockWriter, Text
from scow.native.errors import InvalidArgument
from scow.native.operation import Operation, flag_names, show

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
    late: bool = False
    """By the child at this place, also in a direct plan, which joins before the clone else."""

    def describe(self) -> str:
        return f"setns({flag_names(self.kind, NAMESPACE_NAMES)})"

    def subject(self) -> str | None:
        return flag_names(self.kind, NAMESPACE_NAMES)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, fd=self.fd, numbers=(self.kind, self.late))


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


class SetHostname(Operation, frozen=True):
    """sethostname in the container's UTS namespace."""

    code = 13
    step = "set hostname"
    name: Text

    def describe(self) -> str:
        return f"sethostname({show(self.name)})"

    def subject(self) -> str | None:
        return show(self.name)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.name,))


class SetDomainname(Operation, frozen=True):
    """setdomainname in the container's UTS namespace."""

    code = 14
    step = "set domainname"
    name: Text

    def describe(self) -> str:
        return f"setdomainname({show(self.name)})"

    def subject(self) -> str | None:
        return show(self.name)

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
    """Wait until the monitor has made the host's part of the network and the id maps.

    In a direct plan the starter is told so, with `moment`, and answers.
    """

    code = 16
    step = "wait for the monitor"
    moment: int = 0

    def describe(self) -> str:
        return "wait for the host's end of the network"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.moment,))


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
    """A new session with a pty of the container's own devpts as stdin, stdout and stderr.

    `console` binds it on /dev/console too, in run mode only.
    """

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
    on_host: tuple[int, int] | None = None
    """Who that is outside of the user namespace: the monitor gives the pipes away."""

    def describe(self) -> str:
        uid, gid = self.on_host or (self.uid, self.gid)
        return f"setsid(); fchown(pipes, {uid}:{gid}); dup2(0, 1, 2)"

    def encode(self, writer: BlockWriter) -> bytes:
        numbers = (self.uid, self.gid, *(self.on_host or ()))
        return writer.record(self.code, count=int(self.on_host is not None), numbers=numbers)


class SetCwd(Operation, frozen=True):
    """chdir as the user; PivotRoot makes it when missing. Refused when it is not inside of the root."""

    code = 22
    step = "change directory"
    path: Text

    def describe(self) -> str:
        return f"chdir({show(self.path)}); getcwd()"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.path,))


class EnterPidNamespace(Operation, frozen=True):
    """Go on as a new process in the pid namespace that was joined, with these capabilities at most.

    Comes when the root is the container's: whoever may trace in there sees us from here on.
    """

    code = 36
    step = "enter pid namespace"
    keep_mask: int

    def describe(self) -> str:
        return f"capset(e=p={self.keep_mask:#x}); clone3(CLONE_PARENT|CLONE_PIDFD)"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.keep_mask,))


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
        return f"keyctl(JOIN_SESSION_KEYRING, {show(self.name)})"

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
    init: bool = False  # scow's own pid 1 stays and reaps; the program is its child
    nothing: bool = False  # only that pid 1, for a namespace that containers share

    def describe(self) -> str:
        if self.nothing:
            return "as pid 1: waitpid()"
        words = f"execve({', '.join(map(show, self.argv))})"
        return f"clone(SIGCHLD); {words}; as pid 1: waitpid(), kill()" if self.init else words

    def subject(self) -> str | None:
        return show(self.argv[0])

    def vectors_size(self) -> int:
        return 8 * (len(self.argv) + len(self.env) + 2)

    def encode(self, writer: BlockWriter) -> bytes:
        if not self.argv:
            raise InvalidArgument("no command to execute")
        blob = writer.vector(self.argv)
        writer.vector(self.env)
        size = (len(self.argv) + len(self.env) + 2) * 8
        kind = 2 if self.nothing else int(self.init)
        return writer.record(
            self.code, blob=blob, blob_len=size, numbers=(len(self.argv), len(self.env), kind)
        )
