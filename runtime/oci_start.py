"""start: the created process is told to go on. Apart, because it needs next to nothing."""

from __future__ import annotations

import os
from collections.abc import Callable

from scow.native import unix
from scow.native.errors import InvalidState, ScowError
from scow.runtime import oci_state
from scow.runtime.oci_args import Flags, one_operand
from scow.runtime.oci_state import ContainerDir, StateRecord
from scow.runtime.spec import Spec, decode_spec

Tell = Callable[[str, str], None]


def _start(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    directory = ContainerDir(root, one_operand(operands))
    directory.lock()
    record = directory.load()
    status = oci_state.status_of(directory, record)
    if status == "stopped":
        raise InvalidState("cannot start a container that has stopped")
    if status != "created":
        raise InvalidState("cannot start an already running container")
    release(directory, record, decode_spec(directory.config(), "config.json"))
    return 0


def release(directory: ContainerDir, record: StateRecord, spec: Spec) -> None:
    """Let the created process execute its program; returns when it does."""
    if spec.process is None:
        raise InvalidState("cannot start a container without 'process' in its configuration")
    try:
        with unix.connect(directory.start_socket) as connection:
            os.write(connection.fileno(), b"s")
            packet = os.read(connection.fileno(), 64)
    except ConnectionRefusedError:
        raise InvalidState("cannot start an already running container") from None
    os.unlink(directory.start_socket)
    if packet:
        from scow.runtime.oci_child import explain_packet

        raise explain_packet(packet, spec.process, spec.hooks.start_container)
    if spec.hooks.poststart:
        from scow.runtime.hooks import run_hooks
        from scow.runtime.oci_destroy import kill_and_wait

        try:
            run_hooks("poststart", spec.hooks.poststart, oci_state.hook_state(record, "running"))
        except ScowError:
            kill_and_wait(record)
            raise


COMMANDS: dict[str, Callable[[str, Flags, list[str], Tell], int]] = {"start": _start}
