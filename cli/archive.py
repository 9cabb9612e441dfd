"""save and load: images as files."""

from __future__ import annotations

import os
import sys

from scow.cli.export import archive_output
from scow.cli.registry_options import warn
from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, text


def _save(values: Values) -> int:
    from scow.image.save import DOCKER_ARCHIVE, OCI_DIR, save_archive, save_directory

    path, names = values.text("output"), values.words("IMAGE")
    form, platform = values.text("format") or DOCKER_ARCHIVE, values.text("platform")
    images = service().images
    if form == OCI_DIR:
        if path is None:
            raise UsageError("save: --format oci-dir needs -o DIRECTORY")
        try:
            save_directory(images, names, path, platform=platform, warn=warn)
        except OSError as error:
            raise UsageError(f"cannot write '{path}': {(error.strerror or '').lower()}") from error
        return 0
    elsewhere = "scow save app | ssh host scow load"
    with archive_output("save", path, elsewhere) as output:
        save_archive(images, names, output, form=form, platform=platform, warn=warn)
    return 0


SAVE = Command(
    "save",
    "Write images to an archive",
    _save,
    description=(
        "The archive is an OCI layout that 'docker load', podman and skopeo read, too. All digests "
        "stay what they are."
    ),
    arguments=(Argument("IMAGE", "Name or id", count="+", complete="images"),),
    options=(
        text("-o", "--output", metavar="FILE", help="Write to this file", complete="files"),
        text(
            "--format",
            metavar="FORMAT",
            default="docker-archive",
            help="'docker-archive', 'oci-archive' (without Docker's file), or 'oci-dir' (a directory)",
        ),
        text("--platform", metavar="PLATFORM", help="Refuse images for another platform than this"),
    ),
    examples=(
        ("scow save -o app.tar app:v2 db:v1", "take two to another machine"),
        ("scow save app | zstd > app.tar.zst", "packed; 'scow load' reads it as it is"),
    ),
)


def _load(values: Values) -> int:
    from scow.image.archive import load_archive

    path, platform = values.text("input"), values.text("platform")
    images = service().images
    if path is None or path == "-":
        if os.isatty(0):
            raise UsageError(
                "load: needs an archive on its input", hint="use -i FILE, or: scow load < FILE"
            )
        lines = load_archive(images, sys.stdin.buffer, platform=platform)
    else:
        if not os.path.exists(path):
            raise UsageError(f"cannot read '{path}': no such file or directory")
        lines = load_archive(images, path, platform=platform)
    print("\n".join(lines))
    return 0


LOAD = Command(
    "load",
    "Take images from an archive",
    _load,
    description=(
        "Reads OCI archives and directories and those of 'docker save', also packed with gzip, xz, "
        "zstd or bzip2. Names move to the loaded images, which is told; nothing gets a name unless "
        "the whole archive is right."
    ),
    options=(
        text(
            "-i",
            "--input",
            metavar="FILE",
            help="Read this file or directory instead of standard input",
            complete="files",
        ),
        text("--platform", metavar="PLATFORM", help="Which one, where there are several"),
        flag("-q", "--quiet", help="Taken for Docker's sake; there is no progress to leave out"),
    ),
    examples=(("scow load -i app.tar", "what 'scow save' wrote"),),
    needs_root="layers are unpacked with the owners that they name",
)
