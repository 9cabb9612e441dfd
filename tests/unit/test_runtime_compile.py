"""The order of a plan is its security: these tests hold it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scow.native import plan as p
from scow.native import sys as kernel
from scow.native.errors import InvalidArgument
from scow.native.fd import OwnedFd
from scow.runtime.compile import Handles, compile_exec, compile_run
from scow.runtime.spec import (
    Capabilities,
    Linux,
    Namespace,
    Process,
    ProcessUser,
    Rlimit,
    RootFilesystem,
    Spec,
    SpecMount,
)

ALL = ("mount", "pid", "ipc", "uts", "network", "cgroup")
NO_MONITOR = p.MonitorConfig()


def process(**changes: object) -> Process:
    base: dict[str, object] = {
        "cwd": "/",
        "args": ("true",),
        "capabilities": Capabilities(
            bounding=("CAP_CHOWN",), effective=("CAP_CHOWN",), permitted=("CAP_CHOWN",)
        ),
    }
    return Process(**{**base, **changes})  # type: ignore[arg-type]  # a table of changes


def spec(process_: Process, **linux: object) -> Spec:
    namespaces = tuple(Namespace(kind) for kind in ALL)
    settings: dict[str, object] = {"namespaces": namespaces, **linux}
    return Spec(
        oci_version="1.2.0",
        root=RootFilesystem("rootfs"),
        process=process_,
        hostname="box",
        linux=Linux(**settings),  # type: ignore[arg-type]  # a table of changes
    )


def handles(**changes: object) -> Handles:
    def hold(fd: OwnedFd) -> int:
        return fd.fileno()

    base: dict[str, object] = {"root_fd": 7, "hold": hold, "place": "/run/scow/rootfs"}
    return Handles(**{**base, **changes})  # type: ignore[arg-type]  # a table of changes


def kinds(plan: p.Plan) -> list[type]:
    return [type(op) for op in plan.ops]


def before(plan: p.Plan, first: type, second: type) -> bool:
    order = kinds(plan)
    return order.index(first) < order.index(second)


def test_the_limits_come_before_everything_else() -> None:
    plan = compile_run(spec(process()), handles(cgroup_tasks=(8, 9)), NO_MONITOR)
    assert isinstance(plan.ops[0], p.JoinCgroups)
    assert before(plan, p.JoinCgroups, p.Unshare)


def test_the_cgroup_namespace_is_unshared_after_joining_and_not_cloned() -> None:
    plan = compile_run(spec(process()), handles(cgroup_tasks=(8,)), NO_MONITOR)
    assert not plan.namespaces & kernel.CLONE_NEWCGROUP
    assert plan.namespaces & kernel.CLONE_NEWPID


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_rights_are_given_up_in_the_order_that_works(no_new_privileges: bool) -> None:
    wanted = process(no_new_privileges=no_new_privileges)
    plan = compile_run(spec(wanted), handles(seccomp=(b"\0" * 8, 0)), NO_MONITOR)
    assert before(plan, p.AwaitStart, p.DropBounding)
    assert before(plan, p.DropBounding, p.SetUser)
    assert before(plan, p.SetUser, p.SetCapabilities)
    assert kinds(plan)[-1] is p.Execute
    if no_new_privileges:
        # The filter is the last thing: fewest calls have to be allowed by it.
        assert kinds(plan)[-3:] == [p.NoNewPrivileges, p.LoadSeccomp, p.Execute]
    else:
        # Only CAP_SYS_ADMIN may load a filter then: while we still have it.
        assert before(plan, p.LoadSeccomp, p.SetUser)


def test_unconfined_loads_nothing() -> None:
    assert p.LoadSeccomp not in kinds(compile_run(spec(process()), handles(), NO_MONITOR))


def test_another_user_than_root_starts_with_nothing() -> None:
    plan = compile_run(spec(process(user=ProcessUser(uid=1000))), handles(), NO_MONITOR)
    sets = next(op for op in plan.ops if isinstance(op, p.SetCapabilities))
    assert (sets.effective, sets.permitted, sets.inheritable, sets.ambient) == (0, 0, 0, 0)


def test_the_host_is_out_of_reach_before_start() -> None:
    plan = compile_run(spec(process()), handles(), NO_MONITOR)
    assert before(plan, p.PivotRoot, p.AwaitStart)
    assert before(plan, p.MountPropagation, p.AttachRoot)
    assert before(plan, p.AttachRoot, p.PivotRoot)


def test_the_inside_of_the_network_waits_for_the_outside() -> None:
    plan = compile_run(spec(process()), handles(network_inside=b"x" * 16), NO_MONITOR)
    assert before(plan, p.AwaitParent, p.Netlink)


def test_the_order_of_joining_is_user_first_mount_last(tmp_path: Path) -> None:
    links = tuple(
        Namespace(kind, f"/proc/self/ns/{file}")
        for kind, file in (("mount", "mnt"), ("uts", "uts"), ("user", "user"), ("pid", "pid"))
    )
    plan = compile_run(spec(process(), namespaces=links), handles(), NO_MONITOR)
    joined = [op.kind for op in plan.ops if isinstance(op, p.JoinNamespace)]
    assert joined == [
        kernel.CLONE_NEWUSER,
        kernel.CLONE_NEWPID,
        kernel.CLONE_NEWUTS,
        kernel.CLONE_NEWNS,
    ]


@pytest.mark.parametrize(
    ("namespaces", "words"),
    [
        ((Namespace("pid"), Namespace("pid")), "given twice"),
        ((Namespace("pid"), Namespace("pid", "/proc/self/ns/pid")), "given twice"),
        ((Namespace("shadow"),), "unknown namespace"),
    ],
)
def test_impossible_namespaces_are_refused(namespaces: tuple[Namespace, ...], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        compile_run(spec(process(), namespaces=namespaces), handles(), NO_MONITOR)


@pytest.mark.parametrize(
    "key",
    [
        "kernel.core_pattern",
        "kernel.shm_rmid_forced=1+kernel.core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4.conf.eth0/../../../kernel.x",
        "net.ipv4.\0",
        "net.ipv4.x\n",
        "",
        ".",
        "net//ipv4",
        "kernel.hostname",
        "vm.swappiness",
    ],
)
def test_a_sysctl_of_the_hosts_is_refused(key: str) -> None:
    # CVE-2022-0811
    with pytest.raises(InvalidArgument):
        compile_run(spec(process(), sysctl={key: "1"}), handles(), NO_MONITOR)


@pytest.mark.parametrize(
    "key", ["net.core.somaxconn", "net/ipv4/ip_forward", "kernel.msgmax", "fs.mqueue.msg_max"]
)
def test_a_sysctl_of_its_own_is_set(key: str) -> None:
    plan = compile_run(spec(process(), sysctl={key: "1"}), handles(), NO_MONITOR)
    op = next(op for op in plan.ops if isinstance(op, p.SetSysctl))
    assert op.key == key.replace(".", "/")


def test_a_sysctl_needs_the_namespace_to_be_new() -> None:
    # CVE-2022-0532
    shared = (Namespace("mount"), Namespace("network", "/proc/self/ns/net"))
    with pytest.raises(InvalidArgument):
        compile_run(
            spec(process(), namespaces=shared, sysctl={"net.core.somaxconn": "1"}),
            handles(),
            NO_MONITOR,
        )


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (SpecMount("/proc/self/attr", "tmpfs"), "inside procfs"),
        (SpecMount("/proc", "tmpfs"), "replace procfs"),
        (SpecMount("/", "tmpfs"), "other than"),
        (SpecMount("relative", "tmpfs"), "absolute"),
        (SpecMount("/x", "ext4", "/dev/sda"), "ext4"),
        (SpecMount("/x", "bind", "/nonexistent/source", ("bind",)), "does not exist"),
        (SpecMount("/x", "bind", "/", ("bind", "size=1")), "size"),
    ],
)
def test_bad_mounts_are_refused(mount: SpecMount, words: str) -> None:
    document = Spec(
        oci_version="1.2.0",
        root=RootFilesystem("rootfs"),
        process=process(),
        mounts=(mount,),
        linux=Linux(namespaces=tuple(Namespace(kind) for kind in ALL)),
    )
    with pytest.raises(Exception, match=words):
        compile_run(document, handles(), NO_MONITOR)


def test_an_unknown_rlimit_is_refused() -> None:
    limits = (Rlimit("RLIMIT_NOSUCH", 1, 1),)
    with pytest.raises(InvalidArgument, match="NOSUCH"):
        compile_run(spec(process(rlimits=limits)), handles(), NO_MONITOR)


def test_exec_enters_last_and_gets_no_new_namespaces() -> None:
    fd = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        joins: tuple[p.Operation, ...] = (p.JoinNamespace(fd, kernel.CLONE_NEWUTS),)
        plan = compile_exec(process(), handles(cgroup_tasks=(3,)), joins, NO_MONITOR)
    finally:
        os.close(fd)
    assert plan.namespaces == 0
    assert kinds(plan)[:2] == [p.JoinCgroups, p.JoinNamespace]
    assert before(plan, p.AwaitStart, p.SetUser)


def test_no_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    document = Spec(oci_version="1.2.0", root=RootFilesystem("rootfs"))
    compile_it: Callable[[], p.Plan] = lambda: compile_run(document, handles(), NO_MONITOR)  # noqa: E731
    with pytest.raises(InvalidArgument, match="process"):
        compile_it()
