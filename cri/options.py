"""What a caller may ask of a container: typed, validated values, no text left to interpret.

Every door (the command line, the API, tests) builds these through `scow.cri.parse`; the service
reads them and asks no further question about form. What belongs here: the shape and the units.
What must not: parsing, defaults that depend on the host, knowledge of an image.

Text that came from the user's shell (arguments, environment, paths) is `str` with surrogateescape,
so `os.fsencode` gives back the very bytes.
"""

from __future__ import annotations

import msgspec

from scow.native.idmap import IdMap
from scow.netns.ports import PortMapping  # not for type checkers only: records are decoded by it

UNLIMITED = -1


class UserSpec(msgspec.Struct, frozen=True):
    """`USER[:GROUP]`; a number is an id, a text a name to look up in the image."""

    user: int | str
    group: int | str | None = None

    def __str__(self) -> str:
        return f"{self.user}" if self.group is None else f"{self.user}:{self.group}"


class NamespaceMode(msgspec.Struct, frozen=True):
    """Where a namespace comes from.

    kind: network: "bridge" "none" "host" "container"; pid: "private" "host" "container";
    ipc: "private" "shareable" "none" "host" "container"; uts, cgroup: "private" "host".
    All but cgroup may be "pod" in a container of a pod: what the pod has pinned.
    `container` is the name or id as typed, only with kind "container".
    """

    kind: str
    container: str = ""

    def __str__(self) -> str:
        return f"container:{self.container}" if self.kind == "container" else self.kind


class Mount(msgspec.Struct, frozen=True):
    """A bind mount, a volume, or an image's files (read-only).

    `source` is an absolute host path (bind), a volume's name ("" asks for an anonymous one), or an
    image's id, of which `sub_path` is mounted.
    `create_source` (from -v, as Docker): a missing bind source becomes an empty directory.
    `recursive`: submounts of the source come along. `copy_up`: an empty volume is filled from
    the image's directory. `top_only`: read-only is the mount itself, and none below it. `flags`
    are further attributes ("noexec", "nodev", "nosuid"). The maps are (container, host, length).
    """

    kind: str  # "bind" | "volume" | "image"
    source: str
    target: str
    read_only: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    create_source: bool = False
    copy_up: bool = True
    top_only: bool = False
    flags: tuple[str, ...] = ()
    sub_path: str = ""
    uid_map: tuple[tuple[int, int, int], ...] = ()
    gid_map: tuple[tuple[int, int, int], ...] = ()


class Tmpfs(msgspec.Struct, frozen=True):
    """A tmpfs; `size_bytes` None is the kernel's default (half of memory)."""

    target: str
    size_bytes: int | None = None
    mode: int = 0o1777
    uid: int | None = None
    gid: int | None = None
    inodes: int | None = None
    read_only: bool = False
    noexec: bool = True
    nosuid: bool = True
    nodev: bool = True


class Device(msgspec.Struct, frozen=True):
    """A host device made visible; `permissions` is a sorted subset of "rwm"."""

    host_path: str
    container_path: str
    permissions: str = "rwm"


class Ulimit(msgspec.Struct, frozen=True):
    """A resource limit in setrlimit's own units; -1 is unlimited."""

    name: str  # lower case, without RLIMIT_: "nofile"
    soft: int
    hard: int

    @property
    def oci_name(self) -> str:
        """The OCI spec's name of the limit."""
        return "RLIMIT_" + self.name.upper()


class DeviceRate(msgspec.Struct, frozen=True):
    """A throttle of one block device, in bytes or operations per second."""

    host_path: str
    rate_per_s: int


class HostEntry(msgspec.Struct, frozen=True):
    """One line for /etc/hosts; address "host-gateway" stands for the bridge's own address."""

    name: str
    address: str


class Limits(msgspec.Struct, frozen=True):
    """cgroup limits; None means not asked for.

    `memory_swap_bytes` counts memory + swap together, as Docker's flag does; -1 is unlimited.
    `pids` None is scow's default, -1 unlimited. `nano_cpus` is cpus * 10**9 and never comes
    together with `cpu_quota_us` or `cpu_period_us`.
    """

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    memory_swappiness: int | None = None
    nano_cpus: int | None = None
    cpu_shares: int | None = None
    cpu_period_us: int | None = None
    cpu_quota_us: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = None
    blkio_weight: int | None = None
    device_read_bps: tuple[DeviceRate, ...] = ()
    device_write_bps: tuple[DeviceRate, ...] = ()
    device_read_iops: tuple[DeviceRate, ...] = ()
    device_write_iops: tuple[DeviceRate, ...] = ()
    hugepages: tuple[tuple[str, int], ...] = ()  # page size ("2MB"), bytes
    unified: dict[str, str] = {}  # files of cgroup v2 and their values


class Security(msgspec.Struct, frozen=True):
    """What the process may do.

    Capabilities are "CAP_NET_ADMIN" or "ALL". `seccomp` is None (scow's profile), "unconfined" or
    the absolute path of a profile. `apparmor` is None, "unconfined" or the name of a loaded profile.
    `unmask`: leave /proc and /sys paths uncovered
    (systempaths=unconfined). `masked_paths` and `readonly_paths` stand in for scow's own lists.
    """

    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    no_new_privileges: bool = False
    seccomp: str | None = None
    apparmor: str | None = None
    unmask: bool = False
    cap_ambient: tuple[str, ...] = ()
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None


class NetworkOptions(msgspec.Struct, frozen=True):
    """How the container is connected and what its name files say."""

    mode: NamespaceMode = NamespaceMode("bridge")
    ports: tuple[PortMapping, ...] = ()
    ip: str | None = None
    mac: str | None = None
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[HostEntry, ...] = ()


class LogOptions(msgspec.Struct, frozen=True):
    """Rotation of the container's log."""

    max_bytes: int = 10 * 1024 * 1024
    max_files: int = 3


class ContainerOptions(msgspec.Struct, frozen=True):
    """Everything `create` needs beside the image itself.

    `image_name` is the reference as typed, for people to read. `entrypoint` None keeps the
    image's, () clears it. `environment` holds "KEY=VALUE", later ones win over the image's and
    over earlier ones. `stop_timeout_s` None is 10, -1 waits for ever; `stop_signal` is a number.
    `auto_ids` asks for a user namespace with a range of ids of its own, which `ids` tells from the
    creation on; without it `ids` None is the host's. `shm_bytes` None is 64 MiB. `hostname` None is the short id. `stdin_once`: close stdin when
    the first client that gave input goes away (`run -i` without -d).
    """

    image_name: str = ""
    name: str | None = None
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    environment: tuple[str, ...] = ()
    working_dir: str | None = None
    user: UserSpec | None = None
    group_add: tuple[int | str, ...] = ()
    group_policy: str = ""  # "merge": the image's groups of the user too; "strict": none of them
    hostname: str | None = None
    domainname: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    terminal: bool = False
    terminal_size: tuple[int, int] = (24, 80)  # rows, columns
    open_stdin: bool = False
    stdin_once: bool = False
    auto_remove: bool = False
    read_only: bool = False
    init: bool = False
    mounts: tuple[Mount, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    devices: tuple[Device, ...] = ()
    shm_bytes: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: dict[str, str] = {}  # "net.core.somaxconn": "8"
    oom_score_adj: int | None = None
    stop_signal: int | None = None
    stop_timeout_s: int | None = None
    cgroup_parent: str | None = None
    limits: Limits = Limits()
    security: Security = Security()
    network: NetworkOptions = NetworkOptions()
    pid: NamespaceMode = NamespaceMode("private")
    ipc: NamespaceMode = NamespaceMode("private")
    uts: NamespaceMode = NamespaceMode("private")
    cgroup: NamespaceMode = NamespaceMode("private")
    auto_ids: bool = False
    ids: IdMap | None = None
    log: LogOptions = LogOptions()


class ExecOptions(msgspec.Struct, frozen=True):
    """A further process in a running container; what is None is taken from the container."""

    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    working_dir: str | None = None
    user: UserSpec | None = None
    terminal: bool = False
    terminal_size: tuple[int, int] = (24, 80)
    open_stdin: bool = False
    detach: bool = False
    privileged: bool = False
    timeout_s: int = 0  # then it is killed by its monitor; 0: never
