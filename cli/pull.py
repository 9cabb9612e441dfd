"""pull: fetch an image from its registry."""

from __future__ import annotations

import sys

from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, text


def _pull(values: Values) -> int:
    from scow.cli.progress import PullProgress
    from scow.image.reference import parse_reference
    from scow.native.errors import NotFound
    from scow.native.prctl import forbid_dumps

    name = values.word("IMAGE")
    platform = values.text("platform")
    if platform is not None:
        from scow.cri.parse import parse_platform

        platform = parse_platform("--platform", platform)
    tls_verify = values.flag("tls-verify")
    reference = parse_reference(name)
    images = service().images
    try:
        before = images.get(str(reference)).id
    except NotFound:
        before = None
    forbid_dumps()  # passwords and tokens of registries pass through this process
    plain_http = values.flag("plain-http")
    if plain_http and values.given("tls-verify") and tls_verify:
        raise UsageError("pull: --plain-http and --tls-verify exclude each other")
    if values.flag("quiet"):
        images.pull(name, platform=platform, tls_verify=tls_verify, plain_http=plain_http)
        print(reference)
        return 0
    if reference.digest is None and not _names_tag(name):
        print(f"Using default tag: {reference.tag}")
    label = reference.tag if reference.digest is None else reference.digest
    print(f"{label}: Pulling from {reference.path}", flush=True)
    with PullProgress(sys.stdout) as progress:
        image = images.pull(
            name,
            platform=platform,
            tls_verify=tls_verify,
            plain_http=plain_http,
            progress=progress,
        )
    print(f"Digest: {progress.digest or image.manifest_digest}")
    state = "Image is up to date for" if before == image.id else "Downloaded newer image for"
    print(f"Status: {state} {reference.familiar}")
    print(reference)
    return 0


def _names_tag(name: str) -> bool:
    return ":" in name.rpartition("/")[2]


PULL = Command(
    "pull",
    "Fetch an image from a registry",
    _pull,
    description="A name without a host means docker.io, without a tag 'latest'. Layers that are "
    "here already are not fetched again. Logins are read from ~/.docker/config.json.",
    arguments=(Argument("IMAGE", "Name, such as debian, debian:12 or host:5000/team/app:v2"),),
    options=(
        flag("-q", "--quiet", help="Print the full name only"),
        text("--platform", metavar="OS/ARCH", help="Choose this platform, such as linux/arm64"),
        flag("--plain-http", help="Speak HTTP, without encryption (loopback does by itself)"),
        flag("--tls-verify", default=True, help="Check the registry's certificate"),
    ),
    examples=(
        ("scow pull busybox", "docker.io/library/busybox:latest"),
        ("scow pull localhost:5000/app:v2", "from a registry on this machine"),
    ),
    needs_root="layers are unpacked with the owners that they name",
)
