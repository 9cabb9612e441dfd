"""From records and facts to CRI's messages, as plain dicts in canonical form."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from scow.cri.pod_records import PodOptions, PodRecord
from scow.cri.records import Member, Record
from scow.cri.status import Status
from scow.native.errors import NotFound
from scow.runtime.state import State
from scow.runtime.users import User

Answer = dict[str, Any]

_STATES = {
    State.CREATED: "CONTAINER_CREATED",
    State.RUNNING: "CONTAINER_RUNNING",
    State.PAUSED: "CONTAINER_RUNNING",
    State.EXITED: "CONTAINER_EXITED",
}
# What containerd reports for a program that never ran.
START_ERROR_CODE = 128
_POD_MODES = {"own": "POD", "pod": "POD", "container": "CONTAINER", "host": "NODE"}


def member_of(record: Record) -> Member:
    """What makes a container one of a pod."""
    if record.member is None:
        raise NotFound(f"container '{record.name}' belongs to no pod")
    return record.member


def state_name(status: Status) -> str:
    """CRI's name of a container's state."""
    return _STATES[status.state]


def container(record: Record, status: Status) -> Answer:
    """A Container, as lists have it."""
    member = member_of(record)
    return {
        "id": record.id,
        "pod_sandbox_id": member.pod_id,
        "metadata": {"name": member.name, "attempt": member.attempt},
        "image": dict(member.image),
        "image_ref": record.image_id,
        "image_id": record.image_id,
        "state": state_name(status),
        "created_at": record.created_ns,
        "labels": dict(member.labels),
        "annotations": dict(member.annotations),
    }


def container_status(record: Record, status: Status, directory: str) -> Answer:
    """A ContainerStatus; `directory` is the container's own, where its user is kept."""
    member = member_of(record)
    reason, message, code = _end(status)
    answer: Answer = {
        "id": record.id,
        "metadata": {"name": member.name, "attempt": member.attempt},
        "state": state_name(status),
        "created_at": record.created_ns,
        "started_at": status.started_ns,
        "finished_at": status.finished_ns,
        "exit_code": code,
        "image": dict(member.image),
        "image_ref": record.image_id,
        "image_id": record.image_id,
        "reason": reason,
        "message": message,
        "labels": dict(member.labels),
        "annotations": dict(member.annotations),
        "mounts": [dict(mount) for mount in member.mounts],
        "log_path": member.log_path,
        "resources": {"linux": dict(member.resources)},
        "stop_signal": signal_name(record.stop_signal),
    }
    user = _user(directory)
    if user is not None:
        answer["user"] = {
            "linux": {
                "uid": user.uid,
                "gid": user.gid,
                "supplemental_groups": list(user.groups),
            }
        }
    return answer


def signal_name(number: int) -> str:
    """CRI's name of a signal: of the one in force, whoever has chosen it."""
    last, first = signal.SIGRTMAX, signal.SIGRTMIN
    if first < number <= first + 15:
        return f"SIGNAL_SIGRTMINPLUS{number - first}"
    if first + 15 < number < last:
        return f"SIGNAL_SIGRTMAXMINUS{last - number}"
    return f"SIGNAL_{signal.Signals(number).name}"


def _end(status: Status) -> tuple[str, str, int]:
    if status.state is not State.EXITED:
        return "", "", 0
    if status.oom_killed:
        return "OOMKilled", "the kernel killed it: its memory limit was reached", status.exit_code
    if status.error and not status.started_ns:
        return "StartError", status.error, START_ERROR_CODE
    if status.exit_code == 0:
        return "Completed", status.error, 0
    return "Error", status.error, status.exit_code


def _user(directory: str) -> User | None:
    try:
        with open(f"{directory}/user.json", "rb") as file:
            return msgspec.json.decode(file.read(), type=User)
    except (FileNotFoundError, ValueError):
        return None  # not started yet, or torn by a power loss


def pod_metadata(record: PodRecord) -> Answer:
    """A PodSandboxMetadata."""
    metadata = record.options.metadata
    return {
        "name": metadata.name,
        "uid": metadata.uid,
        "namespace": metadata.namespace,
        "attempt": metadata.attempt,
    }


def pod(record: PodRecord, *, ready: bool) -> Answer:
    """A PodSandbox, as lists have it."""
    options = record.options
    return {
        "id": record.id,
        "metadata": pod_metadata(record),
        "state": "SANDBOX_READY" if ready else "SANDBOX_NOTREADY",
        "created_at": record.created_ns,
        "labels": dict(options.labels),
        "annotations": dict(options.annotations),
        "runtime_handler": options.runtime_handler,
    }


def pod_status(record: PodRecord, shown: Sequence[str], *, ready: bool) -> Answer:
    """A PodSandboxStatus with the addresses that are `shown`."""
    options = record.options
    return {
        **pod(record, ready=ready),
        "network": {
            "ip": shown[0] if shown else "",
            "additional_ips": [{"ip": address} for address in shown[1:]],
        },
        "linux": {"namespaces": {"options": _namespaces(options)}},
    }


def _namespaces(options: PodOptions) -> Answer:
    found: Answer = {
        "network": _POD_MODES[options.network],
        "pid": _POD_MODES[options.pid],
        "ipc": _POD_MODES[options.ipc],
    }
    if options.ids is not None:
        found["userns_options"] = {
            "mode": "POD",
            "uids": [_mapping(line) for line in options.ids.uid],
            "gids": [_mapping(line) for line in options.ids.gid],
        }
    return found


def _mapping(line: tuple[int, int, int]) -> Answer:
    inside, outside, count = line
    return {"container_id": inside, "host_id": outside, "length": count}


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether all labels of a selector are there."""
    return all(labels.get(key) == value for key, value in selector.items())
