"""`scow import URL`: the same door to the network as everything else (CVE-2025-6032, CVE-2026-21441)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.fake_registry import FakeRegistry, Handler
from scow.cli.commit import _Body
from scow.native.errors import RegistryError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login sailor password s3cret\n")
    (tmp_path / "netrc").chmod(0o600)
    fake = FakeRegistry()
    yield fake
    fake.close()


def test_a_file_comes_in_pieces_and_nobody_is_named(server: FakeRegistry) -> None:
    """The twin; a password of ~/.netrc was not meant for it."""
    server.hooks.append(lambda h: h.reply(200, b"x" * 700_000) or True)
    with closing(_Body(f"http://{server.host}/a.tar")) as body:
        pieces = [body.read(6), *iter(lambda: body.read(100_000), b"")]
    assert pieces[0] == b"xxxxxx"
    assert sum(map(len, pieces)) == 700_000
    assert max(map(len, pieces)) <= 100_000
    [(_, _, headers)] = server.log
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("https://169.254.169.254/latest", "link-local"),
        ("file:///etc/passwd", "not an http"),
        ("/loop", "redirects more than 5 times"),
    ],
)
def test_where_it_may_be_sent(server: FakeRegistry, target: str, says: str) -> None:
    server.hooks.append(lambda h: h.reply(302, b"", {"Location": target}) or True)
    with pytest.raises(RegistryError, match=f"cannot fetch 'http://{server.host}/a': .*{says}"):
        _Body(f"http://{server.host}/a")


def test_a_redirect_with_an_endless_body(server: FakeRegistry) -> None:
    sent: list[int] = []

    def away(handler: Handler) -> bool:
        if handler.path != "/a":
            handler.reply(200, b"here")
            return True
        handler.send_response(302)
        handler.send_header("Location", "/b")
        handler.end_headers()
        return handler.pour(sent)

    server.hooks.append(away)
    with closing(_Body(f"http://{server.host}/a")) as body:
        assert body.read(10) == b"here"
    assert sum(sent) < 64 << 20


def test_a_password_in_the_url_is_in_no_message(server: FakeRegistry) -> None:
    with pytest.raises(RegistryError, match="holds a user name or password") as caught:
        _Body(f"http://sailor:s3cret@{server.host}/a")
    assert "s3cret" not in caught.value.message


def test_there_is_one_door_to_the_network() -> None:
    """Who fetches anything does it by image/transport.py, where all the checks are; no image's program helps."""
    doors = re.compile(r"^\s*(import|from) (requests|urllib3|http\.client|urllib\.request)\b", re.M)
    runs = re.compile(r"\bsubprocess\b|os\.(system|popen|exec|spawn|posix_spawn)")
    found: dict[str, set[str]] = {"doors": set(), "runs": set()}
    for room in (path.parent for path in ROOT.glob("*/py.typed")):
        for path in room.rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            text = path.read_text()
            if doors.search(text):
                found["doors"].add(name)
            if room.name == "image" and runs.search(text):
                found["runs"].add(name)
    assert found["doors"] == {
        "cri/client.py",  # over our own socket
        "image/answer.py",
        "image/tls.py",  # urllib3's warning, silenced
        "image/transport.py",
        "image/transport_errors.py",  # their exceptions, in words
    }
    assert found["runs"] == {"image/credentials.py"}
