"""The device list of cgroup v2: a BPF program, built here and given to the kernel.

Same model as `devices`: the rules are asked from the last to the first, bit by bit. What must not
be here: rules of our own.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from scow.cgroups.devices import ALL_ACCESS, ANY, Rule
from scow.native.errors import InvalidArgument, PermissionDenied, ScowError, Unsupported
from scow.native.fd import OwnedFd

# uapi/linux/bpf.h
_PROG_LOAD, _PROG_ATTACH, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO, _PROG_QUERY = 5, 8, 13, 15, 16
_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_ALLOW_MULTI, _REPLACE = 2, 4
_KINDS = {"b": 1, "c": 2}
# The kernel's limit without CAP_BPF, and far above any real list.
MAX_INSTRUCTIONS = 4096
PROGRAM_NAME = b"scow_devices"

# Opcodes: class | size or operation | source.
_LOAD_WORD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_MOV_K, _MOV_X = 0xB7, 0xBF  # BPF_ALU64
_AND_K, _RSH_K = 0x57, 0x77
_JUMP, _JNE_K, _JEQ_K = 0x05, 0x55, 0x15
_EXIT = 0x95

# Registers: r1 context, r2 type, r3 accesses still asked for, r4 major, r5 minor, r6 scratch.
_Insn = tuple[int, int, int, int, int]


def _pack(insns: Sequence[_Insn]) -> bytes:
    return b"".join(
        struct.pack("<BBhi", op, source << 4 | target, offset, immediate)
        for op, target, source, offset, immediate in insns
    )


def device_program(rules: Sequence[Rule]) -> bytes:
    """The program for checked rules. Raises InvalidArgument when the list is too long.

    Context: struct bpf_cgroup_dev_ctx {u32 access_type = access << 16 | type; u32 major, minor}.
    Returns 1 to allow.
    """
    insns: list[_Insn] = [
        (_LOAD_WORD, 2, 1, 0, 0),
        (_MOV_X, 3, 2, 0, 0),
        (_RSH_K, 3, 0, 0, 16),
        (_AND_K, 2, 0, 0, 0xFFFF),
        (_LOAD_WORD, 4, 1, 4, 0),
        (_LOAD_WORD, 5, 1, 8, 0),
    ]
    for index in range(len(rules) - 1, -1, -1):
        if _is_everything(rules, index):
            # Nothing before it can matter, and the verifier refuses code that is never reached.
            insns += [(_MOV_K, 0, 0, 0, int(rules[index].allow)), (_EXIT, 0, 0, 0, 0)]
            break
        insns += _rule(rules[index])
    else:
        insns += [(_MOV_K, 0, 0, 0, 0), (_EXIT, 0, 0, 0, 0)]
    if len(insns) > MAX_INSTRUCTIONS:
        raise InvalidArgument(
            f"the device rules need {len(insns)} instructions, more than {MAX_INSTRUCTIONS}"
        )
    return _pack(insns)


def _is_everything(rules: Sequence[Rule], index: int) -> bool:
    """Whether the rule and its neighbour are the two halves of an `a *:* rwm` rule."""
    if index == 0:
        return False
    pair = rules[index - 1], rules[index]
    same = pair[0].allow == pair[1].allow and {rule.kind for rule in pair} == {"b", "c"}
    return same and all(
        rule.major == ANY and rule.minor == ANY and rule.bits == ALL_ACCESS for rule in pair
    )


def _rule(rule: Rule) -> list[_Insn]:
    """One rule: tests that skip to the next rule, then its answer."""
    tests = [(2, _KINDS[rule.kind]), (4, rule.major), (5, rule.minor)]
    answer = _answer(rule)
    insns: list[_Insn] = []
    checked = [(register, value) for register, value in tests if value != ANY]
    for position, (register, value) in enumerate(checked):
        skip = len(checked) - position - 1 + len(answer)
        insns.append((_JNE_K, register, 0, skip, value))
    return insns + answer


def _answer(rule: Rule) -> list[_Insn]:
    verdict: list[_Insn] = [(_MOV_K, 0, 0, 0, int(rule.allow)), (_EXIT, 0, 0, 0, 0)]
    if rule.bits == ALL_ACCESS:
        return verdict
    if rule.allow:
        # Take off what is granted; done when nothing is left to ask.
        return [(_AND_K, 3, 0, 0, ~rule.bits & ALL_ACCESS), (_JNE_K, 3, 0, 2, 0), *verdict]
    return [(_MOV_X, 6, 3, 0, 0), (_AND_K, 6, 0, 0, rule.bits), (_JEQ_K, 6, 0, 2, 0), *verdict]


# --- the kernel -----------------------------------------------------------------------------------


def _address(buffer: bytearray) -> int:
    """Where `buffer` is; it must stay referenced for as long as the address is used."""
    # The extension's own runtime, so already loaded: bpf(2) takes pointers inside its attributes.
    import _cffi_backend

    ffi = _cffi_backend.FFI()
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """bpf(2): the result and the attributes as the kernel left them. Raises OSError."""
    from scow.native.sys import bpf

    buffer = bytearray(attributes)
    return bpf(command, buffer), bytes(buffer)


def load_device_program(program: bytes) -> OwnedFd:
    """Load the program; the descriptor keeps it alive until it is attached."""
    instructions, licence = bytearray(program), bytearray(b"Apache-2.0\0")
    # union bpf_attr for BPF_PROG_LOAD, up to prog_name: type, insn_cnt, insns, license,
    # log_level, log_size, log_buf, kern_version, prog_flags, prog_name[16].
    attributes = struct.pack(
        "<IIQQIIQII16s",
        _PROG_TYPE_CGROUP_DEVICE,
        len(program) // 8,
        _address(instructions),
        _address(licence),
        0,
        0,
        0,
        0,
        0,
        PROGRAM_NAME,
    )
    try:
        fd, _ = _bpf(_PROG_LOAD, attributes)
    except OSError as error:
        raise _failure("load", error) from error
    return OwnedFd(fd)


def replace_device_program(cgroup_fd: int, program: bytes) -> None:
    """Put the program on a cgroup in the place of ours that is there, in one step.

    BPF_F_REPLACE (5.6) leaves no moment without a program. ALLOW_MULTI lets others, such as
    systemd's, stay; the kernel asks all of them and each can say no.
    """
    with load_device_program(program) as new:
        old = _attached(cgroup_fd)
        flags = _ALLOW_MULTI | (_REPLACE if old is not None else 0)
        old_fd = old.fileno() if old is not None else 0
        attributes = struct.pack(
            "<IIIII", cgroup_fd, new.fileno(), _ATTACH_CGROUP_DEVICE, flags, old_fd
        )
        try:
            _bpf(_PROG_ATTACH, attributes)
        except OSError as error:
            raise _failure("attach", error) from error
        finally:
            if old is not None:
                old.close()


def attached_program_ids(cgroup_fd: int) -> list[int]:
    """The ids of all device programs on a cgroup itself (not those of its parents)."""
    room = 64
    ids = bytearray(4 * room)
    # BPF_PROG_QUERY: target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt.
    attributes = struct.pack(
        "<IIIIQII", cgroup_fd, _ATTACH_CGROUP_DEVICE, 0, 0, _address(ids), room, 0
    )
    try:
        _, answer = _bpf(_PROG_QUERY, attributes)
    except OSError as error:
        raise _failure("list", error) from error
    count = struct.unpack_from("<I", answer, 24)[0]
    return list(struct.unpack_from(f"<{count}I", ids))


def _attached(cgroup_fd: int) -> OwnedFd | None:
    for program_id in attached_program_ids(cgroup_fd):
        try:
            fd, _ = _bpf(_PROG_GET_FD_BY_ID, struct.pack("<III", program_id, 0, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue  # detached since the query
            raise _failure("open", error) from error
        candidate = OwnedFd(fd)
        if _name(candidate.fileno()) == PROGRAM_NAME:
            return candidate
        candidate.close()
    return None


def _name(program_fd: int) -> bytes:
    info = bytearray(128)
    _bpf(_OBJ_GET_INFO, struct.pack("<IIQ", program_fd, len(info), _address(info)))
    # struct bpf_prog_info: type, id, tag[8], jited_len, xlated_len, 2 pointers, load_time,
    # created_by_uid, nr_map_ids, map_ids, name[16].
    return bytes(info[64:80]).rstrip(b"\0")


def _failure(what: str, error: OSError) -> ScowError:
    code = errno.errorcode.get(error.errno or 0, "?")
    message = f"cannot {what} the device program: {os.strerror(error.errno or 0).lower()} ({code})"
    if error.errno in (errno.EPERM, errno.EACCES):
        return PermissionDenied(message, hint="needs CAP_BPF and CAP_NET_ADMIN, or root")
    return Unsupported(message, hint="the kernel needs CONFIG_CGROUP_BPF and Linux 5.6")
