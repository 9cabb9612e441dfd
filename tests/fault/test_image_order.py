"""The order of a real pull on the disk, as the kernel saw it: data and what describes it, then its name.

strace writes down each call that makes something last or gives it a name. What is asserted is the order, not
the number of calls: one syncfs may stand for several layers.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from fixtures.command import SCOW, Scow
from fixtures.handmade import Archive, busybox_layer, file, pack
from fixtures.images import ImageFactory

pytestmark = pytest.mark.root

CALLS = (
    "fsync,fdatasync,syncfs,rename,renameat,renameat2,unlink,unlinkat,"
    "write,pwrite64,copy_file_range,splice,fchmod,fchown,utimensat,symlinkat,linkat"
)
_DONE = re.compile(r"(?:\d+ +)?[\d.]+ (\w+)\((.*)\) += (-?\d+)")


def traced(scow: Scow, out: Path, *words: str) -> list[tuple[str, str]]:
    """(call, its arguments with the paths of descriptors) of a command that succeeds, in order."""
    argv = [
        "strace",
        "-f",
        "-y",
        "-s",
        "512",
        "-ttt",
        "-o",
        str(out),
        "-e",
        f"trace={CALLS}",
        "-e",
        "signal=none",
    ]
    done = subprocess.run([*argv, *SCOW, *words], env=scow.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls: list[tuple[str, str]] = []
    begun: dict[str, str] = {}
    for line in out.read_text(errors="replace").splitlines():
        thread = line.split()[0]
        if "<unfinished ...>" in line:
            begun[thread] = line.partition("<unfinished")[0].rstrip()
            continue
        if " resumed>" in line:
            # Where it ended counts: only then is the data there.
            line = begun.pop(thread) + line.partition(" resumed>")[2]
        match = _DONE.match(line)
        if match and int(match[3]) >= 0:
            calls.append((match[1], match[2]))
    return calls


def first(calls: list[tuple[str, str]], names: str, pattern: str, start: int = 0) -> int:
    for number in range(start, len(calls)):
        if calls[number][0] in names.split() and re.search(pattern, calls[number][1]):
            return number
    told = [
        f"{name}({what})" for name, what in calls if name in f"{RENAMES} {SYNCS} syncfs".split()
    ]
    raise AssertionError(f"no {names} of {pattern} after {start}:\n" + "\n".join(told))


RENAMES, SYNCS = "rename renameat renameat2", "fsync fdatasync"


def check_order(calls: list[tuple[str, str]], root: Path, layers: list[str]) -> None:
    index_named = first(calls, RENAMES, r'/images/index\.json"$')
    for layer in layers:
        named = first(
            calls, RENAMES, rf'"{root}/layers/\.staging/{layer}", "{root}/layers/{layer}"'
        )
        before = list(enumerate(calls[:named]))
        touched = [n for n, (_, what) in before if f".staging/{layer}" in what]
        assert any('"layer.json"' in calls[n][1] for n in touched)
        filled = max(n for n in touched if calls[n][0] != "syncfs")
        assert "syncfs" in [call for call, _ in calls[filled:named]], f"{layer}: not synced"
        assert first(calls, SYNCS, rf"<{root}/layers>", named) < index_named
    for algorithm in ("sha256",):
        blobs = [
            n for n, (call, what) in enumerate(calls)
            if call in RENAMES.split() and f"/images/blobs/{algorithm}/" in what
        ]  # fmt: skip
        assert len(blobs) >= len(layers) + 2
        for named in blobs:
            name = re.findall(r"blobs/sha256/([0-9a-f]{64})", calls[named][1])[0]
            writes = [n for n, (_, what) in enumerate(calls) if f"/ingest/sha256-{name}>" in what]
            filled = max(n for n in writes if calls[n][0] == "write")
            synced = [
                call for call, what in calls[filled:named]
                if call == "syncfs" or (call in SYNCS.split() and name in what)
            ]  # fmt: skip
            assert synced, "data before its name"
            after = first(calls, SYNCS, rf"<{root}/images/blobs/sha256>", named)
            assert after < index_named, "the name lasts before the index tells it"
    assert first(calls, SYNCS, r"/ingest/new-index\.json>") < index_named
    first(calls, SYNCS, rf"<{root}/images>", index_named)


def layer_names(root: Path) -> list[str]:
    return [name for name in os.listdir(root / "layers") if re.fullmatch("[0-9a-f]{64}", name)]


def test_pull(scow_root: Path, scow_run: Path, tmp_path: Path, images: ImageFactory) -> None:
    scow = Scow(str(scow_root), str(scow_run))
    calls = traced(scow, tmp_path / "trace", "pull", images.busybox())
    check_order(calls, scow_root, layer_names(scow_root))


def test_load_and_rmi(scow_root: Path, scow_run: Path, tmp_path: Path) -> None:
    """Several layers; and removal goes the other way: the name first, its content last."""
    scow = Scow(str(scow_root), str(scow_run))
    made = Archive()
    made.add("example.com/a:1", [busybox_layer(), *(pack([file(f"f{n}", "x")]) for n in range(3))])
    calls = traced(scow, tmp_path / "trace", "load", "-i", str(made.write(tmp_path / "a.tar")))
    layers = layer_names(scow_root)
    assert len(layers) == 4
    check_order(calls, scow_root, layers)
    calls = traced(scow, tmp_path / "trace", "rmi", "example.com/a:1")
    marked = first(calls, RENAMES, r'/images/index\.json"$')
    lasts = first(calls, SYNCS, rf"<{scow_root}/images>", marked)
    forgotten = first(calls, RENAMES, r'/images/index\.json"$', marked + 1)
    for layer in layers:
        trashed = first(calls, RENAMES, rf'<{scow_root}/layers>, "{layer}"')
        assert lasts < trashed < forgotten
        emptied = first(calls, "unlink unlinkat", rf"\.trash/{layer}\.", trashed)
        assert emptied > forgotten, "the files go when nobody waits for the lock"
    blob = first(calls, "unlink unlinkat", r"/images/blobs/sha256/")
    assert lasts < blob < forgotten
