"""image prune, container prune, system prune: give space back, after asking."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from scow.cli import human
from scow.cli.filters import matches_label, parse_filters
from scow.cli.session import service
from scow.cli.table import Command, Option, UsageError, Values, flag, many

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scow.cri.prune import Pruned
    from scow.cri.records import Record
    from scow.image.store import ImageSummary

    # created (ns since 1970), labels -> whether the filters let it go
    Filter = Callable[[int, Mapping[str, str]], bool]

_FILTERS = ("until", "label", "label!")
_BLOBS_WARNING = "compressed layers that are unpacked and can be fetched again"
_FORCE = flag("-f", "--force", help="Do not ask")
_FILTER: Option = many(
    "--filter",
    metavar="KEY=VALUE",
    help="Only what is older (until=24h, until=2026-11-20T18:00:00Z), or has a label "
    "(label=KEY, label=KEY=VALUE) or has it not (label!=KEY)",
)


def _confirm(values: Values, verb: str, warning: str) -> bool:
    """Ask as Docker does; where nobody can be asked, nothing is done."""
    if values.flag("force"):
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(
            f"{verb}: would ask, but there is no terminal", hint="-f (--force) does not ask"
        )
    print(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was removed")
    return False


def _filter(values: Values) -> Filter:
    from scow.cli.logs import parse_time

    filters = parse_filters(values.many("filter"), _FILTERS)
    limits = [parse_time("--filter until", text) for text in filters.get("until", [])]
    wanted, unwanted = filters.get("label", []), filters.get("label!", [])

    def is_wanted(created_ns: int, labels: Mapping[str, str]) -> bool:
        return (
            all(0 < created_ns < limit for limit in limits)  # 0: nobody knows when
            and all(matches_label(labels, text) for text in wanted)
            and not any(matches_label(labels, text) for text in unwanted)
        )

    return is_wanted


def _tell(heading: str, pruned: Pruned) -> None:
    if pruned.lines:
        print(heading)
        print("\n".join(pruned.lines) + "\n", flush=True)


def _total(*pruned: Pruned) -> int:
    size = human.decimal_size(sum(part.freed_bytes for part in pruned), digits=4)
    print(f"Total reclaimed space: {size}")
    return 0


def _containers(is_wanted: Filter) -> Pruned:
    from scow.cri.prune import prune_containers

    def test(record: Record) -> bool:
        return is_wanted(record.created_ns, record.labels)

    return prune_containers(service(), test)


def _images(values: Values, is_wanted: Filter) -> Pruned:
    from scow.cli.images import created_ns
    from scow.cri.prune import prune_images

    def test(image: ImageSummary) -> bool:
        is_due = values.flag("all") or not image.names
        return is_due and is_wanted(created_ns(image.created), image.labels or {})

    return prune_images(service(), test)


def _blobs(values: Values) -> list[Pruned]:
    if not values.flag("blobs"):
        return []
    from scow.cri.prune import prune_blobs

    pruned = prune_blobs(service())
    _tell("Dropped Blobs:", pruned)
    return [pruned]


def _container_prune(values: Values) -> int:
    is_wanted = _filter(values)
    if not _confirm(values, "container prune", "This will remove all stopped containers."):
        return 1
    pruned = _containers(is_wanted)
    _tell("Deleted Containers:", pruned)
    return _total(pruned)


CONTAINER_PRUNE = Command(
    "container prune",
    "Remove all containers that do not run",
    _container_prune,
    description="Containers of pods stay; their pod is removed by 'scow pod rm'. "
    "Volumes stay, too.",
    options=(_FILTER, _FORCE),
    examples=(
        ("scow container prune", "after asking"),
        ("scow container prune -f --filter until=24h", "those made more than a day ago"),
    ),
    needs_root="containers belong to root",
)


def _image_warning(values: Values) -> str:
    if values.flag("all"):
        return "all images without at least one container associated to them"
    return "all dangling images"


def _image_prune(values: Values) -> int:
    is_wanted = _filter(values)
    more = f" and {_BLOBS_WARNING}" if values.flag("blobs") else ""
    if not _confirm(values, "image prune", f"This will remove {_image_warning(values)}{more}."):
        return 1
    parts = [_images(values, is_wanted)]
    _tell("Deleted Images:", parts[0])
    parts += _blobs(values)
    return _total(*parts)


_ALL = flag("-a", "--all", help="All images that no container uses, not only those without a name")
_BLOBS = flag(
    "--blobs",
    help="Also compressed layers that are unpacked and that their registry can give again: containers "
    "do not need them; save and push fetch them when they do",
)

IMAGE_PRUNE = Command(
    "image prune",
    "Remove images that are not needed",
    _image_prune,
    description="Removes images that have lost their name (by a pull or tag that gave it to another "
    "one) and that no container uses.",
    options=(_ALL, _BLOBS, _FILTER, _FORCE),
    examples=(
        ("scow image prune", "after asking"),
        ("scow image prune --blobs", "and keep images unpacked only"),
        ("scow image prune -a -f", "keep only what containers use"),
    ),
    needs_root="images belong to root",
)


def _system_prune(values: Values) -> int:
    from scow.cri.prune import prune_leftovers, prune_volumes

    is_wanted = _filter(values)
    things = ["all stopped containers", _image_warning(values), "what failed downloads left"]
    if values.flag("volumes"):
        things.insert(1, "all anonymous volumes not used by at least one container")
    if values.flag("blobs"):
        things.append(_BLOBS_WARNING)
    listed = "".join(f"\n  - {thing}" for thing in things)
    if not _confirm(values, "system prune", f"This will remove:{listed}\n"):
        return 1
    parts = [_containers(is_wanted)]
    _tell("Deleted Containers:", parts[0])
    if values.flag("volumes"):
        parts.append(prune_volumes(service()))
        _tell("Deleted Volumes:", parts[-1])
    parts.append(_images(values, is_wanted))
    _tell("Deleted Images:", parts[-1])
    parts += _blobs(values)
    parts.append(prune_leftovers(service()))
    return _total(*parts)


SYSTEM_PRUNE = Command(
    "system prune",
    "Remove all that is not needed: stopped containers, images, failed downloads",
    _system_prune,
    options=(
        flag(
            "-a", "--all", help="All images that no container uses, not only those without a name"
        ),
        _BLOBS,
        flag("--volumes", help="Also volumes without a name that no container mounts any more"),
        _FILTER,
        _FORCE,
    ),
    examples=(
        ("scow system prune", "after asking"),
        ("scow system prune -a -f", "all that no container uses"),
    ),
    needs_root="containers and images belong to root",
)
