"""cp: the rules of `docker cp`, both ways, running and not, and containers that work against it."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from fixtures.canary import Canary
from fixtures.command import Scow
from fixtures.images import ensure
from fixtures.trees import look
from scow.cri.service import Service
from scow.image.store import ImageStore

MAKE = """
mkdir -p /src/sub /dest; echo f > /src/f; echo g > /src/sub/g; ln /src/f /src/sub/hard
ln -s f /src/link; mkfifo /src/fifo; chown -R 1000:1000 /src; chmod 4755 /src/f
ln -s /src /way; ln -s /etc/shadow /out; echo old > /dest/f
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Scow:
    top = tmp_path_factory.mktemp("cp")
    ImageStore(f"{top}/root").load_layout(str(ensure("busybox")), "busybox")
    return Scow(f"{top}/root", f"{top}/run")


@pytest.fixture(params=["running", "stopped"])
def scow(base: Scow, request: pytest.FixtureRequest) -> Iterator[Scow]:
    """One container `c` that has made MAKE, and runs on or not."""
    rest = "touch /ready; exec sleep 1000" if request.param == "running" else "touch /ready"
    script = ("busybox", "sh", "-ec", MAKE + rest)
    detached = ("-d",) if request.param == "running" else ()
    base.ok("run", *detached, "--name", "c", "--network", "none", *script)
    if detached:
        base.ok("exec", "c", "sh", "-c", "while ! [ -e /ready ]; do sleep 0.01; done")
    yield base
    base.remove_all()


def contents(top: Path) -> dict[str, str]:
    """The regular files below, by path."""
    found = (path for path in top.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(top)): path.read_text(errors="replace") for path in found}


SRC = {"f": "f\n", "sub/g": "g\n", "sub/hard": "f\n"}


def test_out_by_dockers_rules(scow: Scow, tmp_path: Path) -> None:
    here = str(tmp_path)
    scow.ok("cp", "c:/src", f"{here}/new")
    assert contents(tmp_path / "new") == SRC
    scow.ok("cp", "c:src/", f"{here}/new")
    assert contents(tmp_path / "new/src") == SRC
    (tmp_path / "flat").mkdir()
    scow.ok("cp", "c:/src/.", f"{here}/flat")
    assert contents(tmp_path / "flat") == SRC
    scow.ok("cp", "c:/src/f", f"{here}/flat/sub")
    assert (tmp_path / "flat/sub/f").read_text() == "f\n"
    scow.ok("cp", "c:/src/sub/g", f"{here}/flat/f")
    assert (tmp_path / "flat/f").read_text() == "g\n"
    scow.ok("cp", "c:/way", f"{here}/way")
    assert os.readlink(tmp_path / "way") == "/src"
    scow.ok("cp", "-L", "c:/way", f"{here}/followed")
    assert contents(tmp_path / "followed") == SRC
    for source, target, says in (
        ("c:/nope", here, "no such file"),
        ("c:/src", f"{here}/flat/f", "onto"),
        ("c:/src/f", f"{here}/no/", "no such directory"),
        ("c:/src/f", f"{here}/no/x", "no such directory"),
        ("c:/src/f/", here, "not a directory"),
        ("c:/src/..", here, "'..'"),
        ("nope:/src", here, "no such container"),
        ("c:/src", "c:/x", "exactly one"),
        (here, here, "exactly one"),
    ):
        done = scow("cp", source, target)
        assert (done.code, done.out) == (125, ""), (source, target)
        assert says in done.err.lower()
        assert "internal error" not in done.err
    done = scow("cp", "-", "c:/dest", stdin=long_header())
    assert "a header of 3145728 bytes is too long" in done.err


def long_header() -> bytes:
    """A PAX header of 3 MiB before a file."""
    info = tarfile.TarInfo("long")
    info.pax_headers = {"comment": "x" * ((3 << 20) - 100)}
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def test_in_by_dockers_rules(scow: Scow, tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/x").write_text("x\n")
    (tmp_path / "d/f").write_text("new\n")
    scow.ok("cp", f"{tmp_path}/d", "c:/made")
    scow.ok("cp", f"{tmp_path}/d", "c:/made")
    scow.ok("cp", f"{tmp_path}/d/.", "c:/dest")
    scow.ok("cp", f"{tmp_path}/d/f", "c:/way/sub")
    done = scow("cp", f"{tmp_path}/d/e", "c:/dest/f")
    assert "onto" in done.err
    scow.ok("cp", "c:/", f"{tmp_path}/all")
    found = contents(tmp_path / "all")
    assert {found[name] for name in ("made/f", "made/d/f", "dest/f", "src/sub/f")} == {"new\n"}
    assert {found[name] for name in ("made/e/x", "made/d/e/x", "dest/e/x")} == {"x\n"}


def test_owners_and_rights(scow: Scow, tmp_path: Path) -> None:
    """Without -a nothing that a container made is its maker's power over this host."""
    scow.ok("cp", "c:/src", f"{tmp_path}/plain")
    scow.ok("cp", "-a", "c:/src", f"{tmp_path}/same")
    plain, same = (os.stat(tmp_path / name / "f") for name in ("plain", "same"))
    assert (plain.st_uid, stat.S_IMODE(plain.st_mode)) == (0, 0o755)
    assert (same.st_uid, stat.S_IMODE(same.st_mode)) == (1000, 0o4755)
    assert os.path.samefile(tmp_path / "same/f", tmp_path / "same/sub/hard")
    assert stat.S_ISFIFO(os.stat(tmp_path / "same/fifo").st_mode)
    scow.ok("cp", "-a", f"{tmp_path}/same", "c:/back")
    scow.ok("cp", "-a", "c:/back", f"{tmp_path}/back")
    assert look(tmp_path / "back") == look(tmp_path / "same")


def test_a_tar_both_ways(scow: Scow, tmp_path: Path) -> None:
    process = scow.spawn("cp", "c:/src/sub", "-")
    out = process.communicate(timeout=60)[0]
    with tarfile.open(fileobj=BytesIO(out)) as tar:
        assert tar.getnames() == ["sub", "sub/g", "sub/hard"]
    scow.ok("cp", "-a", "-", "c:/dest", stdin=out)
    scow.ok("cp", "-a", "c:/dest/sub", f"{tmp_path}/back")
    assert contents(tmp_path / "back") == {"g": "g\n", "hard": "f\n"}
    assert os.stat(tmp_path / "back/g").st_uid == 1000
    assert "no such directory" in scow("cp", "-", "c:/nope", stdin=out).err.lower()
    assert scow("cp", "-", "c:/dest", stdin=b"no tar" * 100).code == 125


def evil_tar(*members: tuple[str, bytes, str]) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, target, 0o777
            tar.addfile(info)
    return out.getvalue()


HOSTILE = [
    [("../x", tarfile.REGTYPE, "")],
    [("a/../../x", tarfile.REGTYPE, "")],
    [("l1", tarfile.SYMTYPE, "/"), ("l1/x", tarfile.REGTYPE, "")],
    [("l2", tarfile.SYMTYPE, "../.."), ("l2", tarfile.DIRTYPE, "")],
    [("h1", tarfile.LNKTYPE, "/etc/passwd")],
    [("h2", tarfile.LNKTYPE, "../etc/passwd")],
    [("f", tarfile.REGTYPE, ""), ("f/x", tarfile.REGTYPE, "")],
]


def test_a_hostile_tar(scow: Scow) -> None:
    for members in HOSTILE:
        done = scow("cp", "-", "c:/dest", stdin=evil_tar(*members))
        assert done.code == 125, members
        assert done.err.startswith("scow: "), done.err
        assert "internal error" not in done.err


def test_hostile_links_lead_nowhere(scow: Scow, tmp_path: Path) -> None:
    """What is a link in the container leads inside it; what is a link here is not written through."""
    (tmp_path / "canary").mkdir()
    canary = Canary(tmp_path / "canary")
    before = canary.facts()
    done = scow("cp", "-L", "c:/out", f"{tmp_path}/got")
    assert done.code == 125  # busybox has no /etc/shadow of its own
    (tmp_path / "target").mkdir()
    (tmp_path / "target/src").mkdir()
    (tmp_path / "target/src/sub").symlink_to(tmp_path / "canary")
    done = scow("cp", "c:/src", f"{tmp_path}/target")
    assert "cannot copy directory 'src/sub'" in done.err
    (tmp_path / "target/src/f").unlink()
    (tmp_path / "target/src/f").mkdir()
    (tmp_path / "target/src/f/kept").touch()
    done = scow("cp", "c:/src", f"{tmp_path}/target")
    assert "there is a directory of that name" in done.err
    assert (tmp_path / "target/src/f/kept").exists()
    assert canary.changed_since(before) == {}


def test_volumes_are_there_while_it_runs(base: Scow, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("kept\n")
    base.ok(
        "run",
        "-d",
        "--name",
        "v",
        "-v",
        "/data",
        "-v",
        f"{tmp_path}:/host",
        "-v",
        "kept:/kept:ro",
        "--network",
        "none",
        "busybox",
        "sleep",
        "1000",
    )
    try:
        base.ok("cp", f"{tmp_path}/x", "v:/data/x")
        assert base.ok("exec", "v", "cat", "/data/x") == "kept"
        base.ok("cp", "v:/data", f"{tmp_path}/data")
        assert (tmp_path / "data/x").read_text() == "kept\n"
        base.ok("stop", "-t", "0", "v")
        takes_mounts = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)
        done = base("cp", "v:/data/x", f"{tmp_path}/y")
        assert (done.code == 0) == takes_mounts, done
        if takes_mounts:
            assert (tmp_path / "y").read_text() == "kept\n"
            base.ok("cp", "v:/data", f"{tmp_path}/again")
            assert (tmp_path / "again/x").read_text() == "kept\n"
            base.ok("cp", f"{tmp_path}/x", "v:/data/new")
            refused = base("cp", f"{tmp_path}/x", "v:/kept/new")
            assert "read-only file system" in refused.err.lower(), refused
            volumes = Path(base.env["SCOW_ROOT"], "volumes").iterdir()
            (volume,) = (path for path in volumes if path.name != "kept")
            assert sorted(os.listdir(volume / "data")) == ["new", "x"]
        else:
            assert "does not run" in done.err
            assert "hint: start it first: scow start v" in done.err
        done = base("cp", "v:/host/x", f"{tmp_path}/z")
        assert "does not run" in done.err
        assert "hint: start it first: scow start v" in done.err
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            assert base.env["SCOW_ROOT"] not in file.read()
    finally:
        base.remove_all()


def test_devices_are_not_copied_by_accident(base: Scow, tmp_path: Path) -> None:
    base.ok("create", "--name", "d", "--network", "none", "busybox", "true")
    host = Service(base.env["SCOW_ROOT"], base.env["SCOW_RUN"])
    upper = f"{host.store.container_dir(host.find('d'))}/upper"
    os.mknod(f"{upper}/dev0", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    try:
        done = base("cp", "d:/dev0", f"{tmp_path}/dev0")
        assert (done.code, done.err) == (0, "scow: left out 'dev0': a device; -a copies it\n")
        assert base("cp", "-q", "d:/dev0", f"{tmp_path}/dev0").err == ""
        assert not (tmp_path / "dev0").exists()
        base.ok("cp", "-a", "d:/dev0", f"{tmp_path}/dev0")
        assert stat.S_ISCHR(os.stat(tmp_path / "dev0").st_mode)
    finally:
        base.remove_all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_container_that_swaps_directories_for_links(base: Scow, tmp_path: Path) -> None:
    """CVE-2018-15664 and its kin: the path is changed while it is used; the host never is."""
    (tmp_path / "canary").mkdir()
    canary = Canary(tmp_path / "canary")
    before = canary.facts()
    script = (
        f"mkdir -p {tmp_path}/canary /real; echo mine > /real/secret; "
        "while :; do ln -sfn /real /swap; rm /swap; mkdir /swap; rmdir /swap; "
        f"ln -s {tmp_path}/canary /swap; rm /swap; done"
    )
    base.ok("run", "-d", "--name", "s", "--network", "none", "busybox", "sh", "-c", script)
    (tmp_path / "in").write_text("mine\n")
    try:
        for number in range(150):
            done = base("cp", f"{tmp_path}/in", "s:/swap/planted")
            assert "internal error" not in done.err
            done = base("cp", "s:/swap", f"{tmp_path}/out{number}")
            assert "internal error" not in done.err
        assert canary.changed_since(before) == {}
        told = subprocess.run(
            ["grep", "-rl", "planted", str(tmp_path / "canary")],
            capture_output=True,
            check=False,
        )
        assert told.stdout == b""
    finally:
        base.remove_all()
