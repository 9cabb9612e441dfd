"""Units of systemd: names from cgroupsPath, properties from the writes of limits."""

from __future__ import annotations

import pytest

from scow.cgroups.control import Write
from scow.cgroups.devices import check_rules
from scow.cgroups.resources import DeviceRule
from scow.cgroups.unit import INFINITY, Unit, device_properties, properties, unit_at, unit_of
from scow.native.errors import InvalidArgument


@pytest.mark.parametrize(
    ("path", "unit", "cgroup"),
    [
        ("", Unit("system.slice", "scow-c1.scope"), "system.slice/scow-c1.scope"),
        ("::x", Unit("system.slice", "x.scope"), "system.slice/x.scope"),
        ("machine.slice:libpod:f0", Unit("machine.slice", "libpod-f0.scope"),
         "machine.slice/libpod-f0.scope"),
        ("a-b-c.slice:p:n", Unit("a-b-c.slice", "p-n.scope"),
         "a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
        ("-.slice:p:n", Unit("-.slice", "p-n.scope"), "p-n.scope"),
    ],
)  # fmt: skip
def test_names(path: str, unit: Unit, cgroup: str) -> None:
    found = unit_of(path, "c1")
    assert (found, found.path) == (unit, cgroup)
    assert unit_at(cgroup) == unit


@pytest.mark.parametrize(
    "path",
    [
        "/a/b", "a", "a:b", "a:b:c:d", "a.slice:b:", "::", "::x.slice", "x:y:z", ".slice:y:z",
        "a/b.slice:y:z", "a--b.slice:y:z", "-a.slice:y:z", "a-.slice:y:z", "..slice/:y:z",
        "a.slice:y:z\n[Service]", "a\n.slice:y:z", "::a b", "::a+b", "::a/b", "::" + "x" * 256,
    ],
)  # fmt: skip
def test_names_of_no_scope(path: str) -> None:
    with pytest.raises(InvalidArgument):
        unit_of(path, "c1")


def found(*writes: tuple[str, str], can_idle: bool = False) -> dict[str, object]:
    given = [Write(name.partition(".")[0], name, value) for name, value in writes]
    return {name: value for name, (_, value) in properties(given, can_idle=can_idle)}


def test_limits_of_v2() -> None:
    assert found(
        ("memory.max", "100"),
        ("memory.swap.max", "max"),
        ("memory.high", "1G"),  # a unit that only the kernel reads
        ("cpu.weight", "170"),
        ("pids.max", "0"),
        ("io.max", "8:0 rbps=1"),
        ("memory.max", "200"),
    ) == {"MemoryMax": 200, "MemorySwapMax": INFINITY, "CPUWeight": 170, "TasksMax": 1}


@pytest.mark.parametrize(
    ("writes", "per_second", "period"),
    [
        ([("cpu.max", "12345 50000")], 250_000, 50_000),
        ([("cpu.max", "50000 100000")], 500_000, 100_000),
        ([("cpu.max", "max 20000")], INFINITY, 20_000),
        ([("cpu.cfs_quota_us", "50000")], 500_000, None),
        ([("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "-1")], INFINITY, 10_000),
        ([("cpu.cfs_period_us", "10000")], None, 10_000),
    ],
)
def test_quotas_in_whole_percent(
    writes: list[tuple[str, str]], per_second: int | None, period: int | None
) -> None:
    told = found(*writes)
    assert told.get("CPUQuotaPerSecUSec") == per_second
    assert told.get("CPUQuotaPeriodUSec") == period


def test_an_idle_processor() -> None:
    assert found(("cpu.idle", "1")) == {}
    assert found(("cpu.idle", "1"), can_idle=True) == {"CPUWeight": 0}
    assert found(("cpu.idle", "0"), ("cpu.weight", "5"), can_idle=True) == {"CPUWeight": 5}


def test_masks_of_processors() -> None:
    assert found(("cpuset.cpus", "0-2,9"), ("cpuset.mems", "0")) == {
        "AllowedCPUs": b"\x07\x02",
        "AllowedMemoryNodes": b"\x01",
    }
    # a list that no host has costs nothing
    assert len(str(found(("cpuset.cpus", "0-2147483646"))["AllowedCPUs"])) < 10_000


def test_devices() -> None:
    everything = DeviceRule(allow=True)
    assert device_properties(check_rules([everything])) == [("DevicePolicy", ("s", "auto"))]
    rules = [
        DeviceRule(allow=False),
        DeviceRule(allow=True, type="c", access="m"),
        DeviceRule(allow=True, type="c", major=1, minor=3),
        DeviceRule(allow=True, type="c", major=136),
    ]
    [policy, (name, (signature, allowed))] = device_properties(check_rules(rules))
    assert policy == ("DevicePolicy", ("s", "strict"))
    assert (name, signature) == ("DeviceAllow", "a(ss)")
    assert allowed == [("char-*", "m"), ("/dev/char/1:3", "rwm"), ("char-pts", "rwm")]
