"""Lists of images for several platforms: made here, pushed, and read back by skopeo and buildah.

The digests are the proof: the list's bytes are those that buildah makes of the same images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fixtures.command import Done, run
from fixtures.handmade import Archive, file, pack
from fixtures.registry import Registry
from scow.cli import main
from scow.cli.session import session
from scow.cri.service import Service
from scow.image.lists import ListFile
from scow.image.members import add_to_list
from scow.image.store import ImageStore
from scow.native import prctl

PLATFORMS = {
    "amd64": {"architecture": "amd64"},
    "arm64": {"architecture": "arm64", "variant": "v8"},
    "arm": {"architecture": "arm", "variant": "v7"},
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`example.com/app:ARCH` of two layers each, one of them shared."""
    made = Archive()
    base = pack([file("bin/app", b"#!/bin/sh\n" * 1000, 0o755)])
    for name, platform in PLATFORMS.items():
        made.add(f"example.com/app:{name}", [base, pack([file("arch", name)])], **platform)
    return made.write(tmp_path_factory.mktemp("lists") / "images.tar")


class Here:
    """The command line in this process: a hundred starts of Python would take longer than the rest."""

    def __init__(self, capture: pytest.CaptureFixture[bytes]) -> None:
        self._capture = capture

    def __call__(self, *words: str) -> Done:
        code = main.run([*words])
        out, err = self._capture.readouterr()
        return Done(code, out.decode(), err.decode())

    def ok(self, *words: str) -> str:
        done = self(*words)
        assert done.code == 0, f"scow {' '.join(words)}: exit {done.code}\n{done.out}{done.err}"
        return done.out.rstrip("\n")


@pytest.fixture
def scow(
    scow_root: Path,
    scow_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Iterator[Here]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setattr(prctl, "forbid_dumps", lambda: None)  # it is for the whole process
    session.use(Service(str(scow_root), str(scow_run)))
    yield Here(capsysbinary)
    session.use(None)


@pytest.fixture
def loaded(scow: Here, archive: Path) -> Here:
    scow.ok("load", "-i", str(archive))
    return scow


def raw(reference: str) -> bytes:
    return run("skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{reference}").encode()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entries(scow: Here, name: str) -> list[Any]:
    found: list[Any] = json.loads(scow.ok("manifest", "inspect", name))["manifests"]
    return found


def parts(archive: Path, registry: Registry, repository: str) -> list[str]:
    """The images, pushed by skopeo; their names there."""
    return [
        registry.push(f"oci-archive:{archive}:example.com/app:{name}", f"{repository}:{name}")
        for name in PLATFORMS
    ]


def test_what_is_here_becomes_a_list_as_buildah_makes_it(
    loaded: Here, registry: Registry, tmp_path: Path
) -> None:
    name = f"{registry.host}/lists/app:v1"
    members = [f"example.com/app:{arch}" for arch in PLATFORMS]
    made = loaded.ok("manifest", "create", name, *members)
    assert made == f"Created manifest list {name}"
    assert [entry["platform"] for entry in entries(loaded, name)] == [
        {"os": "linux", **platform} | {"architecture": platform["architecture"]}
        for platform in PLATFORMS.values()
    ]
    assert loaded.ok("manifest", "ls", "-q") == name
    shown = loaded.ok("manifest", "ls").splitlines()
    assert [line.split(maxsplit=1) for line in shown] == [
        ["NAME", "PLATFORMS"],
        [name, "linux/amd64, linux/arm64/v8, linux/arm/v7"],
    ]
    done = loaded("manifest", "create", name, *members)
    assert (done.code, "is there already" in done.err) == (125, True)
    digestfile = tmp_path / "digest"
    out = loaded.ok("manifest", "push", "--digestfile", str(digestfile), name)
    data = raw(name)
    assert digestfile.read_text() == sha(data)
    assert out.endswith(f"v1: digest: {sha(data)} size: {len(data)}")
    assert loaded.ok("manifest", "inspect", "--raw", name).encode() == data
    # Every byte is there and right: skopeo verifies what it copies.
    source = f"docker://{name}"
    run("skopeo", "copy", "-q", "--all", "--src-tls-verify=false", source, f"dir:{tmp_path}/copy")
    # buildah makes the same of the same.
    buildah = ("buildah", "--root", tmp_path / "b", "--runroot", tmp_path / "br")
    buildah = (*buildah, "--storage-driver", "vfs", "manifest")
    run(*buildah, "create", "theirs")
    for entry in json.loads(data)["manifests"]:
        member = f"docker://{registry.host}/lists/app@{entry['digest']}"
        run(*buildah, "add", "--tls-verify=false", "theirs", member)
    theirs = f"{registry.host}/lists/app:theirs"
    argv = ("push", "--all", "--tls-verify=false", "--format", "oci", "theirs")
    run(*buildah, *argv, f"docker://{theirs}")
    assert raw(theirs) == data
    # Pushed again: nothing is sent; and pulled under the list's own name.
    assert "Pushing" not in loaded.ok("push", name)
    assert loaded.ok("pull", "-q", "--platform", "linux/arm64", name) == name
    assert entries(loaded, name) == json.loads(data)["manifests"]


def test_what_is_in_a_registry_stays_there(
    scow: Here, registry: Registry, archive: Path, scow_root: Path, other: Registry
) -> None:
    names = parts(archive, registry, "remote/parts")
    target = f"{registry.host}/remote/whole:1"
    scow.ok("manifest", "create", target, *names)
    blobs = [path for path in (scow_root / "images/blobs/sha256").iterdir() if path.is_file()]
    assert len(blobs) == 4  # the manifests alone
    out = scow.ok("manifest", "push", target)
    assert "Mounted from remote/parts" in out
    assert "Pushed" not in out
    assert [e["digest"] for e in json.loads(raw(target))["manifests"]] == [
        sha(raw(name)) for name in names
    ]
    # Nobody else has them: said before anything is sent.
    far = f"{other.host}/whole:1"
    done = scow("manifest", "push", target, far)
    assert done.code == 125
    assert "neither here nor in registry" in done.err
    assert "linux/amd64, linux/arm64, linux/arm" in done.err
    assert f"scow pull --platform linux/amd64 {names[0]}" in done.err
    assert b'"repositories":[]' in other.get("/v2/_catalog")
    for name, platform in zip(names, PLATFORMS, strict=True):
        scow.ok("pull", "-q", "--platform", f"linux/{platform}", name)
    assert scow.ok("manifest", "push", "-q", target, far) == far
    assert raw(far) == raw(target)
    # Of a list all, or the one for this machine.
    scow.ok("manifest", "create", "--all", f"{registry.host}/again:all", f"docker://{far}")
    assert entries(scow, f"{registry.host}/again:all") == json.loads(raw(far))["manifests"]
    scow.ok("manifest", "create", f"{registry.host}/again:one", f"docker://{far}")
    assert len(entries(scow, f"{registry.host}/again:one")) == 1


def test_every_tag_of_a_name(scow: Here, registry: Registry, archive: Path) -> None:
    names = parts(archive, registry, "tagged/app")
    repository = f"{registry.host}/tagged/app"
    (registry.storage / "docker/registry/v2/repositories/tagged/app/_manifests/tags/broken").mkdir()
    done = scow("pull", "-q", "-a", repository)
    assert (done.code, sorted(done.out.split())) == (1, sorted(names))
    assert f"no such image '{repository}:broken'" in done.err
    assert "without a tag" in scow("pull", "-a", names[0]).err
    assert scow("pull", "-a", f"{registry.host}/tagged/none").code == 125


def test_many_at_one_list(loaded: Here, registry: Registry, scow_root: Path) -> None:
    """Whoever comes second begins again with what the first one wrote."""
    store, name = ImageStore(str(scow_root)), f"{registry.host}/crowd:1"
    loaded.ok("manifest", "create", name)

    def work(arch: str) -> None:
        for count in range(5):
            note = {f"{arch}{count}": "here"}

            def alter(file: ListFile, _: object, note: dict[str, str] = note) -> None:
                file.annotations = (file.annotations or {}) | note

            add_to_list(store, name, [f"example.com/app:{arch}"], alter=alter)

    with ThreadPoolExecutor(3) as pool:
        [*pool.map(work, PLATFORMS)]
    document = json.loads(loaded.ok("manifest", "inspect", name))
    assert len(document["manifests"]) == 3
    assert len(document["annotations"]) == 15
    loaded.ok("system", "check")


def test_annotate_amend_and_remove(loaded: Here, registry: Registry) -> None:
    name, app = f"{registry.host}/annotated:1", "example.com/app"
    loaded.ok("manifest", "create", name)
    done = loaded("manifest", "add", name, f"{app}:amd64", f"{app}:arm", "--variant", "v9")
    assert (done.code, "one image only" in done.err) == (125, True)
    loaded.ok("manifest", "add", name, f"{app}:amd64", f"{app}:arm64")
    words = ["--annotation", "a=1", "--os-version", "10", "--os-features", "x", "--features", "y"]
    loaded.ok("manifest", "add", name, f"{app}:arm", "--variant", "v6", *words)
    arm = entries(loaded, name)[2]
    assert arm["annotations"] == {"a": "1"}
    assert arm["platform"] == {
        "architecture": "arm",
        "os": "linux",
        "os.version": "10",
        "os.features": ["x"],
        "variant": "v6",
        "features": ["y"],
    }
    # By its name, by its digest, by the beginning of that; and the list as a whole.
    loaded.ok("manifest", "annotate", name, f"{app}:arm", "--arch", "aarch64", "--variant", "v8")
    loaded.ok("manifest", "annotate", name, arm["digest"], "--annotation", "b=2")
    loaded.ok("manifest", "annotate", name, arm["digest"][:20], "--annotation", "c=3")
    digest = loaded.ok("manifest", "annotate", "--index", "--annotation", "of=all", name)
    document = loaded.ok("manifest", "inspect", "--raw", name).encode()
    assert sha(document) == digest
    arm = json.loads(document)["manifests"][2]
    assert arm["annotations"] == {"a": "1", "b": "2", "c": "3"}
    assert (arm["platform"]["architecture"], arm["platform"]["variant"]) == ("arm64", "v8")
    assert json.loads(document)["annotations"] == {"of": "all"}
    # The same image again takes its own place, with what is said of it now.
    done = loaded("manifest", "create", "--amend", name, f"{app}:amd64", f"{app}:arm")
    assert (done.code, len(entries(loaded, name))) == (0, 3)
    assert entries(loaded, name)[2]["platform"]["variant"] == "v7"
    done = loaded("manifest", "add", name, f"{app}:arm", "--arch", "amd64", "--variant", "")
    assert "two images for 'linux' on 'amd64'" in done.err
    assert loaded("manifest", "add", name, f"{app}:arm").err == ""
    loaded.ok("manifest", "remove", name, f"{app}:arm64")
    assert [e["platform"]["architecture"] for e in entries(loaded, name)] == ["amd64", "arm"]
    [first, _] = json.loads(loaded.ok("manifest", "inspect", "-v", name))
    assert first["Descriptor"]["platform"]["architecture"] == "amd64"
    assert len(first["OCIManifest"]["layers"]) == 2
    for words, complaint in {
        ("annotate", name, "nobody:1", "--arch", "arm"): "has no member 'nobody:1'",
        ("annotate", name): "name an image of the list, or say --index",
        ("annotate", "--index", "--arch", "arm", name): "a list as a whole has no platform",
        ("annotate", name, f"{app}:arm", "--arch", "z80"): "unknown architecture",
        ("add", "nolist", f"{app}:arm"): "no such list: 'nolist'",
        ("push", "nolist"): "no such list: 'nolist'",
        ("remove", name, "sha256:00000000"): "has no member",
        ("create", "a@" + digest): "it has a digest",
    }.items():
        done = loaded("manifest", *words)
        assert (done.code, done.out) == (125, ""), words
        assert complaint in done.err, words


def test_a_list_keeps_its_images_and_goes_without_a_trace(
    loaded: Here, registry: Registry, scow_root: Path
) -> None:
    name = f"{registry.host}/kept:1"
    members = [f"example.com/app:{arch}" for arch in PLATFORMS]
    loaded.ok("manifest", "create", name, *members)
    loaded.ok("manifest", "annotate", "--index", "--annotation", "a=b", name)
    for member in members:
        loaded.ok("rmi", member)
    assert loaded.ok("images", "-q") == ""
    loaded.ok("image", "prune", "-a", "-f")
    loaded.ok("system", "check")
    # As it lies another tool reads it, too.
    run("skopeo", "copy", "-q", "--all", f"oci:{scow_root}/images:{name}", f"dir:{scow_root}/copy")
    loaded.ok("manifest", "push", name)
    assert len(json.loads(raw(name))["manifests"]) == 3
    assert loaded.ok("manifest", "rm", name) == name
    assert loaded("manifest", "rm", name).code == 1
    assert [*(scow_root / "images/blobs/sha256").iterdir()] == []
    loaded.ok("system", "check")


def test_what_another_tool_puts_there_is_a_list(
    loaded: Here, registry: Registry, scow_root: Path
) -> None:
    ours, theirs = f"{registry.host}/ours:1", f"{registry.host}/theirs:1"
    loaded.ok("manifest", "create", ours, *(f"example.com/app:{arch}" for arch in PLATFORMS))
    loaded.ok("manifest", "push", "--purge", ours)
    argv = ("skopeo", "copy", "-q", "--all", "--src-tls-verify=false", f"docker://{ours}")
    run(*argv, f"oci:{scow_root}/images:theirs")
    assert loaded.ok("manifest", "ls", "-q") == "theirs:latest"
    loaded.ok("manifest", "push", "theirs", theirs)
    assert raw(theirs) == raw(ours)
    loaded.ok("manifest", "rm", "theirs")
    for arch in PLATFORMS:
        loaded.ok("rmi", f"example.com/app:{arch}")
    assert [*(scow_root / "images/blobs/sha256").iterdir()] == []


def test_push_of_one_platform(loaded: Here, registry: Registry, archive: Path) -> None:
    """Of a list, and of what was pulled from one; what is not here is said."""
    name = f"{registry.host}/one/app:1"
    loaded.ok("manifest", "create", name, *(f"example.com/app:{arch}" for arch in PLATFORMS))
    loaded.ok("push", "-q", "--platform", "linux/arm64", name, f"{name}-arm64")
    assert json.loads(raw(f"{name}-arm64"))["config"] is not None
    done = loaded("push", "--platform", "linux/riscv64", name, f"{name}-riscv64")
    assert (done.code, "available: linux/amd64, linux/arm/v7" in done.err) == (125, True)
    done = loaded("push", "--compression-format", "zstd", name)
    assert (done.code, "a list of images goes as it is" in done.err) == (125, True)
    loaded.ok("manifest", "push", "-q", "--purge", name)
    assert "no such list" in loaded("manifest", "push", name).err
    for arch in PLATFORMS:
        loaded.ok("rmi", f"example.com/app:{arch}")
    loaded.ok("pull", "-q", "--platform", "linux/arm64", name)
    loaded.ok("pull", "-q", "--platform", "linux/amd64", name)
    done = loaded("push", name, f"{name}-again")
    assert done.code == 0
    done = loaded("push", "--platform", "linux/arm/v7", name, f"{name}-arm")
    assert (done.code, "is not here for linux/arm/v7" in done.err) == (125, True)
    assert "here: linux/arm64/v8, linux/amd64;" in done.err
    loaded.ok("push", "-q", "--platform", "linux/arm64", name, f"{name}-second")
    assert raw(f"{name}-second") == raw(f"{name}-arm64")
    # Under its own name one image takes the place of the whole list: that is said.
    assert "is the one that is here, for linux/amd64" in loaded("push", name).err


def test_docker_images_make_a_docker_list(
    scow: Here, registry: Registry, archive: Path, other: Registry
) -> None:
    source = f"oci-archive:{archive}:example.com/app:arm"
    name = registry.push(source, "docker/app:arm", "--format", "v2s2")
    scow.ok("manifest", "create", f"{other.host}/docker/app:1", name)
    document = json.loads(scow.ok("manifest", "inspect", f"{other.host}/docker/app:1"))
    assert document["mediaType"] == "application/vnd.docker.distribution.manifest.list.v2+json"
    scow.ok("manifest", "annotate", "--index", "--annotation", "a=b", f"{other.host}/docker/app:1")
    document = json.loads(scow.ok("manifest", "inspect", f"{other.host}/docker/app:1"))
    assert document["mediaType"] == "application/vnd.oci.image.index.v1+json"
