"""Clients that nobody here wrote: one generated from CRI's proto (npm), curl, and schemathesis."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fixtures.api import ApiServer
from fixtures.connect_client import NODE_BIN, generate, run_node
from fixtures.serving import serving
from scow.cri.api.listeners import open_listener

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import { createClient, ConnectError, Code } from "@connectrpc/connect";
import { createConnectTransport, compressionGzip } from "@connectrpc/connect-node";
import { RuntimeService, ImageService } from "./gen/cri_pb.js";
import * as cri from "./gen/cri_pb.js";

const [socketPath] = process.argv.slice(2);
const transport = sendCompression => createConnectTransport({
  baseUrl: "http://scow", httpVersion: "1.1", useBinaryFormat: false,
  nodeOptions: { socketPath }, sendCompression, compressMinBytes: 0,
});
const runtime = createClient(RuntimeService, transport());
const images = createClient(ImageService, transport());
const squeezed = createClient(RuntimeService, transport(compressionGzip));
const found = {};
const failure = async call => {
  try { await call(); return "no error"; }
  catch (error) {
    const one = ConnectError.from(error);
    return [Code[one.code], one.rawMessage];
  }
};
const all = async stream => { const items = []; for await (const item of stream) items.push(item); return items; };

found.version = (await runtime.version({})).runtimeName;
const { status } = await runtime.containerStatus({ containerId: "x" });
found.createdAt = [typeof status.createdAt, String(status.createdAt)];
found.state = cri.ContainerState[status.state];
found.labels = status.labels;
found.propagation = cri.MountPropagation[status.mounts[0].propagation];
found.stdout = Array.from((await runtime.execSync({ containerId: "x", cmd: ["a", "b"] })).stdout);
found.exitCode = (await runtime.execSync({ containerId: "x", cmd: ["a", "b"] })).exitCode;
found.many = (await runtime.listContainers({ filter: { id: "300" } })).containers.length;
found.squeezed = (await squeezed.listContainers({ filter: { id: "300" } })).containers.length;
found.image = (await images.pullImage({ image: { image: "busybox" } })).imageRef;
found.noImage = (await images.imageStatus({ image: { image: "busybox" } })).image === undefined;
found.size = String((await images.listImages({})).images[0].size);
await runtime.runPodSandbox({ config: {
  metadata: { name: "web", uid: "u", namespace: "default", attempt: 3 },
  labels: { app: "web", "": "empty" },
  portMappings: [{ protocol: cri.Protocol.UDP, containerPort: 80, hostIp: "::" }, {}],
  linux: { securityContext: { runAsUser: { value: -1n }, supplementalGroups: [1n, 9007199254740993n],
           namespaceOptions: { network: cri.NamespaceMode.NODE } },
           resources: { cpuQuota: -1n, unified: { "memory.high": "max" } } },
} });
found.errors = {};
for (const id of ["not-found", "exists", "state", "invalid", "full", "bug"])
  found.errors[id] = await failure(() => runtime.containerStatus({ containerId: id }));
found.missing = await failure(() => runtime.checkpointPod({}));
found.late = await failure(() => runtime.stopContainer({ timeout: 2000n }, { timeoutMs: 200 }));
found.stream = (await all(runtime.streamContainers({ filter: { id: "5" } }))).length;
found.squeezedStream = (await all(squeezed.streamContainers({ filter: { id: "5" } }))).length;
found.broken = await failure(() => all(runtime.streamContainers({ filter: { id: "1", podSandboxId: "break" } })));
const abort = new AbortController();
found.events = [];
found.aborted = await failure(async () => {
  for await (const event of runtime.getContainerEvents({}, { signal: abort.signal })) {
    found.events.push([event.containerId, cri.ContainerEventType[event.containerEventType]]);
    if (found.events.length === 2) abort.abort();
  }
});
found.lateStream = await failure(() => all(runtime.getContainerEvents({}, { timeoutMs: 300 })));
console.log(JSON.stringify(found));
"""


@pytest.fixture
def generated(api: ApiServer, api_socket: Path, tmp_path: Path) -> dict[str, Any]:
    directory = tmp_path / "client"
    directory.mkdir()
    generate(directory)
    found: dict[str, Any] = json.loads(run_node(directory, PROGRAM, api_socket))
    return found


def test_generated_client(api: ApiServer, generated: dict[str, Any]) -> None:
    errors = generated.pop("errors")
    assert generated == {
        "version": "scow",
        "createdAt": ["bigint", str(2**60 + 1)],
        "state": "CONTAINER_RUNNING",
        "labels": {"a": "b"},
        "propagation": "PROPAGATION_BIDIRECTIONAL",
        "stdout": [0, 255, *b"out"],
        "exitCode": 2,
        "many": 300,
        "squeezed": 300,
        "image": "sha256:busybox",
        "noImage": True,
        "size": str(2**40),
        "missing": ["Unimplemented", "CheckpointPod is not offered by this service"],
        "late": generated["late"],
        "stream": 5,
        "squeezedStream": 5,
        "broken": ["NotFound", "the pod went away"],
        "events": [[f"c{n}", "CONTAINER_STARTED_EVENT"] for n in (1, 2)],
        "aborted": ["Canceled", generated["aborted"][1]],
        "lateStream": generated["lateStream"],
    }
    assert generated["late"][0] == generated["lateStream"][0] == "DeadlineExceeded"
    assert {name: code for name, (code, _) in errors.items()} == {
        "not-found": "NotFound",
        "exists": "AlreadyExists",
        "state": "FailedPrecondition",
        "invalid": "InvalidArgument",
        "full": "ResourceExhausted",
        "bug": "Internal",
    }
    assert all(events.closed.wait(10) for events in api.runtime.events)
    request = next(call for call in api.runtime.calls if call.type_name == "RunPodSandboxRequest")
    assert request.config.to_dict() == {
        "metadata": {"name": "web", "uid": "u", "namespace": "default", "attempt": 3},
        "port_mappings": [{"protocol": "UDP", "container_port": 80, "host_ip": "::"}, {}],
        "labels": {"app": "web", "": "empty"},
        "linux": {
            "security_context": {
                "namespace_options": {"network": "NODE"},
                "run_as_user": {"value": -1},
                "supplemental_groups": [1, 9007199254740993],
            },
            "resources": {"cpu_quota": -1, "unified": {"memory.high": "max"}},
        },
    }


def test_curl(api: ApiServer, api_socket: Path) -> None:
    """As docs/api.md shows it."""
    done = subprocess.run(
        ["curl", "-sS", "--compressed", "--unix-socket", api_socket, "-H", "Content-Type: application/json",
         "-d", '{"filter": {"id": "100"}}', "http://scow/runtime.v1.RuntimeService/ListContainers"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(json.loads(done.stdout)["containers"]) == 100
    done = subprocess.run(
        ["curl", "-sS", "-w", "%{http_code}", "--unix-socket", api_socket, "-H", "Content-Type: application/json",
         "-d", '{"containerId": "not-found"}', "http://scow/runtime.v1.RuntimeService/ContainerStatus"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("}404")


def test_the_page_is_a_program(tmp_path: Path) -> None:
    """Its script parses, and its policy lets it do what it does."""
    page = (Path(__file__).resolve().parents[2] / "cri/api/page.html").read_text()
    ((_, script),) = re.findall(r"<script>()(.*?)</script>", page, re.DOTALL)
    path = tmp_path / "page.js"
    path.write_text(script)
    done = subprocess.run([NODE_BIN / "node", "--check", path], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=|\son[a-z]+=", page)


def schemathesis(url: str, exclude: str, directory: Path) -> None:
    """Make requests of /openapi.json: none may fail, and each answer must be as it describes.

    What schemathesis remembers for the next time stays in `directory`.
    """
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json",
         "--checks", checks, "--max-examples", "8", "--phases", "examples,fuzzing", "--no-color",
         "--exclude-operation-id-regex", exclude, "--suppress-health-check", "all",
         "--generation-deterministic", "--request-timeout", "20"],
        capture_output=True, text=True, check=False, timeout=280, cwd=directory,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def test_openapi_is_what_is_served(tmp_path: Path) -> None:
    server = ApiServer([open_listener("http://127.0.0.1:0", None)])
    try:
        schemathesis(server.listeners[0].url(), "Stream|Events|CheckpointPod", tmp_path)
    finally:
        server.stop()


def test_openapi_and_the_real_service(scow_root: Path, scow_run: Path, tmp_path: Path) -> None:
    """Without what would make something: there are no pods, no images, and no network is asked."""
    environment = {**os.environ, "SCOW_ROOT": str(scow_root), "SCOW_RUN": str(scow_run)}
    with serving(environment, "-l", "http://127.0.0.1:0") as service:
        url = service.wait_for("listening on http").split()[-1]
        schemathesis(url, "Stream|Events|Checkpoint|Restore|RunPodSandbox|PullImage", tmp_path)
        assert service.stop() == 0
    assert "Traceback" not in "".join(service.lines)
