"""A talk with CRIU: one request to `criu swrk` over a socket, and what it asks in between.

The messages are protobuf (CRIU's rpc.proto). Of that format only numbers and strings of bytes are
needed, so it is written and read here. What must not be here: what is asked for (oci_checkpoint).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator

from scow.native import unix
from scow.native.errors import ScowError, Unsupported
from scow.native.fd import OwnedFd

Field = tuple[int, "bool | int | str | bytes"]

# Types of requests and answers (criu_req_type).
DUMP, RESTORE, PRE_DUMP, NOTIFY = 1, 2, 4, 6
# The fields of criu_req and criu_resp, of criu_notify and criu_restore_resp.
_TYPE, _OPTIONS, _NOTIFY_SUCCESS = 1, 2, 3
_SUCCESS, _RESTORED, _NOTIFIED, _ERRNO, _MESSAGE = 2, 4, 5, 7, 9


class Option:
    """The fields of criu_opts that are used."""

    IMAGES = 1
    PID = 2
    LEAVE_RUNNING = 3
    EXT_UNIX = 4
    TCP = 5
    EVASIVE = 6
    SHELL_JOB = 7
    FILE_LOCKS = 8
    LOG_LEVEL = 9
    LOG_FILE = 10
    PAGE_SERVER = 11
    NOTIFY = 12
    ROOT = 13
    PARENT = 14
    TRACK = 15
    DEDUP = 16
    WORK = 17
    MANAGE_CGROUPS = 24
    CGROUP_ROOT = 25
    SIBLING = 26
    INHERIT = 27
    CGROUP_MODE = 34
    EXTERNAL = 37
    EMPTY_NS = 38
    FREEZE = 44
    TIMEOUT = 45
    TCP_IN_FLIGHT = 46
    ORPHAN_PTY = 50
    LSM_PROFILE = 53
    LSM_CONTEXT = 63
    NETWORK_LOCK = 64


_LARGEST = 1 << 20
_SHOWN_ERRORS = 3
_END_S = 10
_SILENT = "it has ended without an answer"
# CRIU looks this way until 4.1 at what Linux has had since 6.13: [vvar] in two parts.
_OLD = "vDSO area bounds"


def encode(fields: list[Field]) -> bytes:
    """A message of these fields, in their order."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, str | bytes):
            data = os.fsencode(value)
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
        else:
            out += _varint(number << 3) + _varint(int(value))
    return bytes(out)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # a negative number is as long as it can be
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes) -> dict[int, int | bytes]:
    """The fields of a message; of a repeated one the last. ValueError when it is none."""
    found: dict[int, int | bytes] = {}
    rest = iter(data)
    for key in rest:
        key = _read(rest, key)
        if key & 7 == 0:
            found[key >> 3] = _read(rest, next(rest))
        elif key & 7 == 2:
            size = _read(rest, next(rest))
            found[key >> 3] = bytes(next(rest) for _ in range(size))
        else:
            raise ValueError(f"unexpected kind {key & 7} of a field")
    return found


def _read(rest: Iterator[int], byte: int) -> int:
    value = shift = 0
    while True:
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        byte, shift = next(rest), shift + 7


def find_criu(name: str) -> str:
    """Where the program is. Unsupported, in words that say what to do, where it is not."""
    path = shutil.which(name or "criu")
    if path is None:
        raise Unsupported(
            f"checkpoint and restore need CRIU: '{name or 'criu'}' is not there",
            hint="install the package 'criu', or name the program with --criu",
        )
    return path


def ask(
    binary: str,
    kind: int,
    options: list[Field],
    *,
    passed: tuple[int, ...],
    prepare: Callable[[], None],
    notified: Callable[[str, int, OwnedFd | None], None],
    log: str,
) -> int:
    """Carry one request out; gives the pid of what was restored, else 0.

    `prepare` runs in CRIU's process before it is CRIU, `notified` here at each of its steps: name, pid
    of the first process, descriptor that came with it. `log` is where it writes; errors quote it.
    """
    ours, theirs = unix.pair()
    with ours, theirs:
        process = subprocess.Popen(
            [binary, "swrk", str(theirs.fileno())],
            pass_fds=(*passed, theirs.fileno()),
            preexec_fn=prepare,
        )
        theirs.close()
        try:
            os.write(ours.fileno(), encode([(_TYPE, kind), (_OPTIONS, encode(options))]))
            return _follow(ours, kind, notified)
        except BrokenPipeError:
            raise _explain(binary, kind, _SILENT, log) from None
        except _Failed as failure:
            raise _explain(binary, kind, str(failure), log) from None
        finally:
            ours.close()
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself when the talk is over; if not, it is stuck."""
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Failed(Exception):
    """What CRIU says of its failure, which is little."""


def _follow(ours: OwnedFd, kind: int, notified: Callable[[str, int, OwnedFd | None], None]) -> int:
    while True:
        try:
            data, fd = unix.receive(ours.fileno(), _LARGEST)
            answer = decode(data)
        except (ValueError, StopIteration):
            raise _Failed("its answer cannot be read") from None
        if not answer:
            raise _Failed(_SILENT)
        if answer.get(_TYPE) == NOTIFY:
            step = decode(_bytes(answer, _NOTIFIED))
            notified(_bytes(step, 1).decode(), _int(step, 2), fd)
            os.write(ours.fileno(), encode([(_TYPE, NOTIFY), (_NOTIFY_SUCCESS, True)]))
            continue
        if not answer.get(_SUCCESS) or answer.get(_TYPE) != kind:
            number = _int(answer, _ERRNO)
            said = _bytes(answer, _MESSAGE).decode(errors="replace")
            raise _Failed(said or (os.strerror(number).lower() if number else "see its log"))
        return _int(decode(_bytes(answer, _RESTORED)), 1)


def _bytes(message: dict[int, int | bytes], number: int) -> bytes:
    value = message.get(number, b"")
    return value if isinstance(value, bytes) else b""


def _int(message: dict[int, int | bytes], number: int) -> int:
    value = message.get(number, 0)
    return value if isinstance(value, int) else 0


def _explain(binary: str, kind: int, said: str, log: str) -> ScowError:
    """Its own errors say more than its answer: from the log, or where it came to none, from a check."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = file.read(_LARGEST).splitlines()
    except FileNotFoundError:
        done = subprocess.run([binary, "check"], capture_output=True, check=False)
        lines = done.stderr.decode(errors="replace").splitlines()
    # The first may be one that it has lived with; what it failed of is told last.
    errors = [re.sub(r"^\([\d.]+\)\s*", "", line) for line in lines if "Error (" in line]
    what = "restore" if kind == RESTORE else "dump"
    text = f"criu failed to {what}: " + ("; ".join(errors[-_SHOWN_ERRORS:]) or said)
    if any(_OLD in line for line in errors):
        return Unsupported(text, hint="from Linux 6.13 on CRIU 4.1 or newer is needed")
    return ScowError(text, hint=f"its log is '{log}'" if os.path.exists(log) else "try: criu check")
