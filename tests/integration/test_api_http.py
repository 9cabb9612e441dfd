"""What is not good HTTP, who is slow, who is many: one client's fault is nobody else's."""

from __future__ import annotations

import json
import select
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.api import ApiServer, UnixHttp, post
from fixtures.engines import wait_until
from scow.cri.api import http, listeners
from scow.cri.api.listeners import Listener, open_listener
from scow.native.errors import AlreadyExists, InvalidArgument

HEAD = b"POST /runtime.v1.RuntimeService/Version HTTP/1.1\r\nhost: scow\r\ncontent-type: application/json\r\n"
GOOD = HEAD + b"content-length: 2\r\n\r\n{}"


def raw(path: Path, data: bytes, *, end: bool = False) -> bytes:
    """Send bytes and read until the server closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
        found = b""
        while piece := sock.recv(65536):
            found += piece
        return found


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, 400),
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n", 400),
        (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 100_000 + b"\r\n", 431),
        (HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", 400),
        (HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400),
        (HEAD + b"content-length: -2\r\n\r\n{}", 400),
        (HEAD + b"content-length: 99999999999999999999\r\n\r\n", 413),
        (HEAD + b"content-length: 999999999999999\r\n\r\n", 413),
        (HEAD + b"content-length: 6000000\r\n\r\n", 413),
        (HEAD + b"transfer-encoding: gzip\r\n\r\n", 501),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 90, 413),
    ],
)  # fmt: skip
def test_bad_requests(api_socket: Path, data: bytes, status: int) -> None:
    answer = raw(api_socket, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert b"connection: close" in head.lower()
    assert set(json.loads(body)) == {"code", "message"}
    assert post(api_socket, "Version", {})[0] == 200


@pytest.mark.usefixtures("api")
def test_a_body_that_ends_early(api_socket: Path) -> None:
    assert b" 400 " in raw(api_socket, HEAD + b"content-length: 20\r\n\r\n{}", end=True)


@pytest.mark.usefixtures("api")
def test_pipelined_requests_are_answered_in_order(api_socket: Path) -> None:
    health = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"
    last = b"GET /openapi.json HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    found = raw(api_socket, GOOD + health + GOOD + last)
    assert found.count(b"HTTP/1.1 200") == 4
    assert found.index(b"runtimeName") < found.index(b"ok\n") < found.index(b'"openapi"')


@pytest.mark.usefixtures("api")
def test_chunked_and_expect(api_socket: Path) -> None:
    close = b"connection: close\r\n"
    found = raw(
        api_socket, HEAD + close + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    assert b"HTTP/1.1 200" in found
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(api_socket))
        sock.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(b"{}")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    # An answer that says no comes before the body.
    assert b" 413 " in raw(
        api_socket, HEAD + b"expect: 100-continue\r\ncontent-length: 6000000\r\n\r\n"
    )


def test_a_slow_head_is_given_up(
    api: ApiServer, api_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEAD_S", 0.3)
    monkeypatch.setattr(http, "BODY_S", 0.3)
    monkeypatch.setattr(http, "IDLE_S", 0.6)
    begun = time.monotonic()
    assert b" 408 " in raw(api_socket, b"POST /run")
    assert b" 408 " in raw(api_socket, HEAD + b"content-length: 2\r\n\r\n{")
    assert raw(api_socket, b"") == b""
    assert time.monotonic() - begun < 60
    assert post(api_socket, "Version", {})[0] == 200


def test_stalled_readers_hold_nobody_up(
    api: ApiServer, api_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 clients ask for much and read nothing: others are served, and the 20 are given up."""
    monkeypatch.setattr(http, "STALL_S", 0.5)
    body = json.dumps({"filter": {"id": "20000"}}).encode()
    head = b"POST /runtime.v1.RuntimeService/%s HTTP/1.1\r\nhost: a\r\ncontent-type: %s\r\n"
    lists = head % (b"ListContainers", b"application/json")
    streams = head % (b"StreamContainers", b"application/connect+json")
    stalled: list[socket.socket] = []
    for n in range(20):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(api_socket))
        data = body if n % 4 == 0 else b"\x00" + len(body).to_bytes(4, "big") + body
        one = lists if n % 4 == 0 else streams
        sock.sendall(one + b"content-length: %d\r\n\r\n" % len(data) + data)
        stalled.append(sock)
    time.sleep(0.3)
    worst = 0.0
    for _ in range(20):
        begun = time.monotonic()
        assert post(api_socket, "Version", {})[0] == 200
        worst = max(worst, time.monotonic() - begun)
    assert worst < 30
    wait_until(
        lambda: b"scow_api_connections 1\n" in post_get(api_socket, "/metrics")[2], "their end"
    )
    for sock in stalled:
        sock.close()


def post_get(path: Path, url: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = UnixHttp(path)
    connection.request(method, url)
    answer = connection.getresponse()
    found = (answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    connection.close()
    return found


@pytest.mark.usefixtures("api")
def test_many_connections(api_socket: Path) -> None:
    """More than the limit: each that asks for work is told so, and /healthz still answers."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    held: list[socket.socket] = []
    try:
        for _ in range(1030):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(api_socket))
            held.append(sock)
        status, _, body = post(api_socket, "Version", {})
        assert (status, json.loads(body)["code"]) == (503, "unavailable")
        assert post_get(api_socket, "/healthz")[0] == 200
    finally:
        for sock in held:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: post(api_socket, "Version", {})[0] == 200, "room for a call")


@pytest.mark.usefixtures("api")
def test_pages(api_socket: Path) -> None:
    assert post_get(api_socket, "/healthz")[::2] == (200, b"ok\n")
    status, headers, body = post_get(api_socket, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"http:" not in body.replace(b"http://scow/", b"")  # it fetches nothing from elsewhere
    status, headers, body = post_get(api_socket, "/healthz", "HEAD")
    assert (status, headers["content-length"], body) == (200, "3", b"")
    status, _, body = post_get(api_socket, "/openapi.json")
    described = json.loads(body)
    assert "/runtime.v1.RuntimeService/RunPodSandbox" in described["paths"]
    references = set(_references(described))
    assert references
    assert references <= {f"#/components/schemas/{n}" for n in described["components"]["schemas"]}


def _references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for one in value.values() for found in _references(one)]
    if isinstance(value, list):
        return [found for one in value for found in _references(one)]
    return []


@pytest.mark.usefixtures("api")
def test_metrics(api_socket: Path) -> None:
    post(api_socket, "Version", {})
    post(api_socket, "ContainerStatus", {"containerId": "not-found"})
    status, headers, body = post_get(api_socket, "/metrics")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert b'container_processes{id="x",name="a\\"b"} 7\n' in body
    assert b'scow_api_calls_total{method="ContainerStatus",code="not_found"} 1\n' in body


# --- listening --------------------------------------------------------------------------------


def test_the_socket_is_for_root_alone(api: ApiServer, api_socket: Path) -> None:
    assert stat.S_IMODE(api_socket.stat().st_mode) == 0o600
    with pytest.raises(AlreadyExists, match="answers there already"):
        open_listener(f"unix://{api_socket}", None)
    assert api.listeners[0].url() == f"unix://{api_socket}"


def test_a_socket_left_by_a_killed_service_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    listener = open_listener(str(path), None)
    listener.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(AlreadyExists, match="not a socket"):
        open_listener(str(path), None)
    assert path.read_text() == "precious"


def test_of_many_that_start_at_once_one_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "PROBE_S", 0.01)  # nobody accepts here
    path = str(tmp_path / "api.sock")

    def start(_: int) -> Listener | None:
        try:
            return open_listener(path, None)
        except AlreadyExists:
            return None

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            listening = [one for one in pool.map(start, range(4)) if one is not None]
            assert len(listening) == 1
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
            listening[0].sock.close()  # as a kill does: the name stays


def test_a_socket_that_a_killed_service_still_holds_for_a_moment(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    dying = open_listener(path, None)

    def die() -> None:
        readable, _, _ = select.select([dying.sock], [], [], 10)
        assert readable
        dying.sock.close()

    thread = threading.Thread(target=die)
    thread.start()
    listener = open_listener(path, None)
    thread.join()
    listener.close()


@pytest.mark.parametrize(
    "address",
    ["", "scow.sock", "unix://host/x", "tcp://127.0.0.1", "tcp://:80", "tcp://127.0.0.1:99999",
     "tcp://127.0.0.1:0", "http://0.0.0.0:0", "http://localhost:0", "http://192.0.2.1:80",
     "https://127.0.0.1:1", "ftp://x:1"],
)  # fmt: skip
def test_addresses_refused(address: str) -> None:
    """Plain TCP is for a literal loopback address only, and TCP without certificates for nobody."""
    with pytest.raises(InvalidArgument):
        open_listener(address, None)


def test_plain_loopback_is_for_its_own_pages_only() -> None:
    """DNS rebinding and other sites' pages: a browser on this host must not be their tool."""
    server = ApiServer([open_listener("http://127.0.0.1:0", None)])
    try:
        import http.client

        host, port = server.listeners[0].sock.getsockname()
        for headers, wanted in (
            ({}, 200),
            ({"origin": f"http://{host}:{port}"}, 200),
            ({"origin": "https://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"host": f"localhost:{port}"}, 200),
            ({"host": "[::1]"}, 200),
            ({"host": ""}, 403),
            ({"host": "127.0.0.1.evil.example"}, 403),
            ({"host": "evil.example"}, 403),
            ({"host": f"evil.example:{port}"}, 403),
        ):
            connection = http.client.HTTPConnection(host, port, timeout=5)
            connection.request("GET", "/healthz", headers=headers)
            assert connection.getresponse().status == wanted, headers
            connection.close()
    finally:
        server.stop()
