"""search: what registries have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scow.cli.filters import keep, parse_filters
from scow.cli.format import Row, write_rows
from scow.cli.human import ellipsis
from scow.cli.registry_options import REMOTE_OPTIONS, connection
from scow.cli.table import Argument, Command, UsageError, Values, flag, many, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from scow.image.registry import Connection
    from scow.image.search import Found

HEADINGS = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "StarCount": "STARS",
    "IsOfficial": "OFFICIAL",
    "IsAutomated": "AUTOMATED",
}
TAG_HEADINGS = {"Name": "NAME", "Tag": "TAG"}
DESCRIPTION_WIDTH = 45
DEFAULT_LIMIT, MAX_LIMIT = 25, 100
MAX_TAGS = 1_000_000
_FILTERS = ("is-official", "is-automated", "stars")


def _search(values: Values) -> int:
    how = connection("search", values)
    if values.flag("list-tags"):
        return _tags(values, how)
    from scow.image.search import search

    filters = parse_filters(values.many("filter"), _FILTERS)
    for wanted in filters.get("stars", []):
        if not (wanted.isascii() and wanted.isdigit()):
            raise UsageError("invalid --filter 'stars': a number")
    tests: dict[str, Callable[[Found, str], bool]] = {
        "is-official": lambda found, v: found.is_official == (v in ("true", "1")),
        "is-automated": lambda found, v: found.is_automated == (v in ("true", "1")),
        "stars": lambda found, v: found.stars >= int(v),
    }
    found = search(values.word("TERM"), _limit(values, MAX_LIMIT, DEFAULT_LIMIT), **how)
    rows = [_row(one, full=values.flag("no-trunc")) for one in keep(found, filters, tests)]
    columns = ["Name", "Description", "StarCount", "IsOfficial"]
    write_rows(rows, columns=columns, headings=HEADINGS, form=values.text("format"))
    return 0


def _row(found: Found, *, full: bool) -> Row:
    words = " ".join(found.description.split())
    return {
        "Name": found.name,
        "Description": words if full else ellipsis(words, DESCRIPTION_WIDTH),
        "StarCount": str(found.stars),
        "IsOfficial": "[OK]" if found.is_official else "",
        "IsAutomated": "[OK]" if found.is_automated else "",
    }


def _tags(values: Values, how: Connection) -> int:
    from itertools import islice

    from scow.image.reference import Reference, parse_reference
    from scow.image.registry_list import RegistryLists

    if values.many("filter"):
        raise UsageError("search: --list-tags and --filter exclude each other")
    limit = _limit(values, MAX_TAGS, MAX_TAGS)
    named = parse_reference(values.word("TERM"))
    with RegistryLists(Reference(named.host, named.path, None, None), **how) as registry:
        tags = list(islice(registry.tags(), limit))
    rows: list[Row] = [{"Name": named.repository, "Tag": tag} for tag in tags]
    columns = ["Name", "Tag"]
    write_rows(rows, columns=columns, headings=TAG_HEADINGS, form=values.text("format"))
    return 0


def _limit(values: Values, most: int, default: int) -> int:
    given = values.text("limit")
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and 1 <= int(given) <= most):
        raise UsageError(f"search: --limit is a number from 1 to {most}")
    return int(given)


SEARCH = Command(
    "search",
    "Look for images in a registry",
    _search,
    description="Without a host this asks Docker Hub. HOST/WORD asks another "
    "registry, if it tells what it has; HOST/ alone lists everything.",
    arguments=(Argument("TERM", "A word, or HOST/WORD; with --list-tags a name"),),
    options=(
        flag("--list-tags", help="List the tags of the image with this name instead"),
        text(
            "--limit",
            metavar="N",
            help=f"At most so many ({DEFAULT_LIMIT}, at most {MAX_LIMIT}; tags: all)",
        ),
        many("-f", "--filter", metavar="KEY=VALUE", help="Only some: " + " ".join(_FILTERS)),
        text("--format", metavar="FORMAT", help="'table', 'json', or a Go template"),
        flag("--no-trunc", help="Show whole descriptions"),
        *REMOTE_OPTIONS,
    ),
    examples=(
        ("scow search busybox", "on Docker Hub"),
        ("scow search localhost:5000/", "all that the registry on this machine has"),
        ("scow search --list-tags debian", "every tag of docker.io/library/debian"),
    ),
    needs_root="",
)
