"""system df: what takes how much of the disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scow.cli import human
from scow.cli.format import Row, write_rows, write_table
from scow.cli.session import service
from scow.cli.table import Command, UsageError, Values, flag, text

if TYPE_CHECKING:
    from scow.cri.prune import DiskUsage

HEADINGS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
    "Bytes": "BYTES",
}


def _size(count: int) -> str:
    return human.decimal_size(count, digits=4)


def _row(kind: str, total: int, active: int, size: int, reclaimable: int) -> Row:
    share = f" ({reclaimable * 100 // size}%)" if size else ""
    return {
        "Type": kind,
        "TotalCount": str(total),
        "Active": str(active),
        "Size": _size(size),
        "Reclaimable": _size(reclaimable) + share,
        "Bytes": str(size),
    }


def _rows(usage: DiskUsage) -> list[Row]:
    store = usage.store
    active = sum(1 for image in store.images if usage.image_users.get(image.image.id))
    containers = sum(usage.containers.values())
    running = sum(usage.containers[c] for c in usage.running if c in usage.containers)
    volumes = sum(volume.used_bytes for volume in usage.volumes)
    mounted = [volume for volume in usage.volumes if volume.links]
    used = sum(volume.used_bytes for volume in mounted)
    free = store.image_bytes - store.active_bytes
    pending = store.pending_bytes
    return [
        _row("Images", len(store.images), active, store.image_bytes, free),
        _row(
            "Containers",
            len(usage.containers),
            len(usage.running),
            containers,
            containers - running,
        ),
        _row("Local Volumes", len(usage.volumes), len(mounted), volumes, volumes - used),
        _row("Build Cache", 0, 0, 0, 0),
        _row(
            "Partial Downloads",
            store.pending_count,
            store.alive_count,
            pending,
            0 if store.alive_count else pending,
        ),
        _row("Other", 1, 1, usage.other_bytes, 0),
    ]


def _df(values: Values) -> int:
    from scow.cri.prune import disk_usage

    if values.flag("verbose") and values.text("format"):
        raise UsageError("system df: --verbose and --format exclude each other")
    usage = disk_usage(service())
    if values.flag("verbose"):
        _write_details(usage)
    else:
        columns = ("Type", "TotalCount", "Active", "Size", "Reclaimable")
        form = values.text("format")
        write_rows(_rows(usage), columns=columns, headings=HEADINGS, form=form)
    return 0


def _write_details(usage: DiskUsage) -> None:
    from scow.cli.images import NONE, created_ns

    now_ns = time.time_ns()
    print("Images space usage:\n")
    lines = [
        [
            "REPOSITORY",
            "TAG",
            "IMAGE ID",
            "CREATED",
            "SIZE",
            "SHARED SIZE",
            "UNIQUE SIZE",
            "CONTAINERS",
        ]
    ]
    for found in usage.store.images:
        image = found.image
        name, _, tag = image.names[0].rpartition(":") if image.names else (NONE, "", NONE)
        at_ns = created_ns(image.created)
        lines.append(
            [
                name,
                tag,
                human.short_id(image.id),
                human.ago(at_ns, now_ns) if at_ns else "N/A",
                _size(found.shared_bytes + found.unique_bytes),
                _size(found.shared_bytes),
                _size(found.unique_bytes),
                str(usage.image_users.get(image.id, 0)),
            ]
        )
    write_table(lines)
    print("\nContainers space usage:\n")
    lines = [["CONTAINER ID", "IMAGE", "STATE", "SIZE", "CREATED", "NAMES"]]
    lines += [
        [
            c.id[:12],
            c.image,
            c.state,
            _size(usage.containers.get(c.id, 0)),
            human.ago(c.created_ns, now_ns),
            c.name,
        ]
        for c in service().list()
    ]
    write_table(lines)
    print("\nLocal Volumes space usage:\n")
    lines = [["VOLUME NAME", "LINKS", "SIZE"]]
    lines += [[v.name, str(v.links), _size(v.used_bytes)] for v in usage.volumes]
    write_table(lines)
    print("\nBuild cache usage: 0B")
    print(f"Partial downloads usage: {_size(usage.store.pending_bytes)}")
    print(f"Other files usage: {_size(usage.other_bytes)}")
    print(f"All of it, as du counts: {_size(usage.total_bytes)}")


DF = Command(
    "system df",
    "Show what takes space on the disk",
    _df,
    description="SIZE counts blocks of the disk, as du does, and what several images share once; the "
    "sum of the column is what 'du -s' says of the state directory. Partial Downloads are what a pull "
    "under way, or one that was cut, has so far, and content without a name; Other are directories, the "
    "index, and records. RECLAIMABLE is what 'scow system prune -a --volumes' would give back.",
    options=(
        flag("-v", "--verbose", help="Show each image, container and volume"),
        text("--format", metavar="FORMAT", help="'table', 'json', or a Go template"),
    ),
    examples=(
        ("scow system df", "the sums"),
        ("scow system df --format '{{.Type}} {{.Bytes}}'", "exact numbers for a program"),
    ),
    needs_root="it reads state that belongs to root",
)
