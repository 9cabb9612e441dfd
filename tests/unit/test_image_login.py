"""Logins in the files of Docker and Podman: written whole, kept private, nothing else touched."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from scow.image.credentials import Credentials, find_credentials
from scow.image.login import (
    Server,
    erase_login,
    login_files,
    login_path,
    parse_server,
    servers,
    store_login,
)
from scow.native.errors import InvalidArgument, PermissionDenied

SAILOR = Credentials("sailor", "se:cret ü")
HOST = Server("reg.example.com:5000")
HUB = Server("docker.io")

HELPER = """#!/bin/sh
# A keychain in a directory; a lock file makes it refuse.
cd "$(dirname "$0")" && [ ! -e locked ] || { echo "the secret is: sesame"; exit 1; }
case $1 in
store) cat > stored ;;
erase) cat > erased; rm -f stored ;;
get) cat > asked; [ -e stored ] && cat stored || { echo "credentials not found in native keychain"; exit 1; } ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def helper(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = home / "bin"
    directory.mkdir()
    program = directory / "docker-credential-chest"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def read(path: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads(path.read_text())
    return document


def test_what_is_stored_is_found(home: Path) -> None:
    path = home / ".docker/config.json"
    assert login_path() == str(path)
    assert store_login(HOST, SAILOR, login_path()) == f"'{path}'"
    store_login(HUB, Credentials("hub", "x"), login_path())
    found = find_credentials("reg.example.com:5000", "any/thing")
    assert found == SAILOR
    assert find_credentials("docker.io", "library/a") == Credentials("hub", "x")
    assert find_credentials("reg.example.com", "any/thing") is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    # What Docker would have written.
    pair = base64.b64encode("sailor:se:cret ü".encode()).decode()
    hub = {"auth": base64.b64encode(b"hub:x").decode()}
    assert read(path) == {"auths": {str(HOST): {"auth": pair}, "https://index.docker.io/v1/": hub}}
    assert os.listdir(path.parent) == ["config.json"]


def test_everything_else_stays(home: Path) -> None:
    path = home / "config.json"
    before = {
        "HttpHeaders": {"X-Meta": "1"},
        "auths": {"other.example.com": {"auth": "YTpi", "email": "a@b"}, f"https://{HOST}/v1/": {}},
        "psFormat": "table {{.ID}}\t{{.Names}} ü",
        "plugins": {"x": {"list": [1, 2.5, None, True]}},
        "credHelpers": {"gcr.example.com": "gcloud"},
    }
    path.write_text(json.dumps(before))
    path.chmod(0o644)
    store_login(HOST, SAILOR, str(path))
    after = read(path)
    auths = after["auths"]
    assert isinstance(auths, dict)
    assert [*auths] == ["other.example.com", str(HOST)]  # the old spelling has gone
    assert auths["other.example.com"] == {"auth": "YTpi", "email": "a@b"}
    assert {k: v for k, v in after.items() if k != "auths"} == {
        k: v for k, v in before.items() if k != "auths"
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "ü" in path.read_text()
    assert erase_login(HOST, str(path))
    assert not erase_login(HOST, str(path))
    assert read(path)["auths"] == {"other.example.com": auths["other.example.com"]}


def test_a_link_stays_a_link(home: Path) -> None:
    real = home / "dotfiles/config.json"
    real.parent.mkdir()
    real.write_text("{}")
    link = home / "config.json"
    link.symlink_to(real)
    store_login(HOST, SAILOR, str(link))
    assert link.is_symlink()
    assert "auths" in read(real)


def test_the_owner_stays(home: Path) -> None:
    """Root logs in for somebody else: sudo may keep HOME."""
    owner = (12345, 54321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    path = home / "config.json"
    path.write_text("{}")
    os.chown(path, *owner)
    store_login(HOST, SAILOR, str(path))
    assert (path.stat().st_uid, path.stat().st_gid) == owner


@pytest.mark.parametrize("text", ["[]", "{", '{"auths": []}', '{"a":1,"a":2}', "\xff"])
def test_a_broken_file_is_not_written_over(home: Path, text: str) -> None:
    path = home / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgument, match="credentials file"):
        store_login(HOST, SAILOR, str(path))
    assert path.read_bytes() == text.encode("latin-1")
    assert os.listdir(home) == ["config.json"]


def test_a_file_that_cannot_be_written(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(PermissionDenied, match="cannot write credentials"):
        store_login(HOST, SAILOR, str(home / "file/config.json"))


def test_many_at_once_lose_nothing(home: Path) -> None:
    path = str(home / "config.json")
    threads = [
        threading.Thread(target=store_login, args=(Server(f"r{n}.example.com"), SAILOR, path))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {s.host for s in servers(path)} == {f"r{n}.example.com" for n in range(16)}


def test_which_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "docker"))
    assert login_path() == str(home / "docker/config.json")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "auth.json"))
    assert login_path() == str(home / "auth.json")
    assert login_files() == []
    store_login(HUB, SAILOR, login_path())
    store_login(HOST, SAILOR, str(home / "run/containers/auth.json"))
    assert login_files() == [str(home / "auth.json"), str(home / "run/containers/auth.json")]
    assert servers(str(home / "auth.json")) == [HUB]


def test_a_part_of_a_registry(home: Path) -> None:
    """Podman's way: a login for a path is for what lies below it only."""
    store_login(parse_server("reg.example.com/team"), SAILOR, login_path())
    assert find_credentials("reg.example.com", "team/app") == SAILOR
    assert find_credentials("reg.example.com", "other/app") is None
    assert servers(login_path()) == [Server("reg.example.com", "team")]


@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
def test_a_helper_keeps_it(home: Path, helper: Path, key: str) -> None:
    path = home / ".docker/config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({key: {str(HOST): "chest"} if key == "credHelpers" else "chest"}))
    assert store_login(HOST, SAILOR, str(path)) == "credential helper 'docker-credential-chest'"
    stored = json.loads((helper / "stored").read_text())
    assert stored == {"ServerURL": str(HOST), "Username": "sailor", "Secret": "se:cret ü"}
    assert read(path)["auths"] == {str(HOST): {}}  # where, but not what
    assert find_credentials(HOST.host, "x") == SAILOR
    assert erase_login(HOST, str(path))
    assert (helper / "erased").read_text() == str(HOST)
    assert read(path)["auths"] == {}
    assert not erase_login(HOST, str(path))


def test_a_helper_keeps_a_token(home: Path, helper: Path) -> None:
    """By the word that stands for the user in the protocol of docker's helpers."""
    path = home / ".docker/config.json"
    path.parent.mkdir()
    path.write_text('{"credsStore": "chest"}')
    store_login(HOST, Credentials("sailor", identity_token="kept"), str(path))
    assert json.loads((helper / "stored").read_text()) == {
        "ServerURL": str(HOST),
        "Username": "<token>",
        "Secret": "kept",
    }
    assert find_credentials(str(HOST), "app") == Credentials(identity_token="kept")
    assert "kept" not in path.read_text()


def test_a_helper_that_refuses(home: Path, helper: Path) -> None:
    path = home / "config.json"
    path.write_text('{"credsStore": "chest"}')
    (helper / "locked").touch()
    with pytest.raises(PermissionDenied, match="cannot store a login") as caught:
        store_login(HOST, SAILOR, str(path))
    assert "sesame" not in str(caught.value)
    assert "cret" not in str(caught.value)
    assert read(path) == {"credsStore": "chest"}
    path.write_text('{"credsStore": "../evil"}')
    with pytest.raises(InvalidArgument, match="not a valid name"):
        store_login(HOST, SAILOR, str(path))
    path.write_text('{"credsStore": "missing"}')
    with pytest.raises(PermissionDenied, match="cannot run credential helper"):
        store_login(HOST, SAILOR, str(path))


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("", HUB),
        ("docker.io", HUB),
        ("https://index.docker.io/v1/", HUB),
        ("registry-1.docker.io", HUB),
        ("localhost", Server("localhost")),
        ("https://Reg.example.com:5000/", HOST),
        ("reg.example.com:5000/v2/", HOST),
        ("reg.example.com:5000/a/b", Server("reg.example.com:5000", "a/b")),
    ],
)
def test_names_of_servers(text: str, server: Server) -> None:
    assert parse_server(text) == server
    assert parse_server(server.key) == server


@pytest.mark.parametrize("text", ["myreg", "user:pw@host.example.com/x", "a b.com", "h.com:99999"])
def test_what_is_no_server(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_server(text)
    assert "pw" not in str(caught.value)
