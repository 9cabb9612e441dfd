"""scow-oci as an engine drives it, command by command."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures import kernel, warm
from fixtures.bundle import FRONT, SCOW_OCI, Bundle, Runtime

NAME = "c1"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    kernel.need(kernel.mount_refused)
    return Bundle(tmp_path / "bundle", f"/scow-oci-test/{os.getpid()}")


@pytest.fixture(params=["warm", "cold"])
def oci(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runtime]:
    """The command as it is installed, served by a warm process; and an interpreter of its own."""
    if request.param == "warm":
        monkeypatch.setenv(warm.VARIABLE, str(request.getfixturevalue("warm_process").directory))
    argv = FRONT if request.param == "warm" else SCOW_OCI
    runtime = Runtime(argv, tmp_path / "state", cold=True)
    yield runtime
    runtime.remove_all()


def until(question: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.02)


def state(oci: Runtime, name: str = NAME) -> dict[str, Any]:
    return json.loads(oci.ok("state", name))


def create(oci: Runtime, bundle: Bundle, *flags: str) -> int:
    bundle.write()
    pid_file = bundle.path / "pid"
    done = oci.quiet(
        "create", "--bundle", str(bundle.path), "--pid-file", str(pid_file), *flags, NAME
    )
    assert done.code == 0
    return int(pid_file.read_text())


def fails(oci: Runtime, bundle: Bundle, *words: str) -> str:
    """Creating must fail and leave nothing; what it says."""
    bundle.write()
    done = oci("create", "--bundle", str(bundle.path), *words, NAME)
    assert done.code == 1
    assert oci.ok("list", "-q") == ""
    assert not (oci.root / NAME).exists()
    return done.err


@pytest.mark.guest
def test_a_container_lives_through_all_its_states(oci: Runtime, bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "100"]
    pid = create(oci, bundle)
    told = state(oci)
    assert (told["status"], told["pid"], told["bundle"]) == ("created", pid, str(bundle.path))
    # no file of the host is the program of a process that a container can see (CVE-2019-5736)
    assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:scow-monitor")
    oci.ok("start", NAME)
    assert state(oci)["status"] == "running"
    assert os.readlink(f"/proc/{pid}/exe") == "/bin/busybox"
    assert "already running" in oci("start", NAME).err
    assert json.loads(oci.ok("ps", "-f", "json", NAME)) == [pid]
    assert str(pid) in oci.ok("ps", NAME)
    oci.ok("pause", NAME)
    assert state(oci)["status"] == "paused"
    assert "paused" in oci("exec", NAME, "true").err
    oci.ok("resume", NAME)
    assert "not stopped" in oci("delete", NAME).err
    oci.ok("kill", NAME, "KILL")
    until(lambda: state(oci)["status"] == "stopped")
    assert state(oci)["pid"] == 0
    assert "container not running" in oci("kill", NAME).err
    assert "stopped" in oci("start", NAME).err
    oci.ok("delete", NAME)
    assert "container does not exist" in oci("state", NAME).err
    assert oci("delete", NAME).code == 1
    oci.ok("delete", "--force", NAME)


def test_the_caller_is_no_longer_needed(oci: Runtime, bundle: Bundle) -> None:
    """The first process is a descendant of ours once the command is gone, and ours to reap."""
    bundle.script("exit 7")
    libc_prctl(1)
    try:
        pid = create(oci, bundle)
        oci.ok("start", NAME)
        _, status = os.waitpid(pid, 0)
    finally:
        libc_prctl(0)
    assert os.waitstatus_to_exitcode(status) == 7
    oci.ok("delete", NAME)


def libc_prctl(value: int) -> None:
    import ctypes

    pr_set_child_subreaper = 36
    assert ctypes.CDLL(None).prctl(pr_set_child_subreaper, value, 0, 0, 0) == 0


@pytest.mark.guest
def test_run_gives_the_exit_status(oci: Runtime, bundle: Bundle) -> None:
    for program, code in (("exit 3", 3), ("kill -TERM $$; exit 9", 9), ("kill -9 0", 9)):
        bundle.script(program if "0" not in program else "sh -c 'kill -9 $$'; exit 9")
        bundle.write()
        assert oci("run", "-b", str(bundle.path), NAME).code == code
    assert oci.ok("list", "-q") == ""


def test_signals_to_run_reach_the_process(oci: Runtime, bundle: Bundle) -> None:
    bundle.script("trap 'exit 42' TERM; echo up; while true; do sleep 0.05; done")
    bundle.write()
    argv = [*oci.argv, "run", "-b", str(bundle.path), NAME]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 42


@pytest.mark.parametrize("words", [("delete", "--force", NAME), ("kill", NAME, "KILL")])
def test_a_paused_container_can_be_ended(
    oci: Runtime, bundle: Bundle, words: tuple[str, ...]
) -> None:
    bundle.process["args"] = ["sleep", "100"]
    pid = create(oci, bundle)
    oci.ok("start", NAME)
    oci.ok("pause", NAME)
    oci.ok(*words)
    until(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    """Whether a process is neither gone nor a zombie that somebody else is to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.guest
def test_a_container_that_forks_as_fast_as_it_can_is_deleted(oci: Runtime, bundle: Bundle) -> None:
    bundle.script("f() { f & f & }; f; sleep 100")
    bundle.linux["namespaces"] = [{"type": kind} for kind in ("mount", "uts")]
    bundle.linux["resources"] = {"pids": {"limit": 60}}
    create(oci, bundle)
    oci.ok("start", NAME)
    time.sleep(0.2)
    oci.ok("delete", "--force", NAME)
    assert not list(Path("/sys/fs/cgroup").glob(f"*{bundle.linux['cgroupsPath']}"))


@pytest.mark.guest
def test_a_create_that_is_killed_leaves_what_delete_takes_away(
    oci: Runtime, bundle: Bundle
) -> None:
    """At any moment of it: the first process ends with who made it, or is written down."""
    bundle.process["args"] = ["sleep", "100"]
    bundle.write()
    for delay in (0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2):
        argv = [*oci.argv, "create", "-b", str(bundle.path), NAME]
        with subprocess.Popen(argv, stdin=-3, stdout=-3, stderr=-3) as creating:
            time.sleep(delay)
            creating.kill()
        oci.ok("delete", "--force", NAME)
        assert not (oci.root / NAME).exists()
        top = bundle.linux["cgroupsPath"]
        assert not list(Path("/sys/fs/cgroup").glob(f"*{top}")), delay


def test_a_taken_name_is_refused(oci: Runtime, bundle: Bundle) -> None:
    create(oci, bundle)
    done = oci("create", "-b", str(bundle.path), NAME)
    assert "container with given ID already exists" in done.err
    oci.ok("delete", NAME)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a b", "x" * 2000])
def test_ids_that_are_no_names_are_refused(oci: Runtime, bundle: Bundle, name: str) -> None:
    bundle.write()
    assert "invalid container ID format" in oci("create", "-b", str(bundle.path), name).err


def test_a_created_container_dies_of_a_signal(oci: Runtime, bundle: Bundle) -> None:
    create(oci, bundle)
    oci.ok("kill", NAME, "TERM")
    until(lambda: state(oci)["status"] == "stopped")
    oci.ok("delete", NAME)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"args": ["nope"]}, "executable file not found in $PATH"),
        ({"args": ["/nope"]}, "no such file or directory"),
        ({"args": ["/etc/passwd"]}, "permission denied"),
        ({"args": []}, "args must not be empty"),
        ({"cwd": "rel"}, "Cwd must be an absolute path"),
        ({"env": ["X"]}, "invalid environment variable"),
        ({"rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}, "RLIMIT_X"),
        ({"apparmorProfile": "x"}, "apparmor"),
        ({"selinuxLabel": "x"}, "selinux"),
        ({"terminal": True}, "cannot allocate tty"),
    ],
)
def test_a_process_that_cannot_be(
    oci: Runtime, bundle: Bundle, change: dict[str, Any], words: str
) -> None:
    bundle.process.update(change)
    assert words in fails(oci, bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"namespaces": [{"type": "mount"}, {"type": "what"}]}, "unknown namespace"),
        ({"namespaces": [{"type": "mount"}, {"type": "mount"}]}, "duplicated namespace"),
        (
            {"namespaces": [{"type": "mount"}, {"type": "pid", "path": "/proc/self/ns/net"}]},
            "not a pid",
        ),
        ({"namespaces": [{"type": "mount"}, {"type": "pid", "path": "x"}]}, "not absolute"),
        ({"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}, "user namespace"),
        ({"sysctl": {"kernel.panic": "1"}}, "kernel.panic"),
        ({"cgroupsPath": "/x/../.."}, ".."),
        ({"resources": {"memory": {"limit": 1, "swap": -7}}}, "swap"),
        ({"seccomp": {"defaultAction": "SCMP_ACT_X"}}, "SCMP_ACT_X"),
        ({"rootfsPropagation": "x"}, "rootfsPropagation"),
        ({"netDevices": {"eth9": {}}}, "eth9"),
    ],
)
def test_a_container_that_cannot_be(
    oci: Runtime, bundle: Bundle, change: dict[str, Any], words: str
) -> None:
    bundle.linux.update(change)
    assert words in fails(oci, bundle)


def test_errors_go_to_the_log_as_the_engines_read_them(oci: Runtime, bundle: Bundle) -> None:
    log = bundle.path / "log"
    runtime = Runtime([*oci.argv[:-2], "--log", str(log), "--log-format", "json"], oci.root)
    assert runtime("state", "nope").code == 1
    line = json.loads(log.read_text())
    assert set(line) == {"level", "msg", "time"}
    assert (line["level"], line["msg"]) == ("error", "container does not exist")


# --- exec -----------------------------------------------------------------------------------------


@pytest.fixture
def running(oci: Runtime, bundle: Bundle) -> Runtime:
    bundle.process["args"] = ["sleep", "100"]
    bundle.linux["namespaces"].append({"type": "cgroup"})
    create(oci, bundle)
    oci.ok("start", NAME)
    return oci


def test_exec_is_inside_and_nothing_lies_above_its_root(running: Runtime) -> None:
    """A forgotten mount on top of the root shows to every setns, and as '/..'."""
    assert running.ok("exec", NAME, "sh", "-c", "cat /etc/passwd; ls /..").split("\n")[2:-1] == [
        "bin", "dev", "etc", "home", "proc", "sys", "tmp",
    ]  # fmt: skip
    pid = state(running)["pid"]
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    assert sum(line.split()[4] == "/" for line in mounts) == 1
    assert running.ok("exec", NAME, "cat", "/proc/1/comm") == "sleep\n"


@pytest.mark.guest
def test_exec_gives_the_exit_status(running: Runtime) -> None:
    for _ in range(5):
        assert running("exec", NAME, "sh", "-c", "exit 5").code == 5
    done = running("exec", NAME, "nope")
    assert (done.code, "executable file not found in $PATH" in done.err) == (255, True)


def test_exec_takes_user_cwd_and_environment(running: Runtime) -> None:
    words = ("-u", "1000:1000", "-g", "7", "--cwd", "/tmp", "-e", "A=b", NAME)
    out = running.ok("exec", *words, "sh", "-c", "id -u; id -G; pwd; echo $A $HOME")
    assert out.split() == ["1000", "1000", "7", "/tmp", "b", "/home"]


def test_a_detached_exec_writes_the_pid_that_it_has(running: Runtime, bundle: Bundle) -> None:
    """conmon reaps the pid of the file: it must be the process, not one that led to it."""
    process = {**bundle.process, "args": ["sleep", "50"]}
    (bundle.path / "process.json").write_text(json.dumps(process))
    for round_ in range(10):
        pid_file = bundle.path / f"pid{round_}"
        words = ("--process", str(bundle.path / "process.json"), "--pid-file", str(pid_file))
        assert running.quiet("exec", "-d", *words, NAME).code == 0
        pid = int(pid_file.read_text())
        assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
        assert pid in json.loads(running.ok("ps", "-f", "json", NAME))


def test_exec_has_no_more_descriptors_than_it_shall(running: Runtime) -> None:
    out = running.ok("exec", NAME, "sh", "-c", "ls /proc/$$/fd; true")
    assert out.split() == ["0", "1", "2"]


def receive_terminal(listener: socket.socket) -> int:
    connection, _ = listener.accept()
    with connection:
        _, fds, _, _ = socket.recv_fds(connection, 64, 1)
    return fds[0]


def read_all(master: int) -> bytes:
    parts: list[bytes] = []
    poller = select.poll()
    poller.register(master, select.POLLIN)
    while poller.poll(5000):
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(master)
    return b"".join(parts)


def test_a_terminal_goes_to_the_console_socket(oci: Runtime, bundle: Bundle) -> None:
    bundle.process.update(terminal=True, consoleSize={"height": 33, "width": 77})
    bundle.script("tty; stty size; stat -c %t:%T /dev/console")
    path = bundle.path / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        create(oci, bundle, "--console-socket", str(path))
        master = receive_terminal(listener)
    oci.ok("start", NAME)
    assert read_all(master).split() == [b"/dev/pts/0", b"33", b"77", b"88:0"]
    until(lambda: state(oci)["status"] == "stopped")
    oci.ok("delete", NAME)


# --- limits, hooks, descriptors -------------------------------------------------------------------


@pytest.mark.guest
def test_update_and_events_tell_of_the_cgroup(running: Runtime) -> None:
    running.ok("update", "--memory", "64m", "--pids-limit", "33", "--cpu-quota", "50000", NAME)
    event = json.loads(running.ok("events", "--stats", NAME))
    assert (event["type"], event["id"]) == ("stats", NAME)
    assert event["data"]["memory"]["usage"]["limit"] == 64 << 20
    assert event["data"]["pids"]["limit"] == 33
    text = json.dumps({"memory": {"limit": 32 << 20}})
    done = subprocess.run(
        [*running.argv, "update", "-r", "-", NAME], input=text.encode(), check=False
    )
    assert done.returncode == 0
    event = json.loads(running.ok("events", "--stats", NAME))
    assert event["data"]["memory"]["usage"]["limit"] == 32 << 20


def hook(bundle: Bundle, kind: str, *, inside: str = "") -> dict[str, Any]:
    log = f"{inside}/hooks" if inside else str(bundle.rootfs / "hooks")
    script = f"{{ echo {kind} $(readlink /proc/self/ns/net); cat; echo; }} >> {log}"
    shell = "/bin/sh"
    return {"path": shell, "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}


def test_hooks_run_in_order_where_they_belong(oci: Runtime, bundle: Bundle) -> None:
    outside = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks = {kind: [hook(bundle, kind)] for kind in outside}
    hooks["startContainer"] = [hook(bundle, "startContainer", inside="/")]
    bundle.config["hooks"] = hooks
    bundle.process["args"] = ["sleep", "100"]
    pid = create(oci, bundle)
    oci.ok("start", NAME)
    inner = os.readlink(f"/proc/{pid}/ns/net")
    oci.ok("delete", "--force", NAME)
    lines = (bundle.rootfs / "hooks").read_text().splitlines()
    told = [line.split() for line in lines[::2]]
    own = os.readlink("/proc/self/ns/net")
    assert told == [
        ["prestart", own],
        ["createRuntime", own],
        ["createContainer", inner],
        ["startContainer", inner],
        ["poststart", own],
        ["poststop", own],
    ]
    states = [json.loads(line) for line in lines[1::2]]
    assert {item["id"] for item in states} == {NAME}
    assert [states[i]["pid"] for i in (0, 1, 4)] == [pid] * 3
    assert (states[4]["status"], states[5]["status"]) == ("running", "stopped")


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_undoes_the_create(oci: Runtime, bundle: Bundle, kind: str) -> None:
    bundle.config["hooks"] = {kind: [{"path": "/bin/false"}]}
    assert "exit status 1" in fails(oci, bundle)
    bundle.config["hooks"] = {kind: [{"path": "/bin/sleep", "args": ["sleep", "50"], "timeout": 1}]}
    assert "timed out" in fails(oci, bundle)


def test_descriptors_are_passed_on_and_no_others(oci: Runtime, bundle: Bundle) -> None:
    bundle.script("ls /proc/$$/fd; cat <&3; echo $LISTEN_FDS")
    bundle.write()
    reading, writing = os.pipe()
    os.write(writing, b"hello\n")
    os.close(writing)
    script = f'exec 3<&{reading} && exec "$@"'
    argv = ["bash", "-c", script, "sh", *oci.argv, "run", "-b", str(bundle.path), NAME]
    done = subprocess.run(
        argv,
        pass_fds=(reading,),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, "LISTEN_FDS": "1"},
    )
    os.close(reading)
    assert done.stdout.decode().split() == ["0", "1", "2", "3", "hello", "1"], done.stderr


def test_a_half_made_container_can_be_deleted(oci: Runtime) -> None:
    (oci.root / NAME).mkdir(parents=True)
    (oci.root / NAME / "junk").write_text("x")
    oci.ok("delete", "--force", NAME)
    assert not (oci.root / NAME).exists()


def test_a_reused_pid_is_not_the_container(oci: Runtime, bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "100"]
    create(oci, bundle)
    path = oci.root / NAME / "state.json"
    record = json.loads(path.read_text())
    real = record["pid"]
    time.sleep(0.05)  # a start time counts in ticks of 10 ms: no pid comes back within one
    with subprocess.Popen(["sleep", "60"]) as other:
        record["pid"] = other.pid
        path.write_text(json.dumps(record))
        assert state(oci)["status"] == "stopped"
        assert oci("kill", NAME, "KILL").code == 1
        oci.ok("delete", "--force", NAME)
        assert other.poll() is None
        other.kill()
    until(lambda: not is_alive(real))


@pytest.mark.guest
def test_a_user_namespace_maps_its_ids(oci: Runtime, bundle: Bundle) -> None:
    kinds = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "user", "cgroup")]
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    bundle.linux.update(namespaces=kinds, uidMappings=maps, gidMappings=maps)
    bundle.script("id -u; cat /proc/self/uid_map; echo x > /dev/null && echo fine")
    bundle.process["oomScoreAdj"] = 100
    bundle.path.chmod(0o755)
    bundle.write()
    done = oci("run", "-b", str(bundle.path), NAME)
    assert done.out.split() == ["0", "0", "100000", "65536", "fine"], done.err


def test_clocks_of_a_time_namespace(oci: Runtime, bundle: Bundle) -> None:
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = {"boottime": {"secs": 10_000_000}}
    bundle.script("cat /proc/uptime")
    bundle.write()
    done = oci("run", "-b", str(bundle.path), NAME)
    assert float(done.out.split()[0]) > 10_000_000, done.err
