"""What scow-untar may do while it reads a hostile stream: little, and below its layer only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.layertar import END, entry
from scow.native import spawn
from scow.native.fd import OwnedFd

pytestmark = pytest.mark.root

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
        deadline = time.monotonic() + 5
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


def test_the_reader(applet: Applet, layer: Path) -> None:
    seen = status(applet.pid)
    for kind in ("CapEff", "CapPrm"):
        assert int(seen[kind], 16) & ~KEPT == 0
    assert int(seen["CapInh"], 16) == int(seen["CapAmb"], 16) == 0
    assert seen["NoNewPrivs"] == "1"
    assert int(seen["VmRSS"].split()[0]) < 4096  # kB: fixed memory, mostly untouched
    assert os.readlink(f"/proc/{applet.pid}/root") == str(layer)
    assert os.readlink(f"/proc/{applet.pid}/ns/net") != os.readlink("/proc/self/ns/net")


def test_its_servers(applet: Applet) -> None:
    """One may write trusted.overlay.opaque, one nothing; neither holds the stream or a lock."""
    children = Path(f"/proc/{applet.pid}/task/{applet.pid}/children").read_text().split()
    deadline = time.monotonic() + 5  # they drop the rest as soon as they run
    while True:
        kept = sorted(int(status(int(pid))["CapPrm"], 16) for pid in children)
        if kept == [0, SYS_ADMIN] or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    assert kept == [0, SYS_ADMIN]
    for pid in children:
        held = sorted(os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
        assert not [name for name in held if name.startswith(("pipe:", "/memfd"))]
        assert len(held) <= 2
