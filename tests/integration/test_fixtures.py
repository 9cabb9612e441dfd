"""The tests' own tools: the residue check sees what is left, and the images are what they say."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fixtures import residue
from fixtures.engines import Engine, start_daemon
from fixtures.images import MANY_LAYERS, ImageFactory
from fixtures.registry import Registry


def test_nothing_done_leaves_nothing() -> None:
    assert residue.difference(residue.snapshot()) == []


def test_a_descriptor_is_seen() -> None:
    before = residue.snapshot()
    with open("/etc/hostname") as stream:
        [line] = residue.difference(before, grace_s=0)
        assert line == f"left behind: descriptor: {stream.fileno()} -> /etc/hostname"


def test_a_process_is_seen_and_waited_for() -> None:
    before = residue.snapshot()
    child = subprocess.Popen(["sleep", "0.3"])
    assert [line for line in residue.difference(before, grace_s=0) if f" {child.pid} sleep" in line]
    reaper = threading.Thread(target=child.wait)
    reaper.start()
    assert residue.difference(before) == []
    reaper.join()


def test_a_mount_is_seen(tmp_path: Path) -> None:
    before = residue.snapshot()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    try:
        found = residue.difference(before, grace_s=0)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert found == [f"left behind: mount: {tmp_path} from / type tmpfs none"]


def test_a_cgroup_is_seen() -> None:
    before = residue.snapshot()
    [place] = [
        path
        for path in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup")
        if os.path.exists(f"{path}/cgroup.procs")
    ][:1]
    os.mkdir(f"{place}/scow-test-residue")
    try:
        found = residue.difference(before, grace_s=0)
    finally:
        os.rmdir(f"{place}/scow-test-residue")
    assert found == [f"left behind: cgroup: {place}/scow-test-residue"]


def test_a_link_is_seen() -> None:
    before = residue.snapshot()
    subprocess.run(["ip", "link", "add", "scowresidue", "type", "bridge"], check=True)
    try:
        found = residue.difference(before, grace_s=0)
    finally:
        subprocess.run(["ip", "link", "del", "scowresidue"], check=True)
    assert found == ["left behind: link: scowresidue"]


def test_a_table_is_seen() -> None:
    before = residue.snapshot()
    subprocess.run(["nft", "add", "table", "inet", "scowresidue"], check=True)
    try:
        found = residue.difference(before, grace_s=0)
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "scowresidue"], check=True)
    assert "left behind: nftables: inet scowresidue: table inet scowresidue" in found


def manifest(registry: Registry, name: str, tag: str) -> dict[str, object]:
    kinds = "application/vnd.oci.image.manifest.v1+json, "
    kinds += "application/vnd.docker.distribution.manifest.v2+json"
    body: dict[str, object] = json.loads(registry.get(f"/v2/{name}/manifests/{tag}", Accept=kinds))
    return body


def media_types(document: dict[str, object]) -> list[str]:
    layers = document["layers"]
    assert isinstance(layers, list)
    return [layer["mediaType"].rsplit(".", 1)[-1] for layer in layers]


@pytest.mark.timeout(600)
def test_images_are_what_they_say(registry: Registry, images: ImageFactory) -> None:
    assert images.debian() == f"{registry.host}/debian:12"
    for push in (
        images.busybox,
        images.debian_zstd,
        images.debian_docker,
        images.nginx,
        images.many,
    ):
        assert push().startswith(f"{registry.host}/")
    assert media_types(manifest(registry, "debian", "12")) == ["tar+gzip"]
    assert media_types(manifest(registry, "debian", "zstd")) == ["tar+zstd"]
    assert media_types(manifest(registry, "debian", "docker")) == ["gzip"]
    assert len(media_types(manifest(registry, "nginx", "1"))) == 3
    assert len(media_types(manifest(registry, "many", "64"))) == MANY_LAYERS + 1


def test_a_registry_with_a_password(password_registry: Registry) -> None:
    assert json.loads(password_registry.get("/v2/_catalog")) == {"repositories": []}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(f"http://{password_registry.host}/v2/_catalog", timeout=5)
    with refused.value as answer:
        assert answer.code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize(("why", "begins_again"), [("pid file found", True), ("no", False)])
def test_a_daemon_that_ends_at_its_start(tmp_path: Path, why: str, begins_again: bool) -> None:
    top, log = tmp_path, tmp_path / "log"
    script = f"[ ! -e {top}/once ] || {{ touch {top}/up; exec sleep 100; }}; echo {why}; touch {top}/once"
    engine = Engine(["sh", "-c", f"test -e {top}/up"], {})
    if begins_again:
        daemon = start_daemon(["sh", "-c", script], engine, log, os.environ)
        daemon.kill()
        daemon.wait()
    else:
        with pytest.raises(AssertionError, match=f"sh ends at its start: status 0: {why}"):
            start_daemon(["sh", "-c", script], engine, log, os.environ)
