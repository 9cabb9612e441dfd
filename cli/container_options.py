"""From the words of run and create to `ContainerOptions`, all values checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scow.cli.process_options import environment, every, one, size
from scow.cri import parse, parse_limits, parse_network, parse_storage
from scow.cri.options import (
    ContainerOptions,
    DeviceRate,
    Limits,
    LogOptions,
    Mount,
    NamespaceMode,
    NetworkOptions,
    Security,
)
from scow.cri.validate import validate
from scow.native.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from scow.cli.table import Values
    from scow.native.idmap import IdMap
    from scow.netns.ports import PortMapping


def container_options(
    values: Values, image: str, command: list[str], *, detach: bool
) -> ContainerOptions:
    """The options of one run or create."""
    mounts = [*every(values, "volume", parse_storage.parse_volume)]
    tmpfs = [*every(values, "tmpfs", parse_storage.parse_tmpfs)]
    for mount in every(values, "mount", parse_storage.parse_mount):
        (mounts if isinstance(mount, Mount) else tmpfs).append(mount)  # type: ignore[arg-type]  # sorted by type
    entrypoint = values.text("entrypoint")
    auto_ids, ids = _user_namespace(values)
    options = ContainerOptions(
        image_name=image,
        name=one(values, "name", parse.parse_name),
        command=tuple(parse.check_text("command", word, "argument") for word in command),
        entrypoint=None if entrypoint is None else (entrypoint,) if entrypoint else (),
        environment=environment(values),
        working_dir=one(values, "workdir", parse.parse_working_dir),
        user=one(values, "user", parse.parse_user) if values.text("user") else None,
        group_add=every(values, "group-add", parse.parse_user_or_group),
        hostname=one(values, "hostname", parse_network.parse_hostname),
        domainname=one(values, "domainname", parse_network.parse_hostname),
        labels=_labels(values),
        annotations=dict(every(values, "annotation", parse.parse_label)),
        terminal=values.flag("tty"),
        terminal_size=size() if values.flag("tty") else (24, 80),
        open_stdin=values.flag("interactive"),
        stdin_once=values.flag("interactive") and not detach,
        auto_remove=values.flag("rm"),
        read_only=values.flag("read-only"),
        init=values.flag("init"),
        mounts=tuple(mounts),
        tmpfs=tuple(tmpfs),
        devices=every(values, "device", parse_limits.parse_device),
        shm_bytes=one(values, "shm-size", parse.parse_size) or None,
        ulimits=every(values, "ulimit", parse_limits.parse_ulimit),
        sysctls=dict(every(values, "sysctl", parse_network.parse_sysctl)),
        oom_score_adj=one(values, "oom-score-adj", _oom_score),
        stop_signal=one(values, "stop-signal", parse.parse_signal),
        stop_timeout_s=one(values, "stop-timeout", parse.parse_timeout),
        cgroup_parent=one(values, "cgroup-parent", parse_limits.parse_cgroup_parent),
        limits=_limits(values),
        security=_security(values),
        network=_network(values),
        pid=_namespace(values, "pid", ("private", "host", "container")),
        ipc=_namespace(values, "ipc", ("private", "shareable", "none", "host", "container")),
        uts=_namespace(values, "uts", ("private", "host")),
        cgroup=_namespace(values, "cgroupns", ("private", "host")),
        auto_ids=auto_ids,
        ids=ids,
        log=_log(values),
    )
    validate(options)
    return options


def _labels(values: Values) -> dict[str, str]:
    labels: dict[str, str] = {}
    for path in values.many("label-file"):
        labels.update(parse.read_label_file("--label-file", path))
    labels.update(every(values, "label", parse.parse_label))
    return labels


def _oom_score(option: str, text: str) -> int:
    return parse.parse_int(option, text, low=-1000, high=1000)


def _swappiness(option: str, text: str) -> int | None:
    value = parse.parse_int(option, text, low=-1, high=100, note="0 to 100, or -1 for the default")
    return None if value < 0 else value


def _user_namespace(values: Values) -> tuple[bool, IdMap | None]:
    given = values.text("userns"), values.many("uidmap"), values.many("gidmap")
    if not any(given):
        return False, None
    from scow.cri.userns import parse_user_namespace

    return parse_user_namespace(*given)


def _namespace(values: Values, key: str, kinds: tuple[str, ...]) -> NamespaceMode:
    text = values.text(key)
    if not text:
        return NamespaceMode("private")
    return parse_network.parse_namespace("--" + key, text, kinds)


def _limits(values: Values) -> Limits:
    def rates(key: str) -> tuple[DeviceRate, ...]:
        is_bytes = key.endswith("bps")
        return every(
            values, key, lambda o, t: parse_limits.parse_device_rate(o, t, is_bytes=is_bytes)
        )

    return Limits(
        memory_bytes=one(values, "memory", parse_limits.parse_memory),
        memory_swap_bytes=one(values, "memory-swap", parse_limits.parse_memory_swap),
        memory_reservation_bytes=one(values, "memory-reservation", parse_limits.parse_memory),
        memory_swappiness=one(values, "memory-swappiness", _swappiness),
        nano_cpus=one(values, "cpus", parse_limits.parse_cpus),
        cpu_shares=one(values, "cpu-shares", parse_limits.parse_cpu_shares),
        cpu_period_us=one(values, "cpu-period", parse_limits.parse_cpu_period),
        cpu_quota_us=one(values, "cpu-quota", parse_limits.parse_cpu_quota),
        cpuset_cpus=one(values, "cpuset-cpus", parse_limits.parse_cpuset),
        cpuset_mems=one(
            values, "cpuset-mems", lambda o, t: parse_limits.parse_cpuset(o, t, kind="node")
        ),
        pids=one(values, "pids-limit", parse_limits.parse_pids),
        blkio_weight=one(values, "blkio-weight", parse_limits.parse_blkio_weight),
        device_read_bps=rates("device-read-bps"),
        device_write_bps=rates("device-write-bps"),
        device_read_iops=rates("device-read-iops"),
        device_write_iops=rates("device-write-iops"),
    )


def _security(values: Values) -> Security:
    settings: dict[str, str | bool] = {}
    for text in values.many("security-opt"):
        key, value = _security_option(text)
        if key in settings:
            raise InvalidArgument(f"invalid --security-opt {parse.quote(text)}: it is given twice")
        if key:
            settings[key] = value
    return Security(
        cap_add=every(values, "cap-add", parse.parse_capability),
        cap_drop=every(values, "cap-drop", parse.parse_capability),
        privileged=values.flag("privileged"),
        **settings,  # type: ignore[arg-type]  # the keys are fields of the right types
    )


def _security_option(text: str) -> tuple[str, str | bool]:
    """The field of `Security` and its value; an empty field for what is so already."""
    import os

    name, separator, value = text.partition("=")
    if not separator:
        name, separator, value = text.partition(":")
    if name == "no-new-privileges":
        return "no_new_privileges", parse.parse_bool("--security-opt", value) if separator else True
    if text == "systempaths=unconfined":
        return "unmask", True
    if name == "seccomp" and value:
        if value in ("unconfined", "builtin"):
            return ("seccomp", value) if value == "unconfined" else ("", "")
        if not os.path.isfile(value):
            raise InvalidArgument(
                f"invalid --security-opt {parse.quote(text)}: no such profile file"
            )
        return "seccomp", os.path.abspath(value)
    if name == "apparmor" and value:
        if value != "unconfined":
            from scow.runtime.oci_labels import check_profile

            check_profile(value)
        return "apparmor", value
    if name == "label" and value:
        if value == "disable" or not os.path.exists("/sys/fs/selinux/enforce"):
            if value == "disable":
                return "", ""
            raise Unsupported(
                f"invalid --security-opt {parse.quote(text)}: SELinux is not enabled on this host"
            )
        raise Unsupported(
            f"invalid --security-opt {parse.quote(text)}: scow does not set SELinux labels"
        )
    raise parse.invalid(
        "--security-opt",
        text,
        "one of no-new-privileges, seccomp=FILE, seccomp=unconfined, apparmor=PROFILE, "
        "apparmor=unconfined, systempaths=unconfined",
    )


def _network(values: Values) -> NetworkOptions:
    return NetworkOptions(
        mode=parse_network.parse_network("--network", values.text("network") or "bridge"),
        ports=_ports(values.many("publish")),
        ip=one(values, "ip", parse_network.parse_ipv4),
        mac=one(values, "mac-address", parse_network.parse_mac),
        dns=every(values, "dns", parse_network.parse_ip),
        dns_search=every(values, "dns-search", parse_network.parse_dns_search),
        dns_options=every(values, "dns-option", parse_network.parse_dns_option),
        extra_hosts=every(values, "add-host", parse_network.parse_add_host),
    )


def _ports(texts: list[str]) -> tuple[PortMapping, ...]:
    if not texts:
        return ()
    from scow.netns.ports import parse_ports

    return tuple(parse_ports(texts))


def _log(values: Values) -> LogOptions:
    max_bytes, max_files = LogOptions().max_bytes, LogOptions().max_files
    for text in values.many("log-opt"):
        key, _, value = text.partition("=")
        if key == "max-size":
            max_bytes = parse.parse_size("--log-opt max-size", value, minimum=4096)
        elif key == "max-file":
            max_files = parse.parse_int("--log-opt max-file", value, low=1, high=1000)
        else:
            raise parse.invalid("--log-opt", text, "max-size=SIZE or max-file=NUMBER")
    return LogOptions(max_bytes, max_files)
