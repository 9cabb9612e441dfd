"""Containers that make trouble, and are stopped by the API all the same: frozen ones, fork bombs."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from fixtures.pods import Cri
from scow.cgroups.cgroup import Cgroup
from scow.cri import usage
from scow.cri.api.message import Message
from scow.cri.launch import container_cgroup
from scow.cri.pods import pod_cgroup
from scow.native.errors import InvalidState, NotFound

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


def test_a_pod_that_is_removed_while_a_container_of_it_is_made(
    cri: Cri, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = cri.pod()
    create = cri.service.create

    def slow_create(*words: Any) -> str:
        container = create(*words)
        monkeypatch.setattr(cri.service, "create", create)
        cri.remove_pod_sandbox(pod_sandbox_id=pod)
        return container

    monkeypatch.setattr(cri.service, "create", slow_create)
    with pytest.raises(NotFound, match="pod"):
        cri.container(pod)
    assert cri.list_containers()["containers"] == []


def test_a_container_that_came_after_its_pod_was_emptied(
    cri: Cri, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = cri.pod()
    image = cri.service.images.get("busybox")
    made = cri.service.store.read(cri.container(pod))
    discard = cri.pods.store.discard

    def late_discard(*words: Any) -> None:
        cri.service.create(image, made.options, made.member)
        discard(*words)

    monkeypatch.setattr(cri.pods.store, "discard", late_discard)
    cri.remove_pod_sandbox(pod_sandbox_id=pod)
    assert cri.list_containers()["containers"] == []


def test_a_neighbour_that_ends_while_its_namespace_is_joined(
    cri: Cri, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = cri.pod()
    target = cri.running(pod)
    shared = {"security_context": {"namespace_options": {"pid": "TARGET", "target_id": target}}}
    container = cri.container(pod, linux=shared)
    pid = 2**22 + 1  # beyond pid_max: nobody has it
    around = msgspec.structs.replace(cri.service._around, pid_of=lambda text: (text, pid))
    monkeypatch.setattr(cri.service, "_around", around)
    with pytest.raises(InvalidState, match="has just ended"):
        cri.start_container(container_id=container)
    state = cri.container_state(container)
    assert (state["state"], state["reason"]) == ("CONTAINER_EXITED", "StartError")


def test_measuring_what_is_just_removed(cri: Cri, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = cri.running(cri.pod())
    stays = cri.running(cri.pod())
    measure = usage.measure_tree

    def late_measure(path: str) -> usage.Usage:
        return measure(path.replace(gone, "0" * 64))

    monkeypatch.setattr(usage, "measure_tree", late_measure)
    with pytest.raises(NotFound):
        cri.container_stats(container_id=gone)
    [found] = cri.list_container_stats()["stats"]
    assert found["attributes"]["id"] == stays
    metrics = cri.list_pod_sandbox_metrics()["pod_metrics"]
    assert [c["container_id"] for pod in metrics for c in pod["container_metrics"]] == [stays]
    assert cri.image.image_fs_info(Message("ImageFsInfoRequest"))["container_filesystems"]


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
