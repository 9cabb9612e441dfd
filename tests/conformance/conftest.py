"""What the tests of known attacks on scow-oci share: the probe, compiled once, and a world for each test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.hostile import World

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/payload/probe.c, static."""
    program = tmp_path_factory.mktemp("probe") / "probe"
    source = ROOT / "tests/payload/probe.c"
    subprocess.run(["musl-gcc", "-static", "-Os", "-o", program, source], check=True)
    return program


@pytest.fixture
def world(tmp_path: Path, probe: Path) -> Iterator[World]:
    """A canary, a runtime and bundles; afterwards nothing is left and the canary is as it was."""
    kernel.need(kernel.mount_refused)
    made = World(tmp_path / "world", probe)
    yield made
    made.close()
