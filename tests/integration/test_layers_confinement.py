"""What scow-untar may do while it reads a hostile stream: little, and below its layer only."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.engines import wait_until
from fixtures.layertar import END, entry
from scow.cri.info import _landlock
from scow.native import spawn
from scow.native import sys as native
from scow.native.fd import OwnedFd

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]

# CHOWN DAC_OVERRIDE FOWNER FSETID MKNOD SETFCAP, by their numbers in capability.h
KEPT = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31
SYS_ADMIN = 1 << 21


class Applet:
    """One that waits in the middle of a stream."""

    def __init__(self, layer: Path) -> None:
        read_end, self.pipe = os.pipe2(os.O_CLOEXEC)
        self.report = OwnedFd(os.memfd_create("report", os.MFD_CLOEXEC))
        with OwnedFd(read_end), OwnedFd(os.open(layer, os.O_RDONLY)) as fd:
            fds = (fd.fileno(), self.report.fileno())
            self.pid, self.pidfd = spawn.run_applet("scow-untar", (), fds, stdin=read_end)
        os.write(self.pipe, entry(b"first"))
        deadline = time.monotonic() + 60
        while not (layer / "first").exists() and time.monotonic() < deadline:
            time.sleep(0.005)

    def finish(self) -> int:
        os.write(self.pipe, END)
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        self.pidfd.close()
        self.report.close()
        return os.waitstatus_to_exitcode(status)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    made = tmp_path / "layer"
    made.mkdir()
    return made


@pytest.fixture
def applet(layer: Path) -> Iterator[Applet]:
    running = Applet(layer)
    yield running
    assert running.finish() == 0


@pytest.mark.guest
def test_the_reader(applet: Applet, layer: Path) -> None:
    seen = status(applet.pid)
    for kind in ("CapEff", "CapPrm"):
        assert int(seen[kind], 16) & ~KEPT == 0
    assert int(seen["CapInh"], 16) == int(seen["CapAmb"], 16) == 0
    assert seen["NoNewPrivs"] == "1"
    assert int(seen["VmRSS"].split()[0]) < 4096  # kB: fixed memory, mostly untouched
    assert os.readlink(f"/proc/{applet.pid}/root") == str(layer)
    assert os.readlink(f"/proc/{applet.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert seen["Seccomp"] == "2"
    check_limits(applet.pid)


def check_limits(pid: int) -> None:
    for kind, most in {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_AS: 64 << 20,
    }.items():
        assert resource.prlimit(pid, kind) == (most, most)


@pytest.mark.guest
def test_its_memory_is_nobodys(applet: Applet) -> None:
    """Not even root's, without the right to trace: it is not dumpable, as any other program is."""
    look = ["setpriv", "--bounding-set=-sys_ptrace", "readlink"]
    plain = subprocess.Popen([*look[:2], "sleep", "60"])
    try:
        # Until setpriv(1) has become sleep(1), it holds more than who looks at it.
        wait_until(lambda: "sleep" in Path(f"/proc/{plain.pid}/comm").read_text(), "sleep")
        for pid, code in ((plain.pid, 0), (applet.pid, 1)):
            done = subprocess.run([*look, f"/proc/{pid}/exe"], capture_output=True, check=False)
            assert done.returncode == code, done
    finally:
        plain.kill()
        plain.wait()


@pytest.mark.guest
def test_its_helper(applet: Applet) -> None:
    """It may write trusted.overlay.opaque, and holds neither the stream nor a lock."""
    (pid,) = map(int, Path(f"/proc/{applet.pid}/task/{applet.pid}/children").read_text().split())
    deadline = time.monotonic() + 30  # it drops the rest as soon as it runs, the filter comes last
    while (seen := status(pid))["Seccomp"] != "2" and time.monotonic() < deadline:
        time.sleep(0.005)
    assert (seen["Seccomp"], seen["NoNewPrivs"]) == ("2", "1")
    assert int(seen["CapPrm"], 16) == SYS_ADMIN
    check_limits(pid)
    held = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert [name.partition(":")[0] for name in held] == ["socket"]


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("confined") / "confined"
    sources = [ROOT / "tests/payload/confined.c", *sorted((ROOT / "native").glob("untar*.c"))]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-static", "-Os", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", program, *sources], check=True)
    return program


# What is tried -> what stops it: the errno of Landlock or of another root, or the filter's signal.
HOST_BY_DESCRIPTOR = ["read", "list", "write", "truncate", "make", "node", "unlink", "link out"]
WALLS = {
    **dict.fromkeys(HOST_BY_DESCRIPTOR, errno.EACCES),
    "link in": errno.EXDEV,
    "root": errno.ENOENT,
    "climb": errno.ENOENT,
    "descriptors": errno.EMFILE,
    **dict.fromkeys(
        ["socket", "unix socket", "netlink", "fork", "execve", "ptrace", "signal", "unshare", "setuid",
        "mount", "bpf", "memory"], -signal.SIGSYS,
    ),
    **dict.fromkeys(
        ["own file", "own read", "own link", "own node", "own owner", "own truncate", "own remove"], 0
    ),
}  # fmt: skip


class Attempts:
    def __init__(self, program: Path, base: Path) -> None:
        self._program, self._base = program, base

    def __call__(self, how: str, what: str) -> tuple[int, str]:
        """The exit status and the answer of one attempt, each in a fresh place."""
        shutil.rmtree(self._base, ignore_errors=True)
        (self._base / "canary").mkdir(parents=True)
        (self._base / "canary/f").write_text("host")
        (self._base / "layer/d").mkdir(parents=True)
        (self._base / "layer/f").write_text("mine")
        command = [self._program, self._base / "layer", how, what]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        return done.returncode, done.stdout.strip()


@pytest.fixture
def attempts(confined: Path, tmp_path: Path) -> Attempts:
    return Attempts(confined, tmp_path / "place")


@pytest.mark.parametrize("what", WALLS)
def test_one_who_takes_it_over(attempts: Attempts, what: str) -> None:
    """Each thing can be done by a process of root, and not by the unpacker, or only in its layer."""
    assert attempts("free", what) == (0, "0")
    wall = WALLS[what]
    if wall in (errno.EACCES, errno.EXDEV) and native.landlock_abi() < 2:
        wall = 0
    assert attempts("confined", what) == ((wall, "") if wall < 0 else (0, str(wall)))


def test_info_tells_of_a_kernel_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for abi, shown in ((0, "no"), (1, "yes (ABI 1)"), (2, "yes (ABI 2)")):
        monkeypatch.setattr(native, "landlock_abi", lambda abi=abi: abi)
        fact = _landlock()
        assert (fact.value, fact.is_well) == (shown, abi >= 2)
        assert "one wall less" in fact.hint


def test_landlock_by_what_the_kernel_has(attempts: Attempts) -> None:
    """Without it the other walls stand; one that is there and does not hold is no wall, and an error."""
    abi = native.landlock_abi()
    assert attempts("confined", "tell") == (0, f"landlock {abi if abi >= 2 else 0}")
    assert attempts("without", "tell") == (0, "landlock 0")
    assert attempts("without", "read") == (0, "0")
    assert attempts("without", "root") == (0, str(errno.ENOENT))
    if abi >= 2:
        code, text = attempts("broken", "tell")
        assert (code, text) == (
            1, "cannot restrict itself to the layer by Landlock: Operation not permitted",
        )  # fmt: skip
