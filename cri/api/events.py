"""What happens to containers and pods, as it happens; and the ends that nobody else waits for.

One thread sleeps in epoll_wait(2) on a connection to each running container's monitor. A connection
that watches also tells the monitor that we give back what the container took: it need not start the
command line for that. Should we be killed, the kernel closes it, and the monitor does.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from scow.cri.api.answers import Answer
from scow.cri.api.calls import RUNNING
from scow.cri.records import Record
from scow.cri.service import Service
from scow.native.errors import ResourceExhausted, ScowError
from scow.runtime.monitor import Exited, MonitorConnection

CREATED, STARTED = "CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT"
STOPPED, DELETED = "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT"
_RANKS = {kind: rank for rank, kind in enumerate((CREATED, STARTED, STOPPED, DELETED))}
# A client that does not read is cut off, not waited for.
BACKLOG = 10_000
# Of so many containers and pods it is known what was told of them last.
REMEMBERED = 50_000
_FINISHERS = 4


class EventStream:
    """One client's events; closing it from another thread ends a waiting `__next__`."""

    def __init__(self, on_close: Callable[[EventStream], None]) -> None:
        self._queue: queue.Queue[Answer | None] = queue.Queue()
        self._on_close = on_close
        self._overrun = False

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Answer:
        event = self._queue.get()
        if event is None:
            if self._overrun:
                raise ResourceExhausted(f"{BACKLOG} events wait: the client reads too slowly")
            raise StopIteration
        return event

    def put(self, event: Answer) -> None:
        """Add an event, or end the stream of a client that is too slow."""
        if self._queue.qsize() >= BACKLOG:
            self._overrun = True
            self.close()
        else:
            self._queue.put(event)

    def close(self) -> None:
        """End the stream."""
        self._on_close(self)
        self._queue.put(None)


class Events:
    """The running containers of a service, watched, and who wants to hear of them."""

    def __init__(self, service: Service, describe: Callable[[str, str], Answer]) -> None:
        """`describe` gives the statuses that go with an event about (id, kind)."""
        self._service = service
        self._describe = describe
        self._lock = threading.Lock()
        self._streams: list[EventStream] = []
        self._watched: dict[int, tuple[str, MonitorConnection]] = {}
        self._ids: set[str] = set()
        self._last: dict[str, str] = {}
        self._telling = threading.Lock()
        self._epoll = select.epoll()
        self._end_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._end_fd, select.EPOLLIN)
        self._pool = ThreadPoolExecutor(_FINISHERS, thread_name_prefix="scow-finish")
        self._thread = threading.Thread(target=self._run, name="scow-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching; containers go on, and their monitors clean up after them."""
        os.eventfd_write(self._end_fd, 1)
        self._thread.join()
        self._pool.shutdown(wait=True)
        with self._lock:
            streams = list(self._streams)
            for _, connection in self._watched.values():
                connection.close()
            self._watched.clear()
            self._ids.clear()
        for stream in streams:
            stream.close()
        self._epoll.close()
        os.close(self._end_fd)

    def aside(self, work: Callable[[], None]) -> None:
        """Do something that nobody waits for; `close` does."""
        self._pool.submit(work)

    # --- watching -----------------------------------------------------------------------------

    def started(self, container_id: str, connection: MonitorConnection) -> None:
        """Tell of a start, and take the connection that watches the container."""
        with self._lock:
            is_watched = container_id in self._ids  # somebody has listed it meanwhile
            self._ids.add(container_id)
        self.publish(container_id, STARTED)
        # Only now: its end is told after its start.
        if is_watched:
            connection.close()
        else:
            self._watch(container_id, connection)

    def adopt(self, record: Record) -> None:
        """Watch a container that runs already, whoever started it; one that is watched is fine."""
        with self._lock:
            if record.id in self._ids:
                return
            self._ids.add(record.id)
        path = f"{self._service.store.run_dir(record.id)}/monitor.sock"
        try:
            connection = MonitorConnection.connect(path)
            connection.watch()
        except OSError:
            # It ends at this moment, and its monitor has not heard that we would clean up.
            with self._lock:
                self._ids.discard(record.id)
            return
        with self._lock:
            last = self._last.get(record.id)
        if last != STOPPED or self._runs(record.id):  # the command line starts what has ended again
            with self._lock:
                self._remember(record.id, STARTED)
        self._watch(record.id, connection)

    def _watch(self, container_id: str, connection: MonitorConnection) -> None:
        with self._lock:
            fd = connection.fileno()
            self._watched[fd] = (container_id, connection)
            self._epoll.register(fd, select.EPOLLIN)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._end_fd:
                    return
                self._hear(fd)

    def _hear(self, fd: int) -> None:
        with self._lock:
            found = self._watched.get(fd)
        if found is None:
            return
        container_id, connection = found
        event = connection.recv()
        if event is not None and not isinstance(event, Exited):
            return
        with self._lock:
            self._epoll.unregister(fd)
            del self._watched[fd]
            self._ids.discard(container_id)
        connection.close()
        # RuntimeError: the interpreter ends; the next service finds what is left.
        with suppress(RuntimeError):
            self._pool.submit(self._finish, container_id)

    def _finish(self, container_id: str) -> None:
        try:
            self._service.finish(container_id)
        except (OSError, ScowError):
            pass  # who removes the container, or `system check`, comes again
        if not self._runs(container_id):
            self.publish(container_id, STOPPED)

    def _runs(self, container_id: str) -> bool:
        """Whether it was only the connection that ended: a monitor takes 16 clients."""
        try:
            status = self._service.status(self._service.store.read(container_id))
        except ScowError:
            return False
        return status.state in RUNNING

    # --- telling ------------------------------------------------------------------------------

    def subscribe(self) -> EventStream:
        """Hear of all that happens from now on."""
        stream = EventStream(self._unsubscribe)
        with self._lock:
            self._streams.append(stream)
        return stream

    def _unsubscribe(self, stream: EventStream) -> None:
        with self._lock:
            if stream in self._streams:
                self._streams.remove(stream)

    def publish(self, object_id: str, kind: str) -> None:
        """Tell of something that has happened to a container or a pod.

        Who stops, who removes and who sees the end are several threads: each event is told once, and none
        after a later one.
        """
        with self._telling:
            with self._lock:
                last, streams = self._last.get(object_id), list(self._streams)
                if last is not None and _RANKS[kind] <= _RANKS[last]:
                    return
                self._remember(object_id, kind)
            if not streams:
                return
            for one in (STOPPED, DELETED) if (last, kind) == (STARTED, DELETED) else (kind,):
                event = {
                    "container_id": object_id,
                    "container_event_type": one,
                    "created_at": time.time_ns(),
                    **self._describe(object_id, one),
                }
                for stream in streams:
                    stream.put(event)

    def _remember(self, object_id: str, kind: str) -> None:
        self._last.pop(object_id, None)
        self._last[object_id] = kind
        if len(self._last) > REMEMBERED:
            del self._last[next(iter(self._last))]
