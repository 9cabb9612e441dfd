"""linux.intelRdt on a tree that stands for resctrl, which this machine's processor may not have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scow.native.errors import InvalidArgument, ScowError, Unsupported
from scow.runtime import oci_rdt
from scow.runtime.oci_state import ContainerDir
from scow.runtime.spec import IntelRdt

L3, MB = "L3:0=7f0;1=1f", "MB:0=20;1=70"


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new directory in resctrl has its files at once, and rmdir takes them along."""
    resctrl = tmp_path / "resctrl"
    real_mkdir, real_rmdir = os.mkdir, os.rmdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        real_mkdir(path, mode)
        real_mkdir(f"{path}/mon_groups")
        Path(path, "schemata").write_text("    MB:0=100;1=100\n    L3:0=7ff;1=7ff\n")
        Path(path, "tasks").touch()

    def rmdir(path: str) -> None:
        for place, _, files in os.walk(path, topdown=False):
            for name in files:
                os.unlink(f"{place}/{name}")
            if place != path:
                real_rmdir(place)
        real_rmdir(path)

    mkdir(str(resctrl))
    (resctrl / "info/L3_MON").mkdir(parents=True)
    (resctrl / "info/L3_MON/mon_features").write_text("llc_occupancy\nmbm_total_bytes\n")
    monkeypatch.setattr(oci_rdt.os, "mkdir", mkdir)
    monkeypatch.setattr(oci_rdt.os, "rmdir", rmdir)
    return resctrl


@pytest.fixture
def directory(tmp_path: Path) -> ContainerDir:
    (tmp_path / "state/c1").mkdir(parents=True)
    return ContainerDir(str(tmp_path / "state"), "c1")


def apply(intel: IntelRdt, directory: ContainerDir, top: Path) -> list[Callable[[], None]]:
    undo: list[Callable[[], None]] = []
    oci_rdt.join(oci_rdt.prepare(intel, directory, str(top), undo.append), 42)
    return undo


def test_a_group_of_the_containers_own(top: Path, directory: ContainerDir) -> None:
    apply(IntelRdt(l3_cache_schema=L3, mem_bw_schema=MB), directory, top)
    assert (top / "c1/tasks").read_text() == "42"
    assert (top / "c1/schemata").read_text() == f"{L3}\n{MB}\n"
    oci_rdt.update(IntelRdt(), "c1", str(top), "", "MB:0=50")
    assert (top / "c1/schemata").read_text() == "MB:0=50\n"
    oci_rdt.remove_own(directory)
    oci_rdt.remove_own(directory)
    assert not (top / "c1").exists()


def test_without_a_schema_none_is_written(top: Path, directory: ContainerDir) -> None:
    apply(IntelRdt(), directory, top)
    assert (top / "c1/schemata").read_text().startswith("    MB")


def test_a_create_that_fails_leaves_nothing(top: Path, directory: ContainerDir) -> None:
    intel = IntelRdt(clos_id="gold", schemata=(L3,), enable_monitoring=True)
    for step in reversed(apply(intel, directory, top)):
        step()
    assert not (top / "gold").exists()


@pytest.mark.parametrize(
    ("intel", "text"),
    [
        (IntelRdt(l3_cache_schema=f"{L3}\nMB:0=1", mem_bw_schema=MB), f"{L3}\n{MB}\n"),
        (IntelRdt(l3_cache_schema=f"{L3}\nMB:0=1"), f"{L3}\nMB:0=1\n"),
        (IntelRdt(l3_cache_schema=L3, schemata=("L2:0=f", "MB:0=9")), f"{L3}\nL2:0=f\nMB:0=9\n"),
        (IntelRdt(), ""),
    ],
)
def test_what_is_written_and_in_which_order(intel: IntelRdt, text: str) -> None:
    assert oci_rdt.schema_text(intel) == text


def test_a_class_that_is_there_is_joined(top: Path, directory: ContainerDir) -> None:
    with pytest.raises(ScowError, match="there is no group"):
        apply(IntelRdt(clos_id="gold"), directory, top)
    oci_rdt.os.mkdir(str(top / "gold"))
    apply(IntelRdt(clos_id="gold", enable_monitoring=True), directory, top)
    assert (top / "gold/tasks").read_text() == "42"
    assert (top / "gold/mon_groups/c1/tasks").read_text() == "42"
    oci_rdt.remove_own(directory)
    assert (top / "gold").exists()
    assert not (top / "gold/mon_groups/c1").exists()


def test_a_class_that_is_there_must_be_as_described(top: Path, directory: ContainerDir) -> None:
    oci_rdt.os.mkdir(str(top / "gold"))
    apply(IntelRdt(clos_id="gold", l3_cache_schema="L3:0=07FF"), directory, top)
    assert (top / "gold/schemata").read_text().startswith("    MB")
    with pytest.raises(ScowError, match="another schema for L3, domain 0"):
        apply(IntelRdt(clos_id="gold", l3_cache_schema=L3), directory, top)


def test_the_root_is_a_class(top: Path, directory: ContainerDir) -> None:
    apply(IntelRdt(clos_id="/", schemata=(MB,)), directory, top)
    assert (top / "tasks").read_text() == "42"
    assert (top / "schemata").read_text() == f"{MB}\n"
    oci_rdt.remove_own(directory)
    assert top.exists()


@pytest.mark.parametrize(
    "intel",
    [
        IntelRdt(clos_id="a/b"),
        IntelRdt(clos_id=".."),
        IntelRdt(mem_bw_schema="L3:0=1"),
        IntelRdt(mem_bw_schema=f"{MB}\n{MB}"),
    ],
)
def test_what_the_specification_forbids(intel: IntelRdt) -> None:
    with pytest.raises(InvalidArgument):
        oci_rdt.groups_of(intel, "c1", "/r")


def test_monitoring_must_be_there(top: Path, directory: ContainerDir) -> None:
    apply(IntelRdt(enable_cmt=True, enable_mbm=True), directory, top)
    (top / "info/L3_MON/mon_features").unlink()
    for intel in (IntelRdt(enable_cmt=True), IntelRdt(enable_monitoring=True)):
        with pytest.raises(Unsupported, match="monitor"):
            apply(intel, directory, top)
