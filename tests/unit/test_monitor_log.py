"""The monitor's log writer and records, compiled with the sanitizers and driven from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILE = ["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
COMPILE += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
RECORD = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) ([^\n]*)\n", re.DOTALL
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("monitor_log") / "driver"
    sources = [ROOT / "tests/unit/c/test_monitor_log.c", ROOT / "native/log.c"]
    sources += [ROOT / "native/exitrec.c"]
    subprocess.run(
        [*COMPILE, f"-I{ROOT / 'native'}", *map(str, sources), "-o", str(program)],
        check=True,
    )
    return program


def run_log(
    driver: Path,
    path: Path,
    data: bytes,
    *,
    chunk: int,
    max_bytes: int = 0,
    max_files: int = 3,
    file_limit: int | None = None,
) -> list[int]:
    """Log `data`; returns lost bytes, errno of the loss, size of the live file."""
    source = path.parent / "input"
    source.write_bytes(data)
    argv = [str(driver), "log", str(path), str(max_bytes), str(max_files), str(chunk)]
    if file_limit is not None:
        argv.append(str(file_limit))
    with source.open("rb") as stdin:
        done = subprocess.run(argv, stdin=stdin, capture_output=True, check=True)
    return [int(word) for word in done.stdout.split()]


def parse(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Split a log into (stream, tag, content); fails unless every byte belongs to a record."""
    records: list[tuple[bytes, bytes, bytes]] = []
    at = 0
    while at < len(data):
        match = RECORD.match(data, at)
        assert match, data[at : at + 100]
        records.append((match[2], match[3], match[4]))
        at = match.end()
    return records


def read_back(paths: list[Path]) -> dict[bytes, bytes]:
    """What a reader of the log gets per stream: a newline after F, none after P."""
    streams = {b"stdout": b"", b"stderr": b""}
    for path in paths:
        for stream, tag, content in parse(path.read_bytes()):
            assert len(content) <= 16384
            streams[stream] += content + (b"\n" if tag == b"F" else b"")
    return streams


def all_files(path: Path) -> list[Path]:
    """The log's files, oldest first."""
    rotated = sorted(path.parent.glob(path.name + ".*"), key=lambda p: -int(p.suffix[1:]))
    return [*rotated, path]


@pytest.mark.parametrize("chunk", [1, 7, 4096, 32768])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"one\n",
        b"no newline",
        b"\n\n\nx\n\n",
        bytes(range(256)) * 3 + b"\n",
        b"y" * 16384 + b"\n" + b"z" * 16385 + b"\n",
        b"y" * 16383 + b"\n" + b"x" * (3 * 16384) + b"\nlast",
        b"".join(b"%d\n" % i for i in range(3000)),
    ],
    ids=["empty", "line", "partial", "blank", "binary", "split", "long", "many"],
)
def test_every_byte_comes_back(driver: Path, tmp_path: Path, data: bytes, chunk: int) -> None:
    path = tmp_path / "log"
    lost, error, size = run_log(driver, path, data, chunk=chunk)
    assert (lost, error) == (0, 0)
    assert size == path.stat().st_size
    assert read_back([path])[b"stdout"] == data


def test_tags(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    run_log(driver, path, b"a" * 16384 + b"\n" + b"b" * 40000 + b"\nend", chunk=5000)
    tags = [(tag, len(content)) for _, tag, content in parse(path.read_bytes())]
    assert tags == [
        (b"F", 16384),
        (b"P", 16384),
        (b"P", 16384),
        (b"F", 40000 - 32768),
        (b"P", 3),
    ]


def test_streams_do_not_mix(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    data = b"".join(b"%05d%s" % (i, b"\n" if i % 3 == 0 else b"-") for i in range(1000))
    run_log(driver, path, data, chunk=-10)
    chunks = [data[i : i + 10] for i in range(0, len(data), 10)]
    back = read_back([path])
    assert back[b"stdout"] == b"".join(chunks[::2])
    assert back[b"stderr"] == b"".join(chunks[1::2])


def test_mode_is_private(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    run_log(driver, path, b"x\n", chunk=10)
    assert path.stat().st_mode & 0o777 == 0o600


def test_rotation_keeps_order_and_sizes(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    data = b"".join(b"line %06d\n" % i for i in range(20000))
    run_log(driver, path, data, chunk=4096, max_bytes=100_000, max_files=50)
    files = all_files(path)
    assert len(files) > 5
    assert all(file.stat().st_size <= 100_000 for file in files)
    assert read_back(files)[b"stdout"] == data


@pytest.mark.parametrize("max_files", [1, 2, 3])
def test_rotation_keeps_that_many_files(driver: Path, tmp_path: Path, max_files: int) -> None:
    path = tmp_path / "log"
    data = b"".join(b"line %06d\n" % i for i in range(5000))
    run_log(driver, path, data, chunk=4096, max_bytes=20_000, max_files=max_files)
    files = all_files(path)
    assert len(files) == max_files
    assert data.endswith(read_back(files)[b"stdout"])


def test_a_record_larger_than_the_limit_is_written(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    run_log(driver, path, b"a\n" + b"b" * 5000 + b"\nc\n", chunk=100, max_bytes=60, max_files=9)
    assert read_back(all_files(path))[b"stdout"] == b"a\n" + b"b" * 5000 + b"\nc\n"


def test_appends_and_mends_a_torn_end(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    run_log(driver, path, b"first\n", chunk=10)
    with path.open("ab") as file:
        file.write(b"2026-01-01T00:00:")
    run_log(driver, path, b"second\n", chunk=10)
    lines = path.read_bytes().split(b"\n")
    assert lines[0].endswith(b" F first")
    assert lines[1] == b"2026-01-01T00:00:"
    assert lines[2].endswith(b" F second")


@pytest.mark.parametrize("chunk", [50, 1000, 32768])
def test_a_full_disk_costs_whole_records_and_is_counted(
    driver: Path, tmp_path: Path, chunk: int
) -> None:
    # RLIMIT_FSIZE gives short writes and EFBIG just as a full disk gives ENOSPC.
    path = tmp_path / "log"
    data = b"".join(b"line %06d\n" % i for i in range(5000))
    lost, error, size = run_log(driver, path, data, chunk=chunk, file_limit=50_011)
    assert error == 27  # EFBIG
    assert size == path.stat().st_size <= 50_011
    kept = read_back([path])[b"stdout"]
    assert len(kept) + lost == len(data)
    assert data.startswith(kept)


def test_refuses_what_is_not_a_file(driver: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    link = tmp_path / "log"
    link.symlink_to(target)
    argv = [str(driver), "log", str(link), "0", "3", "10"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 2
    assert target.read_bytes() == b""


def test_exit_record(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "exit"
    (tmp_path / ".exit.tmp").symlink_to("/dev/null")
    subprocess.run([str(driver), "exit", str(path), str(3 << 8), "0", "0"], check=True)
    assert json.loads(path.read_bytes()) == {
        "pid": 4242,
        "status": 768,
        "exit_code": 3,
        "signal": 0,
        "oom_killed": False,
        "started_at": 2**63 - 1,
        "finished_at": -(2**63),
        "log_lost_bytes": 5,
        "log_errno": 28,
        "error": None,
    }
    assert path.stat().st_mode & 0o777 == 0o600
    subprocess.run([str(driver), "exit", str(path), "137", "1", "34"], check=True)  # SIGKILL, core
    record = json.loads(path.read_bytes())
    assert (record["exit_code"], record["signal"], record["oom_killed"]) == (137, 9, True)
    assert record["error"] == {"step": 34, "errno": 2, "index": -1, "detail": 7}
    assert os.listdir(tmp_path) == ["exit"]


def test_exit_record_that_cannot_be_written_leaves_nothing(driver: Path, tmp_path: Path) -> None:
    (tmp_path / "exit").mkdir()
    done = subprocess.run([str(driver), "exit", str(tmp_path / "exit"), "0", "0", "0"], check=False)
    assert done.returncode == 1
    assert os.listdir(tmp_path) == ["exit"]


def test_status_record(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "status"
    done = subprocess.run([str(driver), "status", str(path)], check=True, capture_output=True)
    record = json.loads(path.read_bytes())
    assert record["start_time"] == int(done.stdout)
    now = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert 0 <= now - record["start_time"] < 3000  # ticks: it was started by the line above
    assert record["id"] == "ab"
