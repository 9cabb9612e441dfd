"""scow-oci's front and its warm process: as if an interpreter had been started, whatever happens to either."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fixtures import kernel, warm
from fixtures.bundle import FRONT, Bundle, Runtime
from fixtures.warm import Warm

NAME = "c1"
COLD = "no warm process does this"
TIMEOUT_S = 60


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    kernel.need(kernel.mount_refused)
    return Bundle(tmp_path / "bundle", f"/scow-oci-test/{os.getpid()}")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Warm]:
    """A warm process that the test may do to what it likes."""
    with Warm.start(tmp_path / "warm") as running:
        yield running


@pytest.fixture
def oci(warm_process: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setenv(warm.VARIABLE, str(warm_process.directory))
    runtime = Runtime([*FRONT, "--debug"], tmp_path / "state")
    yield runtime
    runtime.remove_all()


def until(question: Callable[[], bool], seconds: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# --- like a cold start ----------------------------------------------------------------------------


def test_it_serves(oci: Runtime, bundle: Bundle) -> None:
    bundle.script("echo out; echo err >&2; exit 3")
    bundle.write()
    done = oci("run", "-b", str(bundle.path), NAME)
    assert (done.code, done.out, done.err) == (3, "out\n", "err\n")


def test_the_callers_directory_umask_and_paths_count(oci: Runtime, bundle: Bundle) -> None:
    bundle.script("umask; pwd")
    bundle.write()
    words = ("--log", "log", "run", "-b", ".", "--pid-file", "pid", NAME)
    done = oci(*words, cwd=bundle.path, umask=0o027)
    assert (done.out, done.err) == ("0027\n/\n", "")
    assert int((bundle.path / "pid").read_text()) > 1
    assert oci("--log", "log", "state", "nobody", cwd=bundle.path).code == 1
    assert "does not exist" in (bundle.path / "log").read_text()


def test_hooks_are_run_as_from_a_cold_start(
    oci: Runtime, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean environment, the bundle, the caller's limits, and no descriptor of ours."""
    told = tmp_path / "told"
    script = f"exec >>{told}; umask; pwd; ulimit -n; env; readlink /proc/$$/fd/*; true"
    bundle.config["hooks"] = {
        "createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"]}]
    }
    bundle.write()
    argv = ["prlimit", "--nofile=600:700", *oci.argv, "run", "-b", str(bundle.path), NAME]
    found: list[list[str]] = []
    for where in (os.environ[warm.VARIABLE], "0"):
        monkeypatch.setenv(warm.VARIABLE, where)
        null = subprocess.DEVNULL
        with (tmp_path / "errors").open("wb") as errors:
            subprocess.run(argv, cwd="/usr", stdin=null, stdout=null, stderr=errors, check=True)
        assert (COLD in (tmp_path / "errors").read_text()) == (where == "0")
        found.append(told.read_text().splitlines())
        told.unlink()
    assert found[0] == found[1]
    assert found[0][1:3] == [str(bundle.path), "600"]
    assert "A=b" in found[0]


def test_the_process_is_the_callers_descendant(oci: Runtime, bundle: Bundle) -> None:
    """In front it is a child of the command itself; nothing of the warm process is above it."""
    bundle.process["args"] = ["sleep", "100"]
    bundle.write()
    null = subprocess.DEVNULL
    argv = [*oci.argv, "run", "-b", str(bundle.path), NAME]
    with subprocess.Popen(argv, stdin=null, stdout=null, stderr=null) as running:
        until(lambda: '"running"' in oci("state", NAME).out)
        pid = json.loads(oci.ok("state", NAME))["pid"]
        assert f"\nPPid:\t{running.pid}\n" in Path(f"/proc/{pid}/status").read_text()
        oci.ok("kill", NAME, "KILL")
        assert running.wait(TIMEOUT_S) == 137


def test_twenty_at_once(oci: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.script("exit 7")
    bundle.linux["cgroupsPath"] = ""
    bundle.write()
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda n: oci("run", "-b", str(bundle.path), f"c{n}"), range(20)))
    assert [one.code for one in done] == [7] * 20, [one.err for one in done]
    assert oci.ok("list", "-q") == ""


def test_the_rehearsal_works() -> None:
    """A failure would go unnoticed otherwise: it only costs time."""
    program = "from scow.native.codec import import_codec; from scow.runtime import oci_warm; import_codec(); oci_warm.rehearse()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


# --- what it does not do --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (["unshare", "--mount"], "other mnt namespace"),
        (["unshare", "--net"], "other net namespace"),
        (["unshare", "--uts"], "other uts namespace"),
        (["unshare", "--cgroup"], "other cgroup namespace"),
        (["unshare", "--pid"], "other pid_for_children namespace"),
        (["setpriv", "--no-new-privs"], "other NoNewPrivs"),
        (["setpriv", "--bounding-set", "-wake_alarm"], "other Cap"),
        (["setpriv", "--groups", "1"], "other Groups"),
        (["env", f"{warm.VARIABLE}=0"], "it is turned off"),
        (["env", f"{warm.VARIABLE}=/dev"], "Operation not permitted"),
        (["setpriv", "--reuid", "65534", "--clear-groups"], "not root"),
    ],
)
def test_a_caller_unlike_itself_is_not_served(oci: Runtime, prefix: list[str], reason: str) -> None:
    done = subprocess.run(
        [*prefix, *oci.argv, "state", "nobody"], capture_output=True, text=True, check=False
    )
    assert f"{COLD}: " in done.stderr
    assert reason in done.stderr
    assert "container does not exist" in done.stderr or reason == "not root"
    assert done.returncode == 1


def test_a_changed_root_directory_is_not_served(oci: Runtime, tmp_path: Path) -> None:
    subprocess.run(["mount", "--rbind", "/", tmp_path], check=True)
    try:
        argv = ["chroot", tmp_path, *oci.argv, "state", "nobody"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    finally:
        subprocess.run(["umount", "-R", "-l", tmp_path], check=True)
    assert f"{COLD}: other root directory" in done.stderr
    assert "container does not exist" in done.stderr


def test_a_terminal_is_relayed_by_an_interpreter_of_its_own(oci: Runtime, bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.script("tty")
    bundle.write()
    done = oci("run", "-b", str(bundle.path), NAME)
    assert f"{COLD}: a terminal to relay" in done.err
    assert (done.code, done.out.strip()) == (0, "/dev/pts/0")


def test_criu_is_left_to_an_interpreter_of_its_own(oci: Runtime) -> None:
    for command in ("checkpoint", "restore"):
        assert f"{COLD}: CRIU's processes" in oci(command, "nobody").err


def test_none_is_started_in_namespaces_of_somebodys_own(tmp_path: Path) -> None:
    """It would keep them alive."""
    directory = tmp_path / "warm"
    argv = ["unshare", "--mount", *FRONT, "list"]
    subprocess.run(argv, env={**os.environ, warm.VARIABLE: str(directory)}, check=True)
    time.sleep(1)
    assert not directory.exists()


# --- who dies when --------------------------------------------------------------------------------


def waiting_hook(bundle: Bundle, tmp_path: Path) -> tuple[Path, Path]:
    """A create that stands still in a hook; the files that say that it does, and let it go on."""
    there, go = tmp_path / "there", tmp_path / "go"
    script = f"touch {there}; until [ -e {go} ]; do sleep 0.02; done"
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    bundle.write()
    return there, go


@contextmanager
def start(oci: Runtime, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    null = subprocess.DEVNULL
    argv = [*oci.argv, *words]
    with subprocess.Popen(argv, stdin=null, stdout=null, stderr=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()  # does nothing when it has ended, as it should have


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_create_whose_front_is_killed_is_undone(
    oci: Runtime, bundle: Bundle, tmp_path: Path, number: int
) -> None:
    there, go = waiting_hook(bundle, tmp_path)
    with start(oci, "create", "-b", str(bundle.path), NAME) as creating:
        until(there.exists)
        creating.send_signal(number)
        assert creating.wait(TIMEOUT_S) == -number
        until(lambda: not (oci.root / NAME).exists())
        go.touch()
    assert "does not exist" in oci("state", NAME).err
    oci.ok("delete", "--force", NAME)


def test_a_create_whose_warm_child_is_killed_is_found(
    own: Warm, oci: Runtime, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(warm.VARIABLE, str(own.directory))
    there, go = waiting_hook(bundle, tmp_path)
    child = own.spare()
    with start(oci, "create", "-b", str(bundle.path), NAME) as creating:
        until(there.exists)
        os.kill(child, signal.SIGKILL)
        go.touch()
        _, told = creating.communicate(timeout=TIMEOUT_S)
    assert creating.returncode == 1
    assert b"warm process is gone" in told
    oci.ok("delete", "--force", NAME)
    assert not (oci.root / NAME).exists()
    bundle.config["hooks"] = {}
    bundle.write()
    assert oci("run", "-b", str(bundle.path), NAME).code == 0


def test_a_front_that_is_killed_leaves_what_runs(oci: Runtime, bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "100"]
    bundle.write()
    with start(oci, "run", "-b", str(bundle.path), NAME) as running:
        until(lambda: '"running"' in oci("state", NAME).out)
        running.kill()
        running.wait(TIMEOUT_S)
    pid = json.loads(oci.ok("state", NAME))["pid"]
    assert is_alive(pid)
    oci.ok("delete", "--force", NAME)
    assert not is_alive(pid)


def test_a_run_whose_warm_child_is_killed_gives_the_exit_status(
    own: Warm, oci: Runtime, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(warm.VARIABLE, str(own.directory))
    bundle.script("touch /tmp/on; until [ -e /tmp/go ]; do sleep 0.02; done; exit 9")
    bundle.write()
    child = own.spare()
    with start(oci, "run", "-b", str(bundle.path), NAME) as running:
        until((bundle.rootfs / "tmp/on").exists)  # no other command may be served by that child
        os.kill(child, signal.SIGKILL)
        (bundle.rootfs / "tmp/go").touch()
        assert running.wait(TIMEOUT_S) == 9
    oci.ok("delete", NAME)


def test_after_the_warm_process_is_killed_there_is_another(own: Warm) -> None:
    spare = own.spare()
    os.kill(own.process, signal.SIGKILL)
    until(lambda: not is_alive(spare))
    done = own.command("--debug", "state", "nobody")
    assert f"{COLD}: none is there yet" in done.stderr
    until(lambda: own.pid() not in (0, own.process))


def test_what_is_at_work_does_not_keep_the_next_one_away(
    own: Warm, oci: Runtime, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `run` in front may last for days; neither lock nor socket are its child's."""
    monkeypatch.setenv(warm.VARIABLE, str(own.directory))
    bundle.process["args"] = ["sleep", "100"]
    bundle.write()
    with start(oci, "run", "-b", str(bundle.path), NAME) as running:
        until(lambda: '"running"' in oci("state", NAME).out)
        os.kill(own.process, signal.SIGKILL)
        until(lambda: "none is there yet" in oci("state", NAME).err)
        until(lambda: own.pid() not in (0, own.process))
        oci.ok("kill", NAME, "KILL")
        assert running.wait(TIMEOUT_S) == 137
    assert oci.ok("list", "-q") == ""


def test_a_dead_spare_is_replaced(own: Warm) -> None:
    os.kill(own.spare(), signal.SIGKILL)
    done = own.command("--debug", "state", "nobody")
    assert (COLD in done.stderr, done.returncode) == (False, 1)


def test_one_that_hangs_is_not_waited_for(own: Warm, tmp_path: Path) -> None:
    spare = own.spare()
    os.kill(spare, signal.SIGSTOP)
    try:
        # not a pipe: until the child closes the connection, there is a copy of our stderr in it
        with (tmp_path / "told").open("wb") as told:
            argv = [*FRONT, "--debug", "state", "nobody"]
            subprocess.run(argv, env=own.environment, stderr=told, timeout=TIMEOUT_S, check=False)
    finally:
        os.kill(spare, signal.SIGCONT)
    text = (tmp_path / "told").read_text()
    assert f"{COLD}: it does not answer" in text
    assert "container does not exist" in text


# --- its life -------------------------------------------------------------------------------------


def copied_front(directory: Path) -> tuple[str, ...]:
    """The same command, installed elsewhere."""
    directory.mkdir()
    for name in ("scow-oci", "scow-oci-cold"):
        shutil.copy2(Path(FRONT[0]).with_name(name), directory / name)
    return (str(directory / "scow-oci"),)


def test_it_belongs_to_nobody(own: Warm) -> None:
    """No cgroup, session, directory or descriptor of the caller that started it."""
    process = Path(f"/proc/{own.process}")
    paths = {line.split(":", 2)[2] for line in (process / "cgroup").read_text().splitlines()}
    assert paths == {"/"}
    assert os.getsid(own.process) not in (os.getsid(0), own.process)
    assert os.readlink(process / "cwd") == "/"
    assert {os.readlink(process / "fd" / name) for name in ("0", "1", "2")} == {"/dev/null"}
    assert (own.directory.stat().st_mode & 0o777, own.directory.stat().st_uid) == (0o700, 0)
    assert (process / "comm").read_text() == "scow-oci-warm\n"


def test_each_directory_and_each_install_has_its_own(own: Warm, tmp_path: Path) -> None:
    copied = copied_front(tmp_path / "bin")
    with (
        Warm.start(tmp_path / "other") as second,
        Warm.start(own.directory, copied) as third,
    ):
        assert len({own.process, second.process, third.process}) == 3
        assert own.pid() == own.process


def test_there_is_only_one(own: Warm) -> None:
    cold = Path(FRONT[0]).with_name("scow-oci-cold")
    [name] = [path.name for path in own.directory.iterdir() if path.is_socket()]
    argv = [sys.executable, cold, "warm", str(own.directory), name, FRONT[0]]
    assert subprocess.run(argv, timeout=TIMEOUT_S, check=False).returncode == 0
    assert own.pid() == own.process


def test_after_an_upgrade_there_is_another(tmp_path: Path) -> None:
    """The files that it was made of are others: it ends, and the next command starts a new one."""
    front = Path(copied_front(tmp_path / "bin")[0])
    with Warm.start(tmp_path / "warm", (str(front),)) as running:
        os.utime(front)
        done = running.command("--debug", "state", "nobody")
        assert COLD in done.stderr
        until(lambda: not is_alive(running.process))
        running.command("list")
        until(lambda: running.pid() != 0)


@pytest.mark.parametrize("how", ["idle", "gone"])
def test_it_ends_by_itself(tmp_path: Path, how: str) -> None:
    """When nobody has asked it for some time, and when its directory is not there any more."""
    directory = tmp_path / "warm"
    idle_s = 1 if how == "idle" else 60
    program = (
        "import sys; from scow.runtime import oci_warm as w; "
        f"w.IDLE_S, w._LOOK_MS = {idle_s}, 100; w.main(*sys.argv[1:])"
    )
    argv = [sys.executable, "-c", program, str(directory), "socket", FRONT[0]]
    with subprocess.Popen(argv) as running:
        until((directory / "socket").exists)
        if how == "gone":
            shutil.rmtree(directory)
        assert running.wait(TIMEOUT_S) == 0
    assert how == "gone" or not list(directory.iterdir())


def test_it_is_stopped_on_request(tmp_path: Path) -> None:
    with Warm.start(tmp_path / "warm") as running:
        running.stop()
        assert not is_alive(running.process)
        assert not list(running.directory.iterdir())
        running.stop()  # none is there: fine, and none is started by that
        assert not list(running.directory.iterdir())
