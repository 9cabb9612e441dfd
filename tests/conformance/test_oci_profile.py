"""The configuration that `scow-oci spec` writes, tried entry by entry in a container made from it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from fixtures.bundle import Bundle, without_unified
from fixtures.hostile import World, facts
from fixtures.profile import (
    ALLOWED,
    BLOCKED,
    DEFAULT,
    FORBIDDEN,
    I386,
    MASKED,
    READ_ONLY,
    USABLE,
    number,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
x86_64 = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the numbers are those of x86_64"
)


@pytest.fixture
def box(world: World) -> Bundle:
    """A bundle whose configuration is what `spec` wrote; changed are only name, terminal and cgroup."""
    made = world.bundle()
    world.oci.ok("spec", "--bundle", str(made.path))
    cgroup = made.linux["cgroupsPath"]
    made.config = json.loads((made.path / "config.json").read_text())
    made.linux["cgroupsPath"] = cgroup
    made.process["terminal"] = False
    made.process["env"] = ["PATH=/bin"]
    for name in ("root", "data"):
        (made.rootfs / name).mkdir()
    return made


def writable(box: Bundle, *names: str) -> Bundle:
    """The same with a root that can be written to and further capabilities."""
    box.config["root"]["readonly"] = False
    for kind in ("bounding", "effective", "permitted"):
        box.process["capabilities"][kind] = [
            *box.process["capabilities"][kind],
            *(f"CAP_{n}" for n in names),
        ]
    return box


def test_spec_writes_once_and_other_runtimes_take_it(world: World, box: Bundle) -> None:
    """runc and crun run the same file; without a condition that they would pass over."""
    done = world.oci("spec", "--bundle", str(box.path))
    assert (done.code, "exists" in done.err) == (1, True)
    text = (box.path / "config.json").read_text()
    assert not re.search("includes|excludes|archMap", text)
    box.process["args"] = ["sh", "-c", "echo $$; grep Seccomp: /proc/self/status"]
    box.write()
    for name in ("runc", "crun"):
        if name == "crun":
            box.config["ociVersion"] = "1.0.2"  # crun 1.8 knows none above
        box.write()
        argv = without_unified([name], world.base / "empty") if name == "crun" else [name]
        words = ["--root", str(world.base / name), "run", "-b", str(box.path), f"scow-{name}"]
        ran = subprocess.run([*argv, *words], capture_output=True, text=True, stdin=-3, timeout=60)
        assert ran.stdout.split() == ["1", "Seccomp:", "2"], ran


def test_identity_and_limits(world: World, box: Bundle) -> None:
    """Sections 2 and 7: capabilities, no_new_privs, filter, umask, limits, signals, descriptors."""
    seen = world.probe(box, "show")
    assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == int(seen["CapBnd"], 16) == DEFAULT
    assert int(seen["CapInh"], 16) == int(seen["CapAmb"], 16) == 0
    assert (seen["Seccomp"], seen["NoNewPrivs"], seen["Umask"], seen["keepcaps"]) == (
        "2",
        "1",
        "0022",
        "0",
    )
    assert int(seen["SigIgn"], 16) == int(seen["SigBlk"], 16) == 0
    assert {name for name in seen if name.startswith("fd.")} == {"fd.0", "fd.1", "fd.2"}
    assert seen["nofile"].split()[0] == "1024"
    assert int(seen["nofile"].split()[1]) <= 524288
    box.script("ulimit -c; ulimit -Hc; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; cat /proc/self/cgroup | sed 's/.*://' | sort | uniq")  # fmt: skip
    (box.rootfs / "bin/sed").symlink_to("busybox")
    (box.rootfs / "bin/uniq").symlink_to("busybox")
    assert world.ok(box).split() == ["0", "0", "2048", "/"]


def test_namespaces_and_names(world: World, box: Bundle) -> None:
    """Section 1: six namespaces of its own, the user namespace is the host's."""
    seen = world.probe(box, "show")
    own = {kind for kind in os.listdir("/proc/self/ns") if seen.get(f"ns.{kind}") != os.readlink(f"/proc/self/ns/{kind}")}  # fmt: skip
    assert own >= {"pid", "net", "ipc", "uts", "mnt", "cgroup"}
    assert "user" not in own
    assert seen["hostname"] == "scow"


@x86_64
def test_system_calls(world: World, box: Bundle) -> None:
    """Section 3, 14: what is refused, by which errno, on both entries; what programs need is there."""
    seen = world.probe(box, "calls", *(number(name) for name in BLOCKED))
    wrong = {
        name: seen[number(name)]
        for name in BLOCKED
        if seen[number(name)] not in ("EPERM", "ENOSYS")
    }
    assert wrong == {}
    assert sum(seen[number(name)] == "EPERM" for name in BLOCKED) >= len(BLOCKED) - 3
    seen = world.probe(box, "calls", number("clone3"), str(0x40000000 + 39), "600")
    assert set(seen.values()) == {"ENOSYS"}
    probe = str(box.rootfs / "bin/probe")
    bare = facts(subprocess.run([probe, "calls", *(number(n) for n in ALLOWED)], capture_output=True, text=True, check=True).stdout)  # fmt: skip
    seen = world.probe(box, "calls", *(number(name) for name in ALLOWED))
    wrong = {
        name: seen[number(name)]
        for name in ALLOWED
        if (seen[number(name)] in ("EPERM", "ENOSYS") or "signal" in seen[number(name)])
        and bare[number(name)] not in ("EPERM", "ENOSYS")
    }
    assert wrong == {}


@x86_64
def test_the_32_bit_entry(world: World, box: Bundle) -> None:
    """CVE-2026-31431: neither by int 0x80."""
    probe = str(box.rootfs / "bin/probe")
    here = subprocess.run([probe, "int80", "20"], capture_output=True, text=True, check=True)
    if here.stdout != "20 0\n":
        pytest.skip("this kernel has no 32-bit entry")
    seen = world.probe(box, "int80", *(key for key, _ in I386.values()))
    assert {name: seen[key] for name, (key, _) in I386.items()} == {
        name: error for name, (_, error) in I386.items()
    }


def test_sockets_and_namespaces(world: World, box: Bundle) -> None:
    """CVE-2026-31431, CVE-2020-14386, CVE-2022-0185, CVE-2022-0492: families and new namespaces."""
    kinds = {"1:1:0": "0", "2:1:0": "0", "2:2:0": "0", "16:3:0": "0", "2:2:1": "0", "38:5:0": "EPERM", "40:1:0": "EPERM", "17:3:0": "EPERM", "2:3:1": "EPERM"}  # fmt: skip
    assert world.probe(box, "sockets", *kinds) == kinds
    box.script(
        "for k in -U -m -n -i -u -p -C '-U -C -m'; do unshare $k true 2>/dev/null && echo UNSHARED $k; done; "
        "mount -t tmpfs x /tmp 2>/dev/null && echo MOUNTED; mount -t cgroup -o memory x /tmp 2>/dev/null && echo CGROUP; echo end"
    )
    (box.rootfs / "bin/unshare").symlink_to("busybox")
    assert world.ok(box) == "end\n"


@x86_64
def test_a_capability_is_not_enough_without_its_calls(world: World, box: Bundle) -> None:
    """ "Shocker": open_by_handle_at with the capability; the filter of `spec` is for the default ones."""
    writable(box, "DAC_READ_SEARCH", "SYS_ADMIN")
    seen = world.probe(box, "calls", number("open_by_handle_at"), number("mount"))
    assert set(seen.values()) == {"EPERM"}
    del box.linux["seccomp"]  # the twin: it was the filter that said so
    seen = world.probe(box, "calls", number("open_by_handle_at"))
    assert set(seen.values()) != {"EPERM"}


def test_masked_and_read_only_paths(world: World, box: Bundle) -> None:
    """Section 5, CVE-2018-10892: each path that this kernel has is empty, and none can be written."""
    assert set(MASKED) - {"/sys/devices/system/cpu/cpu0/thermal_throttle"} <= set(
        box.linux["maskedPaths"]
    )
    box.process["args"] = ["sh", "-c", "for p in $0 $@; do if [ -d $p ]; then echo $p dir $(ls -A $p | wc -l); elif [ -e $p ]; then echo $p file $(cat $p | wc -c); fi; done", *MASKED]  # fmt: skip
    seen = facts(world.ok(box))
    assert set(seen) == {path for path in MASKED if os.path.exists(path)}
    assert set(seen.values()) <= {"dir 0", "file 0"}
    written = world.probe(writable(box), "open", "w", *seen, *READ_ONLY)
    assert {
        path: e
        for path, e in written.items()
        if e not in ("EROFS", "EACCES", "EISDIR", "ENOENT", "EPERM")
    } == {}
    assert written["/proc/sys/kernel/core_pattern"] == "EROFS"
    created = world.probe(box, "create", "/sys/fs/cgroup", "/proc/sys", "/sys", "/proc", "/dev/shm")
    assert created.pop("/dev/shm") == "0"
    assert "0" not in created.values()


MOUNTS = {
    "/": (None, "ro,relatime"),
    "/proc": ("proc", "rw,nosuid,nodev,noexec,relatime"),
    "/dev": ("tmpfs", "rw,nosuid"),
    "/dev/pts": ("devpts", "rw,nosuid,noexec,relatime"),
    "/dev/mqueue": ("mqueue", "rw,nosuid,nodev,noexec,relatime"),
    "/dev/shm": ("tmpfs", "rw,nosuid,nodev,noexec,relatime"),
    "/sys": ("sysfs", "ro,nosuid,nodev,noexec,relatime"),
}


def test_every_mount_and_its_flags(world: World, box: Bundle) -> None:
    """Section 6: no other mount, none that propagates, each with its flags."""
    found: dict[str, tuple[str | None, str]] = {}
    box.process["args"] = ["cat", "/proc/self/mountinfo"]
    for line in world.ok(box).splitlines():
        fields = line.split()
        dash = fields.index("-")
        assert not fields[6:dash], line
        assert fields[4] not in found
        found[fields[4]] = (None if fields[4] == "/" else fields[dash + 1], fields[5])
        assert fields[dash + 2] != "shm" or "size=65536k" in line
    for path in [path for path in found if path in MASKED]:
        assert found.pop(path) == ("tmpfs", "ro,nosuid,nodev,noexec,relatime")
    for path in [path for path in found if path.startswith("/sys/fs/cgroup")]:
        assert found.pop(path)[1] == "ro,nosuid,nodev,noexec,relatime"
    covers = {path: ("proc", "ro,nosuid,nodev,noexec,relatime") for path in box.linux["readonlyPaths"] if os.path.exists(path)}  # fmt: skip
    found["/"] = (None, found["/"][1].replace("noatime", "relatime"))
    assert found == MOUNTS | covers


def test_devices(world: World, box: Bundle) -> None:
    """Section 4: the nodes that are there, those that can be opened, and the rest."""
    box.script("ls -l /dev | grep ^[bc]; ls /dev/pts")
    names = {line.split()[-1]: line for line in world.ok(box).splitlines() if line[0] in "bc"}
    assert set(names) == {"null", "zero", "full", "random", "urandom", "tty"}
    assert all(line.startswith("crw-rw-rw-") for line in names.values())
    assert set(world.probe(writable(box), "nodes", "/data", *USABLE, *FORBIDDEN).values()) == {
        "EPERM"
    }
    seen = world.probe(writable(box, "MKNOD"), "nodes", "/data", *USABLE, *FORBIDDEN)
    assert {key: seen[key] for key in FORBIDDEN} == dict.fromkeys(FORBIDDEN, "0 EPERM EPERM")
    assert all(seen[key].startswith("0 ") and "EPERM" not in seen[key] for key in USABLE), seen


def test_sysctls_and_keys(world: World, box: Bundle) -> None:
    """Section 8: low ports and ping for everybody; section 7: a session keyring of its own."""
    box.process["args"] = ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/ping_group_range"]  # fmt: skip
    assert world.ok(box).split() == ["0", "0", "2147483647"]
    box.linux["maskedPaths"].remove("/proc/keys")
    box.process["args"] = ["cat", "/proc/keys"]
    # The host's may be listed, too, as their owner is root here as well: to see is all one can.
    assert "_ses.box: empty" in world.ok(box)


def test_the_profile_has_nothing_of_the_host_in_it(box: Bundle) -> None:
    text = json.dumps(box.config)
    assert str(Path.cwd()) not in text
