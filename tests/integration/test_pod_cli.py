"""`scow pod`, and `scow run --pod`: pods without a service, by the command line alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.command import Scow
from fixtures.images import ImageFactory
from scow.cri.service import Service

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def scow(tmp_path: Path, images: ImageFactory) -> Iterator[Scow]:
    root, run = str(tmp_path / "root"), str(tmp_path / "run")
    Service(root, run).images.load_layout(str(images.layout("busybox")), "busybox")
    made = Scow(root, run, cold=True)
    yield made
    if names := made.ok("pod", "ps", "-q").split():
        made.ok("pod", "rm", "-f", *names)
    assert made.ok("system", "check")


def test_a_pod_of_two_containers(scow: Scow) -> None:
    pod_id = scow.ok("pod", "create", "-l", "app=x", "--hostname", "island", "web")
    server = "while :; do echo served | nc -l -p 8080; done"
    scow.ok("run", "-d", "--pod", "web", "--name", "server", "busybox", "sh", "-c", server)
    ask = "hostname; for i in $(seq 300); do nc 127.0.0.1 8080 && break; sleep 0.1; done"
    assert scow.ok("run", "--rm", "--pod", "web", "busybox", "sh", "-c", ask) == "island\nserved"
    listing = scow.ok("pod", "ps")
    assert "POD ID" in listing
    assert all(word in listing for word in ("web", "Ready", pod_id[:12]))
    document = json.loads(scow.ok("pod", "inspect", "web"))[0]
    assert (document["ready"], document["options"]["labels"]) == (True, {"app": "x"})
    assert [c["name"] for c in document["containers"]] == ["server"]
    assert "web" in scow.ok("pod", "stats", "--no-stream")
    done = scow("pod", "rm", "web")
    assert done.code == 1
    assert "it is ready" in done.err
    scow.ok("pod", "stop", "web")
    assert "NotReady" in scow.ok("pod", "ps")
    refused = scow("start", "server")
    assert "not ready" in refused.err
    scow.ok("pod", "rm", "web")
    assert scow.ok("ps", "-aq") == ""
    scow.ok("pod", "rm", "-f", "web")


def test_the_logs_of_a_pod_are_in_order(scow: Scow) -> None:
    scow.ok("pod", "create", "talkers")
    for name in ("one", "two"):
        script = f"echo first {name}; sleep 0.4; echo last {name} >&2"
        scow.ok("run", "-d", "--pod", "talkers", "--name", name, "busybox", "sh", "-c", script)
    deadline = time.monotonic() + 60
    while scow("wait", "one", "two").code and time.monotonic() < deadline:
        time.sleep(0.1)
    done = scow("pod", "logs", "talkers")
    assert sorted(done.out.splitlines()) == ["one | first one", "two | first two"]
    assert sorted(done.err.splitlines()) == ["one | last one", "two | last two"]
    assert scow.ok("pod", "logs", "-c", "one", "talkers") == "first one"
    assert scow("pod", "logs", "-c", "nosuch", "talkers").code == 125


def test_what_is_refused(scow: Scow) -> None:
    scow.ok("pod", "create", "web")
    assert "has it" in scow("pod", "create", "web").err
    for flags in (["-p", "80:80"], ["--network", "host"], ["--hostname", "x"], ["--ipc", "host"]):
        done = scow("run", "--pod", "web", *flags, "busybox", "true")
        assert (done.code, "--pod excludes" in done.err) == (125, True), flags
    assert scow("pod", "create", "../x").code == 125
    assert scow("pod", "create", "-l", "x", "y").code == 125
    assert "no such pod" in scow("run", "--pod", "nosuch", "busybox", "true").err
    assert scow("pod", "inspect", "nosuch").code == 1
