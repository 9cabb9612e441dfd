"""Objects on disk: a directory and a JSON record each, names as links, a lock that dies with us.

Containers and pods are kept alike: `<root>/<folder>/<id>/` holds what outlives a boot,
`<run>/<folder>/<id>/` what dies with it. A name is a symbolic link `<root>/<names>/<name> -> <id>`,
claimed by symlink(2), which fails where the name exists: of N racers one wins, and no second store
has to agree (docs/adr/001). Policy and processes do not belong here.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Generic, Protocol, TypeVar

import msgspec

from scow.native.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    ScowError,
)
from scow.native.fd import OwnedFd, close_surely
from scow.native.fs import remove_tree, write_atomic

ID_LENGTH = 64
SHORT_ID = 12
# Longer than anything that is done under a lock: a start takes 30 ms, a kill waits 10 s at most.
LOCK_TIMEOUT_S = 30


class Keyed(Protocol):
    """What every record has."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Keyed)


class ObjectStore(Generic[R]):
    """The objects of one kind, below `root` (kept) and `run` (until the next boot)."""

    noun = "object"
    remover = "scow rm"
    folder = "objects"
    names = "names"
    # What a new object's directory holds from the beginning: (name, mode).
    contents: tuple[tuple[str, int], ...] = ()

    def __init__(self, root: str, run: str, decoder: msgspec.json.Decoder[R]) -> None:
        self.root = root
        self.run = run
        self._decoder = decoder
        self._objects = f"{root}/{self.folder}"
        self._names = f"{root}/{self.names}"
        self._trash = f"{root}/trash"
        # Called before what a dead attempt left is removed.
        self.on_burial: Callable[[str], None] = lambda object_id: None
        self._unprepared: OSError | None = None

    def prepare(self) -> None:
        """Make the directories, closed to everyone but root (CVE-2021-41091).

        On a full or read-only disk what only looks goes on without them; `making` raises then.
        """
        for path in (self.root, self.run):
            with self._unless_unwritable():
                os.makedirs(path, mode=0o700, exist_ok=True)
                if os.stat(path).st_mode & 0o777 != 0o700:
                    os.chmod(path, 0o700)
        for path in (self._objects, self._names, self._trash, f"{self.run}/{self.folder}"):
            with self._unless_unwritable():
                os.makedirs(path, mode=0o700, exist_ok=True)

    @contextmanager
    def _unless_unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise
            self._unprepared = error

    def directory(self, object_id: str) -> str:
        """Give the kept directory of an object."""
        return f"{self._objects}/{object_id}"

    def run_dir(self, object_id: str) -> str:
        """Give the directory of an object that dies with the boot."""
        return f"{self.run}/{self.folder}/{object_id}"

    def ids(self) -> Sequence[str]:
        """List the ids of all objects."""
        return [name for name in names_in(self._objects) if len(name) == ID_LENGTH]

    def new_id(self) -> str:
        """Give an unused random id."""
        return os.urandom(ID_LENGTH // 2).hex()

    def claim_name(self, name: str, object_id: str) -> None:
        """Give `name` to an object, or raise AlreadyExists saying whose it is."""
        path = f"{self._names}/{name}"
        for _ in range(3):
            try:
                os.symlink(object_id, path)
                return
            except FileExistsError:
                holder = self._holder(name)
                if holder is not None:
                    raise AlreadyExists(
                        f"cannot use name '{name}': {self.noun} {holder[:SHORT_ID]} has it",
                        hint=f"remove it with '{self.remover} {name}', or choose another name",
                    ) from None
                # The claim of an attempt that died, or of a removal.
                self._drop_void_claim(name)
        raise ScowError(f"cannot claim name '{name}': it keeps coming back")

    def has_name(self, name: str) -> bool:
        """Whether an object has this name now."""
        return self._holder(name) is not None

    def _holder(self, name: str) -> str | None:
        try:
            holder = os.readlink(f"{self._names}/{name}")
        except OSError:
            return None
        if not os.path.isdir(self.directory(holder)):
            return None
        return None if self.bury_attempt(holder, name) else holder

    def _drop_void_claim(self, name: str) -> None:
        with self._names_locked():
            try:
                holder = os.readlink(f"{self._names}/{name}")
                if not os.path.isdir(self.directory(holder)):
                    os.unlink(f"{self._names}/{name}")
            except FileNotFoundError:
                pass

    def release_name(self, name: str, object_id: str) -> None:
        """Free `name` if it is this object's; freeing twice is fine."""
        path = f"{self._names}/{name}"
        with suppress(FileNotFoundError), self._names_locked():
            if os.readlink(path) == object_id:
                os.unlink(path)

    @contextmanager
    def _names_locked(self) -> Iterator[None]:
        """Hold off other removals of names: what is looked at is what is unlinked. Claims need it not."""
        fd = os.open(self._names, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            close_surely(fd)

    @contextmanager
    def making(self, object_id: str) -> Iterator[None]:
        """Make the kept directory of a new object and hold its lock.

        The lock is what tells an object that is being made from what a dead attempt left: both
        have no record yet. So the directory gets its name when it is locked already.
        """
        if self._unprepared is not None:
            raise self._unprepared
        hidden = f"{self._objects}/.{object_id}"
        fd = -1
        try:
            try:
                os.mkdir(hidden, 0o700)
                fd = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(fd, fcntl.LOCK_EX)
                for name, mode in self.contents:
                    os.mkdir(f"{hidden}/{name}", mode)
                os.rename(hidden, self.directory(object_id))
            except BaseException:
                self._remove_hidden(f".{object_id}")
                raise
            yield
        finally:
            if fd >= 0:
                close_surely(fd)

    def _remove_hidden(self, entry: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        # The first error is the one to tell; `bury_attempts` comes again.
        with suppress(OSError), OwnedFd(os.open(self._objects, flags)) as fd:
            remove_tree(fd.fileno(), entry)

    def bury_attempt(self, object_id: str, name: str | None = None) -> bool:
        """Remove an object that was never finished and that nobody is making; says whether it was one."""
        if not self.is_abandoned(object_id):
            return False
        self.on_burial(object_id)
        self.discard(object_id, name)
        return True

    def is_abandoned(self, entry: str) -> bool:
        """Whether a directory has neither a record nor anybody who makes it."""
        path = f"{self._objects}/{entry}"
        if os.path.exists(f"{path}/record.json"):
            return False
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The record may have come between the look and the lock.
            return not os.path.exists(f"{path}/record.json") and _same_dir(fd, path)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    def abandoned(self) -> Sequence[str]:
        """List the directories that dead attempts left."""
        names = [name for name in names_in(self._objects) if len(name) >= ID_LENGTH]
        return [name for name in names if self.is_abandoned(name)]

    def bury(self, entry: str) -> None:
        """Remove an entry that `abandoned` gave."""
        if entry.startswith("."):
            self._remove_hidden(entry)
        else:
            self.bury_attempt(entry)

    def write(self, record: R) -> None:
        """Write a record durably: from here on the object exists."""
        try:
            data = msgspec.json.encode(record)
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                f"cannot record the {self.noun}: an argument or variable is not valid UTF-8"
            ) from error
        write_atomic(self.directory(record.id), "record.json", data)

    def read(self, object_id: str) -> R:
        """Read one record; NotFound where there is none, ScowError where it is damaged."""
        path = f"{self.directory(object_id)}/record.json"
        try:
            with open(path, "rb") as file:
                return self._decoder.decode(file.read())
        except FileNotFoundError:
            raise NotFound(f"no such {self.noun}: '{object_id}'") from None
        except ValueError as error:
            raise ScowError(
                f"cannot read the record of {self.noun} '{object_id[:SHORT_ID]}': {error}",
                hint="'scow system check --repair' sets damaged records aside",
            ) from error

    def list(self) -> Sequence[R]:
        """Read all records; those being made, removed or damaged are left out."""
        found: list[R] = []
        for object_id in self.ids():
            try:
                found.append(self.read(object_id))
            except ScowError:
                continue
        return found

    def find(self, text: str) -> str:
        """Give the id for a name, an id or a unique id prefix; an exact name wins."""
        if "/" not in text and "\0" not in text and text not in ("", ".", ".."):
            holder = self._holder(text)
            if holder is not None:
                return holder
            if len(text) == ID_LENGTH and os.path.isdir(self.directory(text)):
                return text
            matches = [name for name in self.ids() if name.startswith(text)]
            if len(matches) == 1:
                return matches[0]
            if matches:
                shown = ", ".join(name[:SHORT_ID] for name in sorted(matches)[:5])
                raise InvalidArgument(
                    f"{self.noun} id prefix '{text}' is ambiguous: {shown}",
                    hint="give more characters of the id",
                )
        raise NotFound(f"no such {self.noun}: '{text[:256]}'")

    @contextmanager
    def locked(self, object_id: str) -> Iterator[int]:
        """Hold the object's lock: a flock on its directory, freed by the kernel if we die.

        Gives the descriptor that is locked; DeadlineExceeded when another one keeps it too long.
        """
        path = self.directory(object_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"no such {self.noun}: '{object_id}'") from None
        try:
            _lock(fd, f"{self.noun} '{object_id[:SHORT_ID]}'")
            # Whoever removed the object held this lock: the directory may be in the trash now.
            if os.fstat(fd).st_nlink == 0 or not _same_dir(fd, path):
                raise NotFound(f"no such {self.noun}: '{object_id}'")
            yield fd
        finally:
            close_surely(fd)

    def discard(self, object_id: str, name: str | None) -> None:
        """Remove all that is kept: record (by renaming to the trash), then name, then data.

        The rename is the end of the object; from there on the name is claimed by nobody, and
        whoever wants it takes it. The other way round a kill would leave an object without one.
        """
        try:
            os.rename(self.directory(object_id), f"{self._trash}/{object_id}")
        except FileNotFoundError:
            pass
        if name is not None:
            self.release_name(name, object_id)
        self.empty_trash(object_id)

    def sweep_trash(self) -> None:
        """Delete the objects whose removal was cut short; what else is being made there stays."""
        for name in names_in(self._trash):
            if len(name) == ID_LENGTH:
                self.empty_trash(name)

    def empty_trash(self, entry: str | None = None) -> None:
        """Delete what lies in the trash; what cannot be deleted now stays for the next time."""
        try:
            fd = os.open(self._trash, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            for name in [entry] if entry else os.listdir(fd):
                try:
                    remove_tree(fd, name)
                except FileNotFoundError:
                    continue
        finally:
            os.close(fd)


def names_in(path: str) -> list[str]:
    """What is in a directory; nothing where a read-only disk has none."""
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _lock(fd: int, what: str) -> None:
    """Take the lock, at once or after a wait with an end: a start may hang in a stuck mount."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        from scow.image.waiting import lock_file  # not for those who need not wait

        lock_file(fd, what, most_s=LOCK_TIMEOUT_S)


def _same_dir(fd: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
