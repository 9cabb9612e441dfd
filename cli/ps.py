"""ps: the list of containers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scow.cli import human
from scow.cli.filters import keep, matches_label, parse_filters
from scow.cli.format import Row, write_rows
from scow.cli.session import service
from scow.cli.table import Command, UsageError, Values, flag, many, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scow.cri.views import ContainerView
    from scow.netns.ports import PortMapping

HEADINGS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "State": "STATE",
    "Ports": "PORTS",
    "Names": "NAMES",
    "Labels": "LABELS",
    "Networks": "NETWORKS",
    "Pid": "PID",
    "Size": "SIZE",
    "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES",
}
_COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")
_JSON = tuple(sorted(set(HEADINGS) - {"Pid"}))
_FILTERS = (
    "id",
    "name",
    "label",
    "status",
    "exited",
    "ancestor",
    "network",
    "before",
    "since",
    "publish",
)
_STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")


def status_text(view: ContainerView, now_ns: int | None = None) -> str:
    """`Up 3 minutes`, `Exited (0) 5 seconds ago`, `Created`."""
    now_ns = time.time_ns() if now_ns is None else now_ns
    if view.state in ("running", "paused"):
        up = "Up " + human.duration(max(0, now_ns - (view.started_ns or now_ns)) / human.SECOND_NS)
        return up + (" (Paused)" if view.state == "paused" else "")
    if view.state == "exited":
        return f"Exited ({view.exit_code}) {human.ago(view.finished_ns or now_ns, now_ns)}"
    return {"removing": "Removal In Progress"}.get(view.state, view.state.capitalize())


def command_text(words: Iterable[str] | str, *, full: bool) -> str:
    """The command in quotes, 20 characters of it."""
    line = words if isinstance(words, str) else " ".join(words)
    line = line if full else human.ellipsis(line, 20)
    escaped = (
        line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    )
    return f'"{escaped}"'


def ports_text(ports: Iterable[PortMapping], exposed: Iterable[str] = ()) -> str:
    """`0.0.0.0:8080->80/tcp`; neighbours are joined to a range, as Docker does.

    Ports that the image exposes and nobody published stand alone: `443/tcp`.
    """
    order = sorted(ports, key=lambda p: (p.host_ip, p.protocol, p.container_port, p.host_port))
    groups: list[list[PortMapping]] = []
    for port in order:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and (last.host_ip, last.protocol) == (port.host_ip, port.protocol)
            and port.container_port == last.container_port + last.count
            and port.host_port == last.host_port + last.count
        ):
            groups[-1].append(port)
        else:
            groups.append([port])
    published = {
        f"{port.container_port + offset}/{port.protocol}"
        for port in order
        for offset in range(port.count)
    }
    alone = [text if "/" in text else text + "/tcp" for text in exposed]
    shown = [text for text in sorted(alone) if text not in published]
    return ", ".join(shown + [_port_range(group) for group in groups])


def _port_range(group: list[PortMapping]) -> str:
    first, length = group[0], sum(port.count for port in group)

    def span(low: int) -> str:
        return str(low) if length == 1 else f"{low}-{low + length - 1}"

    address = first.host_ip or "0.0.0.0"
    address = f"[{address}]" if ":" in address else address
    return f"{address}:{span(first.host_port)}->{span(first.container_port)}/{first.protocol}"


def row(view: ContainerView, *, full: bool, now_ns: int) -> Row:
    """The fields of one container."""
    labels = view.labels

    def label(key: str = "") -> str:
        return labels.get(key, "")

    return {
        "ID": view.id if full else view.id[:12],
        "Image": view.image,
        "Command": lambda: command_text(view.command, full=full),
        "CreatedAt": lambda: human.local_time(view.created_ns),
        "RunningFor": lambda: human.ago(view.created_ns, now_ns),
        "Status": lambda: status_text(view, now_ns),
        "State": view.state,
        "Ports": lambda: ports_text(view.ports, view.exposed_ports),
        "Names": view.name,
        "Labels": lambda: ",".join(f"{key}={labels[key]}" for key in sorted(labels)),
        "Label": label,
        "Networks": lambda: ",".join(view.networks),
        "Pid": str(view.pid or 0),
        "Size": "0B",
        "Mounts": lambda: ",".join(human.ellipsis(mount, 15) for mount in view.mounts),
        "LocalVolumes": lambda: str(sum(not mount.startswith("/") for mount in view.mounts)),
    }


def _reference(views: list[ContainerView], name: str) -> ContainerView:
    identity = service().find(name)
    return next(view for view in views if view.id == identity)


def _tests(views: list[ContainerView]) -> dict[str, Callable[[ContainerView, str], bool]]:
    def published(view: ContainerView, wanted: str) -> bool:
        port, _, protocol = wanted.partition("/")
        return any(
            port.isdigit()
            and 0 <= int(port) - p.host_port < p.count
            and p.protocol == (protocol or "tcp")
            for p in view.ports
        )

    return {
        "id": lambda view, v: view.id.startswith(v),
        "name": lambda view, v: v.removeprefix("/") in view.name,
        "label": lambda view, v: matches_label(view.labels, v),
        "status": lambda view, v: view.state == v,
        "exited": lambda view, v: view.state == "exited" and str(view.exit_code) == v,
        "ancestor": lambda view, v: (
            view.image in (v, v + ":latest", v.removesuffix(":latest"))
            or view.image_id.removeprefix("sha256:").startswith(v.removeprefix("sha256:"))
        ),
        "network": lambda view, v: v in view.networks,
        "before": lambda view, v: view.created_ns < _reference(views, v).created_ns,
        "since": lambda view, v: view.created_ns > _reference(views, v).created_ns,
        "publish": published,
    }


def _ps(values: Values) -> int:
    filters = parse_filters(values.many("filter"), _FILTERS)
    for state in filters.get("status", []):
        if state not in _STATES:
            raise UsageError(f"invalid --filter 'status={state}': one of {', '.join(_STATES)}")
    last = 1 if values.flag("latest") else _count(values.text("last"))
    views = sorted(service().list(), key=lambda view: view.created_ns, reverse=True)
    everything = (
        values.flag("all") or last is not None or "status" in filters or "exited" in filters
    )
    shown = [
        view for view in views if everything or view.state in ("running", "paused", "restarting")
    ]
    shown = keep(shown, filters, _tests(views))[: last if last is not None else None]
    now_ns, full = time.time_ns(), values.flag("no-trunc")
    if values.flag("quiet"):
        print("".join(f"{view.id if full else view.id[:12]}\n" for view in shown), end="")
        return 0
    rows = [row(view, full=full, now_ns=now_ns) for view in shown]
    write_rows(
        rows, columns=_COLUMNS, headings=HEADINGS, form=values.text("format"), json_fields=_JSON
    )
    return 0


def _count(text_: str | None) -> int | None:
    if text_ is None:
        return None
    from scow.cri.parse import parse_int

    number = parse_int("--last", text_, low=-1, high=2**31 - 1)
    return None if number < 0 else number


PS = Command(
    "ps",
    "List containers that run; -a lists all",
    _ps,
    options=(
        flag("-a", "--all", help="Show stopped containers, too"),
        many("-f", "--filter", metavar="KEY=VALUE", help="Show only some: " + " ".join(_FILTERS)),
        text(
            "--format",
            metavar="FORMAT",
            help="'table', 'json', 'table TEMPLATE' or a Go template such as '{{.Names}} {{.Status}}'",
        ),
        text("-n", "--last", metavar="N", help="Show the N that were created last, in any state"),
        flag("-l", "--latest", help="Show the one that was created last"),
        flag("--no-trunc", help="Show whole ids and commands"),
        flag("-q", "--quiet", help="Show ids only"),
    ),
    examples=(
        ("scow ps", "what runs now"),
        ("scow ps -a", "what ran before, too, with exit codes"),
        ("scow rm $(scow ps -aq -f status=exited)", "remove all that have ended"),
        ("scow ps --format 'table {{.Names}}\\t{{.Ports}}'", "choose the columns"),
    ),
    needs_root="the list of containers belongs to root",
)
