"""A container's files seen from outside: export, diff, commit.

What belongs here: which directories a container or an image stands on, freezing it meanwhile, and what
of its options is the image's. What must not: tar, layers, comparing (scow.image). The directories are
read as they lie, without a mount: overlayfs forbids a second one of a running container's upper.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from scow.cri.freezing import frozen
from scow.cri.launch import base_layer
from scow.cri.records import Record
from scow.image.diff import Change, LayerWriter, changes
from scow.image.digest import DiffID
from scow.image.pack import export_tree
from scow.image.tarwriter import TarWriter
from scow.image.trees import Stack
from scow.native.errors import InvalidArgument, NotFound, ScowError

if TYPE_CHECKING:
    from scow.cri.service import Service
    from scow.image.commit import Wishes, Write
    from scow.image.store import Image


def export_container(service: Service, container_id: str, write: Write) -> None:
    """Write a container's root file system as a tar; it may run, and goes on running."""
    record = service.store.read(container_id)
    with _stack(service, record, [base_layer(service.store)]) as stack:
        export_tree(stack, TarWriter(write))
    _still_there(service, record, "export")


def diff(service: Service, name: str) -> list[Change]:
    """What a container changed of its image, or an image's top layer of those below it."""
    try:
        container_id = service.find(name)
    except (NotFound, InvalidArgument):
        try:
            image = service.images.get(name)
        except NotFound as error:
            raise NotFound(f"no such container or image: '{name[:256]}'") from error
        return diff_image(service, image)
    record = service.store.read(container_id)
    with _stack(service, record, [base_layer(service.store)]) as stack:
        found = changes(stack, 1, mount_points(record))
    _still_there(service, record, "compare")
    return found


def diff_image(service: Service, image: Image) -> list[Change]:
    """What an image's top layer changed of those below it."""
    below = service.images.lower_paths(image.diff_ids[:-1])
    top = [path for path in service.images.layer_paths(image) if path not in below]
    with Stack.at([*top, *below]) as stack:
        return changes(stack, len(top))


def commit(service: Service, container_id: str, wishes: Wishes, *, pause: bool = True) -> str:
    """Make an image of a container's files and settings; returns its id. Volumes are no part of it.

    With `pause` a running container is frozen while its files are read, so that they belong together.
    """
    from scow.image.commit import commit_tree

    record = service.store.read(container_id)
    image = service.images.get(record.image_id)

    def write_layer(write: Write) -> bool:
        with (
            frozen(service, container_id) if pause else nullcontext(),
            _stack(service, record) as stack,
        ):
            tar = TarWriter(write)
            LayerWriter(stack, tar, mount_points(record)).run()
            tar.finish()
        _still_there(service, record, "commit")
        return tar.members > 0

    return commit_tree(service.images, image, write_layer, _settings(record), wishes)


def mount_points(record: Record) -> frozenset[str]:
    """Where something was mounted in the container, as paths below its root."""
    options = record.options
    targets = [*(m.target for m in options.mounts), *(m.target for m in options.tmpfs)]
    targets += [use.target for use in record.volumes]
    return frozenset(os.path.normpath(target).strip("/") for target in targets)


@contextmanager
def _stack(service: Service, record: Record, below: list[str] | None = None) -> Iterator[Stack]:
    upper = f"{service.store.container_dir(record.id)}/upper"
    lowers = service.images.lower_paths([DiffID(diff_id) for diff_id in record.diff_ids])
    with Stack.at([upper, *lowers, *(below or [])]) as stack:
        yield stack


def _still_there(service: Service, record: Record, verb: str) -> None:
    """Nobody was locked out while the files were read: a removal took them away one by one."""
    if not os.path.isdir(service.store.container_dir(record.id)):
        raise ScowError(
            f"cannot {verb} container '{record.name}': it was removed while its files were read"
        )


def _settings(record: Record) -> dict[str, object]:
    """What the container was told, in the members of an image's configuration; the rest stays."""
    options = record.options
    found: dict[str, object] = {"Env": list(record.env), "Labels": dict(record.labels)}
    if options.entrypoint is not None:
        found["Entrypoint"] = list(options.entrypoint)
        found["Cmd"] = list(options.command)
    elif options.command:
        found["Cmd"] = list(options.command)
    if options.working_dir:
        found["WorkingDir"] = options.working_dir
    if options.user is not None:
        found["User"] = str(options.user)
    if options.stop_signal is not None:
        found["StopSignal"] = str(options.stop_signal)
    return found
