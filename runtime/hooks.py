"""Hooks that run in the runtime's own namespaces: prestart, createRuntime, poststart, poststop.

What must not be here: those that run in the container's (createContainer, startContainer), which are
operations of the plan.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable

from scow.native.errors import InvalidArgument, ScowError
from scow.native.fd import OwnedFd
from scow.runtime.spec import Hook


def check_hook(kind: str, hook: Hook) -> None:
    """Refuse a hook that cannot be run."""
    if not hook.path.startswith("/"):
        raise InvalidArgument(f"invalid {kind} hook: path '{hook.path}' is not absolute")
    if hook.timeout is not None and hook.timeout <= 0:
        raise InvalidArgument(f"invalid {kind} hook: timeout '{hook.timeout}' is not above 0")


def run_hooks(kind: str, hooks: Iterable[Hook], state: bytes, bundle: str) -> None:
    """Run hooks in order, in the bundle as runc and crun do; the first that fails raises ScowError."""
    with contextlib.ExitStack() as back:
        here = back.enter_context(OwnedFd(os.open(".", os.O_PATH | os.O_CLOEXEC)))
        back.callback(os.fchdir, here.fileno())
        # Who deletes may have taken the bundle away before.
        with contextlib.suppress(FileNotFoundError):
            os.chdir(bundle)
        for index, hook in enumerate(hooks):
            run_hook(f"{kind} hook #{index}", hook, state)


def run_hook(name: str, hook: Hook, state: bytes) -> None:
    """Run one hook with the state on stdin, and wait; at its timeout it is killed."""
    check_hook(name, hook)
    # A file and not a pipe: whether the hook reads it is its own affair.
    with OwnedFd(os.memfd_create("state", os.MFD_CLOEXEC)) as stdin:
        os.write(stdin.fileno(), state)
        os.lseek(stdin.fileno(), 0, os.SEEK_SET)
        environment = dict(entry.split("=", 1) for entry in hook.env if "=" in entry)
        try:
            pid = os.posix_spawn(
                hook.path,
                hook.args or (hook.path,),
                environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, stdin.fileno(), 0)],
                setsigdef=[signal.SIGPIPE],
                setsigmask=[],
            )
        except OSError as error:
            raise ScowError(f"error running {name}: {hook.path}: {error.strerror}") from error
    status = _wait(pid, hook.timeout)
    if status is None:
        raise ScowError(f"error running {name}: timed out after {hook.timeout} s")
    code = os.waitstatus_to_exitcode(status)
    if code:
        how = f"exit status {code}" if code > 0 else f"signal {-code}"
        raise ScowError(f"error running {name}: {hook.path}: {how}")


def _wait(pid: int, timeout_s: int | None) -> int | None:
    """The status of our child, None when it had to be killed."""
    if timeout_s is not None:
        with OwnedFd(os.pidfd_open(pid)) as fd:
            poller = select.poll()
            poller.register(fd.fileno(), select.POLLIN)
            if not poller.poll(timeout_s * 1000):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None
    return os.waitpid(pid, 0)[1]
