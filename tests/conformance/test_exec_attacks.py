"""A container against whoever enters it: tracing, the caller's terminal, names swapped meanwhile."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.canary import SECRET, Canary
from fixtures.command import Scow
from fixtures.handmade import Archive, busybox_layer, file, pack

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
TIOCGPTN = 0x80045430
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Scow:
    base = tmp_path_factory.mktemp("attacks")
    source = ROOT / "tests/payload/probe.c"
    subprocess.run(["musl-gcc", "-static", "-Os", "-o", base / "probe", source], check=True)
    layer = pack([file("bin/probe", (base / "probe").read_bytes(), 0o755)])
    archive = Archive()
    archive.add("probe:latest", [busybox_layer(), layer], {"Cmd": ["sleep", "1000"]})
    scow = Scow(str(base / "root"), str(base / "run"))
    scow.ok("load", "-i", str(archive.write(base / "probe.tar")))
    return scow


@pytest.fixture
def scow(shared: Scow) -> Iterator[Scow]:
    yield shared
    shared.remove_all()


@pytest.mark.parametrize(
    "words",
    [
        ("exec", "hunter", "probe", "exit", "0"),
        ("exec", "-w", "/tmp", "-u", "1000", "hunter", "true"),
    ],
)
def test_a_tracer_finds_nothing_of_the_host_in_an_exec(scow: Scow, words: tuple[str, ...]) -> None:
    """CVE-2016-9962: pid 1 may trace everything in its namespace and looks at each new process."""
    scow.ok(
        "run", "-d", "--network", "none", "--cap-add", "SYS_PTRACE", "--name", "hunter", "probe", "probe", "hunt", "4",
    )  # fmt: skip
    end = time.monotonic() + 3
    count = 0
    while time.monotonic() < end:
        done = scow(*words)
        if "it has just ended" in done.err or "is exited" in done.err:
            break  # the hunter's own time is over, on a machine that is slow
        assert done.code == 0, done
        count += 1
    scow.ok("wait", "hunter")
    found = scow.ok("logs", "hunter")
    assert "successes 0" in found, found
    assert count > 0


def host_devices() -> list[str]:
    """The file systems of the host; what the other container has of its own is no escape."""
    return [str(os.stat(path).st_dev) for path in ("/", "/dev", "/tmp", "/run")]


def test_a_tracer_finds_nothing_of_the_host_in_a_container_that_joins(scow: Scow) -> None:
    """The same with --pid container:ID: another container is made in the hunter's namespace."""
    scow.ok(
        "run", "-d", "--network", "none", "--cap-add", "SYS_PTRACE", "--name", "hunter", "probe", "probe", "hunt", "5",
        *host_devices(),
    )  # fmt: skip
    end = time.monotonic() + 4
    while time.monotonic() < end:
        done = scow(
            "run",
            "--rm",
            "--network",
            "none",
            "--pid",
            "container:hunter",
            "probe",
            "probe",
            "exit",
            "0",
        )
        assert done.code == 0, done.err
    scow.ok("wait", "hunter")
    found = scow.ok("logs", "hunter")
    assert "successes 0" in found, found


def test_a_shared_pid_namespace_is_shared(scow: Scow) -> None:
    """The positive twin: processes, /proc and signals of the other container are there."""
    scow.ok("run", "-d", "--network", "none", "--name", "first", "probe", "sleep", "987")
    run = ("run", "--rm", "--network", "none", "--pid", "container:first")
    out = scow.ok(
        *run,
        "probe",
        "sh",
        "-c",
        "echo $$; cat /proc/1/cmdline | tr '\\0' ' '; echo; readlink /proc/self/ns/pid",
    )
    lines = out.splitlines()
    assert int(lines[0]) > 1
    assert lines[1].startswith("sleep 987")
    assert scow.ok("exec", "first", "readlink", "/proc/self/ns/pid") == lines[-1]
    assert scow(*run, "nosuch").code != 0
    with scow.terminal(
        "run", "--rm", "-it", "--network", "none", "--pid", "container:first", "probe", "sh"
    ) as terminal:
        terminal.expect(r"[#$] ")
        terminal.type("tty; ls -l /dev/console; exit 6\n")
        terminal.expect(r"/dev/pts/0")
        assert terminal.wait() == 6
    scow.ok(
        "run",
        "-d",
        "--network",
        "none",
        "--pid",
        "container:first",
        "--init",
        "--name",
        "second",
        "probe",
        "sleep",
        "986",
    )
    assert "sleep 987" in scow.ok("exec", "second", "ps")
    # pid_namespaces(7): with its first process the whole namespace ends.
    scow.ok("kill", "first")
    assert scow.ok("wait", "second") == "137"


@pytest.mark.parametrize("interactive", [True, False])
def test_nothing_is_pushed_into_the_callers_terminal(
    scow: Scow, tmp_path: Path, interactive: bool
) -> None:
    """CVE-2016-10124, CVE-2017-5226: TIOCSTI on every descriptor there is, by run and by exec."""
    (tmp_path / "push.c").write_text(
        "#include <sys/ioctl.h>\n#include <fcntl.h>\n#include <stdio.h>\n"
        "int main(void) { const char *t = \"echo pushed\\n\"; int ok = 0;\n"
        "  for (int fd = 0; fd < 4; fd++) for (const char *c = t; *c; c++) ok += ioctl(fd, TIOCSTI, c) == 0;\n"
        "  int tty = open(\"/dev/tty\", O_RDWR); for (const char *c = t; *c; c++) ok += ioctl(tty, TIOCSTI, c) == 0;\n"
        "  printf(\"tried %d\\n\", ok); return 0; }\n"
    )  # fmt: skip
    subprocess.run(
        ["musl-gcc", "-static", "-o", tmp_path / "push", tmp_path / "push.c"], check=True
    )
    scow.ok("run", "-d", "--network", "none", "--name", "box", "-v", f"{tmp_path}:/t:ro", "probe")
    flags = ("-it",) if interactive else ("-i",)
    for words in (
        ("exec", *flags, "box", "/t/push"),
        ("run", "--rm", "--network", "none", *flags, "-v", f"{tmp_path}:/t:ro", "probe", "/t/push"),
    ):
        with scow.terminal(*words) as terminal:
            terminal.expect(r"tried \d+")
            terminal.wait()
            time.sleep(0.1)
            # What was pushed would wait here, for the shell of the person who typed the command.
            assert waiting(terminal.master) == 0
            assert "pushed" not in terminal.seen.replace("echo pushed", "") or interactive


def waiting(master: int) -> int:
    """How many bytes lie in the input of the terminal that `master` belongs to."""
    import fcntl
    import struct
    import termios

    number = struct.unpack("i", fcntl.ioctl(master, TIOCGPTN, b"\0" * 4))[0]
    slave = os.open(f"/dev/pts/{number}", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        return int(struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, b"\0" * 4))[0])
    finally:
        os.close(slave)


def test_an_exec_reads_no_file_of_the_host_through_swapped_links(
    scow: Scow, tmp_path: Path
) -> None:
    """The container swaps /etc between a directory and links out of itself, and we enter by name."""
    (tmp_path / "canary").mkdir()
    canary = Canary(tmp_path / "canary")
    before = canary.facts()
    swap = (
        f"mkdir /a; cp -a /etc /a/etc; ln -s {canary} /a/link; ln -s /proc/1/root{canary} /a/magic; cd /a; echo ready; "
        "while :; do for n in link magic; do mv -T /etc /a/real; mv -T /a/$n /etc; mv -T /etc /a/$n; mv -T /a/real /etc; done; done"
    )
    scow.ok("run", "-d", "--network", "none", "--name", "box", "probe", "sh", "-c", swap)
    while "ready" not in scow.ok("logs", "box"):
        time.sleep(0.02)
    codes = set()
    for _ in range(15):
        done = scow("exec", "-u", "evil", "box", "id")
        codes.add(done.code)
        assert done.code in (125, 126), done
        assert SECRET not in done.out + done.err
        assert "Traceback" not in done.err
    assert canary.changed_since(before) == {}
