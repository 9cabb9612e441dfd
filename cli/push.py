"""push: give a registry an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scow.cli.registry_options import REMOTE_OPTIONS, connection
from scow.cli.session import session
from scow.cli.table import Argument, Command, UsageError, Values, flag, text

if TYPE_CHECKING:
    from scow.image.push import Compression


def _push(values: Values) -> int:
    from scow.cli.push_progress import PushProgress
    from scow.image.push import push_image, tags_of

    name = values.word("IMAGE")
    destination = next(iter(values.words("DESTINATION")), None)
    names = [name]
    compression = _compression(values)
    how = connection("push", values)
    images = session.images()
    if values.flag("all-tags"):
        if destination or "@" in name or ":" in name.rpartition("/")[2]:
            raise UsageError("push: --all-tags takes a name without a tag, and nothing else")
        names = tags_of(images, name)
    digests: list[str] = []
    for one in names:
        progress = None if values.flag("quiet") else PushProgress(heading=not digests)
        pushed = push_image(
            images,
            one,
            destination=destination,
            compression=compression,
            progress=progress,
            **how,
        )
        digests.append(pushed.digest)
        if progress is None:
            print(pushed.reference, flush=True)
        else:
            progress.end()
            print(f"{pushed.reference.tag}: digest: {pushed.digest} size: {pushed.size}")
    path = values.text("digestfile")
    if path is not None:
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write("\n".join(digests))
        except OSError as error:
            raise UsageError(f"cannot write '{path}': {(error.strerror or '').lower()}") from error
    return 0


def _compression(values: Values) -> Compression | None:
    from scow.image.push import Compression

    kind, level = values.text("compression-format"), values.text("compression-level")
    if kind is None:
        if level is not None:
            raise UsageError("push: --compression-level needs --compression-format")
        return None
    if level is not None and not (level.isascii() and level.isdigit()):
        raise UsageError("push: --compression-level is a number")
    return Compression(kind, None if level is None else int(level))


PUSH = Command(
    "push",
    "Give a registry an image",
    _push,
    description="The name of an image says where it goes: localhost:5000/app:v2 goes to the registry "
    "at localhost:5000. Only what the registry lacks is sent, and byte for byte, so that the digest is "
    "the same here and there. Log in first with 'scow login'.",
    arguments=(
        Argument("IMAGE", "Name or id of an image that is here", complete="images"),
        Argument("DESTINATION", "Push it under this name instead", count="?"),
    ),
    options=(
        flag("-a", "--all-tags", help="Push every tag that the name has here"),
        flag("-q", "--quiet", help="Print the full name only"),
        text("--digestfile", metavar="FILE", help="Write the digest there", complete="files"),
        text(
            "--compression-format",
            metavar="FORMAT",
            help="Compress layers as gzip or zstd; this makes another digest",
        ),
        text(
            "--compression-level",
            metavar="N",
            help="1 (fast) to 9 (gzip) or 22 (zstd); also for layers that have the format",
        ),
        *REMOTE_OPTIONS,
    ),
    examples=(
        ("scow push localhost:5000/app:v2", "to a registry on this machine"),
        ("scow push app:v2 registry.example.com/team/app:v2", "under another name"),
    ),
    needs_root="images belong to root",
)
