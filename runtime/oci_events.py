"""`events`: statistics at an interval, and the kernel's killing for memory at the moment it happens."""

from __future__ import annotations

import os
import select
import time

import msgspec

from scow.cgroups.cgroup import Cgroup
from scow.native.errors import InvalidArgument, NotFound
from scow.native.fd import OwnedFd
from scow.runtime import oci_state
from scow.runtime.oci_extra import stats_document
from scow.runtime.oci_state import StateRecord


def follow_events(record: StateRecord, cgroup: Cgroup, interval_s: float) -> None:
    """Write events until the container's first process ends."""
    first = oci_state.open_pidfd(record)
    if first is None:
        return
    with first, OomWatch(cgroup) as oom:
        poller = select.poll()
        poller.register(first.fileno(), select.POLLIN)
        for fd, events in oom.sources():
            poller.register(fd, events)
        due = time.monotonic()
        while True:
            if time.monotonic() >= due:
                _write({"type": "stats", "id": record.id, "data": stats_document(cgroup)})
                due = time.monotonic() + interval_s
            ready = {fd for fd, _ in poller.poll(max(0.0, due - time.monotonic()) * 1000)}
            for _ in range(oom.news(ready)):
                _write({"type": "oom", "id": record.id})
            if first.fileno() in ready:
                return


def _write(event: dict[str, object]) -> None:
    os.write(1, msgspec.json.encode(event) + b"\n")


def parse_interval(value: str) -> float:
    """Seconds of a duration as Go writes it: `5s`, `100ms`."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    for unit, factor in units.items():
        digits = value.removesuffix(unit)
        plain = digits.replace(".", "", 1)
        # isdigit() takes digits of every script, and a length without bound.
        is_number = plain.isascii() and plain.isdigit() and len(plain) <= 19
        if digits != value and is_number and float(digits) > 0:
            return float(digits) * factor
    raise InvalidArgument(f"invalid duration {value!r}")


class OomWatch:
    """Wakes a poll when the kernel kills in a cgroup for memory.

    cgroup v2: memory.events can be polled. v1: an eventfd is registered for memory.oom_control
    (Documentation/admin-guide/cgroup-v1/memory.rst, section 10); it speaks before the counter grows, and
    once more when the cgroup is removed.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._told = cgroup.oom_kills()
        self._file = cgroup.oom_fd()
        self._event: OwnedFd | None = None
        if self._file is None:
            return
        path = os.readlink(f"/proc/self/fd/{self._file.fileno()}")
        control = f"{os.path.dirname(path)}/cgroup.event_control"
        if os.path.exists(control):
            self._event = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            with OwnedFd(os.open(control, os.O_WRONLY | os.O_CLOEXEC)) as fd:
                line = f"{self._event.fileno()} {self._file.fileno()}"
                os.write(fd.fileno(), line.encode())

    def __enter__(self) -> OomWatch:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._event, self._file):
            if fd is not None:
                fd.close()

    def sources(self) -> list[tuple[int, int]]:
        """Descriptors to poll, and what for."""
        if self._event is not None:
            return [(self._event.fileno(), select.POLLIN)]
        if self._file is not None:
            return [(self._file.fileno(), select.POLLPRI)]
        return []

    def news(self, ready: set[int]) -> int:
        """How many kills there are to tell of."""
        try:
            kills = self._cgroup.oom_kills()
        except NotFound:
            return 0
        count = max(0, kills - self._told)
        if self._event is not None and self._event.fileno() in ready:
            count = max(count, os.eventfd_read(self._event.fileno()))
        self._told += count
        return count
