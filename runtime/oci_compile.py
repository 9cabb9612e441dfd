"""From a bundle's configuration to the plan of its first process, and of those that are exec'ed.

The order is that of `compile` (what scow run does), with what only the specification asks for: id
maps, hooks, kept descriptors, default devices. What must not be here: talking to the child.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from scow.native import plan as p
from scow.native import sys as kernel
from scow.native.errors import InvalidArgument, Unsupported
from scow.native.fd import OwnedFd
from scow.runtime.compile import (
    DEVICE_MODES,
    NAMESPACE_FLAGS,
    cover_operations,
    enter_pid_namespace,
    execute_operation,
    identity_operations,
    limit_operations,
    name_operations,
)
from scow.runtime.oci_mounts import MountCompiler, map_text, read_only_dev
from scow.runtime.security import DEFAULT_DEVICES
from scow.runtime.spec import Capabilities, Device, Hook, Process, Spec

if TYPE_CHECKING:
    from scow.runtime.oci_enter import JoinedPid

MOMENT_MAPS, MOMENT_HOOKS, MOMENT_DEVICES, MOMENT_GROUPS = 1, 2, 3, 4
_NS_GET_NSTYPE = 0xB703
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
)
_PROPAGATION = {
    "private": kernel.MS_PRIVATE,
    "slave": kernel.MS_SLAVE,
    "shared": kernel.MS_SHARED,
    "unbindable": kernel.MS_UNBINDABLE,
}


class Ends(msgspec.Struct, frozen=True):
    """What the caller opened; `hold` keeps descriptors until the launch."""

    hold: Callable[[OwnedFd], int]
    cgroup: str = ""
    cgroup_tasks: tuple[int, ...] = ()
    cgroup_fd: int | None = None
    seccomp: tuple[bytes, int] | None = None
    start_socket: int = -1
    kept: tuple[int, ...] = ()
    keyring: str = ""
    state: tuple[str, str] = ("{", "}")  # of hooks: around the pid
    no_pivot: bool = False


def compile_create(spec: Spec, process: Process, root_fd: int, bundle: str, ends: Ends) -> p.Plan:
    """The plan of a container's first process; `process` is already completed (`complete`)."""
    new, ops = _namespaces(spec, ends.hold)
    joined = _joined_pid(spec, ops, ends.hold)
    if joined is not None:
        ops.remove(joined.join)
    late = _late(spec, new)
    ops += _arrival(spec, new, late, ends)
    tree = _file_tree(spec, root_fd, bundle, ends)
    ops += tree if joined is None else joined.proc_of_it(tree)
    if spec.hooks.prestart or spec.hooks.create_runtime:
        ops.append(p.AwaitParent(MOMENT_HOOKS, why="hooks that run in the runtime's namespaces"))
    ops += _hooks(spec.hooks.create_container, ends.state)
    ops += cover_operations(spec)
    ops += _names(spec)
    if joined is None:
        ops.append(_stdio(process))
    ops += _labels(process, ends)
    ops += _pivot(ends)
    ops += _root_options(spec)
    ops += limit_operations(_in_user_namespace(spec, process), ends.keyring)
    ops += _labels_done(process, ends)
    if not _cannot_fork(process):
        ops += _scheduling(spec, process)
    if joined is not None:
        # The session and the terminal are of the process that stays.
        ops.append(joined.later)
        ops += _enter_pid_namespace(process, ends, mounts_console=process.terminal)
        ops.append(_stdio(process))
    ops.append(p.ProbeCommand(strict=_minds_modes(process), why="say now what cannot be executed"))
    ops.append(p.AwaitStartSocket(ends.start_socket, why="created: wait for 'start'"))
    before, after = ends.state
    created = before.replace('"status":"creating"', '"status":"created"')
    ops += _hooks(spec.hooks.start_container, (created, after), inside=True)
    if _cannot_fork(process):
        ops += _scheduling(spec, process)
    if ends.kept:
        ops.append(p.KeepFds(ends.kept, why="--preserve-fds"))
    ops += identity_operations(process, ends.seccomp)
    ops.append(execute_operation(process, run_init=False))
    has_user = bool(new & kernel.CLONE_NEWUSER)
    return p.Plan(
        mode="run",
        namespaces=new & ~(late | kernel.CLONE_NEWTIME),
        cgroup_fd=ends.cgroup_fd,
        ops=tuple(ops),
        uid_map=map_text(spec.linux.uid_mappings) if has_user else "",
        gid_map=map_text(spec.linux.gid_mappings) if has_user else "",
        direct=True,
    )


def _late(spec: Spec, new: int) -> int:
    """The namespaces that are made by the process itself, not with it."""
    late = new & kernel.CLONE_NEWCGROUP
    if new & kernel.CLONE_NEWUSER or _has(spec, "user"):
        # The root of mqueue belongs to who makes the namespace (ipc/mqueue.c).
        late |= new & kernel.CLONE_NEWIPC
    return late


def _arrival(spec: Spec, new: int, late: int, ends: Ends) -> list[p.Operation]:
    """Who it is and where it belongs, before it makes anything."""
    ops: list[p.Operation] = []
    if new & kernel.CLONE_NEWUSER:
        ops.append(p.AwaitParent(MOMENT_MAPS, why="ids must mean something first"))
    if ends.cgroup_tasks:
        ops.append(p.JoinCgroups(ends.cgroup_tasks, why="be under the limits before all else"))
    if spec.linux.intel_rdt is not None:
        ops.append(p.AwaitParent(MOMENT_GROUPS, why="its share of the caches"))
    if new & kernel.CLONE_NEWUSER or _has(spec, "user"):
        ops.append(p.BecomeRoot(why="own what is made in the user namespace"))
    if late:
        ops.append(p.Unshare(late, why="in its own cgroup, which is to be the root, and as root"))
    if spec.linux.net_devices:
        ops.append(p.AwaitParent(MOMENT_DEVICES, why="network devices come from the host's side"))
    return ops


def compile_exec(
    spec: Spec, process: Process, pidfd: int, ends: Ends, affinity: tuple[bytes, bytes]
) -> p.Plan:
    """The plan of a further process in the container whose first process is `pidfd`."""
    ops: list[p.Operation] = []
    initial, final = affinity
    if initial:
        ops.append(p.SetAffinity(initial, why="execCPUAffinity.initial"))
    if ends.cgroup_tasks:
        ops.append(p.JoinCgroups(ends.cgroup_tasks, why="be under the container's limits"))
    if spec.linux.intel_rdt is not None:
        ops.append(p.AwaitParent(MOMENT_GROUPS, why="its share of the caches"))
    kinds = 0
    for item in spec.linux.namespaces:
        kinds |= _flag(item.type)
    # What needs a procfs that no container has touched comes before anything is joined.
    ops += _labels(process, ends)
    if process.oom_score_adj is not None and _has(spec, "user"):
        ops.append(p.SetOomScoreAdj(process.oom_score_adj, why="lowered from outside only"))
    if kinds:
        ops.append(p.JoinNamespace(pidfd, kinds, why="be where the first process is"))
    if _has(spec, "user"):
        ops.append(p.BecomeRoot(why="be somebody in the user namespace"))
    ops += limit_operations(_in_user_namespace(spec, process), ends.keyring)
    if final:
        ops.append(p.SetAffinity(final, why="execCPUAffinity.final"))
    if not _cannot_fork(process):
        ops += _scheduling(spec, process)
    if kinds & kernel.CLONE_NEWPID:
        ops += _enter_pid_namespace(process, ends, mounts_console=False)
    if _cannot_fork(process):
        ops += _scheduling(spec, process)
    ops.append(_stdio(process))
    if ends.kept:
        ops.append(p.KeepFds(ends.kept, why="--preserve-fds"))
    ops += identity_operations(process, ends.seccomp)
    ops.append(execute_operation(process, run_init=False))
    return p.Plan(mode="exec", cgroup_fd=ends.cgroup_fd, ops=tuple(ops), direct=True)


# --- namespaces -----------------------------------------------------------------------------------


def _flag(kind: str) -> int:
    flag = kernel.CLONE_NEWTIME if kind == "time" else NAMESPACE_FLAGS.get(kind)
    if flag is None:
        raise InvalidArgument(f"unknown namespace type '{kind}'")
    return flag


def _has(spec: Spec, kind: str) -> bool:
    return any(item.type == kind for item in spec.linux.namespaces)


def _namespaces(spec: Spec, hold: Callable[[OwnedFd], int]) -> tuple[int, list[p.Operation]]:
    """The mask of new namespaces, and the operations that join others."""
    new = 0
    ops: list[p.Operation] = []
    seen: set[str] = set()
    for item in spec.linux.namespaces:
        flag = _flag(item.type)
        if item.type in seen:
            raise InvalidArgument(f"malformed spec: duplicated namespace '{item.type}'")
        seen.add(item.type)
        if not item.path:
            new |= flag
            continue
        if not item.path.startswith("/"):
            raise InvalidArgument(
                f"path '{item.path}' of the {item.type} namespace is not absolute"
            )
        try:
            # not waiting for the writer of a fifo
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            fd = hold(OwnedFd(os.open(item.path, flags)))
            kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError as error:
            raise InvalidArgument(
                f"cannot open the {item.type} namespace '{item.path}': {error.strerror}"
            ) from error
        if kind != flag:
            raise InvalidArgument(f"'{item.path}' is not a {item.type} namespace")
        late = item.type == "cgroup" and _can_wait(spec, fd)
        ops.append(p.JoinNamespace(fd, flag, late, why=f"share the {item.type} namespace"))
    if not new & kernel.CLONE_NEWNS:
        raise Unsupported("a container without a mount namespace of its own is not supported")
    _check_maps(spec, new)
    if new & kernel.CLONE_NEWTIME:
        from scow.runtime.oci_enter import time_offsets

        ops.append(p.NewTimeNamespace(time_offsets(spec), why="its clocks"))
    elif spec.linux.time_offsets:
        raise InvalidArgument("timeOffsets without a new time namespace")
    return new, ops


def _check_maps(spec: Spec, new: int) -> None:
    maps = spec.linux.uid_mappings or spec.linux.gid_mappings
    if maps and not _has(spec, "user"):
        raise InvalidArgument("user namespace mappings specified, but user namespace isn't enabled")
    if new & kernel.CLONE_NEWUSER and not (spec.linux.uid_mappings and spec.linux.gid_mappings):
        raise InvalidArgument("a new user namespace needs uidMappings and gidMappings")


def _can_wait(spec: Spec, fd: int) -> bool:
    from scow.runtime.oci_enter import can_wait

    return can_wait(spec, fd)


def _joined_pid(
    spec: Spec, ops: list[p.Operation], hold: Callable[[OwnedFd], int]
) -> JoinedPid | None:
    if not any(item.type == "pid" and item.path for item in spec.linux.namespaces):
        return None
    from scow.runtime.oci_enter import find_joined

    return find_joined(spec, ops, hold)


# --- files ----------------------------------------------------------------------------------------


def _file_tree(spec: Spec, root_fd: int, bundle: str, ends: Ends) -> list[p.Operation]:
    mounts = MountCompiler(spec, root_fd, ends.hold, bundle=bundle, cgroup=ends.cgroup)
    return [
        p.MountPropagation(kernel.MS_PRIVATE, why="no mount made here shows on the host"),
        p.AttachRoot(root_fd, at="/", why="root.path of the bundle"),
        *mounts.operations(),
        *_devices(spec, ends.hold),
    ]


def _devices(spec: Spec, hold: Callable[[OwnedFd], int]) -> list[p.Operation]:
    dev = [m for m in spec.mounts if os.path.normpath(m.destination) == "/dev"]
    if any(m.type == "bind" or {"bind", "rbind"} & set(m.options) for m in dev):
        return []  # the host's /dev, with its devices
    wanted = {
        path: Device(path, "c", major, minor, 0o666) for path, major, minor in DEFAULT_DEVICES
    }
    wanted |= {os.path.normpath(device.path): device for device in spec.linux.devices}
    found: list[p.Operation] = []
    for device in wanted.values():
        if device.type not in DEVICE_MODES or not device.path.startswith("/"):
            raise InvalidArgument(f"invalid device '{device.path}' of type '{device.type}'")
        if not (0 <= device.major < 1 << 12 and 0 <= device.minor < 1 << 20):
            raise InvalidArgument(f"invalid number of device '{device.path}'")
        if _has(spec, "user") and device.type != "p":
            from scow.runtime.oci_enter import bound_device

            found.append(bound_device(device, hold))
            continue
        permissions = 0o666 if device.file_mode is None else device.file_mode & 0o7777
        mode = DEVICE_MODES[device.type] | permissions
        found.append(
            p.MakeDevice(device.path, mode, device.major, device.minor, device.uid, device.gid)
        )
    found += [p.MakeSymlink(target, path) for target, path in _LINKS]
    if any(os.path.normpath(m.destination) == "/dev/pts" for m in spec.mounts):
        found.append(p.MakeSymlink("pts/ptmx", "/dev/ptmx"))
    return found


def _pivot(ends: Ends) -> list[p.Operation]:
    why = "from here on the host's files are out of reach"
    if not ends.no_pivot:
        return [p.PivotRoot(why=why)]
    from scow.runtime.oci_enter import host_mounts

    return [*host_mounts(), p.PivotRoot(keep_host=True, why="--no-pivot")]


def _root_options(spec: Spec) -> list[p.Operation]:
    found: list[p.Operation] = []
    name = spec.linux.rootfs_propagation
    kind = name.removeprefix("r") if name != "runbindable" else "unbindable"
    if name and kind not in _PROPAGATION:
        raise InvalidArgument(f"unknown rootfsPropagation '{name}'")
    if kind in ("shared", "unbindable"):
        top_only = not name.startswith("r")
        found.append(p.MountPropagation(_PROPAGATION[kind], top_only, why="rootfsPropagation"))
    found += read_only_dev(spec)
    if spec.root.readonly:
        found.append(p.RemountRootReadOnly(why="root.readonly"))
    return found


def root_propagation(spec: Spec) -> int:
    """What the root's tree is made before it is attached: nothing done below it may leave it."""
    return kernel.MS_SLAVE if "slave" in spec.linux.rootfs_propagation else kernel.MS_PRIVATE


def _names(spec: Spec) -> list[p.Operation]:
    if (spec.hostname or spec.domainname) and not _has(spec, "uts"):
        raise InvalidArgument("unable to set hostname without a private UTS namespace")
    if not spec.linux.sysctl:
        return name_operations(spec, frozenset())
    from scow.runtime.oci_sysctl import own_namespaces

    return name_operations(spec, own_namespaces(spec))


# --- the process ----------------------------------------------------------------------------------


def _stdio(process: Process) -> p.Operation:
    if not process.terminal:
        return p.StdioInherit(process.user.uid, why="what the caller has for 0, 1 and 2")
    size = process.console_size
    return p.Terminal(
        size.height if size else 0, size.width if size else 0, process.user.uid, why="a terminal"
    )


def _hooks(
    hooks: tuple[Hook, ...], state: tuple[str, str], *, inside: bool = False
) -> list[p.Operation]:
    return [
        p.RunHook(
            hook.path,
            hook.args or (hook.path,),
            hook.env,
            (hook.timeout or 0) * 1000,
            *state,
            inside,
            why="a hook in the container's namespaces",
        )
        for hook in hooks
    ]


def _in_user_namespace(spec: Spec, process: Process) -> Process:
    """The score of the OOM killer can be lowered from outside only: the starter writes it there."""
    return msgspec.structs.replace(process, oom_score_adj=None) if _has(spec, "user") else process


def _labels(process: Process, ends: Ends) -> list[p.Operation]:
    if not (process.apparmor_profile or process.selinux_label):
        return []
    from scow.runtime.oci_labels import label_operations

    return label_operations(process, keyring=bool(ends.keyring))


def _labels_done(process: Process, ends: Ends) -> list[p.Operation]:
    if not (process.selinux_label and ends.keyring):
        return []
    from scow.runtime.oci_labels import unlabel_keys

    return unlabel_keys(process)


def _minds_modes(process: Process) -> bool:
    capabilities = process.capabilities or Capabilities()
    return process.user.uid == 0 or "CAP_DAC_OVERRIDE" not in capabilities.ambient


def _cannot_fork(process: Process) -> bool:
    """sched(7): clone(2) of a process with a deadline fails; that comes when no clone follows."""
    return process.scheduler is not None and process.scheduler.policy == "SCHED_DEADLINE"


def _enter_pid_namespace(
    process: Process, ends: Ends, *, mounts_console: bool
) -> list[p.Operation]:
    late = ("SYS_NICE",) if _cannot_fork(process) else ()
    return enter_pid_namespace(process, ends.seccomp, mounts_console=mounts_console, keep=late)


def _scheduling(spec: Spec, process: Process) -> list[p.Operation]:
    linux = spec.linux
    if not (process.scheduler or process.io_priority or linux.personality or linux.memory_policy):
        return []
    from scow.runtime.scheduling import scheduling_operations

    return scheduling_operations(process, linux)
