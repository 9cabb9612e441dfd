"""What a container may do by default: capabilities, covered paths, default devices.

Data and the small functions that combine it with a user's wishes; nothing here touches the kernel
except to ask which capabilities this process holds. Sources: capabilities(7),
runtime-spec config-linux.md "Default Devices", and the union of what the leading engines cover.
"""

from __future__ import annotations

import os
import re

from scow.native.errors import InvalidArgument

# Bit numbers of linux/capability.h, in order; the list ends with CAP_CHECKPOINT_RESTORE (5.9).
CAPABILITY_NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
_BITS = {name: bit for bit, name in enumerate(CAPABILITY_NAMES)}

# Podman's eleven: enough for what images do, without NET_RAW (CVE-2020-14386) and MKNOD.
DEFAULT_CAPABILITIES = frozenset({
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID",
    "SETPCAP", "SETUID", "SYS_CHROOT",
})  # fmt: skip

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux",
)  # fmt: skip

# path, major, minor: runtime-spec "Default Devices"; /dev/console comes with a terminal.
DEFAULT_DEVICES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)

# What the device cgroup allows besides the default devices: making any node (opening it is what
# counts), the pty multiplexer and its slaves, /dev/console, and tun, without which VPN programs in
# containers broke twice (runc 1.2, crun 1.5).
DEFAULT_DEVICE_RULES = (
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", 1, 3, "rwm"),
    ("c", 1, 5, "rwm"),
    ("c", 1, 7, "rwm"),
    ("c", 1, 8, "rwm"),
    ("c", 1, 9, "rwm"),
    ("c", 5, 0, "rwm"),
    ("c", 5, 1, "rwm"),
    ("c", 5, 2, "rwm"),
    ("c", 136, None, "rwm"),
    ("c", 10, 200, "rwm"),
)


def masked_paths() -> tuple[str, ...]:
    """Give the paths to cover, with the per-CPU throttle counters that this host has.

    The counters are a side channel (moby GHSA-6fw5-f8r9-fgfm); hosts without them pay nothing.
    """
    base = "/sys/devices/system/cpu"
    if not os.path.exists(f"{base}/cpu0/thermal_throttle"):
        return _MASKED_PATHS
    cpus = sorted(name for name in os.listdir(base) if re.fullmatch(r"cpu[0-9]+", name))
    return _MASKED_PATHS + tuple(f"{base}/{cpu}/thermal_throttle" for cpu in cpus)


def parse_capability(text: str) -> str:
    """Give the bare upper-case name of a capability (``NET_ADMIN``), or ``ALL``."""
    name = text.upper().removeprefix("CAP_")
    if name != "ALL" and name not in _BITS:
        raise InvalidArgument(
            f"unknown capability '{text[:64]}'",
            hint="see capabilities(7) for the names, or use ALL",
        )
    return name


def combine_capabilities(
    add: tuple[str, ...], drop: tuple[str, ...], *, privileged: bool
) -> frozenset[str]:
    """Give the container's capabilities: the default, without `drop`, with `add`.

    An added name wins over ``--cap-drop ALL``; a name both added and dropped is dropped, as Docker
    does. ``ALL`` stands for what this process itself may hand out.
    """
    added = {parse_capability(name) for name in add}
    dropped = {parse_capability(name) for name in drop}
    if privileged or "ALL" in added:
        base = set(CAPABILITY_NAMES)
    else:
        base = set() if "ALL" in dropped else set(DEFAULT_CAPABILITIES)
    base |= added - {"ALL"}
    base -= dropped - {"ALL"}
    return frozenset(base & held_capabilities())


def held_capabilities() -> frozenset[str]:
    """Give the names in this process's bounding set: no child of ours can have more."""
    for line in _read("/proc/self/status").split(b"\n"):
        if line.startswith(b"CapBnd:"):
            return frozenset(names_of(int(line.split()[1], 16)))
    return frozenset()


def names_of(mask: int) -> list[str]:
    """Name the set bits of a capability mask, in bit order."""
    return [name for bit, name in enumerate(CAPABILITY_NAMES) if mask >> bit & 1]


def mask_of(names: frozenset[str] | tuple[str, ...]) -> int:
    """Give the bit mask of capability names, with or without the CAP_ prefix."""
    mask = 0
    for name in names:
        mask |= 1 << _BITS[name.removeprefix("CAP_")]
    return mask


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
