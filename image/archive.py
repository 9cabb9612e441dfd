"""Images as files: OCI archives and layouts in both directions, docker archives in.

What belongs here: the formats, and finding the images in them. What must not: unpacking; blobs go
through install.py like those of a registry. An archive may name anybody's image, so every name that
moves is told (CVE-2026-50195).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import msgspec

from scow.image.content import CHUNK_BYTES, REF_NAME, IndexEntry
from scow.image.digest import Digest, algorithm_of, digest_bytes, hex_of, new_hasher, quote
from scow.image.document import MAX_DOCUMENT_BYTES, check_document, decode_document
from scow.image.files import storage_errors, write_all
from scow.image.install import (
    BlobSource,
    Chunks,
    install_image,
    read_image_document,
    read_small_blob,
)
from scow.image.manifest import (
    MAX_INDEX_DEPTH,
    MAX_LAYERS,
    Descriptor,
    Index,
    candidates,
    host_platform,
    parse_document,
)
from scow.image.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from scow.image.progress import ProgressSink, SilentProgress
from scow.image.reference import Reference, parse_reference
from scow.image.tarindex import TarIndex
from scow.native.errors import IntegrityError, InvalidArgument, NotFound, ScowError, Unsupported

if TYPE_CHECKING:
    import tarfile

    from scow.image.store import Image, ImageStore

CONTAINERD_NAME = "io.containerd.image.name"
MAX_ARCHIVE_BYTES = 1 << 40
LAYOUT_VERSION = "1.0.0"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class _LayoutFile(msgspec.Struct, rename="camel"):
    image_layout_version: str


class _DockerImage(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _Files:
    """Documents and blobs of a layout, in a tar or in a directory."""

    def read(self, name: str, limit: int) -> bytes:
        raise NotImplementedError

    def open(self, name: str, offset: int) -> Chunks:
        raise NotImplementedError

    def has(self, name: str) -> bool:
        raise NotImplementedError

    def open_blob(self, descriptor: Descriptor, offset: int) -> Chunks:
        """BlobSource for layouts: blobs lie under their digests."""
        digest = descriptor.digest
        return self.open(f"blobs/{algorithm_of(digest)}/{hex_of(digest)}", offset)


class _TarFiles(_Files):
    def __init__(self, index: TarIndex) -> None:
        self._index = index

    def read(self, name: str, limit: int) -> bytes:
        return self._index.read(name, limit)

    def open(self, name: str, offset: int) -> Chunks:
        return self._index.chunks(self._index.find(name), offset)

    def has(self, name: str) -> bool:
        return name in self._index


class _DirectoryFiles(_Files):
    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, name: str, limit: int) -> bytes:
        data = b""
        for chunk in self.open(name, 0):
            data += chunk
            if len(data) > limit:
                raise InvalidArgument(f"'{self._path}/{name}' has more than {limit} bytes")
        return data

    def open(self, name: str, offset: int) -> Chunks:
        # `name` is one of ours, or made of a checked digest.
        path = f"{self._path}/{name}"
        try:
            fd = os.open(path, _FLAGS)
        except OSError as e:
            raise InvalidArgument(f"cannot read '{path}': {(e.strerror or '').lower()}") from e
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidArgument(f"'{path}' is not a regular file")
            os.lseek(fd, offset, os.SEEK_SET)
            while chunk := os.read(fd, CHUNK_BYTES):
                yield chunk
        finally:
            os.close(fd)

    def has(self, name: str) -> bool:
        return os.path.exists(f"{self._path}/{name}")


# -- loading --------------------------------------------------------------------------------------


def load_archive(
    store: ImageStore, source: IO[bytes] | str, *, progress: ProgressSink | None = None
) -> list[str]:
    """Load every image of an archive; returns docker's lines about it."""
    sink = progress or SilentProgress()
    with _seekable(store, source) as fd:
        files = _TarFiles(TarIndex(fd))
        # A `docker save` of today is both kinds in one; its layout is the half with digests.
        if files.has("index.json") and files.has("oci-layout"):
            return _load_layout_images(store, files, sink)
        if files.has("manifest.json"):
            return _load_docker_images(store, files, sink)
    raise InvalidArgument(
        "not an image archive: it has neither 'index.json' nor 'manifest.json'",
        hint="`scow load` reads archives of `docker save`, `podman save` and OCI layouts",
    )


def load_layout(
    store: ImageStore, path: str, name: str, *, progress: ProgressSink | None = None
) -> Image:
    """Take in the one image of a layout directory as `name`."""
    files = _DirectoryFiles(path)
    entries = _layout_entries(files)
    if len(entries) != 1:
        raise InvalidArgument(f"'{path}' holds {len(entries)} images, not one")
    reference = parse_reference(name)
    _install(store, files, entries[0], reference, progress or SilentProgress())
    return store.get(str(reference))


def _load_layout_images(store: ImageStore, files: _Files, sink: ProgressSink) -> list[str]:
    lines: list[str] = []
    for entry in _layout_entries(files):
        lines += _install(store, files, entry, _entry_name(entry), sink)
    return lines


def _layout_entries(files: _Files) -> list[Descriptor]:
    layout = decode_document(
        files.read("oci-layout", MAX_DOCUMENT_BYTES), _LayoutFile, "'oci-layout'"
    )
    if layout.image_layout_version != LAYOUT_VERSION:
        raise Unsupported(
            f"the OCI layout has version {quote(layout.image_layout_version)}, not {LAYOUT_VERSION}"
        )
    data = files.read("index.json", MAX_DOCUMENT_BYTES)
    document = parse_document(data, OCI_INDEX, "'index.json'")
    assert isinstance(document, Index)
    if not document.manifests:
        raise InvalidArgument("the OCI layout holds no image")
    return list(document.manifests)


def _entry_name(entry: Descriptor) -> Reference | None:
    """The name that an archive gives an image; a bare tag, as skopeo writes, names nothing."""
    annotations = entry.annotations or {}
    name = annotations.get(CONTAINERD_NAME, "")
    if not name:
        name = annotations.get(REF_NAME, "")
        if ":" not in name and "/" not in name:
            return None
    reference = parse_reference(name)
    return reference if reference.digest is None else None


def _install(
    store: ImageStore,
    files: _Files,
    entry: Descriptor,
    name: Reference | None,
    sink: ProgressSink,
) -> list[str]:
    what = quote(name.familiar) if name else f"image {entry.digest}"
    with store.content.lease() as lease:
        manifest = _choose(files, entry, what, 0)
        data = read_small_blob(files, manifest, f"manifest of {what}")
        document = read_image_document(data, manifest.digest, manifest.media_type, what)
        new = install_image(store, files, document, lease, what=what, platform=None, progress=sink)
        lines = _add(store, new, name)
        lease.finish()
    return lines


def _choose(files: BlobSource, entry: Descriptor, what: str, depth: int) -> Descriptor:
    data = read_small_blob(files, entry, f"manifest of {what}")
    document = parse_document(data, entry.media_type, f"manifest of {what}")
    if not isinstance(document, Index):
        return entry
    if depth >= MAX_INDEX_DEPTH:
        raise InvalidArgument(f"{what}: indexes are nested more than {MAX_INDEX_DEPTH} deep")
    for candidate in candidates(document, host_platform(), what):
        return _choose(files, candidate, what, depth + 1)
    raise NotFound(f"{what} is not available for {host_platform()}")


def _add(store: ImageStore, entry: IndexEntry, name: Reference | None) -> list[str]:
    if name is None:
        store.add(entry)
        return [f"Loaded image ID: {entry.image_id}"]
    loser = store.add(entry.annotated(name=str(name)))
    lines = [f"Loaded image: {name.familiar}"]
    if loser is not None:
        lines.insert(
            0,
            f"The image {name.familiar} already exists, "
            f"renaming the old one with ID {loser} to empty string",
        )
    return lines


# -- docker archives ------------------------------------------------------------------------------


class _DockerSource:
    """Blobs of a docker archive: files with names of their own, hashed beforehand."""

    def __init__(self, files: _Files) -> None:
        self._files = files
        self._names: dict[Digest, str] = {}

    def add(self, name: str) -> Descriptor:
        """Hash a layer file and remember where it is."""
        hasher = new_hasher()
        size, head = 0, b""
        for chunk in self._files.open(name, 0):
            head = head or chunk[:4]
            size += len(chunk)
            hasher.update(chunk)
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        self._names[digest] = name
        return Descriptor(_layer_type(head), digest, size)

    def add_config(self, name: str, data: bytes) -> Descriptor:
        """Remember the config file."""
        digest = digest_bytes(data)
        self._names[digest] = name
        return Descriptor(OCI_CONFIG, digest, len(data))

    def open_blob(self, descriptor: Descriptor, offset: int) -> Chunks:
        return self._files.open(self._names[descriptor.digest], offset)


def _layer_type(head: bytes) -> str:
    if head.startswith(b"\x1f\x8b"):
        return OCI_LAYER + "+gzip"
    return OCI_LAYER + "+zstd" if head.startswith(b"\x28\xb5\x2f\xfd") else OCI_LAYER


def _load_docker_images(store: ImageStore, files: _Files, sink: ProgressSink) -> list[str]:
    data = files.read("manifest.json", MAX_DOCUMENT_BYTES)
    images = decode_document(data, list[_DockerImage], "'manifest.json'")
    if not images:
        raise InvalidArgument("the docker archive holds no image")
    # All names are checked before anything is taken in.
    names = [[parse_reference(tag) for tag in image.repo_tags or []] for image in images]
    lines: list[str] = []
    for image, references in zip(images, names, strict=True):
        lines += _load_docker_image(store, files, image, references, sink)
    return lines


def _load_docker_image(
    store: ImageStore,
    files: _Files,
    image: _DockerImage,
    names: list[Reference],
    sink: ProgressSink,
) -> list[str]:
    what = quote(names[0].familiar) if names else "the image"
    if len(image.layers) > MAX_LAYERS:
        raise Unsupported(f"{what} has {len(image.layers)} layers, more than {MAX_LAYERS}")
    config = files.read(image.config, MAX_DOCUMENT_BYTES)
    check_document(config, f"config of {what}")
    source = _DockerSource(files)
    stem = os.path.basename(image.config).removesuffix(".json")
    config_descriptor = source.add_config(image.config, config)
    if len(stem) == 64 and stem != hex_of(config_descriptor.digest):
        raise IntegrityError(
            f"config of {what}: expected digest sha256:{stem}, got {config_descriptor.digest}"
        )
    manifest = make_manifest(config_descriptor, [source.add(name) for name in image.layers])
    document = read_image_document(manifest, digest_bytes(manifest), OCI_MANIFEST, what)
    with store.content.lease() as lease:
        entry = install_image(
            store, source, document, lease, what=what, platform=None, progress=sink
        )
        lines: list[str] = []
        wanted: list[Reference | None] = [*names] or [None]
        for name in wanted:
            lines += _add(store, entry, name)
        lease.finish()
    return lines


def make_manifest(config: Descriptor, layers: list[Descriptor]) -> bytes:
    """An OCI manifest of these parts."""
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _wire(config),
            "layers": [_wire(layer) for layer in layers],
        }
    )


def _wire(descriptor: Descriptor) -> dict[str, str | int]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }


# -- input of any kind ----------------------------------------------------------------------------


@contextmanager
def _seekable(store: ImageStore, source: IO[bytes] | str) -> Iterator[int]:
    """A descriptor of the plain tar: the file itself, or a nameless copy of what was decompressed."""
    if isinstance(source, str):
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise NotFound(f"cannot open '{source}': {(e.strerror or '').lower()}") from e
        with os.fdopen(fd, "rb", buffering=0) as file, _seekable(store, file) as plain:
            yield plain
        return
    head = source.read(6)
    while len(head) < 6 and (more := source.read(6 - len(head))):
        head += more
    is_regular = _is_regular(source)
    if is_regular and not _is_compressed(head):
        yield source.fileno()
        return
    store.content.prepare()
    copy = os.open(store.content.ingest_dir, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        total = 0
        for chunk in _decompressed(head, source):
            total += len(chunk)
            if total > MAX_ARCHIVE_BYTES:
                raise InvalidArgument(f"the archive has more than {MAX_ARCHIVE_BYTES} bytes")
            with storage_errors(store.content.ingest_dir):
                write_all(copy, chunk)
        yield copy
    finally:
        os.close(copy)


def _is_regular(source: IO[bytes]) -> bool:
    """Whether pread on its descriptor sees the whole archive."""
    try:
        fd = source.fileno()
    except (OSError, AttributeError):
        return False
    # What was read from a pipe is gone; a file that was not at its start is not meant whole.
    return stat.S_ISREG(os.fstat(fd).st_mode) and source.tell() <= 6


def _is_compressed(head: bytes) -> bool:
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"))


def _decompressed(head: bytes, source: IO[bytes]) -> Iterator[bytes]:
    def raw() -> Iterator[bytes]:
        yield head
        while chunk := source.read(CHUNK_BYTES):
            yield chunk

    try:
        if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            yield from _layer_decompressed(raw())
        elif head.startswith((b"BZh", b"\xfd7zXZ\0")):
            yield from _slowly_decompressed(head, raw())
        else:
            yield from raw()
    except EOFError as e:
        raise IntegrityError("the archive's compressed data is cut off") from e


def _layer_decompressed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    from scow.image.decompress import Decompressor

    decompressor = Decompressor()
    for chunk in chunks:
        yield from decompressor.feed(chunk)
    yield from decompressor.finish()


def _slowly_decompressed(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """bzip2 and xz: rare, so the standard library does; several streams in a row are one file."""
    import bz2
    import lzma

    def new() -> bz2.BZ2Decompressor | lzma.LZMADecompressor:
        return (
            bz2.BZ2Decompressor() if head[:1] == b"B" else lzma.LZMADecompressor(memlimit=1 << 27)
        )

    stream = new()
    for chunk in chunks:
        data = chunk
        while data or not (stream.needs_input or stream.eof):
            if stream.eof:
                stream = new()
            try:
                yield stream.decompress(data, CHUNK_BYTES)
            except (OSError, lzma.LZMAError, EOFError) as e:
                raise IntegrityError(f"the archive's compressed data is damaged: {e}") from e
            data = stream.unused_data if stream.eof else b""
    if not stream.eof:
        raise IntegrityError("the archive's compressed data is cut off")


# -- saving ---------------------------------------------------------------------------------------


def save_archive(store: ImageStore, names: list[str], output: IO[bytes]) -> None:
    """Write images as an OCI archive that is a docker archive, too (as docker does since 25).

    The same images give the same bytes. Nothing is written before all of it is known to be here.
    """
    if not names:
        raise InvalidArgument("nothing to save: no image was named")
    entries: list[IndexEntry] = []
    docker: list[dict[str, object]] = []
    blobs: dict[Digest, int] = {}
    for name in names:
        image, tags = _what_to_save(store, name)
        entry, parts = _saved_entry(store, image)
        blobs.update({d.digest: d.size for d in parts})
        docker.append(
            {
                "Config": _blob_name(parts[1].digest),
                "RepoTags": [tag.familiar for tag in tags] or None,
                "Layers": [_blob_name(d.digest) for d in parts[2:]],
            }
        )
        entries += [_named_entry(entry, tag) for tag in tags] or [entry]
    documents = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": msgspec.json.encode(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        ),
        "manifest.json": msgspec.json.encode(docker),
    }
    _write_tar(store, blobs, documents, output)


def _what_to_save(store: ImageStore, name: str) -> tuple[Image, list[Reference]]:
    """The image, and the names that go along: the one asked for, or all when asked by id."""
    image = store.get(name)
    try:
        asked = parse_reference(name)
    except InvalidArgument:
        asked = None
    if asked is not None and asked.familiar in image.names:
        return image, [asked]
    return image, [parse_reference(n) for n in image.names]


def _saved_entry(store: ImageStore, image: Image) -> tuple[IndexEntry, list[Descriptor]]:
    data = store.content.read_blob(image.manifest_digest, MAX_DOCUMENT_BYTES)
    document = read_image_document(data, image.manifest_digest, None, f"image {image.id}")
    manifest = document.manifest
    top = Descriptor(document.media_type, document.digest, len(data))
    parts = [top, manifest.config, *manifest.layers]
    for part in parts:
        if not store.content.has_blob(part.digest, part.size):
            raise ScowError(
                f"cannot save image {image.id}: blob {part.digest} is missing",
                hint="pull the image again",
            )
    return IndexEntry(top.media_type, top.digest, top.size), parts


def _named_entry(entry: IndexEntry, name: Reference) -> IndexEntry:
    annotations = {CONTAINERD_NAME: str(name), REF_NAME: str(name)}
    return msgspec.structs.replace(entry, annotations=annotations)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{algorithm_of(digest)}/{hex_of(digest)}"


def _write_tar(
    store: ImageStore, blobs: dict[Digest, int], documents: dict[str, bytes], output: IO[bytes]
) -> None:
    import io
    import tarfile

    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, data in documents.items():
            tar.addfile(_tar_header(name, len(data)), io.BytesIO(data))
        for digest, size in sorted(blobs.items()):
            with open(store.content.blob_path(digest), "rb") as blob:
                tar.addfile(_tar_header(_blob_name(digest), size), blob)


def _tar_header(name: str, size: int) -> tarfile.TarInfo:
    import tarfile

    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o644
    return header
