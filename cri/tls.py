"""TLS between the service and its clients: both sides prove who they are.

What belongs here: the one context that either side needs. What must not: sockets.
"""

from __future__ import annotations

import ssl

from scow.native.errors import InvalidArgument


def mutual_context(protocol: int, certificate: str, key: str, ca: str) -> ssl.SSLContext:
    """TLS 1.3 with our PEM certificate and key, for peers whose certificate is from `ca`."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        files = f"'{certificate}', '{key}', '{ca}'"
        raise InvalidArgument(f"cannot use the TLS files {files}: {error}") from error
    return context
