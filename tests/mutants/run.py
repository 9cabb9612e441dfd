"""Takes out one defence after the other, in a copy of this checkout, and sees that a test of its row fails.

    python tests/mutants/run.py [WORD...]      # only those whose row, file or text holds one of the words

A line for each; the exit status is 1 if one was not noticed. Nothing of the checkout itself is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mutants.images import MUTANTS, Mutant  # noqa: E402  # the path comes first

ROOMS = ("native", "runtime", "image", "cgroups", "netns", "cri", "cli", "scheduler")
FAILED, PASSED = 1, 0  # pytest's own


class Copy:
    """The checkout, importable as scow, to be spoilt."""

    def __init__(self, place: Path) -> None:
        self.place = place
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        )
        built = [str(p.relative_to(ROOT)) for p in ROOT.glob("native/*.so")]
        for name in [*filter(None, listed.stdout.decode().split("\0")), *built]:
            if (ROOT / name).is_file():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, place / name)
        package = place / "build/types/scow"
        package.mkdir(parents=True)
        for room in ROOMS:
            (package / room).symlink_to(place / room)
        self.environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip

    def make(self) -> None:
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=self.place, env=self.environment, check=True, capture_output=True,
        )  # fmt: skip

    def test(self, files: str, which: str) -> tuple[int, str]:
        words = [
            "-m",
            "pytest",
            "-x",
            "-q",
            "--residue=off",
            "-p",
            "no:cacheprovider",
            "--timeout=90",
        ]
        selected = ["-k", which] if which else []
        try:
            done = subprocess.run(
                [sys.executable, *words, *files.split(), *selected],
                cwd=self.place, env=self.environment, capture_output=True, text=True,
                errors="replace", check=False, timeout=200,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return FAILED, "hangs"
        return done.returncode, done.stdout[-1500:] + done.stderr[-500:]

    def noticed(self, mutant: Mutant) -> tuple[bool, str]:
        """Whether a test fails with the mutant, and what was printed if none does."""
        path = self.place / mutant.file
        text = path.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.file} has {mutant.old!r} not once"
        path.write_text(text.replace(mutant.old, mutant.new))
        saved = {so: so.read_bytes() for so in self.place.glob("native/*.so")} if mutant.build else {}  # fmt: skip
        try:
            if mutant.build:
                self.make()
            code, said = self.test(mutant.tests, mutant.which)
        finally:
            path.write_text(text)
            for so, data in saved.items():
                so.write_bytes(data)
        return code == FAILED, "" if code == FAILED else f"exit status {code}\n{said}"


def main() -> int:
    wanted = [
        one for one in MUTANTS
        if not sys.argv[1:] or any(word in f"{one.rows} {one.file} {one.old} {one.which}" for word in sys.argv[1:])
    ]  # fmt: skip
    missed = 0
    with tempfile.TemporaryDirectory(prefix="scow-mutants-", dir="/var/tmp") as place:
        copy = Copy(Path(place))
        for tests in sorted({one.tests for one in wanted}):
            words = {one.which for one in wanted if one.tests == tests}
            code, said = copy.test(tests, " or ".join(f"({w})" for w in sorted(words) if w))
            if code != PASSED:  # else everything would be noticed
                print(f"{tests} fails as it is: exit status {code}\n{said}")
                missed += 1
        for number, one in enumerate(wanted, 1):
            begun = time.monotonic()
            fine, said = copy.noticed(one)
            missed += not fine
            shown = " ".join(one.old.split())[:60]
            print(f"{number}/{len(wanted)} {'ok' if fine else 'MISSED'} {time.monotonic() - begun:.0f} s "
                  f"{one.rows} | {one.file} | {shown}", flush=True)  # fmt: skip
            if said:
                print(said, flush=True)
    print(f"{len(wanted) - missed} of {len(wanted)} were noticed")
    return missed > 0


if __name__ == "__main__":
    sys.exit(main())
