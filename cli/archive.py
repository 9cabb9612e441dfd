"""save and load: images as files."""

from __future__ import annotations

import os
import sys

from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, text


def _save(values: Values) -> int:
    path = values.text("output")
    names = values.words("IMAGE")
    if path is None:
        if os.isatty(1):
            raise UsageError(
                "save: an archive cannot be shown on a terminal",
                hint="use -o FILE, or send it on: scow save app | ssh host scow load",
            )
        service().images.save(names, sys.stdout.buffer)
        return 0
    # Written beside the target and renamed, so that a failure leaves no half archive.
    part = f"{path}.part.{os.getpid()}"
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with open(fd, "wb") as file:
                service().images.save(names, file)
            os.rename(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {(error.strerror or '').lower()}") from error
    return 0


SAVE = Command(
    "save",
    "Write images to an archive",
    _save,
    description="The archive is an OCI layout that 'docker load' and skopeo read, too.",
    arguments=(Argument("IMAGE", "Name or id", count="+", complete="images"),),
    options=(text("-o", "--output", metavar="FILE", help="Write to this file", complete="files"),),
    examples=(("scow save -o app.tar app:v2", "take it to another machine"),),
)


def _load(values: Values) -> int:
    path = values.text("input")
    progress = None
    if path is None:
        if os.isatty(0):
            raise UsageError(
                "load: needs an archive on its input", hint="use -i FILE, or: scow load < FILE"
            )
        lines = service().images.load(sys.stdin.buffer, progress=progress)
    else:
        if not os.path.exists(path):
            raise UsageError(f"cannot read '{path}': no such file or directory")
        lines = service().images.load(path, progress=progress)
    print("\n".join(lines))
    return 0


LOAD = Command(
    "load",
    "Take images from an archive",
    _load,
    description="Reads OCI archives and those of 'docker save'.",
    options=(
        text(
            "-i",
            "--input",
            metavar="FILE",
            help="Read this file instead of standard input",
            complete="files",
        ),
        flag("-q", "--quiet", help="Taken for Docker's sake; there is no progress to leave out"),
    ),
    examples=(("scow load -i app.tar", "what 'scow save' wrote"),),
    needs_root="layers are unpacked with the owners that they name",
)
