"""The service under the systemd of a guest: started by its socket, restarted, killed, stopped."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cgroup_v2, pytest.mark.root, pytest.mark.timeout(240)]

UNITS = ("scow.socket", "scow.service")
PLACE = Path("/run/systemd/system")  # for this boot
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def call(method: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run("scow", "call", method, json.dumps(request or {})))
    return answer


def shown(name: str) -> str:
    """A property of the service, as systemd sees it."""
    return run("systemctl", "show", "-P", name, "scow.service")


def wait_until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture
def units() -> Iterator[None]:
    from scow.cri import api

    assert api.__file__
    source = Path(api.__file__).parents[1] / "systemd"
    PLACE.mkdir(exist_ok=True)
    for name in UNITS:
        (PLACE / name).write_text((source / name).read_text())
    # Its own bridge: podman has brought a configuration for CNI.
    drop_in = PLACE / "scow.service.d/network.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nEnvironment=SCOW_CNI_CONFIG=/nonexistent\n")
    run("systemctl", "daemon-reload")
    run("scow", "load", "-i", "/work/busybox.tar")
    yield
    run("systemctl", "stop", *UNITS)
    for name in UNITS:
        (PLACE / name).unlink()
    shutil.rmtree(drop_in.parent)
    run("systemctl", "daemon-reload")
    for pod in run("scow", "pod", "ps", "-q").split():
        run("scow", "pod", "rm", "-f", pod)
    run("scow", "rmi", "busybox")


@pytest.mark.usefixtures("units")
def test_the_units(tmp_path: Path) -> None:
    run("systemctl", "start", "scow.socket")
    assert shown("ActiveState") == "inactive"
    assert call("Version")["runtimeName"] == "scow"
    assert (shown("ActiveState"), shown("Delegate")) == ("active", "yes")

    metadata = {"name": "p", "uid": "u", "namespace": "n"}
    security = {"securityContext": {"namespaceOptions": {"pid": "CONTAINER"}}}
    config = {"metadata": metadata, "logDirectory": str(tmp_path), "linux": security}
    pod = call("RunPodSandbox", {"config": config})["podSandboxId"]
    container = {
        "metadata": {"name": "c"},
        "image": {"image": "busybox"},
        "command": ["sh", "-c", COUNT],
        "logPath": "c.log",
    }
    asked = {"podSandboxId": pod, "config": container}
    one = {"containerId": call("CreateContainer", asked)["containerId"]}
    call("StartContainer", one)
    begun = call("ContainerStatus", one)["status"]["startedAt"]
    pid = run("scow", "inspect", "-f", "{{.State.Pid}}", one["containerId"])
    # The service's own value is for the service alone.
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    cgroups = Path(f"/proc/{pid}/cgroup").read_text()
    assert "scow.service" not in cgroups

    def still_runs() -> None:
        status = call("ContainerStatus", one)["status"]
        assert (status["state"], status["startedAt"]) == ("CONTAINER_RUNNING", begun)
        assert Path(f"/proc/{pid}").exists()

    # A client that comes in between waits: systemd holds the socket.
    waited: list[int] = []

    def ask() -> None:
        argv = (sys.executable, "-c", ASK)
        waited.append(subprocess.run(argv, check=False, timeout=60).returncode)

    asking = threading.Thread(target=ask)
    asking.start()
    run("systemctl", "restart", "scow.service")
    asking.join()
    assert waited == [0]
    still_runs()

    main = shown("MainPID")
    run("kill", "-9", main)
    wait_until(lambda: shown("MainPID") not in (main, "0"), "the service to be started again")
    still_runs()

    # In order: a call that runs gets its answer.
    slow = {**one, "cmd": ["sh", "-c", "touch /here; sleep 2; echo done"]}
    answers: list[dict[str, Any]] = []
    calling = threading.Thread(target=lambda: answers.append(call("ExecSync", slow)))
    calling.start()
    root = Path(f"/proc/{pid}/root/here")
    wait_until(root.exists, "the command to begin")
    run("systemctl", "stop", *UNITS)
    calling.join()
    assert answers[0]["stdout"] == "ZG9uZQo="
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
    assert not Path("/run/scow/scow.sock").exists()
    assert Path(f"/proc/{pid}").exists()

    before = len((tmp_path / "c.log").read_text().splitlines())
    wait_until(
        lambda: len((tmp_path / "c.log").read_text().splitlines()) > before + 2, "more lines"
    )
    run("systemctl", "start", "scow.socket")
    still_runs()
    call("StopContainer", {**one, "timeout": 0})
    assert call("ContainerStatus", one)["status"]["exitCode"] == 137
    lines = [int(line.split()[3]) for line in (tmp_path / "c.log").read_text().splitlines()]
    assert all(line == n for line, n in zip(lines, itertools.count(1), strict=False))
    assert len(lines) > 20


ASK = """
import time
from scow.cri.client import Client
end = time.monotonic() + 4
with Client() as client:
    while time.monotonic() < end:
        try:
            client.call("Version")
        except Exception as error:
            # An answer that was cut off, at most: a connection is never refused.
            assert "cannot reach" not in str(error), error
        time.sleep(0.02)
"""
