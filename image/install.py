"""Taking an image in: from any source of blobs into the content store and the layer store.

What belongs here: what pulls and loads share. What must not: where the bytes come from. Each layer
goes through one pass: source -> digest -> blob file, and the same bytes -> decompress -> untar.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from scow.image.config import ConfigDocument
from scow.image.config_document import parse_config
from scow.image.content import IMAGE_ID, BlobIngest, IndexEntry, Lease
from scow.image.digest import DiffID, Digest, hex_of, quote, verify_bytes
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.dropped import drop_incoming, is_spared
from scow.image.files import checked, write_derived
from scow.image.manifest import (
    Descriptor,
    Manifest,
    Platform,
    check_layers,
    host_platform,
    parse_document,
    platform_matches,
)
from scow.image.store import SUMMARY_FORMAT, SummaryFile
from scow.image.tee import PARALLEL_BLOBS, BlobTee, Turn, stop_of
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, ScowError, Unsupported

if TYPE_CHECKING:
    from scow.image.progress import ProgressSink
    from scow.image.ranges import Fetcher
    from scow.image.stall import StallWatch
    from scow.image.store import ImageStore

Chunks = Generator[bytes, None, None]  # closed by whoever iterates, to end a transfer at once

UNPACK_LIMIT_BYTES = 64 << 30  # of one layer, unpacked: what is more is taken for a bomb


class BlobSource(Protocol):
    """Where blobs come from: a registry, an archive, a directory."""

    def open_blob(self, descriptor: Descriptor, offset: int) -> Chunks:
        """The blob's bytes from `offset` on; who calls verifies them."""
        ...


@runtime_checkable
class ManySources(Protocol):
    """A source that can get the same blob from several places."""

    def distrust(self, digest: Digest) -> bool:
        """The blob that was read is wrong; True where it is worth to read it again from byte 0."""
        ...


def has_another_source(source: BlobSource, digest: Digest) -> bool:
    """Call it after a blob's IntegrityError: whether the next `open_blob` will ask somebody else."""
    return isinstance(source, ManySources) and source.distrust(digest)


@dataclass(frozen=True, slots=True)
class ImageDocument:
    """A manifest with its exact bytes and its place in the world."""

    data: bytes
    digest: Digest
    media_type: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class _LayerJob:
    number: int
    descriptor: Descriptor
    diff_id: DiffID
    origin: str = ""


def read_image_document(
    data: bytes, digest: Digest, media_type: str | None, what: str
) -> ImageDocument:
    """Parse a manifest (not an index) of a container image, or of an artifact."""
    document = parse_document(data, media_type, what)
    if not isinstance(document, Manifest):
        raise InvalidArgument(f"{what} is an index where an image was expected")
    check_layers(document, what)
    return ImageDocument(data, digest, document.media_type, document)


def install_image(
    store: ImageStore,
    source: BlobSource,
    document: ImageDocument,
    lease: Lease,
    *,
    what: str,
    platform: Platform | None,
    progress: ProgressSink,
    origin: str = "",
) -> IndexEntry:
    """Fetch, verify, unpack and keep all of one image; returns its entry, still without a name.

    With an `origin`, from where they can be had again, layers are not kept as blobs (dropped.py).
    `platform` is what the user asked for in so many words, or None. The caller adds the entry to the
    index while `lease` is still open.
    """
    manifest = document.manifest
    blobs = [document.digest, manifest.config.digest, *(d.digest for d in manifest.layers)]
    lease.hold(blobs=blobs)
    if manifest.artifact:
        from scow.image.artifacts import install_artifact

        return install_artifact(store, source, document, what=what, progress=progress)
    config_data = _read_config(store, source, manifest.config, what)
    config = parse_config(config_data, f"config of {what}")
    if len(config.diff_ids) != len(manifest.layers):
        raise InvalidArgument(
            f"invalid config of {what}: {len(config.diff_ids)} diff ids "
            f"for {len(manifest.layers)} layers"
        )
    _check_platform(config, platform, what, progress)
    lease.hold(layers=list(config.diff_ids))
    documents = [(config_data, manifest.config.digest), (document.data, document.digest)]
    jobs = _layer_jobs(manifest, config, what, origin)
    _install_blobs(store, source, documents, jobs, progress)
    _write_summary(store, _summarise(store, document, config))
    # What others brought in counts as well: its name may not have lasted yet.
    store.content.sync_names()
    store.layers.sync_names()
    return IndexEntry(
        media_type=document.media_type,
        digest=document.digest,
        size=len(document.data),
        annotations={IMAGE_ID: manifest.config.digest},
        platform={
            k: v
            for k, v in {
                "architecture": config.architecture,
                "os": config.os,
                "variant": config.variant,
            }.items()
            if v
        },
    )


def rebuild_summary(store: ImageStore, digest: Digest, media_type: str) -> SummaryFile:
    """Make the summary of an image from its blobs."""
    data = store.content.read_blob(digest, MAX_DOCUMENT_BYTES)
    document = read_image_document(data, digest, media_type, f"manifest {digest}")
    if document.manifest.artifact:
        from scow.image.artifacts import summarise_artifact

        return summarise_artifact(document)
    config_data = store.content.read_blob(document.manifest.config.digest, MAX_DOCUMENT_BYTES)
    summary = _summarise(store, document, parse_config(config_data))
    with suppress(ScowError):  # a disk that is full or read-only: then it is made each time
        _write_summary(store, summary)
    return summary


def read_small_blob(source: BlobSource, descriptor: Descriptor, what: str) -> bytes:
    """A document from a source: bounded, then verified."""
    if descriptor.data is not None:
        return descriptor.data
    if descriptor.size > MAX_DOCUMENT_BYTES:
        raise InvalidArgument(f"{what} has {descriptor.size} bytes, more than {MAX_DOCUMENT_BYTES}")
    data = b""
    with closing(source.open_blob(descriptor, 0)) as chunks:
        for chunk in chunks:
            data += chunk
            if len(data) > descriptor.size:
                raise IntegrityError(f"{what}: expected {descriptor.size} bytes, got more")
    try:
        verify_bytes(data, descriptor.digest, descriptor.size, what)
    except IntegrityError:
        if has_another_source(source, descriptor.digest):
            return read_small_blob(source, descriptor, what)
        raise
    return data


def _read_config(store: ImageStore, source: BlobSource, config: Descriptor, what: str) -> bytes:
    if store.content.has_blob(config.digest, config.size):
        try:
            return store.content.read_blob(config.digest, MAX_DOCUMENT_BYTES)
        except IntegrityError:
            os.unlink(store.content.blob_path(config.digest))  # damaged: it is fetched again
    return read_small_blob(source, config, f"config of {what}")


def _check_platform(
    config: ConfigDocument, asked: Platform | None, what: str, progress: ProgressSink
) -> None:
    offered = Platform(config.os, config.architecture, config.variant)
    if config.os != "linux":
        raise Unsupported(f"{what} is for {quote(str(offered))}, not for linux")
    if asked is not None and not platform_matches(offered, asked):
        raise NotFound(f"{what} is not available for {asked}", hint=f"available: {offered}")
    if asked is None and not platform_matches(offered, host_platform()):
        progress.warning(f"{what} is for {offered}, this host is {host_platform()}")


def _layer_jobs(
    manifest: Manifest, config: ConfigDocument, what: str, origin: str
) -> list[_LayerJob]:
    """Each blob once, although a layer may stand several times in a stack."""
    jobs: dict[Digest, _LayerJob] = {}
    for number, (descriptor, diff_id) in enumerate(
        zip(manifest.layers, config.diff_ids, strict=True)
    ):
        known = jobs.get(descriptor.digest)
        if known is None:
            jobs[descriptor.digest] = _LayerJob(number, descriptor, diff_id, origin)
        elif known.diff_id != diff_id or known.descriptor.size != descriptor.size:
            raise InvalidArgument(
                f"invalid {what}: layers {known.number} and {number} are one blob "
                "with two sizes or diff ids"
            )
    # The largest first: else the end of the pull is one long layer alone.
    return sorted(jobs.values(), key=lambda job: -job.descriptor.size)


def _install_blobs(
    store: ImageStore,
    source: BlobSource,
    documents: list[tuple[bytes, Digest]],
    jobs: list[_LayerJob],
    progress: ProgressSink,
) -> None:
    from scow.image.ranges import Fetcher
    from scow.image.stall import StallWatch
    from scow.image.workers import Workers

    stop = stop_of(source)
    watch = StallWatch(progress)
    with (
        Fetcher(source, stop) as fetcher,
        # More than may have a turn: those that wait for the disk keep nobody from going on.
        Workers(2 * PARALLEL_BLOBS, "scow-layer") as pool,
    ):
        turn = Turn(stop)
        # The documents beside the layers, not after them: their fsyncs cost nothing then.
        waiting = {pool.submit(store.content.write_blob, *document) for document in documents}
        waiting |= {
            pool.submit(_LayerInstall(store, fetcher, job, watch, turn).run) for job in jobs
        }
        watch.see_to_end(waiting, stop)


class _LayerInstall:
    """One layer on its way in."""

    def __init__(
        self,
        store: ImageStore,
        source: Fetcher,
        job: _LayerJob,
        progress: StallWatch,
        turn: Turn,
    ) -> None:
        self._store = store
        self._source = source
        self._job = job
        self._layer = job.descriptor.digest
        self._progress = progress
        self._turn = turn

    def run(self) -> None:
        descriptor = self._job.descriptor
        has_blob = self._store.content.has_blob(descriptor.digest, descriptor.size)
        has_layer = self._store.layers.has(self._job.diff_id)
        if has_layer and (has_blob or self._is_spared()):
            self._progress.exists(self._layer, descriptor.size)
            return
        self._progress.start(self._layer, descriptor.size)
        try:
            may_resume = True
            while not self._attempt(may_resume=may_resume):
                # What a dead attempt or a bad mirror left is no part of this blob: again, from 0.
                self._progress.restarted(self._layer)
                may_resume = False
        except IntegrityError as e:
            raise IntegrityError(f"layer {self._job.number}: {e.message}", hint=e.hint) from e
        self._progress.done(self._layer)

    def _is_spared(self) -> bool:
        job = self._job
        return is_spared(self._store, job.descriptor, job.diff_id, job.origin)

    def _keep(self, ingest: BlobIngest, *, is_new: bool, is_synced: bool) -> None:
        job = self._job
        if not job.origin or not drop_incoming(
            self._store, ingest, job.diff_id, job.origin, is_new=is_new
        ):
            ingest.commit(is_synced=is_synced)

    def _attempt(self, *, may_resume: bool = True) -> bool:
        """Install the layer; False when it turned out damaged after a resume."""
        descriptor = self._job.descriptor
        content = self._store.content
        # Another process may be fetching it: what it gets counts as progress of ours.
        path = content.ingest_path(descriptor.digest)
        look = self._progress.growing(path, self._turn.stop.is_set)
        ingest = content.ingest(descriptor.digest, descriptor.size, look)
        self._progress.arrived(path)
        if ingest is None:
            return self._unpack_stored()
        with ingest:
            has_layer = self._store.layers.has(self._job.diff_id)
            if has_layer and self._is_spared():
                ingest.discard()  # another pull was first, and did not keep it
                return True
            if not may_resume:
                ingest.restart()
            was_resumed = may_resume and ingest.resumable_bytes > 0
            tee = BlobTee(ingest, self._source, descriptor, self._progress, self._turn)
            try:
                with closing(tee):
                    synced_bytes = self._unpack(tee, ingest)
                    tee.drain()
                is_synced = synced_bytes == descriptor.size
                self._keep(ingest, is_new=not has_layer, is_synced=is_synced)
            except IntegrityError:
                ingest.discard()
                if has_another_source(self._source, descriptor.digest) or was_resumed:
                    return False
                raise
        return True

    def _unpack_stored(self) -> bool:
        """The blob is here already: only unpack it; a damaged one is removed and fetched again."""
        if self._store.layers.has(self._job.diff_id):
            return True
        try:
            with closing(self._counted(self._store.content.read_chunks(self._layer))) as chunks:
                self._store.layers.unpack(self._job.diff_id, chunks, limit_bytes=UNPACK_LIMIT_BYTES)
        except IntegrityError:
            if self._is_stored_intact():
                raise
            os.unlink(self._store.content.blob_path(self._layer))
            return False
        return True

    def _is_stored_intact(self) -> bool:
        try:
            for _ in self._store.content.read_chunks(self._layer):
                pass
        except IntegrityError:
            return False
        return True

    def _counted(self, chunks: Iterator[bytes]) -> Chunks:
        with self._turn:
            for chunk in chunks:
                self._turn.check()
                self._progress.fetched(self._layer, len(chunk))
                yield chunk
                self._progress.unpacked(self._layer, len(chunk))

    def _unpack(self, tee: BlobTee, ingest: BlobIngest) -> int:
        """Returns how many bytes of the blob went to the disk with the layer."""
        if self._store.layers.has(self._job.diff_id):
            return 0
        try:
            self._store.layers.unpack(self._job.diff_id, tee, limit_bytes=UNPACK_LIMIT_BYTES)
        except BaseException as e:
            if tee.error is not None and tee.error is not e:
                # The unpacker only saw its input end; this is why it did.
                raise tee.error from e
            if isinstance(e, IntegrityError) and tee.error is None:
                # Bad compression or a wrong diff id is most often a damaged blob: say that.
                tee.drain()
                tee.check()
            raise
        return ingest.offset if _is_one_disk(self._store) else 0


def _is_one_disk(store: ImageStore) -> bool:
    """Whether the syncfs of a layer writes blobs, too."""
    places = (store.content.ingest_dir, os.path.join(store.root, "layers"))
    try:
        return len({os.stat(place).st_dev for place in places}) == 1
    except FileNotFoundError:
        return False


def _summarise(store: ImageStore, document: ImageDocument, config: ConfigDocument) -> SummaryFile:
    manifest = document.manifest
    unique = dict.fromkeys(config.diff_ids)
    return SummaryFile(
        format=SUMMARY_FORMAT,
        id=manifest.config.digest,
        manifest_digest=document.digest,
        blobs=(document.digest, manifest.config.digest, *(d.digest for d in manifest.layers)),
        architecture=config.architecture,
        os=config.os,
        variant=config.variant,
        created=config.created,
        size=sum(store.layers.info(diff_id).size for diff_id in unique),
        config=config.config,
        diff_ids=config.diff_ids,
        lower_names=_lower_names(store, config),
    )


def _lower_names(store: ImageStore, config: ConfigDocument) -> tuple[str, ...]:
    base = os.path.join(store.root, "layers")
    return tuple(os.path.relpath(path, base) for path in store.lower_paths(config.diff_ids))


def _write_summary(store: ImageStore, summary: SummaryFile) -> None:
    path = os.path.join(store.content.summary_dir, hex_of(summary.manifest_digest) + ".json")
    write_derived(path, checked(msgspec.json.encode(summary)))
