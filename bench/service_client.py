"""The orchestrator of `make bench-service`: drives `scow serve` by scow's client, and times it.

Part of worker.py, run by the interpreter that scow is installed for; nothing else of bench/ is here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from scow.cri.client import Client, Unavailable

Request = dict[str, Any]
IMAGE = "localhost/bench"
WAIT_S = 30.0
# What a kubelet asks for: each container has its own PID namespace, and the default profile.
SECURITY = {
    "namespace_options": {"pid": "CONTAINER"},
    "seccomp": {"profile_type": "RuntimeDefault"},
}


class Orchestrator:
    """Makes pods as a kubelet does: a log directory for each, and a log for each container."""

    def __init__(self, address: str, logs: str) -> None:
        self._address = address
        self._logs = logs
        self._client = Client(address)
        self._count = 0
        self._held = ""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                self._client.text("/healthz")
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def handle(self, request: Request) -> Request:
        """Do what the request says; `ns` is how long it took."""
        actions: dict[str, Callable[[Request], Request]] = {
            "pod": self._pod,
            "series": self._series,
            "burst": self._burst,
            "hold": self._hold,
            "exec": self._exec,
            "list": self._list,
            "drop": self._drop,
        }
        return actions[request["do"]](request)

    def _config(self) -> dict[str, Any]:
        self._count += 1
        name = f"bench-{self._count}"
        return {
            "metadata": {"name": name, "uid": str(os.getpid()), "namespace": "bench"},
            "log_directory": f"{self._logs}/{name}",
            "linux": {"security_context": SECURITY},
        }

    def _container(self, client: Client, pod: str, number: int, config: dict[str, Any]) -> str:
        container = {
            "metadata": {"name": f"c{number}"},
            "image": {"image": IMAGE},
            "command": ["sleep", "3600"],
            "log_path": f"c{number}.log",
            "linux": {"security_context": SECURITY},
        }
        asked = {"pod_sandbox_id": pod, "config": container, "sandbox_config": config}
        return str(client.call("CreateContainer", asked).container_id)

    def _life(self, client: Client, config: dict[str, Any]) -> tuple[str, list[int]]:
        """A pod with one running container: its id, and the times of the three calls."""
        times = [time.perf_counter_ns()]
        pod = str(client.call("RunPodSandbox", {"config": config}).pod_sandbox_id)
        times.append(time.perf_counter_ns())
        container = self._container(client, pod, 0, config)
        times.append(time.perf_counter_ns())
        client.call("StartContainer", {"container_id": container})
        times.append(time.perf_counter_ns())
        return pod, [end - start for start, end in pairwise(times)]

    def _pod(self, _: Request) -> Request:
        pod, steps = self._life(self._client, self._config())
        self._remove(pod)
        return {"ns": sum(steps), "steps": steps}

    def _series(self, request: Request) -> Request:
        configs = [self._config() for _ in range(request["count"])]
        start = time.perf_counter_ns()
        pods = [self._life(self._client, config)[0] for config in configs]
        duration = time.perf_counter_ns() - start
        self._remove(*pods)
        return {"ns": duration}

    def _burst(self, request: Request) -> Request:
        configs = [self._config() for _ in range(request["count"])]

        def one(config: dict[str, Any]) -> str:
            with Client(self._address) as client:
                return self._life(client, config)[0]

        start = time.perf_counter_ns()
        with ThreadPoolExecutor(len(configs)) as pool:
            pods = list(pool.map(one, configs))
        duration = time.perf_counter_ns() - start
        self._remove(*pods)
        return {"ns": duration}

    def _hold(self, request: Request) -> Request:
        """Running containers that stay: so many pods, with so many each."""
        for _ in range(request["pods"]):
            config = self._config()
            pod = str(self._client.call("RunPodSandbox", {"config": config}).pod_sandbox_id)
            for number in range(request["each"]):
                self._held = self._container(self._client, pod, number, config)
                self._client.call("StartContainer", {"container_id": self._held})
        return {"ns": 0}

    def _exec(self, _: Request) -> Request:
        asked = {"container_id": self._held, "cmd": ["true"], "timeout": 10}
        start = time.perf_counter_ns()
        done = self._client.call("ExecSync", asked)
        duration = time.perf_counter_ns() - start
        if done.exit_code != 0:
            raise RuntimeError(f"true ended with {done.exit_code}")
        return {"ns": duration}

    def _list(self, request: Request) -> Request:
        start = time.perf_counter_ns()
        found = self._client.call("ListContainers").containers
        duration = time.perf_counter_ns() - start
        running = [one for one in found if one.state == "CONTAINER_RUNNING"]
        if len(running) != request["count"]:
            raise RuntimeError(f"{len(running)} containers run, not {request['count']}")
        return {"ns": duration}

    def _drop(self, _: Request) -> Request:
        self._remove(*(pod.id for pod in self._client.call("ListPodSandbox").items))
        return {"ns": 0}

    def _remove(self, *pods: str) -> None:
        for pod in pods:
            self._client.call("StopPodSandbox", {"pod_sandbox_id": pod})
            self._client.call("RemovePodSandbox", {"pod_sandbox_id": pod})
