"""Starting a container: everything is taken in order, and given back in reverse when a step fails.

What is taken can be released from the container's id alone (run directory, cgroup, address,
ports), so whoever comes after a kill -9 at any line here mends it: `release` is idempotent and
`start` begins with it (docs/adr/001).
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from scow.cgroups.cgroup import Cgroup, open_cgroup
from scow.cri import specgen
from scow.cri.records import Record, RecordStore
from scow.cri.sandbox import Sandbox, is_shared, prepare
from scow.image.overlay import mount_overlay
from scow.native import plan as p
from scow.native.errors import NotFound, ScowError, try_all
from scow.native.fd import OwnedFd
from scow.native.fs import Root, remove_tree
from scow.native.idmap import IdMap, open_user_namespace
from scow.native.spawn import launch_controlled
from scow.runtime.compile import Handles, compile_run
from scow.runtime.failures import explain_failure
from scow.runtime.monitor import Event, Failed, MonitorConnection, Ready, Started
from scow.runtime.spec import Namespace, Process
from scow.runtime.users import User, resolve_user

if TYPE_CHECKING:
    from scow.netns.network import BridgeNetwork

# A monitor whose container never ran has nothing to wait for; this is for a stuck disk.
MONITOR_END_S = 5.0


class Surroundings(msgspec.Struct, frozen=True):
    """What a launch needs to know of its host; one per service."""

    store: RecordStore
    layer_paths: Callable[[Record], list[str]]
    network: Callable[[], BridgeNetwork]
    pid_of: Callable[[str], tuple[str, int]]
    volume_dir: Callable[[str], str]
    adopt_volumes: Callable[[str], None]
    cleanup_argv: Callable[[str], tuple[bytes, ...]]
    image_layers: Callable[[str], list[str]]


class Prepared(msgspec.Struct):
    """A container that is ready to be launched; closing `stack` gives back what is still held."""

    plan: p.Plan
    root: Root
    sandbox: Sandbox
    generated: specgen.Generated


def container_cgroup(record: Record) -> Cgroup:
    """Open the container's cgroup; it need not exist."""
    return open_cgroup(record.cgroup)


def thaw_what_is_there(record: Record) -> None:
    """Let the processes go on that are left; who watches the container may have ended it."""
    with suppress(NotFound):
        container_cgroup(record).thaw()


def mount_root(record: Record, around: Surroundings, *, ids: IdMap | None = None) -> OwnedFd:
    """Stack the image's layers under the container's own, as a mount attached nowhere.

    With `ids` as a user namespace sees them; on the disk all have the ids of an image.
    """
    directory = around.store.container_dir(record.id)
    lowers = [*around.layer_paths(record), base_layer(around.store)]
    return mount_overlay(lowers, f"{directory}/upper", f"{directory}/work", idmap=ids)


# What is mounted on in every container. Where the image has none of it, it shows through from
# below everything, so that no start has to make it in the container's own layer.
_BASE_DIRECTORIES = ("dev", "etc", "proc", "sys")
_BASE_FILES = ("etc/hosts", "etc/hostname", "etc/resolv.conf")


def base_layer(store: RecordStore) -> str:
    """Give the lowest directory of all stacks; made once, by whoever is first."""
    path = f"{store.root}/base"
    if os.path.isdir(path):
        return path
    # In the trash, where what a kill leaves is swept.
    fresh = f"base.{os.urandom(8).hex()}"
    attempt = f"{store.root}/trash/{fresh}"
    for name in ("", *_BASE_DIRECTORIES):
        os.mkdir(f"{attempt}/{name}", 0o755)
    for name in _BASE_FILES:
        os.close(os.open(f"{attempt}/{name}", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    try:
        os.rename(attempt, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        store.empty_trash(fresh)
    return path


def resolve_record_user(record: Record, root: Root) -> User:
    """Look the record's user up in the container's own files."""
    options = record.options
    return resolve_user(
        root, record.user.user, record.user.group, options.group_add, options.group_policy
    )


def prepare_launch(
    record: Record,
    around: Surroundings,
    stack: ExitStack,
    *,
    dry_run: bool = False,
    running_root: int | None = None,
    lock_fd: int | None = None,
) -> Prepared:
    """Take and open all that the plan names. With `dry_run` no address, port or cgroup is taken.

    `running_root` is the root of the container where it runs already; it is closed with `stack`.
    """
    store = around.store

    def hold(fd: OwnedFd) -> int:
        return stack.enter_context(fd).fileno()

    # A running container's layers are not stacked a second time: overlayfs forbids two mounts
    # with one upper directory. Its own root answers as well.
    root_fd = hold(
        OwnedFd(running_root)
        if running_root is not None
        else mount_root(record, around, ids=record.options.ids)
    )
    root = Root(root_fd)
    user = resolve_record_user(record, root)
    sandbox = _sandbox(record, around, hold, dry_run=dry_run)
    path = record.cgroup
    generated = specgen.build_spec(record, user, sandbox, path, around.volume_dir)
    cgroup = open_cgroup(path)
    tasks: tuple[int, ...] = ()
    directory: int | None = None
    oom: int | None = None
    if not dry_run:
        cgroup.create(generated.resources)
        tasks = tuple(hold(fd) for fd in cgroup.join_fds())
        into = cgroup.dir_fd()
        directory = hold(into) if into is not None else None
        events = cgroup.oom_fd()
        oom = hold(events) if events is not None else None
    handles = Handles(
        root_fd=root_fd,
        hold=hold,
        cgroup_tasks=tasks,
        cgroup_fd=directory,
        seccomp=seccomp_filter(record, generated.spec.process, store),
        place=f"{store.run}/rootfs",
        network_host=sandbox.host_netlink,
        network_pid_offsets=sandbox.pid_offsets,
        network_inside=sandbox.inside_netlink,
        run_init=record.options.init,
        mount_reasons=generated.reasons,
        trees=_special_trees(record, around, hold),
        ids=sandbox.ids,
    )
    if not dry_run and record.member is not None:
        _write_user(record, user, store)
    plan = compile_run(generated.spec, handles, _monitor_config(record, around, oom, lock_fd))
    return Prepared(plan, root, sandbox, generated)


def _sandbox(
    record: Record, around: Surroundings, hold: Callable[[OwnedFd], int], *, dry_run: bool
) -> Sandbox:
    if record.member is None:
        made = prepare(record, around.store, around.network, around.pid_of, dry_run=dry_run)
        if made.ids is None:
            return made
        # Nobody is to find it later: the descriptor keeps it until the process is in there.
        user = Namespace("user", f"/proc/self/fd/{hold(open_user_namespace(made.ids))}")
        return msgspec.structs.replace(made, namespaces=(user, *made.namespaces))
    from scow.cri.pod_join import join_pod

    return join_pod(record, record.member, around.store, around.pid_of)


def _special_trees(
    record: Record, around: Surroundings, hold: Callable[[OwnedFd], int]
) -> dict[str, int]:
    ids = record.options.ids
    mounts = [mount for mount in record.options.mounts if mount.kind == "image" or mount.uid_map]
    if not mounts and ids is None:
        return {}
    from scow.cri.trees import Trees

    trees = Trees(hold, ids)
    found = {mount.target: trees.open_mount(mount, around.image_layers) for mount in mounts}
    if ids is not None:
        # What is scow's own has the ids of an image on the disk; what is the host's is shown as it is.
        for use in record.volumes:
            found[use.target] = trees.open_own(around.volume_dir(use.name), use.target)
        for device in record.options.devices:
            found[device.container_path] = trees.open_device(device.host_path)
    return found


def _write_user(record: Record, user: User, store: RecordStore) -> None:
    """Keep who the container runs as, which only its own files tell; derived at each start."""
    path = f"{store.container_dir(record.id)}/user.json"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with OwnedFd(os.open(path, flags, 0o600)) as fd:
        os.write(fd.fileno(), msgspec.json.encode(user))


def _monitor_config(
    record: Record, around: Surroundings, oom_fd: int | None, lock_fd: int | None
) -> p.MonitorConfig:
    options = record.options
    run_dir = around.store.run_dir(record.id)
    directory = around.store.container_dir(record.id)
    return p.MonitorConfig(
        container_id=record.id,
        log_path=around.store.log_path(record),
        log_max_bytes=options.log.max_bytes,
        log_max_files=options.log.max_files,
        socket_path=f"{run_dir}/monitor.sock",
        exit_path=f"{directory}/exit.json",
        status_path=f"{run_dir}/status.json",
        terminal=options.terminal,
        open_stdin=options.open_stdin,
        stdin_once=options.stdin_once,
        oom_fd=oom_fd,
        oom_baseline=0,
        lock_fd=lock_fd,
        cleanup_argv=around.cleanup_argv(record.id),
        cleanup_env=_cleanup_env(around.store),
    )


def cleanup_argv(container_id: str) -> tuple[bytes, ...]:
    """What a monitor calls that nobody watches when its container has ended."""
    # -I: nothing of the caller's environment or directory decides what the interpreter loads.
    words = [sys.executable, "-I", "-m", "scow.cli.main", "cleanup", container_id]
    return tuple(os.fsencode(word) for word in words)


def _cleanup_env(store: RecordStore) -> tuple[bytes, ...]:
    return (
        b"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        b"LC_ALL=C.UTF-8",
        os.fsencode(f"SCOW_ROOT={store.root}"),
        os.fsencode(f"SCOW_RUN={store.run}"),
    )


def seccomp_filter(
    record: Record, process: Process | None, store: RecordStore
) -> tuple[bytes, int] | None:
    """Give the compiled filter and its flags, or None for `unconfined` and --privileged."""
    from scow.runtime import seccomp

    security = record.options.security
    if security.seccomp == "unconfined" or (security.privileged and security.seccomp is None):
        return None
    held = frozenset(process.capabilities.effective if process and process.capabilities else ())
    if security.seccomp is None:
        profile = seccomp.default_profile()
    else:
        try:
            with open(security.seccomp, "rb") as file:
                profile = file.read(seccomp.PROFILE_LIMIT + 1)
        except OSError as error:
            raise NotFound(
                f"cannot read seccomp profile '{security.seccomp}': {error.strerror}"
            ) from error
    found = seccomp.cached_filter(f"{store.root}/cache/seccomp", profile, held)
    return found.program, found.flags


def start(
    record: Record, around: Surroundings, lock_fd: int, *, attach: bool, watch: bool = False
) -> MonitorConnection:
    """Launch a container and release it; returns when its program runs.

    With `attach` the connection gets all output, and holds the container back where it cannot
    keep up, as a pipe would; it also says that its owner cleans up, as `watch` alone does. The caller
    holds the container's
    lock, `lock_fd`, which the monitor shares until the program runs: should we be killed, nobody
    else comes before it has ended what we began. On any failure nothing is left but the record.
    """
    release(record, around)
    with ExitStack() as undo, ExitStack() as held:
        run_dir = around.store.run_dir(record.id)
        undo.callback(release, record, around)
        os.mkdir(run_dir, 0o700)
        os.makedirs(f"{around.store.run}/rootfs", mode=0o700, exist_ok=True)
        if record.options.ipc.kind == "shareable":
            make_shm(f"{run_dir}/shm", record.options.shm_bytes, ids=record.options.ids)
        _make_bind_sources(record)
        adopt_volumes(record, around)
        prepared = prepare_launch(record, around, held, lock_fd=lock_fd)
        try:
            os.unlink(f"{around.store.container_dir(record.id)}/exit.json")
        except FileNotFoundError:
            pass
        connection, theirs = MonitorConnection.pair()
        undo.callback(connection.close)
        with theirs:
            pid, pidfd = launch_controlled(prepared.plan, theirs.fileno())
        undo.callback(_see_off, connection, pidfd)
        own_monitor(pid)
        ready = wait_for(
            connection, Ready, prepared.plan, prepared.root, verb="start the container"
        )
        if record.options.ids is not None and record.options.oom_score_adj is not None:
            with open(f"/proc/{ready.pid}/oom_score_adj", "w", encoding="ascii") as file:
                file.write(str(record.options.oom_score_adj))
        if prepared.sandbox.attachment is not None:
            around.network().settle(prepared.sandbox.attachment)
            around.network().open_ports(prepared.sandbox.attachment)
        # Where the process was killed meanwhile its monitor is gone, and what it said last tells so.
        with suppress(BrokenPipeError, ConnectionResetError):
            if attach:
                connection.attach(stdout=True, stderr=True, stdin=True, lossless=True)
            if attach or watch:
                connection.watch()
            connection.start()
        wait_for(connection, Started, prepared.plan, prepared.root, verb="start the container")
        _check_label(record, ready.pid, prepared.generated.spec.process)
        undo.pop_all()
        pidfd.close()
    return connection


def _check_label(record: Record, pid: int, process: Process | None) -> None:
    # An init of ours is no program: what it starts is under the profile.
    if process is not None and process.apparmor_profile and not record.options.init:
        from scow.runtime.oci_labels import check_applied

        check_applied(pid, process)


# Monitors are our children as long as we live; what has ended is a zombie until somebody asks.
_monitors: set[int] = set()


def own_monitor(pid: int) -> None:
    """Note a monitor that this process has started, and bury those that have ended."""
    _monitors.add(pid)
    bury_monitors()


def bury_monitors() -> None:
    """Reap the monitors of ours that have ended."""
    for pid in list(_monitors):
        try:
            ended = os.waitpid(pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            ended = True  # SIGCHLD is ignored, or somebody else has reaped it
        if ended:
            _monitors.discard(pid)


def _see_off(connection: MonitorConnection, pidfd: OwnedFd) -> None:
    """Let go of a monitor that failed and wait until it is gone: it writes its records to the end."""
    connection.close()
    with pidfd:
        poller = select.poll()
        poller.register(pidfd.fileno(), select.POLLIN)
        poller.poll(int(MONITOR_END_S * 1000))


E = TypeVar("E", bound=Event)


def wait_for(
    connection: MonitorConnection,
    wanted: type[E],
    plan: p.Plan,
    root: Root,
    *,
    verb: str,
    until: float | None = None,
) -> E:
    """Read events until the wanted one; a failure becomes the error it stands for.

    TimeoutError at `until`, a moment of time.monotonic().
    """
    while True:
        event = connection.recv(until)
        if isinstance(event, wanted):
            return event
        if isinstance(event, Failed):
            raise explain_failure(plan, event.failure, root)
        if event is None:
            raise ScowError(f"cannot {verb}: its monitor went away without a word")


def make_shm(path: str, size: int | None = None, *, ids: IdMap | None = None) -> None:
    """Mount a /dev/shm that several containers share."""
    from scow.native import sys as kernel

    os.mkdir(path, 0o755)
    size = size or specgen.DEFAULT_SHM_BYTES
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    owner = f",uid={ids.host_uid},gid={ids.host_gid}" if ids is not None else ""
    kernel.mount("shm", path, "tmpfs", flags, f"mode=1777,size={size}{owner}")


def staged_volumes(record: Record, around: Surroundings) -> str:
    """Where the container's new volumes are made before they get their names."""
    return f"{around.store.container_dir(record.id)}/volumes"


def adopt_volumes(record: Record, around: Surroundings) -> None:
    """Give the container's new volumes their names; nothing to do is fine."""
    if record.volumes:
        around.adopt_volumes(staged_volumes(record, around))


def _make_bind_sources(record: Record) -> None:
    """Make missing sources of -v, as Docker does; --mount asks for existing ones."""
    for mount in record.options.mounts:
        if mount.kind == "bind" and mount.create_source and not os.path.lexists(mount.source):
            os.makedirs(mount.source, 0o755, exist_ok=True)


def release(record: Record, around: Surroundings) -> None:
    """Give back what a run of the container took; fine when nothing is left, goes on past errors."""
    try_all(
        (
            lambda: _release_cgroup(record),
            lambda: _release_network(record, around),
            lambda: _release_run_dir(record, around),
        )
    )


def _release_cgroup(record: Record) -> None:
    cgroup = container_cgroup(record)
    # Processes that outlived the first one (--pid host), or all of them where the monitor was killed.
    if cgroup.exists() and cgroup.pids():
        cgroup.kill()
    cgroup.remove()


def _release_network(record: Record, around: Surroundings) -> None:
    if record.options.network.mode.kind == "bridge":
        # The kernel takes the link with its namespace; to wait for that costs 15 ms, and is only
        # needed where another container keeps the namespace.
        shared = is_shared(around.store, record.id)
        around.network().detach(record.id, drop_link=shared)


def _release_run_dir(record: Record, around: Surroundings) -> None:
    from scow.native import sys as kernel

    run_dir = around.store.run_dir(record.id)
    if record.options.ipc.kind == "shareable" and os.path.ismount(f"{run_dir}/shm"):
        kernel.umount2(f"{run_dir}/shm", kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
    parent = os.open(f"{around.store.run}/containers", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(parent, record.id)
    except FileNotFoundError:
        pass
    finally:
        os.close(parent)
