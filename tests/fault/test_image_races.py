"""Many commands on one image store at once, some killed: none takes what another one needs."""

from __future__ import annotations

import collections
import os
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures import victim
from fixtures.fake_registry import FakeRegistry
from fixtures.handmade import Entry, directory, file, pack
from fixtures.state import State
from scow.image.store import ImageStore

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

CLEAN = "nothing damaged, nothing left behind\n"
# What a command may be told when another one was faster.
OUTRUN = re.compile(r"no such image|is not unpacked|is not in the content store")
KILLED_AFTER_STEPS = 400
LOW = pack([file("f", "hello"), directory("d", 0o700, 5, 5), file("big", os.urandom(300_000))])
# It needs what is below: a directory that it does not list, a hard link to a lower file.
HIGH = pack([file("d/n", ""), Entry("g", b"1", target="f"), file("own", os.urandom(200_000))])
TOP = pack([file("top", os.urandom(100_000))])


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    registry = FakeRegistry()
    registry.add_image(LOW, tag="one")
    registry.add_image(LOW, HIGH, tag="two")
    registry.add_image(LOW, HIGH, TOP, tag="three")
    yield registry
    registry.close()


class Clients:
    """Threads that give random commands on the same few images."""

    def __init__(self, state: State, registry: FakeRegistry, work: Path, *, kills: bool) -> None:
        self.state = state
        self.work = work
        self.kills = kills
        self.images = [f"{registry.host}/team/app:{tag}" for tag in ("one", "two", "three")]
        self.count = collections.Counter[str]()
        for image in self.images:
            state.ok("pull", "-q", image)
        self.archive = str(work / "two.tar")
        state.ok("save", "-o", self.archive, self.images[1])

    def verb(self, dice: random.Random, own: str) -> tuple[str, ...]:
        """One of them."""
        image = dice.choice(self.images)
        pulls = [("pull", "-q", image)] * 4
        verbs: list[tuple[str, ...]] = [
            *pulls,
            ("rmi", image),
            ("image", "prune", "-a", "-f"),
            ("image", "prune", "--blobs", "-f"),
            ("save", "-o", f"{own}.tar", image),
            ("load", "-i", self.archive),
            ("tag", image, f"mine:{dice.randrange(3)}"),
            ("rmi", f"mine:{dice.randrange(3)}"),
            ("images", "-q"),
            ("image", "tree", image),
            ("system", "df"),
            ("system", "check"),
        ]
        return dice.choice(verbs)

    def client(self, number: int, seed: int, until: float) -> list[str]:
        """What went wrong."""
        dice = random.Random(seed)
        own = str(self.work / f"client{number}")
        wrong: list[str] = []
        while time.monotonic() < until:
            words = self.verb(dice, own)
            kill_at = 1 + dice.randrange(KILLED_AFTER_STEPS)
            is_victim = self.kills and dice.random() < 0.3
            done = victim.run(
                self.state.root,
                self.state.run,
                *words,
                log=f"{own}.log",
                kill_at=kill_at if is_victim else None,
            )
            self.count["killed" if done.killed else words[0]] += 1
            text = f"{' '.join(words)}: {done.status} {done.output}"
            if "Traceback" in done.output or "internal error" in done.output:
                wrong.append(text)
            elif done.killed or done.status == 0:
                continue
            elif words == ("system", "check"):
                # What a killed one left is told, and rightly so; damage never.
                if not self.kills or "damaged" in done.output.replace("nothing damaged", ""):
                    wrong.append(text)
            elif not OUTRUN.search(done.output):
                wrong.append(text)
        return wrong

    def hammer(self, clients: int, seconds: float) -> None:
        """All of it, and then all must be well."""
        until = time.monotonic() + seconds
        seeds = [random.randrange(1 << 30) for _ in range(clients)]
        with ThreadPoolExecutor(clients) as pool:
            jobs = [pool.submit(self.client, n, seed, until) for n, seed in enumerate(seeds)]
            wrong = collections.Counter(line for job in jobs for line in job.result())
        assert not wrong, "\n".join(f"{n} x {line}" for line, n in wrong.most_common(20))
        if self.kills:
            self.state.forked("system", "check", "--repair")
        assert self.state.forked("system", "check").output == CLEAN
        for image in self.images:
            self.state.ok("pull", "-q", image)
        store = ImageStore(self.state.root)
        assert store.verify() == []
        assert len({image.id for image in store.list()}) == 3
        for name in self.images:
            assert all(map(os.path.isdir, store.lower_paths(store.get(name).diff_ids)))
        self.state.ok("image", "prune", "-a", "-f")
        assert self.state.forked("system", "check").output == CLEAN
        assert store.layers.list() == []


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(str(tmp_path / "root"), str(tmp_path / "run"))


def test_commands_on_one_store(state: State, registry: FakeRegistry, tmp_path: Path) -> None:
    Clients(state, registry, tmp_path, kills=False).hammer(4, 4)


def test_commands_that_are_killed(state: State, registry: FakeRegistry, tmp_path: Path) -> None:
    Clients(state, registry, tmp_path, kills=True).hammer(4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [False, True])
def test_commands_for_long(
    state: State, registry: FakeRegistry, tmp_path: Path, kills: bool
) -> None:
    clients = Clients(state, registry, tmp_path, kills=kills)
    clients.hammer(8, 100)
    print(dict(clients.count))
