"""The agent of SCMP_ACT_NOTIFY: it gets the descriptor of a container's notifications.

runtime-spec, config-linux.md, "The Container Process State": one JSON document on a stream socket,
the descriptor in SCM_RIGHTS of its first message. Imported only when a filter asks an agent.
"""

from __future__ import annotations

import os
import socket

import msgspec

from scow.native import sys as kernel
from scow.native.errors import ScowError
from scow.native.fd import OwnedFd
from scow.runtime import oci_state
from scow.runtime.oci_state import StateRecord
from scow.runtime.seccomp import parse_profile

TIMEOUT_S = 10.0


def pass_listener(
    seccomp: bytes, record: StateRecord, status: str, pid: int, source: tuple[int, int]
) -> None:
    """Send descriptor number `source[1]` of the process with pidfd `source[0]` to the agent.

    Raises ScowError when it cannot be reached: the process would wait for ever.
    """
    profile = parse_profile(seccomp)
    state = msgspec.Raw(oci_state.hook_state(record, status))
    document = {
        "ociVersion": record.oci_version,
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": profile.listener_metadata,
        "state": state,
    }
    try:
        with OwnedFd(kernel.pidfd_getfd(*source)) as listener:
            _send(profile.listener_path, msgspec.json.encode(document), listener.fileno())
    except OSError as error:
        reason = error.strerror or str(error)
        raise ScowError(
            f"cannot pass the seccomp listener to the agent at '{profile.listener_path}': {reason}"
        ) from error


def _send(path: str, document: bytes, listener: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(TIMEOUT_S)
        directory, name = os.path.split(path)
        # sun_path holds 108 bytes; through the directory's descriptor any length of path will do.
        with OwnedFd(os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as at:
            agent.connect(f"/proc/self/fd/{at.fileno()}/{name}")
        sent = socket.send_fds(agent, [document], [listener])
        if sent < len(document):  # else the agent may be done with us
            agent.sendall(document[sent:])
