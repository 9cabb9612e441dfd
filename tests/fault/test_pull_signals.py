"""Ctrl-C and SIGTERM at each stage of a pull, on connections where nothing comes any more."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.command import Scow
from fixtures.fake_registry import FakeRegistry, Handler
from fixtures.handmade import file, pack

pytestmark = pytest.mark.root

CLEAN = "nothing damaged, nothing left behind"
HANG_S = 45.0  # less than the minute after which a silent connection ends by itself


class Silence:
    """A registry that falls silent at one place, and tells that it has."""

    def __init__(self, size: int) -> None:
        self.registry = FakeRegistry()
        self.registry.add_image(pack([file("own", os.urandom(size))]))
        self.layer = max(self.registry.blobs, key=lambda d: len(self.registry.blobs[d]))
        self.reached = threading.Event()
        self.over = threading.Event()

    def hold(self, handler: Handler, sent: bytes = b"") -> bool:
        """Send this, and no more."""
        handler.wfile.write(sent)
        handler.wfile.flush()
        self.reached.set()
        self.over.wait()
        handler.close_connection = True
        return True

    def later(self, handler: Handler) -> bool:
        """Ask to come again later."""
        handler.reply(503, headers={"Retry-After": "50"})
        self.reached.set()
        return True

    def part(self, handler: Handler) -> bool:
        """The first part comes, slowly, so that the others are asked for at once; they do not come."""
        data = self.registry.blobs[self.layer]
        begin, _, end = handler.headers["Range"].removeprefix("bytes=").partition("-")
        sent = data[: int(end) + 1] if begin == "0" else b"x"
        handler.send_response(206)
        handler.send_header("Content-Length", str(int(end) + 1 - int(begin)))
        handler.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
        handler.end_headers()
        if begin != "0":
            return self.hold(handler, sent)
        for start in range(0, len(sent), 1 << 19):
            self.over.wait(0.06)  # 8 MB/s: scow takes up to 20 for a slow line
            handler.wfile.write(sent[start : start + (1 << 19)])
        return True


Stage = tuple[str, Callable[[Silence, Handler], bool]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n"
STAGES: dict[str, Stage] = {
    "first request": ("HEAD ", lambda s, h: s.hold(h)),
    "headers": ("GET /v2/team/app/manifests", lambda s, h: s.hold(h, HEAD)),
    "manifest": ("GET /v2/team/app/manifests", lambda s, h: s.hold(h, HEAD + b"\r\n{")),
    "token": ("/token", lambda s, h: s.hold(h)),
    "wait": ("GET /v2/team/app/manifests", lambda s, h: s.later(h)),
    "wait for a layer": ("LAYER", lambda s, h: s.later(h)),
    "parts of a layer": ("LAYER", lambda s, h: s.part(h)),
}


@pytest.fixture
def silence(request: pytest.FixtureRequest) -> Iterator[Silence]:
    # Only a large layer comes in parts.
    silence = Silence(22_000_000 if "parts" in request.node.name else 100_000)
    yield silence
    silence.over.set()
    silence.registry.close()


def arrange(silence: Silence, stage: Stage) -> None:
    pattern, answer = stage
    pattern = silence.layer if pattern == "LAYER" else pattern

    def hook(handler: Handler) -> bool:
        if pattern in f"{handler.command} {handler.path}":
            return answer(silence, handler)
        if pattern == "/token":
            realm = f'Bearer realm="http://{silence.registry.host}/token",service="x"'
            handler.reply(401, headers={"WWW-Authenticate": realm})
            return True
        return False

    silence.registry.hooks[:] = [hook]


def check(silence: Silence, base: Path, stage: str, number: signal.Signals) -> None:
    scow = Scow(str(base / "root"), str(base / "run"))
    arrange(silence, STAGES[stage])
    with scow.spawn("pull", f"{silence.registry.host}/team/app") as process:
        assert silence.reached.wait(HANG_S)
        process.send_signal(number)
        _, errors = process.communicate(timeout=HANG_S)
    silence.over.set()
    assert process.returncode == 128 + number, errors
    assert b"Traceback" not in errors
    assert len(scow.ok("images").splitlines()) == 1
    silence.registry.hooks.clear()
    scow.ok("pull", f"{silence.registry.host}/team/app")
    scow.ok("system", "check", "--repair")
    assert scow.ok("system", "check") == CLEAN


@pytest.mark.parametrize("stage", ["wait for a layer", "parts of a layer"])
def test_ctrl_c(silence: Silence, tmp_path: Path, stage: str) -> None:
    check(silence, tmp_path, stage, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_every_stage(silence: Silence, tmp_path: Path, stage: str, number: signal.Signals) -> None:
    check(silence, tmp_path, stage, number)
