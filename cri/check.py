"""`scow system check`: is anything left behind, is anything damaged?

The residue check of docs/reliability as a product command. Facts come from the kernel and from the
disk, never from what scow believes; every finding is one line, and `repair` mends what it can.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scow.cri.launch import Surroundings, release
from scow.cri.records import ID_LENGTH, SHORT_ID
from scow.native.errors import NotFound, ScowError
from scow.runtime.state import State

if TYPE_CHECKING:
    from scow.cri.service import Service


def check(service: Service, around: Surroundings, *, repair: bool) -> list[str]:
    """List what is wrong, mended or not (the line says which)."""
    found: list[str] = []
    known = set(service.store.ids())
    found += _check_records(service, repair=repair)
    found += _check_runs(service, around, repair=repair)
    found += _check_run_dirs(service, known, repair=repair)
    found += _check_cgroups(service.store.cgroup_parent, known, repair=repair)
    found += _check_names(service, repair=repair)
    found += _check_trash(service, repair=repair)
    found += _check_network(service, repair=repair)
    found += service.images.verify(repair=repair)
    return found


def _line(text: str, *, mended: bool) -> str:
    return f"{text} (mended)" if mended else text


def _check_records(service: Service, *, repair: bool) -> list[str]:
    found: list[str] = []
    for container_id in service.store.ids():
        try:
            service.store.read(container_id)
        except ScowError as error:
            damaged = not isinstance(error, NotFound)
            if repair:
                # Its log and files may be wanted: a damaged one is set aside, a half-made one goes.
                if damaged:
                    source = service.store.container_dir(container_id)
                    os.rename(source, f"{service.root}/damaged-{container_id[:SHORT_ID]}")
                else:
                    service.store.discard(container_id, None)
            what = "has a damaged record" if damaged else "was never finished"
            found.append(_line(f"container {container_id[:SHORT_ID]} {what}", mended=repair))
    return found


def _check_runs(service: Service, around: Surroundings, *, repair: bool) -> list[str]:
    """Find runs that have ended and whose run directory is still there: nobody cleaned up."""
    found: list[str] = []
    for record in service.store.list():
        if not os.path.isdir(service.store.run_dir(record.id)):
            continue
        if service.status(record).state in (State.RUNNING, State.PAUSED):
            continue
        if repair:
            with service.store.locked(record.id):
                release(record, around)
        found.append(_line(f"container {record.name} ended and was not cleaned up", mended=repair))
    return found


def _check_run_dirs(service: Service, known: set[str], *, repair: bool) -> list[str]:
    from scow.native.fs import remove_tree

    found: list[str] = []
    base = f"{service.run}/containers"
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(fd):
            if name not in known:
                if repair:
                    remove_tree(fd, name)
                found.append(_line(f"'{base}/{name}' belongs to no container", mended=repair))
    finally:
        os.close(fd)
    return found


def _check_cgroups(parent: str, known: set[str], *, repair: bool) -> list[str]:
    from scow.cgroups.cgroup import open_cgroup
    from scow.cgroups.detect import hierarchies

    stray: set[str] = set()
    host = hierarchies()
    mounts = [hierarchy.directory for hierarchy in host.v1]
    for mount in [*mounts, host.unified] if host.unified else mounts:
        try:
            names = os.listdir(f"{mount}/{parent}")
        except FileNotFoundError:
            continue
        stray |= {name for name in names if len(name) == ID_LENGTH and name not in known}
    for name in stray:
        if repair:
            open_cgroup(f"{parent}/{name}").remove()
    return [
        _line(f"cgroup '{parent}/{name}' belongs to no container", mended=repair)
        for name in sorted(stray)
    ]


def _check_names(service: Service, *, repair: bool) -> list[str]:
    found: list[str] = []
    base = f"{service.root}/names"
    for name in os.listdir(base):
        holder = os.readlink(f"{base}/{name}")
        if not os.path.isdir(service.store.container_dir(holder)):
            if repair:
                service.store.release_name(name, holder)
            found.append(_line(f"name '{name}' is claimed by no container", mended=repair))
    return found


def _check_trash(service: Service, *, repair: bool) -> list[str]:
    left = os.listdir(f"{service.root}/trash")
    if left and repair:
        service.store.empty_trash()
    return (
        [_line(f"{len(left)} removed containers still take space", mended=repair)] if left else []
    )


def _check_network(service: Service, *, repair: bool) -> list[str]:
    from scow.netns.network import BridgeNetwork

    def is_live(container_id: str) -> bool:
        try:
            record = service.store.read(container_id)
        except ScowError:
            return False
        return service.status(record).state in (State.RUNNING, State.PAUSED)

    bridge = BridgeNetwork(service.run)
    if repair:
        return [_line(text, mended=True) for text in bridge.reconcile(is_live)]
    return bridge.findings(is_live)
