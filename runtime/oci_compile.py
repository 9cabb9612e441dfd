"""From a bundle's configuration to the plan of its first process, and of those that are exec'ed.

The order is that of `compile` (what scow run does), with what only the specification asks for: id
maps, hooks, kept descriptors, default devices. What must not be here: talking to the child.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

import msgspec

from scow.native import plan as p
from scow.native import sys as kernel
from scow.native.errors import InvalidArgument, ScowError, Unsupported
from scow.native.fd import OwnedFd
from scow.native.fs import Root
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
from scow.runtime.mounts import open_bind_source
from scow.runtime.oci_mounts import MountCompiler, map_text
from scow.runtime.security import CAPABILITY_NAMES, DEFAULT_DEVICES, held_capabilities
from scow.runtime.spec import Capabilities, Device, Hook, Process, Spec

MOMENT_MAPS, MOMENT_HOOKS = 1, 2
PASSWD_LIMIT = 10 << 20
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


def compile_create(spec: Spec, process: Process, root_fd: int, bundle: str, ends: Ends) -> p.Plan:
    """The plan of a container's first process; `process` is already completed (`complete`)."""
    new, ops = _namespaces(spec, ends.hold)
    has_user = bool(new & kernel.CLONE_NEWUSER)
    if has_user:
        ops.append(p.AwaitParent(MOMENT_MAPS, why="ids must mean something first"))
    if ends.cgroup_tasks:
        ops.append(p.JoinCgroups(ends.cgroup_tasks, why="be under the limits before all else"))
    if has_user or _has(spec, "user"):
        ops.append(p.BecomeRoot(why="own what is made in the user namespace"))
    if new & kernel.CLONE_NEWCGROUP:
        ops.append(p.Unshare(kernel.CLONE_NEWCGROUP, why="after joining: its own is the root"))
    ops.append(p.MountPropagation(kernel.MS_PRIVATE, why="no mount made here shows on the host"))
    ops.append(p.AttachRoot(root_fd, at="/", why="root.path of the bundle"))
    ops += MountCompiler(spec, root_fd, ends.hold, bundle=bundle, cgroup=ends.cgroup).operations()
    ops += _devices(spec, process, ends.hold)
    if spec.hooks.prestart or spec.hooks.create_runtime:
        ops.append(p.AwaitParent(MOMENT_HOOKS, why="hooks that run in the runtime's namespaces"))
    ops += _hooks(spec.hooks.create_container, ends.state)
    ops += cover_operations(spec)
    ops += _names(spec)
    ops.append(_stdio(process))
    ops.append(p.PivotRoot(why="from here on the host's files are out of reach"))
    ops += _root_options(spec)
    ops += _scheduling(spec, process)
    ops += limit_operations(_in_user_namespace(spec, process), ends.keyring)
    ops.append(p.ProbeCommand(strict=_minds_modes(process), why="say now what cannot be executed"))
    ops.append(p.AwaitStartSocket(ends.start_socket, why="created: wait for 'start'"))
    before, after = ends.state
    created = before.replace('"status":"creating"', '"status":"created"')
    ops += _hooks(spec.hooks.start_container, (created, after))
    if ends.kept:
        ops.append(p.KeepFds(ends.kept, why="--preserve-fds"))
    ops += identity_operations(process, ends.seccomp)
    ops.append(execute_operation(process, run_init=False))
    return p.Plan(
        mode="run",
        namespaces=new & ~(kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWTIME),
        cgroup_fd=ends.cgroup_fd,
        ops=tuple(ops),
        uid_map=map_text(spec.linux.uid_mappings) if has_user else "",
        gid_map=map_text(spec.linux.gid_mappings) if has_user else "",
        direct=True,
    )


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
    kinds = 0
    for item in spec.linux.namespaces:
        kinds |= _flag(item.type)
    if kinds:
        ops.append(p.JoinNamespace(pidfd, kinds, why="be where the first process is"))
    if _has(spec, "user"):
        ops.append(p.BecomeRoot(why="be somebody in the user namespace"))
    ops += limit_operations(_in_user_namespace(spec, process), ends.keyring)
    if final:
        ops.append(p.SetAffinity(final, why="execCPUAffinity.final"))
    ops += _scheduling(spec, process)
    if kinds & kernel.CLONE_NEWPID:
        ops += enter_pid_namespace(process, ends.seccomp, mounts_console=False)
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
        ops.append(p.JoinNamespace(fd, flag, why=f"share the {item.type} namespace"))
    if not new & kernel.CLONE_NEWNS:
        raise Unsupported("a container without a mount namespace of its own is not supported")
    _check_maps(spec, new)
    if new & kernel.CLONE_NEWTIME:
        ops.append(p.NewTimeNamespace(_time_offsets(spec), why="its clocks"))
    elif spec.linux.time_offsets:
        raise InvalidArgument("timeOffsets without a new time namespace")
    return new, ops


def _check_maps(spec: Spec, new: int) -> None:
    maps = spec.linux.uid_mappings or spec.linux.gid_mappings
    if maps and not _has(spec, "user"):
        raise InvalidArgument("user namespace mappings specified, but user namespace isn't enabled")
    if new & kernel.CLONE_NEWUSER and not (spec.linux.uid_mappings and spec.linux.gid_mappings):
        raise InvalidArgument("a new user namespace needs uidMappings and gidMappings")


def _time_offsets(spec: Spec) -> str:
    lines: list[str] = []
    for clock, offset in spec.linux.time_offsets.items():
        if clock not in ("monotonic", "boottime"):
            raise InvalidArgument(f"unknown clock '{clock}' in timeOffsets")
        lines.append(f"{clock} {offset.secs} {offset.nanosecs}\n")
    return "".join(lines)


# --- files ----------------------------------------------------------------------------------------


def _devices(spec: Spec, process: Process, hold: Callable[[OwnedFd], int]) -> list[p.Operation]:
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
        if _has(spec, "user"):
            tree = hold(open_bind_source(device.path, recursive=False))
            found.append(p.MountTree(tree, device.path, is_dir=False))
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


def _root_options(spec: Spec) -> list[p.Operation]:
    found: list[p.Operation] = []
    name = spec.linux.rootfs_propagation
    kind = name.removeprefix("r") if name != "runbindable" else "unbindable"
    if name and kind not in _PROPAGATION:
        raise InvalidArgument(f"unknown rootfsPropagation '{name}'")
    if kind in ("shared", "unbindable"):
        top_only = not name.startswith("r")
        found.append(p.MountPropagation(_PROPAGATION[kind], top_only, why="rootfsPropagation"))
    if spec.root.readonly:
        found.append(p.RemountRootReadOnly(why="root.readonly"))
    return found


def root_propagation(spec: Spec) -> int:
    """What the root's tree is made before it is attached: nothing done below it may leave it."""
    return kernel.MS_SLAVE if "slave" in spec.linux.rootfs_propagation else kernel.MS_PRIVATE


def _names(spec: Spec) -> list[p.Operation]:
    if (spec.hostname or spec.domainname) and not _has(spec, "uts"):
        raise InvalidArgument("unable to set hostname without a private UTS namespace")
    return name_operations(spec)


# --- the process ----------------------------------------------------------------------------------


def _stdio(process: Process) -> p.Operation:
    if not process.terminal:
        return p.StdioInherit(process.user.uid, why="what the caller has for 0, 1 and 2")
    size = process.console_size
    return p.Terminal(
        size.height if size else 0, size.width if size else 0, process.user.uid, why="a terminal"
    )


def _hooks(hooks: tuple[Hook, ...], state: tuple[str, str]) -> list[p.Operation]:
    return [
        p.RunHook(
            hook.path,
            hook.args or (hook.path,),
            hook.env,
            (hook.timeout or 0) * 1000,
            *state,
            why="a hook in the container's namespaces",
        )
        for hook in hooks
    ]


def _in_user_namespace(spec: Spec, process: Process) -> Process:
    """The score of the OOM killer can be lowered from outside only: the starter writes it there."""
    return msgspec.structs.replace(process, oom_score_adj=None) if _has(spec, "user") else process


def _minds_modes(process: Process) -> bool:
    capabilities = process.capabilities or Capabilities()
    return process.user.uid == 0 or "CAP_DAC_OVERRIDE" not in capabilities.ambient


def _scheduling(spec: Spec, process: Process) -> list[p.Operation]:
    linux = spec.linux
    if not (process.scheduler or process.io_priority or linux.personality or linux.memory_policy):
        return []
    from scow.runtime.scheduling import scheduling_operations

    return scheduling_operations(process, linux)


def complete(spec: Spec, process: Process, root: Root, umask: int) -> tuple[Process, list[str]]:
    """Check a process and fill in what the runtime adds; also gives warnings."""
    if not process.args or (not process.args[0] and len(process.args) == 0):
        raise InvalidArgument("args must not be empty")
    if not process.cwd.startswith("/"):
        raise InvalidArgument("Cwd must be an absolute path")
    if not 0 <= (process.user.umask or 0) <= 0o777:
        raise InvalidArgument(f"invalid umask {process.user.umask}")
    names = [limit.type for limit in process.rlimits]
    if len(names) != len(set(names)):
        raise InvalidArgument("a rlimit is given twice")
    if process.apparmor_profile and not os.path.isdir("/sys/kernel/security/apparmor"):
        raise ScowError(
            f"apparmor profile '{process.apparmor_profile}' set, but AppArmor is not enabled"
        )
    if process.selinux_label and not os.path.isdir("/sys/fs/selinux"):
        raise ScowError("selinux label is specified in config, but selinux is disabled")
    capabilities, warnings = _usable(process.capabilities)
    user = process.user
    if user.umask is None:
        user = msgspec.structs.replace(user, umask=umask)
    changed = msgspec.structs.replace(
        process, capabilities=capabilities, user=user, env=_environment(process, root)
    )
    return changed, warnings


def _usable(asked: Capabilities | None) -> tuple[Capabilities, list[str]]:
    """Those that exist and that we may give; the specification says to warn, not to fail."""
    if asked is None:
        return Capabilities(), []
    held = held_capabilities()
    unknown: set[str] = set()
    sets: dict[str, tuple[str, ...]] = {}
    for field in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        kept: list[str] = []
        for name in getattr(asked, field):
            bare = name.upper().removeprefix("CAP_")
            if bare in held and bare in CAPABILITY_NAMES:
                kept.append(f"CAP_{bare}")
            else:
                unknown.add(name)
        sets[field] = tuple(kept)
    # capset(2): what is effective must be permitted; ambient needs permitted and inheritable.
    permitted, inheritable = set(sets["permitted"]), set(sets["inheritable"])
    sets["effective"] = tuple(name for name in sets["effective"] if name in permitted)
    sets["ambient"] = tuple(n for n in sets["ambient"] if n in permitted and n in inheritable)
    warnings = (
        [f"ignoring unknown or unavailable capabilities: {sorted(unknown)}"] if unknown else []
    )
    return Capabilities(**sets), warnings


def _environment(process: Process, root: Root) -> tuple[str, ...]:
    """The last of duplicates wins; HOME comes from the container's own passwd."""
    values: dict[str, str] = {}
    for entry in process.env:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"invalid environment variable: {entry[:128]!r}")
        values.pop(name, None)
        values[name] = value
    if not values.get("HOME"):
        values["HOME"] = _home(root, process.user.uid)
    return tuple(f"{name}={value}" for name, value in values.items())


def _home(root: Root, uid: int) -> str:
    try:
        data = root.read_file("/etc/passwd", PASSWD_LIMIT)
    except OSError:
        return "/"
    for line in data.split(b"\n"):
        row = line.split(b":")
        if len(row) >= 6 and row[2] == str(uid).encode() and row[5]:
            return os.fsdecode(row[5])
    return "/"
