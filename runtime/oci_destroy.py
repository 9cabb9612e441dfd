"""`delete`: all that a container has, undone; its directory alone says what that is."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from scow.cgroups.cgroup import Cgroup, open_cgroup
from scow.native.errors import InvalidState, PermissionDenied, ScowError
from scow.runtime import oci_state
from scow.runtime.oci_state import ContainerDir, StateRecord

if TYPE_CHECKING:
    from scow.runtime.spec import Spec

KILL_WAIT_MS = 10_000


def end_cgroup(cgroup: Cgroup) -> None:
    """Remove a cgroup with all that is in it; gone, or never made, is fine."""
    if cgroup.pids():
        cgroup.kill()
    cgroup.remove()


def end_cgroup_of_config(directory: ContainerDir) -> None:
    """The same for a container whose state can be read no more: its configuration says where it is."""
    from scow.runtime.oci_create import cgroup_path
    from scow.runtime.spec import decode_spec

    try:
        spec = decode_spec(directory.config(), "config.json")
    except (OSError, ScowError):
        return
    owner = os.path.abspath(directory.path)
    end_cgroup(open_cgroup(cgroup_path(spec, directory.name), foreign=True, owner=owner))


def try_poststop(spec: Spec, record: StateRecord) -> list[str]:
    """poststop hooks: all of them run, failures are warnings."""
    from scow.runtime.hooks import run_hooks

    warnings: list[str] = []
    state = oci_state.hook_state(record, "stopped")
    for hook in spec.hooks.poststop:
        try:
            run_hooks("poststop", (hook,), state, record.bundle)
        except ScowError as error:
            warnings.append(str(error))
    return warnings


def destroy(directory: ContainerDir, record: StateRecord | None) -> list[str]:
    """Remove everything of a container that has ended or is to end; gives warnings."""
    warnings: list[str] = []
    if record is not None:
        kill_and_wait(record)
        owner = os.path.abspath(directory.path)
        if record.unit:
            from scow.runtime.oci_cgroup import end

            warnings += end(record.cgroup, owner)
        try:
            end_cgroup(open_cgroup(record.cgroup, foreign=True, owner=owner))
        except PermissionDenied as error:
            # It is another's: `create` was killed before it saw that, or that one came after this.
            warnings.append(str(error))
        if os.path.exists(f"{directory.path}/rdt"):
            from scow.runtime.oci_rdt import remove_own

            remove_own(directory)
        try:
            config = directory.config()
            if b'"poststop"' in config:
                from scow.runtime.spec import decode_spec

                warnings += try_poststop(decode_spec(config, "config.json"), record)
        except (OSError, ScowError) as error:
            warnings.append(str(error))
    directory.remove()
    return warnings


def thaw(record: StateRecord) -> None:
    """Let a paused container take the signal that ends it: v1 holds even SIGKILL back."""
    if oci_state.is_paused(record):
        open_cgroup(record.cgroup, foreign=True).thaw()


def kill_and_wait(record: StateRecord) -> None:
    """SIGKILL the first process and wait until it is gone or a zombie."""
    fd = oci_state.open_pidfd(record)
    if fd is None:
        return
    import select

    with fd:
        try:
            signal.pidfd_send_signal(fd.fileno(), signal.SIGKILL)
        except ProcessLookupError:
            return
        thaw(record)
        poller = select.poll()
        poller.register(fd.fileno(), select.POLLIN)
        if not poller.poll(KILL_WAIT_MS):
            raise InvalidState(f"process {record.pid} does not end")
