"""Podman, containerd and Docker on a systemd host: their cgroups are systemd's, scow-oci their runtime."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.bundle import Bundle
from fixtures.engines import CONTAINERD_CONF, Engine, start_daemon

pytestmark = [pytest.mark.cgroup_v2, pytest.mark.root]

FILES = "memory.max memory.swap.max pids.max cpu.max cpuset.cpus"
LIMITS = ("-m", "64m", "--memory-swap", "96m", "--pids-limit", "33", "--cpus", "0.5")
LIMITS += ("--cpuset-cpus", "0")
VALUES = [str(64 << 20), str(32 << 20), "33", "50000 100000", "0"]
_PODMAN = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "systemd"
events_logger = "file"
"""


def runtime(directory: Path) -> str:
    """scow-oci as one file, for engines; it notes how it was called."""
    path = directory / "scow-oci"
    command = shlex.join([sys.executable, "-I", "-m", "scow.runtime.oci_cli"])
    path.write_text(f'#!/bin/sh\necho "$@" >> {directory}/calls\nexec {command} "$@"\n')
    path.chmod(0o755)
    return str(path)


def rootfs(directory: Path) -> str:
    archive = directory / "rootfs.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(Bundle(directory / "bundle", "/unused").rootfs, ".")
    return str(archive)


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def show(unit: str, *names: str) -> list[str]:
    return [systemctl("show", "-P", name, unit) for name in names]


def expect_no_scope(unit: str) -> None:
    deadline = time.monotonic() + 60
    while show(unit, "LoadState") != ["not-found"]:
        assert time.monotonic() < deadline, systemctl("status", unit)
        time.sleep(0.1)


def was_called_for_systemd(directory: Path) -> bool:
    return "--systemd-cgroup" in (directory / "calls").read_text()


# --- podman ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    top = tmp_path_factory.mktemp("podman")
    (top / "containers.conf").write_text(_PODMAN)
    argv = ["podman", "--root", f"{top}/root", "--runroot", f"{top}/run", "--tmpdir", f"{top}/tmp"]
    argv += ["--storage-driver", "vfs", "--cgroup-manager", "systemd", "--runtime", runtime(top)]
    engine = Engine(argv, {"CONTAINERS_CONF": str(top / "containers.conf")})
    engine.ok("import", rootfs(top), "busy")
    yield engine
    engine("rm", "-fa", "-t", "0")
    engine("rmi", "-fa")


def test_podman_runs_in_a_scope(pod: Engine) -> None:
    words = ("run", "--rm", "--network", "none", *LIMITS, "busy", "sh", "-c")
    done = pod(*words, f"cd /sys/fs/cgroup; cat {FILES}; exit 9")
    assert (done.code, done.out.splitlines()) == (9, VALUES), done.err
    assert pod(*words, "nope").code == 127
    assert was_called_for_systemd(Path(pod.argv[-1]).parent)


@pytest.mark.slow
def test_podman_drives_a_life(pod: Engine) -> None:
    place = ("--cgroup-parent", "machine-scowtest.slice")  # as a pod's containers have one
    words = ("run", "-d", "--name", "a", "--network", "none", "-m", "64m", *place)
    pod.ok(*words, "busy", "sleep", "1000")
    unit = f"libpod-{pod.ok('inspect', '-f', '{{.Id}}', 'a')}.scope"
    assert show(unit, "Slice", "MemoryMax") == ["machine-scowtest.slice", str(64 << 20)]
    assert pod("exec", "a", "sh", "-c", "exit 3").code == 3
    systemctl("daemon-reload")
    pod.ok("pause", "a")
    assert pod.ok("inspect", "-f", "{{.State.Status}}", "a") == "paused"
    pod.ok("unpause", "a")
    pod.ok("update", "-m", "48m", "a")
    assert show(unit, "MemoryMax") == [str(48 << 20)]
    assert pod.ok("exec", "a", "cat", "/sys/fs/cgroup/memory.max") == str(48 << 20)
    pod.ok("rm", "-f", "-t", "0", "a")
    expect_no_scope(unit)
    systemctl("stop", "machine-scowtest.slice")


# --- containerd and docker ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.no_residue_check  # containerd's shims end after their task is deleted
def test_containerd_with_systemd_cgroup(pod: Engine, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONTAINERD_CONF.format(top=tmp_path))
    pod.ok("save", "--format", "oci-archive", "-o", str(tmp_path / "busy.tar"), "busy")
    ctr = Engine(["ctr", "--address", f"{tmp_path}/c.sock", "--namespace", "scow-test"], {})
    argv = ["containerd", "-c", str(tmp_path / "config.toml")]
    daemon = start_daemon(argv, ctr, tmp_path / "log", os.environ)
    try:
        ctr.ok("images", "import", str(tmp_path / "busy.tar"))
        image = ctr.ok("images", "ls", "-q").splitlines()[0]
        ours = ["--runc-binary", runtime(tmp_path), "--snapshotter", "native"]
        ours += ["--runc-systemd-cgroup", "--cgroup", "scowctr.slice:ctr:a"]
        assert ctr("run", "--rm", *ours, image, "a", "sh", "-c", "exit 4").code == 4
        ctr.ok("run", "-d", *ours, "--memory-limit", "67108864", image, "a", "sleep", "1000")
        assert show("ctr-a.scope", "Slice", "MemoryMax") == ["scowctr.slice", str(64 << 20)]
        assert ctr("task", "exec", "--exec-id", "x", "a", "sh", "-c", "exit 5").code == 5
        ctr.ok("task", "pause", "a")
        ctr.ok("task", "resume", "a")
        ctr.ok("task", "kill", "-s", "KILL", "a")
        ctr("task", "delete", "a")
        ctr.ok("containers", "rm", "a")
        expect_no_scope("ctr-a.scope")
        assert was_called_for_systemd(tmp_path)
    finally:
        daemon.terminate()
        daemon.wait(60)
        systemctl("stop", "scowctr.slice")


@pytest.mark.no_residue_check  # containerd's shims end after their task is deleted
@pytest.mark.timeout(400)
def test_docker_with_the_systemd_driver(tmp_path: Path) -> None:
    argv = ["dockerd", "--data-root", f"{tmp_path}/root", "--exec-root", f"{tmp_path}/exec"]
    argv += ["--pidfile", f"{tmp_path}/pid", "--host", f"unix://{tmp_path}/sock", "--bridge=none"]
    argv += ["--iptables=false", "--ip6tables=false", "--storage-driver", "vfs"]
    argv += ["--exec-opt", "native.cgroupdriver=systemd", "--cgroup-parent", "scowdocker.slice"]
    argv += ["--add-runtime", f"scow={runtime(tmp_path)}", "--default-runtime", "scow"]
    docker = Engine(["docker", "--host", f"unix://{tmp_path}/sock"], {"HOME": str(tmp_path)})
    daemon = start_daemon(argv, docker, tmp_path / "log", os.environ)
    try:
        docker.ok("import", rootfs(tmp_path), "busy")
        words = ("run", "--rm", "--network", "none", *LIMITS, "busy", "sh", "-c")
        done = docker(*words, f"cd /sys/fs/cgroup; cat {FILES}; exit 9")
        assert (done.code, done.out.splitlines()) == (9, VALUES), done.err
        name = docker.ok("run", "-d", "--network", "none", "-m", "64m", "busy", "sleep", "1000")
        unit = f"docker-{name}.scope"
        assert show(unit, "Slice", "MemoryMax") == ["scowdocker.slice", str(64 << 20)]
        assert docker("exec", name, "sh", "-c", "exit 3").code == 3
        docker.ok("update", "-m", "48m", "--memory-swap", "48m", name)
        assert show(unit, "MemoryMax") == [str(48 << 20)]
        docker.ok("pause", name)
        docker.ok("unpause", name)
        docker.ok("rm", "-f", name)
        expect_no_scope(unit)
        assert was_called_for_systemd(tmp_path)
    finally:
        daemon.terminate()
        daemon.wait(60)
        systemctl("stop", "scowdocker.slice")
