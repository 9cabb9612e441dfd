"""Who pulls: each with storage of its own on a disk that was made for this one pull.

A puller gets a directory and gives a command line; what runs beside it (a daemon) is part of its price.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import peers
from runtimes import Failed

START_S = 30.0
FLOOR = "floor"
# Two layers at a time; what fails fails the whole.
_FLOOR = """
set -euo pipefail
export DISK=$1 TOOL=$2; shift 2
printf '%s\\n' "$@" | xargs -P2 -I@ bash -euo pipefail -c '
    into="$DISK/$(basename @)"; mkdir "$into"; curl -sf @ | $TOOL -dc | tar x -C "$into"'
"""


@dataclass
class Ready:
    """One pull, ready to go."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    daemons: Sequence[int] = ()


class Puller:
    """Something that can pull; `name` is how the tables call it."""

    name = ""

    @contextmanager
    def ready(self, disk: Path, reference: str, blobs: Sequence[str]) -> Iterator[Ready]:
        """The pull of `reference` (its layers are `blobs`, as URLs) with everything on `disk`."""
        yield Ready(self.command(disk, reference, blobs), self.environment(disk))

    def command(self, disk: Path, reference: str, blobs: Sequence[str]) -> list[str]:
        """For those without a daemon."""
        raise NotImplementedError

    def environment(self, disk: Path) -> dict[str, str]:
        """More variables."""
        return {"TMPDIR": os.fspath(disk)}


class Scow(Puller):
    """scow, as a user has it."""

    name = "scow"

    def __init__(self, venv: Path, run: Path) -> None:
        self.program = f"{venv}/bin/scow"
        self.run = run

    def command(self, disk: Path, reference: str, blobs: Sequence[str]) -> list[str]:
        """The whole command, with the start of its interpreter."""
        return [self.program, "pull", "-q", reference]

    def environment(self, disk: Path) -> dict[str, str]:
        """Its store on the disk."""
        return {"SCOW_ROOT": f"{disk}/scow", "SCOW_RUN": f"{self.run}/scow"}


class Floor(Puller):
    """fetch | decompress | tar x, by programs in C."""

    name = FLOOR

    def command(self, disk: Path, reference: str, blobs: Sequence[str]) -> list[str]:
        """By what the tag says of the compression."""
        tool = "zstd" if reference.endswith("-zstd") else "igzip"
        return ["bash", "-c", _FLOOR, "floor", os.fspath(disk), tool, *blobs]


class Skopeo(Puller):
    """skopeo copy to a directory: it unpacks nothing."""

    name = "skopeo (no unpack)"

    def command(self, disk: Path, reference: str, blobs: Sequence[str]) -> list[str]:
        """Copy."""
        words = ["skopeo", "copy", "-q", "--src-tls-verify=false"]
        return [*words, f"docker://{reference}", f"dir:{disk}/copy"]


class Podman(Puller):
    """podman without its defaults that it may not set here."""

    name = "podman"

    def __init__(self, run: Path) -> None:
        self.run = run

    def command(self, disk: Path, reference: str, blobs: Sequence[str]) -> list[str]:
        """Pull."""
        program = ["podman", "--root", f"{disk}/podman", "--runroot", f"{self.run}/podman"]
        program += ["--tmpdir", f"{self.run}/podman-tmp", "--storage-driver", "overlay"]
        return [*program, "pull", "-q", "--tls-verify=false", reference]


class Docker(Puller):
    """A daemon of our own, which leaves the host's network alone."""

    name = "docker"

    @contextmanager
    def ready(self, disk: Path, reference: str, blobs: Sequence[str]) -> Iterator[Ready]:
        """With the containerd that it starts for itself."""
        with tempfile.TemporaryDirectory(prefix="bench-docker.", dir="/tmp") as top:
            Path(top, "daemon.json").write_text(json.dumps({"features": {"buildkit": False}}))
            words = ["dockerd", "--config-file", f"{top}/daemon.json", "--pidfile", f"{top}/pid"]
            words += ["--data-root", f"{disk}/docker", "--exec-root", f"{top}/exec"]
            words += ["--host", f"unix://{top}/sock", "--oom-score-adjust", "0"]
            words += ["--storage-driver", "overlay2"]
            words += ["--bridge", "none", "--iptables=false", "--ip-masq=false"]
            client = ["docker", "--host", f"unix://{top}/sock"]
            environment = {"TMPDIR": os.fspath(disk), "DOCKER_CONFIG": f"{top}/cfg"}
            with daemon([*words, "--ip-forward=false"], [*client, "version"], top) as pid:
                yield Ready([*client, "pull", "-q", reference], environment, (pid,))


class Ctr(Puller):
    """A containerd of our own."""

    name = "ctr"

    @contextmanager
    def ready(self, disk: Path, reference: str, blobs: Sequence[str]) -> Iterator[Ready]:
        """Overlayfs snapshots, without the plugins that want more."""
        with tempfile.TemporaryDirectory(prefix="bench-ctr.", dir="/tmp") as top:
            Path(top, "config.toml").write_text(
                f'version = 2\nroot = "{disk}/containerd"\nstate = "{top}/state"\n'
                f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                f'[grpc]\naddress = "{top}/sock"\n[ttrpc]\naddress = "{top}/sock.ttrpc"\n'
            )
            client = ["ctr", "--address", f"{top}/sock"]
            words = ["containerd", "-c", f"{top}/config.toml"]
            with daemon(words, [*client, "version"], top) as pid:
                pull = [*client, "images", "pull", "--plain-http", reference]
                yield Ready(pull, {}, (pid,))


@contextmanager
def daemon(argv: Sequence[str], probe: Sequence[str], top: str) -> Iterator[int]:
    """Run a daemon until the block ends; it is ready when `probe` succeeds."""
    with open(f"{top}/log", "wb") as log:
        running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        end = time.monotonic() + START_S
        while subprocess.run(probe, capture_output=True, check=False).returncode != 0:
            if running.poll() is not None or time.monotonic() > end:
                last = Path(top, "log").read_text(errors="replace").strip().splitlines()[-1:]
                raise Failed(f"{argv[0]} does not start: {' '.join(last)}")
            time.sleep(0.1)
        yield running.pid
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def take_part(yard: peers.Yard, wanted: Sequence[str] | None) -> list[Puller]:
    """scow, the floor, and whoever is installed."""
    found: list[Puller] = [Scow(peers.install(yard), yard.run), Floor()]
    others = {
        "skopeo": Skopeo(),
        "podman": Podman(yard.run),
        "dockerd": Docker(),
        "containerd": Ctr(),
    }
    for program, one in others.items():
        is_wanted = wanted is None or one.name.split()[0] in wanted
        if is_wanted and shutil.which(program):
            found.append(one)
    return found
