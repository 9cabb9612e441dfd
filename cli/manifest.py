"""manifest inspect, registry referrers, registry rm: single documents of a registry."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from scow.cli.format import Row, write_rows
from scow.cli.human import decimal_size
from scow.cli.registry_options import REMOTE_OPTIONS, connection
from scow.cli.table import Argument, Command, UsageError, Values, flag, text
from scow.cli.targets import each

if TYPE_CHECKING:
    from scow.image.registry import Connection
    from scow.image.remote import Document

NAME = Argument("NAME", "Name with tag or digest, such as debian:12")


def _inspect(values: Values) -> int:
    raw, verbose = values.flag("raw"), values.flag("verbose")
    if raw and verbose:
        raise UsageError("manifest inspect: --raw and --verbose exclude each other")
    name = values.word("NAME")
    found = _list_here(name)
    if values.flag("local") and found is None:
        if verbose:
            raise UsageError("manifest inspect: --local and --verbose exclude each other")
        _show(_image_here(name), raw=raw)
        return 0
    if found is None:
        found = _in_registry(name, connection("manifest inspect", values), verbose=verbose)
    if not verbose:
        _show(found[0].data, raw=raw)
    else:
        described = [_described(document) for document in found[1:] or found]
        print(_pretty(described[0] if len(described) == 1 else described))
    return 0


def _list_here(name: str) -> list[Document] | None:
    """A list that was made here, before its members."""
    import os

    from scow.cli.session import session
    from scow.image.lists import find_list, members_here
    from scow.image.manifest import Descriptor
    from scow.image.remote import Document

    images = session.images()
    if os.geteuid() != 0:
        return None  # what is here belongs to root; a registry answers anybody
    found = find_list(images, name)
    if found is None:
        return None
    data = {entry.digest: data for entry, data in members_here(images, found)}
    top = Descriptor(found.media_type, found.digest, len(found.data))
    return [
        Document(found.reference, top, found.data),
        *(
            Document(found.reference.with_digest(entry.digest), entry, data[entry.digest] or b"{}")
            for entry in found.index().manifests
        ),
    ]


def _image_here(name: str) -> bytes:
    from scow.cli.session import session
    from scow.image.document import MAX_DOCUMENT_BYTES

    images = session.images()
    return images.content.read_blob(images.get(name).manifest_digest, MAX_DOCUMENT_BYTES)


def _in_registry(name: str, how: Connection, *, verbose: bool) -> list[Document]:
    """What the name stands for; with `verbose` before its members, if it is a list."""
    from scow.image.reference import parse_reference
    from scow.image.registry_list import RegistryLists
    from scow.image.remote import RemoteImage

    with RegistryLists(parse_reference(name), **how) as registry:
        image = RemoteImage(registry)
        if not verbose:
            return [image.document()]
        found = image.manifests()
        return [found[0], *found]


def _show(data: bytes, *, raw: bool) -> None:
    if raw:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    else:
        print(_pretty(json.loads(data)))


def _pretty(document: object) -> str:
    # Not in UTF-8: what a stranger wrote must not steer a terminal.
    return json.dumps(document, indent=4)


def _described(document: Document) -> dict[str, object]:
    """As 'docker manifest inspect -v' has it."""
    from base64 import b64encode

    from scow.image.media_types import DOCKER_MANIFEST

    entry = document.descriptor
    described: dict[str, object] = {
        "mediaType": entry.media_type,
        "digest": entry.digest,
        "size": entry.size,
    }
    if entry.platform is not None:
        platform = {"architecture": entry.platform.architecture, "os": entry.platform.os}
        variant = {"variant": entry.platform.variant} if entry.platform.variant else {}
        described["platform"] = {**platform, **variant}
    kind = "SchemaV2Manifest" if entry.media_type == DOCKER_MANIFEST else "OCIManifest"
    return {
        "Ref": str(document.reference),
        "Descriptor": described,
        "Raw": b64encode(document.data).decode("ascii"),
        kind: json.loads(document.data),
    }


INSPECT = Command(
    "manifest inspect",
    "Show what a registry has under a name, or a list that was made here",
    _inspect,
    description="Nothing is fetched but the document itself: the list of layers of an image, or the "
    "list of images for several platforms. A list of 'scow manifest create' comes first.",
    arguments=(NAME,),
    options=(
        flag("-v", "--verbose", help="Every image of a list, with its descriptor"),
        flag("--local", help="What is here under this name, without asking the registry"),
        flag("--raw", help="The exact bytes, whose SHA-256 is the digest"),
        *REMOTE_OPTIONS,
    ),
    examples=(("scow manifest inspect debian:12", "which platforms there are"),),
    needs_root="",
)


def _referrers(values: Values) -> int:
    from scow.image.reference import parse_reference
    from scow.image.registry_list import RegistryLists
    from scow.image.remote import RemoteImage

    how = connection("registry referrers", values)
    with RegistryLists(parse_reference(values.word("NAME")), **how) as registry:
        found = RemoteImage(registry).referrers(values.text("artifact-type") or "")
    rows: list[Row] = [
        {
            "Digest": entry.digest,
            "ArtifactType": entry.artifact_type,
            "MediaType": entry.media_type,
            "Size": decimal_size(entry.size),
        }
        for entry in found
    ]
    headings = {
        "Digest": "DIGEST",
        "ArtifactType": "ARTIFACT TYPE",
        "MediaType": "MEDIA TYPE",
        "Size": "SIZE",
    }
    columns = ["Digest", "ArtifactType", "Size"]
    write_rows(rows, columns=columns, headings=headings, form=values.text("format"))
    return 0


REFERRERS = Command(
    "registry referrers",
    "List what belongs to an image in a registry",
    _referrers,
    description="Signatures, lists of parts and the like name the image that they are about.",
    arguments=(NAME,),
    options=(
        text("--artifact-type", metavar="TYPE", help="Only those of this type"),
        text("--format", metavar="FORMAT", help="'table', 'json', or a Go template"),
        *REMOTE_OPTIONS,
    ),
    examples=(("scow registry referrers registry.example.com/app:v2", "its signatures"),),
    needs_root="",
)


def _rm(values: Values) -> int:
    from scow.image.reference import parse_reference
    from scow.image.registry_write import RegistryWriter
    from scow.image.remote import remove_blob, remove_manifest

    how = connection("registry rm", values)
    act = remove_blob if values.flag("blob") else remove_manifest
    for name in values.words("NAME"):
        if "@" not in name and ":" not in name.rpartition("/")[2]:
            raise UsageError("registry rm: say what to remove: NAME:TAG or NAME@DIGEST")

    def remove(name: str) -> str:
        with RegistryWriter(parse_reference(name), **how) as registry:
            act(registry)
            return f"Deleted: {registry.reference.familiar}"

    return each(values.words("NAME"), remove)


RM = Command(
    "registry rm",
    "Remove images from a registry",
    _rm,
    description="NAME@DIGEST goes with all of its tags; NAME:TAG loses the tag only, if the registry "
    "can do that. What is here on this machine stays.",
    arguments=(Argument("NAME", "NAME@DIGEST or NAME:TAG", count="+"),),
    options=(flag("--blob", help="The digest is a blob's, not a manifest's"), *REMOTE_OPTIONS),
    examples=(("scow registry rm localhost:5000/app:old", "remove a tag"),),
    needs_root="",
)
