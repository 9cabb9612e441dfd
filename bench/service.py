"""`make bench-service`: `scow serve`, driven by its client, beside ctr, podman and docker.

The nearest same thing of theirs: `run -d` of one container with a network of its own (ctr: without a
bridge), `exec`, and the list of what runs. Samples are taken in turn; only ratios within one page count.
It starts the daemons that it needs, apart from the host's, and leaves nothing (apart.py).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import apart  # noqa: E402  # beside this script
import peers  # noqa: E402
import report  # noqa: E402
from cases import SLEEP, Result, forget, interleave  # noqa: E402
from runtimes import SMALL, Failed, Runtime, Worker  # noqa: E402

SERVICE = "scow serve"
CASES = ("pod", "series", "burst", "exec", "many")
STEPS = ("RunPodSandbox", "CreateContainer", "StartContainer")
TICK = os.sysconf("SC_CLK_TCK")
# The counts that the aims are about.
SERIES, BURST, MANY, EACH = 100, 20, 500, 10


@dataclass
class Chosen:
    """How much is measured."""

    rounds: int
    per_round: int  # samples of ours that a round takes: p99 wants a hundred
    repeats: int  # of what starts many
    series: int  # of what starts very many
    peer_series: int
    peer_containers: int
    idle_s: float


LONG = Chosen(25, 4, 3, 2, SERIES, 100, 30)
SHORT = Chosen(3, 4, 1, 1, 10, 10, 5)


@dataclass
class Bench:
    """The service, who drives it, and the peers."""

    driver: Worker
    pid: int
    peers: list[Runtime]
    chosen: Chosen

    def pod(self) -> list[Result]:
        """One pod with one container, whole and by its calls."""
        whole = Result("A pod with its own network and one running container", "ms", tail=True)
        calls = Result("The calls of that", "ms", tail=True)

        def ours() -> list[float]:
            samples: list[float] = []
            for _ in range(self.chosen.per_round):
                answer = self.driver.answer(do="pod")
                samples.append(answer["ns"] / 1e6)
                for name, step in zip(STEPS, answer["steps"], strict=True):
                    calls.samples.setdefault(name, []).append(step / 1e6)
            return samples

        actions: dict[str, Callable[[], float | list[float]]] = {SERVICE: ours}
        for one in self.peers:
            actions[one.name] = lambda one=one: sum(start(one, 1))
        interleave(whole, self.chosen.rounds, actions)
        for samples in calls.samples.values():
            del samples[: self.chosen.per_round]  # the round that warms up
        whole.aim_at_most(SERVICE, 15)
        whole.aim_at_most(SERVICE, 40, 0.99)
        return [whole, calls]

    def series(self) -> list[Result]:
        """Many, one after the other."""
        result = Result(f"{SERIES} pods, one after the other", "ms")
        actions = {SERVICE: lambda: self.driver.ask(do="series", count=SERIES)}
        count = self.chosen.peer_series
        for one in self.peers:
            name = one.name if count == SERIES else f"{one.name} ({count} of them)"
            actions[name] = lambda one=one: sum(start(one, count))
        interleave(result, self.chosen.series, actions, warm_up=False)
        result.aim_at_most(SERVICE, 2500)
        return [result]

    def burst(self) -> list[Result]:
        """Many at once."""
        result = Result(f"{BURST} pods at once", "ms")
        actions = {SERVICE: lambda: self.driver.ask(do="burst", count=BURST)}
        for one in self.peers:
            actions[one.name] = lambda one=one: start_at_once(one, BURST)
        interleave(result, self.chosen.repeats, actions)
        result.aim_at_most(SERVICE, 500)
        return [result]

    def execute(self) -> list[Result]:
        """A command in a running container."""
        result = Result("`true` in a running container (ExecSync)", "ms", tail=True)

        def ours() -> list[float]:
            return [self.driver.ask(do="exec") for _ in range(self.chosen.per_round)]

        actions: dict[str, Callable[[], float | list[float]]] = {SERVICE: ours}
        with self._holding(1, 1, 1, result) as running:
            for one in running:
                actions[one.name] = lambda one=one: one.call(one.execute("bench-0", "true"))
            interleave(result, self.chosen.rounds, actions)
        result.aim_at_most(SERVICE, 8)
        return [result]

    def many(self) -> list[Result]:
        """With many containers that run and do nothing: the list, and what the service takes."""
        few = self.chosen.peer_containers
        held = f"{MANY} running containers in {MANY // EACH} pods (peers: {few} containers)"
        listing = Result(f"The list of {held}", "ms", tail=True)
        memory = Result(f"Resident memory of the service with {held}", "MB")
        cpu = Result(f"Its processor time, idle, with {held}", "% of one")

        def ours() -> list[float]:
            asked = range(self.chosen.per_round)
            return [self.driver.ask(do="list", count=MANY) for _ in asked]

        actions: dict[str, Callable[[], float | list[float]]] = {SERVICE: ours}
        with self._holding(MANY // EACH, EACH, few, listing) as running:
            for one in running:
                actions[one.name] = lambda one=one: one.call(one.list())
            interleave(listing, self.chosen.rounds, actions)
            services = {SERVICE: [self.pid]}
            for one in running:
                if one.daemon:
                    services[f"{one.name} (its daemon)"] = apart.daemon_and_children(one.daemon)
            for name, pids in services.items():
                memory.samples[name] = [sum(map(resident_mb, pids))]
            for _ in range(self.chosen.repeats):
                for name, share in idle_shares(services, self.chosen.idle_s).items():
                    cpu.samples.setdefault(name, []).append(share)
        listing.aim_at_most(SERVICE, 10)
        memory.aim_at_most(SERVICE, 120)
        cpu.aim_at_most(SERVICE, 0.5)
        return [listing, memory, cpu]

    @contextmanager
    def _holding(self, pods: int, each: int, few: int, result: Result) -> Iterator[list[Runtime]]:
        """Containers that run: the service's in pods, and `few` of each peer that can."""
        running: list[Runtime] = []
        with ExitStack() as undo:
            undo.callback(self.driver.ask, do="drop")
            self.driver.ask(do="hold", pods=pods, each=each)
            for one in self.peers:
                begun: list[str] = []
                undo.callback(lambda one=one, begun=begun: forget(one, *begun))
                try:
                    for name in names(few):
                        begun.append(name)
                        one.call(one.start(name, one.networks[0], *SLEEP))
                    running.append(one)
                except Failed as error:
                    result.errors[one.name] = str(error)
            yield running


def names(count: int) -> list[str]:
    """What the peers' containers are called."""
    return [f"bench-{number}" for number in range(count)]


def start(one: Runtime, count: int) -> list[float]:
    """The times of so many starts, one after the other; they are removed then."""
    begun: list[str] = []
    try:
        samples: list[float] = []
        for name in names(count):
            begun.append(name)
            samples.append(one.call(one.start(name, one.networks[-1], *SLEEP)))
        return samples
    finally:
        forget(one, *begun)


def start_at_once(one: Runtime, count: int) -> float:
    """How long so many starts at the same time take; they are removed then."""
    commands = [one.start(name, one.networks[-1], *SLEEP) for name in names(count)]
    try:
        return one.worker.ask(argvs=commands, env=one.environment)
    finally:
        forget(one, *names(count))


def resident_mb(pid: int) -> float:
    """What a process has in memory."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def idle_shares(services: dict[str, list[int]], seconds: float) -> dict[str, float]:
    """The percentage of one processor that each takes while nobody asks for anything."""
    time.sleep(1)  # what came last is over
    before = {name: sum(map(_ticks, pids)) for name, pids in services.items()}
    start = time.monotonic()
    time.sleep(seconds)
    passed = (time.monotonic() - start) * TICK
    return {
        name: 100 * (sum(map(_ticks, pids)) - before[name]) / passed
        for name, pids in services.items()
    }


def _ticks(pid: int) -> int:
    # proc(5): utime and stime, of all threads, are the 14th and 15th field.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def serve(stack: ExitStack, yard: peers.Yard, venv: Path) -> tuple[Runtime, Worker, int]:
    """`scow serve` as a user has it: the command line beside it, who drives it, and its pid."""
    variables = {
        "SCOW_ROOT": f"{yard.work}/scow",
        "SCOW_RUN": f"{yard.run}/scow",
        "SCOW_CNI_CONFIG": "/nonexistent",  # scow's own bridge, whatever is set up on this host
    }
    command = Runtime(SERVICE, [f"{venv}/bin/scow"], yard.worker(), environment=variables)
    yard.load(command, "oci-archive", "load", "-i")
    log = stack.enter_context((yard.work / "serve.log").open("w"))
    process = subprocess.Popen(
        [*command.program, "serve"], env={**os.environ, **variables}, stderr=log
    )
    stack.callback(process.wait, 60)
    stack.callback(process.terminate)
    address = f"unix://{yard.run}/scow/scow.sock"
    python = f"{venv}/bin/python"
    driver = yard.worker(python=python, arguments=("client", address, f"{yard.work}/logs"))
    stack.callback(driver.ask, do="drop")
    return command, driver, process.pid


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="few rounds, to try it")
    parser.add_argument("--only", nargs="*", choices=CASES, default=CASES, help="some of the cases")
    parser.add_argument("--peers", nargs="*", help="some of the peers (default: all installed)")
    return parser.parse_args()


def take_part(yard: peers.Yard, wanted: list[str] | None) -> list[Runtime]:
    """The peers that are installed and answer."""
    makers = {"ctr": apart.ctr, "podman": apart.podman, "docker": apart.docker}
    found: list[Runtime] = []
    for name, make in makers.items():
        if wanted is None or name in wanted:
            try:
                found.append(make(yard))
            except (Failed, FileNotFoundError) as error:
                print(f"bench: {name} is left out: {error}")
    return found


def main() -> None:
    """Measure, write the page, print it."""
    given = arguments()
    chosen = SHORT if given.short else LONG
    apart.end_in_order()
    begun = time.monotonic()
    with ExitStack() as stack:
        enter = stack.enter_context
        work = Path(enter(tempfile.TemporaryDirectory(prefix="scow-bench.", dir="/var/tmp")))
        run = Path(enter(tempfile.TemporaryDirectory(prefix="scow-bench.", dir="/dev/shm")))
        yard = peers.Yard(stack, work, run, (SMALL,))
        head = report.machine()
        # What may want a network, while there is one.
        venv = peers.install(yard)
        for kind in ("oci-archive", "docker-archive"):
            yard.archives(kind)
        apart.enter()
        command, driver, pid = serve(stack, yard, venv)
        bench = Bench(driver, pid, take_part(yard, given.peers), chosen)
        head += report.versions([command, *bench.peers])
        head.append(f"- rounds: {chosen.rounds}, of {chosen.per_round} samples of the service each")
        steps = {
            "pod": bench.pod,
            "series": bench.series,
            "burst": bench.burst,
            "exec": bench.execute,
            "many": bench.many,
        }
        results: list[Result] = []
        for name in given.only:
            print(f"bench: {name}, at {time.monotonic() - begun:.0f} s", flush=True)
            try:
                results += steps[name]()
            except Failed as error:  # the other figures are worth a page
                results.append(Result(name, "ms", errors={SERVICE: str(error)}))
        head.append(f"- it took {time.monotonic() - begun:.0f} s")
    path = report.write(ROOT / "bench/results", head, results, suffix="-service")
    print(path.read_text())
    print(f"bench: written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
