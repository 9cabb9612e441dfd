"""What TarWriter writes, Python's tarfile and GNU tar read: any name, any number, holes."""

from __future__ import annotations

import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scow.image import tarwriter
from scow.image.tarwriter import DIRECTORY, LINK, SYMLINK, Member, TarWriter, data_segments

NAMES = st.binary(min_size=1, max_size=300).filter(
    lambda name: b"\0" not in name and name.strip(b"/") != b"" and not name.endswith(b"/")
)
NUMBERS = st.one_of(st.integers(0, 1 << 21), st.integers(0, (1 << 32) - 2))


def written(*members: Member) -> bytes:
    out = BytesIO()
    tar = TarWriter(out.write)
    for member in members:
        tar.add(member)
    tar.finish()
    return out.getvalue()


@given(
    name=NAMES,
    link=NAMES,
    uid=NUMBERS,
    gid=NUMBERS,
    mode=st.integers(0, 0o7777),
    mtime_ns=st.integers(-(10**18), 10**19),
)
def test_tarfile_reads_it(
    name: bytes, link: bytes, uid: int, gid: int, mode: int, mtime_ns: int
) -> None:
    data = written(Member(name, SYMLINK, mode, uid, gid, mtime_ns, link=link))
    assert len(data) % 512 == 0
    with tarfile.open(fileobj=BytesIO(data), errors="surrogateescape") as tar:
        (found,) = tar.getmembers()
    assert (os.fsencode(found.name), os.fsencode(found.linkname)) == (name, link)
    assert (found.uid, found.gid, found.mode) == (uid, gid, mode)
    assert found.mtime == pytest.approx(mtime_ns / 1e9, abs=1e-6, rel=1e-15)


def test_the_same_is_the_same() -> None:
    members = [Member(b"d/", DIRECTORY), Member(b"l", LINK, link=b"d/x"), Member(b"x" * 200)]
    assert written(*members) == written(*members)


@pytest.mark.parametrize(
    ("parts", "size", "expected"),
    [
        ([], 1 << 20, [(1 << 20, 0)]),
        ([0], 1 << 20, [(0, 4096), (1 << 20, 0)]),
        ([1 << 20], (1 << 20) + 4096, [(1 << 20, 4096)]),
        ([0, 8192, 1 << 20], (1 << 20) + 8192, [(0, 12288), (1 << 20, 8192)]),
        ([0, 32768], 40000, None),
        ([32768], 40000, None),
    ],
)
def test_holes(
    tmp_path: Path, parts: list[int], size: int, expected: list[tuple[int, int]] | None
) -> None:
    """Only a hole that is worth it is told; GNU tar puts it where it was."""
    path = tmp_path / "holes"
    with path.open("wb") as file:
        for at in parts:
            file.seek(at)
            file.write(b"x" * 4096)
        file.truncate(size)
    out = BytesIO()
    with path.open("rb") as file:
        assert data_segments(file.fileno(), size) == expected
        tar = TarWriter(out.write)
        tar.add_file(Member(b"a/holes", size=size), file.fileno())
        tar.add(Member(b"after"))
        tar.finish()
    subprocess.run(["tar", "-x", "-C", tmp_path], input=out.getvalue(), check=True)
    assert (tmp_path / "a/holes").read_bytes() == path.read_bytes()
    assert (tmp_path / "after").exists()
    with tarfile.open(fileobj=BytesIO(out.getvalue())) as read:
        assert [(m.name, m.size) for m in read] == [("a/holes", size), ("after", 0)]


def test_too_many_segments_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarwriter, "MAX_SEGMENTS", 3)
    step = 2 * tarwriter.MIN_HOLE_BYTES
    with (tmp_path / "x").open("w+b") as file:
        for number in range(8):
            file.seek(number * step)
            file.write(b"x" * 4096)
        file.truncate(64 * step)
        found = data_segments(file.fileno(), 64 * step)
    assert found == [(0, 7 * step + 4096), (64 * step, 0)]


def test_a_file_that_shrinks_is_filled_with_zeros(tmp_path: Path) -> None:
    """Its header has been sent; what follows it must not move."""
    (tmp_path / "x").write_bytes(b"short")
    out = BytesIO()
    with (tmp_path / "x").open("rb") as file:
        tar = TarWriter(out.write)
        tar.add_file(Member(b"x", size=2000), file.fileno())
        tar.add(Member(b"after"))
        tar.finish()
    with tarfile.open(fileobj=BytesIO(out.getvalue())) as read:
        content = read.extractfile("x")
        assert content is not None
        assert content.read() == b"short" + bytes(1995)
        assert read.getnames() == ["x", "after"]
