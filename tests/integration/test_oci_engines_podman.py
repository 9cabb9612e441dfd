"""Podman with scow-oci in runc's place: what one container sees of each flag, beside runc."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.engines import (
    Engines,
    Row,
    compare,
    missing,
    podman,
    seccomp_profile,
)

CAPS = "grep Cap /proc/self/status"
NO_MASKS = 'sh -c "grep -c scow-mask /proc/self/mountinfo; head -c1 /proc/keys | wc -c"'


def caps(inheritable: str, permitted: str, bounding: str, ambient: str) -> str:
    """What /proc/self/status says of the five sets."""
    values = (inheritable, permitted, permitted, bounding, ambient)
    names = ("Inh", "Prm", "Eff", "Bnd", "Amb")
    return "\n".join(f"Cap{n}:\t{v:0>16}" for n, v in zip(names, values, strict=True))


ROWS = (
    Row("busy id", r"uid=0\(root\) gid=0\(root\)"),
    Row('busy sh -c "exit 9"', code=9),
    Row("busy nope", code=127, err='exec: "nope": executable file not found in \\$PATH'),
    Row("busy /etc", code=126, err='exec: "/etc": permission denied'),
    Row("--entrypoint /bin/echo busy a b", "a b"),
    Row("-w /data busy pwd", "/data"),
    Row('-e A=1 -e B=2 -e A=3 busy sh -c "echo $A$B$HOME"', "32/root"),
    # Users, rights
    Row("--user 1000:1000 busy id", r"uid=1000\(bob\) gid=1000\(bob\) groups=1000\(bob\)"),
    Row("--user bob busy id", r"uid=1000\(bob\) gid=1000\(bob\) groups=44\(video\),1000\(bob\)"),
    Row("--user 7 --group-add 44,55 busy id", r"uid=7\(7\) gid=0\(root\) groups=0\(root\),44\(video\),55"),
    Row("--umask 0027 busy sh -c umask", "0027"),
    Row(f"busy {CAPS}", caps("0", "a80425fb", "a80425fb", "0")),
    Row(f"--cap-drop all busy {CAPS}", caps("0", "0", "0", "0")),
    Row(f"--cap-drop all --cap-add chown,net_raw busy {CAPS}", caps("0", "2001", "2001", "0")),
    Row(f"--user bob --cap-add net_raw busy {CAPS}", caps("2000", "2000", "a80425fb", "2000")),
    Row(f"--cap-add all --cap-drop sys_admin busy {CAPS}", r"CapInh:\t0{16}\n.*[1-9a-f]{2}d[0-9a-f]{5}.*"),
    Row('--privileged busy sh -c "grep -c scow-mask /proc/mounts; grep Secc.*: /proc/self/status; echo name > /proc/sys/kernel/hostname; hostname; test -b /dev/loop0 && head -c0 /dev/loop0"',
        "0\nSeccomp:\t0\nSeccomp_filters:\t0\nname"),
    Row("--security-opt no-new-privileges busy grep NoNew /proc/self/status", "NoNewPrivs:\t1"),
    Row("busy grep -E NoNew|Seccomp: /proc/self/status", "NoNewPrivs:\t0\nSeccomp:\t2"),
    Row("--security-opt seccomp=unconfined busy grep Seccomp: /proc/self/status", "Seccomp:\t0"),
    Row("--security-opt seccomp=@seccomp busy mkdir /x", code=1, err="Protocol error"),
    Row("--security-opt mask=/proc/uptime:/sys/kernel busy sh -c 'cat /proc/uptime; ls /sys/kernel'"),
    Row("busy sh -c 'head -c1 /proc/keys; ls /sys/firmware; echo x > /proc/sys/kernel/domainname'", "", 1, "domainname: Read-only file system"),
    Row("--security-opt unmask=ALL busy sh -c 'grep -c /proc/ /proc/self/mountinfo; test -n \"$(ls /sys/firmware)\"'", "0"),
    Row("--security-opt unmask=/proc/keys busy sh -c 'head -c1 /proc/keys | wc -c'", "1"),
    Row("--security-opt proc-opts=hidepid=2 busy sh -c 'grep -c ^proc./proc..*hidepid=invisible /proc/mounts'", "5"),
    # Devices
    Row("--device /dev/null:/dev/other busy sh -c 'stat -c %t:%T:%a /dev/other; echo x > /dev/other'", "1:3:666"),
    Row("--device /dev/loop0:/dev/it:r busy sh -c 'head -c0 /dev/it && echo read; : > /dev/it'",
        "read", 1, "can't create /dev/it: Operation not permitted"),
    Row("--device-cgroup-rule 'b 7:* rm' busy sh -c 'mknod /tmp/l b 7 0 && head -c0 /tmp/l'"),
    Row("busy sh -c 'mknod /tmp/l b 7 0 && head -c1 /tmp/l'", code=1, err="/tmp/l: Operation not permitted"),
    # Limits that are not a cgroup's
    Row("--ulimit nofile=77:88 --ulimit nproc=90:99 --ulimit core=0 busy sh -c 'ulimit -n; ulimit -Hn; ulimit -u; ulimit -c'", "77\n88\n90\n0"),
    Row("--oom-score-adj 100 busy cat /proc/self/oom_score_adj", "100"),
    Row("--sysctl net.ipv4.ip_forward=1 --sysctl kernel.shmmax=100000 busy cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax", "1\n100000"),
    # Mounts
    Row("--read-only busy sh -c 'touch /tmp/x /run/x /dev/shm/x && echo ok; touch /x'", "ok", 1, "/x: Read-only file system"),
    Row("--read-only --read-only-tmpfs=false busy touch /tmp/x", code=1, err="/tmp/x: Read-only file system"),
    Row("--tmpfs /t:rw,size=1m,mode=1711,noexec busy sh -c 'grep -o /t.tmpfs.* /proc/mounts; stat -c %a /t'",
        "/t tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,mode=1711 0 0\n1711"),
    Row("--shm-size 3m busy grep -o size=3072k /proc/mounts", "size=3072k"),
    Row("-v @host:/h:ro busy sh -c 'cat /h/file; touch /h/x'", "of the host", 1, "/h/x: Read-only file system"),
    Row("-v @host:/h busy sh -c 'touch /h/x && rm /h/x && cat /h/file'", "of the host"),
    Row("-v @host:/h:rshared busy sh -c 'grep -c \" /h .* shared:\" /proc/self/mountinfo'", "1"),
    Row("-v @host:/h:rprivate,noexec,nosuid,nodev busy sh -c 'grep -o \" /h .*- \" /proc/self/mountinfo'",
        " /h rw,nosuid,nodev,noexec,relatime - "),
    Row("-v @host:/h:O busy sh -c 'touch /h/new && ls /h'", "file\nnew\nsub"),
    Row("-v busyvol:/data busy sh -c 'cat /data/file; grep -o \" /data .*- \" /proc/self/mountinfo'",
        "of the image\n /data rw,nosuid,nodev,relatime - "),
    Row("--mount type=bind,src=@host,dst=/h,ro=true,bind-propagation=rslave busy sh -c 'cat /h/file; touch /h/x'",
        "of the host", 1, "Read-only"),
    # runc 1.1 gives it the mode of the directory that it covers, whatever is asked for
    Row("--mount type=tmpfs,dst=/data,tmpfs-size=1m,tmpfs-mode=1770,notmpcopyup busy sh -c 'ls /data; stat -c %a /data'", "1770", beside=False),
    Row("--mount type=tmpfs,dst=/data,tmpcopyup busy cat /data/file", "of the image"),
    Row("--mount type=devpts,destination=/dev/pts busy stat -c %a /dev/pts/ptmx", "0"),
    # Namespaces
    Row("--hostname hh --add-host other:1.2.3.4 busy sh -c 'hostname; grep -o other /etc/hosts'", "hh\nother"),
    Row("--uidmap 0:100000:65536 --gidmap 0:200000:65536 busy sh -c 'cat /proc/self/uid_map /proc/self/gid_map; touch /x; stat -c %u /x'",
        " +0 +100000 +65536\n +0 +200000 +65536\n0"),
    Row("--uidmap 0:100000:65536 -v @host:/h busy stat -c %u:%g /h", "65534:65534"),
    # runc 1.1 takes the option and does nothing
    Row("--uidmap 0:100000:65536 -v @host:/h:idmap busy stat -c %u:%g /h", "0:0", beside=False),
    Row("--ipc host --uts host --pid host busy sh -c 'for n in ipc uts pid; do readlink /proc/self/ns/$n; done'", "@host_ipc\n@host_uts\n@host_pid"),
    Row("--network host busy readlink /proc/self/ns/net", "@host_net"),
    Row("--cgroupns private busy sh -c 'cut -d: -f3 /proc/self/cgroup | sort -u'", "/"),
    Row("--systemd=always busy sh -c 'echo $container; grep -cE \" (/run|/run/lock|/tmp|/var/log/journal) tmpfs \" /proc/mounts'", "podman\n4"),
    Row("--init busy cat /proc/1/comm", "podman-init"),
    # runc 1.1 has no personality
    Row("--personality LINUX32 busy uname -m", "i686", beside=False),
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
    # podman turns it into 0, which is no limit before 1.3 of the specification
    Row("--pids-limit -1 busy cat /sys/fs/cgroup/pids/pids.max", "max"),
    Row("--memory-swappiness 7 busy cat /sys/fs/cgroup/memory/memory.swappiness", "7"),
    Row("--cgroupns host busy sh -c 'echo 1 > /sys/fs/cgroup/memory/memory.limit_in_bytes'", "", 1, "Read-only file system"),
)  # fmt: skip
V2 = (
    # The two runtimes have different formulas for the weight.
    Row(_FLAGS + "memory.max memory.swap.max memory.low cpu.max cpu.weight cpuset.cpus pids.max io.max'",
        "67108864\n33554432\n33554432\n50000 100000\n100\n0\n33\n7:0 rbps=1048576 .*", beside=False),
    Row("--pids-limit -1 busy cat /sys/fs/cgroup/pids.max", "max"),
    Row("busy sh -c 'echo 1 > /sys/fs/cgroup/pids.max'", "", 1, "Read-only file system"),
)  # fmt: skip


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    kernel.need(kernel.mount_refused)
    if reason := missing("podman", "conmon", "runc", "tini-static"):
        pytest.skip(reason)
    with podman(tmp_path_factory.mktemp("podman")) as engines:
        yield engines


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """A directory of the host, a profile, the host's namespaces."""
    top = tmp_path_factory.mktemp("host")
    (top / "host/sub").mkdir(parents=True)
    (top / "host/file").write_text("of the host\n")
    spaces = {
        f"@host_{n}": str(Path(f"/proc/self/ns/{n}").readlink())
        for n in ("ipc", "uts", "pid", "net")
    }
    return {**spaces, "@host": str(top / "host"), "@seccomp": str(seccomp_profile(top))}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.words)
def test_run(pods: Engines, names: Mapping[str, str], row: Row) -> None:
    compare(row, names, pods)


@pytest.mark.cgroup_v1
@pytest.mark.parametrize("row", V1, ids=lambda row: row.words)
def test_limits_v1(pods: Engines, names: Mapping[str, str], row: Row) -> None:
    compare(row, names, pods)


@pytest.mark.cgroup_v2
@pytest.mark.parametrize("row", V2, ids=lambda row: row.words)
def test_limits_v2(pods: Engines, names: Mapping[str, str], row: Row) -> None:
    compare(row, names, pods)
