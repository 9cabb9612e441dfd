"""TLS towards registries: whom we trust, and what we prove ourselves with.

What belongs here: contexts, and the files that administrators set up for hosts. What must not:
connections (transport.py) and which host is asked (hosts.py).
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from scow.native.errors import RegistryError

CERTIFICATE_DIRS = (
    "/etc/scow/certs.d",
    "/etc/containerd/certs.d",
    "/etc/docker/certs.d",
    "/etc/containers/certs.d",
)
SYSTEM_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of certificates in PEM."""

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()  # (certificate, key); may be one file

    def __add__(self, other: TlsFiles) -> TlsFiles:
        return TlsFiles(self.ca + other.ca, self.client + other.client)


NO_FILES = TlsFiles()


def find_tls_files(host: str) -> TlsFiles:
    """What `certs.d/HOST[:PORT]` has: `*.crt` are CAs, `*.cert` with `*.key` are for the client."""
    found = NO_FILES
    for base in CERTIFICATE_DIRS:
        directory = os.path.join(base, host)
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        paths = [os.path.join(directory, name) for name in names]
        found += TlsFiles(
            tuple(path for path in paths if path.endswith(".crt")),
            tuple((p, p.removesuffix(".cert") + ".key") for p in paths if p.endswith(".cert")),
        )
    return found


def make_tls_context(tls_verify: bool, files: TlsFiles) -> ssl.SSLContext:
    """A context that trusts the system's CAs and those of `files`, and shows the latter's client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls_verify:
        import urllib3

        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    elif os.path.exists(SYSTEM_CA_FILE) or "SSL_CERT_FILE" in os.environ:
        context.load_default_certs()
    else:
        import certifi

        context.load_verify_locations(certifi.where())
    path = ""
    try:
        for path in files.ca:
            context.load_verify_locations(path)
        for path, key in files.client:
            context.load_cert_chain(path, key, password="")  # or OpenSSL asks at the terminal
    except (OSError, ssl.SSLError) as e:
        raise RegistryError(f"cannot use certificate '{path}': {e.strerror or e}") from e
    return context
