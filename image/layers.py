"""The layer store: one directory per diff id, in overlayfs's own form, unpacked once.

What belongs here: which layers exist, making them appear whole or not at all, taking them away. What
must not: tar (native/untar*.c), the pipeline (unpack.py), images. Layout below the root:

    <hex>/diff/             the tree
    <hex>/layer.json        what it is; written last, so a directory without it does not exist
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
from contextlib import contextmanager

import msgspec

from scow.image.digest import ChainID, DiffID, chain_ids, hex_of
from scow.image.unpack import DEFAULT_LIMIT_BYTES, LowerNeeds, Unpacked, unpack
from scow.image.waiting import lock_file
from scow.native import fs
from scow.native.errors import IntegrityError, NotFound
from scow.native.failpoint import failpoint
from scow.native.fd import OwnedFd

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


# Named here because the class has a method `list`.
Paths = list[str]
DiffIDs = list[DiffID]


class LayerInfo(msgspec.Struct, frozen=True):
    """layer.json: a layer that exists. `size` counts the bytes of its files, holes left out."""

    diff_id: DiffID
    size: int
    tar_bytes: int
    entries: int
    refers_lower: bool = False
    # The stack that a chain-<hex> layer completes, bottom first; empty for a plain layer.
    stack: tuple[DiffID, ...] = ()


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
        return self._read_info(hex_of(diff_id))

    def list(self) -> DiffIDs:
        """The layers that exist, in no order."""
        names = [name for name in self._names() if not name.startswith(("chain-", "."))]
        found: DiffIDs = []
        for name in names:
            try:
                found.append(self._read_info(name).diff_id)
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

        If it is (another process was first, while this one waited), `chunks` stay unread. Raises as
        `scow.image.unpack.unpack` does; nothing is left behind then.
        """
        self._prepare()
        name = hex_of(diff_id)
        with self._locked(name) as lock:
            if self.has(diff_id):
                return self.info(diff_id)
            self.sweep()
            with self._staged(name) as (staging, staging_fd):
                info = _fill(staging_fd, diff_id, chunks, lock, limit_bytes)
                self._commit(staging, staging_fd, name, info)
                return info

    def stack(self, diff_ids: Sequence[DiffID]) -> Paths:
        """The lower directories of an image whose layers are `diff_ids`, bottom first; top first.

        Completes layers that refer to lower ones (hard links to lower files, directories that the
        tar did not list): those thin layers depend on the stack, so they are kept by chain id.
        Raises NotFound for a missing layer, IntegrityError for a link to nothing.
        """
        paths: Paths = []  # top first
        chain: Sequence[ChainID] = ()
        for index, diff_id in enumerate(diff_ids):
            if not self.has(diff_id):
                raise NotFound(f"layer '{diff_id}' is not unpacked", hint="pull the image again")
            needs = self._read_needs(diff_id)
            if needs.opaque_root:
                paths = []
            # A layer twice (an empty one, mostly): overlayfs refuses it, and the upper one decides.
            own = self.path(diff_id)
            below, paths = paths, [own, *(path for path in paths if path != own)]
            if needs.links or (needs.implied and below):
                chain = chain or chain_ids(diff_ids)
                done = tuple(diff_ids[: index + 1])
                paths[:0] = self._completion(chain[index], done, needs, paths, below)
        return paths

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
                self._commit(staging, staging_fd, name, info, keep_old=keep_old)
            if mend or not found:
                write_seal(self._file(name))
            return found

    def damaged_completions(self) -> Paths:
        """The thin layers that are not as they were made."""
        from scow.image.seal import is_sealed

        chains = [name for name in self._names() if name.startswith("chain-")]
        return [name for name in chains if not is_sealed(self._file(name))]

    def drop_completion(self, name: str, *, keep_old: bool) -> None:
        """Take a thin layer away: `stack` makes it again where it is needed."""
        if keep_old:
            self._set_aside(name)
        else:
            self.discard(name)

    def strays(self, diff_ids: set[str], chains: set[str]) -> Paths:
        """What lies here and is neither one of these layers nor completes one of these stacks."""
        known = {hex_of(DiffID(d)) for d in diff_ids} | {f"chain-{c}" for c in chains}
        return [name for name in self._names() if not name.startswith(".") and name not in known]

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
                if not lock.closed:
                    found.append(f"layer '{name}' was not unpacked to the end")
        trash = os.listdir(self._file(".trash"))
        found += [f"{len(trash)} removed layers still take space"] if trash else []
        if remove and found:
            self.sweep()
        return found

    def _differences(self, name: str, staging_fd: int, info: LayerInfo) -> Paths:
        from scow.image.seal import differing

        try:
            if self._read_info(name) != info:
                return ["layer.json"]
        except (NotFound, IntegrityError):
            return ["layer.json"]
        return differing(self._file(name), staging_fd)

    # -- one stack's completion --------------------------------------------------------------

    def _completion(
        self,
        chain: ChainID,
        stack: tuple[DiffID, ...],
        needs: LowerNeeds,
        paths: Sequence[str],
        below: Sequence[str],
    ) -> Paths:
        """The thin layer for the top of `stack`: its path, or nothing if all was well without."""
        from scow.image import completion

        name = f"chain-{hex_of(chain)}"
        if not os.path.exists(self._file(name, "layer.json")):
            with self._locked(name):
                if not os.path.exists(self._file(name, "layer.json")):
                    with self._staged(name) as (staging, staging_fd):
                        with OwnedFd(os.open("diff", _DIR, dir_fd=staging_fd)) as diff:
                            made = completion.complete(
                                diff.fileno(), needs, [*paths], [*below], self._file(".empty")
                            )
                        info = LayerInfo(stack[-1], 0, 0, made, stack=stack)
                        self._commit(staging, staging_fd, name, info, sealed=True)
        return [self._file(name, "diff")] if self._read_info(name).entries else []

    def _completes(self, name: str, diff_id: DiffID) -> bool:
        try:
            return diff_id in self._read_info(name).stack
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

    def _commit(
        self,
        staging: str,
        staging_fd: int,
        name: str,
        info: LayerInfo,
        *,
        keep_old: bool = False,
        sealed: bool = False,
    ) -> None:
        """The order of truth: data (synced), then layer.json, then the name."""
        from scow.image.seal import write_seal

        failpoint("layer.json")
        fs.write_atomic(staging_fd, "layer.json", msgspec.json.encode(info))
        if sealed:  # nothing but the seal says what is right in a layer that has no blob
            write_seal(staging, durable=True)
        if os.path.lexists(self._file(name)):  # without a layer.json, or damaged
            if keep_old:
                self._set_aside(name)
            else:
                self._throw_away(self.root_dir, name)
        failpoint("layer.name")
        os.rename(staging, self._file(name))
        failpoint("layer.sync-name")
        with OwnedFd(os.open(self.root_dir, _DIR)) as root:
            os.fsync(root.fileno())

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

    def _read(self, name: str, file: str) -> bytes | None:
        try:
            with open(self._file(name, file), "rb") as stream:
                return stream.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _read_info(self, name: str) -> LayerInfo:
        data = self._read(name, "layer.json")
        if data is None:
            raise NotFound(f"no such layer: '{name}'")
        try:
            info = msgspec.json.decode(data, type=LayerInfo)
        except ValueError as error:
            raise _damaged(name, f"bad layer.json: {error}") from error
        if name in (hex_of(info.diff_id), f"chain-{_chain_of(info)}"):
            return info
        raise _damaged(name, "its layer.json is of another layer")

    def _read_needs(self, diff_id: DiffID) -> LowerNeeds:
        data = self._read(hex_of(diff_id), "needs-lower")
        if data is None:
            return LowerNeeds()
        try:
            return msgspec.msgpack.decode(data, type=LowerNeeds)
        except ValueError as error:
            raise _damaged(hex_of(diff_id), f"bad needs-lower: {error}") from error


def _damaged(name: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"layer '{name}' is damaged: {why}", hint="`scow system check --repair` mends it"
    )


def _chain_of(info: LayerInfo) -> str:
    return hex_of(chain_ids(info.stack)[-1]) if info.stack else ""


def _fill(
    staging_fd: int,
    diff_id: DiffID,
    chunks: Iterable[bytes],
    lock: OwnedFd,
    limit_bytes: int,
    *,
    durable: bool = True,
) -> LayerInfo:
    """Unpack into a staging directory all but layer.json; on the disk when this returns."""
    with OwnedFd(os.open("diff", _DIR, dir_fd=staging_fd)) as diff:
        failpoint("layer.unpack")
        done = unpack(
            diff_id,
            chunks,
            diff.fileno(),
            limit_bytes=limit_bytes,
            keep_fds=(lock.fileno(),),
            durable=durable,
        )
    if done.needs:
        fs.write_atomic(staging_fd, "needs-lower", _encode_needs(done.needs))
    return _describe(diff_id, done)


def _encode_needs(needs: LowerNeeds) -> bytes:
    # Not JSON: names in a layer are bytes, not text.
    return msgspec.msgpack.encode(needs)


def _describe(diff_id: DiffID, done: Unpacked) -> LayerInfo:
    return LayerInfo(
        diff_id=diff_id,
        size=done.data_bytes,
        tar_bytes=done.tar_bytes,
        entries=done.entries,
        refers_lower=bool(done.needs),
    )
