"""containerd and its runc shim with scow-oci in runc's place: ctr's commands, beside runc."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.engines import (
    OURS,
    RUNC,
    Engines,
    Row,
    all_at_once,
    compare,
    containerd,
    missing,
    seccomp_profile,
    wait_until,
    walk,
)

IMAGE = "docker.io/library/busy:latest"
STATUS = r"grep -E (Cap(Eff|Bnd)|NoNew|Seccomp:) /proc/self/status"

ROWS = (
    Row("@image @c sh -c 'exit 5'", code=5),
    Row("@image @c nope", code=1, err='exec: "nope": executable file not found in \\$PATH'),
    Row("@image @c /etc", code=1, err='exec: "/etc": permission denied'),
    Row("@image @c sh -c 'kill -9 $$; sleep 1000 & kill -TERM $!; wait $!'", code=143),
    Row(f"@image @c {STATUS}", "CapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t0"),
    Row(f"--privileged --allow-new-privs @image @c {STATUS}", "CapEff:\t(000001ff[0-9a-f]{8})\nCapBnd:\t000001ff[0-9a-f]{8}\nNoNewPrivs:\t0\nSeccomp:\t0"),
    Row(f"--cap-add CAP_SYS_PTRACE --cap-drop CAP_KILL @image @c {STATUS}", "CapEff:\t00000000a80c25db\n.*"),
    Row(f"--seccomp @image @c {STATUS}", ".*Seccomp:\t2"),
    Row("--seccomp --seccomp-profile @seccomp @image @c mkdir /x", code=1, err="Protocol error"),
    Row("--read-only @image @c sh -c 'touch /run/x && echo ok; touch /x'", "ok", 1, "/x: Read-only file system"),
    Row("--env A=b --cwd /data @image @c sh -c 'echo $A; pwd; cat file'", "b\n/data\nof the image"),
    Row("--mount type=bind,src=@host,dst=/h,options=rbind:ro @image @c sh -c 'cat /h/file; touch /h/x'",
        "of the host", 1, "/h/x: Read-only file system"),
    Row("--mount type=tmpfs,src=tmpfs,dst=/h,options=size=1m:mode=1711:noexec @image @c sh -c 'grep -o \" /h .*\" /proc/mounts'",
        " /h tmpfs rw,noexec,relatime,size=1024k,mode=1711 0 0"),
    Row("--device /dev/loop0 @image @c sh -c 'stat -c %t:%T /dev/loop0; head -c0 /dev/loop0'", "7:0"),
    Row("@image @c sh -c 'mknod /tmp/l b 7 0 && head -c1 /tmp/l'", code=1, err="Operation not permitted"),
    Row("--net-host @image @c readlink /proc/self/ns/net", "@host_net"),
    Row("--with-ns ipc:/proc/@pid/ns/ipc --with-ns uts:/proc/@pid/ns/uts @image @c sh -c 'readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts'",
        "@host_ipc\n@host_uts"),
    Row("@image @c sh -c 'cut -d: -f3 /proc/self/cgroup | sort -u'", "/scow-test-ctr-[0-9]+/@c"),
    Row("@image @c sh -c 'mount | cut -d\" \" -f3,5; ls /dev'", ".*/proc/keys tmpfs\n.*ptmx.*"),
    # ctr forgets --runc-binary beside a mapping: the daemon's `runc` is scow-oci then.
    Row("--uidmap 0:100000:65536 --gidmap 0:200000:65536 @image @c sh -c 'cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u:%g /data/file'",
        " +0 +100000 +65536\n +0 +200000 +65536\n0\n0:0", beside=False),
)  # fmt: skip

TALKER = "trap 'exit 5' TERM; sleep 1000 & while :; do wait; done"

LIFE = (
    Row(f'run -d @run --memory-limit 67108864 @image @c sh -c "{TALKER}"'),
    Row("task ls", ".*@c +[0-9]+ +RUNNING.*", beside=False),
    Row("task ps @c", "PID +INFO\n[0-9]+ +-\n[0-9]+ +-", beside=False),
    Row("task exec --exec-id e1 @c id", r"uid=0\(root\) gid=0\(root\) groups=0\(root\)"),
    Row("task exec --exec-id e1 --user bob --cwd /data @c sh -c 'id -u; pwd; exit 3'", "1000\n/data", 3),
    Row("task exec --exec-id e1 @c nope", code=1, err="executable file not found in \\$PATH"),
    Row("task exec --exec-id e1 @c /etc", code=1, err="permission denied"),
    Row("task exec --exec-id e1 @c sh -c 'kill -9 $$'", code=137),
    Row("task exec --exec-id e1 @c grep -E CapEff|NoNew /proc/self/status", "CapEff:\t00000000a80425fb\nNoNewPrivs:\t1"),
    Row("task pause @c"),
    Row("task ls", ".*@c +[0-9]+ +PAUSED.*", beside=False),
    Row("task exec --exec-id e1 @c true", code=1, err="cannot exec in a paused state"),
    Row("task resume @c"),
    Row("task ls", ".*@c +[0-9]+ +RUNNING.*", beside=False),
    Row("task metrics @c", ".*memory.limit_in_bytes +67108864.*|.*memory.*", beside=False),
    Row("task delete @c", code=1, err="must be stopped"),
    Row("task kill @c"),
    Row("task ls", ".*@c +[0-9]+ +STOPPED.*", beside=False, until=True),
    Row("task kill @c", code=1, err="process already finished"),
    Row("task delete @c", err="exit code 5"),
    Row("task start -d @c"),
    Row("task exec --exec-id e1 @c true"),
    Row("task kill -s KILL -a @c"),
    Row("task ls", ".*@c +[0-9]+ +STOPPED.*", beside=False, until=True),
    Row("task delete @c", err="exit code 137"),
    Row("containers rm @c"),
)  # fmt: skip


@pytest.fixture(scope="module")
def ctr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    kernel.need(kernel.mount_refused)
    if reason := missing("containerd", "ctr", "runc"):
        pytest.skip(reason)
    with containerd(tmp_path_factory.mktemp("containerd")) as engines:
        yield engines


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The image, a directory of the host, a profile, the host's namespaces."""
    top = tmp_path_factory.mktemp("host")
    (top / "host").mkdir()
    (top / "host/file").write_text("of the host\n")
    spaces = {
        f"@host_{n}": str(Path(f"/proc/self/ns/{n}").readlink()) for n in ("ipc", "uts", "net")
    }
    return {
        **spaces,
        "@host": str(top / "host"),
        "@seccomp": str(seccomp_profile(top)),
        "@pid": str(os.getpid()),
        "@image": IMAGE,
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.words)
def test_run(ctr: Engines, names: Mapping[str, str], row: Row) -> None:
    compare(row, names, ctr)
    # What could not be started stays as a container without a task.
    for runtime in (OURS, RUNC):
        ctr[runtime]("containers", "rm", f"life-{runtime}")


def test_life(ctr: Engines, names: Mapping[str, str]) -> None:
    walk(LIFE, names, ctr)


def test_metrics(ctr: Engines) -> None:
    """The shim reads them itself, from the cgroup of the task's process."""
    found: list[set[str]] = []
    for runtime in (OURS, RUNC):
        engine = ctr[runtime]
        limits = ("--memory-limit", "67108864")
        engine.ok("run", "-d", *engine.flags, *limits, IMAGE, "m", "sleep", "1000")
        # What is 0 is left out, and the kernel sums up its counters every two seconds only.
        deadline = time.monotonic() + 60
        while True:
            metrics = json.loads(engine.ok("task", "metrics", "--format", "json", "m"))
            if "total_pg_fault" in metrics["memory"] or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert metrics["pids"]["current"] == 1
        assert 0 < metrics["memory"]["usage"]["usage"] < 67108864
        assert metrics["memory"]["usage"]["limit"] == 67108864
        found.append({name for name, value in metrics["memory"].items() if isinstance(value, dict)})
        assert "total_pg_fault" in metrics["memory"]
        engine("task", "delete", "-f", "m")
        engine.ok("containers", "rm", "m")
    assert found[0] == found[1]


def test_terminal(ctr: Engines) -> None:
    ours = ctr[OURS]
    words = ("run", "--rm", "-t", *ours.flags, IMAGE, "tty", "sh")
    with ours.terminal(*words, rows=30, columns=100) as terminal:
        terminal.expect("# ")
        terminal.type("tty; stty size\n")
        terminal.expect(r"/dev/pts/0\s+30 100")
        terminal.resize(41, 99)
        terminal.type("until test \"$(stty size)\" = '41 99'; do sleep 0.05; done; echo size-$?\n")
        terminal.expect("size-0")
        with ours.terminal("task", "exec", "-t", "--exec-id", "e", "tty", "sh") as second:
            second.expect("# ")
            second.type("tty; test -t 1; exit $((6 + $?))\n")
            second.expect("/dev/pts/1")
            assert second.wait() == 6
        terminal.type("sleep 1000\n")
        wait_until(
            lambda: "sleep 1000" in ours("task", "exec", "--exec-id", "p", "tty", "ps").out,
            "sleep to run",
        )
        terminal.type("\x03")
        terminal.type("echo code-$?; exit 4\n")
        terminal.expect("code-130")
        assert terminal.wait() == 4


def test_streams(ctr: Engines) -> None:
    ours = ctr[OURS]
    ours.ok("run", "-d", *ours.flags, IMAGE, "s", "sleep", "1000")
    done = ours("task", "exec", "--exec-id", "a", "s", "sh", "-c", "echo out; echo err >&2")
    assert (done.out, done.err) == ("out\n", "err\n")
    assert (
        ours.ok("task", "exec", "--exec-id", "b", "s", "wc", "-c", stdin=b"x" * 200_000) == "200000"
    )
    ours("task", "delete", "-f", "s")
    ours.ok("containers", "rm", "s")


def test_many_at_once(ctr: Engines) -> None:
    ours = ctr[OURS]

    def one(number: int) -> int:
        return ours.run(IMAGE, f"p{number}", "sh", "-c", f"exit {number}").code

    all_at_once(one)
    assert ours.ok("containers", "ls", "-q") == ""


def test_many_execs_at_once(ctr: Engines) -> None:
    ours = ctr[OURS]
    ours.ok("run", "-d", *ours.flags, IMAGE, "many", "sleep", "1000")

    def one(number: int) -> int:
        words = ("--exec-id", f"e{number}", "many", "sh", "-c", f"exit {number}")
        return ours("task", "exec", *words).code

    all_at_once(one, 10)
    ours("task", "delete", "-f", "many")
    ours.ok("containers", "rm", "many")
