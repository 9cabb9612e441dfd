"""The layer store: whole or not at all, once per diff id, swept, completed per stack, stacked."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scow.image.digest import DiffID
from scow.image.layers import LayerStore
from scow.image.overlay import mount_overlay
from scow.native import spawn
from scow.native import sys as native
from scow.native.errors import (
    IntegrityError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SetupError,
)
from scow.native.fd import OwnedFd

pytestmark = [pytest.mark.root, pytest.mark.guest]


def tar_of(*members: tuple[str, object]) -> bytes:
    """(name, str data | bytes kind | dict of TarInfo fields)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            data = b""
            if isinstance(what, str):
                data = what.encode()
            elif isinstance(what, dict):
                for key, value in what.items():
                    setattr(info, key, value)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def folder(mode: int = 0o755, **fields: object) -> dict[str, object]:
    return {"type": tarfile.DIRTYPE, "mode": mode, **fields}


def link(target: str) -> dict[str, object]:
    return {"type": tarfile.LNKTYPE, "linkname": target}


def diff_id(tar: bytes) -> DiffID:
    return DiffID("sha256:" + hashlib.sha256(tar).hexdigest())


def leftovers(store: LayerStore) -> list[str]:
    """Names in the working directories; there must be none."""
    root = Path(store.root_dir)
    return [
        str(p) for d in (".staging", ".trash", ".locks", ".empty") for p in (root / d).iterdir()
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    made = LayerStore(str(tmp_path / "layers"))
    spawn.monitor_memfd()  # kept by the process on purpose
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    yield made
    assert leftovers(made) == []
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (fds, threads)


def add(store: LayerStore, *members: tuple[str, object]) -> DiffID:
    tar = tar_of(*members)
    store.unpack(diff_id(tar), [gzip.compress(tar)])
    return diff_id(tar)


def read_in(mount: OwnedFd, path: str) -> str:
    fd = native.openat2(mount.fileno(), path, os.O_RDONLY, 0, native.RESOLVE_IN_ROOT)
    with open(fd) as stream:
        return stream.read()


def stat_in(mount: OwnedFd, path: str) -> os.stat_result:
    flags = os.O_PATH | os.O_NOFOLLOW
    with OwnedFd(native.openat2(mount.fileno(), path, flags, 0, native.RESOLVE_IN_ROOT)) as fd:
        return os.fstat(fd.fileno())


def test_life_of_a_layer(store: LayerStore) -> None:
    tar = tar_of(("a/b", "data"))
    name = diff_id(tar)
    assert not store.has(name)
    assert store.list() == []
    assert not store.remove(name)
    info = store.unpack(name, iter([tar[:700], tar[700:]]))
    assert (info.diff_id, info.size, info.tar_bytes, info.entries) == (name, 4, len(tar), 1)
    assert store.info(name) == info
    assert store.list() == [name]
    assert Path(store.path(name), "a/b").read_text() == "data"
    assert stat.S_IMODE(os.stat(store.root_dir).st_mode) == 0o700
    unread = iter([b"never looked at"])
    assert store.unpack(name, unread) == info
    assert next(unread)
    assert store.remove(name)
    assert not store.has(name)
    assert store.list() == []
    assert len(os.listdir(f"{store.root_dir}/.trash")) == 1
    store.empty_trash()
    with pytest.raises(NotFound):
        store.info(name)
    with pytest.raises(NotFound, match="not unpacked"):
        store.stack([name])


def test_wrong_digest_leaves_nothing(store: LayerStore) -> None:
    with pytest.raises(IntegrityError, match="expected diff id"):
        store.unpack(diff_id(b""), [tar_of(("a", "data"))])
    assert store.list() == []


@pytest.mark.parametrize("fault", [ConnectionError("gone"), KeyboardInterrupt()])
def test_fetch_that_fails(store: LayerStore, fault: BaseException) -> None:
    def chunks() -> Iterator[bytes]:
        yield tar_of(("a", "x" * 100000))[:70000]
        raise fault

    with pytest.raises(type(fault)):
        store.unpack(diff_id(b""), chunks())
    assert store.list() == []


def test_bad_layer_stops_the_fetch(store: LayerStore) -> None:
    """A hostile registry that never ends: the error of the first entry comes at once."""
    fetched = 0

    def chunks() -> Iterator[bytes]:
        nonlocal fetched
        yield tar_of(("../x", "")).ljust(1 << 20, b"\0")
        while True:
            fetched += 1
            yield bytes(1 << 20)

    with pytest.raises(IntegrityError, match=r"'\.\./x'"):
        store.unpack(diff_id(b""), chunks())
    assert fetched < 100


def test_bomb(store: LayerStore) -> None:
    bomb = gzip.compress(tar_of(("a", "x")) + bytes(200 << 20))
    with pytest.raises(ResourceExhausted, match="limit of"):
        store.unpack(diff_id(b""), [bomb], limit_bytes=10 << 20)


def test_one_unpacks_the_others_wait(store: LayerStore) -> None:
    """E36: eight pulls of one layer read its bytes once."""
    tar = tar_of(*((f"f{i}", "x" * 3000) for i in range(200)))
    pulled: list[int] = []

    def chunks(number: int) -> Iterator[bytes]:
        pulled.append(number)
        time.sleep(0.1)
        yield tar

    def pull(number: int) -> None:
        store.unpack(diff_id(tar), chunks(number))

    threads = [threading.Thread(target=pull, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pulled) == 1
    assert store.has(diff_id(tar))


def test_first_fails_second_goes_on(store: LayerStore) -> None:
    tar = tar_of(("a", "data"))
    started = threading.Event()

    def bad() -> Iterator[bytes]:
        started.set()
        time.sleep(0.1)
        raise ConnectionError
        yield b""

    def first() -> None:
        with pytest.raises(ConnectionError):
            store.unpack(diff_id(tar), bad())

    thread = threading.Thread(target=first)
    thread.start()
    started.wait()
    store.unpack(diff_id(tar), [tar])
    thread.join()
    assert store.has(diff_id(tar))


KILLED = """
import os, signal, sys
from scow.image.layers import LayerStore
def chunks():
    yield sys.stdin.buffer.read()
    print("fed", flush=True)
    signal.pause()
LayerStore(sys.argv[1]).unpack(sys.argv[2], chunks())
"""


def test_killed_attempt_is_swept(store: LayerStore) -> None:
    """kill -9 in the middle: the next unpack of any layer cleans up after it."""
    tar = tar_of(*((f"d{i}/f", "x" * 2000) for i in range(300)))
    command = [sys.executable, "-c", KILLED, store.root_dir, diff_id(tar)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(tar[:-1024])
        process.stdin.close()
        assert process.stdout.readline() == b"fed\n"
        process.kill()
    staging = Path(store.root_dir, ".staging")
    assert [p.name for p in staging.iterdir()] == [diff_id(tar).removeprefix("sha256:")]
    deadline = time.monotonic() + 60  # the applet notices the end of its pipe, holding the lock
    while list(staging.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
        store.sweep()
    assert not store.has(diff_id(tar))
    store.unpack(diff_id(tar), [tar])


def test_damaged_directory_is_replaced(store: LayerStore) -> None:
    tar = tar_of(("a", "data"))
    name = diff_id(tar)
    Path(store.root_dir, name.removeprefix("sha256:"), "diff").mkdir(parents=True)
    assert not store.has(name)
    assert store.list() == []
    store.unpack(name, [tar])
    assert store.has(name)
    Path(store.root_dir, name.removeprefix("sha256:"), "layer.json").write_text('{"diff_id": 1}')
    with pytest.raises(IntegrityError, match=r"bad layer\.json"):
        store.info(name)


def test_disk_full(tmp_path: Path) -> None:
    """E40: blocks and inodes; the reason is told, nothing stays."""
    where = tmp_path / "small"
    where.mkdir()
    for options, what in (("size=4m", "x" * 100000), ("size=64m,nr_inodes=50", "")):
        native.mount("scow-test", str(where), "tmpfs", 0, options)
        try:
            store = LayerStore(str(where / "layers"))
            tar = tar_of(*((f"f{i}", what) for i in range(100)))
            with pytest.raises(ResourceExhausted, match=r"entry 'f.*No space left on device"):
                store.unpack(diff_id(tar), [tar])
            assert leftovers(store) == []
            add(store, ("small", "fits"))
        finally:
            native.umount2(str(where))


def test_stack_and_whiteouts(store: LayerStore) -> None:
    stack = [
        add(store, ("d/gone", "1"), ("d/kept", "1"), ("o/hidden", "1"), ("both", "1")),
        add(store, ("d/.wh.gone", ""), ("o/.wh..wh..opq", ""), ("o/new", "2"), ("both", "2")),
    ]
    paths = store.stack(stack)
    assert paths == [store.path(stack[1]), store.path(stack[0])]
    with mount_overlay(paths) as mount:
        assert read_in(mount, "both") == "2"
        assert read_in(mount, "d/kept") == "1"
        for name in ("d/gone", "o/hidden", "d/.wh.gone"):
            with pytest.raises(FileNotFoundError):
                stat_in(mount, name)
    twice = store.stack([stack[1], *stack])
    assert twice == paths
    top = add(store, (".wh..wh..opq", ""), ("only", "3"))
    assert store.stack([*stack, top]) == [store.path(top)]


def test_hard_links_into_lower_layers(store: LayerStore) -> None:
    """E16: copied, attributes and all; depends on the stack, so two stacks get two files."""
    lower = [
        add(store, ("bin/tool", {"mode": 0o4755, "uid": 5, "mtime": 1000}), ("x/y", "lower")),
        add(store, ("bin/tool", "other")),
    ]
    upper = add(
        store,
        ("new/a", link("x/y")),
        ("new/b", link("/x/y")),
        ("bin/tool2", link("bin/tool")),
        ("taken", link("bin/tool")),
        ("taken", "later entry"),
    )
    for stack, tool in (([lower[0], upper], ""), ([*lower, upper], "other")):
        paths = store.stack(stack)
        assert store.stack(stack) == paths
        assert len(paths) == len(stack) + 1
        with mount_overlay(paths) as mount:
            assert read_in(mount, "new/a") == "lower"
            assert stat_in(mount, "new/a").st_ino == stat_in(mount, "new/b").st_ino
            assert read_in(mount, "bin/tool2") == tool
            assert read_in(mount, "taken") == "later entry"
            if not tool:
                st = stat_in(mount, "bin/tool2")
                assert (st.st_mode & 0o7777, st.st_uid, st.st_mtime) == (0o4755, 5, 1000)
    with pytest.raises(
        IntegrityError, match="'bin/tool2': hard link to 'bin/tool', which is no file"
    ):
        store.stack([add(store, ("x/y", "1")), upper])
    assert store.remove(lower[1])
    store.empty_trash()
    assert len([n for n in os.listdir(store.root_dir) if n.startswith("chain-")]) == 1


def test_unlisted_directories_keep_their_lower_attributes(store: LayerStore) -> None:
    """A layer with `tmp/x` and no `tmp/` must not turn /tmp into 0755."""
    base = add(
        store, ("tmp", folder(0o1777)), ("home", folder()), ("home/u", folder(0o700, uid=1000))
    )
    plain = add(store, ("usr", folder()), ("usr/a", "1"))
    upper = add(store, ("tmp/x", "1"), ("home/u/y", "1"), ("usr/b", "1"), ("fresh/z", "1"))
    assert len(store.stack([plain, upper])) == 2
    with mount_overlay(store.stack([base, plain, upper])) as mount:
        assert stat.S_IMODE(stat_in(mount, "tmp").st_mode) == 0o1777
        home = stat_in(mount, "home/u")
        assert (stat.S_IMODE(home.st_mode), home.st_uid) == (0o700, 1000)
        assert (
            read_in(mount, "home/u/y") == read_in(mount, "usr/a") == read_in(mount, "usr/b") == "1"
        )
        assert stat.S_IMODE(stat_in(mount, "usr").st_mode) == 0o755


def test_overlay_of_127_layers_with_upper(store: LayerStore, tmp_path: Path) -> None:
    stack = [add(store, (f"f{i}", str(i)), ("top", str(i))) for i in range(127)]
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    with mount_overlay(
        store.stack(stack), str(tmp_path / "upper"), str(tmp_path / "work")
    ) as mount:
        assert read_in(mount, "top") == "126"
        assert read_in(mount, "f0") == "0"
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=mount.fileno()))
    assert (tmp_path / "upper/new").exists()
    assert "overlay" not in [
        line.split(" - ")[1].split()[0]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(tmp_path) in line
    ]


def test_overlay_on_old_kernels(
    store: LayerStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `lowerdir+` (before 6.8): mount(2), cloned and detached."""
    stack = [add(store, (f"f{i}", str(i))) for i in range(127)]

    def refuse(fd: int, key: str, value: str) -> None:
        if key == "lowerdir+":
            raise OSError(22, "Invalid argument", key)

    monkeypatch.setattr(native, "fsconfig_string", refuse)
    with mount_overlay(store.stack(stack)) as mount:
        assert read_in(mount, "f0") == "0"
        assert read_in(mount, "f126") == "126"
    assert not [d for d in os.listdir("/tmp") if d.startswith("scow-overlay-")]


def test_overlay_that_cannot_be(tmp_path: Path) -> None:
    here = str(tmp_path)
    with pytest.raises(InvalidArgument):
        mount_overlay([here])
    with pytest.raises(InvalidArgument):
        mount_overlay([here], upper=here)
    with pytest.raises(ResourceExhausted, match="501 layers: the kernel takes 500"):
        mount_overlay([here] * 501)
    with pytest.raises(
        SetupError, match=r"cannot mount overlay of 2 layers.*No such file"
    ) as caught:
        mount_overlay([here, here + "/none"])
    assert caught.value.errno == 2


def test_lock_file_that_vanishes_is_taken_again(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder unlinks the lock file; who waited on it must not believe that it has the lock."""
    real, calls = fcntl.flock, list[int]()

    def flock(fd: int, operation: int) -> None:
        real(fd, operation)
        calls.append(fd)
        if len(calls) == 1:
            os.unlink(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(fcntl, "flock", flock)
    add(store, ("a", "1"))
    assert len(calls) >= 2


def test_deep_layer_is_taken_away(store: LayerStore) -> None:
    """1,024 directories, which is all that a layer may have."""
    deep = add(
        store, ("d/" * 1023 + "f", "x"), ("d/l", {"type": tarfile.SYMTYPE, "linkname": "/etc"})
    )
    assert store.remove(deep)
    store.empty_trash()
    assert os.path.exists("/etc/passwd")


def test_a_thin_layer_is_sealed_when_it_is_made(store: LayerStore) -> None:
    """It has no blob to be compared with: without its seal nothing could tell that it is damaged."""
    lower = add(store, ("dir/file", "lower"))
    upper = add(store, ("other", link("dir/file")))
    (thin, *_) = store.stack([lower, upper])
    name = Path(thin).parent.name
    assert name.startswith("chain-")
    assert store.damaged_completions() == []
    (path,) = (p for p in Path(thin).rglob("*") if p.is_file())
    path.write_text("LOWER")
    assert store.damaged_completions() == [name]
    store.drop_completion(name, keep_old=False)
    assert store.stack([lower, upper])[0] == thin
    assert store.damaged_completions() == []
    assert path.read_text() == "lower"
    store.empty_trash()
