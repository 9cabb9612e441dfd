"""Builds the C targets with libFuzzer, ASan and UBSan and runs each for a while.

    python tests/fuzz/run.py [--seconds N] [--keep] [TARGET...]

The corpus in tests/fuzz/corpus/TARGET is what a run starts from, beside seeds made here; a long run may
add to it (--keep). A finding is a file in build/fuzz/TARGET/findings and an exit status of 1.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/fuzz"
CORPUS = ROOT / "tests/fuzz/corpus"
FLAGS = ["-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE", "-DFUZZER", f"-I{ROOT}/native"]
FLAGS += ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
NATIVE = ROOT / "native"
SOURCES = {
    "plan": [ROOT / "tests/unit/c/test_native_plan.c", NATIVE / "plan.c"],
    "untar": [ROOT / "tests/unit/c/untar_corpus.c", *sorted(NATIVE.glob("untar*.c"))],
    "log": [ROOT / "tests/fuzz/log.c", NATIVE / "log.c"],
    "paths": [ROOT / "tests/fuzz/paths.c", NATIVE / "paths.c", *sorted(NATIVE.glob("untar*.c"))],
}
MAX_LENGTH = {"plan": 16384, "untar": 32768, "log": 8192, "paths": 2048}


def build(target: str) -> Path:
    """Compile one target; gives the program."""
    program = BUILD / target / "fuzzer"
    program.parent.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which("clang-14") or shutil.which("clang") or "clang"
    subprocess.run([compiler, *FLAGS, "-o", program, *SOURCES[target]], check=True)
    return program


# --- seeds --------------------------------------------------------------------------------------------


def plans() -> Iterator[bytes]:
    """Plans with every operation, and each operation alone."""
    sys.path.insert(0, str(ROOT / "tests"))
    from unit.test_native_plan import EVERY_OPERATION, FULL

    from scow.native import plan as p

    yield FULL.encode()
    for op in EVERY_OPERATION[:-1]:
        yield p.Plan(ops=(op, EVERY_OPERATION[-1])).encode()


def archives() -> Iterator[bytes]:
    """One archive of each format, with each kind of entry; and the corpora of hostile ones."""
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
            for name, entry in (("d", b"5"), ("d/f", b"0"), ("h", b"1"), ("d/s", b"2"), ("n" * 90 + "/f", b"0"), ("d/.wh.f", b"0")):  # fmt: skip
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.mtime = entry, "d/f", 1.5
                info.size = 5 if entry == b"0" else 0
                tar.addfile(info, io.BytesIO(b"12345"))
        yield out.getvalue()
    sys.path.insert(0, str(ROOT / "tests"))
    from conformance.test_hostile_layers import ACCEPTED, REFUSED
    from integration.test_layers_corpus import REFUSED as ALONE

    for tars, _ in (*REFUSED.values(), *ACCEPTED.values()):
        yield from tars
    for tar, _ in ALONE.values():
        yield tar


def lines() -> Iterator[bytes]:
    """Output of containers."""
    yield b"\0" + b"\x0ehello\nw\x0forld\n\x04ab"
    yield b"\x01" + b"\xff1" + b"x" * 40000
    yield b"\x02" + b"\x20a\n" * 200


def names() -> Iterator[bytes]:
    """Links and paths."""
    for how in range(4):
        yield (
            bytes([how])
            + b"a=/\nb=../../evil\nc=c\nd=/proc/self/root\na/b/c\nb/x\nd/x\nc/x\n../../evil\na/../b"
        )


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {"plan": plans, "untar": archives, "log": lines, "paths": names}  # fmt: skip


@contextmanager
def scratch(memory: str | None) -> Iterator[str]:
    """A directory of its own; trees of a thousand directories are too deep for shutil."""
    made = tempfile.mkdtemp(prefix="scow-fuzz-", dir=memory)
    try:
        yield made
    finally:
        subprocess.run(["rm", "-rf", made], check=True)


def run(target: str, seconds: int, *, keep: bool = False) -> tuple[bool, str]:
    """Run one target; whether it found nothing, and a line of figures."""
    program = build(target)
    findings = BUILD / target / "findings"
    findings.mkdir(exist_ok=True)
    kept = CORPUS / target
    kept.mkdir(parents=True, exist_ok=True)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with scratch(memory) as work:
        seeds = Path(work, "seeds")
        seeds.mkdir()
        for number, seed in enumerate(SEEDS[target]()):
            (seeds / str(number)).write_bytes(seed)
        grown = BUILD / target / "grown"
        grown.mkdir(exist_ok=True)
        options = [f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH[target]}", "-timeout=20", "-rss_limit_mb=0",
            "-malloc_limit_mb=512"]  # fmt: skip
        options += [
            f"-artifact_prefix={findings}/",
            "-print_final_stats=1",
        ]
        place = Path(work, "place")
        place.mkdir()
        done = subprocess.run(
            [program, *options, grown, kept, seeds],
            env={**os.environ, "SCOW_FUZZ_DIR": str(place), "ASAN_OPTIONS": "detect_leaks=1"},
            capture_output=True, text=True, errors="replace", check=False, cwd=work,
        )  # fmt: skip
        if keep:
            subprocess.run([program, "-merge=1", kept, grown], env={**os.environ, "SCOW_FUZZ_DIR": str(place)}, capture_output=True, check=False)  # fmt: skip
    executions = re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr)
    coverage = re.findall(r"cov: (\d+)", done.stderr)
    figures = f"{target}: {executions[1] if executions else '?'} executions, {coverage[-1] if coverage else '?'} edges"
    if done.returncode:
        return False, f"{figures}\n{done.stderr[-6000:]}"
    return True, figures


def main() -> None:
    """All targets, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", default=list(SOURCES))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus")
    arguments = parser.parse_args()
    good = True
    for target in arguments.targets or list(SOURCES):
        fine, text = run(target, arguments.seconds, keep=arguments.keep)
        print(text, flush=True)
        good = good and fine
    sys.exit(not good)


if __name__ == "__main__":
    main()
