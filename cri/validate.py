"""What is wrong only together: options that exclude each other, limits in the wrong order.

Single values are checked by their parsers. Every door calls `validate` before anything is made.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable

from scow.cri.options import ContainerOptions
from scow.cri.parse import quote
from scow.cri.parse_network import MAX_NAMESERVERS
from scow.native.errors import InvalidArgument

# execve(2): arguments and environment together get at most 3/4 of _STK_LIM (8 MiB).
MAX_EXEC_BYTES = 6 * 1024 * 1024


def validate(options: ContainerOptions) -> None:
    """Raise InvalidArgument naming both sides of the first contradiction."""
    _check_network(options)
    _check_limits(options)
    _check_security(options)
    _check_ids(options)
    _check_unique("--mount or --tmpfs target", _targets(options))
    _check_unique("--device target", (device.container_path for device in options.devices))
    _check_unique("--ulimit", (limit.name for limit in options.ulimits))
    size = sum(len(os.fsencode(text)) + 9 for text in (*options.command, *options.environment))
    if size > MAX_EXEC_BYTES:
        raise InvalidArgument(
            f"arguments and environment of {size} bytes are more than the kernel's {MAX_EXEC_BYTES}"
        )


def _targets(options: ContainerOptions) -> list[str]:
    return [m.target for m in options.mounts] + [t.target for t in options.tmpfs]


def _check_unique(what: str, items: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    for item in items:
        if item in seen:
            raise InvalidArgument(f"{what} {quote(str(item))} is given twice")
        seen.add(item)


def _conflict(left: str, right: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"{left} and {right} exclude each other: {why}")


def _check_network(options: ContainerOptions) -> None:
    network, mode = options.network, options.network.mode
    name = f"--network {mode}"
    if mode.kind != "bridge":
        why = {
            "host": "the program uses the host's ports themselves",
            "none": "there is no network to reach a port on",
            "container": "ports belong to the container whose network it is",
            "pod": "ports belong to the pod",
        }[mode.kind]
        if network.ports:
            raise _conflict(name, "--publish", why)
        if network.ip:
            raise _conflict(name, "--ip", "only the bridge gives addresses")
        if network.mac:
            raise _conflict(name, "--mac-address", "only the bridge has an interface of its own")
    if mode.kind == "container":
        for flag, value in (
            ("--hostname", options.hostname),
            ("--dns", network.dns),
            ("--add-host", network.extra_hosts),
        ):
            if value:
                raise _conflict(name, flag, "names belong to the container whose network it is")
    if mode.kind in ("host", "container"):
        for key in options.sysctls:
            if key.startswith("net."):
                raise _conflict(name, f"--sysctl {key}", "the network namespace is not its own")
    if options.uts.kind == "host" and (options.hostname or options.domainname):
        raise _conflict("--uts host", "--hostname", "it would rename the host")
    if options.ipc.kind in ("host", "container"):
        for key in options.sysctls:
            if not key.startswith("net."):
                raise _conflict(f"--ipc {options.ipc}", f"--sysctl {key}", "it is not its own")
        if options.shm_bytes is not None:
            raise _conflict(f"--ipc {options.ipc}", "--shm-size", "/dev/shm is not its own")
    if len(network.dns) > MAX_NAMESERVERS:
        raise InvalidArgument(f"--dns is given {len(network.dns)} times; a resolver reads 3")
    if network.ports:
        from scow.netns.ports import refuse_duplicates

        refuse_duplicates(network.ports)


def _check_ids(options: ContainerOptions) -> None:
    if options.ids is None and not options.auto_ids:
        return
    for flag, mode in (
        ("--network", options.network.mode),
        ("--pid", options.pid),
        ("--ipc", options.ipc),
        ("--cgroupns", options.cgroup),
    ):
        if mode.kind in ("host", "container") and options.network.mode.kind != "pod":
            raise _conflict(
                f"{flag} {mode}", "a user namespace", "it has rights in namespaces of its own only"
            )


def _check_limits(options: ContainerOptions) -> None:
    limits = options.limits
    memory, swap = limits.memory_bytes, limits.memory_swap_bytes
    if swap is not None and memory is None:
        raise InvalidArgument("--memory-swap needs --memory: it counts memory and swap together")
    if swap is not None and memory is not None and swap != -1 and swap < memory:
        raise InvalidArgument(
            f"--memory-swap of {swap} bytes is less than --memory of {memory}: "
            "it counts memory and swap together"
        )
    reservation = limits.memory_reservation_bytes
    if reservation is not None and memory is not None and reservation > memory:
        raise InvalidArgument(
            f"--memory-reservation of {reservation} bytes is more than --memory of {memory}"
        )
    if limits.nano_cpus is not None:
        for flag, value in (
            ("--cpu-period", limits.cpu_period_us),
            ("--cpu-quota", limits.cpu_quota_us),
        ):
            if value is not None:
                raise _conflict("--cpus", flag, "both set the quota")


def _check_security(options: ContainerOptions) -> None:
    security = options.security
    if security.privileged:
        for flag, value in (
            ("seccomp", security.seccomp),
            ("apparmor", security.apparmor),
        ):
            if value not in (None, "unconfined"):
                raise _conflict(
                    "--privileged", f"--security-opt {flag}={value}", "privileged runs unconfined"
                )
        if security.cap_drop:
            raise _conflict("--privileged", "--cap-drop", "privileged gives every capability")
    for name in security.cap_add:
        if name in security.cap_drop:
            raise _conflict(f"--cap-add {name}", f"--cap-drop {name}", "it cannot be both")
