"""The options of run and create, as tables; their values are parsed in container_options.py."""

from __future__ import annotations

from scow.cli.registry_options import remote_options
from scow.cli.table import Option, flag, many, text
from scow.cli.terminal import DEFAULT_DETACH_KEYS

_PROGRAM = "What runs"
_FILES = "Files"
_NET = "Network and names"
_LIMIT = "Limits"
_SECURITY = "Isolation and rights"

PROGRAM: tuple[Option, ...] = (
    flag("-i", "--interactive", help="Keep standard input open and give it to the program", section=_PROGRAM),
    flag("-t", "--tty", help="Give the program a terminal", section=_PROGRAM),
    flag("--rm", help="Remove the container when it ends", section=_PROGRAM),
    text("--name", metavar="NAME", help="Its name; made up when not given", section=_PROGRAM),
    many("-e", "--env", metavar="KEY=VALUE", help="Set an environment variable; KEY alone passes yours on", section=_PROGRAM),
    many("--env-file", metavar="FILE", help="Read variables from a file, one KEY=VALUE a line", section=_PROGRAM, complete="files"),
    text("-w", "--workdir", metavar="DIR", help="Working directory inside; created when missing", section=_PROGRAM),
    text("-u", "--user", metavar="USER[:GROUP]", help="Run as this user of the image, by name or id", section=_PROGRAM),
    many("--group-add", metavar="GROUP", help="Add a supplementary group", section=_PROGRAM),
    text("--entrypoint", metavar="COMMAND", help="Run this instead of the image's entrypoint; '' clears it", section=_PROGRAM),
    many("-l", "--label", metavar="KEY=VALUE", help="Attach a label; the last of a key wins", section=_PROGRAM),
    many("--label-file", metavar="FILE", help="Read labels from a file", section=_PROGRAM, complete="files"),
    many("--annotation", metavar="KEY=VALUE", help="Add an OCI annotation", section=_PROGRAM),
    flag("--init", help="Run a small init as first process: it reaps children and passes signals on", section=_PROGRAM),
    text("--stop-signal", metavar="SIGNAL", help="Signal that 'scow stop' sends (the image's, or TERM)", section=_PROGRAM, complete="signals"),
    text("--stop-timeout", metavar="SECONDS", help="Wait this long before KILL; -1 waits for ever (10)", section=_PROGRAM),
    text("--pull", metavar="POLICY", default="missing", help="Fetch the image: always, missing or never", section=_PROGRAM, complete="pull"),
    text("--platform", metavar="OS/ARCH", help="Choose this platform of the image", section=_PROGRAM),
    text("--cidfile", metavar="FILE", help="Write the container's id to a new file", section=_PROGRAM, complete="files"),
    many("--log-opt", metavar="KEY=VALUE", help="max-size (10m) and max-file (3) of the log", section=_PROGRAM),
)  # fmt: skip

FILES: tuple[Option, ...] = (
    many("-v", "--volume", metavar="SRC:DEST[:ro]", help="Show a directory of the host (/path, ./path; created when missing) or a volume (name)", section=_FILES, complete="files"),
    many("--mount", metavar="KEY=VALUE,...", help="type=bind|volume|tmpfs,source=...,target=...[,readonly]", section=_FILES),
    many("--tmpfs", metavar="DEST[:OPTIONS]", help="Mount memory as a file system, such as /run:size=64m", section=_FILES),
    flag("--read-only", help="Let nobody write to the container's root", section=_FILES),
    many("--device", metavar="DEV[:DEST[:rwm]]", help="Give a device of the host", section=_FILES, complete="files"),
    text("--shm-size", metavar="SIZE", help="Size of /dev/shm (64m)", section=_FILES),
)  # fmt: skip

NETWORK: tuple[Option, ...] = (
    text("--pod", metavar="POD", help="Run in this pod: its network, IPC and host name", section=_NET),
    text("--network", "--net", metavar="MODE", default="bridge", help="bridge, none, host or container:NAME", section=_NET, complete="network"),
    many("-p", "--publish", metavar="[IP:]HOST:PORT", help="Publish a port on the host, such as 8080:80 or 53:53/udp", section=_NET),
    flag("-P", "--publish-all", help="Publish every port that the image exposes, on free ports", section=_NET),
    text("--ip", metavar="ADDRESS", help="This IPv4 address on the bridge", section=_NET),
    text("--mac-address", metavar="MAC", help="This MAC address", section=_NET),
    text("--hostname", metavar="NAME", help="Host name inside (the short id)", section=_NET),
    text("--domainname", metavar="NAME", help="NIS domain name inside", section=_NET),
    many("--add-host", metavar="NAME:IP", help="Add a line to /etc/hosts; IP may be host-gateway", section=_NET),
    many("--dns", metavar="IP", help="Ask this name server", section=_NET),
    many("--dns-search", metavar="DOMAIN", help="Search names in this domain; . for none", section=_NET),
    many("--dns-option", "--dns-opt", metavar="OPTION", help="Option for resolv.conf", section=_NET),
)  # fmt: skip

LIMITS: tuple[Option, ...] = (
    text("-m", "--memory", metavar="SIZE", help="Most memory, such as 64m or 1.5g; above it the kernel kills (0: no limit)", section=_LIMIT),
    text("--memory-swap", metavar="SIZE", help="Most memory and swap together; -1 is unlimited swap", section=_LIMIT),
    text("--memory-reservation", metavar="SIZE", help="Keep it near this size when the host is short", section=_LIMIT),
    text("--memory-swappiness", metavar="0-100", help="How readily it is swapped out (cgroup v1)", section=_LIMIT),
    text("--cpus", metavar="NUMBER", help="Most CPU time, in CPUs, such as 0.5", section=_LIMIT),
    text("--cpu-shares", metavar="NUMBER", help="Weight against others when CPUs are short (1024)", section=_LIMIT),
    text("--cpu-period", metavar="MICROS", help="Length of a period of --cpu-quota (100000)", section=_LIMIT),
    text("--cpu-quota", metavar="MICROS", help="CPU time in each period", section=_LIMIT),
    text("--cpuset-cpus", metavar="LIST", help="Only on these CPUs, such as 0-2,4", section=_LIMIT),
    text("--cpuset-mems", metavar="LIST", help="Only memory of these NUMA nodes", section=_LIMIT),
    text("--pids-limit", metavar="NUMBER", help="Most processes and threads (2048; -1: no limit)", section=_LIMIT),
    text("--blkio-weight", metavar="10-1000", help="Weight of disk access against others", section=_LIMIT),
    many("--device-read-bps", metavar="DEV:RATE", help="Most bytes a second read from a disk, /dev/sda:10m", section=_LIMIT),
    many("--device-write-bps", metavar="DEV:RATE", help="Most bytes a second written", section=_LIMIT),
    many("--device-read-iops", metavar="DEV:RATE", help="Most reads a second", section=_LIMIT),
    many("--device-write-iops", metavar="DEV:RATE", help="Most writes a second", section=_LIMIT),
    many("--ulimit", metavar="NAME=SOFT[:HARD]", help="A process limit, such as nofile=1024:2048", section=_LIMIT),
    text("--oom-score-adj", metavar="NUMBER", help="-1000 to 1000: how readily the kernel kills it for memory", section=_LIMIT),
    text("--cgroup-parent", metavar="PATH", help="Put its cgroup below this one", section=_LIMIT),
)  # fmt: skip

SECURITY: tuple[Option, ...] = (
    many("--cap-add", metavar="CAP", help="Give a capability, such as NET_ADMIN, or ALL", section=_SECURITY, complete="capabilities"),
    many("--cap-drop", metavar="CAP", help="Take one away, or ALL", section=_SECURITY, complete="capabilities"),
    flag("--privileged", help="Take isolation away: every capability and device. It can take over the host", section=_SECURITY),
    many("--security-opt", metavar="OPTION", help="no-new-privileges, seccomp=FILE|unconfined, apparmor=PROFILE|unconfined, systempaths=unconfined", section=_SECURITY),
    text("--pid", metavar="MODE", help="Process ids: host or container:NAME instead of its own", section=_SECURITY),
    text("--ipc", metavar="MODE", help="Shared memory: private, shareable, none, host or container:NAME", section=_SECURITY),
    text("--userns", metavar="MODE", help="User ids: 'auto' gives it 65536 ids of its own; its root is nobody on the host", section=_SECURITY),
    many("--uidmap", metavar="INSIDE:HOST:SIZE", help="User ids inside, those of the host that they are, how many", section=_SECURITY),
    many("--gidmap", metavar="INSIDE:HOST:SIZE", help="The same for groups (as --uidmap)", section=_SECURITY),
    text("--uts", metavar="MODE", help="Host name: 'host' instead of its own", section=_SECURITY),
    text("--cgroupns", metavar="MODE", help="View of cgroups: private or host", section=_SECURITY),
    many("--sysctl", metavar="NAME=VALUE", help="A kernel setting of its own namespaces, net.core.somaxconn=1024", section=_SECURITY),
)  # fmt: skip

REGISTRY = remote_options("Fetching the image")
CREATE_OPTIONS: tuple[Option, ...] = PROGRAM + FILES + NETWORK + LIMITS + SECURITY + REGISTRY

DETACH_KEYS = text(
    "--detach-keys",
    metavar="KEYS",
    default=DEFAULT_DETACH_KEYS,
    help="Keys that let go of the container and leave it running",
)
SIG_PROXY = flag(
    "--sig-proxy",
    default=True,
    help="Pass signals (Ctrl-C) on to the program when it has no terminal",
)
