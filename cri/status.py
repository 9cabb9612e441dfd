"""What a container is doing, read from facts: the monitor's files and the kernel's processes.

No state is stored by scow itself: `exit.json` (written by the monitor before it tells anybody)
means that the run is over; a status file with a living monitor means that it goes on. A process is
{pid, start time}, so a reused pid fools nobody; files below /run do not survive a boot.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from scow.cri.freezing import thaw_abandoned
from scow.cri.launch import container_cgroup
from scow.cri.records import Record, RecordStore
from scow.native.errors import InvalidState, NotFound, ScowError
from scow.native.fs import write_atomic
from scow.runtime.monitor import (
    ExitRecord,
    Failure,
    StatusRecord,
    read_exit_record,
    read_status_record,
)
from scow.runtime.state import Operation, State, require

# What is reported for a run whose monitor was killed before it could write down the end.
SUPERVISOR_LOST_CODE = 137
# Beside the record: the words of the start that failed last.
_FAILURE = "start-error"
_FAILURE_MAX = 4096


class Status(msgspec.Struct, frozen=True):
    """The state of a container and the facts behind it; times in ns since 1970, 0 if none."""

    state: State
    pid: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""


def read_status(store: RecordStore, record: Record) -> Status:
    """Say what the container is doing now."""
    ended = _read_exit(store, record.id)
    if ended is not None:
        return Status(
            State.EXITED,
            started_ns=ended.started_at,
            finished_ns=ended.finished_at,
            exit_code=ended.exit_code,
            oom_killed=ended.oom_killed,
            error=_words(ended, store, record.id),
        )
    run = read_run(store, record.id)
    if run is None:
        # It may have ended since we looked, and been cleaned up: then the record is there now.
        if _read_exit(store, record.id) is not None:
            return read_status(store, record)
        return Status(State.CREATED) if _never_ran(store, record.id) else _lost(0)
    if not is_process(run.monitor_pid, run.monitor_start_time):
        # It writes the record, then it goes: look once more.
        ended = _read_exit(store, record.id)
        return _lost(run.created_at) if ended is None else read_status(store, record)
    try:
        paused = container_cgroup(record).is_frozen() and not thaw_abandoned(store, record)
    except NotFound:
        paused = False  # it ends at this moment
    return Status(State.PAUSED if paused else State.RUNNING, pid=run.pid, started_ns=run.created_at)


def note_failure(store: RecordStore, record: Record, error: ScowError) -> None:
    """Keep why a container could not be started: a monitor's record has a number only.

    CRI wants a container of a pod to have ended then, also where there never was a monitor.
    """
    directory = store.container_dir(record.id)
    # A full disk: the error itself is on its way to the caller.
    with suppress(OSError):
        write_atomic(directory, _FAILURE, str(error).encode("utf-8", "replace")[:_FAILURE_MAX])
        if record.member is not None and not os.path.exists(f"{directory}/exit.json"):
            failure = Failure(0, getattr(error, "errno", 0) or 0)
            ended = ExitRecord(0, 127 << 8, 127, 0, False, 0, time.time_ns(), failure)
            write_atomic(directory, "exit.json", msgspec.json.encode(ended))


def _failure(store: RecordStore, container_id: str) -> str:
    try:
        with open(f"{store.container_dir(container_id)}/{_FAILURE}", "rb") as file:
            return file.read(_FAILURE_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _never_ran(store: RecordStore, container_id: str) -> bool:
    """Whether no run was begun, or one is being begun just now.

    A monitor reserves the place of its exit record before anything else. Where that is all there is,
    nobody was left to write it: the monitor was killed, or the host went down.
    """
    if not os.path.exists(f"{store.container_dir(container_id)}/.exit.json.tmp"):
        return True
    return os.path.isdir(store.run_dir(container_id))


def _lost(started_ns: int) -> Status:
    return Status(
        State.EXITED,
        started_ns=started_ns,
        exit_code=SUPERVISOR_LOST_CODE,
        error="its monitor was killed or the host went down; the end was not recorded",
    )


def _words(ended: ExitRecord, store: RecordStore, container_id: str) -> str:
    """Say in words why a run never began, or what of its log was lost."""
    if ended.error is not None:
        return _failure(store, container_id) or f"set-up failed: {os.strerror(ended.error.errno)}"
    if ended.log_lost_bytes:
        why = os.strerror(ended.log_errno)
        return f"{ended.log_lost_bytes} bytes of its log were lost: {why}"
    return ""


def _read_exit(store: RecordStore, container_id: str) -> ExitRecord | None:
    try:
        return read_exit_record(f"{store.container_dir(container_id)}/exit.json")
    except msgspec.MsgspecError:
        return None


def read_run(store: RecordStore, container_id: str) -> StatusRecord | None:
    """Read the monitor's status file; None where no run was begun since the boot."""
    try:
        return read_status_record(f"{store.run_dir(container_id)}/status.json")
    except msgspec.MsgspecError:
        return None


def start_time_of(pid: int) -> int | None:
    """Give a process's start time in clock ticks since boot, None where it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold spaces and parentheses: count fields from the last ')' (proc(5)).
    fields = data.rpartition(b")")[2].split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def is_process(pid: int, start_time: int) -> bool:
    """Whether `pid` still is the process that began at `start_time`."""
    return pid > 1 and start_time_of(pid) == start_time


def send_signal(run: StatusRecord, number: int) -> bool:
    """Signal the container's first process if it is still the one recorded; says whether it was."""
    if run.pid <= 1:
        raise InvalidState(f"refusing to signal pid {run.pid}")
    try:
        pidfd = os.pidfd_open(run.pid)
    except ProcessLookupError:
        return False
    try:
        # Compared after the pidfd is open: from here on the pid cannot be reused under us.
        if start_time_of(run.pid) != run.start_time:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


@contextmanager
def needs_processes(name: str, verb: str) -> Iterator[None]:
    """What is read below /proc may end at that moment: no fault of ours, but InvalidState."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as error:
        if not str(error.filename or "/proc/").startswith("/proc/"):
            raise
        raise InvalidState(
            f"cannot {verb} container '{name}': it, or what it shares namespaces with, has just ended"
        ) from error


def require_start(record: Record, state: State, *, once: bool) -> None:
    """Raise InvalidState when it cannot be started; `once`: nor when it has run, as CRI has it."""
    require(record.name, state, Operation.START)
    if once and state is not State.CREATED:
        raise InvalidState(
            f"cannot start container '{record.name}': it is {state.value}",
            hint="a container of a pod runs once: create another one, with another attempt",
        )
