"""The runtimes that are compared: how each is asked for the same thing.

A runtime that is not installed is left out; one that cannot do something says so in the results.
Storage of podman and scow is a directory of the run's own, and goes with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
# peers.md: crun 1.8 refuses a hybrid host unless it does not see the v2 mount. The directory itself
# is on a tmpfs that is shared with the host, so it is covered here and never removed.
PRIVATE = 'mount --bind "$(mktemp -d)" /sys/fs/cgroup/unified; exec "$@"'


class Failed(Exception):
    """A runtime could not do what it was asked."""


class Worker:
    """A process of bench/worker.py that runs one request at a time."""

    def __init__(self, *prefix: str, python: str = sys.executable, arguments: tuple[str, ...] = ()):
        self.process = subprocess.Popen(
            [*prefix, python, str(WORKER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> float:
        """Milliseconds that the request took."""
        return float(self.answer(**request)["ns"]) / 1e6

    def answer(self, **request: Any) -> dict[str, Any]:
        """All that the worker tells about a request."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed("the worker did not start") from None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line or '{"error": "the worker has ended"}')
        if "error" in answer:
            raise Failed(answer["error"].strip().splitlines()[-1])
        return answer

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it has ended already
            self.process.stdin.close()
        self.process.wait(10)


@dataclass
class Runtime:
    """One runtime with Docker's command line; the others override what differs."""

    name: str
    program: list[str]
    worker: Worker
    image: str = "bench"
    environment: dict[str, str] = field(default_factory=dict[str, str])
    monitor: str = ""  # what its process per container is called
    networks: tuple[str, ...] = ("none", "bridge")

    def call(self, argv: list[str], **more: Any) -> float:
        """Time one of this runtime's commands."""
        return self.worker.ask(argv=argv, env=self.environment, **more)

    def output(self, *argv: str) -> str:
        """What one of its commands prints; not timed."""
        answer = self.worker.answer(argv=[*self.program, *argv], env=self.environment)
        return str(answer["output"]).strip()

    def version(self) -> str:
        """Its name and version, for the record."""
        return self.output("--version").splitlines()[0]

    def run(self, network: str, *command: str, flags: tuple[str, ...] = ()) -> list[str]:
        """A container that ends and is removed."""
        words = ["run", "--rm", "--network", network, *flags, self.image, *command]
        return [*self.program, *words]

    def start(self, name: str, network: str, *command: str, flags: tuple[str, ...] = ()) -> None:
        """A container that stays."""
        self.call(self.start_command(name, network, *command, flags=flags))

    def start_command(
        self, name: str, network: str, *command: str, flags: tuple[str, ...] = ()
    ) -> list[str]:
        """The command of `start`, to be timed."""
        words = ["run", "-d", "--name", name, "--network", network, *flags, self.image]
        return [*self.program, *words, *command]

    def execute(self, name: str, *command: str) -> list[str]:
        """A command in a running container."""
        return [*self.program, "exec", name, *command]

    def list(self) -> list[str]:
        """All running containers."""
        return [*self.program, "ps"]

    def remove(self, *names: str) -> None:
        """Containers, running or not."""
        self.call([*self.program, "rm", "-f", *names])

    def address(self, name: str) -> str:
        """A container's address."""
        return self.output(
            "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
        )


class Ctr(Runtime):
    """containerd's own tool: no bridge, no names other than the id."""

    def version(self) -> str:
        return self.output("--version")

    def run(self, network: str, *command: str, flags: tuple[str, ...] = ()) -> list[str]:
        return [*self.program, "run", "--rm", self.image, "bench-true", *command]

    def start_command(
        self, name: str, network: str, *command: str, flags: tuple[str, ...] = ()
    ) -> list[str]:
        return [*self.program, "run", "-d", self.image, name, *command]

    def execute(self, name: str, *command: str) -> list[str]:
        return [*self.program, "tasks", "exec", "--exec-id", "bench", name, *command]

    def list(self) -> list[str]:
        return [*self.program, "tasks", "ls"]

    def remove(self, *names: str) -> None:
        for name in names:
            self.call([*self.program, "tasks", "rm", "-f", name])
            self.call([*self.program, "containers", "rm", name])


class Bundle(Runtime):
    """crun or runc: the OCI runtime alone, on a bundle with the same limits and seccomp."""

    bundle: Path

    def run(self, network: str, *command: str, flags: tuple[str, ...] = ()) -> list[str]:
        return [*self.program, "run", "--bundle", str(self.bundle), f"bench-{self.name}"]


def environment_python(directory: Path, wheel: Path) -> Path:
    """A virtual environment with scow as a user has it: an editable one starts slower."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    python = directory / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    subprocess.run([*pip, str(wheel)], check=True)
    return python


def scow(stack: ExitStack, work: Path, wheel: Path, layout: Path) -> list[Runtime]:
    """scow as a command and as a service in its own process."""
    python = environment_python(work / "venv", wheel)
    root, run = str(work / "scow"), str(work / "scow-run")
    settings = {"SCOW_ROOT": root, "SCOW_RUN": run}
    worker = Worker()
    stack.callback(worker.close)
    command = Runtime(
        "scow",
        [str(python.with_name("scow"))],
        worker,
        environment=settings,
        monitor="scow-monitor",
    )
    archive = work / "bench.tar"
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci:{layout}:latest", f"oci-archive:{archive}:bench:latest"],
        check=True,
    )
    command.output("load", "-i", str(archive))
    inside = Worker(python=str(python), arguments=("service", root, run))
    stack.callback(inside.close)
    service = Runtime("scow service", [], inside)
    return [service, command]


def podman(stack: ExitStack, work: Path, private: Worker, layout: Path) -> Runtime:
    """podman with storage of its own."""
    # What may always be set: without CAP_SYS_RESOURCE podman's own defaults may not.
    limits = ["nofile=1024:1024", "nproc=16384:16384"]
    runtime = "crun" if shutil.which("crun") else "runc"
    configuration = work / "containers.conf"
    configuration.write_text(
        f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n"
        f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "{runtime}"\n'
    )
    program = ["podman", "--root", f"{work}/podman", "--runroot", f"{work}/podman-run"]
    program += ["--tmpdir", f"{work}/podman-tmp", "--storage-driver", "overlay"]
    found = Runtime(
        "podman",
        program,
        private,
        image="localhost/bench",
        environment={"CONTAINERS_CONF": str(configuration)},
        monitor="conmon",
    )
    archive = work / "podman.tar"
    subprocess.run(
        [
            "skopeo",
            "copy",
            "-q",
            f"oci:{layout}:latest",
            f"docker-archive:{archive}:localhost/bench:latest",
        ],
        check=True,
    )
    found.call([*program, "load", "-q", "-i", str(archive)])
    stack.callback(lambda: found.call([*program, "rm", "-fa"]))
    return found


def docker(stack: ExitStack, work: Path, layout: Path) -> Runtime:
    """The daemon that runs on this machine."""
    worker = Worker()
    stack.callback(worker.close)
    found = Runtime("docker", ["docker"], worker, image="bench:latest", monitor="containerd-shim")
    found.output("info")
    archive = work / "docker.tar"
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci:{layout}:latest", f"docker-archive:{archive}:bench:latest"],
        check=True,
    )
    found.output("load", "-q", "-i", str(archive))
    stack.callback(lambda: found.output("rmi", "-f", "bench:latest"))
    return found


def ctr(stack: ExitStack, work: Path, layout: Path) -> Runtime:
    """The containerd that runs on this machine."""
    worker = Worker()
    stack.callback(worker.close)
    found = Ctr(
        "ctr",
        ["ctr"],
        worker,
        image="localhost/bench:latest",
        networks=("none",),
        monitor="containerd-shim",
    )
    archive = work / "ctr.tar"
    subprocess.run(
        [
            "skopeo",
            "copy",
            "-q",
            f"oci:{layout}:latest",
            f"oci-archive:{archive}:localhost/bench:latest",
        ],
        check=True,
    )
    found.output("images", "import", str(archive))
    stack.callback(lambda: found.output("images", "rm", "localhost/bench:latest"))
    return found


def bundle(name: str, work: Path, private: Worker, layout: Path) -> Runtime:
    """crun or runc on the bundle that podman would give it: its seccomp profile, our limits."""
    found = Bundle(name, [name, "--root", f"{work}/{name}-state"], private, networks=())
    found.bundle = work / "bundle"
    if not found.bundle.exists():
        subprocess.run(
            ["umoci", "unpack", "--image", f"{layout}:latest", str(found.bundle)],
            check=True,
            capture_output=True,
        )
        path = found.bundle / "config.json"
        path.write_text(json.dumps(bundle_config(json.loads(path.read_text()))))
    return found


def bundle_config(config: dict[str, Any]) -> dict[str, Any]:
    """umoci's configuration with the command, the limits, no network, and a seccomp profile."""
    config["process"]["args"] = ["/bin/true"]
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)  # cannot be raised without CAP_SYS_RESOURCE
    config["linux"]["resources"] = {
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 64},
        "devices": [{"allow": False, "access": "rwm"}],
    }
    config["linux"]["seccomp"] = oci_seccomp(set(config["process"]["capabilities"]["bounding"]))
    return config


def oci_seccomp(capabilities: set[str]) -> dict[str, Any]:
    """The distribution's default profile, in the form that the OCI specification gives it."""
    path = Path("/usr/share/containers/seccomp.json")
    if not path.exists():
        raise Failed(f"{path} is missing: golang-github-containers-common brings it")
    profile = json.loads(path.read_text())
    rules: list[dict[str, Any]] = []
    for rule in profile["syscalls"]:
        only, never = rule.get("includes") or {}, rule.get("excludes") or {}
        if "x86" not in "".join(only.get("arches", ["x86"])) and "amd64" not in only.get(
            "arches", ["amd64"]
        ):
            continue
        if (
            not set(only.get("caps", [])) <= capabilities
            or set(never.get("caps", [])) & capabilities
        ):
            continue
        if {"amd64", "x86"} & set(never.get("arches", [])):
            continue
        kept = {key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key)}
        rules.append(kept)
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 38),
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }


def private_worker(stack: ExitStack) -> Worker:
    """A worker for those who do not get along with a hybrid host."""
    prefix: tuple[str, ...] = ()
    if os.path.exists("/sys/fs/cgroup/unified/cgroup.procs"):
        prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", PRIVATE, "sh")
    worker = Worker(*prefix)
    stack.callback(worker.close)
    return worker
