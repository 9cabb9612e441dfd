"""kill -9 in the middle of a pull: the next pull works, and nothing is left that nobody knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.images import ImageFactory
from scow.image.store import ImageStore

PROGRAM = """
import sys
from scow.image.progress import SilentProgress
from scow.image.store import ImageStore

class Loud(SilentProgress):
    def fetched(self, layer, count):
        print("fetched", flush=True)
    def done(self, layer):
        print("done", flush=True)

ImageStore(sys.argv[1]).pull(sys.argv[2], progress=Loud())
print("end", flush=True)
"""


@pytest.mark.parametrize("events", [1, 5, 30, 60])
def test_killed_pull(
    scow_root: Path,
    images: ImageFactory,
    events: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    reference = images.python()
    argv = [sys.executable, "-c", PROGRAM, str(scow_root), reference]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(events):
            process.stdout.readline()
        process.kill()
    store = ImageStore(str(scow_root))
    image = store.pull(reference)
    assert store.get(reference) == image
    # To the last byte once: that unpacks all layers anew.
    store.verify(repair=True, quick=events != 30)
    assert store.verify(quick=events != 30) == []
    assert os.listdir(store.content.ingest_dir) == []
    assert store.get(reference) == image
    store.remove(reference)
    left = os.listdir(scow_root / "layers")
    assert [name for name in left if not name.startswith(".")] == []
