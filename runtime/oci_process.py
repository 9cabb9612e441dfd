"""create, run and exec: the commands that make processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from scow.native.errors import InvalidArgument, InvalidState, ScowError
from scow.native.fd import OwnedFd
from scow.runtime import oci_parent as parent
from scow.runtime import oci_state
from scow.runtime.oci_args import Flags, number, one_operand, switch, text, texts
from scow.runtime.oci_child import Child, follow, spawn
from scow.runtime.oci_create import (
    Created,
    CreateOptions,
    create,
    hand_over,
    kept_descriptors,
    seccomp_filter,
    send_pidfd,
    standard_descriptors,
    write_pid_file,
)
from scow.runtime.oci_destroy import destroy
from scow.runtime.oci_start import release
from scow.runtime.oci_state import ContainerDir, StateRecord
from scow.runtime.spec import CONFIG_LIMIT, Capabilities, Process, Spec, decode_process, decode_spec

Tell = Callable[[str, str], None]


def _options(flags: Flags, *, detach: bool) -> CreateOptions:
    return CreateOptions(
        bundle=text(flags, "bundle") or os.getcwd(),
        console_socket=text(flags, "console-socket"),
        pid_file=text(flags, "pid-file"),
        preserve_fds=number(flags, "preserve-fds") or 0,
        new_keyring=not switch(flags, "no-new-keyring"),
        detach=detach,
        systemd_cgroup=switch(flags, "systemd-cgroup"),
        no_pivot=switch(flags, "no-pivot"),
        pidfd_socket=text(flags, "pidfd-socket"),
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
        parent.current().hold_signals()
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


def wait(child: Child, master: OwnedFd | None) -> int:
    """Stay until the process ends; its exit status as a shell has it."""
    assert child.pidfd is not None
    status = parent.current().wait(child.pid, child.pidfd.fileno(), master)
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
    if process.terminal and not console:
        parent.current().need_caller("a terminal to relay")
    if not detach:
        parent.current().hold_signals()
    if process.terminal and detach and not console:
        raise InvalidArgument(
            "cannot allocate tty if runc will detach without setting console socket"
        )
    if console and not process.terminal:
        raise InvalidArgument("cannot use console socket if runc will not detach or allocate tty")
    child = _spawn_exec(directory, record, spec, process, flags, tell)
    try:
        master = _finish_exec(child, console, text(flags, "pid-file"), (spec, record.id))
        send_pidfd(text(flags, "pidfd-socket"), child)
        if process.apparmor_profile or process.selinux_label:
            from scow.runtime.oci_labels import check_applied

            check_applied(child.pid, process)
    except BaseException:
        child.kill()
        raise
    return 0 if detach else wait(child, master)


def _finish_exec(
    child: Child, console: str, pid_file: str, container: tuple[Spec, str]
) -> OwnedFd | None:
    def on_wait(child: Child, moment: int) -> None:
        spec, name = container
        if moment and spec.linux.intel_rdt is not None:
            from scow.runtime.oci_rdt import groups_of, join, mount_point

            join(groups_of(spec.linux.intel_rdt, name, mount_point()), child.pid)

    master = None
    if follow(child, on_wait):
        master = hand_over(console, child.master)
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
    from scow.runtime.oci_compile import Ends, compile_exec
    from scow.runtime.oci_complete import complete

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
        child = spawn(plan, standard_descriptors())
        child.on_listener = lambda child, number: _pass_listener(spec, record, child, number)
        return child


def _pass_listener(spec: Spec, record: StateRecord, child: Child, number: int) -> None:
    from scow.runtime.oci_listener import pass_listener

    assert child.pidfd is not None
    seccomp = bytes(spec.linux.seccomp)
    pass_listener(seccomp, record, "running", child.pid, (child.pidfd.fileno(), number))


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
            data = file.read(CONFIG_LIMIT + 1)
        if len(data) > CONFIG_LIMIT:
            raise InvalidArgument(f"'{path}' is larger than {CONFIG_LIMIT} bytes")
        process = decode_process(data, path)
        # What confines the container confines all that runs in it, unless it says otherwise.
        return msgspec.structs.replace(
            process,
            exec_cpu_affinity=process.exec_cpu_affinity or base.exec_cpu_affinity,
            apparmor_profile=process.apparmor_profile or base.apparmor_profile,
            selinux_label=process.selinux_label or base.selinux_label,
        )
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
        primary = _number_of_id(gid) if colon else user.gid
        user = msgspec.structs.replace(user, uid=_number_of_id(uid), gid=primary)
    extra = texts(flags, "additional-gids")
    if extra:
        groups = user.additional_gids + tuple(_number_of_id(gid) for gid in extra)
        user = msgspec.structs.replace(user, additional_gids=groups)
    return user


def _number_of_id(value: str) -> int:
    """A user or group: digits of ASCII and no more, never a name (CVE-2026-46680, CVE-2026-30892)."""
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and int(value) < 2**32 - 1):
        raise InvalidArgument(f"parsing {value[:32]!r} as a user or group id failed")
    return int(value)


COMMANDS: dict[str, Callable[[str, Flags, list[str], Tell], int]] = {
    "create": _create,
    "run": _run,
    "exec": _exec,
}
