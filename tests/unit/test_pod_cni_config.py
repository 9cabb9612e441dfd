"""CNI configuration and results, without any plugin."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from scow.cri import pods
from scow.cri.service import Service
from scow.native.errors import InvalidArgument
from scow.netns.cni import Connection, addresses, decode_connection, load_network, parse_network


def test_the_first_file_counts(tmp_path: Path) -> None:
    assert load_network(str(tmp_path / "nosuch")) is None
    assert load_network(str(tmp_path)) is None
    (tmp_path / "10-a.txt").write_text("no")
    (tmp_path / "30-c.conflist").write_text(
        json.dumps({"name": "c", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]})
    )
    (tmp_path / "20-b.conf").write_text(
        json.dumps({"name": "b", "cniVersion": "0.4.0", "type": "bridge"})
    )
    found = load_network(str(tmp_path))
    assert found is not None
    assert (found.name, found.version) == ("b", "0.4.0")
    assert [plugin["type"] for plugin in found.plugins] == ["bridge"]


def test_podmans_own_network_is_not_taken_by_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"name": "podman", "cniVersion": "0.4.0", "plugins": [{"type": "bridge"}]}
    net_d = tmp_path / "net.d"
    net_d.mkdir()
    (net_d / "87-podman-bridge.conflist").write_text(json.dumps(theirs))
    monkeypatch.setattr(pods, "CNI_CONFIG_DIR", str(net_d))
    monkeypatch.delenv("SCOW_CNI_CONFIG", raising=False)
    service = Service(str(tmp_path / "root"), str(tmp_path / "run"))
    assert pods.Pods(service).network.describe() == "the bridge scow0"
    mine = {"name": "mine", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]}
    (net_d / "90-mine.conflist").write_text(json.dumps(mine))
    assert pods.Pods(service).network.describe() == f"CNI: {net_d}/90-mine.conflist"
    # Who names the directory means all of it.
    monkeypatch.setenv("SCOW_CNI_CONFIG", str(net_d))
    assert pods.Pods(service).network.describe() == f"CNI: {net_d}/87-podman-bridge.conflist"


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"name": "../x", "plugins": [{"type": "a"}]},
        {"name": "x", "plugins": []},
        {"name": "x", "plugins": ["a"]},
        {"name": "x", "plugins": [{"type": "a/b"}]},
        {"name": "x", "plugins": [{"type": ".."}]},
        {"name": "x", "plugins": [{}]},
        {"name": "x", "cniVersion": "9.0.0", "plugins": [{"type": "a"}]},
    ],
)
def test_what_is_no_configuration(document: object) -> None:
    with pytest.raises(InvalidArgument, match="CNI configuration"):
        parse_network(json.dumps(document).encode(), "/x.conflist")


def test_results() -> None:
    result = {"ips": [{"address": "10.0.0.5/24"}, {"address": "fd00::5/64"}]}
    assert addresses(result) == ["10.0.0.5", "fd00::5"]
    assert addresses({"ip4": {"ip": "10.0.0.5/24"}}) == ["10.0.0.5"]
    assert addresses({}) == []
    network = parse_network(b'{"name": "n", "plugins": [{"type": "a"}]}', "/x.conflist")
    kept = Connection(network, result)
    assert decode_connection(msgspec.json.encode(kept)) == kept
