"""The user's terminal: raw mode, its size, and the keys that let go of a container."""

from __future__ import annotations

import os
from types import TracebackType

from scow.native.errors import InvalidArgument

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
DEFAULT_SIZE = (24, 80)  # rows, columns; what a window of 0x0 gets

_CONTROL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_detach_keys(option: str, text: str) -> bytes:
    """`ctrl-p,ctrl-q` as the bytes that a terminal sends; an empty text turns detaching off."""
    keys = bytearray()
    for word in text.split(",") if text else []:
        name = word.removeprefix("ctrl-") if word.startswith("ctrl-") else ""
        if len(word) == 1 and word.isascii() and word.isprintable():
            keys += word.encode()
        elif len(name) == 1 and "a" <= name.lower() <= "z":
            keys.append(ord(name.lower()) - ord("a") + 1)
        elif name in _CONTROL:
            keys.append(_CONTROL[name])
        else:
            raise InvalidArgument(
                f"invalid {option} {ascii(text)[:80]}: a list of characters and ctrl-<letter>",
                hint=f"the default is {DEFAULT_DETACH_KEYS}",
            )
    return bytes(keys)


class DetachKeys:
    """Finds the key sequence in input that comes in any pieces.

    A key that may begin the sequence is held back until the next one tells.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What goes to the container, and whether the user has let go."""
        if not self._keys:
            return data, False
        out = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self._matched = 0
                    return bytes(out), True
                continue
            out += self._keys[: self._matched]
            self._matched = 1 if byte == self._keys[0] else 0
            if not self._matched:
                out.append(byte)
        return bytes(out), False


def terminal_size(fd: int = 1) -> tuple[int, int]:
    """Rows and columns of the user's terminal."""
    for candidate in (fd, 0, 2):
        try:
            size = os.get_terminal_size(candidate)
        except OSError:
            continue
        if size.lines and size.columns:
            return size.lines, size.columns
    return DEFAULT_SIZE


class RawTerminal:
    """Raw mode on a terminal while the context lasts: every key goes to the container.

    Output processing goes off, too (the container's own terminal has done it), so nobody may
    print lines of his own meanwhile.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> RawTerminal:
        import termios

        self._saved = termios.tcgetattr(self._fd)
        mode = termios.tcgetattr(self._fd)
        # cfmakeraw(3)
        mode[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        mode[1] &= ~termios.OPOST
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import termios

        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
        except termios.error:
            pass  # the terminal is gone; there is nothing left to restore
