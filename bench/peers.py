"""Sets up each runtime with the same two images, in storage of the run's own where that is possible.

A runtime that is not installed is left out; one that cannot be set up says why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runtimes import SMALL, WEB, Bundle, Ctr, Failed, Podman, Runtime, Worker

from fixtures import checkout, images

ARCHITECTURE = {"amd64", "x86", "x32"}
LIMIT_BYTES = 64 << 20
LIMIT_PIDS = 64
# peers.md: crun 1.8 refuses a hybrid host unless it does not see the v2 mount. The directory itself
# is on a tmpfs that is shared with the host, so it is covered here and never removed.
_HIDE = 'mount --bind "$(mktemp -d)" /sys/fs/cgroup/unified; exec "$@"'
_UNSHARE = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _HIDE, "sh")
PRIVATE = _UNSHARE if os.path.exists("/sys/fs/cgroup/unified/cgroup.procs") else ()


@dataclass
class Yard:
    """Where the runtimes are set up; `stack` takes everything down again.

    `work` is a disk; `run` is memory, as /run is on every ordinary host (here it may be a disk).
    """

    stack: ExitStack
    work: Path
    run: Path
    images: tuple[str, ...] = (SMALL, WEB)

    def worker(self, *prefix: str, **more: Any) -> Worker:
        """A worker that ends with the run."""
        worker = Worker(*prefix, **more)
        self.stack.callback(worker.close)
        return worker

    @cached_property
    def private(self) -> Worker:
        """A worker for those who do not get along with a hybrid host."""
        return self.worker(*PRIVATE)

    def archives(self, kind: str) -> list[str]:
        """The images as files (skopeo's `oci-archive` or `docker-archive`)."""
        recipes = {SMALL: ("busybox", "latest"), WEB: ("debian", "nginx")}
        found: list[str] = []
        for name in self.images:
            recipe, tag = recipes[name]
            path = f"{self.work}/{name.replace('/', '-')}.{kind}"
            if not os.path.exists(path):
                source = f"oci:{images.ensure(recipe)}:{tag}"
                copy = ["skopeo", "copy", "-q", source, f"{kind}:{path}:{name}:latest"]
                subprocess.run(copy, check=True)
            found.append(path)
        return found

    def load(self, one: Runtime, kind: str, *words: str) -> Runtime:
        """Load the images by the runtime's own command."""
        for path in self.archives(kind):
            one.output(*words, path)
        return one


def install(yard: Yard) -> Path:
    """A virtual environment with scow in it, as a user has it."""
    venv = yard.work / "venv"
    # An editable install starts slower, by the finder that setuptools puts in its way.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", f"{venv}/bin/python", "install", "-q"]
    subprocess.run([*pip, checkout.build_wheel(yard.work)], check=True)
    return venv


def scow(yard: Yard) -> list[Runtime]:
    """scow as a service in its own process, and as a command."""
    venv = install(yard)
    root, run = f"{yard.work}/scow", f"{yard.run}/scow"
    command = Runtime(
        "scow",
        [f"{venv}/bin/scow"],
        yard.worker(),
        environment={"SCOW_ROOT": root, "SCOW_RUN": run},
        monitor="scow-monitor",
    )
    yard.load(command, "oci-archive", "load", "-i")
    inside = yard.worker(python=f"{venv}/bin/python", arguments=("service", root, run))
    return [Runtime("scow service", [], inside), command]


def podman(yard: Yard) -> Runtime:
    """podman with storage of its own."""
    configuration = yard.work / "containers.conf"
    configuration.write_text(
        "[containers]\n"
        # What may always be set: without CAP_SYS_RESOURCE podman's own defaults may not.
        'default_ulimits = ["nofile=1024:1024", "nproc=16384:16384"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f'runtime = "{"crun" if shutil.which("crun") else "runc"}"\n'
    )
    program = ["podman", "--root", f"{yard.work}/podman", "--runroot", f"{yard.run}/podman"]
    program += ["--tmpdir", f"{yard.run}/podman-tmp", "--storage-driver", "overlay"]
    environment = {"CONTAINERS_CONF": str(configuration)}
    found = Podman("podman", program, yard.private, environment=environment, monitor="conmon")
    yard.stack.callback(lambda: found.output("rm", "-fa", "-t", "0"))
    return yard.load(found, "docker-archive", "load", "-q", "-i")


def docker(yard: Yard) -> Runtime:
    """The daemon that runs on this machine."""
    found = Runtime("docker", ["docker"], yard.worker(), monitor="containerd-shim")
    found.output("info")
    yard.stack.callback(lambda: found.output("rmi", "-f", *yard.images))
    return yard.load(found, "docker-archive", "load", "-q", "-i")


def ctr(yard: Yard) -> Runtime:
    """The containerd that runs on this machine."""
    found = Ctr("ctr", ["ctr"], yard.worker(), networks=("none",), monitor="containerd-shim")
    found.output("version")
    loaded = [f"{name}:latest" for name in yard.images]
    yard.stack.callback(lambda: found.output("images", "rm", *loaded))
    return yard.load(found, "docker-archive", "images", "import")


def low_level(name: str, yard: Yard) -> Runtime:
    """crun or runc alone, on a bundle with the distribution's seccomp profile and our limits."""
    program = [name, "--root", f"{yard.run}/{name}-state"]
    found = Bundle(name, program, yard.private, networks=())
    found.bundle = bundle(yard)
    return found


def bundle(yard: Yard) -> Path:
    """The bundle that all low-level runtimes run; made once."""
    found = yard.work / "bundle"
    if not found.exists():
        source = f"{images.ensure('busybox')}:latest"
        unpack = ["umoci", "unpack", "--image", source, found]
        subprocess.run(unpack, check=True, capture_output=True)
        path = found / "config.json"
        path.write_text(json.dumps(bundle_config(json.loads(path.read_text()))))
    return found


def bundle_config(config: dict[str, Any]) -> dict[str, Any]:
    """umoci's configuration with the command, the limits, no network, and a seccomp profile."""
    config["process"]["args"] = ["/bin/true"]
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)  # cannot be raised without CAP_SYS_RESOURCE
    config["linux"]["resources"] = {
        "memory": {"limit": LIMIT_BYTES},
        "pids": {"limit": LIMIT_PIDS},
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
        fits = ARCHITECTURE & set(only.get("arches", ARCHITECTURE))
        fits = fits and set(only.get("caps", [])) <= capabilities
        spared = capabilities & set(never.get("caps", []))
        if not fits or spared or ARCHITECTURE & set(never.get("arches", [])):
            continue
        kept = {key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key)}
        rules.append(kept)
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 38),
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }


def take_part(stack: ExitStack, work: Path, run: Path, wanted: list[str] | None) -> list[Runtime]:
    """Every runtime that is installed, ready to run the images."""
    yard = Yard(stack, work, run)
    found = scow(yard)
    makers: dict[str, Callable[[], Runtime]] = {
        "crun": lambda: low_level("crun", yard),
        "runc": lambda: low_level("runc", yard),
        "podman": lambda: podman(yard),
        "docker": lambda: docker(yard),
        "ctr": lambda: ctr(yard),
    }
    for name, make in makers.items():
        if shutil.which(name) and (wanted is None or name in wanted):
            try:
                found.append(make())
            except Failed as error:
                print(f"bench: {name} is left out: {error}")
    return found
