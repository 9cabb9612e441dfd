"""The warm process: an interpreter with everything imported, of which forks serve the fronts' requests.

What belongs here: its life (one for each installed front, until it is idle, outdated, or told to stop) and
its children's. A child is forked before it is needed, serves one request, and is gone: whatever a
request changes (directory, environment, descriptors, modules) is its own. docs/adr/008.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from scow.cgroups import detect
from scow.native import prctl, unix
from scow.native.codec import import_codec
from scow.native.errors import ScowError
from scow.native.fd import OwnedFd
from scow.native.spawn import keep_memfd
from scow.runtime import oci_cli
from scow.runtime import oci_parent as parent
from scow.runtime.oci_args import Flags, switch
from scow.runtime.oci_parent import StartCold
from scow.runtime.oci_warm_peer import HIGH, Front, FrontGone, Nature, become_like

IDLE_S = 60
_LOOK_MS = 5_000  # how often the parent asks whether it is still wanted
# What commands import late, so that a cold start pays for no more than it uses.
_PRELOAD = (
    "_blake2",
    "scow.cgroups.frozen", "scow.cgroups.v1", "scow.cgroups.v2",
    "scow.native.fs",
    "scow.runtime.hooks", "scow.runtime.oci_control", "scow.runtime.oci_process",
    "scow.runtime.oci_start", "scow.runtime.seccomp",
)  # fmt: skip
_CGROUP = "scow-oci-warm"
_FORK_MS, _REHEARSE_MS = 5, 15  # how long a child at work has the processor before the next one
_STOP_MS = 10_000
_life: Life | None = None


class Life:
    """What the warm process and its children have in common."""

    def __init__(self, directory: str, name: str, front: str) -> None:
        self.path, self.front = f"{directory}/{name}", front
        self.pid = os.getpid()
        self.nature = Nature("/proc/self")
        self.securebits = prctl.securebits()
        self.files: dict[str, int] = {}
        self.lock: OwnedFd | None = None
        self.listener = -1
        self.inode = 0

    def note_files(self) -> None:
        """What our code was read from, as it is now."""
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None)
            if name.startswith("scow.") and path:
                self.files[path] = os.stat(path).st_mtime_ns
        self.files[self.front] = os.stat(self.front).st_mtime_ns

    def is_outdated(self) -> bool:
        """Whether any of that was changed, replaced or removed."""
        try:
            return any(os.stat(path).st_mtime_ns != noted for path, noted in self.files.items())
        except FileNotFoundError:
            return True

    def is_reachable(self) -> bool:
        """Whether the socket is where we put it."""
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False


def main(directory: str, name: str, front: str) -> None:
    """Live. Nobody sees our output; what prevents us leaves things as they are without us."""
    life = Life(directory, name, front)
    _settle()
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with OwnedFd(_lock(f"{life.path}.lock")) as lock:
        life.lock = lock
        import_codec()
        for module in _PRELOAD:
            __import__(module)
        _try_rehearsal()
        life.note_files()
        keep_memfd(HIGH)
        _listen(life)
        gc.collect()
        gc.freeze()  # what is never looked at again is not copied by the children's collector
        gc.disable()
        global _life
        _life = life
        try:
            _live(life)
        finally:
            if os.getpid() == life.pid:
                for path in (life.path, f"{life.path}.lock"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)


def _settle() -> None:
    """Leave what we have of the caller that started us: it may end, and be looked at, before us."""
    prctl.set_name("scow-oci-warm")
    for hierarchy in detect.hierarchies().v1:
        _write(f"{hierarchy.directory}/tasks", "0")
    unified = detect.hierarchies().unified
    if unified is not None:
        try:
            _write(f"{unified}/cgroup.procs", "0")
        except OSError:
            # cgroups(7): no processes beside children with controllers; the real root is exempt, the
            # root of a cgroup namespace is not
            os.makedirs(f"{unified}/{_CGROUP}", exist_ok=True)
            _write(f"{unified}/{_CGROUP}/cgroup.procs", "0")
    try:
        _write("/proc/self/oom_score_adj", "0")
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    except PermissionError:
        pass  # without the capability we stay as we are: slower, no more


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _try_rehearsal() -> None:
    try:
        rehearse()
    except Exception:
        pass  # of whatever kind: requests are slower then, and no more; a test sees it


def rehearse() -> None:
    """Do what every request does, without effect.

    In the parent: msgspec looks at the annotations of a type when it first decodes one, 2 ms for all of a
    bundle's. In a child: after a fork each page is copied when it is first written to (a reference count
    is enough), and most of those that a request writes to are copied here, before anybody waits.
    """
    import msgspec

    from scow.cgroups.cgroup import open_cgroup
    from scow.native.fs import Root
    from scow.runtime.oci_compile import Ends, compile_create
    from scow.runtime.oci_complete import complete
    from scow.runtime.oci_create import resources_of
    from scow.runtime.oci_example import example_spec
    from scow.runtime.spec import Process, decode_process, decode_spec

    become_like(os.getpid(), Nature("/proc/self"), dict(os.environb))
    oci_cli.run(["--root", "/nonexistent", "state", "nobody"])  # what it says goes to /dev/null
    spec = decode_spec(msgspec.json.encode(example_spec()), "")
    decode_process(b'{"cwd":"/"}', "")
    cgroup = open_cgroup("scow-oci/nobody", foreign=True)
    cgroup.planned_writes(resources_of(spec))
    with OwnedFd(os.open("/", os.O_PATH | os.O_CLOEXEC)) as top:
        process, _ = complete(spec, spec.process or Process(cwd="/"), Root(top.fileno()), 0o022)
        ends = Ends(hold=OwnedFd.fileno, cgroup="scow-oci/nobody", start_socket=top.fileno())
        compile_create(spec, process, top.fileno(), "/", ends).build()


def _lock(path: str) -> int:
    """At most one of us. Ends this process when there is one already."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(fd)
    try:
        fcntl.flock(high, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino != os.fstat(high).st_ino:
            raise SystemExit(0)  # of one that was just ending
    except (BlockingIOError, FileNotFoundError):
        raise SystemExit(0) from None
    return high


def _listen(life: Life) -> None:
    fresh = f"{life.path}.new"
    if os.path.exists(fresh):
        os.unlink(fresh)  # of one that was killed: we hold the lock
    with unix.listen(fresh, 128) as low:
        life.listener = fcntl.fcntl(low.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH)
    life.inode = os.stat(fresh).st_ino
    os.rename(fresh, life.path)


# --- the parent -----------------------------------------------------------------------------------


def _live(life: Life) -> None:
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # wait(2): nobody has to bury them
    idle = 0
    while True:
        ours, theirs = unix.pair()
        with ours:
            with theirs:
                if os.fork() == 0:
                    _be_spare(life, ours, theirs)
            poller = _poller(ours.fileno())
            while not poller.poll(_LOOK_MS):
                idle += _LOOK_MS
                if idle >= IDLE_S * 1000 or not life.is_reachable() or life.is_outdated():
                    return
            # One byte: it is at work. None: it was killed, or has found that we are outdated.
            if os.read(ours.fileno(), 1):
                idle = 0
                # Leave the processor to the child at work, unless another front is waiting already.
                _poller(life.listener).poll(_FORK_MS)
            elif life.is_outdated() or idle >= IDLE_S * 1000:
                return
            else:
                idle += _LOOK_MS  # should children die for a reason, they do not for ever


def _poller(*fds: int) -> select.poll:
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return poller


def _end(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


# --- a child --------------------------------------------------------------------------------------


def _be_spare(life: Life, ours: OwnedFd, theirs: OwnedFd) -> NoReturn:
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        ours.close()
        if life.lock is not None:
            life.lock.close()  # flock(2): it is held for as long as anybody has it open
        with OwnedFd(fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH)) as link:
            theirs.close()
            front = _await(life, link)
        os.close(life.listener)  # where nobody accepts, nobody shall be able to connect
        if front is not None:
            _serve(life, front)
        code = 0
    except FrontGone:
        pass
    finally:
        os._exit(code)


def _await(life: Life, link: OwnedFd) -> Front | None:
    """The next front; None when the parent has ended and nobody is waiting any more."""
    poller = _poller(life.listener, link.fileno())
    if not poller.poll(
        _REHEARSE_MS
    ):  # commands come in bursts: the next one would have to wait for it
        _try_rehearsal()
    os.closerange(0, HIGH)
    while True:
        ready = dict(poller.poll())
        try:
            connection = unix.accept(life.listener)
        except BlockingIOError:
            if link.fileno() in ready:
                return None
            continue
        if life.is_outdated():
            Front(connection).refuse("it was made of other files than are there now")
            return None
        try:
            os.write(link.fileno(), b"t")
        except BrokenPipeError:
            pass  # it ends, we are the last
        return Front(connection)


def _serve(life: Life, front: Front) -> None:
    try:
        front.adopt(life.nature, life.securebits)
        front.take()
        parent.use(front)
        code = oci_cli.run(front.arguments)
    except StartCold as refusal:
        front.refuse(str(refusal))
        return
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except Exception:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    front.leave(code)


# --- `scow-oci warm` ------------------------------------------------------------------------------


def _warm(root: str, flags: Flags, operands: list[str], tell: Callable[[str, str], None]) -> int:
    """Tell of the warm process, or stop it: we are a child of its."""
    if _life is None or os.getppid() != _life.pid:
        if switch(flags, "stop"):
            return 0
        raise ScowError("there is no warm process")
    if not switch(flags, "stop"):
        print(f"{_life.pid} at {_life.path}")
        return 0
    with OwnedFd(os.pidfd_open(_life.pid)) as fd:
        signal.pidfd_send_signal(fd.fileno(), signal.SIGTERM)
        if not _poller(fd.fileno()).poll(_STOP_MS):
            raise ScowError(f"the warm process {_life.pid} does not end")
    return 0


COMMANDS: dict[str, Callable[[str, Flags, list[str], Callable[[str, str], None]], int]] = {
    "warm": _warm
}
