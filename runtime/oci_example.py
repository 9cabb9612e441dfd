"""The configuration that `spec` writes: the defaults of scow, in the form of the specification.

Every list comes from `security` and the default filter, so that what `scow run` confines by and what an
engine's author starts from are one profile.
"""

from __future__ import annotations

import os
import resource

import msgspec

from scow.runtime.oci_state import OCI_VERSION
from scow.runtime.security import DEFAULT_CAPABILITIES, READONLY_PATHS, masked_paths

_NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
_OPEN_FILES = (1024, 524288)
_PIDS = 2048
_SYSCTLS = {
    # What CAP_NET_BIND_SERVICE and CAP_NET_RAW would otherwise be needed for, in a network of its own.
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}


def example_spec() -> dict[str, object]:
    """A configuration that runs `sh` in the bundle's `rootfs`, confined as scow does by default."""
    capabilities = [f"CAP_{name}" for name in sorted(DEFAULT_CAPABILITIES)]
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": os.isatty(0),
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            # Inheritable and ambient stay empty: file capabilities would work by them (CVE-2022-24769).
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": _rlimits(),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "scow",
        "mounts": _mounts(),
        "linux": {
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "pids": {"limit": _PIDS},
            },
            "sysctl": _SYSCTLS,
            "seccomp": _seccomp(),
            "maskedPaths": list(masked_paths()),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }


def _rlimits() -> list[dict[str, object]]:
    """No limit that this process could not set itself: that needs CAP_SYS_RESOURCE (getrlimit(2))."""
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft, hard = _OPEN_FILES
    hard = hard if highest == resource.RLIM_INFINITY else min(hard, highest)
    return [
        {"type": "RLIMIT_NOFILE", "soft": min(soft, hard), "hard": hard},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]


def _mounts() -> list[dict[str, object]]:
    def mount(where: str, kind: str, source: str, options: str) -> dict[str, object]:
        return {"destination": where, "type": kind, "source": source, "options": options.split()}

    pts = "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"
    return [
        mount("/proc", "proc", "proc", "nosuid noexec nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
        mount("/dev/pts", "devpts", "devpts", pts),
        mount("/dev/shm", "tmpfs", "shm", "nosuid noexec nodev mode=1777 size=65536k"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid noexec nodev relatime ro"),
    ]


def _seccomp() -> dict[str, object]:
    """The default filter for the default capabilities, without the conditions of Docker's form.

    Other runtimes pass over properties that they do not know, and would take a rule for CAP_SYS_ADMIN
    as one for everybody.
    """
    from scow.runtime.seccomp import default_profile
    from scow.runtime.seccomp_resolve import resolve_profile

    resolved = resolve_profile(default_profile(), frozenset(DEFAULT_CAPABILITIES))
    document = msgspec.to_builtins(resolved)
    assert isinstance(document, dict)
    return document
