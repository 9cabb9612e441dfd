"""Conversions, ranges, lists of processors and the writes of both versions; no kernel."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scow.cgroups import convert, cpulist, detect, tree, v1_limits, v2_limits
from scow.cgroups.cgroup import container_path, open_cgroup
from scow.cgroups.detect import Hierarchies, Hierarchy, Mode
from scow.cgroups.resources import (
    BlockDeviceValue,
    BlockIO,
    Cpu,
    HugepageLimit,
    Memory,
    NetworkClass,
    Pids,
    RdmaLimit,
    Resources,
    decode_resources,
    encode_resources,
    validate_resources,
)
from scow.native.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ScowError,
    Unsupported,
)

_SHARES = [(0, 0), (1, 1), (2, 1), (1024, 100), (2000, 170), (262144, 10000), (300000, 10000)]


@pytest.mark.parametrize(("shares", "weight"), _SHARES)
def test_cpu_weight(shares: int, weight: int) -> None:
    assert convert.cpu_weight(shares) == weight


@given(st.integers(2, 262143))
def test_cpu_weight_never_falls(shares: int) -> None:
    assert 1 <= convert.cpu_weight(shares) <= convert.cpu_weight(shares + 1) <= 10000


@pytest.mark.parametrize(("weight", "expected"), [(0, 0), (10, 1), (500, 4950), (1000, 10000)])
def test_io_weight(weight: int, expected: int) -> None:
    assert convert.io_weight(weight) == expected


@pytest.mark.parametrize(
    ("quota", "period", "current", "expected"),
    [
        (None, None, "", None),
        (50000, None, "", "50000 100000"),
        (50000, None, "max 20000", "50000 20000"),
        (None, 20000, "", "max 20000"),
        (None, 20000, "7000 100000", "7000 20000"),
        (-1, 50000, "", "max 50000"),
        (0, 0, "", None),
    ],
)
def test_cpu_max(quota: int | None, period: int | None, current: str, expected: str | None) -> None:
    assert convert.cpu_max(quota, period, current) == expected


@pytest.mark.parametrize(
    ("limit", "swap", "expected"),
    [(100, 100, "0"), (100, 150, "50"), (100, -1, "max"), (-1, None, "max"), (100, None, None)],
)
def test_swap_max(limit: int, swap: int | None, expected: str | None) -> None:
    assert convert.swap_max(limit, swap) == expected


@pytest.mark.parametrize(("limit", "swap"), [(None, 100), (100, 50), (-1, 50)])
def test_swap_without_or_below_the_limit(limit: int | None, swap: int) -> None:
    with pytest.raises(InvalidArgument):
        convert.swap_max(limit, swap)
    with pytest.raises(InvalidArgument):
        validate_resources(Resources(memory=Memory(limit=limit, swap=swap)))


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory=Memory(limit=2**63)),
        Resources(memory=Memory(limit=-2)),
        Resources(memory=Memory(limit=100, reservation=200)),
        Resources(memory=Memory(swappiness=101)),
        Resources(cpu=Cpu(shares=1)),
        Resources(cpu=Cpu(shares=262145)),
        Resources(cpu=Cpu(period=999)),
        Resources(cpu=Cpu(period=1_000_001)),
        Resources(cpu=Cpu(quota=999)),
        Resources(cpu=Cpu(idle=2)),
        Resources(cpu=Cpu(idle=1, shares=100)),
        Resources(cpu=Cpu(realtime_runtime=2, realtime_period=1)),
        Resources(cpu=Cpu(cpus="3-1")),
        Resources(pids=Pids(-2)),
        Resources(pids=Pids(2**63)),
        Resources(block_io=BlockIO(weight=9)),
        Resources(block_io=BlockIO(weight=1001)),
        Resources(hugepage_limits=(HugepageLimit("2MB", -1),)),
        Resources(unified={"memory.max/../x": "1"}),
        Resources(unified={"../memory.max": "1"}),
        Resources(unified={"memory..max": "1"}),
        Resources(unified={"": "1"}),
        Resources(unified={"cgroup.procs": "1"}),
        Resources(unified={"memory.max\n": "1"}),
    ],
)
def test_values_out_of_range_are_refused(resources: Resources) -> None:
    with pytest.raises(InvalidArgument):
        validate_resources(resources)


@pytest.mark.parametrize("text", ["3-1", "0,,1", "a", "-1", "1-", "0-99999999999", "²", "1 2", ","])
def test_bad_cpu_lists(text: str) -> None:
    with pytest.raises(InvalidArgument):
        cpulist.parse_cpu_list(text)


def test_huge_cpu_lists_cost_nothing() -> None:
    start = time.monotonic()
    assert cpulist.parse_cpu_list("0-2147483647") == ((0, 2**31 - 1),)
    with pytest.raises(InvalidArgument):
        cpulist.parse_cpu_list("0-1," * 300_000)
    assert time.monotonic() - start < 0.1


def test_cpu_lists() -> None:
    assert cpulist.parse_cpu_list(" 5,0-2,3\n") == ((0, 3), (5, 5))
    assert cpulist.count(cpulist.parse_cpu_list("0-3,5")) == 5
    assert cpulist.first_outside(((0, 1), (3, 4)), ((0, 1), (3, 3))) == 4
    assert cpulist.first_outside(((0, 1),), ((0, 7),)) is None


_FULL = Resources(
    memory=Memory(limit=100, swap=150, reservation=50),
    cpu=Cpu(shares=1024, quota=50000, period=100000, burst=1000, cpus="0", mems="0"),
    pids=Pids(0),
    block_io=BlockIO(
        weight=500,
        weight_device=(BlockDeviceValue(8, 0, weight=10),),
        throttle_read_bps_device=(BlockDeviceValue(8, 0, 1000),),
        throttle_write_iops_device=(BlockDeviceValue(8, 0, 7),),
    ),
    hugepage_limits=(HugepageLimit("2MB", 0),),
    rdma={"mlx": RdmaLimit(1, 2)},
)


def test_v1_writes() -> None:
    writes = [(w.file, w.value) for w in v1_limits.limit_writes(_FULL)]
    assert writes == [
        ("memory.limit_in_bytes", "100"),
        ("memory.memsw.limit_in_bytes", "150"),
        ("memory.soft_limit_in_bytes", "50"),
        ("cpu.shares", "1024"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_burst_us", "1000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "0"),
        ("blkio.weight", "500"),
        ("blkio.weight_device", "8:0 10"),
        ("blkio.throttle.read_bps_device", "8:0 1000"),
        ("blkio.throttle.write_iops_device", "8:0 7"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "0"),
        ("hugetlb.2MB.limit_in_bytes", "0"),
        ("rdma.max", "mlx hca_handle=1 hca_object=2"),
    ]


def test_v2_writes() -> None:
    writes = [(w.file, w.value) for w in v2_limits.limit_writes(_FULL)]
    assert writes == [
        ("memory.max", "100"),
        ("memory.swap.max", "50"),
        ("memory.low", "50"),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "1000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "0"),
        ("io.bfq.weight", "500"),
        ("io.bfq.weight", "8:0 10"),
        ("io.max", "8:0 rbps=1000"),
        ("io.max", "8:0 wiops=7"),
        ("hugetlb.2MB.rsvd.max", "0"),
        ("hugetlb.2MB.max", "0"),
        ("rdma.max", "mlx hca_handle=1 hca_object=2"),
    ]
    assert v2_limits.io_weight_line("8:0 10") == "8:0 1"
    last = v2_limits.limit_writes(Resources(pids=Pids(5), unified={"pids.max": "7"}))
    assert [w.value for w in last] == ["5", "7"]


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory=Memory(kernel=5)),
        Resources(memory=Memory(swappiness=5)),
        Resources(cpu=Cpu(realtime_runtime=5)),
        Resources(block_io=BlockIO(leaf_weight=10)),
        Resources(network=NetworkClass(class_id=1)),
    ],
)
def test_what_v2_does_not_have(resources: Resources) -> None:
    with pytest.raises(Unsupported):
        v2_limits.limit_writes(resources)


def test_v1_has_no_unified() -> None:
    with pytest.raises(Unsupported, match=r"memory\.high"):
        v1_limits.limit_writes(Resources(unified={"memory.high": "1"}))


def test_resources_round_trip() -> None:
    assert decode_resources(encode_resources(_FULL)) == _FULL
    assert b'"throttleReadBpsDevice"' in encode_resources(_FULL)
    assert decode_resources(b'{"blockIO":{"throttleWriteIOPSDevice":[]},"x":1}') == Resources(
        block_io=BlockIO()
    )
    with pytest.raises(InvalidArgument, match=r"\$\.memory\.limit"):
        decode_resources(b'{"memory":{"limit":"5"}}')


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "scow",
        "/scow/x",
        "scow/",
        "scow/../x",
        "../x",
        "scow/./x",
        "scow//x",
        "scow/a\nb",
        "scow/cgroup.procs",
        "scow/" + "x" * 256,
        "a/" * 2000 + "x",
    ],
)
def test_paths_that_could_mean_the_host_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument):
        tree.check_path(path)
    with pytest.raises(InvalidArgument):
        open_cgroup(path, hierarchies=Hierarchies(Mode.V2, (), "/nowhere"))


def test_container_path() -> None:
    assert container_path("abc") == "scow/abc"
    assert container_path("abc", "/my/parent") == "my/parent/abc"
    for container_id, parent in (("abc", "/"), ("abc", ".."), ("a/b", None), ("..", None)):
        with pytest.raises(InvalidArgument):
            container_path(container_id, parent)


_HYBRID = "3:cpu,cpuacct:/x\n2:memory:/\n1:name=systemd:/\n0::/\n"


def test_detect_hybrid_with_joined_controllers(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "memory", "systemd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified/cgroup.controllers").touch()
    found = detect.detect(_HYBRID, root=str(tmp_path))
    assert found.mode is Mode.HYBRID
    assert found.v1[0].controllers == ("memory",)
    assert found.with_controller("cpuacct") == Hierarchy(
        "cpu,cpuacct", ("cpu", "cpuacct"), f"{tmp_path}/cpu,cpuacct"
    )
    assert found.unified == f"{tmp_path}/unified"


def test_detect_by_mountinfo(tmp_path: Path) -> None:
    mountinfo = (
        "30 1 0:26 / /cg/two rw,nosuid shared:9 - cgroup2 none rw,nsdelegate\n"
        "31 1 0:27 / /cg/a\\040b rw - cgroup none rw,xattr,memory\n"
    )
    found = detect.detect("4:memory:/\n0::/\n", root=str(tmp_path), mountinfo=mountinfo)
    assert found.unified == "/cg/two"
    assert found.v1 == (Hierarchy("memory", ("memory",), "/cg/a b"),)


def test_detect_unified_with_a_lone_firewall_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "net_cls").mkdir()
    (tmp_path / "net_cls/cgroup.procs").touch()
    found = detect.detect("2:net_cls:/\n0::/\n", root=str(tmp_path))
    assert found == Hierarchies(Mode.V2, (), str(tmp_path))


def test_detect_nothing(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no cgroup hierarchy"):
        detect.detect("0::/\n", root=str(tmp_path), mountinfo="")


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="'my/parent'"):
        tree.require_parent([str(tmp_path)], "my/parent/abc")
    tree.require_parent([str(tmp_path)], "scow/abc")


def test_unmarked_directories_are_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "user.slice" / "abc"
    directory.mkdir(parents=True)
    with pytest.raises((PermissionDenied, OSError)) as caught:
        tree.require_ours(str(directory))
    assert isinstance(caught.value, (ScowError, OSError))
    assert directory.is_dir()
    assert tree.require_ours(str(tmp_path / "nothing")) is False
