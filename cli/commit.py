"""commit, import: new images out of files."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import IO, TYPE_CHECKING, TypeAlias

from scow.cli.session import service
from scow.cli.table import Argument, Command, Option, UsageError, Values, flag, many, text

if TYPE_CHECKING:
    from scow.image.commit import Wishes
    from scow.native.errors import RegistryError

Source: TypeAlias = "IO[bytes] | _Body"

_SHARED: tuple[Option, ...] = (
    many(
        "-c",
        "--change",
        metavar="INSTRUCTION",
        help="A line of a Dockerfile, such as 'CMD [\"nginx\"]' or 'ENV A=1': "
        "CMD ENTRYPOINT ENV EXPOSE LABEL ONBUILD STOPSIGNAL USER VOLUME WORKDIR",
    ),
    text("-m", "--message", metavar="TEXT", help="A comment for the image's history"),
    text(
        "--compression", metavar="KIND", default="gzip", help="Of the new layer: 'gzip' or 'zstd'"
    ),
)


def _wishes(values: Values, name: str | None, comment: str = "", **more: str) -> Wishes:
    from scow.image.commit import Wishes

    return Wishes(
        name=name,
        comment=values.text("message") or comment,
        changes=values.many("change"),
        compression=values.text("compression") or "gzip",
        **more,
    )


def _commit(values: Values) -> int:
    from scow.cri.snapshot import commit

    words = values.words("IMAGE")
    container_id = service().find(values.word("CONTAINER"))
    record = service().store.read(container_id)
    wishes = _wishes(
        values,
        words[0] if words else None,
        author=values.text("author") or "",
        created_by=" ".join(record.argv),
    )
    print(commit(service(), container_id, wishes, pause=values.flag("pause")))
    return 0


COMMIT = Command(
    "commit",
    "Make an image of a container",
    _commit,
    description=(
        "Keeps what the container changed as one layer more on its image, and its command, "
        "environment and labels. Volumes are no part of it. Prints the new image's id."
    ),
    arguments=(
        Argument("CONTAINER", "Name or id", complete="containers"),
        Argument("IMAGE", "Name for the image", count="?"),
    ),
    options=(
        text("-a", "--author", metavar="NAME", help="Who made it: 'Ada <ada@example.com>'"),
        *_SHARED,
        flag(
            "-p",
            "--pause",
            default=True,
            help="Freeze the container while its files are read",
        ),
    ),
    examples=(
        ("scow commit web web:fixed", "a running container, too"),
        ("scow commit -c 'CMD [\"sh\"]' build tools", "with another command"),
    ),
    needs_root="layers are unpacked with the owners that they name",
)


def _import(values: Values) -> int:
    from scow.image.commit import import_tree

    place, words = values.word("SOURCE"), values.words("IMAGE")
    told = "-" if place == "-" else os.path.basename(place.rstrip("/"))
    wishes = _wishes(values, words[0] if words else None, comment=f"Imported from {told}")
    with closing(_open_source(place)) as source:
        print(import_tree(service().images, source, wishes, values.text("platform")))
    return 0


def _open_source(place: str) -> Source:
    if place == "-":
        if os.isatty(0):
            raise UsageError("import: needs an archive on its input", hint="scow import - < FILE")
        return sys.stdin.buffer
    if place.startswith(("http://", "https://")):
        return _Body(place)
    try:
        return open(place, "rb")
    except OSError as error:
        raise UsageError(f"cannot read '{place}': {(error.strerror or '').lower()}") from error


class _Body:
    """What comes from a URL; that it stopped is an error in words."""

    def __init__(self, url: str) -> None:
        """Asked for as registries are: no other redirects, no password of ~/.netrc, no body without end."""
        from scow.image.targets import split_url
        from scow.image.transport import Transport
        from scow.native.errors import RegistryError

        parts = split_url(url, "the URL")
        self._url, self._left = url, b""
        is_plain = parts.scheme == "http"
        self._transport = Transport(f"{parts.scheme}://{parts.netloc}", plain_http=is_plain)
        try:
            self._response = self._transport.get(url)
            if self._response.status != 200:
                self._response.close()
                raise RegistryError(f"it answered status {self._response.status}")
        except RegistryError as error:
            self._transport.close()
            raise self._failed(error) from error
        self._chunks = self._response.chunks()

    def read(self, size: int, /) -> bytes:
        from scow.native.errors import RegistryError

        try:
            data = self._left or next(self._chunks, b"")
        except RegistryError as error:
            raise self._failed(error) from error
        self._left = data[size:]
        return data[:size]

    def _failed(self, error: RegistryError) -> RegistryError:
        from scow.image.digest import quote

        return type(error)(f"cannot fetch {quote(self._url)}: {error.message}", hint=error.hint)

    def close(self) -> None:
        self._response.close()
        self._transport.close()


IMPORT = Command(
    "import",
    "Make an image of a tar archive of a root file system",
    _import,
    description=(
        "The archive may be compressed (gzip, xz, zstd, bzip2). The image has one layer and, but for "
        "--change, no settings. 'scow load' takes archives of images instead."
    ),
    arguments=(
        Argument("SOURCE", "A file, '-' for standard input, or a URL", complete="files"),
        Argument("IMAGE", "Name for the image", count="?"),
    ),
    options=(
        *_SHARED,
        text(
            "--platform", metavar="PLATFORM", help="What it is for: linux/arm64; default: this host"
        ),
    ),
    examples=(
        ("scow import rootfs.tar.xz debian:mine -c 'CMD [\"bash\"]'", "from a file"),
        ("scow export web | scow import - web:flat", "one layer instead of many"),
    ),
    needs_root="layers are unpacked with the owners that they name",
)
