"""`make bench-oci`: scow-oci, warm and cold, beside runc, crun, and crun as Debian's unstable has it.

The same bundle for all (busybox `true`, default seccomp profile, limits), interleaved, medians; each
command of a container's life by itself; and what memory they take. Only ratios within one run count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import memory  # noqa: E402  # beside this script
import peers  # noqa: E402
import report  # noqa: E402
import unstable  # noqa: E402
from cases import Result, interleave  # noqa: E402
from runtimes import Failed, Worker  # noqa: E402

WARM, COLD = "scow-oci", "scow-oci (cold)"
NEW = "crun (unstable)"
STEPS = ("create", "start", "state", "exec", "kill", "delete")


@dataclass
class Low:
    """One OCI runtime."""

    name: str
    program: list[str]
    worker: Worker
    environment: dict[str, str] = field(default_factory=dict[str, str])
    prefix: tuple[str, ...] = ()  # what the worker was started by

    def time(self, *words: str) -> float:
        """Milliseconds that one of its commands takes."""
        return self.worker.ask(argv=[*self.program, *words], env=self.environment)

    def output(self, *words: str) -> str:
        """What one of its commands prints."""
        answer = self.worker.answer(argv=[*self.program, *words], env=self.environment)
        return str(answer["output"])

    def outside(self) -> tuple[list[str], dict[str, str]]:
        """Its command line and environment without the worker."""
        if not self.prefix:
            return self.program, self.environment
        # after what makes the namespace, which has this machine's libraries
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return [*self.prefix, "env", *variables, *self.program], {}

    def version(self) -> str:
        """Its name and version."""
        return self.output("--version").splitlines()[0]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="samples of each (default: 25)")
    parser.add_argument("--no-unstable", action="store_true", help="fetch nothing")
    return parser.parse_args()


def take_part(stack: ExitStack, yard: peers.Yard, fetch: bool) -> list[Low]:
    """Those that are there."""
    front = f"{peers.install(yard)}/bin/scow-oci"
    state = f"{yard.run}/scow-oci"
    warm = {"SCOW_OCI_WARM": f"{yard.run}/warm"}
    found = [
        Low(WARM, [front, "--root", state], yard.worker(), warm),
        Low(COLD, [front, "--root", state], yard.worker(), {"SCOW_OCI_WARM": "0"}),
    ]
    stack.callback(found[0].time, "warm", "--stop")
    for name in ("runc", "crun"):
        if shutil.which(name):
            program = [name, "--root", f"{yard.run}/{name}"]
            found.append(Low(name, program, yard.private, prefix=peers.PRIVATE))
    if fetch:
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b.", dir="/tmp")))
        try:
            program = [*unstable.crun(short), "--root", f"{yard.run}/crun-unstable"]
            new = Low(NEW, program, yard.private, unstable.library_path(short), peers.PRIVATE)
            new.version()
            found.append(new)
        except Failed as error:
            print(f"bench: {NEW} is left out: {error}")
    return found


def bundles(yard: peers.Yard) -> tuple[Path, Path, Path]:
    """The same root file system three times: `true` with and without seccomp, and one that stays."""
    full = peers.bundle(yard)
    config: dict[str, Any] = json.loads((full / "config.json").read_text())
    config["root"]["path"] = str(full / "rootfs")
    bare: dict[str, Any] = {**config, "linux": {**config["linux"]}}
    del bare["linux"]["seccomp"], bare["linux"]["resources"]
    stays = {**config, "process": {**config["process"], "args": ["/bin/sleep", "3600"]}}
    for name, one in (("bundle-bare", bare), ("bundle-stays", stays)):
        (yard.work / name).mkdir()
        (yard.work / name / "config.json").write_text(json.dumps(one))
    return full, yard.work / "bundle-bare", yard.work / "bundle-stays"


def whole_run(title: str, taking_part: list[Low], bundle: Path, rounds: int) -> Result:
    """`run`, from its start to its end."""

    def action(one: Low, number: int) -> Callable[[], float]:
        return lambda: one.time("run", "--bundle", str(bundle), f"bench-{number}")

    actions = {one.name: action(one, number) for number, one in enumerate(taking_part)}
    return interleave(Result(title, "ms"), rounds, actions)


def single_steps(taking_part: list[Low], bundle: Path, rounds: int) -> list[Result]:
    """Each command of one life; the last one, `delete`, is of a container that was killed."""
    results = {step: Result(f"`{step}`", "ms") for step in STEPS}

    def life(one: Low, number: int) -> Callable[[], float]:
        name = f"bench-{number}"
        words = {
            "create": ("--bundle", str(bundle), name),
            "exec": (name, "/bin/true"),
            "kill": (name, "KILL"),
        }

        def whole() -> float:
            total, pid = 0.0, 0
            for step in STEPS:
                if step == "kill":
                    pid = json.loads(one.output("state", name))["pid"]
                try:
                    took = one.time(step, *words.get(step, (name,)))
                except Failed:
                    one.time("delete", "--force", name)
                    raise
                if step == "kill":
                    memory.await_end(pid)
                results[step].samples.setdefault(one.name, []).append(took)
                total += took
            return total

        return whole

    actions = {one.name: life(one, number) for number, one in enumerate(taking_part)}
    whole = interleave(Result("All of them, one after the other", "ms"), rounds, actions)
    for result in results.values():
        result.errors = whole.errors
        for name in result.samples:
            del result.samples[name][0]  # the round that warms up
    return [*results.values(), whole]


def main() -> None:
    """Measure, write the page, print it."""
    chosen = arguments()
    with ExitStack() as stack:
        enter = stack.enter_context
        work = Path(enter(tempfile.TemporaryDirectory(prefix="scow-bench.", dir="/var/tmp")))
        run = Path(enter(tempfile.TemporaryDirectory(prefix="scow-bench.", dir="/dev/shm")))
        yard = peers.Yard(stack, work, run)
        taking_part = take_part(stack, yard, not chosen.no_unstable)
        head = [*report.machine(), *(f"- {one.name}: {one.version()}" for one in taking_part)]
        head.append(f"- rounds: {chosen.rounds}")
        full, bare, stays = bundles(yard)
        profile = whole_run("`run` of `true`: seccomp and limits", taking_part, full, chosen.rounds)
        for peer in ("runc", "crun", NEW):
            profile.aim_against(WARM, peer)
        results = [profile, whole_run("`run` of `true`: neither", taking_part, bare, chosen.rounds)]
        results += single_steps(taking_part, stays, chosen.rounds)
        results += memory.measure({one.name: one.outside() for one in taking_part}, str(stays))
    path = report.write(ROOT / "bench/results", head, results, suffix="-oci")
    print(path.read_text())
    print(f"bench: written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
