"""Looking for images: Docker Hub's search, and the lists of other registries.

What belongs here: which of a registry's doors to ask, and what comes back. What must not: columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from urllib.parse import quote as quote_url
from urllib.parse import urlencode

import msgspec

from scow.image.credentials import Credentials
from scow.image.document import MAX_DOCUMENT_BYTES, decode_document
from scow.image.reference import DEFAULT_HOST, Reference, parse_reference
from scow.image.registry_list import RegistryLists
from scow.image.transport import Patience, Transport
from scow.native.errors import InvalidArgument, PermissionDenied, RegistryError

HUB_SEARCH = "https://index.docker.io"
MAX_RESULTS = 100  # what Docker Hub gives at once


@dataclass(frozen=True, slots=True)
class Found:
    """One repository."""

    name: str
    description: str = ""
    stars: int = 0
    is_official: bool = False
    is_automated: bool = False


class _Result(msgspec.Struct):
    name: str = ""
    description: str | None = None
    star_count: int = 0
    is_official: bool = False
    is_automated: bool = False


class _Answer(msgspec.Struct):
    results: list[_Result] | None = None


def search(
    term: str,
    limit: int,
    *,
    plain_http: bool = False,
    tls_verify: bool = True,
    credentials: Credentials | None = None,
    patience: Patience | None = None,
) -> list[Found]:
    """Repositories that `TERM` or `HOST/TERM` fits, best first.

    Docker Hub has a search; other registries may have the same one, or only a list of all they have.
    """
    host, term = _split(term)
    if host == DEFAULT_HOST:
        hub = Transport(HUB_SEARCH, tls_verify=tls_verify, patience=patience)
        try:
            found = _ask_search(hub, term, limit)
        finally:
            hub.close()
        if found is None:
            raise RegistryError("Docker Hub does not answer to a search")
        return found[:limit]
    registry = RegistryLists(
        Reference(host, "", None, None),
        plain_http=plain_http,
        tls_verify=tls_verify,
        credentials=credentials,
        patience=patience,
    )
    with registry:
        try:
            registry.ping()
        except PermissionDenied:
            pass  # a search may be open to all the same
        found = _ask_search(registry.transport, term, limit)
        if found is None:
            names = (name for name in registry.repositories() if term in name)
            found = [Found(name) for name in islice(names, limit)]
    prefix = f"{host}/"
    return [
        Found(
            f.name if f.name.startswith(prefix) else prefix + f.name,
            f.description,
            f.stars,
            f.is_official,
            f.is_automated,
        )
        for f in found[:limit]
    ]


def _split(term: str) -> tuple[str, str]:
    """`HOST/TERM` as (host, term). TERM is free text, or nothing: then everything fits."""
    first, slash, rest = term.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host = parse_reference(f"{first}/x").host
        return host, rest.removeprefix("library/") if host == DEFAULT_HOST else rest
    if not term:
        raise InvalidArgument("nothing to search for")
    return DEFAULT_HOST, term


def _ask_search(transport: Transport, term: str, limit: int) -> list[Found] | None:
    """Docker's search API version 1; None where there is no such."""
    query = urlencode({"q": term, "n": min(limit, MAX_RESULTS)}, quote_via=quote_url)
    with transport.get(f"{transport.base_url}/v1/search?{query}") as response:
        kind = response.headers.get("Content-Type", "")
        if response.status != 200 or "json" not in kind:
            return None
        data = response.read(MAX_DOCUMENT_BYTES)
    try:
        answer = decode_document(data, _Answer, "answer to a search")
    except InvalidArgument as e:
        raise RegistryError(e.message) from e
    return [
        Found(r.name, r.description or "", r.star_count, r.is_official, r.is_automated)
        for r in answer.results or []
        if r.name
    ]
