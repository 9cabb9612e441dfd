"""push, login, logout, search, manifest inspect, registry rm: words in, words out.

The registry is a thread on loopback.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.push_server import Handler, PushServer, sha
from scow.cli import main
from scow.cli.push_progress import PushProgress
from scow.cli.session import session
from scow.image import push, search
from scow.image.digest import Digest
from scow.image.media_types import OCI_INDEX, OCI_MANIFEST
from scow.image.push import Compression, Pushed
from scow.image.reference import parse_reference
from scow.image.store import ImageStore
from scow.native import prctl
from scow.native.errors import NotFound, RegistryError

DIGEST = Digest("sha256:" + "d" * 64)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No logins and no images of this machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "")  # set, so that --authfile is undone, too
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setattr(prctl, "forbid_dumps", lambda: None)  # it is for the whole process
    monkeypatch.setattr("os.geteuid", lambda: 0)
    service: Any = SimpleNamespace(images=ImageStore(str(tmp_path / "scow")))
    session.use(service)
    yield tmp_path
    session.use(None)


@pytest.fixture
def server() -> Iterator[PushServer]:
    running = PushServer()
    yield running
    running.close()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main.run(list(words))
    out, err = capsys.readouterr()
    return status, out, err


def answer(server: PushServer, path: str, document: object, status: int = 200) -> None:
    """What the server says to one path with its query."""

    def hook(handler: Handler) -> bool:
        if handler.path != path:
            return False
        data = json.dumps(document).encode()
        handler.reply(status, data, {"Content-Type": "application/json"})
        return True

    server.hooks.append(hook)


# -- push -----------------------------------------------------------------------------------------


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Instead of pushing: what was asked for."""
    calls: list[tuple[Any, ...]] = []

    def push_image(store: object, name: str, **more: Any) -> Pushed:
        calls.append((name, more))
        reference = parse_reference(more["destination"] or name)
        if more["progress"] is not None:
            more["progress"].begin(reference.repository)
        return Pushed(reference, DIGEST, 528)

    monkeypatch.setattr(push, "push_image", push_image)
    monkeypatch.setattr(push, "tags_of", lambda store, name: [f"{name}:1", f"{name}:2"])
    return calls


def test_push_says_what_docker_says(
    capsys: pytest.CaptureFixture[str], pushes: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    file = tmp_path / "digest"
    status, out, err = run(capsys, "push", "--digestfile", str(file), "localhost:5000/app:v2")
    assert (status, err) == (0, "")
    assert out == (
        f"The push refers to repository [localhost:5000/app]\nv2: digest: {DIGEST} size: 528\n"
    )
    assert file.read_text() == DIGEST
    assert run(capsys, "push", "-q", "app")[1] == "docker.io/library/app:latest\n"
    out = run(capsys, "push", "-a", "localhost:5000/app")[1]
    assert [line.split()[0] for line in out.splitlines()] == ["The", "1:", "2:"]
    run(capsys, "push", "app", "h:1/x:y", "--compression-format=zstd", "--compression-level=7",
        "--creds", "me:pa:ss", "--tls-verify=false")  # fmt: skip
    name, more = pushes[-1]
    assert (name, more["destination"]) == ("app", "h:1/x:y")
    assert more["compression"] == Compression("zstd", 7)
    assert (more["credentials"].username, more["credentials"].password) == ("me", "pa:ss")
    assert (more["plain_http"], more["tls_verify"]) == (False, False)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-a", "app:1"], "--all-tags takes a name without a tag"),
        (["-a", "app", "other"], "--all-tags takes a name without a tag"),
        (["--compression-level", "3", "app"], "needs --compression-format"),
        (["--compression-format", "zstd", "--compression-level", "x", "app"], "is a number"),
        (["--plain-http", "--tls-verify", "app"], "exclude each other"),
        (["--creds", ":x", "app"], "--creds needs a user"),
        (["--digestfile", "/nowhere/x", "app"], "cannot write '/nowhere/x'"),
        ([], "needs an IMAGE"),
    ],
)
def test_push_that_cannot_be_meant(
    capsys: pytest.CaptureFixture[str],
    pushes: list[tuple[Any, ...]],
    words: list[str],
    complaint: str,
) -> None:
    status, _, err = run(capsys, "push", *words)
    assert status == 125
    assert complaint in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_of_a_push(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for out in (io.StringIO(), Terminal()):
        progress = PushProgress(out)
        progress.begin("h:1/app")
        progress.exists("sha256:" + "a" * 64, 10)
        progress.mounted("sha256:" + "b" * 64, 10, "other/app")
        progress.start("sha256:" + "c" * 64, 2000)
        progress.sent("sha256:" + "c" * 64, 1000)
        progress.restarted("sha256:" + "c" * 64)
        progress.sent("sha256:" + "c" * 64, 2000)
        progress.end()
        if isinstance(out, Terminal):
            assert "Pushing [" in out.getvalue()
            assert "2kB/2kB" in out.getvalue()
        progress.done("sha256:" + "c" * 64)
        assert out.getvalue().startswith("The push refers to repository [h:1/app]\n")
        for words in ("Layer already exists", "Mounted from other/app", "Pushed"):
            assert words in out.getvalue()


# -- search ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(server: PushServer, monkeypatch: pytest.MonkeyPatch) -> PushServer:
    """Docker Hub, with three repositories that a search for `box` finds."""
    monkeypatch.setattr(search, "HUB_SEARCH", f"http://{server.host}")
    found = [
        {"name": "busybox", "description": "Busybox\nbase  image.", "star_count": 3000,
         "is_official": True},
        {"name": "me/box", "description": "d" * 60, "star_count": 2},
        {"name": "\x1b[31mred", "description": None, "star_count": 0},
    ]  # fmt: skip
    answer(server, "/v1/search?q=box%20es&n=25", {"results": found})
    return server


def test_search(capsys: pytest.CaptureFixture[str], hub: PushServer) -> None:
    status, out, _ = run(capsys, "search", "box es")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]
    assert lines[1].split() == ["busybox", "Busybox", "base", "image.", "3000", "[OK]"]
    assert "d" * 44 + "…" in lines[2]
    assert "\\x1b[31mred" in lines[3]
    out = run(capsys, "search", "--no-trunc", "--filter", "stars=2", "box es")[1]
    assert "d" * 60 in out
    assert "red" not in out
    out = run(capsys, "search", "--filter=is-official=true", "--format={{.Name}}", "box es")[1]
    assert out == "busybox\n"


def test_search_of_other_registries(capsys: pytest.CaptureFixture[str], server: PushServer) -> None:
    answer(server, "/v2/_catalog?n=1000", {"repositories": ["team/app", "team/box", "box"]})
    words = ["search", "--format", "{{.Name}}"]
    assert run(capsys, *words, f"{server.host}/box")[1].split() == [
        f"{server.host}/team/box",
        f"{server.host}/box",
    ]
    assert len(run(capsys, *words, f"{server.host}/")[1].split()) == 3
    assert len(run(capsys, *words, "--limit", "1", f"{server.host}/box")[1].split()) == 1
    # One with a search of its own, such as quay.io.
    answer(server, "/v1/search?q=box&n=25", {"results": [{"name": "best/box", "star_count": 1}]})
    assert run(capsys, *words, f"{server.host}/box")[1].split() == [f"{server.host}/best/box"]


def test_search_that_fails(capsys: pytest.CaptureFixture[str], server: PushServer) -> None:
    answer(server, "/v2/_catalog?n=1000", {"errors": [{"message": "not for you"}]}, 403)
    status, out, err = run(capsys, "search", f"{server.host}/box")
    assert (status, out) == (125, "")
    assert "not for you" in err
    for words in (["--limit", "0", "x"], ["--limit", "101", "x"], ["--filter", "stars=x", "x"],
                  ["--filter", "a=b", "x"], ["--list-tags", "--filter", "stars=1", "x"], [""]):  # fmt: skip
        assert run(capsys, "search", *words)[0] == 125


def test_search_lists_tags(capsys: pytest.CaptureFixture[str], server: PushServer) -> None:
    answer(server, "/v2/team/app/tags/list?n=1000", {"tags": ["v1", "v2", "v3"]})
    name = f"{server.host}/team/app"
    assert run(capsys, "search", "--list-tags", "--limit", "2", name)[1].splitlines() == [
        f"{'NAME':<{len(name) + 3}}TAG",
        f"{name}   v1",
        f"{name}   v2",
    ]


# -- login ----------------------------------------------------------------------------------------


def test_login_and_logout(
    capsys: pytest.CaptureFixture[str],
    server: PushServer,
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
) -> None:
    def demand(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == "Basic bWU6c2VzYW1l":
            return False
        handler.reply(401, headers={"WWW-Authenticate": 'Basic realm="cave"'})
        return True

    server.hooks.append(demand)
    login = ["login", "-u", "me", "--password-stdin", server.host]
    stdin: Any = SimpleNamespace(buffer=io.BytesIO(b"wrong\n"), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    status, out, err = run(capsys, *login)
    assert (status, out) == (125, "")
    assert "user name or password is wrong" in err
    assert not (home / ".docker").exists()
    stdin.buffer = io.BytesIO(b"sesame\r\n")
    status, out, err = run(capsys, *login)
    assert (status, out) == (0, "Login Succeeded\n")
    assert "sesame" not in err
    assert run(capsys, "login", "--get-login", server.host)[1] == "me\n"
    status, out, _ = run(capsys, "logout", server.host)
    assert out == (
        f"Removing login credentials for {server.host} from {home}/.docker/config.json\n"
    )
    status, out, _ = run(capsys, "logout", server.host)
    assert (status, out) == (0, f"Not logged in to {server.host}\n")
    assert "not logged in" in run(capsys, "login", "--get-login", server.host)[2]


def test_logout_of_everything(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    for place in (".docker/config.json", "run/containers/auth.json"):
        path = home / place
        path.parent.mkdir(parents=True)
        path.write_text('{"auths": {"a.example.com": {"auth": "YTpi"}, "x.io": {"auth": "YTpi"}}}')
    only = home / "run/containers/auth.json"
    assert len(run(capsys, "logout", "--all", "--authfile", str(only))[1].splitlines()) == 2
    assert len(run(capsys, "logout", "--all")[1].splitlines()) == 2
    assert run(capsys, "logout", "--all")[1] == "Not logged in\n"
    assert json.loads(only.read_text()) == {"auths": {}}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["h.com"], "the input is not a terminal"),
        (["-u", "me", "h.com"], "the input is not a terminal"),
        (["--password-stdin", "h.com"], "needs --username"),
        (["-u", "a", "-p", "b", "--password-stdin", "h.com"], "exclude each other"),
        (["-u", "a", "-p", "", "h.com"], "must not be empty"),
        (["myreg"], "is not a registry"),
    ],
)
def test_login_that_cannot_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    complaint: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    status, _, err = run(capsys, "login", *words)
    assert status == 125
    assert complaint in err


# -- manifest and registry ------------------------------------------------------------------------


@pytest.fixture
def index(server: PushServer) -> str:
    """An index with one image and something unknown; its digest."""
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "x/y", "digest": DIGEST, "size": 2},
            "layers": [],
            "annotations": {"evil": "\x1b[2J"},
        }
    ).encode()
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": sha(manifest),
        "size": len(manifest),
        "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
    }
    unknown = {"mediaType": "text/plain", "digest": DIGEST, "size": 1}
    data = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry, unknown]}
    ).encode()
    server.manifests["team/app/v1"] = data
    server.manifests[f"team/app/{sha(manifest)}"] = manifest
    return sha(data)


def test_manifest_inspect(
    capsysbinary: pytest.CaptureFixture[bytes], server: PushServer, index: str
) -> None:
    name = f"{server.host}/team/app:v1"
    assert main.run(["manifest", "inspect", "--raw", name]) == 0
    assert f"sha256:{hashlib.sha256(capsysbinary.readouterr().out).hexdigest()}" == index
    assert main.run(["manifest", "inspect", name]) == 0
    assert len(json.loads(capsysbinary.readouterr().out)["manifests"]) == 2
    assert main.run(["manifest", "inspect", "-v", name]) == 0
    out = capsysbinary.readouterr().out
    assert b"\x1b" not in out
    document = json.loads(out)
    digest = document["Descriptor"]["digest"]
    assert document["Ref"] == f"{server.host}/team/app@{digest}"
    assert document["Descriptor"]["platform"]["variant"] == "v7"
    assert document["OCIManifest"]["layers"] == []
    assert main.run(["manifest", "inspect", f"{server.host}/team/app:none"]) == 125


def test_registry_rm(capsys: pytest.CaptureFixture[str], server: PushServer, index: str) -> None:
    server.hooks.append(
        lambda h: h.command == "DELETE" and not h.reply(202 if "sha256:" in h.path else 405)
    )
    name = f"{server.host}/team/app"
    status, out, err = run(capsys, "registry", "rm", f"{name}:v1")
    assert (status, out) == (1, "")
    assert f"scow registry rm {name}@{index}" in err
    status, out, _ = run(capsys, "registry", "rm", f"{name}@{index}")
    assert (status, out) == (0, f"Deleted: {name}@{index}\n")
    assert "say what to remove" in run(capsys, "registry", "rm", name)[2]
    assert "a blob has no tag" in run(capsys, "registry", "rm", "--blob", f"{name}:v1")[2]


def test_registry_referrers(
    capsys: pytest.CaptureFixture[str], server: PushServer, index: str
) -> None:
    entry = {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 7, "artifactType": "a/sig"}
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    answer(server, f"/v2/team/app/referrers/{index}", document)
    out = run(capsys, "registry", "referrers", f"{server.host}/team/app:v1")[1]
    assert out.splitlines()[1].split() == [DIGEST, "a/sig", "7B"]


# -- pull and run ---------------------------------------------------------------------------------


def test_who_pulls_and_how(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    """--creds, --authfile and the rest reach the pull, be it of `pull` or of `run`."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def pull(name: str, **more: Any) -> Any:
        asked.append((name, more))
        raise RegistryError("nothing is fetched here")

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if more or rest:
            return pull(name, **more)
        raise NotFound("not here")

    images = SimpleNamespace(pull=pull, get=missing)
    session.use(SimpleNamespace(images=images, ensure_image=missing))  # type: ignore[arg-type]  # all that is needed
    options = ["--creds", "me:pa:ss", "--tls-verify=false", "--authfile", str(home / "auth.json")]
    for words in (["pull", "-q"], ["pull"], ["run"], ["create", "--pull", "always"]):
        os.environ["REGISTRY_AUTH_FILE"] = ""
        assert run(capsys, *words, *options, "h:1/app:2")[0] == 125
        name, more = asked.pop()
        found = more["credentials"]
        assert (name, found.username, found.password) == ("h:1/app:2", "me", "pa:ss"), words
        assert (more["plain_http"], more["tls_verify"]) == (False, False)
        assert os.environ["REGISTRY_AUTH_FILE"] == str(home / "auth.json")
        assert (
            "exclude each other"
            in run(capsys, *words, "--plain-http", "--tls-verify", "h:1/app:2")[2]
        )
    run(capsys, "run", "h:1/app:2")  # nothing is said: nothing is passed on
    assert asked.pop()[1] == {}
