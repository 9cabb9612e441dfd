"""Checking the whole image store against its digests (`scow system check`).

What belongs here: reading everything and saying what is wrong. What must not: how it is mended
(repair.py). Nothing of this runs by itself: a start of scow looks at no more than it needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from scow.image.content import INDEX, INDEX_COPY, LAYOUT, LAYOUT_TEXT, IndexEntry
from scow.image.digest import DiffID, Digest, chain_ids, hex_of, parse_digest
from scow.image.dropped import borrowing, fetch_dropped, layers_of, noted_blobs, read_note
from scow.image.files import read_file, sync_directory, unchecked
from scow.image.gc import collect, delete_blobs, is_held, leased, named_by
from scow.image.install import rebuild_summary
from scow.image.repair import (
    compare_copy,
    fetch_again,
    recovered_entries,
    set_aside,
    stored_blobs,
    write_layout,
)
from scow.image.store import MAX_SUMMARY_BYTES, SummaryFile
from scow.native.errors import (
    IntegrityError,
    InvalidArgument,
    NotFound,
    ScowError,
    Unsupported,
)

if TYPE_CHECKING:
    from scow.image.store import ImageStore

T = TypeVar("T")
_FILES = (LAYOUT, INDEX, "lock")
_DIRECTORIES = ("", "blobs", "blobs/sha256", "blobs/sha512", "ingest", "summaries", "dropped")
_OF_LAYERS = ("", ".staging", ".trash", ".locks", ".empty", ".aside")
_TEMPORARY = re.compile(r".*\.([0-9]+)\.[0-9]+\.new")  # see files.py


class Users(msgspec.Struct, frozen=True):
    """What the room above knows, and this one does not: containers."""

    of_image: Callable[[str], list[str]]  # by image id
    stacks: frozenset[tuple[str, ...]] = frozenset()  # the diff ids of every container
    running: frozenset[str] = frozenset()  # the diff ids of those that run

    @property
    def layers(self) -> set[str]:
        """The diff ids that any container stands on."""
        return {diff_id for stack in self.stacks for diff_id in stack}


def verify_store(
    store: ImageStore, *, repair: bool = False, quick: bool = False, users: Users | None = None
) -> list[str]:
    """One line per fault; with `repair` it ends in "(mended)", or says why it is not.

    Mending means: a layer is unpacked again from its blob; what is damaged or gone is fetched again
    from where the image came; a damaged index is made from its copy and from the manifests; what is
    no file where one should be, and the like, is set aside. No image is removed: of one that cannot
    be had again there may be something to save. With `quick` nothing inside layers is looked at.
    """
    if not os.path.lexists(store.content.root):
        return []
    return _Check(store, repair=repair, quick=quick, users=users).run()


def clear_leftovers(store: ImageStore, users: Users) -> list[str]:
    """Remove what dead attempts left and what nobody names; a line for each."""
    if not os.path.exists(store.content.root):
        return []
    return _Check(store, repair=True, quick=True, users=users).clear()


class _Check:
    def __init__(
        self, store: ImageStore, *, repair: bool, quick: bool, users: Users | None
    ) -> None:
        self.store = store
        self.content = store.content
        self.repair = repair
        self.quick = quick
        self.users = users
        self.faults: list[str] = []
        self.entries: list[IndexEntry] = []
        self.damaged: set[Digest] = set()
        self.bad_layers: set[DiffID] = set()
        self.is_index_good = True
        self.bad_summaries: set[str] = set()

    def found(self, text: str, *, mended: bool | None = None) -> None:
        is_mended = self.repair if mended is None else mended
        self.faults.append(f"{text} (mended)" if is_mended else text)

    def run(self) -> list[str]:
        self._shape()
        self._index()
        if self.is_index_good:
            self._blobs()
            self._images()
            if not self.quick:
                self._layers()
                self._summaries()
            if self.repair:
                self._give_back()
        try:
            self._left_over()
            if self.repair and self.is_index_good:
                collect(self.store)
                self.content.keep_reserve()
            if self.is_index_good:
                self._unnamed()
        except OSError as e:  # a read-only disk has no lock to take: the rest is said all the same
            self.found(f"cannot look for what is left over: {e}", mended=False)
        return self.faults

    def clear(self) -> list[str]:
        for text in self.store.layers.leftovers(remove=True):
            self.found(text)
        self._left_over()
        collect(self.store)
        self._unnamed()
        return self.faults

    # -- the files themselves ---------------------------------------------------------------------

    def _shape(self) -> None:
        images, layers = self.content.root, os.path.join(self.store.root, "layers")
        places = [(images, name, False) for name in _DIRECTORIES]
        places += [(images, name, True) for name in _FILES]
        places += [(layers, name, False) for name in _OF_LAYERS]
        for base, name, is_file in places:
            path = os.path.join(base, name).rstrip("/")
            is_right = os.path.isfile(path) if is_file else os.path.isdir(path)
            if not is_right and os.path.lexists(path):
                self.found(f"'{path}' is not a {'file' if is_file else 'directory'}")
                if self.repair:
                    set_aside(self.store, path)
        for base, name, is_file in places if self.repair else ():
            if not is_file:
                with suppress(OSError):  # a full disk: what can be mended is mended without it
                    os.makedirs(os.path.join(base, name), mode=0o700, exist_ok=True)
        for path in (images, layers):
            self._closed(path)
        if all(os.path.isdir(os.path.join(layers, name)) for name in _OF_LAYERS[:-1]):
            for text in self.store.layers.leftovers(remove=self.repair):
                self.found(text)
        self._layout(os.path.join(images, LAYOUT))

    def _closed(self, path: str) -> None:
        """Whoever may look into images and layers may run their set-id programs (CVE-2021-41091)."""
        info = os.stat(path) if os.path.isdir(path) else None
        if info and (info.st_uid != os.geteuid() or info.st_mode & 0o077):
            self.found(f"'{path}' is open to others")
            if self.repair:
                os.chown(path, os.geteuid(), -1)
                os.chmod(path, 0o700)

    def _layout(self, path: str) -> None:
        try:
            # Not by its bytes: skopeo, which may write here too, puts a blank into it.
            if msgspec.json.decode(read_file(path, 1 << 20)) == msgspec.json.decode(LAYOUT_TEXT):
                return
        except (OSError, IntegrityError, ValueError):  # DecodeError and UnicodeDecodeError are
            pass
        if not os.path.exists(path) and not os.path.exists(os.path.join(self.content.root, INDEX)):
            if self.repair:
                self.content.prepare()
            return  # nothing was ever stored
        self.found(f"'{path}' does not say that this is an OCI layout")
        if self.repair:
            write_layout(self.store)

    def _index(self) -> None:
        path = os.path.join(self.content.root, INDEX)
        try:
            self.entries = self.content.read_index()
            fault, is_copy_good = self._locked(partial(compare_copy, self.content))
        except Unsupported as e:
            self.found(e.message, mended=False)
            self.is_index_good = False
            return
        except IntegrityError as e:
            fault, is_copy_good = e.message, True
        if fault:
            self.found(fault)
            self.is_index_good = self.repair
        elif not is_copy_good:
            self.found(f"'{path}' has a damaged copy")
            if self.repair:
                set_aside(self.store, os.path.join(self.content.root, INDEX_COPY), keep=False)
        if self.repair and (fault or not is_copy_good):
            with self.content.locked():
                if fault:
                    self.entries = recovered_entries(self.store)
                    set_aside(self.store, path)
                self.content.write_index(self.entries if fault else self.content.read_index())

    def _blobs(self) -> None:
        for digest in [] if self.quick else stored_blobs(self.store):
            try:
                for _ in self.content.read_chunks(digest):
                    pass
            except FileNotFoundError:
                continue  # removed meanwhile, by somebody's `rmi`
            except (IntegrityError, OSError):
                self.damaged.add(digest)
                self.found(f"blob {digest} is damaged", mended=False)
                if self.repair:
                    set_aside(self.store, self.content.blob_path(digest), keep=False)

    # -- images -----------------------------------------------------------------------------------

    def _images(self) -> None:
        for entry in self.entries:
            if entry.image_id and not entry.is_deleting:
                self._summary_file(entry)
        seen: set[str] = set()
        for entry in self.entries:
            if entry.is_deleting:
                if not self._locked(partial(self._is_under_way, entry)):
                    self.found(f"image {entry.image_id} was not removed to the end")
            elif entry.image_id and entry.digest not in seen:
                seen.add(entry.digest)
                self._image(entry)

    def _is_under_way(self, entry: IndexEntry) -> bool:
        """Whether a removal goes on by itself: who began it is alive, or others need some of it still."""
        live = [lease for lease in self.content.leases() if lease.is_alive]
        if entry.is_being_deleted or is_held(self.store, entry, live):
            return True
        return entry not in self.content.read_index()

    def _image(self, entry: IndexEntry) -> None:
        missing = self._missing(entry) and self._locked(partial(self._missing_still, entry))
        if not missing:
            return
        names = [e.name for e in self.entries if e.digest == entry.digest and e.name]
        name = "', '".join(names) or entry.image_id
        outcome = self._mend(entry) if self.repair else ""
        for part in missing:
            self.found(f"image '{name}' lacks {part}{outcome}", mended=self.repair and not outcome)

    def _missing_still(self, entry: IndexEntry) -> list[str]:
        """The same, unless the image was removed meanwhile."""
        entries = self.content.read_index()
        is_here = any(e.digest == entry.digest and not e.is_deleting for e in entries)
        return self._missing(entry) if is_here else []

    def _locked(self, look: Callable[[], T]) -> T:
        """Look while nobody changes the store; on a read-only disk nobody does."""
        try:
            with self.content.locked():
                return look()
        except OSError:
            return look()

    def _missing(self, entry: IndexEntry) -> list[str]:
        summary = self.store.read_summary(entry)
        if summary is None:
            return ["its manifest or config"]
        blobs = [parse_digest(text) for text in summary.blobs]
        missing = [
            f"blob {digest}"
            for digest in dict.fromkeys(blobs)
            if digest in self.damaged
            or not (self.content.has_blob(digest) or read_note(self.content, digest))
        ]
        layers = dict.fromkeys(summary.diff_ids)
        return missing + [f"layer {diff_id}" for diff_id in layers if not self._has_layer(diff_id)]

    def _has_layer(self, diff_id: DiffID) -> bool:
        try:
            return self.store.layers.has(diff_id) and bool(self.store.layers.info(diff_id))
        except (IntegrityError, NotFound):
            return False

    def _mend(self, entry: IndexEntry) -> str:
        """Make an image whole again; "" for done, else what became of it."""
        try:
            self._mend_layers(entry)
            if self._missing(entry):
                fetch_again(self.store, entry, self.entries)
        except NotFound as e:
            rest = "'scow rmi' removes what is left"
            if self._is_usable(entry):
                rest = "only save and push need it"
            return f" (not mended: {e}; {rest})"
        except (ScowError, OSError) as e:
            return f" (not mended: {e})"
        self.damaged -= {d for d in self.damaged if self.content.has_blob(d)}
        return " (not mended: it came again, and lacks it still)" if self._missing(entry) else ""

    def _is_usable(self, entry: IndexEntry) -> bool:
        """Whether only compressed layers lack, which no container needs."""
        summary = self.store.read_summary(entry)
        return summary is not None and (
            all(self.content.has_blob(parse_digest(text)) for text in summary.blobs[:2])
            and all(self._has_layer(diff_id) for diff_id in summary.diff_ids)
        )

    def _mend_layers(self, entry: IndexEntry) -> None:
        """Unpack again what can be had from blobs that are here."""
        summary = self.store.read_summary(entry)
        for diff_id, text in layers_of(summary) if summary else []:
            if self._has_layer(diff_id):
                continue
            if self._compare(diff_id, parse_digest(text)) is None:
                self.store.layers.remove(diff_id)  # what is no layer is in the way of a new one
        self.damaged -= {d for d in self.damaged if self.content.has_blob(d)}

    # -- layers -----------------------------------------------------------------------------------

    def _layers(self) -> None:
        blobs: dict[DiffID, str] = {}
        for entry in self.entries:
            summary = self.store.read_summary(entry) if entry.image_id else None
            blobs |= dict(layers_of(summary)) if summary else {}
        for diff_id in sorted(filter(self._has_layer, blobs)):
            if self.store.layers.is_sealed(diff_id):
                continue
            was_sealed = self.store.layers.has_seal(diff_id)
            fault = ""
            differing: list[str] | None = []
            try:
                differing = self._compare(diff_id, parse_digest(blobs[diff_id]))
            except (ScowError, OSError) as e:
                fault = f"layer {diff_id} cannot be checked: {e}"
            if not self._locked(partial(self._has_layer, diff_id)):
                continue  # it was removed meanwhile
            if differing is None and was_sealed:
                fault = f"layer {diff_id} is damaged, and its blob is not kept here"
            if fault:
                self.found(fault, mended=False)
            elif differing == [] and was_sealed:
                self.found(f"the seal of layer {diff_id} was damaged", mended=True)
            if differing and not self.repair:
                self.bad_layers.add(diff_id)
            for path in differing or ():
                self.found(f"layer {diff_id}: '{path}' is damaged")
        for name in self.store.layers.damaged_completions():
            self.found(f"layer '{name}' is damaged")
            if self.repair:
                self.store.layers.drop_completion(name, keep_old=bool(self._running()))

    def _summaries(self) -> None:
        """Derived from the rest, and made again in passing: it is only said that they were wrong."""
        for entry in self.entries:
            if entry.image_id and not entry.is_deleting and not self._missing(entry):
                summary = self.store.read_summary(entry)
                if summary and not self.bad_layers.intersection(summary.diff_ids):
                    with suppress(ScowError, OSError):  # blobs lack: that is told of the image
                        digest = parse_digest(entry.digest)
                        if rebuild_summary(self.store, digest, entry.media_type) != summary:
                            self._bad_summary(entry)

    def _summary_file(self, entry: IndexEntry) -> None:
        digest = parse_digest(entry.digest)
        path = os.path.join(self.content.summary_dir, hex_of(digest) + ".json")
        try:
            data = read_file(path, MAX_SUMMARY_BYTES)
            if data:  # it is not synced: after a power cut it may be empty
                msgspec.json.decode(unchecked(data, path), type=SummaryFile)
            return
        except FileNotFoundError:
            return
        except (OSError, ValueError, IntegrityError):
            self._bad_summary(entry)
        if os.path.isdir(path):
            set_aside(self.store, path)

    def _bad_summary(self, entry: IndexEntry) -> None:
        if entry.digest not in self.bad_summaries:
            self.bad_summaries.add(entry.digest)
            self.found(f"the summary of image {entry.image_id} was damaged", mended=True)

    def _compare(self, diff_id: DiffID, blob: Digest) -> list[str] | None:
        """Where a layer differs from what its blob unpacks to; None without that blob.

        To mend a layer a blob that was dropped is fetched again.
        """
        if self.repair and not self.content.has_blob(blob):
            if read_note(self.content, blob) is None:
                return None
        elif not self.content.has_blob(blob) or blob in self.damaged:
            return None
        with leased(self.store) as lease:
            lease.hold(blobs=[blob], layers=[diff_id])
            try:
                if not self.content.has_blob(blob):
                    fetch_dropped(self.store, blob)
                return self.store.layers.compare(
                    diff_id,
                    self.content.read_chunks(blob),
                    mend=self.repair,
                    keep_old=diff_id in self._running(),
                )
            finally:
                lease.finish()

    def _running(self) -> frozenset[str]:
        return self.users.running if self.users else frozenset()

    def _give_back(self) -> None:
        """Blobs that were fetched to mend layers are not kept, where that is the policy."""
        try:
            with borrowing(self.store):
                pass
        except InvalidArgument as e:
            self.found(e.message, mended=False)

    # -- what nobody needs ------------------------------------------------------------------------

    def _left_over(self) -> None:
        """Files of writers that died: nobody holds their lock and no lease remembers them."""
        if not os.path.isdir(self.content.ingest_dir):
            return
        with self.content.locked():
            # A blob that a live lease names may be claimed at any moment.
            alive = [lease for lease in self.content.leases() if lease.is_alive]
            wanted = {self.content.ingest_path(Digest(text)) for x in alive for text in x.blobs}
            wanted |= {lease.path for lease in alive}
            for directory in (self.content.ingest_dir, self.content.summary_dir):
                for name in sorted(os.listdir(directory)):
                    path = os.path.join(directory, name)
                    if path in wanted or name.endswith(".json") or _is_being_written(name):
                        continue
                    if self.content.is_claimed(path):
                        continue
                    self.found(f"'{path}' was left by a pull that did not end well")
                    if self.repair and not os.path.isfile(path):
                        set_aside(self.store, path)
                    elif self.repair and not name.startswith("lease-"):
                        os.unlink(path)
                        sync_directory(directory)

    def _unnamed(self) -> None:
        """Content that no image, lease or container stands on."""
        with self.content.locked():
            entries = self.content.read_index()
            if not all(entry.digest for entry in entries):
                return  # what is no entry may have been one
            own = [entry for entry in entries if entry.image_id]
            summaries = [self.store.read_summary(entry) for entry in own]
            if None in summaries:
                return  # what a damaged image needs is not known
            leases = self.content.leases()
            blobs, layers = named_by(self.store, entries, leases)
            known = [*stored_blobs(self.store), *noted_blobs(self.content)]
            stray = [digest for digest in dict.fromkeys(known) if digest not in blobs]
            for digest in stray:
                self.found(f"blob {digest} belongs to no image")
            if self.repair:
                delete_blobs(self.store, [*stray])
            if self.users is not None:
                stacks = {*self.users.stacks, *(s.diff_ids for s in summaries if s)}
                chains = {hex_of(c) for s in stacks for c in chain_ids([DiffID(d) for d in s])}
                _, leased = named_by(self.store, (), leases)
                for name in self.store.layers.strays(layers | self.users.layers, chains, leased):
                    self.found(f"layer '{name}' belongs to no image")
                    if self.repair:
                        self.store.layers.discard(name)
        if self.repair:
            self.store.layers.empty_trash()
            if self.users is not None and not self.users.running:
                self.store.layers.drop_aside()


def _is_being_written(name: str) -> bool:
    """Whether this is a temporary file of a process that is alive."""
    made = _TEMPORARY.fullmatch(name)
    return made is not None and os.path.exists(f"/proc/{made[1]}")
