"""Exec, attach and port-forward sessions, events, stats and metrics of pods, images by CRI."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest

from fixtures.images import ImageFactory
from fixtures.pods import Cri
from fixtures.registry import Registry
from scow.native.errors import InvalidArgument, InvalidState, NotFound, PermissionDenied
from scow.runtime.monitor import Exited, Output

pytestmark = pytest.mark.timeout(300)


def read_all(connection: Any) -> tuple[bytes, int]:
    """The output until the end, and the exit code."""
    data = b""
    while True:
        event = connection.recv()
        if isinstance(event, Output):
            data += event.data
        elif isinstance(event, Exited):
            return data, event.exit_code
        else:
            assert event is not None


def test_exec_sessions(cri: Cri) -> None:
    container = cri.running(cri.pod())
    url = cri.exec(container_id=container, cmd=["cat"], stdin=True, stdout=True)["url"]
    with cri.session(url).open() as connection:
        connection.send_stdin(b"through\n")
        connection.close_stdin()
        assert read_all(connection) == (b"through\n", 0)
    assert cri.session(url) is None
    url = cri.exec(
        container_id=container, cmd=["sh", "-c", "tty; stty size; exit 4"], tty=True, stdout=True
    )
    session = cri.session(url["url"])
    assert session.tty
    with session.open() as connection:
        out, code = read_all(connection)
    assert b"/dev/pts/0" in out
    assert code == 4
    for wrong in ({}, {"tty": True, "stdout": True, "stderr": True}):
        with pytest.raises(InvalidArgument):
            cri.exec(container_id=container, cmd=["true"], **wrong)
    cri.stop_container(container_id=container)
    with pytest.raises(InvalidState):
        cri.exec(container_id=container, cmd=["true"], stdout=True)


def test_attach_and_stdin_once(cri: Cri) -> None:
    pod = cri.pod()
    container = cri.running(pod, ["cat"], stdin=True, stdin_once=True)
    with pytest.raises(InvalidArgument, match="tty"):
        cri.attach(container_id=container, tty=True, stdout=True)
    url = cri.attach(container_id=container, stdin=True, stdout=True)["url"]
    with cri.session(url).open() as connection:
        connection.send_stdin(b"once\n")
        event = connection.recv()
        while not isinstance(event, Output):
            event = connection.recv()
        assert event.data == b"once\n"
    assert cri.wait_exit(container)["exit_code"] == 0


def test_port_forward_reaches_loopback_in_the_pod(cri: Cri) -> None:
    pod = cri.pod()
    script = "while :; do echo inside | nc -l -p 7000; done"
    cri.running(pod, ["sh", "-c", script])
    session = cri.session(cri.port_forward(pod_sandbox_id=pod, port=[7000])["url"])
    assert session.ports == (7000,)
    for _ in range(100):
        with contextlib.suppress(OSError), session.connect(7000) as connection:
            connection.settimeout(5)
            if connection.recv(100) == b"inside\n":
                break
        time.sleep(0.05)
    else:
        raise AssertionError("nobody answered")
    with pytest.raises(OSError, match="refused"):
        session.connect(7001)
    cri.stop_pod_sandbox(pod_sandbox_id=pod)
    with pytest.raises(InvalidState):
        session.connect(7000)
    with pytest.raises(InvalidState):
        cri.port_forward(pod_sandbox_id=pod)


def test_events_are_told_as_they_happen(cri: Cri) -> None:
    stream = cri.get_container_events()
    seen: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    pod = cri.pod()
    container = cri.running(pod, ["sh", "-c", "sleep 0.3; exit 5"])
    deadline = time.monotonic() + 60
    while len(seen) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    cri.remove_pod_sandbox(pod_sandbox_id=pod)
    while len(seen) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    stream.close()
    reader.join(timeout=60)
    assert not reader.is_alive()
    kinds = [
        (event["container_id"], event["container_event_type"].removeprefix("CONTAINER_"))
        for event in seen
    ]
    assert kinds == [
        (pod, "CREATED_EVENT"),
        (pod, "STARTED_EVENT"),
        (container, "CREATED_EVENT"),
        (container, "STARTED_EVENT"),
        (container, "STOPPED_EVENT"),
        (container, "DELETED_EVENT"),
        (pod, "STOPPED_EVENT"),
        (pod, "DELETED_EVENT"),
    ]
    ended = seen[4]["containers_statuses"][0]
    assert (ended["state"], ended["exit_code"]) == ("CONTAINER_EXITED", 5)
    assert seen[4]["pod_sandbox_status"]["id"] == pod


def test_stats_and_metrics(cri: Cri) -> None:
    pod = cri.pod(labels={"app": "x"})
    container = cri.running(pod, ["sh", "-c", "while :; do :; done"], labels={"role": "burn"})
    cri.sh(container, "dd if=/dev/zero of=/file bs=1k count=300 2>/dev/null; sync")
    first = cri.container_stats(container_id=container)["stats"]
    time.sleep(0.3)
    second = cri.container_stats(container_id=container)["stats"]
    assert (
        second["cpu"]["usage_core_nano_seconds"]["value"]
        > first["cpu"]["usage_core_nano_seconds"]["value"]
    )
    assert second["cpu"]["usage_nano_cores"]["value"] > 10**7
    assert second["memory"]["working_set_bytes"]["value"] > 0
    assert second["writable_layer"]["used_bytes"]["value"] >= 300 << 10
    assert [s["attributes"]["id"] for s in cri.list_container_stats()["stats"]] == [container]
    assert cri.list_container_stats(filter={"label_selector": {"role": "no"}})["stats"] == []
    with pytest.raises(NotFound):
        cri.container_stats(container_id="nosuch")
    stats = cri.pod_sandbox_stats(pod_sandbox_id=pod)["stats"]["linux"]
    assert stats["process"]["process_count"]["value"] >= 1
    assert stats["network"]["default_interface"]["name"] == "eth0"
    assert stats["containers"][0]["attributes"]["id"] == container
    assert len(cri.list_pod_sandbox_stats(filter={"label_selector": {"app": "x"}})["stats"]) == 1
    names = {d["name"]: d["label_keys"] for d in cri.list_metric_descriptors()["descriptors"]}
    assert len(names) > 40
    metrics = cri.list_pod_sandbox_metrics()["pod_metrics"][0]
    every = metrics["metrics"] + metrics["container_metrics"][0]["metrics"]
    assert {metric["name"] for metric in every} == set(names)
    assert all(len(metric["label_values"]) == len(names[metric["name"]]) for metric in every)
    cri.stop_container(container_id=container, timeout=0)
    assert cri.list_container_stats()["stats"] == []


def test_images(cri: Cri, images: ImageFactory, password_registry: Registry) -> None:
    reference = images.busybox()
    image_id = cri.pull_image(image={"image": reference})["image_ref"]
    assert image_id == cri.image_status(image={"image": "busybox"})["image"]["id"]
    listed = {image["id"]: image for image in cri.list_images()["images"]}[image_id]
    assert reference in listed["repo_tags"]
    assert "docker.io/library/busybox:latest" in listed["repo_tags"]
    assert (listed["uid"], listed["size"] > 0) == ({"value": 0}, True)
    assert cri.list_images(filter={"image": {"image": reference}})["images"] == [listed]
    assert cri.list_images(filter={"image": {"image": "nosuch"}})["images"] == []
    assert cri.image_status(image={"image": "nosuch"}) == {}
    assert cri.image_status(image={"image": image_id}, verbose=True)["info"]["info"]
    info = cri.image_fs_info()["image_filesystems"][0]
    assert info["used_bytes"]["value"] > 1 << 19
    assert info["fs_id"]["mountpoint"] == cri.service.root
    cri.remove_image(image={"image": reference})
    assert cri.list_images()["images"] == []
    cri.remove_image(image={"image": reference})
    private = password_registry.push(f"oci:{images.layout('busybox')}:latest", "busybox:private")
    with pytest.raises(PermissionDenied):
        cri.pull_image(image={"image": private})
    auth = {"username": Registry.USER, "password": Registry.PASSWORD}
    # What is meant for another server is not shown to this one.
    with pytest.raises(PermissionDenied):
        cri.pull_image(
            image={"image": private}, auth={**auth, "server_address": "https://other.example/v1/"}
        )
    auth["server_address"] = f"https://{password_registry.host}/v2/"
    assert cri.pull_image(image={"image": private}, auth=auth)["image_ref"] == image_id
