"""The text of the table, and how a run of nft is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from scow.native.errors import ScowError, Unsupported
from scow.netns import nft
from scow.netns.ports import parse_ports

NETWORKS = [nft.NetworkRules("scow0", "10.89.0.0/16"), nft.NetworkRules("scow1", "10.90.0.0/16")]


def published(*specs: str) -> list[nft.Publication]:
    return [nft.Publication(mapping, "10.89.0.2") for mapping in parse_ports(specs)]


def test_ranges_that_keep_their_numbers_are_one_interval() -> None:
    text = nft.render(NETWORKS, published("1000-60000:1000-60000", "127.0.0.1:80:80/udp"))
    assert "tcp . 0.0.0.0/0 . 1000-60000 : 10.89.0.2" in text
    assert "udp . 127.0.0.1 . 80 : 10.89.0.2" in text
    assert len(text) < 3500


def test_moved_ports_name_both() -> None:
    text = nft.render(NETWORKS, published("8080:80", "9000-9001:90-91"))
    for element in ("8080 : 10.89.0.2 . 80", "9000 : 10.89.0.2 . 90", "9001 : 10.89.0.2 . 91"):
        assert f"tcp . 0.0.0.0/0 . {element}" in text


def test_every_translation_asks_for_a_local_destination() -> None:
    lines = [line.strip() for line in nft.render(NETWORKS, []).splitlines()]
    jumps = [line for line in lines if line.endswith("jump publish")]
    assert len(jumps) == 2
    assert all("fib daddr type local" in line for line in jumps)
    assert sum("dnat" in line and "@" in line for line in lines) == 2


def test_one_transaction_and_no_ports_in_the_stamp() -> None:
    text = nft.render(NETWORKS, [])
    assert text.startswith("table ip scow\ndelete table ip scow\ntable ip scow {")
    stamp = next(line for line in text.splitlines() if "comment" in line)
    assert stamp in nft.render(NETWORKS, published("80:80"))
    assert stamp not in nft.render(NETWORKS[:1], [])


def program(directory: Path, script: str) -> str:
    path = directory / "nft"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_missing_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nft, "_NFT", (str(tmp_path / "nft"),))
    with pytest.raises(Unsupported, match="not installed") as caught:
        nft.apply("")
    assert caught.value.hint == "apt-get install nftables"


def test_its_first_complaint_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "echo '/dev/stdin:1: Error: no such thing' >&2; echo more >&2; exit 1"
    monkeypatch.setattr(nft, "_NFT", (program(tmp_path, script),))
    with pytest.raises(ScowError, match=r"no such thing$"):
        nft.apply("x")
    monkeypatch.setattr(nft, "_NFT", (program(tmp_path, "exit 3"),))
    with pytest.raises(ScowError, match="status 3"):
        nft.apply("x")


def test_busy_is_tried_again_and_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count = tmp_path / "count"
    busy = "echo 'Error: Could not process rule: Device or resource busy' >&2"
    script = f"echo x >> {count}; [ $(wc -l < {count}) -ge 3 ] && exit 0; {busy}; exit 1"
    monkeypatch.setattr(nft, "_NFT", (program(tmp_path, script),))
    nft.apply("x")
    assert count.read_text().count("x") == 3
    monkeypatch.setattr(nft, "_NFT", (program(tmp_path, f"echo x >> {count}; {busy}; exit 1"),))
    with pytest.raises(ScowError, match="busy"):
        nft.apply("x")
    assert count.read_text().count("x") == 8
