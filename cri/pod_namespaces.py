"""The namespaces of a pod: made by a process of a moment, kept by pins.

A pin is a bind mount of /proc/PID/ns/X on a file below the pod's run directory (namespaces(7)): the
namespace lives as long as the mount, with no process in it. The run directory is a small tmpfs of the
pod's own: one umount2(2) lets go of it with all that is mounted below, and pays for one RCU grace period.

The process that makes the namespaces waits, held by a direct plan (native/direct.c), while the host's
half of the network is made and the pins are mounted; when the control socket closes it ends. What must
not be here: addresses, records.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from scow.native import plan as p
from scow.native import sys as kernel
from scow.native.errors import InvalidState
from scow.native.fd import OwnedFd
from scow.native.idmap import IdMap, write_id_maps
from scow.runtime.compile import NAMESPACE_FLAGS, checked_sysctl
from scow.runtime.oci_child import Child, follow, spawn

# By their names in the specification; the file names are those below /proc/PID/ns.
FILES = {"user": "user", "network": "net", "ipc": "ipc", "uts": "uts"}
# The moments when something of the host's is wanted: its half of the network, the id maps.
_HOST_NETWORK, _ID_MAPS = 1, 2


def make_namespaces(
    run_dir: str,
    kinds: tuple[str, ...],
    *,
    hostname: str,
    sysctls: dict[str, str],
    inside: bytes,
    connect: Callable[[int], None],
    meanwhile: Callable[[], None],
    ids: IdMap | None = None,
) -> None:
    """Make and pin namespaces of these kinds.

    `connect` is called with the pid of a process in them, and makes the host's half of the network;
    then `inside` is sent in there. `meanwhile` is done while the process is born. With `ids` all of them
    belong to a new user namespace. On failure what is pinned is for the caller to let go.
    """
    ops: list[p.Operation] = []
    late = 0
    if ids is not None:
        ops.append(p.AwaitParent(_ID_MAPS, why="ids must mean something first"))
        ops.append(p.BecomeRoot(why="own what is made in the user namespace"))
        # The root of mqueue belongs to who makes the namespace (ipc/mqueue.c).
        late = kernel.CLONE_NEWIPC if "ipc" in kinds else 0
        if late:
            ops.append(p.Unshare(late, why="as the root of the user namespace"))
    if inside:
        ops.append(p.AwaitParent(_HOST_NETWORK, why="the host's end of the cable must exist first"))
        ops.append(p.Netlink(inside, why="bring up lo, and eth0 if there is one"))
    if "uts" in kinds and hostname:
        ops.append(p.SetHostname(hostname))
    for key, value in sysctls.items():
        ops.append(p.SetSysctl(checked_sysctl(key, frozenset(kinds)), value))
    ops.append(p.AwaitStart(why="be there until the namespaces are pinned"))
    # Never reached: the socket is closed instead of saying 'start'.
    ops.append(p.Execute((b"scow-pod",), nothing=True))
    # The root of a user namespace mounts the procfs of its own pid namespace only, in its own mounts.
    flags = kernel.CLONE_NEWPID | kernel.CLONE_NEWNS if ids is not None else 0
    for kind in kinds:
        flags |= NAMESPACE_FLAGS[kind]
    plan = p.Plan(ops=tuple(ops), namespaces=flags & ~late, direct=True)

    def serve(born: Child, moment: int) -> None:
        if moment == _ID_MAPS and ids is not None:
            write_id_maps(born.pid, ids)
        else:
            connect(born.pid)

    child = spawn(plan, (-1, -1, -1))
    try:
        meanwhile()
        if not follow(child, serve):
            raise InvalidState("the process that makes the pod's namespaces went away")
        for kind in kinds:
            pin(f"/proc/{child.pid}/ns/{FILES[kind]}", pin_path(run_dir, kind))
    finally:
        child.kill()


def pin_path(run_dir: str, kind: str) -> str:
    """Where the namespace of this kind is pinned."""
    return f"{run_dir}/{FILES[kind]}"


def pin(source: str, path: str) -> None:
    """Keep a namespace by a mount."""
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    kernel.mount(source, path, None, kernel.MS_BIND)


def make_run_dir(run_dir: str) -> None:
    """Make the directory that holds what of a pod dies with the boot."""
    os.mkdir(run_dir, 0o700)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("scow-pod", run_dir, "tmpfs", flags, "mode=700,size=1m")


def unmount(path: str) -> None:
    """Unmount whatever lies on a path and below, however often; fine when nothing does."""
    while True:
        try:
            kernel.umount2(path, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return  # umount2(2): no mount point, nothing there
            raise


def is_pinned(run_dir: str, kinds: tuple[str, ...]) -> bool:
    """Whether the namespaces of these kinds are there."""
    try:
        nsfs = os.stat("/proc/self/ns/uts").st_dev
        return all(os.stat(pin_path(run_dir, kind)).st_dev == nsfs for kind in kinds)
    except FileNotFoundError:
        return False


def open_in_network(run_dir: str, open_socket: Callable[[], int]) -> int:
    """Call `open_socket` in the pod's network namespace; a socket stays in the one it was made in.

    By a thread of its own that ends here: setns(2) changes the calling thread, and one of a pool
    would stay changed.
    """
    import threading

    found: list[int] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC
            with OwnedFd(os.open(pin_path(run_dir, "network"), flags)) as namespace:
                kernel.setns(namespace.fileno(), kernel.CLONE_NEWNET)
            found.append(open_socket())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="scow-netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
