"""state, kill, delete, list, ps, pause and resume."""

from __future__ import annotations

import os
import sys

from scow.native.errors import InvalidArgument, InvalidState, NotFound, ScowError
from scow.runtime import oci_state, smalljson
from scow.runtime.oci_args import Flags, one_operand, switch, text
from scow.runtime.oci_state import ContainerDir, StateRecord

TYPE_CHECKING = False  # importing it from typing would cost half of what `state` takes
if TYPE_CHECKING:
    from collections.abc import Callable

    from scow.cgroups.cgroup import Cgroup

    Tell = Callable[[str, str], None]


def _print_json(value: object) -> None:
    os.write(1, smalljson.encode(value, "  ").encode() + b"\n")


def _state(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    directory = ContainerDir(root, one_operand(operands))
    _print_json(oci_state.state_document(directory, directory.load()))
    return 0


def parse_signal(name: str) -> int:
    """A signal by number, or by name with or without SIG."""
    import signal

    if name.isascii() and name.isdigit() and len(name) < 10:
        value = int(name)
        if 0 <= value < signal.NSIG:
            return value
    else:
        bare = name.upper().removeprefix("SIG")
        found = getattr(signal, f"SIG{bare}", None)
        if isinstance(found, signal.Signals):
            return int(found)
        base, _, offset = bare.partition("+")
        if base == "RTMIN" and offset.isascii() and offset.isdigit() and len(offset) < 3:
            return int(signal.SIGRTMIN) + int(offset)
    raise InvalidArgument(f"unknown signal {name!r}")


def _kill(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    import signal  # its enums cost 3 ms, which `state` need not pay

    if not 1 <= len(operands) <= 2:
        raise InvalidArgument("takes the container's id and a signal")
    directory = ContainerDir(root, operands[0])
    record = directory.load()
    number = parse_signal(operands[1] if len(operands) == 2 else "SIGTERM")
    if switch(flags, "all"):
        return _kill_all(record, number)
    fd = oci_state.open_pidfd(record)
    if fd is None:
        if number == signal.SIGKILL and not record.has_pid_namespace and _pids(record):
            return _kill_all(record, number)
        raise InvalidState("container not running")
    with fd:
        try:
            signal.pidfd_send_signal(fd.fileno(), number)
        except ProcessLookupError:
            raise InvalidState("container not running") from None
    if number == signal.SIGKILL and oci_state.is_paused(record):
        from scow.runtime.oci_destroy import thaw

        thaw(record)
    if number == signal.SIGKILL and not record.has_pid_namespace:
        # Nothing dies with the first process where it is no pid 1: all of the cgroup is meant.
        _kill_all(record, number)
    return 0


def _cgroup_of(record: StateRecord) -> Cgroup:
    from scow.cgroups.cgroup import open_cgroup

    return open_cgroup(record.cgroup, foreign=True)


def _pids(record: StateRecord) -> list[int]:
    return _cgroup_of(record).pids()


def _kill_all(record: StateRecord, number: int) -> int:
    import signal

    from scow.cgroups.processes import signal_all

    cgroup = _cgroup_of(record)
    if number == signal.SIGKILL:
        if cgroup.exists():
            cgroup.kill()
    else:
        signal_all(cgroup.pids, number)
    return 0


def _delete(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    force = switch(flags, "force")
    name = one_operand(operands)
    if name.startswith(".") and force:
        raise InvalidArgument(f"invalid container ID format: {name!r}")
    directory = ContainerDir(root, name)
    try:
        directory.lock()
    except NotFound:
        if force:
            return 0
        raise
    from scow.runtime.oci_destroy import destroy

    record: StateRecord | None = None
    missing: NotFound | None = None
    try:
        record = directory.load()
    except NotFound as error:
        missing = NotFound(f"container does not exist: {error}")
    except InvalidState:
        if not force:
            raise
        from scow.runtime.oci_destroy import end_cgroup_of_config

        end_cgroup_of_config(directory)
    if record is not None and not force:
        status = oci_state.status_of(directory, record)
        if status not in ("stopped", "created", "creating"):
            raise InvalidState(f"cannot delete container {name} that is not stopped: {status}")
    for warning in destroy(directory, record):
        tell("warning", warning)
    if missing is not None and not force:
        raise missing
    return 0


def _list(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    if switch(flags, "quiet"):
        for name in oci_state.list_ids(root):
            print(name)
        return 0
    rows: list[dict[str, object]] = []
    for name in oci_state.list_ids(root):
        directory = ContainerDir(root, name)
        try:
            rows.append(oci_state.state_document(directory, directory.load()))
        except ScowError:
            continue  # deleted meanwhile, or damaged: `state` says so
    kind = text(flags, "format", "table")
    if kind == "json":
        os.write(1, smalljson.encode(rows or None).encode() + b"\n")
    elif kind == "table":
        head = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")
        keys = ("id", "pid", "status", "bundle", "created", "owner")
        _print_table(
            [
                head,
                *(
                    tuple(str(row[key] or "root" if key == "owner" else row[key]) for key in keys)
                    for row in rows
                ),
            ]
        )
    else:
        raise InvalidArgument("invalid format option")
    return 0


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("   ".join(cells).rstrip())


def _ps(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    if not operands:
        raise InvalidArgument("container id cannot be empty")
    directory = ContainerDir(root, operands[0])
    record = directory.load()
    if not oci_state.is_running(record):
        raise InvalidState("container not running")
    pids = sorted(_pids(record))
    kind = text(flags, "format", "table")
    if kind == "json":
        os.write(1, smalljson.encode(pids).encode() + b"\n")
        return 0
    if kind != "table":
        raise InvalidArgument("invalid format option")
    import subprocess

    done = subprocess.run(["ps", *(operands[1:] or ["-ef"])], capture_output=True, check=False)
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode or not lines or "PID" not in lines[0].split():
        raise ScowError(f"ps failed: {done.stderr.decode(errors='replace').strip()}")
    column = lines[0].split().index("PID")
    wanted = {str(pid) for pid in pids}
    for line in (lines[0], *(row for row in lines[1:] if row.split()[column] in wanted)):
        print(line)
    sys.stdout.flush()
    return 0


def _pause(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    directory = ContainerDir(root, one_operand(operands))
    directory.lock()
    record = directory.load()
    status = oci_state.status_of(directory, record)
    if status not in ("running", "created"):
        raise InvalidState("container not running")
    _cgroup_of(record).freeze()
    return 0


def _resume(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    directory = ContainerDir(root, one_operand(operands))
    directory.lock()
    record = directory.load()
    if not oci_state.is_paused(record):
        raise InvalidState("container not paused")
    _cgroup_of(record).thaw()
    return 0


COMMANDS: dict[str, Callable[[str, Flags, list[str], Tell], int]] = {
    "state": _state,
    "kill": _kill,
    "delete": _delete,
    "list": _list,
    "ps": _ps,
    "pause": _pause,
    "resume": _resume,
}
