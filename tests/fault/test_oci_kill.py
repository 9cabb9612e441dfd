"""kill -9 of `scow-oci create` before each of its steps: `delete --force` leaves nothing of it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import kernel, residue, victim
from fixtures.bundle import Bundle
from fixtures.victim import Outcome

pytestmark = pytest.mark.root

NAME = "c1"
TOP = f"scow-oci-kill-{os.getpid()}"
MOST_STEPS = 1000
STRIDES = pytest.mark.parametrize(
    "stride", [pytest.param(5, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
HIERARCHIES = [entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir()]


class Victim:
    """scow-oci in forked processes, with a bundle and a state directory of one test."""

    def __init__(self, directory: Path, cgroup: str) -> None:
        self.directory = directory
        self.root = directory / "state"
        bundle = Bundle(directory / "bundle", cgroup)
        bundle.process["args"] = ["sleep", "100"]
        bundle.linux["resources"] = {"pids": {"limit": 20}}
        bundle.write()
        self._create = ("create", "--bundle", str(bundle.path))

    def __call__(self, *words: str, kill_at: int | None = None) -> Outcome:
        command = ("--root", str(self.root), *words)
        log = str(self.directory / "log")
        return victim.run("", "", *command, kill_at=kill_at, log=log, program="runtime.oci_cli")

    def create(self, kill_at: int | None = None, name: str = NAME) -> Outcome:
        return self(*self._create, name, kill_at=kill_at)

    def delete(self, name: str = NAME) -> None:
        done = self("delete", "--force", name)
        assert done.status == 0, done.output
        assert not (self.root / name).exists()


def left() -> list[str]:
    """Control groups of this test, in every hierarchy."""
    return sorted(line for line in residue.cgroups() if TOP in line)


@pytest.fixture(autouse=True)
def preloaded() -> None:
    kernel.need(kernel.mount_refused)


@pytest.fixture
def others() -> Iterator[list[str]]:
    """A parent that is not scow's, in every hierarchy."""
    made = [path for path in cgroups_at(f"{TOP}-other") if not os.path.exists(path)]
    for path in made:
        os.mkdir(path)
    yield made
    for path in made:
        os.rmdir(path)


def cgroups_at(path: str) -> list[str]:
    """A path in each hierarchy, or in the only one."""
    tops = [top for top in HIERARCHIES if os.path.exists(f"{top}/cgroup.procs")]
    is_unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    return [f"{top}/{path}" for top in (["/sys/fs/cgroup"] if is_unified else tops)]


def kill_at_steps(container: Victim, expected: list[str], stride: int) -> int:
    """Kill create before each step, or before some that are so far apart; see it deleted; how many there were."""
    for step in range(random.randint(1, stride), MOST_STEPS, stride):
        done = container.create(kill_at=step)
        assert done.killed or done.status == 0, f"step {step}: {done.status} {done.output}"
        container.delete()
        assert left() == expected, f"step {step}"
        if not done.killed:
            return step
    raise AssertionError(f"more than {MOST_STEPS} steps")


@STRIDES
@pytest.mark.parametrize("path", [f"/{TOP}/parent/x", f"/{TOP}"], ids=["parent", "alone"])
def test_a_killed_create_leaves_no_cgroup(tmp_path: Path, path: str, stride: int) -> None:
    """Nothing of it existed before, in no hierarchy: neither the cgroup nor its parents."""
    assert kill_at_steps(Victim(tmp_path, path), [], stride) > 20


@STRIDES
def test_a_killed_create_leaves_what_others_made(
    tmp_path: Path, others: list[str], stride: int
) -> None:
    container = Victim(tmp_path, f"/{TOP}-other/x")
    assert kill_at_steps(container, sorted(others), stride) > 20


@STRIDES
def test_a_delete_that_is_killed_is_finished_by_the_next(tmp_path: Path, stride: int) -> None:
    container = Victim(tmp_path, f"/{TOP}/parent/x")
    for step in range(random.randint(1, stride), MOST_STEPS, stride):
        assert container.create().status == 0
        done = container("delete", "--force", NAME, kill_at=step)
        container.delete()
        assert left() == [], f"step {step}"
        if not done.killed:
            assert step > 10
            return


@STRIDES
def test_a_killed_create_does_not_end_the_container_whose_cgroup_it_asked_for(
    tmp_path: Path, stride: int
) -> None:
    container = Victim(tmp_path, f"/{TOP}/parent/x")
    assert container.create().status == 0
    try:
        before = left()
        pids = Path(cgroups_at(f"{TOP}/parent/x")[0], "cgroup.procs").read_text()
        assert pids
        for step in range(random.randint(1, stride), MOST_STEPS, stride):
            done = container.create(kill_at=step, name="second")
            container.delete("second")
            assert left() == before, f"step {step}"
            assert Path(cgroups_at(f"{TOP}/parent/x")[0], "cgroup.procs").read_text() == pids
            if not done.killed:
                assert done.status == 1
                assert "not empty" in done.output or "has processes" in done.output
                break
    finally:
        container.delete()
    assert left() == []
