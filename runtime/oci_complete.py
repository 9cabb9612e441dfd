"""What a process gets besides what its configuration says, and what of that cannot be.

What belongs here: defaults and refusals of `process`. What must not: how the kernel is asked (oci_compile).
"""

from __future__ import annotations

import os

import msgspec

from scow.native.errors import InvalidArgument
from scow.native.fs import Root
from scow.runtime.security import CAPABILITY_NAMES, held_capabilities
from scow.runtime.spec import Capabilities, Process, Spec

PASSWD_LIMIT = 10 << 20


def complete(spec: Spec, process: Process, root: Root, umask: int) -> tuple[Process, list[str]]:
    """Check a process and fill in what the runtime adds; also gives warnings."""
    if not process.args:
        raise InvalidArgument("args must not be empty")
    if not process.cwd.startswith("/"):
        raise InvalidArgument("Cwd must be an absolute path")
    if not 0 <= (process.user.umask or 0) <= 0o777:
        raise InvalidArgument(f"invalid umask {process.user.umask}")
    names = [limit.type for limit in process.rlimits]
    if len(names) != len(set(names)):
        raise InvalidArgument("a rlimit is given twice")
    if process.apparmor_profile or process.selinux_label or spec.linux.mount_label:
        from scow.runtime.oci_labels import check_labels

        check_labels(process, spec.linux.mount_label)
    capabilities, warnings = _usable(process.capabilities)
    user = process.user
    if user.umask is None:
        user = msgspec.structs.replace(user, umask=umask)
    changed = msgspec.structs.replace(
        process, capabilities=capabilities, user=user, env=_environment(process, root)
    )
    return changed, warnings


def _usable(asked: Capabilities | None) -> tuple[Capabilities, list[str]]:
    """Those that exist and that we may give; the specification says to warn, not to fail."""
    if asked is None:
        return Capabilities(), []
    held = held_capabilities()
    unknown: set[str] = set()
    sets: dict[str, tuple[str, ...]] = {}
    for field in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        kept: list[str] = []
        for name in getattr(asked, field):
            bare = name.upper().removeprefix("CAP_")
            if bare in held and bare in CAPABILITY_NAMES:
                kept.append(f"CAP_{bare}")
            else:
                unknown.add(name)
        sets[field] = tuple(kept)
    # capset(2): what is effective must be permitted; ambient needs permitted and inheritable.
    permitted, inheritable = set(sets["permitted"]), set(sets["inheritable"])
    if excess := set(sets["effective"]) - permitted:
        raise InvalidArgument(
            f"capabilities that are effective must be permitted: {sorted(excess)}"
        )
    lost = set(sets["ambient"]) - (permitted & inheritable)
    sets["ambient"] = tuple(name for name in sets["ambient"] if name not in lost)
    warnings: list[str] = []
    if unknown:
        warnings.append(f"ignoring unknown or unavailable capabilities: {sorted(unknown)}")
    if lost:
        warnings.append(
            f"ignoring ambient capabilities that are not permitted and inheritable: {sorted(lost)}"
        )
    return Capabilities(**sets), warnings


def _environment(process: Process, root: Root) -> tuple[str, ...]:
    """The last of duplicates wins; HOME comes from the container's own passwd."""
    values: dict[str, str] = {}
    for entry in process.env:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"invalid environment variable: {entry[:128]!r}")
        values.pop(name, None)
        values[name] = value
    if not values.get("HOME"):
        values["HOME"] = _home(root, process.user.uid)
    return tuple(f"{name}={value}" for name, value in values.items())


def _home(root: Root, uid: int) -> str:
    try:
        data = root.read_file("/etc/passwd", PASSWD_LIMIT)
    except OSError:
        return "/"
    for line in data.split(b"\n"):
        row = line.split(b":")
        if len(row) >= 6 and row[2] == str(uid).encode() and row[5]:
            return os.fsdecode(row[5])
    return "/"
