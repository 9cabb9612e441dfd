"""The Connect protocol as clients meet it: calls, streams, errors, compression, time-outs."""

from __future__ import annotations

import gzip
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.api import ApiServer, UnixHttp, post
from fixtures.engines import wait_until

STREAM = "application/connect+json"
pytestmark = pytest.mark.usefixtures("api")


def envelope(body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(body)) + body


def envelopes(data: bytes) -> Iterator[tuple[int, Any]]:
    while data:
        flags, length = struct.unpack_from(">BI", data)
        body, data = data[5 : 5 + length], data[5 + length :]
        yield flags & 2, json.loads(gzip.decompress(body) if flags & 1 else body)


def error_of(body: bytes) -> tuple[str, str]:
    found = json.loads(body)
    assert set(found) == {"code", "message"}
    return found["code"], found["message"]


def test_unary(api_socket: Path) -> None:
    status, headers, body = post(api_socket, "ContainerStatus", {"containerId": "x"})
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["status"]["createdAt"] == str(2**60 + 1)


def test_unknown_fields_are_ignored(api_socket: Path) -> None:
    status, _, _ = post(api_socket, "Version", {"future": [1, {"x": None}]})
    assert status == 200


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("not-found", 404, "not_found"),
        ("exists", 409, "already_exists"),
        ("state", 400, "failed_precondition"),
        ("invalid", 400, "invalid_argument"),
        ("full", 429, "resource_exhausted"),
        ("bug", 500, "internal"),
        ("bytes", 500, "internal"),
    ],
)
def test_errors(api_socket: Path, name: str, status: int, code: str) -> None:
    answer = post(api_socket, "ContainerStatus", {"containerId": name})
    assert answer[0] == status
    assert error_of(answer[2])[0] == code
    assert post(api_socket, "Version", {})[0] == 200


def test_hints_are_told(api_socket: Path) -> None:
    _, _, body = post(api_socket, "ContainerStatus", {"containerId": "not-found"})
    assert error_of(body)[1] == "no container 'x'; hint: 'scow ps' lists them"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/runtime.v1.RuntimeService/Nope", 404, "unimplemented"),
        ("/runtime.v1.RuntimeService/version", 404, "unimplemented"),
        ("/runtime.v1.RuntimeService/Version/", 404, "unimplemented"),
        ("/runtime.v1.RuntimeService//Version", 404, "unimplemented"),
        ("/runtime.v1.RuntimeService/%56ersion", 404, "unimplemented"),
        ("/runtime.v1.RuntimeService/Version;a", 404, "unimplemented"),
        ("/runtime.v1.RuntimeService/../RuntimeService/Version", 404, "unimplemented"),
        ("/runtime.v1alpha2.RuntimeService/Version", 404, "not_found"),
        ("//runtime.v1.RuntimeService/Version", 404, "not_found"),
        ("/%2e%2e/etc/passwd", 404, "not_found"),
        ("/%00", 404, "not_found"),
        ("/runtime.v1.RuntimeService/CheckpointPod", 501, "unimplemented"),
        ("/healthz", 405, "unimplemented"),
    ],
)
def test_paths(api_socket: Path, path: str, status: int, code: str) -> None:
    answer = post(api_socket, path, {})
    assert (answer[0], error_of(answer[2])[0]) == (status, code)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_a_method_is_called_by_post_only(api_socket: Path, method: str) -> None:
    """CRI's proto marks no method as free of side effects, so that Connect's GET form does not apply."""
    connection = UnixHttp(api_socket)
    connection.request(method, "/runtime.v1.RuntimeService/Version?encoding=json&message=%7B%7D")
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.getheader("allow")) == (405, "POST")
    connection.close()


@pytest.mark.parametrize(
    "kind", ["application/proto", "application/grpc", "text/plain", "", STREAM,
             "application/json; charset=utf-16", "application/json, application/json"],
)  # fmt: skip
def test_content_types_refused(api_socket: Path, kind: str) -> None:
    status, headers, _ = post(api_socket, "Version", {}, content_type=kind)
    assert (status, headers["accept-post"]) == (415, "application/json")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_content_types_taken(api_socket: Path, kind: str) -> None:
    assert post(api_socket, "Version", {}, content_type=kind)[0] == 200


def test_protocol_version(api_socket: Path) -> None:
    assert post(api_socket, "Version", {}, connect_protocol_version="1")[0] == 200
    status, _, body = post(api_socket, "Version", {}, connect_protocol_version="2")
    assert (status, error_of(body)[0]) == (400, "invalid_argument")


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "12345678901", "\u0661", "+5"])
def test_bad_timeouts(api_socket: Path, text: str) -> None:
    connection = UnixHttp(api_socket)
    connection.putrequest("POST", "/runtime.v1.RuntimeService/Version")
    for name, value in (("content-type", "application/json"), ("content-length", "2")):
        connection.putheader(name, value)
    connection.putheader("connect-timeout-ms", text.encode())
    connection.endheaders(b"{}")
    answer = connection.getresponse()
    assert (answer.status, error_of(answer.read())[0]) == (400, "invalid_argument")
    connection.close()


def test_a_call_that_takes_too_long(api: ApiServer, api_socket: Path) -> None:
    """The client is told in time; the call itself goes on to its end."""
    begun = time.monotonic()
    body = {"containerId": "x", "cmd": ["wait"]}
    status, _, answer = post(api_socket, "ExecSync", body, connect_timeout_ms="300")
    assert (status, error_of(answer)[0]) == (504, "deadline_exceeded")
    assert time.monotonic() - begun >= 0.3
    api.runtime.release.set()


def test_gzip_both_ways(api_socket: Path) -> None:
    body = gzip.compress(json.dumps({"filter": {"id": "500"}}).encode())
    status, headers, answer = post(
        api_socket, "ListContainers", body, content_encoding="gzip", accept_encoding="br, gzip"
    )
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert len(json.loads(gzip.decompress(answer))["containers"]) == 500
    _, headers, _ = post(api_socket, "Version", {}, accept_encoding="gzip")
    assert "content-encoding" not in headers


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code"),
    [
        (b"{}", "br", 501, "unimplemented"),
        (b"{}", "gzip, gzip", 501, "unimplemented"),
        (b"{}", "gzip", 400, "invalid_argument"),
        (gzip.compress(b"{}")[:-4], "gzip", 400, "invalid_argument"),
        (gzip.compress(b" " * 5_000_000 + b"{}"), "gzip", 413, "resource_exhausted"),
        (b" " * 4_200_000 + b"{}", "identity", 413, "resource_exhausted"),
        (b" " * 5_300_000 + b"{}", "identity", 413, "resource_exhausted"),
    ],
)
def test_bad_bodies(api_socket: Path, body: bytes, encoding: str, status: int, code: str) -> None:
    answer = post(api_socket, "Version", body, content_encoding=encoding)
    assert (answer[0], error_of(answer[2])[0]) == (status, code)
    if status == 501:
        assert answer[1]["accept-encoding"] == "gzip"


# --- server streams ---------------------------------------------------------------------------


def stream(path: Path, method: str, body: bytes, **headers: str) -> list[tuple[int, Any]]:
    status, found, answer = post(path, method, body, content_type=STREAM, **headers)
    assert (status, found["content-type"]) == (200, STREAM)
    return list(envelopes(answer))


def test_server_stream(api_socket: Path) -> None:
    found = stream(api_socket, "StreamContainers", envelope(b"{}"))
    assert [flags for flags, _ in found] == [0, 0, 0, 2]
    assert found[0][1]["containers"][0]["id"] == f"{0:064d}" * 10
    assert found[-1][1] == {}


def test_an_error_comes_at_the_end(api_socket: Path) -> None:
    body = b'{"filter":{"id":"2","podSandboxId":"break"}}'
    found = stream(api_socket, "StreamContainers", envelope(body))
    assert [flags for flags, _ in found] == [0, 0, 2]
    assert found[-1][1] == {"error": {"code": "not_found", "message": "the pod went away"}}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_argument"),
        (b"{}", "invalid_argument"),
        (envelope(b"{"), "invalid_argument"),
        (envelope(b"{}") + b"x", "invalid_argument"),
        (envelope(b"{}") * 2, "invalid_argument"),
        (envelope(b"{}", 1), "invalid_argument"),
        (envelope(b"{}", 2), "invalid_argument"),
        (struct.pack(">BI", 0, 2**32 - 1), "invalid_argument"),
        (envelope(b'{"filter":{"id":5}}'), "invalid_argument"),
    ],
)
def test_bad_envelopes(api_socket: Path, body: bytes, code: str) -> None:
    ((flags, end),) = stream(api_socket, "StreamContainers", body)
    assert (flags, end["error"]["code"]) == (2, code)


def test_compressed_envelopes(api_socket: Path) -> None:
    body = envelope(gzip.compress(b'{"filter":{"id":"2"}}'), 1)
    found = stream(
        api_socket,
        "StreamContainers",
        body,
        connect_content_encoding="gzip",
        connect_accept_encoding="gzip",
    )
    assert [flags for flags, _ in found] == [0, 0, 2]


def test_a_stream_that_takes_too_long(api: ApiServer, api_socket: Path) -> None:
    found = stream(api_socket, "GetContainerEvents", envelope(b"{}"), connect_timeout_ms="300")
    assert [flags for flags, _ in found] == [0, 0, 2]
    assert found[-1][1]["error"]["code"] == "deadline_exceeded"
    assert api.runtime.events[0].closed.wait(60)


def test_a_client_that_goes_ends_its_stream(api: ApiServer, api_socket: Path) -> None:
    connection = UnixHttp(api_socket)
    path = "/runtime.v1.RuntimeService/GetContainerEvents"
    connection.request("POST", path, envelope(b"{}"), {"content-type": STREAM})
    answer = connection.getresponse()
    # Whoever lists after the head of the answer has come misses nothing between the two.
    assert len(api.runtime.events) == 1
    assert b"c1" in answer.read(20 + 30)
    assert not api.runtime.events[0].closed.is_set()
    answer.close()
    connection.close()
    assert api.runtime.events[0].closed.wait(60)


def test_streams_are_bounded(api: ApiServer, api_socket: Path) -> None:
    held: list[UnixHttp] = []
    for _ in range(64):
        connection = UnixHttp(api_socket)
        path = "/runtime.v1.RuntimeService/GetContainerEvents"
        connection.request("POST", path, envelope(b"{}"), {"content-type": STREAM})
        connection.getresponse()
        held.append(connection)
    limit = time.monotonic() + 60
    while len([e for e in api.runtime.events if e.count == 2]) < 64 and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.2)  # the second item is out: all of them wait for a third
    ((_, end),) = stream(api_socket, "GetContainerEvents", envelope(b"{}"))
    assert end["error"]["code"] == "resource_exhausted"
    assert post(api_socket, "Version", {})[0] == 200
    for connection in held:
        connection.close()


# --- who waits, and who does not ----------------------------------------------------------------


def test_long_calls_do_not_hold_up_others(api: ApiServer, api_socket: Path) -> None:
    """64 execs that do not end hold their own threads only: stop and status get through."""
    threads = [
        threading.Thread(target=post, args=(api_socket, "ExecSync", {"cmd": ["wait"]}))
        for _ in range(70)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    begun = time.monotonic()
    assert post(api_socket, "StopContainer", {"containerId": "x"})[0] == 200
    assert post(api_socket, "Version", {})[0] == 200
    assert time.monotonic() - begun < 20  # the others' release comes after it, or after 30 s
    api.runtime.release.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_a_graceful_stop(api: ApiServer, api_socket: Path) -> None:
    """A call that runs ends well, a stream is told, an idle connection is closed."""
    found: list[Any] = []

    def slow() -> None:
        body = {"containerId": "slow", "timeout": 600}
        found.append(post(api_socket, "StopContainer", body)[0])

    def events() -> None:
        found.append(stream(api_socket, "GetContainerEvents", envelope(b"{}"))[-1][1])

    idle = UnixHttp(api_socket)
    idle.connect()
    threads = [threading.Thread(target=slow), threading.Thread(target=events)]
    for thread in threads:
        thread.start()
    wait_until(lambda: bool(api.runtime.calls and api.runtime.events), "both to be asked")
    begun = time.monotonic()
    api.stop()
    assert time.monotonic() - begun < 30
    for thread in threads:
        thread.join(60)
    assert idle.sock.recv(1) == b""
    idle.close()
    assert 200 in found
    assert any(isinstance(one, dict) and one["error"]["code"] == "unavailable" for one in found)
    assert not api_socket.exists()
