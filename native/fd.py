"""Ownership of file descriptors.

An `OwnedFd` owns one descriptor and closes it; a raw int is borrowed and never closed by who
holds it (house style, section 6).
"""

from __future__ import annotations

import contextlib
import os
from typing import Self


class Closing:
    """What is closed at the end of a `with`."""

    __slots__ = ()

    def close(self) -> None:
        """Let go of what is held; twice is fine."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OwnedFd(Closing):
    """One descriptor that is closed when the owner is closed, or given away by `steal`."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        if fd < 0:
            raise ValueError(f"not a descriptor: {fd}")
        self._fd = fd

    def fileno(self) -> int:
        """Lend the descriptor; it stays ours."""
        if self._fd < 0:
            raise ValueError("descriptor is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the descriptor was closed or given away."""
        return self._fd < 0

    def steal(self) -> int:
        """Give the descriptor to the caller, who must close it."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def close(self) -> None:
        """Close it; closing twice is fine."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        # Last resort only: a descriptor that leaks into a container is a security fault, one that
        # is closed a little late is not.
        self.close()

    def __repr__(self) -> str:
        return f"OwnedFd({self._fd})"


def close_surely(fd: int) -> None:
    """Close a descriptor that holds a lock, also when a signal's exception comes at this moment.

    Left open it would keep the lock from our own clean-up, which then waits for itself.
    """
    try:
        os.close(fd)
    except OSError:
        raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
