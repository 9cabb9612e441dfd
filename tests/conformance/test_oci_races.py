"""Names that change while scow-oci uses them: mount targets, masks, the console, procfs, cgroups.

A turn is one use of a name that somebody else exchanges in a loop; one create has many. 1,000 turns of
each kind are run always, 10,000 (or SCOW_RACE_TURNS) by `make stress`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures import kernel
from fixtures.bundle import Done
from fixtures.canary import SECRET
from fixtures.hostile import World, bind, capabilities, mount, without_mount

pytestmark = [pytest.mark.root]
ROOT = Path(__file__).resolve().parents[2]
MANY = int(os.environ.get("SCOW_RACE_TURNS", "10000"))
turns = pytest.mark.parametrize(
    "turns",
    [
        pytest.param(1000, marks=pytest.mark.timeout(600)),
        pytest.param(MANY, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
    ],
)


@pytest.fixture(scope="module")
def swapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("swap") / "swap"
    source = ROOT / "tests/payload/swap.c"
    subprocess.run(["musl-gcc", "-static", "-O2", "-o", program, source], check=True)
    return program


@contextmanager
def swapping(*argv: object) -> Iterator[None]:
    """The attacker, for as long as the block lasts."""
    with subprocess.Popen([str(word) for word in argv], stdout=subprocess.PIPE) as attacker:
        try:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == b"swapping\n"
            yield
        finally:
            attacker.kill()


def judge(results: list[Done], is_right: Callable[[Done], bool]) -> dict[int, int]:
    """Each turn ended well or was refused in one line, and saw nothing of the host; how many of each."""
    codes: dict[int, int] = {}
    for done in results:
        codes[done.code] = codes.get(done.code, 0) + 1
        assert SECRET not in done.out + done.err
        assert "Traceback" not in done.err
        assert done.code in (0, 1, 255), done
        assert done.code == 0 or done.err.count("\n") == 1, done
        assert done.code != 0 or is_right(done), done
    return codes


@turns
@pytest.mark.parametrize("aim", ["{canary}", "/proc/1/root{canary}"])
def test_mounts_below_a_directory_that_is_swapped_for_a_link(
    world: World, swapper: Path, turns: int, aim: str
) -> None:
    """CVE-2021-30465, CVE-2024-45310, CVE-2017-1002101: 40 mounts a create, below /vol/a."""
    volume, source = world.base / "volume", world.base / "source"
    (volume / "a").mkdir(parents=True)
    (volume / "link").symlink_to(aim.format(canary=world.canary))
    source.mkdir()
    (source / "mine").write_text("mine\n")
    box = world.bundle()
    box.config["mounts"].append(bind(volume, "/vol"))
    each = 40
    for number in range(each):
        where = f"/vol/a/n{number}/x" if number % 4 else f"/vol/a/sub{number}"
        box.config["mounts"].append(
            mount(where, "tmpfs", "tmpfs") if number % 3 == 0
            else bind(source / "mine" if number % 3 == 1 else source, where)
        )  # fmt: skip
    box.process["cwd"] = "/vol/a/w"
    box.script(f"cat /vol/a/secret /vol/link/secret {world.canary}/secret 2>/dev/null; echo end")
    box.write()
    creates = turns // each // 2  # two aims
    with swapping(swapper, "names", volume / "a", volume / "link"):
        results = world.turns(creates, "run", "-b", str(box.path), "box")
    codes = judge(results, lambda done: done.out == "end\n")
    # Both sides of the race have won: mounts went into the volume, and, by the link, into the root.
    real = volume / "link" if (volume / "a").is_symlink() else volume / "a"
    assert any(real.iterdir())
    if not aim.startswith("/proc"):
        assert (box.rootfs / str(world.canary)[1:]).exists(), codes


@turns
def test_masks_while_dev_null_is_swapped(world: World, swapper: Path, turns: int) -> None:
    """CVE-2025-31133, CVE-2025-62161: 25 masks a create, and /dev/null leads to settings of the kernel."""
    dev = world.base / "dev"
    dev.mkdir()
    os.mknod(dev / "null", 0o020666, os.makedev(1, 3))
    aims = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", f"{world.canary}/secret")  # fmt: skip
    pairs: list[object] = []
    for number, aim in enumerate(aims):
        (dev / f"link{number}").symlink_to(aim)
        pairs += [dev / "null", dev / f"link{number}"]
    box = world.bundle()
    without_mount(box, "/dev", "/dev/pts", "/dev/shm")
    box.config["mounts"].append(bind(dev, "/dev"))
    each = 25
    for number in range(each - 2):
        (box.rootfs / f"etc/m{number}").write_text("unmasked\n")
    masked = [f"/etc/m{number}" for number in range(each - 2)] + ["/proc/keys", "/proc/timer_list"]
    box.linux["maskedPaths"] = masked
    box.script(
        "cat /etc/m* /proc/keys /proc/timer_list | wc -c; for p in /etc/m1 /etc/m9 /proc/keys; do (echo x > $p) 2>/dev/null && echo WROTE; done; true"
    )
    box.write()
    with swapping(swapper, "names", *pairs):
        results = world.turns(turns // each, "run", "-b", str(box.path), "box")
    assert judge(results, lambda done: done.out.split() == ["0"]) == {0: turns // each}


@turns
def test_masks_of_names_that_are_swapped(world: World, swapper: Path, turns: int) -> None:
    """A mask that meets a link is an error, never a path left open: 25 masks below a swapped directory."""
    volume = world.base / "volume"
    (volume / "d").mkdir(parents=True)
    (volume / "link").symlink_to("/etc")
    box = world.bundle()
    box.config["mounts"].append(bind(volume, "/vol"))
    each = 25
    for number in range(each):
        (volume / f"d/f{number}").write_text("unmasked\n")
    box.linux["maskedPaths"] = [f"/vol/d/f{number}" for number in range(each)]
    box.script("cat /vol/*/f* 2>/dev/null | sort | uniq -c; echo end")
    (box.rootfs / "bin/uniq").symlink_to("busybox")
    box.write()
    with swapping(swapper, "names", volume / "d", volume / "link"):
        results = world.turns(turns // each, "run", "-b", str(box.path), "box")
    # Where the link was met the create failed; where it did not, no name of the directory is open.
    codes = judge(results, lambda done: "end" in done.out and "unmasked" not in done.out)
    assert set(codes) <= {0, 1}


@turns
def test_a_console_while_dev_is_swapped(world: World, swapper: Path, turns: int) -> None:
    """CVE-2025-52565: console, pts and ptmx are exchanged for links; three uses of them a create."""
    dev = world.base / "dev"
    (dev / "pts").mkdir(parents=True)
    (dev / "console").touch()
    (dev / "l1").symlink_to("/proc/sys/kernel/core_pattern")
    (dev / "l2").symlink_to(f"{world.canary}/pts")
    (dev / "l3").symlink_to(f"{world.canary}/secret")
    (dev / "tty1").touch()
    box = world.bundle()
    without_mount(box, "/dev", "/dev/pts", "/dev/shm")
    options = ("newinstance", "ptmxmode=0666", "mode=0620")
    box.config["mounts"] += [bind(dev, "/dev"), mount("/dev/pts", "devpts", "devpts", *options)]
    box.process["terminal"] = True
    box.process["args"] = ["sh", "-c", "echo end"]
    box.write()
    pairs = (dev / "console", dev / "l1", dev / "pts", dev / "l2", dev / "console", dev / "l3")
    with swapping(swapper, "names", *pairs):
        results = world.turns(turns // 3, "run", "-b", str(box.path), "box")
    codes = judge(results, lambda done: done.out.strip() == "end")
    assert len(codes) > 1 or codes.get(0), codes


@turns
def test_an_exec_while_proc_is_mounted_over(world: World, swapper: Path, turns: int) -> None:
    """CVE-2025-52881, CVE-2019-19921: the container mounts its own files over /proc; three writes an exec."""
    box = world.bundle()
    (box.rootfs / "bin/swap").write_bytes(swapper.read_bytes())
    (box.rootfs / "bin/swap").chmod(0o755)
    fake = box.rootfs / "fake"
    for name in ("self/attr", "1/attr", "sys/kernel", "thread-self"):
        (fake / name).mkdir(parents=True)
    files = [fake / name for name in ("self/oom_score_adj", "1/oom_score_adj", "sys/kernel/core_pattern", "sysrq-trigger")]  # fmt: skip
    for number in range(2, 60):
        (fake / str(number)).mkdir()
        files.append(fake / str(number) / "oom_score_adj")
    for path in files:
        path.write_text("fake\n")
    box.process.update(
        args=["swap", "mounts", "/fake", "/proc"], capabilities=capabilities("SYS_ADMIN", "KILL")
    )
    box.linux.update(readonlyPaths=[], maskedPaths=[])
    world.start(box)
    process = {
        **box.process,
        "args": ["sh", "-c", "echo end"],
        "oomScoreAdj": 321,
        "cwd": "/proc/self",
    }
    (box.path / "process.json").write_text(json.dumps(process))
    results = world.turns(turns // 3, "exec", "--process", str(box.path / "process.json"), "box")
    codes = judge(results, lambda done: done.out == "end\n")
    assert codes.get(0), codes
    assert {path.read_text() for path in files} == {"fake\n"}


@turns
@pytest.mark.cgroup_v1
def test_a_cgroup_that_others_make_and_remove(world: World, swapper: Path, turns: int) -> None:
    """CVE-2025-47291: ten hierarchies a create; who runs is below its cgroup in all of them."""
    kernel.need(kernel.mount_refused)
    box = world.bundle()
    path = box.linux["cgroupsPath"]
    box.linux["namespaces"] = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
    box.process["args"] = ["cat", "/proc/self/cgroup"]
    box.write()
    hierarchies = [
        line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()
    ]
    tops = [top for top in Path("/sys/fs/cgroup").iterdir() if top.is_dir()]
    with swapping(swapper, "directories", *(f"{top}{path}" for top in tops)):
        results = world.turns(turns // 10, "run", "-b", str(box.path), "box")
    codes = judge(results, lambda done: all(line.endswith(path) for line in done.out.splitlines()) and done.out.count("\n") == len(hierarchies))  # fmt: skip
    assert codes.get(0), codes
    for top in tops:
        leftover = Path(f"{top}{path}")
        if leftover.exists():  # the attacker's own, when it was stopped in between
            leftover.rmdir()
