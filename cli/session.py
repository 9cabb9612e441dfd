"""What one run of the program knows: global options, and the service, opened when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scow.cri.service import Service


class Session:
    """Global options; `debug` shows tracebacks."""

    def __init__(self) -> None:
        self.root: str | None = None  # the service has its own defaults
        self.run: str | None = None
        self.debug = False
        self._service: Service | None = None

    def service(self) -> Service:
        """The service, in this process."""
        if self._service is None:
            from scow.cri.service import Service

            self._service = Service(root=self.root, run=self.run)
        return self._service

    def use(self, service: Service | None) -> None:
        """Take this service instead (tests)."""
        self._service = service


session = Session()


def service() -> Service:
    """The service of this run of the program."""
    return session.service()
