"""The content of hosts, hostname and resolv.conf."""

from __future__ import annotations

from pathlib import Path

import pytest

from scow.native.errors import InvalidArgument
from scow.netns.names import hostname_file, hosts_file, read_host_resolv_conf, resolv_conf

LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def test_hosts() -> None:
    assert hosts_file("web", "10.89.0.2").decode() == LOCAL + "10.89.0.2\tweb\n"
    assert hosts_file("web", "10.89.0.2", domainname="lan").decode().endswith("\tweb.lan web\n")
    assert hosts_file("web", None).decode() == LOCAL
    extra = [("db", "10.0.0.1"), ("six", "fd00::1"), ("host.docker.internal", "host-gateway")]
    lines = hosts_file("w", "10.89.0.2", extra=extra, gateway="10.89.0.1").decode().splitlines()
    assert lines[2:5] == ["10.0.0.1\tdb", "fd00::1\tsix", "10.89.0.1\thost.docker.internal"]
    assert hostname_file("web") == b"web\n"


@pytest.mark.parametrize(
    "extra",
    [
        ("a", "b:c"),
        ("a\n1.1.1.1 b", "1.2.3.4"),
        ("a b", "1.2.3.4"),
        ("", "1.2.3.4"),
        ("#", "1.2.3.4"),
        ("a", "host-gateway"),
    ],
)
def test_hosts_refuses_what_breaks_the_file(extra: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        hosts_file("w", None, extra=[extra])


RESOLV = [
    (
        "nameserver 9.9.9.9\nsearch a b\noptions ndots:2\n",
        "nameserver 9.9.9.9\nsearch a b\noptions ndots:2\n",
    ),
    (
        "nameserver 127.0.0.53\noptions edns0\n",
        "nameserver 8.8.8.8\nnameserver 8.8.4.4\noptions edns0\n",
    ),
    ("nameserver 127.0.0.53\nnameserver 9.9.9.9\n", "nameserver 9.9.9.9\n"),
    ("nameserver ::1\nnameserver fe80::1%eth0\nnameserver 9.9.9.9\n", "nameserver 9.9.9.9\n"),
    ("# x\n; y\nnameserver\nnameserver rubbish\n", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
    ("domain old\nsearch new\nnameserver 9.9.9.9", "nameserver 9.9.9.9\nsearch new\n"),
    ("", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
]


@pytest.mark.parametrize(("host", "expected"), RESOLV)
def test_resolv_conf_from_the_host(host: str, expected: str) -> None:
    assert resolv_conf(host).decode() == expected


def test_resolv_conf_from_the_user() -> None:
    host = "nameserver 9.9.9.9\nsearch a\noptions x\n"
    assert (
        resolv_conf(host, dns=["127.0.0.1", "fd00::1"])
        .decode()
        .startswith("nameserver 127.0.0.1\nnameserver fd00::1\nsearch a\n")
    )
    assert (
        resolv_conf(host, search=["."], options=["ndots:1"])
        == b"nameserver 9.9.9.9\noptions ndots:1\n"
    )
    shared = resolv_conf("nameserver 127.0.0.53\n", shares_host_network=True)
    assert shared == b"nameserver 127.0.0.53\n"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dns": ["x"]},
        {"dns": ["1.2.3"]},
        {"dns": ["9.9.9.9\n"]},
        {"dns": ["9.9.9.9"] * 100},
        {"search": ["a b"]},
        {"options": ["a\nnameserver 6.6.6.6"]},
    ],
)
def test_resolv_conf_refuses(kwargs: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidArgument):
        resolv_conf("", **kwargs)  # type: ignore[arg-type] # one keyword at a time


def test_the_file_behind_the_stub(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert read_host_resolv_conf(str(tmp_path)) == ""
    (tmp_path / "etc/resolv.conf").write_text("nameserver 127.0.0.53\n")
    assert "53" in read_host_resolv_conf(str(tmp_path))
    (tmp_path / "run/systemd/resolve").mkdir(parents=True)
    (tmp_path / "run/systemd/resolve/resolv.conf").write_text("nameserver 9.9.9.9\n")
    assert "9.9.9.9" in read_host_resolv_conf(str(tmp_path))
