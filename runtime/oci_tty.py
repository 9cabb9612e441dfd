"""A terminal of ours in front of a container's pty, for `run` and `exec` that stay."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Callable

from scow.native.fd import OwnedFd

_SIZE = 65536


def _copy_size(source: int, master: int) -> None:
    try:
        size = fcntl.ioctl(source, termios.TIOCGWINSZ, b"\0" * 8)
        if size[:4] == b"\0" * 4:
            return  # ours has none: the container's keeps what consoleSize has given it
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
    except OSError:
        pass  # no terminal of ours: the container's keeps its size


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _resized(master: int) -> Callable[[int, object], None]:
    def handle(_number: int, _frame: object) -> None:
        _copy_size(0, master)

    return handle


def relay(master: OwnedFd, pidfd: int) -> None:
    """Pass bytes in both directions until the process has ended and its output is out."""
    ours = os.isatty(0)
    before = termios.tcgetattr(0) if ours else None
    try:
        if ours:
            tty.setraw(0)
            signal.signal(signal.SIGWINCH, _resized(master.fileno()))
        _copy_size(0, master.fileno())
        _loop(master.fileno(), pidfd)
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def _read_terminal(master: int) -> bytes:
    """What came; empty when nobody has the terminal open any more.

    n_tty_read() looks for data first and for the end (EIO) then: last words may come between.
    """
    for _ in range(2):
        try:
            return os.read(master, _SIZE)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
    return b""


def _loop(master: int, pidfd: int) -> None:
    poller = select.poll()
    for fd in (master, 0, pidfd):
        poller.register(fd, select.POLLIN)
    ended = False
    while True:
        ready = dict(poller.poll(0 if ended else None))
        if master in ready:
            data = _read_terminal(master)
            if not data:
                return
            _write_all(1, data)
        elif ended:
            return
        if ready.get(0, 0):
            data = os.read(0, _SIZE)
            if data:
                _write_all(master, data)
            else:
                poller.unregister(0)
        if pidfd in ready:
            poller.unregister(pidfd)
            ended = True
