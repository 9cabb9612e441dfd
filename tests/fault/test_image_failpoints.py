"""Every step of image/ that must last, killed and failing: the next command mends it, the verb works again.

The steps are fail points (native/failpoint.py): which of them a verb reaches is asked of the verb itself.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from fixtures import victim
from fixtures.handmade import Archive, busybox_layer, file, pack
from fixtures.images import ImageFactory
from fixtures.state import State
from scow.image.policy import ALWAYS, NEEDED, VARIABLE

pytestmark = pytest.mark.root

CLEAN = "nothing damaged, nothing left behind\n"
EXTRA = "example.com/extra:1"
# A verb and what comes before it, in a store that has busybox under two names.
VERBS: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "pull": ((("rmi", "-f", "busybox"), ("rmi", "-f", "{reference}")), ("pull", "{reference}")),
    "load": ((), ("load", "-i", "{archive}")),
    "rmi": ((("load", "-i", "{archive}"),), ("rmi", "-f", EXTRA)),
    "tag": ((), ("tag", "busybox", "further:1")),
    "prune": ((("load", "-i", "{archive}"),), ("image", "prune", "-a", "-f")),
    "list": ((), ("manifest", "create", "--amend", "list:1", "busybox")),
    "unlist": ((("manifest", "create", "list:1", "busybox"),), ("manifest", "rm", "list:1")),
    "check": ((), ("system", "check", "--repair")),
    "drop": ((), ("image", "prune", "--blobs", "-f")),
    "pull-needed": (
        (("rmi", "-f", "busybox"), ("rmi", "-f", "{reference}")),
        ("pull", "{reference}"),
    ),
    "save-needed": (
        (("image", "prune", "--blobs", "-f"),),
        ("save", "-o", "{output}", "busybox"),
    ),
}
ACTIONS = ("kill", "error:ENOSPC", "error:EIO")


class Bench:
    """A store as it is before a verb, copied for each try of it."""

    def __init__(self, base: Path, whole: Path, words: dict[str, str]) -> None:
        self.base = base
        self.whole = whole
        self.words = words
        self.state = State(str(base / "root"), str(base / "run"))
        self.state.log = str(base / "victim.log")
        self.start = base / "start"

    def fill(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word.format(**self.words) for word in words)

    def prepare(self, verb: str) -> list[str]:
        """Make the store before the verb, and give the points that the verb reaches, in order."""
        os.environ[VARIABLE] = NEEDED if verb.endswith("-needed") else ALWAYS
        shutil.rmtree(self.start, ignore_errors=True)
        subprocess.run(["cp", "-a", self.whole, self.start], check=True)
        for seal in (self.start / "layers").glob("*/seal"):
            seal.unlink()  # of the check after an earlier test: with it there is less to do
        self.reset()
        before, words = VERBS[verb]
        for command in before:
            self.state.forked(*self.fill(command))
        shutil.rmtree(self.start)
        subprocess.run(["cp", "-a", self.state.root, self.start], check=True)
        log = self.base / "points"
        log.unlink(missing_ok=True)
        done = self.run(f"*=log:{log}", words)
        assert done.status == 0, done.output
        self.golden = listing(Path(self.state.root))
        return [*dict.fromkeys(log.read_text().split())]

    def reset(self) -> None:
        shutil.rmtree(self.state.root, ignore_errors=True)
        subprocess.run(["cp", "-a", self.start, self.state.root], check=True)

    def run(self, points: str, words: tuple[str, ...]) -> victim.Outcome:
        return self.state.forked(*self.fill(words), points=points)

    def attempt(self, verb: str, point: str, action: str) -> None:
        """Stop the verb there, look, mend, do it again: the store is as if nothing had been."""
        self.reset()
        words = VERBS[verb][1]
        done = self.run(f"{point}={action}@1", words)
        told = f"{verb}, {point}={action}: {done.status} {done.output}"
        assert "Traceback" not in done.output, told
        assert "internal error" not in done.output, told
        assert done.killed or action != "kill", told
        if done.status not in (0, 1) and action != "kill":
            # Before it may be that something is fetched again.
            *_, line = (x for x in done.output.splitlines() if x.startswith("scow: "))
            assert "'" in line, f"names nothing: {told}"
        for look in (("images",), ("ps", "-a")):
            assert self.run("", look).status == 0, told
        again = self.run("", words)
        assert again.status == 0 or "no such " in again.output, f"{told}\n{again.output}"
        repaired = self.run("", ("system", "check", "--repair"))
        assert repaired.status == 0, f"{told}\n{repaired.output}"
        checked = self.run("", ("system", "check"))
        assert checked.output == CLEAN, f"{told}\n{checked.output}"
        found = listing(Path(self.state.root))
        if verb == "unlist":  # a second `rm` finds nothing to write: the next change makes the copy
            found["images/index.copy"] = self.golden["images/index.copy"]
        assert found == self.golden, told


def listing(root: Path) -> dict[str, int]:
    """Every file of images/ and layers/ by its size; what only makes a later look quicker is left out."""
    found: dict[str, int] = {}
    for top in ("images", "layers"):
        for path in (root / top).rglob("*"):
            if path.name not in ("seal", "reserve") and not path.is_dir():
                found[str(path.relative_to(root))] = path.lstat().st_size
    # The order of entries may differ; their number is in the size.
    return found


@pytest.fixture
def bench(
    busybox_root: Path, images: ImageFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    monkeypatch.setenv(VARIABLE, ALWAYS)  # Bench.prepare sets another
    archive = Archive()
    archive.add(EXTRA, [busybox_layer(), pack([file("own", os.urandom(100_000))])])
    path = archive.write(tmp_path / "extra.tar")
    words = {"reference": images.busybox(), "archive": str(path), "output": str(tmp_path / "out")}
    return Bench(tmp_path, busybox_root / "root", words)


# Fewer would mean that somebody moved a step away from its point.
LEAST_POINTS = {
    "pull": 18,
    "load": 18,
    "rmi": 9,
    "tag": 6,
    "prune": 9,
    "list": 14,
    "unlist": 5,
    "check": 3,
    "drop": 8,
    "pull-needed": 18,
    "save-needed": 8,
}


@pytest.mark.parametrize("verb", VERBS)
def test_some_points(bench: Bench, verb: str) -> None:
    points = bench.prepare(verb)
    assert len(points) >= LEAST_POINTS[verb], points
    for point in random.sample(points, 2):
        bench.attempt(verb, point, random.choice(ACTIONS))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", VERBS)
def test_every_point(bench: Bench, verb: str) -> None:
    points = bench.prepare(verb)
    for point in points:
        for action in ACTIONS:
            bench.attempt(verb, point, action)
    print(f"{verb}: {len(points)} points x {len(ACTIONS)}: {' '.join(points)}")
