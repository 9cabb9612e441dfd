"""serve: the service behind HTTP, for an orchestrator or curl."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scow.cli.session import service, session
from scow.cli.table import Command, UsageError, Values, many, text

if TYPE_CHECKING:
    from scow.cri.api.listeners import TlsFiles
    from scow.cri.api.tokens import Tokens


def _serve(values: Values) -> int:
    from scow.cli.system import scow_version
    from scow.cri.api.serve import ServeOptions, serve

    tls = _tls(values)
    addresses = tuple(values.many("listen")) or (f"unix://{service().run}/scow.sock",)
    options = ServeOptions(
        addresses=addresses,
        version=scow_version(),
        tls=tls,
        stream_port=_stream_port(values.text("stream-port")),
        stream_url=values.text("stream-url"),
        debug=session.debug,
    )
    serve(options, _make_services)
    return 0


def _make_services(tokens: Tokens, stack: contextlib.ExitStack) -> Mapping[str, object]:
    from scow.cri.api.image_service import ImageService
    from scow.cri.api.runtime_service import RuntimeService

    runtime = RuntimeService(service(), tokens)
    stack.callback(runtime.close)
    return {"RuntimeService": runtime, "ImageService": ImageService(service())}


def _tls(values: Values) -> TlsFiles | None:
    from scow.cri.api.listeners import TlsFiles

    given = [values.text(name) for name in ("tls-cert", "tls-key", "tls-client-ca")]
    if not any(given):
        return None
    certificate, key, client_ca = given
    if not certificate or not key or not client_ca:
        raise UsageError("serve: --tls-cert, --tls-key and --tls-client-ca are given together")
    return TlsFiles(certificate, key, client_ca)


def _stream_port(value: str | None) -> int | None:
    if value == "none":
        return None
    if value is None or not (value.isascii() and value.isdigit() and int(value[:6]) < 65536):
        raise UsageError(f"serve: --stream-port is 0 to 65535, or 'none', not '{value}'")
    return int(value)


SERVE = Command(
    "serve",
    "Serve the API (CRI v1 as JSON over HTTP) until it is told to stop",
    _serve,
    description="Containers do not need the service: it can be stopped or killed and started at "
    "any time. Whoever can use the API is root on this machine: the unix socket is for root alone, "
    "and TCP needs client certificates. Sockets that systemd passes are served as well.",
    options=(
        many(
            "-l",
            "--listen",
            metavar="ADDRESS",
            help="Where: unix:///path, tcp://IP:PORT (mutual TLS), http://127.0.0.1:PORT (plain, "
            "loopback only); the default is scow.sock in the run directory",
        ),
        text("--tls-cert", metavar="FILE", help="Our certificate, PEM"),
        text("--tls-key", metavar="FILE", help="Its key"),
        text(
            "--tls-client-ca",
            metavar="FILE",
            help="The authority that clients' certificates must be from",
        ),
        text(
            "--stream-port",
            metavar="PORT",
            default="0",
            help="Loopback port for exec, attach and port-forward URLs; 0: any, 'none': no port",
        ),
        text("--stream-url", metavar="URL", help="What those URLs begin with, behind a proxy"),
    ),
    examples=(
        ("scow serve", "on /run/scow/scow.sock"),
        (
            "scow serve -l tcp://0.0.0.0:7443 --tls-cert s.crt --tls-key s.key --tls-client-ca ca.crt",
            "for other machines",
        ),
    ),
    needs_root="it runs containers",
)
