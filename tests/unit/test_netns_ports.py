"""What `-p` may say, and what two publications have to do with each other."""

from __future__ import annotations

import pytest

from scow.native.errors import InvalidArgument, ScowError, Unsupported
from scow.netns.ports import PortMapping, parse_port, parse_ports

ANY = "0.0.0.0"
GOOD = [
    ("80", [PortMapping(ANY, 0, 80, "tcp")]),
    (":80", [PortMapping(ANY, 0, 80, "tcp")]),
    ("8080:80", [PortMapping(ANY, 8080, 80, "tcp")]),
    ("8080:80/tcp", [PortMapping(ANY, 8080, 80, "tcp")]),
    ("53:53/UDP", [PortMapping(ANY, 53, 53, "udp")]),
    ("127.0.0.1:8080:80", [PortMapping("127.0.0.1", 8080, 80, "tcp")]),
    ("127.0.0.1::80", [PortMapping("127.0.0.1", 0, 80, "tcp")]),
    ("::80", [PortMapping(ANY, 0, 80, "tcp")]),
    ("65535:65535", [PortMapping(ANY, 65535, 65535, "tcp")]),
    ("8000-8010:8000-8010", [PortMapping(ANY, 8000, 8000, "tcp", count=11)]),
    ("1000-1001:2000-2001/udp", [PortMapping(ANY, 1000, 2000, "udp", count=2)]),
    ("3000-3010:80", [PortMapping(ANY, 3000, 80, "tcp", choices=11)]),
    ("8000-8001", [PortMapping(ANY, 0, 8000, "tcp"), PortMapping(ANY, 0, 8001, "tcp")]),
    ("1-65535:1-65535", [PortMapping(ANY, 1, 1, "tcp", count=65535)]),
]


@pytest.mark.parametrize(("spec", "expected"), GOOD)
def test_every_docker_form(spec: str, expected: list[PortMapping]) -> None:
    assert parse_port(spec) == expected


BAD = [
    ("", "missing"),
    (":", "missing"),
    ("80:", "missing"),
    ("0:80", "cannot be 0"),
    ("70000:80", "above 65535"),
    ("80:0", "cannot be 0"),
    ("80:65536", "above 65535"),
    ("9" * 5000, "above 65535"),
    ("a:b", "not a number"),
    (" 80:80", "not a number"),
    ("+80:80", "not a number"),
    ("8_0:80", "not a number"),
    ("²:80", "not a number"),
    ("٨٠:80", "not a number"),
    ("-1:80", "missing"),
    ("80:80\n", "not a number"),
    ("80\0:80", "not a number"),
    ("1-5:1-4", "5 host ports"),
    ("1:1-4", "1 host ports"),
    ("5-3:5-3", "backwards"),
    ("1-2-3:80", "not a number"),
    ("80:80/sctpx", "not a protocol"),
    ("80:80/", "not a protocol"),
    ("80:80/tcp/udp", "not a protocol"),
    ("1.2.3.4.5:80:80", "not an IPv4 address"),
    ("1.2.3:80:80", "not an IPv4 address"),
    ("256.0.0.1:80:80", "not an IPv4 address"),
    ("localhost:80:80", "not an IPv4 address"),
    ("::1:80:80", "brackets"),
    ("[::1:80:80", "brackets"),
    ("[x]:80:80", "not an IPv6 address"),
]


@pytest.mark.parametrize(("spec", "gist"), BAD)
def test_bad_forms_name_the_fault_and_give_the_form(spec: str, gist: str) -> None:
    with pytest.raises(InvalidArgument, match=gist) as caught:
        parse_port(spec)
    assert "\n" not in caught.value.message
    assert "\0" not in caught.value.message
    assert len(caught.value.message) < 600
    assert "CONTAINER_PORT" in (caught.value.hint or "")


@pytest.mark.parametrize("spec", ["[::1]:80:80", "[::]:80:80", "80:80/sctp"])
def test_what_is_not_supported_is_said_so(spec: str) -> None:
    with pytest.raises(Unsupported, match=r"IPv4 only|SCTP"):
        parse_port(spec)


@pytest.mark.parametrize(
    "specs",
    [
        ["80:80", "80:81"],
        ["127.0.0.1:80:80", "80:80"],
        ["8000-8010:8000-8010", "8005:1"],
        ["53:53/udp", "0.0.0.0:53:5353/udp"],
    ],
)
def test_one_host_port_twice(specs: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="same host port"):
        parse_ports(specs)


@pytest.mark.parametrize(
    "specs",
    [
        ["53:53/udp", "53:53/tcp"],
        ["127.0.0.1:80:80", "127.0.0.2:80:80"],
        ["80", "80"],
        ["8080:80", "8081:80"],
    ],
)
def test_what_looks_like_twice_and_is_not(specs: list[str]) -> None:
    assert len(parse_ports(specs)) == len(specs)


def test_notation() -> None:
    assert str(parse_port("8000-8001:80-81")[0]) == "0.0.0.0:8000-8001->80-81/tcp"
    assert str(parse_port("127.0.0.1:53:53/udp")[0]) == "127.0.0.1:53->53/udp"


def test_any_text_is_read_or_refused() -> None:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @settings(max_examples=300, deadline=None)
    @given(st.text(alphabet="0123456789:-/.[]tcpud \n\0é", max_size=24))
    def check(spec: str) -> None:
        try:
            mappings = parse_port(spec)
        except ScowError:
            return
        assert all(1 <= m.container_port <= 65535 and 0 <= m.host_port <= 65535 for m in mappings)

    check()
