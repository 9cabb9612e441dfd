"""What a container of a pod gets of it: namespaces to join, name files, shared memory.

Its mount and cgroup namespaces are its own, and its PID namespace where it asks for that. Nothing is
taken here: all of it was made with the pod and goes with the pod.
"""

from __future__ import annotations

from collections.abc import Callable

from scow.cri.pod_init import init_pid
from scow.cri.pod_namespaces import is_pinned, pin_path
from scow.cri.pod_records import PodRecord, PodStore
from scow.cri.records import Member, Record, RecordStore
from scow.cri.sandbox import Sandbox
from scow.native.errors import InvalidState
from scow.runtime.spec import Namespace


def pinned_kinds(record: PodRecord) -> tuple[str, ...]:
    """The namespaces that a pod has of its own and that are pinned."""
    options = record.options
    kinds: tuple[str, ...] = ("user",) if options.ids is not None else ()
    kinds += ("network", "uts") if options.network == "own" else ()
    return (*kinds, "ipc") if options.ipc == "pod" else kinds


def require_ready(record: PodRecord, run_dir: str) -> None:
    """Refuse a pod that was stopped, or whose namespaces went with a boot."""
    if not is_ready(record, run_dir):
        raise InvalidState(f"pod '{record.options.metadata.name}' is not ready: it was stopped")


def is_ready(record: PodRecord, run_dir: str) -> bool:
    """Whether all that the pod consists of is there; kernel facts, none of them remembered."""
    from os.path import exists

    if not exists(f"{run_dir}/ready") or not is_pinned(run_dir, pinned_kinds(record)):
        return False
    return record.options.pid != "pod" or init_pid(run_dir) != 0


def join_pod(
    record: Record,
    member: Member,
    store: RecordStore,
    pid_of: Callable[[str], tuple[str, int]],
) -> Sandbox:
    """Give what a start of the container joins; InvalidState where its pod is not ready."""
    pods = PodStore(store.root, store.run)
    pod = pods.read(member.pod_id)
    run_dir = pods.run_dir(pod.id)
    require_ready(pod, run_dir)
    namespaces = [Namespace("mount"), Namespace("cgroup")]
    namespaces += _pid_namespace(record, run_dir, pid_of)
    namespaces += [Namespace(kind, pin_path(run_dir, kind)) for kind in pinned_kinds(pod)]
    return Sandbox(
        namespaces=tuple(namespaces),
        hostname="",  # the pod has set it
        etc_dir=run_dir,
        shm_source=f"{run_dir}/shm" if pod.options.ipc == "pod" else "/dev/shm",
        ids=pod.options.ids,
    )


def _pid_namespace(
    record: Record, run_dir: str, pid_of: Callable[[str], tuple[str, int]]
) -> list[Namespace]:
    mode = record.options.pid
    if mode.kind == "host":
        return []
    if mode.kind == "private":
        return [Namespace("pid")]
    pid = init_pid(run_dir) if mode.kind == "pod" else pid_of(mode.container)[1]
    return [Namespace("pid", f"/proc/{pid}/ns/pid")]
