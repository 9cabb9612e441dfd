"""One registry, as the distribution-spec describes it; the push half.

What belongs here: the requests that change something, and errors that name the image. What must not:
the order of things (push.py) and how one blob gets through a bad network (upload.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urljoin, urlsplit

from scow.image.digest import Digest, digest_bytes, quote
from scow.image.media_types import OCI_INDEX
from scow.image.registry import MAX_ERROR_BYTES, error_words
from scow.image.registry_list import RegistryLists, referrers_tag
from scow.image.transport import Body, Response
from scow.image.transport_errors import TransportError
from scow.native.errors import (
    IntegrityError,
    NotFound,
    PermissionDenied,
    RegistryError,
    ScowError,
    Unsupported,
)

BLOB_TYPE = {"Content-Type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_WORDS = {  # what a code of the spec means for who pushes, where the registry's words do not say
    b"MANIFEST_BLOB_UNKNOWN": "it lacks a blob that the manifest names",
    b"NAME_UNKNOWN": "the repository does not exist there",
    b"DIGEST_INVALID": "the content is not what its digest says",
}


@dataclass(slots=True)
class Session:
    """An upload under way: where its next request goes."""

    url: str
    least_chunk: int = 0  # OCI-Chunk-Min-Length

    def with_digest(self, digest: Digest) -> str:
        """Where the request goes that ends the upload."""
        joiner = "&" if urlsplit(self.url).query else "?"
        return self.url + joiner + urlencode({"digest": digest})


class RegistryWriter(RegistryLists):
    """A registry whose one repository may be pushed to; safe to use from several threads."""

    _actions = "pull,push"
    _takes_posts = True  # until it shows that it does not: many do not

    # -- blobs ------------------------------------------------------------------------------------

    def has_blob(self, digest: Digest) -> bool:
        """Whether the repository has the blob."""
        with self._request("HEAD", f"blobs/{digest}", {}) as response:
            # A redirect leads to where the blob lies, and is only given for one that is there.
            if response.status == 200 or not self._is_own(response.url):
                return True
            if response.status == 404:
                return False
            raise self.refused(response, f"asking for blob {digest}")

    def mount(self, digest: Digest, source: str) -> Session | None:
        """Take the blob over from the repository `source` of this registry.

        None when that is done; else an upload to go on with.
        """
        query = urlencode({"mount": digest, "from": source})
        scope = f"{self._scope} repository:{source}:pull"
        try:
            response = self._request("POST", f"blobs/uploads/?{query}", {}, scope)
        except PermissionDenied:
            return self.begin_upload()  # no right to read there is no reason to fail here
        with response:
            if response.status == 201:
                return None
            if response.status == 202:
                return self._session(response)
        return self.begin_upload()

    def begin_upload(self) -> Session:
        """Ask for a place to upload a blob to."""
        with self._request("POST", "blobs/uploads/", {}) as response:
            if response.status != 202:
                raise self.refused(response, "starting an upload")
            return self._session(response)

    def offer(self, digest: Digest, data: bytes) -> Session | None:
        """Send a small blob with the request that begins its upload, if the registry may take that.

        None when that was all; else an upload to go on with.
        """
        if self._takes_posts:
            url = f"{self._base_url}blobs/uploads/?{urlencode({'digest': digest})}"
            try:
                with self.send("POST", url, data, BLOB_TYPE) as response:
                    if response.status == 201:
                        return None
                    self._takes_posts = False
                    if response.status == 202:
                        return self._session(response)
            except TransportError:
                self._takes_posts = False  # whatever it was, the long way tells it better
        return self.begin_upload()

    def send(
        self, method: str, url: str, body: bytes | Body, headers: Mapping[str, str]
    ) -> Response:
        """One request with a body; credentials go along only to the registry itself."""
        own = self._is_own(url)
        sent = self._auth.header(self._scope) if own else ""
        response = self.transport.send(method, url, body, headers=headers, authorization=sent)
        if response.status != 401 or not own:
            return response
        response.close()  # a token has ended meanwhile
        header = self._auth.answer(response, self._scope, sent)
        return self.transport.send(method, url, body, headers=headers, authorization=header)

    def ask_upload(self, session: Session) -> int | None:
        """How many bytes of an upload the registry has; None where it does not know any more."""
        try:
            with self.send("GET", session.url, b"", {}) as response:
                has = self.uploaded_bytes(response)
                if response.status == 204:
                    self.move(session, response)
                    return has
        except (RegistryError, PermissionDenied):
            pass
        return None

    def uploaded_bytes(self, response: Response) -> int | None:
        """How much the registry says that it has of an upload."""
        match = _RANGE.fullmatch(response.headers.get("Range", "").strip())
        if match is None:
            return None
        # Nothing at all is "0-0" too, for want of another word; one byte is never worth a resume.
        return int(match[1]) + 1 if int(match[1]) else 0

    def cancel_upload(self, session: Session) -> None:
        """Let the registry forget an upload; what it answers is of no interest."""
        try:
            self.send("DELETE", session.url, b"", {}).close()
        except (RegistryError, PermissionDenied):
            pass  # it will forget it by itself, some day

    def move(self, session: Session, response: Response) -> None:
        """Go on where the registry says, if it says."""
        if response.headers.get("Location"):
            session.url = self._location(response)

    def _session(self, response: Response) -> Session:
        least = response.headers.get("OCI-Chunk-Min-Length", "").strip()
        is_number = least.isascii() and least.isdigit() and len(least) < 12
        return Session(self._location(response), int(least) if is_number else 0)

    def _location(self, response: Response) -> str:
        where = response.headers.get("Location", "").strip()
        host = quote(self.reference.host)
        if not where:
            raise RegistryError(f"registry {host} does not say where to upload to")
        try:
            url = urljoin(response.url, where)
        except ValueError as e:
            raise RegistryError(f"registry {host} sent an invalid Location: {quote(where)}") from e
        own = urlsplit(self.transport.base_url)
        if urlsplit(url)[:2] == ("http", own.netloc) and own.scheme == "https":
            # A registry behind a proxy that ends TLS knows no better. Never the other way around.
            url = "https" + url.removeprefix("http")
        self.transport.check(url, f"upload address of registry {host}")
        return url

    def _is_own(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self.transport.base_url)[:2]

    # -- manifests --------------------------------------------------------------------------------

    def put_manifest(self, target: str, data: bytes, media_type: str) -> bool:
        """Store a manifest under a tag or digest; whether the registry took note of its subject."""
        url = f"{self._base_url}manifests/{target}"
        what = f"pushing manifest {quote(target)}"
        with self._put_patiently(url, data, {"Content-Type": media_type}) as response:
            if response.status not in (200, 201, 202):
                raise self.refused(response, what)
            said = response.headers.get("Docker-Content-Digest", "").strip()
            digest = digest_bytes(data)
            if said.startswith("sha256:") and said != digest:
                raise IntegrityError(f"{what}: the registry has {quote(said)}, not {digest}")
            return "OCI-Subject" in response.headers

    def _put_patiently(self, url: str, data: bytes, headers: Mapping[str, str]) -> Response:
        for attempt in range(self.transport.patience.attempts):
            is_last = attempt + 1 == self.transport.patience.attempts
            wait_s: float | None = 0.0
            try:
                response = self.send("PUT", url, data, headers)
            except TransportError as e:
                if is_last or not e.is_transient:
                    raise
            else:
                wait_s = self.transport.retry_wait(response)
                if is_last or wait_s is None:
                    return response
                response.close()
            self.transport.pause(attempt, at_least_s=wait_s or 0)
        raise AssertionError("unreachable")

    def add_referrer(self, subject: Digest, entry: dict[str, object]) -> None:
        """Put an entry on the list of referrers that clients keep, as this registry keeps none.

        Two that do so at once lose one of the entries; the spec knows no better.
        """
        tag = referrers_tag(subject)
        index: dict[str, object] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        try:
            data = self.get_manifest(tag)[0]
        except NotFound:
            pass
        else:
            self.read_referrers(data)  # refuses what is no such list
            index = json.loads(data)
        entries = index["manifests"]
        assert isinstance(entries, list)
        if all(known["digest"] != entry["digest"] for known in entries):
            entries.append(entry)
            self.put_manifest(tag, json.dumps(index, separators=(",", ":")).encode(), OCI_INDEX)

    def delete_manifest(self, target: str) -> None:
        """Remove a manifest by digest with all its tags, or one tag.

        Raises Unsupported where the registry cannot remove a tag by itself.
        """
        what = f"removing manifest {quote(target)}"
        self._delete(f"manifests/{target}", what, is_tag=":" not in target)

    def delete_blob(self, digest: Digest) -> None:
        """Remove a blob from the repository."""
        self._delete(f"blobs/{digest}", f"removing blob {digest}")

    def _delete(self, path: str, what: str, *, is_tag: bool = False) -> None:
        with self._request(
            "DELETE", path, {}, f"repository:{self.reference.path}:delete,pull"
        ) as response:
            if is_tag and response.status in (400, 405):
                host = quote(self.reference.host)
                raise Unsupported(f"registry {host} cannot remove a tag by itself")
            if response.status not in (200, 202, 204):
                raise self.refused(response, what)

    # -- errors -----------------------------------------------------------------------------------

    def refused(self, response: Response, what: str) -> ScowError:
        """The error for an answer; with the registry's own words if it has some."""
        body = response.read(MAX_ERROR_BYTES)
        status, host = response.status, quote(self.reference.host)
        image = quote(self.reference.familiar)
        words = error_words(body)
        meant = next((text for code, text in _WORDS.items() if code in body), "")
        because = "".join(f": {part}" for part in (words, meant) if part)
        where = f"{what} of {image}"
        if status in (401, 403):
            return PermissionDenied(
                f"registry {host} denies {where}{because}",
                hint=f"check the name, or log in: scow login {self.reference.host}",
            )
        if status == 404:
            return NotFound(f"{where}: registry {host} has no such thing{because}")
        if status == 405:
            return RegistryError(
                f"registry {host} does not allow {where}{because}",
                hint="it may be a read-only mirror, or have this turned off",
            )
        if status == 413:
            return RegistryError(
                f"{where}: too large for registry {host}{because}",
                hint="it, or a proxy before it, limits the size of requests",
            )
        hint = None
        if status == 429:
            wait = response.headers.get("Retry-After", "").strip()
            because = f": too many requests{because}"
            hint = f"it asks to wait {quote(wait, 40)} (seconds, or until)" if wait else None
        return RegistryError(
            f"{where}: registry {host} answered status {status}{because}", hint=hint
        )
