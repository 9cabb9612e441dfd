"""Writing images as archives and as layouts.

What belongs here: which files an archive has. Blobs go out as they lie, so that every digest stays
what it was, and are verified on the way. The same images give the same bytes. Nothing is written
before all of it is known to be here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import msgspec

from scow.image.content import REF_NAME, IndexEntry
from scow.image.digest import Digest, algorithm_of, hex_of
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.dropped import borrowing, fetch_blobs
from scow.image.files import write_all
from scow.image.gc import hold_image, leased
from scow.image.install import read_image_document
from scow.image.loaded import CONTAINERD_NAME
from scow.image.manifest import Descriptor, Platform, parse_platform, platform_matches
from scow.image.media_types import OCI_INDEX
from scow.image.reference import Reference, parse_reference
from scow.image.tarwriter import Member, TarWriter
from scow.native.errors import AlreadyExists, InvalidArgument, NotFound
from scow.native.fs import remove_tree

if TYPE_CHECKING:
    from scow.image.store import Image, ImageStore

DOCKER_ARCHIVE, OCI_ARCHIVE, OCI_DIR = "docker-archive", "oci-archive", "oci-dir"
FORMATS = (DOCKER_ARCHIVE, OCI_ARCHIVE, OCI_DIR)


@dataclass(slots=True)
class _Contents:
    """What goes out: an index entry per name, and each blob once."""

    entries: list[IndexEntry] = field(default_factory=list[IndexEntry])
    docker: dict[Digest, dict[str, object]] = field(default_factory=dict[Digest, dict[str, object]])
    blobs: dict[Digest, Descriptor] = field(default_factory=dict[Digest, Descriptor])


def save_archive(
    store: ImageStore,
    names: list[str],
    output: IO[bytes],
    *,
    form: str = DOCKER_ARCHIVE,
    platform: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Write images as one tar.

    `docker-archive` is an OCI archive that `docker load` reads, too (as docker's own since 25);
    `oci-archive` leaves Docker's file out. Artifacts are in the OCI part only.
    """
    with _contents(store, names, platform, warn) as contents:
        tar = TarWriter(output.write)
        for name, data in _documents(contents, form).items():
            tar.add(Member(name.encode(), size=len(data)), data)
        for digest, blob in sorted(contents.blobs.items()):
            tar.begin(Member(_blob_name(digest).encode(), size=blob.size))
            for chunk in store.content.read_chunks(digest):
                output.write(chunk)
            tar.pad(blob.size)
        tar.finish()


def save_directory(
    store: ImageStore,
    names: list[str],
    path: str,
    *,
    platform: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Write images as an OCI layout below `path`, a new or an empty directory."""
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise AlreadyExists(
            f"cannot save to '{path}': it is there already", hint="name a new directory"
        )
    with _contents(store, names, platform, warn) as contents, _fresh_directory(path) as part:
        os.makedirs(f"{part}/blobs")
        for digest in sorted(contents.blobs):
            os.makedirs(f"{part}/blobs/{algorithm_of(digest)}", exist_ok=True)
            _write_file(f"{part}/{_blob_name(digest)}", store.content.read_chunks(digest))
        for name, data in _documents(contents, OCI_DIR).items():
            _write_file(f"{part}/{name}", iter((data,)))


@contextmanager
def _fresh_directory(path: str) -> Iterator[str]:
    """A directory beside `path`, which takes its name when all went well."""
    part = f"{path.rstrip('/')}.part.{os.urandom(4).hex()}"
    os.mkdir(part, 0o755)
    try:
        yield part
        os.rename(part, path)
    except BaseException:
        parent = os.open(os.path.dirname(part) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(parent, os.path.basename(part))
        finally:
            os.close(parent)
        raise


def _write_file(path: str, chunks: Iterator[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        for chunk in chunks:
            write_all(fd, chunk)
    finally:
        os.close(fd)


@contextmanager
def _contents(
    store: ImageStore, names: list[str], platform: str | None, warn: Callable[[str], None]
) -> Iterator[_Contents]:
    """All that is to be written, held against `scow rmi` until it is."""
    if not names:
        raise InvalidArgument("nothing to save: no image was named")
    asked = parse_platform(platform) if platform else None
    contents = _Contents()
    with borrowing(store), leased(store, spends_reserve=True) as lease:
        try:
            for name in names:
                image, tags = _what_to_save(store, name)
                _check_platform(image, name, asked)
                hold_image(store, lease, image.manifest_digest, name)
                _add_image(store, contents, image, tags)
            fetch_blobs(store, contents.blobs.values(), warn)
            yield contents
        finally:
            lease.finish()  # nothing came in that a retry could use


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


def _check_platform(image: Image, name: str, asked: Platform | None) -> None:
    offered = Platform(image.os, image.architecture, image.variant)
    if asked and not image.artifact_type and not platform_matches(offered, asked):
        raise NotFound(f"'{name}' is not here for {asked}", hint=f"it is here for {offered}")


def _add_image(store: ImageStore, contents: _Contents, image: Image, tags: list[Reference]) -> None:
    data = store.content.read_blob(image.manifest_digest, MAX_DOCUMENT_BYTES)
    document = read_image_document(data, image.manifest_digest, None, f"image {image.id}")
    manifest = document.manifest
    top = Descriptor(document.media_type, document.digest, len(data))
    contents.blobs.update({part.digest: part for part in (top, manifest.config, *manifest.layers)})
    entry = IndexEntry(top.media_type, top.digest, top.size)
    wanted = [_named_entry(entry, tag) for tag in tags] or [entry]
    contents.entries += [new for new in wanted if new not in contents.entries]
    if image.artifact_type:
        return  # Docker's file is about images only
    known = contents.docker.setdefault(
        image.id,
        {
            "Config": _blob_name(manifest.config.digest),
            "RepoTags": None,
            "Layers": [_blob_name(d.digest) for d in manifest.layers],
        },
    )
    before = known["RepoTags"]
    both = [*(before if isinstance(before, list) else []), *(tag.familiar for tag in tags)]
    known["RepoTags"] = list(dict.fromkeys(both)) or None


def _documents(contents: _Contents, form: str) -> dict[str, bytes]:
    if form not in FORMATS:
        raise InvalidArgument(f"invalid format '{form}': one of {', '.join(FORMATS)}")
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": contents.entries}
    documents = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": msgspec.json.encode(index),
    }
    if form == DOCKER_ARCHIVE and contents.docker:
        documents["manifest.json"] = msgspec.json.encode(list(contents.docker.values()))
    return documents


def _named_entry(entry: IndexEntry, name: Reference) -> IndexEntry:
    annotations = {CONTAINERD_NAME: str(name), REF_NAME: str(name)}
    return msgspec.structs.replace(entry, annotations=annotations)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{algorithm_of(digest)}/{hex_of(digest)}"
