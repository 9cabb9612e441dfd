"""Layers that are hostile by their compression, their size or their number: E27, E28, E35, E36 of the checklist.

See test_hostile_layers.py. Each test's id, or what it says of itself, begins with its row.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from fixtures.layerhost import Host, show
from fixtures.layertar import END, directory, entry, hardlink, header, padded, sparse
from fixtures.layouts import LAYER, Layout, digest
from scow.image import unpack as unpack_module
from scow.image.digest import DiffID
from scow.native.errors import IntegrityError, ResourceExhausted, Unsupported

pytestmark = pytest.mark.root


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


TAR = entry(b"f", b"x" * 3000) + END
SKIPPABLE = b"\x53\x2a\x4d\x18" + (9).to_bytes(4, "little") + b"chunk toc"
FEXTRA = b"\x1f\x8b\x08\x04" + bytes(4) + b"\0\xff" + (5).to_bytes(2, "little") + b"extra"
ZSTD = zstandard.ZstdCompressor()


def with_extra(data: bytes) -> bytes:
    packed = zlib.compressobj(wbits=-15)
    return (
        FEXTRA
        + packed.compress(data)
        + packed.flush()
        + struct.pack("<II", zlib.crc32(data), len(data))
    )


COMPRESSED: dict[str, tuple[bytes, str, str]] = {
    "E27 gzip members": (gzip.compress(TAR[:900]) + gzip.compress(TAR[900:]), "+gzip", ""),
    "E27 gzip extra field": (with_extra(TAR), "+gzip", ""),
    "E27 zstd frames": (ZSTD.compress(TAR[:9]) + SKIPPABLE + ZSTD.compress(TAR[9:]), "+zstd", ""),
    "E27 mislabelled": (gzip.compress(TAR), "", ""),
    "E27 mislabelled plain": (TAR, "+zstd", ""),
    "E27 gzip truncated": (gzip.compress(TAR)[:-9], "+gzip", "middle|truncated|ends"),
    "E27 gzip checksum": (gzip.compress(TAR)[:-8] + bytes(8), "+gzip", "(?i)crc|check"),
    "E27 trailing junk": (gzip.compress(TAR) + b"junk" * 9, "+gzip", "after|junk|trailing"),
    "E27 zstd truncated": (ZSTD.compress(TAR)[:-3], "+zstd", "middle|truncated|ends"),
    "E27 twice": (gzip.compress(gzip.compress(TAR)), "+gzip", "checksum|middle"),
    "E27 xz": (lzma.compress(TAR), "", "xz"),
    "E27 bzip2": (bz2.compress(TAR), "", "bzip2"),
    "E27 lz4": (b"\x04\x22\x4d\x18" + TAR, "", "lz4"),
    # A frame header that asks for 2 GiB, and one that names a dictionary.
    "E27 zstd window": (b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(20), "+zstd", "window|memory"),
    "E27 zstd dictionary": (b"\x28\xb5\x2f\xfd\x23\x07\0\0\0\x05" + bytes(20), "+zstd", "dictionary"),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPRESSED)
def test_compression(host: Host, case: str) -> None:
    data, suffix, says = COMPRESSED[case]
    layout = Layout()
    layers = [layout.blob(data, LAYER + suffix)]
    layout.add(layout.manifest(layout.config(TAR), layers))
    if says:
        with pytest.raises((IntegrityError, Unsupported), match=says):
            host.load(layout)
        assert host.store.list() == []
        assert host.layers.list() == []
    else:
        host.load(layout)
        assert host.layers.list() == [digest(TAR)]


# --- limits ------------------------------------------------------------------------------------------------


def chunks_of_zeros(head: bytes, size: int) -> Iterator[bytes]:
    """A gzip stream of `head` and so many zero bytes: a thousandth of that."""
    packed = zlib.compressobj(9, wbits=31)
    yield packed.compress(head)
    for _ in range(size >> 20):
        yield packed.compress(bytes(1 << 20))
    yield packed.flush()


def grows(limit: int, work: Callable[[], object]) -> None:
    """Run `work` in a child, whose memory stays below `limit`; so a peak of before is none of it."""
    pid = os.fork()
    if pid == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = peak()
            work()
            os._exit(peak() - before > limit)
        except BaseException:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_a_bomb_meets_its_limit(host: Host) -> None:
    """E28: 1 MiB of gzip that is 1 GiB of file; little memory, no disk, and at once."""

    def explode() -> None:
        with pytest.raises(ResourceExhausted, match="limit of 16777216 bytes"):
            host.layers.unpack(
                DiffID(digest(b"")),
                chunks_of_zeros(header(b"x", size=1 << 40 - 3), 1 << 30),
                limit_bytes=16 << 20,
            )

    grows(64 << 20, explode)


def test_many_entries_meet_their_limit(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """E28: with a lowered limit; the real one is tried by `make stress`."""
    monkeypatch.setattr(unpack_module, "MAX_ENTRIES", 1000)
    layout = Layout()
    layout.image(b"".join(entry(b"%d" % i) for i in range(1001)))
    host.refused(layout, "more than 1000 entries", ResourceExhausted)


def test_links_into_other_layers_meet_their_limit(host: Host) -> None:
    """E28: what a layer wants of the lower ones is kept in memory, so its number has a limit, too."""

    def explode() -> None:
        links = hardlink(b"ab", b"xy") * 1000
        with pytest.raises(IntegrityError, match="too many hard links into other layers"):
            host.layers.unpack(DiffID(digest(b"")), (links for _ in range(1000)))

    grows(100 << 20, explode)


def test_one_directory_with_many_names(host: Host) -> None:
    """E28, and replaced by a file at last: that takes them all away again, in time."""
    names = b"".join(entry(b"d/%d" % i) for i in range(2000))
    with host.root(names + entry(b"d", b"file")) as root:
        assert show(root, "d") == "file file"


def test_replacing_a_directory_of_directories(host: Host) -> None:
    """E28: the work is in proportion to the names, however they nest."""
    names = b"".join(entry(b"d/%d/f" % i) for i in range(2000))
    deep = b"".join(directory(b"deep/" + b"x/" * i) for i in range(1, 500))
    with host.root(names + entry(b"d", b"file") + deep + entry(b"deep", b"file")) as root:
        assert (show(root, "d"), show(root, "deep")) == ("file file", "file file")


def test_a_sparse_file_is_its_data(host: Host) -> None:
    """E35: 1 TiB of hole is 4 KiB of layer, whole or not."""
    where = 1 << 39
    tar = sparse((b"GNU.sparse.realsize", b"%d" % (1 << 40)), (b"GNU.sparse.name", b"big"))
    tar += entry(b"GNUSparseFile.1/big", padded(b"1\n%d\n4096\n" % where) + b"d" * 4096)
    layout = Layout()
    layout.image(tar)
    host.load(layout)
    info = host.layers.info(DiffID(digest(tar)))
    assert info.size == 4096
    st = os.lstat(f"{host.layers.path(info.diff_id)}/big")
    assert (st.st_size, st.st_blocks * 512 < 1 << 20) == (1 << 40, True)


def test_two_images_on_one_base_and_one_of_them_is_bad(host: Host) -> None:
    """E36: sixteen at once; the base is there once, the bad image is not, and its own layer neither."""
    base = b"".join(entry(b"base/%d" % i, b"x" * 500) for i in range(200)) + END
    good, bad = entry(b"good") + END, entry(b"../bad") + END
    answers: list[str] = []

    def load(number: int) -> None:
        layout = Layout()
        name = "bad" if number % 2 else "good"
        layout.image(base, bad if number % 2 else good, name=f"{name}:{number}")
        try:
            answers.append(host.load(layout)[-1])
        except IntegrityError as error:
            answers.append("'..'" if "'..'" in error.message else error.message)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [
        *["'..'"] * 8,
        *sorted(f"Loaded image: good:{number}" for number in range(0, 16, 2)),
    ]
    assert sorted(host.layers.list()) == sorted([digest(base), digest(good)])


def test_another_unpack_is_not_held_up(host: Host) -> None:
    """CVE-2021-20291: a layer that never goes on holds nobody but itself."""
    stuck, release = threading.Event(), threading.Event()

    def never() -> Iterator[bytes]:
        yield TAR[:700]
        stuck.set()
        release.wait(60)
        raise IntegrityError("the other end gave up")

    def wait() -> None:
        with pytest.raises(IntegrityError, match="gave up"):
            host.layers.unpack(DiffID(digest(b"never")), never())

    thread = threading.Thread(target=wait)
    thread.start()
    assert stuck.wait(30)
    host.layers.unpack(DiffID(digest(TAR)), [TAR])
    assert thread.is_alive()
    release.set()
    thread.join(30)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_million_entries_and_a_million_names(host: Host) -> None:
    """E28 as the checklist has it: one name too many of 10^7, and 10^6 names in one directory."""

    def entries(count: int, name: bytes, kind: bytes) -> Iterator[bytes]:
        for start in range(0, count, 1000):
            numbers = range(start, min(start + 1000, count))
            yield b"".join(header(name % i if b"%" in name else name, kind=kind) for i in numbers)

    with pytest.raises(ResourceExhausted, match="more than 10000000 entries"):
        host.layers.unpack(DiffID(digest(b"")), entries(10_000_001, b"d", b"5"))
    with pytest.raises(IntegrityError, match="expected diff id"):
        host.layers.unpack(DiffID(digest(b"")), entries(1_000_000, b"d/%d", b"0"))
