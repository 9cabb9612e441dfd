"""Containers that make trouble, and are stopped by the API all the same: frozen ones, fork bombs."""

from __future__ import annotations

import time

import pytest

from fixtures.pods import Cri
from scow.cgroups.cgroup import Cgroup
from scow.cri.launch import container_cgroup
from scow.cri.pods import pod_cgroup
from scow.native.errors import InvalidState

pytestmark = pytest.mark.timeout(300)
# Each of its processes makes two more, and none ever ends.
BOMB = ["sh", "-c", "f() { f & f & wait; }; f"]


def cgroup_of(cri: Cri, container: str) -> Cgroup:
    return container_cgroup(cri.service.store.read(container))


def test_a_frozen_container_is_stopped(cri: Cri) -> None:
    pod = cri.pod()
    asked, killed, removed = (cri.running(pod) for _ in range(3))
    for container in (asked, killed, removed):
        cgroup_of(cri, container).freeze()
        with pytest.raises(InvalidState, match="paused"):
            cri.exec_sync(container_id=container, cmd=["true"], timeout=5)
        # CRI has no such state.
        assert cri.container_state(container)["state"] == "CONTAINER_RUNNING"
    cri.stop_container(container_id=asked, timeout=1)
    cri.stop_container(container_id=killed, timeout=0)
    cri.remove_container(container_id=removed)
    for container in (asked, killed):
        assert cri.container_state(container)["exit_code"] == 137
    assert {c["id"] for c in cri.list_containers()["containers"]} == {asked, killed}


@pytest.mark.parametrize("call", ["stop_container", "remove_container", "stop_pod_sandbox"])
def test_what_a_frozen_pod_holds_is_stopped(cri: Cri, call: str) -> None:
    pod = cri.pod(pid="POD")
    shared = {"security_context": {"namespace_options": {"pid": "POD"}}}
    container = cri.running(pod, linux=shared)
    pod_cgroup(cri.pods.read(pod)).freeze()
    key, name = ("pod_sandbox_id", pod) if "pod" in call else ("container_id", container)
    begun = time.monotonic()
    getattr(cri, call)(**{key: name})
    assert time.monotonic() - begun < 9  # KILL_TIMEOUT_S is for the kernel's own trouble
    states = {c["id"]: c["state"] for c in cri.list_containers()["containers"]}
    assert states.get(container, "CONTAINER_EXITED") == "CONTAINER_EXITED"


def test_a_fork_bomb_is_stopped(cri: Cri) -> None:
    pod = cri.pod()
    neighbour = cri.running(pod)
    for call in ("stop_container", "remove_container"):
        bomb = cri.running(pod, BOMB)
        cgroup = cgroup_of(cri, bomb)
        deadline = time.monotonic() + 30
        while cgroup.stats().pids < 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        getattr(cri, call)(container_id=bomb)
        assert not cgroup.exists()
        assert cri.sh(neighbour, "echo here") == "here"
