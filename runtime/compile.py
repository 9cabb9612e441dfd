"""From an OCI configuration to a plan: which system calls, in which order, and why.

The order is the security of it, so it is written down once, here. Nothing in this file talks to
the kernel about the container; what needs a descriptor is opened by the caller or by `mounts`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

import msgspec

from scow.native import plan as p
from scow.native import sys as kernel
from scow.native.errors import InvalidArgument, Unsupported
from scow.native.fd import OwnedFd
from scow.native.idmap import IdMap, to_host
from scow.runtime.mounts import mount_operations
from scow.runtime.security import mask_of
from scow.runtime.spec import Device, Process, Spec

NAMESPACE_FLAGS = {
    "mount": kernel.CLONE_NEWNS,
    "pid": kernel.CLONE_NEWPID,
    "network": kernel.CLONE_NEWNET,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
    "user": kernel.CLONE_NEWUSER,
    "cgroup": kernel.CLONE_NEWCGROUP,
}
# The user namespace gives the right to join the others; the mount namespace takes away the paths.
JOIN_ORDER = ("user", "pid", "network", "ipc", "uts", "cgroup", "mount")

DEVICE_MODES = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}

UNLIMITED = 2**64 - 1
SECCOMP_NEW_LISTENER = 8  # SECCOMP_FILTER_FLAG_NEW_LISTENER, of a filter that asks an agent
_RLIMIT_LOCKS = 10  # asm-generic/resource.h


class Handles(msgspec.Struct, frozen=True):
    """What the caller opened for one container; `hold` keeps descriptors until the launch."""

    root_fd: int
    hold: Callable[[OwnedFd], int]
    cgroup_tasks: tuple[int, ...] = ()  # v1: the `tasks` file of each hierarchy
    cgroup_fd: int | None = None  # v2: the directory, for CLONE_INTO_CGROUP
    # Where the root is attached, in the child's own mount namespace, before pivot_root(2); for
    # everyone else the directory stays empty.
    place: str = ""
    seccomp: tuple[bytes, int] | None = None  # program, SECCOMP_FILTER_FLAG_*
    network_host: bytes = b""
    network_pid_offsets: tuple[int, ...] = ()
    network_inside: bytes = b""
    bundle: str = "/"
    run_init: bool = False
    run_nothing: bool = False
    """Only a pid 1 that reaps, for a PID namespace that several containers share."""
    mount_reasons: dict[str, str] = {}
    trees: dict[str, int] = {}
    """Sources of bind mounts and devices that are opened already, by destination."""
    ids: IdMap | None = None
    """Those of the user namespace that is joined."""


def compile_run(spec: Spec, handles: Handles, monitor: p.MonitorConfig) -> p.Plan:
    """Compile the plan that makes a container and waits for `start` before its program runs."""
    process = spec.process
    if process is None:
        raise InvalidArgument("cannot run a container without 'process' in its configuration")
    _check_filter(handles.seccomp)
    new, joins = namespace_operations(spec, handles.hold)
    # With a user namespace the process is born in the pid namespace that it joins: nobody in there has
    # the rights on the host's user namespace that reading it takes (ptrace(2)).
    holder = None if handles.ids else _pid_namespace_holder(spec, joins, handles.hold)
    # Made by the process itself, in its cgroup, which is to be the root, and as the root of its user
    # namespace, to which mqueue belongs then (ipc/mqueue.c).
    late = new & (kernel.CLONE_NEWCGROUP | (kernel.CLONE_NEWIPC if handles.ids else 0))
    ops: list[p.Operation] = []
    # First of all, before anything is allocated on its behalf, the child is under its limits.
    if handles.cgroup_tasks:
        ops.append(
            p.JoinCgroups(
                handles.cgroup_tasks,
                why="be under the limits before anything else happens",
            )
        )
    ops += joins
    if handles.ids:
        ops.append(p.BecomeRoot(why="own what is made in the user namespace"))
    if late:
        # Unshared after joining: cgroup_namespaces(7) roots the view at the current cgroup.
        ops.append(p.Unshare(late, why="see its own cgroup as the root of the tree"))
    ops += _file_tree(spec, handles, holder)
    if handles.network_inside:
        ops.append(p.AwaitParent(why="the host's end of the cable must exist first"))
        ops.append(
            p.Netlink(handles.network_inside, why="bring up lo and eth0, add address, route")
        )
    ops += name_operations(spec)
    if holder is None:
        ops.append(_stdio(process, handles.ids))
    ops += _labels(process)
    ops.append(p.PivotRoot(why="from here on the host's files are out of reach"))
    if spec.root.readonly:
        ops.append(p.RemountRootReadOnly(why="--read-only"))
    ops += limit_operations(_in_user_namespace(process) if handles.ids else process)
    if holder is not None:
        # The session and the terminal are of the process that stays, so they come after the move;
        # binding /dev/console then still needs the right to mount.
        ops += enter_pid_namespace(process, handles.seccomp, mounts_console=process.terminal)
        ops.append(_stdio(process, handles.ids))
    ops.append(p.AwaitStart(why="everything is ready: wait for 'start'"))
    ops += identity_operations(process, handles.seccomp)
    ops.append(execute_operation(process, handles.run_init, nothing=handles.run_nothing))
    return p.Plan(
        mode="run",
        namespaces=new & ~late,
        cgroup_fd=handles.cgroup_fd,
        ops=tuple(ops),
        host_netlink=handles.network_host,
        pid_offsets=handles.network_pid_offsets,
        monitor=monitor,
    )


def _file_tree(spec: Spec, handles: Handles, holder: tuple[int, int] | None) -> list[p.Operation]:
    ops: list[p.Operation] = [
        p.MountPropagation(
            kernel.MS_PRIVATE, why="no mount made here may show up on the host, or the reverse"
        ),
        p.AttachRoot(
            handles.root_fd,
            # The host's directories are closed to the root of a user namespace.
            at="/" if handles.ids else handles.place,
            why="the image's layers, stacked by overlayfs",
        ),
    ]
    mounts = mount_operations(
        spec.mounts, handles.hold, handles.mount_reasons, handles.bundle, handles.trees
    )
    ops += mounts if holder is None else [_shared_proc(op, *holder) for op in mounts]
    return ops + _devices(spec, handles) + cover_operations(spec)


def compile_exec(
    process: Process, handles: Handles, joins: tuple[p.Operation, ...], monitor: p.MonitorConfig
) -> p.Plan:
    """Compile the plan of a further process in a running container.

    `joins` are the namespaces of the container's first process; its limits come first here too,
    and no part of the host is open or dumpable when they are entered (CVE-2016-9962).
    """
    _check_filter(handles.seccomp)
    ops: list[p.Operation] = []
    if handles.cgroup_tasks:
        ops.append(p.JoinCgroups(handles.cgroup_tasks, why="be under the container's limits"))
    if handles.ids and process.oom_score_adj is not None:
        ops.append(p.SetOomScoreAdj(process.oom_score_adj, why="lowered from outside only"))
    ops += _labels(process)  # by a procfs that no container has touched
    ops += joins
    if handles.ids:
        ops.append(p.BecomeRoot(why="be somebody in the user namespace"))
    ops += limit_operations(_in_user_namespace(process) if handles.ids else process)
    if any(isinstance(op, p.JoinNamespace) and op.kind & kernel.CLONE_NEWPID for op in joins):
        ops += enter_pid_namespace(process, handles.seccomp, mounts_console=False)
    ops.append(_stdio(process, handles.ids))
    ops.append(p.AwaitStart(why="wait for 'start'"))
    ops += identity_operations(process, handles.seccomp)
    ops.append(execute_operation(process, run_init=False))
    return p.Plan(
        mode="exec",
        namespaces=0,
        cgroup_fd=handles.cgroup_fd,
        ops=tuple(ops),
        host_netlink=b"",
        pid_offsets=(),
        monitor=monitor,
    )


def _check_filter(seccomp: tuple[bytes, int] | None) -> None:
    if seccomp is not None and seccomp[1] & SECCOMP_NEW_LISTENER:
        raise Unsupported("seccomp action 'SCMP_ACT_NOTIFY' is not supported: there is no agent")


def namespace_operations(
    spec: Spec, hold: Callable[[OwnedFd], int]
) -> tuple[int, list[p.Operation]]:
    """Give the CLONE_NEW* mask of new namespaces and the operations that join existing ones."""
    new = 0
    paths: dict[str, str] = {}
    for namespace in spec.linux.namespaces:
        if namespace.type not in NAMESPACE_FLAGS:
            raise InvalidArgument(f"unknown namespace type '{namespace.type}'")
        if namespace.type in paths or new & NAMESPACE_FLAGS[namespace.type]:
            raise InvalidArgument(f"namespace type '{namespace.type}' is given twice")
        if namespace.path:
            paths[namespace.type] = namespace.path
        else:
            new |= NAMESPACE_FLAGS[namespace.type]
    joins: list[p.Operation] = []
    for kind in JOIN_ORDER:
        if kind in paths:
            fd = hold(OwnedFd(os.open(paths[kind], os.O_RDONLY | os.O_CLOEXEC)))
            joins.append(
                p.JoinNamespace(fd, NAMESPACE_FLAGS[kind], why=f"share the {kind} namespace")
            )
    return new, joins


def _pid_namespace_holder(
    spec: Spec, joins: list[p.Operation], hold: Callable[[OwnedFd], int]
) -> tuple[int, int] | None:
    """Give descriptors of the mount and the pid namespace of whoever lives in the joined one.

    A procfs of that namespace comes from there (`MountJoinedProc`), so its process must be known.
    """
    path = next((item.path for item in spec.linux.namespaces if item.type == "pid"), "")
    if not path:
        return None
    if not path.startswith("/proc/") or not path.endswith("/ns/pid"):
        raise InvalidArgument(
            f"cannot join pid namespace '{path}': it is not of the form /proc/PID/ns/pid",
            hint="its procfs is taken from a process that lives in it",
        )
    mounts = f"{path.removesuffix('pid')}mnt"
    mount_fd = hold(OwnedFd(os.open(mounts, os.O_RDONLY | os.O_CLOEXEC)))
    pid_fd = next(
        op.fd for op in joins if isinstance(op, p.JoinNamespace) and op.kind == kernel.CLONE_NEWPID
    )
    return mount_fd, pid_fd


def _shared_proc(op: p.Operation, mount_fd: int, pid_fd: int) -> p.Operation:
    if not isinstance(op, p.MountFilesystem) or op.fstype != "proc":
        return op
    why = "the processes of the PID namespace that is shared"
    return p.MountJoinedProc(mount_fd, pid_fd, op.dest, op.flags, why=why)


# What SetUser and stdio need beside the program's own: kept until SetCapabilities.
_KEPT_TO_ENTER = ("SETUID", "SETGID", "CHOWN", "DAC_OVERRIDE")


def enter_pid_namespace(
    process: Process,
    seccomp: tuple[bytes, int] | None,
    *,
    mounts_console: bool,
    keep: tuple[str, ...] = (),
) -> list[p.Operation]:
    """Give up what can be given up, then become visible to whoever may trace in the namespace."""
    capabilities = process.capabilities
    bounding = mask_of(capabilities.bounding) if capabilities else 0
    kept = mask_of(capabilities.permitted) if capabilities else 0
    kept |= mask_of(_KEPT_TO_ENTER + keep)
    if mounts_console or (seccomp is not None and not process.no_new_privileges):
        kept |= mask_of(("SYS_ADMIN",))
    return [
        p.DropBounding(bounding, why="what is not kept here no setuid program can give back"),
        p.EnterPidNamespace(
            kept, why="be one of its processes only now: nothing of the host is open any more"
        ),
    ]


def _labels(process: Process) -> list[p.Operation]:
    if not process.apparmor_profile:
        return []
    from scow.runtime.oci_labels import label_operations

    return label_operations(process, keyring=False)


def _in_user_namespace(process: Process) -> Process:
    """The score of the OOM killer can be lowered from outside only: the starter writes it there."""
    return msgspec.structs.replace(process, oom_score_adj=None)


def _bound_device(device: Device, handles: Handles) -> p.Operation:
    """mknod(2) of a device is not for user namespaces: the host's own node."""
    if device.path in handles.trees:
        return p.MountTree(handles.trees[device.path], device.path, is_dir=False)
    from scow.runtime.oci_enter import bound_device

    return bound_device(device, handles.hold)


def _devices(spec: Spec, handles: Handles) -> list[p.Operation]:
    found: list[p.Operation] = []
    if handles.run_nothing:
        return found  # it has no /dev
    for device in spec.linux.devices:
        if device.type not in DEVICE_MODES:
            raise InvalidArgument(f"invalid type '{device.type}' of device '{device.path}'")
        if handles.ids:
            found.append(_bound_device(device, handles))
            continue
        mode = DEVICE_MODES[device.type] | (
            0o666 if device.file_mode is None else device.file_mode & 0o7777
        )
        found.append(
            p.MakeDevice(device.path, mode, device.major, device.minor, device.uid, device.gid)
        )
    for target, path in (
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ):
        found.append(p.MakeSymlink(target, path))
    return found


def cover_operations(spec: Spec) -> list[p.Operation]:
    for path in (*spec.linux.readonly_paths, *spec.linux.masked_paths):
        if not path.startswith("/"):
            raise InvalidArgument(f"path '{path[:128]}' to be covered is not absolute")
    found: list[p.Operation] = [
        p.ReadOnlyPath(path, why="the host's kernel settings are not the container's to change")
        for path in spec.linux.readonly_paths
    ]
    found += [p.Mask(path, why="says too much about the host") for path in spec.linux.masked_paths]
    return found


def name_operations(spec: Spec, own: frozenset[str] | None = None) -> list[p.Operation]:
    """Names and sysctls; `own`: the types of namespaces that are the container's to change."""
    if own is None:
        own = frozenset(item.type for item in spec.linux.namespaces if not item.path)
    found: list[p.Operation] = []
    if spec.hostname:
        found.append(p.SetHostname(spec.hostname))
    if spec.domainname:
        found.append(p.SetDomainname(spec.domainname))
    for key, value in spec.linux.sysctl.items():
        found.append(p.SetSysctl(checked_sysctl(key, own), value))
    return found


_SYSCTL_IPC = frozenset({
    "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall",
    "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
})  # fmt: skip


def checked_sysctl(key: str, own: frozenset[str]) -> str:
    """Give a sysctl's path below /proc/sys if the container owns the namespace it belongs to.

    CVE-2022-0811, CVE-2022-0532: the key is checked part by part, and what is shared with the host
    never counts.
    """
    # sysctl(8): whichever of the two comes first separates, the other is part of a name.
    first = next((char for char in key if char in "./"), "/")
    path = key if first == "/" else key.translate(str.maketrans("./", "/."))
    parts = path.split("/")
    if not all(part and part.strip(".") and _is_plain(part) for part in parts):
        raise InvalidArgument(f"invalid sysctl '{key[:128]}'")
    allowed = (
        ("ipc" in own and (path in _SYSCTL_IPC or path.startswith("fs/mqueue/")))
        or ("network" in own and path.startswith("net/"))
        or ("uts" in own and path == "kernel/domainname")
        or ("user" in own and path.startswith("user/"))
    )
    if not allowed:
        raise InvalidArgument(
            f"cannot set sysctl '{key[:128]}': it is not the container's own",
            hint="allowed: net.* with an own network; kernel.msg*, kernel.sem, kernel.shm*, "
            "fs.mqueue.* with an own IPC namespace",
        )
    return path


def _is_plain(part: str) -> bool:
    return part.isascii() and all(c.isalnum() or c in "._-" for c in part)


def _stdio(process: Process, ids: IdMap | None = None) -> p.Operation:
    if not process.terminal:
        user = process.user
        on_host = None
        if ids is not None:
            on_host = (to_host(ids.uid, user.uid), to_host(ids.gid, user.gid))
        return p.StdioFromMonitor(
            user.uid, user.gid, on_host, why="input and output are pipes to scow-monitor"
        )
    size = process.console_size
    return p.Terminal(
        size.height if size else 24,
        size.width if size else 80,
        process.user.uid,
        why="a terminal of the container's own devpts; the host's is never inside",
    )


def limit_operations(process: Process, keyring: str = "scow") -> list[p.Operation]:
    found: list[p.Operation] = []
    if keyring:
        found.append(p.NewSessionKeyring(keyring, why="no keys of the host's session"))
    found.append(p.ResetAffinity(why="all processors that the cpuset allows"))
    for limit in process.rlimits:
        # Without a name in Python's module, and without an effect since Linux 2.4 (getrlimit(2)).
        locks = _RLIMIT_LOCKS if limit.type == "RLIMIT_LOCKS" else None
        number = getattr(resource, limit.type, locks)
        if not limit.type.startswith("RLIMIT_") or not isinstance(number, int):
            raise InvalidArgument(f"unknown rlimit '{limit.type}'")
        if limit.soft < 0 or limit.hard < 0:
            raise InvalidArgument(f"rlimit '{limit.type}' is negative")
        soft, hard = (-1 if value >= UNLIMITED else value for value in (limit.soft, limit.hard))
        found.append(p.SetRlimit(number, soft, hard, why=limit.type))
    if process.oom_score_adj is not None:
        found.append(p.SetOomScoreAdj(process.oom_score_adj))
    found.append(p.SetUmask(0o022 if process.user.umask is None else process.user.umask))
    return found


def identity_operations(process: Process, seccomp: tuple[bytes, int] | None) -> list[p.Operation]:
    """Give up rights, in the only order that works (capabilities(7), seccomp(2))."""
    capabilities = process.capabilities
    bounding = mask_of(capabilities.bounding) if capabilities else 0
    user = process.user
    is_root = user.uid == 0
    load = (
        [p.LoadSeccomp(*seccomp, why="a filter: only system calls that are allowed")]
        if seccomp is not None
        else []
    )
    found: list[p.Operation] = [
        p.DropBounding(bounding, why="what is not kept here no setuid program can give back")
    ]
    if not process.no_new_privileges:
        # Without no_new_privs only CAP_SYS_ADMIN may load a filter: do it while we have it.
        found += load
    # Groups before user: after setuid there is no right to set groups any more.
    found.append(p.SetUser(user.uid, user.gid, user.additional_gids))
    ambient = mask_of(capabilities.ambient) if capabilities else 0
    effective = mask_of(capabilities.effective) if capabilities else 0
    permitted = mask_of(capabilities.permitted) if capabilities else 0
    inheritable = mask_of(capabilities.inheritable) if capabilities else 0
    found.append(p.SetCwd(process.cwd))
    if not is_root and not ambient:
        # A user other than root starts with nothing (CVE-2016-8867), as execve(2) would make it.
        effective = permitted = 0
    found.append(p.SetCapabilities(effective, permitted, inheritable, ambient))
    if process.no_new_privileges:
        found.append(p.NoNewPrivileges(why="setuid programs gain nothing"))
        found += load
    return found


def execute_operation(process: Process, run_init: bool, *, nothing: bool = False) -> p.Operation:
    argv = tuple(os.fsencode(arg) for arg in process.args)
    env = tuple(os.fsencode(entry) for entry in process.env)
    return p.Execute(argv, env, run_init, nothing)
