"""The layer store: one directory per diff id, in overlayfs's own form, unpacked once.

What belongs here: which layers exist, making them appear whole or not at all, taking them away. What
must not: tar (native/untar*.c), the pipeline (unpack.py), images. Layout below the root:

    <hex>/diff/             the tree
    <hex>/layer.json        what it is; a directory without it does not exist (layer_info.py)
    <hex>/needs-lower       only if the layer refers to lower ones (LowerNeeds)
    <hex>/seal              a digest of all that; there once it was compared with its blob
    chain-<hex>/            a thin layer that completes such a layer on one stack; by chain id
    .staging/ .trash/ .locks/ .empty/
    .aside/                 damaged ones that a running container still stands on
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import msgspec

from scow.image.digest import ChainID, DiffID, chain_ids, hex_of
from scow.image.disk_sync import disk_of
from scow.image.layer_info import LayerInfo, read_info, read_needs, write_info, write_needs
from scow.image.unpack import DEFAULT_LIMIT_BYTES, LowerNeeds, unpack
from scow.image.waiting import lock_file
from scow.native import fs
from scow.native.errors import IntegrityError, NotFound
from scow.native.failpoint import failpoint
from scow.native.fd import OwnedFd

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


# Named here because the class has a method `list`.
Paths = list[str]
DiffIDs = list[DiffID]


class _Making(NamedTuple):
    """Thin layers of one stack that were missing: all get their names after one sync."""

    held: ExitStack  # locks and staging directories
    syncing: ExitStack
    names: dict[str, str]  # by staging directory


class LayerStore:
    """Layers below `root_dir`; safe to use from threads and from processes at the same time."""

    def __init__(self, root_dir: str = "/var/lib/scow/layers") -> None:
        self.root_dir = root_dir

    def has(self, diff_id: DiffID) -> bool:
        """Whether the layer is there, whole."""
        return os.path.isfile(self._file(hex_of(diff_id), "layer.json"))

    def path(self, diff_id: DiffID) -> str:
        """The tree of a layer, for overlayfs's lowerdir."""
        return self._file(hex_of(diff_id), "diff")

    def info(self, diff_id: DiffID) -> LayerInfo:
        """What layer.json says."""
        return read_info(self.root_dir, hex_of(diff_id))

    def list(self) -> DiffIDs:
        """The layers that exist, in no order."""
        names = [name for name in self._names() if not name.startswith(("chain-", "."))]
        found: DiffIDs = []
        for name in names:
            try:
                found.append(read_info(self.root_dir, name).diff_id)
            except (NotFound, IntegrityError):
                continue  # taken away, or a leftover that has no name, or damaged
        return found

    def unpack(
        self,
        diff_id: DiffID,
        chunks: Iterable[bytes],
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
    ) -> LayerInfo:
        """Make the layer `diff_id` from its compressed bytes, unless it is there.

        If it is (another process was first, while this one waited), `chunks` stay unread. All of it
        is on the disk then but perhaps its name: who wants that to last calls `sync_names`. Raises
        as `scow.image.unpack.unpack` does; nothing is left behind then.
        """
        self._prepare()
        name = hex_of(diff_id)
        with self._locked(name) as lock:
            if self.has(diff_id):
                return self.info(diff_id)
            self.sweep()
            with self._staged(name) as (staging, staging_fd):
                info = _fill(staging_fd, diff_id, chunks, lock, limit_bytes)
                self._commit(staging, name)
                return info

    def sync_names(self) -> None:
        """Make the names of all layers last."""
        failpoint("layer.sync-name")
        with OwnedFd(os.open(self.root_dir, _DIR)) as root:
            os.fsync(root.fileno())

    def stack(self, diff_ids: Sequence[DiffID]) -> Paths:
        """The lower directories of an image whose layers are `diff_ids`, bottom first; top first.

        Completes layers that refer to lower ones (hard links to lower files, directories that the
        tar did not list): those thin layers depend on the stack, so they are kept by chain id.
        Raises NotFound for a missing layer, IntegrityError for a link to nothing.
        """
        with ExitStack() as held:
            with ExitStack() as syncing:
                making = _Making(held, syncing, {})
                paths = self._stack(diff_ids, making)
            for staging, name in making.names.items():
                self._commit(staging, name)
        named = {f"{staging}/diff": self._file(n, "diff") for staging, n in making.names.items()}
        return [named.get(path, path) for path in paths]

    def remove(self, diff_id: DiffID) -> bool:
        """Take a layer away, and the thin ones that complete a stack with it; whether it was there.

        The caller knows that no container uses it. Its files lie in the trash until `empty_trash`:
        a distribution has 50,000 of them, and the caller may hold a lock that others wait for.
        """
        if not os.path.isdir(self.root_dir):
            return False
        self._prepare()
        for name in self._names():
            if name.startswith("chain-") and self._completes(name, diff_id):
                self.discard(name)
        name = hex_of(diff_id)
        with self._locked(name):
            return self.discard(name)

    def sweep(self) -> None:
        """Clean what dead attempts left: staging directories that nobody holds, the trash."""
        self._prepare()
        for name in os.listdir(self._file(".staging")):
            with self._locked(name, wait=False) as lock:
                if not lock.closed:
                    self._throw_away(self._file(".staging"), name)
        self.empty_trash()

    def trash_bytes(self) -> int:
        """What the files of removed layers take on the disk."""
        from scow.image.tree import disk_bytes

        return disk_bytes(self._file(".trash"))

    def drop_aside(self) -> int:
        """Let go of damaged layers that were set aside; the caller knows that no container runs."""
        names = os.listdir(self._file(".aside")) if os.path.isdir(self._file(".aside")) else []
        for name in names:
            self._throw_away(self._file(".aside"), name)
        return len(names)

    def empty_trash(self) -> None:
        """Delete the files of what was removed, by this process or by one that was killed."""
        failpoint("layer.empty-trash")
        with OwnedFd(os.open(self._file(".trash"), _DIR)) as trash:
            fs.empty_trash(trash.fileno())

    # -- checking ----------------------------------------------------------------------------

    def is_sealed(self, diff_id: DiffID) -> bool:
        """Whether the layer is, to the last byte, as it was when it was compared with its blob."""
        from scow.image.seal import is_sealed

        return is_sealed(self._file(hex_of(diff_id)))

    def has_seal(self, diff_id: DiffID) -> bool:
        """Whether the layer was sealed, be it as it was or not."""
        return os.path.isfile(self._file(hex_of(diff_id), "seal"))

    def seal(self, diff_id: DiffID) -> None:
        """Seal a layer that was unpacked just now, durably; on a full disk there is none."""
        from scow.image.seal import write_seal

        write_seal(self._file(hex_of(diff_id)), durable=True, cold=False)

    def compare(
        self, diff_id: DiffID, chunks: Iterable[bytes], *, mend: bool, keep_old: bool = False
    ) -> Paths:
        """Unpack the layer once more, and say where the one that is there differs.

        With `mend` the new one takes its place then; `keep_old` says that a container runs on the
        old one. A layer that is right gets its seal, so that the next look needs no unpacking.
        """
        from scow.image.seal import write_seal

        self._prepare()
        name = hex_of(diff_id)
        with self._locked(name) as lock, self._staged(name) as (staging, staging_fd):
            info = _fill(staging_fd, diff_id, chunks, lock, DEFAULT_LIMIT_BYTES, durable=mend)
            found = self._differences(name, staging_fd, info)
            if found and mend:
                self._commit(staging, name, keep_old=keep_old)
                self.sync_names()
            if mend or not found:
                write_seal(self._file(name))
            return found

    def damaged_completions(self) -> Paths:
        """The thin layers that are not as they were made."""
        from scow.image.seal import is_sealed

        chains = [name for name in self._names() if name.startswith("chain-")]
        found = [name for name in chains if not is_sealed(self._file(name))]
        return [
            name for name in found if os.path.lexists(self._file(name))
        ]  # not removed meanwhile

    def drop_completion(self, name: str, *, keep_old: bool) -> None:
        """Take a thin layer away: `stack` makes it again where it is needed."""
        if keep_old:
            self._set_aside(name)
        else:
            self.discard(name)

    def strays(self, diff_ids: set[str], chains: set[str], leased: set[str]) -> Paths:
        """What lies here and is neither one of these layers nor completes one of these stacks.

        A pull under way may have completed any stack of layers that are all `leased`.
        """
        known = {hex_of(DiffID(d)) for d in diff_ids} | {f"chain-{c}" for c in chains}
        found = [name for name in self._names() if not name.startswith(".") and name not in known]
        return [name for name in found if not self._is_leased(name, leased)]

    def _is_leased(self, name: str, leased: set[str]) -> bool:
        try:
            stack = read_info(self.root_dir, name).stack
        except (NotFound, IntegrityError):
            return False
        return bool(stack) and leased.issuperset(stack)

    def leftovers(self, *, remove: bool) -> Paths:
        """A line for each thing of a dead attempt that still takes space."""
        found: Paths = []
        if not os.path.isdir(self._file(".locks")):
            return found
        for name in os.listdir(self._file(".locks")):
            if os.path.isdir(self._file(".locks", name)):
                found.append(f"'{self._file('.locks', name)}' is not a file")
                if remove:
                    self._throw_away(self._file(".locks"), name)
        for name in os.listdir(self._file(".staging")):
            with self._locked(name, wait=False) as lock:
                if not lock.closed and os.path.lexists(self._file(".staging", name)):
                    found.append(f"layer '{name}' was not unpacked to the end")
        trash = [n for n in os.listdir(self._file(".trash")) if not fs.is_in_use(n)]
        found += [f"{len(trash)} removed layers still take space"] if trash else []
        if remove and found:
            self.sweep()
        return found

    def _differences(self, name: str, staging_fd: int, info: LayerInfo) -> Paths:
        from scow.image.seal import differing

        try:
            if read_info(self.root_dir, name) != info:
                return ["layer.json"]
        except (NotFound, IntegrityError):
            return ["layer.json"]
        return differing(self._file(name), staging_fd)

    # -- one stack's completions -------------------------------------------------------------

    def _stack(self, diff_ids: Sequence[DiffID], making: _Making) -> Paths:
        paths: Paths = []  # top first
        chain: Sequence[ChainID] = ()
        for index, diff_id in enumerate(diff_ids):
            if not self.has(diff_id):
                raise NotFound(f"layer '{diff_id}' is not unpacked", hint="pull the image again")
            needs = read_needs(self.root_dir, diff_id)
            if needs.opaque_root:
                paths = []
            # A layer twice (an empty one, mostly): overlayfs refuses it, and the upper one decides.
            own = self.path(diff_id)
            below, paths = paths, [own, *(path for path in paths if path != own)]
            if needs.links or (needs.implied and below):
                chain = chain or chain_ids(diff_ids)
                info = LayerInfo(diff_id, 0, 0, 0, stack=tuple(diff_ids[: index + 1]))
                name = f"chain-{hex_of(chain[index])}"
                paths[:0] = self._completion(making, name, info, needs, (paths, below))
        return paths

    def _completion(
        self,
        making: _Making,
        name: str,
        info: LayerInfo,
        needs: LowerNeeds,
        stacks: tuple[Paths, Paths],
    ) -> Paths:
        """The thin layer for the top of a stack: its path, or nothing if all was well without."""
        from scow.image import completion
        from scow.image.seal import write_seal

        if not os.path.exists(self._file(name, "layer.json")):
            # Everybody takes these locks from the bottom of a stack up.
            making.held.enter_context(self._locked(name))
            if not os.path.exists(self._file(name, "layer.json")):
                staging, staging_fd = making.held.enter_context(self._staged(name))
                if not making.names:
                    making.syncing.enter_context(disk_of(staging_fd))
                making.names[staging] = name
                with OwnedFd(os.open("diff", _DIR, dir_fd=staging_fd)) as diff:
                    made = completion.complete(diff.fileno(), needs, *stacks, self._file(".empty"))
                write_info(staging_fd, msgspec.structs.replace(info, entries=made))
                write_seal(staging)  # nothing else says what is right in a layer that has no blob
                return [f"{staging}/diff"] if made else []
        return [self._file(name, "diff")] if read_info(self.root_dir, name).entries else []

    def _completes(self, name: str, diff_id: DiffID) -> bool:
        try:
            return diff_id in read_info(self.root_dir, name).stack
        except (NotFound, IntegrityError):
            return True  # half-made or damaged: it can be made again

    # -- appearing and going away ------------------------------------------------------------

    def _prepare(self) -> None:
        for name in ("", ".staging", ".trash", ".locks", ".empty"):
            try:
                os.makedirs(self._file(name), mode=0o700)
            except FileExistsError:
                continue

    @contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Generator[OwnedFd]:
        """Hold the lock of a layer. Without `wait` the descriptor is closed if another has it.

        flock(2): the lock is the open file's, so the applet that inherits it holds it as well, should
        we be killed. The file goes with its lock, hence the look whether it is still the named one.
        """
        path = self._file(".locks", name)
        while True:
            lock = OwnedFd(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                if wait:
                    lock_file(lock.fileno(), f"layer '{name}'")
                else:
                    fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                break
            except BaseException:
                lock.close()
                raise
            if os.fstat(lock.fileno()).st_nlink == 1:
                break
            lock.close()
        with lock:
            try:
                yield lock
            finally:
                if not lock.closed:
                    os.unlink(path)

    @contextmanager
    def _staged(self, name: str) -> Generator[tuple[str, int]]:
        """A fresh staging directory under the lock of `name`; gone afterwards, committed or not."""
        parent = self._file(".staging")
        self._throw_away(parent, name)
        path = os.path.join(parent, name)
        failpoint("layer.stage")
        os.mkdir(path, 0o700)
        try:
            with OwnedFd(os.open(path, _DIR)) as fd:
                os.mkdir("diff", 0o755, dir_fd=fd.fileno())
                yield path, fd.fileno()
        finally:
            self._throw_away(parent, name)

    def _commit(self, staging: str, name: str, *, keep_old: bool = False) -> None:
        """Give its name to a layer that is on the disk, layer.json too."""
        if os.path.lexists(self._file(name)):  # without a layer.json, or damaged
            if keep_old:
                self._set_aside(name)
            else:
                self._throw_away(self.root_dir, name)
        failpoint("layer.name")
        os.rename(staging, self._file(name))

    def _set_aside(self, name: str) -> None:
        """A mounted overlay must not lose the files below it (overlayfs.rst): they only move."""
        os.makedirs(self._file(".aside"), mode=0o700, exist_ok=True)
        os.rename(self._file(name), self._file(".aside", f"{name}.{os.urandom(4).hex()}"))

    def discard(self, name: str) -> bool:
        """Into the trash with whatever has this name; whether it was there."""
        with (
            OwnedFd(os.open(self.root_dir, _DIR)) as root,
            OwnedFd(os.open(self._file(".trash"), _DIR)) as trash,
        ):
            failpoint("layer.discard")
            gone = fs.move_to_trash(root.fileno(), name, trash.fileno()) is not None
            if gone:
                os.fsync(root.fileno())
        return gone

    def _throw_away(self, parent: str, name: str) -> None:
        """Rename to the trash, so that it is gone at once, then delete."""
        with (
            OwnedFd(os.open(parent, _DIR)) as directory,
            OwnedFd(os.open(self._file(".trash"), _DIR)) as trash,
        ):
            ticket = fs.move_to_trash(directory.fileno(), name, trash.fileno())
            if ticket is not None:
                fs.remove_tree(trash.fileno(), ticket)

    # -- reading -----------------------------------------------------------------------------

    def _file(self, *names: str) -> str:
        return os.path.join(self.root_dir, *names)

    def _names(self) -> Paths:
        try:
            return os.listdir(self.root_dir)
        except FileNotFoundError:
            return []


def _fill(
    staging_fd: int,
    diff_id: DiffID,
    chunks: Iterable[bytes],
    lock: OwnedFd,
    limit_bytes: int,
    *,
    durable: bool = True,
) -> LayerInfo:
    """Unpack into a staging directory; if `durable`, all of it is on the disk when this returns."""
    with disk_of(staging_fd) if durable else nullcontext() as disk:
        with OwnedFd(os.open("diff", _DIR, dir_fd=staging_fd)) as diff:
            failpoint("layer.unpack")
            done = unpack(
                diff_id,
                chunks,
                diff.fileno(),
                limit_bytes=limit_bytes,
                keep_fds=(lock.fileno(),),
                disk=disk,
            )
        if done.needs:
            write_needs(staging_fd, done.needs)
        info = LayerInfo(
            diff_id=diff_id,
            size=done.data_bytes,
            tar_bytes=done.tar_bytes,
            entries=done.entries,
            refers_lower=bool(done.needs),
        )
        write_info(staging_fd, info)
        return info
