"""Which devices a cgroup may use: the rule model, and cgroup v1's device list.

The model is the specification's ordered list, read bit by bit: for each of read, write and mknod
the *last* rule that names the device decides, and without one the answer is no. `bpf` turns the
same model into a program for v2. What must not be here: default rules (runtime/security) and
system calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scow.cgroups.resources import DeviceRule
from scow.native.errors import InvalidArgument, Unsupported

# The kernel's own bits (DEVCG_ACC_*, linux/device_cgroup.h and uapi/linux/bpf.h).
MKNOD, READ, WRITE = 1, 2, 4
ALL_ACCESS = MKNOD | READ | WRITE
_BITS = {"m": MKNOD, "r": READ, "w": WRITE}
_TEXT = {bits: "".join(c for c in "rwm" if bits & _BITS[c]) for bits in range(8)}
# dev_t has 12 bits of major and 20 of minor (MAJOR and MINOR, linux/kdev_t.h).
_MAX_MAJOR, _MAX_MINOR = 2**12 - 1, 2**20 - 1
# Far above any real list; a bound for the closure below and for the v2 program.
MAX_RULES = 1024

ANY = -1


class Rule(NamedTuple):
    """A checked rule: `kind` is `b` or `c`, numbers are -1 for any, `bits` a mask."""

    allow: bool
    kind: str
    major: int
    minor: int
    bits: int

    def covers(self, other: Rule) -> bool:
        """Whether every device of `other` is one of ours (accesses aside)."""
        return (
            self.kind == other.kind
            and self.major in (ANY, other.major)
            and self.minor in (ANY, other.minor)
        )

    def meets(self, other: Rule) -> bool:
        """Whether some device is named by both."""
        return (
            self.kind == other.kind
            and (self.major == other.major or ANY in (self.major, other.major))
            and (self.minor == other.minor or ANY in (self.minor, other.minor))
        )

    def line(self) -> str:
        """The form that devices.allow takes."""
        major = "*" if self.major == ANY else str(self.major)
        minor = "*" if self.minor == ANY else str(self.minor)
        return f"{self.kind} {major}:{minor} {_TEXT[self.bits]}"


class DeviceList(NamedTuple):
    """What a v1 cgroup holds: an answer for all devices, and its exceptions."""

    allow_all: bool
    exceptions: tuple[Rule, ...]


def check_rules(rules: Iterable[DeviceRule]) -> list[Rule]:
    """Check each rule and split `a` into block and character; raises InvalidArgument."""
    checked: list[Rule] = []
    for rule in rules:
        kind = rule.type or "a"
        if kind not in ("a", "b", "c", "u"):
            raise InvalidArgument(f"device rule type '{kind}' is not one of a, b, c, u")
        text = "rwm" if rule.access is None else rule.access
        bits = 0
        for char in text:
            if char not in _BITS:
                raise InvalidArgument(f"device access '{text}' is not made of r, w and m")
            bits |= _BITS[char]
        if not bits:
            raise InvalidArgument("device rule without any access")
        major = _number("major", rule.major, _MAX_MAJOR)
        minor = _number("minor", rule.minor, _MAX_MINOR)
        kinds = ("b", "c") if kind == "a" else ("c" if kind == "u" else kind,)
        checked.extend(Rule(rule.allow, each, major, minor, bits) for each in kinds)
    if len(checked) > MAX_RULES:
        raise InvalidArgument(f"more than {MAX_RULES} device rules")
    return checked


def _number(what: str, value: int | None, highest: int) -> int:
    if value is None or value == ANY:
        return ANY
    if not 0 <= value <= highest:
        raise InvalidArgument(f"device {what} '{value}' is not between 0 and {highest}")
    return value


def is_allowed(rules: Sequence[Rule], kind: str, major: int, minor: int, bits: int) -> bool:
    """The model itself, for one access; the tests hold both back ends against it."""
    wanted = Rule(True, kind, major, minor, bits)
    for rule in reversed(rules):
        if rule.covers(wanted) and rule.bits & bits:
            if not rule.allow:
                return False
            bits &= ~rule.bits
            if not bits:
                return True
    return False


def device_list(rules: Sequence[Rule]) -> DeviceList:
    """The v1 list with the meaning of `rules`.

    Raises Unsupported when v1 cannot say it: a denied device inside an allowed range, because the
    v1 list has one answer and exceptions to it, and no exceptions to those.
    """
    allow_all = False
    seen_all: dict[str, bool] = {}
    kept: dict[tuple[str, int, int], int] = {}
    for rule in rules:
        if rule.major == ANY and rule.minor == ANY and rule.bits == ALL_ACCESS:
            # Complete for one kind; for both kinds it is the answer for all devices.
            seen_all[rule.kind] = rule.allow
            if len(seen_all) == 2 and len(set(seen_all.values())) == 1:
                allow_all, kept, seen_all = rule.allow, {}, {}
                continue
        else:
            seen_all.pop(rule.kind, None)
        if rule.allow == allow_all:
            _subtract(kept, rule)
        else:
            key = (rule.kind, rule.major, rule.minor)
            kept[key] = kept.get(key, 0) | rule.bits
    if not allow_all:
        _close_over_accesses(kept)
    exceptions = tuple(Rule(not allow_all, *key, bits) for key, bits in kept.items())
    return DeviceList(allow_all, exceptions)


def _subtract(kept: dict[tuple[str, int, int], int], rule: Rule) -> None:
    for key, bits in list(kept.items()):
        other = Rule(not rule.allow, *key, bits)
        if not bits & rule.bits or not rule.meets(other):
            continue
        if not rule.covers(other):
            word = "allow" if rule.allow else "deny"
            raise Unsupported(
                f"cgroup v1 cannot {word} '{rule.line()}' inside '{other.line()}'",
                hint="list the single devices instead of the range, or use cgroup v2",
            )
        left = bits & ~rule.bits
        if left:
            kept[key] = left
        else:
            del kept[key]


def _close_over_accesses(kept: dict[tuple[str, int, int], int]) -> None:
    """Join accesses that two exceptions give together.

    The kernel allows an open for read and write only when *one* exception has both
    (match_exception, security/device_cgroup.c), while rules add up in the model.
    """
    half = [key for key, bits in kept.items() if (bits & (READ | WRITE)) in (READ, WRITE)]
    for first in half:
        for second in list(kept):
            one, two = Rule(True, *first, kept[first]), Rule(True, *second, kept[second])
            if first == second or not one.meets(two):
                continue
            major = max(one.major, two.major)
            minor = max(one.minor, two.minor)
            key = (first[0], major, minor)
            kept[key] = kept.get(key, 0) | one.bits | two.bits


def parse_device_list(text: str) -> DeviceList:
    """Read devices.list. With `a *:* rwm` the kernel does not show the exceptions."""
    found: list[Rule] = []
    for line in text.splitlines():
        kind, numbers, access = line.split(" ")
        if kind == "a":
            return DeviceList(True, ())
        major, minor = (ANY if n == "*" else int(n) for n in numbers.split(":"))
        bits = sum(_BITS[char] for char in access)
        found.append(Rule(True, kind, major, minor, bits))
    return DeviceList(False, tuple(found))


def v1_writes(wanted: DeviceList, current: DeviceList | None = None) -> list[tuple[str, str]]:
    """The (file, line) writes that lead to `wanted`; `current` None means a new cgroup.

    On a live list only the difference is written, additions first: writing `a` to devices.deny
    would cut a running container off from all its devices for a moment.
    """
    if current is None or current.allow_all or wanted.allow_all:
        if wanted.allow_all and current is not None and current.allow_all and not wanted.exceptions:
            return []
        first = ("devices.allow" if wanted.allow_all else "devices.deny", "a")
        name = "devices.deny" if wanted.allow_all else "devices.allow"
        return [first, *((name, rule.line()) for rule in wanted.exceptions)]
    old = {rule[1:4]: rule for rule in current.exceptions}
    new = {rule[1:4]: rule for rule in wanted.exceptions}
    writes: list[tuple[str, str]] = []
    for key, rule in new.items():
        add = rule.bits & ~(old[key].bits if key in old else 0)
        if add:
            writes.append(("devices.allow", rule._replace(bits=add).line()))
    for key, rule in old.items():
        drop = rule.bits & ~(new[key].bits if key in new else 0)
        if drop:
            writes.append(("devices.deny", rule._replace(bits=drop).line()))
    return writes
