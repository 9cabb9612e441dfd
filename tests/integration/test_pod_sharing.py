"""What the containers of a pod share and what they do not: network, IPC, names, processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

import pytest

from fixtures.pods import Cri
from scow.cri.pod_init import init_pid
from scow.native.errors import AlreadyExists, InvalidArgument, Unsupported

pytestmark = pytest.mark.timeout(300)
LISTEN = ["sh", "-c", "while :; do echo served | nc -l -p 8080; done"]


def test_localhost_ipc_and_names_are_shared(cri: Cri) -> None:
    pod = cri.pod(hostname="island")
    one, two = cri.running(pod, LISTEN), cri.running(pod)
    assert (
        cri.sh(two, "for i in $(seq 300); do nc 127.0.0.1 8080 && break; sleep 0.1; done")
        == "served"
    )
    cri.sh(one, "echo shared > /dev/shm/x")
    assert cri.sh(two, "cat /dev/shm/x") == "shared"
    for namespace in ("net", "ipc", "uts"):
        shown = {cri.sh(c, f"readlink /proc/self/ns/{namespace}") for c in (one, two)}
        assert len(shown) == 1
        assert os.readlink(f"/proc/self/ns/{namespace}") not in shown
    for namespace in ("mnt", "pid", "cgroup"):
        assert len({cri.sh(c, f"readlink /proc/self/ns/{namespace}") for c in (one, two)}) == 2
    assert cri.sh(one, "hostname") == cri.sh(two, "cat /etc/hostname; ").strip() == "island"
    address = cri.pod_state(pod)["network"]["ip"]
    assert f"{address}\tisland" in cri.sh(two, "cat /etc/hosts")


def test_a_container_comes_and_goes_and_the_pod_stays(cri: Cri) -> None:
    pod = cri.pod()
    before = cri.pod_state(pod)["network"]["ip"]
    first = cri.running(pod)
    namespace = cri.sh(first, "readlink /proc/self/ns/net")
    cri.remove_container(container_id=first)
    assert cri.pod_state(pod)["state"] == "SANDBOX_READY"
    second = cri.running(pod)
    assert cri.sh(second, "readlink /proc/self/ns/net") == namespace
    assert before in cri.sh(second, "ip -o -4 addr show eth0")


def test_one_pid_namespace_has_an_init(cri: Cri) -> None:
    pod = cri.pod(pid="POD")
    pod_pid = {"linux": {"security_context": {"namespace_options": {"pid": "POD"}}}}
    one = cri.running(pod, ["sleep", "1001"], **pod_pid)
    two = cri.running(pod, ["sleep", "1002"], **pod_pid)
    for container in (one, two):
        listing = cri.sh(container, "ps")
        assert "sleep 1001" in listing
        assert "sleep 1002" in listing
        assert "scow-init" in listing
    # Orphans fall to the init, which reaps them.
    cri.sh(one, "for i in $(seq 20); do (sleep 0.1 &); done")
    gone = "until ! ps | grep -q '[s]leep 0.1\\|[[]sleep[]]'; do :; done"
    cri.exec_sync(container_id=two, cmd=["sh", "-c", gone], timeout=60)
    cri.stop_container(container_id=one, timeout=0)
    assert "sleep 1002" in cri.sh(two, "ps")
    assert cri.pod_state(pod)["state"] == "SANDBOX_READY"


def test_a_pod_whose_init_is_gone_is_not_ready(cri: Cri) -> None:
    pod = cri.pod(pid="POD")
    container = cri.running(pod, linux={"security_context": {"namespace_options": {"pid": "POD"}}})
    pid = init_pid(cri.pods.store.run_dir(pod))
    assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:")
    os.kill(pid, signal.SIGKILL)
    # pid_namespaces(7): all processes of the namespace go with its first.
    assert cri.wait_exit(container)["exit_code"] == 137
    assert cri.pod_state(pod)["state"] == "SANDBOX_NOTREADY"
    assert cri.list_pod_sandbox()["items"][0]["state"] == "SANDBOX_NOTREADY"


def test_pid_namespaces_of_other_kinds(cri: Cri) -> None:
    pod = cri.pod()

    def with_pid(**options: object) -> dict[str, object]:
        return {"linux": {"security_context": {"namespace_options": options}}}

    own = cri.running(pod, ["sleep", "1003"], **with_pid(pid="CONTAINER"))
    assert "1 root     sleep 1003" in cri.sh(own, "ps")
    host = cri.running(pod, **with_pid(pid="NODE"))
    assert cri.sh(host, "readlink /proc/self/ns/pid") == os.readlink("/proc/self/ns/pid")
    guest = cri.running(pod, **with_pid(pid="TARGET", target_id=own))
    assert "sleep 1003" in cri.sh(guest, "ps")
    with pytest.raises(InvalidArgument, match="shares no PID namespace"):
        cri.container(pod, **with_pid(pid="POD"))
    other = cri.running(cri.pod())
    with pytest.raises(InvalidArgument, match="does not run in pod"):
        cri.container(pod, **with_pid(pid="TARGET", target_id=other))


def test_the_hosts_network_and_ipc(cri: Cri) -> None:
    node = {"namespace_options": {"network": "NODE", "ipc": "NODE", "pid": "CONTAINER"}}
    pod = cri.pod(linux={"security_context": node})
    container = cri.running(pod)
    for namespace in ("net", "ipc", "uts"):
        own = os.readlink(f"/proc/self/ns/{namespace}")
        assert cri.sh(container, f"readlink /proc/self/ns/{namespace}") == own
    assert cri.sh(container, "hostname") == os.uname().nodename
    assert cri.pod_state(pod)["network"]["ip"] == ""
    with pytest.raises(InvalidArgument, match="rename the host"):
        cri.pod(hostname="island", linux={"security_context": node})


def test_dns_and_sysctls(cri: Cri) -> None:
    dns = {"servers": ["10.9.8.7"], "searches": ["a.example", "b.example"], "options": ["ndots:3"]}
    sysctls = {"net.ipv4.tcp_keepalive_time": "4321", "kernel.shm_rmid_forced": "1"}
    pod = cri.pod(dns_config=dns, linux={"sysctls": sysctls})
    container = cri.running(pod)
    assert cri.sh(container, "cat /etc/resolv.conf").splitlines() == [
        "nameserver 10.9.8.7",
        "search a.example b.example",
        "options ndots:3",
    ]
    assert cri.sh(container, "cat /proc/sys/net/ipv4/tcp_keepalive_time") == "4321"
    assert cri.sh(container, "cat /proc/sys/kernel/shm_rmid_forced") == "1"
    with pytest.raises(InvalidArgument, match="not the container's own"):
        cri.pod(linux={"sysctls": {"vm.swappiness": "1"}})


def test_host_ports_lead_into_the_pod(cri: Cri) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mapping = {"container_port": 8080, "host_port": port}
    pod = cri.pod(port_mappings=[mapping, {"container_port": 99}])
    cri.running(pod, LISTEN)
    assert fetch(port) == b"served\n"
    with pytest.raises(AlreadyExists, match="in use"):
        cri.pod(port_mappings=[mapping])
    cri.stop_pod_sandbox(pod_sandbox_id=pod)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=2)
    cri.pod(port_mappings=[mapping])
    with pytest.raises(Unsupported):
        cri.pod(port_mappings=[{**mapping, "protocol": "SCTP"}])


def fetch(port: int) -> bytes:
    for _ in range(100):
        # The server is one nc after the other: between two of them nobody listens.
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        ):
            if data := connection.recv(100):
                return data
        time.sleep(0.05)
    raise AssertionError("nobody served")
