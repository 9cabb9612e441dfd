"""Pods by `scow --host`: the verbs of `scow pod`, by CRI's calls."""

from __future__ import annotations

import heapq
import sys
import time
from typing import TYPE_CHECKING, Any

from scow.cli import human
from scow.cli.format import Row, write_rows
from scow.cli.remote import STATS, each_by, log_entries, pod, show_all, stats_row
from scow.cli.session import session
from scow.cli.table import Values
from scow.cli.targets import each
from scow.native.errors import InvalidState, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scow.cri.api.received import Received
    from scow.cri.client import Client
    from scow.cri.logs import LogEntry


def create(values: Values) -> int:
    """RunPodSandbox."""
    from scow.cli.pod import options_of

    options = options_of(values)
    ports = [
        {
            "protocol": one.protocol.upper(),
            "host_ip": one.host_ip,
            "host_port": one.host_port + n,
            "container_port": one.container_port + n,
        }
        for one in options.ports
        for n in range(one.count)
    ]
    security: dict[str, Any] = {
        "namespace_options": {"pid": options.pid.upper()},
        "privileged": options.privileged,
    }
    config: dict[str, Any] = {
        "metadata": {"name": options.metadata.name, "namespace": options.metadata.namespace},
        "hostname": options.hostname,
        "labels": options.labels,
        "port_mappings": ports,
        "linux": {
            "security_context": security,
            "sysctls": options.sysctls,
            "cgroup_parent": options.cgroup_parent,
        },
    }
    if options.has_dns or options.dns_searches:
        config["dns_config"] = {"servers": options.dns_servers, "searches": options.dns_searches}
    with session.client() as client:
        print(client.call("RunPodSandbox", {"config": config}).pod_sandbox_id)
    return 0


_PS = {
    "ID": "POD ID",
    "Name": "NAME",
    "Namespace": "NAMESPACE",
    "State": "STATE",
    "RunningFor": "CREATED",
    "Containers": "CONTAINERS",
}


def ps(values: Values) -> int:
    """ListPodSandbox."""
    with session.client() as client:
        found = sorted(client.call("ListPodSandbox").items, key=lambda one: -one.created_at)
        members = [one.pod_sandbox_id for one in client.call("ListContainers").containers]
    full, now_ns = values.flag("no-trunc"), time.time_ns()
    if values.flag("quiet"):
        print("".join(f"{one.id if full else one.id[:12]}\n" for one in found), end="")
        return 0
    rows: list[Row] = [
        {
            "ID": one.id if full else one.id[:12],
            "Name": one.metadata.name,
            "Namespace": one.metadata.namespace,
            "State": "Ready" if one.state == "SANDBOX_READY" else "NotReady",
            "RunningFor": human.ago(one.created_at, now_ns),
            "Containers": str(members.count(one.id)),
        }
        for one in found
    ]
    write_rows(rows, columns=tuple(_PS), headings=_PS, form=values.text("format"))
    return 0


def inspect(values: Values) -> int:
    """PodSandboxStatus, with all that it tells."""
    return show_all(
        values.words("POD"),
        lambda client, word: client.call(
            "PodSandboxStatus", {"pod_sandbox_id": pod(client, word).id, "verbose": True}
        ),
    )


def stop(values: Values) -> int:
    """StopPodSandbox."""

    def stop_one(client: Client, word: str) -> None:
        client.call("StopPodSandbox", {"pod_sandbox_id": pod(client, word).id})

    return each_by(values.words("POD"), stop_one, each)


def rm(values: Values) -> int:
    """RemovePodSandbox, which would stop what is ready, so that is asked for first."""
    force = values.flag("force")

    def remove(client: Client, word: str) -> None:
        try:
            one = pod(client, word)
        except NotFound:
            if force:
                return
            raise
        if one.state == "SANDBOX_READY" and not force:
            raise InvalidState(
                f"cannot remove pod '{word}': it is ready",
                hint="stop it first, or use 'pod rm -f'",
            )
        client.call("RemovePodSandbox", {"pod_sandbox_id": one.id})

    return each_by(values.words("POD"), remove, each)


def stats(values: Values) -> int:
    """ListPodSandboxStats, twice."""
    headings = {**STATS, "ID": "POD ID"}
    with session.client() as client:
        wanted = {pod(client, word).id for word in values.words("POD")}
        asked = "ListPodSandboxStats"
        first = {one.attributes.id: one.linux.cpu for one in client.call(asked).stats if one.linux}
        time.sleep(1)
        rows = [
            stats_row(
                one.attributes.id,
                one.attributes.metadata.name,
                one.linux.cpu,
                first,
                one.linux.memory,
            )
            for one in client.call(asked).stats
            if one.attributes.id in first and (not wanted or one.attributes.id in wanted)
        ]
    write_rows(rows, columns=tuple(headings), headings=headings, form=values.text("format"))
    return 0


def logs(values: Values) -> int:
    """What its containers have written, in the order of time; see `remote.logs`."""
    with session.client() as client:
        pod_id = pod(client, values.word("POD")).id
        asked = {"filter": {"pod_sandbox_id": pod_id}}
        members = list(client.call("ListContainers", asked).containers)
        wanted = values.text("container")
        if wanted is not None:
            members = [one for one in members if one.metadata.name == wanted]
            if not members:
                raise NotFound(f"pod '{values.word('POD')}' has no container '{wanted[:256]}'")
        streams = [_lines(client, one, values, named=len(members) > 1) for one in members]
        for _, line, entry in heapq.merge(*streams, key=lambda item: item[0]):
            (sys.stderr if entry.stream == "stderr" else sys.stdout).buffer.write(line)
    return 0


def _lines(
    client: Client, one: Received, values: Values, *, named: bool
) -> Iterator[tuple[str, bytes, LogEntry]]:
    head = f"{one.metadata.name} | ".encode() if named else b""
    entries = log_entries(client, one, follow=False, tail=None, since_ns=None, until_ns=None)
    for entry in entries:
        moment = f"{entry.time_text} ".encode() if values.flag("timestamps") else b""
        yield entry.time_text, head + moment + entry.line, entry
