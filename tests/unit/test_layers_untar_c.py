"""Builds and runs the C tests of scow-untar with ASan and UBSan: its parsers, and a corpus in-process."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE"]
FLAGS += ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(source: str, target: Path, *flags: str) -> Path:
    sources = [ROOT / "tests/unit/c" / source, *sorted((ROOT / "native").glob("untar*.c"))]
    subprocess.run(["gcc", *FLAGS, *flags, *sources, "-o", target], check=True)
    return target


def test_parsers(tmp_path: Path) -> None:
    done = subprocess.run(
        [build("test_untar_parse.c", tmp_path / "test")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_corpus(tmp_path: Path, tar_format: int) -> None:
    """Whole, cut and overwritten archives of each format; no root, so owners stay ours."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
        for name, kind in (
            ("d", b"5"),
            ("d/f", b"0"),
            ("h", b"1"),
            ("d/s", b"2"),
            ("n" * 90 + "/f", b"0"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, "d/f", 0o755
            info.uid, info.gid, info.mtime = os.getuid(), os.getgid(), 1.5
            info.size = 5 if kind == b"0" else 0
            tar.addfile(info, io.BytesIO(b"12345"))
    whole = out.getvalue()
    corpus = {"whole": whole, "empty": b"", "torn": whole[:700], "text": b"no tar at all" * 99}
    for at in range(0, 3000, 171):
        corpus[f"at{at}"] = whole[:at] + b"\xff9\0" + whole[at + 3 :]
    paths = []
    for name, data in corpus.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    driver = build("untar_corpus.c", tmp_path / "driver")
    command = [driver, tmp_path / "layer", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = dict(line.rsplit("/", 1)[1].split(": ") for line in done.stdout.splitlines())
    assert len(lines) == len(corpus)
    assert (lines["whole"], lines["empty"]) == ("unpacked", "unpacked")
    assert (lines["torn"], lines["text"], lines["at0"]) == ("refused",) * 3


def test_removal_is_linear(tmp_path: Path) -> None:
    """slow-removal, E28: what an entry replaces is read once, however many directories are in it."""
    driver = build("untar_remove_count.c", tmp_path / "driver", "-Wl,--wrap=lseek")
    done = subprocess.run([driver, tmp_path, "300"], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 300 + 3
