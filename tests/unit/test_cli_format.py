"""Templates, tables, and Docker's words for sizes and times."""

from __future__ import annotations

import pytest

from scow.cli import human
from scow.cli.format import write_rows, write_table
from scow.cli.template import Template, TemplateError

DATA = {
    "A": {"B": "x"},
    "L": ["a", "b"],
    "M": {"k": "v", "j": 1},
    "N": 3,
    "F": 1.5,
    "T": True,
    "Z": None,
    "E": "",
    "Label": lambda key: f"<{key}>",
    "ID": "abc",
    "Lazy": lambda: "",
}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{.A.B}}", "x"),
        ("{{json .M}}", '{"k":"v","j":1}'),
        ('{{join .L ","}}', "a,b"),
        ('{{.L | join ","}}', "a,b"),
        ("{{range .L}}[{{.}}]{{end}}", "[a][b]"),
        ("{{range $i, $e := .L}}{{$i}}={{$e}} {{end}}", "0=a 1=b "),
        ("{{range $k, $v := .M}}{{$k}}:{{$v}},{{end}}", "j:1,k:v,"),
        ("{{range .Z}}x{{else}}none{{end}}", "none"),
        ("{{range .L}}{{.}}{{break}}{{end}}", "a"),
        ("{{if eq .N 3}}yes{{else if .A}}b{{else}}no{{end}}", "yes"),
        ("{{if eq .N 4}}yes{{else if .E}}b{{else}}no{{end}}", "no"),
        ("{{if eq .N 4}}yes{{else if .A}}b{{else}}no{{end}}", "b"),
        ("{{if .Lazy}}full{{else}}empty{{end}}", "empty"),
        ("{{with .A}}{{.B}}{{$.N}}{{end}}", "x3"),
        ('{{.Label "foo"}} {{upper .ID}} {{title "ab cd"}}', "<foo> ABC Ab Cd"),
        ('{{printf "%-5s|%03d|%q|%.1f|%5.2f%%" .ID .N .ID .F .F}}', 'abc  |003|"abc"|1.5| 1.50%'),
        ("{{.M}} {{.L}} {{.T}} {{.Z}} {{.F}}", "map[j:1 k:v] [a b] true <no value> 1.5"),
        ('{{index .M "k"}}{{index .L 1}}', "vb"),
        ("{{slice .ID 1 2}}{{slice .ID 1}}", "bbc"),
        ("a {{- .A.B -}} b", "axb"),
        ("{{/* a note */}}x", "x"),
        ("{{$x := .A}}{{$x.B}}", "x"),
        ("{{(index .L 0) | upper}}", "A"),
        ("{{len .L}}{{not true}}{{and .N .ID}}{{or .E .ID}}", "2falseabcabc"),
        ("{{and .E (index .L 9)}}", ""),
        ('{{println "a" 1}}', "a 1\n"),
        ('{{print "a" 1 2}}', "a1 2"),
        ('{{"}}"}}', "}}"),
        ("{{`a\\n`}}", "a\\n"),
        ("{{if and (ge .N 3) (lt .N 4)}}in{{end}}", "in"),
        ('{{range split "a,b" ","}}{{.}};{{end}}', "a;b;"),
        ('{{pad .ID 1 2}}|{{truncate .ID 2}}|{{lower "X"}}', " abc  |ab|x"),
        ("no actions { } at all", "no actions { } at all"),
    ],
)
def test_templates(source: str, text: str) -> None:
    assert Template(source).render(DATA) == text


@pytest.mark.parametrize(
    "source",
    ["{{", "{{.A", "{{if .A}}", "{{end}}", "{{nope .A}}", "{{.Foo}}", "{{.A.B.C}}", "{{range .ID}}{{end}}", "{{index .L 9}}",
     "{{.A ! }}", "{{}}", "{{( .A}}", "{{define \"x\"}}{{end}}", "{{$y}}", "{{.ID .ID}}", "{{join 1}}", "{{if .A}}{{else}}{{else}}{{end}}",
     "{{" + "(" * 200, "{{if .A}}" * 100, "x" * 70000, "{{lt .ID .N}}", "{{printf \"%9999d\" 1}}"],
)  # fmt: skip
def test_bad_templates(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(source).render(DATA)
    assert "\n" not in str(caught.value)


def test_field_suggestion() -> None:
    with pytest.raises(TemplateError) as caught:
        Template("{{.id}}").render({"ID": "x"})
    assert caught.value.hint == "did you mean '.ID'?"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(
        [
            ["CONTAINER ID", "IMAGE", "NAMES"],
            ["0123456789ab", "a", "x"],
            ["0123456789ab", "longer-image-name", "y"],
        ]
    )
    assert capsys.readouterr().out == (
        "CONTAINER ID   IMAGE               NAMES\n"
        "0123456789ab   a                   x\n"
        "0123456789ab   longer-image-name   y\n"
    )


def test_row_formats(capsys: pytest.CaptureFixture[str]) -> None:
    headings = {"ID": "CONTAINER ID", "Names": "NAMES"}
    rows = [{"ID": "1", "Names": lambda: "a\x1b[31m", "Label": lambda key: "v-" + key}]

    def show(form: str | None) -> str:
        write_rows(rows, columns=("ID", "Names"), headings=headings, form=form)
        return capsys.readouterr().out

    assert show(None) == "CONTAINER ID   NAMES\n1              a\\x1b[31m\n"
    assert show("json") == '{"ID":"1","Names":"a\\u001b[31m"}\n'
    assert show("{{.ID}}\\t{{json .Names}}") == '1\t"a\\u001b[31m"\n'
    assert show('table {{.ID}}\\t{{.Label "a.b"}}') == "CONTAINER ID   B\n1              v-a.b\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (119, "About a minute"), (120, "2 minutes"),
     (3599, "About an hour"), (3600 * 1.4, "About an hour"), (3600 * 1.6, "2 hours"), (3600 * 47, "47 hours"), (3600 * 48, "2 days"), (86400 * 13, "13 days"),
     (86400 * 14, "2 weeks"), (86400 * 59, "8 weeks"), (86400 * 60, "2 months"), (86400 * 729, "24 months"), (86400 * 731, "2 years")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    if seconds == 3599:
        assert human.duration(seconds) == "59 minutes"
    else:
        assert human.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "decimal", "binary"),
    [
        (0, "0B", "0B"),
        (999, "999B", "999B"),
        (1000, "1kB", "1000B"),
        (5_610_000, "5.61MB", "5.35MiB"),
        (1 << 30, "1.07GB", "1GiB"),
        (16285696, "16.3MB", "15.53MiB"),
    ],
)
def test_byte_counts(count: int, decimal: str, binary: str) -> None:
    assert human.decimal_size(count) == decimal
    assert human.binary_size(count) == binary
