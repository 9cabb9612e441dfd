"""restore: a container made anew from its bundle, with the processes that checkpoint has written.

CRIU makes them, in the cgroup and from the sources that are prepared here, and as children of ours:
they stay descendants of the caller, like those of `create`.
"""

from __future__ import annotations

import os
import signal
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from scow.cgroups.detect import Mode, hierarchies
from scow.native import plan as p
from scow.native import sys as kernel
from scow.native import unix
from scow.native.errors import InvalidArgument, ScowError, Unsupported
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.runtime import criu, oci_state
from scow.runtime import oci_parent as parent
from scow.runtime.criu import Option
from scow.runtime.hooks import run_hooks
from scow.runtime.mounts import Options, open_bind_source
from scow.runtime.oci_args import Flags, one_operand, switch, text
from scow.runtime.oci_checkpoint import (
    DESCRIPTORS,
    MASK_DIRECTORY,
    MASK_FILE,
    OTHERS,
    Tell,
    binds_of,
    check_possible,
    common_fields,
    help_of,
    image_path,
    open_directory,
)
from scow.runtime.oci_child import Child
from scow.runtime.oci_create import (
    CreateOptions,
    Creation,
    check_spec,
    check_terminal,
    hand_over,
    read_bundle,
    write_pid_file,
)
from scow.runtime.oci_destroy import destroy
from scow.runtime.oci_state import ContainerDir
from scow.runtime.spec import Process, SpecMount

if TYPE_CHECKING:
    from scow.runtime.oci_rdt import Groups

_DESCRIPTORS_LIMIT = 1 << 16
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SAFE = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC


def restore(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    """Carry the command out; in front, until the first process ends."""
    if switch(flags, "help"):
        return help_of("restore")
    if switch(flags, "no-pivot"):
        raise Unsupported("restore --no-pivot is not supported: CRIU always pivots")
    name = one_operand(operands)
    binary = criu.find_criu(text(flags, "criu"))
    options = CreateOptions(
        bundle=text(flags, "bundle") or os.getcwd(),
        console_socket=text(flags, "console-socket"),
        pid_file=text(flags, "pid-file"),
        detach=switch(flags, "detach"),
        systemd_cgroup=switch(flags, "systemd-cgroup"),
    )
    bundle = os.path.abspath(options.bundle)
    spec, data = read_bundle(bundle)
    check_spec(spec)
    check_possible(spec)
    check_terminal(spec.process or Process(cwd="/"), options)
    directory = ContainerDir(root, name)
    directory.create()
    with ExitStack() as undo, ExitStack() as held:
        undo.callback(directory.remove)
        directory.write("config.json", data)
        restoration = _Restoration(directory, spec, bundle, options, undo, held)
        pid, pidfd, master = restoration.restore(binary, flags)
        undo.pop_all()
    directory.unlock()
    if options.detach:
        return 0
    from scow.runtime.oci_process import wait

    plan = p.Plan(mode="run", ops=(), direct=True)
    code = wait(Child(plan, unix.pair()[0], 0, pid=pid, pidfd=pidfd), master)
    directory.lock()
    for warning in destroy(directory, restoration.record):
        tell("warning", warning)
    return code


class _Restoration(Creation):
    """A creation whose processes come from images."""

    _pid = 0
    _master: OwnedFd | None = None

    def restore(self, binary: str, flags: Flags) -> tuple[int, OwnedFd, OwnedFd | None]:
        """Give the first process, which runs, a handle of it, and its terminal."""
        images = image_path(flags)
        work = os.path.abspath(text(flags, "work-path") or f"{self.directory.path}/criu.work")
        open_directory(images, self.held, make=False)
        open_directory(work, self.held, make=True)
        if os.path.islink(self.record.rootfs) or not os.path.isdir(self.record.rootfs):
            raise InvalidArgument(f"invalid rootfs: '{self.record.rootfs}' is no directory")
        self.directory.save(self.record)  # from here on `delete` finds the cgroup
        cgroup = self._make_cgroup()
        tasks = [self.hold(fd) for fd in cgroup.join_fds()]
        into = cgroup.dir_fd()
        unified = self.hold(into) if into is not None else None
        groups = self._groups()
        namespace, passed, sources = self._private_mounts((images, work))
        fields = common_fields(flags, "restore.log")
        fields += [(Option.IMAGES, passed[0]), (Option.WORK, passed[1])]
        fields += [(Option.ROOT, self.record.rootfs), (Option.SIBLING, True)]
        # Devices that are open are found by their numbers, where their path is another's by now.
        fields += [(Option.EVASIVE, True)]
        fields += [(Option.CGROUP_ROOT, part) for part in _cgroup_roots(self.record.cgroup)]
        fields += [(Option.EXTERNAL, part) for part in (*sources, *self._cgroup_sources())]
        fields += [(Option.INHERIT, part) for part in self._inherited(images, passed)]
        for flag, number in (
            ("lsm-profile", Option.LSM_PROFILE),
            ("lsm-mount-context", Option.LSM_CONTEXT),
        ):
            fields += [(number, text(flags, flag))] if text(flags, flag) else []
        self.undo.callback(self._kill)
        self._pid = criu.ask(
            binary,
            criu.RESTORE,
            fields,
            passed=tuple(passed),
            prepare=lambda: _move_in(tasks, unified, groups, namespace),
            notified=self._notified,
            log=f"{work}/restore.log",
        )
        if self.settle is not None:
            self.settle()
        return self._take_over()

    def _groups(self) -> Groups | None:
        """Those of resctrl."""
        if self.spec.linux.intel_rdt is None:
            return None
        from scow.runtime.oci_rdt import mount_point, prepare

        return prepare(self.spec.linux.intel_rdt, self.directory, mount_point(), self.undo.callback)

    def _kill(self) -> None:
        """What CRIU has made is our child; what it has ended itself is fine."""
        if self._pid > 0:
            try:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass

    def _notified(self, step: str, pid: int, fd: OwnedFd | None) -> None:
        if step == "setup-namespaces":
            state = oci_state.hook_state(self.record.born(pid, 0), "creating")
            run_hooks("prestart", self.spec.hooks.prestart, state, self.record.bundle)
            run_hooks("createRuntime", self.spec.hooks.create_runtime, state, self.record.bundle)
        elif step == "post-restore":
            self._pid = pid
            self._check_privileges(pid)
        elif step == "orphan-pts-master" and fd is not None:
            self._master = fd

    def _check_privileges(self, pid: int) -> None:
        """Nothing of it runs yet. CRIU 3.17 forgets no_new_privs: setuid programs would count again."""
        process = self.spec.process
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            has_it = "\nNoNewPrivs:\t1\n" in file.read()
        if process is not None and process.no_new_privileges and not has_it:
            raise Unsupported(
                "this CRIU restores a container without its no_new_privs",
                hint="CRIU 4.1 keeps it; the images are as they were",
            )

    def _take_over(self) -> tuple[int, OwnedFd, OwnedFd | None]:
        found = oci_state.process_start_time(self._pid)
        if found is None:
            raise ScowError("the container's first process is gone")
        pidfd = OwnedFd(os.pidfd_open(self._pid))
        self.record = self.record.born(self._pid, found[0])
        if not self.options.detach:
            parent.current().hold_signals()  # once it is seen to run, a signal is for it
        master = hand_over(self.options.console_socket, self._master)
        self.directory.save(self.record)
        write_pid_file(self.options.pid_file, self._pid)
        state = oci_state.hook_state(self.record, "running")
        run_hooks("poststart", self.spec.hooks.poststart, state, self.record.bundle)
        return self._pid, pidfd, master

    # --- mounts -------------------------------------------------------------------------------

    def _private_mounts(self, paths: tuple[str, ...]) -> tuple[int, list[int], list[str]]:
        """A mount namespace for CRIU, these directories in it, and where its outer mounts are.

        The root must be a mount, which the host is not to see, and which goes when we are killed.
        CRIU mounts below its directories, too, and reaches them by our descriptors (/proc/PID/fd).
        """
        with (
            OwnedFd(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as own,
            OwnedFd(os.open(".", _DIRECTORY)) as here,
        ):
            kernel.unshare(kernel.CLONE_NEWNS)
            try:
                everything = kernel.AT_RECURSIVE
                kernel.mount_setattr(kernel.AT_FDCWD, "/", everything, 0, 0, kernel.MS_PRIVATE)
                rootfs = self.record.rootfs
                kernel.mount(rootfs, rootfs, None, kernel.MS_BIND | kernel.MS_REC)
                sources = self._stage()
                own_fd = OwnedFd(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
                opened = [self.hold(OwnedFd(os.open(path, _DIRECTORY))) for path in paths]
                return self.hold(own_fd), opened, sources
            finally:
                kernel.setns(own.fileno(), kernel.CLONE_NEWNS)
                os.fchdir(here.fileno())  # setns(2) has gone to the root

    def _stage(self) -> list[str]:
        """Mount what the dump has named as it is to be, for CRIU to bind it.

        CRIU gives a mount its flags only when they differ from those of another one of the same
        files: of two read-only ones the second would be writable (seen with 4.1).
        """
        top = f"{self.directory.path}/outside"
        os.mkdir(top, 0o700)
        kernel.mount("scow-mask", top, "tmpfs", 0, "mode=755,size=64k")
        os.mkdir(f"{top}/{MASK_DIRECTORY}", 0o555)
        os.mknod(f"{top}/{MASK_FILE}", stat.S_IFREG | 0o444)
        found = [f"mnt[{name}]:{top}/{name}" for name in (MASK_DIRECTORY, MASK_FILE)]
        places: dict[str, str] = {}
        with Root.at(self.record.rootfs) as root:
            for index, mount in enumerate(binds_of(self.spec)):
                place = f"{top}/{index}"
                is_directory = self._bind(mount, place)
                if not any(_is_below(mount.destination, other) for other in self.spec.mounts):
                    _make_destination(root, mount.destination, is_directory=is_directory)
                places[place] = mount.destination
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            points = [line.split()[4] for line in file]
        for place, destination in places.items():
            below = [point for point in points if f"{point}/".startswith(f"{place}/")]
            found += [f"mnt[{destination}{point.removeprefix(place)}]:{point}" for point in below]
        kernel.mount_setattr(kernel.AT_FDCWD, top, 0, _SAFE | kernel.MOUNT_ATTR_RDONLY)
        return found

    def _bind(self, mount: SpecMount, place: str) -> bool:
        options = Options(mount)
        source = os.path.join(self.bundle, mount.source)
        with open_bind_source(source, recursive=options.recursive) as tree:
            fd, here = tree.fileno(), kernel.AT_EMPTY_PATH
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            os.mkdir(place) if is_directory else os.mknod(place)
            if options.tree_set or options.tree_clear:
                deep = here | kernel.AT_RECURSIVE
                kernel.mount_setattr(fd, "", deep, options.tree_set, options.tree_clear)
            kernel.mount_setattr(fd, "", here, options.set, options.clear & ~options.set)
            kernel.move_mount(fd, "", kernel.AT_FDCWD, place, kernel.MOVE_MOUNT_F_EMPTY_PATH)
        return is_directory

    def _cgroup_sources(self) -> list[str]:
        host, own = hierarchies(), self.record.cgroup
        places = [hierarchy.directory for hierarchy in host.v1]
        places += [host.unified] if host.unified else []
        found: list[str] = []
        for mount in self.spec.mounts:
            if mount.type != "cgroup":
                continue
            if host.mode is Mode.V2:
                found.append(f"mnt[{mount.destination}]:{host.unified}/{own}")
                continue
            for place in places:
                name = os.path.basename(place)
                found.append(f"mnt[{mount.destination}/{name}]:{place}/{own}")
        return found

    # --- descriptors --------------------------------------------------------------------------

    def _inherited(self, images: str, passed: list[int]) -> list[bytes]:
        """Our own pipes for those that the processes had, and the namespaces that they share."""
        found: list[bytes] = []
        try:
            with open(f"{images}/{DESCRIPTORS}", "rb") as file:
                before = msgspec.json.decode(file.read(_DESCRIPTORS_LIMIT), type=list[str])
        except FileNotFoundError:
            before = []
        except ValueError as error:
            raise InvalidArgument(f"'{images}/{DESCRIPTORS}' is damaged: {error}") from error
        for fd, target in enumerate(before[:3]):
            if target.startswith("pipe:"):
                found.append(criu.encode([(1, target), (2, fd)]))
        for item in self.spec.linux.namespaces:
            if item.path and item.type in OTHERS:
                fd = self.hold(OwnedFd(os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)))
                passed.append(fd)
                found.append(criu.encode([(1, OTHERS[item.type][1]), (2, fd)]))
        return found


def _is_below(path: str, mount: SpecMount) -> bool:
    """Whether it is the mount, and not the root, where it is made."""
    return os.path.normpath(path).startswith(f"{os.path.normpath(mount.destination)}/")


def _make_destination(root: Root, destination: str, *, is_directory: bool) -> None:
    """A fresh root file system may lack what `create` has made in the one before."""
    try:
        root.open(destination, os.O_PATH).close()
    except FileNotFoundError:
        parent = os.path.dirname(os.path.normpath(destination))
        root.makedirs(destination if is_directory else parent).close()
        if not is_directory:
            root.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644).close()


def _cgroup_roots(path: str) -> list[bytes]:
    """Every hierarchy's part of the container: what was below the old one goes below this."""
    host = hierarchies()
    names = [",".join(hierarchy.controllers) or hierarchy.name for hierarchy in host.v1]
    roots = [criu.encode([(1, name), (2, f"/{path}")]) for name in names]
    if host.unified:
        roots.append(criu.encode([(2, f"/{path}")]))
    return roots


def _move_in(tasks: list[int], unified: int | None, groups: Groups | None, namespace: int) -> None:
    """In CRIU's process to be: go into the container's groups, where its children are to be born."""
    for fd in tasks:
        os.write(fd, b"0")
    if unified is not None:
        fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=unified)
        os.write(fd, b"0")
        os.close(fd)
    if groups is not None:
        from scow.runtime.oci_rdt import join

        join(groups, os.getpid())
    kernel.setns(namespace, kernel.CLONE_NEWNS)
