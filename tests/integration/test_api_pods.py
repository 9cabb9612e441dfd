"""Pods over the wire: the real service, driven by our client, by the generated one, and killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.connect_client import generate, run_node
from fixtures.door import SLEEP, open_exec, output_of, run_container, run_pod
from fixtures.images import ImageFactory
from fixtures.pods import Cri
from fixtures.serving import Serving, serving
from scow.cri.client import Client
from scow.cri.client_streams import STDERR, STDOUT, PortStream, ProcessStream
from scow.native.errors import (
    DeadlineExceeded,
    InvalidArgument,
    InvalidState,
    NotFound,
    ScowError,
)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def environment(scow_root: Path, scow_run: Path, images: ImageFactory) -> Iterator[dict[str, str]]:
    first = Cri(str(scow_root), str(scow_run))
    first.load_busybox(images)
    first.close()
    # The bridge of scow's own, whatever networks other programs have set up on this host.
    places = {"SCOW_ROOT": str(scow_root), "SCOW_RUN": str(scow_run)}
    yield {**os.environ, **places, "SCOW_CNI_CONFIG": "/nonexistent"}
    last = Cri(str(scow_root), str(scow_run))
    last.remove_all()
    last.close()
    assert last.service.check() == []


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[Serving]:
    with serving(environment) as running:
        running.wait_for("stream URLs only")
        yield running


@pytest.fixture
def client(service: Serving, scow_run: Path) -> Iterator[Client]:
    with Client(f"unix://{scow_run}/scow.sock") as made:
        yield made


def test_a_pods_life(client: Client, tmp_path: Path) -> None:
    events: list[tuple[str, str]] = []

    def watch() -> None:
        with Client(client.address) as watcher, contextlib.suppress(DeadlineExceeded):
            for event in watcher.stream("GetContainerEvents", timeout_s=100):
                events.append((event.container_id, event.container_event_type))
                if event.container_id in mine and "DELETED" in event.container_event_type:
                    break

    mine: list[str] = []
    watching = threading.Thread(target=watch)
    watching.start()
    while not events:  # what was before the watcher came is told to nobody
        client.call("RemovePodSandbox", {"pod_sandbox_id": run_pod(client)})
    pod = run_pod(client, log_directory=str(tmp_path / "logs"), labels={"app": "web"})
    container = run_container(
        client, pod, ["sh", "-c", "echo hello; exec sleep 1000"], log_path="c.log"
    )
    mine.append(container)
    found = client.call(
        "ExecSync", {"container_id": container, "cmd": ["sh", "-c", "echo -n x; exit 3"]}
    )
    assert (found.stdout, found.exit_code) == (b"x", 3)
    with pytest.raises(DeadlineExceeded):
        client.call("ExecSync", {"container_id": container, "cmd": SLEEP, "timeout": 1})
    listed = client.call("ListContainers", {"filter": {"pod_sandbox_id": pod}}).containers
    assert [(c.id, c.state) for c in listed] == [(container, "CONTAINER_RUNNING")]
    client.call("StopContainer", {"container_id": container, "timeout": 0})
    status = client.call("ContainerStatus", {"container_id": container}).status
    assert (status.state, status.exit_code > 128) == ("CONTAINER_EXITED", True)
    log = (tmp_path / "logs/c.log").read_text()
    assert re.fullmatch(r"\S+ stdout F hello\n", log)
    for _ in range(2):
        client.call("StopPodSandbox", {"pod_sandbox_id": pod})
        client.call("RemovePodSandbox", {"pod_sandbox_id": pod})
    with pytest.raises(NotFound):
        client.call("PodSandboxStatus", {"pod_sandbox_id": pod})
    watching.join(60)
    assert not watching.is_alive()
    kinds = [kind.split("_")[1] for one, kind in events if one == container]
    assert kinds == [
        "CREATED", "STARTED", "STOPPED", "DELETED",
    ]  # fmt: skip


def test_streams(client: Client) -> None:
    pod = run_pod(client)
    container = run_container(client, pod, SLEEP)
    data = bytes(range(256)) * 2000
    with open_exec(client, container, ["cat"]) as stream:

        def feed() -> None:
            for start in range(0, len(data), 30_000):
                stream.send_stdin(data[start : start + 30_000])
            stream.close_stdin()

        feeder = threading.Thread(target=feed)
        feeder.start()
        assert output_of(stream) == data
        assert stream.exit_code == 0
        feeder.join()
    with open_exec(client, container, ["sh", "-c", "echo out; echo err >&2; exit 9"]) as stream:
        assert sorted(stream.output()) == [(STDOUT, b"out\n"), (STDERR, b"err\n")]
        assert stream.exit_code == 9
    with open_exec(client, container, ["sh", "-c", "read x; stty size; tty"], tty=True) as stream:
        stream.resize(132, 43)
        time.sleep(0.2)
        stream.send_stdin(b"\n")
        assert output_of(stream).split()[:2] == [b"43", b"132"]
    with (
        open_exec(client, container, ["nonesuch"]) as stream,
        pytest.raises(ScowError, match="nonesuch"),
    ):
        output_of(stream)
    with open_exec(client, container, ["true"]) as stream:  # nothing is lost of a quick end
        assert (output_of(stream), stream.exit_code) == (b"", 0)
    for _ in range(20):
        with open_exec(client, container, ["echo", "tail"]) as stream:
            assert (output_of(stream), stream.exit_code) == (b"tail\n", 0)
    with pytest.raises(InvalidArgument):
        client.call("Exec", {"container_id": container, "cmd": ["true"]})
    client.call("StopContainer", {"container_id": container, "timeout": 0})
    with pytest.raises(InvalidState):
        open_exec(client, container, ["true"])


def test_attach_and_port_forward(client: Client) -> None:
    pod = run_pod(client)
    cat = run_container(client, pod, ["cat"], name="cat", stdin=True, stdin_once=True)
    url = client.call(
        "Attach", {"container_id": cat, "stdin": True, "stdout": True, "stderr": True}
    ).url
    with ProcessStream(client, url) as stream:
        stream.send_stdin(b"through\n")
        stream.close_stdin()
        assert output_of(stream) == b"through\n"
        assert stream.exit_code == 0
    serve = "while :; do echo hello | nc -l -p 8080; done"
    run_container(client, pod, ["sh", "-c", serve], name="server")
    assert eventually(lambda: read_port(client, pod, 8080)) == b"hello\n"
    url = client.call("PortForward", {"pod_sandbox_id": pod, "port": [9]}).url
    with (
        PortStream(client, url) as port,
        pytest.raises(ScowError, match="cannot connect to port 9"),
    ):
        list(port.read())


def read_port(client: Client, pod: str, number: int) -> bytes:
    url = client.call("PortForward", {"pod_sandbox_id": pod, "port": [number]}).url
    with PortStream(client, url) as port:
        port.close_write()
        return b"".join(port.read())


def eventually(attempt: Callable[[], bytes]) -> bytes:
    """The server is one nc after the other: between two of them nobody listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return attempt()
        except ScowError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_metrics_of_containers(client: Client) -> None:
    pod = run_pod(client)
    container = run_container(client, pod, SLEEP)
    text = client.text("/metrics")
    assert re.search(r"^container_memory_usage_bytes\{.*\} [0-9]+$", text, re.MULTILINE)
    assert container in text or pod in text
    assert 'scow_api_calls_total{method="RunPodSandbox",code="ok"} 1' in text


PROGRAM = """
import { createClient, ConnectError, Code } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { RuntimeService, ImageService, ContainerState, PodSandboxState } from "./gen/cri_pb.js";

const [socketPath, logs] = process.argv.slice(2);
const transport = createConnectTransport({
  baseUrl: "http://scow", httpVersion: "1.1", useBinaryFormat: false, nodeOptions: { socketPath },
});
const runtime = createClient(RuntimeService, transport);
const images = createClient(ImageService, transport);
const text = bytes => new TextDecoder().decode(bytes);
const found = {};
const metadata = { name: "generated", uid: "u", namespace: "test" };
const config = { metadata, logDirectory: logs };
const { podSandboxId } = await runtime.runPodSandbox({ config });
found.image = Boolean((await images.imageStatus({ image: { image: "busybox" } })).image);
const start = async (name, command) => {
  const { containerId } = await runtime.createContainer({ podSandboxId, sandboxConfig: config, config: {
    metadata: { name }, image: { image: "busybox" }, command, logPath: name + ".log",
    envs: [{ key: "GREETING", value: new TextEncoder().encode("hello") }],
    linux: { resources: { memoryLimitInBytes: 67108864n } },
  } });
  await runtime.startContainer({ containerId });
  return containerId;
};
const server = await start("server", ["sh", "-c", "while :; do echo $GREETING | nc -l -p 8080; done"]);
const client = await start("client", ["sleep", "1000"]);
const asked = await runtime.execSync({ containerId: client, cmd: ["sh", "-c", "for i in $(seq 300); do nc 127.0.0.1 8080 && break; sleep 0.1; done"], timeout: 20n });
found.shared = text(asked.stdout);
found.states = (await runtime.listContainers({ filter: { podSandboxId } })).containers.map(c => ContainerState[c.state]);
const status = (await runtime.containerStatus({ containerId: client })).status;
found.limit = String(status.resources.linux.memoryLimitInBytes);
found.startedIsBig = status.startedAt > 1700000000000000000n;
let streamed = 0;
for await (const item of runtime.streamContainers({})) streamed += item.containers.length;
found.streamed = streamed;
await runtime.stopPodSandbox({ podSandboxId });
found.pod = PodSandboxState[(await runtime.podSandboxStatus({ podSandboxId })).status.state];
await runtime.removePodSandbox({ podSandboxId });
await runtime.removePodSandbox({ podSandboxId });
try { await runtime.podSandboxStatus({ podSandboxId }); } catch (error) { found.gone = Code[ConnectError.from(error).code]; }
console.log(JSON.stringify(found));
"""


def test_a_pod_by_the_generated_client(service: Serving, scow_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "client"
    directory.mkdir()
    generate(directory)
    found = json.loads(run_node(directory, PROGRAM, scow_run / "scow.sock", tmp_path / "logs"))
    assert found == {
        "image": True,
        "shared": "hello\n",
        "states": ["CONTAINER_RUNNING", "CONTAINER_RUNNING"],
        "limit": "67108864",
        "startedIsBig": True,
        "streamed": 2,
        "pod": "SANDBOX_NOTREADY",
        "gone": "NotFound",
    }


def test_a_backend_from_the_page_alone(
    client: Client, scow_run: Path, tmp_path: Path, images: ImageFactory
) -> None:
    """tests/payload/backend.py knows no more than docs/api.md tells."""
    program = Path(__file__).parents[1] / "payload/backend.py"
    argv = [sys.executable, "-I", "-S", program, scow_run / "scow.sock", images.busybox(), tmp_path]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"] == "scow"
    assert found["image"].startswith("sha256:")
    assert found["again"] == "already_exists"
    assert found["address"].startswith("10.")
    assert found["exec"] == ["through", 4]
    assert found["memory"] > 0
    assert found["cpu"] > 0
    assert found["end"] == ["CONTAINER_EXITED", 3, "Error"]
    assert found["log"] == [["stdout", "F", "hello"], ["stdout", "F", "bye"]]
    assert found["events"] == ["CREATED", "STARTED", "STOPPED", "DELETED"]
    assert found["left"] == []
