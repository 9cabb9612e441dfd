"""What GNU tar packs, scow-untar unpacks as GNU tar does: real trees and generated ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.trees import Tree, look
from scow.image.digest import DiffID
from scow.image.unpack import unpack
from scow.native.fd import OwnedFd

pytestmark = pytest.mark.root

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
FORMATS = ["pax", "gnu", "oldgnu", "ustar", "v7"]


def pack(source: Path, tar_format: str) -> bytes:
    extra = ["--xattrs", "--xattrs-include=*"] if tar_format == "pax" else []
    sparse = ["--sparse"] if tar_format in ("pax", "gnu", "oldgnu") else []
    command = ["tar", "-c", f"--format={tar_format}", "--numeric-owner", *extra, *sparse]
    return subprocess.run(
        [*command, "-C", str(source), "."], check=True, capture_output=True
    ).stdout


def unpack_by_tar(tar: bytes, dest: Path) -> None:
    dest.mkdir()
    command = ["tar", "-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(dest)]
    subprocess.run(command, input=tar, check=True, capture_output=True)


def unpack_by_scow(tar: bytes, dest: Path) -> None:
    dest.mkdir()
    diff_id = DiffID("sha256:" + hashlib.sha256(tar).hexdigest())
    with OwnedFd(os.open(dest, os.O_RDONLY)) as fd:
        unpack(diff_id, [tar], fd.fileno())


def build_tree(root: Path) -> None:
    """A bit of everything that a root file system has."""
    (root / "etc/deep").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "ping").write_bytes(os.urandom(70000))
    os.chown(root / "ping", 0, 5)
    os.setxattr(root / "ping", "security.capability", CAPABILITY)
    os.setxattr(root / "etc", "user.note", b"a\nb=\xff")
    (root / "su").write_text("x")
    os.chown(root / "su", 1234567, 7654321)
    (root / "su").chmod(0o6755)
    os.link(root / "su", root / "etc/su2")
    os.symlink("../../out/of/here", root / "etc/link")
    os.symlink("x" * 90, root / "short")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o640, os.makedev(259, 65537))
    os.mkfifo(root / "fifo", 0o600)
    with (root / "sparse").open("wb") as stream:
        for at in (0, 1 << 20, 50 << 20):
            stream.seek(at)
            stream.write(b"data" * 1024)
        stream.truncate(64 << 20)
    (root / "none").touch()
    (root / "none").chmod(0)
    (root / "etc/deep").chmod(0)
    for path in root.rglob("*"):
        os.utime(path, ns=(0, 10**18 + 123456789), follow_symlinks=False)


def add_long_names(root: Path) -> None:
    directory = root / ("d" * 120) / ("e" * 200)
    directory.mkdir(parents=True)
    (directory / ("f" * 250)).write_text("long")
    os.symlink("t/" * 150, directory / "link")
    os.link(directory / ("f" * 250), root / "short-name")


def compare(source: Path, tar_format: str, base: Path) -> Tree:
    tar = pack(source, tar_format)
    unpack_by_tar(tar, base / "tar")
    unpack_by_scow(tar, base / "scow")
    expected, actual = look(base / "tar"), look(base / "scow")
    assert actual.keys() == expected.keys()
    assert {k: (v, expected[k]) for k, v in actual.items() if v != expected[k]} == {}
    return actual


@pytest.mark.parametrize("tar_format", FORMATS)
def test_a_bit_of_everything(tmp_path: Path, tar_format: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    build_tree(source)
    if tar_format in ("v7", "ustar"):
        # 7654321 and device 65537 do not fit into their fields: GNU tar would refuse.
        os.chown(source / "su", 12345, 12345)
        (source / "su").chmod(0o6755)
        (source / "disk").unlink()
    else:
        add_long_names(source)
    if tar_format == "v7":
        for name in ("null", "fifo"):
            (source / name).unlink()
    seen = compare(source, tar_format, tmp_path)
    if tar_format == "pax":
        assert seen == look(source)


@pytest.mark.parametrize("tree", ["usr/bin", "etc", "usr/lib/x86_64-linux-gnu/perl-base"])
def test_trees_of_this_machine(tmp_path: Path, tree: str) -> None:
    """Set-id programs, links and names as Debian has them."""
    source = Path("/") / tree
    if not source.is_dir():
        pytest.skip(f"no {source} here")
    if tree == "usr/bin":
        source = tmp_path / "source"
        source.mkdir()
        small = [
            p for p in Path("/usr/bin").iterdir() if p.is_symlink() or p.stat().st_size < 300_000
        ]
        subprocess.run(["cp", "-a", *small, source], check=True)
    compare(source, "pax", tmp_path)


names = st.binary(min_size=1, max_size=20).map(
    lambda b: bytes(c or 1 for c in b).replace(b"/", b"_")
)
safe_names = names.filter(lambda n: n not in (b".", b"..") and not n.startswith(b".wh."))
node = st.one_of(
    st.binary(max_size=2000),
    st.tuples(st.just("link"), names),
    st.tuples(st.just("sparse"), st.lists(st.integers(0, 400), max_size=5)),
    st.tuples(st.just("hard"), st.integers(0, 30)),
)
trees = st.recursive(
    st.dictionaries(safe_names, node, max_size=5),
    lambda inner: st.dictionaries(safe_names, st.one_of(node, inner), max_size=5),
    max_leaves=12,
)
attributes = st.lists(
    st.tuples(st.integers(0, 0o7777), st.integers(0, 2**32 - 2), st.integers(-(2**31), 2**33)),
    min_size=1,
)


def plant(base: bytes, tree: dict[bytes, Any], meta: list[tuple[int, int, int]]) -> None:
    files: list[bytes] = []

    def grow(directory: bytes, inner: dict[bytes, Any]) -> None:
        for name, what in inner.items():
            path = os.path.join(directory, name)
            mode, owner, seconds = meta[len(files) % len(meta)]
            match what:
                case bytes():
                    Path(os.fsdecode(path)).write_bytes(what)
                case ("link", target):
                    os.symlink(target, path)
                case ("sparse", blocks):
                    with open(path, "wb") as stream:
                        for block in blocks:
                            stream.seek(block * 4096)
                            stream.write(b"block")
                        stream.truncate(401 * 4096)
                case ("hard", number) if files:
                    os.link(files[number % len(files)], path, follow_symlinks=False)
                    continue
                case dict():
                    os.mkdir(path)
                    grow(path, what)
                case _:
                    os.mkfifo(path)
            files.append(path) if not isinstance(what, dict) else None
            os.chown(path, owner, owner // 2, follow_symlinks=False)
            if not os.path.islink(path):
                os.chmod(path, mode)
            os.utime(path, ns=(0, seconds * 10**9 + owner % 10**9), follow_symlinks=False)

    grow(base, tree)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trees, attributes, st.sampled_from(["pax", "gnu"]))
def test_generated_trees(
    tmp_path: Path, tree: dict[bytes, Any], meta: list[tuple[int, int, int]], tar_format: str
) -> None:
    base = Path(tempfile.mkdtemp(dir=tmp_path))
    try:
        (base / "source").mkdir()
        plant(os.fsencode(base / "source"), tree, meta)
        compare(base / "source", tar_format, base)
    finally:
        shutil.rmtree(base)
