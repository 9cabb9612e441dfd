"""Debian's docker-registry with TLS, client certificates, Basic auth, tokens, and as a mirror.

image.md section 4 and Auth, badinput.md F1 to F3 on real parts; the fakes that lie are in
test_image_registry.py and test_image_tls.py.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import faults, tokens
from fixtures.command import Scow
from fixtures.faults import FaultProxy
from fixtures.handmade import Archive, file, pack
from fixtures.registry import Registry
from fixtures.tokens import TokenServer, make_certificate
from scow.image import hosts, tls
from scow.image.credentials import Credentials
from scow.image.login import Server, check_login, store_login
from scow.image.progress import SilentProgress
from scow.image.pull import pull_image
from scow.image.store import Image, ImageStore
from scow.image.transport import Patience
from scow.native.errors import NotFound, PermissionDenied, RegistryError

QUICK = Patience(connect_s=10, idle_s=10, attempts=2, backoff_s=0.01)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small image, as skopeo takes it."""
    archive = Archive()
    archive.add("app", [pack([file("bin/app", b"#!/bin/sh\n" * 1000, 0o755)])])
    return f"oci-archive:{archive.write(tmp_path_factory.mktemp('auth') / 'app.tar')}:app"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def certs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /etc/scow/certs.d."""
    directory = tmp_path / "certs.d"
    directory.mkdir()
    monkeypatch.setattr(hosts, "HOSTS_DIRS", (str(directory),))
    monkeypatch.setattr(tls, "CERTIFICATE_DIRS", (str(directory),))
    return directory


@pytest.fixture
def store(scow_root: Path, certs: Path) -> ImageStore:
    return ImageStore(str(scow_root))


class Warnings(SilentProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, message: str) -> None:
        self.texts.append(message)


def pull(store: ImageStore, reference: str, credentials: Credentials | None = None) -> Image:
    return pull_image(store, reference, patience=QUICK, credentials=credentials)


def log_in(home: Path, host: str, **entry: str) -> None:
    path = home / ".docker/config.json"
    path.write_text(json.dumps({"auths": {host: entry}}))
    path.chmod(0o600)


def pair(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


# -- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`server.crt` for 127.0.0.1, and `client.crt`, which signs itself."""
    directory = tmp_path_factory.mktemp("pki")
    make_certificate(directory, "server", "IP:127.0.0.1", kind="ec")
    make_certificate(directory, "client", kind="ec")
    return directory


@pytest.fixture(scope="module")
def tls_registry(
    pki: Path, archive: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """With TLS, a password, and only for clients with a certificate."""
    directory = tmp_path_factory.mktemp("tls")
    with Registry.start(
        directory,
        password=True,
        tls=(pki / "server.crt", pki / "server.key"),
        client_ca=pki / "client.crt",
    ) as registry:
        shutil.copy(pki / "client.crt", directory / "client.cert")
        shutil.copy(pki / "client.key", directory / "client.key")
        registry.push(archive, "team/app:1", "--dest-cert-dir", str(directory))
        yield registry


def test_everything_set_up_by_certs_d(
    store: ImageStore, certs: Path, pki: Path, home: Path, tls_registry: Registry
) -> None:
    """Docker's form: ca.crt, client.cert, client.key; each is asked for by what lacks."""
    reference = f"{tls_registry.host}/team/app:1"
    with pytest.raises(RegistryError, match="is self-signed"):
        pull(store, reference)
    place = certs / tls_registry.host
    place.mkdir()
    shutil.copy(pki / "server.crt", place / "ca.crt")
    with pytest.raises(RegistryError, match=r"wants a client certificate|closed the"):
        pull(store, reference)
    shutil.copy(pki / "client.crt", place / "client.cert")
    with pytest.raises(RegistryError, match=r"cannot use certificate .*client\.cert"):
        pull(store, reference)
    shutil.copy(pki / "client.key", place / "client.key")
    with pytest.raises(PermissionDenied, match="authentication required"):
        pull(store, reference)
    log_in(home, tls_registry.host, auth=pair(Registry.USER, "wrong"))
    with pytest.raises(PermissionDenied, match="needs other credentials"):
        pull(store, reference)
    log_in(home, tls_registry.host, auth=pair(Registry.USER, Registry.PASSWORD))
    assert pull(store, reference).names == (reference,)


def test_everything_set_up_by_hosts_toml(
    store: ImageStore, certs: Path, pki: Path, tls_registry: Registry
) -> None:
    """The same registry as the mirror of another, by containerd's file."""
    (certs / "reg.example").mkdir()
    header = f'authorization = "Basic {pair(Registry.USER, Registry.PASSWORD)}"'
    (certs / "reg.example/hosts.toml").write_text(f'''
        server = "https://reg.invalid"
        [host."https://{tls_registry.host}"]
        ca = "{pki}/server.crt"
        client = [["{pki}/client.crt", "{pki}/client.key"]]
        header = {{{header}}}
    ''')
    assert pull(store, "reg.example/team/app:1").names == ("reg.example/team/app:1",)


def test_skip_verify(store: ImageStore, certs: Path, pki: Path, tls_registry: Registry) -> None:
    (certs / "reg.example").mkdir()
    (certs / "reg.example/hosts.toml").write_text(f'''
        server = "https://{tls_registry.host}"
        skip_verify = true
        client = [["{pki}/client.crt", "{pki}/client.key"]]
    ''')
    with pytest.raises(PermissionDenied, match="authentication required"):
        pull(store, "reg.example/team/app:1", Credentials(Registry.USER, Registry.PASSWORD))


def test_the_command_line_says_who_and_how(
    scow_root: Path, scow_run: Path, tmp_path: Path, pki: Path, archive: str
) -> None:
    """--creds, --authfile and --tls-verify of `pull`, and of a pull that `create` needs."""
    scow = Scow(str(scow_root), str(scow_run))
    (tmp_path / "guarded").mkdir()
    certificate = pki / "server.crt", pki / "server.key"
    with Registry.start(tmp_path / "guarded", password=True, tls=certificate) as guarded:
        name = guarded.push(archive, "team/app:1")
        assert "is self-signed" in scow("pull", "-q", name).err
        done = scow("pull", "-q", "--tls-verify=false", name)
        assert (done.code, "authentication required" in done.err) == (125, True)
        creds = f"{Registry.USER}:{Registry.PASSWORD}"
        assert scow.ok("pull", "-q", "--tls-verify=false", "--creds", creds, name) == name
        done = scow("pull", "-q", "--tls-verify=false", "--creds", "skipper:wrong", name)
        assert (done.code, "needs other credentials" in done.err) == (125, True)
        scow.ok("rmi", name)
        scow.env["SSL_CERT_FILE"] = str(certificate[0])
        file = tmp_path / "auth.json"
        file.write_text(json.dumps({"auths": {guarded.host: {"auth": pair(*creds.split(":"))}}}))
        file.chmod(0o600)
        assert scow.ok("pull", "-q", "--authfile", str(file), name) == name
        scow.ok("rmi", name)
        assert "authentication required" in scow("create", name, "app").err
        scow.ok("rm", scow.ok("create", "--authfile", str(file), name, "app"))


# -- tokens ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    with TokenServer.start(tmp_path_factory.mktemp("tokens")) as server:
        yield server


@pytest.fixture(scope="module")
def token_registry(
    server: TokenServer, archive: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """It believes the token server, and has `private/app:1` and `public/app:1`."""
    with Registry.start(tmp_path_factory.mktemp("registry"), auth=server.settings()) as registry:
        for name in ("private/app:1", "public/app:1"):
            registry.push(archive, name, creds=f"{tokens.USER}:{tokens.PASSWORD}")
        yield registry


def test_anonymous_token(store: ImageStore, server: TokenServer, token_registry: Registry) -> None:
    server.log.clear()
    pull(store, f"{token_registry.host}/public/app:1")
    # One for all requests, in our own words; the service's name is sent back as it came.
    assert server.log == [
        {
            "method": "GET",
            "user": "",
            "service": [server.service],
            "scope": ["repository:public/app:pull"],
        }
    ]
    with pytest.raises(PermissionDenied, match="does not exist, or needs other credentials"):
        pull(store, f"{token_registry.host}/private/app:1")


def test_token_by_password(
    store: ImageStore, server: TokenServer, token_registry: Registry, home: Path
) -> None:
    reference = f"{token_registry.host}/private/app:1"
    log_in(home, token_registry.host, auth=pair(tokens.USER, tokens.PASSWORD))
    server.log.clear()
    pull(store, reference)
    assert [(each["user"], each["account"]) for each in server.log] == [
        (tokens.USER, [tokens.USER])
    ]
    log_in(home, token_registry.host, auth=pair(tokens.USER, "wrong"))
    with pytest.raises(PermissionDenied, match="user name or password is wrong"):
        pull(store, reference)


def test_token_by_identity_token(
    store: ImageStore, server: TokenServer, token_registry: Registry, home: Path
) -> None:
    """OAuth2, as after `docker login` at registries that give a refresh token."""
    reference = f"{token_registry.host}/private/app:1"
    log_in(home, token_registry.host, identitytoken=tokens.IDENTITY_TOKEN)
    server.log.clear()
    pull(store, reference)
    assert [each["method"] for each in server.log] == ["POST"]
    log_in(home, token_registry.host, identitytoken="stale")
    with pytest.raises(PermissionDenied, match="the login has ended, or was taken back"):
        pull(store, reference)


@pytest.mark.parametrize("only_oauth", [False, True])
def test_login_keeps_a_token_instead_of_the_password(
    store: ImageStore,
    server: TokenServer,
    token_registry: Registry,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    only_oauth: bool,
) -> None:
    """As `docker login` does, and in the same words, so that docker and skopeo can go on with it."""
    monkeypatch.setattr(server, "identity", "can be taken back")
    monkeypatch.setattr(server, "only_oauth", only_oauth)
    where = Server(token_registry.host)
    server.log.clear()
    with pytest.raises(PermissionDenied, match="user name or password is wrong"):
        check_login(where, Credentials(tokens.USER, "wrong"))
    kept = check_login(where, Credentials(tokens.USER, tokens.PASSWORD))
    assert kept == Credentials(tokens.USER, identity_token=server.identity)
    assert [each["method"] for each in server.log] == ["POST" if only_oauth else "GET"]
    assert server.log[0]["client_id"] == ["scow"]
    path = home / ".docker/config.json"
    store_login(where, kept, str(path))
    assert json.loads(path.read_text())["auths"][token_registry.host] == {
        "auth": pair(tokens.USER, ""),
        "identitytoken": server.identity,
    }
    server.log.clear()
    pull(store, f"{token_registry.host}/private/app:1")
    assert [(each["method"], each["refresh_token"]) for each in server.log] == [
        ("POST", [server.identity])
    ]


def test_registry_token(
    store: ImageStore, server: TokenServer, token_registry: Registry, home: Path
) -> None:
    """A token made elsewhere is used as it is; nobody is asked for another."""
    token = server.sign(tokens.USER, ["repository:private/app:pull"])
    log_in(home, token_registry.host, registrytoken=token)
    server.log.clear()
    pull(store, f"{token_registry.host}/private/app:1")
    assert server.log == []


def test_a_token_that_ended_is_renewed_once(
    store: ImageStore, server: TokenServer, token_registry: Registry
) -> None:
    server.log.clear()
    with FaultProxy.start(token_registry.host) as proxy:
        service = server.service.replace('"', '\\"')
        challenge = f'Bearer realm="{server.realm}",service="{service}"'
        ended = faults.status(401, WWW_Authenticate=challenge)
        proxy.spoil("GET .*/blobs/", ended, times=1)
        pull(store, f"{proxy.host}/public/app:1")
        assert len(server.log) == 2
        # For ever: asked once more, and that is all.
        store.remove(store.list()[0].id)
        proxy.heal()
        proxy.spoil("GET .*/blobs/", ended)
        with pytest.raises(PermissionDenied, match="does not exist, or needs other credentials"):
            pull(store, f"{proxy.host}/public/app:1")
        assert len(proxy.asked("GET .*/blobs/")) == 2


# -- a mirror of a real registry ------------------------------------------------------------------


def test_a_pull_through_cache(
    store: ImageStore, certs: Path, tmp_path: Path, registry: Registry, archive: str
) -> None:
    """docker-registry as a mirror of docker-registry: the second pull works without the first one."""
    registry.push(archive, "cached/app:1")
    (tmp_path / "cache").mkdir()
    with (
        FaultProxy.start(registry.host) as origin,
        Registry.start(tmp_path / "cache", mirror_of=registry.host) as cache,
    ):
        (certs / origin.host).mkdir()
        (certs / origin.host / "hosts.toml").write_text(f'[host."http://{cache.host}"]')
        reference = f"{origin.host}/cached/app:1"
        assert pull(store, reference).names == (reference,)
        assert origin.log == []
        with pytest.raises(NotFound, match="no such image"):
            pull(store, f"{origin.host}/cached/none:1")
        assert origin.log  # what the mirror does not have, it is asked
