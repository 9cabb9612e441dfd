"""Seccomp's agent (SCMP_ACT_NOTIFY) and flags, as the kernel has them; beside runc and crun."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures import kernel
from fixtures.bundle import SCOW_OCI, Bundle, Runtime, without_unified

# linux/seccomp.h: struct seccomp_notif is 80 bytes, struct seccomp_notif_resp 24.
RECEIVE, ANSWER = 0xC0502100, 0xC0182101
CONTINUE = 1
MKDIR = 83


class Agent:
    """Takes listeners, and answers what they are asked: mkdir fails in a way that nothing else does."""

    def __init__(self, path: Path) -> None:
        self.told: list[dict[str, Any]] = []
        self.asked: list[int] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                # One message: runc leaves the connection open, so its end says nothing.
                data, fds, _, _ = socket.recv_fds(connection, 1 << 16, 4)
            self.told.append(json.loads(data))
            assert len(fds) == 1
            self.threads.append(threading.Thread(target=self.answer, args=fds))
            self.threads[-1].start()

    def answer(self, fd: int) -> None:
        try:
            while True:
                # Python's ioctl holds its lock, so it must not wait in there.
                select.select([fd], [], [])
                request = bytearray(80)
                fcntl.ioctl(fd, RECEIVE, request)
                number, call = struct.unpack_from("<Q8xi", request)
                self.asked.append(call)
                if call == MKDIR:
                    answer = struct.pack("<QqiI", number, 0, -errno.ENOMEDIUM, 0)
                else:
                    answer = struct.pack("<QqiI", number, 0, 0, CONTINUE)
                fcntl.ioctl(fd, ANSWER, answer)
        except OSError:
            os.close(fd)  # ENOENT: the last process of the filter has ended

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    kernel.need(kernel.mount_refused)
    made = Bundle(tmp_path / "bundle", f"/scow-oci-notify-{os.getpid()}/x")
    notify(made, "mkdir", "mkdirat")
    made.script("mkdir /tmp/x 2>&1; echo $?")
    return made


def notify(bundle: Bundle, *calls: str, **more: Any) -> None:
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(bundle.path / "agent"),
        "listenerMetadata": "some words",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": list(calls), "action": "SCMP_ACT_NOTIFY"}],
        **more,
    }


@pytest.fixture
def agent(bundle: Bundle) -> Iterator[Agent]:
    made = Agent(bundle.path / "agent")
    yield made
    made.close()


@pytest.fixture
def runtimes(tmp_path: Path) -> Iterator[dict[str, Runtime]]:
    for name in ("runc", "crun"):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
    yield {
        "scow": Runtime(SCOW_OCI, tmp_path / "scow"),
        "runc": Runtime(["runc"], tmp_path / "runc"),
        "crun": Runtime(without_unified(["crun"], tmp_path / "empty"), tmp_path / "crun"),
    }
    for parent in Path("/sys/fs/cgroup").glob(f"*/scow-oci-notify-{os.getpid()}"):
        parent.rmdir()  # runc and crun leave it


REFUSED = ["mkdir: can't create directory '/tmp/x': No medium found", "1"]


@pytest.mark.cgroup_v1
@pytest.mark.parametrize("new_privileges", [False, True])
def test_an_agent_answers_as_under_the_peers(
    bundle: Bundle, agent: Agent, runtimes: dict[str, Runtime], new_privileges: bool
) -> None:
    bundle.process["noNewPrivileges"] = not new_privileges
    bundle.write()
    for name, runtime in runtimes.items():
        done = runtime("run", "-b", str(bundle.path), f"x-{name}")
        assert done.out.splitlines() == REFUSED, (name, done.err)
    scow, runc, crun = agent.told
    assert scow["state"].pop("id") == "x-scow"
    for told in (runc, crun):
        assert set(told) <= set(scow) | {"version"}
        assert told["fds"] == scow["fds"] == ["seccompFd"]
        assert told["metadata"] == scow["metadata"] == "some words"
        assert told["state"]["bundle"] == scow["state"]["bundle"]
    assert scow["pid"] == scow["state"]["pid"] > 1
    assert scow["state"]["status"] == "created"


def test_exec_has_a_listener_of_its_own(oci: Runtime, bundle: Bundle, agent: Agent) -> None:
    bundle.process["args"] = ["sleep", "100"]
    bundle.write()
    assert oci.quiet("run", "-d", "-b", str(bundle.path), "x").code == 0
    assert "No medium" in oci("exec", "x", "mkdir", "/tmp/y").err
    oci.ok("delete", "--force", "x")
    first, second = agent.told
    assert (first["state"]["status"], second["state"]["status"]) == ("created", "running")
    assert first["pid"] == second["state"]["pid"] != second["pid"]


@pytest.mark.parametrize("new_privileges", [False, True])
def test_all_that_we_do_ourselves_may_be_asked_about(
    oci: Runtime, bundle: Bundle, agent: Agent, new_privileges: bool
) -> None:
    """Only write is ours: by it the descriptor is announced."""
    calls = ["read", "sendmsg", "execve", "close", "fcntl", "setresuid", "capset", "prctl", "chdir"]
    notify(bundle, *calls, "mkdir", flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])
    bundle.process["noNewPrivileges"] = not new_privileges
    bundle.write()
    done = oci("run", "-b", str(bundle.path), "x")
    assert done.out.splitlines() == REFUSED, done.err
    assert {0, 59, MKDIR} <= set(agent.asked)


def test_without_an_agent_nothing_runs(oci: Runtime, bundle: Bundle) -> None:
    bundle.write()
    done = oci("run", "-b", str(bundle.path), "x")
    assert (done.code, done.out) == (1, "")
    assert "agent" in done.err
    assert oci.ok("list", "-q") == ""


def test_a_listener_that_no_rule_needs_is_not_looked_for(oci: Runtime, bundle: Bundle) -> None:
    bundle.linux["seccomp"]["syscalls"] = []
    bundle.linux["seccomp"]["flags"] = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    bundle.script("mkdir /tmp/x && echo made")
    bundle.write()
    assert oci("run", "-b", str(bundle.path), "x").out == "made\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}, "'write'"),
        ({"listenerPath": ""}, "listenerPath"),
        ({"listenerPath": "", "syscalls": []}, "listenerPath"),
    ],
)
def test_what_cannot_work_is_refused(
    oci: Runtime, bundle: Bundle, change: dict[str, Any], words: str
) -> None:
    bundle.linux["seccomp"].update(change)
    bundle.write()
    done = oci("create", "-b", str(bundle.path), "x")
    assert done.code == 1
    assert words in done.err


@pytest.mark.parametrize(
    "flags", [[], ["LOG"], ["SPEC_ALLOW"], ["TSYNC"], ["LOG", "SPEC_ALLOW", "TSYNC"]]
)
def test_flags_are_taken(oci: Runtime, bundle: Bundle, flags: list[str]) -> None:
    """Without SPEC_ALLOW the kernel confines the speculation of a process with prctl(2)'s means."""
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": [f"SECCOMP_FILTER_FLAG_{name}" for name in flags],
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 123}],
    }
    bundle.script("mkdir /tmp/x 2>&1; grep ^Seccomp: /proc/self/status")
    bundle.write()
    done = oci("run", "-b", str(bundle.path), "x")
    assert done.out.splitlines() == [REFUSED[0], "Seccomp:\t2"], done.err
