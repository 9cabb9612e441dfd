"""Seccomp profiles: reading them (OCI and Docker form) and compiling them to BPF.

What belongs here: the profile's meaning and the program, as bytes for the plan's LoadSeccomp.
What must not: loading it (native/), and the numbers of system calls (`syscalls_x86_64`).

The meaning follows libseccomp, which every other runtime uses, where it is known:
- a rule without arguments beats all rules with arguments for the same call; of several such the
  first listed counts, likewise of rules with arguments that all match;
- rules whose action is the default action say nothing;
- two conditions on the same argument in one rule are alternatives, on different ones all must hold;
- names that this build does not know are skipped.
Calls newer than every call that the profile names give ENOSYS, not the default action (unless
that lets calls through): libc tries new calls first and falls back on ENOSYS only.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from scow.native.errors import InvalidArgument, ResourceExhausted, Unsupported
from scow.runtime.seccomp_bpf import (
    COMPARISONS,
    JEQ,
    JGE,
    LOAD,
    Insn,
    branch_code,
    choose,
    returning,
)

PROFILE_LIMIT = 1 << 20
# linux/bpf_common.h: BPF_MAXINSNS, the kernel's limit for one filter.
MAX_INSTRUCTIONS = 4096
# Changes whenever the compiler's output changes, so that cached programs of old ones are not used.
_VERSION = b"scow seccomp 2"

# uapi/linux/seccomp.h
_KILL_PROCESS, _KILL_THREAD, _TRAP = 0x80000000, 0x00000000, 0x00030000
_ERRNO, _TRACE, _LOG, _ALLOW = 0x00050000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000
_NOTIFY = 0x7FC00000
_ACTIONS = {
    "SCMP_ACT_KILL": _KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": _KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
    "SCMP_ACT_TRAP": _TRAP,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_NOTIFY": _NOTIFY,
    "SCMP_ACT_LOG": _LOG,
    "SCMP_ACT_ALLOW": _ALLOW,
}
_WITH_NUMBER = (_ERRNO, _TRACE)
FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_NEW_LISTENER, FLAG_WAIT_KILLABLE_RECV = 2, 4, 8, 32
_FLAGS = {
    # A container's init has one thread when it loads the filter: nothing to synchronise.
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": FLAG_WAIT_KILLABLE_RECV,
}

# config-linux.md: those that a profile may name; code for others than ours is not made.
_ARCHITECTURES = (
    "X86 X86_64 X32 ARM AARCH64 LOONGARCH64 M68K MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 "
    "MIPSEL64N32 PPC PPC64 PPC64LE S390 S390X PARISC PARISC64 RISCV64 SH SHEB NATIVE"
)
# uapi/linux/audit.h; struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}, little endian.
_AUDIT_X86_64, _AUDIT_I386 = 0xC000003E, 0x40000003
_OFFSET_NR, _OFFSET_ARCH = 0, 4
_X32_BIT = 0x40000000


class Argument(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One condition on an argument of a call."""

    index: int
    value: int
    op: str
    value_two: int = 0


class Conditions(msgspec.Struct, frozen=True, rename="camel"):
    """When a rule of a Docker profile counts (includes) or does not (excludes)."""

    caps: tuple[str, ...] | None = None
    arches: tuple[str, ...] | None = None
    min_kernel: str = ""


class Rule(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What happens to the named calls."""

    action: str
    names: tuple[str, ...] | None = None
    name: str = ""
    errno_ret: int | None = None
    args: tuple[Argument, ...] | None = None
    includes: Conditions | None = None
    excludes: Conditions | None = None


class Architecture(msgspec.Struct, frozen=True, rename="camel"):
    """An architecture of a Docker profile, with those that run beside it."""

    architecture: str
    sub_architectures: tuple[str, ...] | None = None


class SeccompProfile(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The OCI `linux.seccomp` object, with what Docker's profile files add."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] | None = None
    arch_map: tuple[Architecture, ...] | None = None
    flags: tuple[str, ...] | None = None
    syscalls: tuple[Rule, ...] | None = None
    listener_path: str = ""
    listener_metadata: str = ""


class Filter(NamedTuple):
    """What the kernel gets: a sock_filter array, and the flags of seccomp(2)."""

    program: bytes
    flags: int


def default_profile() -> bytes:
    """The profile that containers get without another one being asked for."""
    with open(os.path.join(os.path.dirname(__file__), "seccomp_default.json"), "rb") as file:
        return file.read()


def parse_profile(document: bytes) -> SeccompProfile:
    """Read a profile. Raises InvalidArgument that names the property."""
    if len(document) > PROFILE_LIMIT:
        raise InvalidArgument(f"seccomp profile is larger than {PROFILE_LIMIT} bytes")
    if not document.strip():
        raise InvalidArgument(
            "seccomp profile is empty", hint="use seccomp=unconfined to run without a filter"
        )
    try:
        return msgspec.json.decode(document, type=SeccompProfile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"cannot read the seccomp profile: {error}") from error


def compile_profile(
    profile: SeccompProfile | bytes, *, capabilities: frozenset[str], arch: str = "x86_64"
) -> bytes:
    """The program for a container that holds `capabilities` (with or without `CAP_`)."""
    return compile_filter(profile, capabilities=capabilities, arch=arch).program


def compile_filter(
    profile: SeccompProfile | bytes, *, capabilities: frozenset[str], arch: str = "x86_64"
) -> Filter:
    """Program and flags. Raises InvalidArgument, or Unsupported for what scow does not do."""
    if arch != "x86_64":
        raise Unsupported(f"seccomp filters for '{arch}' are not supported")
    if isinstance(profile, bytes):
        profile = parse_profile(profile)
    capabilities = frozenset(name.upper().removeprefix("CAP_") for name in capabilities)
    program = _Compiler(profile, capabilities).program()
    if len(program) > MAX_INSTRUCTIONS * 8:
        raise ResourceExhausted(
            f"seccomp profile needs {len(program) // 8} instructions, "
            f"the kernel takes {MAX_INSTRUCTIONS}"
        )
    return Filter(program, _load_flags(profile, _asks_agent(profile, capabilities)))


def cached_filter(cache_dir: str, profile: bytes, capabilities: frozenset[str]) -> Filter:
    """Like `compile_filter`, keeping the result in `cache_dir` by the content of what is asked.

    `cache_dir` must be writable by scow alone: what lies there is loaded as it is. A cache that
    cannot be written costs time, nothing else.
    """
    path = os.path.join(cache_dir, _cache_key(profile, capabilities))
    try:
        with open(path, "rb") as file:
            stored = file.read(8 * MAX_INSTRUCTIONS + 9)
        if len(stored) > 8 and len(stored) % 8 == 0:
            return Filter(stored[8:], struct.unpack_from("<Q", stored)[0])
    except OSError:
        pass  # not there yet, or not readable: compile
    made = compile_filter(profile, capabilities=capabilities)
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(cache_dir, 0o700, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(struct.pack("<Q", made.flags) + made.program)
        os.rename(temporary, path)
    except OSError:
        pass  # see above
    return made


def _cache_key(profile: bytes, capabilities: frozenset[str]) -> str:
    try:
        # The C module itself: hashlib would load OpenSSL first, 3 ms at every start.
        from _blake2 import blake2b
    except ImportError:
        from hashlib import blake2b

    key = blake2b(_VERSION, digest_size=20)
    for part in (os.uname().release.encode(), ",".join(sorted(capabilities)).encode(), profile):
        key.update(len(part).to_bytes(8, "little") + part)
    return f"{key.hexdigest()}.bpf"


def _load_flags(profile: SeccompProfile, asks_agent: bool) -> int:
    # As runc does: without SPEC_ALLOW the kernel turns speculation mitigations on for every filtered
    # process, which costs much and which 5.16 stopped doing by itself.
    flags = FLAG_SPEC_ALLOW if profile.flags is None else 0
    for name in profile.flags or ():
        if name not in _FLAGS:
            raise Unsupported(f"seccomp flag '{name}' is not supported")
        flags |= _FLAGS[name]
    if asks_agent:
        return flags | FLAG_NEW_LISTENER
    # seccomp(2) takes it together with a listener only; without one it has nothing to say.
    return flags & ~FLAG_WAIT_KILLABLE_RECV


def _asks_agent(profile: SeccompProfile, capabilities: frozenset[str]) -> bool:
    """Whether some call is an agent's to decide (SCMP_ACT_NOTIFY); checks what that needs."""
    if profile.listener_metadata and not profile.listener_path:
        raise InvalidArgument("seccomp listenerMetadata is set, but listenerPath is not")
    if profile.default_action == "SCMP_ACT_NOTIFY":
        raise InvalidArgument("seccomp defaultAction cannot be 'SCMP_ACT_NOTIFY'")
    asked = [
        rule
        for rule in profile.syscalls or ()
        if rule.action == "SCMP_ACT_NOTIFY" and rule_counts(rule, capabilities)
    ]
    # The descriptor that the agent needs is announced by this very call.
    if any("write" in rule_names(rule) for rule in asked):
        raise InvalidArgument("seccomp action 'SCMP_ACT_NOTIFY' cannot be used for 'write'")
    if asked and not profile.listener_path:
        raise InvalidArgument("seccomp action 'SCMP_ACT_NOTIFY' needs listenerPath")
    return bool(asked)


# --- meaning --------------------------------------------------------------------------------------


def _action(name: str, number: int | None, default_number: int = errno.EPERM) -> int:
    if name not in _ACTIONS:
        raise InvalidArgument(f"seccomp action '{name}' is unknown")
    action = _ACTIONS[name]
    if number is not None and action not in _WITH_NUMBER:
        raise InvalidArgument(f"seccomp action '{name}' takes no errnoRet")
    if action not in _WITH_NUMBER:
        return action
    number = default_number if number is None else number
    # The kernel has 16 bits for it and caps errors at MAX_ERRNO.
    highest = 4095 if action == _ERRNO else 0xFFFF
    if not 0 <= number <= highest:
        raise InvalidArgument(f"seccomp errnoRet '{number}' is not between 0 and {highest}")
    return action | number


class Branch(NamedTuple):
    """One alternative for a call: all of `arguments` hold -> `action`."""

    arguments: tuple[Argument, ...]
    action: int


# What happens to one call: branches in order; a branch without arguments is final.
Handler = tuple[Branch, ...]


def handlers(
    profile: SeccompProfile, capabilities: frozenset[str], numbers: dict[str, int]
) -> dict[int, Handler]:
    """Call number -> what happens; calls of the default action are left out."""
    default = _action(profile.default_action, profile.default_errno_ret)
    found: dict[int, list[Branch]] = {}
    for rule in profile.syscalls or ():
        branches = _branches(rule, default)
        if not branches or not rule_counts(rule, capabilities):
            continue
        for name in rule_names(rule):
            number = numbers.get(name)
            if number is not None:
                found.setdefault(number, []).extend(branches)
    return {number: _settle(branches) for number, branches in found.items()}


def rule_names(rule: Rule) -> tuple[str, ...]:
    """The calls that a rule names, in either form."""
    return (*(rule.names or ()), *((rule.name,) if rule.name else ()))


def _settle(branches: Sequence[Branch]) -> Handler:
    final = next((branch for branch in branches if not branch.arguments), None)
    return (final,) if final is not None else tuple(dict.fromkeys(branches))


def _branches(rule: Rule, default: int) -> list[Branch]:
    action = _action(rule.action, rule.errno_ret)
    arguments = rule.args or ()
    for argument in arguments:
        if not 0 <= argument.index <= 5:
            raise InvalidArgument(f"seccomp argument index '{argument.index}' is not 0 to 5")
        if argument.op not in COMPARISONS:
            raise InvalidArgument(f"seccomp operator '{argument.op}' is unknown")
        for value in (argument.value, argument.value_two):
            if not 0 <= value < 2**64:
                raise InvalidArgument(f"seccomp value '{value}' is not a 64-bit number")
    if action == default:
        return []
    if len({argument.index for argument in arguments}) < len(arguments):
        return [Branch((argument,), action) for argument in arguments]
    return [Branch(arguments, action)]


def rule_counts(rule: Rule, capabilities: frozenset[str]) -> bool:
    """Whether the conditions of a rule hold on this host, for a container with these capabilities."""
    includes, excludes = rule.includes, rule.excludes
    if includes is not None:
        if not capabilities.issuperset(_bare(includes.caps)):
            return False
        if includes.arches and not _is_ours(includes.arches):
            return False
        if includes.min_kernel and not _kernel_has(includes.min_kernel):
            return False
    if excludes is not None:
        if capabilities.intersection(_bare(excludes.caps)):
            return False
        if excludes.arches and _is_ours(excludes.arches):
            return False
        if excludes.min_kernel and _kernel_has(excludes.min_kernel):
            return False
    return True


def _bare(names: Iterable[str] | None) -> set[str]:
    return {name.upper().removeprefix("CAP_") for name in names or ()}


def _is_ours(arches: Iterable[str]) -> bool:
    return not {"amd64", "x86_64", "SCMP_ARCH_X86_64"}.isdisjoint(arches)


def _kernel_has(wanted: str) -> bool:
    def numbers(text: str) -> list[int]:
        words = text.split("-")[0].split(".")[:2]
        return [int(word) if word.isdigit() else 0 for word in words]

    return numbers(os.uname().release) >= numbers(wanted)


# --- program --------------------------------------------------------------------------------------


class _Compiler:
    """One profile for one set of capabilities."""

    def __init__(self, profile: SeccompProfile, capabilities: frozenset[str]) -> None:
        self._profile = profile
        self._capabilities = capabilities
        self._default = _action(profile.default_action, profile.default_errno_ret)

    def program(self) -> bytes:
        """Architecture first: the numbers mean nothing before it is known."""
        from scow.runtime import syscalls_x86_64

        native = self._section(syscalls_x86_64.x86_64())
        # x32 calls come with the x86_64 architecture and a bit in the number. No libc of a
        # distribution uses them, and a filter that forgets them can be walked around (seccomp(2)).
        native = choose(JGE, _X32_BIT, returning(_ERRNO | errno.ENOSYS), native)
        native = [(LOAD, 0, 0, _OFFSET_NR), *native]
        other = returning(_KILL_PROCESS)
        if self._has_i386():
            section = self._section(syscalls_x86_64.i386())
            other = choose(JEQ, _AUDIT_I386, [(LOAD, 0, 0, _OFFSET_NR), *section], other)
        code = [(LOAD, 0, 0, _OFFSET_ARCH), *choose(JEQ, _AUDIT_X86_64, native, other)]
        return b"".join(struct.pack("<HBBI", *insn) for insn in code)

    def _has_i386(self) -> bool:
        names = set(self._profile.architectures or ())
        if unknown := names - {f"SCMP_ARCH_{name}" for name in _ARCHITECTURES.split()}:
            raise InvalidArgument(f"unknown seccomp architectures: {sorted(unknown)}")
        for item in self._profile.arch_map or ():
            if item.architecture == "SCMP_ARCH_X86_64":
                names.update(item.sub_architectures or ())
        return "SCMP_ARCH_X86" in names

    def _section(self, numbers: dict[str, int]) -> list[Insn]:
        """The search tree over the call numbers of one architecture."""
        default: Handler = (Branch((), self._default),)
        wanted = handlers(self._profile, self._capabilities, numbers)
        starts: list[tuple[int, Handler]] = [(0, default)]
        following = 0
        for number in sorted(wanted):
            if number != following:
                _extend(starts, following, default)
            _extend(starts, number, wanted[number])
            following = number + 1
        _extend(starts, following, default)
        newest = self._newest(numbers)
        if newest is not None:
            _extend(starts, newest + 1, (Branch((), _ERRNO | errno.ENOSYS),))
        return self._tree(starts)

    def _newest(self, numbers: dict[str, int]) -> int | None:
        """The newest call the profile names, also in rules that do not count here."""
        if self._default & 0xFFFF0000 in (_ALLOW, _LOG, _TRACE):
            return None
        rules = self._profile.syscalls or ()
        known = [numbers[name] for rule in rules for name in rule_names(rule) if name in numbers]
        return max(known, default=None)

    def _tree(self, starts: list[tuple[int, Handler]]) -> list[Insn]:
        if len(starts) == 1:
            return self._leaf(starts[0][1])
        middle = len(starts) // 2
        low, high = self._tree(starts[:middle]), self._tree(starts[middle:])
        return choose(JGE, starts[middle][0], high, low)

    def _leaf(self, handler: Handler) -> list[Insn]:
        code: list[Insn] = []
        for branch in handler:
            if not branch.arguments:
                return code + returning(branch.action)
            code += branch_code(branch)
        return code + returning(self._default)


def _extend(starts: list[tuple[int, Handler]], number: int, handler: Handler) -> None:
    """Begin a new range at `number` unless the one before does the same."""
    if starts[-1][0] == number:
        starts.pop()
    if not starts or starts[-1][1] != handler:
        starts.append((number, handler))
