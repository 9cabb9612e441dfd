"""--format: lists as tables, JSON lines or templates, with Docker's headings.

A list is rows of fields; a field is a text or a function without arguments that makes it (asked
only when shown). What must not go in: what the rows mean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

Field: TypeAlias = "str | Callable[..., str]"
Row: TypeAlias = "Mapping[str, Field]"

_MIN_WIDTH, _PADDING = 10, 3  # Docker's tabwriter


def write_table(lines: Sequence[Sequence[str]]) -> None:
    """Columns at least 10 wide and 3 apart, the last one ragged, as Docker writes them."""
    out: list[str] = []
    widths: list[int] = []
    for line in lines:
        for column, cell in enumerate(line[:-1]):
            width = max(_MIN_WIDTH, _width(cell) + _PADDING)
            if column == len(widths):
                widths.append(width)
            elif width > widths[column]:
                widths[column] = width
    for line in lines:
        for cell, width in zip(line[:-1], widths, strict=False):
            out.append(cell + " " * (width - _width(cell)))
        out.append((line[-1] if line else "") + "\n")
    sys.stdout.write("".join(out))


def _width(text: str) -> int:
    return len(text)


def clean(text: str) -> str:
    """A text from an image or a label, safe to show: no escape sequences, no line breaks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def value(field: Field) -> str:
    """The text of a field."""
    return field if isinstance(field, str) else field()


def write_rows(
    rows: Iterable[Row],
    *,
    columns: Sequence[str],
    headings: Mapping[str, str],
    form: str | None,
    json_fields: Sequence[str] | None = None,
) -> None:
    """Print a list. `form` is None or "table" (the columns), "json", or a template."""
    if form in (None, "", "table"):
        table = [[headings[column] for column in columns]]
        table += [[clean(value(row[column])) for column in columns] for row in rows]
        write_table(table)
    elif form == "json":
        for row in rows:
            names = sorted(json_fields or [n for n in row if n in headings])
            sys.stdout.write(_json({name: value(row[name]) for name in names}) + "\n")
    else:
        assert form is not None
        _write_template(rows, headings, form)


def _json(row: dict[str, str]) -> str:
    import json

    return json.dumps(row, separators=(",", ":"), ensure_ascii=False)


def _write_template(rows: Iterable[Row], headings: Mapping[str, str], form: str) -> None:
    from scow.cli.template import Template

    form = form.strip().replace("\\t", "\t").replace("\\n", "\n")
    is_table = form.startswith("table")
    template = Template(form.removeprefix("table").lstrip() if is_table else form)
    if not is_table:
        for row in rows:
            sys.stdout.write(template.render(row) + "\n")
        return
    head = template.render({**headings, "Label": lambda key="": key.rpartition(".")[2].upper()})
    lines = [head.split("\t")]
    lines += [clean_line(template.render(row)).split("\t") for row in rows]
    write_table(lines)


def clean_line(text: str) -> str:
    """`clean`, but tabs stay: they part the cells."""
    return "\t".join(clean(cell) for cell in text.split("\t"))
