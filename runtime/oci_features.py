"""What `features` says scow-oci can do."""

from __future__ import annotations

from scow.runtime.oci_state import OCI_VERSION
from scow.runtime.security import CAPABILITY_NAMES

_HOOKS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)
_MOUNT_OPTIONS = (
    "async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand "
    "noatime nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid "
    "nosymfollow private ratime rbind rdev rdiratime relatime remount rexec ridmap rnoatime rnodev "
    "rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime "
    "rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave "
    "strictatime suid symfollow sync tmpcopyup unbindable"
)

_MEMORY_MODES = "DEFAULT BIND INTERLEAVE WEIGHTED_INTERLEAVE PREFERRED PREFERRED_MANY LOCAL"


def features() -> dict[str, object]:
    """The document of runtime-spec features.md."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(_HOOKS),
        "mountOptions": _MOUNT_OPTIONS.split(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": [f"CAP_{name}" for name in CAPABILITY_NAMES],
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": True,
                "systemdUser": False,
                "rdma": True,
            },
            "seccomp": _seccomp(),
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
            "memoryPolicy": {
                "modes": [f"MPOL_{name}" for name in _MEMORY_MODES.split()],
                "flags": [f"MPOL_F_{name}_NODES" for name in ("RELATIVE", "STATIC")]
                + ["MPOL_F_NUMA_BALANCING"],
            },
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": {"io.github.scow.version": OCI_VERSION},
    }


def _seccomp() -> dict[str, object]:
    actions = "ALLOW ERRNO KILL KILL_PROCESS KILL_THREAD LOG NOTIFY TRACE TRAP"
    operators = "EQ GE GT LE LT MASKED_EQ NE"
    flags = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ]
    return {
        "enabled": True,
        "actions": [f"SCMP_ACT_{name}" for name in actions.split()],
        "operators": [f"SCMP_CMP_{name}" for name in operators.split()],
        "archs": ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
        "knownFlags": flags,
        "supportedFlags": flags,
    }
