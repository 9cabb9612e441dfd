"""A container's cgroup on v1 and hybrid hosts: one directory in every mounted hierarchy.

The first hierarchy (the freezer, see `detect`) is the primary one: made and marked first, removed
last, so that whenever anything of a container's cgroup exists, the mark says whose it is.
On a hybrid host the container is in cgroup2 as well; no limits there, but one write to
`cgroup.kill` (5.14) ends a fork bomb that a loop over pids would chase.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from scow.cgroups import control, devices, processes, tree, v1_limits
from scow.cgroups.control import Write
from scow.cgroups.detect import Hierarchies
from scow.cgroups.resources import Resources, validate_resources
from scow.native.errors import DeadlineExceeded, InvalidState, NotFound, ScowError, Unsupported
from scow.native.fd import OwnedFd

if TYPE_CHECKING:
    from scow.cgroups.stats import Stats

_FREEZE_TIMEOUT_S = 10.0
_PARENT_TRIES = 10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class V1Cgroup:
    """See `cgroup.Cgroup`."""

    __slots__ = ("_foreign", "_host", "_keeper", "_owner", "_pod", "_primary", "_unified", "path")

    def __init__(
        self,
        path: str,
        hierarchies: Hierarchies,
        *,
        foreign: bool = False,
        owner: str = "",
        keeper: int = 0,
        pod: bool = False,
    ) -> None:
        self.path = tree.check_path(path, foreign=foreign)
        self._foreign, self._owner, self._keeper, self._pod = foreign, owner, keeper, pod
        self._host = hierarchies
        self._primary = f"{hierarchies.v1[0].directory}/{path}"
        self._unified = f"{hierarchies.unified}/{path}" if hierarchies.unified else None

    # --- making -------------------------------------------------------------------------------

    def planned_writes(self, resources: Resources) -> list[Write]:
        """See `cgroup.Cgroup`."""
        validate_resources(resources)
        writes = v1_limits.limit_writes(resources)
        if resources.devices is not None:
            wanted = devices.device_list(devices.check_rules(resources.devices))
            lines = devices.v1_writes(wanted)
            writes.extend(Write("devices", file, line) for file, line in lines)
        for write in writes:
            self._directory(write)
        return writes

    def create(self, resources: Resources) -> None:
        """See `cgroup.Cgroup`."""
        writes = self.planned_writes(resources)
        try:
            self._make_primary()
        except BaseException:
            self._remove_empty_parents(self._primary)
            raise
        try:
            for directory in self._others():
                self._make_directory(directory)
                if self._pod:
                    tree.set_mark(directory, pod=True)  # else the last container would take it
            self._refuse_frozen()
            self._seed_cpuset()
            self._apply(writes)
        except BaseException:
            # The first failure is the one to tell; what cannot be removed now is marked, and the
            # next create or remove of this id takes it away.
            if not self._keeper:
                with contextlib.suppress(OSError, ScowError):
                    self._remove_directories()
            raise

    def _others(self) -> list[str]:
        found = [f"{hierarchy.directory}/{self.path}" for hierarchy in self._host.v1[1:]]
        if self._unified is not None:
            found.append(self._unified)
        return found

    def _make_primary(self) -> None:
        tree.refuse_container_above(self._host.v1[0].directory, self.path)
        for attempt in (1, 2):
            try:
                self._make_directory(self._primary)
                tree.set_mark(self._primary, self._owner, pod=self._pod)
                return
            except FileExistsError:
                if self._foreign and tree.adopt(self._primary, self._owner, self._keeper):
                    return
                if attempt == 2:
                    raise tree.already_exists(self._primary) from None
                self._clear_leftover()

    def _clear_leftover(self) -> None:
        if not tree.require_ours(self._primary):
            return
        if pids := self.pids():
            raise InvalidState(f"cgroup '{self.path}' has processes already: {pids[:8]}")
        self._remove_directories()

    def _make_directory(self, directory: str) -> None:
        try:
            for _ in range(_PARENT_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    tree.make(directory)
                    return
                if not self._foreign:
                    tree.require_parent((h.directory for h in self._host.v1), self.path)
                root = directory.removesuffix(f"/{self.path}")
                # The last container below a parent removes it, perhaps before we are in it.
                with contextlib.suppress(FileNotFoundError):
                    for parent in tree.make_parents(root, self.path):
                        self._seed_directory(parent)
            tree.make(directory)
        except FileExistsError:
            if directory == self._primary:
                raise
            if self._foreign and not set(tree.list_pids(directory)) - {self._keeper}:
                return
            # The primary directory was free, so this is not a leftover of ours.
            raise tree.already_exists(directory) from None

    def _refuse_frozen(self) -> None:
        # A child of a frozen cgroup is born frozen; a process that joins it would hang in create.
        directory = self._controller("freezer")
        if directory is None:
            return
        with OwnedFd(os.open(directory, _DIRECTORY)) as fd:
            state = control.read_or(fd.fileno(), "freezer.state", "THAWED").strip()
        if state != "THAWED":
            raise InvalidState(f"cgroup parent of '{self.path}' is frozen")

    def _seed_cpuset(self) -> None:
        directory = self._controller("cpuset")
        if directory is not None:
            self._seed_directory(directory)

    def _seed_directory(self, directory: str) -> None:
        """Give a new cpuset its parent's processors and memory.

        A v1 cpuset starts empty and takes no process until both are set (cpusets(7)).
        clone_children makes the kernel do it for the children of this one.
        """
        hierarchy = self._host.with_controller("cpuset")
        if hierarchy is None or not directory.startswith(f"{hierarchy.directory}/"):
            return
        with OwnedFd(os.open(directory, _DIRECTORY)) as fd:
            for name in ("cpuset.cpus", "cpuset.mems"):
                if control.read_file(fd.fileno(), name).strip():
                    continue
                inherited = control.read_file(fd.fileno(), f"../{name}").strip()
                if not inherited:
                    # Its maker was killed between mkdir and this.
                    self._seed_directory(os.path.dirname(directory))
                    inherited = control.read_file(fd.fileno(), f"../{name}").strip()
                control.write_file(fd.fileno(), name, inherited)
            if directory != f"{hierarchy.directory}/{self.path}":
                control.write_file(fd.fileno(), "cgroup.clone_children", "1")

    # --- limits -------------------------------------------------------------------------------

    def _controller(self, controller: str) -> str | None:
        hierarchy = self._host.with_controller(controller)
        return f"{hierarchy.directory}/{self.path}" if hierarchy else None

    def _directory(self, write: Write) -> str:
        directory = self._controller(write.controller)
        if directory is None:
            raise Unsupported(
                f"cannot set '{write.file}' to '{write.value}': "
                f"this host has no cgroup v1 controller '{write.controller}'",
                hint="see /proc/cgroups: in hierarchy 0 it is free to be mounted, "
                "or used by cgroup v2, where a hybrid host sets no limits",
            )
        return directory

    def _apply(self, writes: list[Write]) -> None:
        opened: dict[str, int] = {}
        try:
            again: list[Write] = []
            for write in writes:
                if write.controller not in opened:
                    opened[write.controller] = os.open(self._directory(write), _DIRECTORY)
                try:
                    self._write(opened[write.controller], write)
                except OSError as error:
                    if error.errno != errno.EINVAL or write.file not in v1_limits.RETRIED:
                        raise self._refusal(error, write) from error
                    again.append(write)
            for write in again:
                try:
                    self._write(opened[write.controller], write)
                except OSError as error:
                    raise self._refusal(error, write) from error
        finally:
            for fd in opened.values():
                os.close(fd)

    def _write(self, fd: int, write: Write) -> None:
        try:
            control.write_file(fd, write.file, write.value)
        except FileNotFoundError as missing:
            if write.instead is not None:
                # Only weights have another name: bfq's, which needs a disk that uses bfq.
                from scow.cgroups import weight

                try:
                    if not weight.has_bfq_disk():
                        raise weight.no_effect_error(write, self.path) from missing
                    control.write_file(fd, write.instead, write.value)
                    return
                except FileNotFoundError:
                    pass
            if not write.optional:
                raise control.missing_file_error(write, self.path) from missing

    def _refusal(self, error: OSError, write: Write) -> ScowError:
        directory = self._directory(write)
        facts = ""
        with contextlib.suppress(OSError), OwnedFd(os.open(directory, _DIRECTORY)) as fd:
            if write.file == "memory.limit_in_bytes":
                used = control.read_or(fd.fileno(), "memory.usage_in_bytes", "?").strip()
                swap = control.read_or(fd.fileno(), "memory.memsw.limit_in_bytes", "?").strip()
                facts = f"usage is {used}, the memory and swap limit is {swap}"
            elif write.file.startswith("cpuset."):
                available = control.read_file(fd.fileno(), f"../{write.file}").strip()
                facts = f"available are {available}"
        return control.refused_write_error(error, directory, write.file, write.value, facts=facts)

    def update_writes(self, resources: Resources) -> list[Write]:
        """See `cgroup.Cgroup`."""
        validate_resources(resources)
        self._require()
        writes = v1_limits.limit_writes(resources)
        for write in writes:
            self._directory(write)
        return writes

    def update(self, resources: Resources) -> None:
        """See `cgroup.Cgroup`."""
        writes = self.update_writes(resources)
        self._check_usage(resources)
        if resources.devices is not None:
            writes.extend(self._device_writes(resources))
        before = self.current_values(writes)
        try:
            self._apply(writes)
        except BaseException:
            for write in before:
                with contextlib.suppress(OSError, ScowError):
                    self._apply([write])
            raise

    def _device_writes(self, resources: Resources) -> list[Write]:
        wanted = devices.device_list(devices.check_rules(resources.devices or ()))
        directory = self._directory(Write("devices", "devices.list", ""))
        with OwnedFd(os.open(directory, _DIRECTORY)) as fd:
            now = devices.parse_device_list(control.read_file(fd.fileno(), "devices.list"))
        return [Write("devices", file, line) for file, line in devices.v1_writes(wanted, now)]

    def _check_usage(self, resources: Resources) -> None:
        memory = resources.memory
        if memory is None or not memory.check_before_update or (memory.limit or 0) <= 0:
            return
        used = self.stats().memory_bytes
        if memory.limit is not None and used > memory.limit:
            raise InvalidState(
                f"cannot lower the memory limit of '{self.path}' to {memory.limit}: usage is {used}"
            )

    def current_values(self, writes: list[Write]) -> list[Write]:
        """See `cgroup.Cgroup`."""
        before: list[Write] = []
        for write in reversed(writes):
            if write.controller == "devices" or "_device" in write.file:
                continue
            with OwnedFd(os.open(self._directory(write), _DIRECTORY)) as fd:
                value = control.read_or(fd.fileno(), write.file, "").strip()
            if value and "\n" not in value:
                before.append(write._replace(value=value))
        return before

    # --- processes ----------------------------------------------------------------------------

    def join_fds(self) -> list[OwnedFd]:
        """See `cgroup.Cgroup`.

        `tasks` and not `cgroup.procs`: moving only the writing thread itself spares the kernel
        the global threadgroup lock, which costs a grace period (cgroup_procs_write_start).
        """
        self._require()
        found: list[OwnedFd] = []
        try:
            for hierarchy in self._host.v1:
                name = f"{hierarchy.directory}/{self.path}/tasks"
                found.append(OwnedFd(os.open(name, os.O_WRONLY | os.O_CLOEXEC)))
        except BaseException:
            for fd in found:
                fd.close()
            raise
        return found

    def dir_fd(self) -> OwnedFd | None:
        """See `cgroup.Cgroup`."""
        if self._unified is None:
            return None
        self._require()
        return OwnedFd(os.open(self._unified, _DIRECTORY))

    def takes_processes(self) -> bool:
        """See `cgroup.Cgroup`."""
        return True

    def pids(self) -> list[int]:
        """See `cgroup.Cgroup`."""
        return tree.list_pids(self._primary)

    def _require(self) -> None:
        if not tree.require_ours(self._primary, self._owner):
            raise NotFound(f"cgroup '{self.path}' does not exist")

    def _freezer(self) -> str:
        directory = self._controller("freezer")
        if directory is None:
            raise Unsupported(
                "cannot pause: this host has no cgroup controller 'freezer'",
                hint="mount it: mount -t cgroup -o freezer none /sys/fs/cgroup/freezer",
            )
        return directory

    def _set_freezer(self, value: str) -> str:
        with control.opened(self._freezer(), self.path) as fd:
            control.write_file(fd, "freezer.state", value)
            return control.read_file(fd, "freezer.state").strip()

    def freeze(self) -> None:
        """See `cgroup.Cgroup`."""
        self._require()
        deadline = time.monotonic() + _FREEZE_TIMEOUT_S
        pause = 0.0001
        # Written again in every round: a process that forks while it is frozen leaves the state
        # at FREEZING for ever unless the kernel is asked anew (freezer-subsystem.txt).
        while self._set_freezer("FROZEN") != "FROZEN":
            if time.monotonic() >= deadline:
                self._set_freezer("THAWED")
                raise DeadlineExceeded(
                    f"cannot freeze '{self.path}' within {_FREEZE_TIMEOUT_S:g} s",
                    hint="a process waits for a device or a network file system",
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def thaw(self) -> None:
        """See `cgroup.Cgroup`."""
        self._require()
        self._set_freezer("THAWED")

    def is_frozen(self) -> bool:
        """See `cgroup.Cgroup`."""
        self._require()
        with control.opened(self._freezer(), self.path) as fd:
            return control.read_file(fd, "freezer.state").strip() != "THAWED"

    def kill(self) -> None:
        """See `cgroup.Cgroup`."""
        if not tree.require_ours(self._primary, self._owner):
            return
        is_told = self._kill_unified()
        # v1 keeps even SIGKILL waiting while a process is frozen.
        with contextlib.suppress(OSError, NotFound, Unsupported):
            self._set_freezer("THAWED")
            self._thaw_pods()
        if not is_told and self.pids():
            self._kill_round()
        processes.wait_until_empty(self.pids, what=self.path, again=self._kill_round)

    def _thaw_pods(self) -> None:
        """A pod that is frozen holds its containers, whatever is said of them."""
        directory = os.path.dirname(self._freezer())
        while (tree.read_mark(directory) or b"").startswith(tree.POD):
            with OwnedFd(os.open(directory, _DIRECTORY)) as fd:
                control.write_file(fd.fileno(), "freezer.state", "THAWED")
            directory = os.path.dirname(directory)

    def _kill_unified(self) -> bool:
        """One write for all, if the host has it; a process that is in v1 only is not reached."""
        if self._unified is None:
            return False
        try:
            with OwnedFd(os.open(self._unified, _DIRECTORY)) as fd:
                control.write_file(fd.fileno(), "cgroup.kill", "1")
        except OSError as error:
            if error.errno not in control.GONE:
                raise
            return False
        return True

    def _kill_round(self) -> None:
        """Freeze what can be frozen at once, so that a fork bomb holds still, and signal all."""
        with contextlib.suppress(OSError, NotFound, Unsupported):
            self._set_freezer("FROZEN")
        try:
            processes.signal_all(self.pids)
        finally:
            with contextlib.suppress(OSError, NotFound, Unsupported):
                self._set_freezer("THAWED")

    # --- what happened ------------------------------------------------------------------------

    def oom_fd(self) -> OwnedFd | None:
        """See `cgroup.Cgroup`."""
        directory = self._controller("memory")
        if directory is None:
            return None
        return OwnedFd(os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC))

    def oom_kills(self) -> int:
        """See `cgroup.Cgroup`."""
        directory = self._controller("memory")
        if directory is None:
            return 0
        try:
            with OwnedFd(os.open(directory, _DIRECTORY)) as fd:
                text = control.read_file(fd.fileno(), "memory.oom_control")
        except FileNotFoundError:
            raise NotFound(f"cgroup '{self.path}' does not exist") from None
        return control.keyed_values(text).get("oom_kill", 0)

    def stats(self) -> Stats:
        """See `cgroup.Cgroup`."""
        if not self.exists():
            raise NotFound(f"cgroup '{self.path}' does not exist")
        from scow.cgroups import v1_stats

        return v1_stats.read(self._controller)

    def exists(self) -> bool:
        """See `cgroup.Cgroup`."""
        return os.path.isdir(self._primary)

    # --- removing -----------------------------------------------------------------------------

    def remove(self) -> None:
        """See `cgroup.Cgroup`."""
        if tree.require_ours(self._primary, self._owner):
            self._remove_directories()
        else:
            self._remove_empty_parents(self._primary)

    def _remove_directories(self) -> None:
        first: Exception | None = None
        deadline = time.monotonic() + tree.REMOVE_TIMEOUT_S
        for directory in self._others():
            try:
                tree.remove_tree(directory, deadline=deadline)
                self._remove_empty_parents(directory)
            except (OSError, ScowError) as error:
                first = first or error
        if first is not None:
            raise first  # the primary one stays, and says whose the rest is
        tree.remove_tree(self._primary, deadline=deadline)
        self._remove_empty_parents(self._primary)

    def _remove_empty_parents(self, directory: str) -> None:
        if "/" in self.path.removeprefix(f"{tree.OWN_TOP}/"):
            tree.remove_empty_parents(directory.removesuffix(f"/{self.path}"), self.path)
