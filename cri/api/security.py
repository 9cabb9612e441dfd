"""Who a container runs as and what it may do, from CRI's security contexts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scow.cri.options import Security, UserSpec
from scow.native.errors import InvalidArgument, Unsupported
from scow.runtime.security import parse_capability
from scow.runtime.users import MAX_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scow.cri.api.message import Message
    from scow.cri.pod_records import PodOptions


def user_of(security: Message | None) -> tuple[UserSpec | None, tuple[int | str, ...], str]:
    """The user (None: the image's), the supplementary groups, and what becomes of the image's."""
    if security is None:
        return None, (), "merge"
    user, group = security.run_as_user, security.run_as_group
    policy = "strict" if security.supplemental_groups_policy == "Strict" else "merge"
    groups: tuple[int | str, ...] = tuple(
        _id("supplemental group", number) for number in security.supplemental_groups
    )
    if user is None and not security.run_as_username:
        if group is not None:
            raise InvalidArgument("run_as_group is given without run_as_user or run_as_username")
        return None, groups, policy
    if user is not None and security.run_as_username:
        raise InvalidArgument("run_as_user and run_as_username exclude each other")
    who: int | str = security.run_as_username
    if user is not None:
        who = _id("run_as_user", user.value)
    return (
        UserSpec(who, _id("run_as_group", group.value) if group is not None else None),
        groups,
        policy,
    )


def _id(what: str, number: int) -> int:
    if not 0 <= number <= MAX_ID:
        raise InvalidArgument(f"{what} {number} is not between 0 and {MAX_ID}")
    return number


def container_security(security: Message | None, pod: PodOptions) -> Security:
    """What the container may do."""
    if security is None:
        return Security()
    privileged = security.privileged
    if privileged and not pod.privileged:
        raise InvalidArgument(
            f"cannot make a privileged container in pod '{pod.metadata.name}': it is not privileged",
            hint="make the pod with linux.security_context.privileged",
        )
    _refuse_selinux(security.selinux_options)
    if privileged:
        # All there is: what is asked for besides changes nothing.
        return Security(privileged=True, no_new_privileges=security.no_new_privs)
    capabilities = security.capabilities
    return Security(
        cap_add=_names(capabilities.add_capabilities) if capabilities is not None else (),
        cap_drop=_names(capabilities.drop_capabilities) if capabilities is not None else (),
        cap_ambient=_names(capabilities.add_ambient_capabilities)
        if capabilities is not None
        else (),
        no_new_privileges=security.no_new_privs,
        seccomp=_seccomp(security),
        apparmor=_apparmor(security),
        masked_paths=tuple(map(_path, security.masked_paths)) or None,
        readonly_paths=tuple(map(_path, security.readonly_paths)) or None,
    )


def check_sandbox(security: Message | None) -> None:
    """What a pod's own security context says of its processes has no use here: it has none.

    What nobody could ever mean, or would enforce, is refused all the same.
    """
    if security is None:
        return
    if security.run_as_group is not None and security.run_as_user is None:
        raise InvalidArgument("run_as_group is given without run_as_user")
    _refuse_selinux(security.selinux_options)


def _names(given: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_capability(name) for name in given))


def _path(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"masked or read-only path '{path[:256]}' is not absolute")
    return path


def _seccomp(security: Message) -> str | None:
    """None is scow's own profile: also where nothing is said (CRI-O's choice; safe for curl)."""
    profile = security.seccomp
    if profile is not None:
        if profile.profile_type == "Localhost":
            return _profile_file(profile.localhost_ref)
        return "unconfined" if profile.profile_type == "Unconfined" else None
    text: str = security.seccomp_profile_path
    if text in ("", "runtime/default", "docker/default"):
        return None
    if text == "unconfined":
        return text
    if text.startswith("localhost/"):
        return _profile_file(text.removeprefix("localhost/"))
    raise InvalidArgument(f"invalid seccomp profile '{text[:256]}'")


def _profile_file(path: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgument(f"seccomp profile '{path[:256]}' is not an absolute path")
    if not os.path.isfile(path):
        raise InvalidArgument(f"seccomp profile '{path[:256]}' does not exist on this host")
    return path


def _apparmor(security: Message) -> str | None:
    """The name of a profile; None also for RuntimeDefault, for scow has none of its own."""
    profile = security.apparmor
    if profile is not None:
        name = profile.localhost_ref if profile.profile_type == "Localhost" else ""
    else:
        text: str = security.apparmor_profile
        name = text if text.startswith("localhost/") else ""
        if text not in ("", "runtime/default", "unconfined") and not name:
            raise InvalidArgument(f"invalid AppArmor profile '{text[:256]}'")
    if not name and not (profile is not None and profile.profile_type == "Localhost"):
        return None
    from scow.runtime.oci_labels import check_profile

    name = name.removeprefix("localhost/")
    check_profile(name)
    return name


def _refuse_selinux(options: Message | None) -> None:
    """A label that nobody would enforce is an error."""
    if options is not None and any((options.user, options.role, options.type, options.level)):
        raise Unsupported("cannot apply SELinux labels: SELinux is not supported")
