"""The arrows of the building point down only: a room imports what is below it and nothing else.

The table is design.md section 1. `native` may be imported by everyone: it is the ground floor.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "native": set[str](),
    "cgroups": {"native"},
    "netns": {"native"},
    "image": {"native"},
    "runtime": {"native", "cgroups"},
    "cri": {"native", "cgroups", "netns", "image", "runtime"},
    "cli": {"native", "netns", "image", "runtime", "cri"},
    "scheduler": {"native", "cri"},
}
# Imported late, inside functions, in every command that is short-lived: each costs 10 to 140 ms.
HEAVY = {
    "argparse", "asyncio", "email", "hashlib", "http", "logging", "pathlib", "pyroute2", "requests",
    "shutil", "sqlite3", "subprocess", "tempfile", "typer", "urllib", "zstandard",
}  # fmt: skip


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def modules(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if "hello-image" not in path.parts)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_down(room: str) -> None:
    wrong: list[str] = []
    for path in modules(room):
        for line, name in imported(ast.parse(path.read_text(), str(path))):
            parts = name.split(".")
            where = f"{path.relative_to(ROOT)}:{line}"
            if name.startswith("."):
                wrong.append(f"{where}: relative import '{name}'")
            elif parts[0] in MAY_IMPORT:
                wrong.append(f"{where}: '{name}' by its folder's name, say scow.{name}")
            elif name == "scow":
                wrong.append(f"{where}: 'scow' is a namespace, import the module")
            elif parts[0] == "scow" and parts[1] not in MAY_IMPORT[room] | {room}:
                wrong.append(f"{where}: {room} may not know {parts[1]}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_table() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/py.typed")}
    assert rooms == set(MAY_IMPORT)


def test_package_files_hold_nothing_but_a_docstring() -> None:
    """Importing scow.image.digest must load nothing else (house style, section 1)."""
    for room in MAY_IMPORT:
        for path in (ROOT / room).rglob("__init__.py"):
            body = ast.parse(path.read_text()).body
            rest = [node for node in body if not isinstance(node, ast.Expr)]
            assert not rest, f"{path.relative_to(ROOT)} holds code"


@pytest.mark.parametrize(
    "module",
    ["scow.cli.main", "scow.cri.service", "scow.runtime.oci_cli", "scow.runtime.oci_process"],
)
def test_the_hot_path_imports_nothing_heavy(module: str) -> None:
    room, name = module.split(".")[1:]
    if (
        importlib.util.find_spec(f"scow.{room}") is None
        or not (ROOT / room / f"{name}.py").exists()
    ):
        pytest.fail(f"{module} is missing")
    # What the interpreter and an editable install load by themselves is not the module's doing.
    program = (
        f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert not HEAVY & set(done.stdout.split())
