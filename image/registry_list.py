"""One registry, as the distribution-spec describes it; its lists.

What belongs here: tags, repositories and referrers, which come in pages. What must not: showing them.
A registry is a stranger: its pages are counted, and lead to nobody else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Self
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec

from scow.image.digest import Digest, quote
from scow.image.document import MAX_DOCUMENT_BYTES, decode_document
from scow.image.manifest import Descriptor, Index, parse_document
from scow.image.media_types import OCI_INDEX
from scow.image.registry import MAX_ERROR_BYTES, Registry
from scow.native.errors import InvalidArgument, NotFound, RegistryError

MAX_PAGES = 1000
PAGE_ENTRIES = 1000
_LINK = re.compile(r'<([^<>]*)>((?:[^,"]|"[^"]*")*)')
_NEXT = re.compile(r';\s*rel\s*=\s*"?next"?\s*(?:;|$)', re.IGNORECASE)


class _Page(msgspec.Struct):
    tags: list[str] | None = None
    repositories: list[str] | None = None


class RegistryLists(Registry):
    """A `Registry` that is asked what it has; a context, as it holds connections."""

    def __enter__(self) -> Self:
        return self

    @property
    def _base_url(self) -> str:
        """What the paths of requests follow."""
        path = self.reference.path
        return self.origin.api_url + (f"{path}/" if path else "")

    def ping(self) -> None:
        """Raise unless this is a registry that lets us in."""
        with self._request("GET", "", {}, "") as response:
            if response.status == 200:
                return
            host = quote(self.reference.host)
            if response.status == 404:
                raise RegistryError(f"{host} is not a registry: it has no /v2/")
            raise RegistryError(f"registry {host} answered status {response.status}")

    def tags(self) -> Iterator[str]:
        """The tags of the repository, in the registry's order."""
        for data in self._pages(f"tags/list?n={PAGE_ENTRIES}", self._scope):
            yield from self._page(data).tags or []

    def repositories(self) -> Iterator[str]:
        """Every repository of the registry; many registries keep that to themselves."""
        for data in self._pages(f"_catalog?n={PAGE_ENTRIES}", "registry:catalog:*"):
            yield from self._page(data).repositories or []

    def referrers(self, subject: Digest, artifact_type: str = "") -> list[Descriptor]:
        """The manifests that say they belong to `subject`: signatures, lists of parts."""
        query = "?" + urlencode({"artifactType": artifact_type}) if artifact_type else ""
        found: list[Descriptor] = []
        try:
            for data in self._pages(f"referrers/{subject}{query}", self._scope):
                found += self.read_referrers(data)
        except NotFound:  # also what older registries say about a word that they do not know
            found = self.listed_referrers(subject)
        return [d for d in found if artifact_type in ("", d.artifact_type)]

    def listed_referrers(self, subject: Digest) -> list[Descriptor]:
        """The list that clients keep under a tag where the registry keeps none."""
        try:
            data = self.get_manifest(referrers_tag(subject))[0]
        except NotFound:
            return []
        return self.read_referrers(data)

    def read_referrers(self, data: bytes) -> list[Descriptor]:
        """The entries of a list of referrers."""
        document = parse_document(data, OCI_INDEX, "list of referrers")
        assert isinstance(document, Index)  # by its type
        return [*document.manifests]

    def _page(self, data: bytes) -> _Page:
        try:
            return decode_document(data, _Page, f"list of {quote(self.reference.host)}")
        except InvalidArgument as e:
            raise RegistryError(e.message) from e

    def _pages(self, path: str, scope: str) -> Iterator[bytes]:
        """Bodies, following Link headers; how many entries come at once is the registry's affair."""
        seen: set[str] = set()
        while path not in seen:
            seen.add(path)
            if len(seen) > MAX_PAGES:
                raise RegistryError(
                    f"registry {quote(self.reference.host)} sent more than {MAX_PAGES} pages"
                )
            with self._request("GET", path, {}, scope) as response:
                if response.status != 200:
                    raise self._error(response, response.read(MAX_ERROR_BYTES))
                yield response.read(MAX_DOCUMENT_BYTES)
                link = _next_link(response.headers.get("Link", ""))
            if link is None:
                return
            path = self._path_of(urljoin(response.url, link))
        raise RegistryError(f"registry {quote(self.reference.host)} sends the same page again")

    def _path_of(self, url: str) -> str:
        """What follows the prefix in a link of the registry's own."""
        own, theirs = urlsplit(self._base_url), urlsplit(url)
        # Behind a proxy that ends TLS a registry may think that it speaks http: the path counts.
        if theirs.netloc != own.netloc or not theirs.path.startswith(own.path):
            raise RegistryError(
                f"registry {quote(self.reference.host)} sent a next page that is not its own: "
                f"{quote(url)}"
            )
        return theirs.path.removeprefix(own.path) + (f"?{theirs.query}" if theirs.query else "")


def _next_link(header: str) -> str | None:
    """The target of rel=next in a Link header (RFC 8288)."""
    for target, parameters in _LINK.findall(header[:16384]):
        if _NEXT.search(parameters):
            return str(target)
    return None


def referrers_tag(subject: Digest) -> str:
    """The tag of the list of referrers (distribution-spec, referrers tag schema)."""
    return subject.replace(":", "-", 1)
