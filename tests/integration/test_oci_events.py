"""`events`: what the kernel kills for memory is told at once, not when the interval is over."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import IO, Any

import pytest

from fixtures.bundle import Bundle, Runtime

NAME = "c1"
EATER = "a=x; while :; do a=$a$a; done"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / "bundle", f"/scow-oci-events-{os.getpid()}")
    made.linux["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    return made


def read_event(stream: IO[bytes], seconds: float = 60) -> dict[str, Any]:
    assert select.select([stream], [], [], seconds)[0], "no event came"
    return json.loads(stream.readline())


def test_a_kill_is_told_when_it_happens(oci: Runtime, bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "100"]
    bundle.write()
    assert oci.quiet("run", "-d", "-b", str(bundle.path), NAME).code == 0
    argv = [*oci.argv, "events", "--interval", "10m", NAME]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        assert read_event(events.stdout)["type"] == "stats"
        for _ in range(2):
            assert oci("exec", NAME, "sh", "-c", EATER).code == 137
            assert read_event(events.stdout) == {"type": "oom", "id": NAME}
        began = time.monotonic()
        oci.ok("kill", NAME, "KILL")
        assert events.wait(20) == 0
        # it ends with the container and has no more to say
        assert time.monotonic() - began < 20
        assert events.stdout.read() == b""


def test_the_last_one_is_told_too(oci: Runtime, bundle: Bundle) -> None:
    bundle.script(f"until [ -e /tmp/go ]; do sleep 0.02; done; {EATER}")
    bundle.write()
    assert oci.quiet("run", "-d", "-b", str(bundle.path), NAME).code == 0
    argv = [*oci.argv, "events", "--interval", "10m", NAME]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        assert read_event(events.stdout)["type"] == "stats"
        (bundle.rootfs / "tmp/go").touch()
        assert read_event(events.stdout)["type"] == "oom"
        assert events.wait(60) == 0
        assert events.stdout.read() == b""


@pytest.mark.parametrize("interval", ["5", "0s", "x", "-1s"])
def test_intervals_that_are_none(oci: Runtime, bundle: Bundle, interval: str) -> None:
    bundle.process["args"] = ["sleep", "100"]
    bundle.write()
    assert oci.quiet("run", "-d", "-b", str(bundle.path), NAME).code == 0
    assert "invalid duration" in oci("events", "--interval", interval, NAME).err
