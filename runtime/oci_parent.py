"""The parent of the processes that scow-oci makes: this process, or the front that asked us (oci_warm).

What belongs here: starting the static binary, burying, passing on signals, waiting. What must not: what the
processes do (oci_child), the protocol with the front (oci_warm_peer).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Protocol

from scow.native.fd import OwnedFd
from scow.native.spawn import start_init


class StartCold(Exception):
    """Only the caller's own process can do this. Raised before anything is changed."""


class Parent(Protocol):
    """Who the caller's supervisor finds the container's first process by."""

    def start(self, stdio: Sequence[int], fds: Sequence[int]) -> int:
        """Start the static binary for a direct plan; its pid."""
        ...

    def bury(self, pid: int) -> None:
        """Wait for a process that ends or has ended; one that is not ours is fine."""
        ...

    def hold_signals(self) -> None:
        """What comes before there is a process to pass it on to waits until there is one."""
        ...

    def need_terminal(self) -> None:
        """What follows relays the caller's terminal."""
        ...

    def wait(self, pid: int, pidfd: int, master: OwnedFd | None) -> int:
        """Pass signals on to the process, and bytes to and from its terminal, until it ends; its wait
        status."""
        ...


_IGNORED = {signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGKILL, signal.SIGSTOP}


class Here:
    """This process."""

    def start(self, stdio: Sequence[int], fds: Sequence[int]) -> int:
        return start_init(stdio, fds)

    def bury(self, pid: int) -> None:
        try:
            if pid > 0:
                os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # buried already

    def hold_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _IGNORED)

    def need_terminal(self) -> None:
        pass

    def wait(self, pid: int, pidfd: int, master: OwnedFd | None) -> int:
        def forward(received: int, frame: object) -> None:
            try:
                signal.pidfd_send_signal(pidfd, received)
            except ProcessLookupError:
                pass

        for received in signal.valid_signals() - _IGNORED:
            try:
                signal.signal(received, forward)
            except (OSError, ValueError):
                continue  # of the kernel or libc
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if master is not None:
            from scow.runtime.oci_tty import relay

            relay(master, pidfd)
        return os.waitpid(pid, 0)[1]


_current: Parent = Here()


def current() -> Parent:
    """Whose children this process's containers are."""
    return _current


def use(parent: Parent) -> None:
    """Make them another's."""
    global _current
    _current = parent
