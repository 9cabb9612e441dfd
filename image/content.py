"""The content store: blobs by digest in an OCI image layout, and the index that names them.

What belongs here: files, locks and durability of `images/`. What must not: networks, and what a
blob means. On disk:

    oci-layout index.json blobs/ALG/HEX     the layout that any OCI tool can read
    ingest/ALG-HEX                          a blob that is being written; flock = somebody does
    ingest/lease-*                          what a pull under way needs; flock = it is alive
    summaries/HEX.json                      derived, see store.py
    dropped/ALG-HEX                         of a blob that is not kept, see dropped.py
    lock                                    flock around every change of the index
    index.copy                              of index.json, which alone knows the names
    reserve                                 room to remove images in when the disk is full

Invariant: a blob gets its name after its size and digest are verified and it is on disk. kill -9
at any line leaves at most an ingest file, which the next writer of that blob continues.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from scow.image.digest import (
    Digest,
    algorithm_of,
    hex_of,
    new_hasher,
    verify_bytes,
)
from scow.image.files import (
    checked,
    create_file,
    is_same_file,
    read_exactly,
    read_file,
    storage_errors,
    sync_directory,
    unchecked,
    write_all,
)
from scow.image.index import IMAGE_ID as IMAGE_ID
from scow.image.index import REF_NAME as REF_NAME
from scow.image.index import IndexEntry as IndexEntry
from scow.image.index import damaged_index, decode_index, encode_index
from scow.image.lease import Lease as Lease
from scow.image.lease import LeaseRecord as LeaseRecord
from scow.image.lease import open_lease, read_lease
from scow.image.waiting import lock_file
from scow.native.errors import (
    IntegrityError,
    NotFound,
    ResourceExhausted,
    ScowError,
)
from scow.native.failpoint import failpoint
from scow.native.fd import Closing

T = TypeVar("T")
CHUNK_BYTES = 1 << 20
MAX_INDEX_BYTES = 64 << 20
KEEP_PARTIAL_BYTES = 1 << 20  # less is not worth a resume
LOCK_POLL_S = 0.05
INDEX, INDEX_COPY, LAYOUT = "index.json", "index.copy", "oci-layout"
LAYOUT_TEXT = b'{"imageLayoutVersion":"1.0.0"}'
RESERVE, RESERVE_BYTES = "reserve", 1 << 20


class ContentStore:
    """The files below `root`, made when something is first written."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.ingest_dir = os.path.join(root, "ingest")
        self.summary_dir = os.path.join(root, "summaries")
        self.note_dir = os.path.join(root, "dropped")

    # -- blobs ------------------------------------------------------------------------------------

    def blob_path(self, digest: Digest) -> str:
        """Where the blob is, or would be."""
        return os.path.join(self.root, "blobs", algorithm_of(digest), hex_of(digest))

    def note_path(self, digest: Digest) -> str:
        """Where it is noted that the blob was dropped, if it was."""
        return os.path.join(self.note_dir, f"{algorithm_of(digest)}-{hex_of(digest)}")

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

    def sync_names(self) -> None:
        """Make the names of all blobs last."""
        for algorithm in ("sha256", "sha512"):
            failpoint("blob.sync-name")
            sync_directory(os.path.join(self.root, "blobs", algorithm))

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

    def read_index(self, name: str = INDEX) -> list[IndexEntry]:
        """The entries of index.json; none where there is no store yet."""
        path = os.path.join(self.root, name)
        try:
            data = read_file(path, MAX_INDEX_BYTES)
        except FileNotFoundError as e:
            # It is made before the marker of the layout: without it, the store has lost it.
            if name == INDEX and os.path.exists(os.path.join(self.root, LAYOUT)):
                raise damaged_index(path, "it is gone") from e
            return []
        except OSError as e:
            raise damaged_index(path, (e.strerror or str(e)).lower()) from e
        return decode_index(unchecked(data, path) if name == INDEX_COPY else data, path)

    def write_index(self, entries: list[IndexEntry], *, removes: bool = False) -> None:
        """Replace index.json; the caller holds `locked()`.

        With `removes` it also works on a full disk: the reserve is given up for it, then the copy.
        """
        data = encode_index(entries)
        spare = [RESERVE, INDEX_COPY] if removes else []
        while True:
            try:
                self.replace_file(INDEX, data)
                break
            except ResourceExhausted:
                if not self._give_up(spare):
                    raise
        # For the day that index.json is damaged. One that is not on the disk yet is of no harm.
        with contextlib.suppress(ScowError):
            self.replace_file(INDEX_COPY, checked(data), durable=False)

    def keep_reserve(self) -> None:
        """Hold back a little of the disk, so that images can be removed when it is full."""
        path = os.path.join(self.root, RESERVE)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            if os.fstat(fd).st_blocks * 512 < RESERVE_BYTES:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except OSError:
            self._give_up([RESERVE])  # full already: it would only take what others need
        finally:
            os.close(fd)

    def with_reserve(self, write: Callable[[], T]) -> T:
        """Do what must also work on a full disk."""
        try:
            return write()
        except ResourceExhausted:
            if not self._give_up([RESERVE]):
                raise
            return write()

    def _give_up(self, names: list[str]) -> bool:
        """Take the first of these files from the list and from the disk; False where none is there."""
        while names:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.root, names.pop(0)))
                return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive right to change the index and to remove content; never held over a wait.

        DeadlineExceeded where somebody has it and does nothing.
        """
        self.prepare()
        fd = os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lock_file(fd, f"the image store '{self.root}'")
            yield
        finally:
            os.close(fd)

    def replace_file(
        self, name: str, data: bytes, *, durable: bool = True, point: str = ""
    ) -> None:
        """Durably replace the file `name` below the root; the caller holds `locked()`.

        Its fail points begin with `point`.

        As only the holder of the lock writes such temporary files, any that another holder finds is
        a dead one's.
        """
        target = os.path.join(self.root, name)
        temporary = os.path.join(self.ingest_dir, "new-" + os.path.basename(name))
        point = point or name
        with storage_errors(target):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            failpoint(f"{point}.create")
            fd = os.open(temporary, flags, 0o600)
            try:
                failpoint(f"{point}.write")
                write_all(fd, data)
                if durable:
                    failpoint(f"{point}.sync")
                    os.fsync(fd)
                failpoint(f"{point}.name")
                os.rename(temporary, target)
            except BaseException:
                os.unlink(temporary)
                raise
            finally:
                os.close(fd)
            if durable:
                failpoint(f"{point}.sync-name")
                sync_directory(os.path.dirname(target))

    def prepare(self) -> None:
        """Make the directories and the marker file of the layout; cheap when they are there."""
        if all(os.path.exists(p) for p in (os.path.join(self.root, LAYOUT), self.ingest_dir)):
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
            if not os.path.exists(os.path.join(self.root, LAYOUT)):
                create_file(os.path.join(self.root, INDEX), encode_index([]))
                create_file(os.path.join(self.root, LAYOUT), LAYOUT_TEXT)

    # -- leases -----------------------------------------------------------------------------------

    def lease(self, *, spends_reserve: bool = False) -> Lease:
        """Begin a lease: what it names stays until it is closed or its process dies.

        With `spends_reserve` also on a full disk: who saves an image elsewhere is about to make room.
        """
        with self.locked():
            self.keep_reserve()
            if spends_reserve:
                return self.with_reserve(lambda: open_lease(self, self.with_reserve))
            return open_lease(self)

    def leases(self) -> list[LeaseRecord]:
        """Every lease, alive or left by a pull that failed or died. The caller holds `locked()`."""
        names = [name for name in os.listdir(self.ingest_dir) if name.startswith("lease-")]
        found = (read_lease(os.path.join(self.ingest_dir, name)) for name in names)
        return [record for record in found if record is not None]


class BlobIngest(Closing):
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
            failpoint("blob.write")
            write_all(self._fd, chunk)
        self.offset += len(chunk)

    def commit(self, *, is_synced: bool = False) -> None:
        """Verify and give the blob its name, durably.

        `is_synced`: the caller saw its bytes to the disk, and calls `sync_names` for its name.
        """
        self.verify()
        target = self._store.blob_path(self.digest)
        with storage_errors(target, self.discard):
            if not is_synced:
                failpoint("blob.sync")
                os.fsync(self._fd)
            failpoint("blob.name")
            os.rename(self._store.ingest_path(self.digest), target)
            if not is_synced:
                failpoint("blob.sync-name")
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
