"""What a client asks for, from CRI's messages to the options of our own service.

Every rule of CRI about form is here; what must be looked up in an image or on the host is not, but for
paths whose existence is asked for. Absent messages mean their zeros, as in proto3.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scow.cri import parse
from scow.cri.api.resources import limits_of, plain, sum_limits
from scow.cri.api.security import check_sandbox, container_security, user_of
from scow.cri.options import (
    ContainerOptions,
    Device,
    LogOptions,
    Mount,
    NamespaceMode,
    NetworkOptions,
)
from scow.cri.parse_network import parse_hostname
from scow.cri.pod_records import PodMetadata, PodOptions, PodRecord, container_name
from scow.cri.records import Member, Plain
from scow.cri.userns import check_id_map
from scow.native.errors import InvalidArgument, Unsupported
from scow.native.idmap import IdMap
from scow.netns.ports import PortMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scow.cri.api.message import Message

HANDLERS = ("", "scow")
_PROPAGATION = {
    "PROPAGATION_PRIVATE": "rprivate",
    "PROPAGATION_HOST_TO_CONTAINER": "rslave",
    "PROPAGATION_BIDIRECTIONAL": "rshared",
}
_MOUNT_OPTIONS = frozenset({"noexec", "nodev", "nosuid"})
_MODES = {"POD": "pod", "CONTAINER": "container", "NODE": "host"}


def need(message: Message | None, name: str) -> Message:
    """A message that must be there."""
    if message is None:
        raise InvalidArgument(f"the request has no {name}")
    return message


# --- pods -----------------------------------------------------------------------------------------


def pod_options(config: Message, handler: str) -> PodOptions:
    """Read a PodSandboxConfig."""
    metadata = need(config.metadata, "config.metadata")
    if not metadata.name:
        raise InvalidArgument("the request has no config.metadata.name")
    if handler not in HANDLERS:
        raise InvalidArgument(
            f"unknown runtime handler '{handler[:64]}'", hint="leave it empty, or say 'scow'"
        )
    linux = config.linux
    security = linux.security_context if linux is not None else None
    check_sandbox(security)
    modes = _pod_modes(security.namespace_options if security is not None else None)
    network, pid, ipc = modes
    ids = user_namespace(security.namespace_options if security is not None else None)
    if ids is not None and "host" in modes:
        raise InvalidArgument(
            "a pod with a user namespace needs network and ipc POD, and a pid namespace that is not "
            "the NODE's: it has rights in namespaces of its own only"
        )
    if network == "host" and config.hostname and config.hostname != os.uname().nodename:
        raise InvalidArgument(
            f"cannot name a pod in the host's network '{config.hostname[:64]}': it would rename "
            "the host",
            hint="leave config.hostname empty",
        )
    dns = config.dns_config
    return PodOptions(
        metadata=PodMetadata(metadata.name, metadata.uid, metadata.namespace, metadata.attempt),
        hostname=_hostname(config.hostname),
        log_directory=_log_directory(config.log_directory),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        runtime_handler=handler,
        dns_servers=tuple(dns.servers) if dns is not None else (),
        dns_searches=tuple(dns.searches) if dns is not None else (),
        dns_options=tuple(dns.options) if dns is not None else (),
        has_dns=dns is not None,
        ports=_ports(config.port_mappings) if network == "own" else (),
        network=network,
        pid=pid,
        ipc=ipc,
        sysctls=_sysctls(dict(linux.sysctls) if linux is not None else {}),
        privileged=bool(security is not None and security.privileged),
        ids=ids,
        cgroup_parent=_cgroup_parent(linux.cgroup_parent if linux is not None else ""),
        limits=sum_limits(
            *((linux.resources, linux.overhead) if linux is not None else (None, None))
        ),
        resources=plain(linux.resources if linux is not None else None),
        overhead=plain(linux.overhead if linux is not None else None),
    )


def _pod_modes(options: Message | None) -> tuple[str, str, str]:
    if options is None:
        return "own", "pod", "pod"
    network, pid, ipc = options.network, options.pid, options.ipc
    for name, mode, allowed in (
        ("network", network, ("POD", "NODE")),
        ("ipc", ipc, ("POD", "NODE")),
        ("pid", pid, ("POD", "CONTAINER", "NODE")),
    ):
        if mode not in allowed:
            raise InvalidArgument(f"a pod's {name} namespace cannot be of mode {mode}")
    return "own" if network == "POD" else "host", _MODES[pid], _MODES[ipc]


def user_namespace(options: Message | None) -> IdMap | None:
    """The ids of a user namespace; None where nothing is said, or the node's are meant.

    Mode POD is what is said by saying nothing: without any mapping it means no namespace.
    """
    users = options.userns_options if options is not None else None
    if users is None:
        return None
    if users.mode not in ("POD", "NODE"):
        raise InvalidArgument(f"a user namespace cannot be of mode {users.mode}")
    if not users.uids and not users.gids:
        return None
    if users.mode == "NODE":
        raise InvalidArgument("userns_options of mode NODE have id mappings")
    if len(users.uids) != 1 or len(users.gids) != 1:
        raise InvalidArgument("userns_options need one mapping of uids and one of gids")
    return IdMap(
        check_id_map("userns_options.uids", _map(users.uids)),
        check_id_map("userns_options.gids", _map(users.gids)),
    )


def _hostname(text: str) -> str:
    return parse_hostname("config.hostname", text) if text else ""


def _log_directory(path: str) -> str:
    if path and not path.startswith("/"):
        raise InvalidArgument(f"config.log_directory '{path[:256]}' is not an absolute path")
    return os.path.normpath(path) if path else ""


def _cgroup_parent(path: str) -> str:
    text = path.strip("/")
    if text.endswith(".slice") and "/" not in text:
        raise Unsupported(
            f"cgroup parent '{path[:256]}' is a systemd slice",
            hint="this runtime uses the cgroupfs driver: RuntimeConfig tells it",
        )
    return text


def _ports(mappings: Sequence[Message]) -> tuple[PortMapping, ...]:
    found: list[PortMapping] = []
    for mapping in mappings:
        if not 0 < mapping.container_port < 65536 or not 0 <= mapping.host_port < 65536:
            raise InvalidArgument(
                f"port {mapping.host_port}:{mapping.container_port} is not between 1 and 65535"
            )
        if not mapping.host_port:
            continue  # only said to be listened on
        if mapping.protocol == "SCTP":
            raise Unsupported("cannot publish an SCTP port, only TCP and UDP")
        address = mapping.host_ip or "0.0.0.0"
        if ":" in address:
            raise Unsupported(f"cannot publish on '{address[:64]}': pods are IPv4 only for now")
        found.append(
            PortMapping(
                address, mapping.host_port, mapping.container_port, mapping.protocol.lower()
            )
        )
    return tuple(found)


def _sysctls(given: dict[str, str]) -> dict[str, str]:
    for key, value in given.items():
        if not value or any(not c.isprintable() for c in value if c not in "\t"):
            raise InvalidArgument(f"value of sysctl '{key[:128]}' is empty or not printable")
    return given


# --- containers -----------------------------------------------------------------------------------


def container_options(
    config: Message, pod: PodRecord, target: Callable[[str], str], image_id: Callable[[str], str]
) -> tuple[ContainerOptions, Member]:
    """Read a ContainerConfig. `target` gives the id of a container of this pod, `image_id` that of
    an image."""
    metadata = need(config.metadata, "config.metadata")
    if not metadata.name:
        raise InvalidArgument("the request has no config.metadata.name")
    image = need(config.image, "config.image")
    linux = config.linux
    security = linux.security_context if linux is not None else None
    resources = linux.resources if linux is not None else None
    if config.CDI_devices:
        raise Unsupported("CDI devices are not supported by this runtime")
    user, groups, policy = user_of(security)
    log = log_path(pod.options.log_directory, config.log_path)
    pid, ipc = _container_modes(security, pod, target)
    options = ContainerOptions(
        image_name=image.user_specified_image or image.image,
        name=container_name(pod.id, metadata.name, metadata.attempt),
        command=tuple(config.args),
        entrypoint=tuple(config.command) if config.command else None,
        environment=tuple(_variable(item.key, item.value) for item in config.envs),
        working_dir=_working_dir(config.working_dir),
        user=user,
        group_add=groups,
        group_policy=policy,
        hostname=pod.options.hostname or (pod.id[:12] if pod.options.network == "own" else None),
        annotations=dict(config.annotations),
        terminal=config.tty,
        open_stdin=config.stdin,
        stdin_once=config.stdin_once,
        read_only=bool(security is not None and security.readonly_rootfs),
        mounts=tuple(_mount(mount, image_id) for mount in config.mounts),
        devices=tuple(_device(device) for device in config.devices),
        oom_score_adj=_oom_score_adj(resources),
        stop_signal=stop_signal(config.stop_signal),
        limits=limits_of(resources),
        security=container_security(security, pod.options),
        network=NetworkOptions(mode=NamespaceMode("pod")),
        pid=pid,
        ipc=ipc,
        uts=NamespaceMode("pod"),
        ids=_container_ids(security, pod),
        # Who asked for a log of its own rotates it: ReopenContainerLog.
        log=LogOptions(max_bytes=0, max_files=1) if log else LogOptions(),
    )
    member = Member(
        pod_id=pod.id,
        name=metadata.name,
        attempt=metadata.attempt,
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        image=plain(image),
        mounts=tuple(_shown_mount(mount, image_id) for mount in config.mounts),
        resources=plain(resources),
        log_path=log,
        stop_signal=config.stop_signal,
    )
    return options, member


def _container_ids(security: Message | None, pod: PodRecord) -> IdMap | None:
    """The pod's; what a container says of its own must be the same."""
    asked = security.namespace_options if security is not None else None
    users = asked.userns_options if asked is not None else None
    ids = pod.options.ids
    if (
        users is not None
        and (user_namespace(asked) or (ids if users.mode == "POD" else None)) != ids
    ):
        raise InvalidArgument(
            f"userns_options of the container are not those of pod '{pod.options.metadata.name}'",
            hint="leave them out: the container has what its pod has",
        )
    return ids


def _container_modes(
    security: Message | None, pod: PodRecord, target: Callable[[str], str]
) -> tuple[NamespaceMode, NamespaceMode]:
    """The PID and IPC namespaces; a container that says nothing has what its pod says."""
    asked = security.namespace_options if security is not None else None
    shared = NamespaceMode("pod" if pod.options.ipc == "pod" else "host")
    if asked is None:
        names = {"pod": "pod", "container": "private", "host": "host"}
        return NamespaceMode(names[pod.options.pid]), shared
    if asked.ipc not in ("POD", "NODE"):
        raise InvalidArgument(f"a container's ipc namespace cannot be of mode {asked.ipc}")
    if asked.ipc == "NODE" and pod.options.ids is not None:
        raise InvalidArgument("ipc NODE excludes the user namespace of the pod")
    ipc = NamespaceMode("host") if asked.ipc == "NODE" else shared
    match asked.pid:
        case "CONTAINER":
            return NamespaceMode("private"), ipc
        case "NODE" if pod.options.ids is None:
            return NamespaceMode("host"), ipc
        case "NODE":
            raise InvalidArgument("pid NODE excludes the user namespace of the pod")
        case "TARGET":
            return NamespaceMode("container", target(asked.target_id)), ipc
        case _:
            if pod.options.pid == "host":
                return NamespaceMode("host"), ipc
            if pod.options.pid != "pod":
                raise InvalidArgument(
                    f"pod '{pod.options.metadata.name}' shares no PID namespace",
                    hint="ask for pid CONTAINER, or make the pod with pid POD",
                )
            return NamespaceMode("pod"), ipc


def _variable(key: str, value: bytes) -> str:
    if not key or "=" in key or "\0" in key or b"\0" in value:
        raise InvalidArgument(f"'{key[:64]}' is not the name of an environment variable")
    return f"{key}={os.fsdecode(value)}"


def _working_dir(path: str) -> str | None:
    return parse.parse_working_dir("config.working_dir", path) if path else None


def _oom_score_adj(resources: Message | None) -> int | None:
    if resources is None or not resources.oom_score_adj:
        return None
    if not -1000 <= resources.oom_score_adj <= 1000:
        raise InvalidArgument(f"oom_score_adj {resources.oom_score_adj} is not in -1000 to 1000")
    return int(resources.oom_score_adj)


def stop_signal(name: str) -> int | None:
    """`SIGNAL_SIGRTMINPLUS3` as a number; None for the default."""
    if name == "SIGNAL_RUNTIME_DEFAULT":
        return None
    text = name.removeprefix("SIGNAL_").replace("PLUS", "+").replace("MINUS", "-")
    return parse.parse_signal("config.stop_signal", text)


def _device(device: Message) -> Device:
    if set(device.permissions) - set("rwm"):
        raise InvalidArgument(f"permissions '{device.permissions[:16]}' are not made of r, w and m")
    return Device(
        _absolute("device host_path", device.host_path),
        _absolute("device container_path", device.container_path or device.host_path),
        "".join(sorted(device.permissions)) or "rwm",
    )


def _absolute(what: str, path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"{what} '{path[:256]}' is not an absolute path")
    return path


def _mount(mount: Message, image_id: Callable[[str], str]) -> Mount:
    target = _absolute("mount container_path", mount.container_path)
    for option in mount.mount_options:
        if option not in _MOUNT_OPTIONS:
            raise InvalidArgument(
                f"invalid option '{option[:64]}' of the mount on '{target}'",
                hint=f"one of {', '.join(sorted(_MOUNT_OPTIONS))}",
            )
    flags = tuple(mount.mount_options)
    if mount.image is not None and mount.image.image:
        return _image_mount(mount, target, flags, image_id)
    if mount.image_sub_path:
        raise InvalidArgument(f"image_sub_path of the mount on '{target}' without an image")
    if mount.recursive_read_only and not (
        mount.readonly and mount.propagation == "PROPAGATION_PRIVATE"
    ):
        raise InvalidArgument(
            f"recursive_read_only of the mount on '{target}' needs readonly and PROPAGATION_PRIVATE"
        )
    source = _absolute("mount host_path", mount.host_path)
    if not os.path.exists(source):
        raise InvalidArgument(f"cannot mount '{source[:256]}': it does not exist on the host")
    _check_propagation(source, mount.propagation)
    uids, gids = _map(mount.uidMappings), _map(mount.gidMappings)
    if bool(uids) != bool(gids):
        raise InvalidArgument(f"mount on '{target}': uidMappings and gidMappings come together")
    return Mount(
        "bind",
        source,
        target,
        read_only=mount.readonly,
        propagation=_PROPAGATION[mount.propagation],
        top_only=not mount.recursive_read_only,
        flags=flags,
        uid_map=uids,
        gid_map=gids,
    )


def _image_mount(
    mount: Message, target: str, flags: tuple[str, ...], image_id: Callable[[str], str]
) -> Mount:
    if mount.host_path:
        raise InvalidArgument(f"the mount on '{target}' has both an image and a host_path")
    return Mount(
        "image",
        image_id(mount.image.image),
        target,
        read_only=True,
        top_only=True,
        flags=flags,
        sub_path=mount.image_sub_path,
    )


def _shown_mount(mount: Message, image_id: Callable[[str], str]) -> Plain:
    """A mount as ContainerStatus tells it: as it came, and of an image which one that was."""
    shown = plain(mount)
    if mount.image is not None and mount.image.image:
        shown["image"] = {**plain(mount.image), "image_ref": image_id(mount.image.image)}
    return shown


def _map(mappings: Sequence[Message]) -> tuple[tuple[int, int, int], ...]:
    return tuple((m.container_id, m.host_id, m.length) for m in mappings)


def _check_propagation(source: str, propagation: str) -> None:
    """Mounts travel only where the source's mount is in a peer group (mount_namespaces(7))."""
    if propagation == "PROPAGATION_PRIVATE":
        return
    fields = _propagation_of(source)
    if "shared:" not in fields and (
        propagation == "PROPAGATION_BIDIRECTIONAL" or "master:" not in fields
    ):
        raise InvalidArgument(
            f"cannot mount '{source}' with {propagation}: its mount on the host is private",
            hint="mount --make-rshared on it first",
        )


def _propagation_of(path: str) -> str:
    """The optional fields of the mount that a path lies on, from mountinfo (proc(5))."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    real = os.path.realpath(path)
    best, found = -1, ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            point = fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            # The last one of those on the longest mount point is the one that is seen.
            if inside and fields[2] == wanted and len(point) >= best:
                best, found = len(point), " ".join(fields[6 : fields.index("-")])
    return found


def log_path(directory: str, path: str) -> str:
    """Where a container's log is written; "" where its pod has no log directory."""
    if not directory or not path:
        return ""
    full = os.path.normpath(f"{directory}/{path}")
    if path.startswith("/") or not full.startswith(f"{directory.rstrip('/')}/"):
        raise InvalidArgument(f"config.log_path '{path[:256]}' leads out of the log directory")
    return full


def refuse_own(what: str, paths: Iterable[str], places: Sequence[str]) -> None:
    """Refuse paths that lead into our own state: a container in it could undo all others."""
    for path in paths:
        real = os.path.realpath(path)
        for place in places:
            if f"{real}/".startswith(f"{os.path.realpath(place)}/"):
                raise InvalidArgument(f"{what} '{path[:256]}' is in scow's own directory '{place}'")
