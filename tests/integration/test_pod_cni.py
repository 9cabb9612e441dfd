"""Networks by CNI, with the plugins of Debian's containernetworking-plugins."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.images import ImageFactory
from fixtures.pods import Cri
from scow.native.errors import InvalidArgument, NotFound, ScowError

pytestmark = pytest.mark.timeout(300)
BRIDGE = "scowcni0"
PLUGINS = "/usr/lib/cni"


@pytest.fixture
def config_dir(tmp_path: Path) -> Iterator[Path]:
    assert os.access(f"{PLUGINS}/bridge", os.X_OK), "install containernetworking-plugins"
    directory = tmp_path / "net.d"
    directory.mkdir()
    yield directory
    subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)


@pytest.fixture
def cri(tmp_path: Path, config_dir: Path, images: ImageFactory) -> Iterator[Cri]:
    made = Cri(
        str(tmp_path / "root"),
        str(tmp_path / "run"),
        cni_config_dir=str(config_dir),
        cni_plugin_dirs=(str(tmp_path / "bin"), PLUGINS),
    )
    made.load_busybox(images)
    yield made
    made.remove_all()
    made.close()
    assert made.service.check() == []


def write_list(directory: Path, *more: dict[str, Any], version: str = "1.0.0") -> None:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.217.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(directory / "leases"),
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipam": ipam}
    document = {"cniVersion": version, "name": "lab", "plugins": [bridge, *more]}
    (directory / "10-lab.conflist").write_text(json.dumps(document))


def leases(directory: Path) -> list[str]:
    return [p.name for p in (directory / "leases/lab").glob("10.*")]


def test_pods_are_connected_by_plugins(cri: Cri, config_dir: Path) -> None:
    write_list(config_dir)
    one, two = cri.pod(), cri.pod()
    first, second = cri.running(one), cri.running(two)
    addresses = [cri.pod_state(pod)["network"]["ip"] for pod in (one, two)]
    assert all(address.startswith("10.217.0.") for address in addresses)
    assert sorted(leases(config_dir)) == sorted(addresses)
    assert addresses[0] in cri.sh(first, "ip -o -4 addr show eth0; cat /etc/hosts")
    assert "127.0.0.1" in cri.sh(first, "ip -o -4 addr show lo")
    listen = ["sh", "-c", "while :; do echo hello | nc -l -p 7000; done"]
    cri.running(one, listen)
    ask = f"for i in $(seq 300); do nc {addresses[0]} 7000 && break; sleep 0.1; done"
    assert cri.sh(second, ask) == "hello"
    cri.pods.network.check(cri.pods.read(one))
    cri.stop_pod_sandbox(pod_sandbox_id=one)
    assert leases(config_dir) == [addresses[1]]
    cri.stop_pod_sandbox(pod_sandbox_id=one)
    stats = cri.pod_sandbox_stats(pod_sandbox_id=two)["stats"]["linux"]
    assert stats["network"]["default_interface"]["rx_bytes"]["value"] > 0


def test_a_pod_keeps_the_configuration_it_was_made_with(cri: Cri, config_dir: Path) -> None:
    write_list(config_dir, version="0.4.0")
    pod = cri.pod()
    (config_dir / "10-lab.conflist").unlink()
    assert cri.pod_state(cri.pod())["network"]["ip"].startswith("10.89.")
    cri.stop_pod_sandbox(pod_sandbox_id=pod)
    assert leases(config_dir) == []


def test_check_finds_what_is_missing(cri: Cri, config_dir: Path) -> None:
    write_list(config_dir)
    pod = cri.pod()
    subprocess.run(["ip", "link", "del", BRIDGE], check=True)
    with pytest.raises(ScowError, match="CHECK"):
        cri.pods.network.check(cri.pods.read(pod))


def test_a_plugin_that_fails_undoes_the_others(cri: Cri, config_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    script = (
        "#!/bin/sh\n"
        f'echo "$CNI_COMMAND $CNI_IFNAME ${{CNI_NETNS:+netns}} $CNI_ARGS" >> {log}\n'
        "[ $CNI_COMMAND = DEL ] && exit 0\n"
        'cat > /dev/null; echo \'{"code": 11, "msg": "no luck", "details": "today"}\'; exit 1\n'
    )
    (tmp_path / "bin").mkdir()
    plugin = tmp_path / "bin/unlucky"
    plugin.write_text(script)
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    write_list(config_dir, {"type": "unlucky"})
    with pytest.raises(ScowError, match=r"unlucky.*no luck today"):
        cri.pod()
    assert leases(config_dir) == []
    calls = log.read_text().splitlines()
    assert calls[0].startswith("ADD eth0 netns IgnoreUnknown=1;K8S_POD_NAMESPACE=test")
    assert all(call.startswith("DEL eth0") for call in calls[1:])
    assert cri.list_pod_sandbox()["items"] == []


def test_capabilities_are_passed_to_who_asks(cri: Cri, config_dir: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"#!/bin/sh\n[ $CNI_COMMAND = ADD ] && cat > {seen} || cat > /dev/null\nexit 0\n"
    (tmp_path / "bin").mkdir()
    plugin = tmp_path / "bin/listener"
    plugin.write_text(script)
    plugin.chmod(0o755)
    write_list(config_dir, {"type": "listener", "capabilities": {"portMappings": True}})
    cri.pod(port_mappings=[{"container_port": 80, "host_port": 8088}])
    document = json.loads(seen.read_text())
    assert "capabilities" not in document
    assert document["prevResult"]["ips"][0]["address"].startswith("10.217.0.")
    assert document["runtimeConfig"] == {
        "portMappings": [{"hostPort": 8088, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]
    }


def test_a_broken_configuration_is_told(cri: Cri, config_dir: Path) -> None:
    (config_dir / "10-lab.conflist").write_text("{")
    condition = cri.status()["status"]["conditions"][1]
    assert (condition["status"], "10-lab.conflist" in condition["message"]) == (False, True)
    with pytest.raises(InvalidArgument, match=r"10-lab\.conflist"):
        cri.pod()
    write_list(config_dir, {"type": "nosuch"})
    assert "nosuch" in cri.status()["status"]["conditions"][1]["message"]
    with pytest.raises(NotFound, match="nosuch"):
        cri.pod()
    assert leases(config_dir) == []
    write_list(config_dir, {"type": "../../bin/sh"})
    with pytest.raises(InvalidArgument, match="plugin type"):
        cri.pod()
