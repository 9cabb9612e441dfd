"""The relay against a monitor that the test plays; the terminal against a real pty."""

from __future__ import annotations

import os
import pty
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from scow.cli.relay import Detached, Impatient, Relay
from scow.cli.terminal import DetachKeys, RawTerminal, parse_detach_keys
from scow.native.errors import ScowError
from scow.runtime.monitor import Exited, MonitorConnection


class Monitor:
    """The other end of a connection."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection = MonitorConnection(theirs.detach())

    def say(self, *messages: bytes) -> None:
        for message in messages:
            self.socket.send(message)

    def exit(self, status: int = 0) -> None:
        self.say(b"X" + struct.pack("<iBqq", status, 0, 1, 2))
        self.socket.close()


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    one = Monitor()
    yield one
    one.socket.close()
    one.connection.close()


@contextmanager
def pipes() -> Iterator[tuple[int, int, int]]:
    """Pipes in the place of 0, 1 and 2: (write end of 0, read ends of 1 and 2)."""
    saved = [os.dup(fd) for fd in (0, 1, 2)]
    pipes = [os.pipe() for _ in range(3)]
    os.dup2(pipes[0][0], 0)
    os.dup2(pipes[1][1], 1)
    os.dup2(pipes[2][1], 2)
    for fd in (pipes[0][0], pipes[1][1], pipes[2][1]):
        os.close(fd)
    ends = [pipes[0][1], pipes[1][0], pipes[2][0]]
    try:
        yield (ends[0], ends[1], ends[2])
    finally:
        _restore(saved, ends)


def _restore(saved: list[int], ends: list[int]) -> None:
    for number, fd in enumerate(saved):
        os.dup2(fd, number)
        os.close(fd)
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass  # the test has closed it


def with_streams(
    test: Callable[[Monitor, tuple[int, int, int]], None],
) -> Callable[[Monitor], None]:
    """Run the test with pipes; not a fixture, since pytest puts its own files there in between."""

    def run(monitor: Monitor) -> None:
        with pipes() as streams:
            test(monitor, streams)

    run.__name__ = test.__name__
    return run


@with_streams
def test_output_and_exit(monitor: Monitor, streams: tuple[int, int, int]) -> None:
    monitor.say(b"S", b"oone", b"etwo", b"othree")
    monitor.exit(7 << 8)
    end = Relay(monitor.connection).run()
    assert isinstance(end, Exited)
    assert end.exit_code == 7
    assert os.read(streams[1], 100) == b"onethree"
    assert os.read(streams[2], 100) == b"two"


@with_streams
def test_only_the_wanted_stream(monitor: Monitor, streams: tuple[int, int, int]) -> None:
    monitor.say(b"oone", b"etwo")
    monitor.exit()
    Relay(monitor.connection, streams=frozenset((2,))).run()
    os.write(1, b".")
    assert os.read(streams[1], 100) == b"."


@with_streams
def test_input_and_its_end(monitor: Monitor, streams: tuple[int, int, int]) -> None:
    os.write(streams[0], b"hello")
    got: list[bytes] = []

    def play() -> None:
        got.append(monitor.socket.recv(65536))
        os.close(streams[0])
        got.append(monitor.socket.recv(65536))
        monitor.exit()

    thread = threading.Thread(target=play)
    thread.start()
    Relay(monitor.connection, stdin=True).run()
    thread.join()
    assert got == [b"ihello", b"c"]


@with_streams
def test_lost_monitor(monitor: Monitor, streams: tuple[int, int, int]) -> None:
    monitor.socket.close()
    assert Relay(monitor.connection, stdin=True).run() is None


@with_streams
def test_dropped(monitor: Monitor, streams: tuple[int, int, int]) -> None:
    monitor.say(b"D\x01")
    with pytest.raises(ScowError, match="faster"):
        Relay(monitor.connection).run()


@with_streams
def test_reader_that_goes_away(monitor: Monitor, streams: tuple[int, int, int]) -> None:
    os.close(streams[1])
    monitor.say(b"oone")
    with pytest.raises(BrokenPipeError):
        Relay(monitor.connection).run()


@with_streams
def test_stderr_that_goes_away_is_no_matter(
    monitor: Monitor, streams: tuple[int, int, int]
) -> None:
    os.close(streams[2])
    monitor.say(b"eone", b"etwo", b"othree")
    monitor.exit()
    assert Relay(monitor.connection).run() is not None
    assert os.read(streams[1], 100) == b"three"


@with_streams
def test_signals_pass_while_output_is_stuck(
    monitor: Monitor, streams: tuple[int, int, int]
) -> None:
    sent: list[int] = []

    def play() -> None:
        for _ in range(4):
            monitor.say(b"o" + b"x" * 30000)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        size = 0
        while size < 120000:
            size += len(os.read(streams[1], 65536))
        got.append(size)
        monitor.exit()

    got: list[int] = []
    thread = threading.Thread(target=play)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    Relay(monitor.connection, forward=sent.append).run()
    thread.join()
    assert sent == [signal.SIGTERM]
    assert got == [120000]
    assert signal.getsignal(signal.SIGTERM) is before


@with_streams
def test_third_interrupt_gives_up(monitor: Monitor, streams: tuple[int, int, int]) -> None:
    sent: list[int] = []

    def play() -> None:
        for _ in range(3):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=play)
    thread.start()
    with pytest.raises(Impatient):
        Relay(monitor.connection, forward=sent.append).run()
    thread.join()
    assert sent == [signal.SIGINT, signal.SIGINT]


@with_streams
def test_detach_keys_reach_nobody(monitor: Monitor, streams: tuple[int, int, int]) -> None:
    os.write(streams[0], b"ab\x10\x11")
    with pytest.raises(Detached):
        Relay(monitor.connection, terminal=True, stdin=True, detach_keys=b"\x10\x11").run()
    kinds = [monitor.socket.recv(100)[:1] for _ in range(2)]
    assert sorted(kinds) == [b"i", b"w"]


@pytest.mark.parametrize(
    ("pieces", "passed", "detached"),
    [
        ([b"abc"], b"abc", False),
        ([b"a\x10\x11b"], b"a", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"\x10", b"x"], b"\x10x", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x10"], b"", False),
    ],
)
def test_detach_keys(pieces: list[bytes], passed: bytes, detached: bool) -> None:
    keys = DetachKeys(b"\x10\x11")
    results = [keys.feed(piece) for piece in pieces]
    assert b"".join(data for data, _ in results) == passed
    assert any(found for _, found in results) == detached


def test_detach_keys_grammar() -> None:
    assert parse_detach_keys("--detach-keys", "ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_detach_keys("--detach-keys", "ctrl-@,a,ctrl-[") == b"\0a\x1b"
    assert parse_detach_keys("--detach-keys", "") == b""
    for text in ("ctrl-", "ctrl-1", "ab", "ä", "ctrl-p,"):
        with pytest.raises(ScowError):
            parse_detach_keys("--detach-keys", text)


def test_raw_terminal_is_restored() -> None:
    import termios

    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)

    def interrupted() -> None:
        with RawTerminal(slave):
            assert not termios.tcgetattr(slave)[3] & termios.ECHO
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)
