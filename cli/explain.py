"""A plan in plain words: numbered steps, each with what it is for and the call that does it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scow.native.plan import Operation, Plan

WIDTH = 98

# clone(2): what each namespace takes out of sight.
NAMESPACES = (
    (0x00020000, "CLONE_NEWNS", "a mount table of its own"),
    (0x02000000, "CLONE_NEWCGROUP", "a cgroup tree that begins at its own cgroup"),
    (0x04000000, "CLONE_NEWUTS", "a host name of its own"),
    (0x08000000, "CLONE_NEWIPC", "System V IPC and message queues of its own"),
    (0x10000000, "CLONE_NEWUSER", "user ids of its own"),
    (0x20000000, "CLONE_NEWPID", "process ids of its own, where it is number 1"),
    (0x40000000, "CLONE_NEWNET", "network interfaces, addresses and ports of its own"),
)


def explain_plan(plan: Plan, before: list[tuple[str, str]] | None = None) -> str:
    """What is done `before` the plan, and the whole plan; the last line counts the steps."""
    steps = [(call, why[:1].upper() + why[1:]) for call, why in before or []]
    steps.append(_clone_step(plan))
    steps += [_step(op) for op in plan.ops]
    lines = ["What scow asks of the kernel, in this order:", ""]
    width = len(str(len(steps)))
    for number, (call, why) in enumerate(steps, start=1):
        lead = f"{number:>{width}}. "
        blank = " " * len(lead)
        lines += textwrap.wrap(why, WIDTH, initial_indent=lead, subsequent_indent=blank)
        lines += textwrap.wrap(
            call,
            WIDTH,
            initial_indent=blank + "  ",
            subsequent_indent=blank + "    ",
            break_on_hyphens=False,
        )
    lines += [
        "",
        f"{len(steps)} steps. Up to the last one it is scow's own code that runs, the last is the program.",
    ]
    return "\n".join(lines)


def _step(op: Operation) -> tuple[str, str]:
    from scow.cli.format import clean

    why = clean(op.why) or _plain_name(type(op).__name__)
    return clean(op.describe()), why[:1].upper() + why[1:]


def _plain_name(name: str) -> str:
    """`MakeDirectory` as `Make directory`, for a step that gives no reason."""
    words = "".join(" " + c.lower() if c.isupper() else c for c in name)
    return words.strip()


def _clone_step(plan: Plan) -> tuple[str, str]:
    flags = ["CLONE_PIDFD"]
    reasons: list[str] = []
    for bit, name, reason in NAMESPACES:
        if plan.namespaces & bit:
            flags.append(name)
            reasons.append(reason)
    if plan.cgroup_fd is not None:
        flags.append("CLONE_INTO_CGROUP")
    what = "Make the container's first process"
    if reasons:
        what += ", with " + "; ".join(reasons)
    return f"clone3({' | '.join(flags)})", what
