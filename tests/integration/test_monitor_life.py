"""The real monitor, from its sealed memfd, over processes in a pid namespace of their own."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from scow.native import plan as plans
from scow.native import spawn
from scow.runtime import monitor
from scow.runtime.monitor import (
    Dropped,
    Event,
    Exited,
    Failed,
    MonitorConnection,
    Output,
    Ready,
    Started,
)

pytestmark = pytest.mark.root

CLONE_NEWPID = 0x20000000
ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",)


class Running:
    """A monitor under test, the starter's connection to it, and where it leaves its files."""

    def __init__(self, launched: spawn.Launched, root: Path) -> None:
        self.pid = launched.pid
        self.pidfd = launched.pidfd
        self.connection = MonitorConnection(launched.control.steal())
        self.root = root

    def connect(self) -> MonitorConnection:
        """One more client, by the path socket."""
        return MonitorConnection.connect(str(self.root / "sock"))

    def ready(self) -> int:
        """Wait until the process is created; its pid."""
        event = self.connection.recv()
        assert isinstance(event, Ready), event
        return event.pid

    def finish(self) -> list[Event]:
        """Everything that is still said, until the monitor itself is gone."""
        events = list(iter(self.connection.recv, None))
        self.reap()
        return events

    def reap(self) -> None:
        """Wait for the monitor's own end."""
        poll = select.poll()
        poll.register(self.pidfd.fileno(), select.POLLIN)
        assert poll.poll(60_000), "the monitor does not end"
        if self.pid:
            os.waitpid(self.pid, 0)
            self.pid = 0

    def record(self) -> monitor.ExitRecord:
        record = monitor.read_exit_record(str(self.root / "exit"))
        assert record is not None
        return record


def make_plan(
    root: Path,
    command: tuple[str, ...],
    *,
    before: tuple[plans.Operation, ...] = (),
    terminal: bool = False,
    namespaces: int = CLONE_NEWPID,
    mode: Literal["run", "exec"] = "run",
    **config: object,
) -> plans.Plan:
    """A plan without a root file system of its own: stdio, start, execve."""
    values = {
        "container_id": root.name,
        "log_path": str(root / "log"),
        "log_max_files": 3,
        "socket_path": str(root / "sock"),
        "exit_path": str(root / "exit"),
        "status_path": str(root / "status"),
        "terminal": terminal,
        **config,
    }
    stdio: plans.Operation = plans.StdioFromMonitor()
    if terminal:
        stdio = plans.Terminal(rows=24, cols=80, console=False)
    return plans.Plan(
        ops=(*before, stdio, plans.AwaitStart(), plans.Execute(argv=command, env=ENVIRONMENT)),
        namespaces=namespaces,
        mode=mode,
        monitor=plans.MonitorConfig(**values),  # type: ignore[arg-type]  # tests' own options
    )


Launch = Callable[..., Running]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    started: list[Running] = []

    def launch_monitor(*command: str, **options: object) -> Running:
        root = tmp_path / f"c{len(started)}"
        root.mkdir()
        plan = make_plan(root, command, **options)  # type: ignore[arg-type]  # tests' own options
        started.append(Running(spawn.launch(plan), root))
        return started[-1]

    yield launch_monitor
    for running in started:
        status = monitor.read_status_record(str(running.root / "status"))
        running.connection.close()
        if running.pid and status is not None:
            with_start = Path(f"/proc/{status.pid}/stat")
            if with_start.exists() and f" {status.start_time} " in with_start.read_text():
                os.kill(status.pid, signal.SIGKILL)
        running.reap()
        running.pidfd.close()


def output(events: list[Event], stream: int = 1) -> bytes:
    return b"".join(e.data for e in events if isinstance(e, Output) and e.stream == stream)


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


LINES = 7_500_000  # 64 MiB of numbers and newlines


def numbered_digest(lines: int) -> tuple[int, str]:
    """Length and sha256 of what `seq lines` writes."""
    digest, length = hashlib.sha256(), 0
    for start in range(1, lines + 1, 100_000):
        numbers = range(start, min(start + 100_000, lines + 1))
        data = ("\n".join(map(str, numbers)) + "\n").encode()
        digest.update(data)
        length += len(data)
    return length, digest.hexdigest()


def test_64_mib_through_the_log_with_rotations(launch: Launch) -> None:
    running = launch("seq", str(LINES), log_max_bytes=40 << 20, log_max_files=20)
    running.connection.start()
    exited = running.finish()[-1]
    assert isinstance(exited, Exited)
    assert exited.exit_code == 0
    files = sorted(running.root.glob("log.*"), key=lambda p: -int(p.suffix[1:]))
    files.append(running.root / "log")
    assert len(files) > 5
    digest, length = hashlib.sha256(), 0
    for file in files:
        assert file.stat().st_size <= 40 << 20
        data = file.read_bytes()
        assert data.count(b" stdout F ") == data.count(b"\n")
        content = b"\n".join([line[40:] for line in data.split(b"\n")])
        length += len(content)
        digest.update(content)
    assert (length, digest.hexdigest()) == numbered_digest(LINES)
    assert running.record().log_lost_bytes == 0


def test_64_mib_through_a_lossless_client(launch: Launch) -> None:
    running = launch("seq", str(LINES), log_path="")
    running.connection.attach(lossless=True)
    running.connection.start()
    digest, length = hashlib.sha256(), 0
    while not isinstance(event := running.connection.recv(), Exited):
        assert event is not None
        if isinstance(event, Output):
            digest.update(event.data)
            length += len(event.data)
    assert (length, digest.hexdigest()) == numbered_digest(LINES)


def test_binary_bytes_and_partial_lines(launch: Launch) -> None:
    script = "import os\nfor i in range(256): os.write(1, bytes(range(256))); os.write(2, b'e' * i)"
    running = launch("/usr/bin/python3", "-c", script)
    running.connection.attach(lossless=True)
    running.connection.start()
    events = running.finish()
    assert output(events, 1) == bytes(range(256)) * 256
    assert output(events, 2) == b"e" * sum(range(256))
    streams = {b"stdout": b"", b"stderr": b""}
    for record in (running.root / "log").read_bytes().split(b"\n")[:-1]:
        _, stream, tag, content = record.split(b" ", 3)
        streams[stream] += content + (b"\n" if tag == b"F" else b"")
    assert streams[b"stdout"] == bytes(range(256)) * 256
    assert streams[b"stderr"] == b"e" * sum(range(256))


def test_stalled_clients_block_nobody(launch: Launch) -> None:
    running = launch("sh", "-c", "seq 2000000; exec sleep 60", log_max_bytes=1 << 20)
    pid = running.ready()
    stalled = [running.connect() for _ in range(8)]
    for client in stalled:
        client.attach()
    running.connection.attach(lossless=True)
    running.connection.start()
    got = 0
    while got < 14_888_896:
        event = running.connection.recv()
        got += len(event.data) if isinstance(event, Output) else 0
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    exited = running.finish()[-1]
    assert time.monotonic() - began < 30
    assert isinstance(exited, Exited)
    assert exited.signal == signal.SIGKILL
    for client in stalled:
        events = list(iter(client.recv, None))
        assert events[-1] == Dropped(too_slow=True)
        client.close()


def test_exit_codes_and_signals(launch: Launch) -> None:
    for code in (0, 1, 42, 125, 255):
        running = launch("sh", "-c", f"exit {code}")
        running.connection.start()
        exited = running.finish()[-1]
        assert isinstance(exited, Exited)
        assert (exited.exit_code, exited.signal) == (code, 0)
        assert running.record().exit_code == code
    for sig in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        running = launch("sh", "-c", f"kill -{int(sig)} $$; sleep 9", namespaces=0)
        running.connection.start()
        exited = running.finish()[-1]
        assert isinstance(exited, Exited)
        assert (exited.exit_code, exited.signal) == (128 + sig, sig)
        assert running.record().signal == sig


def test_records(launch: Launch) -> None:
    running = launch("sh", "-c", "exit 3")
    pid = running.ready()
    status = monitor.read_status_record(str(running.root / "status"))
    assert status is not None
    assert (status.id, status.pid, status.monitor_pid) == (running.root.name, pid, running.pid)
    for process, start_time in ((pid, status.start_time), (running.pid, status.monitor_start_time)):
        stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        assert start_time == int(stat[19])
    running.connection.start()
    exited = running.finish()[-1]
    assert isinstance(exited, Exited)
    record = running.record()
    assert (record.pid, record.status, record.exit_code, record.signal) == (pid, 768, 3, 0)
    assert (record.started_at, record.finished_at) == (exited.started_ns, exited.finished_ns)
    assert status.created_at <= record.started_at <= record.finished_at
    assert record.error is None
    assert not (running.root / "sock").exists()


def test_the_program_gets_nothing_of_ours(launch: Launch) -> None:
    running = launch("sh", "-c", "ls -l /proc/self/fd; grep Sig /proc/self/status", namespaces=0)
    running.connection.attach()
    running.connection.start()
    text = output(running.finish()).decode()
    assert [line.split()[8] for line in text.splitlines() if "->" in line] == ["0", "1", "2", "3"]
    assert "SigIgn:\t0000000000000000" in text
    assert "SigBlk:\t0000000000000000" in text


def test_no_such_command(launch: Launch) -> None:
    running = launch("/no/such")
    running.connection.start()
    events = running.finish()
    failed = next(event for event in events if isinstance(event, Failed))
    assert (failed.failure.errno, failed.failure.step) == (errno.ENOENT, plans.Execute.code)
    exited = events[-1]
    assert isinstance(exited, Exited)
    assert (exited.exit_code, exited.started_ns) == (127, 0)
    assert not any(isinstance(event, Started) for event in events)
    assert running.record().error == failed.failure


def drive(connection: MonitorConnection, data: bytes) -> tuple[bytes, Exited]:
    """Send all of `data` and its end while receiving; the output and the exit."""
    sent, closed, got = 0, False, bytearray()
    while True:
        sent += connection.send_stdin(data[sent:])
        if sent == len(data) and not closed:
            closed = connection.close_stdin()
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN | (0 if closed else select.POLLOUT))
        if poll.poll(60_000)[0][1] & select.POLLIN:
            event = connection.recv()
            if isinstance(event, Exited):
                return bytes(got), event
            got += event.data if isinstance(event, Output) else b""


def test_stdin_echo_with_half_close(launch: Launch) -> None:
    data = os.urandom(5_000_000)
    running = launch("cat", open_stdin=True, stdin_once=True, log_path="")
    running.connection.attach(stdin=True, lossless=True)
    running.connection.start()
    got, exited = drive(running.connection, data)
    assert got == data
    assert exited.exit_code == 0


def test_terminal_echo_and_resize(launch: Launch) -> None:
    # Not `read`: a signal that comes just before it waits is told to the trap after it.
    script = (
        "trap 'stty size; exit 2' WINCH; tty; stty size; read x; echo got $x; "
        "while :; do sleep 0.02; done"
    )
    running = launch("sh", "-c", script, terminal=True, open_stdin=True)
    connection = running.connection
    connection.attach(stdin=True, lossless=True)
    connection.start()
    seen = b""

    def see(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            event = connection.recv()
            assert event is not None, seen
            seen += event.data if isinstance(event, Output) else b""

    see(b"24 80\r\n")
    connection.send_stdin(b"hello\n")
    see(b"hello\r\ngot hello\r\n")
    connection.resize(33, 44)
    see(b"33 44\r\n")
    exited = running.finish()[-1]
    assert isinstance(exited, Exited)
    assert exited.exit_code == 2
    assert b"stdout F got hello\r\n" in (running.root / "log").read_bytes()


def test_cleanup_is_called_when_nobody_watches(launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "cleaned"
    script = 'ls /proc/self/fd >"$1.tmp"; echo "$WORD" >>"$1.tmp"; mv "$1.tmp" "$1"'
    options = {
        "cleanup_argv": ("/bin/sh", "-c", script, "sh", str(out)),
        "cleanup_env": ("WORD=given", "PATH=/usr/bin:/bin"),
    }
    running = launch("true", **options)
    running.connection.start()
    running.finish()
    wait_for(out.exists)
    assert out.read_text().split() == ["0", "1", "2", "3", "given"]
    out.unlink()
    running = launch("true", **options)
    running.connection.watch()
    running.connection.start()
    running.finish()
    time.sleep(0.3)
    assert not out.exists()


STARTER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_monitor_life import make_plan
from scow.native import spawn
from scow.runtime.monitor import MonitorConnection
root = Path(sys.argv[2])
launched = spawn.launch(make_plan(root, ("sh", "-c", "sleep 0.6; echo late; exit 9"),
                                  cleanup_argv=("/bin/touch", str(root / "cleaned"))))
connection = MonitorConnection(launched.control.steal())
connection.recv()
if sys.argv[3] == "start":
    connection.start()
    connection.recv()
print(launched.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["before", "start"])
def test_the_starter_is_killed(tmp_path: Path, moment: str) -> None:
    root = tmp_path / "c"
    root.mkdir()
    argv = [sys.executable, "-c", STARTER, str(Path(__file__).parent), str(root), moment]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pidfd = os.pidfd_open(int(starter.stdout.readline()))
        starter.kill()
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(60_000)
    os.close(pidfd)
    record = monitor.read_exit_record(str(root / "exit"))
    status = monitor.read_status_record(str(root / "status"))
    assert record is not None
    assert status is not None
    assert not Path(f"/proc/{status.pid}").exists()
    wait_for((root / "cleaned").exists)
    if moment == "start":
        assert (record.exit_code, record.error) == (9, None)
        assert (root / "log").read_bytes().endswith(b"stdout F late\n")
    else:
        assert (record.signal, record.started_at) == (signal.SIGKILL, 0)
        assert (root / "log").read_bytes() == b""


def test_exec_into_a_pid_namespace(launch: Launch) -> None:
    container = launch("sh", "-c", "exec sleep 60")
    pid = container.ready()
    container.connection.start()
    namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        running = launch(
            "sh", "-c", "read x; echo $x; ls /proc/self/fd >&2; kill -USR1 $$; sleep 5",
            namespaces=0, mode="exec", log_path="", socket_path="", open_stdin=True, stdin_once=True,
            before=(
                plans.JoinNamespace(fd=namespace, kind=CLONE_NEWPID),
                plans.EnterPidNamespace(2**41 - 1),
            ),
        )  # fmt: skip
    finally:
        os.close(namespace)
    moved = running.ready()
    assert Path(f"/proc/{moved}/status").read_text().split("NSpid:")[1].split()[0] == str(moved)
    running.connection.attach(stdin=True)
    running.connection.start()
    running.connection.send_stdin(b"word\n")
    events = running.finish()
    exited = events[-1]
    assert isinstance(exited, Exited)
    assert exited.signal == signal.SIGUSR1
    assert output(events) == b"word\n"
    assert not (running.root / "sock").exists()
    os.kill(pid, signal.SIGKILL)
    assert isinstance(container.finish()[-1], Exited)


def test_exec_whose_client_is_gone_runs_on(launch: Launch, tmp_path: Path) -> None:
    running = launch(
        "sh", "-c", f"seq 1000000; touch {tmp_path}/done; exit 8",
        namespaces=0, mode="exec", log_path="", socket_path="",
    )  # fmt: skip
    running.ready()
    running.connection.attach(lossless=True)
    running.connection.start()
    assert isinstance(running.connection.recv(), Started)
    running.connection.close()
    running.reap()
    assert (tmp_path / "done").exists()
    assert running.record().exit_code == 8


def test_orphans_are_reaped(launch: Launch) -> None:
    running = launch("sh", "-c", "for i in 1 2 3; do (sleep 0.1 &) ; done; sleep 60", namespaces=0)
    pid = running.ready()
    running.connection.start()
    assert isinstance(running.connection.recv(), Started)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    orphans = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sh\n" and bool(orphans.read_text()))
    wait_for(lambda: children.read_text().split() == [str(pid)])
    os.kill(pid, signal.SIGKILL)
    assert isinstance(running.finish()[-1], Exited)


def test_signals_do_not_end_a_monitor(launch: Launch) -> None:
    running = launch("sh", "-c", "sleep 0.4; exit 6")
    running.ready()
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2):
        os.kill(running.pid, sig)
    running.connection.start()
    exited = running.finish()[-1]
    assert isinstance(exited, Exited)
    assert exited.exit_code == 6


def test_memory_of_an_idle_monitor(launch: Launch) -> None:
    # Its text is private to this test's memfd, so this is the dearest case; the promise is 150 kB.
    running = launch("sh", "-c", "seq 100000; exec sleep 60")
    pid = running.ready()
    running.connection.start()
    wait_for(lambda: (running.root / "log").read_bytes().endswith(b" 100000\n"))

    def sizes() -> dict[str, str]:
        rollup = Path(f"/proc/{running.pid}/smaps_rollup").read_text().split()
        return dict(itertools.pairwise(rollup))

    # what it used is given back after a quiet second
    wait_for(lambda: int(sizes()["Pss_Anon:"]) <= 40)
    wait_for(lambda: int(sizes()["Pss:"]) <= 124)
    os.kill(pid, signal.SIGKILL)
    running.finish()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(path: Path) -> None:
    """Write until the disk takes no more."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def test_a_full_disk(small_disk: Path, launch: Launch) -> None:
    running = launch(
        "sh", "-c", "echo first; read x; seq 100000; exit 5", open_stdin=True,
        log_path=str(small_disk / "log"), exit_path=str(small_disk / "exit"),
    )  # fmt: skip
    running.ready()
    running.connection.attach(stdin=True, lossless=True)
    running.connection.start()
    wait_for(lambda: (small_disk / "log").read_bytes().endswith(b" first\n"))
    fill(small_disk / "filler")
    running.connection.send_stdin(b"\n")
    events = running.finish()
    assert output(events) == b"first\n" + b"".join(b"%d\n" % i for i in range(1, 100_001))
    record = monitor.read_exit_record(str(small_disk / "exit"))
    assert record is not None
    assert (record.exit_code, record.log_errno) == (5, errno.ENOSPC)
    kept = [line[40:] + b"\n" for line in (small_disk / "log").read_bytes().split(b"\n")[:-1]]
    assert len(b"".join(kept)) + record.log_lost_bytes == len(output(events))
    assert b"".join(kept) == output(events)[: len(b"".join(kept))]


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    base = Path("/sys/fs/cgroup/memory")
    if not (base / "tasks").exists():
        pytest.skip("no cgroup v1 memory controller here; v2 has the same counter in memory.events")
    path = base / f"scow-test-monitor-{os.getpid()}"
    path.mkdir()
    yield path
    wait_for(lambda: not (path / "tasks").read_text())
    path.rmdir()


@pytest.mark.parametrize("victim", ["itself", "nobody"])
def test_out_of_memory(launch: Launch, memory_cgroup: Path, victim: str) -> None:
    (memory_cgroup / "memory.limit_in_bytes").write_text("20m")
    tasks = os.open(memory_cgroup / "tasks", os.O_WRONLY | os.O_CLOEXEC)
    oom = os.open(memory_cgroup / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    script = (
        "x = bytearray(100 << 20)" if victim == "itself" else "import os; os.kill(os.getpid(), 9)"
    )
    try:
        running = launch(
            "/usr/bin/python3", "-c", script,
            namespaces=0, oom_fd=oom, before=(plans.JoinCgroups(fds=(tasks,)),),
        )  # fmt: skip
    finally:
        os.close(tasks)
        os.close(oom)
    running.connection.start()
    exited = running.finish()[-1]
    assert isinstance(exited, Exited)
    assert exited.signal == signal.SIGKILL
    assert exited.oom_killed is (victim == "itself")
    assert running.record().oom_killed is (victim == "itself")
