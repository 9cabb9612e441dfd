"""The linters are tests: a change that they refuse is not finished."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.bundle import Done

ROOT = Path(__file__).resolve().parents[2]
TYPES = ("mypy", "pyright")
ROOMS = ("native", "runtime", "image", "cgroups", "netns", "cri", "cli", "scheduler")


def check(*argv: str) -> None:
    tool = Path(sys.executable).with_name(argv[0])
    program = str(tool) if tool.exists() else shutil.which(argv[0])
    assert program, f"{argv[0]} is not installed; run: make venv"
    done = subprocess.run(
        [program, *argv[1:]], cwd=ROOT, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"


def test_ruff() -> None:
    check("ruff", "check", "--quiet", ".")


def test_format() -> None:
    check("ruff", "format", "--check", "--quiet", ".")


@pytest.mark.parametrize(
    "tool", [pytest.param(tool, marks=pytest.mark.ahead("make", "-s", tool)) for tool in TYPES]
)
def test_types(tool: str, ran_ahead: Done) -> None:
    assert ran_ahead.code == 0, f"{tool}\n{ran_ahead.out}"


def test_shell_scripts_parse() -> None:
    for path in (ROOT / ".ci/run", *sorted((ROOT / "tests").rglob("*.sh"))):
        check("bash", "-n", str(path))


def test_functions_and_files_stay_small() -> None:
    """House style, section 10: files at most 500 lines, functions at most 60."""

    found: list[str] = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            text = path.read_text()
            name = path.relative_to(ROOT)
            if text.count("\n") > 500 and not path.name.startswith("syscalls_"):
                found.append(f"{name}: {text.count(chr(10))} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > 60:
                        found.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
        for path in sorted((ROOT / room).glob("*.[ch]")):
            if path.name != "_scow.c" and path.read_text().count("\n") > 500:
                found.append(f"{path.relative_to(ROOT)}: more than 500 lines")
    assert not found, "\n".join(found)
