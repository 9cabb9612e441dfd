"""The service where something runs out or jumps: descriptors, containers that never last, the clock."""

from __future__ import annotations

import itertools
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from fixtures.door import SLEEP, Door, create_container, proc_count, run_container, run_pod
from scow.cri.client import Client
from scow.native.errors import ResourceExhausted

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def resident_kb(pid: int) -> int:
    [line] = [t for t in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in t]
    return int(line.split()[1])


@pytest.mark.parametrize(
    ("descriptors", "wanted"), [(128, 60), pytest.param(256, 300, marks=pytest.mark.slow)]
)
def test_too_many_open_files(door: Door, descriptors: int, wanted: int) -> None:
    """What runs goes on, what is too much is told so, and when there is room again it works again."""
    limit = f"--nofile={descriptors}:{descriptors}"
    with door.open("prlimit", limit) as running, door.client() as client:
        pod = run_pod(client)
        kept: list[str] = []
        refused, told = 0, set[str]()
        for n in range(wanted):
            try:
                container = create_container(client, pod, SLEEP, name=f"c{n}")
                client.call("StartContainer", {"container_id": container})
                kept.append(container)
            except ResourceExhausted as error:
                told.add(re.sub("'.*?'", "X", str(error)))
                refused += 1
        assert refused > 5
        assert all("too many open files" in text for text in told), told
        assert len(kept) > 5
        states = Counter(c.state for c in client.call("ListContainers").containers)
        assert states["CONTAINER_RUNNING"] == len(kept)
        for container in kept[:4]:
            client.call("RemoveContainer", {"container_id": container})
        deadline = time.monotonic() + 60
        for n in itertools.count(wanted):
            try:
                run_container(client, pod, SLEEP, name=f"c{n}")
                break
            except ResourceExhausted:
                assert time.monotonic() < deadline
        with door.client() as other:
            assert other.call("Version").runtime_name == "scow"
        assert "Traceback" not in "".join(running.lines)
    print(f"{descriptors} descriptors: {len(kept)} containers ran, {refused} were refused")


@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_a_crash_loop(door: Door, count: int) -> None:
    """Ends at once, is made again with the next attempt, as a kubelet does: the service does not grow."""
    with door.open() as running, door.client() as client:
        pid = running.process.pid
        pod = run_pod(client)
        warm = count // 4
        begun = time.monotonic()
        for attempt in range(count):
            if attempt == warm:
                before = {what: proc_count(pid, what) for what in ("fd", "task")}
                memory = resident_kb(pid)
            metadata = {"name": "crashes", "attempt": attempt}
            container = run_container(client, pod, ["false"], metadata=metadata, name="")
            assert door.wait_exit(container).exit_code == 1
            client.call("RemoveContainer", {"container_id": container})
        took = time.monotonic() - begun
        now = {what: proc_count(pid, what) for what in ("fd", "task")}
        assert now["fd"] <= before["fd"] + 2
        assert now["task"] <= before["task"] + 8  # pools start threads when they first need them
        grown = resident_kb(pid) - memory
        assert grown < 4096 + 8 * count  # KiB
        assert client.call("ListContainers").containers == []
    print(f"{count} runs in {took:.1f} s, {grown} KiB more")


# What `scow serve` is run by, with a wall clock that is off by what a file says.
_SHIFTED = """
import sys, time
path, real = sys.argv[1], time.time_ns
def shifted():
    with open(path) as file:
        return real() + int(file.read()) * 10**9
time.time_ns, time.time = shifted, lambda: shifted() / 1e9
sys.argv = sys.argv[2:]
from scow.cli.main import main
sys.exit(main())
"""
_YEAR_S = 365 * 86400


def test_clock_jumps(door: Door, tmp_path: Path) -> None:
    """A year on, a year back, 1970, 2038, a second: stamps step, order and everything else stay."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    now = int(time.time())
    jumps = (_YEAR_S, -_YEAR_S, -now, 2**31 + 86400 - now, 1, 0)
    kinds: dict[str, list[str]] = {}
    with door.open(sys.executable, "-c", _SHIFTED, str(clock)) as running, door.client() as client:
        pod = run_pod(client)
        kept = run_container(client, pod, SLEEP, name="kept")
        images = [i.id for i in client.call("ListImages").images]

        probes: set[str] = set()
        heard = threading.Event()

        def listen() -> None:
            with door.client() as mine:
                for event in mine.stream("GetContainerEvents"):
                    heard.set()
                    if event.container_id == kept:
                        return
                    kind = event.container_event_type.split("_")[1]
                    kinds.setdefault(event.container_id, []).append(kind)

        listening = threading.Thread(target=listen)
        listening.start()
        while not heard.is_set():  # what was before the listener came is told to nobody
            probe = run_pod(client, "probe")
            client.call("RemovePodSandbox", {"pod_sandbox_id": probe})
            probes.add(probe)
        for n, jump in enumerate(jumps):
            holder = a_call_that_lasts(door, kept)
            clock.write_text(str(jump))
            container = run_container(client, pod, ["sh", "-c", "exit 7"], name=f"c{n}")
            assert door.wait_exit(container).exit_code == 7
            asked = {"container_id": kept, "cmd": ["true"], "timeout": 20}
            assert client.call("ExecSync", asked).exit_code == 0
            for method in ("ListContainerStats", "ListPodSandboxStats", "ListPodSandboxMetrics"):
                client.call(method)
            begun = time.monotonic()
            stopped = run_container(client, pod, SLEEP, name=f"s{n}")
            client.call("StopContainer", {"container_id": stopped, "timeout": 1})
            assert time.monotonic() - begun < 60
            for one in (container, stopped):
                client.call("RemoveContainer", {"container_id": one})
            holder.join(60)
            assert not holder.is_alive()
            expect_all(client, kept, images)
        client.call("StopContainer", {"container_id": kept, "timeout": 0})
        listening.join(60)
        life = ["CREATED", "STARTED", "STOPPED", "DELETED"]
        lives = [told for one, told in kinds.items() if one not in probes]
        assert lives == [life] * 2 * len(jumps)
        assert running.stop() == 0
    # Started while it is 1970: nothing is old enough to be removed.
    clock.write_text(str(-now))
    with door.open(sys.executable, "-c", _SHIFTED, str(clock)), door.client() as client:
        assert [i.id for i in client.call("ListImages").images] == images
        assert client.call("ContainerStatus", {"container_id": kept}).status.exit_code > 128


def a_call_that_lasts(door: Door, container: str) -> threading.Thread:
    """A call with a time limit, over a jump."""

    def call() -> None:
        with door.client() as mine:
            asked = {"container_id": container, "cmd": ["sleep", "0.5"], "timeout": 20}
            assert mine.call("ExecSync", asked, timeout_s=30).exit_code == 0

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def expect_all(client: Client, container: str, images: list[str]) -> None:
    """What was there is there."""
    assert [i.id for i in client.call("ListImages").images] == images
    [item] = client.call("ListContainers").containers
    assert (item.id, item.state) == (container, "CONTAINER_RUNNING")
