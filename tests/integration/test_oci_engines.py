"""Podman and containerd with scow-oci in runc's place: what their users see must not change."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.bundle import Bundle
from fixtures.engines import Engine, containerd, missing, pack_rootfs, podman, runtime_program

PARALLEL = 10


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kernel.need(kernel.mount_refused)
    path = tmp_path_factory.mktemp("engines")
    pack_rootfs(Bundle(path / "bundle", "/unused").rootfs, path / "rootfs.tar")
    return path


@pytest.fixture(scope="module")
def pod(top: Path) -> Iterator[Engine]:
    if reason := missing("podman", "conmon"):
        pytest.skip(reason)
    engine = podman(top, runtime_program(top))
    engine.ok("import", str(top / "rootfs.tar"), "busy")
    yield engine
    engine("rm", "-fa", "-t", "0")
    engine("rmi", "-fa")


def in_terminal(engine: Engine, *words: str) -> tuple[int, str]:
    """Run a command with a terminal on its three descriptors."""
    master, slave = pty.openpty()
    running = subprocess.Popen(
        [*engine.argv, *words], env=engine.env, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(master)
    return running.wait(30), b"".join(parts).decode()


RUN = ("run", "--rm", "--network", "none")


@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        (("busy", "sh", "-c", "exit 9"), 9, ""),
        (("busy", "nope"), 127, ""),
        (("busy", "/etc"), 126, ""),
        (("--user", "1000:1000", "busy", "id", "-u"), 0, "1000"),
        (("--read-only", "--tmpfs", "/t", "busy", "sh", "-c", "touch /t/x && ! touch /x"), 0, ""),
        (("--hostname", "hh", "--umask", "0027", "busy", "sh", "-c", "umask; hostname"), 0, "0027\nhh"),
        (("--sysctl", "kernel.msgmax=9000", "busy", "cat", "/proc/sys/kernel/msgmax"), 0, "9000"),
        (("--device", "/dev/null:/dev/other", "busy", "stat", "-c", "%t:%T", "/dev/other"), 0, "1:3"),
        (("--cap-drop", "all", "busy", "grep", "CapEff", "/proc/self/status"), 0, "CapEff:\t" + 16 * "0"),
        (("--uidmap", "0:100000:65536", "busy", "id", "-u"), 0, "0"),
        (("--pid", "host", "busy", "true"), 0, ""),
        (("--security-opt", "seccomp=unconfined", "busy", "grep", "Seccomp:", "/proc/self/status"), 0, "Seccomp:\t0"),
    ],
)  # fmt: skip
def test_podman_run(pod: Engine, words: tuple[str, ...], code: int, out: str) -> None:
    done = pod(*RUN, *words)
    assert (done.code, done.out.rstrip("\n")) == (code, out), done.err


@pytest.mark.no_residue_check  # podman's own libpod_parent and locks stay
def test_podman_drives_a_life(pod: Engine) -> None:
    pod.ok("run", "-d", "--name", "a", "--network", "none", "-m", "64m", "busy", "sleep", "1000")
    assert pod.ok("exec", "a", "cat", "/etc/group").startswith("root:x:0:")
    for _ in range(5):
        assert pod("exec", "a", "sh", "-c", "exit 3").code == 3
    assert pod("exec", "a", "nope").code == 127
    assert pod("exec", "a", "/etc").code == 126
    pod.ok("pause", "a")
    assert pod.ok("inspect", "-f", "{{.State.Status}}", "a") == "paused"
    pod.ok("unpause", "a")
    stats = json.loads(pod.ok("stats", "--no-stream", "--format", "json", "a"))
    assert "67.11MB" in stats[0]["mem_usage"]
    assert "sleep 1000" in pod.ok("top", "a")
    assert pod.ok("top", "a").count("\n") == 1
    pod.ok("stop", "-t", "1", "a")
    assert pod.ok("inspect", "-f", "{{.State.Status}}", "a") == "exited"
    pod.ok("start", "a")
    pod.ok("rm", "-f", "-t", "0", "a")


def test_podman_with_a_terminal(pod: Engine) -> None:
    code, out = in_terminal(pod, *RUN, "-it", "busy", "sh", "-c", "tty; exit 4")
    assert (code, out.split()) == (4, ["/dev/pts/0"])


@pytest.mark.no_residue_check  # podman's own libpod_parent stays
def test_podman_runs_many_at_once(pod: Engine) -> None:
    def one(number: int) -> int:
        return pod(*RUN, "busy", "sh", "-c", f"exit {number}").code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(PARALLEL))) == list(range(PARALLEL))


@pytest.mark.no_residue_check  # containerd's shims end after their task is deleted
def test_containerd_drives_a_life(top: Path) -> None:
    if reason := missing("containerd", "ctr", "podman"):
        pytest.skip(reason)
    home = top / "containerd"
    home.mkdir()
    maker = podman(top, runtime_program(top))
    maker("import", str(top / "rootfs.tar"), "busy")
    maker.ok("save", "--format", "oci-archive", "-o", str(home / "busy.tar"), "busy")
    with containerd(home) as ctr:
        ctr.ok("images", "import", str(home / "busy.tar"))
        image = ctr.ok("images", "ls", "-q").splitlines()[0]
        ours = ("--runc-binary", runtime_program(top), "--snapshotter", "native")
        assert ctr("run", "--rm", *ours, image, "a", "sh", "-c", "exit 4").code == 4
        done = ctr("run", "--rm", *ours, image, "b", "nope")
        assert (done.code, "executable file not found in $PATH" in done.err) == (1, True)
        ctr("containers", "rm", "b")
        ctr.ok("run", "-d", *ours, "--memory-limit", "67108864", image, "c", "sleep", "1000")
        for number in (0, 5):
            words = ("--exec-id", f"x{number}", "c", "sh", "-c", f"exit {number}")
            assert ctr("task", "exec", *words).code == number
        ctr.ok("task", "pause", "c")
        assert "PAUSED" in ctr.ok("task", "ls")
        ctr.ok("task", "resume", "c")
        assert "67108864" in ctr.ok("task", "metrics", "c")
        ctr.ok("task", "kill", "-s", "KILL", "c")
        ctr("task", "delete", "c")
        ctr.ok("containers", "rm", "c")
        with ThreadPoolExecutor(4) as pool:
            codes = pool.map(
                lambda n: ctr("run", "--rm", *ours, image, f"p{n}", "sh", "-c", f"exit {n}").code,
                range(PARALLEL),
            )
            assert list(codes) == list(range(PARALLEL))
        assert ctr.ok("containers", "ls", "-q") == ""
