"""Users and groups read from hostile files."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from scow.native.errors import InvalidArgument
from scow.native.fs import Root
from scow.runtime.users import resolve_user

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment
1000:x:0:0:a user with a number for a name:/:/bin/sh
web:x:33:44:web:/var/www:/bin/false
broken:x:abc:1::/:
short:x:1
big:x:4294967295:0::/:/bin/sh
"""
GROUP = b"root:x:0:\nweb:x:44:\nstaff:x:50:web,other\ndeny:x:60:web\nbad:x:nope:web\n"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(PASSWD)
    (tmp_path / "etc/group").write_bytes(GROUP)
    return Root(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))


def test_a_name_brings_its_group_its_groups_and_its_home(root: Root) -> None:
    user = resolve_user(root, "web", None)
    assert (user.uid, user.gid, user.groups, user.home) == (33, 44, (44, 50, 60), "/var/www")


def test_a_number_is_never_looked_up_as_a_name(root: Root) -> None:
    # CVE-2016-3697: the entry named "1000" has uid 0.
    user = resolve_user(root, 1000, None)
    assert (user.uid, user.gid, user.groups) == (1000, 0, (0,))


def test_a_given_group_replaces_the_supplementary_ones(root: Root) -> None:
    user = resolve_user(root, "web", "staff")
    assert (user.gid, user.groups) == (50, (50,))


def test_added_groups_come_last_and_once(root: Root) -> None:
    user = resolve_user(root, 5, 7, ("staff", 7, 9))
    assert user.groups == (7, 50, 9)


@pytest.mark.parametrize("name", ["nosuch", "broken", "short", "big"])
def test_unknown_and_broken_entries_are_refused(root: Root, name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        resolve_user(root, name, None)


def test_an_image_without_files_knows_numbers_only(tmp_path: Path) -> None:
    root = Root(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    assert resolve_user(root, 7, None).uid == 7
    with pytest.raises(InvalidArgument):
        resolve_user(root, "root", None)


def test_a_passwd_that_points_out_is_read_inside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"evil:x:0:0::/:/bin/sh\n")
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc/passwd").symlink_to(outside)
    with pytest.raises(InvalidArgument):
        resolve_user(Root(os.open(inside, os.O_RDONLY | os.O_DIRECTORY)), "evil", None)


def test_a_fifo_for_passwd_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    with pytest.raises(InvalidArgument):
        resolve_user(Root(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)), "root", None)


def test_the_limit_of_a_file(tmp_path: Path) -> None:
    """CVE-2026-47262: a gigabyte of hole is not read, and short lines do not multiply in memory."""
    (tmp_path / "etc").mkdir()
    root = Root(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    with open(tmp_path / "etc/passwd", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InvalidArgument, match="File too large"):
        resolve_user(root, "root", None)
    row = b"last:x:7:7:,:/:/bin/sh\n"
    (tmp_path / "etc/passwd").write_bytes(b"xy\n" * 200_000 + row)
    (tmp_path / "etc/group").write_bytes(b"g:x:9:" + b"ab," * 200_000 + b"last\n")
    tracemalloc.start()
    try:
        user = resolve_user(root, "last", None)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert (user.uid, user.groups) == (7, (7, 9))
