"""save and load beside skopeo, umoci, buildah, podman and docker: both ways, the same digests."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import zstandard

from fixtures import engines
from fixtures.command import Scow
from fixtures.engines import OURS
from fixtures.handmade import Archive, file, pack
from fixtures.images import ensure
from scow.image.commit import Wishes, import_tree
from scow.image.gc import collect
from scow.image.layers import LayerStore
from scow.image.store import Image, ImageStore
from scow.native.errors import ScowError

CHANGES = """
echo new > /new; echo more >> /etc/passwd; rm /etc/group; mkdir -p /made/deep; echo x > /made/deep/x
rm -r /var; mkdir /var; echo y > /var/y; chmod 700 /root; ln -s /new /link; mkdir /tmp/t; rmdir /tmp/t
ln /new /second; rm -r /home; touch /home; chown 7:8 /bin/busybox; cat /etc/passwd; rm /link; mkdir /link
"""
NAME, OTHER = "docker.io/library/busybox:latest", "localhost/other:1"


@pytest.fixture(scope="module")
def scow(tmp_path_factory: pytest.TempPathFactory) -> Scow:
    """A store with two images that other programs are asked about."""
    top = tmp_path_factory.mktemp("archives")
    store = ImageStore(f"{top}/root")
    store.load_layout(str(ensure("busybox")), NAME)
    rootfs = BytesIO()
    with tarfile.open(fileobj=rootfs, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("hello"))
    import_tree(store, BytesIO(rootfs.getvalue()), Wishes(OTHER, changes=['CMD ["/hello"]']))
    return Scow(f"{top}/root", f"{top}/run")


@pytest.fixture
def images(scow: Scow) -> dict[str, Image]:
    store = ImageStore(scow.env["SCOW_ROOT"])
    return {name: store.get(name) for name in (NAME, OTHER)}


@pytest.fixture
def fresh(tmp_path: Path) -> Scow:
    return Scow(f"{tmp_path}/fresh-root", f"{tmp_path}/fresh-run")


def tool(*words: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    top = tmp_path_factory.mktemp("podman")
    words = ("podman", "--root", top / "root", "--runroot", top / "run", "--tmpdir", top / "tmp")
    yield lambda *more: tool(*words, "--storage-driver", "vfs", *more)
    tool(*words, "--storage-driver", "vfs", "rmi", "-af")


def loaded(fresh: Scow) -> dict[str, Image]:
    store = ImageStore(fresh.env["SCOW_ROOT"])
    assert store.verify() == []
    return {name: store.get(name) for summary in store.list() for name in summary.names}


def same(found: dict[str, Image], images: dict[str, Image]) -> bool:
    """All digests: of the manifests, the configs and the layers."""
    ours = {image.names[0]: image for image in images.values()}
    assert found.keys() == ours.keys()
    return all(
        (image.id, image.manifest_digest, image.diff_ids)
        == (ours[name].id, ours[name].manifest_digest, ours[name].diff_ids)
        for name, image in found.items()
    )


# --- what scow saves ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_saved_is_loaded(
    scow: Scow, fresh: Scow, images: dict[str, Image], tmp_path: Path, form: str
) -> None:
    path = tmp_path / "saved"
    scow.ok("save", "--format", form, "-o", str(path), NAME, OTHER, images[NAME].id)
    out = fresh.ok("load", "-i", str(path))
    assert out.splitlines() == ["Loaded image: busybox:latest", "Loaded image: localhost/other:1"]
    assert same(loaded(fresh), images)
    assert os.listdir(tmp_path / "fresh-root/images/ingest") == []


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_skopeo_and_umoci_read_it(
    scow: Scow, images: dict[str, Image], tmp_path: Path, form: str
) -> None:
    path = tmp_path / "saved"
    scow.ok("save", "--format", form, "-o", str(path), NAME, OTHER)
    kind = "oci" if form == "oci-dir" else "oci-archive"
    for name, image in images.items():
        found = json.loads(tool("skopeo", "inspect", f"{kind}:{path}:{name}"))
        assert (found["Digest"], len(found["Layers"])) == (
            image.manifest_digest,
            len(image.diff_ids),
        )
    if form == "docker-archive":
        config = tool("skopeo", "inspect", "--config", "--raw", f"docker-archive:{path}:{OTHER}")
        assert json.loads(config)["rootfs"]["diff_ids"] == list(images[OTHER].diff_ids)
    if form == "oci-dir":
        assert set(tool("umoci", "list", "--layout", path).split()) == {NAME, OTHER}
        tool("umoci", "unpack", "--image", f"{path}:{OTHER}", tmp_path / "bundle")
        assert (tmp_path / "bundle/rootfs/hello").exists()


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman_reads_it(
    scow: Scow,
    images: dict[str, Image],
    podman: Callable[..., str],
    tmp_path: Path,
    form: str,
) -> None:
    path = tmp_path / "saved.tar"
    scow.ok("save", "--format", form, "-o", str(path), NAME)
    assert podman("load", "-q", "-i", path) == f"Loaded image: {NAME}"
    told = podman("image", "inspect", "--format", "{{.Id}} {{.Digest}}", NAME).split()
    # podman takes the file of Docker's where there is one, and makes a manifest of its own.
    assert f"sha256:{told[0]}" == images[NAME].id
    assert form == "docker-archive" or told[1] == images[NAME].manifest_digest


def test_buildah_reads_it(scow: Scow, images: dict[str, Image], tmp_path: Path) -> None:
    path = tmp_path / "saved.tar"
    scow.ok("save", "--format", "oci-archive", "-o", str(path), OTHER)
    words = ("buildah", "--root", tmp_path / "b", "--runroot", tmp_path / "r", "--storage-driver")
    image_id = tool(*words, "vfs", "pull", "-q", f"oci-archive:{path}")
    assert f"sha256:{image_id}" == images[OTHER].id
    tool(*words, "vfs", "push", "-q", image_id, f"oci:{tmp_path}/back:{OTHER}")
    # It packs the layer anew, so that only what does not know of packing stays the same.
    config = tool("skopeo", "inspect", "--config", "--raw", f"oci:{tmp_path}/back:{OTHER}")
    assert json.loads(config)["rootfs"]["diff_ids"] == list(images[OTHER].diff_ids)


def test_saving_twice_gives_the_same_bytes(scow: Scow) -> None:
    first, second = (scow.spawn("save", NAME, OTHER).communicate()[0] for _ in range(2))
    assert first == second
    assert len(first) > 1 << 19


def test_save_refuses(scow: Scow, images: dict[str, Image], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    for words, says in (
        (("nope",), "no such image"),
        (("--format", "zip", "-o", f"{tmp_path}/a", NAME), "invalid format 'zip'"),
        (("--format", "oci-dir", NAME), "needs -o DIRECTORY"),
        (("--format", "oci-dir", "-o", f"{tmp_path}/full", NAME), "is there already"),
        (("--format", "oci-dir", "-o", f"{tmp_path}/no/x", NAME), "cannot write"),
        (("--platform", "linux/s390x", "-o", f"{tmp_path}/a", NAME), "not here for linux/s390x"),
        (("-o", f"{tmp_path}/no/a", NAME), "cannot write"),
    ):
        done = scow("save", *words)
        assert (done.code, done.out) == (125, ""), words
        assert says in done.err
    assert os.listdir(tmp_path) == ["full"]


def test_a_damaged_blob_is_not_saved(scow: Scow, fresh: Scow, tmp_path: Path) -> None:
    scow.ok("save", "-o", f"{tmp_path}/a", NAME)
    fresh.ok("load", "-i", f"{tmp_path}/a")
    store = ImageStore(fresh.env["SCOW_ROOT"])
    blobs = f"{store.content.root}/blobs/sha256"
    biggest = max(os.scandir(blobs), key=lambda entry: entry.stat().st_size)
    with open(biggest.path, "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    done = fresh("save", "-o", f"{tmp_path}/b", NAME)
    assert (done.code, os.path.exists(f"{tmp_path}/b")) == (125, False)
    assert "is damaged" in done.err
    os.unlink(biggest.path)
    assert "is missing" in fresh("save", "-o", f"{tmp_path}/b", NAME).err


# --- what others save -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["oci-archive", "oci", "docker-archive"])
def test_from_skopeo(fresh: Scow, images: dict[str, Image], tmp_path: Path, form: str) -> None:
    path = tmp_path / "theirs"
    tool("skopeo", "copy", "-q", f"oci:{ensure('busybox')}:latest", f"{form}:{path}:{NAME}")
    fresh.ok("load", "-i", str(path))
    (found,) = loaded(fresh).values()
    assert found.diff_ids == images[NAME].diff_ids
    if form != "docker-archive":  # which has no manifest
        theirs = json.loads(tool("skopeo", "inspect", f"{form}:{path}:{NAME}"))
        assert found.manifest_digest == theirs["Digest"]


@pytest.mark.parametrize("form", ["oci-archive", "oci-dir", "docker-archive"])
def test_from_podman(
    scow: Scow,
    fresh: Scow,
    images: dict[str, Image],
    podman: Callable[..., str],
    tmp_path: Path,
    form: str,
) -> None:
    for name in (NAME, OTHER):
        scow.ok("save", "--format", "oci-archive", "-o", str(tmp_path / "s.tar"), name)
        podman("load", "-q", "-i", tmp_path / "s.tar")
        (tmp_path / "s.tar").unlink()
    path = tmp_path / "theirs"
    names = [NAME, OTHER] if form == "docker-archive" else [NAME]
    several = ["-m"] if len(names) > 1 else []
    podman("save", "-q", "--format", form, *several, "-o", path, *names)
    fresh.ok("load", "-i", str(path))
    found = loaded(fresh)
    assert found.keys() == {images[name].names[0] for name in names}
    for name in names:
        image = found[images[name].names[0]]
        assert (image.id, image.diff_ids) == (images[name].id, images[name].diff_ids)


@pytest.mark.parametrize("program", ["skopeo", "podman"])
def test_a_bare_directory(
    scow: Scow,
    fresh: Scow,
    images: dict[str, Image],
    podman: Callable[..., str],
    tmp_path: Path,
    program: str,
) -> None:
    """skopeo's `dir:`, podman's docker-dir: one image without a name."""
    path, archive = tmp_path / "theirs", tmp_path / "s.tar"
    scow.ok("save", "--format", "oci-archive", "-o", str(archive), OTHER)
    if program == "skopeo":
        tool("skopeo", "copy", "-q", f"oci-archive:{archive}", f"dir:{path}")
    else:
        podman("load", "-q", "-i", archive)
        podman("save", "-q", "--format", "docker-dir", "-o", path, OTHER)
    fresh.ok("load", "-i", str(path))
    store = ImageStore(fresh.env["SCOW_ROOT"])
    (found,) = store.list()
    assert store.get(found.id).diff_ids == images[OTHER].diff_ids
    assert (
        program == "podman" or store.get(found.id).manifest_digest == images[OTHER].manifest_digest
    )


def test_from_umoci(fresh: Scow, images: dict[str, Image]) -> None:
    """A layout as it lies; umoci's tag is no name of an image."""
    out = fresh.ok("load", "-i", str(ensure("busybox")))
    assert out == f"Loaded image ID: {images[NAME].id}"


@pytest.mark.timeout(300)
def test_docker_both_ways(
    scow: Scow, fresh: Scow, images: dict[str, Image], tmp_path: Path
) -> None:
    """Its daemon reads what scow saves and says the same of it; scow reads what it saves."""
    if reason := engines.missing("dockerd", "/usr/bin/docker"):
        pytest.skip(reason)
    scow.ok("save", "-o", str(tmp_path / "ours.tar"), NAME, OTHER)
    top = tmp_path / "docker"
    top.mkdir()
    with engines.docker(top) as found:
        docker = found[OURS]
        lines = docker.ok("load", "-i", str(tmp_path / "ours.tar")).splitlines()
        assert [line for line in lines if line.startswith("Loaded")] == (
            ["Loaded image: busybox:latest", "Loaded image: localhost/other:1"]
        )
        theirs: Any = json.loads(docker.ok("image", "inspect", NAME))[0]
        ours = json.loads(scow.ok("image", "inspect", NAME))[0]
        assert theirs["RootFS"] == ours["RootFS"]
        for key in ("Id", "RepoTags", "Created", "Architecture", "Os"):
            assert theirs[key] == ours[key], key
        for key in ("Cmd", "Env", "Labels", "WorkingDir", "Entrypoint"):
            assert theirs["Config"].get(key) == ours["Config"][key], key
        for form in ("{{.CreatedBy}} {{.Comment}}", "{{.ID}}"):
            words = ("history", "--no-trunc", "--format", form, NAME)
            assert docker.ok(*words) == scow.ok(*words)
        both = ("--name", "c1", "--network", "none", NAME, "sh", "-ec", CHANGES)
        docker.ok("run", *both)
        scow.ok("run", *both)
        assert sorted(docker.ok("diff", "c1").splitlines()) == sorted(
            scow.ok("diff", "c1").splitlines()
        )
        scow.remove_all()
        docker.ok("commit", "-c", "CMD cat /new", "c1", "theirs:1")
        docker.ok("save", "-o", str(tmp_path / "theirs.tar"), NAME, OTHER)
        docker.ok("save", "-o", str(tmp_path / "commit.tar"), "theirs:1")
    fresh.ok("load", "-i", str(tmp_path / "theirs.tar"))
    back = loaded(fresh)
    assert {name: image.diff_ids for name, image in back.items()} == {
        image.names[0]: image.diff_ids for image in images.values()
    }
    assert {image.id for image in back.values()} == {image.id for image in images.values()}
    fresh.ok("load", "-i", str(tmp_path / "commit.tar"))
    assert fresh.ok("run", "--rm", "--network", "none", "theirs:1") == "new"


# --- all the ways in which an archive may come -------------------------------------------------------


def packed(data: bytes) -> dict[str, bytes]:
    frames = [zstandard.compress(data[:5000]), zstandard.compress(data[5000:])]
    return {
        "plain": data,
        "gzip": gzip.compress(data[:999], 1) + gzip.compress(data[999:], 1),
        "zstd": b"".join(frames),
        "xz": lzma.compress(data, preset=0),
        "bzip2": bz2.compress(data, 1),
    }


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd", "xz", "bzip2"])
def test_from_a_pipe(
    scow: Scow, fresh: Scow, images: dict[str, Image], tmp_path: Path, kind: str
) -> None:
    data = scow.spawn("save", OTHER).communicate()[0]
    assert fresh.ok("load", "-q", stdin=packed(data)[kind]) == "Loaded image: localhost/other:1"
    assert same(loaded(fresh), {OTHER: images[OTHER]})
    (tmp_path / "file").write_bytes(packed(data)[kind][:-20])
    if kind != "plain":  # the end of a plain tar is zeros that nobody needs
        assert fresh("load", "-i", str(tmp_path / "file")).code == 125


def test_members_in_any_order(scow: Scow, fresh: Scow, images: dict[str, Image]) -> None:
    data = scow.spawn("save", NAME, OTHER).communicate()[0]
    out = BytesIO()
    with tarfile.open(fileobj=BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in reversed(old.getmembers()):
            member.name = f"./{member.name}"
            new.addfile(member, old.extractfile(member))
    fresh.ok("load", stdin=out.getvalue())
    assert same(loaded(fresh), images)


# --- what is no archive, or a hostile one (badinput D11) ---------------------------------------------


def handmade(*contents: bytes, name: str = "evil/x:1") -> dict[str, bytes]:
    """The files of an OCI layout: an image for each content, NAME1, NAME2, ..."""
    archive = Archive()
    for number, content in enumerate(contents):
        archive.add(f"{name}{number}", [pack([file("f", content)])])
    with TemporaryDirectory() as top, tarfile.open(archive.write(Path(top, "x"))) as tar:
        return {m.name: (tar.extractfile(m) or BytesIO()).read() for m in tar.getmembers()}


def docker_files(*contents: bytes, **changes: object) -> dict[str, bytes]:
    """The same as `docker save` wrote it before it knew of layouts."""
    images: list[dict[str, object]] = []
    files: dict[str, bytes] = {}
    for number, content in enumerate(contents):
        layer = pack([file("f", content)])
        config = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer).hexdigest()}"]},
        }
        files[f"{number}/layer.tar"] = layer
        files[f"{number}.json"] = json.dumps(config).encode()
        image = {"Config": f"{number}.json", "Layers": [f"{number}/layer.tar"]}
        images.append({**image, "RepoTags": [f"evil/x:{number}"], **changes})
    return {**files, "manifest.json": json.dumps(images).encode()}


def tar_of(files: dict[str, bytes], *links: tuple[str, str, bytes]) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, target, kind in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    return out.getvalue()


def broken(files: dict[str, bytes], name: str, data: bytes | None) -> dict[str, bytes]:
    """The files with one changed, or left out."""
    rest = {key: value for key, value in files.items() if key != name}
    return rest if data is None else {**rest, name: data}


def last_layer(files: dict[str, bytes]) -> str:
    index = json.loads(files["index.json"])
    manifest = json.loads(files[f"blobs/{index['manifests'][-1]['digest'].replace(':', '/')}"])
    return f"blobs/{manifest['layers'][-1]['digest'].replace(':', '/')}"


def bad_archives() -> Iterator[tuple[str, bytes, str]]:
    """What is wrong, the archive, and what is said of it."""
    layout, old = handmade(b"good", b"bad"), docker_files(b"good", b"bad")
    layer = last_layer(layout)
    yield "neither kind", tar_of({"f": b""}), "neither 'index.json' nor 'manifest.json'"
    yield "no tar", b"hello" * 1000, "not a tar archive"
    yield "empty", b"", "not a tar archive"
    yield (
        "version 2.0",
        tar_of(broken(layout, "oci-layout", b'{"imageLayoutVersion":"2.0.0"}')),
        "2.0.0",
    )
    yield "huge index", tar_of(broken(layout, "index.json", b" " * (5 << 20))), "more than 4194304"
    yield "second image's layer is missing", tar_of(broken(layout, layer, None)), "no file"
    damaged = layout[layer][:-8] + bytes(8)
    yield "second image's layer is damaged", tar_of(broken(layout, layer, damaged)), "got sha256:"
    yield (
        "second layer is another",
        tar_of(broken(old, "1/layer.tar", old["0/layer.tar"])),
        "diff id",
    )
    yield "second config is missing", tar_of(broken(old, "1.json", None)), "no file"
    for place in ("../../etc/passwd", "/etc/passwd", "1/../../x", "manifest.json/x"):
        yield f"layer at {place}", tar_of(docker_files(b"x", Layers=[place])), "no file"
    for tag in ("A/b:1", "evil/../x", "x@sha256:" + "0" * 63, "", "-x"):
        yield f"tag {tag!r}", tar_of(docker_files(b"x", RepoTags=[tag])), "invalid reference"
    loops = [("1/layer.tar", "../2/l", tarfile.SYMTYPE), ("2/l", "../1/layer.tar", tarfile.SYMTYPE)]
    yield "links in a circle", tar_of(broken(old, "1/layer.tar", None), *loops), "in circles"
    out = [("1/layer.tar", "/etc/passwd", tarfile.SYMTYPE)]
    yield "a link out", tar_of(broken(old, "1/layer.tar", None), *out), "no file"
    hard = [("1/layer.tar", "../../etc/passwd", tarfile.LNKTYPE)]
    yield "a hard link out", tar_of(broken(old, "1/layer.tar", None), *hard), "no file"
    device = [("1/layer.tar", "", tarfile.CHRTYPE)]
    yield "a device", tar_of(broken(old, "1/layer.tar", None), *device), "no file"
    whole = tar_of(layout)
    for cut in (1100, len(whole) // 2 + 100):
        yield f"cut at {cut}", whole[:cut], "cut off"
    yield "no list", tar_of(broken(old, "manifest.json", b'{"schemaVersion":2}')), "manifest.json"


def test_bad_archives_name_nothing(tmp_path: Path) -> None:
    """One line for each, and no image of it gets a name, the good ones before it neither."""
    store = ImageStore(f"{tmp_path}/bad")
    for what, data, says in bad_archives():
        with pytest.raises(ScowError) as caught:
            store.load(BytesIO(data))
        assert says in str(caught.value), what
        assert "\n" not in str(caught.value), what
        assert store.list() == [], what
    # All that came in on the way is nobody's, and goes.
    collect(store)
    assert LayerStore(f"{store.root}/layers").list() == []
    assert os.listdir(store.content.ingest_dir) == []


def test_names_that_move_are_told(tmp_path: Path) -> None:
    """An archive may name anybody's image (CVE-2026-50195)."""
    store = ImageStore(f"{tmp_path}/moved")
    store.load(BytesIO(tar_of(docker_files(b"mine", b"other"))))
    old = store.get("evil/x:0")
    assert store.load(BytesIO(tar_of(docker_files(b"theirs", b"other")))) == [
        f"The image evil/x:0 already exists, renaming the old one with ID {old.id} to empty string",
        "Loaded image: evil/x:0",
        "Loaded image: evil/x:1",
    ]
    assert store.get(old.id).names == ()
    assert store.get("evil/x:0").id != old.id


def test_a_hostile_directory(tmp_path: Path) -> None:
    """Its links lead nowhere outside, and nothing in it is waited for."""
    store = ImageStore(f"{tmp_path}/store")
    layout = tmp_path / "layout"
    for name, data in handmade(b"x").items():
        (layout / name).parent.mkdir(parents=True, exist_ok=True)
        (layout / name).write_bytes(data)
    index = layout / "index.json"
    good = index.read_bytes()
    (tmp_path / "outside.json").write_bytes(good)
    makers: list[Callable[[], None]] = [
        lambda: index.symlink_to(tmp_path / "outside.json"),
        lambda: os.mkfifo(index),
        index.mkdir,
    ]
    for make in makers:
        index.unlink()
        make()
        with pytest.raises(ScowError):
            store.load(str(layout))
        if index.is_dir() and not index.is_symlink():
            index.rmdir()
            index.touch()
    with open(index, "wb") as huge:
        huge.truncate(1 << 30)
    with pytest.raises(ScowError, match="more than 4194304 bytes"):
        store.load(str(layout))
    index.write_bytes(good)
    assert store.load(str(layout)) == ["Loaded image: evil/x:10"]
