"""A container's cgroup as a unit of systemd: names, paths and properties; pure.

What must not be here: talking to systemd (`systemd`), and control files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scow.cgroups.control import Write
from scow.cgroups.cpulist import parse_cpu_list
from scow.cgroups.devices import ANY, Rule, device_list
from scow.native.errors import InvalidArgument

DEFAULT_SLICE, ROOT_SLICE = "system.slice", "-.slice"
DEFAULT_PREFIX = "scow"
INFINITY = 2**64 - 1
# org.freedesktop.systemd1: a property is a name and a variant, here (D-Bus signature, value).
Property = tuple[str, tuple[str, object]]

# systemd.unit(5): what a unit's name is made of, and 255 characters with the suffix.
_NAME = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}")
# The cgroup files that have a property of the same meaning in bytes or in numbers.
_NUMBERS = {
    "memory.max": "MemoryMax",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "cpu.weight": "CPUWeight",
    "pids.max": "TasksMax",
    "io.weight": "IOWeight",
    "memory.limit_in_bytes": "MemoryLimit",
    "cpu.shares": "CPUShares",
    "blkio.weight": "BlockIOWeight",
}
_MASKS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}
_DEFAULT_PERIOD_US = 100_000
# systemd keeps a quota as whole percent of a processor (CPUQuota=).
_PERCENT_US = 10_000
_MAX_CPU = 8191  # CONFIG_NR_CPUS is nowhere larger


class Unit(NamedTuple):
    """A scope, and the slice in which it is."""

    slice: str
    name: str

    @property
    def path(self) -> str:
        """Where its cgroup is, from the hierarchy's root."""
        return "/".join((*_slice_parts(self.slice), self.name))


def unit_of(cgroups_path: str, container_id: str) -> Unit:
    """The unit of linux.cgroupsPath `slice:prefix:name`, as runc reads it; each part may be empty."""
    parts = cgroups_path.split(":") if cgroups_path else ["", DEFAULT_PREFIX, container_id]
    if len(parts) != 3:
        raise InvalidArgument(
            'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, '
            f"got {cgroups_path!r} instead"
        )
    slice_name, prefix, name = parts
    unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    if not name or name.endswith(".slice") or not _NAME.fullmatch(unit):
        raise InvalidArgument(f"cgroupsPath {cgroups_path!r}: '{unit}' cannot name a scope")
    found = Unit(slice_name or DEFAULT_SLICE, unit)
    _slice_parts(found.slice)
    return found


def unit_at(path: str) -> Unit:
    """The unit whose cgroup has this path."""
    above, _, name = path.rpartition("/")
    return Unit(above.rpartition("/")[2] or ROOT_SLICE, name)


def _slice_parts(name: str) -> list[str]:
    """systemd.slice(5): a dash in the name of a slice is one level: `a-b.slice` is in `a.slice`."""
    if name == ROOT_SLICE:
        return []
    stem = name.removesuffix(".slice")
    words = stem.split("-")
    if stem == name or not _NAME.fullmatch(name) or "" in words:
        raise InvalidArgument(f"invalid slice name: {name!r}")
    return ["-".join(words[: count + 1]) + ".slice" for count in range(len(words))]


# --- properties -----------------------------------------------------------------------------------


def properties(writes: Iterable[Write], *, can_idle: bool = False) -> list[Property]:
    """What systemd is to know of the limits, so that it writes the same ones when it writes any.

    Limits without a property stay files alone: systemd leaves those alone. `can_idle`: CPUWeight
    takes `idle`, since systemd 252; an older one does not know cpu.idle and so leaves it alone.
    """
    found: dict[str, tuple[str, object]] = {}
    quota, period = "", ""
    for write in writes:
        value = write.value.strip()
        if write.file in _NUMBERS:
            name = _NUMBERS[write.file]
            if value.isdigit() or value in ("max", "-1"):
                number = int(value) if value.isdigit() else INFINITY
                # TasksMax=0 is refused; the file, which is written after it, says 0.
                found[name] = ("t", max(number, 1) if name == "TasksMax" else number)
        elif write.file in _MASKS:
            found[_MASKS[write.file]] = ("ay", _mask(value, write.file))
        elif write.file == "cpu.idle" and can_idle:
            found["CPUWeight"] = ("t", 0 if value == "1" else INFINITY)
        elif write.file == "cpu.max":
            quota, _, period = value.partition(" ")
        elif write.file == "cpu.cfs_quota_us":
            quota = value
        elif write.file == "cpu.cfs_period_us":
            period = value
    found.update(_cpu_quota(quota, period))
    return list(found.items())


def _mask(cpus: str, what: str) -> bytes:
    mask = 0
    for low, high in parse_cpu_list(cpus, what=what):
        # What is above no host has; the file, which is written too, refuses it.
        for number in range(low, min(high, _MAX_CPU) + 1):
            mask |= 1 << number
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _cpu_quota(quota: str, period: str) -> dict[str, tuple[str, object]]:
    found: dict[str, tuple[str, object]] = {}
    length = int(period) if period.isdigit() else _DEFAULT_PERIOD_US
    if period:
        found["CPUQuotaPeriodUSec"] = ("t", length)
    if quota.isdigit():
        per_second = int(quota) * 1_000_000 // length
        rounded = -(-per_second // _PERCENT_US) * _PERCENT_US
        found["CPUQuotaPerSecUSec"] = ("t", rounded)
    elif quota:
        found["CPUQuotaPerSecUSec"] = ("t", INFINITY)
    return found


def device_properties(rules: Sequence[Rule]) -> list[Property]:
    """DevicePolicy and DeviceAllow, for cgroup v1 only.

    There systemd opens the device list of a unit without them whenever it writes one. On v2 it has a
    program of its own or none, beside ours, and a device passes only when all agree: none is what
    cannot change anything.
    """
    wanted = device_list(rules)
    if wanted.allow_all:
        return [("DevicePolicy", ("s", "auto"))]
    allowed: list[tuple[str, str]] = []
    for rule in wanted.exceptions:
        kind = "char" if rule.kind == "c" else "block"
        if rule.major != ANY and rule.minor != ANY:
            name = f"/dev/{kind}/{rule.major}:{rule.minor}"
        elif rule.major == rule.minor == ANY:
            name = f"{kind}-*"
        else:
            # Where it cannot be said the file alone has it.
            group = _driver(rule)
            if group is None:
                continue
            name = f"{kind}-{group}"
        allowed.append((name, rule.line().rpartition(" ")[2]))
    return [("DevicePolicy", ("s", "strict")), ("DeviceAllow", ("a(ss)", allowed))]


def _driver(rule: Rule) -> str | None:
    """The name in /proc/devices of a major number, which is how systemd wants it."""
    wanted, section = "Character" if rule.kind == "c" else "Block", ""
    with open("/proc/devices", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if line.endswith("devices:\n"):
                section = words[0]
            elif section == wanted and words and words[0] == str(rule.major):
                return words[1]
    return None
