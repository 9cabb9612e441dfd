"""pull: fetch an image from its registry."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scow.cli.registry_options import REMOTE_OPTIONS, connection
from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, text
from scow.cli.targets import each

if TYPE_CHECKING:
    from scow.image.registry import Connection


def _pull(values: Values) -> int:
    name = values.word("IMAGE")
    platform = values.text("platform")
    if platform is not None:
        from scow.cri.parse import parse_platform

        platform = parse_platform("--platform", platform)
    how = connection("pull", values)
    if not values.flag("all-tags"):
        _pull_one(name, platform, how, quiet=values.flag("quiet"))
        return 0
    if "@" in name or _names_tag(name):
        raise UsageError("pull: --all-tags takes a name without a tag")
    return each(
        _tags(name, how), lambda one: _pull_one(one, platform, how, quiet=values.flag("quiet"))
    )


def _tags(name: str, how: Connection) -> list[str]:
    """All names that the registry has of this repository."""
    from scow.image.reference import parse_reference
    from scow.image.registry_list import RegistryLists

    with RegistryLists(parse_reference(name), **how) as registry:
        return [f"{name}:{tag}" for tag in registry.tags()]


def _pull_one(name: str, platform: str | None, how: Connection, *, quiet: bool) -> None:
    from scow.cli.progress import PullProgress
    from scow.image.reference import parse_reference
    from scow.native.errors import NotFound

    reference = parse_reference(name)
    images = service().images
    try:
        before = images.get(str(reference)).id
    except NotFound:
        before = None
    if quiet:
        images.pull(name, platform=platform, **how)
        print(reference)
        return
    if reference.digest is None and not _names_tag(name):
        print(f"Using default tag: {reference.tag}")
    label = reference.tag if reference.digest is None else reference.digest
    print(f"{label}: Pulling from {reference.path}", flush=True)
    with PullProgress(sys.stdout) as progress:
        image = images.pull(name, platform=platform, progress=progress, **how)
    print(f"Digest: {progress.digest or image.manifest_digest}")
    kind = "artifact" if image.artifact_type else "image"
    state = f"{kind.title()} is up to date" if before == image.id else f"Downloaded newer {kind}"
    print(f"Status: {state} for {reference.familiar}")
    print(reference)


def _names_tag(name: str) -> bool:
    return ":" in name.rpartition("/")[2]


PULL = Command(
    "pull",
    "Fetch an image from a registry",
    _pull,
    description="A name without a host means docker.io, without a tag 'latest'. Layers that are "
    "here already are not fetched again. Log in first with 'scow login', or with --creds for this "
    "call only. What is no image (a chart, a signature) is kept as it is; 'image inspect' shows it.",
    arguments=(Argument("IMAGE", "Name, such as debian, debian:12 or host:5000/team/app:v2"),),
    options=(
        flag("-a", "--all-tags", help="Fetch every tag that the registry has of the name"),
        flag("-q", "--quiet", help="Print the full name only"),
        text("--platform", metavar="OS/ARCH", help="Choose this platform, such as linux/arm64"),
        *REMOTE_OPTIONS,
    ),
    examples=(
        ("scow pull busybox", "docker.io/library/busybox:latest"),
        ("scow pull localhost:5000/app:v2", "from a registry on this machine"),
        ("scow pull --creds me registry.example.com/app", "as this user; asks for the password"),
    ),
    needs_root="layers are unpacked with the owners that they name",
)
