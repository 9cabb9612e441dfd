"""The command line of scow-oci: runc's, without a library that would cost more than the work.

What belongs here: which flags there are, and reading them. A flag may have one dash or two, its value
after a space or `=`, as Go's and GNU's programs have it; they may stand behind operands, except for
those of `exec`, whose operands are another command's line.
"""

from __future__ import annotations

from scow.native.errors import InvalidArgument

Flags = dict[str, str | bool | list[str]]

_TEXT, _SWITCH, _LIST = "text", "switch", "list"


def _table(text: str = "", switch: str = "", many: str = "") -> dict[str, tuple[str, str]]:
    """Every name (also short ones, after a slash) -> (long name, kind)."""
    found: dict[str, tuple[str, str]] = {}
    for names, kind in ((text, _TEXT), (switch, _SWITCH), (many, _LIST)):
        for word in names.split():
            for name in word.split("/"):
                found[name] = (word.split("/")[0], kind)
    return found


GLOBAL = _table(
    "root log log-format rootless criu cgroup-manager log-level",
    "debug systemd-cgroup version/v help/h",
)
_CREATE = "bundle/b console-socket pid-file preserve-fds pidfd-socket config/f"
_CREATE_SWITCHES = "no-pivot no-new-keyring no-subreaper"
_IMAGES = "image-path work-path manage-cgroups-mode"
_IMAGE_SWITCHES = "tcp-established tcp-skip-in-flight ext-unix-sk shell-job lazy-pages file-locks auto-dedup help/h"
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "create": _table(_CREATE, _CREATE_SWITCHES),
    "run": _table(_CREATE, _CREATE_SWITCHES + " detach/d keep"),
    "start": _table(),
    "state": _table("", "all/a"),
    "kill": _table("regex", "all/a"),
    "delete": _table("", "force/f regex"),
    "list": _table("format/f", "quiet/q"),
    "ps": _table("format/f"),
    "pause": _table(),
    "resume": _table(),
    "exec": _table(
        "console-socket process/p cwd user/u pid-file preserve-fds apparmor process-label "
        "pidfd-socket",
        "detach/d tty/t no-new-privs ignore-paused interactive/i no-subreaper",
        "env/e cap/c additional-gids/g cgroup",
    ),
    "update": _table(
        "resources/r blkio-weight cpu-period cpu-quota cpu-burst cpu-rt-period cpu-rt-runtime "
        "cpu-share cpuset-cpus cpuset-mems cpu-idle memory memory-reservation memory-swap "
        "kernel-memory kernel-memory-tcp pids-limit l3-cache-schema mem-bw-schema"
    ),
    "events": _table("interval", "stats"),
    "features": _table(),
    "spec": _table("bundle/b", "rootless"),
    "warm": _table("", "stop"),
    "checkpoint": _table(
        _IMAGES + " parent-path page-server",
        _IMAGE_SWITCHES + " leave-running pre-dump",
        "empty-ns",
    ),
    "restore": _table(
        _IMAGES + " bundle/b console-socket pid-file lsm-profile lsm-mount-context",
        _IMAGE_SWITCHES + " detach/d no-subreaper no-pivot",
        "empty-ns",
    ),
}


def read_flags(
    arguments: list[str], table: dict[str, tuple[str, str]], *, strict_order: bool
) -> tuple[Flags, list[str]]:
    """The flags and the operands; with `strict_order` everything from the first operand on is one."""
    flags: Flags = {}
    operands: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            operands += rest
            break
        if word == "-" or not word.startswith("-"):
            operands.append(word)
            if strict_order:
                operands += rest
                break
            continue
        _read_flag(word, rest, table, flags)
    return flags, operands


def _read_flag(word: str, rest: list[str], table: dict[str, tuple[str, str]], flags: Flags) -> None:
    name, equals, value = word.lstrip("-").partition("=")
    if name not in table and not word.startswith("--") and _are_switches(name, table):
        for letter in name:
            flags[table[letter][0]] = True
        return
    if name not in table:
        raise InvalidArgument(f"flag provided but not defined: -{name}")
    long, kind = table[name]
    if kind == _SWITCH:
        flags[long] = not equals or value.lower() not in ("false", "0", "f")
        return
    if not equals:
        if not rest:
            raise InvalidArgument(f"flag needs an argument: -{name}")
        value = rest.pop(0)
    if kind == _TEXT:
        flags[long] = value
        return
    many = flags.setdefault(long, [])
    assert isinstance(many, list)
    many.append(value)


def _are_switches(name: str, table: dict[str, tuple[str, str]]) -> bool:
    return len(name) > 1 and all(table.get(letter, ("", ""))[1] == _SWITCH for letter in name)


def text(flags: Flags, name: str, default: str = "") -> str:
    """A flag's value."""
    value = flags.get(name, default)
    return value if isinstance(value, str) else default


def texts(flags: Flags, name: str) -> tuple[str, ...]:
    """The values of a flag that may be given several times."""
    value = flags.get(name, ())
    return tuple(value) if isinstance(value, list) else ()


def number(flags: Flags, name: str) -> int | None:
    """A flag's value as a number; None when it is not given."""
    value = text(flags, name)
    if not value:
        return None
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise InvalidArgument(f"invalid value {value[:64]!r} for flag -{name}: parse error")
    return int(value)


def switch(flags: Flags, name: str) -> bool:
    """Whether a switch is on."""
    return flags.get(name) is True


def one_operand(operands: list[str]) -> str:
    """The container's id, where a command takes nothing else."""
    if len(operands) != 1:
        raise InvalidArgument(
            f"takes exactly one argument, the container's id, not {len(operands)}"
        )
    return operands[0]
