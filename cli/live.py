"""Lines of a terminal that are drawn again and again, one per thing under way.

Whoever uses it holds a lock of its own: events come from several threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO

REDRAW_S = 0.1
BAR_WIDTH = 20


class LiveLines:
    """Draws what `lines` gives for the room that there is; does nothing where `out` is no terminal."""

    def __init__(
        self, out: TextIO, lines: Callable[[int], list[str]], *, live: bool | None = None
    ) -> None:
        is_dumb = os.environ.get("TERM", "") in ("", "dumb")
        self.is_live = (out.isatty() and not is_dumb) if live is None else live
        self._out = out
        self._lines = lines
        self._drawn = 0
        self._next_draw = 0.0

    def draw(self, *, force: bool = False) -> None:
        """Draw over what is there, not more often than one can see."""
        now = time.monotonic()
        if not self.is_live or (now < self._next_draw and not force):
            return
        self._next_draw = now + REDRAW_S
        try:
            columns, rows = os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            columns, rows = 80, 24
        lines = self._lines(max(3, rows - 2))
        self._out.write(f"\x1b[{self._drawn}A" if self._drawn else "")
        # Draw over, then clear to the end of the line: no flicker.
        self._out.write("".join(f"{line[: max(20, columns - 1)]}\x1b[K\n" for line in lines))
        if self._drawn > len(lines):
            self._out.write("\x1b[J")
        self._drawn = len(lines)
        self._out.flush()

    def erase(self) -> None:
        """Take the lines away, for a line that stays."""
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0


def bar(share: float) -> str:
    """`[=====>     ]`."""
    line = "=" * max(0, int(min(1.0, share) * BAR_WIDTH) - 1) + ">"
    return f"[{line:<{BAR_WIDTH}}]"
