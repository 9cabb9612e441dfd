"""The same bundle through scow-oci, runc and crun: what the container sees must be the same.

The configurations are in fixtures/oci_cases.py and fixtures/configs.py, by hand and generated; the
facts are those of fixtures/facts.py. Where the peers differ from each other, RULES says which of them
scow follows, and why; where scow is like neither, why that is right. Nothing else may differ.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from fixtures import configs, kernel
from fixtures.oci_cases import OLD_PEERS, REFUSED, STRICTER, TERMINAL, VALID
from fixtures.peers import CODE, Outcome, Peers, holding_namespaces, peers

pytestmark = pytest.mark.cgroup_v1

GENERATED = 70
# Whom scow follows where the peers differ ("own": neither), in which facts, and why.
RULES: tuple[tuple[str, str, str], ...] = (
    ("own", r"(mount|point) (/proc/.*|/sys/firmware|/made/masked|/made/empty)",
     "masked paths: one read-only empty file and directory of ours, with nosuid, nodev and noexec"),
    ("own", r"in write /made/empty", "a masked directory that not even root can think writable"),
    ("own", r"(mount|point) /sys/fs/cgroup", "read-only where that is asked for, which the peers forget"),
    ("own", r"point /sys/fs/cgroup/.*", "the sticky bit marks cgroups that scow has made"),
    ("own", r"mount /sys/fs/cgroup/unified", "cgroup2 of a hybrid host is shown like the others"),
    ("own", r"cgroup file devices.list", "runc's defaults and the console, 5:1, which crun has too"),
    ("own", r"hooks", "the states that the specification names: poststart runs while running"),
    ("own", r"mount /made/run", "a tmpfs with tmpcopyup is filled on the host, so it is the host's"),
    ("runc", r"environment", "HOME for a user that is not in passwd, too"),
    ("runc", r"file /dev/core", "no link to the kernel's memory"),
    ("runc", r"mount /dev/(full|null|random|tty|urandom|zero)", "devices bound in a user namespace"),
    ("runc", r"(point|in write) /(made/(run|kept)|mnt)", "a tmpfs has the mode of what it covers"),
    ("own", r"user namespace, host network: (mount|point) /sys.*",
     "the host's /sys alone, with the options that were asked for, and not its cgroups as well"),
    ("own", r"sysctl kernel/domainname", "domainname is younger than the peers"),
    ("own", r"cgroup file cpu.cfs_burst_us", "cpu.burst is younger than the peers"),
    ("crun", r"cgroup file cpu.(idle|shares)", "cpu.idle is younger than runc 1.1"),
    ("crun", r"(file|point) /dev/mqueue", "its root is the user namespace's root, with its group"),
    ("crun", r"in terminal", "consoleSize, where the caller's terminal has no size"),
    ("crun", r"in uname|personality", "personality is younger than runc 1.1"),
    ("runc", r"in read /proc/keys", "a session keyring in a user namespace, too"),
    ("runc", r"mount (/b|/dev/console)", "the propagation of a bind counts; the console's flags"),
    ("runc", r"in disk", "without device rules nothing is allowed but the defaults"),
    ("crun", r"(point|in write) /(made/kept|mnt)", "mode= counts also for a directory that exists"),
    ("crun", r"mount .*", "rootfsPropagation 'shared' means all of the tree"),
)  # fmt: skip


@pytest.fixture(scope="module")
def holder() -> Iterator[int]:
    kernel.need(kernel.mount_refused)
    with holding_namespaces() as pid:
        yield pid


@pytest.fixture
def three(holder: int) -> Iterator[Peers]:
    for name in ("runc", "crun"):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
    with peers(holder) as found:
        yield found


def differences(case: str, outcomes: dict[str, Outcome]) -> list[str]:
    """What differs and has no rule; a peer that refuses has no say."""
    scow = outcomes["scow"].facts
    others = {kind: o.facts for kind, o in outcomes.items() if kind != "scow" and o.code == CODE}
    found: list[str] = []
    if not others:
        return found
    for name in sorted(set(scow).union(*others.values())):
        values = {kind: facts.get(name) for kind, facts in others.items()}
        if set(values.values()) == {scow.get(name)}:
            continue
        allowed = {
            who
            for who, pattern, _ in RULES
            if re.fullmatch(pattern, name) or re.fullmatch(pattern, f"{case}: {name}")
        }
        same = {kind for kind, value in values.items() if value == scow.get(name)}
        gone = {"runc", "crun"} - set(others)
        if "own" not in allowed and not allowed & (same | gone):
            found.append(f"{name}: scow {scow.get(name)!r}, {values}")
    return found


def check(name: str, outcomes: dict[str, Outcome]) -> None:
    refusing, why = OLD_PEERS.get(name, ("", ""))
    codes = {kind: outcome.code for kind, outcome in outcomes.items()}
    expected = {kind: codes[kind] if kind in refusing.split() else CODE for kind in codes}
    assert codes == expected, [why, *(outcome.err for outcome in outcomes.values())]
    assert not refusing or any(codes[kind] != CODE for kind in refusing.split()), "no longer so"
    assert differences(name, outcomes) == []


@pytest.mark.parametrize("name", VALID)
def test_what_the_container_sees(name: str, three: Peers) -> None:
    check(name, three.run(VALID[name], terminal=name in TERMINAL))


@pytest.mark.parametrize("seed", range(GENERATED))
def test_what_a_generated_one_sees(seed: int, three: Peers) -> None:
    check(str(seed), three.run(configs.generated(seed)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, three: Peers) -> None:
    """scow refuses what one of them refuses, and says so; what only scow refuses has a reason."""
    outcomes = three.run(REFUSED[name])
    codes = {kind: outcome.code for kind, outcome in outcomes.items()}
    assert codes["scow"] == 1, (codes, outcomes["scow"].err)
    assert outcomes["scow"].err.startswith('time="'), outcomes["scow"].err
    assert (codes["runc"] == codes["crun"] == CODE) == (name in STRICTER), codes
    assert three.runtimes["scow"].ok("list", "-q") == ""
    # What is left of a cgroup of scow's keeps its parents: the fixture's rmdir would fail.
