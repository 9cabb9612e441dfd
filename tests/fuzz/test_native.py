"""A few seconds of each C target, from the kept corpus on; `make fuzz` is the long run."""

from __future__ import annotations

import shutil

import pytest
from fuzz import run

from fixtures.bundle import Done


def words(target: str) -> tuple[str, ...]:
    return ("python", "tests/fuzz/run.py", "--seconds", "2", target)


@pytest.mark.parametrize(
    "target", [pytest.param(one, marks=pytest.mark.ahead(*words(one))) for one in run.SOURCES]
)
def test_target(target: str, ran_ahead: Done) -> None:
    assert shutil.which("clang-14") or shutil.which("clang"), (
        "clang is not installed: make packages-test"
    )
    print(ran_ahead.out)
    assert ran_ahead.code == 0, ran_ahead.out
    assert f"{target}: " in ran_ahead.out
