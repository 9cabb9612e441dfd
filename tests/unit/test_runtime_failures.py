"""Why a command cannot be executed, told from the files themselves."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from scow.native import plan as p
from scow.native.errors import CommandNotExecutable, CommandNotFound, SetupError
from scow.native.fs import Root
from scow.runtime.failures import explain_failure
from scow.runtime.monitor import Failure

EXECUTE = 34


def elf(machine: int, interpreter: str = "") -> bytes:
    """A 64-bit ELF header with one PT_INTERP."""
    text = interpreter.encode() + b"\0"
    head = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    head += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(text), len(text), 1) + text


def explain(root: Path, command: str, number: int, *ops: p.Operation) -> SetupError:
    plan = p.Plan(ops=(*ops, p.Execute((command,), (b"PATH=/sbin:/bin",))))
    return explain_failure(plan, Failure(EXECUTE, number, len(ops)), Root.at(str(root)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    return tmp_path


def put(root: Path, data: bytes, mode: int = 0o755) -> None:
    path = root / "bin/tool"
    path.write_bytes(data)
    path.chmod(mode)


def test_a_missing_command_says_where_it_was_looked_for(root: Path) -> None:
    error = explain(root, "tool", errno.ENOENT)
    assert isinstance(error, CommandNotFound)
    assert error.exit_code == 127
    assert "in $PATH" in str(error)


def test_a_missing_script_interpreter_is_named(root: Path) -> None:
    put(root, b"#!/usr/bin/perl -w\n")
    assert "'/usr/bin/perl'" in str(explain(root, "tool", errno.ENOENT))


def test_a_missing_loader_is_named(root: Path) -> None:
    put(root, elf(62, "/lib/ld-musl-x86_64.so.1"))
    assert "'/lib/ld-musl-x86_64.so.1'" in str(explain(root, "/bin/tool", errno.ENOENT))


def test_another_machine_is_named(root: Path) -> None:
    put(root, elf(183))
    error = explain(root, "tool", errno.ENOEXEC)
    assert isinstance(error, CommandNotExecutable)
    assert "arm64" in str(error)


def test_a_text_without_an_interpreter(root: Path) -> None:
    put(root, b"echo hello\n")
    assert "#!" in str(explain(root, "tool", errno.ENOEXEC))


def test_no_permission_and_a_directory(root: Path) -> None:
    put(root, b"x", 0o644)
    assert "no execute permission" in str(explain(root, "tool", errno.EACCES))
    assert "directory" in str(explain(root, "/bin", errno.EACCES))


def test_what_is_mounted_over_is_what_is_looked_at(root: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/opt/none\n")
    fd = os.open(script, os.O_PATH | os.O_CLOEXEC)
    try:
        error = explain(
            root, "/run/script", errno.ENOENT, p.MountTree(fd, "/run/script", is_dir=False)
        )
    finally:
        os.close(fd)
    assert "'/opt/none'" in str(error)


def test_a_fifo_in_the_place_of_a_command_does_not_hang(root: Path) -> None:
    os.mkfifo(root / "bin/tool")
    assert explain(root, "tool", errno.EACCES)


def test_control_characters_of_an_image_do_not_reach_the_terminal(root: Path) -> None:
    put(root, b"#!/\x1b[2Jevil\n")
    assert "\x1b" not in str(explain(root, "tool", errno.ENOENT))


def test_another_step_names_its_path_and_errno(root: Path) -> None:
    plan = p.Plan(ops=(p.SetHostname("x"), p.MakeDirectory("/data"), p.Execute(("a",))))
    error = explain_failure(plan, Failure(8, errno.ENOSPC, 1), None)
    assert "/data" in str(error)
    assert "ENOSPC" in str(error)
    assert error.exit_code == 125
