"""One process that runs and times commands, one at a time, as JSON lines on stdin and stdout.

It is small, so that starting a command from it costs little, and it can be put into another mount
namespace or another interpreter: with `service` it times the service in its own process, with `client`
it drives a service as an orchestrator does, with `pull` it pulls in its own process. It is run by that interpreter as a script, so it may
import nothing of bench/ but what needs nothing else of it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

Request = dict[str, Any]
HTTP_TIMEOUT_S = 20.0
HANG_S = 120  # a command that takes so long is given up
LIMIT_BYTES = 64 << 20
LIMIT_PIDS = 64


def spawn(argv: list[str], request: Request, output: int, errors: int) -> int:
    """Start a command of a request; stdin is empty."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, errors, 2),
    ]
    environment = {**os.environ, **request.get("env", {})}
    return os.posix_spawnp(argv[0], argv, environment, file_actions=actions)


def await_http(host: str, port: int, deadline: float) -> None:
    """Ask until the answer is 200. A packet that gets lost costs a new try, not TCP's second."""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=0.02) as connection:
                connection.settimeout(1)
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if b" 200 " in connection.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.0005)
    raise TimeoutError(f"no HTTP 200 from {host}:{port}")


def command(request: Request) -> Request:
    """Time a command until it has ended, or until `http` answers; tell what it printed.

    With `argvs` there are several at once, until the last has ended.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter_ns()
        commands = request["argvs"] if "argvs" in request else [request["argv"]]
        pids = [spawn(argv, request, output.fileno(), errors.fileno()) for argv in commands]
        if "http" in request:
            host, port = request["http"]
            await_http(host, port, time.monotonic() + HTTP_TIMEOUT_S)
            answered = time.perf_counter_ns()
        status = wait_for(pids)
        ended = time.perf_counter_ns()
        if status != 0:
            text = content(errors).strip()
            raise RuntimeError(text or f"status {os.waitstatus_to_exitcode(status)}")
        return {
            "ns": (answered if "http" in request else ended) - start,
            "output": content(output),
        }


def wait_for(pids: list[int]) -> int:
    """The worst status of commands; those that hang are killed."""

    def kill(*_: object) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.alarm(HANG_S)
    statuses: list[int] = []
    try:
        while pids:
            statuses.append(os.waitpid(pids[0], 0)[1])
            pids.pop(0)
        return max(statuses)
    finally:
        signal.alarm(0)


def content(stream: IO[bytes]) -> str:
    """What somebody else has written to a file that we hold."""
    stream.seek(0)
    return stream.read().decode(errors="replace")


def service_handler(root: str, run: str) -> Callable[[Request], Request]:
    """Create, start, wait and remove a container, in this process, with limits and seccomp.

    As `scow serve` does: who watches gives back what the container took, so no process is started for it.
    """
    from scow.cri.options import ContainerOptions, Limits, NamespaceMode, NetworkOptions
    from scow.cri.service import Service
    from scow.runtime.monitor import Exited

    service = Service(root, run)
    image = service.ensure_image("localhost/bench", "never")
    options = ContainerOptions(
        image_name="localhost/bench",
        command=("/bin/true",),
        limits=Limits(memory_bytes=LIMIT_BYTES, pids=LIMIT_PIDS),
        network=NetworkOptions(mode=NamespaceMode("none")),
    )

    def lifecycle(_: Request) -> Request:
        start = time.perf_counter_ns()
        container = service.create(image, options)
        connection = service.start_watched(container)
        with connection:
            while (event := connection.recv()) is not None and not isinstance(event, Exited):
                pass
        service.finish(container)
        service.remove(container)
        duration = time.perf_counter_ns() - start
        if event is None or event.exit_code != 0:
            raise RuntimeError(f"the container ended with {event}")
        return {"ns": duration}

    return lifecycle


def pull_handler(root: str, run: str) -> Callable[[Request], Request]:
    """Pull an image as the service does, in this process."""
    from scow.cri.service import Service

    service = Service(root, run)

    def pull(request: Request) -> Request:
        start = time.perf_counter_ns()
        service.images.pull(request["reference"])
        return {"ns": time.perf_counter_ns() - start}

    return pull


def main() -> None:
    """Answer each request with the time it took, or with what went wrong."""
    handle = command
    if sys.argv[1:2] == ["service"]:
        handle = service_handler(*sys.argv[2:4])
    elif sys.argv[1:2] == ["pull"]:
        handle = pull_handler(*sys.argv[2:4])
    elif sys.argv[1:2] == ["client"]:
        from service_client import Orchestrator

        handle = Orchestrator(*sys.argv[2:4]).handle
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as error:  # the other side decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
