"""Streams: what a token's URL leads to, and the whole of ExecSync.

A process is started when the client has connected, not when the URL was made: nobody may ever come.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Sequence

from scow.cri.api.calls import RUNNING
from scow.cri.options import ExecOptions
from scow.cri.pod_join import require_ready
from scow.cri.pod_namespaces import open_in_network
from scow.cri.pods import Pods
from scow.cri.service import Service
from scow.native.errors import DeadlineExceeded, InvalidState, ScowError
from scow.runtime.monitor import Dropped, Exited, MonitorConnection, Output, Reopened

# Each of stdout and stderr; what is more is thrown away, and the command goes on (CRI).
OUTPUT_LIMIT = 16 << 20
# Whoever asks for longer asks for no limit: the monitor counts milliseconds.
MAX_TIMEOUT_S = 10**9
CONNECT_TIMEOUT_S = 10.0
# So much longer than its limit we wait to hear that a command is dead.
_LATE_S = 2.0


class ExecSession:
    """A command in a container; it begins when its client is there."""

    def __init__(
        self,
        service: Service,
        container_id: str,
        command: Sequence[str],
        *,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> None:
        self._service = service
        self._container_id = container_id
        self._command = tuple(command)
        self.tty, self.stdin, self.stdout, self.stderr = tty, stdin, stdout, stderr

    def open(self) -> MonitorConnection:
        """Start the command and give its streams."""
        options = ExecOptions(self._command, terminal=self.tty, open_stdin=self.stdin)
        return self._service.exec(self._container_id, options)


class AttachSession:
    """The streams of a container's first process."""

    def __init__(
        self,
        service: Service,
        container_id: str,
        *,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> None:
        self._service = service
        self._container_id = container_id
        self.tty, self.stdin, self.stdout, self.stderr = tty, stdin, stdout, stderr

    def open(self) -> MonitorConnection:
        """Connect to the container's monitor."""
        return self._service.attach(self._container_id, stdin=self.stdin)


class PortForwardSession:
    """Connections to what listens on loopback in a pod."""

    def __init__(self, pods: Pods, pod_id: str, ports: Sequence[int]) -> None:
        self._pods = pods
        self._pod_id = pod_id
        self.ports: Sequence[int] = tuple(ports)

    def connect(self, port: int) -> socket.socket:
        """Connect to a port; OSError where nobody listens, InvalidState for a stopped pod."""
        record = self._pods.read(self._pod_id)
        run_dir = self._pods.store.run_dir(self._pod_id)
        require_ready(record, run_dir)
        failed: OSError | None = None
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                return _connect(
                    family, address, port, "" if record.options.network == "host" else run_dir
                )
            except OSError as error:
                failed = failed or error
        raise failed or OSError("no address")


def _connect(family: int, address: str, port: int, run_dir: str) -> socket.socket:
    def make() -> int:
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC).detach()

    connection = socket.socket(fileno=open_in_network(run_dir, make) if run_dir else make())
    try:
        connection.settimeout(CONNECT_TIMEOUT_S)
        connection.connect((address, port))
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def run_sync(
    service: Service, container_id: str, command: Sequence[str], timeout_s: int
) -> tuple[bytes, bytes, int]:
    """Run a command to its end: stdout, stderr and exit code.

    Killed when `timeout_s` (0: none) is over, by its monitor, which may outlive us.
    """
    options = ExecOptions(tuple(command), timeout_s=min(timeout_s, MAX_TIMEOUT_S))
    until = time.monotonic() + options.timeout_s + _LATE_S if timeout_s else None
    try:
        with service.exec(container_id, options) as connection:
            found = _collect(connection, timeout_s, until)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the command did not end in {timeout_s} s, and is not dead yet",
            hint="a process that is paused, or waits for a device, dies when it goes on",
        ) from None
    if found is None:
        record = service.store.read(container_id)
        if service.status(record).state not in RUNNING:
            raise InvalidState(f"container '{record.name}' has ended, and the command with it")
        raise ScowError("the command's monitor went away without a word")
    return found


def _collect(
    connection: MonitorConnection, timeout_s: int, until: float | None
) -> tuple[bytes, bytes, int] | None:
    kept: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
    while True:
        event = connection.recv(until)
        if isinstance(event, Output):
            target = kept[event.stream]
            target += event.data[: OUTPUT_LIMIT - len(target)]
        elif isinstance(event, Exited):
            if event.timed_out:
                raise DeadlineExceeded(f"the command did not end in {timeout_s} s and was killed")
            return bytes(kept[1]), bytes(kept[2]), event.exit_code
        elif event is None:
            return None


def reopen_log(path: str) -> int:
    """Have the monitor at a socket open its log anew; gives its errno, 0 when it has."""
    connection = MonitorConnection.connect(path)
    try:
        connection.reopen_log()
        while True:
            event = connection.recv()
            if isinstance(event, Reopened):
                return event.errno
            if event is None or isinstance(event, Dropped):
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET), path)
    finally:
        connection.close()
