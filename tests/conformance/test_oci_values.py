"""Values that become more than they say: sysctls, annotations, users, capabilities, limits, lengths.

Through scow-oci; docs/security.md is the table. Each refusal has the twin beside it that must work.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fixtures import kernel
from fixtures.bundle import SCOW_OCI, Bundle, Runtime
from fixtures.hostile import KINDS, World, capabilities, facts, until
from fixtures.profile import CAPABILITIES, DEFAULT, FORBIDDEN, USABLE

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def setting(name: str, value: Any) -> Any:
    """A change of the process."""
    return lambda box: box.process.update({name: value})


def linux(**values: Any) -> Any:
    """A change of linux."""
    return lambda box: box.linux.update(values)


# --- sysctls ----------------------------------------------------------------------------------------

FOREIGN = {
    "kernel.core_pattern": "x", "kernel/core_pattern": "x", "kernel.hostname": "x", "kernel.panic": "1",
    "kernel.modprobe": "/x", "kernel.sysrq": "1", "vm.swappiness": "0", "fs.file-max": "1", "fs.mqueue": "1",
    "kernel.shm_rmid_forced=1+kernel.core_pattern": "x", "kernel.shm_rmid_forced": "1+kernel.core_pattern=x",
    "net/../kernel/core_pattern": "x", "net.ipv4.conf.eth0/../../../kernel.x": "1", "net..core.somaxconn": "1",
    "net/ipv4//x": "1", "net": "1", "": "1", "net.core.somaxconn\0": "1", "net.core.somaxconn\n": "1",
    "net.core.nosuch": "1", "../sys/net/core/somaxconn": "1", "/net/core/somaxconn": "1", "net.core": "1",
    "net.ipv4.ip_local_port_range": "x" * 65536, "kernel.shmmax": "1\0 2", "kernel.ns_last_pid": "7",
    "user.max_user_namespaces": "9", "kernel.msgmax": "", "ｎet.core.somaxconn": "1", "NET.core.somaxconn": "1",
}  # fmt: skip


def test_sysctls_of_the_host(world: World) -> None:
    """CVE-2022-0811: no key and no value is ever joined, split or taken as a path that leaves its place."""
    box = world.bundle()
    settings = {key: harmless(key, value) for key, value in FOREIGN.items()}
    changes = [linux(sysctl={key: value}) for key, value in settings.items()]
    for key, done in zip(settings, world.variants(box, changes), strict=True):
        if key != "kernel.msgmax":  # an empty value is nothing written, or an error of the kernel
            assert done.code == 1, (key, done)
            world.clean_refusal(box, done)


def harmless(key: str, value: str) -> str:
    """The value that the host has already, so that a runtime which fails this test does not harm it."""
    path = Path("/proc/sys", key.replace(".", "/"))
    of_the_host = key.startswith(
        ("kernel.core", "kernel/core", "kernel.panic", "kernel.sysrq", "vm.", "fs.file")
    )
    return path.read_text().strip() if of_the_host and path.is_file() else value


@pytest.mark.parametrize("kind", ["none", "path", "bound"])
def test_sysctls_of_namespaces_that_are_the_hosts(world: World, kind: str) -> None:
    """CVE-2022-0532: no namespace at all, the host's by /proc/self/ns, the host's by a bind mount."""
    box = world.bundle()
    bound = world.base / "net"
    bound.touch()
    subprocess.run(["mount", "--bind", "/proc/self/ns/net", str(bound)], check=True)
    try:
        paths = {"path": "/proc/self/ns/{}", "bound": str(bound)}
        changes: list[Any] = []
        for name, own, key in (("network", "net", "net.core.somaxconn"), ("ipc", "ipc", "kernel.shmmax"), ("uts", "uts", "kernel.domainname")):  # fmt: skip
            namespaces: list[dict[str, str]] = [{"type": k} for k in KINDS if k != name]
            if kind != "none" and (kind == "path" or name == "network"):
                namespaces.append({"type": name, "path": paths[kind].format(own)})
            changes.append(lambda b, n=namespaces, k=key: (b.linux.update(namespaces=n, sysctl={k: "4096"}), b.config.pop("hostname", None)))  # fmt: skip
        for done in world.variants(box, changes):
            world.clean_refusal(box, done, says="sysctl")
    finally:
        subprocess.run(["umount", str(bound)], check=True)


def test_sysctls_of_its_own(world: World) -> None:
    """The positive twin: keys with dots and slashes, values with blanks."""
    box = world.bundle()
    own = {
        "net.core.somaxconn": "77", "net/ipv4/ip_forward": "1", "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0\t2147483647", "net.ipv4.conf.all.forwarding": "1", "kernel.msgmax": "9000",
        "kernel.sem": "250\t32000\t32\t100", "kernel.shmmax": "123456", "fs.mqueue.msg_max": "20",
        "kernel.shm_rmid_forced": "1",
    }  # fmt: skip
    box.linux["sysctl"] = own
    box.process["args"] = ["cat", *(f"/proc/sys/{key.replace('.', '/')}" for key in own)]
    assert world.ok(box).splitlines() == list(own.values())


# --- annotations and lines --------------------------------------------------------------------------

INERT = {
    "run.oci.hooks.stderr": "/dev/kmsg", "run.oci.hooks.stdout": "{base}/x", "run.oci.keep_original_groups": "1",
    "run.oci.handler": "krun", "run.oci.systemd.subgroup": "x", "run.oci.mount_context_type": "rootcontext",
    "run.oci.seccomp.receiver": "{base}/socket", "run.oci.delegate-cgroup": "x", "run.oci.systemd.force_cgroup_v1": "/sys/fs/cgroup",
    "run.oci.pidfd_receiver": "{base}/socket", "run.oci.idmapped-mount": "x", "run.oci.timens_offset": "x",
    "org.systemd.property.ExecStart": "'/bin/sh'", "org.systemd.property.TimeoutStopUSec": "uint64 1",
    "io.kubernetes.cri-o.userns-mode": "host", "io.kubernetes.cri-o.Devices": "/dev/sda", "io.kubernetes.cri-o.UnifiedCgroup": "memory.max=1",
    "io.containerd.runc.v2.group": "x", "containerd.io/restart.loguri": "binary:///bin/sh?-c=id", "io.podman.annotations.privileged": "TRUE",
    "io.podman.annotations.seccomp": "unconfined", "com.docker.official": "1", "org.criu.config": "{base}/criu", "scow.privileged": "true",
    "org.opencontainers.image.stopSignal": "KILL", "bundle": "/", "owner": "0",
}  # fmt: skip
SHOW = "grep -E 'Cap|Seccomp|NoNew|Groups' /proc/self/status; cat /proc/self/cgroup /proc/self/limits; id; grep -c . /proc/self/mountinfo; ls /dev"  # fmt: skip


def test_annotations_change_nothing(world: World) -> None:
    """CVE-2024-3154, CVE-2023-6476, CVE-2026-53488: every key that some runtime acts upon is only kept."""
    box = world.bundle()
    box.script(SHOW)
    plain = world.ok(box)
    annotations = {key: value.format(base=world.base) for key, value in INERT.items()}
    box.config["annotations"] = annotations
    assert world.ok(box) == plain
    assert not (world.base / "x").exists()
    box.process["args"] = ["sleep", "100"]
    world.start(box)
    assert json.loads(world.oci.ok("state", "box"))["annotations"] == annotations


def test_values_that_go_into_lines(world: World) -> None:
    """CVE-2022-4318, CVE-2026-15809: newlines in what is written to logs, cgroup files and id maps."""
    box = world.bundle()
    log = world.base / "log"
    evil = 'x"\nlevel=error msg="forged'
    for kind in ("text", "json"):
        logged = Runtime([*SCOW_OCI, "--log", str(log), "--log-format", kind], world.oci.root)
        box.process["args"] = [f"/{evil}"]
        box.write()
        done = logged("run", "-b", str(box.path), "box")
        assert done.code == 1
        assert log.read_text().count("\n") == 1
        assert done.err.count("\n") == 1, done.err
        if kind == "json":
            assert evil in json.loads(log.read_text())["msg"]
        log.unlink()
    for name in ("a\nb", "a b", "a/b", "..", ".", "", "é"):
        assert "invalid container ID" in world.oci("state", name).err
    box.process["args"] = ["true"]
    changes = [
        linux(resources={"unified": {"memory.max\n": "1"}}), linux(resources={"unified": {"../x": "1"}}),
        linux(resources={"rdma": {"mlx\n0": {"hcaHandles": 1}}}), linux(cgroupsPath="/x\n/y\0"),
        linux(resources={"cpu": {"cpus": "0\n1"}}), linux(resources={"hugepageLimits": [{"pageSize": "2MB/../x", "limit": 1}]}),
        lambda b: b.config.update(hostname="x" * 65), setting("env", ["A=1\0B=2"]), setting("env", ["=x"]),
    ]  # fmt: skip
    for done in world.variants(box, changes):
        world.clean_refusal(box, done)


def test_values_that_look_like_options(world: World) -> None:
    """CVE-2026-62867, CVE-2026-48755: nothing reaches a shell or the options of another program."""
    box = world.bundle()
    box.process["args"] = ["sleep", "100"]
    world.start(box)
    marker = world.base / "ran"
    for words in (
        ["; touch " + str(marker)],
        ["$(touch " + str(marker) + ")"],
        ["-o", "pid", "`id`"],
        ["--", "-x"],
    ):
        done = world.oci("ps", "box", *words)
        assert "Traceback" not in done.err
    world.oci("update", "--cpuset-cpus", "0;id", "box")
    assert world.oci("kill", "box", "-9;").code == 1
    assert not marker.exists()
    assert str(json.loads(world.oci.ok("ps", "-f", "json", "box"))[0]) in world.oci.ok(
        "ps", "box", "-eo", "pid,comm"
    )


def test_variables_are_of_the_configuration_alone(world: World) -> None:
    """CVE-2026-57231: an entry without a value takes none from the caller; nothing of the caller's is there."""
    box = world.bundle()
    secret = {**os.environ, "AWS_SECRET": "of-the-host", "LD_LIBRARY_PATH": "/x"}
    for entry in ("AWS_SECRET", "*", "AWS*", "=x", ""):
        box.process["env"] = ["PATH=/bin", entry]
        assert "environment" in world.clean_refusal(box, world.run(box, env=secret))
    box.process.update(env=["PATH=/bin", "A=b=c", "EMPTY=", "X=1\n2", "A=last"], args=["env"])
    done = world.run(box, env=secret)
    assert sorted(done.out.splitlines()) == sorted(
        ["PATH=/bin", "A=last", "EMPTY=", "X=1", "2", "HOME=/root"]
    )


def test_containers_made_at_once_see_only_their_own(world: World) -> None:
    """CVE-2020-14370, CVE-2021-21334: the environment of one never shows in another."""
    boxes = [world.bundle(f"c{number}") for number in range(12)]
    for box in boxes:
        box.process.update(
            args=["env"], env=["PATH=/bin", f"OWN_{box.path.name}=1", f"SAME={box.path.name}"]
        )
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(world.ok, boxes))
    for box, out in zip(boxes, outs, strict=True):
        own = {line for line in out.splitlines() if line.startswith(("OWN", "SAME"))}
        assert own == {f"OWN_{box.path.name}=1", f"SAME={box.path.name}"}


def test_secrets_stay_out_of_the_log(world: World) -> None:
    """CVE-2019-13509: environment and arguments are not logged, with --debug neither, nor in errors."""
    box = world.bundle()
    marker = "s3cr3t-of-the-user"
    log = world.base / "log"
    runtime = Runtime([*SCOW_OCI, "--debug", "--log", str(log)], world.oci.root)
    for args in (["true", marker], ["nosuch", marker]):
        box.process.update(args=args, env=["PATH=/bin", f"TOKEN={marker}"])
        box.write()
        done = runtime("run", "-b", str(box.path), "box")
        assert marker not in done.err + (log.read_text() if log.exists() else "")


# --- users and capabilities -------------------------------------------------------------------------


def held(world: World, box: Bundle, *, exec_flags: tuple[str, ...] = ()) -> list[dict[str, int]]:
    """The capability sets that a run and an exec see."""
    found = [world.probe(box, "show")]
    box.process["args"] = ["sleep", "100"]
    world.start(box)
    found.append(facts(world.exec(box, *exec_flags, "--", "probe", "show").out))
    world.oci.ok("delete", "--force", box.path.name)
    return [
        {key[3:]: int(value, 16) for key, value in seen.items() if key.startswith("Cap")}
        for seen in found
    ]


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("nnp", [True, False])
def test_inheritable_and_ambient_stay_empty(world: World, uid: int, nnp: bool) -> None:
    """CVE-2022-24769, CVE-2022-29162, CVE-2016-8867, CVE-2018-10856: run and exec, root and another user."""
    box = world.bundle()
    box.process.update(
        user={"uid": uid, "gid": uid}, capabilities=capabilities(*CAPABILITIES), noNewPrivileges=nnp
    )
    for flags in ((), ("--cap", "CAP_NET_RAW"), ("--cap", "CAP_SYS_ADMIN", "-u", str(uid))):
        for number, seen in enumerate(held(world, box, exec_flags=flags)):
            assert (seen["Inh"], seen["Amb"]) == (0, 0)
            extra = 0 if not flags or not number else 1 << (13 if "CAP_NET_RAW" in flags else 21)
            wanted = DEFAULT | extra if uid == 0 else 0
            assert (seen["Prm"], seen["Eff"], seen["Bnd"]) == (
                wanted,
                wanted,
                DEFAULT | extra,
            ), (flags, number)


def test_sets_that_are_asked_for_are_given(world: World) -> None:
    """The positive twin: inheritable and ambient of another user when the configuration lists them."""
    box = world.bundle()
    names = {kind: ["CAP_NET_BIND_SERVICE"] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")}  # fmt: skip
    box.process.update(user={"uid": 1000, "gid": 1000}, capabilities=names)
    assert all(set(seen.values()) == {1 << 10} for seen in held(world, box))


def test_another_user_has_no_powers_over_files(world: World) -> None:
    """CVE-2021-20188: all capabilities there are in the sets, and a user that is not root."""
    box = world.bundle()
    (box.rootfs / "root").mkdir(mode=0o700)
    (box.rootfs / "root/secret").write_text("x")
    box.process.update(user={"uid": 1000, "gid": 1000}, capabilities=capabilities(*CAPABILITIES, "DAC_READ_SEARCH", "SYS_ADMIN"))  # fmt: skip
    assert world.probe(box, "open", "r", "/root/secret")["/root/secret"] == "EACCES"


def test_set_user_id_programs(world: World) -> None:
    """noNewPrivileges: the file's owner says nothing; without it a twin works as in any image."""
    box = world.bundle()
    (box.rootfs / "bin/suid").write_bytes((box.rootfs / "bin/probe").read_bytes())
    (box.rootfs / "bin/suid").chmod(0o4755)
    box.process.update(args=["suid", "show"], user={"uid": 1000, "gid": 1000})
    assert facts(world.ok(box))["ids"] == "1000 1000 1000 1000"
    box.process["noNewPrivileges"] = False
    assert facts(world.ok(box))["ids"].split()[:2] == ["1000", "0"]


def test_groups_are_those_of_the_configuration(world: World) -> None:
    """CVE-2022-36109, CVE-2023-25173: exactly the listed groups and the primary one; none of the caller's."""
    box = world.bundle()
    (box.rootfs / "denied").write_text("x")
    (box.rootfs / "denied").chmod(0o704)
    os.chown(box.rootfs / "denied", 0, 50)
    box.script("id -G; cat /denied && echo READ; true")
    for user, wanted in (
        ({"uid": 1000, "gid": 50}, "50"),
        ({"uid": 1000, "gid": 60, "additionalGids": [50]}, "60 50"),
        ({"uid": 1000, "gid": 60}, "60 xREAD"),
        ({"uid": 1000, "gid": 0, "additionalGids": [7, 4294967294]}, "0 7 4294967294 xREAD"),
    ):
        box.process["user"] = user
        box.write()
        words = [*world.oci.argv, "run", "-b", str(box.path), "box"]
        with_groups = ["setpriv", "--groups", "4,24,27", *words]
        done = subprocess.run(with_groups, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.stdout.split() == wanted.split(), done


def test_users_that_are_digits_or_nearly(world: World) -> None:
    """CVE-2016-3697, CVE-2024-40635, CVE-2026-46680, CVE-2026-30892: a number is a number and nothing else."""
    box = world.bundle()
    names = ("1000", "1", "4294967296", "2147483648", "-1")
    (box.rootfs / "etc/passwd").write_text("".join(f"{n}:x:0:0::/evil:/bin/sh\n" for n in names))
    bad: list[Any] = [
        4294967295,
        4294967296,
        2**64,
        -1,
        -0.5,
        "0",
        "root",
        None,
        True,
        1e3,
        [0],
        10**400,
    ]
    changes = [setting("user", {name: value, other: 5}) for value in bad for name, other in (("uid", "gid"), ("gid", "uid"))]  # fmt: skip
    changes += [setting("user", {"uid": 1, "gid": 1, "additionalGids": [value]}) for value in bad]
    for number, done in enumerate(world.variants(box, changes)):
        if (number // 2 if number < 24 else number - 24) != 7:  # null is: unset
            assert done.code == 1, number
            world.clean_refusal(box, done)
    box.process["args"] = ["sleep", "100"]
    world.start(box)
    good = {"1000": "1000 0", "1": "1 0", "1:2": "1 2", "4294967294": "4294967294 0", "0": "0 0"}
    for user, wanted in good.items():
        out = world.exec(box, "-u", user, "--", "sh", "-c", "echo $(id -u) $(id -g)").out
        assert out.split() == wanted.split(), user
    wrong = (":5", "1:", "1:2:3", "+1", "-1", "0x0", "1_0", " 0", "1 ", "０", "²", "4294967295", "4294967296", "root", "1\n", "9" * 5000)  # fmt: skip
    for user in wrong:
        done = world.exec(box, f"--user={user}", "--", "id", "-u")
        assert (done.code, done.out) == (255, ""), (user, done)
        assert "Traceback" not in done.err
    for group in ("+1", "²", "-1", "4294967295", "", "１"):
        done = world.exec(box, f"--additional-gids={group}", "--", "id", "-u")
        assert (done.code, "Traceback" in done.err) == (255, False), (group, done)


# --- cgroups, devices, limits -----------------------------------------------------------------------


def test_every_process_is_below_its_cgroup(world: World) -> None:
    """CVE-2025-47291: run and exec, with and without a user namespace, before the program runs a line."""
    kinds = [{"type": kind} for kind in (*KINDS, "user")]
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    for name, extra in (("plain", {}), ("mapped", {"namespaces": kinds, "uidMappings": maps, "gidMappings": maps})):  # fmt: skip
        box = world.bundle(name)
        world.base.chmod(0o755)
        box.path.chmod(0o755)
        box.linux.update(extra)
        box.linux["resources"] = {"pids": {"limit": 50}}
        box.script("sleep 100 & sleep 100")
        world.start(box)
        with subprocess.Popen([*world.oci.argv, "exec", name, "sleep", "77"], stdin=-3) as running:
            until(lambda name=name: "sleep 77" in world.oci.ok("ps", name))
            pids = json.loads(world.oci.ok("ps", "-f", "json", name))
            for pid in pids:
                for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                    assert line.endswith(box.linux["cgroupsPath"]), (name, line)
            world.oci.ok("delete", "--force", name)
            running.wait(60)


def test_processor_lists_without_bounds(world: World) -> None:
    """CVE-2018-20699: a range is never made into a list."""
    box = world.bundle()
    lists = ("0-2147483647", "0-18446744073709551615", "0-" + "9" * 100, "0-0," * 20000 + "0", "1-0", "0-0-0", "-1", "0,,1", "٠")  # fmt: skip
    for text in lists:
        begin = time.monotonic()
        box.linux["resources"] = {"cpu": {"cpus": text}}
        done = world.variants(box, [lambda box: None])[0]
        if text != lists[3]:
            world.clean_refusal(box, done)
        assert time.monotonic() - begin < 60


def test_shared_memory_has_a_size(world: World) -> None:
    """CVE-2024-3056: /dev/shm is full at what its mount says."""
    box = world.bundle()
    box.script("dd if=/dev/zero of=/dev/shm/x bs=1M count=70 2>/dev/null; wc -c < /dev/shm/x")
    assert world.ok(box).split() == [str(64 << 20)]


def test_nodes_can_be_made_and_not_opened(world: World) -> None:
    """The default rules: mknod of anything is harmless, opening is refused; tun is the twin that VPNs need."""
    box = world.bundle()
    box.process["capabilities"] = capabilities(*CAPABILITIES, "MKNOD")
    seen = world.probe(box, "nodes", "/tmp", *USABLE, *FORBIDDEN)
    assert {key: seen[key] for key in FORBIDDEN} == dict.fromkeys(FORBIDDEN, "0 EPERM EPERM")
    assert all(seen[key].startswith("0 ") and "EPERM" not in seen[key] for key in USABLE), seen
    box.process["capabilities"] = capabilities(*CAPABILITIES)
    assert set(world.probe(box, "nodes", "/tmp", *USABLE[:3], *FORBIDDEN[:3]).values()) == {"EPERM"}
    box.process["capabilities"] = capabilities(*CAPABILITIES, "MKNOD")
    box.linux["resources"] = {
        "devices": [{"allow": True, "type": "b", "major": 7, "access": "rwm"}]
    }
    assert "EPERM" not in world.probe(box, "nodes", "/tmp", "b:7:0")["b:7:0"]


def test_a_forbidden_device_stays_forbidden_during_updates(world: World) -> None:
    """There is no moment without rules while the limits are changed."""
    box = world.bundle()
    box.process["capabilities"] = capabilities(*CAPABILITIES, "MKNOD")
    box.script("mknod /tmp/d b 7 0; n=0; while [ ! -e /tmp/stop ]; do (: < /tmp/d) 2>/dev/null && echo OPENED; (: < /dev/null) || echo LOST; n=$((n+1)); done; echo n $n")  # fmt: skip
    world.start(box)
    for done in world.turns(60, "update", "--pids-limit", "1{n}", "box"):
        assert done.code == 0, done
    resources = world.base / "resources.json"
    resources.write_text(json.dumps({"devices": [{"allow": False}, {"allow": True, "type": "c", "major": 1, "access": "rwm"}]}))  # fmt: skip
    world.turns(20, "update", "-r", str(resources), "box")
    (box.rootfs / "tmp/stop").touch()
    until(lambda: "n " in (box.path / "output").read_text())
    assert re.fullmatch(r"n \d+\n", (box.path / "output").read_text())


def test_a_pause_that_fails_leaves_nothing_frozen(world: World) -> None:
    """crun 1.28: killed in the middle of pause, a container can be resumed and deleted."""
    box = world.bundle()
    box.process["args"] = ["sleep", "100"]
    world.start(box)
    for delay in (0.03, 0.05, 0.07):
        with subprocess.Popen(
            [*world.oci.argv, "pause", "box"], stdin=-3, stdout=-3, stderr=-3
        ) as pausing:
            time.sleep(delay)
            pausing.kill()
        if '"paused"' in world.oci.ok("state", "box"):
            world.oci.ok("resume", "box")
    assert world.exec(box, "true").code == 0


# --- lengths, ids, filters --------------------------------------------------------------------------

LENGTHS = (65535, 65536, 131072, 1 << 20)


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_are_exact_or_refused(world: World, length: int) -> None:
    """CVE-2021-43784: a length that is cut to 16 bits makes options of what an attacker wrote."""
    box = world.bundle()
    text = "x" * length
    box.script("echo ${#A}")
    value = setting("env", ["PATH=/bin", f"A={text}"])
    changes = [
        value, setting("args", ["true", text]), lambda b: b.config.update(hostname=text), setting("cwd", f"/{text}"),
        lambda b: b.config.update(annotations={"a": text}), linux(maskedPaths=[f"/{text}"]), linux(cgroupsPath=f"/{text}"),
        linux(sysctl={"net.core.somaxconn": text}), linux(sysctl={f"net.{text}": "1"}), linux(mountLabel=text),
        lambda b: b.config["mounts"].append({"destination": f"/{text}", "type": "tmpfs", "source": "x"}),
        lambda b: b.config["mounts"].append({"destination": "/t", "type": "tmpfs", "source": text}),
        lambda b: b.config["mounts"].append({"destination": "/t", "type": text, "source": "x"}),
        lambda b: b.config["mounts"].append({"destination": "/t", "type": "tmpfs", "options": [f"mode={text}"]}),
        linux(devices=[{"path": f"/dev/{text}", "type": "c", "major": 1, "minor": 3}]), linux(rootfsPropagation=text),
        lambda b: b.config.update(hooks={"prestart": [{"path": f"/{text}"}]}), setting("selinuxLabel", text),
        lambda b: b.config["root"].update(path=text), setting("rlimits", [{"type": text, "soft": 1, "hard": 1}]),
        linux(namespaces=[{"type": "mount"}, {"type": "network", "path": f"/{text}"}]), linux(seccomp={"defaultAction": text}),
        setting("capabilities", {"bounding": [text]}),
    ]  # fmt: skip
    for number, done in enumerate(world.variants(box, changes)):
        assert "Traceback" not in done.err, (number, done.err[-500:])
        if done.code:
            world.clean_refusal(box, done)
        elif number == 0:
            assert int(done.out) == length
        else:
            assert number in (1, 4, 11, 22), (
                number,
                done.code,
            )  # arguments, annotations, source, unknown names


@pytest.mark.parametrize(
    "filter_",
    [
        {}, {"defaultAction": ""}, {"defaultAction": "SCMP_ACT_ALLOWED"}, {"syscalls": []}, [], "unconfined", "", 1,
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTHING"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NOSUCH"]},
    ],
)  # fmt: skip
def test_a_filter_that_says_nothing_is_an_error(world: World, filter_: Any) -> None:
    """CVE-2023-2431: empty, unreadable or unknown is never "no filter"."""
    box = world.bundle()
    box.linux["seccomp"] = filter_
    world.refused(box)


def test_a_filter_is_loaded_and_holds_in_an_exec(world: World) -> None:
    """The positive twin."""
    box = world.bundle()
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}],
    }
    box.script("mkdir /tmp/x; echo $?; grep Seccomp: /proc/self/status")
    assert world.ok(box).split() == ["1", "Seccomp:", "2"]
    box.process["args"] = ["sleep", "100"]
    world.start(box)
    assert world.exec(box, "mkdir", "/tmp/x").code == 1


@pytest.mark.cgroup_v1
def test_no_cgroup_of_the_host_is_a_containers(world: World) -> None:
    """The root of a hierarchy, one with processes in it, one that leaves: refused, and nobody is killed."""
    kernel.need(kernel.mount_refused)
    box = world.bundle()
    own = Path("/proc/self/cgroup").read_text()
    paths = ("/", "//", "/./", "..", "/..", "a/../..", "/x/../../y", "a\0b", "/" + "a" * 300)
    for done in world.variants(box, [linux(cgroupsPath=path) for path in paths]):
        world.clean_refusal(box, done)
    other = world.bundle("other")
    other.process["args"] = ["sleep", "100"]
    world.start(other)
    for path in (other.linux["cgroupsPath"], other.linux["cgroupsPath"] + "/below"):
        box.linux["cgroupsPath"] = path
        world.refused(box)
    assert '"running"' in world.oci.ok("state", "other")
    assert Path("/proc/self/cgroup").read_text() == own
