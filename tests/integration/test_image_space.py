"""df adds up, prune gives back what it says, and other tools read the store as it lies."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.command import Scow
from fixtures.handmade import Archive, busybox_layer, file, pack
from scow.image.gc import collect
from scow.image.store import ImageStore


@pytest.fixture
def scow(scow_root: Path, scow_run: Path, tmp_path: Path) -> Iterator[Scow]:
    """Two images on one base, and one that stands alone; each with a file of its own size."""
    archive = Archive()
    base = busybox_layer()
    for name, size in (("one:1", 300_000), ("two:1", 500_000)):
        archive.add(f"example.com/{name}", [base, pack([file("own", os.urandom(size))])])
    config = {"Labels": {"kind": "alone"}}
    archive.add("example.com/alone:1", [pack([file("a", os.urandom(700_000))])], config)
    scow = Scow(str(scow_root), str(scow_run))
    scow.ok("load", "-i", str(archive.write(tmp_path / "images.tar")))
    yield scow
    scow.remove_all()


def du(root: Path) -> int:
    out = subprocess.run(
        ["du", "-s", "--block-size=1", root], capture_output=True, text=True, check=True
    )
    return int(out.stdout.split()[0])


def bytes_of(scow: Scow) -> dict[str, int]:
    lines = scow.ok("system", "df", "--format", "{{.Type}}={{.Bytes}}").splitlines()
    return {kind: int(count) for kind, _, count in (line.partition("=") for line in lines)}


def test_df_adds_up_to_what_du_says(scow: Scow, scow_root: Path) -> None:
    scow.ok(
        "run", "--network", "none", "--name", "box", "-v", "/data", "-v", "kept:/kept",
        "example.com/one:1", "sh", "-c", "dd if=/dev/zero of=/data/f bs=1k count=200; "
        "dd if=/dev/zero of=/upper bs=1k count=100; ln /upper /again",
    )  # fmt: skip
    found = bytes_of(scow)
    assert sum(found.values()) == du(scow_root), found
    assert found["Images"] > 1_500_000
    assert found["Local Volumes"] > 200_000
    assert 100 << 10 < found["Containers"] < 200 << 10
    assert found["Build Cache"] == found["Partial Downloads"] == 0
    # A partial download, a layer half removed, a blob that nobody names.
    (scow_root / "images/ingest" / f"sha256-{'1' * 64}").write_bytes(bytes(2_000_000))
    (scow_root / f"images/blobs/sha256/{'2' * 64}").write_bytes(bytes(1_000_000))
    (scow_root / "layers/.trash/x").mkdir()
    found = bytes_of(scow)
    assert sum(found.values()) == du(scow_root), found
    assert found["Partial Downloads"] > 3_000_000
    row = scow.ok("system", "df").splitlines()[1].split()
    assert row[:3] == ["Images", "3", "1"]
    details = scow.ok("system", "df", "-v")
    (alone,) = (line for line in details.splitlines() if line.startswith("example.com/alone"))
    (one,) = (line for line in details.splitlines() if line.startswith("example.com/one"))
    assert alone.split()[-3] == "0B", "it shares nothing"
    assert one.split()[-3] != "0B"
    assert one.split()[-1] == "1"
    json.loads(scow.ok("system", "df", "--format", "json").splitlines()[0])
    assert scow("system", "df", "-v", "--format", "json").code == 125


def test_df_knows_what_is_shared(scow: Scow, scow_root: Path) -> None:
    from scow.image.df import store_usage

    store = ImageStore(str(scow_root))
    usage = store_usage(store, set())
    by_name = {found.image.names[0]: found for found in usage.images}
    one, two = by_name["example.com/one:1"], by_name["example.com/two:1"]
    assert one.shared_bytes == two.shared_bytes > 500_000
    assert 190_000 < two.unique_bytes - one.unique_bytes < 210_000 * 2
    assert by_name["example.com/alone:1"].shared_bytes == 0
    assert usage.image_bytes == one.shared_bytes + sum(f.unique_bytes for f in usage.images)
    before = du(scow_root)
    scow.ok("rmi", "example.com/two:1")
    assert (
        abs(before - du(scow_root) - two.unique_bytes) < 16 << 10
    )  # directories shrink not at once


def reclaimed(out: str) -> float:
    size = out.splitlines()[-1].removeprefix("Total reclaimed space: ")
    for unit, factor in (("MB", 1e6), ("kB", 1e3), ("GB", 1e9), ("B", 1)):
        if size.endswith(unit):
            return float(size.removesuffix(unit)) * factor
    raise AssertionError(out)


def test_image_prune(scow: Scow, scow_root: Path) -> None:
    refused = scow("image", "prune")
    assert refused.code == 125
    assert "no terminal" in refused.err
    assert "-f" in refused.err
    assert reclaimed(scow.ok("image", "prune", "-f")) == 0
    scow.ok("create", "--name", "user", "example.com/one:1", "true")
    before = du(scow_root)
    out = scow.ok("image", "prune", "-a", "-f", "--filter", "label!=kind")
    assert "Untagged: example.com/two:1" in out
    assert abs(before - du(scow_root) - reclaimed(out)) < 32 << 10
    assert "example.com/alone" in scow.ok("images")
    # They do not say when they were made.
    assert reclaimed(scow.ok("image", "prune", "-a", "-f", "--filter", "until=1s")) == 0
    out = scow.ok("image", "prune", "-a", "-f", "--filter", "label=kind=alone")
    assert reclaimed(out) > 700_000
    left = scow.ok("images", "--format", "{{.Repository}}")
    assert left == "example.com/one"
    assert scow("image", "prune", "-f", "--filter", "color=red").code == 125
    # One that loses its name to another is dangling, whatever the container's is.
    scow.ok("rm", "user")
    assert "Deleted: sha256:" in scow.ok("image", "prune", "-a", "-f")
    assert scow.ok("images", "-q") == ""
    assert scow.ok("system", "check") == "nothing damaged, nothing left behind"


def test_container_and_system_prune(scow: Scow, scow_root: Path) -> None:
    scow.ok("run", "-d", "--network", "none", "--name", "up", "example.com/one:1", "sleep", "600")
    scow.ok("run", "--network", "none", "--name", "done", "--label", "a=b", "-v", "/data",
            "example.com/two:1", "sh", "-c", "echo x > /data/x")  # fmt: skip
    scow.ok("create", "--name", "new", "example.com/two:1", "true")
    assert scow("container", "prune").code == 125
    assert reclaimed(scow.ok("container", "prune", "-f", "--filter", "until=1h")) == 0
    out = scow.ok("container", "prune", "-f", "--filter", "label=a", "--filter", "until=1ns")
    assert out.startswith("Deleted Containers:\n")
    assert scow.ok("ps", "-a", "--format", "{{.Names}}").split() == ["new", "up"]
    (scow_root / "images/ingest" / f"sha256-{'1' * 64}").write_bytes(bytes(2_000_000))
    assert len(os.listdir(scow_root / "volumes")) == 1
    out = scow.ok("system", "prune", "-a", "-f", "--volumes")
    assert reclaimed(out) > 3_000_000
    assert scow.ok("ps", "-a", "--format", "{{.Names}}") == "up"
    assert scow.ok("images", "--format", "{{.Repository}}") == "example.com/one"
    assert os.listdir(scow_root / "volumes") == []
    assert scow.ok("exec", "up", "echo", "alive") == "alive"
    found = bytes_of(scow)
    assert found["Partial Downloads"] == 0
    assert sum(found.values()) == du(scow_root)


def test_prune_asks(scow: Scow) -> None:
    for answer, code, left in (("n", 1, 3), ("", 1, 3), ("y", 0, 0)):
        with scow.terminal("image", "prune", "-a") as terminal:
            terminal.expect(r"WARNING! This will remove all images without at least one container")
            terminal.expect(r"\[y/N\] ")
            terminal.type(answer + "\n")
            assert terminal.wait() == code
        assert len(scow.ok("images", "-q").split()) == left


def test_other_tools_read_the_store_as_it_lies(scow: Scow, scow_root: Path, tmp_path: Path) -> None:
    layout = f"{scow_root}/images"
    ids = dict(
        line.split() for line in scow.ok("images", "--no-trunc", "--format",
                                         "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines()
    )  # fmt: skip
    assert len(ids) == 3
    for name, image_id in ids.items():
        out = subprocess.run(
            ["skopeo", "inspect", "--raw", f"oci:{layout}:{name}"], capture_output=True, check=True
        )
        assert json.loads(out.stdout)["config"]["digest"] == image_id
        argv = ["umoci", "unpack", "--image", f"{layout}:{name}", tmp_path / image_id[7:]]
        subprocess.run(argv, capture_output=True, check=True)
    tags = subprocess.run(["umoci", "ls", "--layout", layout], capture_output=True, text=True)
    assert sorted(tags.stdout.split()) == sorted(ids)


def test_what_other_tools_write_stays(scow: Scow, scow_root: Path, tmp_path: Path) -> None:
    """skopeo puts an image of its own between ours: it is there after every verb of scow's."""
    layout = f"{scow_root}/images"
    argv = ["skopeo", "copy", "-q", f"oci:{layout}:example.com/two:1", f"oci:{layout}:foreign"]
    subprocess.run(argv, check=True)
    index = json.loads(Path(layout, "index.json").read_text())
    strange = {
        "mediaType": "application/vnd.example+json",
        "digest": f"sha256:{'3' * 64}",
        "size": 7,
        "urls": ["https://example.com/x"],
        "platform": {"os": "linux", "architecture": "amd64", "os.features": ["x"]},
        "data": "e30=",
    }
    index["manifests"] += [strange, {"nonsense": True}]
    Path(layout, "index.json").write_text(json.dumps(index))
    assert len(scow.ok("images", "-q").split()) == 3
    scow.ok("tag", "example.com/one:1", "further:1")
    scow.ok("rmi", "example.com/two:1")
    scow.ok("image", "prune", "-a", "-f")
    after = json.loads(Path(layout, "index.json").read_text())["manifests"]
    assert strange in after
    assert {"nonsense": True} in after
    out = tmp_path / "copy"
    subprocess.run(["skopeo", "copy", "-q", f"oci:{layout}:foreign", f"dir:{out}"], check=True)
    assert scow("images", "-q").out == ""


def test_a_clock_that_jumps_deletes_nothing(scow: Scow, scow_root: Path) -> None:
    """Dead leases from the future and the past, and one that is alive: images stay."""
    store = ImageStore(str(scow_root))
    summary = store.read_summary(store.content.read_index()[0])
    assert summary is not None
    ingest = Path(store.content.ingest_dir)
    held = json.dumps({"blobs": [*summary.blobs, f"sha256:{'5' * 64}"], "layers": []})
    partial = ingest / f"sha256-{'5' * 64}"
    for name, at in (("future", 4_000_000_000), ("past", 0)):
        (ingest / f"lease-1-{name}").write_text(held)
        os.utime(ingest / f"lease-1-{name}", (at, at))
        partial.write_bytes(b"x" * 2_000_000)
        collect(store, now=False)
        assert len(store.list()) == 3
        assert store.verify(quick=True) == [] or name == "future"
        # Negative age: the leftovers are kept for a retry; older than a day: they are not.
        assert partial.exists() == (name == "future")
        (ingest / f"lease-1-{name}").unlink(missing_ok=True)
    with store.content.lease() as lease:
        lease.hold(blobs=[summary.manifest_digest])
        for stamp in (0, 4_000_000_000):
            path = next(ingest.glob("lease-*"))
            os.utime(path, (stamp, stamp))
            assert store.content.leases()[0].is_alive
            collect(store)
            assert path.exists()
