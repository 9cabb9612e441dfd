"""CheckpointContainer: the memory of a container's processes to a file, by CRIU where it works.

The container goes on. The file is a tar archive with what podman and CRI-O have in theirs: CRIU's images
below `checkpoint/`, `config.dump` (which container of which image) and `spec.dump` (its OCI
configuration); the container's files are not in it. What CRIU must be told is runtime's to know.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from contextlib import ExitStack

import msgspec

from scow.cri.records import Record
from scow.cri.service import Service
from scow.cri.status import Status, needs_processes
from scow.native.errors import InvalidArgument, InvalidState, NotFound
from scow.native.fs import write_atomic
from scow.runtime import criu
from scow.runtime import oci_checkpoint as how
from scow.runtime.criu import Option
from scow.runtime.spec import Spec
from scow.runtime.state import State


def checkpoint(
    service: Service, record: Record, status: Status, location: str, timeout_s: int = 0
) -> None:
    """Write a running container to a new file at `location`; Unsupported where CRIU cannot.

    `timeout_s` is how long CRIU tries to hold all processes still; 0 is its own idea of that.
    """
    if not location.startswith("/") or "\0" in location:
        raise InvalidArgument(f"location '{location[:256]}' is not an absolute path")
    if not os.path.isdir(os.path.dirname(location)):
        raise NotFound(f"cannot write a checkpoint to '{location[:256]}': no such directory")
    _require_running(record, status)
    binary = criu.find_criu(os.environ.get("SCOW_CRIU", ""))
    spec = service.configuration(record.id)
    how.check_possible(spec)
    directory = service.store.container_dir(record.id)
    with (
        service.store.locked(record.id),
        tempfile.TemporaryDirectory(dir=directory) as images,
        needs_processes(record.name, "checkpoint"),
    ):
        # Its pid may be another's by now.
        status = service.status(record)
        _require_running(record, status)
        _dump(binary, spec, record, status, images, f"{directory}/criu.work", timeout_s)
        write_atomic(images, "config.dump", _describe(record), durable=False)
        write_atomic(images, "spec.dump", msgspec.json.encode(spec), durable=False)
        _pack(images, location)


def _require_running(record: Record, status: Status) -> None:
    if status.state not in (State.RUNNING, State.PAUSED):
        raise InvalidState(
            f"cannot checkpoint container '{record.name}': it is {status.state.value}"
        )


def _dump(
    binary: str,
    spec: Spec,
    record: Record,
    status: Status,
    images: str,
    work: str,
    timeout_s: int,
) -> None:
    with ExitStack() as stack:
        os.mkdir(f"{images}/checkpoint", 0o700)
        images_fd = how.open_directory(f"{images}/checkpoint", stack, make=False)
        work_fd = how.open_directory(work, stack, make=True)
        fields = how.common_fields({}, "dump.log")
        fields += [(Option.IMAGES, images_fd), (Option.WORK, work_fd), (Option.PID, status.pid)]
        fields += [(Option.ROOT, f"/proc/{status.pid}/root"), (Option.LEAVE_RUNNING, True)]
        # What its clients and its neighbours in the pod have open stays open: nothing is cut off here.
        fields += [(Option.TCP, True), (Option.EXT_UNIX, True), (Option.FILE_LOCKS, True)]
        if timeout_s > 0:
            fields.append((Option.TIMEOUT, min(timeout_s, 2**31 - 1)))
        fields += [
            (Option.EXTERNAL, name)
            for name in (
                *how.other_namespaces(spec, status.pid),
                *how.outer_mounts(spec, status.pid),
            )
        ]
        freezer = how.find_freezer(record.cgroup)
        fields += [(Option.FREEZE, freezer)] if freezer else []
        how.write_descriptors(f"{images}/checkpoint", status.pid)
        criu.ask(
            binary,
            criu.DUMP,
            fields,
            passed=(images_fd, work_fd),
            prepare=lambda: None,
            notified=lambda name, pid, fd: None,
            log=f"{work}/dump.log",
        )


def _describe(record: Record) -> bytes:
    member = record.member
    return msgspec.json.encode(
        {
            "id": record.id,
            "name": member.name if member is not None else record.name,
            "rootfsImage": record.image_id,
            "rootfsImageName": record.image_name,
            "runtime": "scow",
            "createdTime": record.created_ns,
        }
    )


def _pack(images: str, location: str) -> None:
    """The archive gets its name when it is whole."""
    fresh = f"{location}.{os.urandom(6).hex()}.tmp"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for name in sorted(os.listdir(images)):
                    archive.add(f"{images}/{name}", name)
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, location)
    except BaseException:
        os.unlink(fresh)
        raise
