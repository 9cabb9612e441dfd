"""How a pull is shown: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from scow.cli import live, progress
from scow.cli.progress import PullProgress

ONE = "sha256:" + "1" * 64
TWO = "sha256:" + "2" * 64


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test moves."""
    found = SimpleNamespace(now=100.0)
    for module in (live, progress):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def last_screen(out: io.StringIO) -> list[str]:
    """The lines as they were drawn last."""
    text = re.split(r"\x1b\[\d+A", out.getvalue())[-1]
    return [line.removesuffix("\x1b[K") for line in text.splitlines()]


def test_a_bar_tells_fetched_unpacked_rate_and_time_left(clock: SimpleNamespace) -> None:
    out = io.StringIO()
    shown = PullProgress(out, live=True)
    shown.start(ONE, 100_000_000)
    assert last_screen(out) == ["111111111111: Waiting"]
    clock.now += 1
    shown.unpacked(ONE, 25_000_000)
    clock.now += 1
    shown.fetched(ONE, 50_000_000)
    bar = "#" * 7 + "=" * 7 + ">" + " " * 13
    assert last_screen(out) == [f"111111111111: [{bar}] 50MB/100MB  50MB/s  0:01 left"]
    clock.now += 1
    shown.fetched(ONE, 50_000_000)
    bar = "#" * 7 + "=" * 21
    assert last_screen(out) == [f"111111111111: [{bar}] 100MB/100MB"]
    clock.now += 1
    shown.unpacked(ONE, 75_000_000)
    assert last_screen(out) == ["111111111111: Writing to disk"]
    shown.done(ONE)
    assert last_screen(out) == ["111111111111: Pull complete"]


def test_a_restart_begins_at_nothing(clock: SimpleNamespace) -> None:
    out = io.StringIO()
    shown = PullProgress(out, live=True)
    shown.start(ONE, 1000)
    clock.now += 1
    shown.fetched(ONE, 900)
    shown.restarted(ONE)
    assert last_screen(out) == ["111111111111: Waiting"]
    clock.now += 1
    shown.fetched(ONE, 100)
    assert "100B/1kB  100B/s  0:09 left" in last_screen(out)[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59, "0:59"), (754, "12:34"), (3723, "1:02:03")]
)
def test_clock(seconds: int, text: str) -> None:
    assert progress._clock(seconds) == text


def test_a_line_is_not_longer_than_a_narrow_terminal(clock: SimpleNamespace) -> None:
    out = io.StringIO()
    shown = PullProgress(out, live=True)
    shown.start(ONE, 999_000_000_000)
    clock.now += 1
    shown.fetched(ONE, 123_456)
    assert len(last_screen(out)[0]) < 80


def test_plain_lines_elsewhere() -> None:
    out = io.StringIO()
    with PullProgress(out, live=False) as shown:
        shown.exists(TWO, 5)
        shown.start(ONE, 1_500_000)
        shown.fetched(ONE, 1_500_000)
        shown.unpacked(ONE, 1_500_000)
        shown.done(ONE)
    assert out.getvalue() == (
        "222222222222: Already exists\n111111111111: Pulling 1.5MB\n111111111111: Pull complete\n"
    )
