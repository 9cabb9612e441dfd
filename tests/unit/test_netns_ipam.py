"""Addresses: subnets, leases, and many processes that want one at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scow.native.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from scow.netns.ipam import LeaseStore, Subnet, choose_subnet, locked, parse_mac

NET = Subnet.parse("10.89.0.0/16")


def store(directory: Path, dead: frozenset[str] = frozenset()) -> LeaseStore:
    leases = LeaseStore(str(directory), lambda container_id: container_id not in dead)
    leases.prepare()
    return leases


def test_addresses_go_round(tmp_path: Path) -> None:
    leases = store(tmp_path)
    assert leases.claim_any("a", NET, 1023) == "10.89.0.2"
    assert leases.claim_any("b", NET, 1023) == "10.89.0.3"
    leases.release("a", "10.89.0.2")
    assert leases.claim_any("c", NET, 1023) == "10.89.0.4"
    assert leases.all() == {"10.89.0.3": "b", "10.89.0.4": "c"}


def test_a_small_subnet_survives_churn_and_ends(tmp_path: Path) -> None:
    leases, small = store(tmp_path), Subnet.parse("10.1.0.0/28")
    for turn in range(500):
        address = leases.claim_any(f"c{turn}", small, 1023)
        assert address is not None
        leases.release(f"c{turn}", address)
    held = [leases.claim_any(f"d{turn}", small, 1023) for turn in range(13)]
    assert len(set(held)) == 13
    assert None not in held
    assert leases.claim_any("one more", small, 1023) is None


def test_the_limit_of_the_bridge_counts(tmp_path: Path) -> None:
    leases = store(tmp_path)
    assert leases.claim_any("a", NET, 1) is not None
    assert leases.claim_any("b", NET, 1) is None


@pytest.mark.parametrize("hint", ["", "rubbish", "1.2.3.4", "10.89.255.254", "\0"])
def test_a_damaged_hint_does_not_matter(tmp_path: Path, hint: str) -> None:
    leases = store(tmp_path)
    (tmp_path / "last").write_text(hint)
    assert leases.claim_any("a", NET, 1023) == "10.89.0.2"


def test_many_processes_claim_at_once(tmp_path: Path) -> None:
    leases = store(tmp_path)
    pids = []
    for worker in range(8):
        pid = os.fork()
        if pid == 0:
            claims = [leases.claim_any(f"{worker}-{n}", NET, 1023) for n in range(25)]
            os._exit(0 if len(set(claims) - {None}) == 25 else 1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    assert len(leases.all()) == 200
    assert len(set(leases.all().values())) == 200


def test_many_processes_claim_and_release(tmp_path: Path) -> None:
    leases, small = store(tmp_path), Subnet.parse("10.1.0.0/27")
    pids = []
    for worker in range(6):
        pid = os.fork()
        if pid == 0:
            for turn in range(60):
                me = f"{worker}-{turn}"
                address = leases.claim_any(me, small, 1023)
                if address is None or leases.holder(address) != me:
                    os._exit(1)
                with locked(f"{tmp_path}/lock"):
                    leases.release(me, address)
            os._exit(0)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 6
    assert leases.all() == {}


def test_a_given_address(tmp_path: Path) -> None:
    leases = store(tmp_path, dead=frozenset({"dead"}))
    leases.claim("dead", "10.89.5.5")
    leases.claim_given("a", NET, "10.89.5.5")
    with pytest.raises(AlreadyExists, match="container 'a' has it"):
        leases.claim_given("b", NET, "10.89.5.5")


@pytest.mark.parametrize(
    ("address", "gist"),
    [
        ("10.90.0.2", "not in the subnet"),
        ("10.89.0.0", "network address"),
        ("10.89.0.1", "gateway"),
        ("10.89.255.255", "broadcast"),
        ("10.89.0", "not an IPv4"),
        ("10.89.0.2/16", "not an IPv4"),
        ("fd00::2", "not an IPv4"),
        ("../../x", "not an IPv4"),
        ("10.89.0.2\n", "not an IPv4"),
        ("", "not an IPv4"),
    ],
)
def test_an_address_that_cannot_be(tmp_path: Path, address: str, gist: str) -> None:
    with pytest.raises(InvalidArgument, match=gist):
        store(tmp_path).claim_given("a", NET, address)


def test_release_leaves_a_new_holder_alone(tmp_path: Path) -> None:
    leases = store(tmp_path)
    leases.claim("new", "10.89.0.2")
    leases.release("old", "10.89.0.2")
    assert leases.holder("10.89.0.2") == "new"


def test_choose_subnet_goes_round_the_host_routes() -> None:
    routes = [Subnet.parse(s) for s in ("0.0.0.0/0", "10.89.3.0/24", "10.90.0.0/15", "127.0.0.0/8")]
    assert str(choose_subnet(routes)) == "10.92.0.0/16"
    with pytest.raises(ResourceExhausted):
        choose_subnet([Subnet.parse("10.0.0.0/8"), Subnet.parse("172.16.0.0/12")])


@pytest.mark.parametrize(
    "spec", ["10.0.0.0", "10.0.0.0/33", "10.0.0.1/16", "x/8", "10.0.0.0/ 8", "/8"]
)
def test_bad_subnets(spec: str) -> None:
    with pytest.raises(InvalidArgument):
        Subnet.parse(spec)


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "02:5c",
        "01:00:00:00:00:01",
        "00:00:00:00:00:00",
        "02-5c-0a-59-00-02",
        "0x:00:00:00:00:01",
        "+2:00:00:00:00:01",
    ],
)
def test_bad_macs(mac: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_mac(mac)
    assert parse_mac("02:5C:0a:59:00:02") == "02:5c:0a:59:00:02"
