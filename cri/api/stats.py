"""CRI's measuring calls: stats of containers and pods, and cAdvisor's metrics.

Numbers come from cgroups, from network interfaces, and from the disk; rates from the difference to what
was measured before, which is all that is remembered here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from scow.cri.api import answers
from scow.cri.api.answers import Answer
from scow.cri.api.calls import RUNNING, chunks, need_id
from scow.cri.launch import container_cgroup
from scow.cri.pods import Pods, pod_cgroup
from scow.cri.usage import Usages
from scow.native.errors import NotFound, ScowError

if TYPE_CHECKING:
    from scow.cgroups.stats import Stats
    from scow.cri.api.message import Message
    from scow.cri.api.observer import Observer
    from scow.cri.pod_records import PodRecord
    from scow.cri.records import Record
    from scow.cri.service import Service
    from scow.cri.status import Status
    from scow.netns.stats import Counters


class Rates:
    """How fast a counter grows: the difference to its last value, by name."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}

    def cores(self, name: str, time_ns: int, cpu_ns: int) -> int:
        """Nanocores since the last call; 0 at the first."""
        before = self._last.get(name)
        self._last[name] = (time_ns, cpu_ns)
        if before is None or time_ns <= before[0]:
            return 0
        return max(0, (cpu_ns - before[1]) * 10**9 // (time_ns - before[0]))

    def keep(self, names: set[str]) -> None:
        """Forget all others."""
        for name in self._last.keys() - names:
            self._last.pop(name, None)


class Measuring:
    """The calls that measure; half of RuntimeService."""

    def __init__(self, service: Service, pods: Pods, observer: Observer) -> None:
        self.service = service
        self.pods = pods
        self.observer = observer
        self._rates = Rates()
        self._usages = Usages()

    # --- containers ---------------------------------------------------------------------------

    def container_stats(self, request: Message) -> Answer:
        """ContainerStats."""
        need_id(request.container_id, "container_id")
        record, status = self.observer.container(request.container_id)
        return {"stats": self._container_stats(record, status)}

    def list_container_stats(self, request: Message) -> Answer:
        """ListContainerStats: of those that run."""
        return {"stats": self._list_container_stats(request.filter)}

    def stream_container_stats(self, request: Message) -> Iterator[Answer]:
        """StreamContainerStats."""
        return chunks("container_stats", self._list_container_stats(request.filter))

    def _list_container_stats(self, wanted: Message | None) -> list[Answer]:
        found: list[Answer] = []
        running = [item for item in self.observer.containers() if item[1].state in RUNNING]
        self._rates.keep(
            {record.id for record, _ in running} | {r.id for r, _ in self.observer.pods()}
        )
        for record, status in running:
            member = answers.member_of(record)
            if wanted is None or (
                record.id.startswith(wanted.id)
                and member.pod_id.startswith(wanted.pod_sandbox_id)
                and answers.matches(wanted.label_selector, member.labels)
            ):
                # It may end while the others are measured.
                with suppress(NotFound):
                    found.append(self._container_stats(record, status))
        return found

    def _container_stats(self, record: Record, status: Status) -> Answer:
        member = answers.member_of(record)
        answer: Answer = {
            "attributes": {
                "id": record.id,
                "metadata": {"name": member.name, "attempt": member.attempt},
                "labels": dict(member.labels),
                "annotations": dict(member.annotations),
            },
            "writable_layer": self._writable_layer(record),
        }
        if status.state in RUNNING:
            stats = container_cgroup(record).stats()
            answer["cpu"] = self._cpu(record.id, stats)
            answer["memory"] = memory_usage(stats)
            answer["swap"] = swap_usage(stats)
            answer["io"] = io_usage(stats)
        return answer

    def _cpu(self, name: str, stats: Stats) -> Answer:
        return {
            "timestamp": stats.time_ns,
            "usage_core_nano_seconds": {"value": stats.cpu_ns},
            "usage_nano_cores": {"value": self._rates.cores(name, stats.time_ns, stats.cpu_ns)},
            **psi(stats, "cpu"),
        }

    def _writable_layer(self, record: Record) -> Answer:
        usage = self._usages.get(f"{self.service.store.container_dir(record.id)}/upper")
        return {
            "timestamp": usage.time_ns,
            "fs_id": {"mountpoint": self.service.root},
            "used_bytes": {"value": usage.used_bytes},
            "inodes_used": {"value": usage.inodes},
        }

    # --- pods ---------------------------------------------------------------------------------

    def pod_sandbox_stats(self, request: Message) -> Answer:
        """PodSandboxStats."""
        need_id(request.pod_sandbox_id, "pod_sandbox_id")
        record, ready = self.observer.pod(request.pod_sandbox_id)
        return {"stats": self._pod_stats(record, ready=ready)}

    def list_pod_sandbox_stats(self, request: Message) -> Answer:
        """ListPodSandboxStats."""
        return {"stats": self._list_pod_stats(request.filter)}

    def stream_pod_sandbox_stats(self, request: Message) -> Iterator[Answer]:
        """StreamPodSandboxStats."""
        return chunks("pod_sandbox_stats", self._list_pod_stats(request.filter))

    def _list_pod_stats(self, wanted: Message | None) -> list[Answer]:
        found: list[Answer] = []
        for record, ready in self.observer.pods():
            if ready and (
                wanted is None
                or (
                    record.id.startswith(wanted.id)
                    and answers.matches(wanted.label_selector, record.options.labels)
                )
            ):
                with suppress(NotFound):
                    found.append(self._pod_stats(record, ready=True))
        return found

    def _pod_stats(self, record: PodRecord, *, ready: bool) -> Answer:
        answer: Answer = {
            "attributes": {
                "id": record.id,
                "metadata": answers.pod_metadata(record),
                "labels": dict(record.options.labels),
                "annotations": dict(record.options.annotations),
            }
        }
        if not ready:
            return answer
        stats = pod_cgroup(record).stats()
        members = self._running_members(record.id)
        linux: Answer = {
            "cpu": self._cpu(record.id, stats),
            "memory": memory_usage(stats),
            "io": io_usage(stats),
            "process": {"timestamp": stats.time_ns, "process_count": {"value": stats.pids}},
            "containers": [],
        }
        for container, status in members:
            with suppress(NotFound):
                linux["containers"].append(self._container_stats(container, status))
        counters = self.network_counters(record, [status.pid for _, status in members])
        if counters is not None:
            usage = interface_usage(counters)
            now = time.time_ns()
            linux["network"] = {"timestamp": now, "default_interface": usage, "interfaces": [usage]}
        answer["linux"] = linux
        return answer

    def _running_members(self, pod_id: str) -> list[tuple[Record, Status]]:
        return [
            (record, status)
            for record, status in self.observer.containers(pod_id)
            if status.state in RUNNING
        ]

    def network_counters(self, record: PodRecord, pids: Sequence[int]) -> Counters | None:
        """What went through the pod's interface; None where it has none of its own."""
        from scow.netns.stats import stats

        if record.options.network != "own":
            return None
        attachment = None
        if not record.network_config:
            attachment = self.service.bridge().attachment(record.id)
        for target in [attachment.host_interface] if attachment is not None else list(pids):
            with suppress(ScowError):
                return stats(target)
        return None

    # --- metrics ------------------------------------------------------------------------------

    def list_metric_descriptors(self, request: Message) -> Answer:
        """ListMetricDescriptors."""
        from scow.cri.api.metrics import descriptors

        return {"descriptors": descriptors()}

    def list_pod_sandbox_metrics(self, request: Message) -> Answer:
        """ListPodSandboxMetrics."""
        return {"pod_metrics": self._metrics()}

    def stream_pod_sandbox_metrics(self, request: Message) -> Iterator[Answer]:
        """StreamPodSandboxMetrics."""
        return chunks("pod_sandbox_metrics", self._metrics())

    def _metrics(self) -> list[Answer]:
        from scow.cri.api.metrics import measure_container, measure_pod

        found: list[Answer] = []
        for record, ready in self.observer.pods():
            if not ready:
                continue
            members = self._running_members(record.id)
            counters = self.network_counters(record, [status.pid for _, status in members])
            containers: list[Answer] = []
            for container, status in members:
                with suppress(NotFound):
                    usage = self._usages.get(
                        f"{self.service.store.container_dir(container.id)}/upper"
                    )
                    containers.append(
                        {
                            "container_id": container.id,
                            "metrics": measure_container(container, status, record, usage),
                        }
                    )
            found.append(
                {
                    "pod_sandbox_id": record.id,
                    "metrics": measure_pod(record, counters),
                    "container_metrics": containers,
                }
            )
        return found


def memory_usage(stats: Stats) -> Answer:
    """A MemoryUsage."""
    limit = stats.memory_limit_bytes
    answer: Answer = {
        "timestamp": stats.time_ns,
        "working_set_bytes": {"value": stats.memory_used_bytes},
        "usage_bytes": {"value": stats.memory_bytes},
        "rss_bytes": {"value": stats.memory_rss_bytes},
        "page_faults": {"value": stats.page_faults},
        "major_page_faults": {"value": stats.major_page_faults},
        **psi(stats, "memory"),
    }
    if limit is not None:
        answer["available_bytes"] = {"value": max(0, limit - stats.memory_used_bytes)}
    return answer


def psi(stats: Stats, kind: str) -> Answer:
    """The field `psi` with a PsiStats; nothing where this host counts no pressure (cgroup v1)."""
    found = stats.pressure.get(kind)
    if found is None:
        return {}
    sides = {"Some": found.some, "Full": found.full}
    return {
        "psi": {
            name: {
                "Total": side.total_us,
                "Avg10": side.avg10,
                "Avg60": side.avg60,
                "Avg300": side.avg300,
            }
            for name, side in sides.items()
            if side is not None
        }
    }


def io_usage(stats: Stats) -> Answer:
    """An IoUsage."""
    return {"timestamp": stats.time_ns, **psi(stats, "io")}


def swap_usage(stats: Stats) -> Answer:
    """A SwapUsage; empty where this host counts no swap."""
    if stats.swap_bytes is None:
        return {"timestamp": stats.time_ns}
    return {"timestamp": stats.time_ns, "swap_usage_bytes": {"value": stats.swap_bytes}}


def interface_usage(counters: Counters) -> Answer:
    """A NetworkInterfaceUsage."""
    return {
        "name": "eth0",
        "rx_bytes": {"value": counters.rx_bytes},
        "rx_errors": {"value": counters.rx_errors},
        "tx_bytes": {"value": counters.tx_bytes},
        "tx_errors": {"value": counters.tx_errors},
    }
