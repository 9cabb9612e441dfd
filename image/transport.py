"""HTTP as registries need it: one door for every byte that an image costs.

What belongs here: connections, TLS, redirects, retries, time limits. What must not: what is asked for,
words for what went wrong, and credentials beyond passing a header to the host that it is for.
`requests` does HTTP, but its adapter is driven directly: Session would read the bodies of redirects
(without limit, CVE-2026-21441), take passwords from ~/.netrc and send them along.
"""

from __future__ import annotations

import http.client
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL

from scow.image import answer
from scow.image.digest import quote
from scow.image.rate_limit import retry_after_s
from scow.image.targets import check_target, split_url
from scow.image.tls import NO_FILES, TlsFiles, find_tls_files, make_tls_context
from scow.image.transport_errors import TransportError, closed_early, explain
from scow.native.errors import RegistryError, ScowError
from scow.native.fd import Closing

MAX_REDIRECTS = 5
READ_BYTES = 256 << 10
MAX_CONNECTIONS = 8
USER_AGENT = "scow"
QUIET_WAIT_S = 3.0  # who waits longer is told why
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LENGTHS = frozenset({"content-length", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, for what, how often."""

    connect_s: float = 10
    idle_s: float = 60  # without a single byte
    stall_window_s: float = 300  # in this time ...
    stall_bytes: int = 64 << 10  # ... at least so much must come
    attempts: int = 4  # without progress in between
    backoff_s: float = 0.5  # doubled each time
    retry_after_limit_s: float = 60


class Body(Protocol):
    """What is sent with a request: its length is told first, then it is asked for its pieces."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...


class Response(Closing):
    """An answer whose body is still on the wire; whoever gets it closes it."""

    def __init__(self, raw: requests.Response, url: str, patience: Patience) -> None:
        self.status = raw.status_code
        self.headers: Mapping[str, str] = raw.headers
        self.url = url
        self.on_failure: Callable[[TransportError], None] = lambda error: None
        self._raw = raw
        self._patience = patience

    @property
    def host(self) -> str:
        """Who answered, for messages."""
        return urlsplit(self.url).netloc

    def chunks(self) -> Iterator[bytes]:
        """The body as sent, never decompressed; ends early only with a TransportError."""
        waited_s, window_bytes, is_empty = 0.0, 0, True
        while True:
            asked = time.monotonic()
            try:
                chunk: bytes = self._raw.raw.read1(READ_BYTES, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError, http.client.HTTPException) as e:
                raise self._failed(explain(e, self.host)) from e
            # Only the time that we waited for the registry: an unpacker may be slow for long.
            waited_s += time.monotonic() - asked
            if not chunk:
                # http.client takes an end amid the headers for the end of the headers.
                if (
                    is_empty
                    and self.status == 200
                    and not _LENGTHS & {*map(str.lower, self.headers)}
                ):
                    raise self._failed(closed_early(f"registry {quote(self.host)}"))
                return
            is_empty = False
            yield chunk
            window_bytes += len(chunk)
            if waited_s > self._patience.stall_window_s:
                if window_bytes < self._patience.stall_bytes:
                    raise self._failed(
                        TransportError(
                            f"registry {quote(self.host)} sends too slowly: {window_bytes} bytes "
                            f"in {waited_s:.0f} s"
                        )
                    )
                waited_s, window_bytes = 0.0, 0

    def _failed(self, error: TransportError) -> TransportError:
        self.on_failure(error)
        return error

    def read(self, limit: int) -> bytes:
        """The whole body; RegistryError when it is longer than `limit`."""
        parts: list[bytes] = []
        total = 0
        for chunk in self.chunks():
            parts.append(chunk)
            total += len(chunk)
            if total > limit:
                raise RegistryError(
                    f"registry {quote(self.host)} sent more than {limit} bytes "
                    f"for {quote(urlsplit(self.url).path)}"
                )
        return b"".join(parts)

    def close(self) -> None:
        """Drop the connection, unless all was read; the rest of a body is never drained."""
        self._raw.close()


class _Adapter(HTTPAdapter):
    """requests' adapter with one TLS context of ours for all connections; without one for HTTP."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__(pool_connections=4, pool_maxsize=MAX_CONNECTIONS)

    def close(self) -> None:
        """Close idle connections now: urllib3 (2.x) would do so when the pools are collected."""
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118  # it is no dict, and refuses iteration
                manager.pools[key].close()
        super().close()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = answer.POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)
        manager.pool_classes_by_scheme = answer.POOLS
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave it to the context, or requests would add its own bundle for every connection."""

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: Any,
        cert: Any = None,
    ) -> Any:
        parts = urlsplit(request.url or "")
        scheme, host = str(parts.scheme), parts.hostname
        return {"scheme": scheme, "host": host, "port": parts.port}, {}


class Transport:
    """All HTTP to one registry and to where it sends us; safe to use from several threads."""

    def __init__(
        self,
        base_url: str,
        *,
        plain_http: bool = False,
        tls_verify: bool = True,
        tls_files: TlsFiles = NO_FILES,
        headers: Mapping[str, str] | None = None,
        patience: Patience | None = None,
        stop: threading.Event | None = None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        """HTTP from `base_url` (`scheme://host[:port]`) on, not yet connected.

        `headers` and the client certificates of `tls_files` are for that very host.
        """
        self.base_url = base_url
        self.plain_http = plain_http
        self.patience = patience or Patience()
        self._headers = dict(headers or {})
        self._stop = stop or threading.Event()
        self._warn = warn
        self._tls_verify = tls_verify
        self._tls_files = tls_files
        self._adapters: dict[str, _Adapter] = {}
        self._reached: set[str] = set()  # who has answered: then a refusal may be over soon
        self._lock = threading.Lock()

    def get(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        authorization: str = "",
    ) -> Response:
        """Send GET or HEAD, following redirects; transient failures are tried again.

        `authorization` goes to the scheme, host and port of `url` only, and once a redirect has
        left them it is gone for good. Statuses of the 5xx and 429 kinds are retried, too; the
        last one is returned. What the registry asks to wait is waited, but not more than
        `patience.retry_after_limit_s` in all.
        """
        patience_s = self.patience.retry_after_limit_s
        silent_until = time.monotonic() + 1.5 * self.patience.idle_s
        for attempt in range(self.patience.attempts):
            is_last = attempt + 1 == self.patience.attempts
            try:
                response = self._follow(method, url, dict(headers or {}), authorization)
            except TransportError as e:
                # Who keeps silent is asked twice, not four times: nobody waits that long.
                if is_last or not e.is_transient or time.monotonic() > silent_until:
                    raise
                self.pause(attempt)
                continue
            wait_s = self.retry_wait(response, patience_s)
            if wait_s is None or is_last:
                return response
            response.close()
            patience_s -= wait_s
            if wait_s > QUIET_WAIT_S:
                who = f"registry {quote(response.host)}"
                self._warn(f"{who} answered {response.status}, trying again in {wait_s:.0f} s")
            self.pause(attempt, at_least_s=wait_s)
        raise AssertionError("unreachable")

    def post(self, url: str, body: Mapping[str, str]) -> Response:
        """Send a form; neither redirected nor retried."""
        return self._send("POST", url, {}, body)

    def send(
        self,
        method: str,
        url: str,
        body: bytes | Body,
        *,
        headers: Mapping[str, str],
        authorization: str = "",
    ) -> Response:
        """Send a body; neither redirected nor retried: only its sender knows what may go twice."""
        extra = {"Authorization": authorization} if authorization else {}
        return self._send(method, url, {**headers, **extra}, body)

    def check(self, url: str, what: str) -> None:
        """Raise RegistryError unless the registry may send us to `url`."""
        check_target(
            url,
            self.base_url,
            plain_http=self.plain_http,
            is_proxied=bool(proxies_for(url)),
            what=what,
        )

    def pause(self, attempt: int, at_least_s: float = 0) -> None:
        """Wait before the next try, longer each time; jitter keeps many hosts from coming at once."""
        delay_s = self.patience.backoff_s * 2**attempt * random.uniform(0.5, 1.5)
        if self._stop.wait(max(delay_s, at_least_s)):
            raise ScowError("given up")

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            for adapter in self._adapters.values():
                adapter.close()

    def _follow(
        self, method: str, url: str, headers: dict[str, str], authorization: str
    ) -> Response:
        first = urlsplit(url)
        trusted = bool(authorization)
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            trusted = trusted and parts[:2] == first[:2]
            extra = {"Authorization": authorization} if trusted else {}
            response = self._send(method, url, headers | extra)
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or not target:
                return response
            response.close()
            try:
                url = urljoin(url, target)
            except ValueError as e:
                raise RegistryError(
                    f"redirect of {quote(first.netloc)} is not a valid URL: {quote(target)}"
                ) from e
            self.check(url, f"redirect of {quote(first.netloc)}")
        raise RegistryError(
            f"registry {quote(first.netloc)} redirects more than {MAX_REDIRECTS} times"
        )

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, str] | bytes | Body | None = None,
    ) -> Response:
        parts = split_url(url, "request")
        host = parts.netloc
        all_headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if f"{parts.scheme}://{host}" == self.base_url:
            all_headers |= self._headers
        all_headers |= headers
        try:
            prepared = requests.Request(method, url, headers=all_headers, data=body).prepare()
            raw = self._adapter(url).send(
                prepared,
                stream=True,
                timeout=(self.patience.connect_s, self.patience.idle_s),
                proxies=proxies_for(url),
            )
        except (InvalidURL, InvalidSchema) as e:  # `url` is right, split_url() says
            raise TransportError(
                f"the proxy for registry {quote(host)} is not one that scow can use",
                hint="HTTPS_PROXY and HTTP_PROXY have the form http://HOST:PORT",
            ) from e
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            UnicodeError,
        ) as e:
            raise explain(e, host, was_reached=host in self._reached) from e
        self._reached.add(host)
        return Response(raw, url, self.patience)

    def _adapter(self, url: str) -> _Adapter:
        """The connections for `url`: a set for HTTP, one for our host, one for all others.

        Our CAs hold for where we are sent, too, as with docker; our client certificates are not
        shown there. A host with a certs.d of its own gets what is in that.
        """
        parts, own = urlsplit(url), urlsplit(self.base_url).netloc
        theirs = NO_FILES if parts.netloc == own else find_tls_files(parts.netloc)
        key = parts.netloc if parts.netloc == own or theirs != NO_FILES else "*"
        if parts.scheme == "http":
            key = "http"
        with self._lock:
            if key not in self._adapters:
                context = None
                if key != "http":
                    ours = find_tls_files(own) + self._tls_files
                    files = ours if key == own else theirs + TlsFiles(ca=ours.ca)
                    context = make_tls_context(self._tls_verify, files)
                self._adapters[key] = _Adapter(context)
            return self._adapters[key]

    def retry_wait(self, response: Response, limit_s: float | None = None) -> float | None:
        """None: this answer is final. Else how long to wait at least before the next try."""
        limit_s = self.patience.retry_after_limit_s if limit_s is None else limit_s
        wait_s = retry_after_s(response.headers)
        if response.status in (500, 502, 503, 504):
            return min(wait_s, limit_s)
        return wait_s if response.status == 429 and wait_s <= limit_s else None


def proxies_for(url: str) -> dict[str, str]:
    """The proxy for `url` by HTTPS_PROXY, HTTP_PROXY and NO_PROXY; none for this very machine."""
    host = urlsplit(url).hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return {}
    return dict(requests.utils.get_environ_proxies(url, no_proxy=None))
