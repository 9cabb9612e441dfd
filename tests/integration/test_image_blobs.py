"""Compressed layers that are not kept: what goes, what still works without, how they come back."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest

from fixtures.command import Scow
from fixtures.faults import FaultProxy
from fixtures.handmade import Archive, busybox_layer, file, pack
from fixtures.registry import Registry
from scow.image import policy
from scow.image.digest import Digest, digest_bytes, parse_digest
from scow.image.dropped import drop_blobs, read_note
from scow.image.gc import collect
from scow.image.push import Compression, push_image
from scow.image.save import save_archive
from scow.image.store import Image, ImageStore
from scow.native.errors import InvalidArgument, RegistryError, ScowError

CLEAN = "nothing damaged, nothing left behind"


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Whatever the machine's administrator set up or logged in to is not for tests.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.delenv(policy.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(policy, "CONFIG_FILE", str(tmp_path / "scow.toml"))


@pytest.fixture
def needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(policy.VARIABLE, "needed")


@pytest.fixture
def store(scow_root: Path) -> ImageStore:
    return ImageStore(str(scow_root))


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy.start(registry.host) as running:
        yield running


@pytest.fixture(scope="module")
def small(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of three small layers in the registry."""
    own = [pack([file(f"own{n}", os.urandom(30_000))]) for n in range(2)]
    archive = Archive()
    archive.add("small:1", [busybox_layer(), *own])
    path = archive.write(tmp_path_factory.mktemp("small") / "small.tar")
    return registry.push(f"oci-archive:{path}", "small/three:1")


@pytest.fixture
def name(small: str, proxy: FaultProxy) -> str:
    """The image, by way of the proxy."""
    return f"{proxy.host}/{small.partition('/')[2]}"


def layer_blobs(store: ImageStore, image: Image) -> list[Digest]:
    entry = next(e for e in store.content.read_index() if e.digest == image.manifest_digest)
    summary = store.read_summary(entry)
    assert summary is not None
    return [*dict.fromkeys(parse_digest(text) for text in summary.blobs[2:])]


def kept(store: ImageStore, image: Image) -> list[bool]:
    return [store.content.has_blob(digest) for digest in layer_blobs(store, image)]


def du(root: str) -> int:
    argv = ["du", "-s", "--block-size=1", root]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[0])


def test_a_pull_drops_what_it_unpacked(
    store: ImageStore, proxy: FaultProxy, name: str, needed: None
) -> None:
    image = store.pull(name)
    assert len(kept(store, image)) >= 2
    assert not any(kept(store, image))
    assert store.content.has_blob(image.manifest_digest)
    assert store.content.has_blob(image.id)
    assert store.verify() == []
    assert os.listdir(store.content.ingest_dir) == []
    proxy.log.clear()
    assert store.pull(name) == image
    assert [method for method, _, _ in proxy.log] == ["HEAD"], "a second pull is one request"
    # Also with the other setting: what was dropped does not come for a pull.
    os.environ[policy.VARIABLE] = "always"
    proxy.log.clear()
    assert store.pull(name) == image
    assert [method for method, _, _ in proxy.log] == ["HEAD"]


def test_another_image_on_the_same_layers_fetches_only_its_own(
    store: ImageStore, proxy: FaultProxy, registry: Registry, name: str, needed: None
) -> None:
    """The same layers in another compression, in another repository: other blobs, the same diff ids."""
    image = store.pull(name)
    pushed = push_image(store, name, destination=f"{proxy.host}/again:1",
                        compression=Compression("zstd"))  # fmt: skip
    assert not any(kept(store, image)), "what was fetched for the push is gone again"
    store.remove(name)
    collect(store)
    assert not os.listdir(store.content.note_dir)
    store.pull(name)
    proxy.log.clear()
    other = store.pull(str(pushed.reference))
    assert other.diff_ids == image.diff_ids
    assert layer_blobs(store, other) != layer_blobs(store, image)
    blobs = [path for method, path, _ in proxy.log if method == "GET" and "/blobs/" in path]
    assert len(blobs) <= 1, "its config, if at all"
    assert not any(kept(store, other))
    assert store.verify() == []
    # Where the first one came from may be gone: the second has its own notes.
    store.remove(name)
    save_archive(store, [str(pushed.reference)], BytesIO())
    assert store.verify() == []


def test_save_fetches_again_and_gives_back(
    store: ImageStore, proxy: FaultProxy, name: str, needed: None, scow_run: Path
) -> None:
    os.environ[policy.VARIABLE] = "always"
    image = store.pull(name)
    whole = BytesIO()
    save_archive(store, [name], whole)
    scow = Scow(store.root, str(scow_run))
    out = scow.ok("image", "prune", "--blobs", "-f")
    assert out.count("Dropped: sha256:") == len(layer_blobs(store, image))
    assert not any(kept(store, image))
    assert scow.ok("system", "check") == CLEAN
    os.environ[policy.VARIABLE] = "needed"
    told: list[str] = []
    again = BytesIO()
    save_archive(store, [name], again, warn=told.append)
    assert again.getvalue() == whole.getvalue()
    assert len(told) == 1
    assert proxy.host in told[0]
    assert not any(kept(store, image))
    # By hand only, where the policy is to keep: what came for the save stays.
    os.environ[policy.VARIABLE] = "always"
    save_archive(store, [name], BytesIO())
    assert all(kept(store, image))
    sums = scow.ok("system", "df", "--format", "{{.Bytes}}").split()
    assert sum(map(int, sums)) == du(store.root)


def test_what_nobody_can_give_back_stays(
    store: ImageStore, tmp_path: Path, scow_run: Path, name: str, needed: None
) -> None:
    """Images from archives, a commit's own layer; and a commit on layers that are not kept."""
    archive = Archive()
    archive.add("example.com/own:1", [pack([file("own", os.urandom(5000))])])
    store.load(str(archive.write(tmp_path / "own.tar")))
    store.pull(name)
    scow = Scow(store.root, str(scow_run))
    scow.env[policy.VARIABLE] = "needed"
    scow.ok("create", "--name", "box", name, "true")
    upper = next(Path(store.root, "containers").iterdir()) / "upper"
    (upper / "made").write_text("x")
    scow.ok("commit", "box", "made:1")
    scow.ok("rm", "box")
    assert "Dropped" not in scow.ok("image", "prune", "--blobs", "-f")
    assert all(kept(store, store.get("example.com/own:1")))
    committed = kept(store, store.get("made:1"))
    assert committed[-1]
    assert not any(committed[:-1])
    # The pulled image goes, its notes serve the one that stands on it.
    scow.ok("rmi", name)
    out = tmp_path / "made.tar"
    saved = scow("save", "made:1", "-o", str(out))
    assert saved.code == 0, saved.err
    assert "not kept here: fetching again from" in saved.err
    with tarfile.open(out) as tar:
        assert len([n for n in tar.getnames() if n.startswith("blobs/")]) == len(committed) + 2
    assert scow.ok("system", "check") == CLEAN
    assert [*kept(store, store.get("made:1"))] == committed


def test_a_registry_that_is_gone_is_told_in_a_line(
    store: ImageStore, name: str, registry: Registry, needed: None
) -> None:
    with FaultProxy.start(registry.host) as gone:
        reference = f"{gone.host}/{name.partition('/')[2]}"
        image = store.pull(reference)
    with pytest.raises(RegistryError, match=r"is not kept here, and '127\.0\.0\.1:") as e:
        save_archive(store, [reference], BytesIO())
    assert e.value.hint
    with pytest.raises(RegistryError, match="is not kept here"):
        push_image(store, reference, destination=f"{registry.host}/nowhere/new:1",
                   compression=Compression("zstd"))  # fmt: skip
    assert store.verify() == []
    # A layer that is damaged is found without its blob, and not taken for lost.
    victim = next(p for p in Path(store.layer_paths(image)[0]).rglob("*") if p.is_file())
    with victim.open("ab") as stream:
        stream.write(b"x")
    (found,) = store.verify()
    assert "is damaged, and its blob is not kept here" in found
    (line,) = store.verify(repair=True)
    assert "cannot be checked" in line
    assert "not kept here" in line
    assert store.get(reference) == image


def test_load_brings_back_what_was_dropped(
    store: ImageStore, small: str, registry: Registry, needed: None, tmp_path: Path
) -> None:
    """The registry is gone, a user has the archive: what they bring is kept from then on."""
    with FaultProxy.start(registry.host) as gone:
        reference = f"{gone.host}/{small.partition('/')[2]}"
        image = store.pull(reference)
        archive = tmp_path / "all.tar"
        with archive.open("wb") as file:
            save_archive(store, [reference], file)
    assert not any(kept(store, image))
    assert store.load(str(archive)) == [f"Loaded image: {reference}"]
    assert all(kept(store, image))
    assert store.get(reference) == image, "what its registry calls it is not forgotten"
    assert os.listdir(store.content.note_dir) == []
    again = BytesIO()
    save_archive(store, [reference], again)
    assert again.getvalue() == archive.read_bytes()
    assert all(kept(store, image))
    assert store.verify() == []
    # A load that fails takes no note.
    drop_blobs(store)
    with pytest.raises(ScowError):
        store.load(BytesIO(archive.read_bytes()[:20_000]))
    assert not any(kept(store, image))
    assert len(os.listdir(store.content.note_dir)) == len(set(layer_blobs(store, image)))


def test_a_damaged_layer_is_mended_from_the_registry(
    store: ImageStore, name: str, needed: None
) -> None:
    image = store.pull(name)
    victim = next(p for p in Path(store.layer_paths(image)[0]).rglob("*") if p.is_file())
    victim.unlink()
    assert len(store.verify()) == 1
    assert all(line.endswith("(mended)") for line in store.verify(repair=True))
    assert store.verify() == []
    assert victim.exists()
    assert not any(kept(store, image))
    # And one that is lost whole.
    shutil.rmtree(os.path.dirname(store.layer_paths(image)[0]))
    assert store.verify() != []
    store.verify(repair=True)
    assert store.verify() == []
    assert store.get(name) == image


def test_a_blob_that_is_the_only_witness_is_heard_first(store: ImageStore, name: str) -> None:
    """A layer that was never checked, and is damaged: its blob stays, for it can mend it."""
    image = store.pull(name)
    victim = next(p for p in Path(store.layer_paths(image)[0]).rglob("*") if p.is_file())
    with victim.open("ab") as stream:
        stream.write(b"x")
    drop_blobs(store)
    assert kept(store, image).count(True) == 1
    assert all(line.endswith("(mended)") for line in store.verify(repair=True))
    drop_blobs(store)
    assert not any(kept(store, image))


def test_a_lease_keeps_blobs(store: ImageStore, name: str) -> None:
    image = store.pull(name)
    with store.content.lease() as lease:
        lease.hold(blobs=layer_blobs(store, image))
        assert drop_blobs(store).lines == []
        lease.finish()
    assert len(drop_blobs(store).lines) == len(layer_blobs(store, image))
    note = read_note(store.content, layer_blobs(store, image)[0])
    assert note is not None
    assert note.source.startswith("127.0.0.1:")


def test_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(policy.CONFIG_FILE)
    assert not policy.drops_blobs()
    path.write_text('[images]\nkeep-blobs = "needed"\n')
    assert policy.drops_blobs()
    monkeypatch.setenv(policy.VARIABLE, "always")
    assert not policy.drops_blobs()
    monkeypatch.setenv(policy.VARIABLE, "never")
    with pytest.raises(InvalidArgument, match=r"'never' in \$SCOW_KEEP_BLOBS"):
        policy.drops_blobs()
    monkeypatch.delenv(policy.VARIABLE)
    for text in (
        "images = 1",
        "[images",
        '[images]\nkeep-blobs = "some"',
        "[images]\nkeep-blobs=3",
    ):
        path.write_text(text)
        with pytest.raises(InvalidArgument, match=r"scow\.toml"):
            policy.drops_blobs()


def test_two_pulls_at_once_fetch_each_blob_once(
    store: ImageStore, proxy: FaultProxy, name: str, needed: None
) -> None:
    """The second one waits for the first, finds no blob, and takes the layer all the same."""
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(ImageStore(store.root).pull, (name, name))
        assert first == second
        asked = Counter(path for method, path, _ in proxy.log if "/blobs/" in path)
        digests = {f"/blobs/{digest}" for digest in layer_blobs(store, first)}
        fetched = {p: n for p, n in asked.items() if p[p.rfind("/blobs/") :] in digests}
        assert len(fetched) == len(digests)
        assert set(fetched.values()) == {1}, fetched
        assert not any(kept(store, first))
        proxy.log.clear()
        store.remove(name)
    assert store.verify() == []


def test_a_setting_that_comes_later_takes_hold_with_the_next_pull(
    store: ImageStore, proxy: FaultProxy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = store.pull(name)
    assert all(kept(store, image))
    monkeypatch.setenv(policy.VARIABLE, "needed")
    proxy.log.clear()
    assert store.pull(name) == image
    assert [method for method, _, _ in proxy.log] == ["HEAD"]
    assert not any(kept(store, image))
    assert store.verify() == []


def test_skopeo_reads_all_but_the_layers(store: ImageStore, name: str, needed: None) -> None:
    image = store.pull(name)
    layout = f"oci:{store.content.root}:{name}"
    argv = ["skopeo", "inspect", "--raw", layout]
    raw = subprocess.run(argv, capture_output=True, check=True).stdout
    assert digest_bytes(raw) == image.manifest_digest
    copy = ["skopeo", "copy", "-q", layout, f"dir:{store.root}/copy"]
    done = subprocess.run(copy, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert layer_blobs(store, image)[0].partition(":")[2] in done.stderr
