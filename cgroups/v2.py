"""A container's cgroup in the unified hierarchy (cgroup v2).

Processes are born inside by CLONE_INTO_CGROUP, so there is no moment without limits. Devices are
a BPF program that is replaced, never detached (`bpf`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import TYPE_CHECKING

from scow.cgroups import control, processes, tree, v2_limits
from scow.cgroups.control import Write
from scow.cgroups.detect import Hierarchies
from scow.cgroups.resources import Resources, validate_resources
from scow.native.errors import (
    DeadlineExceeded,
    InvalidState,
    NotFound,
    ScowError,
    Unsupported,
)
from scow.native.fd import OwnedFd

if TYPE_CHECKING:
    from scow.cgroups.stats import Stats

_FREEZE_TIMEOUT_S = 10.0
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Enabled for a cgroup's children, these leave room for processes in itself (cgroup-v2.rst "Threads").
_THREADED = frozenset(("cpu", "cpuset", "perf_event", "pids"))
# Enabled for every container where the host has them, so that `stats` has numbers; others only
# when a limit asks for them.
_USUAL_CONTROLLERS = ("cpu", "memory", "pids", "io", "cpuset")


class V2Cgroup:
    """See `cgroup.Cgroup`."""

    __slots__ = ("_directory", "_foreign", "_keeper", "_owner", "_pod", "_root", "path")

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
        if hierarchies.unified is None:
            raise Unsupported("cgroup2 is not mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")
        self.path = tree.check_path(path, foreign=foreign)
        self._foreign, self._owner, self._keeper, self._pod = foreign, owner, keeper, pod
        self._root = hierarchies.unified
        self._directory = f"{self._root}/{path}"

    # --- making -------------------------------------------------------------------------------

    def planned_writes(self, resources: Resources) -> list[Write]:
        """See `cgroup.Cgroup`."""
        validate_resources(resources)
        return v2_limits.limit_writes(resources)

    def create(self, resources: Resources) -> None:
        """See `cgroup.Cgroup`."""
        writes = self.planned_writes(resources)
        try:
            self._make(writes)
        except BaseException:
            self._remove_empty_parents()
            raise
        try:
            self._refuse_bad_parent()
            self._apply(writes)
            self._apply_devices(resources)
        except BaseException:
            # The first failure is the one to tell; a marked directory that stays is removed by
            # the next create or remove of this id.
            if not self._keeper:
                with contextlib.suppress(OSError, ScowError):
                    self._remove()
            raise

    def _make(self, writes: list[Write]) -> None:
        tree.refuse_container_above(self._root, self.path)
        for attempt in (1, 2):
            try:
                self._enable_controllers(writes)
                tree.make(self._directory)
                tree.set_mark(self._directory, self._owner, pod=self._pod)
                return
            except FileExistsError:
                if self._foreign and tree.adopt(self._directory, self._owner, self._keeper):
                    return
                if attempt == 2:
                    raise tree.already_exists(self._directory) from None
                self._clear_leftover()

    def _clear_leftover(self) -> None:
        if tree.require_ours(self._directory):
            if pids := self.pids():
                raise InvalidState(f"cgroup '{self.path}' has processes already: {pids[:8]}")
            self._remove()

    def _enable_controllers(self, writes: list[Write]) -> None:
        """Enable controllers from the root down to the parent; usually one read says: done."""
        needed = dict.fromkeys(write.controller for write in writes)
        parent = os.path.dirname(self._directory)
        try:
            with OwnedFd(os.open(parent, _DIRECTORY)) as fd:
                enabled = control.read_file(fd.fileno(), "cgroup.subtree_control").split()
                offered = control.read_file(fd.fileno(), "cgroup.controllers").split()
            missing = [c for c in (*needed, *_USUAL_CONTROLLERS) if c not in enabled]
            if not any(c in offered or c in needed for c in missing) and parent != self._root:
                return
        except FileNotFoundError:
            if not self._foreign:
                tree.require_parent((self._root,), self.path)
            tree.make_parents(self._root, self.path)
        directory = self._root
        for part in ("", *self.path.split("/")[:-1]):
            directory = f"{directory}/{part}" if part else directory
            self._enable_in(directory, list(needed))

    def _enable_in(self, directory: str, needed: list[str]) -> None:
        with OwnedFd(os.open(directory, _DIRECTORY)) as fd:
            offered = control.read_file(fd.fileno(), "cgroup.controllers").split()
            enabled = control.read_file(fd.fileno(), "cgroup.subtree_control").split()
            for name in needed:
                if name not in offered:
                    raise Unsupported(
                        f"cgroup controller '{name}' is not available in '{directory}'",
                        hint=f"available are: {' '.join(offered) or 'none'}; on a hybrid host "
                        "the others belong to cgroup v1",
                    )
            for name in dict.fromkeys((*needed, *_USUAL_CONTROLLERS)):
                if name in enabled or name not in offered:
                    continue
                try:
                    control.write_file(fd.fileno(), "cgroup.subtree_control", f"+{name}")
                except OSError as error:
                    if name in needed:
                        raise self._cannot_enable(error, directory, name) from error
                    # Only its numbers will be missing; no limit asks for it.

    @staticmethod
    def _cannot_enable(error: OSError, directory: str, name: str) -> ScowError:
        failure = control.refused_write_error(
            error, directory, "cgroup.subtree_control", f"+{name}"
        )
        if error.errno == errno.EBUSY:
            # cgroup-v2.rst "No Internal Process Constraint".
            failure.hint = f"'{directory}' has processes of its own; move them into a sub-cgroup"
        return failure

    def _refuse_bad_parent(self) -> None:
        with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
            # A child of a frozen cgroup is born frozen; the clone into it would hang.
            events = control.keyed_values(control.read_file(fd.fileno(), "cgroup.events"))
            kind = control.read_file(fd.fileno(), "cgroup.type").strip()
        if events.get("frozen"):
            raise InvalidState(f"cgroup parent of '{self.path}' is frozen")
        if kind != "domain":
            raise InvalidState(
                f"cgroup parent of '{self.path}' is threaded, which cannot hold containers"
            )

    # --- limits -------------------------------------------------------------------------------

    def _apply(self, writes: list[Write]) -> None:
        if not writes:
            return
        with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
            again: list[Write] = []
            for write in writes:
                try:
                    self._write(fd.fileno(), write)
                except OSError as error:
                    if error.errno != errno.EINVAL or write.file not in v2_limits.RETRIED:
                        raise self._refusal(error, fd.fileno(), write) from error
                    again.append(write)
            for write in again:
                try:
                    self._write(fd.fileno(), write)
                except OSError as error:
                    raise self._refusal(error, fd.fileno(), write) from error

    def _write(self, fd: int, write: Write) -> None:
        if write.instead is not None:
            write = self._choose_weight(write)
        try:
            control.write_file(fd, write.file, write.value)
        except FileNotFoundError as missing:
            if not write.optional:
                raise control.missing_file_error(write, self.path) from missing

    def _choose_weight(self, write: Write) -> Write:
        """Only weights have two files: bfq's, and io.weight, which io.cost reads."""
        from scow.cgroups import weight

        if weight.has_bfq_disk():
            return write._replace(instead=None)
        if not weight.has_io_cost(self._root):
            raise weight.no_effect_error(write, self.path)
        line = v2_limits.io_weight_line(write.value)
        return write._replace(file="io.weight", value=line, instead=None)

    def _refusal(self, error: OSError, fd: int, write: Write) -> ScowError:
        facts = ""
        with contextlib.suppress(OSError):
            if write.file.startswith("memory."):
                facts = f"usage is {control.read_file(fd, 'memory.current').strip()}"
            elif write.file.startswith("cpuset."):
                available = control.read_file(fd, f"../{write.file}.effective").strip()
                facts = f"available are {available}"
        return control.refused_write_error(
            error, self._directory, write.file, write.value, facts=facts
        )

    def _apply_devices(self, resources: Resources) -> None:
        if resources.devices is None:
            return
        from scow.cgroups import bpf, devices

        program = bpf.device_program(devices.check_rules(resources.devices))
        with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
            bpf.replace_device_program(fd.fileno(), program)

    def update_writes(self, resources: Resources) -> list[Write]:
        """See `cgroup.Cgroup`."""
        validate_resources(resources)
        self._require()
        with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
            cpu_max = control.read_or(fd.fileno(), "cpu.max", "")
        return v2_limits.limit_writes(resources, current_cpu_max=cpu_max)

    def current_values(self, writes: list[Write]) -> list[Write]:
        """See `cgroup.Cgroup`."""
        with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
            return [
                write._replace(value=value, instead=None)
                for write in reversed(writes)
                if (value := control.read_or(fd.fileno(), write.file, "").strip())
                and "\n" not in value
            ]

    def update(self, resources: Resources) -> None:
        """See `cgroup.Cgroup`."""
        writes = self.update_writes(resources)
        self._check_usage(resources)
        before = self.current_values(writes)
        try:
            self._enable_controllers(writes)
            self._apply(writes)
            self._apply_devices(resources)
        except BaseException:
            for write in before:
                with contextlib.suppress(OSError, ScowError):
                    self._apply([write])
            raise

    def _check_usage(self, resources: Resources) -> None:
        # Unlike v1, a memory.max below the usage is taken, and kills.
        memory = resources.memory
        if memory is None or not memory.check_before_update or (memory.limit or 0) <= 0:
            return
        with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
            used = int(control.read_or(fd.fileno(), "memory.current", "0"))
        if memory.limit is not None and used > memory.limit:
            raise InvalidState(
                f"cannot lower the memory limit of '{self.path}' to {memory.limit}: usage is {used}"
            )

    # --- processes ----------------------------------------------------------------------------

    def join_fds(self) -> list[OwnedFd]:
        """See `cgroup.Cgroup`."""
        self._require()
        return []

    def dir_fd(self) -> OwnedFd | None:
        """See `cgroup.Cgroup`."""
        self._require()
        return OwnedFd(os.open(self._directory, _DIRECTORY))

    def takes_processes(self) -> bool:
        """See `cgroup.Cgroup`."""
        with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
            enabled = control.read_file(fd.fileno(), "cgroup.subtree_control").split()
        return _THREADED.issuperset(enabled)

    def pids(self) -> list[int]:
        """See `cgroup.Cgroup`."""
        return tree.list_pids(self._directory)

    def _require(self) -> None:
        if not tree.require_ours(self._directory, self._owner):
            raise NotFound(f"cgroup '{self.path}' does not exist")

    def _set_frozen(self, *, frozen: bool) -> None:
        self._require()
        with control.opened(self._directory, self.path) as fd:
            control.write_file(fd, "cgroup.freeze", "1" if frozen else "0")

    def freeze(self) -> None:
        """See `cgroup.Cgroup`."""
        self._set_frozen(frozen=True)
        deadline = time.monotonic() + _FREEZE_TIMEOUT_S
        with control.opened(f"{self._directory}/cgroup.events", self.path, 0) as fd:
            poll = select.poll()
            # kernfs tells a change of the file by POLLPRI, once it has been read.
            poll.register(fd, select.POLLPRI)
            while not self._is_frozen(os.pread(fd, control.READ_SIZE, 0)):
                left = deadline - time.monotonic()
                if left <= 0:
                    self._set_frozen(frozen=False)
                    raise DeadlineExceeded(
                        f"cannot freeze '{self.path}' within {_FREEZE_TIMEOUT_S:g} s",
                        hint="a process waits for a device or a network file system",
                    )
                poll.poll(min(left, 0.1) * 1000)

    @staticmethod
    def _is_frozen(events: bytes) -> bool:
        return b"frozen 1" in events

    def thaw(self) -> None:
        """See `cgroup.Cgroup`."""
        self._set_frozen(frozen=False)

    def is_frozen(self) -> bool:
        """See `cgroup.Cgroup`."""
        self._require()
        with control.opened(self._directory, self.path) as fd:
            return control.read_file(fd, "cgroup.freeze").strip() == "1"

    def kill(self) -> None:
        """See `cgroup.Cgroup`."""
        if not tree.require_ours(self._directory, self._owner):
            return
        try:
            with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
                control.write_file(fd.fileno(), "cgroup.kill", "1")
        except OSError as error:
            if error.errno not in control.GONE:
                raise
            self._kill_round()  # before Linux 5.14, or removed meanwhile
        processes.wait_until_empty(self.pids, what=self.path, again=self._kill_round)

    def _kill_round(self) -> None:
        try:
            with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
                # Held still, a fork bomb cannot outrun the list; v2 lets SIGKILL through a freeze.
                control.write_file(fd.fileno(), "cgroup.freeze", "1")
                try:
                    processes.signal_all(self.pids)
                finally:
                    control.write_file(fd.fileno(), "cgroup.freeze", "0")
        except OSError as error:
            if error.errno not in control.GONE:
                raise  # who watches the container may have removed it: that is what was asked

    # --- what happened ------------------------------------------------------------------------

    def oom_fd(self) -> OwnedFd | None:
        """See `cgroup.Cgroup`."""
        try:
            name = f"{self._directory}/memory.events"
            return OwnedFd(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return None

    def oom_kills(self) -> int:
        """See `cgroup.Cgroup`.

        `oom_kill` and not `oom`: the latter counts limits that were hit, also without a victim.
        """
        try:
            with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
                text = control.read_or(fd.fileno(), "memory.events", "")
        except FileNotFoundError:
            raise NotFound(f"cgroup '{self.path}' does not exist") from None
        return control.keyed_values(text).get("oom_kill", 0)

    def stats(self) -> Stats:
        """See `cgroup.Cgroup`."""
        from scow.cgroups import v2_stats

        try:
            with OwnedFd(os.open(self._directory, _DIRECTORY)) as fd:
                return v2_stats.read(fd.fileno())
        except FileNotFoundError:
            raise NotFound(f"cgroup '{self.path}' does not exist") from None

    def exists(self) -> bool:
        """See `cgroup.Cgroup`."""
        return os.path.isdir(self._directory)

    # --- removing -----------------------------------------------------------------------------

    def remove(self) -> None:
        """See `cgroup.Cgroup`."""
        if tree.require_ours(self._directory, self._owner):
            self._remove()
        else:
            self._remove_empty_parents()

    def _remove(self) -> None:
        tree.remove_tree(self._directory)
        self._remove_empty_parents()

    def _remove_empty_parents(self) -> None:
        if "/" in self.path.removeprefix(f"{tree.OWN_TOP}/"):
            tree.remove_empty_parents(self._root, self.path)
