"""Challenges and tokens: what is asked for, how long it is good, and how often.

The flow as a whole, and what it refuses, is in test_image_registry.py and test_registry_auth.py.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.fake_registry import QUICK, FakeRegistry, Handler
from scow.image import auth
from scow.image.auth import Authenticator, Challenge, parse_challenges
from scow.image.credentials import Credentials
from scow.image.reference import parse_reference
from scow.image.registry import Registry
from scow.image.transport import Transport
from scow.native.errors import PermissionDenied, RegistryError

SCOPE = "repository:team/app:pull"


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)


class Tokens:
    """A registry that asks for tokens `t1`, `t2`, ... each of which is good as long as it says."""

    def __init__(self, registry: FakeRegistry, **answer: Any) -> None:
        self.registry = registry
        self.answer = answer
        self.asked: list[str] = []  # bodies or queries
        self.good: set[str] = set()
        registry.add_image(b"x")
        registry.hooks.append(self.hook)

    def hook(self, handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            body = handler.rfile.read(int(handler.headers.get("Content-Length", 0))).decode()
            self.asked.append(body or handler.path.partition("?")[2])
            token = f"t{len(self.asked)}"
            self.good.add(f"Bearer {token}")
            handler.reply(200, json.dumps({"token": token, **self.answer}).encode())
            return True
        if handler.headers.get("Authorization") in self.good:
            return False
        challenge = f'Bearer realm="http://{self.registry.host}/token?a=b",service="s"'
        handler.reply(401, b"", {"WWW-Authenticate": challenge})
        return True


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    yield fake
    fake.close()


@pytest.fixture
def client(registry: FakeRegistry) -> Iterator[Registry]:
    with Registry(parse_reference(f"{registry.host}/team/app"), patience=QUICK) as client:
        yield client


@pytest.mark.parametrize(
    ("answer", "good_s"),
    [
        ({}, 55),  # the specification's minute, a little early
        ({"expires_in": 300}, 295),
        ({"expires_in": 300, "issued_at": "2001-01-01T00:00:00Z"}, 295),  # its clock may be wrong
        ({"expires_in": 1}, 5),
        ({"expires_in": 0}, 5),
        ({"expires_in": -7}, 5),
        ({"expires_in": None}, 55),
        ({"expires_in": 2.5e9}, 2.4e9),
    ],
)
def test_how_long_a_token_is_good(
    registry: FakeRegistry,
    client: Registry,
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, Any],
    good_s: float,
) -> None:
    tokens = Tokens(registry, **answer)
    now = [1000.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(auth, "time", Clock)
    client.head_manifest("latest")
    now[0] += good_s - 1
    client.head_manifest("latest")
    assert len(tokens.asked) == 1
    now[0] += good_s / 10 + 2
    registry.log.clear()
    client.head_manifest("latest")
    # It was not sent once more to be refused; the registry was asked anew, and then the tokens.
    assert len(tokens.asked) == 2
    assert "Authorization" not in registry.log[0][2]


def test_one_token_for_many_threads(registry: FakeRegistry, client: Registry) -> None:
    tokens = Tokens(registry)
    start = threading.Barrier(8)

    def ask(number: int) -> None:
        start.wait(20)
        client.head_manifest("latest")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert len(tokens.asked) == 1


def test_each_scope_has_its_token(registry: FakeRegistry, client: Registry) -> None:
    tokens = Tokens(registry)
    for scope in (SCOPE, f"{SCOPE},push", SCOPE):
        client.origin.request("HEAD", "manifests/latest", {}, scope=scope).close()
    assert [parse_qs(query)["scope"] for query in tokens.asked] == [[SCOPE], [f"{SCOPE},push"]]


@pytest.mark.parametrize("identity", ["", "long-lived"])
def test_several_scopes(registry: FakeRegistry, identity: str) -> None:
    """One parameter each in a query (which keeps what the realm has), a list in a form."""
    tokens = Tokens(registry)
    given = Credentials(identity_token=identity) if identity else None
    reference = parse_reference(f"{registry.host}/team/app")
    with Registry(reference, patience=QUICK, credentials=given) as client:
        scope = f"{SCOPE},push repository:team/base:pull"
        client.origin.request("HEAD", "manifests/latest", {}, scope=scope).close()
    (asked,) = map(parse_qs, tokens.asked)
    if identity:
        assert asked["scope"] == [scope]
        assert asked["refresh_token"] == [identity]
    else:
        assert asked == {"a": ["b"], "service": ["s"], "scope": scope.split()}


@pytest.mark.parametrize("identity", ["", "first"])
def test_an_identity_token_that_changes(registry: FakeRegistry, identity: str) -> None:
    """The next one is used from then on; one that nobody asked for is not."""
    tokens = Tokens(registry, refresh_token="next")
    given = Credentials("me", "" if identity else "sesame", identity_token=identity)
    reference = parse_reference(f"{registry.host}/team/app")
    with Registry(reference, patience=QUICK, credentials=given) as client:
        for scope in (SCOPE, f"{SCOPE},push"):
            client.origin.request("HEAD", "manifests/latest", {}, scope=scope).close()
    sent = [parse_qs(text).get("refresh_token") for text in tokens.asked]
    assert sent == ([["first"], ["next"]] if identity else [None, None])
    assert not any("offline" in text for text in tokens.asked)


def test_a_login_by_token_where_a_password_is_wanted(registry: FakeRegistry) -> None:
    def hook(handler: Handler) -> bool:
        handler.reply(401, b"", {"WWW-Authenticate": 'Basic realm="r"'})
        return True

    registry.hooks.append(hook)
    given = Credentials("me", identity_token="secret")
    reference = parse_reference(f"{registry.host}/team/app")
    with (
        Registry(reference, patience=QUICK, credentials=given) as client,
        pytest.raises(PermissionDenied, match="wants a password") as caught,
    ):
        client.head_manifest("latest")
    assert "secret" not in str(caught.value)
    assert len(registry.log) == 1


def test_challenges_in_several_headers(registry: FakeRegistry) -> None:
    """Bearer is preferred to Basic, whatever the order; what is unknown is passed over."""
    tokens = Tokens(registry)

    def hook(handler: Handler) -> bool:
        if handler.path.startswith("/token") or handler.headers.get("Authorization"):
            return False
        handler.send_response(401)
        handler.send_header("WWW-Authenticate", "Negotiate")
        handler.send_header("WWW-Authenticate", 'Basic realm="a, b"')
        handler.send_header("WWW-Authenticate", f'Bearer realm="http://{registry.host}/token"')
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    registry.hooks.insert(0, hook)
    with Registry(parse_reference(f"{registry.host}/team/app"), patience=QUICK) as client:
        client.head_manifest("latest")
    assert len(tokens.asked) == 1


def test_a_password_with_a_colon_and_umlauts() -> None:
    header = auth.basic_header(Credentials("us\u00e9r", "p:\u00e4ss w\u00f6rd"))
    assert (
        base64.b64decode(header.removeprefix("Basic ")).decode() == "us\u00e9r:p:\u00e4ss w\u00f6rd"
    )


def test_the_same_token_again_is_no_answer() -> None:
    """A refusal is told at once: the token service has nothing better to give."""

    class Refused:
        headers = {"WWW-Authenticate": "Basic realm=x"}  # noqa: RUF012

    authenticator = Authenticator(
        Transport("http://127.0.0.1:1"), "h", lambda: Credentials("user", "pw")
    )
    refused: Any = Refused()
    header = authenticator.answer(refused, SCOPE, "")
    with pytest.raises(PermissionDenied, match="refuses the credentials"):
        authenticator.answer(refused, SCOPE, header)


@given(st.text(alphabet='Basicearg realm="\\,=\t x1;/:', max_size=80) | st.text(max_size=80))
def test_any_header_is_parsed_or_refused(header: str) -> None:
    try:
        found = parse_challenges(header)
    except RegistryError:
        return
    assert all(isinstance(c, Challenge) and c.scheme == c.scheme.lower() for c in found)


def test_long_headers_take_no_long_time() -> None:
    started = time.monotonic()
    for text in ('Bearer a="' + "\\" * 16_000, "a=" * 8_000, "Basic " * 2_700, '"' * 16_000):
        try:
            parse_challenges(text)
        except RegistryError:
            pass
    assert time.monotonic() - started < 20  # a quadratic pattern would take minutes
