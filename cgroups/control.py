"""Control files: open, read and write them relative to a directory, and say what went wrong.

What must not be here: which file holds which limit.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from scow.native.errors import (
    InvalidArgument,
    InvalidState,
    NotFound,
    PermissionDenied,
    ScowError,
    Unsupported,
)
from scow.native.fd import OwnedFd

# No control file of a limit is longer; memory.stat has about 1,500 bytes.
READ_SIZE = 64 * 1024


class Write(NamedTuple):
    """One limit to write: `controller` chooses the hierarchy, `file` is relative to the cgroup.

    `instead` is another file that takes the same value on other kernels; with `optional` a
    missing file is no error, because leaving it out says the same as the value.
    """

    controller: str
    file: str
    value: str
    instead: str | None = None
    optional: bool = False


def write_file(directory_fd: int, name: str, value: str) -> None:
    """Write `value` in one write(2); raises OSError with `name` as its filename."""
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        error.filename = name
        raise
    finally:
        os.close(fd)


def read_file(directory_fd: int, name: str) -> str:
    """The file's text; raises OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        parts: list[bytes] = []
        # cgroup.procs can be longer than one read gives; all other files end at once.
        while data := os.read(fd, READ_SIZE):
            parts.append(data)
        return b"".join(parts).decode("utf-8", "replace")
    finally:
        os.close(fd)


def read_or(directory_fd: int, name: str, default: str) -> str:
    """The file's text, or `default` where this kernel has no such file or value."""
    try:
        return read_file(directory_fd, name)
    except FileNotFoundError:
        return default
    except OSError as error:
        # Some files exist and refuse to be read: memsw without swap accounting, bfq without bfq.
        if error.errno in (errno.EOPNOTSUPP, errno.ENODEV, errno.EINVAL):
            return default
        raise


# What a file of a cgroup says that was removed: to open(2), and to who has it open already.
GONE = (errno.ENOENT, errno.ENODEV)


@contextmanager
def opened(name: str, cgroup: str, flags: int = os.O_DIRECTORY) -> Iterator[int]:
    """A directory of `cgroup`, or a file of it; NotFound where that goes, be it in the block.

    Who watches a container may remove its cgroup between any two calls of ours.
    """
    try:
        with OwnedFd(os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags)) as fd:
            yield fd.fileno()
    except OSError as error:
        if error.errno not in GONE:
            raise
        raise NotFound(f"cgroup '{cgroup}' does not exist") from None


def keyed_values(text: str) -> dict[str, int]:
    """Parse a flat keyed file (`name number` per line)."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        if number.isdigit():
            found[name] = int(number)
    return found


_MISSING_HINTS = {
    "memory.memsw.limit_in_bytes": "swap accounting is off; boot with swapaccount=1",
    "memory.swap.max": "this kernel has no swap accounting; leave out the swap limit",
    "blkio.weight": "this kernel has no proportional block io; use throttles, or load bfq",
    "blkio.weight_device": "this kernel has no proportional block io; use throttles, or load bfq",
    "io.weight": "this kernel has neither io.cost nor bfq; use throttles instead",
    "cpu.rt_runtime_us": "this kernel has no realtime group scheduling",
    "cpu.rt_period_us": "this kernel has no realtime group scheduling",
}


def missing_file_error(write: Write, path: str) -> ScowError:
    """The error for a limit that this kernel does not offer."""
    also = f" or '{write.instead}'" if write.instead else ""
    return Unsupported(
        f"cannot set '{write.file}' of cgroup '{path}' to '{write.value}': "
        f"this host has no '{write.file}'{also}",
        hint=_MISSING_HINTS.get(write.file),
    )


def refused_write_error(
    error: OSError, directory: str, file: str, value: str, *, facts: str = ""
) -> ScowError:
    """The error for a value that the kernel refused; `facts` are numbers that explain it."""
    code = errno.errorcode.get(error.errno or 0, "?")
    message = (
        f"cannot set '{directory}/{file}' to '{value}': {(error.strerror or '').lower()} ({code})"
    )
    if facts:
        message += f"; {facts}"
    if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS) and not file.startswith("cpuset"):
        return PermissionDenied(message, hint="is this another container, or not root")
    if error.errno == errno.EBUSY:
        return InvalidState(message)
    if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
        return Unsupported(message)
    if error.errno == errno.ENODEV and file.startswith(("blkio", "io.")):
        return InvalidArgument(message, hint="use the number of a whole disk, not of a partition")
    return InvalidArgument(message)
