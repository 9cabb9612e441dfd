"""Limits between CRI's LinuxContainerResources and ours. Zero and empty are "not set" in both ways."""

from __future__ import annotations

import msgspec

from scow.cri.api.message import Message
from scow.cri.options import Limits
from scow.cri.records import Plain
from scow.native.errors import InvalidArgument


def limits_of(resources: Message | None, *, pids: int | None = None) -> Limits:
    """Read limits; swap that is not given is none beyond memory, as kubelets expect."""
    if resources is None:
        return Limits(pids=pids)
    memory = resources.memory_limit_in_bytes or None
    swap = resources.memory_swap_limit_in_bytes or None
    for name in ("memory_limit_in_bytes", "memory_swap_limit_in_bytes", "cpu_quota"):
        if getattr(resources, name) < -1:
            raise InvalidArgument(f"{name} is {getattr(resources, name)}: -1 is no limit")
    for name in ("cpu_period", "cpu_shares"):
        if getattr(resources, name) < 0:
            raise InvalidArgument(f"{name} is {getattr(resources, name)}: it is a number from 0")
    if memory == -1:
        memory = None
    if swap is not None and memory is None:
        swap = None
    if swap is not None and memory is not None and 0 <= swap < memory:
        raise InvalidArgument(
            f"memory_swap_limit_in_bytes of {swap} is less than memory_limit_in_bytes of {memory}: "
            "it counts memory and swap together"
        )
    return Limits(
        memory_bytes=memory,
        memory_swap_bytes=swap if swap is not None else memory,
        cpu_shares=resources.cpu_shares or None,
        cpu_period_us=resources.cpu_period or None,
        cpu_quota_us=resources.cpu_quota or None,
        cpuset_cpus=resources.cpuset_cpus or None,
        cpuset_mems=resources.cpuset_mems or None,
        pids=pids,
        hugepages=tuple((item.page_size, item.limit) for item in resources.hugepage_limits),
        unified=dict(resources.unified),
    )


def plain(message: Message | None) -> Plain:
    """A message as it came, to be told back."""
    return {} if message is None else dict(message.to_dict())


def sum_limits(resources: Message | None, overhead: Message | None) -> Limits:
    """The limits of a pod: what its containers get together, and what the pod itself costs.

    No limit on one side is no limit on the sum.
    """
    first, second = limits_of(resources, pids=-1), limits_of(overhead, pids=-1)
    if overhead is None:
        return first
    if resources is None:
        return Limits(pids=-1)  # an overhead alone says nothing of what the containers may take
    memory = _sum(first.memory_bytes, second.memory_bytes)
    swap = _sum(first.memory_swap_bytes, second.memory_swap_bytes)
    return msgspec.structs.replace(
        first,
        memory_bytes=memory,
        memory_swap_bytes=swap if memory else None,
        cpu_shares=_sum(first.cpu_shares, second.cpu_shares or 0),
        cpu_quota_us=_sum(first.cpu_quota_us, second.cpu_quota_us or 0),
    )


def _sum(first: int | None, second: int | None) -> int | None:
    if not first or first < 0:
        return first
    return first + (second or 0)


def updated(old: Limits, new: Limits) -> Limits:
    """`old` with what `new` sets; the rest stays."""
    changes = {
        name: value
        for name in Limits.__struct_fields__
        if (value := getattr(new, name)) not in (None, (), {})
    }
    return msgspec.structs.replace(old, **changes)
