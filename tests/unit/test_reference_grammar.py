"""The grammar of references and digests (badinput.md C, cves.md section 8)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scow.image.digest import chain_ids, parse_diff_id, parse_digest, quote
from scow.image.reference import Reference, is_loopback_host, parse_reference
from scow.native.errors import InvalidArgument

A = "a" * 64
SHA = f"sha256:{A}"


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("alpine:3.19", "docker.io/library/alpine:3.19", "alpine:3.19"),
        ("a__b", "docker.io/library/a__b:latest", "a__b:latest"),
        ("a/b", "docker.io/a/b:latest", "a/b:latest"),
        ("docker.io/a", "docker.io/library/a:latest", "a:latest"),
        ("index.docker.io/library/a", "docker.io/library/a:latest", "a:latest"),
        ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
        ("localhost:5000/a/b:t", "localhost:5000/a/b:t", "localhost:5000/a/b:t"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        ("GHCR.io/x/y", "ghcr.io/x/y:latest", "ghcr.io/x/y:latest"),
        ("h:080/a", "h:80/a:latest", "h:80/a:latest"),
        (f"a@{SHA}", f"docker.io/library/a@{SHA}", f"a@{SHA}"),
        (f"a:t@{SHA}", f"docker.io/library/a:t@{SHA}", f"a:t@{SHA}"),
        (f"a@sha512:{A}{A}", f"docker.io/library/a@sha512:{A}{A}", f"a@sha512:{A}{A}"),
        (f"h.example/{A}", f"h.example/{A}:latest", f"h.example/{A}:latest"),
        ("x:80", "docker.io/library/x:80", "x:80"),
    ],
)
def test_good_references(text: str, canonical: str, familiar: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == canonical
    assert reference.familiar == familiar
    assert parse_reference(canonical) == reference
    assert parse_reference(familiar) == reference


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (" ", "position 1"),
        (":", "empty"),
        ("@", "position 2"),
        ("/", "empty"),
        ("a/", "position 3"),
        ("//a", "empty"),
        ("a//b", "position 3"),
        ("A/b", "lower case"),
        ("A", "lower case"),
        ("a:", "tag is empty"),
        ("a:t:t", "tag 't:t'"),
        ("a@", "position 3"),
        ("a@sha256:", "64 lower-case hex"),
        ("a@sha256:zz", "64 lower-case hex"),
        (f"a@sha256:{'A' * 64}", "lower-case hex"),
        ("a@md5:00", "unsupported algorithm"),
        (f"a@{SHA}@{SHA}", "64 lower-case hex"),
        ("-a", "'-a'"),
        ("a..b", "'a..b'"),
        ("a___b", "'a___b'"),
        ("a:" + "t" * 129, "longer than 128"),
        ("n" * 256, "longer than 255"),
        ("n" * 5000, "longer than 255"),
        ("http://h/a", "scheme"),
        ("h/a?x=1", "position 4"),
        ("h/a#f", "position 4"),
        ("user:pw@h/a", "user name or password"),
        ("http://user:pw@h/a", "user name or password"),
        ("h:99999/a", "99999"),
        ("h:0/a", "'0'"),
        ("h:/a", "port"),
        ("h:+1/a", "port"),
        ("h\\@evil/a", "user name or password"),
        ("h\\/a", "not allowed"),
        ("höst.de/a", "not allowed"),
        ("a\n", "not allowed"),
        ("a:t\n", "not allowed"),
        ("a\0", "not allowed"),
        ("[::1/a", "IPv6"),
        ("[zz]/a", "IPv6"),
        ("[::1]x/a", "only a port"),
        (A, "image id"),
        ("../a/b", "'..'"),
        ("./a", "'.'"),
        ("a.-b.example/c", "host name"),
    ],
)
def test_bad_references(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_reference(text)
    assert says in caught.value.message
    assert "pw" not in caught.value.message
    assert len(caught.value.message) < 700


@given(st.text(max_size=300))
def test_parsing_is_stable_or_refuses(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidArgument as e:
        message = e.message
    else:
        message = ""
    assert message.isprintable()
    if message:
        return
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference
    assert ".." not in reference.path
    assert len(reference.repository) <= 255


@given(st.from_regex(r"[a-z0-9:/.@\-_\[\]]{1,80}", fullmatch=True))
def test_near_references(text: str) -> None:
    test_parsing_is_stable_or_refuses.hypothesis.inner_test(text)


@given(
    st.sampled_from(["docker.io", "localhost", "h.example:5000", "[fe80::1]:1"]),
    st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8})?", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True),
)
def test_every_valid_reference_is_taken(host: str, path: str, tag: str) -> None:
    expected = f"library/{path}" if host == "docker.io" else path
    assert parse_reference(f"{host}/{path}:{tag}") == Reference(host, expected, tag, None)


@pytest.mark.parametrize(
    "text",
    ["", "sha256", "sha256:", "sha256:../../x", "SHA256:" + A, SHA + "\n", SHA + "a", "sha512:" + A,
     "sha256:" + "é" * 64, "sha256:" + "A" * 64, "sha256:" + "0" * 63 + "\0", " " + SHA,
     "sha256:../../v2/other", "sha256+b64:" + A],
)  # fmt: skip
def test_bad_digests(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_digest(text)


@given(st.text())
def test_digests_are_safe_names(text: str) -> None:
    try:
        digest = parse_digest(text)
    except InvalidArgument:
        return
    assert "/" not in digest
    assert "." not in digest


def test_chain_ids() -> None:
    # The values were computed with sha256sum.
    one, two = parse_diff_id(SHA), parse_diff_id("sha256:" + "b" * 64)
    import hashlib

    expected = "sha256:" + hashlib.sha256(f"{one} {two}".encode()).hexdigest()
    assert chain_ids([]) == []
    assert chain_ids([one]) == [one]
    assert chain_ids([one, two]) == [one, expected]


def test_quote_is_one_short_line() -> None:
    assert quote("a\nb\x1b[31m") == "'a\\nb\\x1b[31m'"
    assert len(quote("x" * 1000)) < 270


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("localhost:5000", True), ("127.0.0.1:5000", True), ("127.9.9.9", True),
     ("[::1]:1", True), ("[::2]", False), ("127.evil.com", False), ("localhost.evil.com", False),
     ("10.0.0.1", False)],
)  # fmt: skip
def test_loopback_hosts(host: str, expected: bool) -> None:
    assert is_loopback_host(host) is expected
