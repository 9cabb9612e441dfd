"""Everything at once on the same few containers: whatever is gone, or just going, has CRI's own answer.

Each look of the service at a process, a cgroup or a file of a container may come a moment too late. That
is NOT_FOUND, or the state that it is in now; never an error of the service's own.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.door import Door, create_container, open_exec, output_of
from scow.cri.client import Client
from scow.cri.service import Service
from scow.native.errors import NotFound, ScowError

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

CLIENTS = 8
PODS, CONTAINERS = 2, 3
# Ends by itself now and then, with a child that outlives its parent by a moment.
COMMANDS = (["sleep", "1000"], ["sh", "-c", "sleep 1000 & usleep 300000"], ["true"])
# These are the service's fault; all others are answers (connectrpc.com/docs/protocol).
FAULTS = ("internal", "unknown", "data_loss", "unavailable")
LIMITS = {"linux": {"memory_limit_in_bytes": 64 << 20, "cpu_shares": 512}}
# By id of a container, or of a pod; how often of a hundred.
OF_CONTAINERS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("StartContainer", 6, {}),
    ("StopContainer", 8, {"timeout": 0}),
    ("RemoveContainer", 6, {}),
    ("ContainerStatus", 8, {"verbose": True}),
    ("ContainerStats", 8, {}),
    ("ExecSync", 10, {"cmd": ["sh", "-c", "usleep 20000"], "timeout": 20}),
    ("UpdateContainerResources", 4, LIMITS),
    ("ReopenContainerLog", 4, {}),
    ("Attach", 2, {"stdout": True, "stderr": True}),
)
OF_PODS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("PodSandboxStatus", 4, {"verbose": True}),
    ("PodSandboxStats", 4, {}),
    ("UpdatePodSandboxResources", 2, {"resources": {"cpu_shares": 600}}),
    ("PortForward", 1, {"port": [80]}),
    ("StopPodSandbox", 2, {}),
    ("RemovePodSandbox", 2, {}),
)
OF_ALL: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("ListContainers", 3, {}),
    ("ListPodSandbox", 3, {}),
    ("ListContainerStats", 3, {}),
    ("ListPodSandboxStats", 3, {}),
    ("ListPodSandboxMetrics", 3, {}),
    ("ImageFsInfo", 2, {}),
)
# What the command line does beside the service, on the same containers.
BESIDE: tuple[tuple[str, int], ...] = (
    ("pause", 5),
    ("unpause", 3),
    ("kill", 4),
    ("stats", 3),
    ("inspect", 2),
    ("list", 2),
)

# In the service, and in the commands that it starts: each look at these comes a little late.
LATE = """
import builtins, os, random, time

PLACES = ("/containers/", "/pods/", "/proc/", "/sys/fs/cgroup")

def late(function):
    def call(where, *words, **more):
        is_ours = "dir_fd" in more or any(place in str(where) for place in PLACES)
        if is_ours and random.random() < 0.05:
            time.sleep(random.random() * 0.01)
        return function(where, *words, **more)
    return call

for name in ("open", "stat", "access", "listdir", "readlink", "rename", "unlink", "mkdir", "rmdir"):
    setattr(os, name, late(getattr(os, name)))
builtins.open = late(builtins.open)
"""


class Crowd:
    """Clients that do anything to anything."""

    def __init__(self, door: Door, logs: Path, seconds: float) -> None:
        self.door = door
        self.logs = logs
        self.until = time.monotonic() + seconds
        self.beside = Service(door.state.root, door.state.run)
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.pods: dict[int, str] = {}
        self.containers: dict[tuple[int, int], str] = {}
        self.attempts = itertools.count()

    def run(self, seed: int) -> None:
        """One client, until the time is over."""
        dice = random.Random(seed)
        weighted = [
            *((weight, self._call, (name, "container_id", more)) for name, weight, more in OF_CONTAINERS),
            *((weight, self._call, (name, "pod_sandbox_id", more)) for name, weight, more in OF_PODS),
            *((weight, self._call, (name, "", more)) for name, weight, more in OF_ALL),
            *((weight, self._beside, (name,)) for name, weight in BESIDE),
            (25, self._create, ()),
            (3, self._stream, ()),
        ]  # fmt: skip
        works = [(work, words) for _, work, words in weighted]
        weights = [weight for weight, *_ in weighted]
        with self.door.client() as client:
            while time.monotonic() < self.until:
                work, words = dice.choices(works, weights)[0]
                name = str(words[0]) if words else work.__name__
                self._judge(name, lambda: work(client, dice, *words))  # noqa: B023  # called at once

    def _judge(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except ScowError as error:
            self.answers[f"{name}: {error.code}"] += 1
            if error.code in FAULTS:
                self.wrong.append(f"{name}: {error.code}: {error}")
        except Exception as error:
            self.wrong.append(f"{name}: {type(error).__name__}: {error}")
        else:
            self.answers[f"{name}: ok"] += 1

    def _call(self, client: Client, dice: random.Random, name: str, key: str, more: Any) -> None:
        known = {"container_id": self.containers, "pod_sandbox_id": self.pods}.get(key)
        if known is None:
            client.call(name, more)
        elif ids := list(known.values()):
            client.call(name, {key: dice.choice(ids), **more})

    def _create(self, client: Client, dice: random.Random) -> None:
        number = dice.randrange(PODS)
        pod = self.pods.get(number)
        if pod is None or not self._is_ready(client, pod):
            attempt = next(self.attempts)
            # One pod shares its PID namespace, which needs an init of ours.
            namespaces = {"namespace_options": {"pid": "CONTAINER" if number else "POD"}}
            metadata = {"name": f"p{number}", "uid": "u", "namespace": "test", "attempt": attempt}
            config = {
                "metadata": metadata,
                "log_directory": str(self.logs),
                "linux": {"security_context": namespaces},
            }
            if pod is not None:
                client.call("RemovePodSandbox", {"pod_sandbox_id": pod})
            pod = self.pods[number] = str(
                client.call("RunPodSandbox", {"config": config}).pod_sandbox_id
            )
        place = number, dice.randrange(CONTAINERS)
        if place in self.containers:
            client.call("RemoveContainer", {"container_id": self.containers[place]})
        name = f"c{place[1]}-{next(self.attempts)}"
        linux = {"security_context": self._namespaces(dice, number)}
        container = create_container(
            client, pod, dice.choice(COMMANDS), name=name, log_path=name, linux=linux
        )
        self.containers[place] = container
        client.call("StartContainer", {"container_id": container})

    def _namespaces(self, dice: random.Random, number: int) -> dict[str, Any]:
        """Its own PID namespace, its pod's, or that of a neighbour, who may be gone by now."""
        neighbour = self.containers.get((number, dice.randrange(CONTAINERS)))
        if number and neighbour is not None and dice.random() < 0.3:
            return {"namespace_options": {"pid": "TARGET", "target_id": neighbour}}
        return {"namespace_options": {"pid": "CONTAINER" if number else "POD"}}

    @staticmethod
    def _is_ready(client: Client, pod: str) -> bool:
        try:
            status = client.call("PodSandboxStatus", {"pod_sandbox_id": pod}).status
        except NotFound:
            return False
        return bool(status.state == "SANDBOX_READY")

    def _stream(self, client: Client, dice: random.Random) -> None:
        if not self.containers:
            return
        stream = open_exec(client, dice.choice(list(self.containers.values())), ["echo", "x"])
        with stream:
            try:
                assert output_of(stream) in (b"x\n", b"")
            except ScowError as error:
                # Its code is HTTP's and ends at the client; its words tell whose fault it was.
                if "internal error" in str(error) or "without a word" in str(error):
                    raise

    def _beside(self, _: Client, dice: random.Random, name: str) -> None:
        if name == "list":
            self.beside.list()
        elif ids := list(self.containers.values()):
            getattr(self.beside, name)(dice.choice(ids))


@pytest.mark.parametrize("seconds", [3, pytest.param(120, marks=pytest.mark.slow)])
def test_nothing_that_vanishes_is_an_error_of_the_service(
    door: Door, tmp_path: Path, seconds: float
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE)
    with door.open(PYTHONPATH=str(tmp_path)) as running:
        crowd = Crowd(door, tmp_path, seconds)
        threads = [threading.Thread(target=crowd.run, args=(seed,)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120 + seconds)
        assert not any(thread.is_alive() for thread in threads)
        assert running.process.poll() is None
        assert crowd.wrong == []
        with door.client() as client:
            pods = {pod.id for pod in client.call("ListPodSandbox").items}
            owners = {one.pod_sandbox_id for one in client.call("ListContainers").containers}
        assert owners <= pods
    said = [line for line in running.lines if " ERROR " in line or "Traceback" in line]
    assert said == []
    print(f"{sum(crowd.answers.values())} answers:", dict(sorted(crowd.answers.items())))
    # All of it was tried, and something of it did work.
    assert sum(count for name, count in crowd.answers.items() if name.endswith(": ok")) > CLIENTS
