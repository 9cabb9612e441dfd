"""image tree: what each layer of an image adds, hides and wastes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scow.cli import human
from scow.cli.format import clean, write_table
from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, text

if TYPE_CHECKING:
    from scow.image.digest import DiffID
    from scow.image.history import Step
    from scow.image.waste import FileSize, Waste

FILES_SHOWN = 10
STEP_WIDTH = 60


def _tree(values: Values) -> int:
    from scow.image.history import read_details
    from scow.image.waste import find_waste

    form = values.text("format")
    if form not in (None, "", "json"):
        raise UsageError("invalid --format: only 'json'")
    image = service().images.get(values.word("IMAGE"))
    waste = find_waste(service().images, image, keep=FILES_SHOWN)
    if form == "json":
        import msgspec

        print(msgspec.json.encode({"id": image.id, "names": image.names, "waste": waste}).decode())
        return 0
    steps = {s.diff_id: s for s in read_details(service().images, image).steps if s.diff_id}
    name = image.names[0] if image.names else human.short_id(image.id)
    print(f"{clean(name)}  {human.short_id(image.id)}  {image.os}/{image.architecture}\n")
    _write_layers(waste, steps)
    print(_totals(waste))
    if values.flag("files"):
        _write_files(waste)
    return 0


def _write_layers(waste: Waste, steps: dict[DiffID, Step]) -> None:
    table = [["LAYER", "FILES", "ADDS", "REMOVES", "HIDES FILES", "HIDES", "MADE BY"]]
    for number, layer in enumerate(waste.layers, 1):
        step = steps.get(layer.diff_id)
        made_by = " ".join(step.created_by.split()) if step else ""
        table.append(
            [
                f"{number} {human.short_id(layer.diff_id)}",
                str(layer.files),
                human.decimal_size(layer.bytes),
                str(layer.removed),
                str(layer.hidden_files),
                human.decimal_size(layer.hidden_bytes),
                clean(human.ellipsis(made_by, STEP_WIDTH)),
            ]
        )
    write_table(table)


def _totals(waste: Waste) -> str:
    share = 100 * waste.visible_bytes / waste.total_bytes if waste.total_bytes else 100
    return (
        f"\ntotal {human.decimal_size(waste.total_bytes)}, of it seen "
        f"{human.decimal_size(waste.visible_bytes)} ({share:.1f} %), hidden by upper layers "
        f"{human.decimal_size(waste.hidden_bytes)}"
    )


def _write_files(waste: Waste) -> None:
    for number, layer in enumerate(waste.layers, 1):
        _write_list(f"layer {number}: the biggest files", layer.biggest)
        _write_list(f"layer {number}: the biggest lower files that it hides", layer.wasted)


def _write_list(title: str, files: tuple[FileSize, ...]) -> None:
    if files:
        lines = [f"  {human.decimal_size(file.bytes):>8}  {clean(file.path)}\n" for file in files]
        sys.stdout.write(f"\n{title}\n" + "".join(lines))


TREE = Command(
    "image tree",
    "Show what each layer of an image adds and wastes",
    _tree,
    description=(
        "The bottom layer comes first. A file that an upper layer removes or replaces still takes "
        "its place on the disk and on the wire: that is what HIDES counts."
    ),
    arguments=(Argument("IMAGE", "Name or id", complete="images"),),
    options=(
        flag("-a", "--files", help="List the biggest files of each layer, and of those it hides"),
        text("--format", metavar="FORMAT", help="'json'"),
    ),
    examples=(("scow image tree -a app", "find what makes an image big"),),
)
