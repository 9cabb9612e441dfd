"""Proving who we are to a registry: challenges and tokens.

What belongs here: the WWW-Authenticate grammar (RFC 9110 section 11) and Docker's token flow
(distribution-spec auth). What must not: where passwords are kept (credentials.py). Passwords and
tokens go to the registry itself, or to a realm that targets.py lets pass; they are in no message.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec

from scow.image.credentials import Credentials
from scow.image.digest import quote
from scow.image.document import decode_document
from scow.image.transport_errors import TransportError
from scow.native.errors import InvalidArgument, PermissionDenied, RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scow.image.transport import Response, Transport

MAX_TOKEN_BYTES = 64 << 10
MAX_CHALLENGE_BYTES = 16 << 10
CLIENT_ID = "scow"
DEFAULT_LIFETIME_S = 60  # distribution-spec: what holds where expires_in is missing
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))')
_SCHEME = re.compile(rf"({_TOKEN})(?=[ \t,]|$)")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a server offers; names of scheme and parameters in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Parse a WWW-Authenticate header with any number of challenges.

    Raises RegistryError where the quoting is broken: guessing where a realm ends would be guessing
    whom to give a password.
    """
    if len(header) > MAX_CHALLENGE_BYTES:
        raise RegistryError("the registry sent an endless WWW-Authenticate header")
    found: list[Challenge] = []
    position = _skip(header, 0)
    while position < len(header):
        parameter = _PARAMETER.match(header, position)
        if parameter is not None and found:
            name = parameter[1].lower()
            value = parameter[3] if parameter[2] is None else _unescape(parameter[2])
            if name in found[-1].parameters:
                raise _malformed(header)
            found[-1].parameters[name] = value
            position = parameter.end()
        else:
            scheme = _SCHEME.match(header, position)
            if scheme is None:
                raise _malformed(header)
            found.append(Challenge(scheme[1].lower(), {}))
            position = _skip_data(header, scheme.end())
        if position < len(header) and header[position] not in ", \t":
            raise _malformed(header)
        position = _skip(header, position)
    return found


def _skip_data(header: str, position: int) -> int:
    """Step over the one blob of data that Negotiate and NTLM put where others have parameters."""
    start = position + len(header[position:]) - len(header[position:].lstrip(" \t"))
    if _PARAMETER.match(header, start) is not None:
        return position
    data = _TOKEN68.match(header, start)
    return position if data is None else data.end()


def _skip(header: str, position: int) -> int:
    while position < len(header) and header[position] in ", \t":
        position += 1
    return position


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _malformed(header: str) -> RegistryError:
    return RegistryError(f"the registry sent a malformed WWW-Authenticate header: {quote(header)}")


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None
    refresh_token: str | None = None


class Authenticator:
    """The Authorization header for one host, per scope; safe to use from several threads.

    A scope is one or more of the distribution-spec's (`repository:NAME:pull,push`), parted by spaces.
    """

    def __init__(
        self, transport: Transport, host: str, find_credentials: Callable[[], Credentials | None]
    ) -> None:
        self.wants_identity = False  # ask for what can be kept instead of the password
        self.identity_token = ""  # what the registry gave, then or when it changes the one it gave
        self._transport = transport
        self._host = host
        self._find_credentials = find_credentials
        self._lock = threading.Lock()
        self._headers: dict[str, tuple[str, float]] = {}  # scope -> header, good until (monotonic)

    def header(self, scope: str) -> str:
        """What to send along, as far as known; "" before the registry has asked."""
        header, until = self._headers.get(scope, ("", 0.0))
        return header if time.monotonic() < until else ""

    def answer(self, refused: Response, scope: str, sent: str) -> str:
        """The header for another try after a 401 that came for `sent`.

        Raises PermissionDenied when there is nothing else to try.
        """
        challenges = parse_challenges(refused.headers.get("WWW-Authenticate", ""))
        with self._lock:
            current = self.header(scope)
            if current and current != sent:
                return current  # another thread was here while we waited
            header, lifetime_s = self._respond(challenges, scope)
            if header == sent:
                raise self.denied("the registry refuses the credentials")
            self._headers[scope] = (header, time.monotonic() + lifetime_s)
            return header

    def denied(self, why: str) -> PermissionDenied:
        """An error about this registry with the usual way out."""
        return PermissionDenied(
            f"registry {quote(self._host)}: {why}",
            hint=f"log in: scow login {self._host}",
        )

    def _respond(self, challenges: list[Challenge], scope: str) -> tuple[str, float]:
        by_scheme = {c.scheme: c for c in reversed(challenges)}
        if "bearer" in by_scheme:
            credentials = self._find_credentials()
            if credentials is not None and credentials.registry_token:
                return f"Bearer {_clean(credentials.registry_token)}", 3600.0
            return self._fetch_token(by_scheme["bearer"], scope, credentials)
        if "basic" in by_scheme:
            credentials = self._find_credentials()
            if credentials is None or not credentials.username:
                raise self.denied("authentication required")
            if credentials.identity_token and not credentials.password:
                raise self.denied("it wants a password, and the login is a token")
            return basic_header(credentials), float("inf")
        if not challenges:
            raise self.denied("authentication required, but it does not say how")
        offered = ", ".join(quote(c.scheme, 32) for c in challenges[:4])
        raise self.denied(f"it asks for {offered}, which scow does not speak")

    def _fetch_token(
        self, challenge: Challenge, scope: str, credentials: Credentials | None
    ) -> tuple[str, float]:
        realm = challenge.parameters.get("realm", "")
        self._transport.check(realm, f"authentication realm of registry {quote(self._host)}")
        # Our own scope, whatever the challenge says: it is not for the registry to widen it.
        service = challenge.parameters.get("service", "")
        query = {"service": service} if service else {}
        if credentials is not None and credentials.identity_token:
            identity = self.identity_token or credentials.identity_token
            proof = {"grant_type": "refresh_token", "refresh_token": identity}
            response = self._transport.post(realm, self._form(query, scope, proof))
            return self._read_token(response, "the login has ended, or was taken back")
        login = credentials if credentials is not None and credentials.username else None
        return self._get(realm, query, scope, login)

    def _get(
        self, realm: str, query: dict[str, str], scope: str, login: Credentials | None
    ) -> tuple[str, float]:
        """By Docker's older form; by OAuth2's where the service knows that one only."""
        refusal = "the user name or password is wrong" if login else "authentication required"
        authorization = basic_header(login) if login else ""
        more = {"account": login.username} if login else {}
        if login and self.wants_identity:
            more |= {"client_id": CLIENT_ID, "offline_token": "true"}
        # Several scopes are one parameter each.
        pairs = [*query.items(), *more.items(), *(("scope", one) for one in scope.split())]
        url = realm + ("&" if "?" in realm else "?") + urlencode(pairs)
        attempts = self._transport.patience.attempts
        for attempt in range(attempts):
            with self._transport.get(url, authorization=authorization) as response:
                if login and response.status in (404, 405):
                    break
                try:
                    return self._parse_token(response, refusal)
                except TransportError as e:  # the answer was cut
                    if not e.is_transient or attempt + 1 == attempts:
                        raise
            self._transport.pause(attempt)
        assert login is not None  # the loop ends in no other way
        proof = {"username": login.username, "password": login.password}
        form = self._form(query, scope, {"grant_type": "password", **proof})
        return self._read_token(self._transport.post(realm, form), refusal)

    def _form(self, query: dict[str, str], scope: str, proof: dict[str, str]) -> dict[str, str]:
        """OAuth2's: several scopes are one list with spaces."""
        offline = {"access_type": "offline"} if self.wants_identity else {}
        return {**query, "scope": scope, **proof, "client_id": CLIENT_ID, **offline}

    def _read_token(self, response: Response, refusal: str) -> tuple[str, float]:
        with response:
            return self._parse_token(response, refusal)

    def _parse_token(self, response: Response, refusal: str) -> tuple[str, float]:
        if response.status in (400, 401, 403):
            raise self.denied(refusal)
        if response.status != 200:
            raise RegistryError(
                f"token service {quote(response.host)} of registry {quote(self._host)} "
                f"answered {response.status}",
                hint="try again later" if response.status in (429, 500, 502, 503, 504) else None,
            )
        try:
            answer = decode_document(
                response.read(2 * MAX_TOKEN_BYTES),
                _TokenAnswer,
                f"token of service {quote(response.host)} for registry {quote(self._host)}",
            )
        except InvalidArgument as e:
            raise RegistryError(e.message) from e
        token = answer.token or answer.access_token
        if not token or len(token) > MAX_TOKEN_BYTES:
            raise RegistryError(f"token service {quote(response.host)} sent no usable token")
        if answer.refresh_token and len(answer.refresh_token) <= MAX_TOKEN_BYTES:
            self.identity_token = answer.refresh_token
        lifetime_s = DEFAULT_LIFETIME_S if answer.expires_in is None else answer.expires_in
        # A little early, so that it does not end between here and there.
        return f"Bearer {_clean(token)}", max(lifetime_s - 5, 5)


def basic_header(credentials: Credentials) -> str:
    """The Authorization header of RFC 7617."""
    pair = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(pair).decode("ascii")


def _clean(token: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise RegistryError("the registry's token holds characters that no header may hold")
    return token
