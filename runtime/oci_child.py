"""The first process of a container as who starts it hears it: native/spawn.h's messages.

What must not be here: what the answers to its questions are (oci_create, oci_exec).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
from collections.abc import Callable

import msgspec

from scow.native import plan as p
from scow.native.errors import CommandNotFound, ScowError, SetupError
from scow.native.fd import OwnedFd
from scow.native.spawn import launch_direct
from scow.native.unix import receive
from scow.runtime import oci_parent as parent
from scow.runtime.spec import Hook, Process

_MESSAGE = struct.Struct("<IiIiII")
_AT_START = (
    p.KeepFds,
    p.DropBounding,
    p.SetUser,
    p.SetCapabilities,
    p.NoNewPrivileges,
    p.LoadSeccomp,
)
READY, FAILED, WARNING, MOVED, CLONED, WAITS, LISTENER = 1, 2, 3, 4, 5, 6, 7


class Child(msgspec.Struct):
    """A process between clone3 and execve. `pid` 0: not born yet."""

    plan: p.Plan
    control: OwnedFd
    binary: int
    pid: int = 0
    pidfd: OwnedFd | None = None
    master: OwnedFd | None = None
    warnings: list[str] = []
    on_listener: Callable[[Child, int], None] | None = None
    """What is done with the descriptor of seccomp's notifications, which it waits to have passed on."""

    def kill(self) -> None:
        """End it and bury it; what was never born is fine."""
        self.control.close()
        if self.pidfd is not None:
            try:
                signal.pidfd_send_signal(self.pidfd.fileno(), signal.SIGKILL)
            except ProcessLookupError:
                pass
            # who buries it may be gone itself: what counts is that it has ended
            poller = select.poll()
            poller.register(self.pidfd.fileno(), select.POLLIN)
            poller.poll()
        for pid in (self.binary, self.pid):
            parent.current().bury(pid)

    def answer(self) -> None:
        """Let it go on."""
        _send(self.control.fileno(), b"n")


def _send(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except BrokenPipeError:
        pass  # it is gone, and has said why


def spawn(plan: p.Plan, stdio: tuple[int, int, int]) -> Child:
    """Start the binary with a direct plan."""
    # Ignored by the caller it would stay so over the exec, and what has ended could not be waited for.
    # Only then: a thread of the service cannot set a signal, and has no need to.
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    binary, control = launch_direct(plan, stdio, parent.current().start)
    return Child(plan, control, binary)


def follow(child: Child, on_wait: Callable[[Child, int], None]) -> bool:
    """Listen until it is READY (True) or closes the socket, which execve does (False).

    `on_wait` does what a WAITS asks for; MOVED is answered with moment 0. Raises the error that a
    failure stands for; then the child is ended.
    """
    while True:
        data, fd = receive(child.control.fileno(), _MESSAGE.size)
        if not data:
            return False
        kind, pid, *failure = _MESSAGE.unpack(data)
        if kind == CLONED:
            _born(child, pid, fd)
        elif kind == MOVED:
            _await_birth(child)
            parent.current().bury(child.pid)
            child.pid, child.pidfd = pid, fd
            on_wait(child, 0)
            child.answer()
        elif kind == WAITS:
            _await_birth(child)
            on_wait(child, pid)
            child.answer()
        elif kind == LISTENER:
            _await_birth(child)
            if child.on_listener is not None:
                child.on_listener(child, pid)
            child.answer()
        elif kind == READY:
            child.master = fd
            _await_birth(child)
            return True
        elif kind == FAILED:
            raise explain(child.plan, *failure)
        elif kind == WARNING:
            child.warnings.append(str(explain(child.plan, *failure)))


def _born(child: Child, pid: int, pidfd: OwnedFd | None) -> None:
    child.pid, child.pidfd = pid, pidfd
    parent.current().bury(child.binary)


def _await_birth(child: Child) -> None:
    """The binary and its child write to one socket: the child can be first."""
    while child.pid == 0:
        data, fd = receive(child.control.fileno(), _MESSAGE.size)
        if not data:
            raise ScowError("the container's first process went away without a word")
        kind, pid, *failure = _MESSAGE.unpack(data)
        if kind == CLONED:
            _born(child, pid, fd)
        elif kind == FAILED:
            raise explain(child.plan, *failure)


def explain(plan: p.Plan, step: int, number: int, index: int, detail: int) -> SetupError:
    """The error for a failure, in the words that engines look for."""
    ops = plan.ops
    op = ops[index] if 0 <= index < len(ops) and ops[index].code == step else None
    if isinstance(op, p.Execute | p.ProbeCommand):
        execute = ops[-1]
        assert isinstance(execute, p.Execute)
        name = os.fsdecode(execute.argv[0])
        return _explain_command(name, number, index)
    if isinstance(op, p.SetCwd):
        return _explain_cwd(os.fsdecode(op.path), number, index)
    if isinstance(op, p.RunHook):
        path = os.fsdecode(op.path)
        if number == errno.ETIMEDOUT:
            how = f"timed out after {op.timeout_ms // 1000} s"
        else:
            code = os.waitstatus_to_exitcode(detail)
            how = f"exit status {code}" if code >= 0 else f"signal {-code}"
        return SetupError(f"error running hook: {path}: {how}", step=op.step, errno=number)
    return p.setup_error(plan, step, number, index, detail)


def explain_packet(packet: bytes, process: Process, hooks: tuple[Hook, ...]) -> SetupError:
    """The error for what the first process says at `start`, when its plan is no longer known."""
    _, _, step, number, index, detail = _MESSAGE.unpack(packet)
    if step in (p.Execute.code, p.ProbeCommand.code):
        return _explain_command(process.args[0], number, index)
    if step == p.SetCwd.code:
        return _explain_cwd(process.cwd, number, index)
    if step == p.RunHook.code:
        names = ", ".join(hook.path for hook in hooks)
        how = "timed out" if number == errno.ETIMEDOUT else f"wait status {detail}"
        return SetupError(
            f"error running startContainer hook: {names}: {how}", step="", errno=number
        )
    for kind in _AT_START:
        if kind.code == step:
            reason = os.strerror(number).lower()
            return SetupError(f"cannot {kind.step}: {reason}", step=kind.step, errno=number)
    return SetupError(f"step {step}: {os.strerror(number).lower()}", step=str(step), errno=number)


def _explain_cwd(path: str, number: int, index: int) -> SetupError:
    return SetupError(
        f'chdir to cwd ("{path}") set in config.json failed: {os.strerror(number).lower()}',
        step="change directory",
        errno=number,
        index=index,
    )


def _explain_command(name: str, number: int, index: int) -> SetupError:
    if number in (errno.ENOENT, errno.ENOTDIR):
        if "/" in name:
            text = f'exec: "{name}": stat {name}: no such file or directory'
        else:
            text = f'exec: "{name}": executable file not found in $PATH'
        return CommandNotFound(text, step="execute", errno=number, index=index)
    text = f'exec: "{name}": {os.strerror(number).lower()}'
    return SetupError(text, step="execute", errno=number, index=index)
