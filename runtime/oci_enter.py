"""The rarer ways in: namespaces that are joined by path, clocks, devices of others, roots not pivoted to.

Imported only for those. What must not be here: the order of things (oci_compile).
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable

import msgspec

from scow.native import plan as p
from scow.native import sys as kernel
from scow.native.errors import InvalidArgument
from scow.native.fd import OwnedFd
from scow.runtime.compile import DEVICE_MODES
from scow.runtime.mounts import open_bind_source
from scow.runtime.spec import Device, Spec

_NS_GET_USERNS = 0xB701  # ioctl_ns(2)


class JoinedPid(msgspec.Struct, frozen=True):
    """A pid namespace to be entered once nothing of the host is open any more (CVE-2016-9962)."""

    join: p.JoinNamespace
    later: p.JoinNamespace
    mounts_fd: int
    """The mount namespace of a process that lives in it: there its procfs is found."""

    def proc_of_it(self, ops: list[p.Operation]) -> list[p.Operation]:
        """A new procfs shows the namespace of who mounts it, which is not this one yet."""
        why = "the processes of the pid namespace that is joined"
        return [
            p.MountJoinedProc(self.mounts_fd, self.join.fd, op.dest, op.flags, why=why)
            if isinstance(op, p.MountFilesystem) and op.fstype == "proc"
            else op
            for op in ops
        ]


def find_joined(
    spec: Spec, ops: list[p.Operation], hold: Callable[[OwnedFd], int]
) -> JoinedPid | None:
    """None when the first process must be born in it.

    That is so with a user namespace, from which one of the host's cannot be entered (there the new
    process can be read by nobody without CAP_SYS_PTRACE on the host), and where the path tells no
    process that has the namespace's procfs on /proc.
    """
    join = next(
        op for op in ops if isinstance(op, p.JoinNamespace) and op.kind == kernel.CLONE_NEWPID
    )
    kinds = {item.type: item.path for item in spec.linux.namespaces}
    process = kinds["pid"].removesuffix("/ns/pid")
    if "user" in kinds or not process.startswith("/proc/") or process == kinds["pid"]:
        return None
    if any(mount.type == "proc" and _has_data(mount.options) for mount in spec.mounts):
        return None
    try:
        # Only to choose: whose procfs it is the child finds out by itself.
        if os.stat(f"{process}/root/proc/1/ns/pid").st_ino != os.fstat(join.fd).st_ino:
            return None
        flags = os.O_RDONLY | os.O_CLOEXEC
        later = msgspec.structs.replace(join, late=True)
        return JoinedPid(join, later, hold(OwnedFd(os.open(f"{process}/ns/mnt", flags))))
    except OSError:
        return None


def can_wait(spec: Spec, fd: int) -> bool:
    """Whether a cgroup namespace can be joined by the first process itself, by the rights it has then.

    It must wait where it can: with nsdelegate, whoever is in one may not be moved to a cgroup outside
    of it (cgroups(7)), and CLONE_INTO_CGROUP would be such a move.
    """
    user = next((item for item in spec.linux.namespaces if item.type == "user"), None)
    if user is None:
        return True
    if not user.path:
        return False  # it was made just now: older ones are not its own
    with OwnedFd(fcntl.ioctl(fd, _NS_GET_USERNS)) as owner:
        theirs, joined = os.fstat(owner.fileno()), os.stat(user.path)
    return (theirs.st_dev, theirs.st_ino) == (joined.st_dev, joined.st_ino)


def _has_data(options: tuple[str, ...]) -> bool:
    return any("=" in option for option in options)


def host_mounts() -> list[p.Operation]:
    """Take the host's procfs and sysfs out of our copy of its mounts.

    A user namespace made in the container could else mount a procfs without the container's masks: the
    kernel wants to see one that is not covered (mount_too_revealing), wherever it is.
    """
    found: list[p.Operation] = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if right.split(" ", 1)[0] in ("proc", "sysfs"):
                path = left.split()[4].encode(errors="surrogateescape")
                # proc(5): space, tab, newline and backslash are octal
                path = path.decode("unicode_escape").encode("latin-1")
                found.append(p.HideHost(path, why="--no-pivot leaves what is not taken away"))
    return found[::-1]


def time_offsets(spec: Spec) -> str:
    """The lines of timens_offsets."""
    lines: list[str] = []
    for clock, offset in spec.linux.time_offsets.items():
        if clock not in ("monotonic", "boottime"):
            raise InvalidArgument(f"unknown clock '{clock}' in timeOffsets")
        lines.append(f"{clock} {offset.secs} {offset.nanosecs}\n")
    return "".join(lines)


def bound_device(device: Device, hold: Callable[[OwnedFd], int]) -> p.Operation:
    """mknod(2) of a device is not for user namespaces: the host's own node, if it is that device."""
    tree = hold(open_bind_source(device.path, recursive=False))
    there = os.fstat(tree)
    kind = DEVICE_MODES[device.type]
    if stat.S_IFMT(there.st_mode) != kind or there.st_rdev != os.makedev(
        device.major, device.minor
    ):
        raise InvalidArgument(
            f"device '{device.path}' of the host is not {device.type} {device.major}:{device.minor}"
        )
    return p.MountTree(tree, device.path, is_dir=False)
