"""A pull that is stopped in the middle: by a full disk, by a signal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fixtures import victim
from fixtures.disk import Disk
from fixtures.images import ImageFactory
from fixtures.state import State, expect_refusal

pytestmark = pytest.mark.root


def test_pull_says_so_and_can_be_repeated(tmp_path: Path, images: ImageFactory) -> None:
    reference = images.busybox()
    disk = Disk(tmp_path)
    try:
        victim.preload()
        state = State(str(disk.path / "root"), str(tmp_path / "run"))
        state._log = str(tmp_path / "victim.log")
        state.ok("images")
        disk.fill()
        with open(disk.path / "ballast", "r+b") as file:
            file.truncate(os.path.getsize(file.name) - (400 << 10))
        expect_refusal(state, "pull", reference)
        assert len(state.ok("images").splitlines()) == 1
        disk.free()
        state.ok("pull", reference)
        state.ok("run", "--rm", "--network", "none", reference, "true")
        state.ok("system", "check")
    finally:
        disk.close()
