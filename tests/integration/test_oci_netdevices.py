"""linux.netDevices: links of a network namespace of the test's own, moved into containers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures import kernel
from fixtures.bundle import SCOW_OCI, Bundle, Runtime
from fixtures.hostile import until

HOST = f"scow-oci-nd-{os.getpid()}"
MAC = "02:00:00:00:00:42"


def ip(*words: str) -> Any:
    done = subprocess.run(
        ["ip", "-n", HOST, "-j", *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout or "[]")


def names() -> set[str]:
    return {link["ifname"] for link in ip("link")}


@pytest.fixture
def host() -> Iterator[None]:
    """Stands for the host's namespace: a veth pair with addresses of every kind."""
    kernel.need(kernel.mount_refused)
    subprocess.run(["ip", "netns", "add", HOST], check=True)
    ip(
        "link",
        "add",
        "left",
        "address",
        MAC,
        "mtu",
        "1400",
        "type",
        "veth",
        "peer",
        "name",
        "right",
    )
    for device in ("left", "right"):
        ip("link", "set", device, "up")
    ip("address", "add", "10.7.0.2/24", "broadcast", "10.7.0.255", "dev", "left")
    ip("address", "add", "10.7.1.2/24", "dev", "left", "scope", "link")
    ip("address", "add", "2001:db8::2/64", "dev", "left", "nodad")
    ip("address", "add", "2001:db8::3/64", "dev", "left", "nodad", "valid_lft", "600", "preferred_lft", "600")  # fmt: skip
    yield
    subprocess.run(["ip", "netns", "delete", HOST], check=True)


@pytest.fixture
def oci(host: None, tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(["nsenter", f"--net=/run/netns/{HOST}", *SCOW_OCI], tmp_path / "state")
    yield runtime
    runtime.remove_all()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / "bundle", f"/scow-oci-test/{os.getpid()}")
    made.script("busybox ip address; busybox ip route")
    return made


def run(oci: Runtime, bundle: Bundle, devices: dict[str, Any]) -> str:
    bundle.linux["netDevices"] = devices
    bundle.write()
    done = oci("run", "-b", str(bundle.path), "x")
    assert done.code == 0, done.err
    return done.out


def test_a_device_comes_with_its_addresses(oci: Runtime, bundle: Bundle) -> None:
    out = run(oci, bundle, {"left": {"name": "eth7"}})
    link = out.split("eth7@", 1)[1]
    assert "mtu 1400" in link
    assert ",UP" in link.split(">", 1)[0]
    assert f"link/ether {MAC}" in link
    assert "inet 10.7.0.2/24 brd 10.7.0.255 scope global" in link
    assert "inet6 2001:db8::2/64" in link
    # neither of the link's scope nor such as would end some day
    assert "10.7.1.2" not in link
    assert "2001:db8::3" not in link
    assert "10.7.0.0/24 dev eth7" in out


def test_names_are_kept_or_chosen_by_the_kernel(oci: Runtime, bundle: Bundle) -> None:
    assert "left@" in run(oci, bundle, {"left": {}})
    # the pair goes with the container's namespace, which the kernel ends when it has time: nothing is moved back
    until(lambda: names() == {"lo"})
    ip("link", "add", "left", "type", "veth", "peer", "name", "right")
    out = run(oci, bundle, {"left": {"name": "net%d"}, "right": {"name": "net%d"}})
    assert "net0@" in out
    assert "net1@" in out


def test_a_user_namespace_and_a_sysctl_of_the_device(oci: Runtime, bundle: Bundle) -> None:
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux.update(uidMappings=maps, gidMappings=maps)
    bundle.linux["sysctl"] = {"net/ipv4/conf/eth.7/forwarding": "1"}
    bundle.path.chmod(0o755)
    bundle.script("cat /proc/sys/net/ipv4/conf/eth.7/forwarding")
    assert run(oci, bundle, {"left": {"name": "eth.7"}}) == "1\n"


def test_a_namespace_that_is_joined_gets_it(oci: Runtime, bundle: Bundle) -> None:
    other = f"{HOST}-2"
    subprocess.run(["ip", "netns", "add", other], check=True)
    try:
        for item in bundle.linux["namespaces"]:
            if item["type"] == "network":
                item["path"] = f"/run/netns/{other}"
        assert "left@" in run(oci, bundle, {"left": {}})
        assert names() == {"lo", "right"}
        # There it stays, and its name is taken.
        bundle.linux["netDevices"] = {"right": {"name": "left"}}
        bundle.write()
        done = oci("create", "-b", str(bundle.path), "y")
        assert (done.code, "file exists" in done.err) == (1, True)
        assert names() == {"lo", "right"}
    finally:
        subprocess.run(["ip", "netns", "delete", other], check=True)


def test_a_create_that_fails_gives_it_back(oci: Runtime, bundle: Bundle) -> None:
    before = ip("address", "show", "left")
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}
    bundle.linux["netDevices"] = {"left": {"name": "eth7"}}
    bundle.write()
    assert "exit status 1" in oci("create", "-b", str(bundle.path), "x").err
    [after], [had] = ip("address", "show", "left"), before
    for key in ("ifname", "mtu", "address", "flags"):
        assert set(after[key]) == set(had[key]) if key == "flags" else after[key] == had[key]
    assert {a["local"] for a in after["addr_info"]} >= {"10.7.0.2", "2001:db8::2"}


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ({"none": {}}, "none of that name"),
        ({"left": {"name": "a/b"}}, "invalid network device name"),
        ({"left": {"name": "x" * 16}}, "invalid network device name"),
        ({"left": {"name": "lo"}}, "file exists"),
        ({"left": {"name": "x"}, "right": {"name": "x"}}, "two network devices"),
        ({"lo": {}}, "lo"),
    ],
)
def test_what_cannot_be_moved(
    oci: Runtime, bundle: Bundle, devices: dict[str, Any], words: str
) -> None:
    bundle.linux["netDevices"] = devices
    bundle.write()
    done = oci("create", "-b", str(bundle.path), "x")
    assert (done.code, words in done.err) == (1, True), done.err
    assert names() == {"lo", "left", "right"}


def test_without_a_network_namespace_there_is_no_where_to(oci: Runtime, bundle: Bundle) -> None:
    bundle.linux["namespaces"] = [
        item for item in bundle.linux["namespaces"] if item["type"] != "network"
    ]
    bundle.linux["netDevices"] = {"left": {}}
    bundle.write()
    assert "network namespace" in oci("create", "-b", str(bundle.path), "x").err
