"""Security contexts: who a container runs as, and what it may do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fixtures.pods import Cri
from scow.native.errors import InvalidArgument, Unsupported

pytestmark = pytest.mark.timeout(300)


def secured(**context: Any) -> dict[str, Any]:
    return {"linux": {"security_context": context}}


def test_users_and_groups(cri: Cri) -> None:
    pod = cri.pod()
    sailor = cri.running(pod, **secured(run_as_username="sailor"))
    assert cri.sh(sailor, "id -u; id -G") == "1000\n1000 2000"
    number = cri.running(pod, **secured(run_as_user={"value": 1000}, run_as_group={"value": 7}))
    assert cri.sh(number, "id -u; id -g; id -G") == "1000\n7\n7 2000"
    context = {"run_as_user": {"value": 1000}, "supplemental_groups": [42, 43]}
    merged = cri.running(pod, **secured(**context))
    assert sorted(cri.sh(merged, "id -G").split()) == ["1000", "2000", "42", "43"]
    strict = cri.running(pod, **secured(**context, supplemental_groups_policy="Strict"))
    assert sorted(cri.sh(strict, "id -G").split()) == ["1000", "42", "43"]
    assert cri.container_state(strict)["user"]["linux"] == {
        "uid": 1000,
        "gid": 1000,
        "supplemental_groups": [1000, 42, 43],
    }
    for refused in (cri.container, lambda pod, **fields: cri.pod(**fields)):
        with pytest.raises(InvalidArgument, match="run_as_group"):
            refused(pod, **secured(run_as_group={"value": 7}))


def bits(cri: Cri, container: str, name: str) -> int:
    return int(cri.sh(container, f"grep ^{name}: /proc/1/status").split()[1], 16)


def test_capabilities(cri: Cri) -> None:
    pod = cri.pod()
    net_admin, chown = 1 << 12, 1 << 0
    plain = cri.running(pod)
    assert not bits(cri, plain, "CapEff") & net_admin
    assert bits(cri, plain, "CapEff") & chown
    added = cri.running(pod, **secured(capabilities={"add_capabilities": ["NET_ADMIN"]}))
    assert bits(cri, added, "CapEff") & net_admin
    dropped = cri.running(pod, **secured(capabilities={"drop_capabilities": ["ALL"]}))
    assert bits(cri, dropped, "CapEff") == 0
    ambient = cri.running(
        pod,
        **secured(
            run_as_user={"value": 1000},
            capabilities={
                "add_capabilities": ["NET_ADMIN"],
                "add_ambient_capabilities": ["NET_ADMIN"],
            },
        ),
    )
    assert bits(cri, ambient, "CapAmb") == net_admin
    with pytest.raises(InvalidArgument, match="capability"):
        cri.container(pod, **secured(capabilities={"add_capabilities": ["NOSUCH"]}))


def test_privileged_needs_a_privileged_pod(cri: Cri) -> None:
    with pytest.raises(InvalidArgument, match="privileged"):
        cri.container(cri.pod(), **secured(privileged=True))
    pod = cri.pod(linux={"security_context": {"privileged": True}})
    container = cri.running(pod, **secured(privileged=True))
    assert cri.sh(container, "grep ^Seccomp: /proc/1/status").split()[1] == "0"
    cri.sh(container, "mount -t tmpfs none /tmp")
    other = cri.running(pod)
    assert cri.exec_sync(container_id=other, cmd=["mount", "-t", "tmpfs", "none", "/tmp"])[
        "exit_code"
    ]


def test_read_only_root_and_no_new_privileges(cri: Cri) -> None:
    container = cri.running(cri.pod(), **secured(readonly_rootfs=True, no_new_privs=True))
    done = cri.exec_sync(container_id=container, cmd=["touch", "/x"])
    assert b"Read-only" in done["stderr"]
    assert cri.sh(container, "grep ^NoNewPrivs: /proc/1/status").split()[1] == "1"


def test_masked_and_read_only_paths(cri: Cri) -> None:
    pod = cri.pod()
    context = {"masked_paths": ["/bin"], "readonly_paths": ["/tmp"]}
    container = cri.running(pod, ["/bin/sleep", "1000"], **secured(readonly_paths=["/tmp"]))
    done = cri.exec_sync(container_id=container, cmd=["touch", "/tmp/x"])
    assert b"Read-only" in done["stderr"]
    masked = cri.container(pod, ["/bin/sleep", "1"], **secured(**context))
    with pytest.raises(Exception, match=r"not found|No such"):
        cri.start_container(container_id=masked)


def test_seccomp(cri: Cri, tmp_path: Path) -> None:
    pod = cri.pod()

    def mode(**context: Any) -> str:
        container = cri.running(pod, **secured(**context))
        return cri.sh(container, "grep ^Seccomp: /proc/1/status").split()[1]

    assert mode() == "2"
    assert mode(seccomp={"profile_type": "RuntimeDefault"}) == "2"
    assert mode(seccomp={"profile_type": "Unconfined"}) == "0"
    assert mode(seccomp_profile_path="unconfined") == "0"
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    own = {"profile_type": "Localhost", "localhost_ref": str(profile)}
    container = cri.running(pod, **secured(seccomp=own))
    assert cri.exec_sync(container_id=container, cmd=["mkdir", "/tmp/x"])["exit_code"] == 1
    with pytest.raises(InvalidArgument, match="does not exist"):
        cri.container(
            pod, **secured(seccomp={"profile_type": "Localhost", "localhost_ref": "/nosuch"})
        )


def test_what_cannot_be_enforced_is_refused(cri: Cri) -> None:
    pod = cri.pod()
    profile = {"profile_type": "Localhost", "localhost_ref": "mine"}
    with pytest.raises(Unsupported, match="AppArmor"):
        cri.container(pod, **secured(apparmor=profile))
    with pytest.raises(Unsupported, match="AppArmor"):
        cri.container(pod, **secured(apparmor_profile="localhost/mine"))
    with pytest.raises(InvalidArgument, match="AppArmor"):
        cri.container(pod, **secured(apparmor_profile="mine"))
    with pytest.raises(Unsupported, match="SELinux"):
        cri.container(pod, **secured(selinux_options={"type": "x_t"}))
    with pytest.raises(Unsupported, match="CDI"):
        cri.container(pod, CDI_devices=[{"name": "x/y=z"}])


def test_devices_and_variables(cri: Cri) -> None:
    device = {"host_path": "/dev/null", "container_path": "/dev/mine", "permissions": "rw"}
    envs = [{"key": "A", "value": b"b c"}, {"key": "B", "value": b""}]
    container = cri.running(cri.pod(), devices=[device], envs=envs, working_dir="/tmp")
    assert cri.sh(container, "echo x > /dev/mine; cat /dev/mine; pwd; echo $A.$B.") == "/tmp\nb c.."


def test_the_stop_signal(cri: Cri) -> None:
    script = "trap 'exit 9' USR1; echo up > /dev/shm/up; while :; do sleep 0.05; done"
    container = cri.running(cri.pod(), ["sh", "-c", script], stop_signal="SIGNAL_SIGUSR1")
    cri.sh(container, "while [ ! -e /dev/shm/up ]; do sleep 0.05; done")
    assert cri.container_state(container)["stop_signal"] == "SIGNAL_SIGUSR1"
    cri.stop_container(container_id=container, timeout=10)
    assert cri.container_state(container)["exit_code"] == 9
    plain = cri.container(cri.pod())
    assert cri.container_state(plain)["stop_signal"] == "SIGNAL_SIGTERM"
