"""What scow-oci keeps of a container below --root, and what it can tell from it.

One directory for each container: `config.json` as it was at create, `state.json`, `start.sock` until
the container is started, `lock`. What must not be here: making or ending anything.
"""

from __future__ import annotations

import fcntl
import os
import time

from scow.native.errors import AlreadyExists, InvalidArgument, InvalidState, NotFound
from scow.native.fd import OwnedFd
from scow.runtime import smalljson

DEFAULT_ROOT = "/run/scow-oci"
OCI_VERSION = "1.3.0"
MAX_ID = 1024
CACHE = ".cache"  # beside the containers, below --root
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


class StateRecord:
    """state.json. A pid counts only together with its start time (proc(5), field 22).

    Neither a dataclass nor a struct: what makes those costs more than `state` may take.
    """

    __slots__ = (
        "annotations", "bundle", "cgroup", "created", "has_pid_namespace", "id", "oci_version",
        "pid", "rootfs", "start_time", "umask", "unit",
    )  # fmt: skip

    def __init__(
        self,
        *,
        id: str,
        bundle: str,
        rootfs: str,
        pid: int,
        start_time: int,
        created: str,
        cgroup: str,
        oci_version: str,
        annotations: dict[str, str],
        has_pid_namespace: bool,
        umask: int,
        unit: str = "",
    ) -> None:
        self.id = id
        self.bundle = bundle
        self.rootfs = rootfs
        self.pid = pid
        self.start_time = start_time
        self.created = created
        self.cgroup = cgroup
        self.oci_version = oci_version
        self.annotations = annotations
        self.has_pid_namespace = has_pid_namespace
        self.umask = umask
        self.unit = unit  # systemd's, whose cgroup `cgroup` then is

    def document(self) -> dict[str, object]:
        """What is written."""
        return {name: getattr(self, name) for name in self.__slots__}

    def born(self, pid: int, start_time: int) -> StateRecord:
        """The same with a process."""
        changed = {**self.document(), "pid": pid, "start_time": start_time, "created": now_text()}
        return record_of(changed)


def record_of(document: object) -> StateRecord:
    """The record of a document. ValueError when it is none of ours."""
    if not isinstance(document, dict):
        raise ValueError("no object")
    try:
        record = StateRecord(**document)  # pyright: ignore[reportUnknownArgumentType]  # of our own
    except TypeError as error:
        raise ValueError(str(error)) from error
    numbers = (record.pid, record.start_time, record.umask)
    texts = (
        record.id,
        record.bundle,
        record.rootfs,
        record.created,
        record.cgroup,
        record.oci_version,
    )
    if not all(type(value) is int for value in numbers) or not all(type(t) is str for t in texts):
        raise ValueError("a value is of another type")
    return record


def check_id(name: str) -> str:
    """Give the id back when it may name a container (and so a directory)."""
    if not name or name in (".", "..", CACHE) or len(name) > MAX_ID or not _PLAIN.issuperset(name):
        raise InvalidArgument(f"invalid container ID format: {name[:64]!r}")
    return name


def now_text() -> str:
    """The time as RFC 3339 with nanoseconds, as Go prints it."""
    ns = time.time_ns()
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 10**9))
    return f"{second}.{ns % 10**9:09d}Z"


def process_start_time(pid: int) -> tuple[int, str] | None:
    """Start time and state letter of a process; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name may hold anything, parentheses too: what follows the last one counts.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19]), fields[0].decode()


class ContainerDir:
    """The directory of one container, locked while this object is open."""

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = check_id(name)
        self.path = f"{root}/{name}"
        self._lock: OwnedFd | None = None

    # --- making and removing ------------------------------------------------------------------

    def create(self) -> None:
        """Make it. AlreadyExists when the name is taken."""
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            raise AlreadyExists("container with given ID already exists") from None
        self.lock()

    def lock(self) -> None:
        """Wait until nobody else works on this container. NotFound when there is none."""
        while True:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                fd = OwnedFd(os.open(f"{self.path}/lock", flags, 0o600))
            except FileNotFoundError:
                raise NotFound("container does not exist") from None
            fcntl.flock(fd.fileno(), fcntl.LOCK_EX)
            # Who waited may hold the lock of a directory that was removed and made anew meanwhile.
            try:
                if os.stat(f"{self.path}/lock").st_ino == os.fstat(fd.fileno()).st_ino:
                    self._lock = fd
                    return
            except FileNotFoundError:
                pass

    def unlock(self) -> None:
        """Let others work on it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Remove it with all that is in it; gone already is fine."""
        from scow.native import fs

        with OwnedFd(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as parent:
            fs.remove_tree(parent.fileno(), self.name)
        self.unlock()

    # --- records ------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Replace a file in one step; it dies with the boot, so it is not synced."""
        from scow.native import fs

        fs.write_atomic(self.path, name, data, durable=False)

    def save(self, record: StateRecord) -> None:
        """Write state.json."""
        self.write("state.json", smalljson.encode(record.document()).encode())

    def load(self) -> StateRecord:
        """Read state.json. NotFound when the container does not exist or was never made."""
        try:
            with open(f"{self.path}/state.json", "rb") as file:
                return record_of(smalljson.decode(file.read()))
        except FileNotFoundError:
            raise NotFound("container does not exist") from None
        except (ValueError, RecursionError) as error:
            raise InvalidState(
                f"the state of container '{self.name}' is damaged: {error}"
            ) from None

    def config(self) -> bytes:
        """The configuration as it was at create."""
        with open(f"{self.path}/config.json", "rb") as file:
            return file.read()

    @property
    def start_socket(self) -> str:
        """Where the created container waits for its start."""
        return f"{self.path}/start.sock"


def is_running(record: StateRecord) -> bool:
    """Whether the container's first process lives: the same one, and not a zombie."""
    if record.pid <= 0:
        return False
    found = process_start_time(record.pid)
    return found is not None and found[0] == record.start_time and found[1] not in "ZX"


def status_of(directory: ContainerDir, record: StateRecord) -> str:
    """creating, created, running, paused or stopped."""
    if record.pid == 0:
        return "creating"
    if not is_running(record):
        return "stopped"
    if os.path.exists(directory.start_socket):
        return "created"
    return "paused" if is_paused(record) else "running"


def is_paused(record: StateRecord) -> bool:
    """Whether the cgroup is frozen."""
    if not record.cgroup:
        return False
    from scow.cgroups.frozen import is_frozen

    answer = is_frozen(record.cgroup)
    if answer is not None:
        return answer
    from scow.cgroups.cgroup import open_cgroup
    from scow.native.errors import ScowError

    try:
        return open_cgroup(record.cgroup, foreign=True).is_frozen()
    except (ScowError, OSError):
        return False


def open_pidfd(record: StateRecord) -> OwnedFd | None:
    """A pidfd of the first process, None when it is gone; a reused pid never counts."""
    if record.pid <= 0:
        return None
    try:
        fd = OwnedFd(os.pidfd_open(record.pid))
    except ProcessLookupError:
        return None
    if not is_running(record):
        fd.close()
        return None
    return fd


def state_document(
    directory: ContainerDir, record: StateRecord, status: str | None = None
) -> dict[str, object]:
    """The state as the specification has it, with what runc adds."""
    status = status or status_of(directory, record)
    return {
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": 0 if status == "stopped" else record.pid,
        "status": status,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": "",
    }


def hook_state(record: StateRecord, status: str) -> bytes:
    """The state that a hook gets on stdin."""
    document: dict[str, object] = {
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": status,
        "bundle": record.bundle,
    }
    if status != "stopped" and record.pid > 0:
        document["pid"] = record.pid
    if record.annotations:
        document["annotations"] = record.annotations
    return smalljson.encode(document).encode()


def list_ids(root: str) -> list[str]:
    """The names of the containers below `root`, sorted."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if os.path.isfile(f"{root}/{name}/state.json"))
