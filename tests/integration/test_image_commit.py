"""export, import, diff and commit on real containers, beside what the kernel's own overlay shows."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import struct
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from fixtures.command import Scow
from fixtures.images import ensure
from fixtures.trees import look
from scow.cri import snapshot
from scow.cri.service import Service
from scow.image.commit import Wishes
from scow.image.diff import LayerWriter
from scow.image.overlay import mount_overlay
from scow.image.store import ImageStore
from scow.native.errors import InvalidState

CHANGES = """
echo new > /new; ln /new /etc/new2; ln -s /etc/shadow /link; mkfifo /fifo
echo more >> /etc/passwd; rm /etc/group; rm /bin/zcat
mkdir -p /made/deep; echo x > /made/deep/x; chown -R 1000:1000 /made; chmod 4750 /made/deep/x
rm -r /var; mkdir /var; echo y > /var/y
chmod 700 /root
: >> /etc/hosts
printf odd > "/$(printf 'a\\nb\\033[31m')"
mkdir /tmp/t; rmdir /tmp/t
"""
EXPECTED = r"""
A /a\nb\x1b[31m
C /bin
D /bin/zcat
C /etc
D /etc/group
A /etc/new2
C /etc/passwd
A /fifo
A /link
A /made
A /made/deep
A /made/deep/x
A /new
C /root
C /var
D /var/www
A /var/y
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Scow:
    top = tmp_path_factory.mktemp("commit")
    ImageStore(f"{top}/root").load_layout(str(ensure("busybox")), "busybox")
    return Scow(f"{top}/root", f"{top}/run")


@pytest.fixture
def scow(base: Scow) -> Iterator[Scow]:
    yield base
    base.remove_all()
    store = ImageStore(base.env["SCOW_ROOT"])
    for image in store.list():
        if "busybox:latest" not in image.names:
            store.remove(image.id, force=True)
    assert [image.names for image in store.list()] == [("busybox:latest",)]


def service(scow: Scow) -> Service:
    return Service(scow.env["SCOW_ROOT"], scow.env["SCOW_RUN"])


def created(scow: Scow, script: str, *options: str, image: str = "busybox") -> str:
    """A container that has ended after this script."""
    scow.ok("run", "--name", "c", "--network", "none", *options, image, "sh", "-ec", script)
    return "c"


def tree_of(tar: bytes, place: Path) -> dict[bytes, tuple[object, ...]]:
    place.mkdir()
    command = ["tar", "-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(place)]
    subprocess.run(command, input=tar, check=True)
    return look(place)


def export(scow: Scow, name: str = "c") -> bytes:
    process = scow.spawn("export", name)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    return out


def merged(scow: Scow, name: str, place: Path) -> dict[bytes, tuple[object, ...]]:
    """What the kernel shows of a stopped container."""
    host = service(scow)
    record = host.store.read(host.find(name))
    upper = f"{host.store.container_dir(record.id)}/upper"
    lowers = host.images.layer_paths(host.images.get(record.image_id))
    place.mkdir()
    with mount_overlay([upper, *lowers, f"{host.root}/base"]) as root:
        return look(Path(f"/proc/self/fd/{root.fileno()}"))


def without_overlay(tree: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    """Less the root, whose time is the directory's that was unpacked to, and inodes' first names."""
    return {path: facts for path, facts in tree.items() if path != b"."}


# --- diff -----------------------------------------------------------------------------------------


def test_diff_is_dockers(scow: Scow) -> None:
    created(scow, CHANGES, "-v", "/data", "--tmpfs", "/scratch")
    assert scow.ok("diff", "c") == EXPECTED.strip()
    lists = json.loads(scow.ok("diff", "--format", "json", "c"))
    assert lists["deleted"] == ["/bin/zcat", "/etc/group", "/var/www"]
    assert "/a\nb\x1b[31m" in lists["added"]
    assert scow("diff", "nope").err == "scow: no such container or image: 'nope'\n"


def test_nothing_done_is_nothing_changed(scow: Scow) -> None:
    created(scow, "cat /etc/passwd; ls -lR /etc; : >> /etc/passwd")
    assert scow.ok("diff", "c") == ""


def test_diff_of_an_image_is_its_top_layer(scow: Scow) -> None:
    created(scow, CHANGES)
    scow.ok("commit", "c", "changed")
    assert scow.ok("diff", "changed") == EXPECTED.strip()
    assert "A /bin/busybox" in scow.ok("diff", "busybox").splitlines()


# --- export and import ------------------------------------------------------------------------------


def test_export_is_what_the_kernel_shows(scow: Scow, tmp_path: Path) -> None:
    created(scow, CHANGES)
    host = service(scow)
    upper = Path(host.store.container_dir(host.find("c")), "upper")
    # What a container without a capability for it cannot make, an image may have.
    os.setxattr(upper / "new", "user.note", b"a\n=\0\xff")
    os.setxattr(upper / "new", "user.a=b", b"odd")
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(upper / "made/deep/x", "security.capability", capability)
    os.mknod(upper / "disk", 0o60640, os.makedev(259, 65537))
    os.chown(upper / "new", 4_000_000_000, 3)
    long = upper / ("d" * 120) / ("e" * 200)
    long.mkdir(parents=True)
    os.symlink("t/" * 150, long / "link")
    (long / "f").write_text("far")
    os.utime(long / "f", ns=(0, -1_500_000_000))
    with open(upper / "holes", "wb") as file:
        for at in (1 << 20, 50 << 20):
            file.seek(at)
            file.write(b"data" * 1024)
        file.truncate(64 << 20)
    tar = export(scow)
    assert len(tar) < 32 << 20
    # GNU tar reads the one name that only libarchive's key can say as nothing, and warns.
    os.removexattr(upper / "new", "user.a=b")
    assert without_overlay(tree_of(export(scow), tmp_path / "tar")) == without_overlay(
        merged(scow, "c", tmp_path / "merged")
    )
    assert export(scow) == export(scow)


def test_export_of_a_running_container(scow: Scow) -> None:
    scow.ok(
        *("run", "-d", "--name", "c", "--network", "none", "-v", "/data", "busybox", "sh", "-c"),
        "echo in > /data/x; echo out > /out; exec sleep 1000",
    )
    scow.ok("exec", "c", "sh", "-c", "while ! [ -e /out ]; do sleep 0.01; done")
    with tarfile.open(fileobj=BytesIO(export(scow))) as tar:
        names = tar.getnames()
    assert {"out", "data", "proc", "dev", "etc/hosts", "bin/busybox"} <= set(names)
    assert not [name for name in names if name.startswith(("data/", "proc/", "dev/"))]
    assert scow.ok("exec", "c", "cat", "/out") == "out"


def test_export_to_a_file(scow: Scow, tmp_path: Path) -> None:
    created(scow, "true")
    scow.ok("export", "-o", str(tmp_path / "c.tar"), "c")
    assert tarfile.is_tarfile(tmp_path / "c.tar")
    done = scow("export", "-o", str(tmp_path / "no/c.tar"), "c")
    assert (done.code, done.err.splitlines()[0]) == (
        125,
        f"scow: cannot write '{tmp_path}/no/c.tar': no such file or directory",
    )
    assert scow("export", "nope").code == 125
    assert os.listdir(tmp_path) == ["c.tar"]


def test_import_of_what_was_exported(scow: Scow, tmp_path: Path) -> None:
    created(scow, CHANGES)
    changes = ["-c", 'CMD ["cat", "/new"]', "--change", "ENV A=1 PATH=/bin", "-m", "flat"]
    image_id = scow.ok("import", *changes, "-", "flat:1", stdin=gzip.compress(export(scow), 1))
    assert scow.ok("run", "--rm", "--network", "none", "flat:1") == "new"
    (found,) = json.loads(scow.ok("image", "inspect", "flat:1"))
    assert (found["Id"], found["Comment"], len(found["RootFS"]["Layers"])) == (image_id, "flat", 1)
    assert found["Config"]["Env"] == ["A=1", "PATH=/bin"]
    created(scow, "true", "--name", "again", image="flat:1")
    assert tree_of(export(scow, "again"), tmp_path / "a").keys() == (
        tree_of(export(scow), tmp_path / "b").keys()
    )


def test_import_from_a_url(scow: Scow, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"not a tar" * 1000)
    with tarfile.open(tmp_path / "x.tar.xz", "w:xz") as tar:
        tar.addfile(tarfile.TarInfo("hello"))

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words, directory=str(tmp_path))

        def log_message(self, *words: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            image_id = scow.ok("import", f"{url}/x.tar.xz")
            assert scow.ok("diff", image_id) == "A /hello"
            assert scow.ok("image", "inspect", "-f", "{{.Comment}}", image_id) == (
                "Imported from x.tar.xz"
            )
            for place, says in ((f"{url}/no.tar", "404"), (f"{url}/bad.tar", "not a tar archive")):
                done = scow("import", place, "x")
                assert done.code == 125
                assert says in done.err
        finally:
            server.shutdown()
            thread.join()
    assert scow("import", str(tmp_path / "nope")).err.startswith("scow: cannot read ")
    assert "empty" in scow("import", "-", stdin=b"").err


# --- commit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_commit_run_diff(scow: Scow, tmp_path: Path, compression: str) -> None:
    """What a container changed is what the image's top layer is, and what its containers see."""
    created(scow, CHANGES, "-e", "A=1", "-l", "crew=7", "-v", "/data")
    options = ("-a", "Ada", "-m", "why", "-c", 'CMD ["cat","/new"]', "--compression", compression)
    image_id = scow.ok("commit", *options, "c", "changed:1")
    assert scow.ok("run", "--rm", "--network", "none", "changed:1") == "new"
    store = ImageStore(scow.env["SCOW_ROOT"])
    image, old = store.get("changed:1"), store.get("busybox")
    assert image.id == image_id
    assert image.diff_ids[:-1] == old.diff_ids
    assert image.config.labels == {**old.config.labels, "crew": "7"}
    assert "A=1" in image.config.env
    (found,) = json.loads(scow.ok("image", "inspect", "changed:1"))
    assert (found["Author"], found["Comment"]) == ("Ada", "why")
    assert store.verify() == []
    scow.ok("create", "--name", "new", "--network", "none", "changed:1")
    assert scow.ok("diff", "new") == ""
    ours, theirs = (
        tree_of(export(scow, "new"), tmp_path / "a"),
        tree_of(export(scow), tmp_path / "b"),
    )
    del theirs[b"data"]  # where the volume was mounted
    # Its time alone has changed, which is nothing that `diff` tells, nor a layer has.
    del ours[b"tmp"], theirs[b"tmp"]
    assert without_overlay(ours) == without_overlay(theirs)


def test_commit_of_nothing_makes_no_layer(scow: Scow) -> None:
    created(scow, "true")
    scow.ok("commit", "c", "same")
    store = ImageStore(scow.env["SCOW_ROOT"])
    assert store.get("same").diff_ids == store.get("busybox").diff_ids
    assert store.get("same").id != store.get("busybox").id
    first, second, *_ = scow.ok("history", "same").splitlines()[1:]
    assert "sh -ec true" in first
    assert "0B" in first
    assert second.startswith("<missing>")


def test_the_same_files_are_the_same_layer(scow: Scow) -> None:
    created(scow, CHANGES)
    for name in ("one", "two"):
        scow.ok("commit", "c", name)
    store = ImageStore(scow.env["SCOW_ROOT"])
    one, two = store.get("one"), store.get("two")
    assert one.diff_ids == two.diff_ids


def test_commit_freezes_meanwhile(scow: Scow, monkeypatch: pytest.MonkeyPatch) -> None:
    scow.ok("run", "-d", "--name", "c", "--network", "none", "busybox", "sleep", "1000")
    host = service(scow)
    seen: list[str] = []

    class Watching(LayerWriter):
        def run(self) -> None:
            seen.append(str(host.status(host.store.read(host.find("c"))).state.value))
            if len(seen) == 3:
                raise InvalidState("made to fail")
            super().run()

    monkeypatch.setattr(snapshot, "LayerWriter", Watching)
    snapshot.commit(host, host.find("c"), Wishes(name="frozen"))
    snapshot.commit(host, host.find("c"), Wishes(name="not"), pause=False)
    with pytest.raises(InvalidState, match="made to fail"):
        snapshot.commit(host, host.find("c"), Wishes(name="failed"))
    assert seen == ["paused", "running", "paused"]
    assert scow.inspect("c")["State"]["Status"] == "running"
    host.pause(host.find("c"))
    snapshot.commit(host, host.find("c"), Wishes())
    assert scow.inspect("c")["State"]["Status"] == "paused"


def test_a_sparse_terabyte(scow: Scow, tmp_path: Path) -> None:
    """badinput E35: what is not there is neither read nor written."""
    created(scow, "dd if=/bin/busybox of=/big bs=4096 count=1 seek=268435455 2>/dev/null")
    scow.ok("export", "-o", str(tmp_path / "c.tar"), "c")
    assert (tmp_path / "c.tar").stat().st_size < 16 << 20
    listed = subprocess.run(
        ["tar", "-tvf", str(tmp_path / "c.tar"), "big"], check=True, capture_output=True, text=True
    )
    assert " 1099511627776 " in listed.stdout
    scow.ok("commit", "c", "big")
    store = ImageStore(scow.env["SCOW_ROOT"])
    image = store.get("big")
    assert image.size < 16 << 20
    big = os.stat(f"{store.layer_paths(image)[0]}/big")
    assert (big.st_size, big.st_blocks * 512 < 1 << 20) == (1 << 40, True)
    assert scow.ok("run", "--rm", "--network", "none", "big", "stat", "-c", "%s", "/big") == (
        "1099511627776"
    )


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("touch /.wh.x", "cannot make a layer of '/.wh.x'"),
        ("mkdir /d; touch /d/.wh..wh..opq", "cannot make a layer of '/d/.wh..wh..opq'"),
    ],
)
def test_names_that_would_remove_files(scow: Scow, script: str, says: str) -> None:
    """A container must not decide what its image's next layer hides."""
    created(scow, script)
    done = scow("commit", "c", "evil")
    assert done.code == 125
    assert says in done.err
    assert scow("image", "inspect", "evil").code == 1


def test_bad_commits(scow: Scow) -> None:
    created(scow, "touch /x")
    before = sorted(os.listdir(f"{scow.env['SCOW_ROOT']}/images/blobs/sha256"))
    for words, says in (
        (("-c", "FROM x", "c"), "unknown instruction 'FROM'"),
        (("-c", "EXPOSE 99999", "c"), "not within 1 to 65535"),
        (("--compression", "xz", "c"), "gzip or zstd"),
        (("c", "A//b"), "invalid reference"),
        (("c", f"a@sha256:{'0' * 64}"), "a name with a digest is not a tag"),
        (("nope",), "no such container"),
    ):
        done = scow("commit", *words)
        assert (done.code, done.out) == (125, "")
        assert says in done.err
    assert sorted(os.listdir(f"{scow.env['SCOW_ROOT']}/images/blobs/sha256")) == before
