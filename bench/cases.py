"""What is measured: the cases of the issue's section on speed, each over every runtime that can.

Samples of the runtimes are taken in turn, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runtimes import WEB, Failed, Runtime

PORT = 18480
SERVE = ("sh", "-c", "echo afloat > /tmp/index.html; exec httpd -f -p 80 -h /tmp")
SLEEP = ("sleep", "3600")
LOAD_S = 3


@dataclass
class Result:
    """Samples per runtime, and what the aim says about them."""

    title: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    errors: dict[str, str] = field(default_factory=dict[str, str])
    aims: list[tuple[str, bool | None]] = field(default_factory=list[tuple[str, bool | None]])
    tail: bool = False  # whether the slow end of the samples is of interest, too

    def median(self, name: str) -> float | None:
        """The middle of a runtime's samples."""
        return statistics.median(self.samples[name]) if self.samples.get(name) else None

    def quantile(self, name: str, part: float) -> float | None:
        """The smallest sample that so large a part of a runtime's samples does not exceed."""
        samples = sorted(self.samples.get(name, []))
        return samples[math.ceil(part * len(samples)) - 1] if samples else None

    def aim_at_most(self, who: str, limit: float, part: float | None = None) -> None:
        """The median, or another quantile, is at most a figure."""
        value = self.median(who) if part is None else self.quantile(who, part)
        text = f"{who} at most {limit:g} {self.unit}"
        if part is not None:
            text += f" (p{100 * part:g})"
        self.aims.append((text, None if value is None else value <= limit))

    def aim_against(self, who: str, peer: str, factor: float = 1.0) -> None:
        """The median is at most a multiple of a peer's in the same run."""
        value, other = self.median(who), self.median(peer)
        text = f"{who} at most {factor:g} x {peer}"
        if value is None or other is None:
            self.aims.append((f"{text} (not measured)", None))
        else:
            self.aims.append(
                (f"{text}: {value:.1f} of {factor * other:.1f}", value <= factor * other)
            )


def interleave(
    result: Result,
    rounds: int,
    actions: Mapping[str, Callable[[], float | list[float]]],
    *,
    warm_up: bool = True,
) -> Result:
    """Take samples in turn, beginning with another one each round; the first round only warms up."""
    names = list(actions)
    for number in range(0 if warm_up else 1, rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if name in result.errors:
                continue
            try:
                sample = actions[name]()
            except Failed as error:
                result.errors[name] = str(error)
                continue
            if number:
                more = sample if isinstance(sample, list) else [sample]
                result.samples.setdefault(name, []).extend(more)
    return result


class Cases:
    """All cases over one set of runtimes."""

    def __init__(self, runtimes: list[Runtime], rounds: int, containers: int) -> None:
        self.runtimes = runtimes
        self.rounds = rounds
        self.containers = containers

    def engines(self, network: str = "none") -> list[Runtime]:
        """Runtimes with a command line for whole containers, and this network."""
        return [
            one for one in self.runtimes if one.program and network in one.networks and one.monitor
        ]

    def lifecycle(self) -> Result:
        """Create, start, wait, remove; seccomp and limits on, no network."""
        result = Result("One container's life: static `true`, no network, seccomp and limits", "ms")
        actions: dict[str, Callable[[], float]] = {}
        for one in self.runtimes:
            if one.name == "scow service":
                actions[one.name] = lambda one=one: one.worker.ask()
            elif not one.networks:
                actions[one.name] = lambda one=one: one.call(one.run("none"))
        interleave(result, self.rounds, actions)
        result.aim_at_most("scow service", 7)
        return result

    def whole_run(self, network: str) -> Result:
        """`run --rm` as a process."""
        result = Result(f"`run --rm --network {network} IMAGE true`, the whole process", "ms")
        actions = {
            one.name: lambda one=one: one.call(one.run(network, "true"))
            for one in self.engines(network)
        }
        interleave(result, self.rounds, actions)
        result.aim_against("scow", "podman", 0.75 if network == "none" else 0.5)
        for peer in ("ctr", "docker") if network == "none" else ("docker",):
            result.aim_against("scow", peer)
        return result

    def execute(self) -> Result:
        """`exec ID true`."""
        result = Result("`exec ID true`", "ms")
        with self.started(result, "bench-exec", "none", *SLEEP) as running:
            actions = {
                one.name: lambda one=one: one.call(one.execute("bench-exec", "true"))
                for one in running
            }
            interleave(result, self.rounds, actions)
        result.aim_against("scow", "docker")
        result.aim_at_most("scow", 64)
        return result

    def many(self) -> list[Result]:
        """With many containers running: `ps`, and what each one's monitor takes."""
        listing = Result(f"`ps` with {self.containers} containers", "ms")
        memory = Result(f"A monitor's memory with {self.containers} running", "KB PSS")
        names = [f"bench-{number}" for number in range(self.containers)]
        running: list[Runtime] = []
        for one in self.engines():
            try:
                for name in names:
                    one.call(one.start(name, "none", *SLEEP))
            except Failed as error:
                listing.errors[one.name] = str(error)
            running.append(one)
            pss = proportional_kb(one.monitor)
            if pss:
                memory.samples[one.name] = pss
        actions = {one.name: lambda one=one: one.call(one.list()) for one in running}
        interleave(listing, self.rounds, actions)
        for one in running:
            forget(one, *names)
        listing.aim_against("scow", "podman")
        listing.aim_at_most("scow", 60)
        memory.aim_at_most("scow", 150)
        return [listing, memory]

    def first_answer(self) -> Result:
        """`run -d -p` to the first HTTP 200."""
        result = Result("`run -d -p` to the first HTTP 200", "ms")

        def once(one: Runtime) -> float:
            command = one.start("bench-web", "bridge", *SERVE, flags=publish())
            try:
                return one.call(command, http=["127.0.0.1", PORT])
            finally:
                forget(one, "bench-web")

        actions = {one.name: lambda one=one: once(one) for one in self.engines("bridge")}
        interleave(result, max(3, self.rounds // 2), actions)
        result.aim_against("scow", "podman")
        result.aim_at_most("scow", 137)
        return result

    def requests(self) -> Result:
        """Requests per second by the published port, and straight to the container's address."""
        result = Result("Requests per second from nginx", "/s")
        actions: dict[str, Callable[[], float]] = {}
        running: list[Runtime] = []
        for number, one in enumerate(self.engines("bridge"), start=1):
            port = PORT + number
            try:
                flags = ("-p", f"127.0.0.1:{port}:80")
                one.call(one.start("bench-load", "bridge", image=WEB, flags=flags))
                running.append(one)
                address = one.address("bench-load")
            except Failed as error:
                result.errors[one.name] = str(error)
                continue
            for name, url in (("by the port", f"127.0.0.1:{port}"), ("without it", address)):
                actions[f"{one.name} {name}"] = lambda url=url: load(f"http://{url}/")
        interleave(result, 3, actions)
        for one in running:
            forget(one, "bench-load")
        port_rate, straight = result.median("scow by the port"), result.median("scow without it")
        met = None if not port_rate or not straight else port_rate >= 0.95 * straight
        result.aims.append(("scow by the port at least 95 % of without it", met))
        return result

    @contextmanager
    def started(
        self, result: Result, name: str, network: str, *command: str
    ) -> Iterator[list[Runtime]]:
        """A running container of each runtime that can."""
        running: list[Runtime] = []
        try:
            for one in self.engines(network):
                try:
                    one.call(one.start(name, network, *command))
                    running.append(one)
                except Failed as error:
                    result.errors[one.name] = str(error)
            yield running
        finally:
            for one in running:
                forget(one, name)


def publish() -> tuple[str, ...]:
    """The flags of a published port."""
    return ("-p", f"127.0.0.1:{PORT}:80")


def forget(one: Runtime, *names: str) -> None:
    """Remove containers; one that never came to be is gone already."""
    try:
        one.remove(*names)
    except Failed as error:
        print(f"bench: {one.name}: cannot remove: {error}")


def load(url: str) -> float:
    """Requests per second by wrk, on connections of their own."""
    deadline = time.monotonic() + 5
    while True:
        done = subprocess.run(
            ["wrk", "-t1", "-c16", f"-d{LOAD_S}s", url], capture_output=True, text=True, check=False
        )
        found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        if found and float(found[1]) > 0:
            return float(found[1])
        if time.monotonic() > deadline:
            raise Failed(f"wrk {url}: {done.stderr.strip() or done.stdout.strip()}")


def proportional_kb(comm: str) -> list[float]:
    """Proportional set sizes of all processes of a name."""
    found: list[float] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "comm").read_text().strip() == comm[:15]:
                text = (place / "smaps_rollup").read_text()
                pss = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
                if pss:
                    found.append(float(pss[1]))
        except OSError:
            continue  # it has ended
    return found
