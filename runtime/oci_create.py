"""`create`: from a bundle to a process that waits for `start`.

Everything is taken in order and given back in reverse when a step fails, so that a failed create
leaves nothing.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from scow.cgroups.cgroup import Cgroup, open_cgroup
from scow.cgroups.resources import DeviceRule, Pids, Resources, decode_resources
from scow.cgroups.tree import OCI_TOP
from scow.native import sys as kernel
from scow.native import unix
from scow.native.errors import InvalidArgument, NotFound, ScowError, Unsupported
from scow.native.fd import OwnedFd
from scow.native.fs import Root, write_atomic
from scow.runtime import oci_parent as parent
from scow.runtime import oci_state
from scow.runtime.hooks import check_hook, run_hooks
from scow.runtime.oci_child import Child, follow, spawn
from scow.runtime.oci_compile import (
    MOMENT_DEVICES,
    MOMENT_GROUPS,
    MOMENT_HOOKS,
    MOMENT_MAPS,
    Ends,
    compile_create,
    root_propagation,
)
from scow.runtime.oci_complete import complete
from scow.runtime.oci_destroy import end_cgroup, try_poststop
from scow.runtime.oci_state import ContainerDir, StateRecord
from scow.runtime.security import DEFAULT_DEVICE_RULES
from scow.runtime.spec import CONFIG_LIMIT, Process, Spec, decode_spec

if TYPE_CHECKING:
    from collections.abc import Callable


class CreateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `create` and `run`."""

    bundle: str
    console_socket: str = ""
    pid_file: str = ""
    preserve_fds: int = 0
    new_keyring: bool = True
    detach: bool = True
    systemd_cgroup: bool = False
    no_pivot: bool = False
    pidfd_socket: str = ""


class Created(msgspec.Struct):
    """A container that waits; `master` is its terminal's, where no console socket took it."""

    directory: ContainerDir
    record: StateRecord
    spec: Spec
    child: Child
    master: OwnedFd | None
    warnings: list[str]


def read_bundle(bundle: str) -> tuple[Spec, bytes]:
    """The configuration of a bundle, decoded and as it is."""
    path = f"{bundle}/config.json"
    try:
        # Without waiting for the writer of a fifo, which there may never be.
        with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgument(f"'{path}' is not a regular file")
            data = _read(file.fileno(), CONFIG_LIMIT + 1)
    except FileNotFoundError:
        raise NotFound(
            f"JSON specification file {path} not found: no such file or directory"
        ) from None
    if len(data) > CONFIG_LIMIT:
        raise InvalidArgument(f"'{path}' is larger than {CONFIG_LIMIT} bytes")
    return decode_spec(data, path), data


def _read(fd: int, limit: int) -> bytes:
    data = b""
    while len(data) < limit and (part := os.read(fd, limit - len(data))):
        data += part
    return data


def check_spec(spec: Spec) -> None:
    """Refuse what no part of the plan would notice."""
    parts = spec.oci_version.split("-")[0].split("+")[0].split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise InvalidArgument(f"invalid ociVersion '{spec.oci_version}'")
    if parts[0] != "1":
        raise Unsupported(f"unsupported ociVersion '{spec.oci_version}'")
    for kind in msgspec.structs.fields(type(spec.hooks)):
        for hook in getattr(spec.hooks, kind.name):
            check_hook(kind.encode_name, hook)
    if "" in spec.annotations:
        raise InvalidArgument("an annotation has an empty key")
    if spec.linux.net_devices:
        from scow.runtime.oci_netdevices import check_devices

        check_devices(spec)
    if spec.linux.intel_rdt is not None:
        from scow.runtime.oci_rdt import groups_of, mount_point

        groups_of(spec.linux.intel_rdt, "x", mount_point())


def create(root: str, name: str, options: CreateOptions) -> Created:
    """Make the container; on return its first process waits for `start`."""
    bundle = os.path.abspath(options.bundle)
    spec, data = read_bundle(bundle)
    check_spec(spec)
    if spec.process is not None and spec.process.terminal and not options.console_socket:
        parent.current().need_caller("a terminal to relay")
    directory = ContainerDir(root, name)
    directory.create()
    with ExitStack() as undo, ExitStack() as held:
        undo.callback(directory.remove)
        directory.write("config.json", data)
        creation = Creation(directory, spec, bundle, options, undo, held)
        created = creation.run()
        undo.pop_all()
    return created


class Creation:
    """One run of `create`; what it opens is in `held`, what it makes in `undo`."""

    def __init__(
        self,
        directory: ContainerDir,
        spec: Spec,
        bundle: str,
        options: CreateOptions,
        undo: ExitStack,
        held: ExitStack,
    ) -> None:
        self.directory, self.spec, self.bundle = directory, spec, bundle
        self.options, self.undo, self.held = options, undo, held
        self.settle: Callable[[], None] | None = None  # what a cgroup with a process in it needs
        umask = os.umask(0o022)
        cgroup = cgroup_path(spec, directory.name, systemd=options.systemd_cgroup)
        self.record = StateRecord(
            id=directory.name,
            bundle=bundle,
            rootfs=os.path.normpath(os.path.join(bundle, spec.root.path)),
            pid=0,
            start_time=0,
            created=oci_state.now_text(),
            cgroup=cgroup,
            unit=os.path.basename(cgroup) if options.systemd_cgroup else "",
            oci_version=spec.oci_version,
            annotations=spec.annotations,
            has_pid_namespace=any(n.type == "pid" for n in spec.linux.namespaces),
            umask=umask,
        )

    def hold(self, fd: OwnedFd) -> int:
        return self.held.enter_context(fd).fileno()

    def run(self) -> Created:
        spec, options = self.spec, self.options
        root_fd = self._open_root()
        process = spec.process or Process(cwd="/", args=("/",))
        check_terminal(process, options)
        process, warnings = complete(spec, process, Root(root_fd), self.record.umask)
        process = _with_listen_fds(process)
        self.directory.save(self.record)  # from here on `delete` finds the cgroup
        cgroup = self._make_cgroup()
        if spec.linux.uid_mappings:
            from scow.runtime.oci_delegate import delegate

            delegate(spec, self.record.cgroup)
        into = cgroup.dir_fd()
        state = msgspec.json.encode(
            {
                "ociVersion": spec.oci_version,
                "id": self.record.id,
                "status": "creating",
                "bundle": self.bundle,
                "annotations": spec.annotations,
            }
        ).decode()
        ends = Ends(
            hold=self.hold,
            cgroup=self.record.cgroup,
            cgroup_tasks=tuple(self.hold(fd) for fd in cgroup.join_fds()),
            cgroup_fd=self.hold(into) if into is not None else None,
            seccomp=seccomp_filter(spec, process, self.directory.root),
            start_socket=self._listen(),
            kept=kept_descriptors(options.preserve_fds),
            keyring=f"_ses.{self.record.id}" if options.new_keyring else "",
            state=(f'{state[:-1]},"pid":', "}"),
            no_pivot=options.no_pivot,
        )
        plan = compile_create(spec, process, root_fd, self.bundle, ends)
        child = spawn(plan, standard_descriptors())
        self.undo.callback(child.kill)
        if not follow(child, self._on_wait):
            raise ScowError("the container's first process went away without a word")
        if self.settle is not None:
            self.settle()
        master = self._finish(child)
        return Created(self.directory, self.record, spec, child, master, warnings + child.warnings)

    def _open_root(self) -> int:
        path = self.record.rootfs
        if os.path.islink(path):
            raise InvalidArgument(f"invalid rootfs: '{path}' is a symbolic link")
        flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | kernel.AT_RECURSIVE
        try:
            fd = self.hold(OwnedFd(kernel.open_tree(kernel.AT_FDCWD, path, flags)))
        except FileNotFoundError:
            raise NotFound(f"invalid rootfs: stat {path}: no such file or directory") from None
        deep = kernel.AT_EMPTY_PATH | kernel.AT_RECURSIVE
        kernel.mount_setattr(fd, "", deep, 0, 0, root_propagation(self.spec))
        return fd

    def _make_cgroup(self) -> Cgroup:
        resources = resources_of(self.spec)
        owner = os.path.abspath(self.directory.path)
        if self.record.unit:
            from scow.runtime.oci_cgroup import Scope

            scope = Scope(self.record.cgroup, owner)
            self.undo.callback(scope.undo)
            self.settle = scope.settle
            return scope.make(resources)
        cgroup = open_cgroup(self.record.cgroup, foreign=True, owner=owner)
        limit = resources.pids
        if limit is not None and limit.limit == 0:
            # Into a cgroup without room nobody can be born, only moved.
            resources = msgspec.structs.replace(resources, pids=Pids(1))
            self.settle = lambda: cgroup.update(Resources(pids=limit))
        cgroup.create(resources)
        self.undo.callback(end_cgroup, cgroup)
        return cgroup

    def _listen(self) -> int:
        return self.hold(unix.listen(self.directory.start_socket))

    def _on_wait(self, child: Child, moment: int) -> None:
        if moment == MOMENT_MAPS:
            _write_maps(child)
            _write_oom_score(child.pid, self.spec.process)
        elif moment == MOMENT_GROUPS and self.spec.linux.intel_rdt is not None:
            from scow.runtime.oci_rdt import join, mount_point, prepare

            intel, undo = self.spec.linux.intel_rdt, self.undo.callback
            join(prepare(intel, self.directory, mount_point(), undo), child.pid)
        elif moment == MOMENT_DEVICES:
            from scow.runtime.oci_netdevices import move_devices

            move_devices(self.spec, child.pid, self.undo.callback)
        elif moment == MOMENT_HOOKS:
            record = self.record.born(child.pid, 0)
            state = oci_state.hook_state(record, "creating")
            # From here on something of the hooks' may have to be undone: poststop runs after.
            self.undo.callback(try_poststop, self.spec, self.record)
            run_hooks("prestart", self.spec.hooks.prestart, state, self.bundle)
            run_hooks("createRuntime", self.spec.hooks.create_runtime, state, self.bundle)

    def _finish(self, child: Child) -> OwnedFd | None:
        found = oci_state.process_start_time(child.pid)
        if found is None:
            raise ScowError("the container's first process is gone")
        self.record = self.record.born(child.pid, found[0])
        master = hand_over(self.options.console_socket, child.master)
        self.directory.save(self.record)
        send_pidfd(self.options.pidfd_socket, child)
        write_pid_file(self.options.pid_file, child.pid)
        child.answer()
        return master


# --- parts that exec uses, too --------------------------------------------------------------------


def cgroup_path(spec: Spec, name: str, *, systemd: bool = False) -> str:
    """Where the container's cgroup is, from each hierarchy's root.

    A relative path is taken from a place of ours, always the same one for the same value.
    """
    path = spec.linux.cgroups_path
    if systemd:
        from scow.cgroups.unit import unit_of

        return unit_of(path, name).path
    if not path:
        return f"{OCI_TOP}/{name}"
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"cgroupsPath '{path}' has '..' in it")
    return "/".join(parts if path.startswith("/") else [OCI_TOP, *parts])


def resources_of(spec: Spec) -> Resources:
    """The limits, with the device list that every container has: its own rules, then the defaults."""
    raw = bytes(spec.linux.resources)
    resources = decode_resources(raw) if raw not in (b"", b"null") else Resources()
    if resources.pids is not None and resources.pids.limit == 0 and not _has_absent_limits(spec):
        resources = msgspec.structs.replace(resources, pids=Pids(limit=-1))
    rules = [DeviceRule(allow=False)]
    rules += resources.devices or ()
    rules += [
        DeviceRule(allow=True, type=kind, major=major, minor=minor, access=access)
        for kind, major, minor, access in DEFAULT_DEVICE_RULES
    ]
    return msgspec.structs.replace(resources, devices=tuple(rules))


def _has_absent_limits(spec: Spec) -> bool:
    """Whether a limit of 0 processes is one: until 1.3 it was how "none" was said, as podman does."""
    major, minor, *_ = spec.oci_version.split(".")
    return (int(major), int(minor)) >= (1, 3)


def seccomp_filter(spec: Spec, process: Process, root: str) -> tuple[bytes, int] | None:
    """The program of linux.seccomp, compiled once for each content."""
    raw = bytes(spec.linux.seccomp)
    if raw in (b"", b"null"):
        return None
    from scow.runtime.seccomp import cached_filter

    held = process.capabilities.effective if process.capabilities else ()
    found = cached_filter(f"{root}/{oci_state.CACHE}/seccomp", raw, frozenset(held))
    return found.program, found.flags


def kept_descriptors(preserve: int) -> tuple[int, ...]:
    """The caller's descriptors that the program gets: LISTEN_FDS first, then --preserve-fds."""
    listen = os.environ.get("LISTEN_FDS", "")
    count = (int(listen) if listen.isdigit() else 0) + preserve
    kept = tuple(range(3, 3 + count))
    for fd in kept:
        try:
            os.fstat(fd)
        except OSError:
            raise InvalidArgument(
                f"--preserve-fds asks for descriptor {fd}, which is not open"
            ) from None
    return kept


def _with_listen_fds(process: Process) -> Process:
    listen = os.environ.get("LISTEN_FDS", "")
    if not listen.isdigit() or int(listen) == 0:
        return process
    env = (*process.env, f"LISTEN_FDS={listen}", "LISTEN_PID=1")
    return msgspec.structs.replace(process, env=env)


def standard_descriptors() -> tuple[int, int, int]:
    """0, 1 and 2 where they are open, -1 (/dev/null) where not."""
    found = [-1, -1, -1]
    for fd in range(3):
        try:
            os.fstat(fd)
            found[fd] = fd
        except OSError:
            pass
    return found[0], found[1], found[2]


def check_terminal(process: Process, options: CreateOptions) -> None:
    """Refuse a terminal that nobody would get, and a receiver for one that there is not."""
    if process.terminal and options.detach and not options.console_socket:
        raise InvalidArgument(
            "cannot allocate tty if runc will detach without setting console socket"
        )
    if not process.terminal and options.console_socket:
        raise InvalidArgument("cannot use console socket if runc will not detach or allocate tty")


def hand_over(path: str, master: OwnedFd | None) -> OwnedFd | None:
    """Send the pty's master to who listens at `path`; without a path it stays with us."""
    if master is None or not path:
        return master
    try:
        with unix.connect(path, unix.STREAM) as sock:
            unix.send_with(sock.fileno(), b"/dev/ptmx", master.fileno())
    except OSError as error:
        raise ScowError(f"cannot use console socket '{path}': {error.strerror}") from error
    master.close()
    return None


def send_pidfd(path: str, child: Child) -> None:
    """Send the process itself, as a descriptor, to who listens at `path` (--pidfd-socket)."""
    if not path:
        return
    assert child.pidfd is not None
    try:
        with unix.connect(path, unix.STREAM) as sock:
            unix.send_with(sock.fileno(), b"pidfd", child.pidfd.fileno())
    except OSError as error:
        raise ScowError(f"cannot use pidfd socket '{path}': {error.strerror}") from error


def write_pid_file(path: str, pid: int) -> None:
    """Write the pid, so that who reads the file finds all of it; no planted name is written through."""
    if path:
        directory, name = os.path.split(os.path.abspath(path))
        write_atomic(directory, name, str(pid).encode(), 0o644, durable=False)


def _write_maps(child: Child) -> None:
    for name, text in (("uid_map", child.plan.uid_map), ("gid_map", child.plan.gid_map)):
        try:
            with OwnedFd(os.open(f"/proc/{child.pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)) as fd:
                os.write(fd.fileno(), text.encode())
        except OSError as error:
            raise ScowError(f"cannot write {name}: {error.strerror}") from error


def _write_oom_score(pid: int, process: Process | None) -> None:
    if process is not None and process.oom_score_adj is not None:
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(process.oom_score_adj))
