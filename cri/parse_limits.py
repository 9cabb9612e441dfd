"""Parsers of limits and devices: memory, CPU, processes, block devices, ulimits.

What belongs here: form, range, and what this machine plainly has not (a CPU, a device). What must
not: asking the cgroup file system; whether a controller is there is the cgroups room's to say.
"""

from __future__ import annotations

import os

from scow.cri.options import Device, DeviceRate, Ulimit
from scow.cri.parse import (
    DIGITS,
    NAME,
    check_path,
    decimal,
    invalid,
    parse_int,
    parse_size,
    quote,
    reason,
)

MIN_MEMORY_BYTES = 6 * 1024 * 1024

# ruff: noqa: SIM905
ULIMITS = frozenset(
    "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending "
    "stack".split()
)


def parse_memory(option: str, text: str) -> int | None:
    """A memory limit; 0 is "no limit" and gives None."""
    if text.startswith("-"):
        raise invalid(option, text, "cannot be negative; 0 means no limit")
    return parse_size(option, text, minimum=MIN_MEMORY_BYTES) if parse_size(option, text) else None


def parse_memory_swap(option: str, text: str) -> int | None:
    """Memory and swap together; -1 is unlimited swap, 0 is as if not given."""
    if text == "-1":
        return -1
    if text.startswith("-"):
        raise invalid(option, text, "cannot be negative; -1 means unlimited swap")
    return parse_size(option, text) or None


def parse_cpus(option: str, text: str, *, available: int | None = None) -> int:
    """CPUs in units of 10**-9 (`nano_cpus`), from 0.01 to what this machine has."""
    available = available or os.cpu_count() or 1
    value = decimal(text, 9)
    span = f"from 0.01 to {available}, the CPUs of this machine"
    if value is None:
        raise invalid(option, text, f"not a number of CPUs; {span}")
    if not 10**7 <= value <= available * 10**9:
        raise invalid(
            option, text, f"out of range; {span}", hint=f"leave {option} out for no limit"
        )
    return value


def parse_cpu_shares(option: str, text: str) -> int | None:
    """cgroup v1 cpu.shares; 0 is the default and gives None."""
    if text == "0":
        return None
    return parse_int(option, text, low=2, high=262144, note="2 to 262144, or 0 for the default")


def parse_cpu_period(option: str, text: str) -> int | None:
    """Microseconds; 0 gives None."""
    if text == "0":
        return None
    return parse_int(option, text, low=1000, high=1_000_000, note="1000 to 1000000 microseconds")


def parse_cpu_quota(option: str, text: str) -> int | None:
    """Microseconds; -1 is unlimited, 0 gives None."""
    if text == "0":
        return None
    if text == "-1":
        return -1
    return parse_int(option, text, low=1000, note="at least 1000 microseconds, or -1 for no limit")


def _read_line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except OSError:
        return ""


def parse_cpuset(option: str, text: str, *, kind: str = "cpu", available: str = "") -> str:
    """A list such as `0-2,4`, each of it present; ranges are never expanded."""
    where = "/sys/devices/system/cpu/online" if kind == "cpu" else "/sys/devices/system/node/online"
    available = available or _read_line(where) or "0"
    if len(text) > 4096:
        raise invalid(option, text, f"too long; this machine has {kind} {available}")
    ranges = [_range(part) for part in available.split(",")]
    for part in text.split(","):
        span = _range(part)
        if span is None:
            raise invalid(option, text, f"{quote(part)} is not a number or a range such as 0-2")
        bad = _first_outside(span, [r for r in ranges if r])
        if bad is not None:
            raise invalid(option, text, f"no {kind} {bad} on this machine; it has {available}")
    return text


def _range(part: str) -> tuple[int, int] | None:
    low, dash, high = part.partition("-")
    high = high if dash else low
    for text in (low, high):
        if not text or len(text) > 10 or not DIGITS.issuperset(text):
            return None
    return (int(low), int(high)) if int(low) <= int(high) else None


def _first_outside(span: tuple[int, int], ranges: list[tuple[int, int]]) -> int | None:
    position = span[0]
    for low, high in sorted(ranges):
        if low <= position <= high:
            position = high + 1
        if position > span[1]:
            return None
    return position


def parse_pids(option: str, text: str) -> int:
    """A number of processes; 0 and -1 are unlimited and give -1."""
    note = "1 or more; 0 or -1 for no limit"
    return parse_int(option, text, low=-1, high=2**31 - 1, note=note) or -1


def parse_blkio_weight(option: str, text: str) -> int | None:
    """10 to 1000; 0 gives None."""
    if text == "0":
        return None
    return parse_int(option, text, low=10, high=1000, note="10 to 1000, or 0 for the default")


def parse_device_rate(option: str, text: str, *, is_bytes: bool) -> DeviceRate:
    """`/dev/sda:10mb` (bytes per second) or `/dev/sda:100` (operations per second)."""
    path, colon, rate = text.rpartition(":")
    if not colon or not path.startswith("/dev/") or ".." in path.split("/"):
        raise invalid(option, text, "not of the form /dev/DEVICE:RATE")
    value = parse_size(option, rate) if is_bytes else parse_int(option, rate, low=0)
    return DeviceRate(path, value)


def parse_ulimit(option: str, text: str) -> Ulimit:
    """`nofile=1024` or `nofile=1024:2048`; -1 and `unlimited` are no limit."""
    name, equals, limits = text.partition("=")
    if not equals:
        raise invalid(option, text, "not of the form NAME=SOFT[:HARD], such as nofile=1024:2048")
    if name not in ULIMITS:
        raise invalid(
            option, text, f"no limit named {quote(name)}; one of {' '.join(sorted(ULIMITS))}"
        )
    soft_text, colon, hard_text = limits.partition(":")
    soft = _ulimit_value(option, soft_text)
    hard = _ulimit_value(option, hard_text) if colon else soft
    if hard != -1 and (soft == -1 or soft > hard):
        raise invalid(option, text, "the soft limit is above the hard limit")
    if name == "nofile":
        most = int(_read_line("/proc/sys/fs/nr_open") or 1 << 20)
        if hard == -1 or hard > most:
            raise invalid(option, text, f"above the kernel's fs.nr_open, {most}")
    return Ulimit(name, soft, hard)


def _ulimit_value(option: str, text: str) -> int:
    if text in ("-1", "unlimited"):
        return -1
    return parse_int(option, text, low=0, note="0 or more, or -1 for no limit")


def parse_device(option: str, text: str) -> Device:
    """`/dev/x`, `/dev/x:rw`, `/dev/x:/dev/y`, `/dev/x:/dev/y:rwm`; the host must have the device."""
    import stat

    parts = text.split(":")
    if len(parts) == 2 and not parts[1].startswith("/"):
        parts.insert(1, parts[0])
    host = parts[0]
    inside = parts[1] if len(parts) > 1 else host
    permissions = parts[2] if len(parts) > 2 else "rwm"
    good = (
        permissions and len(set(permissions)) == len(permissions) and set(permissions) <= set("rwm")
    )
    if len(parts) > 3 or not good:
        raise invalid(option, text, "not of the form /dev/HOST[:/dev/INSIDE[:rwm]]")
    for path in (host, inside):
        check_path(option, path)
        if not path.startswith("/") or ".." in path.split("/") or path.rstrip("/") in ("", "/dev"):
            raise invalid(option, text, f"{quote(path)} is not the absolute path of a device")
    try:
        mode = os.stat(host).st_mode
    except OSError as error:
        raise invalid(option, text, reason(error)) from error
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        raise invalid(option, text, f"{quote(host)} is not a device")
    return Device(host, inside, "".join(c for c in "rwm" if c in permissions))


def parse_cgroup_parent(option: str, text: str) -> str:
    """A cgroup path below the root, without `.` and `..`; the leading `/` is dropped."""
    parts = text.strip("/").split("/")
    if (
        not text
        or len(text) > 1024
        or any(
            part in ("", ".", "..") or not (NAME | frozenset(":@\\")).issuperset(part)
            for part in parts
        )
    ):
        raise invalid(option, text, "not a cgroup path such as /jobs/night")
    return "/".join(parts)
