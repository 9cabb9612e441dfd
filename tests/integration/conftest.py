"""What several files of integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.images import ImageFactory
from fixtures.pods import Cri


@pytest.fixture
def cri(tmp_path: Path, images: ImageFactory) -> Iterator[Cri]:
    """The service in this process, with busybox; nothing may be left of what a test makes."""
    made = Cri(str(tmp_path / "root"), str(tmp_path / "run"))
    made.load_busybox(images)
    yield made
    made.remove_all()
    made.close()
    assert made.service.check() == []
