"""Freezing a container for a moment, so that whoever dies meanwhile leaves it going.

What belongs here: the note `<run>/containers/<id>/frozen-by`, made before the freeze and removed after
the thaw. Who froze it holds the flock on its note; the kernel gives that back with the process, and then
the next command that looks thaws the container. A container that a user paused has no note.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from scow.cri.launch import thaw_what_is_there
from scow.image.files import is_same_file
from scow.native.errors import InvalidState, NotFound
from scow.native.failpoint import failpoint
from scow.native.fd import OwnedFd
from scow.runtime.state import State

if TYPE_CHECKING:
    from scow.cri.records import Record, RecordStore
    from scow.cri.service import Service


def _note(store: RecordStore, container_id: str) -> str:
    return f"{store.run_dir(container_id)}/frozen-by"


@contextmanager
def frozen(service: Service, container_id: str) -> Generator[None]:
    """Freeze a container that runs, and thaw it; one that is frozen already stays so."""
    record = service.store.read(container_id)
    is_running = service.status(record).state is State.RUNNING
    with _noted(service.store, record) if is_running else nullcontext(False) as may_freeze:
        if not may_freeze or not _freeze(service, container_id):
            yield
            return
        try:
            failpoint("freeze.done")
            yield
        finally:
            with suppress(InvalidState, NotFound):  # killed or thawed meanwhile
                service.unpause(container_id)
            failpoint("freeze.over")


def _freeze(service: Service, container_id: str) -> bool:
    try:
        service.pause(container_id)
    except InvalidState:  # it has just ended, or somebody else froze it
        return False
    return True


@contextmanager
def _noted(store: RecordStore, record: Record) -> Generator[bool]:
    """Have the note, locked before it has a name; False where it has just ended, or another has it."""
    path = _note(store, record.id)
    thaw_abandoned(store, record)
    try:
        fd = OwnedFd(os.open(os.path.dirname(path), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600))
    except FileNotFoundError:
        yield False
        return
    with fd:
        fcntl.flock(fd.fileno(), fcntl.LOCK_EX)
        try:
            # With a src_dir_fd Python takes linkat(2), which follows the link; without it link(2).
            os.link(f"/proc/self/fd/{fd.fileno()}", path, src_dir_fd=fd.fileno())
        except (FileExistsError, FileNotFoundError):
            yield False
            return
        try:
            yield True
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


def thaw_abandoned(store: RecordStore, record: Record) -> bool:
    """Let a container go on that somebody froze who is dead; whether there was such a one.

    Also before a pause: a note that outlived the thaw would undo it.
    """
    with _abandoned(store, record.id) as path:
        if path:
            thaw_what_is_there(record)
            os.unlink(path)
        return bool(path)


@contextmanager
def _abandoned(store: RecordStore, container_id: str) -> Generator[str]:
    """The note of somebody dead, which nobody else looks at meanwhile; "" where there is none."""
    path = _note(store, container_id)
    try:
        fd = OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    except FileNotFoundError:
        yield ""
        return
    with fd:
        try:
            fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield ""
            return
        yield path if is_same_file(fd.fileno(), path) else ""
