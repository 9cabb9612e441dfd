"""manifest create, add, annotate, remove, push, rm: lists of images for several platforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scow.cli.format import Row, write_rows
from scow.cli.process_options import every
from scow.cli.registry_options import REMOTE_OPTIONS, connection, warn
from scow.cli.session import session
from scow.cli.table import Argument, Command, Option, UsageError, Values, flag, many, text
from scow.cli.targets import each

if TYPE_CHECKING:
    from scow.image.lists import ListEntry, ListFile

LIST = Argument("LIST", "Name of the list, such as localhost:5000/app:v2", complete="lists")
MEMBER = "Name or digest of an image in the list"
NEW = "Name of an image that is here, else of one in a registry; docker://NAME asks the registry"
ALL = flag("--all", help="Of an image that is a list itself all, not only this machine's")
ANNOTATION = many("--annotation", metavar="KEY=VALUE", help="Add an annotation to the image")
ENTRY_OPTIONS: tuple[Option, ...] = (
    text("--os", metavar="OS", help="The system that it is for, such as linux"),
    text("--arch", metavar="ARCH", help="The processor that it is for, such as arm64"),
    text("--variant", metavar="VARIANT", help="The processor's variant, such as v8"),
    text("--os-version", metavar="VERSION", help="The system's version (Windows)"),
    many("--os-features", metavar="FEATURE", help="What it needs of the system (Windows)"),
    many("--features", metavar="FEATURE", help="What it needs of the processor"),
    ANNOTATION,
)
_ROOT = "images belong to root"


def _annotations(values: Values) -> dict[str, str]:
    from scow.cri.parse import parse_label

    return dict(every(values, "annotation", parse_label))


def _dress(values: Values, entry: ListEntry) -> None:
    """Give an entry what the options say about it."""
    from scow.image.lists import ListPlatform
    from scow.image.manifest import parse_platform

    annotations = _annotations(values)
    if annotations:
        entry.annotations = (entry.annotations or {}) | annotations
    keys = ("os", "arch", "variant", "os-version", "os-features", "features")
    if not any(values.given(key) for key in keys):
        return
    known = entry.platform or ListPlatform("", "")
    system, machine = values.text("os") or known.os, values.text("arch") or known.architecture
    if not (system and machine):
        raise UsageError("an image's platform needs both --os and --arch")
    variant = known.variant if values.text("variant") is None else values.text("variant")
    said = parse_platform("/".join(part for part in (system, machine, variant) if part))
    entry.platform = ListPlatform(
        said.architecture,
        said.os,
        values.text("os-version") or known.os_version,
        values.many("os-features") or known.os_features,
        said.variant or None,
        values.many("features") or known.features,
    )


def _create(values: Values) -> int:
    from scow.image.members import add_to_list

    annotations = _annotations(values)

    def alter(file: ListFile, sources: dict[str, str]) -> None:
        if annotations:
            file.annotations = (file.annotations or {}) | annotations

    made = add_to_list(
        session.images(),
        values.word("LIST"),
        values.words("IMAGE"),
        is_new=not values.flag("amend"),
        may_be_new=True,
        everything=values.flag("all"),
        alter=alter,
        warn=warn,
        **connection("manifest create", values),
    )
    print(f"Created manifest list {made.reference}")
    return 0


CREATE = Command(
    "manifest create",
    "Make a list of images for several platforms",
    _create,
    description="Who pulls such a list gets the image that fits the machine. It is kept here until "
    "'scow manifest push' gives it to a registry. Images may be here or in a registry; what platform "
    "they are for is read from them.",
    arguments=(LIST, Argument("IMAGE", NEW, count="*", complete="images")),
    options=(
        flag("-a", "--amend", help="Add to the list if it is there already"),
        ALL,
        many("--annotation", metavar="KEY=VALUE", help="Add an annotation to the list"),
        *REMOTE_OPTIONS,
    ),
    examples=(
        ("scow manifest create localhost:5000/app:v2 app:v2-amd64 app:v2-arm64", "make it"),
        ("scow manifest push localhost:5000/app:v2", "give it to the registry"),
    ),
    needs_root=_ROOT,
)


def _ls(values: Values) -> int:
    from scow.image.lists import all_lists

    rows: list[Row] = [
        {
            "Name": one.reference.familiar,
            "Platforms": ", ".join(
                str(entry.platform or entry.artifact_type or "?") for entry in one.index().manifests
            ),
            "Digest": one.digest,
        }
        for one in all_lists(session.images())
    ]
    if values.flag("quiet"):
        print("".join(f"{row['Name']}\n" for row in rows), end="")
        return 0
    headings = {"Name": "NAME", "Platforms": "PLATFORMS", "Digest": "DIGEST"}
    columns = ["Name", "Platforms"]
    write_rows(rows, columns=columns, headings=headings, form=values.text("format"))
    return 0


LS = Command(
    "manifest ls",
    "Show the lists of images that are here",
    _ls,
    description="Those of 'scow manifest create', and what other tools put into the store.",
    options=(
        flag("-q", "--quiet", help="Print the names only"),
        text("--format", metavar="FORMAT", help="'table', 'json', or a Go template"),
    ),
    examples=(("scow manifest ls", "what there is to push"),),
    needs_root=_ROOT,
)


def _add(values: Values) -> int:
    from scow.image.members import add_to_list

    images = values.words("IMAGE")
    if len(images) > 1 and any(values.given(option.key) for option in ENTRY_OPTIONS):
        raise UsageError("manifest add: what is said of a platform holds for one image only")
    changed = add_to_list(
        session.images(),
        values.word("LIST"),
        images,
        everything=values.flag("all"),
        dress=lambda entry: _dress(values, entry),
        warn=warn,
        **connection("manifest add", values),
    )
    print(changed.digest)
    return 0


ADD = Command(
    "manifest add",
    "Add images to a list",
    _add,
    description="An image that is in the list, or came by the same name, is replaced. Prints the "
    "list's new digest.",
    arguments=(LIST, Argument("IMAGE", NEW, count="+", complete="images")),
    options=(ALL, *ENTRY_OPTIONS, *REMOTE_OPTIONS),
    examples=(("scow manifest add app:v2 registry.example.com/app:v2-riscv64", "one more"),),
    needs_root=_ROOT,
)


def _annotate(values: Values) -> int:
    from scow.image.lists import change_list, find_member, get_list

    images, name = session.images(), values.word("LIST")
    found = get_list(images, name)
    words = values.words("IMAGE")
    if values.flag("index") == bool(words):
        raise UsageError("manifest annotate: name an image of the list, or say --index")
    if values.flag("index") and any(
        values.given(option.key) for option in ENTRY_OPTIONS if option is not ANNOTATION
    ):
        raise UsageError("manifest annotate: a list as a whole has no platform")
    digest = find_member(images, found, words[0]) if words else None

    def change(file: ListFile, sources: dict[str, str]) -> None:
        if digest is None:
            file.annotations = (file.annotations or {}) | _annotations(values)
        for entry in file.manifests:
            if entry.digest == digest:
                _dress(values, entry)

    print(change_list(images, name, change).digest)
    return 0


ANNOTATE = Command(
    "manifest annotate",
    "Change what a list says of an image",
    _annotate,
    description="For images that do not say by themselves what platform they are for, and for "
    "annotations of all kinds. Prints the list's new digest.",
    arguments=(LIST, Argument("IMAGE", MEMBER, count="?")),
    options=(*ENTRY_OPTIONS, flag("--index", help="Annotate the list itself, not an image of it")),
    examples=(("scow manifest annotate --arch arm --variant v7 app:v2 app:v2-arm", "fix it"),),
    needs_root=_ROOT,
)


def _remove(values: Values) -> int:
    from scow.image.lists import change_list, find_member, get_list

    images, name = session.images(), values.word("LIST")
    digest = find_member(images, get_list(images, name), values.word("IMAGE"))

    def change(file: ListFile, sources: dict[str, str]) -> None:
        file.manifests = [entry for entry in file.manifests if entry.digest != digest]
        sources.pop(digest, None)

    print(change_list(images, name, change).digest)
    return 0


REMOVE = Command(
    "manifest remove",
    "Take an image out of a list",
    _remove,
    description="The image itself stays. Prints the list's new digest. A whole list: 'manifest rm'.",
    arguments=(LIST, Argument("IMAGE", MEMBER)),
    examples=(("scow manifest remove app:v2 app:v2-riscv64", "without that one"),),
    needs_root=_ROOT,
)


def _push(values: Values) -> int:
    from scow.cli.push import push_one_list, write_digests

    destination = next(iter(values.words("DESTINATION")), None)
    pushed = push_one_list(
        values,
        values.word("LIST"),
        destination,
        connection("manifest push", values),
        everything=values.flag("all"),
    )
    write_digests(values, [pushed.digest])
    if values.flag("purge"):
        from scow.image.lists import remove_list

        remove_list(session.images(), values.word("LIST"))
    return 0


PUSH = Command(
    "manifest push",
    "Give a registry a list and its images",
    _push,
    description="Only what the registry lacks is sent, the list itself last. Images that were taken "
    "from a registry are moved within it; those of another one must be pulled first.",
    arguments=(LIST, Argument("DESTINATION", "Push it under this name instead", count="?")),
    options=(
        flag("--all", default=True, help="Push the images, too; --all=false: they are there"),
        flag("-p", "--purge", "--rm", help="Remove the list here when it is there"),
        flag("-q", "--quiet", help="Print the full name only"),
        text("--digestfile", metavar="FILE", help="Write the digest there", complete="files"),
        *REMOTE_OPTIONS,
    ),
    examples=(("scow manifest push localhost:5000/app:v2", "to a registry on this machine"),),
    needs_root=_ROOT,
)


def _rm(values: Values) -> int:
    from scow.image.lists import remove_list

    def remove(name: str) -> str:
        remove_list(session.images(), name)
        return name

    return each(values.words("LIST"), remove)


RM = Command(
    "manifest rm",
    "Remove lists from this machine",
    _rm,
    description="The images stay if they have names of their own; what a registry has stays, too.",
    arguments=(Argument("LIST", "Name of a list", count="+", complete="lists"),),
    examples=(("scow manifest rm localhost:5000/app:v2", "forget it"),),
    needs_root=_ROOT,
)
