"""The operations of plans without a monitor (scow-oci), and what only the OCI specification asks for.

What belongs here: their operands, as bytes and in words. What must not: which of them a container
needs (runtime/). The code numbers are those of plan.h.
"""

from __future__ import annotations

import struct

from scow.native.block import BlockWriter, Text
from scow.native.errors import InvalidArgument
from scow.native.operation import Operation, show


class AwaitStartSocket(Operation, frozen=True):
    """Report READY, wait until the starter has written that down, then for who connects and says start."""

    code = 38
    step = "wait for start"
    fd: int

    def describe(self) -> str:
        return "report READY; accept4(start socket)"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, fd=self.fd)


class StdioInherit(Operation, frozen=True):
    """A new session with the caller's own stdin, stdout and stderr; pipes are given to `uid`."""

    code = 39
    step = "connect stdio"
    uid: int = 0

    def describe(self) -> str:
        return f"setsid(); fchown(0..2, {self.uid})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.uid,))


class KeepFds(Operation, frozen=True):
    """Give the program these descriptors as 3, 4, ...; nothing after it may use a descriptor."""

    code = 40
    step = "pass descriptors"
    fds: tuple[int, ...]

    def describe(self) -> str:
        return f"dup2(3..{2 + len(self.fds)})"

    def encode(self, writer: BlockWriter) -> bytes:
        indexes = [writer.fd(fd) for fd in self.fds]
        blob = struct.pack(f"<{len(indexes)}I", *indexes)
        return writer.record(self.code, blob=blob, count=len(indexes))


class ProbeCommand(Operation, frozen=True):
    """Find out whether the command that Execute names is there and may be executed by SetUser's user."""

    code = 41
    step = "find command"
    strict: bool = True
    """Count "permission denied", too: the user has no capability that passes over modes."""

    def describe(self) -> str:
        return "setfsuid(user); faccessat2(command, X_OK)"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.strict,))


class RunHook(Operation, frozen=True):
    """Run a program where the child is, with the state document on stdin, and wait for it.

    The document is `state_before`, the child's pid as it sees it, and `state_after`.
    """

    code = 42
    step = "run hook"
    path: Text
    argv: tuple[Text, ...]
    env: tuple[Text, ...] = ()
    timeout_ms: int = 0
    state_before: Text = ""
    state_after: Text = ""
    inside: bool = False
    """After pivot_root: it starts in the directory that SetCwd names, and before in the new root."""

    def describe(self) -> str:
        return f"clone(); execve({show(self.path)}); waitpid()"

    def subject(self) -> str | None:
        return show(self.path)

    def vectors_size(self) -> int:
        return 8 * (len(self.argv) + len(self.env) + 2)

    def encode(self, writer: BlockWriter) -> bytes:
        if not self.argv:
            raise InvalidArgument(f"hook '{show(self.path)}' without arguments")
        blob = writer.vector(self.argv)
        writer.vector(self.env)
        return writer.record(
            self.code,
            texts=(self.path, self.state_before, self.state_after),
            blob=blob,
            blob_len=self.vectors_size(),
            numbers=(len(self.argv), len(self.env), self.timeout_ms, self.inside),
        )


class BecomeRoot(Operation, frozen=True):
    """Become uid and gid 0 of the user namespace, once its maps are written."""

    code = 43
    step = "become root of the user namespace"

    def describe(self) -> str:
        return "setgroups([]); setresgid(0); setresuid(0)"


class NewTimeNamespace(Operation, frozen=True):
    """A new time namespace; made before the clone, since its offsets can be set while it is empty only."""

    code = 44
    step = "make time namespace"
    offsets: str = ""

    def describe(self) -> str:
        return f"unshare(CLONE_NEWTIME); write(timens_offsets, {self.offsets!r})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.offsets,))


class SetPersonality(Operation, frozen=True):
    """The execution domain."""

    code = 45
    step = "set personality"
    persona: int

    def describe(self) -> str:
        return f"personality({self.persona:#x})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.persona,))


class SetScheduler(Operation, frozen=True):
    """struct sched_attr of sched_setattr(2)."""

    code = 46
    step = "set scheduler"
    attributes: bytes

    def describe(self) -> str:
        return f"sched_setattr({len(self.attributes)} bytes)"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, blob=self.attributes)


class SetIoPriority(Operation, frozen=True):
    """ioprio_set(2) of the process group."""

    code = 47
    step = "set io priority"
    value: int

    def describe(self) -> str:
        return f"ioprio_set(IOPRIO_WHO_PGRP, {self.value:#x})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, numbers=(self.value,))


class SetAffinity(Operation, frozen=True):
    """Only these processors; a mask, little endian, in whole words."""

    code = 48
    step = "set affinity"
    mask: bytes

    def describe(self) -> str:
        return f"sched_setaffinity({int.from_bytes(self.mask, 'little'):#x})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, blob=self.mask)


class SetMemoryPolicy(Operation, frozen=True):
    """set_mempolicy(2): mode with its flags, and a mask of nodes in whole words."""

    code = 49
    step = "set memory policy"
    mode: int
    nodes: bytes = b""

    def describe(self) -> str:
        return f"set_mempolicy({self.mode:#x}, {int.from_bytes(self.nodes, 'little'):#x})"

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, blob=self.nodes, numbers=(self.mode,))


class SetLabel(Operation, frozen=True):
    """Write a label of a security module to a file of ours in /proc, for the next execve."""

    code = 50
    step = "set label"
    file: str
    label: str

    def describe(self) -> str:
        return f"write(/proc/self/{self.file}, {self.label!r})"

    def subject(self) -> str | None:
        return self.label

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.file, self.label))


class LabelMount(Operation, frozen=True):
    """Give the top inode of a mount a label of SELinux, where the file system takes no `context`."""

    code = 51
    step = "label mount"
    path: Text
    label: str

    def describe(self) -> str:
        return f"fsetxattr({show(self.path)}, security.selinux, {self.label!r})"

    def subject(self) -> str | None:
        return show(self.path)

    def encode(self, writer: BlockWriter) -> bytes:
        return writer.record(self.code, texts=(self.path, self.label))
