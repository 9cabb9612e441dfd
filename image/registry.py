"""One registry, as the distribution-spec describes it; the pull half.

What belongs here: the requests, what their answers must look like, and errors that name the image.
What must not: storing, choosing platforms, the mechanics of HTTP (transport.py).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from urllib.parse import urlsplit

import msgspec

from scow.image.auth import Authenticator
from scow.image.credentials import Credentials, find_credentials
from scow.image.digest import Digest, algorithm_of, digest_bytes, parse_digest, quote
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.install import Chunks
from scow.image.manifest import Descriptor
from scow.image.media_types import ACCEPT, DOCKER_SCHEMA1, INDEX_TYPES, MANIFEST_TYPES
from scow.image.reference import DEFAULT_HOST, Reference, is_loopback_host
from scow.image.transport import Patience, Response, Transport, TransportError, has_certificates
from scow.native.errors import (
    IntegrityError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RegistryError,
)

DOCKER_HUB_HOST = "registry-1.docker.io"
MAX_ERROR_BYTES = 64 << 10
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)")
_UNTOLD_TYPES = frozenset({"", "application/json", "text/plain", "application/octet-stream"})


class Registry:
    """The repositories of one host; safe to use from several threads."""

    def __init__(
        self,
        reference: Reference,
        *,
        plain_http: bool = False,
        tls_verify: bool = True,
        patience: Patience | None = None,
        stop: threading.Event | None = None,
        warn: Callable[[str], None] = lambda message: None,
        credentials: Credentials | None = None,
    ) -> None:
        """A client for the repository of `reference`, not yet connected.

        HTTP is used for loopback hosts, which may also answer that they want HTTPS, and with
        `plain_http`; never because HTTPS failed (CVE-2018-12608). Certificates set up for the host
        rule HTTP out. `credentials` are used instead of what the host has for the registry.
        """
        self.reference = reference
        self.has_ranges = True  # until it shows that it has not
        self._path = reference.path
        self._scope = f"repository:{reference.path}:pull"
        host = DOCKER_HUB_HOST if reference.host == DEFAULT_HOST else reference.host
        is_loopback = is_loopback_host(host) and not has_certificates(host)
        scheme = "http" if plain_http or is_loopback else "https"
        self.transport = Transport(
            f"{scheme}://{host}",
            plain_http=plain_http,
            tls_verify=tls_verify,
            patience=patience,
            stop=stop,
        )
        self._may_upgrade = is_loopback and not plain_http
        self._tls_verify = tls_verify
        self._patience = patience
        self._stop = stop
        self._find = lambda: credentials or find_credentials(reference.host, reference.path, warn)
        self._auth = Authenticator(self.transport, reference.host, self._find)

    def close(self) -> None:
        """Close idle connections."""
        self.transport.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- requests ---------------------------------------------------------------------------------

    def head_manifest(self, target: str) -> Digest | None:
        """The digest under a tag, or None where the registry does not tell.

        HEAD, because Docker Hub counts GETs of manifests, and nothing need be sent twice.
        """
        with self._request("HEAD", f"manifests/{target}", {"Accept": ACCEPT}) as response:
            if response.status == 404:
                raise self._error(response, b"")
            text = response.headers.get("Docker-Content-Digest", "")
            if response.status != 200 or not text:
                return None
            try:
                return parse_digest(text)
            except InvalidArgument:
                return None

    def get_manifest(
        self, target: str, expected: Descriptor | None = None
    ) -> tuple[bytes, Digest, str | None]:
        """A manifest or index by tag or digest: its bytes, digest, and announced media type.

        With `expected`, or a digest as target, the bytes are verified against that; by tag against
        what the registry itself says.
        """
        what = f"manifest {quote(target)} of {quote(self.reference.familiar_repository)}"
        with self._request("GET", f"manifests/{target}", {"Accept": ACCEPT}) as response:
            if response.status != 200:
                raise self._error(response, response.read(MAX_ERROR_BYTES))
            media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            said = response.headers.get("Docker-Content-Digest", "")
            data = response.read(MAX_DOCUMENT_BYTES if expected is None else expected.size)
        wanted = self._wanted_digest(target, expected)
        digest = digest_bytes(data, algorithm_of(wanted) if wanted else "sha256")
        if wanted is not None:
            if expected is not None and len(data) != expected.size:
                raise IntegrityError(f"{what}: expected {expected.size} bytes, got {len(data)}")
            if digest != wanted:
                raise IntegrityError(f"{what}: expected digest {wanted}, got {digest}")
            # The bytes are those that were meant; what the server calls them is of no interest.
            return data, digest, None if expected is None else expected.media_type
        if said.startswith("sha256:") and said != digest:
            raise IntegrityError(f"{what}: the registry says digest {quote(said)}, got {digest}")
        return data, digest, self._announced_type(media_type)

    def open_blob(self, descriptor: Descriptor, offset: int, end: int | None = None) -> Chunks:
        """The blob from `offset` on, resuming after lost connections; who calls verifies it.

        With `end` only up to there, if the registry knows ranges; `has_ranges` tells afterwards.
        `urls` of a descriptor are never followed: they would be a way to make us talk to anybody.
        """
        position = offset
        limit = descriptor.size if end is None else end
        failures = 0
        while True:
            try:
                with closing(self._blob_once(descriptor, position, end)) as chunks:
                    for chunk in chunks:
                        position += len(chunk)
                        failures = 0
                        yield chunk
                        if position > descriptor.size:
                            return  # whoever verifies will say so; no need to hear the rest
                if position >= limit:
                    return
                lost = TransportError(
                    f"registry {quote(self.reference.host)} sent {position} of "
                    f"{limit} bytes of blob {descriptor.digest}",
                    is_transient=True,
                )
            except TransportError as e:
                lost = e
            failures += 1
            if not lost.is_transient or failures >= self.transport.patience.attempts:
                raise lost
            self.transport.pause(failures - 1)

    def _blob_once(self, descriptor: Descriptor, offset: int, end: int | None) -> Chunks:
        last = "" if end is None else end - 1
        headers = {"Range": f"bytes={offset}-{last}"} if offset or end is not None else {}
        with self._request("GET", f"blobs/{descriptor.digest}", headers) as response:
            if response.status == 206 and headers:
                match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
                if match is not None and int(match[1]) == offset:
                    yield from response.chunks()
                    return
            elif response.status == 200:
                self.has_ranges = self.has_ranges and not headers
                yield from _skip(response.chunks(), offset)
                return
            elif not (headers and response.status in (206, 416)):
                raise self._error(response, response.read(MAX_ERROR_BYTES), descriptor)
        # The range was refused, or is not the one asked for: take all of it and skip.
        self.has_ranges = False
        with self._request("GET", f"blobs/{descriptor.digest}", {}) as response:
            if response.status != 200:
                raise self._error(response, response.read(MAX_ERROR_BYTES), descriptor)
            yield from _skip(response.chunks(), offset)

    def _request(self, method: str, path: str, headers: Mapping[str, str]) -> Response:
        """Send, and send once more with credentials when asked for them."""
        response = self._send(method, path, headers, self._auth.header(self._scope))
        if response.status != 401:
            return response
        # A HEAD or a redirected request may be refused elsewhere: only the registry may ask.
        if urlsplit(response.url).netloc != urlsplit(self.transport.base_url).netloc:
            response.close()
            raise self._auth.denied("authentication required at a host that it redirects to")
        response.close()
        header = self._auth.answer(response, self._scope, self._auth.header(self._scope))
        response = self._send(method, path, headers, header)
        if response.status == 401:
            response.close()
            raise self._auth.denied(
                f"{quote(self._path)} does not exist, or needs other credentials"
            )
        return response

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], authorization: str
    ) -> Response:
        target = f"{self.transport.base_url}/v2/{self._path}/{path}"
        try:
            response = self.transport.get(
                target, method=method, headers=headers, authorization=authorization
            )
        except TransportError:
            if not self._upgrade():
                raise
            return self._send(method, path, headers, authorization)
        if response.status == 400 and not authorization and self._upgrade():
            # A TLS server that is spoken to in plain HTTP: Go and nginx answer 400 in clear text.
            response.close()
            return self._send(method, path, headers, authorization)
        self._may_upgrade = False
        return response

    def _upgrade(self) -> bool:
        """Go over to HTTPS on a loopback host, once, if it has not yet answered over HTTP."""
        if not self._may_upgrade:
            return False
        self._may_upgrade = False
        base_url = self.transport.base_url.replace("http://", "https://", 1)
        probe = Transport(
            base_url, tls_verify=self._tls_verify, patience=self._patience, stop=self._stop
        )
        try:
            probe.get(f"{base_url}/v2/").close()
        except TransportError as e:
            probe.close()
            if "does not speak TLS" in e.message or "refused" in e.message:
                return False
            raise
        self.transport.close()
        self.transport = probe
        self._auth = Authenticator(probe, self.reference.host, self._find)
        return True

    # -- answers ----------------------------------------------------------------------------------

    def _wanted_digest(self, target: str, expected: Descriptor | None) -> Digest | None:
        if expected is not None:
            return expected.digest
        return parse_digest(target) if ":" in target else None

    def _announced_type(self, media_type: str) -> str | None:
        if media_type in MANIFEST_TYPES | INDEX_TYPES or media_type.startswith(DOCKER_SCHEMA1):
            return media_type
        if media_type in _UNTOLD_TYPES:
            return None
        raise RegistryError(
            f"{quote(self.reference.host)} is not a registry, or something is in between: "
            f"it sent {quote(media_type)} for a manifest"
        )

    def _error(self, response: Response, body: bytes, blob: Descriptor | None = None) -> Exception:
        """The error for a status, with the registry's own words if it has some."""
        host, status = quote(self.reference.host), response.status
        image = quote(self.reference.familiar)
        words = _error_words(body)
        because = f": {words}" if words else ""
        if status in (401, 403):
            return PermissionDenied(
                f"registry {host} denies access to {image}{because}",
                hint="check the name, and the credentials in ~/.docker/config.json",
            )
        if status == 404 and blob is not None:
            return NotFound(f"registry {host} has no blob {blob.digest} of {image}")
        if status == 404:
            return NotFound(f"no such image {image}, or no access to it{because}")
        if status == 429:
            wait = response.headers.get("Retry-After", "").strip()
            return RegistryError(
                f"registry {host} says: too many requests{because}",
                hint=f"it asks to wait {quote(wait, 40)} (seconds, or until)" if wait else None,
            )
        if status >= 500:
            return RegistryError(
                f"registry {host} failed with status {status} for {image}{because}"
            )
        return RegistryError(f"registry {host} answered status {status} for {image}{because}")


def _skip(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """`chunks` without their first `count` bytes."""
    for chunk in chunks:
        if count >= len(chunk):
            count -= len(chunk)
            continue
        yield chunk[count:] if count else chunk
        count = 0


class _ErrorEntry(msgspec.Struct):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct):
    errors: list[_ErrorEntry]


def _error_words(body: bytes) -> str:
    """The first error's message or code of the spec's JSON; "" for anything else."""
    try:
        errors = msgspec.json.decode(body, type=_ErrorBody).errors
    except (msgspec.DecodeError, RecursionError):
        return ""
    return quote(errors[0].message or errors[0].code, 200) if errors else ""
