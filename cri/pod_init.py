"""The init of a pod whose containers share one PID namespace, and only then.

It has no program: pid 1 must be there as long as the namespace, reap what the containers orphan, and
show the procfs that they mount (native/init.c). Its root is the base layer, read-only, with /proc; it
holds no capability. Its monitor leaves a status file, so any process can tell whether it lives.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from scow.cgroups.cgroup import open_cgroup
from scow.cgroups.resources import Resources
from scow.cri.launch import base_layer, own_monitor, wait_for
from scow.cri.pod_namespaces import pin_path
from scow.cri.pod_records import PodRecord
from scow.cri.records import RecordStore
from scow.cri.status import is_process
from scow.native import plan as p
from scow.native import sys as kernel
from scow.native.fd import OwnedFd
from scow.native.fs import Root
from scow.native.spawn import launch_controlled
from scow.runtime.compile import Handles, compile_run
from scow.runtime.monitor import MonitorConnection, Ready, Started, read_status_record
from scow.runtime.mounts import open_bind_source
from scow.runtime.spec import (
    Capabilities,
    Linux,
    Namespace,
    Process,
    RootFilesystem,
    Spec,
    SpecMount,
)

_STATUS = "init.json"


def start_init(store: RecordStore, run_dir: str, pod: PodRecord, kinds: tuple[str, ...]) -> None:
    """Start the pod's init in its own leaf of the pod's cgroup (cgroup-v2.rst: none in between)."""
    joined = tuple(Namespace(kind, pin_path(run_dir, kind)) for kind in kinds)
    spec = Spec(
        oci_version="1.2.0",
        root=RootFilesystem("rootfs", readonly=True),
        process=Process(
            cwd="/",
            args=("scow-pod",),
            capabilities=Capabilities(),
            no_new_privileges=True,
        ),
        mounts=(SpecMount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),),
        linux=Linux(namespaces=(Namespace("mount"), Namespace("pid"), *joined)),
    )
    with ExitStack() as held:

        def hold(fd: OwnedFd) -> int:
            return held.enter_context(fd).fileno()

        cgroup = open_cgroup(f"{pod.cgroup}/init")
        cgroup.create(Resources())
        into = cgroup.dir_fd()
        os.makedirs(f"{store.run}/rootfs", mode=0o700, exist_ok=True)
        root_fd = hold(open_bind_source(base_layer(store), recursive=False))
        # Of a shared mount (systemd's "/") it is shared, too, which pivot_root(2) takes for no root.
        kernel.mount_setattr(root_fd, "", kernel.AT_EMPTY_PATH, propagation=kernel.MS_PRIVATE)
        handles = Handles(
            root_fd=root_fd,
            hold=hold,
            cgroup_tasks=tuple(hold(fd) for fd in cgroup.join_fds()),
            cgroup_fd=hold(into) if into is not None else None,
            place=f"{store.run}/rootfs",
            run_nothing=True,
            ids=pod.options.ids,
        )
        monitor = p.MonitorConfig(container_id=pod.id, status_path=f"{run_dir}/{_STATUS}")
        plan = compile_run(spec, handles, monitor)
        connection, theirs = MonitorConnection.pair()
        with connection:
            with theirs:
                pid, pidfd = launch_controlled(plan, theirs.fileno())
            pidfd.close()
            own_monitor(pid)
            root = Root(root_fd)
            wait_for(connection, Ready, plan, root, verb="start the pod's init")
            connection.start()
            wait_for(connection, Started, plan, root, verb="start the pod's init")


def init_pid(run_dir: str) -> int:
    """The pid of the pod's init; 0 where it does not live."""
    found = read_status_record(f"{run_dir}/{_STATUS}")
    if found is None or not is_process(found.pid, found.start_time):
        return 0
    return found.pid
