"""Podman with scow-oci in runc's place: the life of a container, pods, terminals, many at once."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.engines import (
    OURS,
    RUNC,
    Engine,
    Engines,
    Row,
    all_at_once,
    missing,
    podman,
    wait_until,
    walk,
)

STATUS = "inspect -f {{.State.Status}} @c"
# Says what it gets, and ends with 5 on SIGTERM.
TALKER = "trap 'echo usr1' USR1; trap 'exit 5' TERM; echo up; sleep 1000 & while :; do wait; done"
LIMIT = (
    "cat /sys/fs/cgroup/memory.max"
    if kernel.cgroup_v1_missing()
    else "cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
)

LIFE = (
    Row(f'create --name @c --network none -m 64m --stop-timeout 10 @run busy sh -c "{TALKER}"', ".*"),
    Row(STATUS, "created"),
    Row("exec @c true", code=255, err="can only create exec sessions on running containers"),
    Row("start @c", "@c"),
    Row(STATUS, "running"),
    Row("ps -q --filter name=@c --filter status=running", "[0-9a-f]{12}"),
    Row("logs @c", "up", until=True),
    Row("kill -s USR1 @c", "@c"),
    Row("logs @c", "up\nusr1", until=True),
    Row("top @c ppid comm", r"PPID +COMMAND\n0 +sh *\n1 +sleep *"),
    Row("exec @c id", r"uid=0\(root\) gid=0\(root\)"),
    Row('exec -u bob -w /data -e A=b @c sh -c "id -u; pwd; echo $A"', "1000\n/data\nb"),
    Row("exec @c grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb"),
    Row("exec --privileged @c grep CapEff /proc/self/status", "CapEff:\t000001ff[0-9a-f]{8}"),
    Row("exec @c grep -c . /proc/self/cgroup /proc/self/uid_map", ".*:1"),
    Row('exec @c sh -c "exit 3"', code=3),
    Row('exec @c sh -c "kill -9 $$"', code=137),
    Row("exec @c nope", code=127, err="executable file not found in \\$PATH"),
    Row("exec @c /etc", code=126, err="permission denied"),
    Row("exec -d @c touch /made", ".+"),
    Row("exec @c stat -c %U /made", "root", until=True),
    Row("pause @c", ".*"),
    Row(STATUS, "paused"),
    Row("exec @c true", code=255, err="container state improper"),
    Row("unpause @c", ".*"),
    Row(STATUS, "running"),
    Row("stats --no-stream --format {{.MemLimit}}:{{.PIDs}} @c", ".*67108864:2|.*67.11MB:2"),
    Row(f"exec @c {LIMIT}", "67108864"),
    Row("update -m 96m @c", ".*"),
    Row(f"exec @c {LIMIT}", "100663296"),
    Row("stop @c", "@c"),
    Row("wait @c", "5"),
    Row("inspect -f {{.State.Status}}:{{.State.ExitCode}}:{{.State.OOMKilled}} @c", "exited:5:false"),
    Row("exec @c true", code=255, err="container state improper"),
    Row("start @c", "@c"),
    Row("restart -t 1 @c", ".+"),
    Row("exec @c true"),
    Row("kill @c", "@c"),
    Row("wait @c", "137"),
    # The kernel's kill for want of memory, or its answer to it, is the engine's to tell.
    Row("rm @c", ".+"),
    Row("run --name @c --network none -m 16m @run busy sh -c 'x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done'", code=137),
    Row("inspect -f {{.State.OOMKilled}}:{{.State.ExitCode}} @c", "(true|false):137"),
    Row("rm @c", ".+"),
    Row(STATUS, "", 125, "no such container|no such object"),
)  # fmt: skip


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    kernel.need(kernel.mount_refused)
    if reason := missing("podman", "conmon", "runc", "tini-static"):
        pytest.skip(reason)
    with podman(tmp_path_factory.mktemp("podman")) as engines:
        yield engines


def test_life(pods: Engines) -> None:
    walk(LIFE, {}, pods)


# Two containers and a holder of their namespaces; the holder is an image's, not catatonit.
POD = (
    Row("pod create --name pod-@c --network none --share net,ipc,uts --hostname shared"
        " --infra-image busy --infra-command 'sleep 1000' @run", ".+"),
    Row("run -d --name @c --pod pod-@c busy sleep 1000", ".+"),
    Row("run --rm --pod pod-@c busy sh -c 'hostname; readlink /proc/self/ns/net > /dev/shm/net'", "shared"),
    Row("exec @c sh -c 'test $(cat /dev/shm/net) = $(readlink /proc/self/ns/net) && hostname'", "shared"),
    Row("pod pause pod-@c", ".+"),
    Row(STATUS, "paused"),
    Row("pod unpause pod-@c", ".+"),
    Row("pod top pod-@c comm", "COMMAND\nsleep *\nsleep *"),
    Row("pod stats --no-stream --format {{.PIDS}} pod-@c", "PIDS\n1\n1"),
    Row("pod stop -t 0 pod-@c", ".+"),
    Row(STATUS, "exited"),
    Row("pod start pod-@c", ".+"),
    Row("exec @c true"),
    Row("pod kill pod-@c", ".+"),
    Row("wait @c", "137"),
    Row("pod rm -f -t 0 pod-@c", ".+"),
    Row("pod exists pod-@c", code=1),
)  # fmt: skip


def test_pod(pods: Engines) -> None:
    walk(POD, {}, pods)


def test_pod_with_a_shared_pid_namespace(pods: Engines) -> None:
    ours = pods[OURS]
    flags = ("--network", "none", "--share", "pid", "--infra-image", "busy", *ours.flags)
    ours.ok("pod", "create", "--name", "pidpod", *flags, "--infra-command", "sleep 1000")
    # The pod shares no network: without the flag each container gets podman's bridge.
    ours.start("inpid", "--network", "none", "--pod", "pidpod", "busy", "sleep", "2000")
    inside = ("run", "--rm", "--network", "none", "--pod", "pidpod", "busy", "ps", "-o", "args")
    seen = ours.ok(*inside)
    assert seen.splitlines()[1:3] == ["sleep 1000", "sleep 2000"]
    # The namespace outlives the container, its processes do not.
    ours.ok("rm", "-f", "-t", "0", "inpid")
    assert "sleep 2000" not in ours.ok(*inside)
    ours.ok("pod", "rm", "-f", "-t", "0", "pidpod")


def test_namespaces_of_another_container(pods: Engines) -> None:
    ours = pods[OURS]
    ours.start("owner", "busy", "sleep", "1000")
    joined = [f"--{kind}=container:owner" for kind in ("network", "ipc", "pid")]
    script = "for n in net ipc pid; do test /proc/1/ns/$n -ef /proc/self/ns/$n || echo $n; done; ps"
    seen = ours.run(*joined, "busy", "sh", "-c", script)
    assert (seen.code, "sleep 1000" in seen.out) == (0, True), seen
    assert seen.out.startswith("PID"), seen
    ours.ok("rm", "-f", "-t", "0", "owner")


def test_copies_and_streams(pods: Engines) -> None:
    """Into and out of a container, by cp and by the three streams of run and exec."""
    ours = pods[OURS]
    ours.start("cp", "busy", "sleep", "1000")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo("copied")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    ours.ok("cp", "-", "cp:/data", stdin=data.getvalue())
    assert ours.ok("exec", "cp", "cat", "/data/copied") == "hello"
    assert ours.ok("exec", "-i", "cp", "wc", "-c", stdin=b"x" * 200_000) == "200000"
    done = ours("exec", "cp", "sh", "-c", "echo out; echo err >&2")
    assert (done.out, done.err) == ("out\n", "err\n")
    words = ours.run_words("--rm", "-i", "busy", "cat")
    assert ours.ok(*words, stdin=b"x" * 200_000) == "x" * 200_000
    assert len(ours.run("busy", "sh", "-c", "yes | head -c 300000").out) == 300_000
    ours.ok("rm", "-f", "-t", "0", "cp")


def test_preserved_descriptors(pods: Engines, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("by descriptor")
    for runtime in (OURS, RUNC):
        engine = pods[runtime]
        argv = ["sh", "-c", 'exec 3<"$0" && exec "$@"', str(tmp_path / "kept"), *engine.argv]
        keeper = Engine(argv, engine.env)
        script = "cat <&3; ls /proc/self/fd"
        words = engine.run_words("--rm", "--preserve-fds", "1", "busy", "sh", "-c", script)
        # The fourth is of ls itself, on the directory.
        assert keeper.ok(*words).splitlines() == ["by descriptor0", "1", "2", "3", "4"]


def test_healthcheck(pods: Engines) -> None:
    for runtime in (OURS, RUNC):
        engine = pods[runtime]
        flags = ("--health-cmd", "test -e /well", "--health-interval", "disable")
        engine.start("ill", *flags, "busy", "sleep", "1000")
        assert engine("healthcheck", "run", "ill").code == 1
        engine.ok("exec", "ill", "touch", "/well")
        assert engine("healthcheck", "run", "ill").code == 0
        health = json.loads(engine.ok("inspect", "ill"))[0]["State"]["Health"]
        assert (health["Status"], [e["ExitCode"] for e in health["Log"]]) == ("healthy", [1, 0])
        engine.ok("rm", "-f", "-t", "0", "ill")


def test_restart_policy(pods: Engines) -> None:
    ours = pods[OURS]
    ours.start("again", "--restart", "on-failure:2", "busy", "false")
    form = "{{.RestartCount}}:{{.State.Status}}:{{.State.ExitCode}}"
    wait_until(lambda: ours.ok("inspect", "-f", form, "again") == "2:exited:1", "two restarts")
    ours.ok("rm", "-f", "again")


def test_terminal(pods: Engines) -> None:
    """A shell in a terminal: size and change of size, ctrl-c, detach and attach, its exit code."""
    ours = pods[OURS]
    words = ours.run_words("-it", "--name", "tty", "--detach-keys", "ctrl-q", "busy", "sh")
    with ours.terminal(*words, rows=30, columns=100) as terminal:
        terminal.expect("# ")
        terminal.type("tty; stty size; test -t 0 && test -c /dev/console && echo is-$((1 + 1))\n")
        terminal.expect(r"/dev/pts/0\r\n30 100\r\nis-2")
        terminal.resize(41, 99)
        terminal.type("until test \"$(stty size)\" = '41 99'; do sleep 0.05; done; echo size-$?\n")
        terminal.expect("size-0")
        terminal.type("sleep 1000\n")
        terminal.expect("sleep 1000")
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
        assert terminal.wait() == 0
    assert ours.ok("wait", "tty") == "6"
    ours.ok("rm", "tty")


def test_exec_in_a_terminal(pods: Engines) -> None:
    ours = pods[OURS]
    ours.start("texec", "busy", "sleep", "1000")
    with ours.terminal("exec", "-it", "texec", "sh", rows=33, columns=77) as terminal:
        terminal.expect("# ")
        terminal.type("tty; stty size; exit 7\n")
        terminal.expect(r"/dev/pts/0\r\n33 77")
        assert terminal.wait() == 7
    ours.ok("rm", "-f", "-t", "0", "texec")


# In a mount namespace of its own, so that the host's mounts stay as they are.
PROPAGATION = """
mount --bind "$TOP" "$TOP"
mount --make-shared "$TOP"
"$@" run -d --name prop --network none -v "$TOP:/slave:rslave" -v "$TOP:/private:rprivate" \
    -v "$TOP:/shared:rshared" --cap-add sys_admin --security-opt seccomp=unconfined busy sleep 1000
mkdir "$TOP/later" "$TOP/back"
mount -t tmpfs tmpfs "$TOP/later"
touch "$TOP/later/mounted"
"$@" exec prop ls /slave/later /private/later
"$@" exec prop mount -t tmpfs tmpfs /shared/back
grep -c "$TOP/back " /proc/self/mountinfo
umount "$TOP/back"
umount "$TOP/later"
"$@" rm -f -t 0 prop
"""


def test_propagation(pods: Engines, tmp_path: Path) -> None:
    """What the host mounts later is seen by the slave alone; what a shared one mounts, by the host."""
    found: list[str] = []
    for runtime in (OURS, RUNC):
        engine = pods[runtime]
        (tmp_path / runtime).mkdir()
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", PROPAGATION, "sh", *engine.argv],
            env={**engine.env, "TOP": str(tmp_path / runtime)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append("\n".join(done.stdout.splitlines()[1:-1]))
    assert found[0] == found[1] == "/private/later:\n\n/slave/later:\nmounted\n1"


# podman takes the ranges of a user `containers` from /etc/subuid: a file of the test's.
AUTO = """
echo containers:300000:131072 > "$TOP/subid"
mount --bind "$TOP/subid" /etc/subuid
mount --bind "$TOP/subid" /etc/subgid
exec "$@"
"""


def test_user_namespace_chosen_by_podman(pods: Engines, tmp_path: Path) -> None:
    for runtime in (OURS, RUNC):
        engine = pods[runtime]
        argv = ["unshare", "--mount", "sh", "-ec", AUTO, "sh", *engine.argv]
        auto = Engine(argv, {**engine.env, "TOP": str(tmp_path)})
        words = engine.run_words("--rm", "--userns=auto:size=4096", "busy", "sh", "-c")
        seen = auto.ok(*words, "cat /proc/self/uid_map; touch /x; stat -c %u:%g /x")
        assert seen.split() == ["0", "300000", "4096", "0:0"]


def test_many_at_once(pods: Engines) -> None:
    all_at_once(lambda n: pods[OURS].run("busy", "sh", "-c", f"exit {n}").code)


def test_many_execs_at_once(pods: Engines) -> None:
    ours = pods[OURS]
    ours.start("many", "busy", "sleep", "1000")
    all_at_once(lambda n: ours("exec", "many", "sh", "-c", f"exit {n}").code, 10)
    ours.ok("rm", "-f", "-t", "0", "many")
