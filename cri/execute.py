"""A further process in a running container: `exec`.

It joins the namespaces and the cgroup of the container's first process and gets no more rights
than the container has (CVE-2022-29162); nothing of the host is open in it (CVE-2016-9962).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from scow.cri.launch import (
    Surroundings,
    container_cgroup,
    own_monitor,
    seccomp_filter,
    wait_for,
)
from scow.cri.options import ExecOptions
from scow.cri.records import Record, RecordStore
from scow.cri.specgen import build_capabilities, build_process
from scow.cri.status import is_process
from scow.native import plan as p
from scow.native import sys as kernel
from scow.native.errors import InvalidState, NotFound, ScowError, SetupError
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.native.spawn import launch
from scow.runtime.compile import Handles, compile_exec
from scow.runtime.monitor import MonitorConnection, Ready, Started, StatusRecord
from scow.runtime.security import combine_capabilities
from scow.runtime.spec import ConsoleSize, Process, ProcessUser
from scow.runtime.users import resolve_user

_KINDS = (
    (kernel.CLONE_NEWPID, "pid"),
    (kernel.CLONE_NEWNET, "net"),
    (kernel.CLONE_NEWIPC, "ipc"),
    (kernel.CLONE_NEWUTS, "uts"),
    (kernel.CLONE_NEWCGROUP, "cgroup"),
    (kernel.CLONE_NEWNS, "mnt"),
)


def _kinds(record: Record) -> tuple[tuple[int, str], ...]:
    # A user namespace comes last: joining it takes the rights over the host's.
    return _KINDS if record.options.ids is None else (*_KINDS, (kernel.CLONE_NEWUSER, "user"))


# What the kernel says when everything in the container is being killed: pid_namespaces(7) has ENOMEM
# where the first process is ending; the cgroup is gone; the process was killed at once.
_KILLED = frozenset({errno.ENOMEM, errno.ESRCH, errno.ECHILD})
_NO_CGROUP = frozenset({errno.ENOENT, errno.ENODEV})


def _is_of_the_end(error: ScowError) -> bool:
    if not isinstance(error, SetupError):
        return False
    in_cgroup = error.step in ("clone the process", p.JoinCgroups.step)
    return error.errno in _KILLED or (in_cgroup and error.errno in _NO_CGROUP)


def start_exec(
    record: Record, run: StatusRecord | None, around: Surroundings, options: ExecOptions
) -> MonitorConnection:
    """Start a process in the container that `run` tells of; returns when it runs.

    TimeoutError when it does not run in its own time: a container that was frozen meanwhile holds it.
    """
    if run is None:
        raise _ended(record)
    until = time.monotonic() + options.timeout_s if options.timeout_s else None
    with ExitStack() as held:

        def hold(fd: OwnedFd) -> int:
            return held.enter_context(fd).fileno()

        root_fd, namespaces = _open_container(record, run, hold)
        root = Root(root_fd)
        process = _process(record, root, options)
        joins: tuple[p.Operation, ...] = tuple(
            p.JoinNamespace(fd, kind, why=f"the container's {file} namespace")
            for (kind, file), fd in zip(_kinds(record), namespaces, strict=True)
        )
        cgroup = container_cgroup(record)
        try:
            into, tasks = cgroup.dir_fd(), cgroup.join_fds()
        except (NotFound, FileNotFoundError):
            raise _ended(record) from None
        handles = Handles(
            root_fd=root.fileno(),
            hold=hold,
            cgroup_tasks=tuple(hold(fd) for fd in tasks),
            cgroup_fd=hold(into) if into is not None else None,
            seccomp=_seccomp(record, process, around, options),
            ids=record.options.ids,
        )
        plan = compile_exec(process, handles, joins, _monitor(record, options))
        launched = launch(plan)
        own_monitor(launched.pid)
        launched.pidfd.close()
        connection = MonitorConnection(launched.control.steal())
        try:
            if not options.detach:
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.attach(
                        stdout=True, stderr=True, stdin=options.open_stdin, lossless=True
                    )
            wait_for(connection, Ready, plan, root, verb="execute", until=until)
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.start()
            wait_for(connection, Started, plan, root, verb="execute", until=until)
        except ScowError as error:
            connection.close()
            if _is_of_the_end(error) or not is_process(run.pid, run.start_time):
                raise _ended(record) from error
            raise
        except BaseException:
            connection.close()
            raise
        return connection


def _open_container(
    record: Record, run: StatusRecord, hold: Callable[[OwnedFd], int]
) -> tuple[int, list[int]]:
    """Open root and namespaces of the first process, and of no other that has got its pid."""
    try:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        root = hold(OwnedFd(os.open(f"/proc/{run.pid}/root", flags)))
        namespaces = [
            hold(OwnedFd(os.open(f"/proc/{run.pid}/ns/{file}", os.O_RDONLY | os.O_CLOEXEC)))
            for _, file in _kinds(record)
        ]
    except (FileNotFoundError, ProcessLookupError):
        raise _ended(record) from None
    # It still is the process that was recorded, so it was while these were opened.
    if not is_process(run.pid, run.start_time):
        raise _ended(record)
    return root, namespaces


def _ended(record: Record, verb: str = "execute in") -> InvalidState:
    return InvalidState(f"cannot {verb} container '{record.name}': it has just ended")


def attach_to(record: Record, store: RecordStore, *, stdin: bool) -> MonitorConnection:
    """Connect to the streams of a running container."""
    try:
        connection = MonitorConnection.connect(f"{store.run_dir(record.id)}/monitor.sock")
        connection.attach(stdout=True, stderr=True, stdin=stdin and record.options.open_stdin)
    except (FileNotFoundError, ConnectionError):
        raise _ended(record, "attach to") from None
    return connection


def _monitor(record: Record, options: ExecOptions) -> p.MonitorConfig:
    return p.MonitorConfig(
        container_id=record.id,
        terminal=options.terminal,
        open_stdin=options.open_stdin,
        stdin_once=True,
        time_limit_ms=options.timeout_s * 1000,
    )


def _process(record: Record, root: Root, options: ExecOptions) -> Process:
    wanted = options.user or record.user
    groups = record.options.group_add if options.user is None else ()
    policy = record.options.group_policy if options.user is None else ""
    user = resolve_user(root, wanted.user, wanted.group, groups, policy)
    base = build_process(record, user)
    environment: dict[str, str] = {}
    for entry in base.env + options.environment:
        key, _, value = entry.partition("=")
        environment[key] = value
    if options.user is not None and not any(e.startswith("HOME=") for e in options.environment):
        environment["HOME"] = user.home
    if options.terminal:
        environment.setdefault("TERM", "xterm")
    held = combine_capabilities(
        record.options.security.cap_add,
        record.options.security.cap_drop,
        privileged=record.options.security.privileged or options.privileged,
    )
    rows, columns = options.terminal_size
    return Process(
        cwd=options.working_dir or record.working_dir,
        args=options.command,
        env=tuple(f"{key}={value}" for key, value in environment.items()),
        terminal=options.terminal,
        console_size=ConsoleSize(height=rows, width=columns) if options.terminal else None,
        user=ProcessUser(uid=user.uid, gid=user.gid, umask=0o022, additional_gids=user.groups),
        capabilities=build_capabilities(held, record.options.security.cap_ambient),
        rlimits=base.rlimits,
        no_new_privileges=base.no_new_privileges,
        oom_score_adj=base.oom_score_adj,
        apparmor_profile="" if options.privileged else base.apparmor_profile,
    )


def _seccomp(
    record: Record, process: Process, around: Surroundings, options: ExecOptions
) -> tuple[bytes, int] | None:
    if options.privileged:
        return None
    return seccomp_filter(record, process, around.store)
