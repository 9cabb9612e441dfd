"""Mounts of a container in a pod: propagation, read-only in both ways, mapped ids, image volumes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.images import ImageFactory
from fixtures.pods import Cri
from scow.native.errors import InvalidArgument, NotFound

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that is a shared mount of its own, with a tmpfs mounted below."""
    top = tmp_path / "shared"
    top.mkdir()
    run("mount", "--bind", top, top)
    run("mount", "--make-private", top)
    run("mount", "--make-shared", top)
    (top / "below").mkdir()
    run("mount", "-t", "tmpfs", "none", top / "below")
    yield top
    run("umount", "-R", top)


def run(*words: Any) -> None:
    subprocess.run([str(word) for word in words], check=True)


def mount(host: Path, **fields: Any) -> dict[str, Any]:
    return {"host_path": str(host), "container_path": "/data", **fields}


def test_bind_mounts(cri: Cri, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    pod = cri.pod()
    asked = [mount(link), {**mount(tmp_path), "container_path": "/fixed", "readonly": True}]
    container = cri.running(pod, mounts=asked)
    assert cri.sh(container, "cat /data/file; echo back > /data/answer") == "from the host"
    assert (tmp_path / "answer").read_text() == "back\n"
    done = cri.exec_sync(container_id=container, cmd=["touch", "/fixed/x"])
    assert b"Read-only" in done["stderr"]
    assert cri.container_state(container)["mounts"] == asked
    with pytest.raises(InvalidArgument, match="does not exist"):
        cri.container(pod, mounts=[mount(tmp_path / "nosuch")])
    with pytest.raises(InvalidArgument, match="absolute"):
        cri.container(pod, mounts=[{"host_path": "x", "container_path": "/data"}])


def test_propagation(cri: Cri, shared: Path) -> None:
    pod = cri.pod(linux={"security_context": {"privileged": True}})
    privileged = {"linux": {"security_context": {"privileged": True}}}
    private = cri.running(pod, mounts=[mount(shared)])
    slave = cri.running(pod, mounts=[mount(shared, propagation="PROPAGATION_HOST_TO_CONTAINER")])
    peer = cri.running(
        pod, mounts=[mount(shared, propagation="PROPAGATION_BIDIRECTIONAL")], **privileged
    )
    (shared / "late").mkdir()
    run("mount", "-t", "tmpfs", "none", shared / "late")
    (shared / "late/x").touch()
    seen = [cri.sh(c, "ls /data/late") for c in (private, slave, peer)]
    assert seen == ["", "x", "x"]
    cri.sh(peer, "mkdir /data/up; mount -t tmpfs none /data/up; touch /data/up/y")
    assert (shared / "up/y").exists()
    assert cri.sh(slave, "ls /data/up") == "y"


def test_a_private_source_cannot_propagate(cri: Cri, shared: Path) -> None:
    run("mount", "--make-private", shared)
    pod = cri.pod()
    for propagation in ("PROPAGATION_HOST_TO_CONTAINER", "PROPAGATION_BIDIRECTIONAL"):
        with pytest.raises(InvalidArgument, match="private"):
            cri.container(pod, mounts=[mount(shared, propagation=propagation)])


def test_read_only_and_recursively(cri: Cri, shared: Path) -> None:
    pod = cri.pod()
    top = cri.running(pod, mounts=[mount(shared, readonly=True)])
    assert cri.exec_sync(container_id=top, cmd=["touch", "/data/x"])["exit_code"] == 1
    cri.sh(top, "touch /data/below/x")
    whole = cri.running(pod, mounts=[mount(shared, readonly=True, recursive_read_only=True)])
    for path in ("/data/x", "/data/below/y"):
        done = cri.exec_sync(container_id=whole, cmd=["touch", path])
        assert b"Read-only" in done["stderr"]
    for wrong in (
        {"recursive_read_only": True},
        {
            "recursive_read_only": True,
            "readonly": True,
            "propagation": "PROPAGATION_HOST_TO_CONTAINER",
        },
    ):
        with pytest.raises(InvalidArgument, match="recursive_read_only"):
            cri.container(pod, mounts=[mount(shared, **wrong)])


def test_mount_options(cri: Cri, tmp_path: Path) -> None:
    container = cri.running(
        cri.pod(), mounts=[mount(tmp_path, mount_options=["noexec", "nosuid", "nodev"])]
    )
    line = cri.sh(container, "grep ' /data ' /proc/mounts")
    assert all(word in line for word in ("noexec", "nosuid", "nodev"))
    with pytest.raises(InvalidArgument, match="invalid option"):
        cri.container(cri.pod(), mounts=[mount(tmp_path, mount_options=["suid"])])


def test_mapped_ids(cri: Cri, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "theirs").touch()
    os.chown(place / "theirs", 5000, 5001)
    maps = {
        "uidMappings": [{"container_id": 5000, "host_id": 1000, "length": 10}],
        "gidMappings": [{"container_id": 5000, "host_id": 2000, "length": 10}],
    }
    container = cri.running(cri.pod(), mounts=[mount(place, **maps)])
    assert cri.sh(container, "stat -c %u:%g /data/theirs") == "1000:2001"


def test_an_image_as_a_volume(cri: Cri, images: ImageFactory) -> None:
    cri.service.images.load_layout(str(images.layout("many")), "many")
    pod = cri.pod()
    asked = [
        {"container_path": "/whole", "image": {"image": "many"}},
        {"container_path": "/part", "image": {"image": "many"}, "image_sub_path": "stack"},
        {"container_path": "/single", "image": {"image": "busybox"}},
    ]
    container = cri.running(pod, mounts=asked)
    assert cri.sh(container, "cat /whole/stack/063") == "layer 63"
    assert cri.sh(container, "cat /part/063") == "layer 63"
    many = cri.image_status(image={"image": "many"})["image"]["id"]
    shown = {m["container_path"]: m["image"] for m in cri.container_state(container)["mounts"]}
    assert (shown["/part"]["image"], shown["/part"]["image_ref"]) == ("many", many)
    assert cri.sh(container, "test ! -e /part/062; ls /single/bin/busybox") == "/single/bin/busybox"
    done = cri.exec_sync(container_id=container, cmd=["touch", "/whole/x"])
    assert b"Read-only" in done["stderr"]
    missing = cri.container(
        pod,
        mounts=[{**asked[1], "image_sub_path": "no/such"}],
    )
    with pytest.raises(InvalidArgument, match="ImageVolumeMountFailed"):
        cri.start_container(container_id=missing)
    with pytest.raises(NotFound):
        cri.container(pod, mounts=[{"container_path": "/x", "image": {"image": "nosuch"}}])
    # An image that is mounted keeps its content.
    cri.remove_image(image={"image": "many"})
    assert cri.sh(container, "cat /whole/stack/063") == "layer 63"
