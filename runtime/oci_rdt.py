"""linux.intelRdt: groups of the resctrl file system, for shares of caches and memory bandwidth.

Linux' Documentation/filesystems/resctrl.rst has the files, runtime-spec config-linux.md the rules.
Imported only when a configuration asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from scow.native.errors import InvalidArgument, ScowError, Unsupported
from scow.runtime.oci_state import ContainerDir
from scow.runtime.spec import IntelRdt

RECORD = "rdt"  # in the container's directory: the groups that are its own, one path a line
_NAME_LIMIT = 255


class Groups(msgspec.Struct, frozen=True):
    """Where a container's processes go."""

    control: str
    monitor: str = ""
    own: tuple[str, ...] = ()
    """Those that go with the container. A group with a closID stays: others may be in it by then."""


def mount_point() -> str:
    """Where resctrl is mounted. Unsupported when it is not."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if right.split(" ", 1)[0] == "resctrl":
                return left.split()[4]
    raise Unsupported("intelRdt is specified in config, but no resctrl file system is mounted")


def groups_of(intel: IntelRdt, name: str, top: str) -> Groups:
    """The groups of a container called `name`. InvalidArgument for what the specification forbids."""
    clos = intel.clos_id
    bad = clos in (".", "..") or "/" in clos or "\n" in clos or len(clos) > _NAME_LIMIT
    if bad and clos != "/":
        raise InvalidArgument(f"invalid closID '{clos[:64]}'")
    if intel.mem_bw_schema and not intel.mem_bw_schema.startswith("MB:"):
        raise InvalidArgument("memBwSchema must start with 'MB:'")
    if "\n" in intel.mem_bw_schema:
        raise InvalidArgument("memBwSchema must not contain newlines")
    control = top if clos == "/" else f"{top}/{clos or name}"
    monitor = f"{control}/mon_groups/{name}" if intel.enable_monitoring and clos else ""
    own = (() if clos else (control,)) + ((monitor,) if monitor else ())
    return Groups(control, monitor, own)


def schema_text(intel: IntelRdt) -> str:
    """What is written to `schemata`, in the order that lets the later win."""
    lines = intel.l3_cache_schema.split("\n") if intel.l3_cache_schema else []
    if intel.mem_bw_schema:
        lines = [line for line in lines if not line.startswith("MB:")] + [intel.mem_bw_schema]
    lines += intel.schemata
    return "".join(f"{line}\n" for line in lines if line)


def prepare(
    intel: IntelRdt,
    directory: ContainerDir,
    top: str,
    undo: Callable[[Callable[[], None]], object],
) -> Groups:
    """Make the groups and write their schemata; what is made is told to `undo` and to `delete`."""
    groups = groups_of(intel, directory.name, top)
    _check_monitoring(intel, top)
    text = schema_text(intel)
    exists = os.path.isdir(groups.control)
    if intel.clos_id and not text and not exists:
        raise ScowError(f"intelRdt: there is no group '{groups.control}', and no schema to make it")
    if intel.clos_id and exists:
        _check_same(intel, groups.control)
        text = "".join(f"{line}\n" for line in intel.schemata)  # the others are there already
    directory.write(RECORD, "\n".join(groups.own).encode())
    for path, is_new in ((groups.control, not exists), (groups.monitor, True)):
        if path and is_new:
            _make(path)
            undo(lambda path=path: _remove(path))  # type: ignore[misc]  # bound now, not when it runs
    if text:
        _write(f"{groups.control}/schemata", text)
    return groups


def join(groups: Groups, pid: int) -> None:
    """Put a process, and all that it forks later, into the groups."""
    _write(f"{groups.control}/tasks", str(pid))
    if groups.monitor:
        _write(f"{groups.monitor}/tasks", str(pid))


def remove_own(directory: ContainerDir) -> None:
    """Remove what was made for a container; its processes, if any, fall back to the group above."""
    with open(f"{directory.path}/{RECORD}", encoding="utf-8", errors="surrogateescape") as file:
        for path in reversed(file.read().split("\n")):
            if path:
                _remove(path)


def update(intel: IntelRdt, name: str, top: str, l3_cache: str, mem_bw: str) -> None:
    """Change the schemata of a container that has groups."""
    changed = IntelRdt(intel.clos_id, l3_cache, mem_bw)
    _write(f"{groups_of(changed, name, top).control}/schemata", schema_text(changed))


def _check_monitoring(intel: IntelRdt, top: str) -> None:
    features = {"llc_occupancy"} if intel.enable_cmt else set[str]()
    if intel.enable_mbm:
        features |= {"mbm_total_bytes", "mbm_local_bytes"}
    if not (features or intel.enable_monitoring):
        return
    try:
        with open(f"{top}/info/L3_MON/mon_features", encoding="ascii") as file:
            found = set(file.read().split())
    except FileNotFoundError:
        raise Unsupported("intelRdt: this processor cannot monitor its caches") from None
    if features and not features & found:
        raise Unsupported(f"intelRdt: this processor cannot monitor {', '.join(sorted(features))}")


def _check_same(intel: IntelRdt, control: str) -> None:
    """A group that is there is shared: it must be what the configuration says it is."""
    wanted = _values(schema_text(IntelRdt("", intel.l3_cache_schema, intel.mem_bw_schema)))
    if not wanted:
        return
    with open(f"{control}/schemata", encoding="ascii") as file:
        there = _values(file.read())
    different = sorted(key for key, value in wanted.items() if there.get(key) != value)
    if different:
        resource, domain = different[0]
        raise ScowError(
            f"intelRdt: group '{control}' has another schema for {resource}, domain {domain}"
        )


def _values(text: str) -> dict[tuple[str, str], str]:
    """Resource and domain -> value, without what the kernel pads with."""
    found: dict[tuple[str, str], str] = {}
    for line in text.split("\n"):
        resource, _, rest = line.strip().partition(":")
        for part in rest.split(";") if rest else ():
            domain, _, value = part.strip().partition("=")
            found[resource, domain.strip()] = value.strip().lower().lstrip("0") or "0"
    return found


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except OSError as error:
        # ENOSPC: the processor has a fixed number of classes.
        raise ScowError(f"intelRdt: cannot make group '{path}': {error.strerror}") from error


def _remove(path: str) -> None:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise ScowError(f"intelRdt: cannot write '{path}': {error.strerror}") from error
