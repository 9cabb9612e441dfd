"""Where containers are kept, and their records: one JSON file each, names as links.

`<root>/containers/<id>/` holds what outlives a boot (record, upper, work, log, managed files);
`<run>/containers/<id>/` what dies with it (monitor's socket and status). A name is a symbolic link
`<root>/names/<name> -> <id>`, claimed by symlink(2), which fails where the name exists: of N racers
one wins, and no second store has to agree (docs/adr/001). Policy and processes do not belong here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from scow.cri.options import ContainerOptions, UserSpec
from scow.native.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ScowError,
)
from scow.native.fd import OwnedFd, close_surely
from scow.native.fs import remove_tree, write_atomic

ID_LENGTH = 64
SHORT_ID = 12
RECORD_VERSION = 1
DEFAULT_ROOT = "/var/lib/scow"
DEFAULT_RUN = "/run/scow"
# Longer than anything that is done under a lock: a start takes 30 ms, a kill waits 10 s at most.
LOCK_TIMEOUT_S = 30


class VolumeUse(msgspec.Struct, frozen=True):
    """A volume that this container mounts; anonymous ones go with it on `rm -v` and --rm."""

    name: str
    target: str
    anonymous: bool


class Record(msgspec.Struct, frozen=True):
    """All that is needed to start a container again: the wish, merged with its image once."""

    id: str
    name: str
    created_ns: int
    image_name: str
    image_id: str
    diff_ids: tuple[str, ...]
    argv: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: UserSpec
    stop_signal: int
    labels: dict[str, str]
    cgroup: str  # its path below each hierarchy's mount
    options: ContainerOptions
    volumes: tuple[VolumeUse, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    version: int = RECORD_VERSION


_DECODER = msgspec.json.Decoder(Record)


class RecordStore:
    """The containers of one host, below `root` (kept) and `run` (until the next boot)."""

    def __init__(self, root: str, run: str) -> None:
        self.root = root
        self.run = run
        self._containers = f"{root}/containers"
        self._names = f"{root}/names"
        self._trash = f"{root}/trash"

    @property
    def cgroup_prefix(self) -> str:
        """What the names of our cgroups begin with, so that no two run directories meet in one.

        A prefix and no parent of its own: that would be ten directories more to make and remove.
        """
        if self.run == DEFAULT_RUN:
            return ""
        from zlib import crc32

        return f"{crc32(os.fsencode(self.run)):08x}-"

    def prepare(self) -> None:
        """Make the directories, closed to everyone but root (CVE-2021-41091)."""
        for path in (self.root, self.run):
            os.makedirs(path, mode=0o700, exist_ok=True)
            if os.stat(path).st_mode & 0o777 != 0o700:
                os.chmod(path, 0o700)
        for path in (self._containers, self._names, self._trash, f"{self.run}/containers"):
            os.makedirs(path, mode=0o700, exist_ok=True)

    def container_dir(self, container_id: str) -> str:
        """Give the kept directory of a container."""
        return f"{self._containers}/{container_id}"

    def run_dir(self, container_id: str) -> str:
        """Give the directory of a container that dies with the boot."""
        return f"{self.run}/containers/{container_id}"

    def ids(self) -> Sequence[str]:
        """List the ids of all containers."""
        try:
            return [name for name in os.listdir(self._containers) if len(name) == ID_LENGTH]
        except FileNotFoundError:
            return []

    def new_id(self) -> str:
        """Give an unused random id."""
        return os.urandom(ID_LENGTH // 2).hex()

    def claim_name(self, name: str, container_id: str) -> None:
        """Give `name` to a container, or raise AlreadyExists saying whose it is."""
        path = f"{self._names}/{name}"
        for _ in range(3):
            try:
                os.symlink(container_id, path)
                return
            except FileExistsError:
                holder = self._holder(name)
                if holder is not None:
                    raise AlreadyExists(
                        f"cannot use name '{name}': container {holder[:SHORT_ID]} has it",
                        hint=f"remove it with 'scow rm {name}', or choose another name",
                    ) from None
                # The claim of an attempt that died, or of a removal.
                self._drop_void_claim(name)
        raise ScowError(f"cannot claim name '{name}': it keeps coming back")

    def has_name(self, name: str) -> bool:
        """Whether a container has this name now."""
        return self._holder(name) is not None

    def _holder(self, name: str) -> str | None:
        try:
            holder = os.readlink(f"{self._names}/{name}")
        except OSError:
            return None
        if not os.path.isdir(self.container_dir(holder)):
            return None
        return None if self.bury_attempt(holder, name) else holder

    def _drop_void_claim(self, name: str) -> None:
        with self._names_locked():
            try:
                holder = os.readlink(f"{self._names}/{name}")
                if not os.path.isdir(self.container_dir(holder)):
                    os.unlink(f"{self._names}/{name}")
            except FileNotFoundError:
                pass

    def release_name(self, name: str, container_id: str) -> None:
        """Free `name` if it is this container's; freeing twice is fine."""
        path = f"{self._names}/{name}"
        with self._names_locked():
            try:
                if os.readlink(path) == container_id:
                    os.unlink(path)
            except FileNotFoundError:
                pass

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
    def making(self, container_id: str) -> Iterator[None]:
        """Make the kept directory of a new container, with its upper and work, and hold its lock.

        The lock is what tells a container that is being made from what a dead attempt left: both
        have no record yet. So the directory gets its name when it is locked already.
        """
        hidden = f"{self._containers}/.{container_id}"
        fd = -1
        try:
            try:
                os.mkdir(hidden, 0o700)
                fd = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(fd, fcntl.LOCK_EX)
                # The upper's mode and owner show as those of `/` in the container: 0755, as in images.
                os.mkdir(f"{hidden}/upper", 0o755)
                os.mkdir(f"{hidden}/work", 0o700)
                os.rename(hidden, self.container_dir(container_id))
            except BaseException:
                self._remove_hidden(f".{container_id}")
                raise
            yield
        finally:
            if fd >= 0:
                close_surely(fd)

    def _remove_hidden(self, entry: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        # The first error is the one to tell; `bury_attempts` comes again.
        with suppress(OSError), OwnedFd(os.open(self._containers, flags)) as fd:
            remove_tree(fd.fileno(), entry)

    def bury_attempt(self, container_id: str, name: str | None = None) -> bool:
        """Remove a container that was never finished and that nobody is making; says whether it was one."""
        if not self.is_abandoned(container_id):
            return False
        self.discard(container_id, name)
        return True

    def is_abandoned(self, entry: str) -> bool:
        """Whether a directory below containers/ has neither a record nor anybody who makes it."""
        path = f"{self._containers}/{entry}"
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
        """List the directories that dead attempts at a container left."""
        names = [name for name in os.listdir(self._containers) if len(name) >= ID_LENGTH]
        return [name for name in names if self.is_abandoned(name)]

    def bury(self, entry: str) -> None:
        """Remove an entry that `abandoned` gave."""
        if entry.startswith("."):
            self._remove_hidden(entry)
        else:
            self.bury_attempt(entry)

    def write(self, record: Record) -> None:
        """Write a record durably: from here on the container exists."""
        try:
            data = msgspec.json.encode(record)
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                "cannot record the container: an argument or variable is not valid UTF-8"
            ) from error
        write_atomic(self.container_dir(record.id), "record.json", data)

    def read(self, container_id: str) -> Record:
        """Read one record; NotFound where there is none, ScowError where it is damaged."""
        path = f"{self.container_dir(container_id)}/record.json"
        try:
            with open(path, "rb") as file:
                return _DECODER.decode(file.read())
        except FileNotFoundError:
            raise NotFound(f"no such container: '{container_id}'") from None
        except msgspec.MsgspecError as error:
            raise ScowError(
                f"cannot read the record of container '{container_id[:SHORT_ID]}': {error}",
                hint="'scow system check --repair' sets damaged records aside",
            ) from error

    def list(self) -> Sequence[Record]:
        """Read all records; those being made, removed or damaged are left out."""
        found: list[Record] = []
        for container_id in self.ids():
            try:
                found.append(self.read(container_id))
            except ScowError:
                continue
        return found

    def find(self, text: str) -> str:
        """Give the id for a name, an id or a unique id prefix; an exact name wins."""
        if "/" not in text and text not in ("", ".", ".."):
            holder = self._holder(text)
            if holder is not None:
                return holder
            if len(text) == ID_LENGTH and os.path.isdir(self.container_dir(text)):
                return text
            matches = [name for name in self.ids() if name.startswith(text)]
            if len(matches) == 1:
                return matches[0]
            if matches:
                shown = ", ".join(name[:SHORT_ID] for name in sorted(matches)[:5])
                raise InvalidArgument(
                    f"container id prefix '{text}' is ambiguous: {shown}",
                    hint="give more characters of the id",
                )
        raise NotFound(f"no such container: '{text[:256]}'")

    @contextmanager
    def locked(self, container_id: str) -> Iterator[int]:
        """Hold the container's lock: a flock on its directory, freed by the kernel if we die.

        Gives the descriptor that is locked; DeadlineExceeded when another one keeps it too long.
        """
        path = self.container_dir(container_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"no such container: '{container_id}'") from None
        try:
            _lock(fd, container_id)
            # Whoever removed the container held this lock: the directory may be in the trash now.
            if os.fstat(fd).st_nlink == 0 or not _same_dir(fd, path):
                raise NotFound(f"no such container: '{container_id}'")
            yield fd
        finally:
            close_surely(fd)

    def discard(self, container_id: str, name: str | None) -> None:
        """Remove all that is kept: record (by renaming to the trash), then name, then data.

        The rename is the end of the container; from there on the name is claimed by nobody, and
        whoever wants it takes it. The other way round a kill would leave a container without one.
        """
        try:
            os.rename(self.container_dir(container_id), f"{self._trash}/{container_id}")
        except FileNotFoundError:
            pass
        if name is not None:
            self.release_name(name, container_id)
        self.empty_trash(container_id)

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


def _lock(fd: int, container_id: str) -> None:
    """Take the lock, at once or after a wait with an end: a start may hang in a stuck mount."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    pause = 0.0005
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"container '{container_id[:SHORT_ID]}' is busy: another command has held it "
                    f"for {LOCK_TIMEOUT_S} s",
                    hint="a start that hangs in the kernel (state D in ps) would do that",
                ) from None
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def _same_dir(fd: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
