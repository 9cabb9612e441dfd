"""AppArmor profiles of containers, on a kernel that enforces them: the guest's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures import apparmor
from fixtures.command import Scow
from fixtures.pods import Cri
from scow.native.errors import InvalidArgument

pytestmark = [pytest.mark.cgroup_v2, pytest.mark.root, pytest.mark.timeout(300)]
PROFILE = """
profile scow-test-pod flags=(attach_disconnected) {
  file,
  capability,
  network,
  signal,
  deny /tmp/secret rw,
}
"""
NAME = "scow-test-pod"
SHOW = "cat /proc/self/attr/current; echo x > /tmp/secret"


@pytest.fixture(scope="module", autouse=True)
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with apparmor.loaded(PROFILE, tmp_path_factory.mktemp("apparmor")):
        yield


@pytest.fixture
def cri(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cri]:
    made = Cri(str(tmp_path / "root"), str(tmp_path / "run"))
    made.take_busybox(request)
    yield made
    made.remove_all()
    made.close()
    assert made.service.check() == []


def secured(**context: Any) -> dict[str, Any]:
    return {"linux": {"security_context": context}}


@pytest.mark.parametrize("users", [False, True])
def test_a_container_and_its_execs_are_confined(cri: Cri, users: bool) -> None:
    line = {"host_id": 700_000, "container_id": 0, "length": 65536}
    ids = {"userns_options": {"mode": "POD", "uids": [line], "gids": [line]}} if users else {}
    pod = cri.pod(linux={"security_context": {"namespace_options": {"pid": "CONTAINER", **ids}}})
    local = {"profile_type": "Localhost", "localhost_ref": NAME}
    container = cri.running(pod, **secured(apparmor=local))
    assert cri.sh(container, "cat /proc/1/attr/current") == f"{NAME} (enforce)"
    done = cri.exec_sync(container_id=container, cmd=["sh", "-c", SHOW])
    assert done["stdout"] == f"{NAME} (enforce)\n".encode()
    assert b"Permission denied" in done["stderr"]
    old = cri.running(pod, **secured(apparmor_profile=f"localhost/{NAME}", no_new_privs=True))
    assert cri.sh(old, "cat /proc/1/attr/current") == f"{NAME} (enforce)"
    for free in ({"profile_type": "Unconfined"}, {"profile_type": "RuntimeDefault"}):
        other = cri.running(pod, **secured(apparmor=free))
        assert cri.sh(other, "cat /proc/1/attr/current") == "unconfined"


def test_a_profile_that_is_not_loaded(cri: Cri) -> None:
    with pytest.raises(InvalidArgument, match="not loaded"):
        cri.container(
            cri.pod(), **secured(apparmor={"profile_type": "Localhost", "localhost_ref": "nosuch"})
        )


def test_the_command_line(cri: Cri, tmp_path: Path) -> None:
    scow = Scow(str(tmp_path / "root"), str(tmp_path / "run"))
    words = ["run", "--rm", "--network", "none", "--security-opt", f"apparmor={NAME}", "--init"]
    assert scow.ok(*words, "busybox", "cat", "/proc/self/attr/current") == f"{NAME} (enforce)"
