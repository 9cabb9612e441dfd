"""Docker's daemon with scow-oci as its default runtime: docker's commands, beside runc."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fixtures import kernel
from fixtures.engines import (
    OURS,
    Engines,
    Row,
    all_at_once,
    compare,
    docker,
    docker_apart,
    missing,
    seccomp_profile,
    wait_until,
    walk,
)

STATUS = "grep -E 'CapEff|CapBnd|NoNew|Seccomp:' /proc/self/status"
DEFAULT = "00000000a80425fb"

ROWS = (
    Row("busy id", r"uid=0\(root\) gid=0\(root\) groups=0\(root\)"),
    Row("busy sh -c 'exit 7'", code=7),
    Row("busy nope", code=127, err='exec: "nope": executable file not found in \\$PATH'),
    Row("busy /etc", code=126, err='exec: "/etc": permission denied'),
    Row("--entrypoint /bin/echo busy a b", "a b"),
    Row("-e A=1 -e A=2 busy sh -c 'echo $A $HOME'", "2 /root"),
    # docker leaves it to the runtime to make a working directory.
    Row("-u bob -w /new/x busy sh -c 'pwd; stat -c %u .'", "/new/x\n0"),
    # Users, rights
    Row("-u 1000:44 busy id", r"uid=1000\(bob\) gid=44\(video\) groups=44\(video\)"),
    Row("-u bob --group-add 55 busy id", r"uid=1000\(bob\) gid=1000\(bob\) groups=44\(video\),55,1000\(bob\)"),
    Row(f"busy {STATUS}", f"CapEff:\t{DEFAULT}\nCapBnd:\t{DEFAULT}\nNoNewPrivs:\t0\nSeccomp:\t2"),
    Row(f"--cap-drop ALL --cap-add NET_RAW busy {STATUS}", "CapEff:\t0{12}2000\nCapBnd:\t0{12}2000\n.*"),
    Row(f"--cap-add SYS_ADMIN busy {STATUS}", "CapEff:\t00000000a82425fb\n.*"),
    Row(f"-u bob busy {STATUS}", f"CapEff:\t0{{16}}\nCapBnd:\t{DEFAULT}\n.*"),
    # runc 1.1 fails for a capability that the host's root does not have.
    Row("--privileged busy sh -c 'grep Seccomp: /proc/self/status; echo name > /proc/sys/kernel/hostname; hostname; head -c0 /dev/loop0'",
        "Seccomp:\t0\nname", beside=False),
    Row(f"--security-opt no-new-privileges busy {STATUS}", ".*NoNewPrivs:\t1\nSeccomp:\t2"),
    Row(f"--security-opt seccomp=unconfined busy {STATUS}", ".*Seccomp:\t0"),
    Row("--security-opt seccomp=@seccomp busy mkdir /x", code=1, err="Protocol error"),
    Row("busy sh -c 'head -c1 /proc/keys; ls /sys/firmware; echo x > /proc/sys/kernel/domainname'",
        "", 1, "domainname: Read-only file system"),
    Row("--security-opt systempaths=unconfined busy sh -c 'head -c1 /proc/keys | wc -c; echo x > /proc/sys/kernel/sem'",
        "1", 1, "write error: Invalid argument"),
    # Devices
    Row("--device /dev/zero:/dev/zz:r busy sh -c 'head -c3 /dev/zz | wc -c; stat -c %t:%T /dev/zz'", "3\n1:5"),
    Row("--device /dev/loop0:/dev/it:r busy sh -c 'head -c0 /dev/it && echo read; : > /dev/it'",
        "read", 1, "can't create /dev/it: Operation not permitted"),
    Row("--device-cgroup-rule 'b 7:* rm' busy sh -c 'mknod /tmp/l b 7 0 && head -c0 /tmp/l'"),
    Row("busy sh -c 'mknod /tmp/l b 7 0 && head -c1 /tmp/l'", code=1, err="/tmp/l: Operation not permitted"),
    # Limits that are not a cgroup's
    Row("--ulimit nofile=77:88 --ulimit nproc=50:60 busy sh -c 'ulimit -n; ulimit -Hn; ulimit -u'", "77\n88\n50"),
    Row("--oom-score-adj 200 busy cat /proc/self/oom_score_adj", "200"),
    Row("--sysctl kernel.msgmax=9999 --sysctl net.ipv4.ip_forward=0 busy cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward", "9999\n0"),
    # Mounts
    Row("--read-only --tmpfs /t busy sh -c 'touch /t/x && echo ok; touch /x'", "ok", 1, "/x: Read-only file system"),
    Row("--tmpfs /t:size=1m,mode=1711,exec busy sh -c 'stat -c %a /t; grep -o /t.tmpfs.* /proc/mounts'",
        "1711\n/t tmpfs rw,nosuid,nodev,relatime,size=1024k,mode=1711 0 0"),
    Row("--shm-size 3m busy grep -o size=3072k /proc/mounts", "size=3072k"),
    Row("-v @host:/h:ro busy sh -c 'cat /h/file; touch /h/x'", "of the host", 1, "/h/x: Read-only file system"),
    Row("--mount type=tmpfs,dst=/h,tmpfs-size=1048576,tmpfs-mode=1770 busy grep -o /h.tmpfs.* /proc/mounts",
        "/h tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,mode=1770 0 0"),
    Row("-v busyvol:/data busy cat /data/file", "of the image"),
    # Namespaces
    Row("--pid host --ipc host --uts host busy sh -c 'for n in pid ipc uts; do readlink /proc/self/ns/$n; done'",
        "@host_pid\n@host_ipc\n@host_uts"),
    Row("--ipc none busy sh -c 'ls /dev/shm'", code=1, err="No such file"),
    Row("--network host busy readlink /proc/self/ns/net", "@host_net"),
    Row("--cgroupns private busy sh -c 'cut -d: -f3 /proc/self/cgroup | sort -u'", "/"),
    Row("-h foo --domainname dd busy sh -c 'hostname; cat /proc/sys/kernel/domainname'", "foo\ndd"),
    Row("--init busy cat /proc/1/comm", "docker-init"),
)  # fmt: skip

# With mapped users, a bridge, and a source that is shared.
APART = (
    Row("busy sh -c 'cat /proc/self/uid_map; id -u; touch /x; stat -c %u:%g /x /data/file'",
        " +0 +300000 +65536\n0\n0:0\n0:0"),
    Row("--userns host busy cat /proc/self/uid_map", " +0 +0 +4294967295"),
    # The first hook of a container is docker's own, which gives it the end of its link.
    Row("--network bridge busy sh -c 'ip -o addr show eth0 | wc -l; ip route | head -1; ping -c1 -W5 172.17.0.1 | grep -c from'",
        "1\ndefault via 172.17.0.1 dev eth0 \n1"),
    Row("--userns host --network host busy sh -c 'ip -o link show docker0 | cut -d: -f2'", " docker0"),
    Row("--userns host -v @shared:/h:rshared busy sh -c 'grep -c \" /h .* shared:\" /proc/self/mountinfo'", "1"),
    Row("-v @shared:/h:rslave busy sh -c 'grep -c \" /h .* master:\" /proc/self/mountinfo'", "1"),
    Row("--mount type=bind,src=@shared,dst=/h,readonly,bind-propagation=rprivate busy sh -c 'cat /h/file; grep -o \" /h .*- \" /proc/self/mountinfo'",
        "of the host\n /h ro,relatime - "),
)  # fmt: skip

# Limits, as the container's own cgroup has them.
_FLAGS = (
    "-m 64m --memory-swap 96m --memory-reservation 32m --cpus 0.5 --cpu-shares 1024 --cpuset-cpus 0"
    " --pids-limit 33 --device-read-bps /dev/loop0:1mb busy sh -c 'cd /sys/fs/cgroup; cat "
)
V1 = (
    Row(_FLAGS + "memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes"
        " cpu/cpu.cfs_quota_us cpu/cpu.shares cpuset/cpuset.cpus pids/pids.max blkio/blkio.throttle.read_bps_device'",
        "67108864\n100663296\n33554432\n50000\n1024\n0\n33\n7:0 1048576"),
    Row("--pids-limit -1 --memory-swappiness 7 -m 32m --oom-kill-disable busy sh -c 'cd /sys/fs/cgroup;"
        " cat pids/pids.max memory/memory.swappiness; head -1 memory/memory.oom_control'",
        "max\n7\noom_kill_disable 1"),
    Row("busy sh -c 'echo 1 > /sys/fs/cgroup/memory/memory.limit_in_bytes'", "", 1, "Read-only file system"),
    # runc leaves the one between
    Row("--cgroup-parent @parent/sub busy sh -c 'cut -d: -f3 /proc/self/cgroup | cut -d/ -f1-3 | sort -u'",
        "@parent/sub", beside=False),
)  # fmt: skip
V2 = (
    # The two runtimes have different formulas for the weight.
    Row(_FLAGS + "memory.max memory.swap.max memory.low cpu.max cpu.weight cpuset.cpus pids.max io.max'",
        "67108864\n33554432\n33554432\n50000 100000\n100\n0\n33\n7:0 rbps=1048576 .*", beside=False),
    Row("busy sh -c 'echo 1 > /sys/fs/cgroup/pids.max'", "", 1, "Read-only file system"),
)  # fmt: skip

STATE = "inspect -f {{.State.Status}}:{{.State.ExitCode}} @c"
TALKER = "trap 'echo usr1' USR1; trap 'exit 5' TERM; echo up; sleep 1000 & while :; do wait; done"
LIMIT = (
    "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max"
    if kernel.cgroup_v1_missing()
    else "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max"
)

LIFE = (
    Row(f'create --name @c @run --network none -m 64m --memory-swap 64m busy sh -c "{TALKER}"', ".+"),
    Row(STATE, "created:0"),
    Row("start @c", "@c"),
    Row("logs @c", "up", until=True),
    Row("kill -s USR1 @c", "@c"),
    Row("logs @c", "up\nusr1", until=True),
    Row("top @c -o pid,comm", r"PID +COMMAND\n[0-9]+ +sh\n[0-9]+ +sleep", beside=False),
    Row("exec @c id", r"uid=0\(root\) gid=0\(root\) groups=0\(root\)"),
    Row('exec -u bob -w /data -e A=b @c sh -c "id -u; pwd; echo $A"', "1000\n/data\nb"),
    Row("exec @c grep CapEff /proc/self/status", f"CapEff:\t{DEFAULT}"),
    Row('exec @c sh -c "exit 3"', code=3),
    Row('exec @c sh -c "kill -9 $$"', code=137),
    Row("exec @c nope", ".*executable file not found in \\$PATH.*", 126),
    Row("exec @c /etc", ".*permission denied.*", 126),
    Row("exec -d @c touch /made"),
    Row("exec @c stat -c %U /made", "root", until=True),
    Row("pause @c", "@c"),
    Row(STATE, "paused:0"),
    Row("exec @c true", code=1, err="is paused"),
    Row("unpause @c", "@c"),
    Row("stats --no-stream --format {{.MemUsage}}:{{.PIDs}} @c", ".* / 64MiB:2", beside=False),
    Row("update -m 96m --memory-swap 96m --pids-limit 77 @c", "@c"),
    Row(f"exec @c {LIMIT}", "100663296\n77"),
    Row("update --cpus 0.5 --cpu-shares 300 @c", "@c"),
    Row(f"exec @c {LIMIT}", "100663296\n77"),
    Row("stop @c", "@c"),
    Row(STATE, "exited:5"),
    Row("exec @c true", code=1, err="is not running"),
    Row("start @c", "@c"),
    Row("restart -t 5 @c", "@c"),
    Row("exec @c true"),
    Row("rename @c @c-2", ""),
    Row("rename @c-2 @c", ""),
    Row("kill @c", "@c"),
    Row("wait @c", "137"),
    Row(STATE, "exited:137"),
    Row("rm @c", "@c"),
    Row("run --name @c @run --network none -m 16m busy sh -c 'x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done'", code=137),
    Row("inspect -f {{.State.OOMKilled}}:{{.State.ExitCode}} @c", "(true|false):137", beside=False),
    Row("rm @c", "@c"),
    Row("run -d --name @c @run --network none --restart on-failure:2 busy false", ".+"),
    Row("inspect -f {{.RestartCount}}:{{.State.Status}}:{{.State.ExitCode}} @c", "2:exited:1", until=True),
    Row("rm @c", "@c"),
)  # fmt: skip


def need_docker() -> None:
    kernel.need(kernel.mount_refused, kernel.overlay_refused)
    if reason := missing("dockerd", "/usr/bin/docker", "docker-init", "containerd", "runc"):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    need_docker()
    with docker(tmp_path_factory.mktemp("docker")) as engines:
        yield engines


@pytest.fixture(scope="module")
def apart() -> Iterator[Engines]:
    need_docker()
    # Not below pytest's directories, which are for root alone.
    with TemporaryDirectory(prefix="scow-docker-") as top, docker_apart(Path(top)) as engines:
        (Path(top) / "shared/file").write_text("of the host\n")
        yield engines


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """A directory of the host, a profile, the host's namespaces."""
    top = tmp_path_factory.mktemp("host")
    (top / "file").write_text("of the host\n")
    kinds = ("ipc", "uts", "pid", "net")
    return {
        **{f"@host_{n}": str(Path(f"/proc/self/ns/{n}").readlink()) for n in kinds},
        "@host": str(top),
        "@seccomp": str(seccomp_profile(top)),
        "@parent": f"/scow-test-docker-{os.getpid()}",
    }


def test_runtimes(engines: Engines) -> None:
    """It is the default, and it can be asked for by name."""
    daemon = engines[OURS]
    assert daemon.ok("info", "--format", "{{.DefaultRuntime}}") == OURS
    for flags in ((), ("--runtime", OURS)):
        daemon.ok("create", "--name", "named", *flags, "busy", "true")
        assert daemon.ok("inspect", "-f", "{{.HostConfig.Runtime}}", "named") == OURS
        daemon.ok("rm", "named")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.words)
def test_run(engines: Engines, names: Mapping[str, str], row: Row) -> None:
    compare(row, names, engines)


@pytest.mark.cgroup_v1
@pytest.mark.parametrize("row", V1, ids=lambda row: row.words)
def test_limits_v1(engines: Engines, names: Mapping[str, str], row: Row) -> None:
    compare(row, names, engines)


@pytest.mark.cgroup_v2
@pytest.mark.parametrize("row", V2, ids=lambda row: row.words)
def test_limits_v2(engines: Engines, names: Mapping[str, str], row: Row) -> None:
    compare(row, names, engines)


def test_life(engines: Engines) -> None:
    walk(LIFE, {}, engines)


@pytest.mark.parametrize("row", APART, ids=lambda row: row.words)
def test_run_apart(apart: Engines, row: Row) -> None:
    top = Path(apart[OURS].env["DOCKER_CONFIG"]).parent
    compare(row, {"@shared": f"{top}/shared"}, apart)


def test_networks(apart: Engines) -> None:
    """Two containers on docker's bridge, a third in the network of the first."""
    ours = apart[OURS]
    flags = ("--network", "bridge", "--ipc", "shareable")
    ours.start("server", *flags, "busy", "sh", "-c", "echo hello | nc -l -p 80; sleep 1000")
    address = ours.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "server")
    client = f"until nc {address} 80 | grep hello; do sleep 0.05; done"
    assert ours.run("--network", "bridge", "busy", "sh", "-c", client).out == "hello\n"
    joined = [f"--{kind}=container:server" for kind in ("network", "ipc", "pid")]
    seen = ours.run(*joined, "busy", "sh", "-c", "ip -o addr show eth0; ps")
    assert (address in seen.out, "sleep 1000" in seen.out) == (True, True), seen
    ours.ok("rm", "-f", "server")


def test_healthcheck(engines: Engines) -> None:
    ours = engines[OURS]
    flags = ("--health-cmd", "test -e /well", "--health-interval", "50ms", "--health-retries", "2")
    ours.start("ill", *flags, "busy", "sleep", "1000")

    def is_now(status: str) -> bool:
        return ours.ok("inspect", "-f", "{{.State.Health.Status}}", "ill") == status

    wait_until(lambda: is_now("unhealthy"), "an unhealthy container")
    ours.ok("exec", "ill", "touch", "/well")
    wait_until(lambda: is_now("healthy"), "a healthy container")
    ours.ok("rm", "-f", "ill")


def test_streams(engines: Engines) -> None:
    ours = engines[OURS]
    words = ours.run_words("--rm", "-i", "busy", "cat")
    assert ours.ok(*words, stdin=b"x" * 200_000) == "x" * 200_000
    ours.start("flows", "busy", "sleep", "1000")
    done = ours("exec", "flows", "sh", "-c", "echo out; echo err >&2")
    assert (done.out, done.err) == ("out\n", "err\n")
    assert ours.ok("exec", "-i", "flows", "wc", "-c", stdin=b"x" * 200_000) == "200000"
    archive = ours.ok("cp", "flows:/data/file", "-")
    ours.ok("cp", "-", "flows:/tmp", stdin=archive.encode() + b"\0" * 10240)
    assert ours.ok("exec", "flows", "cat", "/tmp/file") == "of the image"
    ours.ok("rm", "-f", "flows")


def test_terminal(engines: Engines) -> None:
    ours = engines[OURS]
    words = ours.run_words("-it", "--name", "tty", "--detach-keys", "ctrl-q", "busy", "sh")
    with ours.terminal(*words, rows=30, columns=100) as terminal:
        terminal.expect("# ")
        terminal.type(
            "until test \"$(stty size)\" = '30 100'; do sleep 0.05; done; tty; echo is-$((1 + 1))\n"
        )
        terminal.expect(r"/dev/pts/0\s+is-2")
        terminal.resize(41, 99)
        terminal.type("until test \"$(stty size)\" = '41 99'; do sleep 0.05; done; echo size-$?\n")
        terminal.expect("size-0")
        with ours.terminal("exec", "-it", "tty", "sh") as second:
            second.expect("# ")
            second.type("tty; exit 7\n")
            second.expect("/dev/pts/1")
            assert second.wait() == 7
        terminal.type("sleep 1000\n")
        wait_until(lambda: "sleep 1000" in ours("exec", "tty", "ps").out, "sleep to run")
        terminal.type("\x03")
        terminal.type("echo code-$?\n")
        terminal.expect("code-130")
        terminal.type("\x11")
        assert terminal.wait() == 0
    assert ours.ok("inspect", "-f", "{{.State.Status}}", "tty") == "running"
    with ours.terminal("attach", "tty") as terminal:
        terminal.type("echo again-$((2 + 2)); exit 6\n")
        terminal.expect("again-4")
        assert terminal.wait() == 6
    ours.ok("rm", "tty")


def test_many_at_once(engines: Engines) -> None:
    all_at_once(lambda n: engines[OURS].run("busy", "sh", "-c", f"exit {n}").code)
    assert engines[OURS].ok("ps", "-aq") == ""


def test_many_execs_at_once(engines: Engines) -> None:
    ours = engines[OURS]
    ours.start("many", "busy", "sleep", "1000")
    all_at_once(lambda n: ours("exec", "many", "sh", "-c", f"exit {n}").code, 10)
    ours.ok("rm", "-f", "many")


def test_mapped_users_in_the_background(apart: Engines) -> None:
    ours = apart[OURS]
    ours.start("mapped", "busy", "sleep", "1000")
    assert ours.ok("exec", "mapped", "cut", "-c12-21", "/proc/self/uid_map").strip() == "300000"
    pid = ours.ok("inspect", "-f", "{{.State.Pid}}", "mapped")
    assert os.stat(f"/proc/{pid}").st_uid == 300000
    ours.ok("rm", "-f", "mapped")


@pytest.mark.no_residue_check  # the module's daemons end after it
def test_nothing_of_the_host_is_touched(apart: Engines) -> None:
    """Neither the bridge nor the rules of a daemon apart are the host's."""
    assert not os.path.exists("/sys/class/net/docker0")
