"""Names that change while they are used: a volume's directories, swapped for links in a loop.

CVE-2021-30465, CVE-2024-45310, CVE-2017-1002101: one container (or the host's owner of a shared
directory) exchanges a directory and a link with one system call, as fast as it can, while others
start with mounts below. Whatever happens, nothing of the host is seen or touched.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.canary import SECRET, Canary
from fixtures.command import Done, Scow
from fixtures.handmade import Archive, busybox_layer, file, pack

pytestmark = [pytest.mark.root]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scow, Canary, Path]:
    base = tmp_path_factory.mktemp("races")
    source = ROOT / "tests/payload/swap.c"
    subprocess.run(["musl-gcc", "-static", "-O2", "-o", base / "swap", source], check=True)
    layer = pack([file("bin/swap", (base / "swap").read_bytes(), 0o755)])
    archive = Archive()
    archive.add("swap:latest", [busybox_layer(), layer], {"Cmd": ["true"]})
    scow = Scow(str(base / "root"), str(base / "run"))
    scow.ok("load", "-i", str(archive.write(base / "swap.tar")))
    (base / "canary").mkdir()
    return scow, Canary(base / "canary"), base


@pytest.fixture
def world(shared: tuple[Scow, Canary, Path]) -> Iterator[tuple[Scow, Canary, Path]]:
    before = shared[1].facts()
    yield shared
    shared[0].remove_all()
    assert shared[1].changed_since(before) == {}


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(40, marks=pytest.mark.timeout(300)),
        pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
        pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
@pytest.mark.parametrize("aim", ["{canary}", "/proc/self/root{canary}"])
def test_mounts_below_a_directory_that_is_swapped_for_a_link(
    world: tuple[Scow, Canary, Path], count: int, aim: str
) -> None:
    scow, canary, base = world
    target = aim.format(canary=canary)
    prepare = f"mkdir -p /vol/a; ln -sfn {target} /vol/b; exec swap names /vol/a /vol/b"
    scow.ok(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "swapper",
        "-v",
        "shared:/vol",
        "swap",
        "sh",
        "-c",
        prepare,
    )
    while "swapping" not in scow.ok("logs", "swapper"):
        pass
    source = base / "source"
    source.mkdir(exist_ok=True)
    (source / "mine").write_text("mine\n")

    def start(number: int) -> Done:
        below = ("new/x", "sub", "sub/deep", f"n{number}")[number % 4]
        return scow(
            "run", "--rm", "--network", "none", "-v", "shared:/vol", "-v", f"{source}:/vol/a/{below}",
            "--tmpfs", f"/vol/a/t{number % 3}", "-w", "/vol/a/w", "swap", "sh", "-c",
            f"cat /vol/a/secret /vol/b/secret {canary}/secret /vol/a/{below}/secret; echo end",
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(start, range(count)))
    for done in results:
        assert SECRET not in done.out + done.err
        assert "Traceback" not in done.err
        assert done.code in (0, 125, 126), done
        if done.code:
            assert done.err.startswith("scow: "), done.err
    # The race is a race only if both sides win sometimes; what is refused is refused cleanly.
    assert any(done.code == 0 for done in results)


@pytest.mark.timeout(300)
def test_removing_volumes_and_containers_while_names_are_swapped(
    world: tuple[Scow, Canary, Path],
) -> None:
    """CVE-2017-1002102: a recursive delete never follows what it is shown."""
    scow, canary, _ = world
    prepare = f"mkdir -p /vol/a/x /r/a/x; ln -sfn {canary} /vol/b; ln -sfn {canary} /r/b; swap names /r/a /r/b & exec swap names /vol/a /vol/b"
    for number in range(8):
        scow.ok(
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            f"s{number}",
            "-v",
            "/vol",
            "swap",
            "sh",
            "-c",
            prepare,
        )
    for number in range(8):
        assert scow("rm", "-f", "-v", f"s{number}").code == 0
