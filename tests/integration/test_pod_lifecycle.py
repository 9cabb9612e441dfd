"""Pods and their containers from RunPodSandbox to RemovePodSandbox: states, names, idempotence."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.pods import Cri
from scow.cri.execute import start_exec
from scow.cri.launch import container_cgroup
from scow.cri.options import ExecOptions
from scow.cri.status import read_run
from scow.native.errors import (
    AlreadyExists,
    CommandNotFound,
    DeadlineExceeded,
    InvalidArgument,
    InvalidState,
    NotFound,
    Unsupported,
)

pytestmark = pytest.mark.timeout(300)


def test_who_answers(cri: Cri) -> None:
    version = cri.version()
    assert version["version"] == "0.1.0"
    assert version["runtime_name"] == "scow"
    assert version["runtime_api_version"] == "v1"
    status = cri.status(verbose=True)
    conditions = {c["type"]: c["status"] for c in status["status"]["conditions"]}
    assert conditions == {"RuntimeReady": True, "NetworkReady": True}
    assert status["info"]["config"]
    assert cri.runtime_config() == {"linux": {"cgroup_driver": "CGROUPFS"}}
    assert cri.update_runtime_config(runtime_config={"network_config": {"pod_cidr": "x"}}) == {}


def test_the_life_of_a_pod(cri: Cri) -> None:
    labels, annotations = {"app": "web"}, {"note": "as it came"}
    pod = cri.pod(labels=labels, annotations=annotations)
    status = cri.pod_state(pod)
    assert status["state"] == "SANDBOX_READY"
    assert status["created_at"] > 0
    assert status["network"]["ip"].startswith("10.")
    assert (status["labels"], status["annotations"]) == (labels, annotations)
    assert status["linux"]["namespaces"]["options"]["pid"] == "CONTAINER"
    assert [item["id"] for item in cri.list_pod_sandbox()["items"]] == [pod]
    cri.stop_pod_sandbox(pod_sandbox_id=pod)
    cri.stop_pod_sandbox(pod_sandbox_id=pod)
    stopped = cri.pod_state(pod)
    assert (stopped["state"], stopped["network"]["ip"]) == ("SANDBOX_NOTREADY", "")
    with pytest.raises(InvalidState, match="not ready"):
        cri.container(pod)
    cri.remove_pod_sandbox(pod_sandbox_id=pod)
    cri.remove_pod_sandbox(pod_sandbox_id=pod)
    cri.stop_pod_sandbox(pod_sandbox_id=pod)
    assert cri.list_pod_sandbox()["items"] == []
    with pytest.raises(NotFound):
        cri.pod_state(pod)


def test_the_life_of_a_container(cri: Cri) -> None:
    pod = cri.pod()
    container = cri.container(pod, ["sh", "-c", "exit 7"], labels={"a": "b"})
    created = cri.container_state(container)
    assert (created["state"], created["started_at"]) == ("CONTAINER_CREATED", 0)
    cri.start_container(container_id=container)
    ended = cri.wait_exit(container)
    assert (ended["exit_code"], ended["reason"]) == (7, "Error")
    assert ended["finished_at"] >= ended["started_at"] > 0
    assert ended["image_id"] == cri.image_status(image={"image": "busybox"})["image"]["id"]
    with pytest.raises(InvalidState):
        cri.start_container(container_id=container)
    cri.stop_container(container_id=container, timeout=5)
    cri.remove_container(container_id=container)
    cri.remove_container(container_id=container)
    cri.stop_container(container_id=container)
    with pytest.raises(NotFound):
        cri.container_state(container)


def test_stopping_a_pod_ends_its_containers(cri: Cri) -> None:
    pod = cri.pod()
    running, created = cri.running(pod), cri.container(pod)
    cri.stop_pod_sandbox(pod_sandbox_id=pod)
    assert cri.container_state(running)["state"] == "CONTAINER_EXITED"
    assert cri.container_state(created)["state"] == "CONTAINER_CREATED"
    with pytest.raises(InvalidState):
        cri.start_container(container_id=created)
    cri.remove_pod_sandbox(pod_sandbox_id=pod)
    assert cri.list_containers()["containers"] == []


def test_names_are_reserved(cri: Cri) -> None:
    config = cri.pod_config()
    pod = cri.run_pod_sandbox(config=config)["pod_sandbox_id"]
    with pytest.raises(AlreadyExists, match=pod[:12]):
        cri.run_pod_sandbox(config=config)
    again = {**config, "metadata": {**config["metadata"], "attempt": 1}}
    assert cri.run_pod_sandbox(config=again)["pod_sandbox_id"] != pod
    first = cri.container(pod, metadata={"name": "web"})
    with pytest.raises(AlreadyExists):
        cri.container(pod, metadata={"name": "web"})
    assert cri.container(pod, metadata={"name": "web", "attempt": 1}) != first
    assert cri.container(
        cri.run_pod_sandbox(config=cri.pod_config())["pod_sandbox_id"], metadata={"name": "web"}
    )
    cri.remove_pod_sandbox(pod_sandbox_id=pod)
    assert cri.run_pod_sandbox(config=config)["pod_sandbox_id"]


def test_lists_are_filtered(cri: Cri) -> None:
    one, two = cri.pod(labels={"app": "a", "x": "1"}), cri.pod(labels={"app": "b"})
    first = cri.running(one, labels={"role": "db"})
    second = cri.container(two)

    def pods(**wanted: object) -> set[str]:
        return {item["id"] for item in cri.list_pod_sandbox(filter=wanted)["items"]}

    def containers(**wanted: object) -> set[str]:
        return {c["id"] for c in cri.list_containers(filter=wanted)["containers"]}

    assert pods() == {one, two}
    assert pods(id=one[:20]) == {one}
    assert pods(label_selector={"app": "a", "x": "1"}) == {one}
    assert pods(label_selector={"app": "a", "x": "2"}) == set()
    cri.stop_pod_sandbox(pod_sandbox_id=two)
    assert pods(state={"state": "SANDBOX_NOTREADY"}) == {two}
    assert pods(state={"state": "SANDBOX_READY"}) == {one}
    assert containers(pod_sandbox_id=one) == {first}
    assert containers(state={"state": "CONTAINER_CREATED"}) == {second}
    assert containers(label_selector={"role": "db"}) == {first}
    streamed = [item for part in cri.stream_containers() for item in part["containers"]]
    assert {item["id"] for item in streamed} == {first, second}


def test_what_is_refused(cri: Cri) -> None:
    pod = cri.pod()
    with pytest.raises(InvalidArgument, match="handler"):
        cri.run_pod_sandbox(config=cri.pod_config(), runtime_handler="kata")
    with pytest.raises(InvalidArgument, match=r"config\.metadata"):
        cri.run_pod_sandbox(config={})
    with pytest.raises(InvalidArgument, match="config"):
        cri.run_pod_sandbox()
    with pytest.raises(NotFound, match="nosuch"):
        cri.container(pod, image={"image": "nosuch"})
    with pytest.raises(NotFound):
        cri.start_container(container_id="0" * 64)
    with pytest.raises(InvalidArgument):
        cri.start_container()
    with pytest.raises(NotFound):
        cri.container_status(container_id="nosuch")
    with pytest.raises(Unsupported, match="pods"):
        cri.checkpoint_pod(pod_sandbox_id=pod, output_path="/x")
    with pytest.raises(Unsupported, match="pods"):
        cri.restore_pod(checkpoint_path="/x")
    assert len(cri.list_pod_sandbox()["items"]) == 1


def test_a_pod_that_cannot_be_made_leaves_nothing(cri: Cri, tmp_path: Path) -> None:
    config = cri.pod_config(linux={"sysctls": {"kernel.shm_rmid_forced": "nonsense"}})
    with pytest.raises(Exception, match="shm_rmid_forced"):
        cri.run_pod_sandbox(config=config)
    assert list((tmp_path / "run/pods").iterdir()) == []
    assert list((tmp_path / "root/pods").iterdir()) == []
    config["linux"].pop("sysctls")
    assert cri.run_pod_sandbox(config=config)


def test_a_command_that_is_missing(cri: Cri) -> None:
    pod = cri.pod()
    container = cri.container(pod, ["/nosuch"])
    with pytest.raises(CommandNotFound, match="nosuch") as told:
        cri.start_container(container_id=container)
    status = cri.container_state(container)
    assert (status["state"], status["reason"]) == ("CONTAINER_EXITED", "StartError")
    assert (status["exit_code"], status["message"]) == (128, str(told.value))


def test_what_fails_before_there_is_a_monitor_has_ended_too(cri: Cri, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    mount = {"host_path": str(source), "container_path": "/data"}
    container = cri.container(cri.pod(), mounts=[mount])
    source.rmdir()
    with pytest.raises(NotFound, match="source") as told:
        cri.start_container(container_id=container)
    status = cri.container_state(container)
    assert (status["state"], status["reason"]) == ("CONTAINER_EXITED", "StartError")
    assert (status["exit_code"], status["message"]) == (128, str(told.value))
    assert status["finished_at"] > status["created_at"]


def test_a_time_to_stop_of_zero_asks_nobody(cri: Cri) -> None:
    pod = cri.pod()
    polite = ["sh", "-c", "trap 'exit 3' TERM; touch /set; while :; do sleep 0.05; done"]
    asked, killed = cri.running(pod, polite), cri.running(pod, polite)
    for container in (asked, killed):
        cri.sh(container, "until [ -e /set ]; do sleep 0.02; done")
    cri.stop_container(container_id=asked, timeout=20)
    cri.stop_container(container_id=killed, timeout=0)
    assert cri.container_state(asked)["exit_code"] == 3
    assert cri.container_state(killed)["exit_code"] == 137


def test_out_of_memory_is_told(cri: Cri) -> None:
    resources = {"memory_limit_in_bytes": 20 << 20}
    # tail keeps what it reads: the kernel ends it.
    eater = cri.running(cri.pod(), ["tail", "/dev/zero"], linux={"resources": resources})
    status = cri.wait_exit(eater)
    assert (status["exit_code"], status["reason"]) == (137, "OOMKilled")
    assert status["resources"]["linux"]["memory_limit_in_bytes"] == 20 << 20


def test_exec_sync_in_what_is_paused_meanwhile(cri: Cri) -> None:
    """Its time runs, though v1 lets nothing frozen die; what came too late never runs."""
    container = cri.running(cri.pod())
    cgroup = container_cgroup(cri.service.store.read(container))
    cgroup.freeze()  # past the service, which would refuse the command
    try:
        record = cri.service.store.read(container)
        run = read_run(cri.service.store, container)
        late = ExecOptions(("touch", "/late"), timeout_s=1)
        with pytest.raises(TimeoutError):
            start_exec(record, run, cri.service._around, late)
    finally:
        cgroup.thaw()
    with ThreadPoolExecutor(1) as pool:
        command = ["sh", "-c", "echo > /here; sleep 1234"]
        asked = pool.submit(cri.exec_sync, container_id=container, cmd=command, timeout=2)
        while not cri.sh(container, "ls /").count("here"):
            time.sleep(0.01)
        cri.service.pause(container)
        with pytest.raises(DeadlineExceeded):
            asked.result(timeout=60)
    cri.service.unpause(container)
    while "sleep 1234" in cri.sh(container, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"):
        time.sleep(0.01)
    assert "late" not in cri.sh(container, "ls /")


def test_exec_sync(cri: Cri) -> None:
    container = cri.running(cri.pod())
    done = cri.exec_sync(container_id=container, cmd=["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert done == {"stdout": b"out\n", "stderr": b"err\n", "exit_code": 3}
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="1 s"):
        cri.exec_sync(container_id=container, cmd=["sleep", "60"], timeout=1)
    assert time.monotonic() - begun < 30
    assert "sleep 60" not in cri.sh(container, "ps")
    with pytest.raises(DeadlineExceeded):
        cri.exec_sync(container_id=container, cmd=["sh", "-c", "sleep 61; true"], timeout=1)
    assert "sleep 61" not in cri.sh(container, "ps")
    done = cri.exec_sync(container_id=container, cmd=["sh", "-c", "kill -9 $$"], timeout=60)
    assert done["exit_code"] == 137
    with pytest.raises(CommandNotFound):
        cri.exec_sync(container_id=container, cmd=["/nosuch"])
    with pytest.raises(InvalidArgument):
        cri.exec_sync(container_id=container)


def test_exec_sync_keeps_sixteen_mebibytes(cri: Cri) -> None:
    container = cri.running(cri.pod())
    script = "head -c 17825792 /dev/zero; echo done >&2"
    done = cri.exec_sync(container_id=container, cmd=["sh", "-c", script])
    assert len(done["stdout"]) == 16 << 20
    assert (done["stderr"], done["exit_code"]) == (b"done\n", 0)


def test_the_log_is_written_and_reopened(cri: Cri, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    pod = cri.pod(log_directory=str(logs))
    script = "echo one; read x; echo $x; echo err >&2; sleep 1000"
    container = cri.running(pod, ["sh", "-c", script], log_path="c/0.log", stdin=True)
    path = logs / "c/0.log"
    wait_for(lambda: " stdout F one\n" in path.read_text())
    path.rename(logs / "c/0.log.1")
    cri.reopen_container_log(container_id=container)
    assert path.read_text() == ""
    session = cri.session(
        cri.attach(container_id=container, stdin=True, stdout=True, stderr=True)["url"]
    )
    with session.open() as connection:
        connection.send_stdin(b"two\n")
        wait_for(lambda: path.read_text().count("\n") == 2)
    lines = [line.split(" ", 1)[1] for line in path.read_text().splitlines()]
    assert sorted(lines) == ["stderr F err", "stdout F two"]
    assert cri.container_state(container)["log_path"] == str(path)
    cri.stop_container(container_id=container)
    path.unlink()
    with pytest.raises(InvalidState):
        cri.reopen_container_log(container_id=container)
    assert not path.exists()
    with pytest.raises(InvalidArgument, match="log_path"):
        cri.container(pod, log_path="../../etc/x")


def test_resources_are_changed(cri: Cri) -> None:
    container = cri.running(cri.pod(), linux={"resources": {"memory_limit_in_bytes": 64 << 20}})
    cri.update_container_resources(container_id=container, linux={"oom_score_adj": 7})
    assert cri.container_state(container)["resources"]["linux"].get("oom_score_adj") != 7
    cri.update_container_resources(
        container_id=container, linux={"memory_limit_in_bytes": 96 << 20, "cpu_shares": 512}
    )
    shown = cri.container_state(container)["resources"]["linux"]
    assert (shown["memory_limit_in_bytes"], shown["cpu_shares"]) == (96 << 20, 512)
    stats = cri.service.stats(container)
    assert stats.memory_limit_bytes == 96 << 20
    with pytest.raises(InvalidArgument):
        cri.update_container_resources(container_id=container, linux={"cpu_quota": 1})
    assert cri.container_state(container)["resources"]["linux"]["cpu_shares"] == 512


def test_the_pod_has_limits_of_its_own(cri: Cri) -> None:
    pod = cri.pod(
        linux={
            "resources": {"memory_limit_in_bytes": 100 << 20},
            "overhead": {"memory_limit_in_bytes": 20 << 20},
        }
    )
    cri.running(pod)

    def limit() -> int:
        linux = cri.pod_sandbox_stats(pod_sandbox_id=pod)["stats"]["linux"]["memory"]
        return int(linux["available_bytes"]["value"] + linux["working_set_bytes"]["value"])

    assert limit() == 120 << 20
    cri.update_pod_sandbox_resources(
        pod_sandbox_id=pod, resources={"memory_limit_in_bytes": 200 << 20}
    )
    assert limit() == 200 << 20


def wait_for(question, timeout_s: float = 60) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.01)
