"""checkpoint: a container to files, by CRIU where it is installed and works; restore is in oci_restore.

CRIU is told what it cannot know: which mounts come from outside of the container (they are named at
the dump, and bound again from where the configuration says at the restore), whose pipes 0, 1 and 2
are, and which namespaces are another's. All else it finds out by itself, and says what it cannot do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from scow.cgroups.detect import Mode, hierarchies
from scow.native import sys as kernel
from scow.native.errors import InvalidArgument, InvalidState, NotFound, Unsupported
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.runtime import criu, oci_state
from scow.runtime.criu import Field, Option
from scow.runtime.oci_args import COMMANDS as COMMAND_FLAGS
from scow.runtime.oci_args import Flags, one_operand, switch, text, texts
from scow.runtime.oci_destroy import destroy
from scow.runtime.oci_state import ContainerDir
from scow.runtime.spec import Spec, SpecMount, decode_spec

Tell = Callable[[str, str], None]
DESCRIPTORS = "descriptors.json"  # as runc names it: what 0, 1 and 2 were
MASK_FILE, MASK_DIRECTORY = "scow-masked-file", "scow-masked-directory"

_CGROUP_MODES = {"ignore": 0, "soft": 3, "full": 4, "strict": 5}
_NFTABLES = 2
# Of namespaces that were joined, CRIU can leave these to whoever has them.
OTHERS = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}


# --- what both ask for ----------------------------------------------------------------------------


def help_of(command: str) -> int:
    """Podman asks for it, to know whether there is such a command."""
    names = sorted({name for name, _ in COMMAND_FLAGS[command].values()})
    flags = " ".join(f"[--{name}]" for name in names)
    print(f"usage: scow-oci {command} {flags} ID")
    return 0


def image_path(flags: Flags) -> str:
    """Where the images are; runc's default is `checkpoint` below the current directory."""
    return os.path.abspath(text(flags, "image-path") or "checkpoint")


def open_directory(path: str, stack: ExitStack, *, make: bool) -> int:
    if make:
        os.makedirs(path, mode=0o700, exist_ok=True)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"'{path}' does not exist: nothing was checkpointed there") from None
    return stack.enter_context(OwnedFd(fd)).fileno()


def common_fields(flags: Flags, log: str) -> list[Field]:
    if switch(flags, "lazy-pages"):
        raise Unsupported("--lazy-pages is not supported")
    fields: list[Field] = [
        (Option.LOG_LEVEL, 4),
        (Option.LOG_FILE, log),
        (Option.NOTIFY, True),
        (Option.MANAGE_CGROUPS, True),
        (Option.ORPHAN_PTY, True),
        # The library for nftables is in CRIU itself; iptables would be programs that may not be there.
        (Option.NETWORK_LOCK, _NFTABLES),
    ]
    for name, number in (
        ("tcp-established", Option.TCP),
        ("tcp-skip-in-flight", Option.TCP_IN_FLIGHT),
        ("ext-unix-sk", Option.EXT_UNIX),
        ("shell-job", Option.SHELL_JOB),
        ("file-locks", Option.FILE_LOCKS),
        ("auto-dedup", Option.DEDUP),
    ):
        if switch(flags, name):
            fields.append((number, True))
    mode = text(flags, "manage-cgroups-mode")
    if mode:
        if mode not in _CGROUP_MODES:
            raise InvalidArgument(f"invalid manage-cgroups-mode '{mode}'")
        fields.append((Option.CGROUP_MODE, _CGROUP_MODES[mode]))
    kinds = texts(flags, "empty-ns")
    if any(kind != "network" for kind in kinds):
        raise InvalidArgument(f"namespace {kinds} is not supported by --empty-ns: only network is")
    if kinds:
        fields.append((Option.EMPTY_NS, kernel.CLONE_NEWNET))
    return fields


def check_possible(spec: Spec) -> None:
    """Refuse what CRIU would bring back as something else, or not at all."""
    if any(item.type == "user" for item in spec.linux.namespaces):
        # Its processes open the images as who they are, and these are root's alone.
        raise Unsupported("checkpoint and restore of a container in a user namespace")
    if spec.linux.net_devices:
        # They cannot be made again: they were moved here.
        raise Unsupported("checkpoint and restore of a container with network devices of the host")
    for mount in spec.mounts:
        if mount.uid_mappings or {"idmap", "ridmap"} & set(mount.options):
            # It would be bound as it is on the host: other people's files.
            raise Unsupported(
                f"checkpoint and restore of the id-mapped mount on '{mount.destination}'"
            )


def binds_of(spec: Spec) -> list[SpecMount]:
    """What comes from the host, and is to come from there again."""
    return [m for m in spec.mounts if m.type == "bind" or {"bind", "rbind"} & set(m.options)]


# --- checkpoint -----------------------------------------------------------------------------------


def checkpoint(root: str, flags: Flags, operands: list[str], tell: Tell) -> int:
    """Write the container to files; it ends, unless it is to go on."""
    if switch(flags, "help"):
        return help_of("checkpoint")
    directory = ContainerDir(root, one_operand(operands))
    directory.lock()
    record = directory.load()
    status = oci_state.status_of(directory, record)
    if status not in ("running", "paused"):
        raise InvalidState(f"Container cannot be checkpointed in {status} state")
    spec = decode_spec(directory.config(), "config.json")
    check_possible(spec)
    binary = criu.find_criu(text(flags, "criu"))
    goes_on = switch(flags, "leave-running") or switch(flags, "pre-dump")
    with ExitStack() as stack:
        images = image_path(flags)
        images_fd = open_directory(images, stack, make=True)
        work = os.path.abspath(text(flags, "work-path") or f"{directory.path}/criu.work")
        work_fd = open_directory(work, stack, make=True)
        fields = common_fields(flags, "dump.log")
        fields += [(Option.IMAGES, images_fd), (Option.WORK, work_fd), (Option.PID, record.pid)]
        fields += [(Option.ROOT, record.rootfs), (Option.LEAVE_RUNNING, goes_on)]
        fields += _memory_fields(flags)
        fields += [(Option.EXTERNAL, name) for name in other_namespaces(spec, record.pid)]
        freezer = find_freezer(record.cgroup)
        fields += [(Option.FREEZE, freezer)] if freezer else []
        if not switch(flags, "pre-dump"):
            fields += [(Option.EXTERNAL, name) for name in outer_mounts(spec, record.pid)]
            write_descriptors(images, record.pid)
        criu.ask(
            binary,
            criu.PRE_DUMP if switch(flags, "pre-dump") else criu.DUMP,
            fields,
            passed=(images_fd, work_fd),
            prepare=lambda: None,
            notified=lambda name, pid, fd: None,
            log=f"{work}/dump.log",
        )
    if not goes_on:
        for warning in destroy(directory, record):
            tell("warning", warning)
    return 0


def _memory_fields(flags: Flags) -> list[Field]:
    """Of dumps in several steps, and over the network."""
    fields: list[Field] = []
    parent = text(flags, "parent-path")
    if parent:
        if os.path.isabs(parent):
            raise InvalidArgument("--parent-path must be relative to the image path")
        if not os.path.isdir(os.path.join(image_path(flags), parent)):
            raise NotFound(f"--parent-path '{parent}' is not there")
        fields.append((Option.PARENT, parent))
    if parent or switch(flags, "pre-dump"):
        fields.append((Option.TRACK, True))
    server = text(flags, "page-server")
    if server:
        address, colon, port = server.rpartition(":")
        if not colon or not port.isdigit():
            raise InvalidArgument("use --page-server ADDRESS:PORT to specify the page server")
        fields.append((Option.PAGE_SERVER, criu.encode([(1, address), (2, int(port))])))
    return fields


def find_freezer(cgroup: str) -> str:
    """The cgroup by which CRIU stops all processes at once."""
    host = hierarchies()
    if host.mode is Mode.V2:
        return f"{host.unified}/{cgroup}"
    hierarchy = host.with_controller("freezer")
    return f"{hierarchy.directory}/{cgroup}" if hierarchy else ""


def other_namespaces(spec: Spec, pid: int) -> list[str]:
    """Those that the container has joined: CRIU leaves them to whoever has them."""
    found: list[str] = []
    for item in spec.linux.namespaces:
        if item.path and item.type in OTHERS:
            file, name = OTHERS[item.type]
            inode = os.stat(f"/proc/{pid}/ns/{file}").st_ino
            found.append(f"{file}[{inode}]:{name}")
    return found


def outer_mounts(spec: Spec, pid: int) -> list[str]:
    """Which mounts of the container CRIU is to leave alone, and the names by which they come back."""
    points: dict[str, str] = {}
    names: dict[str, str] = {}
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            point = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields[4])
            points[fields[0]] = point
            if fields[fields.index("-") + 1] in ("cgroup", "cgroup2"):
                names[point] = point
    with Root.at(f"/proc/{pid}/root") as root:
        places = {m.destination: points.get(_mount_id(root, m.destination)) for m in spec.mounts}
        for mount in binds_of(spec):
            top = places[mount.destination]
            if top is None:
                continue
            names[top] = mount.destination
            for point in points.values():  # what the host has below, which came with it
                if point.startswith(f"{top}/") and point not in places.values():
                    names[point] = mount.destination + point.removeprefix(top)
        for path in spec.linux.masked_paths:
            # CRIU knows no root of the file system that they are from: it is mounted nowhere.
            masked = points.get(_mount_id(root, path))
            if masked is not None and masked == os.path.normpath(path):
                is_directory = os.path.isdir(f"/proc/{pid}/root{masked}")
                names[masked] = MASK_DIRECTORY if is_directory else MASK_FILE
    return [f"mnt[{point}]:{name}" for point, name in names.items()]


def _mount_id(root: Root, path: str) -> str:
    try:
        with root.open(path, os.O_PATH) as fd, open(f"/proc/self/fdinfo/{fd.fileno()}") as file:
            return file.read().split("mnt_id:")[1].split()[0]
    except OSError:
        return ""  # covered since, or masked where there is nothing


def write_descriptors(images: str, pid: int) -> None:
    """Note what 0, 1 and 2 are, for whoever gives others in their place."""
    found: list[str] = []
    for fd in range(3):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            found.append("")  # closed
    with open(f"{images}/{DESCRIPTORS}", "wb") as file:
        file.write(msgspec.json.encode(found))
