"""Plans: what Python writes is what C reads, and C refuses whatever else it is given."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from scow.native import plan as p
from scow.native import sys as s
from scow.native.block import RECORD
from scow.native.errors import (
    CommandNotExecutable,
    CommandNotFound,
    InvalidArgument,
    SetupError,
)

ROOT = Path(__file__).resolve().parents[2]
COMPILE = ["gcc", "-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-Werror"]  # fmt: skip
COMPILE += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{ROOT}/native"]
HEADER_BYTES = 144

EVERY_OPERATION = (
    p.JoinCgroups((7, 8)),
    p.JoinNamespace(9, s.CLONE_NEWNET),
    p.Unshare(s.CLONE_NEWCGROUP),
    p.MountPropagation(s.MS_SLAVE),
    p.AttachRoot(10, "/run/scow/rootfs"),
    p.MountFilesystem(
        "tmpfs", "/dev", s.MOUNT_ATTR_NOSUID, (("mode", "755"), ("inode64", None)), "tmpfs"
    ),
    p.MountTree(11, "/data", s.MOUNT_ATTR_RDONLY, 0, True, s.MS_PRIVATE, False),
    p.MakeDirectory("/var/lib", 0o1777, 1, 2),
    p.MakeDevice("/dev/null", stat.S_IFCHR | 0o666, 1, 3),
    p.MakeSymlink("/proc/self/fd", "/dev/fd"),
    p.Mask("/proc/kcore"),
    p.ReadOnlyPath("/proc/sys"),
    p.SetHostname("box"),
    p.SetDomainname("example"),
    p.SetSysctl("net/ipv4/ip_forward", "1"),
    p.AwaitParent(),
    p.Netlink(b"\0" * 16),
    p.Terminal(24, 80, 1000),
    p.StdioFromMonitor(1000, 1000),
    p.PivotRoot(),
    p.RemountRootReadOnly(),
    p.SetCwd("/work"),
    p.SetRlimit(7, 1024, -1),
    p.SetOomScoreAdj(-500),
    p.SetUmask(0o22),
    p.NewSessionKeyring("c1"),
    p.ResetAffinity(),
    p.AwaitStart(),
    p.DropBounding(0xFF),
    p.SetUser(1000, 1000, (4, 5, 6)),
    p.SetCapabilities(1, 3, 0, 0),
    p.NoNewPrivileges(),
    p.LoadSeccomp(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)),
    p.SetMountAttributes("/sys/fs/cgroup", s.MOUNT_ATTR_RDONLY, s.MOUNT_ATTR_NODEV),
    p.EnterPidNamespace(0xFF),
    p.MountJoinedProc(14, 15, "/proc", s.MOUNT_ATTR_NOSUID),
    p.AwaitStartSocket(15),
    p.StdioInherit(1000),
    p.KeepFds((7, 8)),
    p.ProbeCommand(),
    p.RunHook("/bin/hook", ("hook", "x"), ("A=b",), 1000, '{"pid":', "}"),
    p.BecomeRoot(),
    p.NewTimeNamespace("boottime 1 0\n"),
    p.SetPersonality(8),
    p.SetScheduler(b"\0" * 48),
    p.SetIoPriority(0x4002),
    p.SetAffinity(b"\1" * 8),
    p.SetMemoryPolicy(2, b"\1" * 8),
    p.SetLabel("attr/exec", "label"),
    p.LabelMount("/dev/mqueue", "label"),
    p.SetPropagation("/t", s.MS_SHARED, True),
    p.HideHost("/proc"),
    p.Execute(("sh", "-c", b"\xff\xfe"), ("PATH=/bin", "A=\udcff"), why="what the user asked for"),
)
FULL = p.Plan(
    ops=EVERY_OPERATION,
    namespaces=s.CLONE_NEWNS | s.CLONE_NEWPID,
    cgroup_fd=12,
    host_netlink=b"\xff" * 32,
    pid_offsets=(0, 28),
    uid_map="0 100000 65536\n",
    monitor=p.MonitorConfig(
        container_id="c1",
        log_path="/var/log/c1",
        exit_path="/run/c1",
        oom_fd=13,
        cleanup_argv=("/usr/bin/scow", "cleanup", "c1"),
        cleanup_env=("PATH=/bin",),
    ),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("native_plan") / "reader"
    sources = [f"{ROOT}/tests/unit/c/test_native_plan.c", f"{ROOT}/native/plan.c"]
    subprocess.run([*COMPILE, *sources, "-o", str(program)], check=True)
    return program


def parse(reader: Path, block: bytes, tmp_path: Path) -> list[str]:
    path = tmp_path / "plan"
    path.write_bytes(block)
    done = subprocess.run([reader, "parse", path], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_c_reads_every_operation_that_python_writes(reader: Path, tmp_path: Path) -> None:
    assert parse(reader, FULL.encode(), tmp_path) == ["1", "0", "0", "0", "0", "c1"]


def test_a_plan_without_a_monitor_config_is_valid(reader: Path, tmp_path: Path) -> None:
    plan = p.Plan(ops=(p.Execute(("/bin/true",)),))
    assert parse(reader, plan.encode(), tmp_path)[0] == "1"


def test_codes_are_those_of_the_header() -> None:
    header = (ROOT / "native/plan.h").read_text()
    names = re.findall(r"^    OP_(\w+)", header, re.MULTILINE)[:-1]
    codes = {
        re.sub(r"(?<!^)(?=[A-Z])", "_", type(op).__name__).upper(): op.code
        for op in EVERY_OPERATION
    }
    assert codes == {name: code for code, name in enumerate(names, 1)}


def test_descriptors_are_counted_once_in_order() -> None:
    block, fds = FULL.build()
    assert fds == (12, 13, 7, 8, 9, 10, 11, 14, 15)
    assert FULL.encode() == block


def test_hostile_blocks_never_reach_beyond_the_block(reader: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.write_bytes(FULL.encode())
    for seed in ("11", "97"):
        done = subprocess.run(
            [reader, "fuzz", path, "40000", seed], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert 0 < int(done.stdout) < 40000


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 7])
def test_a_cut_block_is_refused(reader: Path, tmp_path: Path, size: int) -> None:
    words = parse(reader, FULL.encode()[:size], tmp_path)
    assert words[:3] == ["0", "1000", str(errno.EINVAL)]


def test_a_plan_must_end_in_execute(reader: Path, tmp_path: Path) -> None:
    plan = p.Plan(ops=(p.Execute(("/bin/true",)), p.PivotRoot()))
    assert parse(reader, plan.encode(), tmp_path)[0] == "0"


def test_unknown_code_names_the_operation(reader: Path, tmp_path: Path) -> None:
    plan = p.Plan(ops=(p.PivotRoot(), p.Execute(("/bin/true",))))
    block = bytearray(plan.encode())
    at = struct.unpack_from("<I", block, 24)[0]
    assert RECORD.unpack_from(block, at)[0] == p.PivotRoot.code
    struct.pack_into("<I", block, at, 9999)
    assert parse(reader, bytes(block), tmp_path)[:4] == ["0", "1000", str(errno.EINVAL), "0"]


def test_null_bytes_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        p.Plan(ops=(p.Execute(("a\0b",)),)).encode()


def test_a_plan_larger_than_the_limit_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most"):
        p.Plan(ops=(p.Execute(("x" * (17 << 20),)),)).encode()


def test_every_operation_describes_itself() -> None:
    lines = FULL.describe()
    assert lines[0] == "clone3(CLONE_NEWNS|CLONE_NEWPID|CLONE_INTO_CGROUP|CLONE_PIDFD)"
    assert len(lines) == 3 + len(EVERY_OPERATION)
    assert lines[-1].endswith("# what the user asked for")
    assert "fsmount(tmpfs, MOUNT_ATTR_NOSUID, 'mode=755,inode64'); move_mount(/dev)" in lines


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (errno.ENOENT, CommandNotFound, 127),
        (errno.EACCES, CommandNotExecutable, 126),
        (errno.ENOEXEC, CommandNotExecutable, 126),
    ],
)
def test_execute_errors_have_dockers_exit_codes(
    error: int, kind: type[SetupError], code: int
) -> None:
    last = len(EVERY_OPERATION) - 1
    raised = p.setup_error(FULL, p.Execute.code, error, last)
    assert type(raised) is kind
    assert raised.exit_code == code
    assert raised.path == "sh"


def test_setup_errors_name_what_was_tried() -> None:
    raised = p.setup_error(FULL, p.MountFilesystem.code, errno.EPERM, 5)
    assert str(raised) == "cannot mount tmpfs on '/dev': operation not permitted (EPERM)"
    assert (raised.step, raised.errno, raised.index, raised.path) == ("mount", 1, 5, "/dev")
    raised = p.setup_error(FULL, 1004, errno.EEXIST, 0xFFFFFFFF, 3)
    assert "host's end of the network: file exists (EEXIST), message 3" in str(raised)
    # a record that does not fit the plan is still told
    assert p.setup_error(FULL, 4242, errno.EIO, 99).errno == errno.EIO


def test_surrogates_become_bytes() -> None:
    assert b"A=\xff\0" in FULL.encode()
    assert os.fsencode("A=\udcff") == b"A=\xff"
