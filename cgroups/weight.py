"""Whether a block io weight would do anything on this host.

The files of bfq and of io.cost take any weight on any host, and nothing comes of it unless a disk
uses bfq, or io.cost is switched on. scow refuses then: a limit that does nothing is not set.
"""

from __future__ import annotations

import os

from scow.cgroups.control import Write
from scow.native.errors import ScowError, Unsupported

SYS_BLOCK = "/sys/block"


def has_bfq_disk() -> bool:
    """Whether some disk of this host is scheduled by bfq."""
    for name in os.listdir(SYS_BLOCK):
        try:
            with open(f"{SYS_BLOCK}/{name}/queue/scheduler", "rb") as file:
                if b"[bfq]" in file.read():
                    return True
        except OSError:
            continue  # no scheduler, or the disk has just gone
    return False


def has_io_cost(cgroup_root: str) -> bool:
    """Whether io.cost is on for some disk (io.cost.qos exists in the root cgroup only)."""
    try:
        with open(f"{cgroup_root}/io.cost.qos", "rb") as file:
            return b"enable=1" in file.read()
    except OSError:
        return False


def no_effect_error(write: Write, path: str) -> ScowError:
    """The error for a weight that no disk of this host would heed."""
    return Unsupported(
        f"cannot set '{write.file}' of cgroup '{path}' to '{write.value}': "
        "no disk of this host shares its time by weight",
        hint="choose bfq in /sys/block/DISK/queue/scheduler, or limit rates instead of weights",
    )
