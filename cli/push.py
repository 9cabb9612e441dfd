"""push: give a registry an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scow.cli.registry_options import REMOTE_OPTIONS, connection
from scow.cli.session import session
from scow.cli.table import Argument, Command, UsageError, Values, flag, text

if TYPE_CHECKING:
    from scow.cli.push_progress import PushProgress
    from scow.image.push import Compression, Pushed
    from scow.image.registry import Connection


def _push(values: Values) -> int:
    from scow.image.push import tags_of

    name = values.word("IMAGE")
    destination = next(iter(values.words("DESTINATION")), None)
    names = [name]
    compression = _compression(values)
    how = connection("push", values)
    if values.flag("all-tags"):
        if destination or "@" in name or ":" in name.rpartition("/")[2]:
            raise UsageError("push: --all-tags takes a name without a tag, and nothing else")
        names = tags_of(session.images(), name)
    digests: list[str] = []
    for one in names:
        if len(names) == 1 and _is_only_list(values, one):
            if compression is not None:
                raise UsageError(
                    "push: a list of images goes as it is, without --compression-format"
                )
            pushed = push_one_list(values, one, destination, how)
        else:
            pushed = _push_image(values, one, destination, compression, how, heading=not digests)
        digests.append(pushed.digest)
    write_digests(values, digests)
    return 0


def _is_only_list(values: Values, name: str) -> bool:
    """Whether there is a list of this name, and no image."""
    from scow.image.lists import find_list
    from scow.native.errors import NotFound

    if values.text("platform") is not None:
        return False  # that is one image
    images = session.images()
    try:
        images.get(name)
    except NotFound:
        return find_list(images, name) is not None
    return False


def _push_image(
    values: Values,
    name: str,
    destination: str | None,
    compression: Compression | None,
    how: Connection,
    *,
    heading: bool,
) -> Pushed:
    from scow.cli.push_progress import PushProgress
    from scow.image.push import push_image

    progress = None if values.flag("quiet") else PushProgress(heading=heading)
    pushed = push_image(
        session.images(),
        name,
        destination=destination,
        platform=values.text("platform"),
        compression=compression,
        progress=progress,
        **how,
    )
    _tell(pushed, progress)
    return pushed


def push_one_list(
    values: Values,
    name: str,
    destination: str | None,
    how: Connection,
    *,
    everything: bool = True,
) -> Pushed:
    """Push a list, and say so as of an image."""
    from scow.cli.push_progress import PushProgress
    from scow.image.push_list import push_list

    progress = None if values.flag("quiet") else PushProgress()
    pushed = push_list(
        session.images(),
        name,
        destination=destination,
        everything=everything,
        progress=progress,
        **how,
    )
    _tell(pushed, progress)
    return pushed


def _tell(pushed: Pushed, progress: PushProgress | None) -> None:
    if progress is None:
        print(pushed.reference, flush=True)
    else:
        progress.end()
        print(f"{pushed.reference.tag}: digest: {pushed.digest} size: {pushed.size}", flush=True)


def write_digests(values: Values, digests: list[str]) -> None:
    """--digestfile."""
    path = values.text("digestfile")
    if path is not None:
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write("\n".join(digests))
        except OSError as error:
            raise UsageError(f"cannot write '{path}': {(error.strerror or '').lower()}") from error


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
        text("--platform", metavar="OS/ARCH", help="Of several platforms push this one"),
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
