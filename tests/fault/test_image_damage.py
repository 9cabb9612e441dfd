"""Flipped bits, lost files, rubbish where a file should be: found, mended, and never in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.state import State
from scow.image.store import Image, ImageStore

pytestmark = pytest.mark.root

CLEAN = "nothing damaged, nothing left behind\n"


@pytest.fixture
def root(busybox_root: Path, tmp_path: Path) -> Path:
    """A store of the test's own with busybox in it, twice named."""
    subprocess.run(["cp", "-a", busybox_root / "root", tmp_path / "root"], check=True)
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> ImageStore:
    return ImageStore(str(root))


@pytest.fixture
def state(root: Path, tmp_path: Path, own_network: None) -> State:
    state = State(str(root), str(tmp_path / "run"))
    state.log = str(tmp_path / "victim.log")
    return state


def layer_of(store: ImageStore, image: Image) -> Path:
    return Path(store.layer_paths(image)[0])


def flip(path: Path, offset: int = 0) -> None:
    """One bit of a file, with its times as they were."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_link(path: Path) -> None:
    info = path.lstat()
    path.unlink()
    path.symlink_to("busybux")
    os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns), follow_symlinks=False)


LAYER_DAMAGE: dict[str, Callable[[Path], None]] = {
    "first byte": lambda diff: flip(diff / "bin/busybox"),
    "last byte": lambda diff: flip(diff / "bin/busybox", (diff / "bin/busybox").stat().st_size - 1),
    "mode": lambda diff: (diff / "etc/passwd").chmod(0o666),
    "owner": lambda diff: os.chown(diff / "etc/group", 1, 0),
    "mode of the root": lambda diff: diff.chmod(0o777),
    "link": lambda diff: replace_link(diff / "bin/sh"),
    "lost": lambda diff: (diff / "bin/ls").unlink(),
    "added": lambda diff: (diff / "usr/bin/new").touch(),
    "emptied": lambda diff: (diff / "etc/passwd").write_bytes(b""),
    "xattr": lambda diff: os.setxattr(diff / "etc", "trusted.overlay.opaque", b"y"),
    "another kind": lambda diff: ((diff / "tmp").rmdir(), (diff / "tmp").touch())[0],
    "layer.json": lambda diff: (diff.parent / "layer.json").write_text("{}"),
    "layer.json empty": lambda diff: (diff.parent / "layer.json").write_bytes(b""),
    "size in layer.json": lambda diff: flip(
        diff.parent / "layer.json", (diff.parent / "layer.json").read_bytes().index(b'"size":') + 7
    ),
    "all of it": lambda diff: shutil.rmtree(diff),
}


@pytest.mark.parametrize("seal", [False, True], ids=["unpacked again", "by seal"])
def test_a_damaged_layer_is_found_and_made_again(store: ImageStore, seal: bool) -> None:
    image = store.get("busybox")
    digests = {}
    if seal:
        assert store.verify() == []
    for what, damage in LAYER_DAMAGE.items():
        diff = layer_of(store, image)
        if not seal:
            (diff.parent / "seal").unlink(missing_ok=True)
        damage(diff)
        found = store.verify()
        assert len(found) == 1, f"{what}: {found}"
        assert "layer" in found[0], what
        assert store.verify() == found, f"{what}: looking changes nothing"
        assert store.verify(repair=True) == [f"{found[0]} (mended)"], what
        assert store.verify() == [], what
        assert store.get("busybox") == image, what
        digests[what] = sorted(path.name for path in diff.rglob("*"))
    assert len({tuple(names) for names in digests.values()}) == 1


def test_a_damaged_blob_is_fetched_again(store: ImageStore) -> None:
    """Of its layer, its config, its manifest; and a damaged layer whose blob is gone."""
    image = store.get("busybox")
    summary = store.read_summary(store.content.read_index()[0])
    assert summary is not None
    before = sorted(os.listdir(store.content.root + "/blobs/sha256"))
    for text in summary.blobs:
        path = Path(store.content.root, "blobs", *text.split(":"))
        flip(path, path.stat().st_size // 2)
        assert f"blob {text} is damaged" in store.verify()
        lines = store.verify(repair=True)
        assert store.verify() == [], lines
        assert store.get("busybox") == image
    diff = layer_of(store, image)
    flip(diff / "bin/busybox", 5000)
    Path(store.content.root, "blobs", *summary.blobs[2].split(":")).unlink()
    store.verify(repair=True)
    assert store.verify() == []
    assert sorted(os.listdir(store.content.root + "/blobs/sha256")) == before


def test_what_cannot_be_fetched_stays_for_a_better_day(store: ImageStore) -> None:
    """No registry answers: the image keeps its names, and the line says why it is not mended."""
    image = store.get("busybox")
    with store.content.locked():
        entries = [e.annotated(repo_digest=e.repo_digest) for e in store.content.read_index()]
        port = image.digests[0].partition("/")[0]
        moved = [
            e.annotated(repo_digest=e.repo_digest.replace(port, "127.0.0.1:1")) for e in entries
        ]
        store.content.write_index(moved)
    summary = store.read_summary(entries[0])
    assert summary is not None
    Path(store.content.root, "blobs", *summary.blobs[2].split(":")).unlink()
    lines = store.verify(repair=True)
    assert any("not mended" in line and "127.0.0.1:1" in line for line in lines), lines
    assert [e.name for e in store.content.read_index()] == [e.name for e in entries]
    assert not any(line.endswith("(mended)") for line in lines)


def test_a_running_container_keeps_the_layer_that_it_runs_on(state: State, root: Path) -> None:
    store = ImageStore(str(root))
    diff = layer_of(store, store.get("busybox"))
    state.ok("run", "-d", "--name", "old", "--network", "none", "busybox", "sleep", "600")
    flip(diff / "bin/busybox", (diff / "bin/busybox").stat().st_size - 1)
    assert "(mended)" in state.ok("system", "check", "--repair")
    assert len(os.listdir(root / "layers/.aside")) == 1
    assert state.ok("exec", "old", "cat", "/etc/group").startswith("root:x:0:")
    assert state.ok("run", "--rm", "--network", "none", "busybox", "echo", "new") == "new\n"
    state.ok("rm", "-f", "old")
    state.ok("system", "check", "--repair")
    assert os.listdir(root / "layers/.aside") == []
    assert state.ok("system", "check") == CLEAN


def test_the_rebuilt_index_knows_the_names(store: ImageStore) -> None:
    names = store.get("busybox").names
    index = Path(store.content.root, "index.json")
    index.write_bytes(index.read_bytes()[:-1])
    assert len(store.verify(repair=True)) == 1
    assert store.get("busybox").names == names
    assert len(os.listdir(Path(store.content.root, "aside"))) == 1
    # Without the copy there are the manifests, which know no names.
    image = store.get("busybox")
    index.write_bytes(b"")
    Path(store.content.root, "index.copy").unlink()
    store.verify(repair=True)
    assert store.verify() == []
    assert store.get(image.id).diff_ids == image.diff_ids


def wrecks(path: Path) -> dict[str, Callable[[], None]]:
    """What may stand where a file of ours should be."""

    def directory() -> None:
        path.unlink(missing_ok=True)
        path.mkdir()

    def newer() -> None:
        path.write_text('{"schemaVersion":99,"format":99,"manifests":[]}')

    return {
        "empty": lambda: path.write_bytes(b"") and None,
        "garbage": lambda: path.write_bytes(os.urandom(300)) and None,
        "directory": directory,
        "newer": newer,
    }


def pieces(root: Path) -> dict[str, Path]:
    """The files of a store, by a word for each."""
    content = root / "images"
    (layer,) = (path for path in (root / "layers").iterdir() if len(path.name) == 64)
    return {
        "index": content / "index.json",
        "layout": content / "oci-layout",
        "lock": content / "lock",
        "summary": next((content / "summaries").iterdir()),
        "layer.json": layer / "layer.json",
        "seal": layer / "seal",
        "needs-lower": layer / "needs-lower",
        "lease": content / "ingest/lease-1-1",
        "ingest": content / "ingest" / f"sha256-{'1' * 64}",
        "layer-lock": root / "layers/.locks" / layer.name,
        "copy": content / "index.copy",
        "reserve": content / "reserve",
        "ingest-directory": content / "ingest",
    }


PIECES = """
    index layout lock summary layer.json seal needs-lower lease ingest layer-lock copy reserve
    ingest-directory
""".split()  # noqa: SIM905


def try_rubbish(state: State, root: Path, piece: str, kinds: tuple[str, ...]) -> None:
    """K2, K3: whatever lies there, other commands go on, or say one clear line; the check mends."""
    whole = str(root) + ".whole"
    os.rename(root, whole)
    for kind in kinds:
        subprocess.run(["cp", "-a", whole, root], check=True)
        path = pieces(root)[piece]
        if path.is_dir():
            shutil.rmtree(path)
        wrecks(path)[kind]()
        for words in (
            ("images",),
            ("ps", "-a"),
            ("system", "check"),
            ("tag", "busybox", "busybox"),
        ):
            done = state.forked(*words)
            told = f"{piece}, {kind}: scow {' '.join(words)}: {done.output}"
            assert "Traceback" not in done.output, told
            assert "internal error" not in done.output, told
            lines = [x for x in done.output.splitlines() if x.startswith("scow: ")]
            assert len(lines) == (1 if done.status == 125 else 0), told
        if (piece, kind) == ("index", "newer"):
            assert "schemaVersion 99" in state.forked("system", "check", "--repair").output
        else:
            repaired = state.forked("system", "check", "--repair")
            assert state.ok("system", "check") == CLEAN, f"{piece}, {kind}: {repaired.output}"
            out = state.ok("run", "--rm", "--network", "none", "busybox", "echo", "here")
            assert out == "here\n", f"{piece}, {kind}"
        shutil.rmtree(root)
    os.rename(whole, root)


@pytest.mark.parametrize("piece", PIECES)
def test_rubbish_is_told_in_one_line_and_mended(state: State, root: Path, piece: str) -> None:
    try_rubbish(state, root, piece, ("directory",))


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_rubbish_of_all_kinds(state: State, root: Path, piece: str) -> None:
    try_rubbish(state, root, piece, ("empty", "garbage", "newer"))


def test_a_marker_in_another_hand_is_no_damage(state: State, root: Path) -> None:
    (root / "images" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}\n')  # as skopeo
    assert state.ok("system", "check") == CLEAN


def test_an_index_of_rubbish(state: State, root: Path) -> None:
    try_rubbish(state, root, "index", ("empty", "garbage", "newer"))
