"""Clients that get in each other's way: on the same containers, on one name, in crowds, and asleep."""

from __future__ import annotations

import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fixtures.door import (
    SLEEP,
    Door,
    create_container,
    log_lines,
    open_exec,
    proc_count,
    run_container,
    run_pod,
)
from fixtures.serving import Serving
from fixtures.state import OUTRUN
from scow.cri.client import Client
from scow.cri.client_streams import ProcessStream
from scow.native.errors import AlreadyExists, InvalidState, NotFound, ScowError

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

HANG_S = 20.0
RANKS = {"CONTAINER_CREATED": 0, "CONTAINER_RUNNING": 1, "CONTAINER_EXITED": 2}
EVENTS = ("CREATED", "STARTED", "STOPPED", "DELETED")


@pytest.fixture
def service(door: Door) -> Iterator[Serving]:
    with door.open() as running:
        yield running


class Model:
    """What may be seen of a container: its state goes one way, and its end never changes."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.stop = threading.Event()
        self.wrong: list[str] = []
        self.seen: dict[str, Any] = {}
        self.told: dict[str, list[str]] = {}

    def watch(self) -> None:
        """Look again and again, until `stop`."""
        with self.door.client() as client:
            while not self.stop.wait(0.02):
                for item in client.call("ListContainers").containers:
                    try:
                        asked = {"container_id": item.id}
                        self._compare(client.call("ContainerStatus", asked).status)
                    except NotFound:
                        continue

    def _compare(self, now: Any) -> None:
        before = self.seen.get(now.id)
        self.seen[now.id] = now
        if before is None:
            return
        if RANKS[now.state] < RANKS[before.state]:
            self.wrong.append(f"{now.id[:12]}: {before.state} became {now.state}")
        for name in ("started_at", "finished_at", "exit_code", "reason"):
            was, new = getattr(before, name), getattr(now, name)
            if before.state == "CONTAINER_EXITED" and was != new:
                self.wrong.append(f"{now.id[:12]}: {name} {was} became {new}")

    def listen(self) -> None:
        """The events of each container: in the order of a life, each once."""
        with self.door.client() as client:
            for event in client.stream("GetContainerEvents"):
                if self.stop.is_set():
                    return
                kind = event.container_event_type.split("_")[1]
                self.told.setdefault(event.container_id, []).append(kind)

    def check(self) -> None:
        """Whether all that was seen can be."""
        for container, kinds in self.told.items():
            order = [EVENTS.index(kind) for kind in kinds]
            if order != sorted(set(order)):
                self.wrong.append(f"{container[:12]}: events {kinds}")
        counted = Counter(re.sub(r"[0-9a-f]{12}", "ID", line) for line in self.wrong)
        assert not counted, "\n".join(f"{n} x {line}" for line, n in counted.most_common(20))


SCRIPT = ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"]
# A command that is killed with its container has no monitor any more.
_API_OUTRUN = re.compile(r"went away|was killed|ended before|it has (just )?ended")
_VERBS = (
    ("kill", "NAME"), ("pause", "NAME"), ("unpause", "NAME"), ("stop", "-t", "1", "NAME"),
    ("rm", "NAME"), ("rm", "-f", "NAME"), ("exec", "NAME", "true"), ("inspect", "NAME"),
    ("logs", "NAME"), ("ps", "-a"),
)  # fmt: skip


class Rival:
    """Random calls on the same four containers; what must not come of them is in `wrong`."""

    def __init__(self, door: Door, pod: str, until: float) -> None:
        self.door = door
        self.pod = pod
        self.until = until
        self.dice = random.Random()
        self.wrong: list[str] = []
        self.done = 0

    def names(self) -> str:
        """One of the four, as the command line calls it."""
        return f"c{self.dice.randrange(4)}_0_{self.pod[:12]}"

    def by_the_api(self) -> None:
        """A client of the service."""
        with self.door.client() as client:
            while time.monotonic() < self.until:
                begun, kind = time.monotonic(), ""
                try:
                    kind = self._call(client)
                except (NotFound, InvalidState, AlreadyExists):
                    pass
                except ScowError as error:
                    if not _API_OUTRUN.search(str(error)):
                        self.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                self._took(kind, begun)

    def _call(self, client: Client) -> str:
        containers = client.call("ListContainers").containers
        kind = self.dice.choice(
            ("Create", "StartContainer", "StartContainer", "ExecSync", "StopContainer",
             "RemoveContainer", "ContainerStatus", "ContainerStats")
        )  # fmt: skip
        if kind == "Create" or not containers:
            create_container(client, self.pod, SCRIPT, name=f"c{self.dice.randrange(4)}")
            return "CreateContainer"
        asked: dict[str, Any] = {"container_id": self.dice.choice(containers).id}
        if kind == "ExecSync":
            asked |= {"cmd": ["true"], "timeout": 30}
        elif kind == "StopContainer":
            asked["timeout"] = self.dice.randrange(2)
        client.call(kind, asked)
        return kind

    def by_the_command_line(self) -> None:
        """Commands, each in a process of its own."""
        while time.monotonic() < self.until:
            words, begun = self._words(), time.monotonic()
            try:
                done = self.door.state.scow(*words, timeout_s=3 * HANG_S)
            except subprocess.TimeoutExpired:
                self.wrong.append(f"{words[0]}: hangs")
                continue
            if done.code and not OUTRUN.search(done.err) and (words[0], done.code) != ("exec", 137):
                self.wrong.append(f"{words}: exit {done.code}: {done.err}")
            self._took(words[0], begun)

    def by_commands_that_are_killed(self) -> None:
        """The same, killed -9 at some moment."""
        while time.monotonic() < self.until:
            process = self.door.state.scow.spawn(
                *self._words(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(self.dice.uniform(0.05, 0.5))
            process.kill()
            process.wait()

    def _words(self) -> list[str]:
        return [self.names() if w == "NAME" else w for w in self.dice.choice(_VERBS)]

    def _took(self, kind: str, begun: float) -> None:
        self.done += 1
        if time.monotonic() - begun > HANG_S:
            self.wrong.append(f"{kind}: took {time.monotonic() - begun:.0f} s")


@pytest.mark.parametrize(
    ("api", "commands", "seconds"), [(4, 2, 6), pytest.param(10, 5, 120, marks=pytest.mark.slow)]
)
def test_clients_on_the_same_containers(
    door: Door, service: Serving, api: int, commands: int, seconds: float
) -> None:
    """By the API and by the command line, some of them killed: legal states only, and nothing left."""
    with door.client() as client:
        pod = run_pod(client)
        model = Model(door)
        until = time.monotonic() + seconds
        rivals = [Rival(door, pod, until) for _ in range(api + commands + 1)]
        work = [r.by_the_api for r in rivals[:api]] + [
            r.by_the_command_line for r in rivals[api:-1]
        ]
        work.append(rivals[-1].by_commands_that_are_killed)
        with ThreadPoolExecutor(len(work) + 2) as pool:
            watching = [pool.submit(model.watch), pool.submit(model.listen)]
            for job in [pool.submit(one) for one in work]:
                job.result()
            model.stop.set()
            client.call("RemovePodSandbox", {"pod_sandbox_id": pod})
            for job in watching:
                job.result()
    counted = Counter(line for rival in rivals for line in rival.wrong)
    assert not counted, "\n".join(f"{n} x {line}" for line, n in counted.most_common(20))
    model.check()
    assert min(rival.done for rival in rivals[:-1]) > 0
    print(f"{sum(r.done for r in rivals)} calls and commands, {len(model.seen)} containers")
    state = door.state
    state.ok("system", "check", "--repair")
    assert state.ok("system", "check") == "nothing damaged, nothing left behind\n"
    state.expect_clean()


def test_one_of_many_gets_the_name(door: Door, service: Serving) -> None:
    """50 clients make the same pod, then the same container: as a retry after a time-out does."""

    def race(make: Any) -> None:
        def attempt(_: int) -> str:
            with door.client() as mine:
                try:
                    return str(make(mine))
                except AlreadyExists as error:
                    return error.code

        with ThreadPoolExecutor(50) as pool:
            found = Counter(pool.map(attempt, range(50)))
        assert found.pop("already_exists") == 49
        assert list(found.values()) == [1]

    race(lambda mine: run_pod(mine, "same"))
    with door.client() as client:
        [pod] = client.call("ListPodSandbox").items
        race(lambda mine: create_container(mine, pod.id, SLEEP, name="same"))
        [container] = client.call("ListContainers").containers
        assert container.state == "CONTAINER_CREATED"
        # It runs once, whoever else starts it.
        race_to_start(door, container.id)


def race_to_start(door: Door, container: str) -> None:
    def attempt(_: int) -> str:
        with door.client() as mine:
            try:
                mine.call("StartContainer", {"container_id": container})
            except InvalidState as error:
                return error.code
            return "started"

    with ThreadPoolExecutor(10) as pool:
        found = Counter(pool.map(attempt, range(10)))
    assert found == {"started": 1, "failed_precondition": 9}


def test_a_container_that_has_ended_is_not_started_again(
    door: Door, service: Serving, tmp_path: Path
) -> None:
    with door.client() as client:
        pod = run_pod(client, log_directory=str(tmp_path))
        for n in range(5):
            name = f"c{n}"
            container = create_container(client, pod, ["echo", "once"], name=name, log_path=name)
            race_to_start(door, container)
            door.wait_exit(container)
            assert log_lines(tmp_path / name) == ["once"]


def test_stalled_readers(door: Door, service: Serving, tmp_path: Path) -> None:
    """20 attachments and 20 execs whose clients never read: the log has all, and stop takes no longer."""
    script = "i=0; while :; do i=$((i+1)); echo $i 0123456789abcdefghijklmnopqrstuvwxyz; done"
    held: list[ProcessStream] = []
    with door.client() as client:
        pod = run_pod(client, log_directory=str(tmp_path))
        containers = [
            run_container(client, pod, ["sh", "-c", script], name=f"c{n}", log_path=f"c{n}")
            for n in range(2)
        ]
        for container in containers:
            asked = {"container_id": container, "stdout": True, "stderr": True}
            held += [ProcessStream(client, client.call("Attach", asked).url) for _ in range(10)]
            held += [open_exec(client, container, ["cat", "/dev/zero"]) for _ in range(10)]
        time.sleep(1)
        before = [(tmp_path / f"c{n}").stat().st_size for n in range(2)]
        time.sleep(0.5)
        for n, container in enumerate(containers):
            begun = time.monotonic()
            client.call("StopContainer", {"container_id": container, "timeout": 0})
            assert time.monotonic() - begun < 10
            assert (tmp_path / f"c{n}").stat().st_size > before[n]
            numbers = [int(text.split()[0]) for text in log_lines(tmp_path / f"c{n}")[:-1]]
            assert numbers == list(range(1, len(numbers) + 1))
    for stream in held:
        stream.close()


@pytest.mark.parametrize(
    ("crowd", "each"), [(40, 4), pytest.param(200, 50, marks=pytest.mark.slow)]
)
def test_an_exec_storm(door: Door, service: Serving, crowd: int, each: int) -> None:
    """Every code is right, and neither zombies nor descriptors nor threads are left of them."""
    pid = service.process.pid
    with door.client() as client:
        container = run_container(client, run_pod(client), SLEEP)

        def storm(number: int) -> list[float]:
            took: list[float] = []
            with door.client() as mine:
                for index in range(each):
                    code = (number * each + index) % 256
                    asked = {"container_id": container, "cmd": ["sh", "-c", f"exit {code}"]}
                    begun = time.monotonic()
                    assert mine.call("ExecSync", asked).exit_code == code
                    took.append(time.monotonic() - begun)
            return took

        storm(0)
        before = proc_count(pid, "fd")
        begun = time.monotonic()
        with ThreadPoolExecutor(crowd) as pool:
            took = sorted(t for one in pool.map(storm, range(crowd)) for t in one)
        passed = time.monotonic() - begun
        shown = client.call("ExecSync", {"container_id": container, "cmd": ["ps"]}).stdout
        assert b"defunct" not in shown
        deadline = time.monotonic() + 10
        while (left := proc_count(pid, "fd") - before) > 0 or zombies(pid):
            assert time.monotonic() < deadline, (left, zombies(pid))
            time.sleep(0.05)
    print(
        f"{len(took)} execs by {crowd} clients in {passed:.1f} s:"
        f" p50 {took[len(took) // 2]:.3f} s, p99 {took[int(len(took) * 0.99)]:.3f} s"
    )


def zombies(parent: int) -> list[str]:
    found: list[str] = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = place.read_text()
        except OSError:
            continue  # it has ended
        state, its_parent = text.rpartition(")")[2].split()[:2]
        if state == "Z" and int(its_parent) == parent:
            found.append(text)
    return found
