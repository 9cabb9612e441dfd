"""CRI's RuntimeService: one method for each call, on records and kernel facts alone.

A call reads what is there, acts through the service and the pods, and answers in canonical form; the
process may be killed and started between any two. What must not be here: the wire (HTTP, JSON), rules
about form (requests.py), measuring (stats.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from scow.cri.api import answers, descriptors, events, requests, sessions
from scow.cri.api.answers import Answer
from scow.cri.api.calls import (
    RUNNING,
    Shown,
    as_json,
    check_streams,
    chunks,
    is_wanted,
    need_command,
    need_id,
    need_running,
    own_version,
)
from scow.cri.api.events import Events, EventStream
from scow.cri.api.observer import Observer
from scow.cri.api.resources import limits_of, plain, sum_limits, updated
from scow.cri.api.stats import Measuring
from scow.cri.launch import bury_monitors
from scow.cri.limits import build_resources
from scow.cri.pod_join import require_ready
from scow.cri.pod_records import PodRecord
from scow.cri.pods import Pods, pod_cgroup
from scow.cri.records import Record
from scow.cri.service import Service
from scow.cri.status import Status
from scow.cri.userns import has_user_namespaces
from scow.native.errors import (
    InvalidArgument,
    InvalidState,
    NotFound,
    ScowError,
    Unsupported,
)
from scow.runtime.state import State

if TYPE_CHECKING:
    from scow.cri.api.message import Message
    from scow.cri.api.tokens import Streams

VERSION = "0.1.0"  # of the kubelet's runtime API, fixed by CRI


class RuntimeService(Measuring):
    """All calls; to be used by any number of threads."""

    def __init__(self, service: Service, streams: Streams, pods: Pods | None = None) -> None:
        """`streams` makes the URLs of exec, attach and port-forward."""
        pods = pods or Pods(service)
        super().__init__(service, pods, Observer(service, pods))
        self._streams = streams
        self._pods_shown: Shown[PodRecord, bool] = Shown(
            lambda pod, ready: answers.pod(pod, ready=ready)
        )
        self._containers_shown = Shown(answers.container)
        self.events = Events(service, self._described)
        self.observer.on_running = self.events.adopt
        self.recover()

    def close(self) -> None:
        """Let go of what this process holds; pods and containers go on."""
        self.events.close()
        self.observer.close()
        bury_monitors()

    def recover(self) -> None:
        """Mend what was left when a service before this one ended, and watch what runs."""
        self.pods.recover()
        self.events.aside(self.service.store.sweep_trash)
        for record, status in self.observer.containers():
            if status.state in RUNNING:
                self.events.adopt(record)
            elif os.path.isdir(self.service.store.run_dir(record.id)):
                with suppress(ScowError, OSError):
                    self.service.finish(record.id)

    # --- the runtime --------------------------------------------------------------------------

    def version(self, request: Message) -> Answer:
        """Version."""
        return {
            "version": VERSION,
            "runtime_name": "scow",
            "runtime_version": own_version(),
            "runtime_api_version": "v1",
        }

    def status(self, request: Message) -> Answer:
        """Status: the conditions that a kubelet waits for."""
        reason, message = "", ""
        try:
            message = self.pods.network.complaint()
        except ScowError as error:
            message = str(error)
        if message:
            reason = "NetworkPluginNotReady"
        answer: Answer = {
            "status": {
                "conditions": [
                    {"type": "RuntimeReady", "status": True, "reason": "", "message": ""},
                    {
                        "type": "NetworkReady",
                        "status": not message,
                        "reason": reason,
                        "message": message,
                    },
                ]
            },
            "runtime_handlers": [
                {
                    "name": name,
                    "features": {
                        # mount_setattr(2), without which nothing here would run.
                        "recursive_read_only_mounts": True,
                        "user_namespaces": has_user_namespaces(),
                    },
                }
                for name in requests.HANDLERS
            ],
            "features": {
                "supplemental_groups_policy": True,
                "user_namespaces_host_network": False,
                "mount_options": True,
            },
        }
        if request.verbose:
            facts = {fact.key: fact.value for fact in self.service.info()}
            config = {
                "root": self.service.root,
                "run": self.service.run,
                "network": self.pods.network.describe(),
            }
            answer["info"] = {"config": as_json(config), "host": as_json(facts)}
        return answer

    def runtime_config(self, request: Message) -> Answer:
        """RuntimeConfig."""
        return {"linux": {"cgroup_driver": "CGROUPFS"}}

    def update_runtime_config(self, request: Message) -> Answer:
        """UpdateRuntimeConfig: the bridge has its own addresses, and CNI its own configuration."""
        return {}

    # --- pods ---------------------------------------------------------------------------------

    def run_pod_sandbox(self, request: Message) -> Answer:
        """RunPodSandbox."""
        config = requests.need(request.config, "config")
        options = requests.pod_options(config, request.runtime_handler)
        if options.log_directory:
            requests.refuse_own("log_directory", [options.log_directory], self._own_places())
            os.makedirs(options.log_directory, mode=0o755, exist_ok=True)
        pod_id = self.pods.run(options)
        self.events.publish(pod_id, events.CREATED)
        self.events.publish(pod_id, events.STARTED)
        return {"pod_sandbox_id": pod_id}

    def stop_pod_sandbox(self, request: Message) -> Answer:
        """StopPodSandbox; a pod that is gone is fine."""
        record = self._find_pod(request.pod_sandbox_id)
        if record is not None:
            self.pods.stop(record.id)
            self.events.publish(record.id, events.STOPPED)
        return {}

    def remove_pod_sandbox(self, request: Message) -> Answer:
        """RemovePodSandbox; a pod that is gone is fine."""
        record = self._find_pod(request.pod_sandbox_id)
        if record is not None:
            members = [container.id for container in self.pods.containers(record.id)]
            self.pods.remove(record.id)
            for object_id in (*members, record.id):
                self.events.publish(object_id, events.DELETED)
        return {}

    def _find_pod(self, text: str) -> PodRecord | None:
        need_id(text, "pod_sandbox_id")
        try:
            return self.observer.pod(text)[0]
        except NotFound:
            return None

    def pod_sandbox_status(self, request: Message) -> Answer:
        """PodSandboxStatus."""
        need_id(request.pod_sandbox_id, "pod_sandbox_id")
        record, ready = self.observer.pod(request.pod_sandbox_id)
        answer: Answer = {
            "status": self._pod_status(record, ready=ready),
            "containers_statuses": self._statuses_of(record.id),
            "timestamp": time.time_ns(),
        }
        if request.verbose:
            answer["info"] = {"info": as_json(msgspec.to_builtins(record))}
        return answer

    def _pod_status(self, record: PodRecord, *, ready: bool) -> Answer:
        # The addresses are its own only as long as it is ready.
        shown = self.pods.network.addresses(record) if ready else ()
        return answers.pod_status(record, shown, ready=ready)

    def _statuses_of(self, pod_id: str) -> list[Answer]:
        return [
            self._container_status(record, status)
            for record, status in self.observer.containers(pod_id)
        ]

    def _container_status(self, record: Record, status: Status) -> Answer:
        directory = self.service.store.container_dir(record.id)
        return answers.container_status(record, status, directory)

    def list_pod_sandbox(self, request: Message) -> Answer:
        """ListPodSandbox."""
        return {"items": self._list_pods(request.filter)}

    def stream_pod_sandboxes(self, request: Message) -> Iterator[Answer]:
        """StreamPodSandboxes."""
        return chunks("pod_sandboxes", self._list_pods(request.filter))

    def _list_pods(self, wanted: Message | None) -> list[Answer]:
        return [
            item
            for record, _, item in self._pods_shown.of(self.observer.pods())
            if wanted is None
            or (
                record.id.startswith(wanted.id)
                and (wanted.state is None or wanted.state.state == item["state"])
                and answers.matches(wanted.label_selector, record.options.labels)
            )
        ]

    def update_pod_sandbox_resources(self, request: Message) -> Answer:
        """UpdatePodSandboxResources."""
        need_id(request.pod_sandbox_id, "pod_sandbox_id")
        pod_id = self.observer.pod(request.pod_sandbox_id)[0].id
        with self.pods.store.locked(pod_id):
            record = self.pods.read(pod_id)
            require_ready(record, self.pods.store.run_dir(pod_id))
            limits = updated(record.options.limits, sum_limits(request.resources, request.overhead))
            wanted = build_resources(limits, [], privileged=False)
            pod_cgroup(record).update(msgspec.structs.replace(wanted, devices=None))
            options = msgspec.structs.replace(
                record.options,
                limits=limits,
                resources=plain(request.resources) or record.options.resources,
                overhead=plain(request.overhead) or record.options.overhead,
            )
            self.pods.store.write(msgspec.structs.replace(record, options=options))
        return {}

    def port_forward(self, request: Message) -> Answer:
        """PortForward."""
        need_id(request.pod_sandbox_id, "pod_sandbox_id")
        record, ready = self.observer.pod(request.pod_sandbox_id)
        if not ready:
            require_ready(record, self.pods.store.run_dir(record.id))
        session = sessions.PortForwardSession(self.pods, record.id, request.port)
        return {"url": self._streams.token("portforward", session)}

    # --- containers ---------------------------------------------------------------------------

    def create_container(self, request: Message) -> Answer:
        """CreateContainer."""
        need_id(request.pod_sandbox_id, "pod_sandbox_id")
        config = requests.need(request.config, "config")
        pod, ready = self.observer.pod(request.pod_sandbox_id)
        if not ready:
            require_ready(pod, self.pods.store.run_dir(pod.id))
        image = self.service.images.get(requests.need(config.image, "config.image").image)
        options, member = requests.container_options(
            config, pod, lambda target: self._target(pod, target), self._image_id
        )
        sources = [mount.source for mount in options.mounts if mount.kind == "bind"]
        requests.refuse_own("mount of", sources, self._own_places())
        if member.log_path:
            os.makedirs(os.path.dirname(member.log_path), mode=0o755, exist_ok=True)
        container_id = self.pods.create_member(pod, image, options, member)
        self.events.publish(container_id, events.CREATED)
        return {"container_id": container_id}

    def _own_places(self) -> tuple[str, str]:
        return self.service.root, self.service.run

    def _target(self, pod: PodRecord, text: str) -> str:
        record, status = self.observer.container(text)
        if answers.member_of(record).pod_id != pod.id or status.state not in RUNNING:
            raise InvalidArgument(
                f"container '{text[:64]}' cannot share its PID namespace: it does not run in pod "
                f"'{pod.options.metadata.name}'"
            )
        return record.id

    def _image_id(self, name: str) -> str:
        return self.service.images.get(name).id

    def start_container(self, request: Message) -> Answer:
        """StartContainer."""
        record, _ = self._container(request)
        descriptors.require_some()
        connection = self.service.start_watched(record.id)
        self.events.started(record.id, connection)
        return {}

    def stop_container(self, request: Message) -> Answer:
        """StopContainer; one that is gone is fine."""
        record = self._find_container(request)
        if record is not None:
            with suppress(NotFound):
                self.service.stop(record.id, max(0, request.timeout))
        return {}

    def remove_container(self, request: Message) -> Answer:
        """RemoveContainer, whatever it does; one that is gone is fine."""
        record = self._find_container(request)
        if record is not None:
            with suppress(NotFound):
                self.service.remove(record.id, force=True, volumes=True)
            self.events.publish(record.id, events.DELETED)
        return {}

    def _container(self, request: Message) -> tuple[Record, Status]:
        need_id(request.container_id, "container_id")
        return self.observer.container(request.container_id)

    def _find_container(self, request: Message) -> Record | None:
        try:
            return self._container(request)[0]
        except NotFound:
            return None

    def list_containers(self, request: Message) -> Answer:
        """ListContainers."""
        return {"containers": self._list_containers(request.filter)}

    def stream_containers(self, request: Message) -> Iterator[Answer]:
        """StreamContainers."""
        return chunks("containers", self._list_containers(request.filter))

    def _list_containers(self, wanted: Message | None) -> list[Answer]:
        return [
            item
            for record, status, item in self._containers_shown.of(self.observer.containers())
            if is_wanted(record, status, wanted)
        ]

    def container_status(self, request: Message) -> Answer:
        """ContainerStatus."""
        record, status = self._container(request)
        answer: Answer = {"status": self._container_status(record, status)}
        if request.verbose:
            facts = {"pid": status.pid, "record": msgspec.to_builtins(record)}
            answer["info"] = {"info": as_json(facts)}
        return answer

    def update_container_resources(self, request: Message) -> Answer:
        """UpdateContainerResources: all of it or an error, shown by ContainerStatus from now on."""
        record, _ = self._container(request)
        wanted = limits_of(request.linux)
        with self.service.store.locked(record.id):
            record = self.service.store.read(record.id)
            status = self.service.status(record)
            if status.state is State.EXITED:
                raise InvalidState(f"cannot limit container '{record.name}': it is exited")
            limits = updated(record.options.limits, wanted)
            if status.state in RUNNING:
                resources = build_resources(limits, [], privileged=False)
                self.service.update_cgroup(record, msgspec.structs.replace(resources, devices=None))
            member = answers.member_of(record)
            # A score is of processes, which have theirs since they began.
            told = {k: v for k, v in plain(request.linux).items() if k != "oom_score_adj"}
            changed = msgspec.structs.replace(member, resources={**member.resources, **told})
            options = msgspec.structs.replace(record.options, limits=limits)
            self.service.store.write(
                msgspec.structs.replace(record, options=options, member=changed)
            )
        return {}

    def reopen_container_log(self, request: Message) -> Answer:
        """ReopenContainerLog."""
        record, status = self._container(request)
        if status.state not in RUNNING:
            raise InvalidState(
                f"cannot reopen the log of container '{record.name}': it is not running"
            )
        try:
            number = sessions.reopen_log(f"{self.service.store.run_dir(record.id)}/monitor.sock")
        except OSError as error:
            raise InvalidState(
                f"cannot reopen the log of container '{record.name}': it has just ended"
            ) from error
        if number:
            raise ScowError(
                f"cannot reopen the log of container '{record.name}': {os.strerror(number).lower()}"
            )
        return {}

    # --- processes ----------------------------------------------------------------------------

    def exec_sync(self, request: Message) -> Answer:
        """ExecSync."""
        need_command(request)
        record, _ = self._container(request)
        out, err, code = sessions.run_sync(
            self.service, record.id, request.cmd, max(0, request.timeout)
        )
        return {"stdout": out, "stderr": err, "exit_code": code}

    def exec(self, request: Message) -> Answer:
        """Exec."""
        need_command(request)
        record, status = self._container(request)
        check_streams(request)
        need_running(record, status, "execute in")
        session = sessions.ExecSession(
            self.service,
            record.id,
            request.cmd,
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return {"url": self._streams.token("exec", session)}

    def attach(self, request: Message) -> Answer:
        """Attach."""
        record, status = self._container(request)
        check_streams(request)
        need_running(record, status, "attach to")
        if request.tty != record.options.terminal:
            words = "has a terminal" if record.options.terminal else "has no terminal"
            raise InvalidArgument(f"tty does not match: container '{record.name}' {words}")
        session = sessions.AttachSession(
            self.service,
            record.id,
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return {"url": self._streams.token("attach", session)}

    def checkpoint_container(self, request: Message) -> Answer:
        """CheckpointContainer."""
        from scow.cri.checkpoint import checkpoint

        record, status = self._container(request)
        checkpoint(self.service, record, status, request.location, max(0, request.timeout))
        return {}

    def checkpoint_pod(self, request: Message) -> Answer:
        """CheckpointPod."""
        raise Unsupported("cannot checkpoint pods: this runtime does not use CRIU for pods")

    def restore_pod(self, request: Message) -> Answer:
        """RestorePod."""
        raise Unsupported("cannot restore pods: this runtime does not use CRIU for pods")

    # --- what happens, and how much of it ------------------------------------------------------

    def get_container_events(self, request: Message) -> EventStream:
        """GetContainerEvents."""
        return self.events.subscribe()

    def _described(self, object_id: str, kind: str) -> Answer:
        """The statuses that go with an event; what is gone has none."""
        try:
            record, _ = self.observer.container(object_id)
            pod_id = answers.member_of(record).pod_id
        except NotFound:
            pod_id = object_id
        try:
            pod, ready = self.observer.pod(pod_id)
        except NotFound:
            return {}
        return {
            "pod_sandbox_status": self._pod_status(pod, ready=ready),
            "containers_statuses": self._statuses_of(pod_id),
        }
