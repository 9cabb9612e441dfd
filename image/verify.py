"""Checking the whole image store against its digests (`scow system check`).

What belongs here: reading everything and saying what is wrong. What must not: how it is mended
(repair.py). Nothing of this runs by itself: a start of scow looks at no more than it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from scow.image.content import INDEX, LAYOUT, LAYOUT_TEXT, IndexEntry
from scow.image.digest import DiffID, Digest, chain_ids, hex_of, parse_digest
from scow.image.dropped import borrowing, fetch_dropped, layers_of, noted_blobs, read_note
from scow.image.files import read_file, sync_directory
from scow.image.gc import collect, delete_blobs, named_by
from scow.image.install import rebuild_summary
from scow.image.repair import (
    fetch_again,
    mark_lost,
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
    RegistryError,
    ScowError,
    Unsupported,
)

if TYPE_CHECKING:
    from scow.image.store import ImageStore

_FILES = (LAYOUT, INDEX, "lock")
_DIRECTORIES = ("blobs", "blobs/sha256", "blobs/sha512", "ingest", "summaries", "dropped")


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
    from where the image came; an image that cannot be had again loses its names; a damaged index is
    made from its copy and from the manifests; what is no file where one should be, and the
    like, is set aside. With `quick` nothing inside layers is looked at.
    """
    if not os.path.exists(store.content.root):
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
        for text in self.store.layers.leftovers(remove=self.repair):
            self.found(text)
        for name in (*_FILES, *_DIRECTORIES):
            path = os.path.join(self.content.root, name)
            is_right = os.path.isfile(path) if name in _FILES else os.path.isdir(path)
            if not is_right and os.path.lexists(path):
                self.found(f"'{path}' is not a {'file' if name in _FILES else 'directory'}")
                if self.repair:
                    set_aside(self.store, path)
        if self.repair:
            for name in _DIRECTORIES:
                os.makedirs(os.path.join(self.content.root, name), mode=0o700, exist_ok=True)
        path = os.path.join(self.content.root, LAYOUT)
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
        try:
            self.entries = self.content.read_index()
            return
        except Unsupported as e:
            self.found(e.message, mended=False)
            self.is_index_good = False
            return
        except IntegrityError as e:
            self.found(e.message)
        self.is_index_good = self.repair
        if self.repair:
            path = os.path.join(self.content.root, INDEX)
            with self.content.locked():
                self.entries = recovered_entries(self.store)
                set_aside(self.store, path)
                self.content.write_index(self.entries)

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
        seen: set[str] = set()
        for entry in self.entries:
            if entry.is_deleting:
                self.found(f"image {entry.image_id} was not removed to the end")
            elif entry.image_id and entry.digest not in seen:
                seen.add(entry.digest)
                self._image(entry)

    def _image(self, entry: IndexEntry) -> None:
        missing = self._missing(entry)
        if not missing:
            return
        names = [e.name for e in self.entries if e.digest == entry.digest and e.name]
        name = "', '".join(names) or entry.image_id
        outcome = self._mend(entry) if self.repair else ""
        for part in missing:
            self.found(f"image '{name}' lacks {part}{outcome}", mended=self.repair and not outcome)

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
            why = self._mend_layers(entry)
        except RegistryError as e:
            return f" (not mended: {e})"
        self.damaged -= {d for d in self.damaged if self.content.has_blob(d)}
        if self._missing(entry):
            try:
                fetch_again(self.store, entry, self.entries)
            except NotFound as e:
                why = e.message
            except (ScowError, OSError) as e:
                return f" (not mended: {e})"
            self.damaged -= {d for d in self.damaged if self.content.has_blob(d)}
            if self._missing(entry):
                users = self.users.of_image(entry.image_id) if self.users else []
                if users:
                    return f" (not mended: {why}; container {users[0][:12]} uses it)"
                mark_lost(self.store, entry)
                return f" (removed: {why})"
        return ""

    def _mend_layers(self, entry: IndexEntry) -> str:
        """Unpack again what can be had from blobs that are here."""
        summary = self.store.read_summary(entry)
        for diff_id, text in layers_of(summary) if summary else []:
            if self._has_layer(diff_id):
                continue
            if self._compare(diff_id, parse_digest(text)) is None:
                self.store.layers.remove(diff_id)  # what is no layer is in the way of a new one
        return "it cannot be fetched again, its registry is not known"

    # -- layers -----------------------------------------------------------------------------------

    def _layers(self) -> None:
        blobs: dict[DiffID, str] = {}
        for entry in self.entries:
            summary = self.store.read_summary(entry) if entry.image_id else None
            blobs |= dict(layers_of(summary)) if summary else {}
        for diff_id in sorted(self.store.layers.list()):
            if diff_id not in blobs or self.store.layers.is_sealed(diff_id):
                continue
            blob = parse_digest(blobs[diff_id])
            try:
                differing = self._compare(diff_id, blob)
                if differing is None and read_note(self.content, blob):
                    self.found(f"layer {diff_id} is damaged, and its blob is not kept here")
            except (ScowError, OSError) as e:
                self.found(f"layer {diff_id} cannot be checked: {e}", mended=False)
                continue
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
                    self._summary(entry)

    def _summary(self, entry: IndexEntry) -> None:
        digest = parse_digest(entry.digest)
        path = os.path.join(self.content.summary_dir, hex_of(digest) + ".json")
        try:
            data = read_file(path, MAX_SUMMARY_BYTES)
            known = msgspec.json.decode(data, type=SummaryFile)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, IntegrityError):
            known = None
        if os.path.isdir(path):
            set_aside(self.store, path)
        try:
            if rebuild_summary(self.store, digest, entry.media_type) != known:
                self.found(f"the summary of image {entry.image_id} was damaged", mended=True)
        except (ScowError, OSError):
            return  # blobs or layers lack: that is told of the image

    def _compare(self, diff_id: DiffID, blob: Digest) -> list[str] | None:
        """Where a layer differs from what its blob unpacks to; None without that blob.

        To mend a layer a blob that was dropped is fetched again.
        """
        if self.repair and not self.content.has_blob(blob):
            if read_note(self.content, blob) is None:
                return None
        elif not self.content.has_blob(blob) or blob in self.damaged:
            return None
        with self.content.lease() as lease:
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
            leased = {lease.path for lease in self.content.leases() if lease.is_alive}
            for directory in (self.content.ingest_dir, self.content.summary_dir):
                for name in sorted(os.listdir(directory)):
                    path = os.path.join(directory, name)
                    if path in leased or name.endswith(".json") or self.content.is_claimed(path):
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
            own = [entry for entry in entries if entry.image_id]
            summaries = [self.store.read_summary(entry) for entry in own]
            if None in summaries:
                return  # what a damaged image needs is not known
            blobs, layers = named_by(self.store, entries, self.content.leases())
            known = [*stored_blobs(self.store), *noted_blobs(self.content)]
            stray = [digest for digest in dict.fromkeys(known) if digest not in blobs]
            for digest in stray:
                self.found(f"blob {digest} belongs to no image")
            if self.repair:
                delete_blobs(self.store, [*stray])
            if self.users is None:
                return
            stacks = {*self.users.stacks, *(s.diff_ids for s in summaries if s)}
            chains = {hex_of(c) for s in stacks for c in chain_ids([DiffID(d) for d in s])}
            for name in self.store.layers.strays(layers | self.users.layers, chains):
                self.found(f"layer '{name}' belongs to no image")
                if self.repair:
                    self.store.layers.discard(name)
        if self.repair:
            self.store.layers.empty_trash()
            if not self.users.running:
                self.store.layers.drop_aside()
