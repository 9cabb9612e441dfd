"""One contract for every cgroup back end that this kernel offers.

On a hybrid host the v2 back end runs over the part of cgroup2 that the host has (freezer, kill,
devices, joining); in a v2 guest it runs with all controllers. `backends` chooses by what the
kernel offers, so nothing is skipped silently and nothing runs that cannot.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from scow.cgroups import cgroup, detect, tree, weight
from scow.cgroups.cgroup import Cgroup
from scow.cgroups.detect import Hierarchies, Mode
from scow.cgroups.resources import (
    BlockDeviceValue,
    BlockIO,
    Cpu,
    DeviceRule,
    Memory,
    Pids,
    Resources,
)
from scow.native.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidState,
    NotFound,
    PermissionDenied,
    ScowError,
    Unsupported,
)

pytestmark = [pytest.mark.root, pytest.mark.guest]
_MIB = 1 << 20
_TOP = f"scow-test-{secrets.token_hex(4)}"


def _controllers(host: Hierarchies) -> set[str]:
    if host.mode is Mode.V2:
        with open(f"{host.unified}/cgroup.controllers") as file:
            found = {*file.read().split(), "freezer", "devices"}
    else:
        found = {name for hierarchy in host.v1 for name in hierarchy.controllers}
    if found & {"io", "blkio"}:
        found.add("block io")
    return found


def backends(*needed: str) -> pytest.MarkDecorator:
    """Run over each back end of this kernel that has the controllers `needed`."""
    host = detect.hierarchies()
    found = [host]
    if host.mode is Mode.HYBRID:
        found.append(Hierarchies(Mode.V2, (), host.unified))
    able = [one for one in found if _controllers(one).issuperset(needed)]
    return pytest.mark.parametrize("host", able, ids=[one.mode.value for one in able])


@pytest.fixture
def group(host: Hierarchies) -> Iterator[Cgroup]:
    """A cgroup that is not made yet, and is gone afterwards."""
    made = cgroup.open_cgroup(f"{_TOP}/{secrets.token_hex(6)}", hierarchies=host)
    yield made
    made.kill()
    made.remove()
    roots = [hierarchy.directory for hierarchy in host.v1]
    roots += [host.unified] if host.unified else []
    assert not [root for root in roots if os.path.exists(f"{root}/{_TOP}")]


def _join(group: Cgroup) -> None:
    """What the native child does: v1 by `tasks`; v2 here by cgroup.procs, no clone3 at hand."""
    for fd in group.join_fds():
        os.write(fd.fileno(), b"0")
    directory = group.dir_fd()
    if directory is not None:
        procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=directory.fileno())
        os.write(procs, b"0")


def _child(group: Cgroup, work: Callable[[], int | None]) -> int:
    """Fork a process that joins the cgroup and does `work`; its result is the exit status."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        _join(group)
        status = work() or 0
    except OSError as error:
        status = error.errno or 98
    finally:
        os._exit(status)


def _status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _sleep() -> None:
    time.sleep(60)


def _expect_alone(group: Cgroup, pid: int) -> None:
    _until(lambda: group.pids() == [pid])


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@backends()
def test_create_join_kill_remove(group: Cgroup) -> None:
    assert not group.exists()
    group.create(Resources())
    assert group.exists()
    pids = [_child(group, _sleep) for _ in range(3)]
    _until(lambda: sorted(group.pids()) == sorted(pids))
    with open(f"/proc/{pids[0]}/cgroup") as file:
        assert group.path in file.read()
    group.kill()
    assert [_status(pid) for pid in pids] == [-signal.SIGKILL] * 3
    group.remove()
    assert not group.exists()
    group.remove()
    group.kill()


@backends()
def test_a_process_inside_refuses_create_and_remove(
    group: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "REMOVE_TIMEOUT_S", 0.2)
    group.create(Resources())
    pid = _child(group, _sleep)
    _until(lambda: group.pids() == [pid])
    with pytest.raises(InvalidState, match=str(pid)):
        group.create(Resources())
    with pytest.raises(InvalidState, match=str(pid)):
        group.remove()
    group.kill()
    assert _status(pid) == -signal.SIGKILL


@backends()
def test_leftover_of_a_dead_attempt_is_replaced(group: Cgroup) -> None:
    group.create(Resources())
    group.create(Resources())
    assert group.pids() == []


@backends("freezer")
def test_freeze_thaw_and_kill_of_frozen(group: Cgroup) -> None:
    group.create(Resources())
    pid = _child(group, _sleep)
    _until(lambda: group.pids() == [pid])
    assert not group.is_frozen()
    group.freeze()
    assert group.is_frozen()
    group.freeze()
    group.thaw()
    assert not group.is_frozen()
    group.freeze()
    group.kill()
    assert _status(pid) == -signal.SIGKILL
    assert not group.pids()


@backends("freezer")
def test_a_frozen_parent_is_refused(host: Hierarchies, group: Cgroup) -> None:
    group.create(Resources())
    root = host.unified if host.mode is Mode.V2 else host.v1[0].directory
    file, on, off = "freezer.state", "FROZEN", "THAWED"
    if host.mode is Mode.V2:
        file, on, off = "cgroup.freeze", "1", "0"
    other = cgroup.open_cgroup(f"{_TOP}/other", hierarchies=host)
    with open(f"{root}/{_TOP}/{file}", "w") as control:
        control.write(on)
    try:
        with pytest.raises(InvalidState, match="frozen"):
            other.create(Resources())
    finally:
        with open(f"{root}/{_TOP}/{file}", "w") as control:
            control.write(off)
    assert not other.exists()


@backends()
def test_kill_and_remove_reach_nested_cgroups(host: Hierarchies, group: Cgroup) -> None:
    group.create(Resources())
    root = host.unified if host.mode is Mode.V2 else host.v1[0].directory
    deep = f"{root}/{group.path}"
    for _ in range(12):
        deep += "/n"
        os.mkdir(deep)
    os.mkdir(f"{root}/{group.path}/n/m")
    pid = _child(group, _sleep)
    _until(lambda: group.pids() == [pid])
    with open(f"{deep}/cgroup.procs", "w") as file:
        file.write(str(pid))
    assert group.pids() == [pid]
    group.kill()
    assert _status(pid) == -signal.SIGKILL
    group.remove()
    assert not group.exists()


@backends("pids", "freezer")
def test_kill_outruns_a_fork_bomb(group: Cgroup) -> None:
    group.create(Resources(pids=Pids(100)))

    def bomb() -> None:
        # The children are nobody's to reap but init's; the first process only keeps forking.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            with contextlib.suppress(OSError):
                os.fork()

    pid = _child(group, bomb)
    _until(lambda: len(group.pids()) > 60)
    start = time.monotonic()
    group.kill()
    assert time.monotonic() - start < 30
    assert _status(pid) == -signal.SIGKILL


@backends("pids")
def test_pids_limit_holds(group: Cgroup) -> None:
    group.create(Resources(pids=Pids(2)))

    def work() -> int:
        first = os.fork()
        if first == 0:
            time.sleep(60)
        try:
            os.fork()
        except BlockingIOError:
            return 7
        return 8

    assert _status(_child(group, work)) == 7
    group.update(Resources(pids=Pids(-1)))
    assert group.stats().pids_limit is None
    group.update(Resources(pids=Pids(0)))
    assert group.stats().pids_limit == 0


@backends("memory")
def test_memory_limit_kills_and_is_counted(group: Cgroup) -> None:
    group.create(Resources(memory=Memory(limit=20 * _MIB, swap=20 * _MIB)))
    assert group.stats().memory_limit_bytes == 20 * _MIB
    oom = group.oom_fd()
    assert oom is not None

    def eat() -> None:
        taken = []
        for _ in range(100):
            area = mmap.mmap(-1, _MIB)
            area.write(b"x" * _MIB)
            taken.append(area)

    assert _status(_child(group, eat)) == -signal.SIGKILL
    assert group.oom_kills() == 1
    assert b"oom_kill 1" in os.pread(oom.fileno(), 4096, 0)
    assert group.stats().oom_kills == 1
    group.update(Resources(memory=Memory(limit=200 * _MIB, swap=200 * _MIB)))
    assert _status(_child(group, eat)) == 0
    assert group.oom_kills() == 1
    group.update(Resources(memory=Memory(limit=30 * _MIB, swap=30 * _MIB)))
    assert group.stats().memory_limit_bytes == 30 * _MIB
    group.update(Resources(memory=Memory(limit=-1)))
    assert group.stats().memory_limit_bytes is None


@backends("memory")
def test_lowering_below_the_usage_keeps_the_old_limit(group: Cgroup) -> None:
    group.create(Resources(memory=Memory(limit=100 * _MIB)))
    ready, told = os.pipe()

    def hold() -> None:
        area = mmap.mmap(-1, 40 * _MIB)
        area.write(b"x" * (40 * _MIB))
        os.write(told, b"1")
        time.sleep(60)

    pid = _child(group, hold)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    with pytest.raises(InvalidState, match="usage is"):
        group.update(Resources(memory=Memory(limit=10 * _MIB, check_before_update=True)))
    assert group.stats().memory_limit_bytes == 100 * _MIB
    assert group.stats().memory_used_bytes >= 40 * _MIB
    group.kill()
    assert _status(pid) == -signal.SIGKILL


@backends("cpu")
def test_cpu_quota_throttles(group: Cgroup) -> None:
    group.create(Resources(cpu=Cpu(quota=10_000, period=100_000, shares=512)))

    def spin() -> None:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass

    assert _status(_child(group, spin)) == 0
    stats = group.stats()
    assert stats.cpu_throttled_periods >= 2
    # 10 % of 0.5 s, with room for one more period at each end.
    assert 0 < stats.cpu_ns < 250_000_000
    group.update(Resources(cpu=Cpu(quota=2_000, period=10_000)))
    group.update(Resources(cpu=Cpu(quota=-1)))


@backends("cpuset")
def test_cpuset(group: Cgroup) -> None:
    group.create(Resources(cpu=Cpu(cpus="0", mems="0")))
    assert _status(_child(group, lambda: int(os.sched_getaffinity(0) != {0}))) == 0


@backends("cpuset")
def test_cpuset_beyond_the_machine_says_what_there_is(group: Cgroup) -> None:
    with pytest.raises(ScowError, match="available are 0") as caught:
        group.create(Resources(cpu=Cpu(cpus="0-4095")))
    assert "cpuset.cpus" in str(caught.value)
    assert not group.exists()


@backends("devices")
def test_devices(group: Cgroup) -> None:
    rules = (
        DeviceRule(False),
        DeviceRule(True, "c", None, None, "m"),
        DeviceRule(True, "c", 1, 3),
        DeviceRule(True, "c", 1, 5, "r"),
    )

    def attempt(path: str, flags: int) -> int:
        def work() -> int:
            os.open(path, flags)
            return 0

        return _status(_child(group, work))

    group.create(Resources(devices=rules))
    assert attempt("/dev/null", os.O_RDWR) == 0
    assert attempt("/dev/zero", os.O_RDONLY) == 0
    assert attempt("/dev/zero", os.O_RDWR) == errno.EPERM
    assert attempt("/dev/full", os.O_RDONLY) == errno.EPERM
    group.update(Resources(devices=(*rules[:3], DeviceRule(True, "c", 1, 7))))
    assert attempt("/dev/full", os.O_RDONLY) == 0
    assert attempt("/dev/zero", os.O_RDONLY) == errno.EPERM
    group.update(Resources(pids=None))
    assert attempt("/dev/full", os.O_RDONLY) == 0
    group.update(Resources(devices=(DeviceRule(True),)))
    assert attempt("/dev/zero", os.O_RDWR) == 0


@backends("devices")
def test_a_device_update_never_opens_the_rest(group: Cgroup) -> None:
    base = (DeviceRule(False), DeviceRule(True, "c", 1, 3))
    group.create(Resources(devices=base))
    answer, tell = os.pipe()

    def watch() -> int:
        # Exits with 1 as soon as the forbidden device opens or the allowed one does not.
        os.write(tell, b"1")
        while True:
            os.close(os.open("/dev/null", os.O_RDWR))
            with contextlib.suppress(PermissionError):
                os.open("/dev/full", os.O_RDONLY)
                return 1

    pid = _child(group, watch)
    os.read(answer, 1)
    os.close(answer)
    os.close(tell)
    for number in range(200):
        group.update(Resources(devices=(*base, DeviceRule(True, "c", 1, 8 + number % 2))))
    group.kill()
    assert _status(pid) == -signal.SIGKILL


def _disk() -> tuple[int, int]:
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith(("loop", "zram", "ram")):
            with open(f"/sys/block/{name}/dev") as file:
                major, minor = file.read().split(":")
            return int(major), int(minor)
    pytest.fail("this machine has no disk to throttle")


@backends("block io")
def test_block_io_throttle(host: Hierarchies, group: Cgroup) -> None:
    device = BlockDeviceValue(*_disk(), rate=_MIB)
    group.create(Resources(block_io=BlockIO(throttle_read_bps_device=(device,))))
    blkio = host.with_controller("blkio")
    name = f"{host.unified}/{group.path}/io.max"
    if blkio is not None:
        name = f"{blkio.directory}/{group.path}/blkio.throttle.read_bps_device"
    with open(name) as file:
        assert "1048576" in file.read()
    missing = BlockDeviceValue(4095, 77, rate=_MIB)
    with pytest.raises(ScowError, match="4095:77"):
        group.update(Resources(block_io=BlockIO(throttle_read_bps_device=(missing,))))


@backends("block io")
def test_a_weight_is_kept_or_refused(host: Hierarchies, group: Cgroup) -> None:
    wanted = Resources(block_io=BlockIO(weight=500))
    has_io_cost = host.mode is Mode.V2 and weight.has_io_cost(host.unified or "")
    if weight.has_bfq_disk() or has_io_cost:
        group.create(wanted)
        return
    with pytest.raises(Unsupported, match="weight"):
        group.create(wanted)
    assert not group.exists()


@backends()
def test_a_failed_create_leaves_nothing(host: Hierarchies, group: Cgroup) -> None:
    absent = Resources(unified={"nosuch.max": "1"}, pids=Pids(5))
    with pytest.raises((Unsupported, InvalidArgument)):
        group.create(absent)
    assert not group.exists()


@backends()
def test_a_cgroup_of_somebody_else_is_left_alone(host: Hierarchies, group: Cgroup) -> None:
    group.create(Resources())
    root = host.unified if host.mode is Mode.V2 else host.v1[0].directory
    foreign = f"{root}/{_TOP}-foreign"
    os.makedirs(f"{foreign}/unit")
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    try:
        with open(f"{foreign}/unit/cgroup.procs", "w") as file:
            file.write(str(pid))
        theirs = cgroup.open_cgroup(f"{_TOP}-foreign/unit", hierarchies=host)
        for action in (theirs.kill, theirs.remove, theirs.freeze, theirs.thaw, theirs.is_frozen):
            with pytest.raises(PermissionDenied, match="not made by scow"):
                action()
        with pytest.raises(PermissionDenied):
            theirs.update(Resources())
        with pytest.raises((AlreadyExists, PermissionDenied)):
            theirs.create(Resources())
        assert theirs.pids() == [pid]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        tree.remove_tree(f"{foreign}/unit")
        tree.remove_tree(foreign)


@backends()
def test_parents(host: Hierarchies, group: Cgroup) -> None:
    group.create(Resources())
    below = cgroup.open_cgroup(f"{group.path}/inner", hierarchies=host)
    with pytest.raises(InvalidArgument, match="cgroup of a container"):
        below.create(Resources())
    with pytest.raises(NotFound):
        below.update(Resources())
    with pytest.raises(NotFound, match="'no-such-parent'"):
        cgroup.open_cgroup("no-such-parent/x", hierarchies=host).create(Resources())


@backends()
def test_the_tops_stay_and_other_parents_go(host: Hierarchies) -> None:
    roots = [*(hierarchy.directory for hierarchy in host.v1), host.unified]
    for top, stays in (("scow-oci", True), (f"scow-oci-{os.getpid()}", False)):
        one = cgroup.open_cgroup(f"{top}/{os.getpid()}", hierarchies=host, foreign=True)
        one.create(Resources())
        one.remove()
        assert not one.exists()
        assert {os.path.isdir(f"{root}/{top}") for root in roots if root} == {stays}


@backends()
def test_what_is_gone_is_said_to_be_gone(group: Cgroup) -> None:
    for action in (group.stats, group.freeze, group.join_fds, lambda: group.update(Resources())):
        with pytest.raises(NotFound):
            action()
    assert group.pids() == []


@backends()
def test_the_cgroup_of_a_pod_stays_when_its_containers_go(group: Cgroup, host: Hierarchies) -> None:
    pod = cgroup.open_cgroup(group.path, hierarchies=host, pod=True)
    limits = Resources(pids=Pids(7)) if "pids" in _controllers(host) else Resources()
    pod.create(limits)
    for _ in range(2):
        inner = cgroup.open_cgroup(f"{pod.path}/{secrets.token_hex(6)}", hierarchies=host)
        inner.create(Resources())
        sleeper = _child(inner, _sleep)
        _expect_alone(inner, sleeper)
        assert pod.pids() == [sleeper]
        inner.kill()
        _status(sleeper)
        inner.remove()
        assert pod.exists()
    if limits.pids is not None:
        assert pod.stats().pids_limit == 7
    plain = cgroup.open_cgroup(f"{pod.path}/box", hierarchies=host)
    plain.create(Resources())
    deeper = cgroup.open_cgroup(f"{plain.path}/deeper", hierarchies=host)
    with pytest.raises(InvalidArgument, match="cgroup of a container"):
        deeper.create(Resources())
    pod.remove()
    assert not pod.exists()
