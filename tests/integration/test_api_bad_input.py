"""Requests that cannot be right, to the real service: each is refused for what it is, and nothing is left.

Good HTTP and good JSON are taken for granted here: test_api_http.py and test_api_connect.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.api import post
from fixtures.door import SLEEP, create_container, open_exec, output_of, run_container, run_pod
from fixtures.images import ImageFactory
from fixtures.pods import Cri
from fixtures.serving import serving
from scow.cri.client import Client
from scow.native.errors import NotFound, ScowError

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def client(scow_root: Path, scow_run: Path, images: ImageFactory) -> Iterator[Client]:
    first = Cri(str(scow_root), str(scow_run))
    first.load_busybox(images)
    first.close()
    environment = {**os.environ, "SCOW_CNI_CONFIG": "/nonexistent"}
    with serving(environment) as running, Client(f"unix://{scow_run}/scow.sock") as made:
        running.wait_for("stream URLs only")
        running.drain()
        yield made
    assert "Traceback" not in "".join(running.lines)
    last = Cri(str(scow_root), str(scow_run))
    last.remove_all()
    last.close()
    assert last.service.check() == []


META = {"name": "x", "uid": "u", "namespace": "n"}


def pod(**config: Any) -> tuple[str, dict[str, Any]]:
    return "RunPodSandbox", {"config": {"metadata": META, **config}}


def container(**config: Any) -> tuple[str, dict[str, Any]]:
    body = {"metadata": {"name": "x"}, "image": {"image": "busybox"}, "command": SLEEP, **config}
    return "CreateContainer", {"podSandboxId": "POD", "config": body}


def mount(path: str) -> tuple[str, dict[str, Any]]:
    return container(mounts=[{"hostPath": path, "containerPath": "/m"}])


# The rows of bad input to the API (H), by their numbers: method, request, and the code of the refusal; "" is
# a success, "any" some refusal. POD, OTHER, C, ROOT and RUN are what the test has made.
ROWS: list[tuple[str, str, dict[str, Any], str]] = [
    ("H5 stop, negative time-out", "StopContainer", {"containerId": "C", "timeout": -1}, ""),
    ("H5 stop of the unknown", "StopContainer", {"containerId": "0" * 64}, ""),
    ("H5 remove of the unknown", "RemoveContainer", {"containerId": "0" * 64}, ""),
    ("H5 stop of an unknown pod", "StopPodSandbox", {"podSandboxId": "0" * 64}, ""),
    ("H5 start of what has run", "StartContainer", {"containerId": "C"}, "failed_precondition"),
    ("H5 status of the unknown", "ContainerStatus", {"containerId": "0" * 64}, "not_found"),
    ("H5 NUL in an id", "ContainerStatus", {"containerId": "a\0b"}, "not_found"),
    ("H5 NULs as an id", "ContainerStats", {"containerId": "\0" * 64}, "not_found"),
    ("H5 a path as an id", "PodSandboxStatus", {"podSandboxId": "../" * 21 + "a"}, "not_found"),
    ("H5 stop of nobody", "StopContainer", {}, "invalid_argument"),
    ("H5 remove of nobody", "RemoveContainer", {"containerId": ""}, "invalid_argument"),
    ("H5 status of nobody", "PodSandboxStatus", {}, "invalid_argument"),
    ("H8 exec of nothing", "ExecSync", {"containerId": "C", "cmd": []}, "invalid_argument"),
    ("H8 exec without streams", "Exec", {"containerId": "C", "cmd": ["x"]}, "invalid_argument"),
    ("H8 terminal and stderr", "Exec",
     {"containerId": "C", "cmd": ["x"], "tty": True, "stdout": True, "stderr": True},
     "invalid_argument"),
    ("H8 10^5 arguments", "ExecSync",
     {"containerId": "C", "cmd": ["true", *("x" * 20 for _ in range(100_000))]}, "any"),
    ("H8 an argument with NUL", "ExecSync", {"containerId": "C", "cmd": ["a\0b"]}, "invalid_argument"),
    ("H8 attach with a wrong tty", "Attach",
     {"containerId": "C", "stdout": True, "tty": True}, "invalid_argument"),
    ("H9 state that is none", "ListContainers", {"filter": {"state": {"state": "GONE"}}},
     "invalid_argument"),
    ("H9 filter of a wrong kind", "ListContainers", {"filter": {"id": 5}}, "invalid_argument"),
    ("H9 labels of a wrong kind", "ListPodSandbox", {"filter": {"labelSelector": ["a"]}},
     "invalid_argument"),
    ("H9 nothing matches", "ListContainers", {"filter": {"id": "zz"}}, ""),
    ("H11 relative log directory", *pod(logDirectory="logs"), "invalid_argument"),
    ("H11 log that leaves", *container(logPath="../../etc/x"), "invalid_argument"),
    ("H11 absolute log", *container(logPath="/etc/x"), "invalid_argument"),
    ("H11 relative mount", *mount("etc"), "invalid_argument"),
    ("H11 mount that is missing", *mount("/nonexistent/x"), "any"),
    ("H11 our own images", *mount("ROOT/images"), "invalid_argument"),
    ("H11 our own run directory", *mount("RUN"), "invalid_argument"),
    ("H11 mount of a relative place", *container(
        mounts=[{"hostPath": "/etc", "containerPath": "m"}]), "invalid_argument"),
    ("H12 image that is not here", *container(image={"image": "nobody/none"}), "not_found"),
    ("H12 image that is no name", *container(image={"image": "../x"}), "invalid_argument"),
    ("H12 pod that is not there", "CreateContainer",
     {"podSandboxId": "0" * 64, "config": container()[1]["config"]}, "not_found"),
    ("H12 PID namespace of another pod's", *container(linux={"securityContext": {
        "namespaceOptions": {"pid": "TARGET", "targetId": "OTHER"}}}), "invalid_argument"),
    ("names: pod without", "RunPodSandbox", {"config": {"metadata": {}}}, "invalid_argument"),
    ("names: container without", *container(metadata={}), "invalid_argument"),
    ("names: no configuration", "RunPodSandbox", {}, "invalid_argument"),
    ("numbers: negative memory", *container(
        linux={"resources": {"memoryLimitInBytes": -5}}), "invalid_argument"),
    ("numbers: negative shares", *container(
        linux={"resources": {"cpuShares": -1}}), "invalid_argument"),
    ("numbers: port", *pod(portMappings=[{"containerPort": 70000, "hostPort": 1}]),
     "invalid_argument"),
    ("numbers: OOM score", *container(linux={"resources": {"oomScoreAdj": 5000}}),
     "invalid_argument"),
    ("handler that is none", "RunPodSandbox",
     {"config": {"metadata": META}, "runtimeHandler": "kata"}, "invalid_argument"),
    ("hostname that is none", *pod(hostname="a b"), "invalid_argument"),
    ("sysctl of the host's", *pod(linux={"sysctls": {"kernel.panic": "1"}}), "any"),
    ("DNS server that is none", *pod(dnsConfig={"servers": ["x y"]}), "any"),
]  # fmt: skip


def test_requests_that_cannot_be_right(client: Client, scow_root: Path, scow_run: Path) -> None:
    """All of them on one service: what one leaves would be in the way of the next."""
    import json

    ready = run_pod(client, "ready", log_directory=str(scow_root.parent / "logs"))
    other = run_container(client, run_pod(client, "other"), SLEEP)
    running = run_container(client, ready, SLEEP, name="runs")
    ended = run_container(client, ready, ["true"], name="ended")
    names = {"POD": ready, "OTHER": other, "ROOT": str(scow_root), "RUN": str(scow_run)}
    wrong: list[str] = []
    for what, method, request, code in ROWS:
        text = json.dumps(request)
        for name, value in {**names, '"C"': f'"{ended if "has run" in what else running}"'}.items():
            text = text.replace(name, value)
        status, _, body = post(scow_run / "scow.sock", method, text.encode())
        told = json.loads(body).get("code", "") if status != 200 else ""
        if status == 500 or (code != "any" and told != code) or (code == "any" and not told):
            wrong.append(f"{what}: {status} {told or 'ok'}, not {code or 'ok'}: {body[:200]!r}")
        if method == "StopContainer" and request.get("timeout") == -1:
            running = run_container(client, ready, SLEEP, name=f"again-{len(wrong)}")
    assert not wrong, "\n".join(wrong)
    states = [c.metadata.name for c in client.call("ListContainers").containers]
    assert sorted(states) == ["again-0", "c", "ended", "runs"]


def test_stop_and_remove_in_any_order(client: Client) -> None:
    """H5: whatever was done before, they succeed, and a pod takes its containers with it."""
    for order in (
        ("StopContainer", "StopContainer", "RemoveContainer", "RemoveContainer"),
        ("RemoveContainer", "StopContainer"),
        ("StopPodSandbox", "StopContainer", "RemovePodSandbox", "RemoveContainer"),
        ("RemovePodSandbox", "StopPodSandbox", "RemovePodSandbox"),
    ):
        pod_id = run_pod(client, "ordered")
        container_id = run_container(client, pod_id, SLEEP)
        create_container(client, pod_id, SLEEP, name="never")
        for method in order:
            is_pod = "Sandbox" in method
            key, value = ("pod_sandbox_id", pod_id) if is_pod else ("container_id", container_id)
            client.call(method, {key: value})
        client.call("RemovePodSandbox", {"pod_sandbox_id": pod_id})
        assert client.call("ListContainers").containers == []
        with pytest.raises(NotFound):
            client.call("PodSandboxStatus", {"pod_sandbox_id": pod_id})


HANG_UP = """
import http.client, json, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
body = sys.argv[3].encode()
head = f"POST /runtime.v1.RuntimeService/{sys.argv[2]} HTTP/1.1\\r\\nhost: a\\r\\n"
head += f"content-type: application/json\\r\\ncontent-length: {len(body)}\\r\\n\\r\\n"
sock.sendall(head.encode() + body)
"""


def test_who_hangs_up(client: Client, scow_run: Path) -> None:
    """H6: the call goes on to its end; what it made is there, or is nowhere, under its name."""
    import json

    def hang_up(method: str, request: dict[str, Any]) -> None:
        argv = [sys.executable, "-c", HANG_UP, scow_run / "scow.sock", method, json.dumps(request)]
        subprocess.run(argv, check=True, timeout=30)

    hang_up("RunPodSandbox", {"config": {"metadata": {**META, "name": "left"}}})
    [found] = wait_for(lambda: list(client.call("ListPodSandbox").items))
    with pytest.raises(ScowError, match="has it"):
        client.call("RunPodSandbox", {"config": {"metadata": {**META, "name": "left"}}})
    config = {"metadata": {"name": "c"}, "image": {"image": "busybox"}, "command": SLEEP}
    hang_up("CreateContainer", {"podSandboxId": found.id, "config": config})
    [made] = wait_for(lambda: list(client.call("ListContainers").containers))
    hang_up("StartContainer", {"containerId": made.id})
    started = {"id": made.id, "state": {"state": "CONTAINER_RUNNING"}}
    wait_for(lambda: list(client.call("ListContainers", {"filter": started}).containers))
    hang_up("ExecSync", {"containerId": made.id, "cmd": ["sh", "-c", "sleep 0.2; touch /done"]})
    asked = {"container_id": made.id, "cmd": ["test", "-e", "/done"]}
    wait_for(lambda: [1] * (client.call("ExecSync", asked).exit_code == 0))


def wait_for(ask: Any) -> list[Any]:
    deadline = time.monotonic() + 30
    while not (found := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return list(found)


def test_what_is_no_size_and_who_comes_late(client: Client) -> None:
    """H8: sizes out of range do nothing, and an attachment to what has ended is refused at once."""
    pod_id = run_pod(client)
    container_id = run_container(client, pod_id, SLEEP)
    with open_exec(client, container_id, ["sh", "-c", "read x; stty size"], tty=True) as stream:
        stream.resize(100, 40)
        for width, height in ((0, 0), (70_000, 1), (-1, 5), (10**12, 10**12)):
            stream.resize(width, height)
        feeder = threading.Timer(0.2, stream.send_stdin, (b"\n",))
        feeder.start()
        assert b"40 100" in output_of(stream)
        feeder.join()
    ended = run_container(client, pod_id, ["true"], name="ended")
    wait_for(
        lambda: (
            [1]
            * (
                client.call("ContainerStatus", {"container_id": ended}).status.state
                == "CONTAINER_EXITED"
            )
        )
    )
    with pytest.raises(ScowError, match="it is exited"):
        client.call("Attach", {"container_id": ended, "stdout": True})
