"""Labels of AppArmor and SELinux: what a host must have for them, how they are set, whether they hold.

Imported only where a configuration has one. What must not be here: profiles and policies, which are
the host's.
"""

from __future__ import annotations

import os

from scow.native import plan as p
from scow.native.errors import InvalidArgument, ScowError, Unsupported
from scow.runtime.spec import Process

_APPARMOR = "/sys/module/apparmor/parameters/enabled"  # there also where securityfs is not mounted
_PROFILES = "/sys/kernel/security/apparmor/profiles"
_SELINUX = "/sys/fs/selinux"  # the kernel makes it when SELinux was enabled at boot


def check_labels(process: Process, mount_label: str = "") -> None:
    """Refuse a label that the host would not enforce."""
    if process.apparmor_profile and not has_apparmor():
        raise ScowError(
            f"apparmor profile '{process.apparmor_profile}' set, but AppArmor is not enabled"
        )
    if process.selinux_label and not os.path.isdir(_SELINUX):
        raise ScowError("selinux label is specified in config, but selinux is disabled")
    if mount_label and not os.path.isdir(_SELINUX):
        raise ScowError(f"mountLabel '{mount_label}' is set, but selinux is disabled")


def has_apparmor() -> bool:
    """Whether AppArmor decides anything on this host."""
    try:
        with open(_APPARMOR, encoding="ascii") as file:
            return file.read(1) == "Y"
    except OSError:
        return False


def check_profile(name: str) -> None:
    """Refuse an AppArmor profile that no program could be put under."""
    if not name or not name.isprintable() or len(name) > 255:
        raise InvalidArgument(f"'{name[:64]}' is not the name of an AppArmor profile")
    if not has_apparmor():
        raise Unsupported(
            f"cannot apply AppArmor profile '{name}': AppArmor is not enabled on this host"
        )
    try:
        with open(_PROFILES, encoding="utf-8", errors="replace") as file:
            loaded = {line.rpartition(" (")[0] for line in file}
    except OSError:
        return  # securityfs is not mounted: the kernel will say it
    if name not in loaded:
        raise InvalidArgument(
            f"AppArmor profile '{name}' is not loaded", hint="load it: apparmor_parser -r FILE"
        )


def _apparmor_file(name: str) -> str:
    # Since 5.1 each module has its own directory; attr/exec belongs to whichever is the first.
    own = f"attr/apparmor/{name}"
    return own if os.path.exists(f"/proc/self/{own}") else f"attr/{name}"


def label_operations(process: Process, *, keyring: bool) -> list[p.Operation]:
    """The operations that label the program, and the keys of its session when it gets one.

    They open the private procfs, and so come while one can still be mounted: before pivot_root(2),
    and in an exec before the namespaces are joined.
    """
    found: list[p.Operation] = []
    if process.apparmor_profile:
        text = f"exec {process.apparmor_profile}"
        found.append(p.SetLabel(_apparmor_file("exec"), text, why="process.apparmorProfile"))
    if process.selinux_label:
        found.append(p.SetLabel("attr/exec", process.selinux_label, why="process.selinuxLabel"))
        if keyring:
            found.append(
                p.SetLabel("attr/keycreate", process.selinux_label, why="its keys are its own")
            )
    return found


def unlabel_keys(process: Process) -> list[p.Operation]:
    """What follows once the session keyring is made."""
    if not process.selinux_label:
        return []
    return [p.SetLabel("attr/keycreate", "", why="keys to come are labelled by the policy")]


def check_applied(pid: int, process: Process) -> None:
    """Raise when the program at `pid` runs under our own label although another was asked for.

    Any third label is a transition of the profile's own, made meanwhile.
    """
    for asked, file in (
        (process.apparmor_profile, _apparmor_file("current")),
        (process.selinux_label, "attr/current"),
    ):
        if not asked:
            continue
        own, now = _label("self", file), _label(str(pid), file)
        if now is not None and now == own != asked:
            raise ScowError(f"label '{asked}' was not applied: the program runs as '{now}'")


def _label(pid: str, file: str) -> str | None:
    """The label of a process without AppArmor's mode; None: it has ended."""
    try:
        with open(f"/proc/{pid}/{file}", "rb") as stream:
            text = stream.read(4096).rstrip(b"\0\n").decode(errors="replace")
    except OSError:
        return None
    return text.removesuffix(" (enforce)").removesuffix(" (complain)")
