"""Durable reading and writing of the store's own files.

What belongs here: the few file operations that both content and summaries need, with errors in
words. What must not: paths that an image chose; those go through scow.native.fs.
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scow.native.errors import IntegrityError, ResourceExhausted, ScowError
from scow.native.failpoint import failpoint


@contextmanager
def storage_errors(path: str, on_full: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn an OSError of a write below `path` into one with words; `on_full` runs when it is full."""
    try:
        yield
    except OSError as e:
        name = errno.errorcode.get(e.errno or 0, "?")
        message = f"cannot write '{path}': {(e.strerror or 'error').lower()} ({name})"
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            on_full()
            raise ResourceExhausted(
                message, hint="`scow rmi` of images that are not needed makes room"
            ) from e
        raise ScowError(message) from e


def is_same_file(fd: int, path: str) -> bool:
    """Whether `path` still names the open file."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def read_file(path: str, limit: int) -> bytes:
    """A whole file of our own; IntegrityError above `limit`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise IntegrityError(f"'{path}' has {size} bytes, more than {limit}")
        return read_exactly(fd, size)
    finally:
        os.close(fd)


def read_exactly(fd: int, size: int) -> bytes:
    """Up to `size` bytes from the start of the file; fewer only at its end."""
    data = os.pread(fd, size, 0)
    while len(data) < size:
        more = os.pread(fd, size - len(data), len(data))
        if not more:
            break
        data += more
    return data


def checked(data: bytes) -> bytes:
    """`data` with a line that tells a flipped bit: for files that no digest names."""
    return b"%b\n%08x\n" % (data, zlib.crc32(data))


def unchecked(data: bytes, what: str) -> bytes:
    """What `checked` was given, or IntegrityError; an older scow wrote JSON without that line."""
    if data.endswith(b"}"):
        return data
    text = data[:-10]
    if data != checked(text):
        raise IntegrityError(f"{what} is damaged")
    return text


def write_all(fd: int, data: bytes) -> None:
    """write(2) until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create_file(path: str, data: bytes) -> None:
    """Durably create a file with this content; what is there already stays as it is."""
    temporary = f"{path}.{os.getpid()}.{threading.get_native_id()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
        # link, not rename: another process may have made it, and changed it, since we looked.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.close(fd)
        os.unlink(temporary)


def write_derived(path: str, data: bytes) -> None:
    """Replace a file that can be made again: whole or not at all, but not synced."""
    temporary = f"{path}.{os.getpid()}.{threading.get_native_id()}.new"
    with storage_errors(path):
        failpoint("derived.create")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data)
            failpoint("derived.name")
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
