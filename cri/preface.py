"""What happens before the plan, for --explain: the steps that scow itself takes on the host.

The plan explains itself (native/operations.py); this file holds the words for the rest, read off
the very values that the start would use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scow.cgroups.cgroup import open_cgroup
from scow.cgroups.detect import Mode, hierarchies
from scow.cri.launch import Prepared, Surroundings

if TYPE_CHECKING:
    from scow.cri.records import Record

Steps = list[tuple[str, str]]


def preface(record: Record, prepared: Prepared, around: Surroundings) -> Steps:
    """Give (call, why) for each step before the monitor is started."""
    return [
        *_network(prepared, around),
        *_user_namespace(record),
        _overlay(record, around),
        *_cgroup(record, prepared),
        (
            "memfd_create(scow-monitor, MFD_ALLOW_SEALING); posix_spawn(scow-monitor)",
            "start the container's monitor from a sealed copy in memory: it owns input, output "
            "and the log, and outlives this command",
        ),
    ]


def _user_namespace(record: Record) -> Steps:
    ids = record.options.ids
    if ids is None:
        return []
    lines = ", ".join(" ".join(map(str, line)) for line in ids.uid)
    call = f"unshare(CLONE_NEWUSER); write(/proc/PID/uid_map, {lines})"
    return [(call, "a user namespace: its root is nobody on the host")]


def _network(prepared: Prepared, around: Surroundings) -> Steps:
    attachment = prepared.sandbox.attachment
    if attachment is None:
        return []
    steps = [
        (
            f"symlink(leases/{attachment.address})",
            "take an address on the bridge; two containers cannot have the same",
        ),
        (
            f"sendto(NETLINK_ROUTE, RTM_NEWLINK veth, master {attachment.network})",
            "after the clone: a cable from the bridge into the new network namespace",
        ),
    ]
    ports = attachment.ports
    if ports:
        from scow.netns.nft import table_name

        shown = ", ".join(f"{p.host_port}->{p.container_port}/{p.protocol}" for p in ports)
        table = table_name(around.store.run)
        steps.append((f"nft -f - (table ip {table}: dnat {shown})", "forward the published ports"))
    return steps


def _overlay(record: Record, around: Surroundings) -> tuple[str, str]:
    directory = around.store.container_dir(record.id)
    count = len(around.layer_paths(record))
    return (
        f"fsopen(overlay); fsconfig(lowerdir+ x {count}, upperdir={directory}/upper); fsmount()",
        "stack the image's layers, read-only, under a directory for what the container writes; "
        "attached nowhere on the host",
    )


def _cgroup(record: Record, prepared: Prepared) -> Steps:
    path = record.cgroup
    host = hierarchies()
    where = f"/sys/fs/cgroup/{path}" if host.mode is Mode.V2 else f"/sys/fs/cgroup/*/{path}"
    steps = [(f"mkdir({where})", "make the control group that holds the limits")]
    steps += [
        (f"write({write.file}, {write.value})", f"set a limit of the {write.controller} controller")
        for write in open_cgroup(path).planned_writes(prepared.generated.resources)
    ]
    return steps
