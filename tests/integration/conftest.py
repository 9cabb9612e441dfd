"""What several files of integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.bundle import SCOW_OCI, Runtime
from fixtures.images import ImageFactory
from fixtures.pods import Cri
from fixtures.registry import Registry


@pytest.fixture
def cri(tmp_path: Path, images: ImageFactory) -> Iterator[Cri]:
    """The service in this process, with busybox; nothing may be left of what a test makes."""
    made = Cri(str(tmp_path / "root"), str(tmp_path / "run"))
    made.load_busybox(images)
    yield made
    made.remove_all()
    made.close()
    assert made.service.check() == []


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Runtime]:
    """scow-oci with a state directory of this test's own."""
    kernel.need(kernel.mount_refused)
    runtime = Runtime(SCOW_OCI, tmp_path / "state")
    yield runtime
    runtime.remove_all()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Registry]:
    """A second registry, empty."""
    (tmp_path / "other").mkdir()
    with Registry.start(tmp_path / "other") as running:
        yield running
