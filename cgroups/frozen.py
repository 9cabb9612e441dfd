"""Whether a cgroup is frozen, asked in the usual places only: for commands that last 10 ms.

What must not be here: writing. Where this does not answer, `cgroup.open_cgroup(...).is_frozen()` does.
"""

from __future__ import annotations

_PLACES = (
    ("/sys/fs/cgroup/freezer", "freezer.state", (b"FROZEN", b"FREEZING")),
    ("/sys/fs/cgroup", "cgroup.freeze", (b"1",)),
)


def is_frozen(path: str) -> bool | None:
    """The answer, or None where neither hierarchy is in its usual place."""
    for top, name, yes in _PLACES:
        try:
            with open(f"{top}/{path}/{name}", "rb") as file:
                return file.read().strip() in yes
        except OSError:
            continue
    return None
