"""Images on a disk that is full, read-only or will not let go of a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.disk import Disk
from fixtures.handmade import Archive, busybox_layer, file, pack
from fixtures.hostile import until
from fixtures.state import State, expect_refusal

pytestmark = pytest.mark.root

CLEAN = "nothing damaged, nothing left behind\n"
NAME = "example.com/app:1"


@pytest.fixture
def disk() -> Iterator[Disk]:
    """In memory: a remount syncs, and would wait for whatever else this machine writes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="scow-disk-") as base:
        disk = Disk(Path(base))
        try:
            yield disk
        finally:
            disk.close()


@pytest.fixture
def archive(tmp_path: Path) -> str:
    made = Archive()
    made.add(NAME, [busybox_layer(), pack([file("own", os.urandom(2_000_000))])])
    return str(made.write(tmp_path / "app.tar"))


@pytest.fixture
def state(disk: Disk, tmp_path: Path, archive: str) -> State:
    """State on the disk, with one image."""
    state = State(str(disk.path / "root"), str(tmp_path / "run"))
    state.log = str(tmp_path / "victim.log")
    state.ok("load", "-i", archive)
    return state


def free_bytes(disk: Disk) -> int:
    found = os.statvfs(disk.path)
    return found.f_bavail * found.f_bsize


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
@pytest.mark.parametrize(
    "words",
    [("rmi", NAME), ("image", "prune", "-a", "-f"), ("system", "prune", "-a", "-f")],
    ids=lambda words: words[0],
)
def test_images_can_be_removed_from_a_full_disk(
    disk: Disk, state: State, archive: str, kind: str, words: tuple[str, ...]
) -> None:
    disk.fill() if kind == "bytes" else disk.fill_inodes()
    assert NAME.partition(":")[0] in state.ok("images")
    state.ok("system", "df")
    state.ok(*words)
    assert len(state.ok("images").splitlines()) == 1
    assert kind == "inodes" or free_bytes(disk) > 2_000_000
    disk.free()
    state.ok("load", "-i", archive)
    assert state.ok("system", "check") == CLEAN


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_what_needs_room_says_so(disk: Disk, state: State, kind: str, tmp_path: Path) -> None:
    made = Archive()
    made.add("example.com/more:1", [pack([file("own", os.urandom(1_000_000))])])
    more = str(made.write(tmp_path / "more.tar"))
    disk.fill() if kind == "bytes" else disk.fill_inodes()
    told = expect_refusal(state, "load", "-i", more)
    assert "hint:" in told
    tagged = expect_refusal(state, "tag", NAME, "further:1")
    assert "index.json" in tagged
    assert len(state.ok("images").splitlines()) == 2
    disk.free()
    state.ok("tag", NAME, "further:1")
    state.ok("load", "-i", more)
    state.ok("system", "check", "--repair")
    assert state.ok("system", "check") == CLEAN


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_what_only_looks_works(disk: Disk, state: State, kind: str, tmp_path: Path) -> None:
    """Nor does it fail to save what is there elsewhere: that is how room is made."""
    before = state.ok("images")
    assert not (disk.path / "root/pods").exists(), "so that there is something to be made"
    disk.fill() if kind == "bytes" else disk.fill_inodes()
    state.ok("save", "-o", str(tmp_path / "out.tar"), NAME)
    (own,) = (disk.path / "root/layers").glob("*/diff/own")
    with own.open("r+b") as file:
        file.write(b"zz")
    disk.fill() if kind == "bytes" else disk.fill_inodes()
    found = state.forked("system", "check", "--repair")
    assert found.status == 1, found
    assert "no space left on device" in found.output.lower()
    assert state.ok("images") == before, "nothing is lost"
    disk.free()
    assert "own' is damaged (mended)" in state.ok("system", "check", "--repair")
    assert state.ok("system", "check") == CLEAN


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_names_go_without_a_reserve(disk: Disk, state: State, kind: str) -> None:
    for number in range(3):
        state.ok("tag", NAME, f"further:{number}")
    reserve = disk.path / "root/images/reserve"
    for number in range(3):
        disk.fill() if kind == "bytes" else disk.fill_inodes()
        reserve.unlink(missing_ok=True)
        disk.fill() if kind == "bytes" else disk.fill_inodes()
        assert not reserve.exists()
        assert state.ok("rmi", f"further:{number}") == f"Untagged: further:{number}\n"
    disk.free()
    assert state.ok("system", "check") == CLEAN


def test_a_read_only_disk(disk: Disk, state: State, archive: str) -> None:
    """What only looks works; the rest says in one line what it could not write."""
    assert state.ok("system", "check") == CLEAN
    for seal in (disk.path / "root/layers").glob("*/seal"):
        seal.unlink()  # so that it would have to unpack again
    remount = ["mount", "-o", "remount,ro", disk.path]
    until(
        lambda: subprocess.run(remount, check=False).returncode == 0
    )  # EBUSY: a file is just being deleted
    assert NAME.partition(":")[0] in state.ok("images")
    for words in (
        ("rmi", NAME),
        ("tag", NAME, "further:1"),
        ("load", "-i", archive),
        ("image", "prune", "-a", "-f"),
    ):
        done = state.forked(*words)
        assert done.status in (1, 125), words
        (line,) = (x for x in done.output.splitlines() if x.startswith("scow: "))
        assert "read-only file system" in line.lower(), line
        assert str(disk.path) in line, line
        assert "Traceback" not in done.output
    checked = state.forked("system", "check").output
    assert "cannot be checked" in checked
    assert "scow: " not in checked
    # A disk that an older scow has last written to: not all of its directories are there.
    subprocess.run(["mount", "-o", "remount,rw", disk.path], check=True)
    for name in ("pods", "pod-names", "containers", "names", "trash", "images/dropped"):
        shutil.rmtree(disk.path / "root" / name, ignore_errors=True)
    subprocess.run(remount, check=True)
    assert state.forked("system", "check").output == checked
    assert state.forked("ps", "-a").status == state.forked("pod", "ps").status == 0
    for words in (("create", NAME, "true"), ("pod", "create", "p")):
        done = state.forked(*words)
        assert "read-only file system" in done.output.lower(), done
        assert "internal error" not in done.output, done
    subprocess.run(["mount", "-o", "remount,rw", disk.path], check=True)
    assert state.ok("system", "check") == CLEAN
    state.ok("rmi", NAME)


def test_a_file_that_cannot_be_removed(disk: Disk, state: State) -> None:
    """K3: an immutable file in a layer is named; the image is gone, and the rest once it lets go."""
    (held,) = (disk.path / "root/layers").glob("*/diff/own")
    subprocess.run(["chattr", "+i", held], check=True)
    try:
        done = state.forked("rmi", NAME)
        (line,) = (x for x in done.output.splitlines() if x.startswith("scow: "))
        assert "own" in line, line
        assert "operation not permitted" in line, line
        assert len(state.ok("images").splitlines()) == 1
        assert "still take space" in state.forked("system", "check").output
    finally:
        (held,) = (disk.path / "root/layers/.trash").glob("*/diff/own")
        subprocess.run(["chattr", "-i", held], check=True)
    state.ok("system", "prune", "-f")
    assert state.ok("system", "check") == CLEAN
    assert list((disk.path / "root/layers/.trash").iterdir()) == []
