"""The whole monitor under the sanitizers, over a child that is only forked: no root needed."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scow.runtime import monitor
from scow.runtime.monitor import (
    Dropped,
    Event,
    Exited,
    Failed,
    Failure,
    MonitorConnection,
    Output,
    Ready,
    Reopened,
    Started,
)

ROOT = Path(__file__).resolve().parents[2]
COMPILE = ["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
COMPILE += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
STEP_CLONE = 1001
STEP_CHILD_GONE = 1007


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("monitor_loop") / "monitor"
    sources = [*(ROOT / "native").glob("monitor*.c"), ROOT / "native/log.c"]
    sources += [ROOT / "native/exitrec.c", ROOT / "tests/unit/c/test_monitor_loop.c"]
    subprocess.run(
        [*COMPILE, f"-I{ROOT / 'native'}", *map(str, sources), "-o", str(built)],
        check=True,
    )
    return built


class Running:
    """A monitor under test and the starter's connection to it."""

    def __init__(self, process: subprocess.Popen[bytes], connection: MonitorConnection) -> None:
        self.process = process
        self.connection = connection

    def events(self) -> list[Event]:
        """Everything until the monitor closes the connection."""
        return list(iter(self.connection.recv, None))

    def finish(self) -> list[Event]:
        """Everything that is still said; checks that the sanitizers had nothing to say."""
        events = self.events()
        assert self.process.wait(60) in (0, 1)
        return events


Launch = Callable[..., Running]


@pytest.fixture
def launch(program: Path, tmp_path: Path) -> Iterator[Launch]:
    started: list[Running] = []

    def launch_monitor(*command: str, **options: object) -> Running:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [f"{key}={value}" for key, value in options.items()]
        process = subprocess.Popen(
            [str(program), f"control={theirs.fileno()}", *words, "--", *command],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=tmp_path,
        )
        theirs.close()
        running = Running(process, MonitorConnection(ours.detach()))
        started.append(running)
        return running

    yield launch_monitor
    for running in started:
        running.connection.close()
        try:
            running.process.wait(60)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()
            raise


def output(events: list[Event], stream: int = 1) -> bytes:
    return b"".join(e.data for e in events if isinstance(e, Output) and e.stream == stream)


def test_a_whole_life(launch: Launch, tmp_path: Path) -> None:
    running = launch(
        "sh", "-c", "echo out; echo err >&2; exit 7",
        exit=tmp_path / "exit", status=tmp_path / "status", log=tmp_path / "log",
    )  # fmt: skip
    connection = running.connection
    ready = connection.recv()
    assert isinstance(ready, Ready)
    status = monitor.read_status_record(str(tmp_path / "status"))
    assert status is not None
    assert (status.id, status.pid) == ("c1", ready.pid)
    assert status.monitor_pid == running.process.pid
    stat = Path(f"/proc/{ready.pid}/stat").read_text().rpartition(")")[2].split()
    assert status.start_time == int(stat[19])
    assert not (tmp_path / "exit").exists()
    connection.attach()
    connection.start()
    assert isinstance(connection.recv(), Started)
    events = running.finish()
    assert output(events, 1) == b"out\n"
    assert output(events, 2) == b"err\n"
    exited = events[-1]
    assert isinstance(exited, Exited)
    assert (exited.exit_code, exited.signal, exited.oom_killed) == (7, 0, False)
    assert 0 < exited.started_ns <= exited.finished_ns <= time.time_ns()
    record = monitor.read_exit_record(str(tmp_path / "exit"))
    assert record is not None
    assert record == monitor.ExitRecord(
        ready.pid, 7 << 8, 7, 0, False, exited.started_ns, exited.finished_ns
    )
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert sorted(line[31:] for line in lines) == [b"stderr F err", b"stdout F out"]


def test_killed_by_a_signal(launch: Launch, tmp_path: Path) -> None:
    running = launch("sh", "-c", "kill -TERM $$", exit=tmp_path / "exit")
    running.connection.start()
    exited = running.finish()[-1]
    assert isinstance(exited, Exited)
    assert (exited.signal, exited.exit_code) == (signal.SIGTERM, 143)
    assert json.loads((tmp_path / "exit").read_bytes())["exit_code"] == 143


def test_the_record_is_there_before_the_word(launch: Launch, tmp_path: Path) -> None:
    running = launch("true", exit=tmp_path / "exit")
    running.connection.start()
    assert isinstance(running.connection.wait(), Exited)
    assert monitor.read_exit_record(str(tmp_path / "exit")) is not None


def test_setup_fails_in_the_child(launch: Launch, tmp_path: Path) -> None:
    events = launch("true", fail=34, exit=tmp_path / "exit", cleanup=tmp_path / "clean").finish()
    assert events[0] == Failed(Failure(34, errno.ENOENT, 3))
    assert isinstance(events[1], Exited)
    assert (events[1].exit_code, events[1].started_ns) == (127, 0)
    record = monitor.read_exit_record(str(tmp_path / "exit"))
    assert record is not None
    assert record.error == Failure(34, errno.ENOENT, 3)


def test_the_clone_fails(launch: Launch) -> None:
    events = launch("true", fail=-1).finish()
    assert events[0] == Failed(Failure(STEP_CLONE, errno.EAGAIN, -1))


def test_the_child_dies_in_setup(launch: Launch) -> None:
    events = launch("true", die=1).finish()
    assert events[0] == Failed(Failure(STEP_CHILD_GONE, errno.ESRCH, -1))
    assert isinstance(events[-1], Exited)
    assert events[-1].exit_code == 9


def test_a_log_that_cannot_be_opened(launch: Launch, tmp_path: Path) -> None:
    events = launch("true", log=tmp_path / "none" / "log").finish()
    assert events[0] == Failed(Failure(1100, errno.ENOENT, -1))


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_starter_gone_before_the_start(launch: Launch, tmp_path: Path) -> None:
    running = launch("true", exit=tmp_path / "exit", cleanup=tmp_path / "clean")
    ready = running.connection.recv()
    assert isinstance(ready, Ready)
    running.connection.close()
    running.process.wait(60)
    record = monitor.read_exit_record(str(tmp_path / "exit"))
    assert record is not None
    assert (record.started_at, record.error) == (0, Failure(STEP_CHILD_GONE, errno.ESRCH))
    assert not Path(f"/proc/{ready.pid}").exists()
    wait_for((tmp_path / "clean").exists)


def test_starter_gone_after_the_start(launch: Launch, tmp_path: Path) -> None:
    running = launch("sh", "-c", "sleep 0.3; echo late; exit 4", exit=tmp_path / "exit",
                     log=tmp_path / "log", cleanup=tmp_path / "clean")  # fmt: skip
    running.connection.start()
    running.connection.close()
    running.process.wait(60)
    record = monitor.read_exit_record(str(tmp_path / "exit"))
    assert record is not None
    assert record.exit_code == 4
    assert (tmp_path / "log").read_bytes().endswith(b"stdout F late\n")
    wait_for((tmp_path / "clean").exists)


def test_no_cleanup_when_watched(launch: Launch, tmp_path: Path) -> None:
    running = launch("true", cleanup=tmp_path / "clean")
    running.connection.watch()
    running.connection.start()
    running.finish()
    time.sleep(0.2)
    assert not (tmp_path / "clean").exists()


def test_cleanup_when_the_watcher_is_gone(launch: Launch, tmp_path: Path) -> None:
    running = launch("sleep", "60", socket=tmp_path / "s", cleanup=tmp_path / "clean")
    running.connection.start()
    ready = running.connection.recv()
    assert isinstance(ready, Ready)
    with MonitorConnection.connect(str(tmp_path / "s")) as watcher:
        watcher.watch()
    os.kill(ready.pid, signal.SIGKILL)
    running.finish()
    wait_for((tmp_path / "clean").exists)


def test_a_second_watcher_counts(launch: Launch, tmp_path: Path) -> None:
    running = launch("sleep", "60", socket=tmp_path / "s", cleanup=tmp_path / "clean")
    running.connection.start()
    ready = running.connection.recv()
    assert isinstance(ready, Ready)
    with MonitorConnection.connect(str(tmp_path / "s")) as watcher:
        watcher.watch()
        watcher.reopen_log()  # answered in order: the watch is taken note of
        assert any(isinstance(event, Reopened) for event in iter(watcher.recv, None))
        os.kill(ready.pid, signal.SIGKILL)
        assert isinstance(watcher.wait(), Exited)
    running.finish()
    time.sleep(0.2)
    assert not (tmp_path / "clean").exists()
    assert not (tmp_path / "s").exists()


def test_the_socket_is_private_and_long_paths_work(launch: Launch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    running = launch("sleep", "60", socket=deep / "sock")
    running.connection.start()
    ready = running.connection.recv()
    assert isinstance(ready, Ready)
    assert (deep / "sock").stat().st_mode & 0o777 == 0o600
    with MonitorConnection.connect(str(deep / "sock")) as other:
        assert isinstance(other.recv(), Ready)
        os.kill(ready.pid, signal.SIGKILL)
        assert isinstance(other.wait(), Exited)
    running.finish()


def test_more_clients_than_a_monitor_takes(launch: Launch, tmp_path: Path) -> None:
    running = launch("sleep", "60", socket=tmp_path / "s")
    running.connection.start()
    ready = running.connection.recv()
    assert isinstance(ready, Ready)
    clients = [MonitorConnection.connect(str(tmp_path / "s")) for _ in range(17)]
    events = [client.recv() for client in clients]
    assert all(isinstance(event, Ready) for event in events[:16])
    assert events[16] == Dropped(too_slow=False)
    for client in clients:
        client.close()
    os.kill(ready.pid, signal.SIGKILL)
    running.finish()


def test_stdin_echo_and_half_close(launch: Launch) -> None:
    running = launch("cat", stdin=1, once=1)
    connection = running.connection
    connection.attach(stdin=True, lossless=True)
    connection.start()
    data = os.urandom(1 << 20)
    sent, got = 0, bytearray()
    closed = False
    while True:
        sent += connection.send_stdin(data[sent:])
        if sent == len(data) and not closed:
            closed = connection.close_stdin()
        wanted = select.POLLIN if closed else select.POLLIN | select.POLLOUT
        poll = select.poll()
        poll.register(connection.fileno(), wanted)
        if poll.poll(10_000)[0][1] & select.POLLIN:
            event = connection.recv()
            if isinstance(event, Output):
                got += event.data
            if isinstance(event, Exited):
                break
    assert bytes(got) == data


def test_stdin_ends_when_its_only_client_goes(launch: Launch, tmp_path: Path) -> None:
    running = launch("sh", "-c", "cat >in; exit 5", stdin=1, once=1, exit=tmp_path / "exit")
    running.connection.attach(stdin=True)
    running.connection.start()
    running.connection.send_stdin(b"words")
    running.connection.close()
    running.process.wait(60)
    assert (tmp_path / "in").read_bytes() == b"words"
    record = monitor.read_exit_record(str(tmp_path / "exit"))
    assert record is not None
    assert record.exit_code == 5


def test_stdin_stays_open_without_once(launch: Launch, tmp_path: Path) -> None:
    running = launch("sh", "-c", "read a; read b; echo $a$b", stdin=1, socket=tmp_path / "s")
    assert isinstance(running.connection.recv(), Ready)
    running.connection.attach()
    running.connection.start()
    for word in (b"1\n", b"2\n"):
        with MonitorConnection.connect(str(tmp_path / "s")) as client:
            client.attach(stdin=True)
            client.send_stdin(word)
            client.close_stdin()
    assert output(running.finish()) == b"12\n"


def test_input_nobody_reads_blocks_nothing(launch: Launch, tmp_path: Path) -> None:
    running = launch("sh", "-c", "sleep 0.5; echo end", stdin=1, socket=tmp_path / "s")
    assert isinstance(running.connection.recv(), Ready)
    running.connection.attach()
    running.connection.start()
    with MonitorConnection.connect(str(tmp_path / "s")) as client:
        client.attach(stdin=True, stdout=False, stderr=False)
        while client.send_stdin(b"x" * 100_000):
            time.sleep(0.01)
        assert output(running.finish()) == b"end\n"


def test_input_of_the_gone_takes_no_place(launch: Launch, tmp_path: Path) -> None:
    running = launch("sleep", "60", stdin=1, socket=tmp_path / "s")
    ready = running.connection.recv()
    assert isinstance(ready, Ready)
    running.connection.start()
    for _ in range(20):
        with MonitorConnection.connect(str(tmp_path / "s")) as client:
            assert isinstance(client.recv(), Ready)
            client.attach(stdin=True, stdout=False, stderr=False)
            client.send_stdin(b"x" * 100_000)
    os.kill(ready.pid, signal.SIGKILL)
    assert isinstance(running.finish()[-1], Exited)


def numbered(lines: int) -> bytes:
    return b"".join(b"%d\n" % i for i in range(1, lines + 1))


def test_a_lossless_client_gets_every_byte(launch: Launch) -> None:
    running = launch("seq", "300000")
    running.connection.attach(lossless=True)
    running.connection.start()
    time.sleep(0.3)  # the pipe and the socket are full by now
    assert output(running.finish()) == numbered(300000)


def test_last_bytes_do_not_wait_for_the_client(launch: Launch, tmp_path: Path) -> None:
    # A pager that is not looked at: the container is over, its last bytes are in the socket.
    running = launch("sh", "-c", "seq 10000; seq 9000 >&2", exit=tmp_path / "exit")
    running.connection.attach(lossless=True)
    running.connection.start()
    running.process.wait(60)
    events = running.events()
    assert output(events) == numbered(10000)
    assert output(events, 2) == numbered(9000)
    assert isinstance(events[-1], Exited)


def test_a_slow_client_is_dropped_and_told(launch: Launch, tmp_path: Path) -> None:
    running = launch("seq", "3000000", socket=tmp_path / "s", log=tmp_path / "log",
                     max=1 << 20, files=2)  # fmt: skip
    assert isinstance(running.connection.recv(), Ready)
    with MonitorConnection.connect(str(tmp_path / "s")) as slow:
        slow.attach()
        running.connection.start()
        assert isinstance(running.finish()[-1], Exited)
        events = list(iter(slow.recv, None))
    assert events[-1] == Dropped(too_slow=True)
    got = output(events)
    assert len(got) > 100_000
    assert numbered(3000000).startswith(got)


def test_a_stalled_lossless_client_holds_no_signal(launch: Launch, tmp_path: Path) -> None:
    running = launch("sh", "-c", "exec yes", exit=tmp_path / "exit", socket=tmp_path / "s")
    ready = running.connection.recv()
    assert isinstance(ready, Ready)
    running.connection.attach(lossless=True)
    running.connection.start()
    time.sleep(0.3)
    with MonitorConnection.connect(str(tmp_path / "s")) as other:
        assert isinstance(other.recv(), Ready)
        began = time.monotonic()
        os.kill(ready.pid, signal.SIGKILL)
        exited = other.wait()
        assert time.monotonic() - began < 30
    assert isinstance(exited, Exited)
    assert exited.signal == signal.SIGKILL
    assert isinstance(running.finish()[-1], Exited)


def test_grandchildren_with_the_output_do_not_hold_the_end(launch: Launch) -> None:
    running = launch("sh", "-c", "sleep 60 & echo $!")
    running.connection.attach()
    running.connection.start()
    began = time.monotonic()
    events = running.finish()
    assert 0.4 < time.monotonic() - began < 30
    os.kill(int(output(events)), signal.SIGKILL)


def test_signals_to_the_monitor_do_not_end_it(launch: Launch, tmp_path: Path) -> None:
    running = launch("sh", "-c", "sleep 0.5; exit 3")
    running.connection.start()
    assert isinstance(running.connection.recv(), Ready)
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
        running.process.send_signal(sig)
    exited = running.finish()[-1]
    assert isinstance(exited, Exited)
    assert exited.exit_code == 3


def test_terminal(launch: Launch, tmp_path: Path) -> None:
    # Not `read`: a signal that comes just before it waits is told to the trap after it.
    script = (
        "trap 'stty size; exit 2' WINCH; stty size; read x; echo got $x; "
        "while :; do sleep 0.02; done"
    )
    running = launch("sh", "-c", script, terminal=1, stdin=1, log=tmp_path / "log")
    connection = running.connection
    connection.resize(11, 22)
    connection.attach(stdin=True, lossless=True)
    connection.start()
    seen = b""

    def see(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            event = connection.recv()
            assert event is not None
            seen += event.data if isinstance(event, Output) else b""

    see(b"11 22\r\n")
    connection.send_stdin(b"hello\n")
    see(b"hello\r\ngot hello\r\n")
    connection.resize(33, 44)
    see(b"33 44\r\n")
    exited = running.finish()[-1]
    assert isinstance(exited, Exited)
    assert exited.exit_code == 2
    assert b"stdout F got hello\r\n" in (tmp_path / "log").read_bytes()


def test_terminal_last_bytes(launch: Launch) -> None:
    running = launch("sh", "-c", "seq 5000; printf end", terminal=1)
    running.connection.attach(lossless=True)
    running.connection.start()
    assert output(running.finish()) == numbered(5000).replace(b"\n", b"\r\n") + b"end"


def test_terminal_without_a_slave_for_a_moment(launch: Launch) -> None:
    script = "echo one; exec >/dev/null 2>&1 </dev/null; sleep 0.2; echo two >/dev/tty"
    running = launch("sh", "-c", script, terminal=1)
    running.connection.attach()
    running.connection.start()
    assert output(running.finish()) == b"one\r\ntwo\r\n"


@pytest.mark.parametrize(
    ("counters", "baseline", "expected"),
    [
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 2, True),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2, False),
        ("low 0\nhigh 5\nmax 9\noom 4\noom_kill 1\noom_group_kill 0\n", 0, True),
        ("low 0\nhigh 5\nmax 9\noom 4\noom_kill 0\noom_group_kill 7\n", 0, False),
        ("", 0, False),
    ],
)
def test_oom_counter(
    launch: Launch, tmp_path: Path, *, counters: str, baseline: int, expected: bool
) -> None:
    (tmp_path / "oom").write_text(counters)
    running = launch("true", oom=tmp_path / "oom", baseline=baseline, exit=tmp_path / "exit")
    running.connection.start()
    exited = running.finish()[-1]
    assert isinstance(exited, Exited)
    assert exited.oom_killed is expected
    assert json.loads((tmp_path / "exit").read_bytes())["oom_killed"] is expected


def test_reopen_log(launch: Launch, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = launch("sh", "-c", "echo a; read x; echo b", stdin=1, log=log)
    running.connection.attach(stdin=True)
    running.connection.start()
    wait_for(lambda: log.exists() and log.read_bytes().endswith(b"a\n"))
    log.rename(tmp_path / "old")
    running.connection.reopen_log()
    running.connection.send_stdin(b"\n")
    running.finish()
    assert (tmp_path / "old").read_bytes().endswith(b" F a\n")
    assert log.read_bytes().endswith(b" F b\n")
    assert log.read_bytes().count(b"\n") == 1


def test_a_prompt_is_logged_after_a_quiet_second(launch: Launch, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = launch("sh", "-c", "printf 'name? '; read x; echo $x", stdin=1, log=log)
    running.connection.attach(stdin=True)
    running.connection.start()
    wait_for(lambda: log.exists() and b"stdout P name? \n" in log.read_bytes())
    running.connection.send_stdin(b"me\n")
    running.finish()
    assert log.read_bytes().endswith(b"stdout F me\n")


def test_nonsense_from_a_client(launch: Launch, tmp_path: Path) -> None:
    running = launch("sleep", "60", socket=tmp_path / "s")
    running.connection.start()
    ready = running.connection.recv()
    assert isinstance(ready, Ready)
    for message in (
        b"?",
        b"w",
        b"w123456789",
        b"a",
        b"i",
        b"iabc",
        b"c",
        b"X" * 65536,
        b"y" * 70000,
    ):
        with MonitorConnection.connect(str(tmp_path / "s")) as client:
            os.write(client.fileno(), message)
            client.attach()
    os.kill(ready.pid, signal.SIGKILL)
    assert isinstance(running.finish()[-1], Exited)


def test_the_time_that_a_process_has(launch: Launch) -> None:
    late = launch("sleep", "60", limit=200)
    late.connection.start()
    ended = late.finish()[-1]
    assert isinstance(ended, Exited)
    assert (ended.timed_out, ended.signal) == (True, 9)
    early = launch("sh", "-c", "exit 3", limit=60_000)
    early.connection.start()
    ended = early.finish()[-1]
    assert isinstance(ended, Exited)
    assert (ended.timed_out, ended.exit_code) == (False, 3)
