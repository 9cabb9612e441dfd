"""--systemd-cgroup: a container's cgroup as a scope of systemd, over its whole life.

What belongs here: what create, update and delete do for a container whose record has a unit. systemd
makes and removes the directory; limits go to it as properties and then into the files as ever, since
properties do not cover them all. What must not be here: D-Bus (cgroups/systemd).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec

from scow.cgroups import detect
from scow.cgroups.cgroup import Cgroup, open_cgroup
from scow.cgroups.control import Write
from scow.cgroups.devices import check_rules
from scow.cgroups.resources import Pids, Resources
from scow.cgroups.systemd import (
    Keeper,
    Manager,
    change_scope,
    connect,
    start_scope,
    stop_scope,
)
from scow.cgroups.unit import Property, device_properties, properties, unit_at
from scow.native.errors import PermissionDenied, ScowError


class Scope:
    """A container's scope while its first process is made; `make`, then `settle`, or `undo`."""

    def __init__(self, path: str, owner: str) -> None:
        self.unit = unit_at(path)
        self._path, self._owner = path, owner
        self._keeper: Keeper | None = None
        self._late: Resources | None = None
        self._cgroup: Cgroup | None = None

    def make(self, resources: Resources) -> Cgroup:
        """Start it with its limits; on failure `undo` takes away what there is."""
        pids = resources.pids.limit if resources.pids is not None else None
        if pids in (0, 1):
            # With its keeper inside it has no room for the first process.
            self._late = Resources(pids=resources.pids)
            resources = msgspec.structs.replace(resources, pids=Pids(2))
        with connect(f"make unit '{self.unit.name}'") as manager:
            self._keeper = Keeper()
            cgroup = open_cgroup(
                self._path, foreign=True, owner=self._owner, keeper=self._keeper.pid
            )
            self._cgroup = cgroup
            wanted = _properties(manager, cgroup.planned_writes(resources), resources)
            start_scope(manager, self.unit, self._owner, self._keeper.pid, wanted)
        cgroup.create(resources)
        return cgroup

    def settle(self) -> None:
        """The first process is in it: the keeper goes, and what had to wait is set."""
        assert self._keeper is not None
        assert self._cgroup is not None
        self._keeper.end()
        if self._late is not None:
            update(self._path, self._cgroup, self._late)

    def undo(self) -> None:
        """End it with all that is in it."""
        if self._keeper is not None:
            self._keeper.end()
        end(self._path, self._owner)
        if self._cgroup is not None:
            # Of another container with the same name: that one is the failure to be told.
            with contextlib.suppress(PermissionDenied):
                self._cgroup.remove()


def _properties(manager: Manager, writes: Sequence[Write], resources: Resources) -> list[Property]:
    asks_idle = any(write.file == "cpu.idle" for write in writes)
    found = properties(writes, can_idle=asks_idle and manager.version() >= 252)
    if resources.devices is not None and detect.mode() is not detect.Mode.V2:
        found += device_properties(check_rules(resources.devices))
    return found


def update(path: str, cgroup: Cgroup, resources: Resources) -> None:
    """Change limits in the unit and in the files; on failure the old ones are back in both."""
    unit = unit_at(path)
    writes = cgroup.update_writes(resources)
    before = cgroup.current_values(writes)
    if any(write.file.startswith("cpu.cfs_") for write in writes):
        # v1 has two files for what is one property to systemd.
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        now = cgroup.current_values([Write("cpu", name, "") for name in names])
        writes, before = [*now, *writes], [*now, *before]
    with connect(f"change unit '{unit.name}'") as manager:
        # Files last: systemd rounds a quota up to whole percent.
        change_scope(manager, unit, _properties(manager, writes, resources))
        try:
            cgroup.update(resources)
        except BaseException:
            change_scope(manager, unit, _properties(manager, before, Resources()))
            raise


def end(path: str, owner: str) -> list[str]:
    """End a scope of ours, with all that is in it; gone already is fine. Gives warnings.

    Where systemd cannot be reached the cgroup is removed as any other, and systemd sees it go.
    """
    cgroup = open_cgroup(path, foreign=True, owner=owner)
    try:
        if cgroup.pids():
            cgroup.kill()
    except PermissionDenied:
        pass  # not marked yet, or another's; who the unit belongs to, it says itself
    unit = unit_at(path)
    try:
        with connect(f"stop unit '{unit.name}'") as manager:
            stop_scope(manager, unit, owner)
    except ScowError as error:
        return [str(error)]
    return []
