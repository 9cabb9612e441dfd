"""Pods: sandboxes that hold several containers.

Synchronous and without a state of its own, like the service it stands on: what a pod is doing is read
from its record, its pins and its mark. Locks: a pod's before a container's, none held while waiting for
an end. What a killed process leaves is found by `recover`, and by whoever wants the pod's name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from scow.cgroups.cgroup import container_path, open_cgroup
from scow.cri.launch import make_shm
from scow.cri.limits import build_resources
from scow.cri.options import ContainerOptions, NamespaceMode, NetworkOptions
from scow.cri.pod_init import start_init
from scow.cri.pod_join import is_ready, pinned_kinds, require_ready
from scow.cri.pod_names import write_pod_names
from scow.cri.pod_namespaces import make_namespaces, make_run_dir, unmount
from scow.cri.pod_network import Link, PodNetwork
from scow.cri.pod_records import PodOptions, PodRecord, PodStore, reserved_name
from scow.cri.records import Member, Record, cgroup_prefix
from scow.cri.userns import claim_range, ping_group_range, release_range
from scow.native.errors import InvalidArgument, NotFound, ScowError, try_all
from scow.native.fs import remove_tree

if TYPE_CHECKING:
    from scow.cgroups.cgroup import Cgroup
    from scow.cri.service import Service
    from scow.image.store import Image
    from scow.netns.cni import NetworkList

CNI_CONFIG_DIR = "/etc/cni/net.d"
# Debian's podman brings 87-podman-bridge.conflist: podman's own network, which nobody meant for pods.
CNI_PASSED_OVER = "podman"
CNI_PLUGIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")

# Inside the class `list` is the verb.
Records = Sequence[PodRecord]


class Pods:
    """The pods of a service."""

    def __init__(
        self,
        service: Service,
        *,
        cni_config_dir: str | None = None,
        cni_plugin_dirs: tuple[str, ...] = CNI_PLUGIN_DIRS,
    ) -> None:
        self.service = service
        self.store = PodStore(service.root, service.run)
        self.store.prepare()
        self.store.on_burial = self._bury
        given = cni_config_dir or os.environ.get("SCOW_CNI_CONFIG")
        self._pod_of: dict[str, str] = {}
        self.network = PodNetwork(
            self.store,
            service.bridge,
            given or CNI_CONFIG_DIR,
            cni_plugin_dirs,
            passed_over="" if given else CNI_PASSED_OVER,
        )

    # --- making -------------------------------------------------------------------------------

    def run(self, options: PodOptions) -> str:
        """Make a pod; it is ready on return. Returns its id."""
        metadata = options.metadata
        pod_id = self.store.new_id()
        network = self.network.configuration() if options.network == "own" else None
        record = PodRecord(
            id=pod_id,
            name=reserved_name(
                metadata.namespace, metadata.name, metadata.uid, str(metadata.attempt)
            ),
            created_ns=time.time_ns(),
            cgroup=container_path(
                f"{cgroup_prefix(self.store.run)}{pod_id}", options.cgroup_parent or None
            ),
            options=options,
            network_config=network.name if network is not None else "",
        )
        try:
            with self.store.making(pod_id):
                self.store.claim_name(record.name, pod_id)
                if options.auto_ids:
                    ids = claim_range(self.service.root, f"pods/{pod_id}")
                    options = msgspec.structs.replace(options, ids=ids)
                    record = msgspec.structs.replace(record, options=options)
                with self.store.begin(record) as pending:
                    try:
                        self._build(record, network)
                        pending.publish()
                    except BaseException:
                        # The first error is the one to tell; the record below goes either way.
                        with suppress(ScowError, OSError):
                            self._release(record)
                        raise
        except BaseException:
            self.store.discard(pod_id, record.name)
            raise
        return pod_id

    def _build(self, record: PodRecord, network: NetworkList | None) -> None:
        options = record.options
        run_dir = self.store.run_dir(record.id)
        kinds = pinned_kinds(record)
        make_run_dir(run_dir)
        link = self.network.prepare(record, network) if options.network == "own" else Link()
        hostname = options.hostname or record.id[:12]

        def make_rest() -> None:
            limits = build_resources(options.limits, [], privileged=False)
            pod_cgroup(record).create(msgspec.structs.replace(limits, devices=None))
            if options.ipc == "pod":
                make_shm(f"{run_dir}/shm", ids=options.ids)

        if not kinds:
            make_rest()
        else:
            make_namespaces(
                run_dir,
                kinds,
                hostname=hostname,
                sysctls=self._sysctls(options, link),
                inside=link.inside,
                connect=lambda pid: self.network.connect(link, pid),
                meanwhile=make_rest,
                ids=options.ids,
            )
        if options.network == "own":
            self.network.finish(record, link)
        write_pod_names(options, run_dir, hostname, link)
        if options.pid == "pod":
            start_init(self.service.store, run_dir, record, kinds)
        os.close(os.open(f"{run_dir}/ready", os.O_CREAT | os.O_CLOEXEC, 0o600))

    @staticmethod
    def _sysctls(options: PodOptions, link: Link) -> dict[str, str]:
        found: dict[str, str] = {}
        if options.network == "own":
            # Ports below 1024 and ping without rights: the namespace is the pod's own.
            found["net.ipv4.ip_unprivileged_port_start"] = "0"
            found["net.ipv4.ping_group_range"] = ping_group_range(options.ids)
        found.update(link.sysctls)
        found.update(options.sysctls)
        return found

    def create_container(self, pod_id: str, image: Image, options: ContainerOptions) -> str:
        """Make a container in a pod, with what `run` takes; nothing runs yet. Returns its id."""
        pod = self.read(pod_id)
        require_ready(pod, self.store.run_dir(pod_id))
        plain = ContainerOptions()
        owned = ("network", "ipc", "uts", "pid", "hostname", "ids", "auto_ids")
        if any(getattr(options, name) != getattr(plain, name) for name in owned):
            raise InvalidArgument(
                "--pod excludes options of network, ports, host name, IPC, PID and user namespaces",
                hint="they belong to the pod: scow pod create",
            )
        pids = {"pod": "pod", "container": "private", "host": "host"}
        shown = options.name or f"c{len(self.containers(pod_id))}"
        options = msgspec.structs.replace(
            options,
            hostname=pod.options.hostname or pod.id[:12],
            network=NetworkOptions(mode=NamespaceMode("pod")),
            ipc=NamespaceMode("pod" if pod.options.ipc == "pod" else "host"),
            uts=NamespaceMode("pod"),
            pid=NamespaceMode(pids[pod.options.pid]),
            ids=pod.options.ids,
        )
        member = Member(
            pod.id, shown, 0, labels=options.labels, image={"image": options.image_name}
        )
        return self.create_member(pod, image, options, member)

    # --- ending -------------------------------------------------------------------------------

    def stop(self, pod_id: str) -> None:
        """End a pod: its containers, network and namespaces. One that is stopped or gone is fine."""
        try:
            with self.store.locked(pod_id):
                record = self.store.read(pod_id)
                # From here on nothing is started in it any more.
                with suppress(FileNotFoundError):
                    os.unlink(f"{self.store.run_dir(pod_id)}/ready")
            for container in self.containers(pod_id):
                with suppress(NotFound):
                    # Who holds it may be starting it, and has found the pod ready.
                    with self.service.store.locked(container.id):
                        pass
                    self.service.stop(container.id, 0)
            with self.store.locked(pod_id):
                self._release(record)
        except NotFound:
            return

    def remove(self, pod_id: str) -> None:
        """Remove a pod with its containers, whatever they do; one that is gone is fine."""
        self.stop(pod_id)
        try:
            record = self.store.read(pod_id)
        except NotFound:
            return
        self._remove_containers(pod_id)
        with suppress(NotFound), self.store.locked(pod_id):
            self.store.discard(pod_id, record.name)
            release_range(self.service.root, record.options.ids, f"pods/{pod_id}")
        # What was made meanwhile; who makes one from now on finds that the pod is gone.
        self._remove_containers(pod_id)

    def _remove_containers(self, pod_id: str) -> None:
        for container in self.containers(pod_id):
            with suppress(NotFound):
                self.service.remove(container.id, force=True, volumes=True)

    def create_member(
        self, pod: PodRecord, image: Image, options: ContainerOptions, member: Member
    ) -> str:
        """Make a container that belongs to a pod; NotFound where the pod was removed meanwhile."""
        container_id = self.service.create(image, options, member, pod.cgroup)
        try:
            self.read(pod.id)
        except NotFound:
            with suppress(NotFound):
                self.service.remove(container_id, force=True, volumes=True)
            raise
        return container_id

    def _release(self, record: PodRecord) -> None:
        """Give back what a pod holds; goes on past errors, again is fine."""
        try_all(
            (
                lambda: self._release_cgroup(record),
                # Plugins want the namespace that they shall leave, if it is still there.
                lambda: self.network.release(record),
                lambda: self.release_run_dir(record.id),
            )
        )

    def _release_cgroup(self, record: PodRecord) -> None:
        cgroup = pod_cgroup(record)
        if cgroup.exists():
            # The init, and what outlived its container's first process.
            if cgroup.pids():
                cgroup.kill()
            cgroup.remove()

    def release_run_dir(self, pod_id: str) -> None:
        """Take away what of a pod dies with the boot: pins, shared memory, name files."""
        unmount(self.store.run_dir(pod_id))
        parent = os.open(f"{self.store.run}/pods", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(parent, pod_id)
        except FileNotFoundError:
            pass
        finally:
            os.close(parent)

    def _bury(self, pod_id: str) -> None:
        """Give back what a dead attempt at a pod took, or what is left without any record."""
        record = self.store.read_pending(pod_id)
        if record is not None:
            self._release(record)

    def recover(self) -> None:
        """Clear what dead attempts left; to be called when a service starts."""
        for entry in self.store.abandoned():
            self.store.bury(entry)

    # --- looking ------------------------------------------------------------------------------

    def read(self, pod_id: str) -> PodRecord:
        """The record of a pod; NotFound without one."""
        return self.store.read(pod_id)

    def is_ready(self, record: PodRecord) -> bool:
        """Whether the pod can run containers."""
        return is_ready(record, self.store.run_dir(record.id))

    def list(self) -> Records:
        """All pods, newest first."""
        return sorted(self.store.list(), key=lambda record: record.created_ns, reverse=True)

    def find(self, text: str) -> str:
        """The id for an id, a beginning of one, or the name of a pod if only one has it."""
        try:
            return self.store.find(text)
        except NotFound:
            named = [r.id for r in self.store.list() if r.options.metadata.name == text]
            if len(named) != 1:
                raise
            return named[0]

    def containers(self, pod_id: str) -> Sequence[Record]:
        """The containers of a pod, oldest first."""
        found: list[Record] = []
        ids = self.service.store.ids()
        for container_id in ids:
            # Whose a container is never changes: of those of others no record is read.
            if self._pod_of.get(container_id, pod_id) != pod_id:
                continue
            try:
                record = self.service.store.read(container_id)
            except ScowError:
                continue  # being made or removed at this moment, or damaged
            owner = record.member.pod_id if record.member is not None else ""
            self._pod_of[container_id] = owner
            if owner == pod_id:
                found.append(record)
        for container_id in self._pod_of.keys() - set(ids):
            self._pod_of.pop(container_id, None)
        return sorted(found, key=lambda record: record.created_ns)


def pod_cgroup(record: PodRecord) -> Cgroup:
    """The cgroup that holds those of the pod's containers; it need not exist."""
    return open_cgroup(record.cgroup, pod=True)
