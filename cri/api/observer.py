"""What all containers and pods are doing, with as few questions to the kernel as can be.

Records are kept decoded, and believed as long as their file is the same one; a container runs as long
as it has no exit record and its monitor lives, which one epoll_wait(2) tells of all of them. So nothing
that the command line does beside the service is missed, and nothing is asked twice.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence

import msgspec

from scow.cri.api import descriptors
from scow.cri.objects import ID_LENGTH
from scow.cri.pod_join import is_ready, pinned_kinds
from scow.cri.pod_namespaces import pin_path
from scow.cri.pod_records import PodRecord
from scow.cri.pods import Pods
from scow.cri.records import Record
from scow.cri.service import Service
from scow.cri.status import Status, is_process, read_run
from scow.native.errors import NotFound, ScowError
from scow.native.fd import OwnedFd
from scow.runtime.state import State

Signature = tuple[int, int, int]


class Seen(msgspec.Struct):
    """A container as it was seen last."""

    record: Record
    signature: Signature
    status: Status
    ended: Signature | None = None
    monitor: OwnedFd | None = None  # a pidfd, while it runs


class SeenPod(msgspec.Struct):
    """A pod as it was seen last."""

    record: PodRecord
    signature: Signature


def _signature(path: str) -> Signature | None:
    """What changes when a file is replaced: records are never written in place."""
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


def _is_id(text: str) -> bool:
    return len(text) == ID_LENGTH and text.isalnum()


def _is_new(seen: Seen, directory: str) -> bool:
    """Whether no run was begun: a monitor reserves the place of its exit record before all else."""
    reserved = f"{directory}/.exit.json.tmp"
    return seen.status.state is State.CREATED and not os.access(reserved, os.F_OK)


class Observer:
    """Everything of one service; to be used by any thread."""

    def __init__(self, service: Service, pods: Pods) -> None:
        self._service = service
        self._pods = pods
        self._lock = threading.RLock()
        self._containers: dict[str, Seen] = {}
        self._seen_pods: dict[str, SeenPod] = {}
        self._monitors = select.epoll()
        self._by_fd: dict[int, str] = {}
        self.on_running: Callable[[Record], None] = lambda record: None

    def close(self) -> None:
        """Let go of all descriptors."""
        with self._lock:
            for seen in self._containers.values():
                self._forget_monitor(seen)
            self._containers.clear()
            self._monitors.close()

    # --- containers ---------------------------------------------------------------------------

    def containers(self, pod_id: str | None = None) -> Sequence[tuple[Record, Status]]:
        """Every container of all pods, or of one, with what it is doing."""
        with self._lock:
            self._hear_of_ends()
            ids = self._service.store.ids()
            found: list[tuple[Record, Status]] = []
            for container_id in ids:
                # Whose a container is never changes: of those of others nothing is asked.
                if pod_id is not None and self._is_of_another(container_id, pod_id):
                    continue
                seen = self._look(container_id)
                member = seen.record.member if seen is not None else None
                if seen is not None and member is not None and pod_id in (None, member.pod_id):
                    found.append((seen.record, seen.status))
            for container_id in self._containers.keys() - set(ids):
                self._drop(container_id)
            return found

    def _is_of_another(self, container_id: str, pod_id: str) -> bool:
        seen = self._containers.get(container_id)
        if seen is None:
            return False
        return seen.record.member is None or seen.record.member.pod_id != pod_id

    def container(self, text: str) -> tuple[Record, Status]:
        """One container of a pod, by id or a unique beginning; NotFound without one."""
        with self._lock:
            self._hear_of_ends()
            seen = self._look(text) if _is_id(text) else None
            if seen is None:
                seen = self._look(self._service.store.find(text))
            if seen is None or seen.record.member is None:
                raise NotFound(f"no such container in a pod: '{text[:256]}'")
            return seen.record, seen.status

    def _hear_of_ends(self) -> None:
        """Forget the monitors that have ended: what they leave is read anew."""
        if not self._by_fd:
            return
        for fd, _ in self._monitors.poll(0, len(self._by_fd)):
            seen = self._containers.get(self._by_fd.get(fd, ""))
            if seen is not None:
                self._forget_monitor(seen)

    def _forget_monitor(self, seen: Seen) -> None:
        if seen.monitor is not None:
            fd = seen.monitor.fileno()
            self._monitors.unregister(fd)
            self._by_fd.pop(fd, None)
            seen.monitor.close()
            seen.monitor = None

    def _drop(self, container_id: str) -> None:
        seen = self._containers.pop(container_id, None)
        if seen is not None:
            self._forget_monitor(seen)

    def _look(self, container_id: str) -> Seen | None:
        directory = self._service.store.container_dir(container_id)
        signature = _signature(f"{directory}/record.json")
        seen = self._containers.get(container_id)
        if signature is None:
            self._drop(container_id)
            return None
        if seen is None or seen.signature != signature:
            try:
                record = self._service.store.read(container_id)
            except ScowError:
                return None  # removed at this moment, or damaged: `system check` tells
            if seen is None:
                seen = Seen(record, signature, Status(State.CREATED))
                self._containers[container_id] = seen
            seen.record, seen.signature = record, signature
        # access(2) first: most have none, and an exception costs more than the call.
        has_ended = os.access(f"{directory}/exit.json", os.F_OK)
        ended = _signature(f"{directory}/exit.json") if has_ended else None
        if ended is not None and ended == seen.ended:
            return seen
        if ended is None and (seen.monitor is not None or _is_new(seen, directory)):
            return seen
        seen.ended = ended
        self._ask(seen)
        if _signature(f"{directory}/record.json") is None:
            self._drop(container_id)  # removed meanwhile: what was read may be of an empty place
            return None
        return seen

    def _ask(self, seen: Seen) -> None:
        """Read the state from its sources, and watch the monitor of what runs."""
        self._forget_monitor(seen)
        seen.status = self._service.status(seen.record)
        if seen.status.state not in (State.RUNNING, State.PAUSED):
            return
        run = read_run(self._service.store, seen.record.id)
        if run is None:
            return
        try:
            pidfd = OwnedFd(os.pidfd_open(run.monitor_pid))
        except OSError:
            return  # it is gone; or no descriptor is left, and it is asked about again next time
        # Compared after the pidfd is open: from here on the pid cannot be reused under us.
        is_short = descriptors.are_rare()
        if is_short or not is_process(run.monitor_pid, run.monitor_start_time):
            pidfd.close()
            return
        seen.monitor = pidfd
        self._by_fd[pidfd.fileno()] = seen.record.id
        self._monitors.register(pidfd.fileno(), select.EPOLLIN)
        if seen.record.member is not None:
            self.on_running(seen.record)

    # --- pods ---------------------------------------------------------------------------------

    def pods(self) -> Sequence[tuple[PodRecord, bool]]:
        """Every pod, and whether it is ready."""
        with self._lock:
            ids = self._pods.store.ids()
            found: list[tuple[PodRecord, bool]] = []
            nsfs = os.stat("/proc/self/ns/uts").st_dev
            for pod_id in ids:
                seen = self._look_at_pod(pod_id)
                if seen is not None:
                    found.append((seen.record, self._is_ready(seen.record, nsfs)))
            for pod_id in self._seen_pods.keys() - set(ids):
                del self._seen_pods[pod_id]
            return found

    def pod(self, text: str) -> tuple[PodRecord, bool]:
        """One pod, by id or a unique beginning; NotFound without one."""
        with self._lock:
            seen = self._look_at_pod(text) if _is_id(text) else None
            if seen is None:
                seen = self._look_at_pod(self._pods.store.find(text))
            if seen is None:
                raise NotFound(f"no such pod: '{text[:256]}'")
            return seen.record, is_ready(seen.record, self._pods.store.run_dir(seen.record.id))

    def _is_ready(self, record: PodRecord, nsfs: int) -> bool:
        run_dir = self._pods.store.run_dir(record.id)
        if record.options.pid == "pod":
            return is_ready(record, run_dir)
        if not os.access(f"{run_dir}/ready", os.F_OK):
            return False
        kinds = pinned_kinds(record)
        # All pins are made and taken together: one of them tells.
        try:
            return not kinds or os.stat(pin_path(run_dir, kinds[0])).st_dev == nsfs
        except FileNotFoundError:
            return False

    def _look_at_pod(self, pod_id: str) -> SeenPod | None:
        signature = _signature(f"{self._pods.store.directory(pod_id)}/record.json")
        if signature is None:
            self._seen_pods.pop(pod_id, None)
            return None
        seen = self._seen_pods.get(pod_id)
        if seen is None or seen.signature != signature:
            try:
                seen = SeenPod(self._pods.read(pod_id), signature)
            except ScowError:
                return None
            self._seen_pods[pod_id] = seen
        return seen
