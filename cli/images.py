"""images, tag, untag, rmi: what is stored here."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING

from scow.cli import human
from scow.cli.filters import keep, matches_label, parse_filters
from scow.cli.format import Row, write_rows
from scow.cli.logs import parse_time
from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, many, text
from scow.cli.targets import each

if TYPE_CHECKING:
    from collections.abc import Callable

    from scow.image.digest import Digest
    from scow.image.store import ImageSummary
    from scow.image.usage import Usage

NONE = "<none>"
HEADINGS = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Containers": "CONTAINERS",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
    "VirtualSize": "VIRTUAL SIZE",
    "ArtifactType": "ARTIFACT TYPE",
}
_FILTERS = ("artifact", "dangling", "label", "reference", "before", "since", "until")


def created_ns(moment: str) -> int:
    """The time of an image's configuration; 0 where it has none that can be read."""
    from datetime import UTC, datetime

    whole = moment[:19]
    try:
        return int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()) * 10**9
    except (ValueError, OverflowError):
        return 0


class _Line:
    """One line of the list: an image under one of its names."""

    def __init__(self, image: ImageSummary, repository: str, tag: str) -> None:
        self.image = image
        self.repository = repository
        self.tag = tag
        self.created_ns = created_ns(image.created)
        self.digest = next(
            (d.partition("@")[2] for d in image.digests if d.startswith(repository + "@")), NONE
        )


def _split(name: str) -> tuple[str, str]:
    head, colon, tail = name.rpartition(":")
    return (head, tail) if colon and "/" not in tail else (name, NONE)


def lines_of(images: list[ImageSummary]) -> list[_Line]:
    """One line for each name, newest image first; an image without a name has one, too."""
    lines: list[_Line] = []
    for image in images:
        names = [_split(name) for name in image.names]
        if not names:
            names = [(image.digests[0].partition("@")[0] if image.digests else NONE, NONE)]
        lines += [_Line(image, repository, tag) for repository, tag in names]
    return sorted(lines, key=lambda line: (-line.created_ns, line.repository, line.tag))


class _Sums:
    """What is added up over all images and containers, and only when a column asks for it."""

    @cached_property
    def usage(self) -> dict[Digest, Usage]:
        from scow.image.usage import usage

        return usage(service().images)

    @cached_property
    def containers(self) -> dict[str, int]:
        from collections import Counter

        return Counter(record.image_id for record in service().store.list())


def _row(line: _Line, sums: _Sums, *, full: bool, now_ns: int) -> Row:
    image = line.image
    return {
        "Repository": line.repository,
        "Tag": line.tag,
        "Digest": line.digest,
        "ID": str(image.id) if full else human.short_id(image.id),
        "CreatedSince": lambda: human.ago(line.created_ns, now_ns) if line.created_ns else "N/A",
        "CreatedAt": lambda: human.local_time(line.created_ns) if line.created_ns else "N/A",
        "Size": lambda: human.decimal_size(image.size),
        "Containers": lambda: str(sums.containers.get(image.id, 0)),
        "SharedSize": lambda: human.decimal_size(sums.usage[image.id].shared),
        "UniqueSize": lambda: human.decimal_size(sums.usage[image.id].unique),
        "VirtualSize": lambda: human.decimal_size(image.size),
        "ArtifactType": image.artifact_type,
    }


def _matches(line: _Line, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    repository, tag = _split(pattern)
    return fnmatchcase(line.repository, repository) and (tag == NONE or fnmatchcase(line.tag, tag))


def _images(values: Values) -> int:
    filters = parse_filters(values.many("filter"), _FILTERS)
    for key in ("artifact", "dangling"):
        if {*filters.get(key, [])} - {"true", "false", "1", "0"}:
            raise UsageError(f"invalid --filter '{key}': true or false")
    lines = lines_of(service().images.list())
    tests: dict[str, Callable[[_Line, str], bool]] = {
        "artifact": lambda line, v: bool(line.image.artifact_type) == (v in ("true", "1")),
        "dangling": lambda line, v: (not line.image.names) == (v in ("true", "1")),
        "label": lambda line, v: matches_label(line.image.labels or {}, v),
        "reference": _matches,
        "before": lambda line, v: line.created_ns < created_ns(service().images.get(v).created),
        "since": lambda line, v: line.created_ns > created_ns(service().images.get(v).created),
        "until": lambda line, v: line.created_ns < parse_time("--filter until", v),
    }
    lines = keep(lines, filters, tests)
    for pattern in values.words("REPOSITORY[:TAG]"):
        lines = [line for line in lines if _matches(line, pattern)]
    full, now_ns = values.flag("no-trunc"), time.time_ns()
    if values.flag("quiet"):
        ids = dict.fromkeys(str(line.image.id) for line in lines)
        print("".join(f"{i if full else human.short_id(i)}\n" for i in ids), end="")
        return 0
    columns = ["Repository", "Tag", "ID", "CreatedSince", "Size"]
    if values.flag("digests"):
        columns.insert(2, "Digest")
    sums = _Sums()
    rows = [_row(line, sums, full=full, now_ns=now_ns) for line in lines]
    write_rows(rows, columns=columns, headings=HEADINGS, form=values.text("format"))
    return 0


IMAGES = Command(
    "images",
    "List the images that are here",
    _images,
    description="Artifacts, which are no images, are among them: --filter artifact=true shows those.",
    arguments=(
        Argument(
            "REPOSITORY[:TAG]", "Only these; * stands for anything", count="?", complete="images"
        ),
    ),
    options=(
        flag("-a", "--all", help="The same: scow keeps no images between steps of a build"),
        flag("--digests", help="Show the digests of their registries"),
        many(
            "-f",
            "--filter",
            metavar="KEY=VALUE",
            help="Show only some: " + " ".join(_FILTERS) + "; until=24h are those older than a day",
        ),
        text("--format", metavar="FORMAT", help="'table', 'json', or a Go template"),
        flag("--no-trunc", help="Show whole ids"),
        flag("-q", "--quiet", help="Show ids only"),
    ),
    examples=(
        ("scow images", "all of them"),
        ("scow images --format '{{.Repository}}:{{.Tag}} {{.Size}}'", "choose what is shown"),
    ),
)


def _tag(values: Values) -> int:
    service().images.tag(values.word("SOURCE"), values.word("TARGET"))
    return 0


TAG = Command(
    "tag",
    "Give an image a further name",
    _tag,
    arguments=(
        Argument("SOURCE", "Name or id of the image", complete="images"),
        Argument("TARGET", "The new name; it is moved when another image has it"),
    ),
    examples=(("scow tag app:v2 localhost:5000/app:latest", "name it for another registry"),),
    needs_root="images belong to root",
)


def _untag(values: Values) -> int:
    from scow.image.names import untag

    for name in untag(service().images, values.word("IMAGE"), values.words("NAME")):
        print(f"Untagged: {name}")
    return 0


UNTAG = Command(
    "untag",
    "Take names off an image, which stays",
    _untag,
    description="Without NAME it loses all of them and is found by its id only; 'scow rmi' removes it.",
    arguments=(
        Argument("IMAGE", "Name or id", complete="images"),
        Argument("NAME", "Only these of its names", count="*", complete="images"),
    ),
    examples=(("scow untag app:v2 localhost:5000/app:latest", "undo a 'scow tag'"),),
    needs_root="images belong to root",
)


def _rmi(values: Values) -> int:
    from scow.native.errors import NotFound

    force = values.flag("force")

    def remove(name: str) -> str | None:
        try:
            return "\n".join(service().remove_image(name, force=force)) or None
        except NotFound:
            if not force:
                raise
            return None

    return each(values.words("IMAGE"), remove)


RMI = Command(
    "rmi",
    "Remove images",
    _rmi,
    description="Removes the name; with the last name the layers that no other image has go, too.",
    arguments=(Argument("IMAGE", "Name or id", count="+", complete="images"),),
    options=(
        flag("-f", "--force", help="Also when it has several names or containers use it"),
        flag("--no-prune", help="Taken for Docker's sake; scow keeps no untagged parents"),
    ),
    examples=(("scow rmi app:v1", "remove one"),),
    needs_root="images belong to root",
)
