"""What takes space, and giving it back: the verbs `prune` and `df` on containers and images.

What belongs here: deciding what nobody needs. What must not: asking the user, words and columns.
Containers of pods are never pruned: they belong to whoever made the pod.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from scow.cri.check import image_users
from scow.cri.records import Record
from scow.image.df import StoreUsage, store_usage
from scow.image.dropped import drop_blobs
from scow.image.gc import collect
from scow.image.tree import disk_bytes
from scow.image.verify import clear_leftovers
from scow.native.errors import InvalidState, NotFound
from scow.runtime.state import State

if TYPE_CHECKING:
    from scow.cri.service import Service
    from scow.image.store import ImageSummary

_ALIVE = (State.RUNNING, State.PAUSED)


class Pruned(msgspec.Struct, frozen=True):
    """What was removed, in docker's lines, and the bytes of the disk that this gave back."""

    lines: list[str]
    freed_bytes: int


class VolumeUsage(msgspec.Struct, frozen=True):
    """One volume and how many containers mount it."""

    name: str
    links: int
    used_bytes: int


class DiskUsage(msgspec.Struct, frozen=True):
    """All that lies below the state directory; the sums of its parts make `total_bytes`."""

    store: StoreUsage
    containers: dict[str, int]  # bytes by id
    running: frozenset[str]
    image_users: dict[str, int]  # how many containers by image id
    volumes: tuple[VolumeUsage, ...]
    other_bytes: int  # directories, names, the index, locks
    total_bytes: int  # what `du` says


def prune_containers(service: Service, is_wanted: Callable[[Record], bool]) -> Pruned:
    """Remove the containers that do not run and for which `is_wanted` is true."""
    removed: list[str] = []
    freed = 0
    for record in service.store.list():
        if record.member is not None or not is_wanted(record):
            continue
        size = disk_bytes(service.store.container_dir(record.id))
        try:
            if service.status(record).state in _ALIVE:
                continue
            service.remove(record.id)
        except (NotFound, InvalidState):
            continue  # removed or started meanwhile
        removed.append(record.id)
        freed += size
    return Pruned(removed, freed)


def prune_images(service: Service, is_wanted: Callable[[ImageSummary], bool]) -> Pruned:
    """Remove the images that no container stands on and for which `is_wanted` is true."""
    lines: list[str] = []
    for image in service.images.list():
        if not is_wanted(image) or service.users_of_image(image.id):
            continue
        try:
            said, _ = service.images.mark_removed(
                image.id, force=True, in_use=lambda image_id: _refuse(service, image_id)
            )
        except (NotFound, InvalidState):
            continue
        lines += said
    done = collect(service.images, measure=True)
    return Pruned(lines + [f"Deleted: {diff_id}" for diff_id in done.diff_ids], done.freed_bytes)


def prune_blobs(service: Service) -> Pruned:
    """Drop compressed layers that are unpacked and that a registry can give back."""
    return Pruned(*drop_blobs(service.images))


def _refuse(service: Service, image_id: str) -> list[str]:
    """No users, or an error: a container that came after the look must keep its image and its name."""
    if service.users_of_image(image_id):
        raise InvalidState(f"image {image_id} is in use")
    return []


def prune_leftovers(service: Service) -> Pruned:
    """Remove partial downloads that nobody goes on with, and content without a name."""
    images = service.images
    before = store_usage(images, set()).pending_bytes
    lines = clear_leftovers(images, image_users(service))
    return Pruned(lines, max(0, before - store_usage(images, set()).pending_bytes))


def disk_usage(service: Service) -> DiskUsage:
    """Measure everything below the state directory."""
    records = service.store.list()
    users: dict[str, int] = {}
    links: dict[str, int] = {}
    for record in records:
        users[record.image_id] = users.get(record.image_id, 0) + 1
        for use in record.volumes:
            links[use.name] = links.get(use.name, 0) + 1
        for mount in record.options.mounts:
            if mount.kind == "image":
                users[mount.source] = users.get(mount.source, 0) + 1
    store = store_usage(service.images, {*users})
    containers = {r.id: disk_bytes(service.store.container_dir(r.id)) for r in records}
    volumes = tuple(
        VolumeUsage(name, links.get(name, 0), disk_bytes(f"{service.root}/volumes/{name}"))
        for name in _names(f"{service.root}/volumes")
    )
    total = disk_bytes(service.root)
    known = store.image_bytes + store.pending_bytes + sum(containers.values())
    known += sum(volume.used_bytes for volume in volumes)
    running = frozenset(r.id for r in records if service.status(r).state in _ALIVE)
    other = max(0, total - known)
    return DiskUsage(store, containers, running, users, volumes, other, total)


def _names(path: str) -> list[str]:
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def prune_volumes(service: Service) -> Pruned:
    """Remove volumes without a name of their own (64 digits) that no container mounts any more."""
    removed: list[str] = []
    freed = 0
    for volume in disk_usage(service).volumes:
        is_anonymous = len(volume.name) == 64 and not volume.name.strip("0123456789abcdef")
        if not is_anonymous or volume.links:
            continue
        try:
            service.volumes.remove(volume.name)
        except NotFound:
            continue
        removed.append(volume.name)
        freed += volume.used_bytes
    return Pruned(removed, freed)
