"""What `scow --host` does: the same verbs, by CRI's calls on a service that may be on another machine.

CRI knows less than this machine's own state: containers of pods only, by id or by the name that they
have in their pod; no log but as a file of the service's machine. What cannot be done so is refused.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from scow.cli import human
from scow.cli.format import Row, write_rows
from scow.cli.session import session
from scow.cli.table import Command, UsageError, Values
from scow.cli.targets import each, each_at_once, tell
from scow.native.errors import InvalidArgument, InvalidState, NotFound, ScowError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scow.cri.api.received import Received
    from scow.cri.client import Client
    from scow.cri.logs import LogEntry

STATES = {
    "CONTAINER_CREATED": "Created",
    "CONTAINER_RUNNING": "Running",
    "CONTAINER_EXITED": "Exited",
    "CONTAINER_UNKNOWN": "Unknown",
}
STOP_S = 10


# --- finding --------------------------------------------------------------------------------------


def pick(kind: str, items: list[Received], word: str) -> Received:
    """The one with this id, this name, or an id that begins so."""
    whole = [item for item in items if item.id == word]
    named = [item for item in items if item.metadata is not None and item.metadata.name == word]
    found = whole or named or [item for item in items if word and item.id.startswith(word)]
    if not found:
        raise NotFound(f"no such {kind}: '{word[:256]}'")
    if len(found) > 1:
        ids = ", ".join(item.id[:12] for item in found[:3])
        raise InvalidArgument(
            f"'{word[:256]}' names more than one {kind}: {ids}", hint="give an id"
        )
    return found[0]


def container(client: Client, word: str) -> Received:
    """A container, as lists have it."""
    return pick("container", list(client.call("ListContainers").containers), word)


def pod(client: Client, word: str) -> Received:
    """A pod, as lists have it."""
    return pick("pod", list(client.call("ListPodSandbox").items), word)


def each_by(
    words: list[str], act: Callable[[Client, str], None], loop: Callable[..., int] = each_at_once
) -> int:
    """Do it to each, with a client for each, since they may be at it at the same time."""

    def one(word: str) -> str:
        with session.client() as client:
            act(client, word)
        return word

    return loop(words, one)


# --- containers -----------------------------------------------------------------------------------

_PS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "RunningFor": "CREATED",
    "State": "STATE",
    "Names": "NAMES",
    "Pod": "POD",
}


def ps(values: Values) -> int:
    """ListContainers."""
    with session.client() as client:
        found = list(client.call("ListContainers").containers)
        names = {item.id: item.metadata.name for item in client.call("ListPodSandbox").items}
    found.sort(key=lambda one: -one.created_at)
    shown = [one for one in found if values.flag("all") or one.state == "CONTAINER_RUNNING"]
    full, now_ns = values.flag("no-trunc"), time.time_ns()
    if values.flag("quiet"):
        print("".join(f"{one.id if full else one.id[:12]}\n" for one in shown), end="")
        return 0
    rows: list[Row] = [
        {
            "ID": one.id if full else one.id[:12],
            "Image": one.image.user_specified_image or one.image.image,
            "RunningFor": human.ago(one.created_at, now_ns),
            "State": STATES[one.state],
            "Names": one.metadata.name,
            "Pod": names.get(one.pod_sandbox_id, ""),
        }
        for one in shown
    ]
    write_rows(rows, columns=tuple(_PS), headings=_PS, form=values.text("format"))
    return 0


def start(values: Values) -> int:
    """StartContainer."""
    return each_by(
        values.words("CONTAINER"),
        lambda client, word: _act(client, "StartContainer", container(client, word)),
        each,
    )


def _act(client: Client, method: str, one: Received, **more: Any) -> None:
    client.call(method, {"container_id": one.id, **more})


def stop(values: Values) -> int:
    """StopContainer."""
    from scow.cri.parse import parse_int

    seconds = values.text("timeout")
    timeout = STOP_S if seconds is None else parse_int("--timeout", seconds, low=0, high=2**31)
    return each_by(
        values.words("CONTAINER"),
        lambda client, word: _act(
            client, "StopContainer", container(client, word), timeout=timeout
        ),
    )


def rm(values: Values) -> int:
    """RemoveContainer, which would kill what runs, so that is asked for first."""
    force = values.flag("force")

    def remove(client: Client, word: str) -> None:
        try:
            one = container(client, word)
        except NotFound:
            if force:
                return
            raise
        if one.state == "CONTAINER_RUNNING" and not force:
            raise InvalidState(
                f"cannot remove container '{word}': it is running",
                hint="stop it first, or use 'rm -f'",
            )
        _act(client, "RemoveContainer", one)

    return each_by(values.words("CONTAINER"), remove)


def logs(values: Values) -> int:
    """CRI hands out no log: it is a file, that can be read where the service is on this machine."""
    from scow.cli.logs import parse_tail, parse_time, write_entries

    since, until = values.text("since"), values.text("until")
    with session.client() as client:
        one = container(client, values.word("CONTAINER"))
        entries = log_entries(
            client,
            one,
            follow=values.flag("follow"),
            tail=parse_tail(values.text("tail")),
            since_ns=None if since is None else parse_time("--since", since),
            until_ns=None if until is None else parse_time("--until", until),
        )
        sys.stdout.flush()
        write_entries(entries, times=values.flag("timestamps"), flush=values.flag("follow"))
    return 0


def log_entries(
    client: Client, one: Received, *, follow: bool, **limits: Any
) -> Iterator[LogEntry]:
    """The lines of a container's log."""
    from scow.cri.logs import read_log

    path = client.call("ContainerStatus", {"container_id": one.id}).status.log_path
    if not path:
        raise Unsupported(
            f"container '{one.metadata.name}' has no log: it was made without log_path"
        )
    if not client.is_local:
        raise Unsupported(
            f"cannot read the log of container '{one.metadata.name}' from here: it is the file "
            f"'{path}' of the service's machine"
        )

    def is_running() -> bool:
        status = client.call("ContainerStatus", {"container_id": one.id}).status
        return bool(status.state == "CONTAINER_RUNNING")

    return read_log(path, follow=follow, is_running=is_running, **limits)


def inspect(values: Values) -> int:
    """ContainerStatus, else ImageStatus, with all that they tell."""

    def one(client: Client, word: str) -> Received:
        try:
            asked = {"container_id": container(client, word).id, "verbose": True}
            return client.call("ContainerStatus", asked)
        except NotFound:
            found = client.call("ImageStatus", {"image": {"image": word}, "verbose": True})
            if found.image is None:
                raise NotFound(f"no such container or image: '{word[:256]}'") from None
            return found

    return show_all(values.words("NAME"), one)


def show_all(words: list[str], ask: Callable[[Client, str], Received]) -> int:
    """Print the answers as one JSON list; what is not there is told, and the status is 1."""
    import json

    from scow.cri.api import codec

    found: list[Any] = []
    status = 0
    with session.client() as client:
        for word in words:
            try:
                answer = ask(client, word)
            except ScowError as error:
                tell(error)
                status = 1
                continue
            found.append(json.loads(codec.encode(answer.type_name, answer.to_dict())))
    print(json.dumps(found, ensure_ascii=False, indent=4))
    return status


STATS = {"ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE"}


def stats(values: Values) -> int:
    """ListContainerStats, once: the service measures the rates since it was asked before."""

    def measure(client: Client) -> list[Received]:
        return list(client.call("ListContainerStats").stats)

    with session.client() as client:
        wanted = {container(client, word).id for word in values.words("CONTAINER")}
        first = {one.attributes.id: one.cpu for one in measure(client)}
        time.sleep(1)
        rows = [
            stats_row(one.attributes.id, one.attributes.metadata.name, one.cpu, first, one.memory)
            for one in measure(client)
            if not wanted or one.attributes.id in wanted
        ]
    write_rows(rows, columns=tuple(STATS), headings=STATS, form=values.text("format"))
    return 0


def stats_row(
    identity: str, name: str, cpu: Received, first: dict[str, Received], memory: Received
) -> Row:
    """One line of stats: `first` is the processor time of a moment ago, by id."""
    was = first.get(identity, cpu)
    used = cpu.usage_core_nano_seconds.value - was.usage_core_nano_seconds.value
    passed = cpu.timestamp - was.timestamp
    return {
        "ID": identity[:12],
        "Name": name,
        "CPUPerc": f"{100 * used / passed if passed > 0 else 0:.2f}%",
        "MemUsage": human.binary_size(memory.usage_bytes.value),
    }


# --- images, the service itself ---------------------------------------------------------------------

_IMAGES = {"Name": "NAME", "ID": "IMAGE ID", "Size": "SIZE"}


def images(values: Values) -> int:
    """ListImages: a line for each name."""
    with session.client() as client:
        found = list(client.call("ListImages").images)
    full = values.flag("no-trunc")
    if values.flag("quiet"):
        print("".join(f"{one.id if full else human.short_id(one.id)}\n" for one in found), end="")
        return 0
    rows: list[Row] = [
        {
            "Name": name,
            "ID": one.id if full else human.short_id(one.id),
            "Size": human.decimal_size(one.size),
        }
        for one in found
        for name in (list(one.repo_tags) or list(one.repo_digests) or ["<none>"])
    ]
    write_rows(rows, columns=tuple(_IMAGES), headings=_IMAGES, form=values.text("format"))
    return 0


def pull(values: Values) -> int:
    """PullImage; without --creds the credentials are those that the service's machine has."""
    from scow.cli.registry_options import connection

    found = connection("pull", values).get("credentials")
    auth = {"username": found.username, "password": found.password} if found else None
    with session.client() as client:
        asked = {"image": {"image": values.word("IMAGE")}, "auth": auth}
        print(client.call("PullImage", asked).image_ref)
    return 0


def rmi(values: Values) -> int:
    """RemoveImage, which is content with what is not there; we are not."""

    def remove(client: Client, word: str) -> None:
        asked = {"image": {"image": word}}
        if client.call("ImageStatus", asked).image is None:
            raise NotFound(f"no such image: '{word[:256]}'")
        client.call("RemoveImage", asked)

    return each_by(values.words("IMAGE"), remove, each)


def version(values: Values) -> int:
    """Version, of both sides."""
    from scow.cli.system import scow_version

    with session.client() as client:
        found = client.call("Version")
    print(f"scow {scow_version()}")
    print(f" Service:        {found.runtime_name} {found.runtime_version} at {session.host}")
    print(f" API version:    {found.runtime_api_version}")
    return 0


def info(values: Values) -> int:
    """Status, with all that it tells."""
    return show_all([""], lambda client, _: client.call("Status", {"verbose": True}))


# What `scow --host` can do: (module in scow.cli, its function), and the options that it knows.
VERBS: dict[str, tuple[str, str, str]] = {
    "ps": ("remote", "ps", "all no-trunc quiet format"),
    "start": ("remote", "start", ""),
    "stop": ("remote", "stop", "timeout"),
    "rm": ("remote", "rm", "force"),
    "exec": ("remote_exec", "execute", "interactive tty"),
    "logs": ("remote", "logs", "follow tail timestamps since until"),
    "inspect": ("remote", "inspect", ""),
    "stats": ("remote", "stats", "no-stream format"),
    "pod create": ("remote_pods", "create", "*"),
    "pod ps": ("remote_pods", "ps", "no-trunc quiet format"),
    "pod inspect": ("remote_pods", "inspect", ""),
    "pod stop": ("remote_pods", "stop", ""),
    "pod rm": ("remote_pods", "rm", "force"),
    "pod logs": ("remote_pods", "logs", "container timestamps"),
    "pod stats": ("remote_pods", "stats", "no-stream format"),
    "images": ("remote", "images", "all no-trunc quiet format"),
    "pull": ("remote", "pull", "quiet creds"),
    "rmi": ("remote", "rmi", ""),
    "version": ("remote", "version", ""),
    "info": ("remote", "info", ""),
}


def run(command: Command, values: Values) -> int:
    """Carry out a verb by the service that --host names."""
    from importlib import import_module

    if command.name not in VERBS:
        raise UsageError(
            f"{command.name}: works on this machine only, not by --host",
            hint="'scow --host ADDRESS call METHOD' calls whatever CRI has",
        )
    module, function, known = VERBS[command.name]
    for option in command.options:
        if known != "*" and values.given(option.key) and option.key not in known.split():
            raise UsageError(
                f"{command.name}: --{option.key} works on this machine only, not by --host"
            )
    act: Callable[[Values], int] = getattr(import_module(f"scow.cli.{module}"), function)
    return act(values)
