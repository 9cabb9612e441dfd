"""The way in, with a service that is not there: verbs, exit codes, messages, output."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from scow.cli import main
from scow.cli.session import session
from scow.cri.views import ContainerView
from scow.native.errors import CommandNotFound, InvalidState, NotFound, ScowError
from scow.netns.ports import PortMapping

ID = "0123456789ab" + "c" * 52


def view(**changes: Any) -> ContainerView:
    fields: dict[str, Any] = {
        "id": ID, "name": "web", "image": "nginx", "image_id": "sha256:" + "1" * 64,
        "command": ("nginx", "-g", "daemon off;"), "created_ns": time.time_ns() - 200 * 10**9,
        "state": "running", "pid": 42, "exit_code": 0, "oom_killed": False,
        "started_ns": time.time_ns() - 180 * 10**9, "finished_ns": 0,
        "ports": (PortMapping("0.0.0.0", 8080, 80, "tcp"),), "exposed_ports": (),
        "labels": {"a": "b"}, "networks": ("bridge",), "mounts": (),
    }  # fmt: skip
    return ContainerView(**(fields | changes))


class FakeService:
    def __init__(self) -> None:
        self.views = [view()]
        self.calls: list[tuple[Any, ...]] = []
        self.fail: Exception | None = None

    def list(self) -> list[ContainerView]:
        return self.views

    def find(self, name: str) -> str:
        if self.fail:
            raise self.fail
        for one in self.views:
            if name == one.name or one.id.startswith(name):
                return one.id
        raise NotFound(f"no such container: '{name}'")

    def stop(self, container_id: str, timeout: int | None, number: int | None) -> None:
        self.calls.append(("stop", container_id, timeout, number))

    def kill(self, container_id: str, number: int) -> None:
        self.calls.append(("kill", container_id, number))

    def wait(self, container_id: str) -> int:
        return 7

    def remove(self, container_id: str, *, force: bool, volumes: bool) -> None:
        self.calls.append(("remove", container_id, force, volumes))

    def inspect(self, container_id: str) -> dict[str, object]:
        return {"Id": container_id, "State": {"Pid": 42, "OOMKilled": True}}

    def ensure_image(
        self, name: str, policy: str, platform: str | None, progress: object, **how: object
    ) -> object:
        self.calls.append(("ensure_image", name, policy, platform, *how.items()))
        return SimpleNamespace(config=SimpleNamespace(exposed_ports=("80/tcp",)))

    def create(self, image: object, options: object) -> str:
        self.calls.append(("create", options))
        return ID

    def start(self, container_id: str, *, attach: bool) -> None:
        self.calls.append(("start", container_id, attach))
        if self.fail:
            raise self.fail


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    service = FakeService()
    session.use(service)  # type: ignore[arg-type]  # it does what these verbs need
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    yield service
    session.use(None)
    session.debug = False


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main.run(list(words))
    out, err = capsys.readouterr()
    return status, out, err


def test_ps(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    fake.views.append(
        view(
            id="f" * 64,
            name="old",
            state="exited",
            exit_code=3,
            finished_ns=time.time_ns() - 5 * 10**9,
            created_ns=1,
        )
    )
    status, out, _ = run(capsys, "ps")
    assert status == 0
    assert out == (
        "CONTAINER ID   IMAGE     COMMAND                  CREATED         STATUS         PORTS                  NAMES\n"
        '0123456789ab   nginx     "nginx -g daemon off;"   3 minutes ago   Up 3 minutes   0.0.0.0:8080->80/tcp   web\n'
    )
    _, out, _ = run(capsys, "container", "ls", "-a", "--format", "{{.Names}} {{.Status}}")
    assert out.splitlines()[1] == "old Exited (3) 5 seconds ago"
    assert run(capsys, "ps", "-aq")[1] == "0123456789ab\nffffffffffff\n"
    assert run(capsys, "ps", "-aq", "-f", "status=exited", "-f", "name=ol")[1] == "ffffffffffff\n"
    assert run(capsys, "ps", "-q", "-f", "label=a=b", "-f", "publish=8080")[1] == "0123456789ab\n"
    assert run(capsys, "ps", "-q", "-f", "label=a=c")[1] == ""
    line = json.loads(run(capsys, "ps", "--format", "json")[1])
    assert line["Ports"] == "0.0.0.0:8080->80/tcp"
    assert run(capsys, "ps", "-f", "nope=1")[0] == 125


def test_ports_are_joined() -> None:
    from scow.cli.ps import ports_text

    ports = [PortMapping("0.0.0.0", 8000 + n, 80 + n, "tcp") for n in range(3)]
    assert ports_text([*ports, PortMapping("::1", 53, 53, "udp")], ("443/tcp", "80/tcp")) == (
        "443/tcp, 0.0.0.0:8000-8002->80-82/tcp, [::1]:53->53/udp"
    )
    assert ports_text([PortMapping("", 10, 20, "tcp", count=3)]) == "0.0.0.0:10-12->20-22/tcp"


def test_several_targets(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "rm", "-f", "web")
    assert (status, out) == (0, "web\n")
    assert fake.calls == [("remove", ID, True, False)]
    status, out, err = run(capsys, "stop", "-t", "3", "nope", "0123")
    assert (status, out) == (1, "0123\n")
    assert err == "scow: no such container: 'nope'\n"
    assert ("stop", ID, 3, None) in fake.calls
    assert run(capsys, "rm", "-f", "gone")[0] == 0
    assert run(capsys, "rm", "gone")[0] == 1
    assert run(capsys, "kill", "-s", "HUP", "web") == (0, "web\n", "")
    assert fake.calls[-1] == ("kill", ID, 1)
    assert run(capsys, "wait", "web")[1] == "7\n"


def test_inspect(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "inspect", "-f", "{{.State.OOMKilled}}", "web")[1] == "true\n"
    assert json.loads(run(capsys, "inspect", "web")[1])[0]["Id"] == ID


def test_run_detached(fake: FakeService, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    cid = tmp_path / "cid"
    line = [
        "run",
        "-d",
        "-m",
        "64m",
        "--cpus",
        "0.5",
        "-P",
        "--cidfile",
        str(cid),
        "-e",
        "A=1",
        "nginx",
        "-x",
        "y",
    ]
    status, out, _ = run(capsys, *line)
    assert (status, out) == (0, ID + "\n")
    assert cid.read_text() == ID
    options = next(call[1] for call in fake.calls if call[0] == "create")
    assert options.command == ("-x", "y")
    assert options.limits.memory_bytes == 64 << 20
    assert options.environment == ("A=1",)
    assert options.network.ports[0].container_port == 80
    assert fake.calls[-1] == ("start", ID, False)
    status, _, err = run(capsys, *line)
    assert status == 125
    assert "cidfile" in err


def test_run_that_fails_leaves_nothing(
    fake: FakeService, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    fake.fail = CommandNotFound("cannot execute 'x': not found", step="execute", errno=errno.ENOENT)
    status, out, err = run(capsys, "run", "--cidfile", str(tmp_path / "cid"), "nginx", "x")
    assert (status, out, err) == (127, "", "scow: cannot execute 'x': not found\n")
    assert fake.calls[-1] == ("remove", ID, True, True)
    assert not (tmp_path / "cid").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--network", "host", "-p", "80:80"], ("--network host", "--publish")),
        (["--network", "none", "-p", "80:80"], ("--network none", "--publish")),
        (["--privileged", "--security-opt", "seccomp=/etc/passwd"], ("--privileged", "seccomp")),
        (["--memory-swap", "1g"], ("--memory-swap", "--memory")),
        (["-m", "64m", "--memory-swap", "32m"], ("--memory-swap", "--memory")),
        (["-m", "64m", "--memory-reservation", "128m"], ("--memory-reservation", "--memory")),
        (["--cpus", "1", "--cpu-quota", "5000"], ("--cpus", "--cpu-quota")),
        (["--ulimit", "core=0", "--ulimit", "core=1"], ("--ulimit", "twice")),
        (["-v", "a:/x", "--tmpfs", "/x"], ("/x", "twice")),
        (["--cap-add", "CHOWN", "--cap-drop", "chown"], ("--cap-add", "--cap-drop")),
        (["--uts", "host", "--hostname", "x"], ("--uts host", "--hostname")),
        (["--network", "container:a", "--hostname", "x"], ("--network container:a", "--hostname")),
        (["--network", "host", "--sysctl", "net.core.somaxconn=1"], ("--network host", "--sysctl")),
        (["-d", "-a", "stdout"], ("--attach", "--detach")),
        (["--dry-run"], ("--dry-run", "--explain")),
        (["--security-opt", "what"], ("--security-opt", "no-new-privileges")),
        (["--pull", "sometimes"], ("--pull", "missing")),
        (["--detach-keys", "ctrl-?"], ("--detach-keys", "ctrl-p,ctrl-q")),
        (["--name", "../x"], ("--name", "a-zA-Z0-9")),
        (["-w", "rel"], ("--workdir", "absolute")),
        (["--oom-score-adj", "-1001"], ("--oom-score-adj", "-1000")),
    ],
)  # fmt: skip
def test_what_excludes_each_other(
    fake: FakeService, capsys: pytest.CaptureFixture[str], words: list[str], named: tuple[str, str]
) -> None:
    status, out, err = run(capsys, "run", *words, "nginx")
    assert (status, out) == (125, "")
    for name in named:
        assert name in err
    assert fake.calls == []  # nothing was begun


def test_secrets_are_not_echoed(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "run", "-e", "=hunter2", "nginx")
    assert "hunter2" not in err


def test_errors_are_one_line(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    fake.fail = InvalidState("bad\x1b[31m\nname", hint="do this")
    status, _, err = run(capsys, "attach", "web")
    assert status == 125
    assert err == "scow: bad\\x1b[31m\\nname\nhint: do this\n"
    fake.fail = OSError(errno.ENOSPC, "No space left on device", "/var/lib/scow")
    status, _, err = run(capsys, "attach", "web")
    assert status == 125
    assert err.startswith("scow: cannot go on '/var/lib/scow': no space left on device\nhint: ")
    fake.fail = RuntimeError("oops")
    assert run(capsys, "attach", "web")[0] == 125
    fake.fail = KeyboardInterrupt()  # type: ignore[assignment]
    assert run(capsys, "attach", "web")[0] == 130


def test_unknown_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "rnu")
    assert status == 125
    assert "did you mean 'run'" in err
    assert run(capsys, "container", "lss")[0] == 125
    assert run(capsys, "--nope")[0] == 125
    assert run(capsys, "help", "nope")[0] == 125


def test_root_is_asked_for_before_anything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(session, "service", lambda: pytest.fail("opened the service"))
    status, out, err = run(capsys, "run", "nginx")
    assert (status, out) == (125, "")
    assert (
        err
        == "scow: run: needs root: it makes namespaces, mounts and cgroups\nhint: run it as 'sudo scow run ...'\n"
    )
    assert run(capsys, "version")[0] == 0
    assert run(capsys, "run", "--help")[0] == 0
    assert run(capsys, "completion", "bash")[0] == 0


def test_terminal_is_needed_for_it(
    fake: FakeService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda fd: False)
    status, _, err = run(capsys, "run", "-it", "nginx")
    assert status == 125
    assert "not a terminal" in err
    assert fake.calls == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Looking at containers:" in run(capsys, "--help")[1]
    assert run(capsys)[1] == run(capsys, "help")[1]
    assert "  remove " in run(capsys, "image", "--help")[1]
    text = run(capsys, "help", "run")[1]
    assert "-m, --memory SIZE" in text
    assert "Examples:" in text
    from scow.cli import registry

    for name in registry.COMMANDS:
        if not registry.load(name).hidden:
            assert run(capsys, *name.split(), "-h")[1].startswith(f"Usage: scow {name}")


def test_completion(fake: FakeService) -> None:
    from scow.cli.completion import candidates

    def words(*line: str) -> list[str]:
        return [word for word, _ in candidates(list(line))]

    assert "ps" in words("p")
    assert "cleanup" not in words("")
    assert words("container", "l") == ["logs", "ls", "list"] or set(words("container", "l")) == {
        "logs",
        "ls",
        "list",
    }
    assert words("run", "--memory-s") == ["--memory-swap", "--memory-swappiness"]
    assert words("stop", "") == ["web"]
    assert words("start", "") == []
    assert words("run", "--pull", "n") == ["never"]
    assert words("run", "--pull=al") == ["--pull=always"]
    assert "NET_ADMIN" in words("run", "--cap-add", "NET_A")
    assert words("exec", "-it", "w") == ["web"]
    assert words("run", "-v", "") == [":files"]


def cli(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scow.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        **options,
    )


def test_closed_output_is_quiet() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m scow.cli.main --help | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout in ("0\n", "141\n")
    script = f"exec >/dev/full; {sys.executable} -m scow.cli.main version"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("scow: ")
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m scow.cli.main version >&- 2>&-"], check=False
    )
    assert done.returncode == 0


def test_fast_path_stays_light() -> None:
    code = "import sys; sys.argv=['scow','version']; from scow.cli.main import main; main(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout
    for heavy in (
        "typer",
        "pyroute2",
        "requests",
        "sqlite3",
        "asyncio",
        "argparse",
        "scow.cli.template'",
        "msgspec",
    ):
        assert f"'{heavy}" not in loaded, heavy
    code = "import sys; import scow.cli.ps, scow.cli.parser, scow.cli.main, scow.cli.exec; print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import sys; sys.path[:0]=" + repr(sys.path) + ";" + code],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        for heavy in ("'dataclasses'", "'typer'", "'json'", "'inspect'"):
            assert heavy not in done.stdout, heavy


def test_scow_error_status() -> None:
    assert ScowError.exit_code == 125
