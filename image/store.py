"""The images of this host: the face of the room for everything above it.

What belongs here: finding, listing, naming and removing images. What must not: anything that is
slow to import; `get` and `layer_paths` run on every start of a container, so pulling, archives and
collecting are imported by the methods that need them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import IO, TYPE_CHECKING, Protocol

import msgspec

from scow.image.config import ImageConfig
from scow.image.content import ContentStore, IndexEntry
from scow.image.digest import DiffID, Digest, hex_of, parse_digest, quote
from scow.image.files import read_file, unchecked
from scow.image.reference import Reference, parse_reference
from scow.native.errors import IntegrityError, InvalidArgument, InvalidState, NotFound, ScowError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scow.image.credentials import Credentials
    from scow.image.progress import ProgressSink
    from scow.image.verify import Users

SUMMARY_FORMAT = 2
MAX_SUMMARY_BYTES = 8 << 20
StringList = list[str]
EntryList = list[IndexEntry]  # inside the class `list` is the method
_HEX = frozenset("0123456789abcdef")


class Layer(Protocol):
    """What the layer store tells about a layer that it has."""

    @property
    def size(self) -> int: ...


class Layers(Protocol):
    """The part of scow.image.layers.LayerStore that images need."""

    def has(self, diff_id: DiffID) -> bool: ...
    def info(self, diff_id: DiffID) -> Layer: ...
    def unpack(
        self, diff_id: DiffID, chunks: Iterator[bytes], *, limit_bytes: int = ...
    ) -> object: ...
    def stack(self, diff_ids: Sequence[DiffID]) -> list[str]: ...
    def remove(self, diff_id: DiffID) -> object: ...
    def empty_trash(self) -> None: ...
    def trash_bytes(self) -> int: ...
    def is_sealed(self, diff_id: DiffID) -> bool: ...
    def has_seal(self, diff_id: DiffID) -> bool: ...
    def seal(self, diff_id: DiffID) -> None: ...
    def compare(
        self, diff_id: DiffID, chunks: Iterator[bytes], *, mend: bool, keep_old: bool = ...
    ) -> StringList: ...
    def list(self) -> Sequence[DiffID]: ...
    def sync_names(self) -> None: ...
    def damaged_completions(self) -> Sequence[str]: ...
    def drop_completion(self, name: str, *, keep_old: bool) -> None: ...
    def strays(self, diff_ids: set[str], chains: set[str], leased: set[str]) -> Sequence[str]: ...
    def leftovers(self, *, remove: bool) -> Sequence[str]: ...
    def discard(self, name: str) -> object: ...
    def drop_aside(self) -> int: ...


class Image(msgspec.Struct, frozen=True):
    """One image that is here, whole."""

    id: Digest  # of the config
    names: tuple[str, ...]  # familiar: "busybox:latest"
    digests: tuple[str, ...]  # familiar, as registries have it: "busybox@sha256:..."
    manifest_digest: Digest
    architecture: str
    os: str
    variant: str
    created: str
    size: int  # bytes of all its layers, unpacked
    config: ImageConfig
    diff_ids: tuple[DiffID, ...]  # bottom first
    lower_names: tuple[str, ...]  # for layer_paths()
    artifact_type: str = (
        ""  # of what is no container image (artifacts.py); its id is the manifest's
    )


class ImageSummary(msgspec.Struct, frozen=True):
    """A row of `scow images`, before it is split by name."""

    id: Digest
    names: tuple[str, ...]
    digests: tuple[str, ...]
    created: str
    size: int
    architecture: str = ""
    os: str = ""
    labels: dict[str, str] | None = None
    artifact_type: str = ""


class SummaryFile(msgspec.Struct, frozen=True):
    """summaries/HEX.json, one per manifest: derived from the blobs, so that `get` reads two files."""

    format: int
    id: Digest
    manifest_digest: Digest
    blobs: tuple[str, ...]  # manifest, config, layers
    architecture: str
    os: str
    variant: str
    created: str
    size: int
    config: ImageConfig
    diff_ids: tuple[DiffID, ...]
    lower_names: tuple[str, ...]  # directories below layers/, top first
    artifact_type: str = ""


class ImageStore:
    """Images below `root`/images, their layers below `root`/layers."""

    def __init__(self, root: str = "/var/lib/scow", layers: Layers | None = None) -> None:
        self.root = root
        self.content = ContentStore(os.path.join(root, "images"))
        self._layers = layers

    @property
    def layers(self) -> Layers:
        """The layer store, made when first needed."""
        if self._layers is None:
            from scow.image.layers import LayerStore

            self._layers = LayerStore(os.path.join(self.root, "layers"))
        return self._layers

    # -- finding ----------------------------------------------------------------------------------

    def get(self, name_or_id: str) -> Image:
        """The image with this name, digest, id, or unambiguous prefix of an id.

        Raises NotFound, or InvalidArgument for what can be neither or is ambiguous.
        """
        entries = self._entries()
        try:
            return self._load(find_entry(entries, name_or_id), entries)
        except IntegrityError:
            entries = self._entries()  # removed meanwhile, perhaps
            return self._load(find_entry(entries, name_or_id), entries)

    def list(self) -> list[ImageSummary]:
        """Every image once, newest first; of a damaged one there is little to tell."""
        entries = self._entries()
        seen: dict[str, ImageSummary] = {}
        for entry in entries:
            if entry.image_id not in seen:
                seen[entry.image_id] = self._summarise(entry, entries)
        return sorted(seen.values(), key=lambda s: s.created, reverse=True)

    def _summarise(self, entry: IndexEntry, entries: EntryList) -> ImageSummary:
        try:
            image = self._load(entry, entries)
        except IntegrityError:
            same = [other for other in entries if other.image_id == entry.image_id]
            names = tuple(_familiar(e.name) for e in same if e.name)
            return ImageSummary(parse_digest(entry.image_id), names, (), "", 0)
        return ImageSummary(
            image.id,
            image.names,
            image.digests,
            image.created,
            image.size,
            image.architecture,
            image.os,
            image.config.labels,
            image.artifact_type,
        )

    def layer_paths(self, image: Image) -> StringList:
        """The layers' directories, top first, as an overlay mount takes them.

        They were worked out when the image came in (LayerStore.stack), so this reads nothing. Raises
        Unsupported for an artifact, which has none.
        """
        if image.artifact_type:
            from scow.image.artifacts import no_image

            raise no_image(image)
        base = os.path.join(self.root, "layers")
        return [os.path.join(base, name) for name in image.lower_names]

    def lower_paths(self, diff_ids: Sequence[DiffID]) -> StringList:
        """The same for bare diff ids, bottom first: a container outlives its image's names.

        overlayfs refuses one directory twice (ELOOP). Of a layer that occurs twice the topmost
        counts: what is in it hides all that the lower one has.
        """
        return [*dict.fromkeys(self.layers.stack(diff_ids))]

    def _entries(self) -> EntryList:
        entries = self.content.read_index()
        return [entry for entry in entries if entry.image_id and not entry.is_deleting]

    def _load(self, entry: IndexEntry, entries: Iterable[IndexEntry]) -> Image:
        summary = self.read_summary(entry)
        if summary is None:
            raise IntegrityError(
                f"image {entry.image_id} is damaged: its manifest or config is missing",
                hint="`scow system check --repair` fetches it again, `scow rmi` removes it",
            )
        same = [other for other in entries if other.image_id == entry.image_id]
        return Image(
            id=summary.id,
            names=tuple(_familiar(e.name) for e in same if e.name),
            digests=tuple(dict.fromkeys(_familiar(e.repo_digest) for e in same if e.repo_digest)),
            manifest_digest=summary.manifest_digest,
            architecture=summary.architecture,
            os=summary.os,
            variant=summary.variant,
            created=summary.created,
            size=summary.size,
            config=summary.config,
            diff_ids=summary.diff_ids,
            lower_names=summary.lower_names,
            artifact_type=summary.artifact_type,
        )

    def read_summary(self, entry: IndexEntry) -> SummaryFile | None:
        """The summary of an entry's manifest, made anew if need be; None if the blobs are gone."""
        digest = parse_digest(entry.digest)
        path = os.path.join(self.content.summary_dir, hex_of(digest) + ".json")
        try:
            data = unchecked(read_file(path, MAX_SUMMARY_BYTES), path)
            summary = msgspec.json.decode(data, type=SummaryFile)
            if summary.format == SUMMARY_FORMAT and summary.manifest_digest == digest:
                return summary
        except (OSError, ValueError, IntegrityError):
            pass  # derived data: whatever is wrong with it, it is made again
        from scow.image.install import rebuild_summary

        try:
            return rebuild_summary(self, digest, entry.media_type)
        except (IntegrityError, NotFound, InvalidArgument, OSError):
            return None

    # -- names ------------------------------------------------------------------------------------

    def tag(self, source: str, target: str) -> None:
        """Give the image `source` the further name `target`; an image that had it loses it."""
        reference = parse_reference(target)
        if reference.digest is not None:
            raise InvalidArgument(f"cannot tag {quote(target)}: a name with a digest is not a tag")
        with self.content.locked():
            entries = self.content.read_index()
            visible = [e for e in entries if e.image_id and not e.is_deleting]
            entry = find_entry(visible, source).annotated(name=str(reference), repo_digest="")
            self.content.write_index(place_entry(entries, entry))

    def add(self, entry: IndexEntry) -> str | None:
        """Name an image whose content is here; returns the id of another that lost the name."""
        with self.content.locked():
            entries = self.content.read_index()
            loser = next(
                (
                    e.image_id
                    for e in entries
                    if entry.name and e.name == entry.name and e.image_id != entry.image_id
                ),
                None,
            )
            self.content.write_index(place_entry(entries, entry))
        return loser

    # -- removing ---------------------------------------------------------------------------------

    def remove(
        self,
        name_or_id: str,
        *,
        force: bool = False,
        in_use: Callable[[str], StringList] = lambda image_id: [],
    ) -> StringList:
        """Remove a name, and the image with its last name; returns docker's lines about it.

        `in_use` tells which containers stand on an image. Such an image keeps its content even with
        `force`; it loses its names only. Raises NotFound and InvalidState.
        """
        from scow.image.gc import collect

        lines, is_gone = self.mark_removed(name_or_id, force=force, in_use=in_use)
        if not is_gone:
            return lines
        return lines + [f"Deleted: {diff_id}" for diff_id in collect(self).diff_ids]

    def mark_removed(
        self, name_or_id: str, *, force: bool, in_use: Callable[[str], StringList]
    ) -> tuple[StringList, bool]:
        """The first half of `remove`: names go at once; whether content is left to the collector."""
        with self.content.locked():
            entries = self.content.read_index()
            visible = [e for e in entries if e.image_id and not e.is_deleting]
            entry = find_entry(visible, name_or_id)
            same = [e for e in visible if e.image_id == entry.image_id]
            doomed = _doomed_entries(same, entry, name_or_id, force=force)
            lines = [f"Untagged: {_familiar(e.name)}" for e in doomed if e.name]
            if len(doomed) < len(same):
                kept = [e for e in entries if e not in doomed]
                gone = _left_alone(doomed, kept)
                self.content.write_index([*kept, *gone], removes=True)
                return lines, bool(gone)
            digests = dict.fromkeys(e.repo_digest for e in doomed if e.repo_digest)
            users = in_use(entry.image_id)
            if users and not force:
                raise InvalidState(
                    f"cannot remove image {quote(name_or_id)}: "
                    f"container {users[0][:12]} is using it",
                    hint="remove the container first, or use --force to remove only the name",
                )
            others = [e for e in entries if e not in doomed]
            if users:
                nameless = entry.annotated(name="", repo_digest="")
                self.content.write_index([*others, nameless], removes=True)
                return [*lines, *(f"Untagged: {_familiar(d)}" for d in digests)], False
            gone = [e.deleted() for e in doomed]
            self.content.write_index([*others, *gone], removes=True)
        lines += [f"Untagged: {_familiar(d)}" for d in digests]
        return [*lines, f"Deleted: {entry.image_id}"], True

    # -- coming and going -------------------------------------------------------------------------

    def pull(
        self,
        reference: str,
        *,
        platform: str | None = None,
        plain_http: bool = False,
        tls_verify: bool = True,
        progress: ProgressSink | None = None,
        credentials: Credentials | None = None,
    ) -> Image:
        """Fetch an image from its registry and unpack it; returns it as `get` would."""
        from scow.image.pull import pull_image

        return pull_image(
            self,
            reference,
            platform=platform,
            plain_http=plain_http,
            tls_verify=tls_verify,
            progress=progress,
            credentials=credentials,
        )

    def load(self, source: IO[bytes] | str, *, progress: ProgressSink | None = None) -> StringList:
        """Load an OCI or docker archive from a path or stream; returns docker's lines about it."""
        from scow.image.archive import load_archive

        return load_archive(self, source, progress=progress)

    def load_layout(self, path: str, name: str, *, progress: ProgressSink | None = None) -> Image:
        """Take in the one image of an OCI layout directory under the given name."""
        from scow.image.archive import load_layout

        return load_layout(self, path, name, progress=progress)

    def save(self, names: Iterable[str], output: IO[bytes]) -> None:
        """Write images as one archive that both OCI tools and `docker load` read."""
        from scow.image.save import save_archive

        save_archive(self, list(names), output)

    def verify(
        self, *, repair: bool = False, quick: bool = False, users: Users | None = None
    ) -> StringList:
        """Check everything against its digests; returns one line per fault, mended with `repair`.

        `quick` does not look into layers. Without `users` no layer is taken for one that nobody needs.
        """
        from scow.image.verify import verify_store

        return verify_store(self, repair=repair, quick=quick, users=users)


def find_entry(entries: Iterable[IndexEntry], name_or_id: str) -> IndexEntry:
    """The entry that a user means: full id, then name, then prefix of an id (docker's order)."""
    entries = list(entries)
    text = name_or_id.removeprefix("sha256:")
    is_hex = 1 <= len(text) <= 64 and _HEX.issuperset(text)
    if is_hex and (len(text) == 64 or text != name_or_id):
        return _by_id_prefix(entries, text, name_or_id)
    refused: ScowError | None = None
    try:
        found = _by_name(entries, parse_reference(name_or_id))
    except InvalidArgument as e:
        found, refused = None, e
    if found is not None:
        return found
    if is_hex:
        return _by_id_prefix(entries, text, name_or_id)
    if refused is not None:
        raise refused
    raise _no_such(name_or_id)


def _by_name(entries: list[IndexEntry], reference: Reference) -> IndexEntry | None:
    if reference.digest is not None:
        # The repository counts: content that came under one name is not proof of another's.
        wanted = str(reference.with_digest(reference.digest))
        return next((e for e in entries if e.repo_digest == wanted), None)
    wanted = str(reference)
    return next((e for e in entries if e.name == wanted), None)


def _by_id_prefix(entries: list[IndexEntry], prefix: str, asked: str) -> IndexEntry:
    found = [e for e in entries if e.image_id.startswith("sha256:" + prefix)]
    if not found:
        raise _no_such(asked)
    if len({e.image_id for e in found}) > 1:
        raise InvalidArgument(
            f"image id {quote(asked)} is ambiguous", hint="give more of its digits"
        )
    return found[0]


def _no_such(name: str) -> NotFound:
    return NotFound(f"no such image: {quote(name)}")


def _familiar(name: str) -> str:
    try:
        return parse_reference(name).familiar
    except InvalidArgument:
        return name  # damaged on the disk, or written by a later version


def place_entry(entries: list[IndexEntry], new: IndexEntry) -> list[IndexEntry]:
    """`entries` with `new` in it; whoever had its name is left without one, but is not lost."""
    result: list[IndexEntry] = []
    for entry in entries:
        if new.name and entry.name == new.name:
            if entry.image_id == new.image_id:
                if entry.digest == new.digest and not new.repo_digest:
                    new = new.annotated(repo_digest=entry.repo_digest)  # its registry still has it
                continue
            entry = entry.annotated(name="")
        elif _is_nameless(entry, new.image_id) and entry.repo_digest in ("", new.repo_digest):
            continue  # it existed to keep the image, or the digest that it came under
        result.append(entry)
    kept = [*_without_spare(result, new), new]
    return [*kept, *_left_alone(entries, kept)]


def _left_alone(entries: list[IndexEntry], kept: list[IndexEntry]) -> list[IndexEntry]:
    """For the collector: manifests that lose their last entry, as the same image packed otherwise."""
    digests = {entry.digest for entry in kept}
    gone = {e.digest: e for e in entries if e.image_id and e.digest not in digests}
    return [entry.deleted() for entry in gone.values()]


def _is_nameless(entry: IndexEntry, image_id: str) -> bool:
    return entry.image_id == image_id and not entry.name and not entry.is_deleting


def _without_spare(entries: list[IndexEntry], new: IndexEntry) -> list[IndexEntry]:
    """Drop nameless entries without a digest whose image another entry keeps."""
    kept: list[IndexEntry] = []
    for position, entry in enumerate(entries):
        others = [*kept, *entries[position + 1 :], new]
        is_spare = not entry.name and not entry.repo_digest and not entry.is_deleting
        if is_spare and any(o.image_id == entry.image_id and o.image_id for o in others):
            continue
        kept.append(entry)
    return kept


def _doomed_entries(
    same: list[IndexEntry], entry: IndexEntry, asked: str, *, force: bool
) -> list[IndexEntry]:
    """Which entries of one image `rmi asked` takes away: one name, or all."""
    named = [e for e in same if e.name]
    try:
        is_name = _by_name(same, parse_reference(asked)) is entry
    except InvalidArgument:
        is_name = False
    if is_name:
        remaining = [e for e in named if e is not entry]
        # With the last tag the digests that the image came under go, too.
        return [entry] if remaining else same
    repositories = {parse_reference(e.name).repository for e in named}
    if len(repositories) > 1 and not force:
        raise InvalidState(
            f"cannot remove image {quote(asked)}: it has names in several repositories: "
            + ", ".join(_familiar(e.name) for e in named),
            hint="remove it by name, or use --force to remove all of them",
        )
    return same
