"""The default profile in a real kernel: a child loads it and tries system calls."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
from collections.abc import Callable

import pytest

from scow.runtime import seccomp, syscalls_x86_64

pytestmark = pytest.mark.root
NUMBERS = syscalls_x86_64.x86_64()
_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER = 38, 1
_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str | int, *args: int) -> int:
    """Do a system call: 0, or the error number."""
    number = NUMBERS[name] if isinstance(name, str) else name
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(value) for value in args))
    return ctypes.get_errno() if result == -1 else 0


def load(program: bytes, flags: int) -> None:
    """seccomp(2) with a struct sock_fprog."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("insns", ctypes.c_char_p)]

    loaded = Program(len(program) // 8, program)
    assert _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert call("seccomp", _SET_MODE_FILTER, flags, ctypes.addressof(loaded)) == 0


def under_filter(work: Callable[[], int], *capabilities: str) -> int:
    """Run `work` in a child under the default profile: its result, or minus a signal."""
    made = seccomp.compile_filter(
        seccomp.default_profile(), capabilities=frozenset(["CHOWN", *capabilities])
    )
    pid = os.fork()
    if pid == 0:
        try:
            load(made.program, made.flags)
            os._exit(work())
        except BaseException:
            os._exit(250)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("getpid", (), 0),
        ("socket", (2, 1, 0), 0),
        ("socket", (38, 5, 0), errno.EPERM),
        ("socket", (2**32 + 38, 5, 0), errno.EPERM),
        ("socket", (40, 1, 0), errno.EPERM),
        ("unshare", (0x20000,), errno.EPERM),
        ("mount", (0, 0, 0, 0, 0), errno.EPERM),
        ("keyctl", (0, 0), errno.EPERM),
        ("io_uring_setup", (1, 0), errno.EPERM),
        ("personality", (0xFFFFFFFF,), 0),
        ("personality", (0x40000,), errno.EPERM),
        ("clone3", (0, 0), errno.ENOSYS),
        (1000, (), errno.ENOSYS),
        (0x40000000 | 39, (), errno.ENOSYS),
    ],
)
def test_calls(name: str | int, args: tuple[int, ...], expected: int) -> None:
    assert under_filter(lambda: call(name, *args)) == expected


def test_a_capability_opens_its_calls() -> None:
    assert under_filter(lambda: call("unshare", 0x4000000)) == errno.EPERM
    assert under_filter(lambda: call("unshare", 0x4000000), "SYS_ADMIN") == 0


def test_an_ordinary_program_runs() -> None:
    def work() -> int:
        os.execv("/bin/sh", ["sh", "-c", "x=$(echo a | cat); test $x = a"])
        return 1

    assert under_filter(work) == 0


def _call_i386(number: int, first: int = 0) -> int:
    """A 32-bit call from 64-bit code: push rbx; mov eax,edi; mov ebx,esi; int 0x80; pop rbx; ret."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("5389f889f3cd805bc3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)(address)
    result = int(function(number, first))
    return -result if result < 0 else 0


def test_32_bit_calls_are_filtered_by_their_own_numbers() -> None:
    numbers = syscalls_x86_64.i386()
    without = under_filter(lambda: _call_i386(numbers["getpid"]))
    if without == -signal.SIGSEGV:
        return  # this kernel has no 32-bit calls at all, so there is no way around
    assert without == 0
    assert under_filter(lambda: _call_i386(numbers["unshare"], 0x20000)) == errno.EPERM
    assert under_filter(lambda: _call_i386(numbers["keyctl"])) == errno.EPERM
    assert under_filter(lambda: _call_i386(900)) == errno.ENOSYS
