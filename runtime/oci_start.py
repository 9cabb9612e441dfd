"""start: the created process is told to go on. Apart, because it needs next to nothing."""

from __future__ import annotations

import os

from scow.native import unix
from scow.native.errors import InvalidState, ScowError
from scow.runtime import oci_state
from scow.runtime.oci_args import Flags, one_operand
from scow.runtime.oci_state import ContainerDir, StateRecord

TYPE_CHECKING = False  # importing it from typing would cost half of what `state` takes
if TYPE_CHECKING:
    from collections.abc import Callable

    from scow.runtime.spec import Spec

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
    release(directory, record)
    return 0


def release(directory: ContainerDir, record: StateRecord) -> None:
    """Let the created process execute its program; returns when it does."""
    config = directory.config()
    # Decoding costs more than all the rest: only when there is something to be known.
    if b'"process"' not in config:
        raise InvalidState("cannot start a container without 'process' in its configuration")
    try:
        with unix.connect(directory.start_socket) as connection:
            os.write(connection.fileno(), b"s")
            packet = os.read(connection.fileno(), 64)
            if packet[:4] == b"\7\0\0\0":  # CHILD_LISTENER of native/spawn.h
                _pass_listener(record, config, packet)
                os.write(connection.fileno(), b"n")
                packet = os.read(connection.fileno(), 64)
    except ConnectionRefusedError:
        raise InvalidState("cannot start an already running container") from None
    os.unlink(directory.start_socket)
    if packet:
        from scow.runtime.oci_child import explain_packet

        spec = _decode(config)
        if spec.process is None:
            raise InvalidState("cannot start a container without 'process' in its configuration")
        raise explain_packet(packet, spec.process, spec.hooks.start_container)
    if b'"apparmorProfile"' in config or b'"selinuxLabel"' in config:
        _check_labels(record, config)
    if b'"poststart"' in config:
        from scow.runtime.hooks import run_hooks
        from scow.runtime.oci_destroy import kill_and_wait

        spec = _decode(config)
        try:
            state = oci_state.hook_state(record, "running")
            run_hooks("poststart", spec.hooks.poststart, state, record.bundle)
        except ScowError:
            kill_and_wait(record)
            raise


def _pass_listener(record: StateRecord, config: bytes, packet: bytes) -> None:
    from scow.runtime.oci_listener import pass_listener

    pidfd = oci_state.open_pidfd(record)
    if pidfd is None:
        raise InvalidState("the container ended while it was started")
    with pidfd:
        number = int.from_bytes(packet[4:8], "little")
        seccomp = bytes(_decode(config).linux.seccomp)
        pass_listener(seccomp, record, "created", record.pid, (pidfd.fileno(), number))


def _check_labels(record: StateRecord, config: bytes) -> None:
    from scow.runtime.oci_destroy import kill_and_wait
    from scow.runtime.oci_labels import check_applied

    spec = _decode(config)
    assert spec.process is not None
    try:
        check_applied(record.pid, spec.process)
    except ScowError:
        kill_and_wait(record)
        raise


def _decode(config: bytes) -> Spec:
    from scow.runtime.spec import decode_spec

    return decode_spec(config, "config.json")


COMMANDS: dict[str, Callable[[str, Flags, list[str], Tell], int]] = {"start": _start}
