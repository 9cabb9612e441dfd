"""What one run of the program knows: global options, and the service, opened when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scow.cri.client import Client
    from scow.cri.service import Service
    from scow.image.store import ImageStore


class Session:
    """Global options; `debug` shows tracebacks."""

    def __init__(self) -> None:
        self.root: str | None = None  # the service has its own defaults
        self.run: str | None = None
        self.debug = False
        self.host: str | None = None
        """The address of a service; None: the one of this machine, for what needs a service at all."""
        self._service: Service | None = None

    def service(self) -> Service:
        """The service, in this process."""
        if self._service is None:
            from scow.cri.service import Service

            self._service = Service(root=self.root, run=self.run)
        return self._service

    def images(self) -> ImageStore:
        """The images alone: the rest of the service takes longer to import than a push needs."""
        if self._service is not None:
            return self._service.images
        import os

        from scow.cri.records import DEFAULT_ROOT
        from scow.image.store import ImageStore

        return ImageStore(self.root or os.environ.get("SCOW_ROOT") or DEFAULT_ROOT)

    def client(self) -> Client:
        """A client of the service that --host or SCOW_HOST names, by default the local one.

        SCOW_TLS_CERT, SCOW_TLS_KEY and SCOW_TLS_CA name the files for tcp:// addresses.
        """
        import os

        from scow.cri.client import DEFAULT_ADDRESS, Client, ClientTls

        address = self.host or os.environ.get("SCOW_HOST")
        if address is None:
            run = self.run or os.environ.get("SCOW_RUN")
            address = f"unix://{run}/scow.sock" if run else DEFAULT_ADDRESS
        files = [os.environ.get(f"SCOW_TLS_{name}") for name in ("CERT", "KEY", "CA")]
        certificate, key, authority = files
        tls = None
        if certificate and key and authority:
            tls = ClientTls(certificate, key, authority)
        return Client(address, tls=tls)

    def use(self, service: Service | None) -> None:
        """Take this service instead (tests)."""
        self._service = service


session = Session()


def service() -> Service:
    """The service of this run of the program."""
    return session.service()
