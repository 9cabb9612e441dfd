"""`scow serve` as a process: systemd's ways, mutual TLS, the command line's client, its end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from fixtures.api import post
from fixtures.serving import SCOW, serving
from scow.cri.client import Client, ClientTls, Unavailable
from scow.native.errors import DeadlineExceeded, InvalidArgument, NotFound

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(scow_root: Path, scow_run: Path) -> dict[str, str]:
    return {**os.environ, "SCOW_ROOT": str(scow_root), "SCOW_RUN": str(scow_run)}


def scow(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCOW, *words], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_serve_and_call(environment: dict[str, str], scow_run: Path) -> None:
    with serving(environment) as service:
        service.wait_for("stream URLs only")
        path = scow_run / "scow.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        done = scow(environment, "call", "Version")
        assert (done.returncode, json.loads(done.stdout)["runtimeName"]) == (0, "scow")
        done = scow(environment, "--host", f"unix://{path}", "call", "ListImages", "{}")
        assert (done.returncode, done.stdout) == (0, "{}\n")
        done = scow(environment, "call", "ContainerStatus", '{"containerId":"0123"}')
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.startswith("scow: no such")
        second = scow(environment, "serve")
        assert (second.returncode, "answers there already" in second.stderr) == (125, True)
        post(path, "StopPodSandbox", {"podSandboxId": "0123"})
        begun = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - begun < 30
        assert not path.exists()
    rest = "".join(service.lines)
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["call", "Nope"], "CRI has no method 'Nope'"),
        (["call", "Version", "{"], "the body is not JSON"),
        (["call", "Version", "[]"], "must be an object"),
        (["call", "StopContainer", '{"timeout": "x"}'], "timeout: "),
        (["call", "--timeout", "0", "Version"], "--timeout is a number of seconds"),
        (["call", "Version"], "cannot reach the service at 'unix:///"),
        (["--host", "unix:///nonexistent", "call", "Version"], "'unix:///nonexistent': No such file"),
        (["--host", "tcp://127.0.0.1:1", "call", "Version"], "needs a client certificate"),
        (["--host", "ftp://x", "call", "Version"], "is no address of a service"),
        (["--host", "http://127.0.0.1:1", "call", "Version"], "Connection refused"),
        (["--host", "unix:///nonexistent", "run", "x"], "works on this machine only"),
        (["--host"], "option --host needs a value: --host ADDRESS"),
    ],
)  # fmt: skip
def test_calls_that_cannot_be_made(
    environment: dict[str, str], words: list[str], text: str
) -> None:
    done = scow(environment, *words)
    assert (done.returncode, done.stdout) == (125, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_request_from_stdin_and_a_stream(environment: dict[str, str]) -> None:
    with serving(environment) as service:
        service.wait_for("stream URLs only")
        done = subprocess.run(
            [SCOW, "call", "ListImages", "-"], env=environment, input="{}", text=True,
            capture_output=True, check=True,
        )  # fmt: skip
        assert done.stdout == "{}\n"
        assert scow(environment, "call", "StreamContainers").stdout == "{}\n"
        done = scow(environment, "call", "--timeout", "1", "GetContainerEvents")
        assert (done.returncode, "its time is over" in done.stderr) == (125, True)


def test_who_changes_something_is_logged(environment: dict[str, str], scow_run: Path) -> None:
    with serving(environment) as service:
        service.wait_for("stream URLs only")
        post(scow_run / "scow.sock", "Version", {})
        post(scow_run / "scow.sock", "StopPodSandbox", {"podSandboxId": "0123"})
        line = service.wait_for("Sandbox")
        assert f"pid {os.getpid()} uid 0 StopPodSandbox 200" in line
        assert "Version" not in "".join(service.lines)


def test_killed_and_started(environment: dict[str, str], scow_run: Path) -> None:
    with serving(environment) as service:
        service.wait_for("stream URLs only")
        service.process.kill()
        service.process.wait(10)
        assert (scow_run / "scow.sock").exists()
    with serving(environment) as service:
        service.wait_for("stream URLs only")
        assert post(scow_run / "scow.sock", "Version", {})[0] == 200


def test_socket_activation_and_readiness(
    environment: dict[str, str], scow_run: Path, tmp_path: Path
) -> None:
    """Systemd's part: the socket is there before us and after us, and we say when we are ready."""
    path = scow_run / "scow.sock"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
        socket.socket(socket.AF_UNIX) as held,
    ):
        told.bind(str(tmp_path / "notify"))
        told.settimeout(20)
        held.bind(str(path))
        held.listen()
        environment = {**environment, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with serving(environment, passed=held.fileno()) as service:
            assert told.recv(100) == b"READY=1"
            assert post(path, "Version", {})[0] == 200
            assert service.stop() == 0
            assert told.recv(100) == b"STOPPING=1"
        assert path.exists()


def test_units(tmp_path: Path) -> None:
    """What systemd thinks of our units, and that containers outlive the service."""
    if shutil.which("systemd-analyze") is None:
        pytest.fail("systemd-analyze is not installed")
    units = ROOT / "cri/systemd"
    text = (units / "scow.service").read_text()
    assert "\nDelegate=yes\n" in text
    assert "\nKillMode=process\n" in text
    (tmp_path / "scow.service").write_text(text.replace("/usr/local/bin/scow", str(SCOW)))
    shutil.copy(units / "scow.socket", tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "scow.service", tmp_path / "scow.socket"],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-l", "tcp://0.0.0.0:0"], "TCP needs mutual TLS"),
        (["-l", "tcp://127.0.0.1:0"], "TCP needs mutual TLS"),
        (["-l", "http://0.0.0.0:0"], "not a loopback address"),
        (["-l", "http://localhost:0"], "not a loopback address"),
        (["-l", "scow.sock"], "no address that scow knows"),
        (["--tls-cert", "/x"], "are given together"),
        (["--tls-cert", "/x", "--tls-key", "/y", "--tls-client-ca", "/z", "-l", "tcp://127.0.0.1:0"],
         "cannot use the TLS files"),
        (["--stream-port", "70000"], "--stream-port is 0 to 65535"),
        (["-l", "/proc/nope/scow.sock"], "cannot listen on '/proc/nope/scow.sock'"),
    ],
)  # fmt: skip
def test_bad_options(environment: dict[str, str], arguments: list[str], text: str) -> None:
    done = scow(environment, "serve", *arguments)
    assert done.returncode == 125
    assert text in done.stderr
    assert "Traceback" not in done.stderr


# --- mutual TLS -------------------------------------------------------------------------------


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server and a client of it, and a client of nobody."""
    at = tmp_path_factory.mktemp("tls")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ca", "stranger"):
        openssl("req", "-x509", *new_key, "-keyout", at / f"{name}.key", "-out", at / f"{name}.crt",
                "-subj", f"/CN={name}")  # fmt: skip
    for name in ("server", "client"):
        openssl("req", "-x509", *new_key, "-keyout", at / f"{name}.key", "-out", at / f"{name}.crt",
                "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
                "-CA", at / "ca.crt", "-CAkey", at / "ca.key")  # fmt: skip
    return at


def test_mutual_tls(environment: dict[str, str], certificates: Path) -> None:
    files = [certificates / name for name in ("server.crt", "server.key", "ca.crt")]
    names = ("--tls-cert", "--tls-key", "--tls-client-ca")
    options = [word for name, file in zip(names, files, strict=True) for word in (name, str(file))]
    with serving(environment, "-l", "tcp://127.0.0.1:0", *options) as service:
        line = service.wait_for(r"listening on https://")
        port = int(line.rpartition(":")[2])
        address = f"tcp://127.0.0.1:{port}"
        client_files = [str(certificates / name) for name in ("client.crt", "client.key", "ca.crt")]
        with Client(address, tls=ClientTls(*client_files)) as client:
            assert client.call("Version").runtime_name == "scow"
            assert client.text("/healthz") == "ok\n"
            client.call("StopPodSandbox", {"pod_sandbox_id": "0123"})
        assert "(client) StopPodSandbox 200" in service.wait_for("StopPodSandbox")
        done = scow(
            {**environment, **dict(zip(("SCOW_TLS_CERT", "SCOW_TLS_KEY", "SCOW_TLS_CA"), client_files, strict=True))},
            "--host", address, "call", "Version",
        )  # fmt: skip
        assert (done.returncode, "runtimeName" in done.stdout) == (0, True)
        stranger = [str(certificates / name) for name in ("stranger.crt", "stranger.key", "ca.crt")]
        with Client(address, tls=ClientTls(*stranger)) as client, pytest.raises(Unavailable):
            client.call("Version")
        with pytest.raises(InvalidArgument, match="needs a client certificate"):
            Client(address)
        plain = Client(f"http://127.0.0.1:{port}")
        with plain, pytest.raises(Unavailable):
            plain.call("Version")
        done_curl = subprocess.run(
            ["curl", "-sS", "--cacert", certificates / "ca.crt", f"https://127.0.0.1:{port}/healthz"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done_curl.returncode != 0
        assert "ok" not in done_curl.stdout


# --- the client's own ways ----------------------------------------------------------------------


@pytest.mark.usefixtures("api")
def test_client_calls(api_socket: Path) -> None:
    with Client(f"unix://{api_socket}") as client:
        assert client.call("ContainerStatus", {"container_id": "x"}).status.created_at == 2**60 + 1
        with pytest.raises(NotFound) as caught:
            client.call("ContainerStatus", {"container_id": "not-found"})
        assert (caught.value.message, caught.value.hint) == (
            "no container 'x'",
            "'scow ps' lists them",
        )
        with pytest.raises(DeadlineExceeded, match="not done within"):
            client.call("StopContainer", {"timeout": 600}, timeout_s=0.1)
        assert [len(m.containers) for m in client.stream("StreamContainers")] == [1, 1, 1]
        broken = {"filter": {"id": "1", "pod_sandbox_id": "break"}}
        with pytest.raises(NotFound, match="the pod went away"):
            list(client.stream("StreamContainers", broken))
        events = client.stream("GetContainerEvents")
        assert next(events).container_id == "c1"
        events.close()  # type: ignore[attr-defined]  # a generator
        assert client.call("Version").runtime_name == "scow"
        with pytest.raises(InvalidArgument, match="no method 'Nope'"):
            client.call("Nope")


def test_client_connects_again(api_socket: Path) -> None:
    from fixtures.api import ApiServer
    from scow.cri.api.listeners import open_listener

    with Client(str(api_socket)) as client:
        with pytest.raises(Unavailable, match="cannot reach"):
            client.call("Version")
        for _ in range(2):
            server = ApiServer([open_listener(str(api_socket), None)])
            assert client.call("Version").runtime_name == "scow"
            server.stop()
