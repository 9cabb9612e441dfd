"""TLS towards registries: whom we trust, what each failure is called, and never a way around."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scow.image import hosts as hosts_module
from scow.image import tls
from scow.image.reference import parse_reference
from scow.image.registry import Registry
from scow.image.tls import NO_FILES, TlsFiles, make_tls_context
from scow.image.transport import Patience, Transport
from scow.image.transport_errors import TransportError
from scow.native.errors import NotFound, RegistryError

QUICK = Patience(connect_s=10, idle_s=10, attempts=2, backoff_s=0.01)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]  # set below
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        pass  # clients that do not trust us


def make_certificate(directory: Path, name: str, *names: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-out", certificate, "-subj", f"/CN={name}", "-days", "2",
         "-addext", "subjectAltName=" + ",".join(names)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path, "good", "IP:127.0.0.1", "DNS:localhost")


@pytest.fixture
def server(certificate: tuple[Path, Path]) -> Iterator[Server]:
    yield from serve(*certificate)


def serve(
    certificate: Path,
    key: Path,
    handler: type[Handler] = Handler,
    client_ca: Path | None = None,
) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), handler)
    server.seen = []  # type: ignore[attr-defined]  # for the tests
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if client_ca:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(client_ca)
    # The handshake happens in the connection's thread, or one silent client would stop the rest.
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def host_of(server: Server) -> str:
    return f"127.0.0.1:{server.server_port}"


@pytest.fixture
def certs_d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "certs.d"
    monkeypatch.setattr(tls, "CERTIFICATE_DIRS", (str(directory),))
    return directory


def get(server: Server, **options: bool) -> int:
    client = Transport(f"https://{host_of(server)}", patience=QUICK, **options)
    try:
        with client.get(f"https://{host_of(server)}/v2/") as response:
            return response.status
    finally:
        client.close()


def test_self_signed(server: Server, certs_d: Path) -> None:
    """F1: said as what it is."""
    with pytest.raises(TransportError, match="is self-signed") as caught:
        get(server)
    assert "certs.d" in (caught.value.hint or "")
    assert server.seen == []  # type: ignore[attr-defined]  # set in serve()
    assert get(server, tls_verify=False) == 404


def test_ca_of_the_administrator(
    server: Server, certs_d: Path, certificate: tuple[Path, Path]
) -> None:
    place = certs_d / host_of(server)
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes(certificate[0].read_bytes())
    assert get(server) == 404
    # With certificates set up, a loopback host is spoken to in HTTPS from the first byte.
    client = Registry(parse_reference(f"{host_of(server)}/a/b"), patience=QUICK)
    with client, pytest.raises(NotFound):
        client.head_manifest("latest")
    (place / "ca.crt").write_text("garbage")
    with pytest.raises(RegistryError, match=r"cannot use certificate .*ca\.crt"):
        get(server)


def test_client_certificates_are_for_their_host_only(
    tmp_path: Path, certs_d: Path, certificate: tuple[Path, Path]
) -> None:
    """A redirect to somebody else: our CA is good there, our certificate is not shown."""
    shown: list[tuple[int, bool]] = []

    class Showing(Handler):
        def do_GET(self) -> None:
            port = self.server.server_address[1]
            shown.append((port, bool(self.connection.getpeercert())))  # type: ignore[attr-defined]  # TLS
            elsewhere = self.server.elsewhere  # type: ignore[attr-defined]  # set below
            self.send_response(307 if elsewhere else 404)
            if elsewhere:
                self.send_header("Location", f"https://{elsewhere}/x")
            self.send_header("Content-Length", "0")
            self.end_headers()

    client = make_certificate(tmp_path, "client", "DNS:client")
    with contextlib.ExitStack() as stack:
        one, two = (
            stack.enter_context(contextlib.contextmanager(serve)(*certificate, Showing, client[0]))
            for _ in range(2)
        )
        one.elsewhere, two.elsewhere = host_of(two), ""  # type: ignore[attr-defined]  # for Showing
        files = TlsFiles((str(certificate[0]),), ((str(client[0]), str(client[1])),))
        transport = Transport(f"https://{host_of(one)}", patience=QUICK, tls_files=files)
        transport.get(f"https://{host_of(one)}/x").close()
        # A host with a directory of its own gets what is in that.
        place = certs_d / host_of(two)
        place.mkdir(parents=True)
        (place / "mine.cert").write_bytes(client[0].read_bytes())
        (place / "mine.key").write_bytes(client[1].read_bytes())
        transport.get(f"https://{host_of(one)}/x").close()
        transport.close()
        ports = one.server_port, two.server_port
        assert shown == [(ports[0], True), (ports[1], False), (ports[0], True), (ports[1], True)]


def test_wrong_name(tmp_path: Path, certs_d: Path) -> None:
    """F1: said as what it is."""
    certificate, key = make_certificate(tmp_path, "other", "DNS:other.example")
    for server in serve(certificate, key):
        place = certs_d / host_of(server)
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes(certificate.read_bytes())
        with pytest.raises(TransportError, match="is for another"):
            get(server)


CA_CONFIG = """
[ca]
default_ca = it
[it]
database = {directory}/database
new_certs_dir = {directory}
rand_serial = yes
default_md = sha256
policy = policy
x509_extensions = extensions
[policy]
commonName = supplied
[extensions]
subjectAltName = IP:127.0.0.1
"""


def make_dated(directory: Path, start: str, end: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is good between two times (YYYYMMDDHHMMSSZ)."""
    config, key = directory / "ca.cnf", directory / "dated.key"
    config.write_text(CA_CONFIG.format(directory=directory))
    (directory / "database").touch()
    request, certificate = directory / "dated.csr", directory / "dated.crt"
    for argv in (
        ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-subj", "/CN=dated", "-out", request],
        ["ca", "-batch", "-selfsign", "-config", config, "-keyfile", key, "-in", request,
         "-startdate", start, "-enddate", end, "-notext", "-out", certificate],
    ):  # fmt: skip
        subprocess.run(["openssl", *argv], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        ("20200101000000Z", "20210101000000Z", "has expired"),
        ("20900101000000Z", "20910101000000Z", "is not valid yet"),  # or our clock is at 1970
    ],
)
def test_dates(tmp_path: Path, certs_d: Path, start: str, end: str, says: str) -> None:
    """F1: and the clock may be at fault."""
    certificate, key = make_dated(tmp_path, start, end)
    for server in serve(certificate, key):
        place = certs_d / host_of(server)
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes(certificate.read_bytes())
        with pytest.raises(TransportError, match=says) as caught:
            get(server)
        assert "clock" in (caught.value.hint or "")


def test_loopback_registry_with_tls_is_found_out(server: Server, certs_d: Path) -> None:
    # It is tried in HTTP first; what cannot be HTTP is tried in HTTPS, and then the rules hold.
    client = Registry(parse_reference(f"{host_of(server)}/a/b"), patience=QUICK)
    with client, pytest.raises(RegistryError, match="is self-signed"):
        client.head_manifest("latest")
    client = Registry(parse_reference(f"{host_of(server)}/a/b"), patience=QUICK, tls_verify=False)
    with client, pytest.raises(NotFound):
        client.head_manifest("latest")


def test_tls_failure_never_leads_to_http(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_module, "is_loopback_host", lambda host: False)
    client = Registry(parse_reference(f"{host_of(server)}/a/b"), patience=QUICK)
    with client, pytest.raises(RegistryError, match="self-signed"):
        client.head_manifest("latest")
    assert client.transport.base_url.startswith("https://")
    assert server.seen == []  # type: ignore[attr-defined]  # set in serve()


def test_no_tls_before_1_2() -> None:
    """F1: whatever the OpenSSL of the distribution would take."""
    assert make_tls_context(True, NO_FILES).minimum_version == ssl.TLSVersion.TLSv1_2
