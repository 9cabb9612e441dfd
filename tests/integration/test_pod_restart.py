"""The service goes and comes: killed at any moment, after a reboot, and with the command line beside."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.command import Scow
from fixtures.images import ImageFactory
from fixtures.pods import Cri
from scow.cri.pod_namespaces import unmount

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def places(tmp_path: Path, images: ImageFactory) -> Iterator[tuple[str, str]]:
    root, run = str(tmp_path / "root"), str(tmp_path / "run")
    first = Cri(root, run)
    first.load_busybox(images)
    first.close()
    yield root, run
    last = Cri(root, run)
    last.remove_all()
    last.close()
    assert last.service.check() == []


def in_child(places: tuple[str, str], work: Callable[[Cri], None]) -> int:
    """Do some work in another process, which is killed as soon as that is done (or by the work)."""
    pid = os.fork()
    if pid == 0:
        try:
            work(Cri(*places))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    return pid


def wait_until(question: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_everything_survives_a_killed_service(places: tuple[str, str], tmp_path: Path) -> None:
    def work(cri: Cri) -> None:
        pod = cri.pod(log_directory=str(tmp_path / "logs"))
        script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
        cri.running(pod, ["sh", "-c", script], log_path="count.log")
        cri.running(pod, ["sh", "-c", "sleep 1; exit 6"])
        cri.running(pod, ["sh", "-c", "exit 7"])

    os.waitpid(in_child(places, work), 0)
    # Nobody serves when the second one ends.
    wait_until(lambda: len(list(Path(places[0], "containers").glob("*/exit.json"))) == 2)
    begun = time.monotonic()
    cri = Cri(*places)
    assert time.monotonic() - begun < 20
    pod = cri.list_pod_sandbox()["items"][0]
    assert pod["state"] == "SANDBOX_READY"
    statuses = sorted(
        (cri.container_state(c["id"]) for c in cri.list_containers()["containers"]),
        key=lambda status: status["created_at"],
    )
    assert [s["state"].removeprefix("CONTAINER_") for s in statuses] == [
        "RUNNING",
        "EXITED",
        "EXITED",
    ]
    assert [s["exit_code"] for s in statuses] == [0, 6, 7]
    assert cri.sh(statuses[0]["id"], "echo back") == "back"
    events = cri.get_container_events()
    os.kill(
        cri.container_status(container_id=statuses[0]["id"], verbose=True)
        and pid_of(cri, statuses[0]["id"]),
        9,
    )
    told = next(events)
    assert (told["container_id"], told["container_event_type"]) == (
        statuses[0]["id"],
        "CONTAINER_STOPPED_EVENT",
    )
    lines = (tmp_path / "logs/count.log").read_text().splitlines()
    assert [int(line.split()[-1]) for line in lines] == list(range(1, len(lines) + 1))
    cri.close()


def test_the_limit_of_a_command_is_kept_without_the_service(places: tuple[str, str]) -> None:
    cri = Cri(*places)
    container = cri.running(cri.pod())
    other = in_child(
        places,
        lambda cri: cri.exec_sync(container_id=container, cmd=["sleep", "77"], timeout=5),
    )
    wait_until(lambda: "sleep 77" in cri.sh(container, "ps"))
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    assert "sleep 77" in cri.sh(container, "ps")
    wait_until(lambda: "sleep 77" not in cri.sh(container, "ps"))
    cri.close()


def test_a_removal_that_was_cut_short_is_finished(places: tuple[str, str]) -> None:
    left = Path(places[0]) / "trash" / ("ab" * 32)
    left.mkdir()
    (left / "upper").mkdir()
    # What `base_layer` makes there is not a removal.
    made = Path(places[0]) / "trash" / "base.0123456789abcdef"
    made.mkdir()
    cri = Cri(*places)
    cri.close()
    assert not left.exists()
    assert made.exists()
    made.rmdir()


def pid_of(cri: Cri, container: str) -> int:
    return int(cri.service.status(cri.service.store.read(container)).pid)


@pytest.mark.parametrize("attempt", range(8))
def test_killed_while_it_makes_a_pod(places: tuple[str, str], attempt: int) -> None:
    pid = in_child(places, lambda cri: [cri.pod(pid="POD") for _ in range(50)] and None)
    time.sleep(0.25 + attempt * 0.017)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    cri = Cri(*places)
    for item in cri.list_pod_sandbox()["items"]:
        assert item["state"] == "SANDBOX_READY"
        cri.sh(cri.running(item["id"]), "true")
    cri.remove_all()
    wait_until(lambda: cri.service.check() == [])
    cri.close()


def test_after_a_reboot(places: tuple[str, str]) -> None:
    cri = Cri(*places)
    pod = cri.pod()
    container = cri.running(pod)
    cri.close()
    # What a boot does: all processes end, /run is empty.
    os.kill(cri.service.status(cri.service.store.read(container)).pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"{places[1]}/containers/{container}"))
    cri.service.bridge().detach(pod)
    unmount(f"{places[1]}/pods/{pod}")
    shutil.rmtree(places[1])
    booted = Cri(*places)
    assert booted.pod_state(pod)["state"] == "SANDBOX_NOTREADY"
    assert booted.container_state(container)["state"] == "CONTAINER_EXITED"
    booted.remove_pod_sandbox(pod_sandbox_id=pod)
    assert booted.list_pod_sandbox()["items"] == []
    booted.close()


def test_what_the_command_line_does_beside_is_seen(places: tuple[str, str]) -> None:
    cri = Cri(*places)
    scow = Scow(*places)
    pod = cri.pod()
    one, two, three = (cri.running(pod) for _ in range(3))
    assert len(cri.list_containers()["containers"]) == 3
    scow.ok("kill", one)
    scow.ok("rm", "-f", two)
    scow.ok("stop", "-t", "0", three)
    states = {c["id"]: c["state"] for c in cri.list_containers()["containers"]}
    assert states == {one: "CONTAINER_EXITED", three: "CONTAINER_EXITED"}
    scow.ok("start", three)
    assert cri.container_state(three)["state"] == "CONTAINER_RUNNING"
    assert cri.sh(three, "echo here") == "here"
    assert scow.ok("exec", three, "echo", "there") == "there"
    cri.close()


def churn(cri: Cri) -> None:
    """Make, use and remove pods until we are killed."""
    while True:
        pod = cri.pod(pid="POD")
        container = cri.running(pod)
        cri.running(pod, ["sh", "-c", "exit 3"])
        cri.sh(container, "true")
        cri.stop_container(container_id=container, timeout=0)
        cri.remove_pod_sandbox(pod_sandbox_id=pod)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_kills_lose_nothing(places: tuple[str, str], tmp_path: Path) -> None:
    def begin(cri: Cri) -> None:
        pod = cri.pod(log_directory=str(tmp_path / "logs"), labels={"keep": "yes"})
        script = "i=0; while :; do i=$((i+1)); echo $i; usleep 5000; done"
        cri.running(pod, ["sh", "-c", script], log_path="count.log")

    os.waitpid(in_child(places, begin), 0)
    chance = random.Random(1)
    for number in range(100):
        pid = in_child(places, churn)
        time.sleep(chance.uniform(0.05, 0.8))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        begun = time.monotonic()
        cri = Cri(*places)
        assert time.monotonic() - begun < 2, number
        for item in cri.list_pod_sandbox()["items"]:
            if not item["labels"]:
                cri.remove_pod_sandbox(pod_sandbox_id=item["id"])
        assert len(cri.list_containers()["containers"]) == 1
        assert cri.list_containers()["containers"][0]["state"] == "CONTAINER_RUNNING"
        cri.close()
    lines = (tmp_path / "logs/count.log").read_text().splitlines()
    assert [int(line.split()[-1]) for line in lines] == list(range(1, len(lines) + 1))
