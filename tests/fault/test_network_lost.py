"""The firewall table and the bridge taken away by others: seen, mended, or made anew by the next start."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request

import pytest

from fixtures.state import State
from scow.netns.nft import table_name

pytestmark = pytest.mark.root

SERVER = (
    "busybox",
    "sh",
    "-c",
    "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www",
)
TAKEN = {
    "flush ruleset": ("/usr/sbin/nft", "flush", "ruleset"),
    "flush table": ("/usr/sbin/nft", "flush", "table", "ip", "TABLE"),
    "delete table": ("/usr/sbin/nft", "delete", "table", "ip", "TABLE"),
    "delete bridge": ("/usr/sbin/ip", "link", "delete", "scow0"),
}


def fetch(port: int, patience_s: float = 30.0) -> bytes | None:
    """What the server says, None when it cannot be reached."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as answer:
                return bytes(answer.read())
        except OSError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def port_of(state: State, name: str) -> int:
    """Where its port 80 is published."""
    ports = json.loads(state.ok("inspect", name))[0]["NetworkSettings"]["Ports"]
    return int(ports["80/tcp"][0]["HostPort"])


def take(state: State, how: str) -> None:
    """Do what somebody else might."""
    table = table_name(state.run)
    subprocess.run([table if word == "TABLE" else word for word in TAKEN[how]], check=True)


@pytest.mark.parametrize("how", TAKEN)
def test_repair_puts_it_back(state: State, how: str) -> None:
    state.ok("run", "-d", "--name", "web", "-p", "80", *SERVER)
    port = port_of(state, "web")
    assert fetch(port) == b"hello\n"
    take(state, how)
    assert fetch(port, 0.2) is None
    assert state.forked("system", "check").status == 1
    state.ok("system", "check", "--repair")
    assert fetch(port) == b"hello\n"
    assert state.ok("system", "check") == "nothing damaged, nothing left behind\n"
    state.ok("rm", "-f", "web")


@pytest.mark.parametrize("how", TAKEN)
def test_the_next_start_puts_it_back(state: State, how: str) -> None:
    state.ok("run", "-d", "--name", "web", "-p", "80", *SERVER)
    assert fetch(port_of(state, "web")) == b"hello\n"
    take(state, how)
    state.ok("run", "-d", "--name", "other", "-p", "80", *SERVER)
    assert fetch(port_of(state, "other")) == b"hello\n"
    assert fetch(port_of(state, "web")) == b"hello\n"
    state.ok("rm", "-f", "web", "other")


@pytest.mark.parametrize("how", TAKEN)
def test_stop_and_remove_without_it(state: State, how: str) -> None:
    state.ok("run", "-d", "--name", "web", "-p", "80", *SERVER)
    take(state, how)
    state.ok("stop", "-t", "0", "web")
    state.ok("rm", "web")
    state.expect_clean()
