"""`scow system check`: is anything left behind, is anything damaged?

The residue check of docs/reliability as a product command. Facts come from the kernel and from the
disk, never from what scow believes; every finding is one line, and `repair` mends what it can.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scow.cri.freezing import thaw_abandoned
from scow.cri.objects import ObjectStore, R, names_in
from scow.cri.pods import Pods
from scow.cri.records import ID_LENGTH, SHORT_ID
from scow.image.files import sync_directory
from scow.native.errors import NotFound, ScowError
from scow.runtime.state import State

if TYPE_CHECKING:
    from scow.cri.service import Service
    from scow.image.verify import Users


def check(service: Service, *, repair: bool, quick: bool = False) -> list[str]:
    """List what is wrong, mended or not (the line says which); `quick` reads no image's content."""
    found: list[str] = []
    found += _check_attempts(service.store, repair=repair)
    found += _check_records(service, repair=repair)
    found += _check_frozen(service)
    found += _check_runs(service, repair=repair)
    found += _check_run_dirs(service, repair=repair)
    pods = Pods(service)
    found += _check_pods(pods, repair=repair)
    found += _check_cgroups(service, pods, repair=repair)
    found += _check_names(service, repair=repair)
    found += _check_trash(service, repair=repair)
    found += _check_network(service, repair=repair)
    found += service.images.verify(repair=repair, quick=quick, users=image_users(service))
    return found


def image_users(service: Service) -> Users:
    """Which images and layers containers stand on, and which of them run."""
    from scow.image.verify import Users

    records = service.store.list()
    alive = (State.RUNNING, State.PAUSED)
    running = [record for record in records if service.status(record).state in alive]
    return Users(
        of_image=service.users_of_image,
        stacks=frozenset(record.diff_ids for record in records),
        running=frozenset(diff_id for record in running for diff_id in record.diff_ids),
    )


def _line(text: str, *, mended: bool) -> str:
    return f"{text} (mended)" if mended else text


def _check_records(service: Service, *, repair: bool) -> list[str]:
    found: list[str] = []
    for container_id in service.store.ids():
        try:
            service.store.read(container_id)
        except NotFound:
            continue  # being made or removed at this moment
        except ScowError:
            if repair:
                # Its log and files may be wanted: it is set aside.
                source = service.store.container_dir(container_id)
                os.rename(source, f"{service.root}/damaged-{container_id[:SHORT_ID]}")
                sync_directory(os.path.dirname(source))
                sync_directory(service.root)
            text = f"container {container_id[:SHORT_ID]} has a damaged record"
            found.append(_line(text, mended=repair))
    return found


def _check_attempts(store: ObjectStore[R], *, repair: bool) -> list[str]:
    """Find objects that were never finished: no record, and nobody who makes them."""
    found: list[str] = []
    for entry in store.abandoned():
        if repair:
            store.bury(entry)
        shown = entry.removeprefix(".")[:SHORT_ID]
        found.append(_line(f"{store.noun} {shown} was never finished", mended=repair))
    return found


def _check_runs(service: Service, *, repair: bool) -> list[str]:
    """Find runs that have ended and whose run directory is still there: nobody cleaned up."""
    found: list[str] = []
    for record in service.store.list():
        state = service.status(record).state
        if state in (State.RUNNING, State.PAUSED):
            continue
        is_unwanted = record.options.auto_remove and state is State.EXITED
        if not is_unwanted and not os.path.isdir(service.store.run_dir(record.id)):
            continue
        if repair:
            service.finish(record.id)
        found.append(_line(f"container {record.name} ended and was not cleaned up", mended=repair))
    return found


def _check_frozen(service: Service) -> list[str]:
    """Find what a commit that was killed left frozen; whoever looks at such a container thaws it."""
    records = service.store.list()
    left = [record.name for record in records if thaw_abandoned(service.store, record)]
    return [_line(f"container {name} was left frozen by a commit", mended=True) for name in left]


def _check_run_dirs(service: Service, *, repair: bool) -> list[str]:
    from scow.native.fs import remove_tree

    found: list[str] = []
    base = f"{service.run}/containers"
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(fd):
            # Looked at one by one: a container's directory is made before and removed after this one.
            if not os.path.isdir(service.store.container_dir(name)):
                if repair:
                    remove_tree(fd, name)
                found.append(_line(f"'{base}/{name}' belongs to no container", mended=repair))
    finally:
        os.close(fd)
    return found


def _check_pods(pods: Pods, *, repair: bool) -> list[str]:
    """Find pods that were never finished, and what is left of those that are gone."""
    found = _check_attempts(pods.store, repair=repair)
    for name in names_in(f"{pods.store.run}/pods"):
        if not os.path.isdir(pods.store.directory(name)):
            if repair:
                pods.release_run_dir(name)
            found.append(_line(f"'{pods.store.run}/pods/{name}' belongs to no pod", mended=repair))
    return found


def _check_cgroups(service: Service, pods: Pods, *, repair: bool) -> list[str]:
    from scow.cgroups.cgroup import open_cgroup
    from scow.cgroups.detect import hierarchies
    from scow.cgroups.tree import OWN_TOP

    prefix = service.store.cgroup_prefix
    stray: set[str] = set()
    host = hierarchies()
    mounts = [hierarchy.directory for hierarchy in host.v1]
    for mount in [*mounts, host.unified] if host.unified else mounts:
        try:
            names = os.listdir(f"{mount}/{OWN_TOP}")
        except FileNotFoundError:
            continue
        ours = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
        stray |= {
            name
            for name in ours
            if len(name) == ID_LENGTH
            and not os.path.isdir(service.store.container_dir(name))
            and not os.path.isdir(pods.store.directory(name))
        }
    for name in stray:
        if repair:
            cgroup = open_cgroup(f"{OWN_TOP}/{prefix}{name}")
            cgroup.kill()
            cgroup.remove()
    return [
        _line(f"cgroup '{OWN_TOP}/{prefix}{name}' belongs to no container", mended=repair)
        for name in sorted(stray)
    ]


def _check_names(service: Service, *, repair: bool) -> list[str]:
    found: list[str] = []
    base = f"{service.root}/names"
    for name in names_in(base):
        try:
            holder = os.readlink(f"{base}/{name}")
        except FileNotFoundError:
            continue
        if not os.path.isdir(service.store.container_dir(holder)):
            if repair:
                service.store.release_name(name, holder)
            found.append(_line(f"name '{name}' is claimed by no container", mended=repair))
    return found


def _check_trash(service: Service, *, repair: bool) -> list[str]:
    left = names_in(f"{service.root}/trash")
    if left and repair:
        service.store.empty_trash()
    return (
        [_line(f"{len(left)} removed containers still take space", mended=repair)] if left else []
    )


def _check_network(service: Service, *, repair: bool) -> list[str]:
    from scow.netns.network import BridgeNetwork

    # A container is live while it has a run directory; those of ended runs were reported above.
    bridge = BridgeNetwork(service.run)
    if repair:
        return [_line(text, mended=True) for text in bridge.reconcile()]
    return bridge.findings()
