"""The one interface to a container's cgroup, whatever the host has.

What belongs here: the interface, the names of cgroups, and the choice of the implementation
(`v1` serves v1 and hybrid hosts, `v2` the unified hierarchy). What must not: control files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from scow.cgroups import detect, tree
from scow.native.errors import InvalidArgument

if TYPE_CHECKING:
    from scow.cgroups.control import Write
    from scow.cgroups.resources import Resources
    from scow.cgroups.stats import Stats
    from scow.native.fd import OwnedFd


class Cgroup(Protocol):
    """A container's cgroup in all hierarchies that count.

    Every method but `create`, `exists` and `pids` refuses a cgroup that scow did not make
    (PermissionDenied), so that a bug above cannot stop the host.
    """

    path: str

    def create(self, resources: Resources) -> None:
        """Make it and set the limits; on failure nothing of it remains.

        Leftovers of a dead attempt (ours, without processes) are removed first. Raises
        AlreadyExists, InvalidState (frozen parent), and Unsupported or InvalidArgument naming the
        file and the value that the kernel did not take.
        """
        ...

    def update_writes(self, resources: Resources) -> list[Write]:
        """The writes of `update`, without doing them and without the device list."""
        ...

    def current_values(self, writes: list[Write]) -> list[Write]:
        """What `writes` would replace, last one first; lists per device cannot be put back."""
        ...

    def update(self, resources: Resources) -> None:
        """Change what is set in `resources`; unset values stay, and on failure the old ones."""
        ...

    def planned_writes(self, resources: Resources) -> list[Write]:
        """The writes that `create` would do, in order, without doing them."""
        ...

    def join_fds(self) -> list[OwnedFd]:
        """v1: `tasks` of every hierarchy, for the child to write `0`; empty on v2."""
        ...

    def dir_fd(self) -> OwnedFd | None:
        """The directory in cgroup2, for CLONE_INTO_CGROUP; None on a host without."""
        ...

    def takes_processes(self) -> bool:
        """Whether its top may hold any: on v2 not once a container has divided its controllers."""
        ...

    def freeze(self) -> None:
        """Stop all processes; returns when they are stopped. Raises DeadlineExceeded."""
        ...

    def thaw(self) -> None:
        """Let them run again."""
        ...

    def is_frozen(self) -> bool:
        """Whether the processes are stopped (or being stopped)."""
        ...

    def kill(self) -> None:
        """SIGKILL to all processes, frozen ones too; returns when none is left."""
        ...

    def pids(self) -> list[int]:
        """All processes in it and below, by host pid."""
        ...

    def stats(self) -> Stats:
        """What it has used. Raises NotFound when it is gone."""
        ...

    def oom_fd(self) -> OwnedFd | None:
        """A file with a line `oom_kill N`: v1 memory.oom_control, v2 memory.events."""
        ...

    def oom_kills(self) -> int:
        """How many processes of it the kernel has killed for memory."""
        ...

    def remove(self) -> None:
        """Remove it and all below it; fine when it is gone. Raises InvalidState when not empty."""
        ...

    def exists(self) -> bool:
        """Whether it is there."""
        ...


def open_cgroup(
    path: str,
    *,
    hierarchies: detect.Hierarchies | None = None,
    foreign: bool = False,
    owner: str = "",
    keeper: int = 0,
    pod: bool = False,
) -> Cgroup:
    """The cgroup at `path` (like `scow/<id>`, from the hierarchy's root), made or not.

    With `foreign` another program chose the path (an OCI configuration's cgroupsPath): it may be at
    the top, its parents are made as needed, and an empty cgroup that is there already is adopted.
    Two containers may then have the same path: `owner` names the one that is meant, and a cgroup that
    was made for another is refused (PermissionDenied). `keeper` is a process which is in it when it
    is a service manager's, who then also removes it when `create` fails. With `pod` it is made to
    hold the cgroups of containers, and stays when the last of them goes.
    Raises InvalidArgument for a path that could mean something of the host.
    """
    tree.check_path(path, foreign=foreign)
    host = hierarchies or detect.hierarchies()
    if host.mode is detect.Mode.V2:
        from scow.cgroups.v2 import V2Cgroup

        return V2Cgroup(path, host, foreign=foreign, owner=owner, keeper=keeper, pod=pod)
    from scow.cgroups.v1 import V1Cgroup

    return V1Cgroup(path, host, foreign=foreign, owner=owner, keeper=keeper, pod=pod)


def container_path(container_id: str, parent: str | None = None) -> str:
    """The cgroup path of a container, below `parent` (the user's --cgroup-parent) or `scow`.

    Raises InvalidArgument for a parent that leaves the hierarchy.
    """
    top = (parent or tree.OWN_TOP).strip("/")
    if not top:
        raise InvalidArgument(f"cgroup parent '{parent}' is the root cgroup")
    if "/" in container_id:
        raise InvalidArgument(f"container id '{container_id}' is not a name")
    return tree.check_path(f"{top}/{container_id}")
