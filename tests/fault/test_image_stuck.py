"""Others that hold a lock and do not go on, a disk that never answers: a clear line, and an end."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.handmade import Archive, busybox_layer
from scow.image import stall, waiting
from scow.image.content import ContentStore
from scow.image.digest import hex_of
from scow.image.gc import collect
from scow.image.store import ImageStore
from scow.native.errors import DeadlineExceeded

pytestmark = pytest.mark.root

NAME = "example.com/app:1"
HOLDER = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
os.kill(os.getpid(), signal.SIGSTOP)
sys.stdin.read()
"""
# A thread that nothing can end; the process prints what the install said, and must go.
HANGING = """
import os, sys
from scow.image import layers, stall, workers
from scow.image.store import ImageStore
from scow.native.errors import DeadlineExceeded
stall.STALL_S = stall.LOOK_S = workers.GRACE_S = 0.2
out, _ = os.pipe()
layers.LayerStore.unpack = lambda *words, **more: os.read(out, 1)
try:
    ImageStore(sys.argv[1]).load(sys.argv[2])
except DeadlineExceeded as e:
    print(e.message)
"""


@pytest.fixture
def store(scow_root: Path) -> ImageStore:
    store = ImageStore(str(scow_root))
    store.content.prepare()
    store.layers.leftovers(remove=False)
    return store


@pytest.fixture
def archive(tmp_path: Path) -> str:
    archive = Archive()
    archive.add(NAME, [busybox_layer()])
    return str(archive.write(tmp_path / "app.tar"))


@contextmanager
def stopped_holder(path: str) -> Iterator[int]:
    """Another process has the lock of this file, and is stopped."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    argv = [sys.executable, "-I", "-c", HOLDER, path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), status
            yield process.pid
        finally:
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def locked_paths(store: ImageStore, archive: str) -> dict[str, str]:
    """What an install locks, by a word for each; found by installing."""
    store.load(archive)
    image = store.get(NAME)
    summary = store.read_summary(store.content.read_index()[0])
    assert summary is not None
    paths = {
        "index": os.path.join(store.content.root, "lock"),
        "layer": os.path.join(store.root, "layers/.locks", hex_of(image.diff_ids[0])),
        "blob": os.path.join(store.content.ingest_dir, summary.blobs[2].replace(":", "-")),
    }
    store.remove(NAME)
    return paths


@pytest.mark.parametrize("what", ["index", "layer", "blob"])
def test_a_holder_that_is_stopped_is_named(
    store: ImageStore, archive: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = locked_paths(store, archive)[what]
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.2)
    if what == "blob":
        monkeypatch.setattr(stall, "STALL_S", 0.2)
    with stopped_holder(path) as pid:
        with pytest.raises(
            DeadlineExceeded, match=rf"process {pid} \('.*'\) has it, and is stop"
        ) as e:
            store.load(archive)
        assert f"kill -CONT {pid}" in (e.value.hint or "")
        assert (what == "blob") == ("another fetches" in e.value.message)
    monkeypatch.undo()
    store.load(archive)
    collect(store)  # the lease of the load that failed
    assert store.verify() == []


def test_a_holder_that_works_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long: the clock begins anew whenever its processor time has grown."""
    path = str(tmp_path / "lock")
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(held, fcntl.LOCK_EX)
    looks: list[int] = []

    def find_holder(fd: int) -> waiting.Holder:
        looks.append(fd)
        if len(looks) == 5:
            os.close(held)
        return waiting.Holder(4711, "scow pull", "R", len(looks))

    monkeypatch.setattr(waiting, "PATIENCE_S", 0.01)
    monkeypatch.setattr(waiting, "find_holder", find_holder)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        waiting.lock_file(fd, "it")
    finally:
        os.close(fd)
    assert len(looks) == 5


def test_a_thread_that_never_ends_does_not_keep_the_pull(
    scow_root: Path, archive: str, store: ImageStore
) -> None:
    argv = [sys.executable, "-c", HANGING, str(scow_root), archive]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "made no progress" in done.stdout
    assert store.load(archive) == [f"Loaded image: {NAME}"]


def test_the_lease_of_a_process_that_crashed(store: ImageStore, archive: str) -> None:
    """Its pid may be somebody's again: what counts is the lock, and that went with it."""
    script = (
        "import os, sys; from scow.image.content import ContentStore; "
        "lease = ContentStore(sys.argv[1]).lease(); "
        f"lease.hold(blobs=['sha256:{'7' * 64}']); print(os.getpid(), flush=True); os.abort()"
    )
    argv = [sys.executable, "-c", script, store.content.root]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/tmp")
    assert done.returncode == -signal.SIGABRT, done.stderr
    (left,) = (n for n in os.listdir(store.content.ingest_dir) if n.startswith("lease-"))
    assert left.startswith(f"lease-{done.stdout.strip()}-")
    # As if this very process had the pid now.
    ours = os.path.join(store.content.ingest_dir, f"lease-{os.getpid()}-1")
    os.rename(os.path.join(store.content.ingest_dir, left), ours)
    content = ContentStore(store.content.root)
    with content.locked():
        (record,) = content.leases()
    assert (record.is_alive, record.blobs) == (False, {f"sha256:{'7' * 64}"})
    collect(store, now=False)
    assert os.path.exists(ours), "what it has may serve a retry, for a day"
    collect(store)
    assert not os.path.exists(ours)
