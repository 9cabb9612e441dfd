"""Daemons of a run's own, in a network and a mount namespace of its own, and nothing of them afterwards.

Bridges, firewall tables and cables are gone with the namespace; what engines keep at fixed places of a
host (/run/containerd, CNI's leases) is on a tmpfs of this run's; their cgroups are below one that we made.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import peers  # beside this module
from runtimes import Ctr, Failed, Runtime

from fixtures.engines import CONTAINERD_CONF, cgroup_parent, dockerd_words
from scow.native import sys as kernel

WAIT_S = 30.0
# Fixed paths that engines write to; the bench has its own.
HIDDEN = ("/run/containerd", "/run/netns", "/var/lib/cni")


def enter() -> None:
    """Be in new namespaces, with lo up; this process and all that it starts, to its end."""
    kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for place in filter(os.path.isdir, HIDDEN):
        subprocess.run(["mount", "-t", "tmpfs", "bench", place], check=True)


def _daemon(yard: peers.Yard, argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file)

    def end() -> None:
        process.terminate()
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    yard.stack.callback(end)
    return process


def _wait_for(process: subprocess.Popen[bytes], ask: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            ask()
            return
        except Failed as error:
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").splitlines()[-1:]
                raise Failed(f"{error}; {last}") from None
            time.sleep(0.1)


def docker(yard: peers.Yard) -> Runtime:
    """A dockerd with its own bridge, images and containerd."""
    if shutil.which("dockerd") is None:
        raise Failed("dockerd is not installed")
    parent = yard.stack.enter_context(cgroup_parent("scow-bench-docker"))
    top = yard.work / "docker"
    top.mkdir()
    process = _daemon(yard, dockerd_words(top, f"{yard.run}/docker", parent), top / "log")
    # The client that belongs to the daemon, if there are more.
    program = "/usr/bin/docker" if os.access("/usr/bin/docker", os.X_OK) else "docker"
    found = Runtime(
        "docker",
        [program, "--host", f"unix://{top}/sock"],
        yard.worker(),
        environment={"DOCKER_CONFIG": f"{top}/cfg"},
        monitor="containerd-shim",
        daemon=process.pid,
    )
    _wait_for(process, lambda: found.output("info"), top / "log")
    yard.stack.callback(_remove_all, found, ("ps", "-aq"), ("rm", "-f"))
    return yard.load(found, "docker-archive", "load", "-q", "-i")


def ctr(yard: peers.Yard) -> Runtime:
    """A containerd; its namespace names the cgroup that containers are in."""
    if shutil.which("containerd") is None:
        raise Failed("containerd is not installed")
    parent = yard.stack.enter_context(cgroup_parent("scow-bench-ctr"))
    top = yard.work / "containerd"
    top.mkdir()
    (top / "config.toml").write_text(CONTAINERD_CONF.format(top=top))
    process = _daemon(yard, ["containerd", "-c", f"{top}/config.toml"], top / "log")
    program = ["ctr", "--address", f"{top}/c.sock", "--namespace", parent.removeprefix("/")]
    found = Ctr(
        "ctr",
        program,
        yard.worker(),
        networks=("none",),
        monitor="containerd-shim",
        daemon=process.pid,
    )
    _wait_for(process, lambda: found.output("version"), top / "log")
    yard.stack.callback(_remove_all, found, ("containers", "ls", "-q"), ())
    return yard.load(found, "docker-archive", "images", "import")


def podman(yard: peers.Yard) -> Runtime:
    """podman, with its containers in a cgroup of ours."""
    parent = yard.stack.enter_context(cgroup_parent("scow-bench-podman"))
    found = peers.podman(yard)
    found.flags = ("--cgroup-parent", parent)
    return found


def _remove_all(one: Runtime, listing: tuple[str, ...], removing: tuple[str, ...]) -> None:
    """What a case that failed may have left."""
    names = one.output(*listing).split()
    if names and removing:
        one.output(*removing, *names)
    elif names:
        one.remove(*names)


def daemon_and_children(pid: int) -> list[int]:
    """A daemon and the daemons that it started itself: dockerd has a containerd. Not shims."""
    found = [pid]
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")
        except OSError:
            continue  # it has ended
        if int(fields[2].split()[1]) == pid and fields[0].endswith("(containerd"):
            found.append(int(place.name))
    return found


def end_in_order() -> None:
    """Ctrl-C and SIGTERM unwind: every daemon ends, every container goes."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
