"""A container described in Docker's shape, so that scripts written for `docker inspect` work."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from scow.cri.records import Record, RecordStore
from scow.cri.status import Status
from scow.cri.views import view
from scow.cri.volumes import VolumeStore
from scow.native.idmap import IdMap
from scow.runtime.state import State

_NEVER = "0001-01-01T00:00:00Z"


def time_text(time_ns: int) -> str:
    """Give a time as Docker prints it: RFC 3339 with nanoseconds, UTC."""
    if not time_ns:
        return _NEVER
    whole = datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{time_ns % 10**9:09d}Z"


def describe(
    record: Record, status: Status, store: RecordStore, volumes: VolumeStore
) -> dict[str, object]:
    """Describe a container."""
    etc = f"{store.run_dir(record.id)}/"
    return {
        "Id": record.id,
        "Created": time_text(record.created_ns),
        "Path": record.argv[0],
        "Args": list(record.argv[1:]),
        "State": _state(status),
        "Image": record.image_id,
        "ResolvConfPath": f"{etc}resolv.conf",
        "HostnamePath": f"{etc}hostname",
        "HostsPath": f"{etc}hosts",
        "LogPath": store.log_path(record),
        "Name": f"/{record.name}",
        "RestartCount": 0,
        "Driver": "overlay",
        "Platform": "linux",
        "CgroupPath": record.cgroup,
        "HostConfig": _host_config(record),
        "Mounts": _mounts(record, volumes),
        "Config": _config(record),
        "NetworkSettings": _network(record, status, store),
    }


def _state(status: Status) -> dict[str, Any]:
    state = status.state
    return {
        "Status": state.value,
        "Running": state in (State.RUNNING, State.PAUSED),
        "Paused": state is State.PAUSED,
        "Restarting": False,
        "OOMKilled": status.oom_killed,
        "Dead": False,
        "Pid": status.pid,
        "ExitCode": status.exit_code,
        "Error": status.error,
        "StartedAt": time_text(status.started_ns),
        "FinishedAt": time_text(status.finished_ns),
    }


def _host_config(record: Record) -> dict[str, Any]:
    options = record.options
    limits, security = options.limits, options.security
    return {
        "Binds": [f"{m.source}:{m.target}" for m in options.mounts if m.kind == "bind"],
        "NetworkMode": str(options.network.mode),
        "PortBindings": _port_bindings(options.network.ports),
        "AutoRemove": options.auto_remove,
        "CapAdd": list(security.cap_add),
        "CapDrop": list(security.cap_drop),
        "CgroupnsMode": str(options.cgroup),
        "CgroupParent": options.cgroup_parent or "",
        "Dns": list(options.network.dns),
        "ExtraHosts": [f"{e.name}:{e.address}" for e in options.network.extra_hosts],
        "GroupAdd": [str(group) for group in options.group_add],
        "IpcMode": str(options.ipc),
        "UsernsMode": "" if options.ids is None else "private",
        "IDMappings": _id_mappings(options.ids),
        "PidMode": str(options.pid),
        "UTSMode": str(options.uts),
        "Privileged": security.privileged,
        "ReadonlyRootfs": options.read_only,
        "SecurityOpt": _security_opt(record),
        "ShmSize": options.shm_bytes or 64 << 20,
        "Sysctls": dict(options.sysctls),
        "Tmpfs": {m.target: "" for m in options.tmpfs},
        "Init": options.init,
        "OomScoreAdj": options.oom_score_adj or 0,
        "Memory": limits.memory_bytes or 0,
        "MemorySwap": limits.memory_swap_bytes or 0,
        "MemoryReservation": limits.memory_reservation_bytes or 0,
        "NanoCpus": limits.nano_cpus or 0,
        "CpuShares": limits.cpu_shares or 0,
        "CpuPeriod": limits.cpu_period_us or 0,
        "CpuQuota": limits.cpu_quota_us or 0,
        "CpusetCpus": limits.cpuset_cpus or "",
        "CpusetMems": limits.cpuset_mems or "",
        "BlkioWeight": limits.blkio_weight or 0,
        "PidsLimit": limits.pids,
        "Ulimits": [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in options.ulimits],
        "LogConfig": {
            "Type": "cri",
            "Config": {
                "max-size": str(options.log.max_bytes),
                "max-file": str(options.log.max_files),
            },
        },
    }


def _id_mappings(ids: IdMap | None) -> dict[str, list[str]] | None:
    """As podman has it."""
    if ids is None:
        return None
    return {
        name: [":".join(map(str, line)) for line in lines]
        for name, lines in (("UidMap", ids.uid), ("GidMap", ids.gid))
    }


def _security_opt(record: Record) -> list[str]:
    security = record.options.security
    found = ["no-new-privileges"] if security.no_new_privileges else []
    if security.seccomp is not None:
        found.append(f"seccomp={security.seccomp}")
    if security.unmask:
        found.append("systempaths=unconfined")
    return found


def _port_bindings(ports: tuple[Any, ...]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        key = f"{port.container_port}/{port.protocol}"
        binding = {"HostIp": port.host_ip or "0.0.0.0", "HostPort": str(port.host_port or "")}
        found.setdefault(key, []).append(binding)
    return found


def _mounts(record: Record, volumes: VolumeStore) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "Type": "bind",
            "Source": mount.source,
            "Destination": mount.target,
            "Mode": "ro" if mount.read_only else "",
            "RW": not mount.read_only,
            "Propagation": mount.propagation,
        }
        for mount in record.options.mounts
        if mount.kind == "bind"
    ]
    read_only = {m.target for m in record.options.mounts if m.kind == "volume" and m.read_only}
    found += [
        {
            "Type": "volume",
            "Name": use.name,
            "Source": volumes.data_dir(use.name),
            "Destination": use.target,
            "Driver": "local",
            "Mode": "z",
            "RW": use.target not in read_only,
            "Propagation": "",
        }
        for use in record.volumes
    ]
    return found


def _config(record: Record) -> dict[str, Any]:
    options = record.options
    return {
        "Hostname": options.hostname or record.id[:12],
        "Domainname": options.domainname or "",
        "User": str(record.user),
        "Tty": options.terminal,
        "OpenStdin": options.open_stdin,
        "StdinOnce": options.stdin_once,
        "Env": list(record.env),
        "Cmd": list(record.argv),
        "Image": record.image_name,
        "WorkingDir": record.working_dir,
        "Entrypoint": list(options.entrypoint) if options.entrypoint is not None else None,
        "Labels": dict(record.labels),
        "StopSignal": str(record.stop_signal),
        "StopTimeout": options.stop_timeout_s,
        "ExposedPorts": {port: {} for port in record.exposed_ports},
    }


def _network(record: Record, status: Status, store: RecordStore) -> dict[str, Any]:
    mode = str(record.options.network.mode)
    shown: dict[str, Any] = {
        "SandboxKey": f"/proc/{status.pid}/ns/net" if status.pid else "",
        "Ports": _port_bindings(view(record, status, store).ports),
        "IPAddress": "",
        "Gateway": "",
        "MacAddress": "",
        "IPPrefixLen": 0,
        "Networks": {},
    }
    attachment = None
    if mode == "bridge" and status.pid:
        from scow.netns.network import BridgeNetwork

        attachment = BridgeNetwork(store.run).attachment(record.id)
    if attachment is not None:
        address = {
            "IPAddress": attachment.address,
            "Gateway": attachment.gateway,
            "MacAddress": attachment.mac,
            "IPPrefixLen": attachment.prefix_length,
        }
        shown.update(address)
        shown["Networks"] = {mode: address}
    else:
        shown["Networks"] = {mode: {}}
    return shown
