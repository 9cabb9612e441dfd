"""`make bench-images`: pulls by scow, podman, docker, ctr, skopeo, and the floor, from a loopback registry.

Every pull begins with an empty store on a fresh journaled ext4; those who pull take turns. Then
what only scow is asked: the second pull, one that was killed, two at once; and push beside skopeo.
Only ratios within one page count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import big  # noqa: E402  # beside this script
import peers  # noqa: E402
import report  # noqa: E402
from cases import Result, interleave  # noqa: E402
from measure import Sample, measure  # noqa: E402
from pullers import FLOOR, Puller, take_part  # noqa: E402
from relay import Relay  # noqa: E402
from runtimes import Failed  # noqa: E402

from fixtures.registry import Registry  # noqa: E402

CASES = (*big.TAGS, "again", "cut", "two", "push")
DISK_BYTES = 6 << 30
PEERS = ("podman", "docker", "ctr")
APART = "SCOW_BENCH_APART"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="samples of each (default: 3)")
    parser.add_argument("--only", nargs="*", choices=CASES, default=CASES, help="some of the cases")
    parser.add_argument("--peers", nargs="*", help="some of the peers (default: all installed)")
    return parser.parse_args()


class Disk:
    """A file that is used as a disk, again and again.

    Its blocks are written once before anything is measured: a virtual disk is several times slower
    where it was never written. And direct I/O, where the file's own file system has it: else each
    byte goes through the page cache twice, and a flush waits for the second time.
    """

    def __init__(self, file: Path, mount: Path) -> None:
        self._file = file
        self._mount = mount
        self.is_direct = True
        mount.mkdir()
        with open(file, "wb") as new:
            for _ in range(DISK_BYTES >> 20):
                new.write(bytes(1 << 20))
            os.fsync(new.fileno())

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """An empty ext4 with a journal, mounted."""
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        make = ["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "400000", "-E", options]
        device = self._attach()
        try:
            subprocess.run([*make, device], check=True)
            subprocess.run(["mount", "-o", "nodiscard", device, self._mount], check=True)
        finally:
            # losetup(8): what is mounted goes with its mount, even should we be killed
            self._losetup("--detach", device)
        os.sync()
        try:
            yield self._mount
        finally:
            # podman binds a directory of its store to itself
            subprocess.run(["umount", "--recursive", self._mount], check=True)
            self._wait()

    def _attach(self) -> str:
        words = ("--find", "--show", self._file)
        if self.is_direct:
            device = self._losetup("--direct-io=on", *words, may_fail=True)
            self.is_direct = bool(device)
        return device if self.is_direct else self._losetup(*words)

    def _wait(self) -> None:
        """Another process's copy of our mounts may hold it for a moment."""
        end = time.monotonic() + 30
        while self._losetup("--associated", self._file):
            if time.monotonic() > end:
                raise Failed(f"{self._mount} is still mounted somewhere")
            time.sleep(0.05)

    @staticmethod
    def _losetup(*words: str | Path, may_fail: bool = False) -> str:
        done = subprocess.run(
            ["losetup", *words], check=not may_fail, capture_output=True, text=True
        )
        return done.stdout.strip()


class Images:
    """The cases over one registry."""

    def __init__(self, work: Path, registry: Registry, pullers: list[Puller], rounds: int) -> None:
        self.work = work
        self._disk = Disk(work / "disk.img", work / "mnt")
        self.registry = registry
        self.pullers = pullers
        self.rounds = rounds
        self.scow = pullers[0]
        self.layers: dict[str, list[dict[str, Any]]] = {}

    def prepare(self, layout: Path) -> None:
        """Push every tag."""
        for tag in big.TAGS:
            self.registry.push(f"oci:{layout}:{tag}", f"bench:{tag}")
            accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
            manifest = json.loads(self.registry.get(f"/v2/bench/manifests/{tag}", **accept))
            self.layers[tag] = manifest["layers"]

    def describe(self) -> list[str]:
        """What is pulled, and onto what."""
        way = "direct" if self._disk.is_direct else "buffered"
        return [f"- disk: ext4 on a loop device, {way} I/O, blocks that were written before"] + [
            f"- {tag}: {len(layers)} layers, {sum(y['size'] for y in layers) / 1e6:.0f} MB compressed"
            for tag, layers in self.layers.items()
        ]

    def disk(self) -> Any:
        """A fresh disk, as a context."""
        return self._disk.fresh()

    def pull(self, one: Puller, tag: str) -> Sample:
        """One cold pull."""
        base = f"http://{self.registry.host}/v2/bench/blobs"
        blobs = [f"{base}/{layer['digest']}" for layer in self.layers[tag]]
        with (
            self.disk() as disk,
            one.ready(disk, f"{self.registry.host}/bench:{tag}", blobs) as ready,
        ):
            return measure(ready.argv, ready.environment, ready.daemons)

    def cold(self, tag: str) -> list[Result]:
        """Wall and processor time, and memory, of a cold pull."""
        wall = Result(f"{tag}: cold pull", "ms")
        cpu = Result(f"{tag}: user and system time, daemons too", "ms")
        memory = Result(f"{tag}: memory, all processes, peak of the proportional sum", "MB")

        def action(one: Puller) -> Callable[[], float]:
            def once() -> float:
                sample = self.pull(one, tag)
                cpu.samples.setdefault(one.name, []).append(sample.cpu_ms)
                memory.samples.setdefault(one.name, []).append(sample.peak_mb)
                return sample.wall_ms

            return once

        actions = {one.name: action(one) for one in self.pullers}
        interleave(wall, self.rounds, actions, warm_up=False)
        if tag.startswith("big"):
            wall.aim_against("scow", FLOOR, 1.5)
            memory.aim_at_most("scow", 100)
        for peer in PEERS:
            if peer in wall.samples:
                wall.aim_against("scow", peer, 1 / 3 if tag.startswith("big") else 0.5)
                cpu.aim_against("scow", peer, 0.5)
        return [wall, cpu, memory]

    # -- what only scow is asked ------------------------------------------------------------------

    def command(self, disk: Path, host: str, tag: str) -> subprocess.Popen[bytes]:
        """scow, pulling by way of the relay."""
        argv = self.scow.command(disk, f"{host}/bench:{tag}", ())
        environment = {**os.environ, **self.scow.environment(disk)}
        null = subprocess.DEVNULL
        return subprocess.Popen(argv, env=environment, stdin=null, stdout=null)

    def again(self, yard: peers.Yard, venv: Path) -> list[Result]:
        """The second pull of a tag, in the service's own process."""
        took = Result("A second pull of the same tag, in the service", "ms")
        asked = Result("A second pull of the same tag", "requests")
        with self.disk() as disk, Relay(self.registry.host) as relay:
            arguments = ("pull", f"{disk}/scow", f"{yard.run}/scow-again")
            worker = yard.worker(python=f"{venv}/bin/python", arguments=arguments)
            try:
                reference = f"{relay.host}/bench:small"
                worker.ask(reference=reference)
                for _ in range(20):
                    relay.reset()
                    took.samples.setdefault("scow", []).append(worker.ask(reference=reference))
                    asked.samples.setdefault("scow", []).append(relay.requests)
            finally:
                worker.close()
        took.aim_at_most("scow", 60)
        asked.aim_at_most("scow", 1)
        return [took, asked]

    def cut(self) -> Result:
        """Bytes of layers that pass when the first pull is killed at half of them."""
        result = Result("A pull that is killed at half, and the one after it: fetched", "% of it")
        total = sum(layer["size"] for layer in self.layers["big"])
        for _ in range(self.rounds):
            with self.disk() as disk, Relay(self.registry.host) as relay:
                first = self.command(disk, relay.host, "big")
                relay.on_bytes = lambda passed, first=first: (
                    first.kill() if passed > total // 2 else None
                )
                if first.wait(120) != -9:
                    raise Failed("the first pull was not killed")
                before = relay.blob_bytes
                relay.on_bytes = lambda passed: None
                status = self.command(disk, relay.host, "big").wait(120)
                if status != 0:
                    raise Failed(f"the second pull ended with {status}")
            more = relay.blob_bytes - before
            for name, count in (("before", before), ("after", more), ("both", before + more)):
                result.samples.setdefault(name, []).append(100 * count / total)
        # What lay in the sockets when the process was killed is lost.
        result.aim_at_most("both", 110)
        return result

    def two(self) -> Result:
        """Two pulls of one image at once, on one store."""
        result = Result("Two pulls of one image at once: fetched", "% of it")
        total = sum(layer["size"] for layer in self.layers["big"])
        for _ in range(self.rounds):
            with self.disk() as disk, Relay(self.registry.host) as relay:
                both = [self.command(disk, relay.host, "big") for _ in range(2)]
                statuses = {one.wait(120) for one in both}
                if statuses != {0}:
                    raise Failed("one of them failed")
                # The configuration is a blob, too, and small.
            result.samples.setdefault("scow", []).append(100 * relay.blob_bytes / total)
        result.aim_at_most("scow", 100.1)
        return result

    def push(self, layout: Path) -> list[Result]:
        """Push of the big image to an empty registry."""
        wall = Result("big: push to an empty registry", "ms")
        cpu = Result("big: push, user and system time", "ms")

        def once(one: str) -> float:
            with self.disk() as disk, Registry.start(disk) as target:
                name = f"{target.host}/bench:big"
                environment: dict[str, str] = {}
                argv = ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false"]
                argv += [f"oci:{layout}:big", f"docker://{name}"]
                if one == "scow":
                    environment = self.scow.environment(self.work)
                    argv = [self.scow.command(disk, "", ())[0], "push", "-q", name]
                    tag = [argv[0], "tag", f"{self.registry.host}/bench:big", name]
                    call(tag, environment)
                sample = measure(argv, environment)
            cpu.samples.setdefault(one, []).append(sample.cpu_ms)
            return sample.wall_ms

        program = self.scow.command(self.work, "", ())[0]
        actions = {"skopeo": lambda: once("skopeo")}
        if subprocess.run([program, "push", "--help"], capture_output=True, check=False).returncode:
            wall.errors["scow"] = "left out: this scow has no `push`"
        else:
            reference = f"{self.registry.host}/bench:big"
            call([program, "pull", "-q", reference], self.scow.environment(self.work))
            actions["scow"] = lambda: once("scow")
        interleave(wall, self.rounds, actions, warm_up=False)
        wall.aim_against("scow", "skopeo")
        return [wall, cpu]


def call(argv: list[str], environment: dict[str, str]) -> None:
    """A command that has to succeed."""
    done = subprocess.run(
        argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{' '.join(argv[:3])}: {done.stderr.strip()}")


def main() -> None:
    """Measure, write the page, print it."""
    chosen = arguments()
    if not os.environ.get(APART):
        # In a mount namespace of its own: what is mounted here ends with us, however that is.
        os.environ[APART] = "1"
        again = [sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *again])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and clean up
    results: list[Result] = []
    with ExitStack() as stack:
        enter = stack.enter_context
        work = Path(enter(tempfile.TemporaryDirectory(prefix="scow-bench.", dir="/var/tmp")))
        run = Path(enter(tempfile.TemporaryDirectory(prefix="scow-bench.", dir="/dev/shm")))
        print("bench: the images (the first time takes minutes)", flush=True)
        layout = big.ensure()
        yard = peers.Yard(stack, work, run)
        pullers = take_part(yard, chosen.peers)
        (work / "registry").mkdir()
        registry = enter(Registry.start(work / "registry"))
        images = Images(work, registry, pullers, chosen.rounds)
        images.prepare(layout)
        steps: dict[str, Callable[[], Result | list[Result]]] = {
            **{tag: lambda tag=tag: images.cold(tag) for tag in big.TAGS},
            "again": lambda: images.again(yard, work / "venv"),
            "cut": images.cut,
            "two": images.two,
            "push": lambda: images.push(layout),
        }
        for name in chosen.only:
            print(f"bench: {name}", flush=True)
            try:
                found = steps[name]()
            except Failed as error:
                found = Result(name, "", errors={"scow": str(error)})
            results += found if isinstance(found, list) else [found]
    head = [*report.machine(), *versions(), *images.describe(), f"- rounds: {chosen.rounds}"]
    path = report.write(ROOT / "bench/results", head, results, suffix="-images")
    print(path.read_text())
    print(f"bench: written to {path.relative_to(ROOT)}")


def versions() -> list[str]:
    """Of the programs that take part."""
    lines: list[str] = []
    for program in ("podman", "dockerd", "containerd", "skopeo", "igzip", "zstd"):
        if shutil.which(program):
            done = subprocess.run(
                [program, "--version"], capture_output=True, text=True, check=False
            )
            lines += [f"- {program}: {line}" for line in done.stdout.strip().splitlines()[:1]]
    return lines


if __name__ == "__main__":
    main()
