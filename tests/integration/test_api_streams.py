"""Exec, attach and port-forward over WebSocket: another library's client, and our own."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, unix_connect
from websockets.typing import Subprotocol

from fixtures.api import ApiServer, FakeMonitor, FakePorts, FakeProcess, UnixHttp, post
from scow.cri.api import channels, tokens
from scow.cri.client import Client
from scow.cri.client_streams import STDERR, STDOUT, PortStream, ProcessStream
from scow.native.errors import InvalidState, NotFound, ResourceExhausted, ScowError

V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
RUNTIME = "/runtime.v1.RuntimeService/"


def connect(path: Path, url: str, *protocols: str) -> ClientConnection:
    offered = [Subprotocol(name) for name in protocols or (V5, V4)]
    return unix_connect(str(path), f"ws://scow{url}", subprotocols=offered, compression=None)


def url_of(api: ApiServer, program: Any, kind: str = "exec", **options: Any) -> str:
    return api.tokens.token(kind, FakeProcess(program, **options))


def rest(socket_: ClientConnection) -> list[bytes]:
    """What still comes until the good end."""
    found: list[bytes] = []
    assert until_closed(socket_, found) == 1000
    return found


def until_closed(socket_: ClientConnection, found: list[bytes]) -> int:
    """Read to the end; the code that the service closed with."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            found.append(bytes(socket_.recv(timeout=30)))  # type: ignore[arg-type]
    assert socket_.close_code is not None
    return socket_.close_code


def hello(monitor: FakeMonitor) -> None:
    monitor.output(b"out")
    monitor.output(b"err", 2)
    monitor.exit(3)


def echo(monitor: FakeMonitor) -> None:
    """cat(1): output is the input, the end is the end of it."""
    while (message := monitor.recv())[:1] != b"c":
        if message[:1] == b"i":
            monitor.output(message[1:])
    monitor.exit(0)


@pytest.mark.parametrize("protocol", [V5, V4])
def test_exec(api: ApiServer, api_socket: Path, protocol: str) -> None:
    with connect(api_socket, url_of(api, hello), protocol) as ws:
        assert ws.subprotocol == protocol
        out, err, end = rest(ws)
    assert (out, err) == (b"\x01out", b"\x02err")
    assert end[0] == 3
    status = json.loads(end[1:])
    assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]


def test_v5_is_preferred(api: ApiServer, api_socket: Path) -> None:
    with connect(api_socket, url_of(api, hello), V4, V5) as ws:
        assert ws.subprotocol == V5
        rest(ws)


def test_attach_ends_well_whatever_the_exit_code(api: ApiServer, api_socket: Path) -> None:
    with connect(api_socket, url_of(api, hello, "attach")) as ws:
        end = rest(ws)[-1]
    assert json.loads(end[1:])["status"] == "Success"


def test_stdin_half_close(api: ApiServer, api_socket: Path) -> None:
    """v5: the end of stdin reaches the process, and its output still comes."""
    with connect(api_socket, url_of(api, echo)) as ws:
        ws.send(b"\x00hello")
        assert ws.recv(timeout=30) == b"\x01hello"
        ws.send(b"\xff\x00")
        (end,) = rest(ws)
    assert json.loads(end[1:])["status"] == "Success"


def test_v4_has_no_half_close(api: ApiServer, api_socket: Path) -> None:
    with connect(api_socket, url_of(api, echo), V4) as ws:
        ws.send(b"\xff\x00")
        ws.send(b"\x00still")
        assert ws.recv(timeout=30) == b"\x01still"


def test_resize_and_what_is_no_size(api: ApiServer, api_socket: Path) -> None:
    seen: list[bytes] = []

    def program(monitor: FakeMonitor) -> None:
        while (message := monitor.recv())[:1] != b"i":
            seen.append(message)
        monitor.exit(0)

    with connect(api_socket, url_of(api, program, tty=True)) as ws:
        for size in (
            {"Width": 0, "Height": 24},
            {"Width": 70000, "Height": 24},
            {"Width": -1, "Height": 1},
            {"Width": "80"},
            [],
            {"Width": 132, "Height": 43},
        ):
            ws.send(b"\x04" + json.dumps(size).encode())
        ws.send(b"\x04{")
        ws.send(b"\x00x")
        rest(ws)
    assert seen == [struct.pack("<cHH", b"w", 43, 132)]


def test_streams_that_were_not_asked_for(api: ApiServer, api_socket: Path) -> None:
    go = threading.Event()
    taken: list[bytes] = []

    def program(monitor: FakeMonitor) -> None:
        go.wait(10)
        with contextlib.suppress(BlockingIOError):
            taken.append(monitor.sock.recv(100, socket.MSG_DONTWAIT))
        hello(monitor)

    with connect(api_socket, url_of(api, program, stderr=False, stdin=False)) as ws:
        ws.send(b"\x00input")
        time.sleep(0.1)
        go.set()
        assert [message[:1] for message in rest(ws)] == [b"\x01", b"\x03"]
    assert not taken


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (InvalidState("it has just ended"), "it has just ended", 400),
        (NotFound("no such container"), "no such container", 404),
        (ValueError("oops"), "internal error: ValueError: oops", 500),
    ],
)
def test_a_process_that_cannot_be_started(
    api: ApiServer, api_socket: Path, error: Exception, text: str, code: int
) -> None:
    with connect(api_socket, url_of(api, hello, failure=error)) as ws:
        (end,) = rest(ws)
    status = json.loads(end[1:])
    assert (status["status"], status["message"], status["code"]) == ("Failure", text, code)


def test_a_monitor_that_is_lost(api: ApiServer, api_socket: Path) -> None:
    with connect(api_socket, url_of(api, lambda monitor: monitor.output(b"x"))) as ws:
        out, end = rest(ws)
    assert out == b"\x01x"
    assert "was lost" in json.loads(end[1:])["message"]


# --- URLs -------------------------------------------------------------------------------------


def test_a_url_is_good_once(api: ApiServer, api_socket: Path) -> None:
    url = url_of(api, hello)
    with connect(api_socket, url) as ws:
        rest(ws)
    with pytest.raises(InvalidStatus) as caught:
        connect(api_socket, url)
    assert caught.value.response.status_code == 404


def test_a_url_is_good_for_its_kind(api: ApiServer, api_socket: Path) -> None:
    url = url_of(api, hello)
    for wrong in (url.replace("/exec/", "/attach/"), "/exec/guess", url + "x"):
        with pytest.raises(InvalidStatus) as caught:
            connect(api_socket, wrong)
        assert caught.value.response.status_code == 404
    with connect(api_socket, url) as ws:  # what others tried has not used it up
        rest(ws)


def test_urls_are_good_for_a_minute_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    made = tokens.Tokens(lambda: "", clock=lambda: now[0])
    monkeypatch.setattr(tokens, "TOKENS_MAX", 3)
    urls = [made.token("exec", FakeProcess(hello)) for _ in range(3)]
    assert len(set(urls)) == 3
    with pytest.raises(ResourceExhausted):
        made.token("exec", FakeProcess(hello))
    now[0] = 59
    assert made.take("exec", urls[0].rpartition("/")[2])
    now[0] = 60
    assert made.take("exec", urls[1].rpartition("/")[2]) is None
    assert made.token("exec", FakeProcess(hello))


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 426),
        ("POST", {}, 405),
        ("GET", {"upgrade": "SPDY/3.1", "connection": "upgrade"}, 426),
        ("GET", {"sec-websocket-version": "8"}, 426),
        ("GET", {"sec-websocket-key": "short"}, 400),
        ("GET", {"sec-websocket-key": "%%%%"}, 400),
        ("GET", {"sec-websocket-protocol": "chat"}, 400),
        ("GET", {"sec-websocket-protocol": ""}, 400),
        ("GET", {"origin": "https://evil.example"}, 403),
    ],
)
def test_bad_handshakes(
    api: ApiServer, api_socket: Path, method: str, headers: dict[str, str], status: int
) -> None:
    good = {
        "upgrade": "websocket",
        "connection": "upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "sec-websocket-protocol": V5,
    }
    url = url_of(api, hello)
    connection = UnixHttp(api_socket)
    connection.request(method, url, headers={**good, **headers} if headers else {})
    answer = connection.getresponse()
    assert answer.status == status
    assert set(json.loads(answer.read())) == {"code", "message"}
    connection.close()
    with connect(api_socket, url) as ws:  # none of it has used the URL up
        rest(ws)


@pytest.mark.parametrize(("message", "code"), [("text", 1003), (b"\x00" * 1_100_000, 1009)])
def test_messages_against_the_rules(
    api: ApiServer, api_socket: Path, message: bytes | str, code: int
) -> None:
    with connect(api_socket, url_of(api, echo)) as ws:
        ws.send(message)
        assert until_closed(ws, []) == code
    assert post(api_socket, "Version", {})[0] == 200


# --- who waits for whom -------------------------------------------------------------------------


def test_a_stalled_client_holds_up_only_itself(api: ApiServer, api_socket: Path) -> None:
    """20 clients that do not read: their processes wait (nothing is lost), all others go on."""

    def flood(monitor: FakeMonitor) -> None:
        for _ in range(200):
            monitor.output(b"x" * 32768)
        monitor.exit(0)

    held = [raw_stream(api_socket, url_of(api, flood)) for _ in range(20)]
    time.sleep(0.5)
    begun = time.monotonic()
    with connect(api_socket, url_of(api, echo)) as ws:
        ws.send(b"\x00hello")
        assert ws.recv(timeout=30) == b"\x01hello"
        ws.send(b"\xff\x00")
        rest(ws)
    assert post(api_socket, "Version", {})[0] == 200
    assert time.monotonic() - begun < 30
    # One of them reads after all: every byte is there.
    received = 0
    while piece := held[0].recv(65536):
        received += len(piece)
    assert received > 200 * 32768
    for sock in held:
        sock.close()


def raw_stream(path: Path, url: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(path))
    sock.sendall(
        f"GET {url} HTTP/1.1\r\nhost: scow\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"sec-websocket-protocol: {V5}\r\n\r\n".encode()
    )
    return sock


def test_a_client_that_goes_while_the_process_does_not_read(
    api: ApiServer, api_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "LOOK_S", 0.1)
    ended = threading.Event()

    def deaf(monitor: FakeMonitor) -> None:
        # Takes no input; that sending fails shows that the door has let go.
        while not ended.is_set():
            try:
                monitor.sock.send(b"R\x01\x00\x00\x00")
            except OSError:
                ended.set()
            time.sleep(0.05)

    stream = ProcessStream(Client(str(api_socket)), url_of(api, deaf))

    def send_much() -> None:
        with contextlib.suppress(OSError):
            while True:
                stream.send_stdin(b"x" * 100_000)

    sender = threading.Thread(target=send_much)
    sender.start()
    time.sleep(0.5)
    stream.close()
    assert ended.wait(10)
    sender.join(10)
    assert not sender.is_alive()


def test_a_graceful_stop_says_goodbye(api: ApiServer, api_socket: Path) -> None:
    with connect(api_socket, url_of(api, echo)) as ws:
        ws.send(b"\x00x")
        assert ws.recv(timeout=30) == b"\x01x"
        stopper = threading.Thread(target=api.stop)
        stopper.start()
        assert until_closed(ws, []) == 1001
        stopper.join(10)
        assert not stopper.is_alive()


# --- port-forward -----------------------------------------------------------------------------


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server on loopback that answers with what it got, when that has ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                with sock:
                    data = b""
                    while piece := sock.recv(65536):
                        data += piece
                    sock.sendall(b"got " + data)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_port_forward(api: ApiServer, api_socket: Path, echo_port: int) -> None:
    refused = closed_port()
    url = api.tokens.token("portforward", FakePorts((echo_port, refused)))
    with connect(api_socket, url) as ws:
        ws.send(b"\x00hello")
        ws.send(b"\xff\x00")
        found: dict[int, bytes] = {}
        for message in rest(ws):
            found[message[0]] = found.get(message[0], b"") + message[1:]
    assert found[0] == struct.pack("<H", echo_port) + b"got hello"
    assert found[1] == struct.pack("<H", echo_port)
    assert found[2] == struct.pack("<H", refused)
    assert found[3].startswith(struct.pack("<H", refused) + b"cannot connect to port")


def test_ports_from_the_url(api: ApiServer, api_socket: Path, echo_port: int) -> None:
    url = api.tokens.token("portforward", FakePorts(()))
    with connect(api_socket, f"{url}?port={echo_port}") as ws:
        assert ws.recv(timeout=30) == b"\x00" + struct.pack("<H", echo_port)
    for query in ("", "?port=0", "?port=65536", "?port=x", "?port=1,,2", "?" + "port=1&" * 101):
        with pytest.raises(InvalidStatus) as caught:
            connect(api_socket, api.tokens.token("portforward", FakePorts(())) + query)
        assert caught.value.response.status_code == 400


# --- our own client ---------------------------------------------------------------------------


def test_client_exec(api: ApiServer, api_socket: Path) -> None:
    api.runtime.sessions["c"] = FakeProcess(hello)
    with Client(str(api_socket)) as client:
        url = client.call("Exec", {"container_id": "c", "cmd": ["x"], "stdout": True}).url
        with ProcessStream(client, url) as stream:
            assert list(stream.output()) == [(STDOUT, b"out"), (STDERR, b"err")]
            assert stream.exit_code == 3
        with pytest.raises(NotFound, match="unknown, used, or older"):
            ProcessStream(client, url)


def test_client_stdin_and_a_large_answer(api: ApiServer, api_socket: Path) -> None:
    api.runtime.sessions["c"] = FakeProcess(echo)
    data = bytes(range(256)) * 4000
    with Client(str(api_socket)) as client:
        url = client.call("Attach", {"container_id": "c", "stdin": True}).url
        with ProcessStream(client, url) as stream:

            def feed() -> None:
                for start in range(0, len(data), 10_000):
                    stream.send_stdin(data[start : start + 10_000])
                stream.close_stdin()

            feeder = threading.Thread(target=feed)
            feeder.start()
            assert b"".join(piece for _, piece in stream.output()) == data
            assert stream.exit_code == 0
            feeder.join()


def test_client_failures(api: ApiServer, api_socket: Path) -> None:
    api.runtime.sessions["c"] = FakeProcess(hello, failure=InvalidState("it has just ended"))
    with Client(str(api_socket)) as client:
        url = client.call("Exec", {"container_id": "c"}).url
        with (
            ProcessStream(client, url) as stream,
            pytest.raises(ScowError, match="it has just ended"),
        ):
            list(stream.output())


def test_client_port_forward(api: ApiServer, api_socket: Path, echo_port: int) -> None:
    with Client(str(api_socket)) as client:
        url = client.call("PortForward", {"pod_sandbox_id": "p", "port": [echo_port]}).url
        with PortStream(client, url) as stream:
            stream.write(b"hello")
            stream.close_write()
            assert b"".join(stream.read()) == b"got hello"
        url = client.call("PortForward", {"port": [closed_port()]}).url
        with PortStream(client, url) as stream, pytest.raises(ScowError, match="cannot connect"):
            list(stream.read())


def test_stream_listener_serves_streams_only(tmp_path: Path) -> None:
    """The loopback listener that stream URLs name: no API behind it."""
    from scow.cri.api.listeners import open_listener, open_loopback

    loopback = open_loopback("127.0.0.1", 0, streams_only=True)
    path = tmp_path / "scow.sock"
    server = ApiServer([open_listener(str(path), None), loopback], loopback.url())
    try:
        server.runtime.sessions["c"] = FakeProcess(hello)
        host, port = loopback.sock.getsockname()
        for url in ("/healthz", "/", f"{RUNTIME}Version", "/metrics"):
            with contextlib.closing(
                http.client.HTTPConnection(host, port, timeout=5)
            ) as connection:
                connection.request("POST", url, "{}", {"content-type": "application/json"})
                assert connection.getresponse().status == 404
        with Client(str(path)) as client:
            url = client.call("Exec", {"container_id": "c"}).url
        assert url.startswith(f"http://127.0.0.1:{port}/exec/")
        from websockets.sync.client import connect as tcp_connect

        with tcp_connect(url.replace("http", "ws"), subprotocols=[Subprotocol(V5)]) as ws:
            assert len(rest(ws)) == 3
    finally:
        server.stop()
