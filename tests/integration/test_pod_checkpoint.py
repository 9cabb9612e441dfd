"""CheckpointContainer: an archive where CRIU works, and what is said where it does not."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.pods import Cri
from scow.native.errors import InvalidArgument, InvalidState, NotFound, ScowError, Unsupported

pytestmark = pytest.mark.timeout(300)
COUNT = ["sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"]


@pytest.fixture
def cri(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cri]:
    made = Cri(str(tmp_path / "root"), str(tmp_path / "run"))
    made.take_busybox(request)
    yield made
    made.remove_all()
    made.close()
    assert made.service.check() == []


@pytest.mark.criu
@pytest.mark.guest
@pytest.mark.parametrize("pid", ["CONTAINER", "POD"])
def test_a_checkpoint_is_an_archive_and_the_container_goes_on(
    cri: Cri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: str
) -> None:
    monkeypatch.setenv("SCOW_CRIU", kernel.criu_program())
    logs = tmp_path / "logs"
    pod = cri.pod(log_directory=str(logs), pid=pid)
    security = {"namespace_options": {"pid": pid}}
    container = cri.running(pod, COUNT, log_path="0.log", linux={"security_context": security})
    cri.sh(container, "echo > /dev/shm/x")
    location = tmp_path / "checkpoint.tar"
    cri.checkpoint_container(container_id=container, location=str(location), timeout=30)
    with tarfile.open(location) as archive:
        names = set(archive.getnames())
    assert {"config.dump", "spec.dump", "checkpoint/inventory.img"} <= names
    assert cri.container_state(container)["state"] == "CONTAINER_RUNNING"
    before = len((logs / "0.log").read_text().splitlines())
    deadline = time.monotonic() + 60
    while len((logs / "0.log").read_text().splitlines()) <= before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_said_where_it_cannot_be_done(
    cri: Cri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = cri.pod()
    container, created = cri.running(pod), cri.container(pod)
    location = str(tmp_path / "checkpoint.tar")
    with pytest.raises(InvalidArgument, match="absolute"):
        cri.checkpoint_container(container_id=container, location="here")
    with pytest.raises(NotFound, match="no such directory"):
        cri.checkpoint_container(container_id=container, location="/nosuch/x")
    with pytest.raises(NotFound):
        cri.checkpoint_container(container_id="nosuch", location=location)
    with pytest.raises(InvalidState, match="created"):
        cri.checkpoint_container(container_id=created, location=location)
    monkeypatch.setenv("SCOW_CRIU", "/nope/criu")
    with pytest.raises(Unsupported, match="need CRIU: '/nope/criu' is not there"):
        cri.checkpoint_container(container_id=container, location=location)
    broken = tmp_path / "criu"
    broken.write_text("#!/bin/sh\necho 'Error (x.c:1): this kernel will not do' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("SCOW_CRIU", str(broken))
    with pytest.raises(ScowError, match="this kernel will not do"):
        cri.checkpoint_container(container_id=container, location=location)
    assert cri.container_state(container)["state"] == "CONTAINER_RUNNING"
    assert not list(tmp_path.glob("checkpoint.tar*"))
