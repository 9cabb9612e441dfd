"""pod create, ps, inspect, stop, rm, logs, stats: sandboxes that hold several containers."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from scow.cli import human
from scow.cli.format import Row, write_rows
from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, many, text
from scow.cli.targets import each, tell
from scow.native.errors import NotFound, ScowError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scow.cri.logs import LogEntry
    from scow.cri.pod_records import PodOptions, PodRecord
    from scow.cri.pods import Pods
    from scow.cri.records import Record

_POD = Argument("POD", "Name or id, or the beginning of an id")
_PODS = Argument("POD", "Name or id, or the beginning of an id", count="+")
_ROOT = "it makes namespaces, mounts and cgroups"
INTERVAL_S = 1.0


def _pods() -> Pods:
    from scow.cri.pods import Pods

    return Pods(service())


def options_of(values: Values) -> PodOptions:
    """What the command line asks for."""
    from scow.cri import parse
    from scow.cri.parse_network import parse_hostname, parse_ip
    from scow.cri.pod_records import PodMetadata, PodOptions
    from scow.cri.userns import parse_user_namespace
    from scow.netns.ports import parse_ports

    hostname = values.text("hostname")
    auto_ids, ids = parse_user_namespace(
        values.text("userns"), values.many("uidmap"), values.many("gidmap")
    )
    dns = [parse_ip("--dns", server) for server in values.many("dns")]
    return PodOptions(
        metadata=PodMetadata(
            parse.parse_name("POD", values.word("POD")), "", values.text("namespace") or "default"
        ),
        hostname=parse_hostname("--hostname", hostname) if hostname else "",
        labels=_pairs("--label", values.many("label")),
        dns_servers=tuple(dns),
        dns_searches=tuple(values.many("dns-search")),
        has_dns=bool(dns),
        ports=tuple(parse_ports(values.many("publish"))),
        pid="pod" if values.flag("share-pid") else "container",
        sysctls=_pairs("--sysctl", values.many("sysctl")),
        privileged=values.flag("privileged"),
        auto_ids=auto_ids,
        ids=ids,
        cgroup_parent=(values.text("cgroup-parent") or "").strip("/"),
    )


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in texts:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageError(f"invalid {option} {ascii(word)[:100]}: KEY=VALUE")
        found[key] = value
    return found


def _create(values: Values) -> int:
    print(_pods().run(options_of(values)))
    return 0


CREATE = Command(
    "pod create",
    "Make a pod: a network, IPC and host name that several containers share",
    _create,
    description="Prints its id. 'scow run --pod POD ...' runs containers in it.",
    arguments=(Argument("POD", "Its name"),),
    options=(
        many("-p", "--publish", metavar="PORTS", help="Forward ports of this host: 8080:80"),
        text("--hostname", metavar="NAME", help="Host name (the short id)"),
        many("-l", "--label", metavar="KEY=VALUE", help="Label"),
        many("--dns", metavar="ADDRESS", help="Name server (the host's)"),
        many("--dns-search", metavar="DOMAIN", help="Search domain"),
        many("--sysctl", metavar="KEY=VALUE", help="Kernel setting of its own namespaces"),
        flag("--share-pid", help="One PID namespace for all containers"),
        flag("--privileged", help="Let containers in it be privileged"),
        text("--userns", metavar="MODE", help="User ids: 'auto' gives the pod 65536 of its own"),
        many("--uidmap", metavar="INSIDE:HOST:SIZE", help="User ids inside, the host's, how many"),
        many("--gidmap", metavar="INSIDE:HOST:SIZE", help="The same for groups (as --uidmap)"),
        text("--namespace", metavar="NAME", default="default", help="What its name belongs to"),
        text("--cgroup-parent", metavar="PATH", help="Make its cgroup below this one"),
    ),
    examples=(
        ("scow pod create -p 8080:80 web", "a pod whose port 80 is the host's 8080"),
        ("scow run -d --pod web nginx", "a container in it"),
    ),
    needs_root=_ROOT,
)

HEADINGS = {
    "ID": "POD ID",
    "Name": "NAME",
    "Namespace": "NAMESPACE",
    "State": "STATE",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Containers": "CONTAINERS",
    "IP": "IP",
    "Attempt": "ATTEMPT",
    "Labels": "LABELS",
}
_COLUMNS = ("ID", "Name", "Namespace", "State", "RunningFor", "Containers", "IP")


def _row(
    record: PodRecord, addresses: Sequence[str], *, ready: bool, count: int, full: bool
) -> Row:
    metadata, labels = record.options.metadata, record.options.labels
    return {
        "ID": record.id if full else record.id[:12],
        "Name": metadata.name,
        "Namespace": metadata.namespace,
        "State": "Ready" if ready else "NotReady",
        "CreatedAt": lambda: human.local_time(record.created_ns),
        "RunningFor": lambda: human.ago(record.created_ns, time.time_ns()),
        "Containers": str(count),
        "IP": addresses[0] if addresses else "",
        "Attempt": str(metadata.attempt),
        "Labels": lambda: ",".join(f"{key}={labels[key]}" for key in sorted(labels)),
    }


def _ps(values: Values) -> int:
    pods, full = _pods(), values.flag("no-trunc")
    records = pods.list()
    if values.flag("quiet"):
        print("".join(f"{r.id if full else r.id[:12]}\n" for r in records), end="")
        return 0
    members = [r.member.pod_id for r in service().store.list() if r.member is not None]
    rows = [
        _row(
            record,
            pods.network.addresses(record) if pods.is_ready(record) else (),
            ready=pods.is_ready(record),
            count=members.count(record.id),
            full=full,
        )
        for record in records
    ]
    write_rows(rows, columns=_COLUMNS, headings=HEADINGS, form=values.text("format"))
    return 0


PS = Command(
    "pod ps",
    "List pods",
    _ps,
    options=(
        text("--format", metavar="FORMAT", help="'table', 'json', or a Go template"),
        flag("--no-trunc", help="Show whole ids"),
        flag("-q", "--quiet", help="Show ids only"),
    ),
    examples=(("scow pod ps", "all pods, and whether they are ready"),),
    needs_root="the list of pods belongs to root",
)


def _inspect(values: Values) -> int:
    import json

    import msgspec

    pods, status = _pods(), 0
    found: list[object] = []
    for name in values.words("POD"):
        try:
            record = pods.read(pods.find(name))
        except ScowError as error:
            tell(error)
            status = 1
            continue
        containers = [
            {
                "id": member.id,
                "name": member.name,
                "image": member.image_name,
                "state": service().status(member).state.value,
            }
            for member in pods.containers(record.id)
        ]
        document = msgspec.to_builtins(record)
        document.pop("version")
        found.append({**document, "ready": pods.is_ready(record), "containers": containers})
    print(json.dumps(found, ensure_ascii=False, indent=4))
    return status


INSPECT = Command(
    "pod inspect",
    "Show everything about pods, as JSON",
    _inspect,
    arguments=(_PODS,),
    examples=(("scow pod inspect web", "what it is, and its containers"),),
    needs_root="the records of pods belong to root",
)


def _stop(values: Values) -> int:
    pods = _pods()

    def stop(name: str) -> str:
        pods.stop(pods.find(name))
        return name

    return each(values.words("POD"), stop)


STOP = Command(
    "pod stop",
    "Stop pods: end their containers, give back network and ports",
    _stop,
    description="A pod that was stopped is never ready again; its logs stay until 'scow pod rm'.",
    arguments=(_PODS,),
    examples=(("scow pod stop web", "end it"),),
    needs_root=_ROOT,
)


def _rm(values: Values) -> int:
    pods, force = _pods(), values.flag("force")

    def remove(name: str) -> str:
        try:
            pod_id = pods.find(name)
        except NotFound:
            if force:
                return name
            raise
        if not force and pods.is_ready(pods.read(pod_id)):
            raise UsageError(
                f"cannot remove pod '{name}': it is ready", hint="stop it first, or use 'pod rm -f'"
            )
        pods.remove(pod_id)
        return name

    return each(values.words("POD"), remove)


RM = Command(
    "pod rm",
    "Remove pods with their containers",
    _rm,
    arguments=(_PODS,),
    options=(flag("-f", "--force", help="Also those that are ready; missing ones are fine"),),
    examples=(("scow pod rm -f web", "whatever it does"),),
    needs_root=_ROOT,
)


def _logs(values: Values) -> int:
    pods = _pods()
    members = pods.containers(pods.find(values.word("POD")))
    wanted = values.text("container")
    if wanted is not None:
        members = [m for m in members if wanted in (_short_name(m), m.name)]
        if not members:
            raise NotFound(f"pod '{values.word('POD')}' has no container '{wanted[:256]}'")
    if values.flag("follow") and len(members) != 1:
        raise UsageError("pod logs: -f follows one container: name it with -c")
    streams = [_lines(member, values, named=len(members) > 1) for member in members]
    import heapq

    for _, line, entry in heapq.merge(*streams, key=lambda item: item[0]):
        out = sys.stderr if entry.stream == "stderr" else sys.stdout
        out.buffer.write(line)
        if values.flag("follow"):
            out.buffer.flush()
    return 0


def _short_name(record: Record) -> str:
    return record.member.name if record.member is not None else record.name


def _lines(record: Record, values: Values, *, named: bool) -> Iterator[tuple[str, bytes, LogEntry]]:
    head = f"{_short_name(record)} | ".encode() if named else b""
    for entry in service().logs(record.id, follow=values.flag("follow")):
        moment = f"{entry.time_text} ".encode() if values.flag("timestamps") else b""
        yield entry.time_text, head + moment + entry.line, entry


LOGS = Command(
    "pod logs",
    "Show what the containers of a pod have written, in the order of time",
    _logs,
    arguments=(_POD,),
    options=(
        text("-c", "--container", metavar="NAME", help="Only this container"),
        flag("-f", "--follow", help="Go on until the container ends"),
        flag("-t", "--timestamps", help="Put the time before each line"),
    ),
    examples=(("scow pod logs web", "all of its containers, each line with its name"),),
    needs_root="the logs of pods belong to root",
)

_STATS_HEADINGS = {
    "ID": "POD ID",
    "Name": "NAME",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE",
    "PIDs": "PIDS",
}


def _measure(pods: Pods, names: list[str]) -> dict[str, tuple[str, int, int, int, int]]:
    """By id: (name, when, CPU time, memory, processes)."""
    from scow.cri.pods import pod_cgroup

    wanted = {pods.find(name) for name in names}
    found: dict[str, tuple[str, int, int, int, int]] = {}
    for record in pods.list():
        if names and record.id not in wanted:
            continue
        try:
            stats = pod_cgroup(record).stats()
        except NotFound:
            continue  # it is not ready
        name = record.options.metadata.name
        found[record.id] = (name, stats.time_ns, stats.cpu_ns, stats.memory_used_bytes, stats.pids)
    return found


def _stats(values: Values) -> int:
    pods, form = _pods(), values.text("format")
    before = _measure(pods, values.words("POD"))
    while True:
        time.sleep(INTERVAL_S)
        now = _measure(pods, values.words("POD"))
        rows: list[Row] = []
        for pod_id, (name, moment, cpu, memory, pids) in now.items():
            _, then, cpu_then, _, _ = before.get(pod_id, (name, moment, cpu, 0, 0))
            share = 100.0 * (cpu - cpu_then) / (moment - then) if moment > then else 0.0
            rows.append(
                {
                    "ID": pod_id[:12],
                    "Name": name,
                    "CPUPerc": f"{share:.2f}%",
                    "MemUsage": human.binary_size(memory),
                    "PIDs": str(pids),
                }
            )
        write_rows(rows, columns=tuple(_STATS_HEADINGS), headings=_STATS_HEADINGS, form=form)
        sys.stdout.flush()
        before = now
        if values.flag("no-stream"):
            return 0


STATS = Command(
    "pod stats",
    "Show what pods use, all containers together",
    _stats,
    description="Goes on every second until Ctrl-C. 100 % CPU is one CPU.",
    arguments=(Argument("POD", "Only these; all that are ready when left out", count="*"),),
    options=(
        flag("--no-stream", help="Measure once"),
        text("--format", metavar="FORMAT", help="'table', 'json', or a Go template"),
    ),
    examples=(("scow pod stats --no-stream", "one look"),),
    needs_root="it reads the cgroups of pods",
)
