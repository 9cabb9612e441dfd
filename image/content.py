"""The content store: blobs by digest in an OCI image layout, and the index that names them.

What belongs here: files, locks and durability of `images/`. What must not: networks, and what a
blob means. On disk:

    oci-layout index.json blobs/ALG/HEX     the layout that any OCI tool can read
    ingest/ALG-HEX                          a blob that is being written; flock = somebody does
    ingest/lease-*                          what a pull under way needs; flock = it is alive
    summaries/HEX.json                      derived, see store.py
    lock                                    flock around every change of the index

Invariant: a blob gets its name after its size and digest are verified and it is on disk. kill -9
at any line leaves at most an ingest file, which the next writer of that blob continues.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from scow.image.digest import DiffID, Digest, algorithm_of, hex_of, new_hasher, verify_bytes
from scow.image.files import (
    create_file,
    is_same_file,
    read_exactly,
    read_file,
    storage_errors,
    sync_directory,
    write_all,
)
from scow.image.media_types import OCI_INDEX
from scow.native.errors import IntegrityError, NotFound, ScowError

CHUNK_BYTES = 1 << 20
MAX_INDEX_BYTES = 64 << 20
KEEP_PARTIAL_BYTES = 1 << 20  # less is not worth a resume
LOCK_POLL_S = 0.05

REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_ID = "io.scow.image.id"
REPO_DIGEST = "io.scow.image.repo-digest"
DELETING = "io.scow.image.deleting"


class IndexEntry(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """One descriptor of index.json, as much of it as scow writes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    platform: dict[str, str] | None = None
    artifact_type: str | None = None

    @property
    def name(self) -> str:
        """The canonical reference, or "" for an image without a name."""
        return self.annotations.get(REF_NAME, "")

    @property
    def image_id(self) -> str:
        """The digest of the config, or "" where another program wrote the entry."""
        return self.annotations.get(IMAGE_ID, "")

    @property
    def repo_digest(self) -> str:
        """`HOST/PATH@DIGEST` as the registry has it, or ""."""
        return self.annotations.get(REPO_DIGEST, "")

    @property
    def is_deleting(self) -> bool:
        """Whether a removal began; such an entry exists only for the collector."""
        return DELETING in self.annotations

    def annotated(self, **changes: str) -> IndexEntry:
        """A copy with annotations set (name, repo_digest, deleting), or dropped where empty."""
        keys = {"name": REF_NAME, "repo_digest": REPO_DIGEST, "deleting": DELETING}
        annotations = dict(self.annotations)
        for word, value in changes.items():
            annotations[keys[word]] = value
        return msgspec.structs.replace(
            self, annotations={k: v for k, v in annotations.items() if v}
        )


class _IndexFile(msgspec.Struct, rename="camel"):
    schema_version: int
    manifests: list[IndexEntry]
    media_type: str = OCI_INDEX


class _Lease(msgspec.Struct):
    blobs: list[str] = []
    layers: list[str] = []


class ContentStore:
    """The files below `root`, made when something is first written."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.ingest_dir = os.path.join(root, "ingest")
        self.summary_dir = os.path.join(root, "summaries")

    # -- blobs ------------------------------------------------------------------------------------

    def blob_path(self, digest: Digest) -> str:
        """Where the blob is, or would be."""
        return os.path.join(self.root, "blobs", algorithm_of(digest), hex_of(digest))

    def has_blob(self, digest: Digest, size: int | None = None) -> bool:
        """Whether the blob is here, of this size if one is given."""
        try:
            found = os.stat(self.blob_path(digest)).st_size
        except FileNotFoundError:
            return False
        return size is None or found == size

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        """A whole small blob, verified."""
        try:
            fd = os.open(self.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as e:
            raise NotFound(f"blob {digest} is not in the content store") from e
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                raise IntegrityError(f"blob {digest} has {size} bytes, more than {limit}")
            data = read_exactly(fd, size)
        finally:
            os.close(fd)
        verify_bytes(data, digest, None, f"blob {digest} in the content store")
        return data

    def read_chunks(self, digest: Digest) -> Iterator[bytes]:
        """The blob in pieces, verified at the end (IntegrityError comes after the last piece)."""
        fd = os.open(self.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        hasher = new_hasher(algorithm_of(digest))
        try:
            while chunk := os.read(fd, CHUNK_BYTES):
                hasher.update(chunk)
                yield chunk
        finally:
            os.close(fd)
        if hasher.hexdigest() != hex_of(digest):
            raise IntegrityError(
                f"blob {digest} in the content store is damaged",
                hint="`scow system check --repair` removes it",
            )

    def write_blob(self, data: bytes, digest: Digest) -> None:
        """Store a small blob, verifying it."""
        ingest = self.ingest(digest, len(data))
        if ingest is None:
            return
        with ingest:
            ingest.restart()
            ingest.write(data)
            ingest.commit()

    def ingest(
        self, digest: Digest, size: int, is_cancelled: Callable[[], bool] = lambda: False
    ) -> BlobIngest | None:
        """Claim the writing of one blob; None when it is here, perhaps because another just did it.

        This lock is held over the network on purpose: it is what makes two pulls download a blob
        once. It guards nothing else, and who waits for it holds no other lock.
        """
        self.prepare()
        while not self.has_blob(digest, size):
            claimed = self._claim(digest)
            if claimed is not None:
                return BlobIngest(self, digest, size, claimed)
            if is_cancelled():
                raise ScowError(f"waiting for blob {digest} was cancelled")
            time.sleep(LOCK_POLL_S)
        return None

    def ingest_path(self, digest: Digest) -> str:
        """The file that a blob is written to before it has its name."""
        return os.path.join(self.ingest_dir, f"{algorithm_of(digest)}-{hex_of(digest)}")

    def _claim(self, digest: Digest) -> int | None:
        path = self.ingest_path(digest)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been renamed to its blob, or removed, between open and flock.
            if is_same_file(fd, path) and not self.has_blob(digest):
                return fd
            if is_same_file(fd, path):
                os.unlink(path)
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def is_claimed(self, path: str) -> bool:
        """Whether somebody alive writes this ingest file."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True  # it has just become a blob
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    # -- the index --------------------------------------------------------------------------------

    def read_index(self) -> list[IndexEntry]:
        """The entries of index.json; none where there is no store yet."""
        path = os.path.join(self.root, "index.json")
        try:
            data = read_file(path, MAX_INDEX_BYTES)
        except FileNotFoundError:
            return []
        try:
            return msgspec.json.decode(data, type=_IndexFile).manifests
        except msgspec.DecodeError as e:
            raise IntegrityError(
                f"cannot read '{path}': {e}", hint="`scow system check --repair` rebuilds it"
            ) from e

    def write_index(self, entries: list[IndexEntry]) -> None:
        """Replace index.json; the caller holds `locked()`."""
        data = msgspec.json.encode(_IndexFile(2, entries))
        self.replace_file("index.json", data)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive right to change the index and to remove content; never held over a wait."""
        self.prepare()
        fd = os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def replace_file(self, name: str, data: bytes) -> None:
        """Durably replace the file `name` below the root; the caller holds `locked()`.

        As only the holder of the lock writes such temporary files, any that another holder finds is
        a dead one's.
        """
        target = os.path.join(self.root, name)
        temporary = os.path.join(self.ingest_dir, "new-" + os.path.basename(name))
        with storage_errors(target):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(temporary, flags, 0o600)
            try:
                write_all(fd, data)
                os.fsync(fd)
                os.rename(temporary, target)
            except BaseException:
                os.unlink(temporary)
                raise
            finally:
                os.close(fd)
            sync_directory(os.path.dirname(target))

    def prepare(self) -> None:
        """Make the directories and the marker file of the layout; cheap when they are there."""
        if os.path.exists(os.path.join(self.root, "oci-layout")):
            return
        with storage_errors(self.root):
            for path in (
                os.path.join(self.root, "blobs", "sha256"),
                os.path.join(self.root, "blobs", "sha512"),
                self.ingest_dir,
                self.summary_dir,
            ):
                os.makedirs(path, mode=0o700, exist_ok=True)
            # makedirs' mode is for the last directory only.
            os.chmod(self.root, 0o700)
            create_file(
                os.path.join(self.root, "index.json"), msgspec.json.encode(_IndexFile(2, []))
            )
            create_file(os.path.join(self.root, "oci-layout"), b'{"imageLayoutVersion":"1.0.0"}')

    # -- leases -----------------------------------------------------------------------------------

    def lease(self) -> Lease:
        """Begin a lease: what it names stays until it is closed or its process dies."""
        with self.locked():
            path = os.path.join(self.ingest_dir, f"lease-{os.getpid()}-{time.monotonic_ns()}")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with storage_errors(path):
                fd = os.open(path, flags, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
        return Lease(self, path, fd)

    def leases(self) -> list[LeaseRecord]:
        """Every lease, alive or left by a pull that failed or died. The caller holds `locked()`."""
        records: list[LeaseRecord] = []
        for name in os.listdir(self.ingest_dir):
            if name.startswith("lease-"):
                records.append(_read_lease(os.path.join(self.ingest_dir, name)))
        return records


def _read_lease(path: str) -> LeaseRecord:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        is_alive = False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_alive = True
        status = os.fstat(fd)
        try:
            held = msgspec.json.decode(read_exactly(fd, status.st_size), type=_Lease)
        except msgspec.DecodeError:
            held = _Lease()  # its process died before or while it wrote: then it holds nothing
        age_s = time.time() - status.st_mtime
        return LeaseRecord(path, is_alive, age_s, frozenset(held.blobs), frozenset(held.layers))
    finally:
        os.close(fd)


class LeaseRecord(msgspec.Struct, frozen=True):
    """What the collector sees of a lease."""

    path: str
    is_alive: bool
    age_s: float
    blobs: frozenset[str]
    layers: frozenset[str]


class Lease:
    """A promise of the collector not to touch some content."""

    def __init__(self, store: ContentStore, path: str, fd: int) -> None:
        self._store = store
        self._path = path
        self._fd = fd
        self._held = _Lease()

    def hold(
        self, *, blobs: list[Digest] | None = None, layers: list[DiffID] | None = None
    ) -> None:
        """Add content; do so before looking whether it is there."""
        self._held.blobs += blobs or []
        self._held.layers += layers or []
        with self._store.locked(), storage_errors(self._path):
            data = msgspec.json.encode(self._held)
            os.pwrite(self._fd, data, 0)  # only ever longer than what was there

    def finish(self) -> None:
        """All of it is named by the index now: the record has no further use."""
        self._held = _Lease()

    def close(self) -> None:
        """End the promise; closing twice is fine.

        Unless `finish` was called the record stays, dead: a retry finds the content still there, and
        the collector finds what nobody came back for.
        """
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if not (self._held.blobs or self._held.layers):
                os.unlink(self._path)
            os.close(fd)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class BlobIngest:
    """One blob being written, with the lock on it.

    Left without `commit` the bytes stay for a resume if there are enough of them, unless `discard`
    was called because they are wrong.
    """

    def __init__(self, store: ContentStore, digest: Digest, size: int, fd: int) -> None:
        self.digest = digest
        self.size = size
        self.offset = 0  # how many bytes are hashed and in the file
        self._store = store
        self._fd = fd
        self._hasher = new_hasher(algorithm_of(digest))
        self._keep = True

    @property
    def resumable_bytes(self) -> int:
        """How many bytes an earlier attempt left."""
        return min(os.fstat(self._fd).st_size, self.size)

    def resume(self) -> Iterator[bytes]:
        """The bytes that an earlier attempt left, hashed on the way; write() continues after them."""
        end = self.resumable_bytes
        os.ftruncate(self._fd, end)
        os.lseek(self._fd, 0, os.SEEK_SET)
        while self.offset < end:
            chunk = os.read(self._fd, min(CHUNK_BYTES, end - self.offset))
            if not chunk:
                break
            self._hasher.update(chunk)
            self.offset += len(chunk)
            yield chunk

    def restart(self) -> None:
        """Forget all bytes."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hasher = new_hasher(algorithm_of(self.digest))
        self.offset = 0

    def write(self, chunk: bytes) -> None:
        """Append; raises IntegrityError as soon as there is more than there should be."""
        if self.offset + len(chunk) > self.size:
            self.discard()
            raise IntegrityError(f"blob {self.digest}: expected {self.size} bytes, got more")
        self._hasher.update(chunk)
        with storage_errors(self._store.ingest_path(self.digest), self.discard):
            write_all(self._fd, chunk)
        self.offset += len(chunk)

    def commit(self) -> None:
        """Verify and give the blob its name, durably."""
        self.verify()
        target = self._store.blob_path(self.digest)
        with storage_errors(target, self.discard):
            os.fsync(self._fd)
            os.rename(self._store.ingest_path(self.digest), target)
            sync_directory(os.path.dirname(target))
        self.close()

    def verify(self) -> None:
        """Raise IntegrityError unless the bytes so far are the whole blob; size first."""
        if self.offset != self.size:
            raise IntegrityError(
                f"blob {self.digest}: expected {self.size} bytes, got {self.offset}"
            )
        actual = self._hasher.hexdigest()
        if actual != hex_of(self.digest):
            self.discard()
            raise IntegrityError(
                f"blob {self.digest}: expected this digest, "
                f"got {algorithm_of(self.digest)}:{actual}"
            )

    def discard(self) -> None:
        """The bytes are wrong or the disk is full: closing removes them."""
        self._keep = False

    def close(self) -> None:
        """Give the lock up; closing twice is fine."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            path = self._store.ingest_path(self.digest)
            keep = self._keep and os.fstat(fd).st_size >= KEEP_PARTIAL_BYTES
            if not keep and is_same_file(fd, path):
                os.unlink(path)
        finally:
            os.close(fd)

    def __enter__(self) -> BlobIngest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
