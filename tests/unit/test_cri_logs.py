"""Reading logs: CRI lines, tails, rotations, followers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from scow.cri.logs import LogEntry, parse_line, parse_time_ns, read_log


def line(number: int, tag: str = "F", stream: str = "stdout") -> str:
    return f"2026-01-01T00:00:{number % 60:02d}.000000001Z {stream} {tag} line {number}\n"


def read(path: Path, **wishes: object) -> list[LogEntry]:
    settings: dict[str, object] = {
        "follow": False,
        "tail": None,
        "since_ns": None,
        "until_ns": None,
        "is_running": lambda: False,
    }
    return list(read_log(str(path), **{**settings, **wishes}))  # type: ignore[arg-type]  # a table


def test_a_line_has_time_stream_and_text() -> None:
    entry = parse_line(line(7, stream="stderr").encode())
    assert entry is not None
    assert (entry.stream, entry.line) == ("stderr", b"line 7\n")
    assert entry.time_ns % 10**9 == 1


def test_a_part_of_a_long_line_has_no_newline() -> None:
    entry = parse_line(line(7, tag="P").encode())
    assert entry is not None
    assert entry.line == b"line 7"


@pytest.mark.parametrize("text", [b"", b"\n", b"torn", b"a b X d\n", b"a b\n"])
def test_a_torn_line_is_passed_over(text: bytes) -> None:
    assert parse_line(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T01:00:00.000000009+01:00", 9),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert parse_time_ns(text) == expected


def test_rotated_files_are_read_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    (tmp_path / "log.2").write_text(line(1))
    (tmp_path / "log.1").write_text(line(2))
    path.write_text(line(3))
    assert [entry.line for entry in read(path)] == [b"line 1\n", b"line 2\n", b"line 3\n"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 99])
def test_a_tail_reaches_into_rotated_files(tmp_path: Path, count: int) -> None:
    path = tmp_path / "log"
    (tmp_path / "log.1").write_text(line(1) + line(2))
    path.write_text(line(3) + line(4))
    expected = [f"line {n}\n".encode() for n in (1, 2, 3, 4)][4 - min(count, 4) :]
    assert [entry.line for entry in read(path, tail=count)] == expected


def test_a_tail_keeps_a_long_line_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(line(1) + line(2, "P") + line(3, "P") + line(4))
    got = b"".join(entry.line for entry in read(path, tail=1))
    assert got == b"line 2line 3line 4\n"


def test_since_and_until(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(line(n) for n in range(10)))
    base = parse_time_ns("2026-01-01T00:00:00Z")
    got = read(path, since_ns=base + 3 * 10**9, until_ns=base + 5 * 10**9)
    assert [entry.line for entry in got] == [b"line 3\n", b"line 4\n"]


def test_a_missing_log_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "log") == []


def test_a_follower_loses_nothing_across_rotations(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("")
    total, running = 4000, threading.Event()
    running.set()

    def write() -> None:
        out = path.open("a")
        for number in range(total):
            out.write(line(number))
            if number % 500 == 499:
                out.flush()
                for old in (2, 1):
                    if (tmp_path / f"log.{old}").exists():
                        (tmp_path / f"log.{old}").rename(tmp_path / f"log.{old + 1}")
                path.rename(tmp_path / "log.1")
                out.close()
                out = path.open("a")
                time.sleep(0.02)
        out.close()
        running.clear()

    writer = threading.Thread(target=write)
    writer.start()
    got = read(path, follow=True, is_running=running.is_set)
    writer.join()
    assert [entry.line for entry in got] == [f"line {n}\n".encode() for n in range(total)]
