"""The package: what pyproject.toml lists is what the tree holds, and what a wheel brings."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fixtures.checkout import build_wheel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def rooms() -> set[str]:
    return {path.parent.name for path in ROOT.glob("*/py.typed")}


def packages_in_tree() -> set[str]:
    found = {f"scow.{room}" for room in rooms()}
    for room in rooms():
        for path in (ROOT / room).rglob("*.py"):
            found.add(".".join(("scow", *path.parent.relative_to(ROOT).parts)))
    return found


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    """An unlisted sub-package works in editable mode and is missing from the wheel."""
    assert set(project["tool"]["setuptools"]["packages"]) == packages_in_tree()


def test_every_room_is_mapped(project: dict[str, Any]) -> None:
    mapping = project["tool"]["setuptools"]["package-dir"]
    assert mapping == {f"scow.{room}": room for room in rooms()}


def test_the_namespace_has_no_file_of_its_own() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert not (ROOT / "scow").exists()


def test_changelog_tells_of_this_version(project: dict[str, Any]) -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == project["project"]["version"]


def test_readme_commands_exist() -> None:
    """Every `make` target that the README or the changelog names is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for name in ("README.md", "CHANGELOG.md", ".ci/run"):
        text = (ROOT / name).read_text()
        for target in re.findall(r"(?:^|[`\s])make ([a-z][a-z-]+)\b", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name}: make {target}"


def test_packages_that_are_there_are_left_alone(tmp_path: Path) -> None:
    """With everything installed, no apt-get runs: it works without a network, and is quick."""
    for name, text in {
        "dpkg-query": "echo installed",
        "apt-get": "echo called apt-get >&2; exit 9",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "tests/vm/provision.sh", "packages", "run", "test", "vm"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def is_program(data: bytes) -> bool:
    """An ELF file that asks for no loader: it starts in any environment."""
    return data.startswith(b"\x7fELF") and b"ld-linux" not in data and b"ld-musl" not in data


def test_the_command_is_installed() -> None:
    """scow-oci is a program in C, and the entry of its interpreter lies beside it."""
    place = Path(sys.executable).parent
    assert is_program((place / "scow-oci").read_bytes())
    assert (place / "scow-oci-cold").read_text().startswith(f"#!{place}/")
    done = subprocess.run(
        [place / "scow-oci", "--version"],
        env={"SCOW_OCI_WARM": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("scow-oci version ")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wheel(tmp_path: Path, project: dict[str, Any]) -> None:
    """What `pip install .` brings: every module, the native part, no C, the embedded image."""
    wheel = build_wheel(tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = {
        f"scow/{path.relative_to(ROOT)}"
        for room in rooms()
        for path in [*(ROOT / room).rglob("*.py"), ROOT / room / "py.typed"]
    } - names
    assert not missing
    assert not [name for name in names if name.endswith((".c", ".h"))]
    assert "scow/cri/hello-image/index.json" in names
    assert any(re.fullmatch(r"scow/native/_scow\.abi3\.so", name) for name in names)
    scripts = f"scow-{project['project']['version']}.data/scripts"
    assert is_program(zipfile.ZipFile(wheel).read(f"{scripts}/scow-oci"))
    assert zipfile.ZipFile(wheel).read(f"{scripts}/scow-oci-cold").startswith(b"#!python")
    assert wheel.name.startswith(f"scow-{project['project']['version']}-cp311-abi3-linux_")
