"""cp: files between a container and this machine."""

from __future__ import annotations

import os
import sys

from scow.cli.export import archive_output
from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag


def _cp(values: Values) -> int:
    from scow.cri import copying

    source, target = values.word("SOURCE"), values.word("TARGET")
    archive, follow = values.flag("archive"), values.flag("follow-link")
    ours, theirs = _split(source), _split(target)
    if (ours is None) == (theirs is None):
        raise UsageError(
            "cp: exactly one of SOURCE and TARGET must be in a container",
            hint="scow cp web:/etc/hosts . - or, the other way: scow cp ./page.html web:/srv/",
        )
    if ours is not None:
        container_id = service().find(ours[0])
        if target == "-":
            with archive_output("cp", None, f"scow cp {source} - | tar -t") as output:
                copying.pack_out(service(), container_id, ours[1], output.write, follow=follow)
            return 0
        left_out = copying.copy_out(
            service(), container_id, ours[1], target, archive=archive, follow=follow
        )
    else:
        assert theirs is not None
        container_id = service().find(theirs[0])
        if source == "-":
            left_out = copying.unpack_in(
                service(), sys.stdin.buffer, container_id, theirs[1], archive=archive
            )
        else:
            left_out = copying.copy_in(
                service(), source, container_id, theirs[1], archive=archive, follow=follow
            )
    if left_out and not values.flag("quiet"):
        print("\n".join(f"scow: {line}" for line in left_out), file=sys.stderr)
    return 0


def _split(word: str) -> tuple[str, str] | None:
    """`CONTAINER:PATH`; a word with a slash before the colon, or `-`, is the host's."""
    name, colon, path = word.partition(":")
    if not colon or "/" in name or name in ("", ".") or os.path.sep == word[:1]:
        return None
    return name, path if path.startswith("/") else f"/{path}"


CP = Command(
    "cp",
    "Copy files between a container and this machine",
    _cp,
    description=(
        "CONTAINER:PATH is in a container, running or not; anything else is a path here, and '-' a tar "
        "archive on standard input or output. A directory is copied with all that is in it; 'DIR/.' "
        "means what is in it without itself. What is copied belongs to root, unless -a keeps owners."
    ),
    arguments=(
        Argument("SOURCE", "CONTAINER:PATH, a path here, or '-'", complete="files"),
        Argument("TARGET", "CONTAINER:PATH, a path here, or '-'", complete="files"),
    ),
    options=(
        flag("-a", "--archive", help="Keep owners, set-uid bits and devices"),
        flag("-L", "--follow-link", help="Copy what a link at SOURCE leads to"),
        flag("-q", "--quiet", help="Do not tell what was left out"),
    ),
    examples=(
        ("scow cp web:/etc/nginx .", "from a container, with all below"),
        ("scow cp page.html web:/srv/", "into a directory of a container"),
        ("tar -c src | scow cp - build:/work", "many files at once"),
    ),
)
