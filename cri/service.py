"""The service: every verb on containers and images, for the command line and, later, the API.

One class, synchronous, no state of its own beyond what is on disk and in the kernel: any number of
processes may use it at once. Locks: store < network < container, none held while waiting.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Unpack

from scow.cgroups.cgroup import container_path
from scow.cri import launch as launching
from scow.cri import status as state_of
from scow.cri.builtin import BUILTIN_IMAGE, layout_path, reference_is_builtin
from scow.cri.creating import check_references, claim_ids, name_volumes, release_ids
from scow.cri.freezing import thaw_abandoned
from scow.cri.merge import check_platform, merge
from scow.cri.names import free_name
from scow.cri.options import ContainerOptions, ExecOptions
from scow.cri.records import DEFAULT_ROOT, DEFAULT_RUN, Member, Record, RecordStore
from scow.cri.status import Status, read_status
from scow.cri.validate import validate
from scow.cri.volumes import VolumeStore
from scow.cri.watcher import Watcher, goes_on
from scow.native.errors import DeadlineExceeded, InvalidState, NotFound, ScowError, SetupError
from scow.runtime.monitor import MonitorConnection
from scow.runtime.state import Operation, State, require

if TYPE_CHECKING:
    from scow.cgroups.resources import Resources
    from scow.cri.info import Fact
    from scow.cri.logs import LogEntry
    from scow.cri.views import ContainerView, StatsView
    from scow.image.progress import ProgressSink
    from scow.image.registry import Connection
    from scow.image.store import Image, ImageStore
    from scow.native.plan import Plan
    from scow.netns.network import BridgeNetwork
    from scow.runtime.spec import Spec

Strings = list[str]  # inside the class `list` is the verb
Steps = list[tuple[str, str]]

DEFAULT_STOP_TIMEOUT_S = 10
# After SIGKILL a process can only be late if the kernel is stuck in it (disk sleep).
KILL_TIMEOUT_S = 10


class Service:
    """Containers and images below `root`, with what dies with the boot below `run`."""

    def __init__(self, root: str | None = None, run: str | None = None) -> None:
        self.root = root or os.environ.get("SCOW_ROOT") or DEFAULT_ROOT
        self.run = run or os.environ.get("SCOW_RUN") or DEFAULT_RUN
        self.store = RecordStore(self.root, self.run)
        self.store.prepare()
        self.volumes = VolumeStore(self.root)
        self._images: ImageStore | None = None
        self._network: BridgeNetwork | None = None
        self._around = launching.Surroundings(
            store=self.store,
            layer_paths=self._layer_paths,
            network=self.bridge,
            pid_of=self._pid_of,
            volume_dir=self.volumes.data_dir,
            adopt_volumes=self.volumes.adopt,
            cleanup_argv=launching.cleanup_argv,
            image_layers=lambda image_id: self.images.layer_paths(self.images.get(image_id)),
        )

    # --- images -------------------------------------------------------------------------------

    @property
    def images(self) -> ImageStore:
        """The images; loaded when first used."""
        if self._images is None:
            from scow.image.store import ImageStore

            self._images = ImageStore(self.root)
        return self._images

    def ensure_image(
        self,
        reference: str,
        policy: str = "missing",
        platform: str | None = None,
        progress: ProgressSink | None = None,
        **how: Unpack[Connection],
    ) -> Image:
        """Give the image of `reference`, pulled by `policy` (always, missing, never)."""
        if policy != "always":
            try:
                return self.images.get(reference)
            except NotFound:
                if reference_is_builtin(reference):
                    return self.images.load_layout(layout_path(), BUILTIN_IMAGE)
                if policy == "never":
                    raise
        return self.images.pull(reference, platform=platform, progress=progress, **how)

    def remove_image(self, name: str, *, force: bool = False) -> Sequence[str]:
        """Remove an image by name or id; containers that use it are in the way without `force`."""
        return self.images.remove(name, force=force, in_use=self.users_of_image)

    def users_of_image(self, image_id: str) -> Strings:
        """Give the containers that were made of an image, or mount it."""
        return [
            record.id
            for record in self.store.list()
            if record.image_id == image_id
            or any(m.kind == "image" and m.source == image_id for m in record.options.mounts)
        ]

    def _layer_paths(self, record: Record) -> Strings:
        from scow.image.digest import DiffID

        return self.images.lower_paths([DiffID(diff_id) for diff_id in record.diff_ids])

    # --- create, start, remove ----------------------------------------------------------------

    def create(
        self,
        image: Image,
        options: ContainerOptions,
        member: Member | None = None,
        cgroup_parent: str | None = None,
    ) -> str:
        """Make a container of `image`; nothing runs yet. Returns its id.

        `member` makes it one of a pod's, whose cgroup is `cgroup_parent`.
        """
        check_platform(image, options.image_name)
        validate(options)
        merged = merge(image.config, options)
        container_id = self.store.new_id()
        name = options.name or free_name(self.store.has_name)
        record = Record(
            id=container_id,
            name=name,
            created_ns=time.time_ns(),
            image_name=options.image_name or image.id,
            image_id=image.id,
            diff_ids=tuple(image.diff_ids),
            argv=merged.argv,
            env=merged.env,
            working_dir=merged.working_dir,
            user=merged.user,
            stop_signal=merged.stop_signal,
            labels=merged.labels,
            cgroup=container_path(
                f"{self.store.cgroup_prefix}{container_id}", cgroup_parent or options.cgroup_parent
            ),
            options=options,
            exposed_ports=image.config.exposed_ports,
            member=member,
        )
        check_references(record, self.find)
        try:
            with self.store.making(container_id):
                self.store.claim_name(name, container_id)
                record = name_volumes(
                    claim_ids(record, self.root), image, self.volumes, self._around
                )
                self.store.write(record)
                launching.adopt_volumes(record, self._around)
        except BaseException:
            # Nobody has heard of it yet, so nobody else would remove it.
            self._discard(record, volumes=True)
            raise
        return container_id

    def start(self, container_id: str, *, attach: bool = False) -> MonitorConnection | None:
        """Start a container; returns when its program runs.

        With `attach` the connection that started it is given to the caller, who gets all output
        from the first byte, and calls `finish` when it has ended.
        """
        connection = self._start(container_id, attach=attach)
        if attach:
            return connection
        connection.close()
        return None

    def start_watched(self, container_id: str) -> MonitorConnection:
        """Start a container; the connection tells its end, and its owner calls `finish` then."""
        return self._start(container_id, attach=False, watch=True)

    def _start(self, container_id: str, *, attach: bool, watch: bool = False) -> MonitorConnection:
        with self.store.locked(container_id) as lock_fd:
            record = self.store.read(container_id)
            state_of.require_start(record, self.status(record).state, once=watch)
            try:
                with state_of.needs_processes(record.name, "start"):
                    return launching.start(
                        record, self._around, lock_fd, attach=attach, watch=watch
                    )
            except ScowError as error:
                state_of.note_failure(self.store, record, error)
                if isinstance(error, SetupError) and error.errno in (errno.ESRCH, errno.ECHILD):
                    raise InvalidState(
                        f"container '{record.name}' was killed while it was being started"
                    ) from error
                raise

    def finish(self, container_id: str) -> None:
        """Give back what a run that has ended took; remove the container if it was --rm.

        Whoever saw the end calls this, and the monitor does when nobody watched: the first one
        does the work, for the others there is nothing left.
        """
        launching.bury_monitors()
        try:
            with self.store.locked(container_id):
                record = self.store.read(container_id)
                if self._goes_on(record):
                    return
                launching.release(record, self._around)
                if record.options.auto_remove:
                    self._discard(record, volumes=True)
        except NotFound:
            return

    cleanup = finish

    def _goes_on(self, record: Record) -> bool:
        """Whether the container runs, and is not just losing its monitor."""
        path = f"{self.store.run_dir(record.id)}/monitor.sock"
        return goes_on(lambda: not self._has_ended(record), path)

    def remove(self, container_id: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a container that does not run; with `force`, kill it first."""
        while True:
            record = self.store.read(container_id)
            state = self.status(record).state
            if state in (State.RUNNING, State.PAUSED):
                if not force:
                    require(record.name, state, Operation.REMOVE)
                self._kill_and_wait(record)
            with self.store.locked(container_id):
                # Somebody may have started it since.
                if self.status(record).state in (State.RUNNING, State.PAUSED):
                    continue
                launching.release(record, self._around)
                self._discard(record, volumes=volumes or record.options.auto_remove)
                return

    def _discard(self, record: Record, *, volumes: bool) -> None:
        # Volumes first: once the record is gone, nothing says whose they were.
        if volumes:
            for use in record.volumes:
                if use.anonymous:
                    with suppress(NotFound):
                        self.volumes.remove(use.name)
        self.store.discard(record.id, record.name)
        release_ids(record, self.root)

    # --- signals ------------------------------------------------------------------------------

    def kill(self, container_id: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the container's first process."""
        record = self.store.read(container_id)
        state = self.status(record).state
        require(record.name, state, Operation.KILL)
        run = state_of.read_run(self.store, container_id)
        if run is None or not state_of.send_signal(run, number):
            raise InvalidState(f"cannot kill container '{record.name}': it is exited")
        if state is State.PAUSED and number == signal.SIGKILL:
            # A frozen process dies when it is thawed, not before (v1 freezer).
            launching.thaw_what_is_there(record)

    def stop(
        self, container_id: str, timeout_s: int | None = None, number: int | None = None
    ) -> None:
        """Ask the container to end, then make it; fine when it has ended already.

        `timeout_s` None takes the container's own, then 10; -1 waits for ever, 0 asks nobody.
        """
        record = self.store.read(container_id)
        state = self.status(record).state
        require(record.name, state, Operation.STOP)
        run = state_of.read_run(self.store, container_id)
        if state not in (State.RUNNING, State.PAUSED) or run is None:
            return
        if timeout_s is None:
            timeout_s = record.options.stop_timeout_s
        if timeout_s is None:
            timeout_s = DEFAULT_STOP_TIMEOUT_S
        with self._watching(record, cleans=True) as watcher:
            asked = signal.SIGKILL if timeout_s == 0 else number or record.stop_signal
            state_of.send_signal(run, asked)
            if state is State.PAUSED:
                launching.thaw_what_is_there(record)
            if not self._wait_ended(record, watcher, timeout_s):
                launching.container_cgroup(record).kill()
                state_of.send_signal(run, signal.SIGKILL)
                self._expect_end(record, watcher)
        self.finish(container_id)

    def _kill_and_wait(self, record: Record) -> None:
        with self._watching(record, cleans=True) as watcher:
            launching.container_cgroup(record).kill()
            run = state_of.read_run(self.store, record.id)
            if run is not None:
                state_of.send_signal(run, signal.SIGKILL)
            self._expect_end(record, watcher)

    def _expect_end(self, record: Record, watcher: Watcher) -> None:
        if not self._wait_ended(record, watcher, KILL_TIMEOUT_S):
            raise DeadlineExceeded(
                f"container '{record.name}' did not end {KILL_TIMEOUT_S} s after SIGKILL",
                hint="a process of it may be stuck in the kernel (state D in ps)",
            )

    # --- waiting ------------------------------------------------------------------------------

    def _watching(self, record: Record, *, cleans: bool) -> Watcher:
        path = f"{self.store.run_dir(record.id)}/monitor.sock"
        return Watcher(path, cleans=cleans)

    def _wait_ended(self, record: Record, watcher: Watcher, timeout_s: float) -> bool:
        deadline = None if timeout_s < 0 else time.monotonic() + timeout_s
        while True:
            if self._has_ended(record):
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            watcher.wait(left)

    def _has_ended(self, record: Record) -> bool:
        try:
            return self.status(record).state not in (State.RUNNING, State.PAUSED)
        except NotFound:
            return True

    def wait(self, container_id: str) -> int:
        """Wait for the container to end; gives its exit code (137 if its record is gone)."""
        record, path = self.store.read(container_id), self.store.container_dir(container_id)
        with self._watching(record, cleans=False) as watcher:
            while True:
                state = self.status(record)
                if state.state is State.EXITED:
                    return state.exit_code
                if state.state is State.CREATED and not os.path.isdir(path):
                    return watcher.exit_code if watcher.exit_code is not None else 137
                watcher.wait(1.0 if state.state is State.CREATED else None)

    # --- a running container ------------------------------------------------------------------

    def pause(self, container_id: str) -> None:
        """Freeze every process of the container."""
        with self.store.locked(container_id):
            record = self.store.read(container_id)
            thaw_abandoned(self.store, record)
            require(record.name, self.status(record).state, Operation.PAUSE)
            launching.container_cgroup(record).freeze()

    def unpause(self, container_id: str) -> None:
        """Let a frozen container go on."""
        with self.store.locked(container_id):
            record = self.store.read(container_id)
            if not thaw_abandoned(self.store, record):
                require(record.name, self.status(record).state, Operation.UNPAUSE)
                launching.container_cgroup(record).thaw()

    def update_cgroup(self, record: Record, resources: Resources) -> None:
        """Change the limits of a running container; its lock is held by the caller."""
        launching.container_cgroup(record).update(resources)

    def attach(self, container_id: str, *, stdin: bool = True) -> MonitorConnection:
        """Connect to the input and output of a running container."""
        from scow.cri.execute import attach_to

        record = self.store.read(container_id)
        require(record.name, self.status(record).state, Operation.ATTACH)
        return attach_to(record, self.store, stdin=stdin)

    def exec(self, container_id: str, options: ExecOptions) -> MonitorConnection:
        """Start a further process in a running container."""
        from scow.cri.execute import start_exec

        record = self.store.read(container_id)
        require(record.name, self.status(record).state, Operation.EXEC)
        run = state_of.read_run(self.store, container_id)
        return start_exec(record, run, self._around, options)

    def logs(
        self,
        container_id: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> Iterator[LogEntry]:
        """Read the container's log; with `follow` until it ends or is removed."""
        from scow.cri.logs import read_log

        record = self.store.read(container_id)
        return read_log(
            self.store.log_path(record),
            follow=follow,
            tail=tail,
            since_ns=since_ns,
            until_ns=until_ns,
            is_running=lambda: not self._has_ended(record),
        )

    def stats(self, container_id: str) -> StatsView:
        """Measure a running container once."""
        from scow.cri.views import measure

        record = self.store.read(container_id)
        return measure(record, self.status(record), self.store)

    # --- looking ------------------------------------------------------------------------------

    def find(self, text: str) -> str:
        """Give the id for a name, an id, or the beginning of an id."""
        return self.store.find(text)

    def status(self, record: Record) -> Status:
        """Say what a container is doing now."""
        return read_status(self.store, record)

    def list(self) -> Sequence[ContainerView]:
        """List all containers, newest first."""
        from scow.cri.views import view

        records = sorted(self.store.list(), key=lambda record: record.created_ns, reverse=True)
        return [view(record, self.status(record), self.store) for record in records]

    def inspect(self, container_id: str) -> dict[str, object]:
        """Describe a container in Docker's shape."""
        from scow.cri.inspect import describe

        record = self.store.read(container_id)
        return describe(record, self.status(record), self.store, self.volumes)

    def explain(self, container_id: str) -> tuple[Steps, Plan]:
        """Give the steps before the plan, as (call, why), and the plan; nothing is taken."""
        from scow.cri.preface import preface

        record = self.store.read(container_id)
        with ExitStack() as stack:
            prepared = self._prepare(record, stack)
            return preface(record, prepared, self._around), prepared.plan

    def configuration(self, container_id: str) -> Spec:
        """The container's OCI configuration; nothing is taken."""
        with ExitStack() as stack:
            return self._prepare(self.store.read(container_id), stack).generated.spec

    def _prepare(self, record: Record, stack: ExitStack) -> launching.Prepared:
        pid = self.status(record).pid
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        with state_of.needs_processes(record.name, "look into"):
            root = os.open(f"/proc/{pid}/root", flags) if pid else None
        return launching.prepare_launch(
            record, self._around, stack, dry_run=True, running_root=root
        )

    def info(self) -> Sequence[Fact]:
        """Say what this host can do and what is missing."""
        from scow.cri.info import gather

        return gather(self)

    def check(self, *, repair: bool = False, quick: bool = False) -> Sequence[str]:
        """Look for anything left behind or damaged; with `repair`, mend it. Empty means clean."""
        from scow.cri.check import check

        return check(self, repair=repair, quick=quick)

    # --- what the rooms below are told --------------------------------------------------------

    def bridge(self) -> BridgeNetwork:
        """The bridge network; loaded when first used."""
        if self._network is None:
            from scow.netns.network import BridgeNetwork

            self._network = BridgeNetwork(self.run)
        return self._network

    def _pid_of(self, text: str) -> tuple[str, int]:
        container_id = self.find(text)
        record = self.store.read(container_id)
        status = self.status(record)
        if status.state is not State.RUNNING:
            raise InvalidState(
                f"cannot join container '{text}': it is {status.state.value}",
                hint=f"start it first: scow start {text}",
            )
        return container_id, status.pid
