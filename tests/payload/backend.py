"""A backend for scow as docs/api.md alone teaches to write one: nothing but Python's own library.

    backend.py SOCKET IMAGE LOGS

runs one pod through its life and prints what it saw, as JSON. It imports nothing of scow.
"""

import base64
import http.client
import json
import os
import socket
import struct
import sys
import threading
import time


class Connection(http.client.HTTPConnection):
    """HTTP over the unix socket; the host part of the URL is anything."""

    def __init__(self, path, timeout=60):
        super().__init__("scow", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Refused(Exception):
    """An answer that is an error: `code` is for programs."""

    def __init__(self, told):
        super().__init__(told["message"])
        self.code = told["code"]


class Backend:
    """What an orchestrator asks of a node."""

    def __init__(self, path):
        self.path = path
        self.seen = []
        self.heard = threading.Condition()

    def call(self, method, message):
        """One call on a connection of its own."""
        connection = Connection(self.path)
        try:
            headers = {"Content-Type": "application/json"}
            body = json.dumps(message)
            connection.request("POST", f"/runtime.v1.{method}", body, headers)
            answer = connection.getresponse()
            found = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise Refused(found)
        return found

    def listen(self):
        """Hear of events until the service hangs up; one list, for all who wait."""
        connection = Connection(self.path, timeout=None)
        headers = {"Content-Type": "application/connect+json"}
        body = b"\0" + struct.pack(">I", 2) + b"{}"
        connection.request("POST", "/runtime.v1.RuntimeService/GetContainerEvents", body, headers)
        answer = connection.getresponse()  # the service listens to us from here on
        threading.Thread(target=self._hear, args=(answer,), daemon=True).start()

    def _hear(self, answer):
        while head := answer.read(5):
            flags, size = struct.unpack(">BI", head)
            event = json.loads(answer.read(size))
            if flags & 2:
                return
            kind = event.get("containerEventType", "CONTAINER_CREATED_EVENT")
            with self.heard:
                self.seen.append((event["containerId"], kind))
                self.heard.notify_all()

    def wait_for(self, identity, kind):
        """Wait until an event has come."""
        with self.heard:
            assert self.heard.wait_for(lambda: (identity, kind) in self.seen, 30), (kind, self.seen)

    def exec(self, container, command, stdin):
        """Run a command with input: its output and its exit code."""
        asked = {"containerId": container, "cmd": command, "stdin": True, "stdout": True}
        url = self.call("RuntimeService/Exec", {**asked, "stderr": True})["url"]
        stream = WebSocket(self.path, "/" + url.split("/", 3)[3])
        stream.send(b"\0" + stdin)
        stream.send(b"\xff\0")  # no more input
        output = b""
        while (message := stream.receive()) is not None:
            if message[:1] in b"\1\2":
                output += message[1:]
            elif message[:1] == b"\3":
                end = json.loads(message[1:])
        if end["status"] == "Success":
            return output.decode(), 0
        if end["reason"] != "NonZeroExitCode":
            raise RuntimeError(end["message"])
        return output.decode(), int(end["details"]["causes"][0]["message"])


class WebSocket:
    """RFC 6455, as far as this takes it: whole binary messages."""

    def __init__(self, path, target):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(path)
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET {target} HTTP/1.1\r\nHost: scow\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n".encode()
        )
        self.file = self.sock.makefile("rb")
        status = self.file.readline()
        assert b" 101 " in status, status
        while self.file.readline() != b"\r\n":
            pass

    def send(self, data):
        """One message; a client's are masked."""
        assert len(data) < 126
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
        self.sock.sendall(bytes((0x82, 0x80 | len(data))) + mask + masked)

    def receive(self):
        """One message; None at the end."""
        whole = b""
        while True:
            first, size = self.file.read(2)
            if size == 126:
                (size,) = struct.unpack(">H", self.file.read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self.file.read(8))
            data = self.file.read(size)
            if first & 15 == 8:
                self.sock.close()
                return None
            if first & 15 < 8:
                whole += data
                if first & 128:
                    return whole


def main():
    path, image, logs = sys.argv[1:]
    node, runtime = Backend(path), "RuntimeService/"
    found = {"version": node.call(runtime + "Version", {})["runtimeName"]}
    node.listen()
    found["image"] = node.call("ImageService/PullImage", {"image": {"image": image}})["imageRef"]
    config = {
        "metadata": {"name": "web", "uid": "1", "namespace": "shop"},
        "labels": {"app": "web"},
        "logDirectory": logs,
        "linux": {"securityContext": {"namespaceOptions": {"pid": "CONTAINER"}}},
    }
    pod = node.call(runtime + "RunPodSandbox", {"config": config})["podSandboxId"]
    try:
        node.call(runtime + "RunPodSandbox", {"config": config})
    except Refused as error:  # as after a time-out: take the id from the list
        found["again"] = error.code
    listed = node.call(runtime + "ListPodSandbox", {"filter": {"labelSelector": {"app": "web"}}})
    assert [one["id"] for one in listed["items"]] == [pod]
    asked = {
        "metadata": {"name": "main"},
        "image": {"image": image},
        "command": [
            "sh",
            "-c",
            "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done",
        ],
        "logPath": "main.log",
        "linux": {"resources": {"memoryLimitInBytes": 64 << 20}},
    }
    created = node.call(runtime + "CreateContainer", {"podSandboxId": pod, "config": asked})
    one = {"containerId": created["containerId"]}
    node.call(runtime + "StartContainer", one)
    node.wait_for(one["containerId"], "CONTAINER_STARTED_EVENT")
    status = node.call(runtime + "PodSandboxStatus", {"podSandboxId": pod})["status"]
    found["address"] = status["network"]["ip"]
    found["exec"] = node.exec(one["containerId"], ["sh", "-c", "cat; exit 4"], b"through")
    node.call(runtime + "ContainerStats", one)
    time.sleep(0.2)
    stats = node.call(runtime + "ContainerStats", one)["stats"]
    found["memory"] = int(stats["memory"]["usageBytes"]["value"])
    found["cpu"] = int(stats["cpu"]["usageCoreNanoSeconds"]["value"])
    node.call(runtime + "StopContainer", {**one, "timeout": 10})
    node.wait_for(one["containerId"], "CONTAINER_STOPPED_EVENT")
    status = node.call(runtime + "ContainerStatus", one)["status"]
    found["end"] = [status["state"], status.get("exitCode", 0), status["reason"]]
    with open(f"{logs}/main.log") as log:
        found["log"] = [line.split(" ", 3)[1:] for line in log.read().splitlines()]
    node.call(runtime + "RemovePodSandbox", {"podSandboxId": pod})
    node.wait_for(pod, "CONTAINER_DELETED_EVENT")
    found["events"] = [kind.split("_")[1] for who, kind in node.seen if who == one["containerId"]]
    found["left"] = node.call(runtime + "ListPodSandbox", {}).get("items", [])
    print(json.dumps(found))


main()
