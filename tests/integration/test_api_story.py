"""A pod of two real programs, Redis and a page that counts its views there, whose runtime dies while it counts."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fixtures.connect_client import generate, run_node
from fixtures.images import ImageFactory
from fixtures.pods import Cri
from fixtures.registry import free_port
from fixtures.serving import Serving, serving

pytestmark = pytest.mark.timeout(240)

# What both programs begin with. All that is asked of the service goes through these two clients.
CLIENT = """
import { createClient, ConnectError, Code } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { RuntimeService, ImageService, ContainerState, ContainerEventType, MountPropagation, NamespaceMode }
  from "./gen/cri_pb.js";

const [socketPath, text] = process.argv.slice(2);
const given = JSON.parse(text);
const transport = createConnectTransport({
  baseUrl: "http://scow", httpVersion: "1.1", useBinaryFormat: false, nodeOptions: { socketPath },
});
const runtime = createClient(RuntimeService, transport);
const images = createClient(ImageService, transport);
const found = {};
const sandboxConfig = {
  metadata: { name: "views", uid: "u-1", namespace: "story" },
  hostname: "views", logDirectory: given.logs, labels: { app: "views" },
  portMappings: [{ containerPort: 8000, hostPort: given.port, hostIp: "127.0.0.1" }],
  linux: { securityContext: { namespaceOptions: { pid: NamespaceMode.CONTAINER } } },
};
const run = async (podSandboxId, name, image, attempt, more) => {
  const { containerId } = await runtime.createContainer({ podSandboxId, sandboxConfig, config: {
    metadata: { name, attempt }, image: { image }, logPath: `${name}.${attempt}.log`,
    mounts: [{ containerPath: "/data", hostPath: given.volume, propagation: MountPropagation.PROPAGATION_PRIVATE }],
    ...more,
  } });
  await runtime.startContainer({ containerId });
  return containerId;
};
const redis = (podSandboxId, attempt) =>
  run(podSandboxId, "redis", given.redis, attempt, { args: ["redis-server", "--appendonly", "yes"] });
const output = async (containerId, ...cmd) => {
  const { stdout, stderr, exitCode } = await runtime.execSync({ containerId, cmd, timeout: 20n });
  const [out, err] = [stdout, stderr].map(bytes => new TextDecoder().decode(bytes).trim());
  return exitCode === 0 ? out : `${cmd.join(" ")}: exit ${exitCode}: ${out}${err}`;
};
const status = async containerId => {
  const one = (await runtime.containerStatus({ containerId })).status;
  return { state: ContainerState[one.state], exitCode: one.exitCode, reason: one.reason, imageRef: one.imageRef,
           attempt: one.metadata.attempt, startedAt: String(one.startedAt), logPath: one.logPath };
};
const views = async address => {
  for (let left = 100; ; left--) {
    try {
      const answer = await fetch(`http://${address}/`);
      if (answer.ok) return Number(await answer.text());
    } catch (error) { if (!left) throw error; }
    if (!left) throw new Error("no Redis behind the page");
    await new Promise(done => setTimeout(done, 100));
  }
};
"""

BEGIN = """
found.images = {};
for (const name of ["redis", "counter"])
  found.images[name] = (await images.pullImage({ image: { image: given[name] } })).imageRef;
const { podSandboxId } = await runtime.runPodSandbox({ config: sandboxConfig });
found.pod = podSandboxId;
found.redis = await redis(podSandboxId, 0);
found.counter = await run(podSandboxId, "counter", given.counter, 0, {});
found.address = (await runtime.podSandboxStatus({ podSandboxId })).status.network.ip;
found.views = [await views(`${found.address}:8000`), await views(`127.0.0.1:${given.port}`)];
await output(found.counter, "sh", "-c", "echo by hand > /dev/shm/posix; ipcmk -M 12345");
found.statuses = { redis: await status(found.redis), counter: await status(found.counter) };
"""

GO_ON = """
const { pod, counter } = given.begun;
found.listed = (await runtime.listContainers({ filter: { podSandboxId: pod } })).containers
  .map(one => [one.metadata.name, one.id, ContainerState[one.state], one.imageRef]).sort();
found.statuses = { redis: await status(given.begun.redis), counter: await status(counter) };
found.views = await views(`${given.begun.address}:8000`);
found.stored = await output(given.begun.redis, "redis-cli", "get", "views");
found.shared = {
  posix: await output(given.begun.redis, "cat", "/dev/shm/posix"),
  sysv: await output(given.begun.redis, "awk", "{ print $4 }", "/proc/sysvipc/shm"),
  volume: await output(counter, "sh", "-c", "grep -c views /data/appendonlydir/*.incr.aof"),
  user: await output(given.begun.redis, "id", "-un"),
};
const events = [];
const watching = new AbortController();
const watched = (async () => {
  for await (const one of runtime.getContainerEvents({}, { signal: watching.signal }))
    events.push([one.containerId, ContainerEventType[one.containerEventType]]);
})().catch(() => {});
// Another Redis in place of the first: the count is in the volume.
await runtime.stopContainer({ containerId: given.begun.redis, timeout: 10n });
found.stopped = await status(given.begun.redis);
found.again = await redis(pod, 1);
await runtime.removeContainer({ containerId: given.begun.redis });
found.viewsAgain = await views(`127.0.0.1:${given.port}`);
await runtime.stopContainer({ containerId: counter, timeout: 10n });
found.counterStopped = await status(counter);
await runtime.stopPodSandbox({ podSandboxId: pod });
found.portClosed = await fetch(`http://127.0.0.1:${given.port}/`).then(() => false, () => true);
await runtime.removePodSandbox({ podSandboxId: pod });
for (const image of [given.redis, given.counter]) await images.removeImage({ image: { image } });
found.left = (await runtime.listPodSandbox({})).items.length + (await runtime.listContainers({})).containers.length
  + (await images.listImages({})).images.length;
await runtime.podSandboxStatus({ podSandboxId: pod })
  .catch(error => { found.gone = Code[ConnectError.from(error).code]; });
watching.abort();
await watched;
const names = { [pod]: "pod", [counter]: "counter", [given.begun.redis]: "redis", [found.again]: "again" };
found.events = {};
for (const [id, kind] of events) (found.events[names[id]] ??= []).push(kind.split("_")[1]);
"""

END = "console.log(JSON.stringify(found));\nprocess.exit(0);\n"


@dataclass
class Visitor:
    """Looks at the page again and again; `seen` are the numbers that it was shown."""

    url: str
    seen: list[int] = field(default_factory=list[int])
    failures: list[str] = field(default_factory=list[str])
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Visitor:
        self._thread = threading.Thread(target=self._visit)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _visit(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._stop.wait(0.02):
            try:
                with opener.open(self.url, timeout=10) as answer:
                    self.seen.append(int(answer.read()))
            except (OSError, ValueError) as error:
                self.failures.append(str(error))

    def wait_for_more(self, count: int = 10) -> None:
        """Until so many more views were counted."""
        wanted = len(self.seen) + count
        deadline = time.monotonic() + 20
        while len(self.seen) < wanted:
            assert time.monotonic() < deadline, (self.seen[-1:], self.failures[-1:])
            time.sleep(0.01)


@dataclass(frozen=True)
class Story:
    """The generated client in its directory, and what it is told."""

    directory: Path
    socket: Path
    given: dict[str, Any]

    def tell(self, part: str, **more: Any) -> dict[str, Any]:
        """Run a part of the story in the generated client; what that found."""
        text = json.dumps({**self.given, **more})
        program = CLIENT + part + END
        found: dict[str, Any] = json.loads(run_node(self.directory, program, self.socket, text))
        return found


@pytest.fixture
def environment(scow_root: Path, scow_run: Path) -> Iterator[dict[str, str]]:
    # The bridge of scow's own, whatever networks other programs have set up on this host.
    places = {"SCOW_ROOT": str(scow_root), "SCOW_RUN": str(scow_run)}
    yield {**os.environ, **places, "SCOW_CNI_CONFIG": "/nonexistent"}
    last = Cri(str(scow_root), str(scow_run))
    last.remove_all()
    last.close()
    assert last.service.check() == []


@pytest.fixture
def story(scow_run: Path, tmp_path: Path, images: ImageFactory) -> Story:
    directory, volume = tmp_path / "client", tmp_path / "volume"
    directory.mkdir()
    generate(directory)
    volume.mkdir()
    volume.chmod(0o1777)  # Redis is not root in its container
    given = {
        "redis": images.redis(),
        "counter": images.counter(),
        "logs": str(tmp_path / "logs"),
        "volume": str(volume),
        "port": free_port(),
    }
    return Story(directory, scow_run / "scow.sock", given)


def logged(path: Path) -> list[str]:
    """The lines of a log in CRI's format."""
    lines = path.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[0-9:.]+\S* std(out|err) F ", line) for line in lines)
    return [line.split(" ", 3)[3] for line in lines]


def kill(service: Serving) -> None:
    service.process.kill()
    assert service.process.wait(10) == -signal.SIGKILL


def test_page_views_are_counted_while_the_service_dies(
    environment: dict[str, str], story: Story, scow_root: Path, tmp_path: Path
) -> None:
    with serving(environment) as service:
        service.wait_for("stream URLs only")
        begun = story.tell(BEGIN)
        assert begun["views"] == [1, 2]
        with Visitor(f"http://{begun['address']}:8000/") as visitor:
            visitor.wait_for_more()
            kill(service)
            visitor.wait_for_more()
            with serving(environment) as again:
                again.wait_for("stream URLs only")
                visitor.wait_for_more()
                visitor.stop()
                found = story.tell(GO_ON, begun=begun)
                assert again.stop() == 0

    # Not one view was lost, and none failed.
    assert visitor.failures == []
    assert visitor.seen == list(range(3, 3 + len(visitor.seen)))
    last = visitor.seen[-1]
    assert (found["views"], found["stored"], found["viewsAgain"]) == (
        last + 1,
        str(last + 1),
        last + 2,
    )
    assert found["shared"] == {
        "posix": "by hand",
        "sysv": "size\n12345",
        "volume": str(last + 1),
        "user": "redis",
    }

    # What the service says of them is what it said before it died.
    assert found["statuses"] == begun["statuses"]
    assert {one["state"] for one in found["statuses"].values()} == {"CONTAINER_RUNNING"}
    assert found["listed"] == [
        [name, begun[name], "CONTAINER_RUNNING", begun["images"][name]]
        for name in ("counter", "redis")
    ]
    for name in ("stopped", "counterStopped"):
        one = found[name]
        assert (one["state"], one["exitCode"], one["reason"]) == (
            "CONTAINER_EXITED",
            0,
            "Completed",
        )
    assert found["gone"] == "NotFound"
    assert (found["left"], found["portClosed"]) == (0, True)
    ends = ["STOPPED", "DELETED"]
    assert found["events"] == {
        "redis": ends,
        "again": ["CREATED", "STARTED", *ends],
        "counter": ends,
        "pod": ends,
    }

    # The logs are the client's: whole, although the service was gone for a while.
    logs = tmp_path / "logs"
    assert logged(logs / "counter.0.log") == [f"view {n}" for n in range(1, last + 3)]
    # StopContainer leaves time for an end in order; StopPodSandbox, which ended the second, does not.
    first, second = ("\n".join(logged(logs / f"redis.{n}.log")) for n in range(2))
    assert re.search("Ready to accept connections.*bye bye", first, re.DOTALL)
    assert "Ready to accept connections" in second
    assert "bye bye" not in second
    places = ("containers", "names", "pods", "pod-names", "images/blobs/sha256", "layers")
    assert [path for name in places for path in (scow_root / name).glob("[!.]*")] == []
