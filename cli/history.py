"""history: how an image came about, newest step first."""

from __future__ import annotations

import time

from scow.cli import human
from scow.cli.format import Row, write_rows
from scow.cli.images import created_ns
from scow.cli.session import service
from scow.cli.table import Argument, Command, Values, flag, text

MISSING = "<missing>"
CREATED_BY_WIDTH = 45
HEADINGS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}


def _history(values: Values) -> int:
    from scow.image.history import read_details

    image = service().images.get(values.word("IMAGE"))
    steps = read_details(service().images, image).steps[::-1]
    full, readable, now_ns = values.flag("no-trunc"), values.flag("human"), time.time_ns()
    rows: list[Row] = []
    for number, step in enumerate(steps):
        short = image.id if full else human.short_id(image.id)
        made_ns = created_ns(step.created)
        at = step.created[:19] + "Z" if made_ns else "N/A"
        by = " ".join(step.created_by.split())
        rows.append(
            {
                # Docker's word: a layer of today is no image of its own.
                "ID": short if number == 0 else MISSING,
                "CreatedSince": human.ago(made_ns, now_ns) if made_ns else "N/A",
                "CreatedAt": at,
                "CreatedBy": by if full else human.ellipsis(by, CREATED_BY_WIDTH),
                "Size": human.decimal_size(step.size) if readable else str(step.size),
                "Comment": step.comment,
            }
        )
    if values.flag("quiet"):
        print("".join(f"{row['ID']}\n" for row in rows), end="")
        return 0
    columns = ["ID", "CreatedSince" if readable else "CreatedAt", "CreatedBy", "Size", "Comment"]
    write_rows(rows, columns=columns, headings=HEADINGS, form=values.text("format"))
    return 0


HISTORY = Command(
    "history",
    "Show how an image came about, step by step",
    _history,
    description=(
        "The newest step comes first, with the size of the layer that it made. It is what the "
        "image's authors wrote down; many write nothing."
    ),
    arguments=(Argument("IMAGE", "Name or id", complete="images"),),
    options=(
        text("--format", metavar="FORMAT", help="'table', 'json', or a Go template"),
        flag("-H", "--human", default=True, help="Sizes and dates for people, not exact ones"),
        flag("--no-trunc", help="Show whole ids and commands"),
        flag("-q", "--quiet", help="Show ids only"),
    ),
    examples=(("scow history --no-trunc nginx", "every step in full"),),
)
