"""`scow --host`: the verbs that work on a service, and what is said of those that do not."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.command import SCOW, Done, Scow
from fixtures.door import SLEEP, create_container, run_container, run_pod
from fixtures.images import ImageFactory
from fixtures.pods import Cri
from fixtures.serving import serving
from scow.cri.client import Client

pytestmark = pytest.mark.timeout(240)


class Far:
    """The command line with --host, and with state directories that it has no business in."""

    def __init__(self, tmp_path: Path, address: str) -> None:
        self.scow = Scow(str(tmp_path / "no-root"), str(tmp_path / "no-run"), cold=True)
        self.address = address

    def __call__(self, line: str, stdin: bytes = b"") -> Done:
        return self.scow("--host", self.address, *line.split(), stdin=stdin)

    def ok(self, line: str, stdin: bytes = b"") -> str:
        done = self(line, stdin)
        assert (done.code, done.err) == (0, ""), f"{line}: {done}"
        return done.out.rstrip("\n")


@pytest.fixture
def far(
    tmp_path: Path, scow_root: Path, scow_run: Path, images: ImageFactory
) -> Iterator[tuple[Far, Client]]:
    first = Cri(str(scow_root), str(scow_run))
    first.load_busybox(images)
    first.close()
    environment = {**os.environ, "SCOW_CNI_CONFIG": "/nonexistent"}
    address = f"unix://{scow_run}/scow.sock"
    with serving(environment) as running, Client(address) as client:
        running.wait_for("stream URLs only")
        yield Far(tmp_path, address), client
    last = Cri(str(scow_root), str(scow_run))
    last.remove_all()
    last.close()
    assert not (tmp_path / "no-root").exists()
    assert not (tmp_path / "no-run").exists()


def test_a_life_from_afar(far: tuple[Far, Client], tmp_path: Path) -> None:
    scow, client = far
    pod = run_pod(client, "web", log_directory=str(tmp_path / "logs"))
    talk = ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"]
    one = run_container(client, pod, talk, name="talks", log_path="talks.log")
    two = create_container(client, pod, SLEEP, name="waits")
    form = "--format={{.ID}} {{.Names}} {{.Pod}} {{.State}}"
    assert scow.scow.ok("--host", scow.address, "ps", form) == f"{one[:12]} talks web Running"
    assert scow.ok("ps -aq --no-trunc").split() == [two, one]
    assert scow.ok("start waits") == "waits"
    assert scow.ok("exec -i talks cat", b"bytes") == "bytes"
    done = scow("exec talks false")
    assert (done.code, done.out, done.err) == (1, "", "")
    done = scow(f"exec {one[:8]} nonesuch")
    assert (done.code, "not found in $PATH" in done.err) == (127, True)
    done = scow("exec talks /etc/passwd")
    assert (done.code, "cannot execute" in done.err) == (126, True), done
    done = scow("logs talks")
    assert (done.out, done.err) == ("out\n", "err\n")
    assert re.match(r"\S+Z out\n$", scow("logs -t talks").out)
    [found] = json.loads(scow.ok("inspect talks"))
    assert found["status"]["metadata"]["name"] == "talks"
    assert re.match(rf"CONTAINER ID .*\n{one[:12]} +talks +\d", scow.ok("stats --no-stream talks"))
    assert scow.ok("stop -t 0 waits") == "waits"
    done = scow("rm talks")
    assert (done.code, "it is running" in done.err) == (1, True)
    assert scow.ok("rm -f talks waits gone") == "talks\nwaits\ngone"
    assert scow.ok("ps -aq") == ""


def test_pods_and_images_from_afar(far: tuple[Far, Client], images: ImageFactory) -> None:
    scow, client = far
    pod = scow.ok("pod create -l app=web --hostname here web")
    assert scow.ok("pod ps -q --no-trunc") == pod
    [found] = json.loads(scow.ok("pod inspect web"))
    assert (found["status"]["labels"], found["status"]["id"]) == ({"app": "web"}, pod)
    container = run_container(client, pod, SLEEP)
    asked = {"container_id": container, "cmd": ["hostname"]}
    assert client.call("ExecSync", asked).stdout == b"here\n"
    assert re.search(rf"\n{pod[:12]} +web +\d", scow.ok("pod stats web"))
    done = scow("pod rm web")
    assert (done.code, "it is ready" in done.err) == (1, True)
    assert scow.ok("pod stop web") == "web"
    assert scow.ok("pod rm web") == "web"
    assert scow("pod inspect web").err == "scow: no such pod: 'web'\n"
    name = images.busybox()
    assert scow.ok(f"pull {name}") == scow.ok("images -q --no-trunc").splitlines()[0]
    assert name in scow.ok("images")
    assert scow.ok(f"rmi {name}") == name
    assert "no such image" in scow(f"rmi {name}").err
    assert " Service:        scow" in scow.ok("version")
    assert json.loads(scow.ok("info"))[0]["status"]["conditions"][0]["status"] is True


def test_what_cannot_be_done_from_afar(far: tuple[Far, Client]) -> None:
    scow, client = far
    pod = run_pod(client)
    run_container(client, pod, SLEEP, name="quiet")
    for line, text in {
        "run busybox": "run: works on this machine only",
        "ps --filter status=exited": "--filter works on this machine only",
        "exec -u 1 quiet id": "--user works on this machine only",
        "logs quiet": "was made without log_path",
        "exec -t quiet sh": "-t needs a terminal",
        "stop nobody": "no such container: 'nobody'",
    }.items():
        done = scow(line)
        assert (done.code in (1, 125), done.out) == (True, ""), line
        assert text in done.err, line
    # The same by the environment; what starts or belongs to the service is not meant.
    environment = {**scow.scow.env, "SCOW_HOST": scow.address}
    done_run = subprocess.run(
        [*SCOW, "run", "busybox"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done_run.returncode, "this machine only" in done_run.stderr) == (125, True)
    listed = subprocess.run([*SCOW, "ps"], env=environment, capture_output=True, check=True)
    assert b"quiet" in listed.stdout


def test_a_terminal_from_afar(far: tuple[Far, Client]) -> None:
    scow, client = far
    run_container(client, run_pod(client), SLEEP, name="c")
    words = ("--host", scow.address, "exec", "-it", "c", "sh")
    with scow.scow.terminal(*words, rows=43, columns=132) as terminal:
        terminal.expect("#")
        terminal.type("stty size; exit 7\n")
        terminal.expect("43 132")
        assert terminal.wait() == 7
