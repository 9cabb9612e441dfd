"""Transient scopes of systemd, over D-Bus.

What belongs here: start, change and stop a scope, and the process that keeps it alive until the
container's first one is in it. What must not: names and properties (`unit`), control files.
Imported only where --systemd-cgroup asks for it; jeepney, too.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    HeaderFields,
    MatchRule,
    message_bus,
    new_method_call,
)
from jeepney.io.blocking import DBusConnection, Proxy, open_dbus_connection
from jeepney.wrappers import unwrap_msg

from scow.cgroups.unit import Property, Unit
from scow.native.errors import AlreadyExists, DeadlineExceeded, ScowError, Unsupported
from scow.native.fd import OwnedFd

TIMEOUT_S = 30.0
_BUS, _PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
_MANAGER = DBusAddress(_PATH, bus_name=_BUS, interface=f"{_BUS}.Manager")
_JOBS = MatchRule(type="signal", path=_PATH, interface=f"{_BUS}.Manager", member="JobRemoved")
_NO_UNIT, _UNIT_EXISTS = f"{_BUS}.NoSuchUnit", f"{_BUS}.UnitExists"


class Manager:
    """systemd as one connection to it; made by `connect`."""

    def __init__(self, connection: DBusConnection) -> None:
        self._connection = connection
        self._removed: deque[Any] = deque()
        self._is_subscribed = False
        self._name = ""  # of systemd, for this connection

    def call(self, method: str, signature: str = "", *body: object) -> tuple[Any, ...]:
        """A method of the manager. Raises DBusErrorResponse."""
        return self._ask(new_method_call(_MANAGER, method, signature or None, body))

    def get(self, path: str, interface: str, name: str) -> Any:
        """A property of an object."""
        address = DBusAddress(path, _BUS, "org.freedesktop.DBus.Properties")
        (variant,) = self._ask(new_method_call(address, "Get", "ss", (interface, name)))
        return variant[1]

    def _ask(self, message: Any) -> tuple[Any, ...]:
        try:
            reply = self._connection.send_and_get_reply(message, timeout=TIMEOUT_S)
        except TimeoutError:
            raise DeadlineExceeded(f"systemd does not answer within {TIMEOUT_S:g} s") from None
        self._name = reply.header.fields.get(HeaderFields.sender)
        return tuple(unwrap_msg(reply))

    def version(self) -> int:
        """The number before the distribution's own."""
        found = re.match(r"v?(\d+)", str(self.get(_PATH, f"{_BUS}.Manager", "Version")))
        return int(found[1]) if found else 0

    def run_job(self, method: str, signature: str, *body: object) -> str:
        """Call a method that starts a job, and wait for the job's end; its result."""
        if not self._is_subscribed:
            # systemd sends signals only while somebody has subscribed.
            Proxy(message_bus, self._connection, timeout=TIMEOUT_S).AddMatch(_JOBS)
            self.call("Subscribe")
            self._is_subscribed = True
        with self._connection.filter(_JOBS, queue=self._removed):
            (job,) = self.call(method, signature, *body)
            deadline = time.monotonic() + TIMEOUT_S
            while True:
                try:
                    left = max(deadline - time.monotonic(), 0)
                    told = self._connection.recv_until_filtered(self._removed, timeout=left)
                except TimeoutError:
                    raise DeadlineExceeded(
                        f"systemd did not finish {method} of '{body[0]}' within {TIMEOUT_S:g} s"
                    ) from None
                is_systemd = told.header.fields.get(HeaderFields.sender) == self._name
                if is_systemd and told.body[1] == job:
                    return str(told.body[3])

    def settle(self) -> None:
        """Return when systemd has written what it was told: before it reads the next message."""
        address = DBusAddress(_PATH, _BUS, "org.freedesktop.DBus.Peer")
        self._ask(new_method_call(address, "Ping"))


@contextmanager
def connect(what: str) -> Iterator[Manager]:
    """A connection to systemd for `what`; failures of D-Bus come out as our errors.

    Raises Unsupported where there is no systemd.
    """
    # sd_booted(3).
    if not os.path.isdir("/run/systemd/system"):
        raise Unsupported(
            f"cannot {what}: this host was not booted by systemd",
            hint="leave out --systemd-cgroup, and give cgroupsPath as a path",
        )
    try:
        connection = open_dbus_connection("SYSTEM")
    except (OSError, RuntimeError, ValueError, DBusErrorResponse) as error:
        raise Unsupported(
            f"cannot {what}: no connection to systemd over D-Bus: {error}",
            hint="is the package dbus installed, and dbus.socket active",
        ) from error
    with connection:
        try:
            yield Manager(connection)
        except DBusErrorResponse as error:
            raise ScowError(f"cannot {what}: {_words(error)}") from error
        except (ConnectionError, BrokenPipeError) as error:
            raise ScowError(f"cannot {what}: lost the connection to systemd: {error}") from error


def _words(error: DBusErrorResponse) -> str:
    text = error.data[0] if error.data and isinstance(error.data[0], str) else ""
    return f"{text or 'refused'} ({error.name})"


# --- scopes ---------------------------------------------------------------------------------------


def start_scope(
    manager: Manager, unit: Unit, owner: str, pid: int, extra: Sequence[Property]
) -> None:
    """Start a scope with one process in it, and its slices if they are not there.

    Raises AlreadyExists when there is a unit of this name which is alive.
    """
    properties: list[Property] = [
        ("Description", ("s", _description(owner))),
        ("Slice", ("s", unit.slice)),
        # What is below is ours; systemd keeps to the unit's own directory.
        ("Delegate", ("b", True)),
        ("PIDs", ("au", [pid])),
        # Shutting down must not wait for it before anything else is stopped.
        ("DefaultDependencies", ("b", False)),
        # A unit that failed (killed for memory) goes like one that did not: its name is free.
        ("CollectMode", ("s", "inactive-or-failed")),
        *((f"{name}Accounting", ("b", True)) for name in ("CPU", "Memory", "IO", "Tasks")),
        *extra,
    ]
    try:
        result = _start(manager, unit, properties)
    except DBusErrorResponse as error:
        if error.name != _UNIT_EXISTS:
            raise
        # One that has failed keeps its name until somebody says that he has seen it.
        _reset_failed(manager, unit.name)
        try:
            result = _start(manager, unit, properties)
        except DBusErrorResponse as again:
            if again.name != _UNIT_EXISTS:
                raise
            raise AlreadyExists(f"unit '{unit.name}' exists already") from again
    if result != "done":
        raise ScowError(f"systemd could not start '{unit.name}': its job ended as '{result}'")


def _start(manager: Manager, unit: Unit, properties: list[Property]) -> str:
    signature = "ssa(sv)a(sa(sv))"
    return manager.run_job("StartTransientUnit", signature, unit.name, "replace", properties, [])


def _reset_failed(manager: Manager, name: str) -> None:
    try:
        manager.call("ResetFailedUnit", "s", name)
    except DBusErrorResponse as error:
        if error.name != _NO_UNIT:
            raise


def stop_scope(manager: Manager, unit: Unit, owner: str) -> None:
    """Stop a scope of ours and wait for its end; gone already, or another's, is fine."""
    try:
        (path,) = manager.call("GetUnit", "s", unit.name)
        if manager.get(path, f"{_BUS}.Unit", "Description") != _description(owner):
            return
        manager.run_job("StopUnit", "ss", unit.name, "replace")
    except DBusErrorResponse as error:
        # It ends by itself with its last process.
        if error.name not in (_NO_UNIT, "org.freedesktop.DBus.Error.UnknownObject"):
            raise


def change_scope(manager: Manager, unit: Unit, properties: Sequence[Property]) -> None:
    """Set properties for as long as the unit lives; returns when they are in force."""
    if properties:
        manager.call("SetUnitProperties", "sba(sv)", unit.name, True, list(properties))
        manager.settle()


def _description(owner: str) -> str:
    # A name alone says nothing: two state directories may have the same container.
    return f"scow container {owner}"


class Keeper:
    """A process that does nothing: systemd makes no scope without one, and ends an empty one."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self._end: OwnedFd | None = None
        with OwnedFd(reading):
            pid = os.fork()
            if pid == 0:
                # End-of-file comes when our side is closed, also by a SIGKILL.
                try:
                    os.close(writing)
                    os.read(reading, 1)
                finally:
                    os._exit(0)
            self.pid = pid
            self._end = OwnedFd(writing)

    def end(self) -> None:
        """Let it go and bury it; again is fine."""
        if self._end is not None:
            self._end.close()
            self._end = None
            os.waitpid(self.pid, 0)
