"""How a push is shown: bars that move on a terminal, plain lines everywhere else.

Events come from several threads. What must not go in: anything that sends.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

from scow.cli.human import decimal_size, short_id
from scow.cli.live import LiveLines, bar


class _Blob:
    __slots__ = ("sent", "size", "started", "word")

    def __init__(self, size: int, word: str) -> None:
        self.size = size
        self.word = word
        self.sent = 0
        self.started = 0.0  # only while bytes flow


class PushProgress:
    """A `scow.image.push.PushSink` that writes to `out`."""

    def __init__(self, out: TextIO | None = None, *, heading: bool = True) -> None:
        self._out = out or sys.stdout
        self._heading = heading
        self._lock = threading.Lock()
        self._blobs: dict[str, _Blob] = {}
        self._live = LiveLines(self._out, self._lines)

    def end(self) -> None:
        """Show how it ended."""
        with self._lock:
            self._live.draw(force=True)

    def begin(self, repository: str) -> None:
        """Before anything is sent, so that a wrong place is seen in time."""
        if self._heading:
            self._out.write(f"The push refers to repository [{repository}]\n")
            self._out.flush()

    def exists(self, blob: str, size: int) -> None:
        """The registry has it."""
        self._tell(blob, size, "Layer already exists")

    def mounted(self, blob: str, size: int, source: str) -> None:
        """The registry took it from another of its repositories."""
        self._tell(blob, size, f"Mounted from {source}")

    def compressing(self, blob: str, size: int) -> None:
        """It is made anew first."""
        self._tell(blob, size, "Compressing")

    def start(self, blob: str, size: int) -> None:
        """It is going to be sent."""
        self._tell(blob, size, f"Pushing {decimal_size(size)}", started=time.monotonic())

    def done(self, blob: str) -> None:
        """The registry has it now."""
        self._tell(blob, self._blobs[blob].size, "Pushed")

    def _tell(self, name: str, size: int, word: str, *, started: float = 0.0) -> None:
        with self._lock:
            blob = self._blobs[name] = _Blob(size, word)
            blob.started = started
            if self._live.is_live:
                self._live.draw(force=True)
            else:
                self._out.write(f"{short_id(name)}: {word}\n")
                self._out.flush()

    def sent(self, blob: str, count: int) -> None:
        """More bytes are on their way."""
        with self._lock:
            self._blobs[blob].sent += count
            self._live.draw()

    def restarted(self, blob: str) -> None:
        """It starts again at 0."""
        with self._lock:
            self._blobs[blob].sent = 0
            self._blobs[blob].started = time.monotonic()
            if not self._live.is_live:
                self._out.write(f"{short_id(blob)}: Retrying\n")

    def warning(self, message: str) -> None:
        """Something the user should know."""
        with self._lock:
            self._live.erase()
            print(f"scow: {message}", file=sys.stderr, flush=True)
            self._live.draw(force=True)

    def _lines(self, room: int) -> list[str]:
        lines = [self._line(name, blob) for name, blob in self._blobs.items()]
        if len(lines) <= room:
            return lines
        # A line that has scrolled away cannot be drawn over: only those that move.
        moving = [(name, blob) for name, blob in self._blobs.items() if blob.started]
        head = f"{len(self._blobs) - len(moving)} of {len(self._blobs)} blobs are there"
        return [head, *(self._line(name, blob) for name, blob in moving[: room - 1])]

    @staticmethod
    def _line(name: str, blob: _Blob) -> str:
        lead = f"{short_id(name)}: "
        if not blob.started or not blob.sent:
            return lead + blob.word
        passed_s = max(0.001, time.monotonic() - blob.started)
        rate = blob.sent / passed_s
        size = f"{decimal_size(blob.sent)}/{decimal_size(blob.size)}"
        left_s = (blob.size - blob.sent) / rate if rate else 0
        return (
            f"{lead}Pushing {bar(blob.sent / blob.size)} {size:>15} "
            f"{decimal_size(rate):>7}/s {left_s:3.0f}s"
        )
