"""The main job, end to end: real images, isolated, limited and connected, by the command line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.command import Scow
from fixtures.images import ImageFactory

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, images: ImageFactory) -> Scow:
    """A state root with the images pulled once; the tests run containers in it."""
    base = tmp_path_factory.mktemp("main")
    scow = Scow(str(base / "root"), str(base / "run"), cold=True)
    for reference in (images.busybox(), images.nginx(), images.python_zstd(), images.many()):
        scow.ok("pull", reference)
    scow.ok("tag", images.busybox(), "busybox")
    scow.ok("tag", images.nginx(), "nginx")
    scow.ok("tag", images.python_zstd(), "python")
    scow.ok("tag", images.many(), "many")
    return scow


@pytest.fixture
def scow(shared: Scow) -> Iterator[Scow]:
    yield shared
    shared.remove_all()


def test_python_prints_from_inside_debian(scow: Scow) -> None:
    code = "import platform; print('hello from', open('/etc/os-release').readline().strip())"
    assert "Debian GNU/Linux 12" in scow.ok("run", "--rm", "python", "python3", "-c", code)


def test_nginx_serves_through_a_published_port(scow: Scow) -> None:
    port = free_port()
    scow.ok("run", "-d", "--name", "web", "-p", f"{port}:80", "nginx", "nginx", "-g", "daemon off;")
    for address in ("127.0.0.1", own_address()):
        assert fetch(f"http://{address}:{port}/")
    assert f"0.0.0.0:{port}->80/tcp" in scow.ok("ps", "--filter", "name=web")
    scow.ok("stop", "-t", "5", "web")
    with pytest.raises(OSError, match=r"refused|timed out|reset"):
        fetch(f"http://127.0.0.1:{port}/", attempts=1)


def test_a_program_that_eats_memory_lives_or_dies_by_its_limit(scow: Scow) -> None:
    eat = "b=[]\nfor i in range(50):\n b.append(bytearray(1<<20))\nprint('ate', len(b))"
    assert scow.ok("run", "--rm", "-m", "100m", "python", "python3", "-c", eat) == "ate 50"
    done = scow("run", "--name", "eater", "-m", "20m", "python", "python3", "-c", eat)
    assert done.code == 137
    state = scow.inspect("eater")["State"]
    assert state["OOMKilled"] is True
    assert state["ExitCode"] == 137


def test_a_plain_kill_is_not_called_oom(scow: Scow) -> None:
    scow.ok("run", "-d", "--name", "sleeper", "-m", "50m", "busybox", "sleep", "1000")
    scow.ok("kill", "sleeper")
    assert scow.ok("wait", "sleeper") == "137"
    assert scow.inspect("sleeper")["State"]["OOMKilled"] is False


def test_two_containers_talk_through_a_shared_network(scow: Scow) -> None:
    scow.ok(
        "run", "-d", "--name", "web", "--network", "none", "nginx", "nginx", "-g", "daemon off;"
    )
    command = [
        "run",
        "--rm",
        "--network",
        "container:web",
        "busybox",
        "wget",
        "-qO-",
        "http://127.0.0.1/",
    ]
    for _ in range(50):
        done = scow(*command)
        if done.code == 0:
            break
        time.sleep(0.1)
    assert done.code == 0, done.err
    assert "<" in done.out or done.out


def test_two_containers_talk_over_the_bridge(scow: Scow) -> None:
    scow.ok("run", "-d", "--name", "web", "nginx", "nginx", "-g", "daemon off;")
    address = scow.inspect("web")["NetworkSettings"]["IPAddress"]
    for _ in range(50):
        done = scow("run", "--rm", "python", "python3", "-c", FETCH, address)
        if done.code == 0:
            break
    assert done.code == 0, done.err
    assert "200 OK" in done.out


def test_a_shell_in_a_terminal(scow: Scow) -> None:
    with scow.terminal("run", "--rm", "-it", "busybox", "sh", rows=30, columns=100) as terminal:
        terminal.expect(r"[#$] ")
        terminal.type("stty size; tty\n")
        terminal.expect(r"30 100")
        terminal.expect(r"/dev/pts/0")
        terminal.resize(40, 120)
        terminal.type("until test \"$(stty size)\" = '40 120'; do sleep 0.05; done; echo size-$?\n")
        terminal.expect(r"size-0")
        # Job control: Ctrl-C reaches the program in front, and the shell lives on.
        terminal.type("sleep 1000\n")
        time.sleep(0.3)
        terminal.type("\x03")
        terminal.expect(r"[#$] ")
        terminal.type("echo a$((1+1))b; exit 7\n")
        terminal.expect(r"a2b")
        assert terminal.wait() == 7


def test_detaching_leaves_it_running_and_attaching_finds_it_again(scow: Scow) -> None:
    with scow.terminal("run", "-it", "--name", "shell", "busybox", "sh") as terminal:
        terminal.expect(r"[#$] ")
        terminal.type("\x10\x11")
        assert terminal.wait() == 0
    assert scow.inspect("shell")["State"]["Running"] is True
    with scow.terminal("attach", "shell") as terminal:
        terminal.type("echo back$((1+1))\n")
        terminal.expect(r"back2")
        terminal.type("exit 3\n")
        assert terminal.wait() == 3


def test_logs_are_followed(scow: Scow) -> None:
    script = "for i in 1 2 3 4 5; do echo line $i; echo err $i >&2; sleep 0.2; done"
    scow.ok("run", "-d", "--name", "talker", "busybox", "sh", "-c", script)
    follower = scow("logs", "-f", "talker")
    assert follower.code == 0
    assert follower.out.splitlines() == [f"line {i}" for i in range(1, 6)]
    assert follower.err.splitlines() == [f"err {i}" for i in range(1, 6)]
    assert scow("logs", "-n", "1", "talker").err.splitlines() == ["err 5"]
    assert re.match(r"\d{4}-\d\d-\d\dT", scow.ok("logs", "-t", "talker"))


def test_exec_joins_it(scow: Scow) -> None:
    scow.ok("run", "-d", "--name", "box", "-m", "64m", "busybox", "sleep", "1000")
    assert scow.ok("exec", "box", "hostname") == scow.inspect("box")["Config"]["Hostname"]
    listing = scow.ok("exec", "box", "ps")
    assert "sleep 1000" in listing
    assert scow.ok("exec", "-u", "1000", "box", "id", "-u") == "1000"
    assert (
        scow.ok("exec", "-e", "A=b c", "-w", "/tmp", "box", "sh", "-c", "echo $A; pwd")
        == "b c\n/tmp"
    )
    assert scow("exec", "box", "sh", "-c", "exit 9").code == 9
    assert scow("exec", "box", "nosuch").code == 127
    assert scow.ok("exec", "-i", "box", "cat", stdin=b"through\n") == "through"
    limit = scow.ok("exec", "box", "sh", "-c", "cat /proc/self/cgroup | head -1")
    assert limit.endswith(":/")


def test_exec_in_a_terminal(scow: Scow) -> None:
    scow.ok("run", "-d", "--name", "box", "busybox", "sleep", "1000")
    with scow.terminal("exec", "-it", "box", "sh") as terminal:
        terminal.expect(r"[#$] ")
        terminal.type("tty; exit 4\n")
        terminal.expect(r"/dev/pts/0")
        assert terminal.wait() == 4


def test_bind_mounts_and_tmpfs_are_seen(scow: Scow, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    out = scow.ok(
        "run", "--rm", "-v", f"{tmp_path}:/data", "-v", f"{tmp_path}:/fixed:ro",
        "--tmpfs", "/scratch:size=64k", "busybox", "sh", "-c",
        "cat /data/file; echo back > /data/answer; touch /fixed/x 2>&1; "
        "grep ' /scratch ' /proc/mounts; dd if=/dev/zero of=/scratch/f bs=1k count=100 2>&1 | tail -1",
    )  # fmt: skip
    assert "from the host" in out
    assert "Read-only file system" in out
    assert "size=64k" in out
    assert (tmp_path / "answer").read_text() == "back\n"


def test_sixty_layers_are_stacked(scow: Scow) -> None:
    assert scow.ok("run", "--rm", "many", "sh", "-c", "ls /stack | wc -l") != "0"


def test_what_is_isolated(scow: Scow) -> None:
    out = scow.ok(
        "run", "--rm", "--hostname", "island", "--pids-limit", "33", "-m", "40m", "--cpus", "0.5",
        "busybox", "sh", "-c",
        "echo pid=$$; hostname; grep -E '^(CapInh|CapPrm|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status;"
        "ls /proc/self/fd | wc -l; cat /proc/1/comm; cat /proc/kcore | wc -c;"
        "echo x > /proc/sys/kernel/core_pattern; mount -t tmpfs x /mnt; unshare -U true; ls /dev",
    )  # fmt: skip
    assert "pid=1\n" in out
    assert "island\n" in out
    assert "CapInh:\t0000000000000000" in out
    assert "CapPrm:\t00000000800405fb" in out
    assert "CapAmb:\t0000000000000000" in out
    assert "Seccomp:\t2" in out
    assert "sda" not in out
    assert "vda" not in out


def test_host_name_files_and_network_modes(scow: Scow) -> None:
    out = scow.ok(
        "run", "--rm", "--hostname", "box", "--add-host", "db:10.1.2.3", "--dns", "9.9.9.9",
        "busybox", "sh", "-c", "cat /etc/hosts /etc/hostname /etc/resolv.conf; ip -o addr",
    )  # fmt: skip
    assert re.search(r"10\.1\.2\.3\s+db", out)
    assert "nameserver 9.9.9.9" in out
    assert "eth0" in out
    none = scow.ok("run", "--rm", "--network", "none", "busybox", "ip", "-o", "addr")
    assert "127.0.0.1" in none
    assert "eth0" not in none
    host = scow.ok("run", "--rm", "--network", "host", "busybox", "ls", "/sys/class/net")
    assert set(os.listdir("/sys/class/net")) == set(host.split())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("busybox", "nosuch"), 127, "nosuch"),
        (("busybox", "/etc"), 126, "directory"),
        (("busybox", "/etc/passwd"), 126, "permission"),
        (("busybox", "sh", "-c", "exit 42"), 42, ""),
        (("busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137, ""),
        (("-u", "nosuch", "busybox", "true"), 125, "nosuch"),
        (("--pull", "never", "missing-image", "true"), 125, "missing-image"),
        (("-m", "0.5k", "busybox", "true"), 125, "memory"),
        (("--cpus", "1000", "busybox", "true"), 125, "CPUs"),
        (("--memroy", "1g", "busybox", "true"), 125, "--memory"),
        (("--cpuset-cpus", "77", "busybox", "true"), 125, "77"),
        (("--blkio-weight", "5", "busybox", "true"), 125, "weight"),
        (("--network", "host", "-p", "80:80", "busybox", "true"), 125, "-p"),
        (("-v", "/nonexistent/../..:/", "busybox", "true"), 125, "/"),
        (("--sysctl", "kernel.panic=1", "busybox", "true"), 125, "kernel.panic"),
        (("--security-opt", "seccomp=/nonexistent", "busybox", "true"), 125, "seccomp"),
        (("--device", "/nonexistent", "busybox", "true"), 125, "/nonexistent"),
        (("--ulimit", "nofile=2:1", "busybox", "true"), 125, "nofile"),
    ],
)
def test_exit_codes_and_one_clear_line(
    scow: Scow, words: tuple[str, ...], code: int, message: str
) -> None:
    done = (
        scow("run", "--network=none", *words) if "--network" not in words else scow("run", *words)
    )
    assert done.code == code, done.err
    assert message.lower() in done.err.lower()
    assert "Traceback" not in done.err
    if code == 125:
        assert done.err.startswith("scow: ")
        assert len(done.err.splitlines()) <= 2
        assert scow.ok("ps", "-aq") == "", "a refused container stays"


def test_a_missing_interpreter_is_named(scow: Scow, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/opt/none/perl\n")
    script.chmod(0o755)
    done = scow("run", "--network", "none", "-v", f"{script}:/script", "busybox", "/script")
    assert done.code == 127
    assert "/opt/none/perl" in done.err


def test_names_and_ports_in_use_name_their_holder(scow: Scow) -> None:
    port = free_port()
    first = scow.ok("run", "-d", "--name", "web", "-p", f"{port}:80", "busybox", "sleep", "1000")
    done = scow("run", "-d", "--name", "web", "busybox", "true")
    assert done.code == 125
    assert first[:12] in done.err
    done = scow("run", "-d", "-p", f"{port}:80", "busybox", "sleep", "1000")
    assert done.code == 125
    assert str(port) in done.err
    assert len(scow.ok("ps", "-aq").split()) == 1


def test_rm_of_a_running_container_is_refused(scow: Scow) -> None:
    scow.ok("run", "-d", "--name", "busy", "busybox", "sleep", "1000")
    done = scow("rm", "busy")
    assert done.code == 1
    assert "running" in done.err
    assert "-f" in done.err
    assert scow.ok("rm", "-f", "busy") == "busy"


def test_one_of_many_racers_for_a_name_wins(scow: Scow) -> None:
    running = [
        scow.spawn("run", "-d", "--network", "none", "--name", "one", "busybox", "sleep", "1000")
        for _ in range(8)
    ]
    codes = [process.wait(60) for process in running]
    errors = [process.communicate()[1].decode() for process in running]
    assert sorted(codes) == [0] + [125] * 7, errors
    assert all("name 'one'" in error for code, error in zip(codes, errors, strict=True) if code)


def test_pause_freezes_and_unpause_goes_on(scow: Scow) -> None:
    scow.ok(
        "run",
        "-d",
        "--name",
        "ticker",
        "busybox",
        "sh",
        "-c",
        "while :; do echo tick tock tick tock; sleep 0.05; done",
    )
    scow.ok("pause", "ticker")
    assert "(Paused)" in scow.ok("ps")
    size = len(scow.ok("logs", "ticker"))
    time.sleep(0.4)
    assert len(scow.ok("logs", "ticker")) <= size + 64
    assert scow("exec", "ticker", "true").code != 0
    scow.ok("unpause", "ticker")
    until(lambda: len(scow.ok("logs", "ticker")) > size + 64)
    scow.ok("pause", "ticker")
    scow.ok("stop", "-t", "1", "ticker")


def test_stats_shows_what_is_used(scow: Scow) -> None:
    scow.ok(
        "run", "-d", "--name", "box", "-m", "64m", "--pids-limit", "9", "busybox", "sleep", "1000"
    )
    out = scow.ok("stats", "--no-stream", "box")
    assert "64MiB" in out
    assert "box" in out


def test_a_container_survives_the_death_of_its_starter(scow: Scow) -> None:
    starter = scow.spawn(
        "run",
        "--name",
        "orphan",
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done; exit 5",
    )
    for _ in range(100):
        if "orphan" in scow("ps", "--format", "{{.Names}}").out:
            break
        time.sleep(0.05)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.communicate()
    assert scow.ok("wait", "orphan") == "5"
    assert scow.ok("logs", "orphan").split() == [str(i) for i in range(1, 9)]
    deadline = time.monotonic() + 60
    while scow("system", "check", "--quick").code:  # its images are large, and not the question
        assert time.monotonic() < deadline, scow("system", "check", "--quick").out
        time.sleep(0.1)


def test_a_container_that_nobody_watches_is_cleaned_up(scow: Scow) -> None:
    identity = scow.ok("run", "-d", "--rm", "busybox", "sleep", "0.3")
    deadline = time.monotonic() + 60
    while scow.ok("ps", "-aq"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not Path(scow.env["SCOW_RUN"], "containers", identity).exists()
    assert not Path(scow.env["SCOW_ROOT"], "containers", identity).exists()


def test_read_only_root_user_groups_and_capabilities(scow: Scow) -> None:
    out = scow.ok(
        "run", "--rm", "--network", "none", "--read-only", "-u", "1000:1000", "--group-add", "55",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "busybox", "sh", "-c",
        "touch /x 2>&1; id; grep -E 'Cap|NoNew' /proc/self/status",
    )  # fmt: skip
    assert "Read-only file system" in out
    assert "uid=1000" in out
    assert "55" in out
    assert "CapBnd:\t0000000000000000" in out
    assert "NoNewPrivs:\t1" in out


def test_privileged_has_devices_and_no_filter(scow: Scow) -> None:
    out = scow.ok(
        "run", "--rm", "--network", "none", "--privileged", "busybox", "sh", "-c",
        "grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp && echo mounted; ls /dev | wc -l",
    )  # fmt: skip
    assert "Seccomp:\t0" in out
    assert "mounted" in out


def test_env_labels_workdir_entrypoint(scow: Scow, tmp_path: Path) -> None:
    (tmp_path / "vars").write_text("# comment\nFROM_FILE=yes\n")
    out = scow.ok(
        "run", "--rm", "--network", "none", "-e", "A=1", "--env-file", str(tmp_path / "vars"),
        "-w", "/made/here", "--entrypoint", "/bin/sh", "-l", "k=v", "busybox", "-c", "env; pwd",
    )  # fmt: skip
    assert "A=1" in out
    assert "FROM_FILE=yes" in out
    assert out.endswith("/made/here")


def test_volumes_keep_their_content(scow: Scow) -> None:
    scow.ok(
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "data:/data",
        "busybox",
        "sh",
        "-c",
        "echo kept > /data/x",
    )
    assert (
        scow.ok("run", "--rm", "--network", "none", "-v", "data:/data", "busybox", "cat", "/data/x")
        == "kept"
    )


def test_explain_tells_the_calls_and_runs_nothing(scow: Scow) -> None:
    out = scow.ok("run", "--explain", "--dry-run", "-m", "64m", "busybox", "true")
    for word in ("clone3", "pivot_root", "seccomp", "capset", "execve"):
        assert word in out
    assert scow.ok("ps", "-aq") == ""


def test_inspect_plan_prints_the_plan(scow: Scow) -> None:
    scow.ok("create", "--name", "made", "busybox", "true")
    assert "pivot_root" in scow.ok("inspect", "--plan", "made")


def test_output_is_whole_for_a_slow_reader(scow: Scow) -> None:
    reader = scow.spawn("run", "--rm", "--network", "none", "busybox", "sh", "-c", "seq 1 300000")
    assert reader.stdout is not None
    time.sleep(0.5)
    data, _ = reader.communicate(timeout=60)
    assert data == b"".join(b"%d\n" % i for i in range(1, 300001))


def test_logs_rotate_and_follow_across(scow: Scow) -> None:
    scow.ok(
        "run", "-d", "--name", "noisy", "--network", "none", "--log-opt", "max-size=1m",
        "--log-opt", "max-file=3", "busybox", "sh", "-c", "seq 1 200000; sleep 0.5",
    )  # fmt: skip
    assert scow.ok("wait", "noisy") == "0"
    directory = Path(scow.env["SCOW_ROOT"], "containers", scow.ok("ps", "-aq", "--no-trunc"))
    assert sum(1 for path in directory.iterdir() if path.name.startswith("container.log")) == 3
    lines = scow.ok("logs", "noisy").splitlines()
    assert lines[-1] == "200000"
    numbers = [int(line) for line in lines]
    assert numbers == list(range(numbers[0], 200001))


def test_save_and_load(scow: Scow, tmp_path: Path) -> None:
    archive = tmp_path / "busybox.tar"
    scow.ok("save", "-o", str(archive), "busybox")
    other = Scow(str(tmp_path / "root"), str(tmp_path / "run"), cold=True)
    assert "Loaded image" in other.ok("load", "-i", str(archive))
    assert other.ok("images", "-q", "--no-trunc") in scow.ok("images", "-q", "--no-trunc")


def test_an_image_in_use_is_not_removed(scow: Scow) -> None:
    scow.ok("create", "--name", "user", "busybox", "true")
    identity = scow.ok("images", "-q", "--no-trunc", "busybox")
    done = scow("rmi", identity)
    assert done.code == 1
    assert done.err


def test_stop_reaches_a_program_that_handles_the_signal(scow: Scow) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    scow.ok("run", "-d", "--name", "polite", "busybox", "sh", "-c", script)
    while "ready" not in scow("logs", "polite").out:
        time.sleep(0.05)
    began = time.monotonic()
    assert scow.ok("stop", "polite") == "polite"
    assert time.monotonic() - began < 30
    assert scow.inspect("polite")["State"]["ExitCode"] == 3
    assert "bye" in scow.ok("logs", "polite")


def test_udp_through_a_published_port(scow: Scow) -> None:
    port = free_port(socket.SOCK_DGRAM)
    scow.ok(
        "run", "-d", "--name", "echo", "-p", f"{port}:9/udp", "python", "python3", "-c", UDP_ECHO
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        for _ in range(40):
            client.sendto(b"ping", ("127.0.0.1", port))
            try:
                assert client.recv(16) == b"ping"
                return
            except OSError:
                time.sleep(0.1)
    pytest.fail("no answer")


FETCH = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80), 2)
s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
print(s.recv(65536).decode())
"""

UDP_ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 9))
while True:
    data, peer = s.recvfrom(100); s.sendto(data, peer)
"""


def test_signals_are_forwarded_by_a_foreground_run(scow: Scow) -> None:
    script = "trap 'exit 6' INT; echo ready; while :; do sleep 0.1; done"
    running = scow.spawn("run", "--rm", "--network", "none", "busybox", "sh", "-c", script)
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 6
    running.communicate()


def test_many_at_once(scow: Scow) -> None:
    results: list[int] = []

    def one() -> None:
        results.append(scow("run", "--rm", "busybox", "true").code)

    threads = [threading.Thread(target=one) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 10
    assert scow.ok("ps", "-aq") == ""


def test_an_init_reaps_and_passes_signals_on(scow: Scow) -> None:
    orphans = "for i in $(seq 20); do (sleep 0.1 &) ; done; trap 'exit 8' TERM; echo ready; while :; do sleep 0.1; done"
    scow.ok(
        "run",
        "-d",
        "--init",
        "--name",
        "tended",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        orphans,
    )
    until(lambda: "ready" in scow("logs", "tended").out)
    listing = ("exec", "tended", "ps", "-o", "pid,stat,comm")
    assert re.search(r"^\s*1 S\s+scow-init$", scow.ok(*listing), re.MULTILINE)
    # each of them was somebody else's child; the shell's own sleep may be a zombie for a moment
    until(lambda: " Z " not in scow.ok(*listing))
    assert "exe" not in scow("exec", "tended", "cat", "/proc/1/exe").out
    scow.ok("stop", "tended")
    assert scow.inspect("tended")["State"]["ExitCode"] == 8
    assert scow("run", "--rm", "--init", "--network", "none", "busybox", "nosuch").code == 127
    killed = scow("run", "--rm", "--init", "--network", "none", "busybox", "sh", "-c", "kill -9 $$")
    assert killed.code == 137


def test_an_init_leaves_job_control_to_the_shell(scow: Scow) -> None:
    with scow.terminal(
        "run", "--rm", "-it", "--init", "--network", "none", "busybox", "sh"
    ) as terminal:
        terminal.expect(r"[#$] ")
        terminal.type("sleep 1000\n")
        time.sleep(0.3)
        terminal.type("\x1a")
        terminal.expect(r"Stopped|[#$] ")
        terminal.type("kill -9 %1\n")
        terminal.expect(r"[#$] ")
        # The first one is told about the stopped job.
        terminal.type("exit 5\nexit 5\n")
        assert terminal.wait() == 5


def until(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def own_address() -> str:
    """An address of this host that is not loopback's."""
    out = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout
    found = [word for word in out.split() if "." in word and not word.startswith("10.89.")]
    return found[0] if found else "127.0.0.1"


def fetch(url: str, attempts: int = 50) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for attempt in range(attempts):
        try:
            with opener.open(url, timeout=2) as answer:
                return bytes(answer.read())
        except OSError:
            if attempt == attempts - 1:
                raise
            time.sleep(0.1)
    raise AssertionError(url)
