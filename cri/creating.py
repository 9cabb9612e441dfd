"""What is looked at and made when a container is created, before it has a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from scow.cri import launch as launching
from scow.cri.launch import Surroundings
from scow.cri.records import Record, VolumeUse
from scow.native.fs import Root

if TYPE_CHECKING:
    from scow.cri.volumes import VolumeStore
    from scow.image.store import Image


def check_references(record: Record, find: Callable[[str], str]) -> None:
    """Refuse what can be known to fail before anything is taken."""
    from scow.cri.limits import build_resources

    options = record.options
    for mode in (options.network.mode, options.pid, options.ipc):
        if mode.kind == "container":
            find(mode.container)
    build_resources(options.limits, [], privileged=False)


def name_volumes(
    record: Record, image: Image, volumes: VolumeStore, around: Surroundings
) -> Record:
    """Name the record's volumes, and make and fill the new ones aside: no record, no volume."""
    wanted = [
        VolumeUse(m.source or volumes.new_name(), m.target, not m.source)
        for m in record.options.mounts
        if m.kind == "volume"
    ]
    left_empty = {m.target for m in record.options.mounts if not m.copy_up}
    covered = {m.target for m in record.options.mounts}
    covered |= {m.target for m in record.options.tmpfs}
    wanted += [
        VolumeUse(volumes.new_name(), target, anonymous=True)
        for target in image.config.volumes
        if target.rstrip("/") not in {path.rstrip("/") for path in covered}
    ]
    if not wanted:
        return record
    staging = launching.staged_volumes(record, around)
    with launching.mount_root(record, around) as mount:
        root = Root(mount.fileno())
        for use in wanted:
            if not volumes.exists(use.name):
                source = None if use.target in left_empty else use.target
                volumes.stage(staging, use.name, root, source)
    return msgspec.structs.replace(record, volumes=tuple(wanted))


def claim_ids(record: Record, root: str) -> Record:
    """Choose the container's range of ids, where it is to have one."""
    if not record.options.auto_ids:
        return record
    from scow.cri.userns import claim_range

    ids = claim_range(root, f"containers/{record.id}")
    return msgspec.structs.replace(record, options=msgspec.structs.replace(record.options, ids=ids))


def release_ids(record: Record, root: str) -> None:
    """Give it back."""
    if record.options.auto_ids:
        from scow.cri.userns import release_range

        release_range(root, record.options.ids, f"containers/{record.id}")
