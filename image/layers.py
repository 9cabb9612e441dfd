"""The layer store: one directory per diff id, in overlayfs's own form, unpacked once.

What belongs here: which layers exist, making them appear whole or not at all, taking them away. What
must not: tar (native/untar*.c), the pipeline (unpack.py), images. Layout below the root:

    <hex>/diff/             the tree
    <hex>/layer.json        what it is; written last, so a directory without it does not exist
    <hex>/needs-lower       only if the layer refers to lower ones (LowerNeeds)
    chain-<hex>/            a thin layer that completes such a layer on one stack; by chain id
    .staging/ .trash/ .locks/ .empty/
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

import msgspec

from scow.image.digest import ChainID, DiffID, chain_ids, hex_of, parse_diff_id
from scow.image.unpack import DEFAULT_LIMIT_BYTES, LowerNeeds, Unpacked, unpack
from scow.native import fs
from scow.native.errors import IntegrityError, NotFound
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
        return os.path.exists(self._file(hex_of(diff_id), "layer.json"))

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
            except NotFound:
                continue  # taken away, or a leftover that has no name
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
                os.mkdir("diff", 0o755, dir_fd=staging_fd)
                with OwnedFd(os.open("diff", _DIR, dir_fd=staging_fd)) as diff:
                    done = unpack(
                        diff_id,
                        chunks,
                        diff.fileno(),
                        limit_bytes=limit_bytes,
                        keep_fds=(lock.fileno(),),
                    )
                info = _describe(diff_id, done)
                if done.needs:
                    fs.write_atomic(staging_fd, "needs-lower", _encode_needs(done.needs))
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
                self._discard(name)
        name = hex_of(diff_id)
        with self._locked(name):
            return self._discard(name)

    def sweep(self) -> None:
        """Clean what dead attempts left: staging directories that nobody holds, the trash."""
        self._prepare()
        for name in os.listdir(self._file(".staging")):
            with self._locked(name, wait=False) as lock:
                if not lock.closed:
                    self._throw_away(self._file(".staging"), name)
        self.empty_trash()

    def empty_trash(self) -> None:
        """Delete the files of what was removed, by this process or by one that was killed."""
        with OwnedFd(os.open(self._file(".trash"), _DIR)) as trash:
            fs.empty_trash(trash.fileno())

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
                        os.mkdir("diff", 0o755, dir_fd=staging_fd)
                        with OwnedFd(os.open("diff", _DIR, dir_fd=staging_fd)) as diff:
                            made = completion.complete(
                                diff.fileno(), needs, [*paths], [*below], self._file(".empty")
                            )
                        info = LayerInfo(stack[-1], 0, 0, made, stack=stack)
                        self._commit(staging, staging_fd, name, info)
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
                fcntl.flock(lock.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
        os.mkdir(path, 0o700)
        try:
            with OwnedFd(os.open(path, _DIR)) as fd:
                yield path, fd.fileno()
        finally:
            self._throw_away(parent, name)

    def _commit(self, staging: str, staging_fd: int, name: str, info: LayerInfo) -> None:
        """The order of truth: data (synced), then layer.json, then the name."""
        fs.write_atomic(staging_fd, "layer.json", msgspec.json.encode(info))
        if os.path.lexists(self._file(name)):
            self._throw_away(self.root_dir, name)  # without a layer.json: damaged
        os.rename(staging, self._file(name))
        with OwnedFd(os.open(self.root_dir, _DIR)) as root:
            os.fsync(root.fileno())

    def _discard(self, name: str) -> bool:
        with (
            OwnedFd(os.open(self.root_dir, _DIR)) as root,
            OwnedFd(os.open(self._file(".trash"), _DIR)) as trash,
        ):
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
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _read_info(self, name: str) -> LayerInfo:
        data = self._read(name, "layer.json")
        if data is None:
            raise NotFound(f"no such layer: '{name}'")
        try:
            info = msgspec.json.decode(data, type=LayerInfo)
        except msgspec.DecodeError as error:
            raise IntegrityError(f"layer '{name}': bad layer.json: {error}") from error
        parse_diff_id(info.diff_id)
        return info

    def _read_needs(self, diff_id: DiffID) -> LowerNeeds:
        data = self._read(hex_of(diff_id), "needs-lower")
        if data is None:
            return LowerNeeds()
        return msgspec.msgpack.decode(data, type=LowerNeeds)


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
