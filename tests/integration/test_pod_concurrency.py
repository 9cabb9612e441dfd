"""Many clients on the same few pods at once: only refusals that CRI knows, and nothing left behind."""

from __future__ import annotations

import random
import threading
import time

import pytest

from fixtures.pods import Cri
from scow.native.errors import AlreadyExists, InvalidArgument, InvalidState, NotFound, ScowError

pytestmark = pytest.mark.timeout(300)
CLIENTS, SECONDS = 8, 6.0


class Client:
    """Random calls on pods and containers that others use, too."""

    def __init__(self, cri: Cri, seed: int, until: float) -> None:
        self.cri = cri
        self.random = random.Random(seed)
        self.until = until
        self.done = 0
        self.wrong: list[BaseException] = []

    def run(self) -> None:
        while time.monotonic() < self.until:
            try:
                self.step()
            except (NotFound, InvalidState, AlreadyExists, InvalidArgument):
                self.done += 1
            except ScowError as error:
                # A command that is killed with its container has no monitor any more.
                self.done += 1
                if "went away" not in str(error):
                    self.wrong.append(error)
            except BaseException as error:
                self.wrong.append(error)
            else:
                self.done += 1

    def step(self) -> None:
        cri, choose = self.cri, self.random.choice
        pods = [item["id"] for item in cri.list_pod_sandbox()["items"]]
        containers = [item["id"] for item in cri.list_containers()["containers"]]
        kind = choose(("run", "create", "start", "exec", "stop", "rm", "status", "rmp", "stopp"))
        if kind == "run" or not pods:
            config = cri.pod_config()
            config["metadata"]["name"] = f"shared-{self.random.randrange(4)}"
            cri.run_pod_sandbox(config=config)
        elif kind == "create" or not containers:
            name = f"c{self.random.randrange(3)}"
            container = cri.container(choose(pods), metadata={"name": name})
            cri.start_container(container_id=container)
        elif kind == "start":
            cri.start_container(container_id=choose(containers))
        elif kind == "exec":
            cri.exec_sync(container_id=choose(containers), cmd=["true"], timeout=20)
        elif kind == "stop":
            cri.stop_container(container_id=choose(containers), timeout=0)
        elif kind == "rm":
            cri.remove_container(container_id=choose(containers))
        elif kind == "status":
            cri.pod_sandbox_status(pod_sandbox_id=choose(pods))
            cri.container_status(container_id=choose(containers))
        elif kind == "stopp":
            cri.stop_pod_sandbox(pod_sandbox_id=choose(pods))
        else:
            cri.remove_pod_sandbox(pod_sandbox_id=choose(pods))


def test_many_clients_on_the_same_pods(cri: Cri) -> None:
    until = time.monotonic() + SECONDS
    clients = [Client(cri, seed, until) for seed in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=90)
    assert not any(thread.is_alive() for thread in threads)
    wrong = [f"{type(error).__name__}: {error}" for client in clients for error in client.wrong]
    assert wrong == []
    assert sum(client.done for client in clients) > CLIENTS
    names = [item["metadata"]["name"] for item in cri.list_pod_sandbox()["items"]]
    assert len(names) == len(set(names))


def test_one_of_many_gets_a_name(cri: Cri) -> None:
    config = cri.pod_config()
    won: list[str] = []
    lost: list[BaseException] = []

    def make() -> None:
        try:
            won.append(cri.run_pod_sandbox(config=config)["pod_sandbox_id"])
        except AlreadyExists as error:
            lost.append(error)

    threads = [threading.Thread(target=make) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 9)
    assert [item["id"] for item in cri.list_pod_sandbox()["items"]] == won


def test_an_exec_storm(cri: Cri) -> None:
    container = cri.running(cri.pod())
    codes: list[int] = []

    def storm(number: int) -> None:
        for index in range(8):
            code = (number * 8 + index) % 256
            done = cri.exec_sync(container_id=container, cmd=["sh", "-c", f"exit {code}"])
            codes.append(done["exit_code"] - code)

    threads = [threading.Thread(target=storm, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 128
    assert "defunct" not in cri.sh(container, "ps")
