"""How a pull is shown: bars that move on a terminal, plain lines everywhere else.

Events come from several threads. What must not go in: anything that fetches.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from scow.cli.human import decimal_size, short_id
from scow.cli.live import LiveLines

RATE_S = 0.5  # over which a rate is taken
BAR_WIDTH = 28


class _Layer:
    def __init__(self, size: int, *, is_here: bool = False) -> None:
        self.size = size
        self.fetched = 0
        self.unpacked = 0
        self.is_here = is_here
        self.is_done = is_here
        self.rate = 0.0  # bytes a second, smoothed
        self._marked = (time.monotonic(), 0)

    def restart(self) -> None:
        """From 0 again."""
        self.fetched = self.unpacked = 0
        self.rate, self._marked = 0.0, (time.monotonic(), 0)

    def measure(self, now: float) -> None:
        """Bring the rate up to date."""
        then, count = self._marked
        if now - then >= RATE_S:
            rate = (self.fetched - count) / (now - then)
            self.rate = 0.6 * self.rate + 0.4 * rate if self.rate else rate
            self._marked = (now, self.fetched)


class PullProgress:
    """A `ProgressSink` that writes to `out`; use it as a context."""

    def __init__(self, out: TextIO | None = None, *, live: bool | None = None) -> None:
        self._out = out or sys.stdout
        self._lock = threading.Lock()
        self._layers: dict[str, _Layer] = {}
        self._live = LiveLines(self._out, self._lines, live=live)
        self.digest = ""
        self.fetched_any = False

    def __enter__(self) -> PullProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._live.draw(force=True)

    def head(self) -> None:
        """Called once, before the first line: who uses this may say more there."""

    # The events of scow.image.progress.ProgressSink.

    def resolved(self, reference: str, digest: str) -> None:
        """The name was resolved."""
        self.digest = digest

    def exists(self, layer: str, size: int) -> None:
        """The layer is here already."""
        self._begin(layer, _Layer(size, is_here=True), "Already exists")

    def start(self, layer: str, size: int) -> None:
        """The layer is going to be fetched."""
        self.fetched_any = True
        self._begin(layer, _Layer(size), f"Pulling {decimal_size(size)}")

    def _begin(self, name: str, layer: _Layer, words: str) -> None:
        with self._lock:
            if not self._layers:
                self.head()
            self._layers[name] = layer
            self._tell(name, words)

    def fetched(self, layer: str, count: int) -> None:
        """More bytes have been received."""
        with self._lock:
            self._layers[layer].fetched += count
            self._live.draw()

    def unpacked(self, layer: str, count: int) -> None:
        """More bytes went through the unpacker."""
        with self._lock:
            self._layers[layer].unpacked += count
            self._live.draw()

    def restarted(self, layer: str) -> None:
        """Both counts start again."""
        with self._lock:
            self._layers[layer].restart()
            self._tell(layer, "Retrying")

    def done(self, layer: str) -> None:
        """The layer is on disk."""
        with self._lock:
            self._layers[layer].is_done = True
            self._tell(layer, "Pull complete")

    def warning(self, message: str) -> None:
        """Something the user should know."""
        with self._lock:
            self._live.erase()
            print(f"scow: {message}", file=sys.stderr, flush=True)
            self._live.draw(force=True)

    def _tell(self, name: str, words: str) -> None:
        if self._live.is_live:
            self._live.draw(force=True)
        else:
            self._out.write(f"{short_id(name)}: {words}\n")
            self._out.flush()

    def _lines(self, room: int) -> list[str]:
        if len(self._layers) > room:  # a line that has scrolled away cannot be drawn over
            return self._most_telling(room)
        return [self._line(name, layer) for name, layer in self._layers.items()]

    def _most_telling(self, room: int) -> list[str]:
        moving = [(n, y) for n, y in self._layers.items() if not y.is_done and y.fetched]
        done = sum(layer.is_done for layer in self._layers.values())
        lines = [f"{done} of {len(self._layers)} layers complete"]
        return lines + [self._line(name, layer) for name, layer in moving[: room - 1]]

    @staticmethod
    def _line(name: str, layer: _Layer) -> str:
        lead = f"{short_id(name)}: "
        if layer.is_here:
            return lead + "Already exists"
        if layer.is_done:
            return lead + "Pull complete"
        if not layer.fetched and not layer.unpacked:
            return lead + "Waiting"
        fetched, unpacked = min(layer.fetched, layer.size), min(layer.unpacked, layer.size)
        if unpacked == layer.size:
            return lead + "Writing to disk"
        # One bar for both: '#' is on the disk already, '=' is fetched.
        ends = [BAR_WIDTH * count // layer.size for count in (unpacked, fetched)]
        bar = "#" * ends[0] + "=" * (ends[1] - ends[0])
        bar += ">" if ends[1] < BAR_WIDTH else ""
        text = f"{lead}[{bar:<{BAR_WIDTH}}] {decimal_size(fetched)}/{decimal_size(layer.size)}"
        layer.measure(time.monotonic())
        if not layer.rate or fetched == layer.size:
            return text
        left_s = round((layer.size - fetched) / layer.rate)
        return f"{text}  {decimal_size(layer.rate)}/s  {_clock(left_s)} left"


def _clock(seconds: int) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class PullOnDemand(PullProgress):
    """The progress of a pull that `run` turns out to need: on stderr, with a word before."""

    def __init__(self, name: str) -> None:
        super().__init__(sys.stderr)
        self._name = name

    def head(self) -> None:
        """Say why there is a pull at all."""
        self._out.write(f"Fetching image '{self._name}'\n")
