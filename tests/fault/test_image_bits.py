"""One bit of any file of the store, a directory that is a file: found, mended, and nothing lost."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fixtures.fake_registry import FakeRegistry
from fixtures.handmade import Entry, directory, file, pack
from fixtures.state import State
from scow.image.gc import collect
from scow.image.layers import LayerInfo
from scow.image.policy import ALWAYS, NEEDED, VARIABLE
from scow.image.store import ImageStore

pytestmark = pytest.mark.root

CLEAN = "nothing damaged, nothing left behind\n"
LOW = pack([file("f", "hello"), file("etc/x", "x"), directory("d", 0o700, 5, 5)])
# It needs what is below: a hard link to a lower file, a directory that it does not list.
TOP = pack(
    [Entry("g", tarfile.LNKTYPE, target="f"), file("own", os.urandom(3000)), file("d/n", "")]
)
DERIVED = ("seal", "reserve", "lock", "index.copy")  # what tells nothing that the rest does not


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    registry = FakeRegistry()
    config = {"config": {"User": "1000", "Cmd": ["/bin/true"]}}
    registry.add_image(LOW, TOP, tag="two", config=config)
    registry.add_image(LOW, tag="one")
    yield registry
    registry.close()


@pytest.fixture
def base() -> Iterator[Path]:
    """In memory: what is tried here does not depend on a disk, and there are hundreds of syncs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="scow-bits-") as path:
        yield Path(path)


@pytest.fixture(params=[ALWAYS, NEEDED])
def whole(
    request: pytest.FixtureRequest,
    registry: FakeRegistry,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A store with two images, checked once; with and without their blobs."""
    monkeypatch.setenv(VARIABLE, request.param)
    store = ImageStore(str(base / "whole"))
    for tag in ("one", "two"):
        store.pull(f"{registry.host}/team/app:{tag}")
    assert store.verify() == []
    assert any(Path(store.content.note_dir).glob("*")) == (request.param == NEEDED)
    return base / "whole"


@pytest.fixture
def root(whole: Path, base: Path) -> Path:
    return base / "root"


def copy(whole: Path, root: Path) -> ImageStore:
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "-a", whole, root], check=True)
    return ImageStore(str(root))


def flip(path: Path, bit: int) -> None:
    """One bit, with the times as they were: the disk tells nobody."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name not in DERIVED)
    found = {str(p.relative_to(root)): p.read_bytes() for p in files if p.parent.name != "aside"}
    for place, data in found.items():
        if place.endswith(
            "layer.json"
        ):  # a bit in the name of a field that is empty changes nothing
            found[place] = repr(msgspec.json.decode(data, type=LayerInfo)).encode()
    return found


def kinds(whole: Path) -> list[Path]:
    files = [path for path in whole.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if path.stat().st_size and path.name != "reserve"]


def expect_mended(whole: Path, root: Path, told: str) -> None:
    found = ImageStore(str(root)).verify()
    assert found, f"{told}: not found"
    mended = ImageStore(str(root)).verify(repair=True)
    assert ImageStore(str(root)).verify() == [], f"{told}: {mended}"
    assert content(root) == content(whole), f"{told}: {mended}"


def try_bits(whole: Path, root: Path, times: int) -> None:
    for path in kinds(whole):
        for _ in range(times):
            copy(whole, root)
            bit = random.randrange(path.stat().st_size * 8)
            place = path.relative_to(whole)
            flip(root / place, bit)
            expect_mended(whole, root, f"{place}, bit {bit}")


def test_a_bit_of_any_file(whole: Path, root: Path) -> None:
    assert len(kinds(whole)) >= 15
    try_bits(whole, root, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_bits_of_any_file(whole: Path, root: Path) -> None:
    try_bits(whole, root, 40)


def test_any_file_cut_short_or_gone(whole: Path, root: Path) -> None:
    for path in kinds(whole):
        place = path.relative_to(whole)
        copy(whole, root)
        os.truncate(root / place, path.stat().st_size // 2)
        expect_mended(whole, root, f"{place} cut")
        if path.name in (*DERIVED, "needs-lower") or (
            path.suffix == ".json" and "summaries" in str(place)
        ):
            continue  # what is made again without a word
        copy(whole, root)
        (root / place).unlink()
        expect_mended(whole, root, f"{place} gone")


def test_a_bit_in_a_name_costs_nothing(whole: Path, root: Path) -> None:
    """index.json says of an image another id, digest, or what makes no sense: nothing of it goes."""
    for text, other in (
        ('"io.scow.image.id":"sha256:', '"io.scow.image.id":"sha257:'),
        ('"digest":"sha256:', '"digest":"sha25v:'),
        ('ref.name":"', 'ref.nam%":"'),
        ('"size":', '"sizu":'),
    ):
        store = copy(whole, root)
        index = Path(store.content.root, "index.json")
        times = index.stat()
        assert text in index.read_text()
        index.write_text(index.read_text().replace(text, other, 1))
        os.utime(index, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert "is not as it was written" in store.verify()[0]
        store.verify(repair=True)
        assert store.verify() == [], text
        assert content(root) == content(whole), text
        assert len(os.listdir(f"{store.content.root}/aside")) == 1, "what was there is kept"
        # Without the copy nobody knows what it was: what may be needed stays.
        store = copy(whole, root)
        index = Path(store.content.root, "index.json")
        Path(store.content.root, "index.copy").unlink()
        index.write_text(index.read_text().replace(text, other, 1))
        blobs = sorted(os.listdir(f"{store.content.root}/blobs/sha256"))
        store.verify(repair=True)
        assert sorted(os.listdir(f"{store.content.root}/blobs/sha256")) == blobs, text


def test_another_program_s_change_is_no_damage(whole: Path, root: Path) -> None:
    store = copy(whole, root)
    index = Path(store.content.root, "index.json")
    index.write_text(index.read_text().replace("{", "{ ", 1))  # now, so after the copy
    assert store.verify() == []
    assert store.verify(repair=True) == []


def test_a_damaged_summary_costs_no_other_image_a_layer(whole: Path, root: Path) -> None:
    """What the collector goes by is right, or made again."""
    store = copy(whole, root)
    one, two = (store.get(name) for name in sorted(n for i in store.list() for n in i.names))
    shared = one.diff_ids[0].partition(":")[2]
    path = Path(store.content.summary_dir, two.manifest_digest.partition(":")[2] + ".json")
    flip(path, 8 * path.read_bytes().index(shared.encode()))
    store.remove(one.names[0])
    collect(store)
    assert store.layers.has(one.diff_ids[0])
    assert ImageStore(str(root)).get(two.id) == two


DIRECTORIES = """
    images images/blobs images/blobs/sha256 images/ingest images/summaries images/dropped layers
    layers/.staging layers/.trash layers/.locks layers/.empty
""".split()  # noqa: SIM905


@pytest.mark.parametrize("whole", [ALWAYS], indirect=True)
def test_a_file_where_a_directory_should_be(whole: Path, root: Path, tmp_path: Path) -> None:
    state = State(str(root), str(tmp_path / "run"))
    state.log = str(tmp_path / "victim.log")
    for place in DIRECTORIES:
        store = copy(whole, root)
        path = root / place
        shutil.rmtree(path, ignore_errors=True)
        path.write_text("a file\n")
        for words in (("images",), ("ps", "-a"), ("system", "check"), ("system", "df")):
            done = state.forked(*words)
            told = f"{place}: scow {' '.join(words)}: {done.output}"
            assert "Traceback" not in done.output, told
            assert "internal error" not in done.output, told
        repaired = state.forked("system", "check", "--repair")
        assert "Traceback" not in repaired.output, f"{place}: {repaired.output}"
        assert state.forked("system", "check").output == CLEAN, f"{place}: {repaired.output}"
        if place not in ("images", "images/blobs", "images/blobs/sha256"):
            assert len(store.list()) == 2, place
    for place in ("containers", "names", "trash", "pods"):
        copy(whole, root)
        shutil.rmtree(root / place, ignore_errors=True)
        (root / place).write_text("a file\n")
        done = state.forked("system", "check")
        assert (done.status, done.output.count("\n")) == (125, 1), done
        assert f"'{root / place}'" in done.output


@pytest.mark.parametrize("whole", [ALWAYS], indirect=True)
def test_who_may_look(whole: Path, root: Path) -> None:
    """CVE-2021-41091: set-id programs in layers are for containers."""
    for place in ("images", "layers"):
        for spoil in (lambda path: path.chmod(0o755), lambda path: os.chown(path, 1000, 0)):
            store = copy(whole, root)
            spoil(root / place)
            assert store.verify() == [f"'{root / place}' is open to others"]
            assert store.verify(repair=True) == [f"'{root / place}' is open to others (mended)"]
            assert store.verify() == []
