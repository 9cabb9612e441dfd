"""Shared by all tests: the residue check, the skip policy, isolated state, and real images.

A test in tests/integration or with the marker `root` is checked for residue. A skip is a failure
with SCOW_CI=1. What cannot be tried on this kind of host at all (markers `cgroup_v1`, `cgroup_v2`, `criu`)
is left out and counted in the closing summary: the QEMU guest of `make test-vm` is the other kind.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fixtures import kernel, nursery, residue
from fixtures.ahead import Ahead, ahead
from fixtures.bundle import Done
from fixtures.images import ImageFactory
from fixtures.registry import Registry
from fixtures.warm import Warm

if TYPE_CHECKING:
    from fixtures.api import ApiServer

BEGUN = pytest.StashKey[Ahead]()
LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--residue",
        choices=["fail", "report", "off"],
        default="fail",
        help="what to do about things left behind (default: fail; 'report' where others use the host)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = {}
    # No test leaves a warm process of scow-oci behind at the host's own place (docs/adr/008).
    os.environ.setdefault("SCOW_OCI_WARM", "0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies in tests/integration, and leave to the other host what only it can do."""
    questions = {
        "cgroup_v1": kernel.cgroup_v1_missing,
        "cgroup_v2": kernel.cgroup_v2_missing,
        "criu": kernel.criu_missing,
    }
    kept: list[pytest.Item] = []
    removed: list[pytest.Item] = []
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker("root")
        reasons = [ask() for mark, ask in questions.items() if item.get_closest_marker(mark)]
        reason = next(filter(None, reasons), None)
        (removed if reason else kept).append(item)
        if reason:
            config.stash[LEFT_OUT][reason] = config.stash[LEFT_OUT].get(reason, 0) + 1
    items[:] = kept
    if removed:
        config.hook.pytest_deselected(items=removed)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    marks = [mark.args for item in session.items for mark in item.iter_markers("ahead")]
    begun = ahead(marks)
    session.config.stash[BEGUN] = begun.__enter__()
    session.config.add_cleanup(lambda: begun.__exit__(None, None, None))


@pytest.fixture
def ran_ahead(request: pytest.FixtureRequest) -> Done:
    """How the program of the test's marker `ahead` has ended."""
    mark = request.node.get_closest_marker("ahead")
    return request.config.stash[BEGUN].wait(mark.args)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for reason, count in config.stash[LEFT_OUT].items():
        terminalreporter.write_line(f"{count} tests are left to the other kind of host: {reason}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, None, None]:
    """With SCOW_CI=1 nothing passes silently: a skip is a failure."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("SCOW_CI") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped with SCOW_CI=1: {reason}"


@pytest.fixture(scope="session", autouse=True)
def command_nursery(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where the commands come from that a test need not start (fixtures/nursery.py)."""
    if any(item.get_closest_marker("root") for item in request.session.items):
        with nursery.nursery():
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """The residue check around each test that touches the host."""
    mode = request.config.getoption("--residue")
    marked = request.node.get_closest_marker("root") is not None
    if mode == "off" or not marked or request.node.get_closest_marker("no_residue_check"):
        yield
        return
    kernel.need(kernel.mount_refused)
    # What lives as long as the session (a registry) is there already: wider scopes are set up first.
    before = residue.snapshot()
    yield
    if found := residue.difference(before):
        text = f"{request.node.nodeid} leaves something behind:\n" + "\n".join(found)
        if mode == "fail" or os.environ.get("SCOW_CI") == "1":
            pytest.fail(text, pytrace=False)
        print(text)


@pytest.fixture
def scow_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of this test's own, for the command line (SCOW_ROOT) and for calls."""
    path = tmp_path / "scow-root"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("SCOW_ROOT", str(path))
    return path


@pytest.fixture
def scow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of this test's own (SCOW_RUN)."""
    path = tmp_path / "scow-run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("SCOW_RUN", str(path))
    return path


@pytest.fixture
def api_socket(tmp_path: Path) -> Path:
    """Where `api` listens."""
    return tmp_path / "scow.sock"


@pytest.fixture
def api(api_socket: Path) -> Iterator[ApiServer]:
    """The door of the service on a unix socket, before a service that needs no kernel."""
    from fixtures.api import ApiServer
    from scow.cri.api.listeners import open_listener

    server = ApiServer([open_listener(str(api_socket), None)])
    yield server
    server.stop()


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Debian's docker-registry on a free loopback port, open to all."""
    with Registry.start(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def password_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """The same, asking for the name and password in `Registry.USER` and `Registry.PASSWORD`."""
    with Registry.start(tmp_path_factory.mktemp("registry"), password=True) as running:
        yield running


@pytest.fixture(scope="session")
def images(registry: Registry) -> ImageFactory:
    """Images that other programs made; asking for one pushes it and gives its reference."""
    return ImageFactory(registry)


@pytest.fixture(scope="session")
def warm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A warm process of scow-oci for the whole session, in a directory of its own."""
    with Warm.start(tmp_path_factory.mktemp("warm") / "run") as running:
        yield running
