"""`make bench`: scow beside whichever of crun, runc, podman, ctr and docker is installed.

One interleaved run, medians; the machine is part of the result. Only ratios within one run count.
The traps are those of the reference page on peers: a mount namespace without the v2 mount for crun,
ulimits for podman that it may set, a real interpreter, scow installed as a user has it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import peers  # noqa: E402  # beside this script
import report  # noqa: E402
from cases import Cases, Result  # noqa: E402

CASES = ("lifecycle", "none", "bridge", "exec", "many", "first", "requests")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="samples of each (default: 15)")
    parser.add_argument("--containers", type=int, default=100, help="for `ps` (default: 100)")
    parser.add_argument("--only", nargs="*", choices=CASES, default=CASES, help="some of the cases")
    parser.add_argument("--peers", nargs="*", help="some of the peers (default: all installed)")
    return parser.parse_args()


def measure(cases: Cases, only: tuple[str, ...]) -> list[Result]:
    """The chosen cases, one after the other."""
    steps: dict[str, Callable[[], Result | list[Result]]] = {
        "lifecycle": cases.lifecycle,
        "none": lambda: cases.whole_run("none"),
        "bridge": lambda: cases.whole_run("bridge"),
        "exec": cases.execute,
        "many": cases.many,
        "first": cases.first_answer,
        "requests": cases.requests,
    }
    results: list[Result] = []
    for name in only:
        print(f"bench: {name}", flush=True)
        found = steps[name]()
        results += found if isinstance(found, list) else [found]
    return results


def main() -> None:
    """Measure, write the page, print it."""
    chosen = arguments()
    with ExitStack() as stack:
        work = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="scow-bench.", dir="/var/tmp"))
        )
        run = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="scow-bench.", dir="/dev/shm"))
        )
        taking_part = peers.take_part(stack, work, run, chosen.peers)
        head = [*report.machine(), *report.versions(taking_part)]
        head.append(f"- rounds: {chosen.rounds}")
        results = measure(Cases(taking_part, chosen.rounds, chosen.containers), tuple(chosen.only))
    path = report.write(ROOT / "bench/results", head, results)
    print(path.read_text())
    print(f"bench: written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
