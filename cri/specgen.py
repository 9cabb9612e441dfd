"""From a container's record to its OCI configuration (config.json).

Every default that makes a container a scow container is chosen here: mounts, namespaces, devices,
limits, covered paths. The result is a plain runtime-spec document that any OCI runtime would take.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import msgspec

from scow.cgroups.resources import Resources
from scow.cri import limits
from scow.cri.options import Device as DeviceOption
from scow.cri.options import Mount, Tmpfs
from scow.cri.records import Record
from scow.cri.sandbox import Sandbox
from scow.cri.userns import ping_group_range
from scow.native.errors import InvalidArgument, NotFound
from scow.runtime.security import (
    DEFAULT_DEVICES,
    READONLY_PATHS,
    combine_capabilities,
    mask_of,
    masked_paths,
    names_of,
)
from scow.runtime.spec import (
    Capabilities,
    ConsoleSize,
    Device,
    Linux,
    Process,
    ProcessUser,
    Rlimit,
    RootFilesystem,
    Spec,
    SpecMount,
)
from scow.runtime.users import User

OCI_VERSION = "1.2.0"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHM_BYTES = 64 << 20
# 1024 soft keeps select(2) programs alive, 524288 hard is systemd's; no core files unless asked.
_DEFAULT_NOFILE = (1024, 524288)
_UNLIMITED = 2**64 - 1

_REASONS = {
    "/proc": "the processes of its own PID namespace only",
    "/dev": "a /dev of its own, with nothing of the host's in it",
    "/dev/pts": "its own terminals",
    "/dev/shm": "its own shared memory, with a size limit",
    "/dev/mqueue": "its own POSIX message queues",
    "/sys": "the kernel's objects, read-only",
    "/sys/fs/cgroup": "its own limits, to read",
}


class Generated(msgspec.Struct, frozen=True):
    """A configuration; its limits, typed; and words for --explain by mount point."""

    spec: Spec
    resources: Resources
    reasons: dict[str, str]


def build_spec(
    record: Record,
    user: User,
    sandbox: Sandbox,
    cgroup_path: str,
    volume_dir: Callable[[str], str],
) -> Generated:
    """Build the configuration of a container."""
    options = record.options
    security = options.security
    privileged = security.privileged
    covered = not (privileged or security.unmask)
    mounts = _mounts(record, sandbox, volume_dir)
    devices, device_rules = _devices(options.devices, privileged=privileged)
    spec = Spec(
        oci_version=OCI_VERSION,
        root=RootFilesystem(path="rootfs", readonly=options.read_only),
        process=build_process(record, user),
        hostname=sandbox.hostname,
        domainname=options.domainname or "",
        mounts=tuple(mounts),
        annotations=dict(options.annotations),
        linux=Linux(
            namespaces=sandbox.namespaces,
            devices=tuple(devices),
            cgroups_path=cgroup_path,
            sysctl=_sysctls(record, sandbox),
            masked_paths=_given(security.masked_paths, masked_paths) if covered else (),
            readonly_paths=(
                _given(security.readonly_paths, lambda: READONLY_PATHS) if covered else ()
            ),
            rootfs_propagation="private",
        ),
    )
    resources = limits.build_resources(options.limits, device_rules, privileged=privileged)
    return Generated(spec, resources, _REASONS)


def _given(
    paths: tuple[str, ...] | None, default: Callable[[], tuple[str, ...]]
) -> tuple[str, ...]:
    return default() if paths is None else paths


def build_process(record: Record, user: User) -> Process:
    """Build the description of the container's first process."""
    options = record.options
    security = options.security
    held = combine_capabilities(security.cap_add, security.cap_drop, privileged=security.privileged)
    rows, columns = options.terminal_size
    return Process(
        cwd=record.working_dir,
        args=record.argv,
        env=_environment(record, user),
        terminal=options.terminal,
        console_size=ConsoleSize(height=rows, width=columns) if options.terminal else None,
        user=ProcessUser(uid=user.uid, gid=user.gid, umask=0o022, additional_gids=user.groups),
        capabilities=build_capabilities(held, security.cap_ambient),
        rlimits=_rlimits(record),
        no_new_privileges=security.no_new_privileges,
        apparmor_profile=apparmor_profile(record),
        oom_score_adj=_oom_score_adj(options.oom_score_adj),
    )


def _oom_score_adj(wanted: int | None) -> int | None:
    # It is inherited: what protects a service (OOMScoreAdjust= of its unit) is not for containers.
    if wanted is None:
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            return 0 if file.read(1) == "-" else None
    return wanted


def apparmor_profile(record: Record) -> str:
    """The profile that the container's programs are put under; "" for none."""
    security = record.options.security
    return "" if security.apparmor in (None, "unconfined") else security.apparmor


def build_capabilities(held: frozenset[str], ambient: tuple[str, ...] = ()) -> Capabilities:
    """Give the five sets: inheritable and ambient stay empty unless asked for (CVE-2022-24769)."""
    ordered = tuple(f"CAP_{name}" for name in names_of(mask_of(held)))
    # capabilities(7): what is ambient must be permitted and inheritable.
    raised = tuple(f"CAP_{name}" for name in names_of(mask_of(held & frozenset(ambient))))
    return Capabilities(
        bounding=ordered,
        effective=ordered,
        permitted=ordered,
        inheritable=raised,
        ambient=raised,
    )


def _environment(record: Record, user: User) -> tuple[str, ...]:
    """Merge defaults, image and options; the last of each name wins, the first place is kept."""
    merged: dict[str, str] = {"PATH": DEFAULT_PATH}
    if record.options.uts.kind != "host":
        merged["HOSTNAME"] = record.options.hostname or record.id[:12]
    if record.options.terminal:
        merged["TERM"] = "xterm"
    for entry in record.env:
        key, _, value = entry.partition("=")
        merged[key] = value
    if not merged.get("HOME"):
        merged["HOME"] = user.home
    return tuple(f"{key}={value}" for key, value in merged.items())


def _rlimits(record: Record) -> tuple[Rlimit, ...]:
    import resource

    given = {limit.oci_name: limit for limit in record.options.ulimits}
    found = [
        Rlimit(
            limit.oci_name,
            _UNLIMITED if limit.soft < 0 else limit.soft,
            _UNLIMITED if limit.hard < 0 else limit.hard,
        )
        for limit in record.options.ulimits
    ]
    if "RLIMIT_NOFILE" not in given:
        # Never above what we may hand out: raising a hard limit needs CAP_SYS_RESOURCE.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        top = _DEFAULT_NOFILE[1] if hard < 0 else min(_DEFAULT_NOFILE[1], hard)
        found.append(Rlimit("RLIMIT_NOFILE", min(_DEFAULT_NOFILE[0], top), top))
    if "RLIMIT_CORE" not in given:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        found.append(Rlimit("RLIMIT_CORE", 0, _UNLIMITED if hard < 0 else hard))
    return tuple(found)


def _sysctls(record: Record, sandbox: Sandbox) -> dict[str, str]:
    found: dict[str, str] = {}
    if sandbox.own_network:
        # Ports below 1024 and ping without rights: the namespace is the container's own.
        found["net.ipv4.ip_unprivileged_port_start"] = "0"
        found["net.ipv4.ping_group_range"] = ping_group_range(sandbox.ids)
    found.update(sandbox.sysctls)
    found.update(record.options.sysctls)
    return found


def _mounts(record: Record, sandbox: Sandbox, volume_dir: Callable[[str], str]) -> list[SpecMount]:
    options = record.options
    writable = "rw" if options.security.privileged else "ro"
    shm = options.shm_bytes or DEFAULT_SHM_BYTES
    found = [
        SpecMount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
        SpecMount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        SpecMount(
            "/dev/pts",
            "devpts",
            "devpts",
            ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *_tty_group(sandbox)),
        ),
        SpecMount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
        SpecMount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", writable)),
        SpecMount("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", writable)),
    ]
    if sandbox.shm_source:
        found.append(SpecMount("/dev/shm", "bind", sandbox.shm_source, ("bind", "nosuid", "nodev")))
    else:
        found.append(
            SpecMount(
                "/dev/shm",
                "tmpfs",
                "shm",
                ("nosuid", "noexec", "nodev", "mode=1777", f"size={shm}"),
            )
        )
    taken = {mount.target for mount in options.mounts} | {mount.target for mount in options.tmpfs}
    for name in ("hosts", "hostname", "resolv.conf"):
        if f"/etc/{name}" not in taken:
            source = f"{sandbox.etc_dir}/{name}"
            found.append(SpecMount(f"/etc/{name}", "bind", source, ("bind", "nodev", "rprivate")))
    # Parents before children, whatever the order of the flags (Docker sorts them too).
    asked: list[tuple[str, SpecMount]] = [
        *((mount.target, _tmpfs(mount)) for mount in options.tmpfs),
        *((mount.target, _bind(mount)) for mount in options.mounts if mount.kind != "volume"),
    ]
    asked += [
        (use.target, _volume(record, volume_dir(use.name), use.target)) for use in record.volumes
    ]
    asked.sort(key=lambda item: item[0].rstrip("/").count("/"))
    return [mount for mount in found if mount.destination not in taken] + [m for _, m in asked]


def _tty_group(sandbox: Sandbox) -> tuple[str, ...]:
    ids = sandbox.ids
    is_mapped = ids is None or any(inside <= 5 < inside + count for inside, _, count in ids.gid)
    return ("gid=5",) if is_mapped else ()


def _tmpfs(mount: Tmpfs) -> SpecMount:
    options = [f"mode={mount.mode:o}"]
    options += [
        name
        for name, wanted in (
            ("nosuid", mount.nosuid),
            ("nodev", mount.nodev),
            ("noexec", mount.noexec),
            ("ro", mount.read_only),
        )
        if wanted
    ]
    for name, value in (
        ("size", mount.size_bytes),
        ("uid", mount.uid),
        ("gid", mount.gid),
        ("nr_inodes", mount.inodes),
    ):
        if value is not None:
            options.append(f"{name}={value}")
    return SpecMount(mount.target, "tmpfs", "tmpfs", tuple(options))


def _bind(mount: Mount) -> SpecMount:
    options = ["rbind" if mount.recursive else "bind", mount.propagation, *mount.flags]
    if mount.read_only:
        # Recursive: a read-only directory with writable mounts below it would surprise.
        options.append("rro" if mount.recursive and not mount.top_only else "ro")
    return SpecMount(mount.target, "bind", mount.source, tuple(options))


def _volume(record: Record, source: str, target: str) -> SpecMount:
    asked = next(
        (m for m in record.options.mounts if m.kind == "volume" and m.target == target), None
    )
    options = ["rbind", "rprivate", "nodev"]
    if asked is not None and asked.read_only:
        options.append("rro")
    return SpecMount(target, "bind", source, tuple(options))


def _devices(
    asked: tuple[DeviceOption, ...], *, privileged: bool
) -> tuple[list[Device], list[limits.Rule]]:
    found = [
        Device(path=path, type="c", major=major, minor=minor, file_mode=0o666)
        for path, major, minor in DEFAULT_DEVICES
    ]
    rules: list[limits.Rule] = []
    if privileged:
        known = {device.path for device in found}
        found += [device for device in _host_devices() if device.path not in known]
    for option in asked:
        device = _host_device(option.host_path, option.container_path)
        found.append(device)
        rules.append((device.type, device.major, device.minor, option.permissions))
    return found, rules


def _host_device(host_path: str, container_path: str) -> Device:
    try:
        info = os.stat(host_path)
    except OSError as error:
        raise NotFound(f"cannot add device '{host_path}': {error.strerror}") from error
    if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        raise InvalidArgument(f"cannot add device '{host_path}': it is not a device node")
    return Device(
        path=container_path,
        type="c" if stat.S_ISCHR(info.st_mode) else "b",
        major=os.major(info.st_rdev),
        minor=os.minor(info.st_rdev),
        file_mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
    )


_NOT_FOR_PRIVILEGED = frozenset({"pts", "shm", "mqueue", "fd", "console", "ptmx", "tty"})


def _host_devices() -> list[Device]:
    """Describe the device nodes directly in the host's /dev and one level below, for --privileged."""
    found: list[Device] = []
    for base, names, files in os.walk("/dev"):
        names[:] = [] if base != "/dev" else [n for n in names if n not in _NOT_FOR_PRIVILEGED]
        for name in files:
            path = f"{base}/{name}"
            mode = os.lstat(path).st_mode
            if name not in _NOT_FOR_PRIVILEGED and (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
                found.append(_host_device(path, path))
    return found
