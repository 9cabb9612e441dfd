"""Labels of security modules in the plans of scow-oci; the kernel's side is tested in the guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scow.native import plan as p
from scow.native.errors import ScowError
from scow.native.fd import OwnedFd
from scow.runtime import oci_labels
from scow.runtime.oci_compile import Ends, compile_create, compile_exec
from scow.runtime.spec import Linux, Namespace, Process, RootFilesystem, Spec, SpecMount

NAMESPACES = tuple(Namespace(kind) for kind in ("mount", "pid", "ipc"))
LABEL = "system_u:system_r:container_t:s0:c1,c2"


def ends(keyring: str = "_ses.x") -> Ends:
    return Ends(hold=lambda fd: fd.fileno(), keyring=keyring)


def plan_of(process: Process, mount_label: str = "", *, keyring: str = "_ses.x") -> p.Plan:
    mounts = (SpecMount("/t", "tmpfs"), SpecMount("/q", "mqueue"), SpecMount("/proc", "proc"))
    linux = Linux(namespaces=NAMESPACES, mount_label=mount_label)
    spec = Spec("1.3.0", RootFilesystem("/"), process=process, mounts=mounts, linux=linux)
    with OwnedFd(os.open("/", os.O_PATH | os.O_CLOEXEC)) as root:
        return compile_create(spec, process, root.fileno(), "/", ends(keyring))


def position(plan: p.Plan, kind: type[p.Operation]) -> int:
    return next(i for i, op in enumerate(plan.ops) if isinstance(op, kind))


def labels(plan: p.Plan) -> list[tuple[int, str, str]]:
    return [(i, op.file, op.label) for i, op in enumerate(plan.ops) if isinstance(op, p.SetLabel)]


def test_a_profile_is_set_for_the_next_execve() -> None:
    plan = plan_of(Process("/", ("true",), apparmor_profile="tight"))
    [(at, file, label)] = labels(plan)
    assert file in ("attr/exec", "attr/apparmor/exec")
    assert label == "exec tight"
    # The private procfs is mounted while the host's is visible, before the program's hooks and filter.
    assert at < position(plan, p.PivotRoot)


def test_a_label_is_of_the_program_and_of_its_keys() -> None:
    plan = plan_of(Process("/", ("true",), selinux_label=LABEL))
    keyring = position(plan, p.NewSessionKeyring)
    found = labels(plan)
    assert [(file, label) for _, file, label in found] == [
        ("attr/exec", LABEL),
        ("attr/keycreate", LABEL),
        ("attr/keycreate", ""),
    ]
    assert found[1][0] < keyring < found[2][0]
    assert len(labels(plan_of(Process("/", ("true",), selinux_label=LABEL), keyring=""))) == 1


def test_an_exec_is_labelled_before_it_joins_anything() -> None:
    process = Process("/", ("true",), apparmor_profile="tight")
    spec = Spec("1.3.0", RootFilesystem("/"), linux=Linux(namespaces=NAMESPACES))
    plan = compile_exec(spec, process, 9, ends(""), (b"", b""))
    [(at, _, _)] = labels(plan)
    assert at < position(plan, p.JoinNamespace)


def test_mounts_get_the_label_where_they_take_one() -> None:
    plan = plan_of(Process("/", ("true",)), LABEL)
    mounts = {op.dest: op for op in plan.ops if isinstance(op, p.MountFilesystem)}
    assert ("context", LABEL) in mounts["/t"].options
    assert mounts["/q"].options == mounts["/proc"].options == ()
    assert [op.path for op in plan.ops if isinstance(op, p.LabelMount)] == ["/q"]


def test_a_host_without_the_module_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(oci_labels, "_APPARMOR", str(tmp_path / "no"))
    monkeypatch.setattr(oci_labels, "_SELINUX", str(tmp_path / "no"))
    for process, mount in (
        (Process("/", apparmor_profile="x"), ""),
        (Process("/", selinux_label="x"), ""),
        (Process("/"), "x"),
    ):
        with pytest.raises(ScowError, match=r"enabled|disabled"):
            oci_labels.check_labels(process, mount)
    (tmp_path / "yes").write_text("Y\n")
    monkeypatch.setattr(oci_labels, "_APPARMOR", str(tmp_path / "yes"))
    oci_labels.check_labels(Process("/", apparmor_profile="x"))


def test_a_program_under_our_own_label_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process("/", apparmor_profile="tight")
    told = {"self": "unconfined"}
    monkeypatch.setattr(oci_labels, "_label", lambda pid, _file: told.get(pid))
    oci_labels.check_applied(7, process)  # it has ended
    for label in ("tight", "tight//child"):
        told["7"] = label
        oci_labels.check_applied(7, process)
    told["7"] = "unconfined"
    with pytest.raises(ScowError, match="not applied"):
        oci_labels.check_applied(7, process)
    oci_labels.check_applied(7, Process("/", apparmor_profile="unconfined"))
