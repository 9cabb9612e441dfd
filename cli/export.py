"""export, diff: what is in a container's root file system, and what it changed there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, text


@contextmanager
def archive_output(verb: str, path: str | None, elsewhere: str) -> Iterator[IO[bytes]]:
    """Where an archive goes: a file that appears when it is whole, or standard output."""
    if path is None:
        if os.isatty(1):
            raise UsageError(
                f"{verb}: an archive cannot be shown on a terminal",
                hint=f"use -o FILE, or send it on: {elsewhere}",
            )
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # Written beside the target and renamed, so that a failure leaves no half archive.
    part = f"{path}.part.{os.urandom(4).hex()}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(part, flags, 0o644), "wb") as file:
            try:
                yield file
                file.flush()
                os.rename(part, path)
            except BaseException:
                os.unlink(part)
                raise
    except OSError as error:
        if error.filename not in (None, part):
            raise
        raise UsageError(f"cannot write '{path}': {(error.strerror or '').lower()}") from error


def _export(values: Values) -> int:
    from scow.cri.snapshot import export_container

    container_id = service().find(values.word("CONTAINER"))
    elsewhere = "scow export web | tar -t"
    with archive_output("export", values.text("output"), elsewhere) as output:
        export_container(service(), container_id, output.write)
    return 0


EXPORT = Command(
    "export",
    "Write a container's files to a tar archive",
    _export,
    description=(
        "The whole root file system as the container sees it, in one plain tar; volumes and other "
        "mounts are no part of it. 'scow save' keeps an image with its layers and settings instead."
    ),
    arguments=(Argument("CONTAINER", "Name or id", complete="containers"),),
    options=(text("-o", "--output", metavar="FILE", help="Write to this file", complete="files"),),
    examples=(
        ("scow export -o web.tar web", "to a file"),
        ("scow export web | tar -x -C rootfs", "to a directory"),
    ),
)


def _diff(values: Values) -> int:
    from scow.cli.format import clean
    from scow.cri.snapshot import diff

    form = values.text("format")
    if form not in (None, "", "json"):
        raise UsageError("invalid --format: only 'json'")
    found = diff(service(), values.word("NAME"))
    if form == "json":
        import json

        words = {"A": "added", "C": "changed", "D": "deleted"}
        told = {word: [c.path for c in found if c.kind == kind] for kind, word in words.items()}
        print(json.dumps({word: paths for word, paths in told.items() if paths}))
        return 0
    sys.stdout.write("".join(f"{change.kind} {clean(change.path)}\n" for change in found))
    return 0


DIFF = Command(
    "diff",
    "Show what a container changed of its image",
    _diff,
    description=(
        "One line for each path: A is added, C is changed (of a directory: something in it), D is "
        "deleted. Of an image it shows what its top layer changes."
    ),
    arguments=(Argument("NAME", "Container or image, by name or id", complete="any"),),
    options=(text("--format", metavar="FORMAT", help="'json': lists by kind"),),
    examples=(("scow diff web", "what 'scow commit web' would keep"),),
)
