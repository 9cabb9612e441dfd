"""docs/security.md and the tests that it names: no known attack on a runtime is without its test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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
FILES = [
    *(ROOT / "tests/conformance").glob("test_oci_*.py"),
    ROOT / "tests/integration/test_oci_lifecycle.py",
    ROOT / "tests/fuzz/test_native.py",
    Path(__file__),
]


def rows() -> list[tuple[list[str], list[str], list[str]]]:
    """Ids, tests and twins of each row."""
    found: list[tuple[list[str], list[str], list[str]]] = []
    for line in (ROOT / "docs/security.md").read_text().splitlines():
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


def runnable() -> set[str]:
    """The tests that every run has: not those that are marked slow as a whole."""
    found: set[str] = set()
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = " ".join(ast.unparse(mark) for mark in node.decorator_list)
                if not re.search(r"mark\.(slow|skip)\b", marks):
                    found.add(node.name)
    return found


def test_every_row_has_its_tests() -> None:
    there = runnable()
    named = [name for _, tests, twins in rows() for name in (*tests, *twins)]
    assert [name for name in named if name not in there] == []
    assert all(tests != [""] for _, tests, _ in rows())


def test_no_known_attack_is_without_a_row() -> None:
    listed = [name for ids, _, _ in rows() for name in ids]
    assert sorted(set(CONCERNS_US)) == sorted(listed)
