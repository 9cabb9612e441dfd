"""`scow info`: what this host can do, what is missing, and how to mend it.

Every answer asks the kernel, with the very call that a container start would make, where that
costs nothing; words for people are the point of this file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from scow.native.errors import ScowError
from scow.runtime.state import State

if TYPE_CHECKING:
    from scow.cri.service import Service


class Fact(msgspec.Struct, frozen=True):
    """One line: what, how it is, whether that is well, and the fix where it is not."""

    key: str
    value: str
    is_well: bool = True
    hint: str = ""

    def shown(self) -> Fact:
        """The same without the advice where all is well."""
        return Fact(self.key, self.value) if self.is_well else self


def gather(service: Service) -> list[Fact]:
    """Gather all facts; one that cannot be had says so and the others follow."""
    steps: list[tuple[str, Callable[[], Fact]]] = [
        ("Kernel", _kernel),
        ("Root", _root),
        ("Cgroups", _cgroups),
        ("Cgroup controllers", _controllers),
        ("Swap limits", _swap),
        ("Overlay", _overlay),
        ("Seccomp", _seccomp),
        ("Landlock", _landlock),
        ("nftables", _nft),
        ("IP forwarding", _forwarding),
        ("User namespaces", lambda: _namespace("user")),
        ("AppArmor/SELinux", _lsm),
    ]
    facts = [
        Fact("State", service.root),
        Fact("Run state", service.run),
        _containers(service),
        _images(service),
    ]
    for key, step in steps:
        try:
            facts.append(step().shown())
        except (OSError, ScowError) as error:
            facts.append(Fact(key, f"cannot tell: {error}", is_well=False))
    return facts


def _containers(service: Service) -> Fact:
    counts = dict.fromkeys(State, 0)
    for record in service.store.list():
        counts[service.status(record).state] += 1
    shown = ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
    return Fact("Containers", f"{sum(counts.values())}" + (f" ({shown})" if shown else ""))


def _images(service: Service) -> Fact:
    return Fact("Images", str(len(service.images.list())))


def _kernel() -> Fact:
    release = os.uname().release
    major, minor = (
        int("".join(c for c in part if c.isdigit()) or 0) for part in release.split(".")[:2]
    )
    return Fact(
        "Kernel",
        f"{release} ({os.uname().machine})",
        (major, minor) >= (5, 12),
        "scow needs Linux 5.12 or newer (mount_setattr)",
    )


def _root() -> Fact:
    from scow.native.prctl import may_be_given
    from scow.runtime.security import CAPABILITY_NAMES

    if os.geteuid() != 0:
        return Fact("Root", "no", is_well=False, hint="run scow with sudo")
    needed = ("SYS_ADMIN", "NET_ADMIN", "SETUID", "SETGID", "MKNOD", "CHOWN", "SETPCAP")
    missing = [name for name in needed if not may_be_given(CAPABILITY_NAMES.index(name))]
    if missing:
        return Fact("Root", f"without {', '.join(missing)}", is_well=False, hint="run on the host")
    return Fact("Root", "yes")


def _cgroups() -> Fact:
    from scow.cgroups.detect import mode

    found = mode()
    words = {
        "v1": "version 1",
        "v2": "version 2 (unified)",
        "hybrid": "hybrid: limits in version 1, beside an empty version 2",
    }
    return Fact("Cgroups", words.get(found.value, str(found.value)))


def _controllers() -> Fact:
    from scow.cgroups.detect import hierarchies

    host = hierarchies()
    names = {name for hierarchy in host.v1 for name in hierarchy.controllers}
    if not host.v1 and host.unified:
        with open(f"{host.unified}/cgroup.controllers", encoding="ascii") as file:
            names = set(file.read().split())
    missing = {"memory", "cpu", "pids"} - names
    return Fact(
        "Cgroup controllers",
        " ".join(sorted(names)) or "none",
        not missing,
        f"limits on {', '.join(sorted(missing))} will be refused; enable the controller at boot",
    )


def _swap() -> Fact:
    from scow.cgroups.detect import counts_swap

    well = counts_swap()
    return Fact(
        "Swap limits",
        "yes" if well else "no",
        well,
        "boot with 'swapaccount=1' to use --memory-swap",
    )


def _overlay() -> Fact:
    with open("/proc/filesystems", encoding="ascii") as file:
        well = any(line.split()[-1] == "overlay" for line in file)
    return Fact("Overlay", "yes" if well else "no", well, "run 'modprobe overlay'")


def _seccomp() -> Fact:
    from scow.native.prctl import has_seccomp

    well = has_seccomp()
    return Fact("Seccomp", "yes" if well else "no", well, "the kernel lacks CONFIG_SECCOMP_FILTER")


def _landlock() -> Fact:
    from scow.native.sys import landlock_abi

    abi = landlock_abi()
    return Fact(
        "Landlock",
        f"yes (ABI {abi})" if abi else "no",
        abi >= 2,  # native/untar_privilege.c: before, it forbids every hard link
        "images are unpacked behind one wall less; Linux 5.19 and later have it, with 'landlock' in lsm=",
    )


def _nft() -> Fact:
    import shutil
    import subprocess

    path = shutil.which("nft", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        return Fact("nftables", "no 'nft' program", is_well=False, hint="apt-get install nftables")
    done = subprocess.run([path, "list", "tables"], capture_output=True, text=True, timeout=10)
    return Fact(
        "nftables",
        "yes" if done.returncode == 0 else done.stderr.strip().split("\n")[0],
        done.returncode == 0,
        "run 'modprobe nf_tables'",
    )


def _forwarding() -> Fact:
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        well = file.read().strip() == "1"
    # The first container on the bridge turns it on; off is no fault.
    return Fact("IP forwarding", "on" if well else "off (turned on with the first bridge)")


def _namespace(kind: str) -> Fact:
    well = os.path.exists(f"/proc/self/ns/{kind}")
    return Fact("User namespaces", "yes" if well else "no", well, "CONFIG_USER_NS is off")


def _lsm() -> Fact:
    try:
        with open("/sys/kernel/security/lsm", encoding="ascii") as file:
            return Fact("AppArmor/SELinux", f"active: {file.read().strip()} (scow sets no profile)")
    except FileNotFoundError:
        return Fact("AppArmor/SELinux", "not active")
