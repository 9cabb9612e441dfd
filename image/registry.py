"""One repository of a registry, as the distribution-spec describes it; the pull half.

What belongs here: which of its hosts is asked, what their answers must look like, and errors that
name the image. What must not: storing, choosing platforms, how one host is asked (endpoint.py).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import TypedDict

import msgspec

from scow.image.auth import Authenticator
from scow.image.credentials import Credentials
from scow.image.digest import Digest, algorithm_of, digest_bytes, parse_digest, quote
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.endpoint import Endpoint
from scow.image.hosts import Capability, find_hosts
from scow.image.install import Chunks
from scow.image.manifest import FOREIGN_LAYER, Descriptor
from scow.image.media_types import ACCEPT, DOCKER_SCHEMA1, INDEX_TYPES, MANIFEST_TYPES
from scow.image.rate_limit import explain_limit, read_warnings
from scow.image.reference import Reference
from scow.image.transport import Patience, Response, Transport
from scow.image.transport_errors import TransportError
from scow.native.errors import (
    IntegrityError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RegistryError,
)
from scow.native.fd import Closing

MAX_ERROR_BYTES = 64 << 10
MAX_WARNINGS = 50
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)")
_UNTOLD_TYPES = frozenset({"", "application/json", "text/plain", "application/octet-stream"})


class Wire(TypedDict, total=False):
    """How to speak to a registry, where the user says so."""

    plain_http: bool
    tls_verify: bool


class Connection(Wire, total=False):
    """That, and as whom."""

    credentials: Credentials | None


class Registry(Closing):
    """One repository, at its registry and the registry's mirrors; safe to use from several threads.

    A subclass whose `_actions` say more than "pull" asks no mirrors. Without a path in the reference it is
    the registry as such.
    """

    _actions = "pull"

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

        HTTP is used where hosts.toml says so, with `plain_http`, and for loopback hosts, which may
        also answer that they want HTTPS; never because HTTPS failed (CVE-2018-12608). `credentials`
        are used instead of what this host has for the registry; mirrors never get them. `warn` gets
        one line each for what goes wrong on the way to a good end, from any thread.
        """
        self.reference = reference
        self.stop = stop or threading.Event()  # set: nothing is tried again
        self.has_ranges = True  # until it shows that it has not
        self._scope = f"repository:{reference.path}:{self._actions}" if reference.path else ""
        self._warn = warn
        self._lock = threading.Lock()
        self._said: set[str] = set()
        hosts = find_hosts(
            reference.host, plain_http=plain_http, tls_verify=tls_verify, warn=self._warn_once
        )
        self._endpoints = [
            Endpoint(
                host,
                reference,
                patience=patience,
                stop=self.stop,
                warn=self._warn_once,
                credentials=credentials,
            )
            for host in (hosts if self._actions == "pull" else hosts[-1:])
        ]
        self._failed: set[Endpoint] = set()
        self._served: dict[str, set[tuple[Endpoint, str]]] = {}  # path -> by whom, with which ETag
        self._restarted: set[str] = set()
        self._distrusted: dict[str, set[Endpoint]] = {}

    @property
    def origin(self) -> Endpoint:
        """The registry itself: what is written goes there only."""
        return self._endpoints[-1]

    @property
    def transport(self) -> Transport:
        """HTTP to the registry itself."""
        return self.origin.transport

    @property
    def _auth(self) -> Authenticator:
        return self.origin.auth

    def close(self) -> None:
        """Close idle connections."""
        for endpoint in self._endpoints:
            endpoint.close()

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
        what the registry itself says. What one host has wrong is asked of the next.
        """
        failures = 0
        while True:
            try:
                return self._get_manifest(target, expected)
            except (RegistryError, IntegrityError) as e:
                if self.leave_host(f"manifests/{target}"):
                    self._warn_once(f"{e.message}, asking the next host")
                    continue
                failures += 1
                is_transient = isinstance(e, TransportError) and e.is_transient
                if not is_transient or failures >= self.transport.patience.attempts:
                    raise
            self.transport.pause(failures - 1)

    def _get_manifest(
        self, target: str, expected: Descriptor | None
    ) -> tuple[bytes, Digest, str | None]:
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
        enough = 0  # at this position failures are forgiven: some bytes a try are no progress
        while True:
            try:
                with closing(self._blob_once(descriptor, position, end)) as chunks:
                    for chunk in chunks:
                        position += len(chunk)
                        if position >= enough:
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
                if position >= limit > 0:
                    return  # more was announced than there is
                lost = e
            if self.leave_host(f"blobs/{descriptor.digest}"):
                continue  # another host goes on where this one stopped
            failures += 1
            enough = position + self.transport.patience.stall_bytes
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

    # -- hosts ------------------------------------------------------------------------------------

    def distrust(self, digest: Digest) -> bool:
        """Say that the blob which was just read is not what it should be.

        True: it is worth to read it again from the first byte, because another host will be asked, or
        because it was put together from several answers (badinput.md F6, F9).
        """
        path = f"blobs/{digest}"
        with self._lock:
            is_pieced = len(self._served.get(path, ())) > 1
        if is_pieced and path not in self._restarted:
            self._restarted.add(path)  # only once
        elif not self.leave_host(path):
            return False
        self._served.pop(path, None)
        return True

    def leave_host(self, path: str) -> bool:
        """Do not ask whoever served `path` for it again; False where there is nobody else to ask."""
        with self._lock:
            before = self._distrusted.get(path, set())
            now = before | {endpoint for endpoint, _ in self._served.get(path, ())}
            if now == before or not self._candidates(path, now):
                return False
            self._distrusted[path] = now
            return True

    def _candidates(self, path: str, distrusted: Collection[Endpoint]) -> list[Endpoint]:
        """Whom to ask, in order; hosts that failed are asked again only if no others are left."""
        kind, _, target = path.partition("/")
        if kind not in ("manifests", "blobs"):
            return [self.origin]  # tags, uploads: no affair of a mirror
        if kind == "manifests" and ":" not in target:
            may: Capability = "resolve"
        else:
            may = "pull" if self._actions == "pull" else "push"
        able = [e for e in self._endpoints if may in e.host.capabilities and e not in distrusted]
        return [e for e in able if e not in self._failed] or able[-1:]

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], scope: str | None = None
    ) -> Response:
        """Ask the hosts one after the other; what the last one answers or raises is the answer."""
        scope = self._scope if scope is None else scope
        with self._lock:
            candidates = self._candidates(path, self._distrusted.get(path, ()))
        if not candidates:
            raise RegistryError(
                f"no host may be asked for images of {quote(self.reference.host)}",
                hint="look at the 'capabilities' in its hosts.toml",
            )
        for endpoint in candidates[:-1]:
            try:
                response = endpoint.request(method, path, headers, scope=scope)
            except (RegistryError, PermissionDenied, InvalidArgument) as e:
                self._set_aside(endpoint, e.message)
                continue
            if response.status < 400 or response.status == 416:
                response.on_failure = partial(self._set_aside_for, endpoint)
                return self._accept(endpoint, method, path, response)
            response.close()
            if response.status != 404:
                self._set_aside(endpoint, f"it answered status {response.status}")
        last = candidates[-1]
        response = last.request(method, path, headers, scope=scope)
        return self._accept(last, method, path, response)

    def _accept(self, endpoint: Endpoint, method: str, path: str, response: Response) -> Response:
        if response.status < 400 and method == "GET":
            etag = response.headers.get("ETag", "")[:256]
            with self._lock:
                self._served.setdefault(path, set()).add((endpoint, etag))
        for text in read_warnings(response.headers):
            self._warn_once(f"registry {quote(endpoint.name)} {text}")
        return response

    def _set_aside(self, endpoint: Endpoint, why: str) -> None:
        """Do without this host from now on, as long as there are others."""
        with self._lock:
            self._failed.add(endpoint)
        self._warn_once(f"skipping mirror {quote(endpoint.name)}: {why}")

    def _set_aside_for(self, endpoint: Endpoint, error: TransportError) -> None:
        self._set_aside(endpoint, error.message)

    def _warn_once(self, message: str) -> None:
        with self._lock:
            if message in self._said or len(self._said) >= MAX_WARNINGS:
                return
            self._said.add(message)
        self._warn(message)

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
        words = error_words(body)
        because = f": {words}" if words else ""
        if status in (401, 403):
            return PermissionDenied(
                f"registry {host} denies access to {image}{because}",
                hint="check the name, and the credentials in ~/.docker/config.json",
            )
        if status == 404 and blob is not None:
            is_foreign = FOREIGN_LAYER.fullmatch(blob.media_type)
            return NotFound(
                f"registry {host} has no blob {blob.digest} of {image}",
                hint="it is a foreign layer, at an address of its own: scow does not go there"
                if is_foreign
                else None,
            )
        if status == 404:
            return NotFound(f"no such image {image}, or no access to it{because}")
        if status == 429:
            limit, hint = explain_limit(response.headers, self.reference.host)
            return RegistryError(
                f"registry {host} says: too many requests{because}{limit}", hint=hint
            )
        if status >= 500:
            return RegistryError(
                f"registry {host} failed with status {status} for {image}{because}",
                hint="that is a fault over there, and may be over soon: pull again to go on",
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


def error_words(body: bytes) -> str:
    """The first error's message or code of the spec's JSON; "" for anything else."""
    try:
        errors = msgspec.json.decode(body, type=_ErrorBody).errors
    except (ValueError, RecursionError):
        return ""
    return quote(errors[0].message or errors[0].code, 200) if errors else ""
