"""The pipeline that turns a compressed layer into a directory.

What belongs here: caller's chunks -> decompress -> hash -> pipe -> scow-untar, and what the applet
reports. What must not: where layers live (layers.py), the network. Two threads of Python: the caller's
decompresses, the other hashes and writes to the pipe; both stages release the GIL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from scow.image.decompress import Decompressor
from scow.image.digest import DiffID, algorithm_of, new_hasher, quote
from scow.image.disk_sync import DiskSync
from scow.image.files import write_all
from scow.native import spawn
from scow.native.errors import IntegrityError, ResourceExhausted, ScowError
from scow.native.fd import OwnedFd

DEFAULT_LIMIT_BYTES = 64 << 30
MAX_ENTRIES = 10_000_000

_PIPE_BYTES = 1 << 20
_BATCH_BYTES = 256 << 10
_BATCH_PIECES = 64
_QUEUED_BATCHES = 4
_MAX_REPORT_BYTES = 64 << 20  # the applet stops at 16 MiB

# The number of fields after each letter (native/untar_report.c).
_FIELDS = {"L": 2, "I": 1, "X": 1, "O": 0, "E": 4, "S": 1}
_EXHAUSTED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_HOST_FAULTS = frozenset({errno.EIO, errno.EROFS, errno.EUCLEAN})


class LowerNeeds(msgspec.Struct, frozen=True):
    """What a layer says about the layers below it and an unpacker of one layer cannot do."""

    links: tuple[tuple[bytes, bytes], ...] = ()  # (name, target): hard links to lower files
    implied: tuple[bytes, ...] = ()  # directories that the tar did not list
    opaque_root: bool = False

    def __bool__(self) -> bool:
        return bool(self.links or self.implied or self.opaque_root)


class Unpacked(msgspec.Struct, frozen=True):
    """The outcome of a good run."""

    entries: int
    data_bytes: int
    tar_bytes: int
    needs: LowerNeeds


class _Failure(msgspec.Struct, frozen=True):
    error: int
    offset: int
    entry: bytes
    message: str


class _PipeWriter(threading.Thread):
    """Hashes batches and writes them to the pipe; after a failure it only drains its queue."""

    def __init__(self, pipe: OwnedFd, algorithm: str, disk: DiskSync | None) -> None:
        super().__init__(name="scow-layer-writer", daemon=True)
        self._pipe = pipe
        self._disk = disk
        self._hasher = new_hasher(algorithm)
        self._batches: queue.Queue[list[bytes] | None] = queue.Queue(_QUEUED_BATCHES)
        self.failure: OSError | None = None

    def put(self, batch: list[bytes] | None) -> None:
        """Queue a batch, None for the end; waits while the queue is full."""
        self._batches.put(batch)

    def run(self) -> None:
        """The thread."""
        with self._pipe:
            while (batch := self._batches.get()) is not None:
                if self.failure is None:
                    self._write(batch)

    def _write(self, batch: list[bytes]) -> None:
        for piece in batch:
            self._hasher.update(piece)
        try:
            for piece in batch:
                write_all(self._pipe.fileno(), piece)
        except OSError as error:  # EPIPE: the applet gave up, and its report says why
            self.failure = error
        if self._disk is not None:
            self._disk.wrote(sum(map(len, batch)))

    def digest(self) -> str:
        """Of all that was written, after the end."""
        return self._hasher.hexdigest()


def unpack(
    diff_id: DiffID,
    chunks: Iterable[bytes],
    layer_fd: int,
    *,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    keep_fds: Sequence[int] = (),
    disk: DiskSync | None = None,
) -> Unpacked:
    """Unpack the layer `diff_id` from compressed `chunks` into the empty directory `layer_fd`.

    On return the digest was right, but nothing need be on the disk: `disk` only hears of what is
    written. `keep_fds` stay open in the applet (a lock). Raises what `chunks` raises, IntegrityError
    for a bad layer, ResourceExhausted for a limit or a full disk; the directory then holds rubbish.
    """
    algorithm = algorithm_of(diff_id)
    with OwnedFd(os.memfd_create("scow-untar-report", os.MFD_CLOEXEC)) as report:
        read_end, write_end = _make_pipe()
        with read_end:
            argv = (str(limit_bytes), str(MAX_ENTRIES))
            fds = (layer_fd, report.fileno(), *keep_fds)
            try:
                pid, pidfd = spawn.run_applet("scow-untar", argv, fds, stdin=read_end.fileno())
            except BaseException:
                write_end.close()
                raise
        with pidfd:
            writer = _PipeWriter(write_end, algorithm, disk)
            status = _feed(writer, chunks, pid, pidfd)
            return _judge(diff_id, f"{algorithm}:{writer.digest()}", status, _read_report(report))


def _make_pipe() -> tuple[OwnedFd, OwnedFd]:
    read_end, write_end = (OwnedFd(fd) for fd in os.pipe2(os.O_CLOEXEC))
    try:
        fcntl.fcntl(write_end.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass  # above pipe-user-pages-soft: slower, not wrong
    return read_end, write_end


def _feed(writer: _PipeWriter, chunks: Iterable[bytes], pid: int, pidfd: OwnedFd) -> int:
    """Push everything through; returns the applet's exit code (negative: signal)."""
    writer.start()
    try:
        for batch in _batches(_decompress(chunks)):
            if writer.failure is not None:
                break
            writer.put(batch)
    except BaseException:
        # Else it would take the end of the pipe for the end of the layer, and sync the disk.
        signal.pidfd_send_signal(pidfd.fileno(), signal.SIGTERM)
        raise
    finally:
        writer.put(None)
        writer.join()
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _decompress(chunks: Iterable[bytes]) -> Iterator[bytes]:
    decompressor = Decompressor()
    for chunk in chunks:
        yield from decompressor.feed(chunk)
    yield from decompressor.finish()


def _batches(pieces: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Pieces to be handed over at once: a switch of threads costs as much as hashing 20 KiB."""
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= _BATCH_BYTES or len(batch) == _BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_report(report: OwnedFd) -> bytes:
    size = min(os.fstat(report.fileno()).st_size, _MAX_REPORT_BYTES)
    return os.pread(report.fileno(), size, 0)


def _records(report: bytes) -> Iterator[tuple[str, list[bytes]]]:
    fields = iter(report.split(b"\0"))
    for letter in fields:
        kind = letter.decode("ascii", "replace")
        if kind in _FIELDS:
            yield kind, [next(fields, b"") for _ in range(_FIELDS[kind])]


def _judge(diff_id: DiffID, actual: str, status: int, report: bytes) -> Unpacked:
    links: list[tuple[bytes, bytes]] = []
    implied: dict[bytes, None] = {}
    opaque_root = False
    counts: dict[str, int] | None = None
    for kind, fields in _records(report):
        match kind:
            case "L":
                links.append((fields[0], fields[1]))
            case "I":
                implied[fields[0]] = None
            case "X":
                implied.pop(fields[0], None)
            case "O":
                opaque_root = True
            case "S":
                pairs = (pair.split("=") for pair in fields[0].decode().split())
                counts = {key: int(value) for key, value in pairs}
            case _:
                error, offset, entry, message = fields
                failure = _Failure(int(error), int(offset), entry, message.decode(errors="replace"))
                raise _error(diff_id, failure)
    if status != 0 or counts is None:
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        raise ScowError(
            f"cannot unpack layer '{diff_id}': the unpacker ended without a report: {how}"
        )
    if actual != diff_id:
        raise IntegrityError(f"corrupt layer: expected diff id {diff_id}, got {actual}")
    needs = LowerNeeds(tuple(links), tuple(implied), opaque_root)
    return Unpacked(counts["entries"], counts["data_bytes"], counts["stream_bytes"], needs)


def _error(diff_id: DiffID, failure: _Failure) -> ScowError:
    if failure.entry:
        where = f"entry {quote(os.fsdecode(failure.entry))} at byte {failure.offset}"
    else:
        where = f"byte {failure.offset}"
    if failure.error in _EXHAUSTED:
        is_full = failure.error in (errno.ENOSPC, errno.EDQUOT)
        return ResourceExhausted(
            f"cannot unpack layer '{diff_id}': {where}: {failure.message}",
            hint="`scow rmi` of images that are not needed makes room" if is_full else None,
        )
    if failure.error in _HOST_FAULTS:
        return ScowError(f"cannot unpack layer '{diff_id}': {where}: {failure.message}")
    return IntegrityError(f"corrupt layer '{diff_id}': {where}: {failure.message}")
