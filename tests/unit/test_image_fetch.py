"""How blobs come in: by parts where it is slow, the largest first, one clock, one syncfs for many."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.fake_registry import QUICK, FakeRegistry, Handler, HashingLayers
from scow.image import disk_sync, ranges, stall, workers
from scow.image.disk_sync import disk_of
from scow.image.progress import SilentProgress
from scow.image.pull import pull_image
from scow.image.stall import StallWatch
from scow.image.store import ImageStore
from scow.native import sys
from scow.native.errors import DeadlineExceeded, IntegrityError, RegistryError, ScowError

PART = 64 << 10
SIZE = 10 * PART + 100


class Parts:
    """Answers ranges with an end, and notes them; `ask` may do something before or instead."""

    def __init__(self, registry: FakeRegistry) -> None:
        self.registry = registry
        self.asked: list[str] = []
        self.ask: Any = lambda handler, data, span: False
        registry.hooks.append(self)

    def __call__(self, handler: Handler) -> bool:
        digest = handler.path.rpartition("/")[2]
        data = self.registry.blobs.get(digest, b"")
        if len(data) < PART:
            return False
        span = handler.headers.get("Range", "")
        self.asked.append(span)
        if self.ask(handler, data, span):
            return True
        if span and not self.registry.ignores_ranges:
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else len(data)
            self.send(handler, data, int(first), end)
            return True
        return False

    @staticmethod
    def send(handler: Handler, data: bytes, first: int, end: int) -> None:
        body = data[first:end]
        span = f"bytes {first}-{first + len(body) - 1}/{len(data)}"
        handler.reply(206, body, {"Content-Range": span})


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    yield fake
    fake.close()


@pytest.fixture
def parts(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The registry counts as slow, and a part is small."""
    monkeypatch.setattr(ranges, "PART_BYTES", PART)
    monkeypatch.setattr(ranges, "FAST_BYTES_PER_S", 1e15)
    return Parts(registry)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("HOME", str(tmp_path))
    return ImageStore(str(tmp_path / "scow"), HashingLayers(str(tmp_path / "scow")))


def pull(store: ImageStore, registry: FakeRegistry, **options: Any) -> None:
    pull_image(store, f"{registry.host}/team/app", patience=QUICK, **options)
    assert store.verify() == []


def add(registry: FakeRegistry, *sizes: int) -> list[str]:
    top = registry.add_image(*(os.urandom(size) for size in sizes or (SIZE,)))
    manifest = json.loads(registry.manifests[top["digest"]][1])
    return [layer["digest"] for layer in manifest["layers"]]


def spans(asked: list[str], size: int) -> list[tuple[int, int]]:
    """What was asked, sorted, as [first, end)."""
    pairs = [span.removeprefix("bytes=").split("-") for span in asked]
    return sorted((int(first), int(last) + 1 if last else size) for first, last in pairs)


def test_a_slow_registry_is_asked_for_several_parts_at_once(
    store: ImageStore, registry: FakeRegistry, parts: Parts
) -> None:
    (digest,) = add(registry)
    size = len(registry.blobs[digest])
    together = threading.Barrier(3, timeout=20)
    busy, most = 0, 0

    def ask(handler: Handler, data: bytes, span: str) -> bool:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        if len(parts.asked) in (2, 3, 4):
            together.wait()  # breaks unless three are here at once
        busy -= 1
        return False

    parts.ask = ask
    pull(store, registry)
    edges = [*range(0, size, PART), size]
    assert spans(parts.asked, size) == list(pairwise(edges))
    assert most <= ranges.MAX_PARTS


def test_a_fast_registry_is_asked_for_the_rest_at_once(
    store: ImageStore, registry: FakeRegistry, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "FAST_BYTES_PER_S", 0)
    add(registry)
    pull(store, registry)
    assert parts.asked == [f"bytes=0-{PART - 1}", f"bytes={PART}-"]


def test_a_small_layer_is_one_request(
    store: ImageStore, registry: FakeRegistry, parts: Parts
) -> None:
    add(registry, 3 * PART)
    pull(store, registry)
    assert parts.asked == [""]


def test_a_registry_without_ranges_sends_it_once(
    store: ImageStore, registry: FakeRegistry, parts: Parts
) -> None:
    registry.ignores_ranges = True
    add(registry)
    pull(store, registry)
    assert len(parts.asked) == 1


def test_many_layers_share_the_room_for_parts(
    store: ImageStore, registry: FakeRegistry, parts: Parts
) -> None:
    digests = add(registry, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE)
    pull(store, registry)
    total = sum(len(registry.blobs[digest]) for digest in digests)
    fetched = spans(parts.asked, 0)
    assert sum(min(end, SIZE * 2) - first for first, end in fetched) == total


def test_a_part_that_is_cut_is_continued(
    store: ImageStore, registry: FakeRegistry, parts: Parts
) -> None:
    add(registry)

    def cut(handler: Handler, data: bytes, span: str) -> bool:
        if span != f"bytes={2 * PART}-{3 * PART - 1}":
            return False
        parts.send(handler, data, 2 * PART, 2 * PART + 1000)
        return True

    parts.ask = cut
    pull(store, registry)
    assert f"bytes={2 * PART + 1000}-{3 * PART - 1}" in parts.asked


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_part_from_another_place_is_not_taken(
    store: ImageStore, registry: FakeRegistry, parts: Parts, shift: int
) -> None:
    """The range is not the one asked for: the whole is taken and skipped, as without ranges."""
    add(registry)

    def shifted(handler: Handler, data: bytes, span: str) -> bool:
        if not span.startswith(f"bytes={2 * PART}-"):
            return False
        parts.send(handler, data, 2 * PART + shift, 3 * PART + shift)
        return True

    parts.ask = shifted
    pull(store, registry)
    assert "" in parts.asked


def test_wrong_bytes_in_a_part(store: ImageStore, registry: FakeRegistry, parts: Parts) -> None:
    add(registry)

    def wrong(handler: Handler, data: bytes, span: str) -> bool:
        if not span.startswith(f"bytes={2 * PART}-"):
            return False
        parts.send(handler, bytes(len(data)), 2 * PART, 3 * PART)
        return True

    parts.ask = wrong
    with pytest.raises(IntegrityError, match="expected this digest"):
        pull(store, registry)
    assert not [n for n in os.listdir(store.content.ingest_dir) if n.startswith("sha256")]


def test_a_pull_that_was_cut_in_the_parts_fetches_the_rest(
    store: ImageStore, registry: FakeRegistry, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scow.image.content.KEEP_PARTIAL_BYTES", 1)
    (digest,) = add(registry)
    size = len(registry.blobs[digest])

    def lost(handler: Handler, data: bytes, span: str) -> bool:
        if not span.startswith(f"bytes={6 * PART}-"):
            return False
        handler.close_connection = True
        return True

    parts.ask = lost
    with pytest.raises(RegistryError, match="closed the connection too early"):
        pull(store, registry)
    kept = os.stat(store.content.ingest_path(digest)).st_size  # type: ignore[arg-type]  # a Digest
    assert kept == 6 * PART
    parts.asked.clear()
    parts.ask = lambda handler, data, span: False
    pull_image(store, f"{registry.host}/team/app", patience=QUICK)
    fetched = spans(parts.asked, size)
    assert fetched[0][0] == kept
    assert sum(end - first for first, end in fetched) == size - kept


def test_one_failure_ends_the_parts_of_the_others(
    store: ImageStore, registry: FakeRegistry, parts: Parts
) -> None:
    _, bad = add(registry, SIZE, SIZE)

    def refuse(handler: Handler, data: bytes, span: str) -> bool:
        if not handler.path.endswith(bad):
            return False
        handler.reply(403)
        return True

    parts.ask = refuse
    with pytest.raises(ScowError, match="denies access"):
        pull(store, registry)
    assert not [t for t in threading.enumerate() if t.name.startswith(("scow-part", "scow-layer"))]


def test_the_largest_layer_is_first(
    store: ImageStore, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = workers.Workers
    monkeypatch.setattr(workers, "Workers", lambda count, name: many(1, name))
    digests = add(registry, 1000, 50_000, 20_000)
    begun: list[str] = []

    class Sink(SilentProgress):
        def start(self, layer: str, size: int) -> None:
            begun.append(layer)

    pull(store, registry, progress=Sink())
    assert begun == [digests[1], digests[2], digests[0]]


# -- the clock ------------------------------------------------------------------------------------


@pytest.fixture
def held(store: ImageStore, registry: FakeRegistry) -> Iterator[Any]:
    """The file of a layer, as another process holds it that fetches the same blob."""
    (digest,) = add(registry, 5000)
    store.content.prepare()
    path = store.content.ingest_path(digest)  # type: ignore[arg-type]  # a Digest
    with open(path, "wb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def test_a_pull_that_waits_for_nothing_that_moves_gives_up(
    store: ImageStore, registry: FakeRegistry, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall, "STALL_S", 0.3)
    monkeypatch.setattr(stall, "LOOK_S", 0.05)
    ours = f"process {os.getpid()} "
    with pytest.raises(
        DeadlineExceeded, match=f"no progress for 0 s: it waits for .* another fetches: {ours}"
    ) as caught:
        pull(store, registry)
    assert f"kill {os.getpid()}" in (caught.value.hint or "")


def test_what_another_process_fetches_counts(
    store: ImageStore, registry: FakeRegistry, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    moved = threading.Event()
    monkeypatch.setattr(stall, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(stall, "LOOK_S", 0.01)
    monkeypatch.setattr(
        StallWatch, "touch", lambda self: (setattr(self, "_moved", now), moved.set())
    )
    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(pull, store, registry)
        for _ in range(10):  # 1000 s in all; one step may pass between a touch and its word of it
            moved.clear()
            held.write(b"x")
            assert moved.wait(20)
            now += 100
            assert not pulling.done()
        os.unlink(held.name)  # it gave up: this pull's turn
        held.close()
        pulling.result(20)


def test_a_slow_unpacker_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALL_S", 0.0)
    watch = StallWatch(SilentProgress())
    monkeypatch.setattr(stall, "is_syncing", lambda: True)
    time.sleep(0.01)
    watch.check()  # the disk is at work
    monkeypatch.setattr(stall, "DISK_S", 0.0)
    with pytest.raises(DeadlineExceeded, match="the disk does not take"):
        watch.check()  # and has been for too long
    monkeypatch.setattr(stall, "is_syncing", lambda: False)
    monkeypatch.setattr(stall, "STALL_S", 1000)
    watch.unpacked("layer", 1)
    watch.check()


# -- the disk -------------------------------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """syncfs in slow motion: begin and end of each call, and a fault to raise."""

    class Syncs:
        def __init__(self) -> None:
            self.begun = self.ended = 0
            self.fault: OSError | None = None

        def __call__(self, fd: int) -> None:
            self.begun += 1
            time.sleep(0.05)
            self.ended += 1
            if self.fault is not None:
                fault, self.fault = self.fault, None
                raise fault

    found = Syncs()
    monkeypatch.setattr(sys, "syncfs", found)
    return found


def test_layers_share_their_syncs(tmp_path: Path, syncs: Any) -> None:
    """Each gets one that began after its last byte; ten need but a few together."""
    fd = os.open(tmp_path, os.O_RDONLY)
    late: list[int] = []

    def one() -> None:
        with disk_of(fd):
            begun = syncs.begun
        late.append(syncs.ended - begun)

    threads = [threading.Thread(target=one) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    assert min(late) >= 1
    assert syncs.begun < 10
    assert not disk_sync._disks


def test_the_disk_begins_before_the_end(
    tmp_path: Path, syncs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_sync, "FLUSH_BYTES", 1000)
    fd = os.open(tmp_path, os.O_RDONLY)
    with disk_of(fd) as disk:
        disk.wrote(999)
        assert not disk.is_running
        disk.wrote(1)
        assert disk.is_running
        assert disk_sync.is_syncing()
    os.close(fd)
    assert syncs.ended == 2


def test_a_fault_in_the_background_fails_all_who_were_under_way(
    tmp_path: Path, syncs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_sync, "FLUSH_BYTES", 1)
    fd = os.open(tmp_path, os.O_RDONLY)
    with disk_of(fd) as outer:
        for _ in range(2):
            syncs.fault = OSError(errno.EIO, os.strerror(errno.EIO))
            with (
                pytest.raises(ScowError, match=r"cannot write 'the layers' disk'.*EIO"),
                disk_of(fd),
            ):
                outer.wrote(1)
        with disk_of(fd):
            pass  # began after the faults
        outer._faults.clear()
    os.close(fd)


def test_nothing_is_synced_for_a_layer_that_failed(tmp_path: Path, syncs: Any) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IntegrityError), disk_of(fd):
        raise IntegrityError("bad layer")
    os.close(fd)
    assert syncs.begun == 0
    assert not disk_sync._disks
