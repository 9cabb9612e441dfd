"""What the fault tests share: a host of their own as far as the network goes, and busybox in it.

Bridge, firewall table, links and sysctls are those of a network namespace that this process is in
while a module's tests run; whoever else uses the machine sees nothing of it.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.command import Scow
from fixtures.door import Door
from fixtures.images import ImageFactory
from fixtures.state import State
from scow.native import sys as kernel


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory, images: ImageFactory) -> Path:
    """A state directory with busybox, pulled from where the registry can be reached."""
    base = tmp_path_factory.mktemp("fault")
    scow = Scow(str(base / "root"), str(base / "run"))
    scow.ok("pull", images.busybox())
    scow.ok("tag", images.busybox(), "busybox")
    return base


@pytest.fixture(scope="module")
def own_network(busybox_root: Path) -> Iterator[None]:
    """Be in a new network namespace, with lo up."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    kernel.unshare(kernel.CLONE_NEWNET)
    try:
        _bring_up_loopback()
        yield
    finally:
        kernel.setns(home, kernel.CLONE_NEWNET)
        os.close(home)


def _bring_up_loopback() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


@pytest.fixture
def state(busybox_root: Path, own_network: None) -> Iterator[State]:
    """The state of a host with busybox and no container; after the test nothing may be left."""
    # Of a test that failed.
    shutil.rmtree(busybox_root / "root" / "volumes", ignore_errors=True)
    state = State(str(busybox_root / "root"), str(busybox_root / "run"))
    yield state
    state.scow.remove_all()
    state.ok("image", "prune", "-f")  # the store is everybody's: what was committed goes
    assert state.scow("system", "check", "--repair").code == 0
    state.expect_clean()


@pytest.fixture
def door(state: State) -> Iterator[Door]:
    """A place for services on that state; their pods are removed at the end."""
    found = Door(state)
    yield found
    found.remove_all()
