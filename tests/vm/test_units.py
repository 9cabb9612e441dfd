"""The service under the systemd of a guest: started by its socket, restarted, killed, stopped."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.door import OWN_PID, log_lines, run_container, run_pod
from scow.cri.client import Client, Unavailable

pytestmark = [pytest.mark.cgroup_v2, pytest.mark.root, pytest.mark.timeout(600)]

UNITS = ("scow.socket", "scow.service")
PLACE = Path("/run/systemd/system")  # for this boot
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def call(method: str, request: dict[str, Any] | None = None) -> Any:
    """By the client in this process: each start of a command takes the guest a second."""
    with Client() as client:
        return client.call(method, request)


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
    assert call("Version").runtime_name == "scow"
    wait_until(lambda: shown("ActiveState") == "active", "the service to say that it is ready")
    assert shown("Delegate") == "yes"

    with Client() as client:
        security = {"security_context": OWN_PID}
        pod = run_pod(client, log_directory=str(tmp_path), linux=security)
        argv = ["sh", "-c", COUNT]
        container = run_container(client, pod, argv, log_path="c.log", linux=security)
    one = {"container_id": container}
    begun = call("ContainerStatus", one).status.started_at
    pid = run("scow", "inspect", "-f", "{{.State.Pid}}", container)
    # The service's own value is for the service alone.
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    assert "scow.service" not in Path(f"/proc/{pid}/cgroup").read_text()

    def still_runs() -> None:
        status = call("ContainerStatus", one).status
        assert (status.state, status.started_at) == ("CONTAINER_RUNNING", begun)
        assert Path(f"/proc/{pid}").exists()

    restart_while_asked()
    still_runs()
    main = shown("MainPID")
    run("kill", "-9", main)
    wait_until(lambda: shown("MainPID") not in (main, "0"), "the service to be started again")
    still_runs()

    stop_while_asked(one, Path(f"/proc/{pid}/root/here"))
    assert Path(f"/proc/{pid}").exists()

    log = tmp_path / "c.log"
    before = len(log_lines(log))
    wait_until(lambda: len(log_lines(log)) > before + 2, "more lines")
    run("systemctl", "start", "scow.socket")
    still_runs()
    call("StopContainer", {**one, "timeout": 0})
    assert call("ContainerStatus", one).status.exit_code == 137
    lines = [int(text) for text in log_lines(log)]
    assert lines == list(range(1, len(lines) + 1))
    assert len(lines) > 20


def restart_while_asked() -> None:
    """A client that comes in between waits: systemd holds the socket."""
    refused: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                call("Version")
            except Unavailable as error:  # an answer that was cut off, at most
                if "cannot reach" in str(error):
                    refused.append(str(error))
            time.sleep(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    run("systemctl", "restart", "scow.service")
    done.set()
    asking.join()
    assert not refused


def stop_while_asked(one: dict[str, Any], mark: Path) -> None:
    """In order: a call that runs gets its answer."""
    slow = {**one, "cmd": ["sh", "-c", "touch /here; sleep 2; echo done"]}
    answers: list[Any] = []
    calling = threading.Thread(target=lambda: answers.append(call("ExecSync", slow)))
    calling.start()
    wait_until(mark.exists, "the command to begin")
    run("systemctl", "stop", *UNITS)
    calling.join()
    assert answers[0].stdout == b"done\n"
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
    assert not Path("/run/scow/scow.sock").exists()
