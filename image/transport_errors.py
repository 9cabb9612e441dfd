"""What went wrong between us and a registry, in words.

What belongs here: from the exceptions of requests, urllib3, http.client, ssl and the kernel to one line that
tells a user one failure from another. What must not: when to try again (transport.py).
"""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator

import requests
import urllib3

from scow.image.digest import quote
from scow.native.errors import RegistryError

_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


class TransportError(RegistryError):
    """No usable answer; `is_transient` tells whether another try may help."""

    def __init__(
        self, message: str, *, hint: str | None = None, is_transient: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.is_transient = is_transient


def explain(error: BaseException, host: str, *, was_reached: bool = False) -> TransportError:
    """What happened, in words that tell a user one failure from another.

    Whoever answered before (`was_reached`) is worth another try: a network comes and goes.
    """
    causes = list(_causes(error))
    who = f"registry {quote(host)}"
    where = "check host and port, this host's network and firewall, and whether it needs a proxy"
    if any(isinstance(cause, requests.exceptions.ProxyError) for cause in causes):
        who = f"the proxy for {who}"
        where = "check the proxy in HTTPS_PROXY and HTTP_PROXY; NO_PROXY names hosts that need none"
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return _explain_tls(cause, who)
        if isinstance(cause, socket.gaierror):
            return TransportError(
                f"cannot find {who}: {(cause.strerror or 'no address').lower()}",
                hint="check the name, and this host's DNS",
                is_transient=was_reached or cause.errno == socket.EAI_AGAIN,
            )
        if isinstance(cause, ConnectionRefusedError):
            text = f"cannot connect to {who}: connection refused"
            return TransportError(text, hint=where, is_transient=was_reached)
    for cause in causes:
        if isinstance(cause, requests.exceptions.ConnectTimeout):
            text = f"cannot connect to {who}: no answer (timeout)"
            return TransportError(text, hint=where, is_transient=was_reached)
        if isinstance(cause, TimeoutError | urllib3.exceptions.ReadTimeoutError):
            return TransportError(f"{who} stopped answering (timeout)", is_transient=True)
        if isinstance(cause, ConnectionError | http.client.IncompleteRead):
            return closed_early(who)
        if isinstance(cause, OSError) and cause.errno:
            return TransportError(
                f"cannot talk to {who}: {(cause.strerror or '').lower()}",
                hint=where if cause.errno in _UNREACHABLE else None,
                is_transient=was_reached and cause.errno in _UNREACHABLE,
            )
    for cause in causes:
        if isinstance(cause, urllib3.exceptions.IncompleteRead):
            return closed_early(who)
        if isinstance(cause, http.client.HTTPException | urllib3.exceptions.InvalidHeader):
            text = " ".join(str(cause).split())
            return TransportError(f"{who} sent a malformed answer: {quote(text, 100)}")
    text = " ".join(str(causes[-1]).split())  # the innermost, without what urllib3 put around it
    return TransportError(f"cannot talk to {who}: {quote(text, 200)}")


def closed_early(who: str) -> TransportError:
    """The error for an answer that ends before its end."""
    return TransportError(f"{who} closed the connection too early", is_transient=True)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was made of; urllib3 and requests nest in three different ways."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen or len(seen) > 32:
            continue
        seen.add(id(current))
        yield current
        nested = [*current.args, getattr(current, "reason", None)]
        nested += [current.__cause__, current.__context__]
        waiting += [e for e in nested if isinstance(e, BaseException)]


_CERTIFICATE_FAULTS = {
    9: ("is not valid yet", "check this host's clock"),
    10: ("has expired", "check this host's clock, or renew the certificate"),
    18: ("is self-signed", "put its CA into /etc/scow/certs.d/HOST/ca.crt"),
    19: ("is signed by an unknown CA", "put the CA into /etc/scow/certs.d/HOST/ca.crt"),
    20: ("is signed by an unknown CA", "put the CA into /etc/scow/certs.d/HOST/ca.crt"),
    62: ("is for another host name", None),
    64: ("is for another address", None),
}


_CLIENT_CERTIFICATE_ALERTS = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)


def _explain_tls(error: ssl.SSLError, who: str) -> TransportError:
    if isinstance(error, ssl.SSLCertVerificationError):
        fault, hint = _CERTIFICATE_FAULTS.get(
            error.verify_code, (f"is not trusted: {error.verify_message}", None)
        )
        return TransportError(f"the certificate of {who} {fault}", hint=hint)
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"):
        return TransportError(
            f"{who} does not speak TLS",
            hint="it may be a plain HTTP registry; scow uses HTTP only where explicitly allowed",
        )
    if error.reason in _CLIENT_CERTIFICATE_ALERTS:
        return TransportError(
            f"{who} wants a client certificate, or another one",
            hint="put it into /etc/scow/certs.d/HOST/ as client.cert and client.key",
        )
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return TransportError(f"{who} closed the TLS connection too early", is_transient=True)
    return TransportError(f"TLS with {who} failed: {(error.reason or 'error').lower()}")
