"""The plan: everything that one container's first process does, as one block that C validates.

What belongs here: the Plan, its encoding, and what a failed step means in words. The operations are
in `mount_operations` and `process_operations`, and are named here too: users of plans import one module. What must not:
policy (runtime/), starting anything (native/spawn.py).
"""

from __future__ import annotations

import errno as errnos
import os
import struct
from typing import Final, Literal

import msgspec

from scow.native.block import NONE, RECORD, BlockWriter, Region, Text
from scow.native.direct_operations import (
    AwaitStartSocket,
    BecomeRoot,
    KeepFds,
    LabelMount,
    NewTimeNamespace,
    ProbeCommand,
    RunHook,
    SetAffinity,
    SetIoPriority,
    SetLabel,
    SetMemoryPolicy,
    SetPersonality,
    SetScheduler,
    StdioInherit,
)
from scow.native.errors import (
    CommandNotExecutable,
    CommandNotFound,
    InvalidArgument,
    SetupError,
)
from scow.native.mount_operations import (
    AttachRoot,
    HideHost,
    MakeDevice,
    MakeDirectory,
    MakeSymlink,
    Mask,
    MountFilesystem,
    MountJoinedProc,
    MountPropagation,
    MountTree,
    PivotRoot,
    ReadOnlyPath,
    RemountRootReadOnly,
    SetMountAttributes,
    SetPropagation,
)
from scow.native.operation import Operation, flag_names
from scow.native.process_operations import (
    NAMESPACE_NAMES,
    AwaitParent,
    AwaitStart,
    DropBounding,
    EnterPidNamespace,
    Execute,
    JoinCgroups,
    JoinNamespace,
    LoadSeccomp,
    Netlink,
    NewSessionKeyring,
    NoNewPrivileges,
    ResetAffinity,
    SetCapabilities,
    SetCwd,
    SetDomainname,
    SetHostname,
    SetOomScoreAdj,
    SetRlimit,
    SetSysctl,
    SetUmask,
    SetUser,
    StdioFromMonitor,
    Terminal,
    Unshare,
)

__all__ = [
    "AttachRoot",
    "AwaitParent",
    "AwaitStart",
    "AwaitStartSocket",
    "BecomeRoot",
    "DropBounding",
    "EnterPidNamespace",
    "Execute",
    "HideHost",
    "JoinCgroups",
    "JoinNamespace",
    "KeepFds",
    "LabelMount",
    "LoadSeccomp",
    "MakeDevice",
    "MakeDirectory",
    "MakeSymlink",
    "Mask",
    "MonitorConfig",
    "MountFilesystem",
    "MountJoinedProc",
    "MountPropagation",
    "MountTree",
    "Netlink",
    "NewSessionKeyring",
    "NewTimeNamespace",
    "NoNewPrivileges",
    "Operation",
    "PivotRoot",
    "Plan",
    "ProbeCommand",
    "ReadOnlyPath",
    "RemountRootReadOnly",
    "ResetAffinity",
    "RunHook",
    "SetAffinity",
    "SetCapabilities",
    "SetCwd",
    "SetDomainname",
    "SetHostname",
    "SetIoPriority",
    "SetLabel",
    "SetMemoryPolicy",
    "SetMountAttributes",
    "SetOomScoreAdj",
    "SetPersonality",
    "SetPropagation",
    "SetRlimit",
    "SetScheduler",
    "SetSysctl",
    "SetUmask",
    "SetUser",
    "StdioFromMonitor",
    "StdioInherit",
    "Terminal",
    "Unshare",
    "setup_error",
]

MAX_BYTES: Final = 16 << 20  # PLAN_MAX_BYTES
MAX_FDS: Final = 512
_MAGIC: Final = b"SCOWPLN1"
_HEADER: Final = struct.Struct("<8sIIQ 4I 4I 2I 6I Q 2I Q 4I 4I Q")
_TERMINAL, _OPEN_STDIN, _STDIN_ONCE, _DIRECT = 1, 2, 4, 8

# enum step of plan.h and enum monitor_step of protocol.h
_STEPS: Final = {
    1000: "accept the plan",
    1001: "clone the process",
    1002: "make pipes",
    1003: "write the id maps",
    1004: "configure the host's end of the network",
    1005: "prepare the process",
    1006: "go on without its monitor",
    1007: "follow the process",
    1100: "open the log",
    1101: "open the monitor's socket",
    1102: "write the status record",
    1103: "watch for signals",
    1104: "reserve the exit record",
}


class MonitorConfig(msgspec.Struct, frozen=True):
    """What the monitor does besides the plan; an empty path means that there is none."""

    container_id: str = ""
    log_path: str = ""
    log_max_bytes: int = 0
    log_max_files: int = 1
    socket_path: str = ""
    exit_path: str = ""
    status_path: str = ""
    terminal: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    oom_fd: int | None = None
    oom_baseline: int = 0
    lock_fd: int | None = None
    """A lock that is held until the program runs, or until the monitor of one that never did is gone."""
    time_limit_ms: int = 0
    """The process is killed when it runs longer; 0: no limit."""
    cleanup_argv: tuple[Text, ...] = ()
    cleanup_env: tuple[Text, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to clone and what the child then does; descriptors in it are borrowed."""

    ops: tuple[Operation, ...]
    mode: Literal["run", "exec"] = "run"
    namespaces: int = 0
    cgroup_fd: int | None = None
    host_netlink: bytes = b""
    pid_offsets: tuple[int, ...] = ()
    uid_map: str = ""
    gid_map: str = ""
    monitor: MonitorConfig = MonitorConfig()
    direct: bool = False
    """Without a monitor: the process is a child of ours, and talks over the control socket itself."""

    def encode(self) -> bytes:
        """The block alone."""
        return self.build()[0]

    def build(self) -> tuple[bytes, tuple[int, ...]]:
        """The block, and the descriptors in the order in which it counts them."""
        config = self.monitor
        head = Region(_HEADER.size)
        texts = [
            head.text(text) if text else NONE
            for text in (
                config.container_id,
                config.log_path,
                config.socket_path,
                config.exit_path,
                config.status_path,
            )
        ]
        for text in (*config.cleanup_argv, *config.cleanup_env):
            head.text(text)
        vectors_len = 8 * (len(config.cleanup_argv) + len(config.cleanup_env) + 2)
        monitor_end = head.end + vectors_len
        for op in self.ops:
            vectors_len += op.vectors_size()
        ops_at = head.end + vectors_len
        writer = BlockWriter(head.end, ops_at + RECORD.size * len(self.ops))
        cgroup_fd = NONE if self.cgroup_fd is None else writer.fd(self.cgroup_fd)
        oom_fd = NONE if config.oom_fd is None else writer.fd(config.oom_fd)
        lock_fd = NONE if config.lock_fd is None else writer.fd(config.lock_fd)
        cleanup_argv = writer.vector(config.cleanup_argv, head)
        cleanup_env = writer.vector(config.cleanup_env, head)
        records = b"".join([op.encode(writer) for op in self.ops])
        netlink = writer.data.blob(self.host_netlink) if self.host_netlink else NONE
        offsets = writer.data.blob(struct.pack(f"<{len(self.pid_offsets)}I", *self.pid_offsets))
        maps = [writer.data.text(text) if text else NONE for text in (self.uid_map, self.gid_map)]
        tail = writer.data.padded()
        size = writer.data.end
        if size > MAX_BYTES:
            raise InvalidArgument(
                f"command line and environment take {size} bytes, at most {MAX_BYTES}"
            )
        if len(writer.fds) > MAX_FDS:
            raise InvalidArgument(f"{len(writer.fds)} descriptors in a plan, at most {MAX_FDS}")
        flags = (
            (_TERMINAL if config.terminal else 0)
            | (_OPEN_STDIN if config.open_stdin else 0)
            | (_STDIN_ONCE if config.stdin_once else 0)
            | (_DIRECT if self.direct else 0)
        )
        header = _HEADER.pack(
            *(_MAGIC, size, int(self.mode == "exec"), self.namespaces),
            *(ops_at, len(self.ops), len(writer.fds), cgroup_fd),
            *(netlink, len(self.host_netlink), offsets, len(self.pid_offsets)),
            *maps,
            *(*texts, flags),
            *(config.log_max_bytes, config.log_max_files, oom_fd, config.oom_baseline),
            *(cleanup_argv, len(config.cleanup_argv), cleanup_env, len(config.cleanup_env)),
            *(monitor_end, head.end, head.end + vectors_len, lock_fd, config.time_limit_ms),
        )
        return header + head.padded() + writer.vectors.padded() + records + tail, writer.fds

    def describe(self) -> list[str]:
        """The plan, one line a step: system calls, and why."""
        flags = [flag_names(self.namespaces, NAMESPACE_NAMES)] if self.namespaces else []
        if self.cgroup_fd is not None:
            flags.append("CLONE_INTO_CGROUP")
        lines = [f"clone3({'|'.join([*flags, 'CLONE_PIDFD'])})"]
        if self.uid_map or self.gid_map:
            lines.append("monitor: write uid_map, gid_map")
        if self.host_netlink:
            lines.append(f"monitor: sendto(NETLINK_ROUTE, {len(self.host_netlink)} bytes)")
        for op in self.ops:
            lines.append(f"{op.describe()}  # {op.why}" if op.why else op.describe())
        return lines


def _reason(error: int) -> str:
    return f"{os.strerror(error).lower()} ({errnos.errorcode.get(error, error)})"


def _monitor_path(config: MonitorConfig, step: int) -> str:
    paths = {1100: config.log_path, 1101: config.socket_path, 1102: config.status_path}
    return {**paths, 1104: config.exit_path}.get(step, "")


def setup_error(plan: Plan, step: int, error: int, index: int, detail: int = 0) -> SetupError:
    """The error for a record of the child or the monitor (`struct failure`)."""
    at = -1 if index == NONE else index
    if step in _STEPS or not 0 <= at < len(plan.ops) or plan.ops[at].code != step:
        name = _STEPS.get(step, f"step {step}")
        path = _monitor_path(plan.monitor, step)
        about = f" '{path}'" if path else ""
        where = (
            f", byte {detail}" if step == 1000 else f", message {detail}" if step == 1004 else ""
        )
        return SetupError(
            f"cannot {name}{about}: {_reason(error)}{where}",
            step=name,
            errno=error,
            index=at,
            path=path,
        )
    op = plan.ops[at]
    subject = op.subject()
    kind = SetupError
    if isinstance(op, Execute):
        kind = CommandNotFound if error == errnos.ENOENT else CommandNotExecutable
    words = f"cannot {op.step}" + (f" '{subject}'" if subject else "")
    if isinstance(op, MountFilesystem):
        words = f"cannot mount {op.fstype} on '{subject}'"
    elif isinstance(op, MountTree):
        words = f"cannot mount on '{subject}'"
    return kind(f"{words}: {_reason(error)}", step=op.step, errno=error, index=at, path=subject)
