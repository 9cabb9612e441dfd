"""A few seconds of each C target, from the kept corpus on; `make fuzz` is the long run."""

from __future__ import annotations

import shutil

import pytest
from fuzz import run

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("target", run.SOURCES)
def test_target(target: str) -> None:
    assert shutil.which("clang-14") or shutil.which("clang"), (
        "clang is not installed: make packages-test"
    )
    fine, text = run.run(target, 2)
    print(text)
    assert fine, text
