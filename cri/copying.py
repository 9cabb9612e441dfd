"""cp: files between a container and the host.

What belongs here: the root of a container as it is now, running or not. What must not: how files are
copied (scow.image.place). A running container is entered by its own root, so its volumes are there;
correctness rests on descriptors, not on the container standing still.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from scow.cri.launch import base_layer
from scow.cri.records import Record
from scow.cri.snapshot import mount_points
from scow.image.digest import DiffID
from scow.image.overlay import mount_overlay
from scow.image.place import Source, copy_source, pack_source
from scow.image.tarwriter import TarWriter
from scow.native import sys as kernel
from scow.native.errors import InvalidState, NotFound
from scow.native.fs import Root
from scow.runtime.mounts import open_bind_source
from scow.runtime.state import State

if TYPE_CHECKING:
    from scow.cri.service import Service
    from scow.image.commit import Write

_RUNNING = (State.RUNNING, State.PAUSED)


def copy_out(
    service: Service, container_id: str, path: str, target: str, *, archive: bool, follow: bool
) -> list[str]:
    """Copy `path` of a container to the host's `target`; returns what was left out."""
    with (
        _container_root(service, container_id, path, writable=False) as root,
        Source(root, path, follow=follow) as source,
        Root.at("/") as host,
    ):
        return copy_source(source, host, os.path.join(os.getcwd(), target), archive=archive)


def copy_in(
    service: Service, source_path: str, container_id: str, path: str, *, archive: bool, follow: bool
) -> list[str]:
    """Copy the host's `source_path` to `path` of a container; returns what was left out."""
    with (
        Root.at("/") as host,
        Source(host, os.path.join(os.getcwd(), source_path), follow=follow) as source,
        _container_root(service, container_id, path, writable=True) as root,
    ):
        return copy_source(source, root, path, archive=archive)


def pack_out(service: Service, container_id: str, path: str, write: Write, *, follow: bool) -> None:
    """Write `path` of a container as a tar."""
    with (
        _container_root(service, container_id, path, writable=False) as root,
        Source(root, path, follow=follow) as source,
    ):
        pack_source(source, TarWriter(write))


def unpack_in(
    service: Service, stream: IO[bytes], container_id: str, path: str, *, archive: bool
) -> list[str]:
    """Unpack a tar, compressed or not, into the directory `path` of a container."""
    from scow.image.archive_files import seekable_tar
    from scow.image.unplace import unpack_tar

    # Whole before the container is locked: the other end may take its time.
    with (
        seekable_tar(service.images, stream) as fd,
        _container_root(service, container_id, path, writable=True) as root,
    ):
        return unpack_tar(fd, root, path, archive=archive)


@contextmanager
def _container_root(
    service: Service, container_id: str, path: str, *, writable: bool
) -> Generator[Root]:
    record = service.store.read(container_id)
    pid = _running_pid(service, record)
    if pid:
        with Root.at(f"/proc/{pid}/root") as root:
            if _running_pid(service, record) != pid:
                raise InvalidState(f"container '{record.name}' has just ended")
            yield root
        return
    directory = service.store.container_dir(record.id)
    lowers = service.images.lower_paths([DiffID(diff_id) for diff_id in record.diff_ids])
    lowers.append(base_layer(service.store))
    if not writable:
        with mount_overlay([f"{directory}/upper", *lowers]) as mount:
            yield _with_volumes(service, record, Root(mount.fileno()), path)
        return
    # A start would stack the same upper directory a second time, which overlayfs forbids.
    with service.store.locked(container_id):
        if _running_pid(service, record):
            raise InvalidState(f"container '{record.name}' has just been started")
        with mount_overlay(lowers, f"{directory}/upper", f"{directory}/work") as mount:
            yield _with_volumes(service, record, Root(mount.fileno()), path)


def _running_pid(service: Service, record: Record) -> int:
    status = service.status(record)
    return status.pid if status.state in _RUNNING else 0


def _with_volumes(service: Service, record: Record, root: Root, path: str) -> Root:
    """The root with the volumes in it, as Docker has it. Other mounts are there only while it runs."""
    read_only = {m.target for m in record.options.mounts if m.kind == "volume" and m.read_only}
    attached: set[str] = set()
    for use in sorted(record.volumes, key=lambda use: use.target.count("/")):
        source = service.volumes.data_dir(use.name)
        # No mount point: it never ran. EINVAL: a detached tree takes mounts from Linux 6.15 on.
        with suppress(OSError, NotFound):
            _attach(source, root, use.target, read_only=use.target in read_only)
            attached.add(os.path.normpath(use.target).strip("/"))
    _refuse_mounts(record, path, attached)
    return root


def _attach(source: str, root: Root, target: str, *, read_only: bool) -> None:
    with (
        open_bind_source(source, recursive=False) as tree,
        root.open(target, os.O_PATH | os.O_DIRECTORY) as place,
    ):
        if read_only:
            kernel.mount_setattr(tree.fileno(), "", kernel.AT_EMPTY_PATH, kernel.MOUNT_ATTR_RDONLY)
        flags = kernel.MOVE_MOUNT_F_EMPTY_PATH | kernel.MOVE_MOUNT_T_EMPTY_PATH
        kernel.move_mount(tree.fileno(), "", place.fileno(), "", flags)


def _refuse_mounts(record: Record, path: str, attached: set[str]) -> None:
    """What is below a mount that is not there would not be seen."""
    place = os.path.normpath(f"/{path}").strip("/")
    for target in mount_points(record) - attached:
        if place == target or place.startswith(f"{target}/"):
            raise InvalidState(
                f"cannot reach '{path}' in container '{record.name}': it is on the mount at "
                f"'/{target}', and the container does not run",
                hint=f"start it first: scow start {record.name}",
            )
