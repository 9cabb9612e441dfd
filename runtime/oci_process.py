"""create, run and exec: the commands that make processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from scow.native.errors import InvalidArgument, InvalidState, ScowError, Unsupported
from scow.native.fd import OwnedFd
from scow.runtime import oci_state
from scow.runtime.oci_args import Flags, number, one_operand, switch, text, texts
from scow.runtime.oci_child import Child, follow, spawn
from scow.runtime.oci_create import (
    Created,
    CreateOptions,
    create,
    kept_descriptors,
    seccomp_filter,
    send_terminal,
    standard_descriptors,
    write_pid_file,
)
from scow.runtime.oci_destroy import destroy
from scow.runtime.oci_start import release
from scow.runtime.oci_state import ContainerDir, StateRecord
from scow.runtime.spec import Capabilities, Process, Spec, decode_process, decode_spec

Tell = Callable[[str, str], None]


def _options(flags: Flags, *, detach: bool) -> CreateOptions:
    if switch(flags, "no-pivot"):
        raise Unsupported("--no-pivot is not supported: it leaves the host's root within reach")
    if text(flags, "pidfd-socket"):
        raise Unsupported("--pidfd-socket is not supported")
    return CreateOptions(
        bundle=text(flags, "bundle") or os.getcwd(),
        console_socket=text(flags, "console-socket"),
        pid_file=text(flags, "pid-file"),
        preserve_fds=number(flags, "preserve-fds") or 0,
        new_keyring=not switch(flags, "no-new-keyring"),
        detach=detach,
        systemd_cgroup=switch(flags, "systemd-cgroup"),
    )


def _create(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    made = create(root, one_operand(operands), _options(flags, detach=True))
    for warning in made.warnings:
        tell("warning", warning)
    made.directory.unlock()
    return 0


def _run(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    detach = switch(flags, "detach")
    if not detach:
        _hold_signals()
    made = create(root, one_operand(operands), _options(flags, detach=detach))
    for warning in made.warnings:
        tell("warning", warning)
    try:
        release(made.directory, made.record)
    except BaseException:
        destroy(made.directory, made.record)
        raise
    made.directory.unlock()
    if detach:
        return 0
    code = wait(made.child, made.master)
    if not switch(flags, "keep"):
        _delete_after(made, tell)
    return code


def _delete_after(made: Created, tell: Tell) -> None:
    try:
        made.directory.lock()
    except ScowError:
        return  # somebody has deleted it already
    for warning in destroy(made.directory, made.record):
        tell("warning", warning)


# --- waiting --------------------------------------------------------------------------------------


_IGNORED = {signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGKILL, signal.SIGSTOP}


def _hold_signals() -> None:
    """What comes before there is a process to pass it on to waits until there is one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _IGNORED)


def wait(child: Child, master: OwnedFd | None) -> int:
    """Stay until the process ends, pass signals on to it; its exit status as a shell has it."""
    assert child.pidfd is not None
    pidfd = child.pidfd.fileno()

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
    _, status = os.waitpid(child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


# --- exec -----------------------------------------------------------------------------------------


def _exec(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    if not operands:
        raise InvalidArgument("container id cannot be empty")
    directory = ContainerDir(root, operands[0])
    record = directory.load()
    status = oci_state.status_of(directory, record)
    if status == "stopped":
        raise InvalidState("cannot exec in a stopped container")
    if status == "paused" and not switch(flags, "ignore-paused"):
        raise InvalidState("cannot exec in a paused container (use --ignore-paused to override)")
    spec = decode_spec(directory.config(), "config.json")
    process = _exec_process(spec, flags, operands[1:])
    detach, console = switch(flags, "detach"), text(flags, "console-socket")
    if not detach:
        _hold_signals()
    if process.terminal and detach and not console:
        raise InvalidArgument(
            "cannot allocate tty if runc will detach without setting console socket"
        )
    if console and not process.terminal:
        raise InvalidArgument("cannot use console socket if runc will not detach or allocate tty")
    child = _spawn_exec(directory, record, spec, process, flags, tell)
    try:
        master = _finish_exec(child, console, text(flags, "pid-file"))
    except BaseException:
        child.kill()
        raise
    return 0 if detach else wait(child, master)


def _finish_exec(child: Child, console: str, pid_file: str) -> OwnedFd | None:
    def on_wait(_child: Child, _moment: int) -> None:
        pass

    master = None
    if follow(child, on_wait):
        master = child.master
        if master is not None and console:
            send_terminal(console, master)
            master.close()
            master = None
        follow(child, on_wait)  # the end of the socket: execve has worked
    if child.pid == 0:
        raise ScowError("the process went away without a word")
    write_pid_file(pid_file, child.pid)
    return master


def _spawn_exec(
    directory: ContainerDir,
    record: StateRecord,
    spec: Spec,
    process: Process,
    flags: Flags,
    tell: Tell,
) -> Child:
    from scow.cgroups.cgroup import open_cgroup
    from scow.native.fs import Root
    from scow.runtime.oci_compile import Ends, compile_exec, complete

    with ExitStack() as held:

        def hold(fd: OwnedFd) -> int:
            return held.enter_context(fd).fileno()

        first = oci_state.open_pidfd(record)
        if first is None:
            raise InvalidState("cannot exec in a stopped container")
        pidfd = hold(first)
        root = Root(hold(OwnedFd(os.open(f"/proc/{record.pid}/root", os.O_PATH | os.O_CLOEXEC))))
        process, warnings = complete(spec, process, root, record.umask)
        for warning in warnings:
            tell("warning", warning)
        cgroup = open_cgroup(record.cgroup, foreign=True)
        if texts(flags, "cgroup") or not cgroup.takes_processes():
            from scow.cgroups.inside import places

            tasks, into = places(cgroup, record.pid, texts(flags, "cgroup"))
        else:
            tasks, into = cgroup.join_fds(), cgroup.dir_fd()
        ends = Ends(
            hold=hold,
            cgroup_tasks=tuple(hold(fd) for fd in tasks),
            cgroup_fd=hold(into) if into is not None else None,
            seccomp=seccomp_filter(spec, process, directory.root),
            kept=kept_descriptors(number(flags, "preserve-fds") or 0),
            keyring="",
        )
        plan = compile_exec(spec, process, pidfd, ends, _affinity(process))
        return spawn(plan, standard_descriptors())


def _affinity(process: Process) -> tuple[bytes, bytes]:
    asked = process.exec_cpu_affinity
    if asked is None:
        return b"", b""
    from scow.runtime.scheduling import cpu_mask

    return cpu_mask(asked.initial, "cpus"), cpu_mask(asked.final, "cpus")


def _exec_process(spec: Spec, flags: Flags, arguments: list[str]) -> Process:
    """--process, or the container's own process with what the flags change."""
    path = text(flags, "process")
    base = spec.process or Process(cwd="/")
    if path:
        with open(path, "rb") as file:
            process = decode_process(file.read(), path)
        if process.exec_cpu_affinity is None and base.exec_cpu_affinity is not None:
            process = msgspec.structs.replace(process, exec_cpu_affinity=base.exec_cpu_affinity)
        return process
    if not arguments:
        raise InvalidArgument("process args cannot be empty")
    changes: dict[str, object] = {"args": tuple(arguments), "terminal": switch(flags, "tty")}
    if text(flags, "cwd"):
        changes["cwd"] = text(flags, "cwd")
    if texts(flags, "env"):
        changes["env"] = base.env + texts(flags, "env")
    if switch(flags, "no-new-privs"):
        changes["no_new_privileges"] = True
    for flag, field in (("apparmor", "apparmor_profile"), ("process-label", "selinux_label")):
        if text(flags, flag):
            changes[field] = text(flags, flag)
    if texts(flags, "cap"):
        changes["capabilities"] = _with_capabilities(base, texts(flags, "cap"))
    changes["user"] = _exec_user(base, flags)
    return msgspec.structs.replace(base, **changes)


def _with_capabilities(base: Process, extra: tuple[str, ...]) -> Capabilities:
    had = base.capabilities or Capabilities()
    return msgspec.structs.replace(
        had,
        bounding=had.bounding + extra,
        effective=had.effective + extra,
        permitted=had.permitted + extra,
        # ambient needs inheritable; an own root needs neither
        ambient=had.ambient,
    )


def _exec_user(base: Process, flags: Flags) -> object:
    user = base.user
    if text(flags, "user"):
        uid, colon, gid = text(flags, "user").partition(":")
        if not uid.isdigit() or (colon and not gid.isdigit()):
            raise InvalidArgument(f"parsing {text(flags, 'user')} as int for uid failed")
        user = msgspec.structs.replace(user, uid=int(uid), gid=int(gid) if colon else user.gid)
    extra = texts(flags, "additional-gids")
    if extra:
        if not all(gid.isdigit() for gid in extra):
            raise InvalidArgument(f"additional gids {extra} are not all numbers")
        groups = user.additional_gids + tuple(int(gid) for gid in extra)
        user = msgspec.structs.replace(user, additional_gids=groups)
    return user


COMMANDS: dict[str, Callable[[str, Flags, list[str], Tell], int]] = {
    "create": _create,
    "run": _run,
    "exec": _exec,
}
