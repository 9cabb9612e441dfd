"""kill -9 of the service while it works: of the containers nothing is lost, and it finds all of them again."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fixtures.door import OWN_PID, SLEEP, Door, create_container, log_lines, run_container, run_pod
from scow.cri.client import Client, Unavailable

pytestmark = [pytest.mark.root, pytest.mark.timeout(1500)]

CHATTY = "i=0; while :; do i=$((i+1)); echo $i; usleep {pause_us}; done"
SERVER = ["httpd", "-f", "-p", "8080", "-h", "/etc"]
ANSWER = b"200 OK"


class Load:
    """What goes on in containers and clients while the service dies again and again."""

    def __init__(self, door: Door, logs: Path, seed: int) -> None:
        self.door = door
        self.logs = logs
        self.dice = random.Random(seed)
        self.stop = threading.Event()
        self.wrong: list[str] = []
        self.chatty: list[str] = []
        self.servers: list[str] = []
        self.pids: dict[str, int] = {}
        self.codes: dict[str, int] = {}
        self.perhaps: dict[str, int] = {}
        self.requests = self.execs = self.events = 0
        self.threads: list[threading.Thread] = []

    def begin(self, client: Client, chatty: int, servers: int, pause_us: int) -> None:
        """Containers that go on to the end, and clients that never rest."""
        self.pod = run_pod(client, log_directory=str(self.logs))
        script = CHATTY.format(pause_us=pause_us)
        for n in range(chatty):
            name = f"chatty-{n}"
            argv = ["sh", "-c", script]
            self.chatty.append(run_container(client, self.pod, argv, name=name, log_path=name))
        for n in range(servers):
            pod = run_pod(client, f"server-{n}")
            self.servers.append(run_container(client, pod, SERVER, name="server"))
            status = client.call("PodSandboxStatus", {"pod_sandbox_id": pod}).status
            wait_until_it_listens(status.network.ip)
            self._run(self._ask_server, status.network.ip)
        for container in (*self.chatty, *self.servers):
            self.pids[container] = self.pid_of(client, container)
        for container in self.chatty[:2]:
            self._run(self._exec, container)
        for who in "abcd":
            self._run(self._churn, who)

    def _run(self, work: Any, *arguments: str) -> None:
        def guarded() -> None:
            try:
                work(*arguments)
            except Exception as error:
                self.wrong.append(f"{work.__name__}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=guarded)
        thread.start()
        self.threads.append(thread)

    def pid_of(self, client: Client, container: str) -> int:
        """The first process, by the verbose status."""
        asked = {"container_id": container, "verbose": True}
        found = re.search(r'"pid":(\d+)', client.call("ContainerStatus", asked).info["info"])
        assert found
        return int(found[1])

    def _ask_server(self, address: str) -> None:
        while not self.stop.wait(0.1):
            with socket.create_connection((address, 8080), timeout=10) as sock:
                sock.settimeout(10)
                sock.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
                if ANSWER not in sock.recv(200):
                    raise AssertionError("no answer")
            self.requests += 1

    def _exec(self, container: str) -> None:
        asked = {"container_id": container, "cmd": ["echo", "x"], "timeout": 60}
        with self.door.client() as client:
            while not self.stop.is_set():
                try:
                    found = client.call("ExecSync", asked)
                except Unavailable:
                    time.sleep(0.02)
                    continue
                if (found.stdout, found.exit_code) != (b"x\n", 0):
                    raise AssertionError(f"{found.stdout!r} {found.exit_code}")
                self.execs += 1

    def _churn(self, who: str) -> None:
        """Containers that end by themselves at some moment, each with a code of its own."""
        for n in range(100_000):
            if self.stop.is_set():
                return
            code = self.dice.randrange(256)
            argv = ["sh", "-c", f"usleep {self.dice.randrange(900_000)}; exit {code}"]
            container = self._created(f"exit-{who}{n}", argv)
            if container is None:
                continue
            (self.codes if self._started(container) else self.perhaps)[container] = code
            self.stop.wait(0.05)

    def _created(self, name: str, argv: list[str]) -> str | None:
        """A container that the call made, whether we were told or not."""
        try:
            with self.door.client() as client:
                return create_container(client, self.pod, argv, name=name)
        except Unavailable:
            return None  # made or not: its name tells at the end

    def _started(self, container: str) -> bool:
        """Whether we were told that it was; else only its state knows."""
        try:
            with self.door.client() as client:
                client.call("StartContainer", {"container_id": container})
        except Unavailable:
            return False
        return True

    def check(self) -> None:
        """After each start of the service: what runs is what ran."""
        asked = {"filter": {"state": {"state": "CONTAINER_RUNNING"}}}
        listed = {c.id for c in self.door.patient("ListContainers", asked).containers}
        lost = set(self.pids) - listed
        assert not lost, [one[:12] for one in lost]

    def end(self, client: Client) -> None:
        """Let everybody end, and look at all that is left."""
        self.stop.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.wrong, self.wrong[:5]
        for container, pid in self.pids.items():
            assert self.pid_of(client, container) == pid
        for container, code in self.codes.items():
            status = self.door.wait_exit(container)
            assert (status.exit_code, bool(status.started_at)) == (code, True)
        for container, code in self.perhaps.items():
            if self.door.status(container).state != "CONTAINER_CREATED":
                status = self.door.wait_exit(container)
                never = (status.reason, status.exit_code, status.started_at) == (
                    "StartError",
                    128,
                    0,
                )
                assert never or status.exit_code == code, status
        for container in self.chatty:
            client.call("StopContainer", {"container_id": container, "timeout": 0})
        # It wrote to the last moment: how many lines is what nobody knows, but none is missing.
        self.lines = 0
        for n in range(len(self.chatty)):
            numbers = [int(text) for text in log_lines(self.logs / f"chatty-{n}")]
            assert numbers == list(range(1, len(numbers) + 1))
            self.lines += len(numbers)


def wait_until_it_listens(address: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((address, 8080), timeout=10).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("kills", "chatty", "servers", "pause_us"),
    [(5, 3, 1, 2000), pytest.param(100, 50, 25, 20000, marks=pytest.mark.slow)],
)
def test_killed_under_load(
    door: Door, tmp_path: Path, kills: int, chatty: int, servers: int, pause_us: int
) -> None:
    load = Load(door, tmp_path, kills)
    ready: list[float] = []
    try:
        for turn in range(kills + 1):
            begun = time.monotonic()
            with door.open() as running, door.client() as client:
                ready.append(time.monotonic() - begun)
                if turn == 0:
                    load.begin(client, chatty, servers, pause_us)
                load.check()
                if turn < kills:
                    time.sleep(load.dice.uniform(0, 1.5))
                    running.process.kill()
                else:
                    load.end(client)
    finally:
        load.stop.set()
    print(
        f"{kills} kills: {load.lines} lines, {len(load.codes)} exits, {load.execs} execs,"
        f" {load.requests} requests, start of the service {max(ready):.2f} s at most"
    )
    assert load.requests > kills
    assert load.execs > kills
    assert len(load.codes) > kills // 2


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_service_finds_its_containers(door: Door, count: int) -> None:
    """How long it takes from the start of a service in this process until its first list is right."""
    from fixtures.pods import Cri

    with door.open() as running, door.client() as client:
        pod = run_pod(client, linux={"security_context": OWN_PID})
        own = {"linux": {"security_context": OWN_PID}}

        def one(n: int) -> str:
            with door.client() as mine:
                return run_container(mine, pod, SLEEP, name=f"c{n}", **own)

        with ThreadPoolExecutor(8) as pool:
            wanted = set(pool.map(one, range(count)))
        running.process.kill()
    begun = time.monotonic()
    cri = Cri(door.state.root, door.state.run)
    try:
        found = cri.list_containers()["containers"]
        took = time.monotonic() - begun
    finally:
        cri.close()
    assert {c["id"] for c in found if c["state"] == "CONTAINER_RUNNING"} == wanted
    assert took < 10  # on the machine of a reader: 0.05 s for 100
    begun = time.monotonic()
    with door.open(), door.client() as client:
        assert len(client.call("ListContainers").containers) == count
    print(f"{count} containers: found in {took:.3f} s, {time.monotonic() - begun:.2f} s as process")
