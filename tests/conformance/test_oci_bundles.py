"""Bundles and command lines that are wrong: one clear line, exit status 1, nothing left.

The rows are those of what a runtime is given by mistake; what an attacker gives is in the other files.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.bundle import Bundle
from fixtures.hostile import World, bind, facts, mount, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def refusal(world: World, box: Bundle, *words: str) -> str:
    """`create` of what lies there: refused in time, within bounds, without a trace."""
    begin = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = world.oci("create", "-b", str(box.path), *words, "box")
    assert time.monotonic() - begin < 60
    # exec counts the memory that it leaves, which after vfork is this process's own (kernel: exec_mmap()).
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert largest <= max(before, own, 200 << 10)  # KiB
    assert not list(Path("/sys/fs/cgroup").glob(f"*{box.linux['cgroupsPath']}"))
    return world.clean_refusal(box, done)


TEXTS = {
    "empty": b"", "space": b"  ", "list": b"[]", "null": b"null", "object": b"{}", "number": b"1", "cut": b'{"ociVersion":"1.0.2"',
    "twice": b'{"ociVersion":"1.0.2","root":{"path":"rootfs"}}{}', "deep": b'{"a":' * 200_000, "list deep": b"[" * 200_000,
    "utf-16": '{"ociVersion":"1.0.2"}'.encode("utf-16"), "latin": b'{"ociVersion":"1.0.2","hostname":"\xe9"}', "bom": b"\xef\xbb\xbf{}",
    "nan": b'{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"cwd":"/","oomScoreAdj":NaN}}', "comment": b"// x\n{}",
    "digits": b'{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"cwd":"/","oomScoreAdj":' + b"9" * 100_000 + b"}}",
    "surrogate": b'{"ociVersion":"1.0.2","root":{"path":"\\ud800"}}', "nul": b'{"ociVersion":"1.0.2","root":{"path":"a\\u0000b"}}',
    "raw nul": b'{"ociVersion":"1.0.2\0"}', "large": b'{"a":"' + b"x" * (5 << 20) + b'"}', "quote": b'{"ociVersion":"1.0.2}',
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_configuration_that_is_no_document(world: World, name: str) -> None:
    box = world.bundle()
    (box.path / "config.json").write_bytes(TEXTS[name])
    assert "config.json" in refusal(world, box)


def test_a_configuration_that_is_no_file(world: World) -> None:
    box = world.bundle()
    config = box.path / "config.json"
    makers: list[Callable[[], Any]] = [
        lambda: None, config.mkdir, lambda: os.mkfifo(config), lambda: config.symlink_to("config.json"),
        lambda: config.symlink_to("/dev/zero"), lambda: config.symlink_to("/nowhere"), lambda: os.mknod(config, 0o020666, os.makedev(1, 3)),
        lambda: (config.touch(), os.truncate(config, 1 << 40)),
    ]  # fmt: skip
    for make in makers:
        make()
        assert "config.json" in refusal(world, box)
        if config.is_dir():
            config.rmdir()
        else:
            config.unlink(missing_ok=True)
    for bundle in ("/nonexistent", str(box.rootfs / "etc/passwd"), "/dev/null", "x" * 5000):
        done = world.oci("create", "-b", bundle, "box")
        world.clean_refusal(box, done)


def test_keys_that_are_given_twice_and_keys_that_nobody_knows(world: World) -> None:
    """The last of duplicates counts, in every runtime; unknown properties are passed over, says the specification."""
    box = world.bundle()
    box.script("hostname")
    box.config["unknown"] = {"deep": [1, {"a": None}]}
    box.linux["zzz"] = 1
    text = json.dumps(box.config)[:-1] + ',"hostname":"second"}'
    (box.path / "config.json").write_text(text)
    assert world.oci("run", "-b", str(box.path), "box").out == "second\n"


def at(path: str, value: Any) -> Callable[[Bundle], None]:
    """A change of one property, by its path."""

    def change(box: Bundle) -> None:
        *way, last = path.split(".")
        place: Any = box.config
        for key in way:
            place = place[key]
        place[last] = value

    return change


def more(*mounts: dict[str, Any]) -> Callable[[Bundle], None]:
    return lambda box: box.config["mounts"].extend(mounts)


HOOK = {"path": "/bin/true"}
WRONG: dict[str, tuple[Callable[[Bundle], None], str]] = {
    "version missing": (lambda box: box.config.pop("ociVersion"), "ociVersion"),
    "version 0": (at("ociVersion", "0.1"), "ociVersion"),
    "version 2": (at("ociVersion", "2.0.0"), "ociVersion"),
    "version none": (at("ociVersion", "latest"), "ociVersion"),
    "root missing": (lambda box: box.config.pop("root"), "root"),
    "root path": (at("root", {"path": "nosuch"}), "nosuch"),
    "root file": (at("root", {"path": "rootfs/etc/passwd"}), ""),
    "root number": (at("root", {"path": 5}), "root.path"),
    "args missing": (at("process.args", []), "args"),
    "args type": (at("process.args", "true"), "process.args"),
    "args numbers": (at("process.args", [1]), "process.args"),
    "cwd empty": (at("process.cwd", ""), "cwd"),
    "cwd relative": (at("process.cwd", "tmp"), "cwd"),
    "env": (at("process.env", ["X"]), "environment"),
    "terminal text": (at("process.terminal", "yes"), "process.terminal"),
    "uid text": (at("process.user", {"uid": "0"}), "uid"),
    "uid true": (at("process.user", {"uid": True}), "uid"),
    "uid half": (at("process.user", {"uid": 1.5}), "uid"),
    "rlimit unknown": (at("process.rlimits", [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "RLIMIT_X"),
    "rlimit twice": (at("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}] * 2), "rlimit"),
    "rlimit order": (at("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 5, "hard": 1}]), ""),
    "rlimit negative": (at("process.rlimits", [{"type": "RLIMIT_CORE", "soft": -5, "hard": -5}]), ""),
    "oom score": (at("process.oomScoreAdj", 5000), "oom"),
    "oom huge": (at("process.oomScoreAdj", 10**30), "oom"),
    "scheduler": (at("process.scheduler", {"policy": "SCHED_X"}), "SCHED_X"),
    "nice": (at("process.scheduler", {"policy": "SCHED_OTHER", "nice": 2**40}), "scheduler"),
    "io class": (at("process.ioPriority", {"class": "X"}), "io"),
    "umask": (at("process.user", {"uid": 0, "gid": 0, "umask": -1}), "umask"),
    "mount type": (more(mount("/x", "nosuchfs", "x")), "nosuchfs"),
    "mount source": (more(bind("/nonexistent", "/x")), "/nonexistent"),
    "mount root": (more(bind("/etc", "/")), "destination"),
    "mount file": (more(bind("/etc", "/etc/passwd")), "/etc/passwd"),
    "mount option": (more(bind("/etc", "/x", "size=5")), "size"),
    "mount tmpfs option": (more(mount("/x", "tmpfs", "x", "nosuch=5")), "/x"),
    "mount idmap": (more(bind("/etc", "/x", "idmap")), "id"),
    "mounts type": (at("mounts", {}), "mounts"),
    "namespace twice": (at("linux.namespaces", [{"type": "mount"}, {"type": "pid"}, {"type": "pid"}]), "pid"),
    "namespace unknown": (at("linux.namespaces", [{"type": "mount"}, {"type": "x"}]), "'x'"),
    "namespace file": (at("linux.namespaces", [{"type": "mount"}, {"type": "ipc", "path": "/etc/passwd"}]), "/etc/passwd"),
    "namespace dead": (at("linux.namespaces", [{"type": "mount"}, {"type": "ipc", "path": "/proc/4194304/ns/ipc"}]), "4194304"),
    "namespace kind": (at("linux.namespaces", [{"type": "mount"}, {"type": "ipc", "path": "/proc/self/ns/net"}]), "ipc"),
    "namespace fifo": (lambda box: (os.mkfifo(box.path / "fifo"), box.linux.update(namespaces=[{"type": "mount"}, {"type": "ipc", "path": str(box.path / "fifo")}]))[1], "fifo"),
    "maps without": (at("linux.uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}]), "user namespace"),
    "offsets without": (at("linux.timeOffsets", {"boottime": {"secs": 1}}), "time"),
    "masked relative": (at("linux.maskedPaths", ["etc/../../x/\0"]), ""),
    "device type": (at("linux.devices", [{"path": "/dev/x", "type": "x"}]), "/dev/x"),
    "device major": (at("linux.devices", [{"path": "/dev/x", "type": "c", "major": -1}]), "/dev/x"),
    "device major huge": (at("linux.devices", [{"path": "/dev/x", "type": "c", "major": 2**40}]), "/dev/x"),
    "device rule": (at("linux.resources", {"devices": [{"allow": True, "type": "q"}]}), "'q'"),
    "device access": (at("linux.resources", {"devices": [{"allow": True, "access": "z"}]}), "'z'"),
    "memory": (at("linux.resources", {"memory": {"limit": -7}}), "memory"),
    "memory text": (at("linux.resources", {"memory": {"limit": "1g"}}), "memory"),
    "pids": (at("linux.resources", {"pids": {"limit": 2**40}}), "pids"),
    "unified": (at("linux.resources", {"unified": {"../x": "1"}}), "../x"),
    "propagation": (at("linux.rootfsPropagation", "x"), "rootfsPropagation"),
    "personality": (at("linux.personality", {"domain": "X"}), "X"),
    "hook relative": (at("hooks", {"prestart": [{"path": "true"}]}), "prestart"),
    "hook missing": (at("hooks", {"createRuntime": [{"path": "/nonexistent"}]}), "/nonexistent"),
    "hook directory": (at("hooks", {"createContainer": [{"path": "/etc"}]}), "/etc"),
    "hook timeout": (at("hooks", {"poststop": [{**HOOK, "timeout": 0}]}), "timeout"),
    "hook unknown kind": (at("hooks", {"prestart": HOOK}), "hooks"),
    "annotation": (at("annotations", {"": "x"}), "annotation"),
    "annotation number": (at("annotations", {"x": 5}), "annotations"),
    "linux": (at("linux", []), "linux"),
}  # fmt: skip


def test_properties_that_are_wrong(world: World) -> None:
    box = world.bundle()
    results = world.variants(box, [change for change, _ in WRONG.values()])
    wrong: dict[str, object] = {}
    for (name, (_, says)), done in zip(WRONG.items(), results, strict=True):
        try:
            line = world.clean_refusal(box, done)
            assert says.lower() in line.lower()
        except AssertionError:
            wrong[name] = done
    assert wrong == {}


def test_ten_thousand_mounts(world: World) -> None:
    """More than a plan holds: told as such, and nothing stays mounted."""
    box = world.bundle()
    box.config["mounts"] += [mount(f"/m/{number}", "tmpfs", "tmpfs") for number in range(10_000)]
    box.write()
    refusal(world, box)


def test_sections_of_other_systems_and_what_may_be_absent(world: World) -> None:
    """The positive twin: windows and vm are passed over, null is unset, process may be missing until start."""
    box = world.bundle()
    box.config.update(
        windows={"layerFolders": [1]}, solaris=None, vm={"kernel": 5}, hooks=None, annotations=None
    )
    box.linux.update(sysctl=None, seccomp=None, devices=None, intelRdt=None)
    box.process.update(rlimits=None, env=["PATH=/bin"], capabilities=None)
    assert world.ok(box) == ""
    del box.config["process"]
    box.write()
    world.oci.quiet("create", "-b", str(box.path), "box")
    assert "process" in world.oci("start", "box").err
    world.oci.ok("delete", "--force", "box")


def test_state_that_is_damaged(world: World) -> None:
    """state.json cut, empty, of another kind: a clear line, and --force still takes all of it away."""
    for number, text in enumerate(
        ("", "{", "[]", "{}", '{"id":1}', "\0", "[" * 100_000, '{"pid":"x"}')
    ):
        box = world.bundle(f"c{number}")
        box.process["args"] = ["sleep", "100"]
        pid = world.start(box)
        path = world.oci.root / box.path.name / "state.json"
        whole = path.read_text()
        path.write_text(text)
        for words in (("state",), ("kill",), ("start",), ("exec",), ("pause",), ("delete",)):
            done = world.oci(*words, box.path.name, *(("true",) if words == ("exec",) else ()))
            assert done.code in (1, 255), words
            assert "Traceback" not in done.err, done.err
            if words == ("delete",):
                break
        assert world.oci("list").code == 0
        assert world.oci("delete", "--force", box.path.name).code == 0
        assert not (world.oci.root / box.path.name).exists()
        assert json.loads(whole)["pid"] == pid
        until(lambda pid=pid: not is_alive(pid))
        assert not list(Path("/sys/fs/cgroup").glob(f"*{box.linux['cgroupsPath']}"))


def is_alive(pid: int) -> bool:
    """Whether a process is neither gone nor a zombie that somebody else is to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_callers_with_odd_surroundings(world: World) -> None:
    """Closed stdio, a deleted directory, few descriptors, no PATH, umask 0777, SIGCHLD ignored, odd locale."""
    box = world.bundle()
    box.process["args"] = ["probe", "show"]
    box.write()
    words = " ".join(["run", "-b", str(box.path), "box"])
    command = f"{' '.join(world.oci.argv)} {words}"
    scripts = {
        "stdin": f"{command} <&-", "stdio": f"{command} <&- 2>&-", "cwd": f"mkdir {world.base}/gone; cd {world.base}/gone; rmdir {world.base}/gone; {command}",
        "descriptors": f"ulimit -n 40; {command}", "path": f"env -i {command}", "umask": f"umask 0777; {command}",
        "sigchld": f"trap '' CHLD; {command}", "locale": f"env LC_ALL=C LANG=xx_XX.utf8 {command}", "pipe": f"trap '' PIPE; {command}",
    }  # fmt: skip
    for name, script in scripts.items():
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60, stdin=-3)  # fmt: skip
        assert done.returncode == 0, (name, done)
        seen = facts(done.stdout)
        assert {key for key in seen if key.startswith("fd.")} == {"fd.0", "fd.1", "fd.2"}, (
            name,
            seen,
        )
        assert seen["Umask"] == ("0777" if name == "umask" else "0022"), (name, seen)
        assert int(seen["SigIgn"], 16) == 0, name


def test_command_lines_that_are_wrong(world: World) -> None:
    for words in (
        ("create",), ("create", "a", "b"), ("start",), ("state",), ("kill",), ("kill", "a", "b", "c"), ("kill", "x", "²"),
        ("delete", "--nosuch", "x"), ("nosuch",), ("create", "--bundle"), ("exec",), ("exec", "x"), ("exec", "-u", "x"),
        ("create", "--preserve-fds", "x", "y"), ("create", "--preserve-fds", "１", "y"), ("create", "--preserve-fds", "99999", "y"),
        ("list", "-f", "yaml"), ("update", "--memory", "²", "x"), ("update", "--cpu-quota", "1e5", "x"), ("--log-format", "xml", "list"),
        ("create", "--no-pivot", "x"), ("events", "--interval", "²s", "x"), ("--root", "/dev/null/x", "create", "y"),
    ):  # fmt: skip
        done = world.oci(*words)
        assert done.code in (1, 255), words
        assert done.err.count("\n") == 1, done
        assert "Traceback" not in done.err
    long_root = world.base / ("r" * 120) / ("s" * 120)
    box = world.bundle()
    box.process["args"] = ["true"]
    box.write()
    assert (
        world.oci("--root", str(long_root), "run", "-b", str(box.path), "box").code == 0
    )  # sun_path has 108 bytes
