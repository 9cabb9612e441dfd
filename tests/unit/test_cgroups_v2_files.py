"""The v2 back end over a directory that plays the kernel: which files, which values, what order.

Limits for real are in the contract suite, which a v2 guest runs in full.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scow.cgroups import control, tree, weight
from scow.cgroups.cgroup import Cgroup, open_cgroup
from scow.cgroups.detect import Hierarchies, Mode
from scow.cgroups.resources import BlockIO, Cpu, Memory, Pids, Resources
from scow.cgroups.stats import Pressure
from scow.cgroups.v2_stats import parse_pressure
from scow.native.errors import (
    InvalidArgument,
    InvalidState,
    NotFound,
    PermissionDenied,
    ScowError,
    Unsupported,
)

CONTROLLERS = "cpuset cpu io memory pids"
FILES = {
    "cgroup.controllers": CONTROLLERS,
    "cgroup.subtree_control": "",
    "cgroup.procs": "",
    "cgroup.threads": "",
    "cgroup.type": "domain\n",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.freeze": "0\n",
    "cgroup.kill": "",
    "cpu.max": "max 100000\n",
    "cpu.max.burst": "0\n",
    "cpu.weight": "100\n",
    "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nthrottled_usec 1\n",
    "memory.max": "max\n",
    "memory.swap.max": "max\n",
    "memory.low": "0\n",
    "memory.current": "4096\n",
    "memory.events": "low 0\noom 3\noom_kill 2\n",
    "memory.stat": "anon 1\ninactive_file 1000\n",
    "pids.max": "max\n",
    "pids.current": "1\n",
    "io.max": "",
    "io.weight": "default 100\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:16 rbytes=1 wbytes=0 rios=1 wios=0\n",
}


class FakeKernel:
    """A directory in which mkdir makes control files; writes are recorded, marks remembered."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.files = dict(FILES)
        self.writes: list[tuple[str, str]] = []
        self.refuse: dict[str, int] = {}
        self._marks: dict[str, bytes] = {}
        self._mkdir, self._rmdir, self._write = os.mkdir, os.rmdir, control.write_file
        patch.setattr(tree.os, "mkdir", self._make)
        patch.setattr(tree.os, "rmdir", self._remove)
        patch.setattr(control, "write_file", self._record)
        patch.setattr(tree, "set_mark", self._set_mark)
        patch.setattr(tree, "read_mark", self._mark)
        self._fill(root)

    def _fill(self, directory: Path) -> None:
        for name, text in self.files.items():
            (directory / name).write_text(text)

    def _make(self, path: str, mode: int = 0o777) -> None:
        self._mkdir(path, mode)
        self._fill(Path(path))

    def _remove(self, path: str) -> None:
        with os.scandir(path) as entries:
            files = [entry.path for entry in entries if not entry.is_dir()]
        if len(files) < len(os.listdir(path)):
            raise OSError(errno.EBUSY, "busy", path)
        for file in files:
            os.unlink(file)
        self._rmdir(path)

    def _set_mark(self, path: str, owner: str = "", *, pod: bool = False) -> None:
        kind = "pod" if pod else "container"
        self._marks[path] = f"{kind} {owner}".strip().encode()

    def _mark(self, path: str) -> bytes | None:
        if not os.path.isdir(path):
            raise FileNotFoundError(path)
        return self._marks.get(path)

    def _record(self, directory_fd: int, name: str, value: str) -> None:
        if name in self.refuse:
            raise OSError(self.refuse[name], os.strerror(self.refuse[name]), name)
        self._write(directory_fd, name, value)
        self.writes.append((name, value))

    def limits(self) -> list[tuple[str, str]]:
        """The writes that are not about enabling controllers."""
        return [write for write in self.writes if not write[0].startswith("cgroup.")]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path, monkeypatch)
    yield fake
    monkeypatch.undo()


def _group(kernel: FakeKernel, path: str = "scow/abc") -> Cgroup:
    return open_cgroup(path, hierarchies=Hierarchies(Mode.V2, (), str(kernel.root)))


def test_create_writes_limits_in_order(kernel: FakeKernel) -> None:
    group = _group(kernel)
    group.create(
        Resources(
            memory=Memory(limit=100, swap=150),
            cpu=Cpu(shares=1024, quota=50000, period=100000),
            pids=Pids(64),
        )
    )
    assert kernel.limits() == [
        ("memory.max", "100"),
        ("memory.swap.max", "50"),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("pids.max", "64"),
    ]
    assert {value for name, value in kernel.writes if name == "cgroup.subtree_control"} == {
        f"+{name}" for name in CONTROLLERS.split()
    }
    assert group.join_fds() == []
    directory = group.dir_fd()
    assert directory is not None
    directory.close()
    group.remove()
    assert not group.exists()
    assert (kernel.root / "scow").is_dir()


def test_the_cgroup_of_another_container_is_refused(kernel: FakeKernel) -> None:
    host = Hierarchies(Mode.V2, (), str(kernel.root))
    first = open_cgroup("a/b", hierarchies=host, foreign=True, owner="/run/one")
    second = open_cgroup("a/b", hierarchies=host, foreign=True, owner="/run/two")
    first.create(Resources())
    for act in (second.kill, second.remove, second.freeze):
        with pytest.raises(PermissionDenied, match="belongs to '/run/one'"):
            act()
    open_cgroup("a/b", hierarchies=host, foreign=True).remove()
    assert not first.exists()
    assert not (kernel.root / "a").exists()


def test_controllers_are_enabled_once(kernel: FakeKernel) -> None:
    kernel.files["cgroup.subtree_control"] = CONTROLLERS
    _group(kernel).create(Resources(pids=Pids(1)))
    kernel.writes.clear()
    _group(kernel, "scow/def").create(Resources(pids=Pids(1)))
    assert kernel.writes == [("pids.max", "1")]


def test_a_missing_controller_is_named_and_nothing_remains(kernel: FakeKernel) -> None:
    kernel.files["cgroup.controllers"] = "cpu io"
    (kernel.root / "cgroup.controllers").write_text("cpu io")
    group = _group(kernel, "scow/inner/abc")
    with pytest.raises(Unsupported, match="'memory'") as caught:
        group.create(Resources(memory=Memory(limit=100)))
    assert "cpu io" in (caught.value.hint or "")
    assert not (kernel.root / "scow/inner").exists()


def test_a_refused_value_names_file_and_value(kernel: FakeKernel) -> None:
    kernel.refuse["memory.max"] = errno.EINVAL
    group = _group(kernel)
    with pytest.raises(InvalidArgument, match=r"memory\.max' to '100'.*EINVAL.*usage is 4096"):
        group.create(Resources(memory=Memory(limit=100)))
    assert not group.exists()


def _disk(sys_block: Path, scheduler: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(weight, "SYS_BLOCK", str(sys_block))
    (sys_block / "vda/queue").mkdir(parents=True)
    (sys_block / "vda/queue/scheduler").write_text(scheduler)


def test_weight_by_io_cost(
    kernel: FakeKernel, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _disk(tmp_path_factory.mktemp("block"), "none [mq-deadline] bfq", monkeypatch)
    (kernel.root / "io.cost.qos").write_text("8:0 enable=1 ctrl=auto\n")
    _group(kernel).create(Resources(block_io=BlockIO(weight=500)))
    assert kernel.limits() == [("io.weight", "4950")]


def test_weight_by_bfq(
    kernel: FakeKernel, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _disk(tmp_path_factory.mktemp("block"), "none [bfq]", monkeypatch)
    kernel.files["io.bfq.weight"] = "100\n"
    _group(kernel).create(Resources(block_io=BlockIO(weight=500)))
    assert kernel.limits() == [("io.bfq.weight", "500")]


def test_weight_that_no_disk_heeds(
    kernel: FakeKernel, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _disk(tmp_path_factory.mktemp("block"), "[none] bfq", monkeypatch)
    group = _group(kernel)
    with pytest.raises(Unsupported, match="by weight") as caught:
        group.create(Resources(block_io=BlockIO(weight=500)))
    assert "bfq" in (caught.value.hint or "")
    assert not group.exists()


def test_swap_without_accounting(kernel: FakeKernel) -> None:
    kernel.files.pop("memory.swap.max")
    group = _group(kernel)
    group.create(Resources(memory=Memory(limit=100, swap=100)))
    with pytest.raises(Unsupported, match=r"memory\.swap\.max"):
        group.update(Resources(memory=Memory(limit=100, swap=150)))


def test_update_keeps_the_other_half_and_puts_back(kernel: FakeKernel) -> None:
    group = _group(kernel)
    group.create(Resources(cpu=Cpu(quota=50000, period=20000), pids=Pids(5)))
    kernel.writes.clear()
    group.update(Resources(cpu=Cpu(quota=70000)))
    assert kernel.limits() == [("cpu.max", "70000 20000")]
    kernel.writes.clear()
    kernel.refuse["pids.max"] = errno.EINVAL
    with pytest.raises(InvalidArgument):
        group.update(Resources(cpu=Cpu(quota=90000), pids=Pids(6)))
    assert kernel.limits()[-1] == ("cpu.max", "70000 20000")


def test_lowering_below_the_usage(kernel: FakeKernel) -> None:
    group = _group(kernel)
    group.create(Resources())
    with pytest.raises(InvalidState, match="usage is 4096"):
        group.update(Resources(memory=Memory(limit=100, check_before_update=True)))
    assert ("memory.max", "100") not in kernel.writes


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("cgroup.events", "populated 0\nfrozen 1\n", "frozen"),
        ("cgroup.type", "domain invalid\n", "threaded"),
    ],
)
def test_bad_parents(kernel: FakeKernel, file: str, text: str, word: str) -> None:
    kernel.files[file] = text
    group = _group(kernel)
    with pytest.raises(InvalidState, match=word):
        group.create(Resources())
    assert not group.exists()


def test_stats(kernel: FakeKernel) -> None:
    group = _group(kernel)
    with pytest.raises(NotFound):
        group.stats()
    group.create(Resources(memory=Memory(limit=8192)))
    (kernel.root / "scow/abc/memory.max").write_text("8192\n")
    stats = group.stats()
    assert (stats.cpu_ns, stats.cpu_user_ns, stats.cpu_system_ns) == (5000, 3000, 2000)
    assert (stats.memory_bytes, stats.memory_used_bytes) == (4096, 3096)
    assert (stats.memory_limit_bytes, stats.pids_limit, stats.swap_bytes) == (8192, None, None)
    assert (stats.read_bytes, stats.write_bytes, stats.read_operations) == (11, 20, 2)
    assert stats.oom_kills == group.oom_kills() == 2


def test_freeze_and_kill_write_their_files(kernel: FakeKernel) -> None:
    group = _group(kernel)
    group.create(Resources())
    (kernel.root / "scow/abc/cgroup.events").write_text("populated 0\nfrozen 1\n")
    group.freeze()
    assert group.is_frozen()
    group.thaw()
    assert not group.is_frozen()
    group.kill()
    assert [w for w in kernel.writes if w[0] in ("cgroup.freeze", "cgroup.kill")] == [
        ("cgroup.freeze", "1"),
        ("cgroup.freeze", "0"),
        ("cgroup.kill", "1"),
    ]


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV])
def test_killing_what_its_monitor_removes_meanwhile(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The last process is slow to end, so it is killed again; by then the cgroup has gone."""
    group = _group(kernel)
    group.create(Resources())
    kernel.refuse["cgroup.freeze"] = code
    seen = [[999_999_999]] * 12
    monkeypatch.setattr(tree, "list_pids", lambda _: seen.pop() if seen else [])
    group.kill()
    assert not seen
    kernel.refuse["cgroup.freeze"] = errno.EACCES
    seen = [[999_999_999]] * 12
    with pytest.raises(PermissionError):
        group.kill()


def test_below_a_container_is_refused(kernel: FakeKernel) -> None:
    _group(kernel).create(Resources())
    with pytest.raises(ScowError, match="cgroup of a container"):
        _group(kernel, "scow/abc/inner").create(Resources())


def test_pressure() -> None:
    text = (
        "some avg10=1.50 avg60=0.25 avg300=0.00 total=4711\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=17\n"
    )
    found = parse_pressure(text)
    assert found is not None
    assert found.some == Pressure(4711, 1.5, 0.25, 0.0)
    assert found.full == Pressure(17, 0.0, 0.0, 0.0)
    some = parse_pressure(text.splitlines()[0])
    assert some is not None
    assert some.full is None
    # Without CONFIG_PSI, or with psi=0, there is no such file.
    assert parse_pressure("") is None
