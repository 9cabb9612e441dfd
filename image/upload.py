"""Getting one blob into a registry, whatever the network does.

What belongs here: one upload: in one piece or in several, resumed, begun again, given up. What must
not: which blobs there are. A request is counted as failed only when nothing of it arrived.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from scow.image.digest import Digest, algorithm_of, hex_of, new_hasher
from scow.image.registry_write import BLOB_TYPE, RegistryWriter, Session
from scow.image.tee import Cancelled
from scow.image.transport import Body, Response
from scow.image.transport_errors import TransportError
from scow.native.errors import IntegrityError

PIECE_BYTES = 1 << 20
CHUNK_BYTES = 16 << 20  # of an upload in several requests: what most proxies let pass


class UploadProgress(Protocol):
    """What is told about one blob; `sent` counts further bytes, `restarted` takes back to 0."""

    def sent(self, blob: str, count: int) -> None: ...
    def restarted(self, blob: str) -> None: ...


@dataclass(frozen=True, slots=True)
class BlobFile:
    """A blob on disk; the descriptor is borrowed, and read from several places at once."""

    fd: int
    digest: Digest
    size: int


class _Span:
    """Some bytes of a blob as the body of a request."""

    def __init__(self, blob: BlobFile, start: int, end: int, note: Callable[[int], None]) -> None:
        self._blob = blob
        self._start = start
        self._end = end
        self._note = note

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[bytes]:
        position = self._start
        while position < self._end:
            piece = os.pread(self._blob.fd, min(PIECE_BYTES, self._end - position), position)
            if not piece:
                raise IntegrityError(f"blob {self._blob.digest} is shorter than it should be")
            yield piece
            position += len(piece)
            self._note(len(piece))


class _Later(TransportError):
    """The registry asks to come back, or has lost what it had."""

    def __init__(self, message: str, wait_s: float = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, is_transient=True)
        self.wait_s = wait_s


class BlobUpload:
    """One upload; `run` returns when the registry has the blob, or raises."""

    def __init__(
        self,
        registry: RegistryWriter,
        blob: BlobFile,
        session: Session,
        progress: UploadProgress,
        *,
        layer: str,
        stop: threading.Event,
    ) -> None:
        """`layer` is what `progress` calls the blob."""
        self._registry = registry
        self._blob = blob
        self._session = session
        self._progress = progress
        self._layer = layer
        self._stop = stop
        self._offset = 0  # what the registry has, as far as we know
        self._chunk_bytes = 0  # 0: all in one request
        self._begun = 1
        self._what = f"pushing blob {blob.digest}"

    def run(self) -> None:
        """Send all of it."""
        try:
            self._run()
        except BaseException:
            self._registry.cancel_upload(self._session)
            raise

    def _run(self) -> None:
        attempts = self._registry.transport.patience.attempts
        failures = 0
        while True:
            before = self._offset
            try:
                if self._step():
                    return
                failures = 0
            except TransportError as e:
                failures += 1
                if not e.is_transient or failures >= attempts or self._begun > attempts:
                    raise
                wait_s = e.wait_s if isinstance(e, _Later) else 0
                self._registry.transport.pause(failures - 1, at_least_s=wait_s)
                self._find_position()
                if self._offset > before:
                    failures = 0

    def _step(self) -> bool:
        """One request; whether it was the last one."""
        size = self._blob.size
        if not self._offset and not self._chunk_bytes:
            return self._finish(self._span(0, size))
        if self._offset == size:
            return self._finish(b"")
        self._send_chunk(min(size, self._offset + (self._chunk_bytes or size)))
        return False

    def _finish(self, body: bytes | Body) -> bool:
        url = self._session.with_digest(self._blob.digest)
        with self._registry.send("PUT", url, body, BLOB_TYPE) as response:
            if response.status in (200, 201, 204):
                return True
            if response.status == 413 and self._make_chunks():
                return False
            if response.status == 400:
                self._check_local()
            raise self._refused(response)

    def _send_chunk(self, end: int) -> None:
        start = self._offset
        headers = {**BLOB_TYPE, "Content-Range": f"{start}-{end - 1}"}
        body = self._span(start, end)
        with self._registry.send("PATCH", self._session.url, body, headers) as response:
            if response.status in (201, 202, 204):
                self._registry.move(self._session, response)
                has = self._registry.uploaded_bytes(response)
                if has is not None and not start < has <= end:
                    raise _Later(f"{self._what}: the registry has {has} bytes instead of {end}")
                self._offset = end if has is None else has
            elif response.status == 416:
                raise _Later(f"{self._what}: the registry does not go on at byte {start}")
            elif not (response.status == 413 and self._make_chunks()):
                raise self._refused(response)

    def _make_chunks(self) -> bool:
        """Take to several requests, from the start; False where that would change nothing."""
        size = max(CHUNK_BYTES, self._session.least_chunk)
        if self._chunk_bytes or self._blob.size <= size:
            return False
        self._chunk_bytes = size
        self._begin_again()
        return True

    def _refused(self, response: Response) -> Exception:
        wait_s = self._registry.transport.retry_wait(response)
        error = self._registry.refused(response, self._what)
        if wait_s is not None or response.status == 404:  # 404: it has forgotten the upload
            return _Later(error.message, wait_s or 0, error.hint)
        return error

    def _find_position(self) -> None:
        """Ask how much arrived; begin again where that is not known any more."""
        has = self._registry.ask_upload(self._session)
        if has is None or has > self._blob.size:
            self._begin_again()
            return
        self._offset = has
        self._progress.restarted(self._layer)
        self._progress.sent(self._layer, has)

    def _begin_again(self) -> None:
        self._registry.cancel_upload(self._session)
        self._session = self._registry.begin_upload()
        self._offset = 0
        self._begun += 1
        self._progress.restarted(self._layer)

    def _span(self, start: int, end: int) -> bytes | Body:
        # Of an empty body the HTTP library would not tell the length.
        return _Span(self._blob, start, end, self._note) if end > start else b""

    def _note(self, count: int) -> None:
        if self._stop.is_set():
            raise Cancelled("given up")
        self._progress.sent(self._layer, count)

    def _check_local(self) -> None:
        """Before the registry is blamed for a wrong digest."""
        hasher = new_hasher(algorithm_of(self._blob.digest))
        position = 0
        while piece := os.pread(self._blob.fd, PIECE_BYTES, position):
            hasher.update(piece)
            position += len(piece)
        if hasher.hexdigest() != hex_of(self._blob.digest):
            raise IntegrityError(
                f"blob {self._blob.digest} in the content store is damaged",
                hint="`scow system check --repair` removes it; then pull the image again",
            )
