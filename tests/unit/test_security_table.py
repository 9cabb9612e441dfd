"""docs/security.md and the tests that it names: no known attack on a runtime or by an image is without its test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from mutants.images import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
# Every weakness of the field that concerns a low-level runtime, by the id it is known by.
CONCERNS_US = """
CVE-2019-5736 CVE-2020-14298 CVE-2020-14300 CVE-2024-21626 CVE-2016-9962 CVE-2015-3627 CVE-2016-8649 CVE-2016-10124
CVE-2017-5226 runc-1.3.4-leaks CVE-2021-30465 CVE-2019-16884 CVE-2019-19921 CVE-2023-27561 CVE-2023-28642
CVE-2025-31133 CVE-2025-62161 CVE-2025-52565 CVE-2025-52881 CVE-2025-62596 CVE-2026-41579 CVE-2026-47766
CVE-2024-45310 CVE-2024-5154 CVE-2026-55686 CVE-2015-3629 CVE-2015-3630 CVE-2015-3631 CVE-2018-10892
GHSA-jq35-85cj-fj4p GHSA-6fw5-f8r9-fgfm CVE-2023-25809 CVE-2015-1335 CVE-2015-1334 CVE-2022-47952 CVE-2026-23954
CVE-2024-0132 CVE-2025-23266 CVE-2026-24260 CVE-2022-0811 CVE-2022-0532 CVE-2024-3154 CVE-2023-6476 CVE-2022-4318
CVE-2026-15809 CVE-2026-62867 CVE-2026-48755 CVE-2022-24769 CVE-2022-27649 CVE-2022-27650 CVE-2022-29162
CVE-2025-27612 CVE-2016-8867 CVE-2018-1000400 CVE-2018-10856 CVE-2021-20188 CVE-2022-2989 CVE-2022-2990 CVE-2022-2995
CVE-2022-36109 CVE-2023-25173 CVE-2016-3697 CVE-2024-40635 CVE-2026-46680 CVE-2026-30892 CVE-2022-1227 setuid-files
CVE-2022-0492 CVE-2025-47291 CVE-2018-20699 CVE-2024-3056 default-device-rules CVE-2021-43784 CVE-2019-18837
crun-1.28-core container-id CVE-2019-14271 CVE-2024-9676 CVE-2026-47262 CVE-2025-4437 CVE-2026-53488 CVE-2026-57231
CVE-2020-14370 CVE-2021-21334 CVE-2020-27534 CVE-2019-13509 CVE-2014-3499 CVE-2020-15257 CVE-2021-41091 CVE-2021-41103
CVE-2024-25621 CVE-2023-2431 CVE-2026-31431 CVE-2022-0185 CVE-2024-1086 CVE-2022-1015 CVE-2020-14386 CVE-2017-7308
CVE-2014-8989 CVE-2016-0728 CVE-2022-23222 shocker
""".split()  # noqa: SIM905
# The same for images, and the checklist of bad inputs: E layers, D documents and archives, F registries.
CONCERNS_IMAGES = """
unpacker-confined CVE-2014-6407 CVE-2014-9356 CVE-2014-9357 CVE-2026-41567 CVE-2019-14271-images CVE-2021-29136
CVE-2021-32760 CVE-2025-47290 CVE-2017-14992 CVE-2025-58183 CVE-2020-1702 CVE-2023-25153 CVE-2026-41684 CVE-2021-20291
slow-removal CVE-2021-3493 CVE-2023-0386 CVE-2023-2640 CVE-2023-32629 CVE-2007-4559 CVE-2024-12718 CVE-2025-4138
CVE-2025-4330 CVE-2025-4435 CVE-2025-4517 CVE-2025-8194 CVE-2026-4360 CVE-2014-9358 CVE-2014-8178 CVE-2014-8179
CVE-2014-6408 CVE-2024-3727 CVE-2026-48769 CVE-2021-41190 CVE-2021-21285 CVE-2020-15157 CVE-2026-12566 CVE-2019-10214
CVE-2014-5277 CVE-2018-12608 CVE-2021-41092 CVE-2025-13836 CVE-2025-66471 CVE-2026-21441 name-and-digest
CVE-2026-50195 CVE-2026-53488-images CVE-2026-55887 CVE-2026-57231-images CVE-2022-23648 CVE-2020-1726
CVE-2024-9676-images CVE-2026-47262-images user-namespace CVE-2025-6032 short-names
""".split()  # noqa: SIM905
CHECKLIST = [f"E{n}" for n in range(1, 41)] + [f"{c}{n}" for c in "DF" for n in range(1, 12)]
# Rows of which nothing can be taken out: there is no code that reads what they are about, or it is a twin.
WITHOUT_A_DEFENCE = {
    "CVE-2026-53488-images": "labels are read by nobody",
    "user-namespace": "owners that must be right, not an input that is refused",
    "E2": "without its slash or with it: the root is the layer's either way (chroot)",
    "E38": "names of owners are read by nobody",
}
FILES = [
    *(ROOT / "tests/conformance").glob("test_oci_*.py"),
    ROOT / "tests/integration/test_oci_lifecycle.py",
    ROOT / "tests/fuzz/test_native.py",
    Path(__file__),
]
IMAGE_FILES = [
    *(ROOT / "tests/conformance").glob("test_hostile_*.py"),
    *(ROOT / "tests/conformance").glob("test_idmapped_*.py"),
    *(ROOT / "tests/integration").glob("test_layers_*.py"),
    *(ROOT / "tests/unit").glob("test_layers_*.py"),
    *(ROOT / "tests/integration").glob("test_registry_*.py"),
    ROOT / "tests/integration/test_image_archives.py",
    *(ROOT / "tests/unit").glob("test_image_*.py"),
    ROOT / "tests/unit/test_cli_import.py",
    ROOT / "tests/unit/test_reference_grammar.py",
    ROOT / "tests/unit/test_runtime_users.py",
    ROOT / "tests/fuzz/test_image_documents.py",
    Path(__file__),
]


def rows(section: int) -> list[tuple[list[str], list[str], list[str]]]:
    """Ids, tests and twins of each row; section 0 is of the runtime, 1 of images."""
    found: list[tuple[list[str], list[str], list[str]]] = []
    text = re.split(r"^## .*$", (ROOT / "docs/security.md").read_text(), flags=re.MULTILINE)[
        section
    ]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and cells[0] not in ("ids", "---"):
            found.append(
                (
                    cells[0].split(", "),
                    cells[2].split(", "),
                    cells[3].split(", ") if cells[3] else [],
                )
            )
    return found


def runnable(files: list[Path]) -> dict[str, set[str]]:
    """The tests that every run has (not those that are slow as a whole), and the rows that each names.

    By what it says of itself, or in the ids of the tables that its file is driven by.
    """
    found: dict[str, set[str]] = {}
    for path in files:
        body = ast.parse(path.read_text()).body
        tables = {
            word
            for node in body
            if not isinstance(node, ast.FunctionDef | ast.Expr)
            for word in named(node)
        }
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = " ".join(ast.unparse(mark) for mark in node.decorator_list)
                if not re.search(r"mark\.(slow|skip)\b", marks):
                    own = named(node) | (tables if "parametrize" in marks else set())
                    found.setdefault(node.name, set()).update(own)
    return found


def named(node: ast.AST) -> set[str]:
    """Rows of the checklist at the start of a string, or anywhere in what a test says of itself."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            found.update(re.findall(r"^[DEF]\d+\b", inner.value))
    if isinstance(node, ast.FunctionDef):
        found.update(re.findall(r"\b[DEF]\d+\b", ast.get_docstring(node) or ""))
    return found


@pytest.mark.parametrize(("section", "files"), [(0, FILES), (1, IMAGE_FILES)])
def test_every_row_has_its_tests(section: int, files: list[Path]) -> None:
    there = runnable(files)
    names = [name for _, tests, twins in rows(section) for name in (*tests, *twins)]
    assert [name for name in names if name not in there] == []
    assert all(tests != [""] for _, tests, _ in rows(section))


def test_no_known_attack_is_without_a_row() -> None:
    for section, concerns in ((0, CONCERNS_US), (1, [*CONCERNS_IMAGES, *CHECKLIST])):
        listed = [name for ids, _, _ in rows(section) for name in ids]
        assert sorted(set(concerns)) == sorted(listed)


def test_each_row_of_the_checklist_is_named_by_a_test_of_its_own() -> None:
    there = runnable(IMAGE_FILES)
    for ids, tests, twins in rows(1):
        told = set[str]().union(*(there[name] for name in (*tests, *twins)))
        assert {row for row in ids if row in CHECKLIST} <= told


def test_each_defence_is_known_by_what_happens_without_it() -> None:
    """tests/mutants/images.py is still of this code; whether its tests notice is what its run.py tells."""
    listed = {name for ids, _, _ in rows(1) for name in ids}
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text()
        assert (mutant.file, mutant.old, text.count(mutant.old)) == (mutant.file, mutant.old, 1)
        assert mutant.new != mutant.old
        assert [path for path in mutant.tests.split() if not (ROOT / path).is_file()] == []
        assert set(mutant.rows.split()) <= listed
    taken_out = {name for mutant in MUTANTS for name in mutant.rows.split()} | {*WITHOUT_A_DEFENCE}
    assert [ids for ids, _, _ in rows(1) if not taken_out & {*ids}] == []
    assert {*CHECKLIST} <= taken_out


def test_the_walls_are_as_high_as_is_said() -> None:
    """The numbers of docs/security.md about the unpacker, in the words of its code."""
    said = (ROOT / "docs/security.md").read_text()
    filters = (ROOT / "native/untar_filter.c").read_text()
    calls = [
        len(re.findall(r"\bSYS_\w+", part))
        for part in re.findall(r"calls\[\] = \{(.*?)\};", filters, re.S)
    ]
    privileges = (ROOT / "native/untar_privilege.c").read_text()
    kept = re.search(r"keep = (.*?);", privileges, re.S)
    assert kept is not None
    walls = (kept[1].count("CAP("), calls[0])
    assert f"network, {walls[0]} capabilities, {walls[1]} system calls, 64 MiB." in said
    assert "RLIMIT_AS, 64 << 20" in privileges
    assert f"it has that one, {calls[1]} system calls, and" in said


def test_tarfile_only_writes() -> None:
    """Its reader takes headers of any size into memory, and its filters have been passed by before.

    `scow cp -` reads headers with it, bounded (test_a_hostile_tar), and makes what they name by itself.
    """
    rooms = [path.parent for path in ROOT.glob("*/py.typed")]
    sources = {path: path.read_text() for room in rooms for path in room.rglob("*.py")}
    assert [path for path, text in sources.items() if "tarfile" in text], "save.py writes with it"
    wrong = re.compile(r"\.extract(all|file)?\(|tarfile\.open\([^)]*[\"']r|\bgetmembers\(")
    found = {
        path.relative_to(ROOT).as_posix() for path, text in sources.items() if wrong.search(text)
    }
    assert found == {"image/unplace.py"}
