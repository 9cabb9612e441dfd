"""What a pull or load tells whoever watches it.

What belongs here: the protocol and a sink that is silent. Drawing is the command line's.
"""

from __future__ import annotations

from typing import Protocol


class ProgressSink(Protocol):
    """Receives events; called from several threads, so it must lock for itself and never block.

    `layer` is the digest of the layer's blob. `fetched` and `unpacked` give how many *more* bytes
    (of the compressed blob) were received or went through the unpacker. Per layer the order is
    either `exists`, or `start`, any mix of fetched/unpacked/restarted, then `done`. A layer that
    fails gets no `done`: the error is raised by the call that was given the sink.
    """

    def resolved(self, reference: str, digest: str) -> None:
        """The name was resolved; `digest` is what the registry has under it."""

    def exists(self, layer: str, size: int) -> None:
        """The layer is here already."""

    def start(self, layer: str, size: int) -> None:
        """The layer is going to be fetched or unpacked; `size` is that of its blob."""

    def fetched(self, layer: str, count: int) -> None:
        """`count` more bytes have been received."""

    def unpacked(self, layer: str, count: int) -> None:
        """`count` more bytes of the blob went through the unpacker."""

    def restarted(self, layer: str) -> None:
        """Both counts of the layer start again at 0."""

    def done(self, layer: str) -> None:
        """The layer is verified, unpacked and on disk."""

    def warning(self, message: str) -> None:
        """Something the user should know, in one line."""


class SilentProgress:
    """A sink that drops everything."""

    def resolved(self, reference: str, digest: str) -> None: ...
    def exists(self, layer: str, size: int) -> None: ...
    def start(self, layer: str, size: int) -> None: ...
    def fetched(self, layer: str, count: int) -> None: ...
    def unpacked(self, layer: str, count: int) -> None: ...
    def restarted(self, layer: str) -> None: ...
    def done(self, layer: str) -> None: ...
    def warning(self, message: str) -> None: ...
