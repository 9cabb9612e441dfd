"""Mirrors: which hosts are asked for an image, what each of them is told, and what failure leads to."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.fake_registry import QUICK, FakeRegistry, Handler, sha
from fixtures.hashinglayers import HashingLayers
from scow.image import hosts, tls
from scow.image.hosts import ALL, Host, find_hosts
from scow.image.progress import SilentProgress
from scow.image.pull import pull_image
from scow.image.reference import parse_reference
from scow.image.registry import Registry
from scow.image.store import Image, ImageStore
from scow.native.errors import (
    IntegrityError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RegistryError,
)


@pytest.fixture(autouse=True)
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The administrator's files of this test, and nobody's passwords."""
    etc = tmp_path / "etc"
    roots = [etc / "scow", etc / "containerd"]
    docker = etc / "docker"
    monkeypatch.setattr(hosts, "HOSTS_DIRS", tuple(map(str, roots)))
    monkeypatch.setattr(tls, "CERTIFICATE_DIRS", (*map(str, roots), str(docker)))
    monkeypatch.setattr(hosts, "DOCKER_DAEMON_FILE", str(etc / "daemon.json"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/.docker").mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    etc.mkdir()
    return etc


def write(etc: Path, host: str, text: str, root: str = "scow") -> Path:
    path = etc / root / host / "hosts.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- the files ------------------------------------------------------------------------------------


def test_no_files() -> None:
    assert find_hosts("quay.io") == [Host("https://quay.io", name="quay.io")]
    assert find_hosts("docker.io") == [Host("https://registry-1.docker.io", name="docker.io")]
    (local,) = find_hosts("localhost:5000")
    assert (local.url, local.may_upgrade) == ("http://localhost:5000", True)
    (local,) = find_hosts("quay.io", plain_http=True, tls_verify=False)
    assert (local.url, local.may_upgrade, local.tls_verify) == ("http://quay.io", False, False)


def test_all_fields(etc: Path) -> None:
    path = write(
        etc,
        "docker.io",
        """
        # containerd's docs/hosts.md, and then some
        server = "https://registry-1.docker.io"
        ca = "own.pem"
        [host."https://Mirror.example:5000"]
          capabilities = ["pull", "resolve"]
          skip_verify = true
          ca = ["a.pem", "/abs/b.pem"]
          client = [["c.pem", "c.key"], "both.pem"]
          [host."https://Mirror.example:5000".header]
            x-one = "1"
            x-two = ["2", "3"]
        [host."http://10.0.0.9/v2/hub"]
          override_path = true
        [host."plain.example/sub/"]
        """,
        "containerd",
    )
    base = str(path.parent)
    first, second, third, last = find_hosts("docker.io")
    assert first == Host(
        "https://mirror.example:5000",
        name="mirror.example:5000",
        is_mirror=True,
        capabilities=frozenset({"pull", "resolve"}),
        tls_verify=False,
        tls_files=tls.TlsFiles(
            (f"{base}/a.pem", "/abs/b.pem"),
            ((f"{base}/c.pem", f"{base}/c.key"), (f"{base}/both.pem", f"{base}/both.pem")),
        ),
        headers={"x-one": "1", "x-two": "2, 3"},
    )
    assert (second.url, second.root, second.capabilities) == ("http://10.0.0.9", "/v2/hub", ALL)
    assert (third.url, third.root) == ("https://plain.example", "/sub/v2")
    # The registry itself, said in so many words: not a mirror, so docker.io's credentials are for it.
    assert (last.url, last.name, last.is_mirror) == (
        "https://registry-1.docker.io",
        "docker.io",
        False,
    )
    assert last.tls_files.ca == (f"{base}/own.pem",)


def test_fields_without_a_server_are_the_registry_s(etc: Path) -> None:
    write(etc, "quay.io", 'skip_verify = true\ncapabilities = ["push"]\nheader = {a = "b"}')
    (host,) = find_hosts("quay.io")
    assert (host.url, host.tls_verify) == ("https://quay.io", False)
    assert (host.capabilities, host.headers) == ({"push"}, {"a": "b"})


def test_another_server_is_a_mirror(etc: Path) -> None:
    write(etc, "quay.io", 'server = "https://inner.example"')
    (host,) = find_hosts("quay.io")
    assert (host.url, host.name, host.is_mirror) == ("https://inner.example", "inner.example", True)


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_by_any_name(etc: Path, name: str) -> None:
    write(etc, "docker.io", f'server = "https://{name}"')
    assert find_hosts("docker.io") == [Host("https://registry-1.docker.io", name="docker.io")]


def test_which_file(etc: Path) -> None:
    def mirror(host: str) -> str:
        return find_hosts(host)[0].url

    write(etc, "_default", '[host."https://d2"]', "containerd")
    assert mirror("quay.io") == "https://d2"
    write(etc, "_default", '[host."https://d1"]')
    assert mirror("quay.io") == "https://d1"
    write(etc, "quay.io", '[host."https://q2"]', "containerd")
    assert mirror("quay.io") == "https://q2"
    write(etc, "quay.io", '[host."https://q1"]')
    assert mirror("quay.io") == "https://q1"
    assert mirror("quay.io:443") == "https://d1"
    write(etc, "quay.io:443", '[host."https://p2"]')
    assert mirror("quay.io:443") == "https://p2"
    write(etc, "quay.io_443_", '[host."https://p1"]', "containerd")
    assert mirror("quay.io:443") == "https://p1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("server = ", "invalid value"),
        ("server = 1", r"\$.server"),
        ("\x00", "illegal character|invalid statement"),
        ('[host."https://h"]\ncapabilities = ["fly"]', "invalid enum value 'fly'"),
        ('[host."https://h"]\nskip_verify = "yes"', r"\$.skip_verify"),
        ('[host."https://h"]\nclient = [["a", "b", "c"]]', "'client'"),
        ('[host."https://h"]\ndial_timeout = "soon"', "dial_timeout 'soon'"),
        ('[host."https://h"]\ndial_timeout = "5s!"', "dial_timeout '5s!'"),
        ('[host."https://h"]\ndial_timeout = "-1s"', "dial_timeout '-1s'"),
        ('[host."https://h"]\ndial_timeout = "0s"', "dial_timeout '0s'"),
        ('[host."https://h"]\ndial_timeout = "11m"', "dial_timeout '11m'"),
        ('[host."https://h"]\ndial_timeout = 5', r"\$.dial_timeout"),
        ('[host."ftp://h"]', "not an http"),
        ('[host."https://u:secret@h"]', "user name or password"),
        ('[host."https://h?x=1"]', "more than a path"),
        ('[host."https://h/../x y"]', "more than a path"),
        ('[host."https://"]', "not an http"),
        ('[host."https://h"]\nheader = {"a b" = "x"}', "header 'a b'"),
        ('[host."https://h"]\nheader = {a = "secret\\r\\nb"}', "header 'a'"),
        ('[host."https://h"]\n[host."https://h"]', "cannot declare"),
    ],
)
def test_broken_files(etc: Path, text: str, says: str) -> None:
    path = write(etc, "quay.io", text)
    with pytest.raises(InvalidArgument, match=f"(?s)invalid '{path}'.*({says})") as caught:
        find_hosts("quay.io")
    assert "secret" not in str(caught.value)


def test_unknown_keys_are_told(etc: Path) -> None:
    warnings: list[str] = []
    write(etc, "quay.io", 'sever = "x"\n[host."https://h"]\nrewrite = "x"\ndial_timeout = "1s"')
    assert len(find_hosts("quay.io", warn=warnings.append)) == 2
    assert [w.partition("unknown key ")[2].split(",")[0] for w in warnings] == [
        "'rewrite'",
        "'sever'",
    ]


def test_docker_daemon_file(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "lan.example": ["10.1.9.9", "fd00::9"],
        "both.example": ["10.1.9.9", "203.0.113.5"],  # one outside is one too many
        "quay.io": ["203.0.113.6"],
    }

    def look_up(name: str, *rest: object, **more: object) -> list[object]:
        if name not in names:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [(0, 0, 0, "", (address, 0)) for address in names[name]]

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    daemon = {
        "registry-mirrors": ["https://m1.example", "http://m2.example:5000/"],
        "insecure-registries": ["in.example:5000", "10.1.0.0/16", "fd00::/8", "bad/99"],
        "log-driver": "journald",
    }
    (etc / "daemon.json").write_text(json.dumps(daemon))
    urls = [(h.url, h.is_mirror) for h in find_hosts("docker.io")]
    assert urls == [
        ("https://m1.example", True),
        ("http://m2.example:5000", True),
        ("https://registry-1.docker.io", False),
    ]
    for insecure in ("in.example:5000", "10.1.2.3:80", "[fd00::1]:80", "lan.example:5000"):
        (host,) = find_hosts(insecure)
        assert (host.url, host.tls_verify, host.may_upgrade) == (f"http://{insecure}", False, True)
    for secure in ("in.example", "10.2.0.1", "quay.io", "both.example"):
        assert find_hosts(secure)[0] == Host(f"https://{secure}", name=secure)
    # A certificate that was set up says that the host speaks TLS.
    place = etc / "docker/in.example:5000"
    place.mkdir(parents=True)
    (place / "ca.crt").touch()
    assert find_hosts("in.example:5000")[0].url == "https://in.example:5000"
    # hosts.toml is more exact than docker's list.
    write(etc, "docker.io", '[host."https://m3.example"]')
    assert find_hosts("docker.io")[0].url == "https://m3.example"
    (etc / "daemon.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"daemon\.json"):
        find_hosts("quay.io")


def test_dial_timeout(etc: Path) -> None:
    """It holds for the host that it stands at, and reaches its connections."""
    write(etc, "quay.io", 'dial_timeout = "1m30s"\n[host."https://m"]\ndial_timeout = "500ms"')
    hosts = find_hosts("quay.io")
    assert [host.connect_s for host in hosts] == [0.5, 90]
    registry = Registry(parse_reference("quay.io/app"), patience=QUICK)
    waits = [endpoint.transport.patience.connect_s for endpoint in registry._endpoints]
    assert waits == [0.5, 90]
    assert find_hosts("other.io")[0].connect_s is None


# -- who is asked ---------------------------------------------------------------------------------


@pytest.fixture
def make() -> Iterator[Callable[[], FakeRegistry]]:
    made: list[FakeRegistry] = []

    def one() -> FakeRegistry:
        made.append(FakeRegistry())
        return made[-1]

    yield one
    for registry in made:
        registry.close()


@pytest.fixture
def origin(make: Callable[[], FakeRegistry]) -> FakeRegistry:
    origin = make()
    origin.add_image(b"one" * 1000, b"two" * 1000)
    return origin


@pytest.fixture
def mirror(make: Callable[[], FakeRegistry], origin: FakeRegistry) -> FakeRegistry:
    mirror = make()
    mirror.manifests, mirror.blobs = dict(origin.manifests), dict(origin.blobs)
    return mirror


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "scow"), HashingLayers(str(tmp_path / "scow")))


class Warnings(SilentProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, message: str) -> None:
        self.texts.append(message)


def mirrored(etc: Path, origin: FakeRegistry, *mirrors: FakeRegistry | str, more: str = "") -> None:
    urls = [m if isinstance(m, str) else f"http://{m.host}" for m in mirrors]
    write(etc, origin.host, "\n".join(f'[host."{url}"]\n{more}' for url in urls))


def pull(store: ImageStore, origin: FakeRegistry, **options: Any) -> tuple[Image, list[str]]:
    progress = Warnings()
    name = options.pop("name", "latest")
    joiner = "@" if ":" in name else ":"
    image = pull_image(
        store,
        f"{origin.host}/team/app{joiner}{name}",
        patience=options.pop("patience", QUICK),
        progress=progress,
        **options,
    )
    return image, progress.texts


def paths(registry: FakeRegistry) -> list[str]:
    return [f"{method} {path}" for method, path, _ in registry.log]


def test_the_mirror_serves_all(
    store: ImageStore, etc: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    mirrored(etc, origin, mirror)
    image, warnings = pull(store, origin)
    # The image is called by the registry's name, whoever had its bytes.
    assert image.names == (f"{origin.host}/team/app:latest",)
    assert (origin.log, warnings) == ([], [])
    assert len(mirror.log) == 5
    namespace = f"?ns={origin.host.replace(':', '%3A')}"
    assert all(path.endswith(namespace) for _, path, _ in mirror.log)


def test_a_mirror_of_digests_only(
    store: ImageStore, etc: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    mirrored(etc, origin, mirror, more='capabilities = ["pull"]')
    pull(store, origin)
    assert paths(origin) == [
        "HEAD /v2/team/app/manifests/latest",
        "GET /v2/team/app/manifests/latest",
    ]
    assert all("/blobs/" in path for path in paths(mirror))


def test_a_mirror_of_tags_only(
    store: ImageStore, etc: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    mirrored(etc, origin, mirror, more='capabilities = ["resolve", "push"]')
    pull(store, origin)
    assert all("/manifests/latest" in path for path in paths(mirror))
    assert all("/blobs/" in path for path in paths(origin))


def test_a_writer_asks_no_mirror(etc: Path, origin: FakeRegistry, mirror: FakeRegistry) -> None:
    class Writer(Registry):
        _actions = "pull,push"

    mirrored(etc, origin, mirror)
    with Writer(parse_reference(f"{origin.host}/team/app"), patience=QUICK) as writer:
        writer.head_manifest("latest")
        assert mirror.log == []
        assert writer.transport.base_url == f"http://{origin.host}"


def test_nobody_may_be_asked(store: ImageStore, etc: Path, origin: FakeRegistry) -> None:
    write(etc, origin.host, 'capabilities = ["push"]')
    with pytest.raises(RegistryError, match="no host may be asked") as caught:
        pull(store, origin)
    assert "capabilities" in (caught.value.hint or "")


def fail(status: int, **headers: str) -> Callable[[Handler], bool]:
    return lambda handler: handler.reply(status, b"x", headers) or True


def drop(handler: Handler) -> bool:
    handler.close_connection = True
    return True


@pytest.mark.parametrize(
    ("hook", "requests", "says"),
    [
        (fail(404), 5, ""),  # asked again for the next thing: it may well have that
        (fail(403), 1, "status 403"),
        (fail(500), 2, "status 500"),  # once more, and then the next host
        (fail(503, **{"Retry-After": "50"}), 2, "status 503"),
        (fail(429, **{"Retry-After": "50"}), 1, "status 429"),
        (fail(401), 1, "does not say how"),
        (fail(401, **{"WWW-Authenticate": "Basic realm=x"}), 1, "authentication required"),
        (fail(307, Location="file:///etc/passwd"), 1, "not an http"),
        (drop, 2, "closed the connection too early"),
        (fail(200, **{"Content-Type": "text/html"}), 5, "is not a registry"),
    ],
    ids=["404", "403", "500", "503", "429", "401", "401-basic", "redirect", "drop", "html"],
)  # fmt: skip
def test_a_failing_mirror_is_stepped_over(
    store: ImageStore,
    etc: Path,
    origin: FakeRegistry,
    mirror: FakeRegistry,
    hook: Callable[[Handler], bool],
    requests: int,
    says: str,
) -> None:
    """badinput.md F4, F5 at a mirror: one line, no waiting, and the image comes."""
    mirror.hooks.append(hook)
    mirrored(etc, origin, mirror)
    _, warnings = pull(store, origin)
    assert len(mirror.log) == requests
    assert len(warnings) == (1 if says else 0)
    assert says in "".join(warnings)


def test_nobody_there(store: ImageStore, etc: Path, origin: FakeRegistry) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        gone = f"http://127.0.0.1:{bound.getsockname()[1]}"
        mirrored(etc, origin, gone, "https://no-such-mirror.invalid")
        _, warnings = pull(store, origin)
    assert "connection refused" in warnings[0]
    assert "cannot find" in warnings[1]
    assert len(warnings) == 2


def test_the_error_is_the_registry_s(
    store: ImageStore, etc: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    mirrored(etc, origin, mirror)
    mirror.hooks.append(fail(500))
    origin.hooks.append(fail(404))
    with pytest.raises(NotFound, match="no such image"):
        pull(store, origin)
    assert store.list() == []


def test_an_incomplete_mirror(
    store: ImageStore, etc: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    """A cache that has the manifest and not yet all blobs."""
    gone = [digest for digest, data in mirror.blobs.items() if data[:1] != b"{"]
    for digest in gone:
        del mirror.blobs[digest]
    mirrored(etc, origin, mirror)
    _, warnings = pull(store, origin)
    assert warnings == []
    assert sorted(path.rpartition("/")[2] for path in paths(origin)) == sorted(gone)


# -- wrong content --------------------------------------------------------------------------------


def damage(registry: FakeRegistry, digest: str) -> None:
    data = registry.blobs[digest]
    registry.blobs[digest] = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def layers_of(registry: FakeRegistry) -> list[str]:
    return [d["digest"] for d in json.loads(registry.manifests["latest"][1])["layers"]]


def test_one_flipped_bit_at_the_mirror(
    store: ImageStore, etc: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    """badinput.md F9: the next host is asked, and only for what was wrong."""
    bad = layers_of(origin)[0]
    damage(mirror, bad)
    mirrored(etc, origin, mirror)
    pull(store, origin)
    assert paths(origin) == [f"GET /v2/team/app/blobs/{bad}"]
    assert store.verify() == []


def test_one_flipped_bit_everywhere(
    store: ImageStore, etc: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    """badinput.md F9: both digests are told, nothing stays."""
    bad = layers_of(origin)[1]
    damage(mirror, bad)
    damage(origin, bad)
    mirrored(etc, origin, mirror)
    with pytest.raises(IntegrityError) as caught:
        pull(store, origin)
    assert f"{bad}: expected this digest" in caught.value.message
    assert sha(origin.blobs[bad]) in caught.value.message
    assert len(origin.requests(bad)) == len(mirror.requests(bad)) == 1
    assert store.list() == []
    assert not os.path.exists(store.content.blob_path(bad))


def test_wrong_config_and_manifest_at_the_mirror(
    store: ImageStore, etc: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    manifest = sha(origin.manifests["latest"][1])
    config = json.loads(origin.manifests["latest"][1])["config"]["digest"]
    damage(mirror, config)
    mirror.manifests[manifest] = (mirror.manifests[manifest][0], b"{}")
    mirrored(etc, origin, mirror)
    _, warnings = pull(store, origin, name=manifest)
    assert paths(origin) == [
        f"GET /v2/team/app/manifests/{manifest}",
        f"GET /v2/team/app/blobs/{config}",
    ]
    assert f"expected digest {manifest}" in warnings[0]


@pytest.mark.parametrize("end", ["short", "cut", "stall", "drip"])
def test_a_blob_that_stops_goes_on_elsewhere(
    store: ImageStore,
    etc: Path,
    origin: FakeRegistry,
    mirror: FakeRegistry,
    end: str,
) -> None:
    """badinput.md F5 at a mirror: what came is kept, the rest comes from the next host."""
    big = os.urandom(400_000)
    origin.add_image(big)
    mirror.manifests, mirror.blobs = dict(origin.manifests), dict(origin.blobs)
    (digest,) = layers_of(origin)
    data = origin.blobs[digest]

    def stop(handler: Handler) -> bool:
        if digest not in handler.path:
            return False
        length = 150_000 if end == "short" else len(data)
        handler.send_response(200)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(data[:150_000])
        handler.wfile.flush()
        handler.close_connection = end != "short"
        for position in range(150_000, 150_400 if end in ("stall", "drip") else 0):
            if done.wait(0.05):
                break
            if end == "drip":
                handler.wfile.write(data[position : position + 1])
                handler.wfile.flush()
        return True

    done = threading.Event()
    mirror.hooks.append(stop)
    mirrored(etc, origin, mirror)
    try:
        pull(store, origin, patience=replace(QUICK, idle_s=2 if end == "stall" else 10))
    finally:
        done.set()
    first = 150_000
    (request,) = origin.requests(digest)
    offset = int(request["Range"].removeprefix("bytes=").removesuffix("-"))
    assert offset == first if end != "drip" else first < offset < first + 400
    assert len(mirror.requests(digest)) == 1
    assert store.verify() == []


# -- who is told what -----------------------------------------------------------------------------


def log_in(tmp_path: Path, **users: str) -> None:
    auths = {host: {"auth": base64.b64encode(f"{user}:pw".encode()).decode()} for host, user in users.items()}  # fmt: skip
    path = tmp_path / "home/.docker/config.json"
    path.write_text(json.dumps({"auths": auths, "HttpHeaders": {"X-Meta-A": "b", "X-Other": "c"}}))
    path.chmod(0o600)


def ask_for(registry: FakeRegistry, user: str) -> None:
    good = "Basic " + base64.b64encode(f"{user}:pw".encode()).decode()

    def hook(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == good:
            return False
        handler.reply(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        return True

    registry.hooks.append(hook)


def test_each_host_has_its_own_credentials(
    store: ImageStore, etc: Path, tmp_path: Path, origin: FakeRegistry, mirror: FakeRegistry
) -> None:
    log_in(tmp_path, **{origin.host: "captain", mirror.host: "mate"})
    ask_for(mirror, "mate")
    ask_for(origin, "captain")
    del mirror.blobs[layers_of(origin)[0]]
    mirrored(etc, origin, mirror)
    pull(store, origin)
    for registry, user in ((mirror, "mate"), (origin, "captain")):
        sent = {h["Authorization"] for _, _, h in registry.log if "Authorization" in h}
        assert sent == {"Basic " + base64.b64encode(f"{user}:pw".encode()).decode()}
    # docker's own headers are for the registry; only X-Meta- ones, as its daemon does it.
    assert all(h.get("X-Meta-A") == "b" and "X-Other" not in h for _, _, h in origin.log)
    assert all("X-Meta-A" not in h for _, _, h in mirror.log)


@pytest.mark.parametrize("given", [True, False])
def test_the_registry_s_password_never_reaches_a_mirror(
    store: ImageStore,
    etc: Path,
    tmp_path: Path,
    origin: FakeRegistry,
    mirror: FakeRegistry,
    given: bool,
) -> None:
    from scow.image.credentials import Credentials

    ask_for(mirror, "nobody")
    ask_for(origin, "captain")
    mirrored(etc, origin, mirror)
    if given:
        pull(store, origin, credentials=Credentials("captain", "pw"))
    else:
        log_in(tmp_path, **{origin.host: "captain"})
        pull(store, origin)
    assert mirror.log
    assert all("Authorization" not in headers for _, _, headers in mirror.log)


def test_another_server_gets_no_password_of_the_registry(
    store: ImageStore, etc: Path, origin: FakeRegistry
) -> None:
    from scow.image.credentials import Credentials

    write(etc, "reg.example", f'server = "http://{origin.host}"')
    ask_for(origin, "captain")
    with pytest.raises(PermissionDenied, match=origin.host):
        pull_image(
            store, "reg.example/team/app", patience=QUICK, credentials=Credentials("captain", "pw")
        )
    assert all("Authorization" not in headers for _, _, headers in origin.log)


def test_headers_of_a_host_are_for_that_host(
    store: ImageStore,
    etc: Path,
    origin: FakeRegistry,
    mirror: FakeRegistry,
    make: Callable[[], FakeRegistry],
) -> None:
    cdn = make()
    cdn.blobs = dict(origin.blobs)
    mirror.hooks.append(
        lambda h: (
            "/blobs/" in h.path
            and (h.reply(307, b"", {"Location": f"http://{cdn.host}{h.path}"}) or True)
        )
    )
    mirrored(etc, origin, mirror, more='header = {authorization = "Basic abc", x-key = "k"}')
    pull(store, origin)
    assert all(h["x-key"] == "k" and h["authorization"] == "Basic abc" for _, _, h in mirror.log)
    assert len(cdn.log) == 3
    assert not any({"x-key", "authorization"} & {n.lower() for n in h} for _, _, h in cdn.log)


def test_paths(store: ImageStore, etc: Path, origin: FakeRegistry, mirror: FakeRegistry) -> None:
    """A pull-through cache below a path, as Harbor and Artifactory have it."""
    seen: list[str] = []

    def hook(handler: Handler) -> bool:
        seen.append(handler.path)
        handler.path = handler.path.replace("/v2/hub-cache/", "/v2/").partition("?")[0]
        return False

    mirror.hooks.append(hook)
    mirrored(etc, origin, f"http://{mirror.host}/v2/hub-cache", more="override_path = true")
    pull(store, origin)
    assert all(path.startswith("/v2/hub-cache/team/app/") for path in seen)
    assert origin.log == []


# -- what registries say --------------------------------------------------------------------------


def test_warnings_and_limits_are_told_once(store: ImageStore, origin: FakeRegistry) -> None:
    headers = {
        "Warning": '299 - "brown\\"out\x1b[31m on friday", 199 - "not for users", 299 - "two"',
        "RateLimit-Limit": "100;w=21600",
        "RateLimit-Remaining": "0;w=21600",
    }

    def hook(handler: Handler) -> bool:
        for name, value in headers.items():
            handler.more[name] = value
        return False

    origin.hooks.append(hook)
    _, warnings = pull(store, origin)
    who = f"registry '{origin.host}'"
    assert warnings == [
        f"{who} says: 'brown\"out\\x1b[31m on friday'",
        f"{who} says: 'two'",
        f"{who} allows no more pulls for now (its limit is 100 in 6 hours)",
    ]


@pytest.mark.parametrize(
    ("retry_after", "hint"),
    [
        ("", "logging in to"),
        ("7", "it asks to wait 7 seconds; logging in"),
        ("1000000000", "it asks to wait 11575 days"),
        ("garbage", "logging in to"),
        ("Fri, 21 Nov 2036 00:00:00 GMT", "it asks to wait"),
        ("Fri, 21 Nov 2006 00:00:00 GMT", "logging in to"),
        ("-5", "logging in to"),
    ],
)
def test_too_many_requests(
    store: ImageStore, origin: FakeRegistry, retry_after: str, hint: str
) -> None:
    """badinput.md F4: the registry's words, what it asks, what to do."""
    body = (
        b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}'
    )
    headers = {"RateLimit-Limit": "10;w=3600"} | (
        {"Retry-After": retry_after} if retry_after else {}
    )
    origin.hooks.append(lambda h: h.reply(429, body, headers) or True)
    origin.hooks.insert(0, lambda h: h.command == "HEAD" and (h.reply(405) or True))
    with pytest.raises(RegistryError) as caught:
        pull(store, origin)
    assert caught.value.message.endswith(
        "too many requests: 'You have reached your pull rate limit' (its limit is 10 in 1 hour)"
    )
    assert (caught.value.hint or "").startswith(hint)
    waits = retry_after in ("7", "1000000000") or retry_after.startswith("Fri, 21 Nov 2036")
    assert len([p for p in paths(origin) if p.startswith("GET")]) == (
        1 if waits else QUICK.attempts
    )


def test_a_short_wait_is_waited_and_told(
    store: ImageStore, origin: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a minute in all: 40 s are waited, 40 s more are not."""
    from scow.image.transport import Transport

    waited: list[float] = []
    monkeypatch.setattr(
        Transport, "pause", lambda self, attempt, at_least_s=0: waited.append(at_least_s)
    )
    origin.hooks.append(lambda h: h.command == "HEAD" and (h.reply(405) or True))
    origin.hooks.append(lambda h: h.reply(429, b"", {"Retry-After": "40"}) or True)
    progress = Warnings()
    with pytest.raises(RegistryError, match="too many requests"):
        pull_image(
            store,
            f"{origin.host}/team/app",
            patience=replace(QUICK, retry_after_limit_s=60),
            progress=progress,
        )
    assert waited == [40]
    assert progress.texts == [f"registry '{origin.host}' answered 429, trying again in 40 s"]
