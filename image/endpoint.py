"""One host that serves a repository: the registry, or a mirror of it.

What belongs here: requests to that host, with its own credentials. What must not: which host is
asked when (registry.py), what answers mean.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from scow.image.auth import Authenticator
from scow.image.credentials import Credentials, find_credentials, find_headers
from scow.image.digest import quote
from scow.image.transport import Patience, Response, Transport
from scow.image.transport_errors import TransportError

if TYPE_CHECKING:
    from scow.image.hosts import Host
    from scow.image.reference import Reference

MIRROR_ATTEMPTS = 2  # then the next host is asked instead


class Endpoint:
    """Requests about one repository to one host; safe to use from several threads."""

    def __init__(
        self,
        host: Host,
        reference: Reference,
        *,
        patience: Patience | None = None,
        stop: threading.Event | None = None,
        warn: Callable[[str], None] = lambda message: None,
        credentials: Credentials | None = None,
    ) -> None:
        """`credentials` are the user's for the registry: a mirror has its own, or none."""
        self.host = host
        self._path = reference.path
        self._query = urlencode({"ns": reference.host}) if host.is_mirror else ""
        self._may_upgrade = host.may_upgrade
        if host.connect_s is not None:
            patience = replace(patience or Patience(), connect_s=host.connect_s)
        if host.is_mirror:
            given = patience or Patience()
            attempts = min(given.attempts, MIRROR_ATTEMPTS)
            patience = replace(given, attempts=attempts, retry_after_limit_s=0)
        self._options = (patience, stop, warn)
        self._given = None if host.is_mirror else credentials
        self.transport = self._connect(host.url)
        self.auth = Authenticator(self.transport, host.name, self._find_credentials)

    @property
    def name(self) -> str:
        """What the user knows it by, for messages."""
        return self.host.url if self.host.is_mirror else self.host.name

    @property
    def api_url(self) -> str:
        """What all paths of the distribution-spec follow, with the slash: `.../v2/`."""
        return f"{self.transport.base_url}{self.host.root}/"

    def close(self) -> None:
        """Close idle connections."""
        self.transport.close()

    def request(
        self, method: str, path: str, headers: Mapping[str, str], *, scope: str
    ) -> Response:
        """Send, and send once more with credentials when asked for them.

        `path` is below the repository; `scope` is one or more of the distribution-spec's, parted by
        spaces.
        """
        sent = self.auth.header(scope)
        response = self._send(method, path, headers, sent)
        if response.status != 401:
            return response
        response.close()
        # A redirected request may be refused elsewhere: only the host itself may ask.
        if urlsplit(response.url).netloc != urlsplit(self.transport.base_url).netloc:
            raise self.auth.denied("authentication required at a host that it redirects to")
        header = self.auth.answer(response, scope, sent)
        response = self._send(method, path, headers, header)
        if response.status == 401:
            response.close()
            raise self.auth.denied(
                f"{quote(self._path)} does not exist, or needs other credentials"
                if self._path
                else "the user name or password is wrong"
            )
        return response

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], authorization: str
    ) -> Response:
        prefix = f"{self._path}/" if self._path else ""
        query = ("&" if "?" in path else "?") + self._query if self._query else ""
        target = f"{self.api_url}{prefix}{path}{query}"
        try:
            response = self.transport.get(
                target, method=method, headers=headers, authorization=authorization
            )
        except TransportError:
            if not self._upgrade():
                raise
            return self._send(method, path, headers, authorization)
        if response.status == 400 and not authorization and self._may_upgrade:
            # A TLS server that is spoken to in plain HTTP: Go and nginx answer 400 in clear text.
            response.close()
            self._upgrade()  # or not: then the same answer comes again
            return self._send(method, path, headers, authorization)
        self._may_upgrade = False
        return response

    def _upgrade(self) -> bool:
        """Go over to HTTPS on a host that is tried in HTTP, once, if it has not answered in that."""
        if not self._may_upgrade:
            return False
        self._may_upgrade = False
        probe = self._connect(self.host.url.replace("http://", "https://", 1))
        try:
            probe.get(f"{probe.base_url}{self.host.root}/").close()
        except TransportError as e:
            probe.close()
            if "does not speak TLS" in e.message or "refused" in e.message:
                return False
            raise
        self.transport.close()
        self.transport = probe
        self.auth = Authenticator(probe, self.host.name, self._find_credentials)
        return True

    def _connect(self, url: str) -> Transport:
        patience, stop, warn = self._options
        return Transport(
            url,
            plain_http=url.startswith("http://") and not self._may_upgrade,
            tls_verify=self.host.tls_verify,
            tls_files=self.host.tls_files,
            headers={**({} if self.host.is_mirror else find_headers()), **self.host.headers},
            patience=patience,
            stop=stop,
            warn=warn,
        )

    def _find_credentials(self) -> Credentials | None:
        return self._given or find_credentials(self.host.name, self._path, self._options[2])
