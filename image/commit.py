"""New images out of trees: a container's changes as one layer more, a tar as the only layer.

What belongs here: the layer's blob, the config and the manifest; then the new image comes in by
install.py, as if it were pulled. What must not: which container, which directories.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from scow.image.archive_files import MAX_ARCHIVE_BYTES, Readable, plain_chunks
from scow.image.changes import Json, apply_changes
from scow.image.content import CHUNK_BYTES
from scow.image.digest import DiffID, Digest, digest_bytes, new_hasher
from scow.image.docker_archive import make_manifest
from scow.image.document import MAX_DOCUMENT_BYTES, check_document
from scow.image.files import storage_errors, write_all
from scow.image.gc import leased
from scow.image.install import Chunks, install_image, read_image_document
from scow.image.manifest import Descriptor, host_platform, parse_platform
from scow.image.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from scow.image.progress import SilentProgress
from scow.image.reference import Reference, parse_reference
from scow.native.errors import IntegrityError, InvalidArgument, NotFound
from scow.native.fd import OwnedFd

if TYPE_CHECKING:
    from scow.image.store import Image, ImageStore

COMPRESSIONS = ("gzip", "zstd")
# Docker's own notes on the container that an image was made of: of the old image, and so wrong.
_STALE = ("container", "container_config", "docker_version", "id", "parent")
Write = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user says about the new image."""

    name: str | None = None
    author: str = ""
    comment: str = ""
    changes: Sequence[str] = ()
    created_by: str = ""
    compression: str = "gzip"


def commit_tree(
    store: ImageStore, base: Image, write_tar: Callable[[Write], bool], config: Json, wishes: Wishes
) -> Digest:
    """Make an image of `base` and one layer more; returns its id.

    `write_tar` writes the layer's plain tar and tells whether anything is in it; if nothing is, the
    image has no further layer. `config` replaces members of the image's `config` object.
    """
    name = _parse_name(wishes.name)
    with LayerBlob(store, wishes.compression) as blob:
        is_new = write_tar(blob.write)
        document = _base_document(store, base)
        config = {**_member(document, "config"), **config}
        apply_changes(config, wishes.changes)
        data = store.content.read_blob(base.manifest_digest, MAX_DOCUMENT_BYTES)
        layers = [
            _as_oci(layer)
            for layer in read_image_document(
                data, base.manifest_digest, None, f"image {base.id}"
            ).manifest.layers
        ]
        diff_ids = list(base.diff_ids)
        if is_new:
            layers.append(blob.finish())
            diff_ids.append(blob.diff_id)
        document |= _new_parts(wishes, config, diff_ids)
        known = _history(document, len(base.diff_ids))
        document["history"] = [*known, _history_entry(wishes, is_empty=not is_new)]
        return _install(store, document, layers, blob, name)


def import_tree(
    store: ImageStore, source: Readable, wishes: Wishes, platform: str | None = None
) -> Digest:
    """Make an image of a root file system's tar, compressed or not; returns its id."""
    name = _parse_name(wishes.name)
    wanted = parse_platform(platform) if platform else host_platform()
    config: Json = {}
    apply_changes(config, wishes.changes)
    with LayerBlob(store, wishes.compression) as blob:
        total = 0
        for chunk in plain_chunks(source):
            total += len(chunk)
            if total > MAX_ARCHIVE_BYTES:
                raise InvalidArgument(f"the archive has more than {MAX_ARCHIVE_BYTES} bytes")
            blob.write(chunk)
        if total == 0:
            raise InvalidArgument("cannot import: the archive is empty")
        layer = blob.finish()
        document: Json = {"architecture": wanted.architecture, "os": wanted.os}
        if wanted.variant:
            document["variant"] = wanted.variant
        document |= _new_parts(wishes, config, [blob.diff_id])
        document["history"] = [_history_entry(wishes, is_empty=False)]
        try:
            return _install(store, document, [layer], blob, name)
        except IntegrityError as error:
            raise InvalidArgument(
                f"cannot import: not a tar archive that can be unpacked: {error.message}"
            ) from error


class LayerBlob:
    """A layer on its way from a plain tar to a compressed blob, in a file without a name."""

    def __init__(self, store: ImageStore, compression: str) -> None:
        if compression not in COMPRESSIONS:
            raise InvalidArgument(f"invalid compression '{compression}': gzip or zstd")
        self._kind = compression
        self._place = store.content.ingest_dir
        store.content.prepare()
        with storage_errors(self._place):
            flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
            self._file = OwnedFd(os.open(self._place, flags, 0o600))
        self._plain, self._packed = new_hasher(), new_hasher()
        self._compressor = _compressor(compression)
        self._size = 0
        self.descriptor: Descriptor | None = None

    def write(self, data: bytes) -> None:
        """The next bytes of the tar."""
        self._plain.update(data)
        self._store(self._compressor.compress(data))

    def finish(self) -> Descriptor:
        """No more bytes."""
        self._store(self._compressor.flush())
        digest = Digest(f"sha256:{self._packed.hexdigest()}")
        self.descriptor = Descriptor(f"{OCI_LAYER}+{self._kind}", digest, self._size)
        return self.descriptor

    @property
    def diff_id(self) -> DiffID:
        """Of all that was written."""
        return DiffID(Digest(f"sha256:{self._plain.hexdigest()}"))

    def open_blob(self, descriptor: Descriptor, offset: int) -> Chunks:
        """A source for install_image: the one new blob; the others are in the store."""
        if self.descriptor is None or descriptor.digest != self.descriptor.digest:
            raise NotFound(
                f"blob {descriptor.digest} of the base image is missing", hint="pull it again"
            )
        while chunk := os.pread(self._file.fileno(), CHUNK_BYTES, offset):
            offset += len(chunk)
            yield chunk

    def _store(self, data: bytes) -> None:
        if data:
            self._packed.update(data)
            self._size += len(data)
            with storage_errors(self._place):
                write_all(self._file.fileno(), data)

    def __enter__(self) -> LayerBlob:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


class _Compressor:
    """What zlib's and zstandard's objects have in common."""

    def __init__(self, compress: Callable[[bytes], bytes], flush: Callable[[], bytes]) -> None:
        self.compress, self.flush = compress, flush


def _compressor(kind: str) -> _Compressor:
    if kind == "zstd":
        import zstandard

        zstd = zstandard.ZstdCompressor(level=3).compressobj()
        return _Compressor(zstd.compress, zstd.flush)
    from isal import isal_zlib

    # 31: a gzip header, whose time is 0, so that the same tar gives the same blob.
    gzip = isal_zlib.compressobj(isal_zlib.ISAL_DEFAULT_COMPRESSION, isal_zlib.DEFLATED, 31)
    return _Compressor(gzip.compress, gzip.flush)


def _install(
    store: ImageStore,
    document: Json,
    layers: list[Descriptor],
    blob: LayerBlob,
    name: Reference | None,
) -> Digest:
    data = msgspec.json.encode(document)
    config = Descriptor(OCI_CONFIG, digest_bytes(data), len(data))
    manifest = make_manifest(config, layers)
    what = "the new image"
    parsed = read_image_document(manifest, digest_bytes(manifest), OCI_MANIFEST, what)
    source = _WithConfig(blob, config, data)
    with leased(store) as lease:
        entry = install_image(
            store, source, parsed, lease, what=what, platform=None, progress=SilentProgress()
        )
        store.add(entry.annotated(name=str(name)) if name else entry)
        lease.finish()
    return config.digest


class _WithConfig:
    """The blob's source, and the config."""

    def __init__(self, blob: LayerBlob, config: Descriptor, data: bytes) -> None:
        self._blob, self._config, self._data = blob, config, data

    def open_blob(self, descriptor: Descriptor, offset: int) -> Chunks:
        if descriptor.digest == self._config.digest:
            yield self._data[offset:]
        else:
            yield from self._blob.open_blob(descriptor, offset)


def _base_document(store: ImageStore, base: Image) -> Json:
    data = store.content.read_blob(base.id, MAX_DOCUMENT_BYTES)
    check_document(data, f"config of image {base.id}")
    document = msgspec.json.decode(data, type=Json)
    return {key: value for key, value in document.items() if key not in _STALE}


def _member(document: Json, key: str) -> Json:
    value = document.get(key)
    return dict(value) if isinstance(value, dict) else {}


def _history(document: Json, layers: int) -> list[object]:
    """What is known, with a step for each layer: else a later step would be taken for its maker's."""
    value = document.get("history")
    known = list(value) if isinstance(value, list) else []
    told = sum(1 for step in known if not (isinstance(step, dict) and step.get("empty_layer")))
    return [*known, *({} for _ in range(layers - told))]


def _new_parts(wishes: Wishes, config: Json, diff_ids: Sequence[DiffID]) -> Json:
    parts: Json = {
        "created": _now(),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    if wishes.author:
        parts["author"] = wishes.author
    return parts


def _history_entry(wishes: Wishes, *, is_empty: bool) -> Json:
    entry: Json = {"created": _now()}
    for key in ("author", "comment", "created_by"):
        if value := getattr(wishes, key):
            entry[key] = value
    if is_empty:
        entry["empty_layer"] = True
    return entry


def _now() -> str:
    time_ns = time.time_ns()
    whole = datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{time_ns % 10**9:09d}Z"


def _as_oci(layer: Descriptor) -> Descriptor:
    """The same blob under OCI's type: a manifest does not mix the two families."""
    for suffix in ("gzip", "zstd"):
        if layer.media_type.endswith(suffix):
            return Descriptor(f"{OCI_LAYER}+{suffix}", layer.digest, layer.size)
    return Descriptor(OCI_LAYER, layer.digest, layer.size)


def _parse_name(name: str | None) -> Reference | None:
    if name is None:
        return None
    reference = parse_reference(name)
    if reference.digest is not None:
        raise InvalidArgument(f"cannot name the image '{name}': a name with a digest is not a tag")
    return reference
