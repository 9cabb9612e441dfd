"""The runtimes that are compared: how each is asked for the same thing.

A request that cannot be carried out raises Failed with the runtime's own words. How each is set up
is in peers.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
SMALL = "localhost/bench"
WEB = "localhost/bench-web"
Words = tuple[str, ...]


class Failed(Exception):
    """A runtime could not do what it was asked."""


class Worker:
    """A process of bench/worker.py that runs one request at a time."""

    def __init__(self, *prefix: str, python: str = sys.executable, arguments: tuple[str, ...] = ()):
        self.process = subprocess.Popen(
            [*prefix, python, str(WORKER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> float:
        """Milliseconds that the request took."""
        return float(self.answer(**request)["ns"]) / 1e6

    def answer(self, **request: Any) -> dict[str, Any]:
        """All that the worker tells about a request."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed("the worker did not start") from None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line or '{"error": "the worker has ended"}')
        if "error" in answer:
            raise Failed(answer["error"].strip().splitlines()[-1])
        return answer

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it has ended already
            self.process.stdin.close()
        self.process.wait(10)


@dataclass
class Runtime:
    """One runtime with Docker's command line; the others override what differs."""

    name: str
    program: list[str]
    worker: Worker
    environment: dict[str, str] = field(default_factory=dict[str, str])
    monitor: str = ""  # what its process per container is called
    networks: tuple[str, ...] = ("none", "bridge")
    flags: Words = ()  # of every start
    daemon: int = 0  # its process, if it is ours

    def call(self, argv: list[str], **more: Any) -> float:
        """Time one of this runtime's commands."""
        return self.worker.ask(argv=argv, env=self.environment, **more)

    def output(self, *argv: str) -> str:
        """What one of its commands prints; not timed."""
        answer = self.worker.answer(argv=[*self.program, *argv], env=self.environment)
        return str(answer["output"]).strip()

    def version(self) -> str:
        """Its name and version, for the record."""
        return self.output("--version").splitlines()[0]

    def run(self, network: str, *command: str, flags: Words = ()) -> list[str]:
        """A container that ends and is removed."""
        words = ["run", "--rm", "--network", network, *flags, SMALL, *command]
        return [*self.program, *words]

    def start(
        self, name: str, network: str, *command: str, image: str = SMALL, flags: Words = ()
    ) -> list[str]:
        """A container that stays."""
        words = ["run", "-d", "--name", name, "--network", network, *self.flags, *flags, image]
        return [*self.program, *words, *command]

    def execute(self, name: str, *command: str) -> list[str]:
        """A command in a running container."""
        return [*self.program, "exec", name, *command]

    def list(self) -> list[str]:
        """All running containers."""
        return [*self.program, "ps"]

    def remove(self, *names: str) -> None:
        """Containers, running or not."""
        self.call([*self.program, "rm", "-f", *names])

    def address(self, name: str) -> str:
        """A container's address."""
        return self.output(
            "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
        )


class Podman(Runtime):
    """podman waits for ten seconds before it kills, unless it is told not to."""

    def remove(self, *names: str) -> None:
        self.call([*self.program, "rm", "-f", "-t", "0", *names])


class Ctr(Runtime):
    """containerd's own tool: no bridge, no names other than the id."""

    def version(self) -> str:
        return self.output("--version")

    def run(self, network: str, *command: str, flags: Words = ()) -> list[str]:
        return [*self.program, "run", "--rm", f"{SMALL}:latest", "bench-true", *command]

    def start(
        self, name: str, network: str, *command: str, image: str = SMALL, flags: Words = ()
    ) -> list[str]:
        return [*self.program, "run", "-d", f"{image}:latest", name, *command]

    def execute(self, name: str, *command: str) -> list[str]:
        return [*self.program, "tasks", "exec", "--exec-id", "bench", name, *command]

    def list(self) -> list[str]:
        return [*self.program, "tasks", "ls"]

    def remove(self, *names: str) -> None:
        for name in names:
            self.call([*self.program, "tasks", "rm", "-f", name])
            self.call([*self.program, "containers", "rm", name])


class Bundle(Runtime):
    """crun or runc: the OCI runtime alone, on a bundle with the same limits and seccomp."""

    bundle: Path

    def run(self, network: str, *command: str, flags: Words = ()) -> list[str]:
        return [*self.program, "run", "--bundle", str(self.bundle), f"bench-{self.name}"]
