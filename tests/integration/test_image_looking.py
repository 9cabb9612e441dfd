"""images, history, image inspect, image tree, untag: what is told of images, in Docker's words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from fixtures.command import Scow
from fixtures.handmade import Archive, directory, file, pack, removed
from scow.image.store import ImageStore
from scow.image.usage import usage

KIB = 1024


@pytest.fixture
def scow(tmp_path: Path) -> Iterator[Scow]:
    """`app` on the layers of `base`, and `lone`; app's top layer replaces, removes and hides."""
    archive = Archive()
    bottom = pack(
        [directory("d"), *(file(f"d/{n}", b"x" * KIB) for n in range(3)), file("keep", b"k")]
    )
    middle = pack([file("d/0", b"y" * 2 * KIB), removed("d/1"), file("big", b"b" * 64 * KIB)])
    top = pack([removed("big"), directory("d"), file("d/.wh..wh..opq"), file("d/new", b"n")])
    archive.add("base:1", [bottom, middle], {"Cmd": ["a"], "Labels": {"crew": "7"}})
    archive.add("app:1", [bottom, middle, top], {"Entrypoint": ["e"], "StopSignal": "SIGQUIT"})
    archive.add("lone:1", [pack([file("x", b"z" * 10 * KIB)])])
    store = ImageStore(f"{tmp_path}/root")
    store.load(str(archive.write(tmp_path / "images.tar")))
    made = Scow(f"{tmp_path}/root", f"{tmp_path}/run")
    yield made
    made.remove_all()


def test_shared_layers_are_counted(scow: Scow) -> None:
    """What two images have is shared; what is shared and what is each one's own add up."""
    store = ImageStore(scow.env["SCOW_ROOT"])
    base, app, lone = (store.get(name) for name in ("base:1", "app:1", "lone:1"))
    found = usage(store)
    assert {i: sum(u) for i, u in found.items()} == {i.id: i.size for i in (base, app, lone)}
    assert (found[base.id].unique, found[app.id].unique) == (0, 1)
    assert found[base.id].shared == found[app.id].shared == base.size
    assert found[lone.id] == (0, 10 * KIB)
    scow.ok("create", "--name", "c", "--network", "none", "app:1")
    form = "{{.Repository}} {{.SharedSize}} {{.UniqueSize}} {{.Containers}}"
    lines = scow.ok("images", "--format", form).splitlines()
    assert sorted(lines) == ["app 70.7kB 1B 1", "base 70.7kB 0B 0", "lone 0B 10.2kB 0"]
    scow.ok("rmi", "base:1")
    assert usage(store)[app.id] == (0, app.size)
    (told,) = [
        json.loads(line) for line in scow.ok("images", "--format", "json", "app").splitlines()
    ]
    assert (told["Containers"], told["SharedSize"]) == ("1", "0B")


def test_filters(scow: Scow) -> None:
    assert scow.ok("images", "-q", "--filter", "label=crew=7").count("\n") == 0
    # These have no date at all, so they are older than anything.
    assert len(scow.ok("images", "-q", "--filter", "until=24h").splitlines()) == 3
    assert scow.ok("images", "-q", "--filter", "until=1970-01-01T00:00:00Z") == ""
    assert "invalid --filter until" in scow("images", "--filter", "until=x").err


def test_untag(scow: Scow) -> None:
    for name in ("a:1", "b:2"):
        scow.ok("tag", "lone:1", name)
    assert scow.ok("untag", "lone:1", "b:2", "a:1").splitlines() == [
        "Untagged: a:1",
        "Untagged: b:2",
    ]
    done = scow("untag", "lone:1", "lone:1", "app:1")
    assert (done.code, done.err) == (125, "scow: image 'lone:1' has no name 'app:1'\n")
    image_id = scow.ok("images", "-q", "--no-trunc", "lone")
    assert scow.ok("untag", "lone:1") == "Untagged: lone:1"
    assert scow("image", "inspect", "lone:1").code == 1
    assert scow.ok("images", "-q", "--no-trunc", "--filter", "dangling=true") == image_id
    assert scow.ok("untag", image_id) == ""
    assert scow.ok("rmi", image_id).splitlines()[0] == f"Deleted: {image_id}"


def test_history(scow: Scow, tmp_path: Path) -> None:
    lines = scow.ok("history", "app:1").splitlines()
    assert lines[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    image_id = scow.ok("images", "-q", "app")
    assert [line.split() for line in lines[1:]] == [
        [image_id, "N/A", "1B"],
        ["<missing>", "N/A", "67.6kB"],
        ["<missing>", "N/A", "3.07kB"],
    ]
    scow.ok("create", "--name", "c", "--network", "none", "app:1", "with\nlines", "x" * 100)
    scow.ok("commit", "-m", "why", "c", "new:1")
    first = scow.ok("history", "new:1").splitlines()[1]
    assert "Less than a second ago" in first or "second" in first
    assert f"e with lines {'x' * 31}…" in first
    assert first.endswith("why")
    assert "x" * 100 in scow.ok("history", "--no-trunc", "new:1")
    exact = scow.ok("history", "--human=false", "--format", "{{.Size}} {{.CreatedAt}}", "new:1")
    assert exact.splitlines()[1:] == ["1 N/A", "67584 N/A", "3073 N/A"]
    assert scow.ok("history", "-q", "new:1").splitlines()[1:] == ["<missing>"] * 3


def test_image_inspect(scow: Scow) -> None:
    assert (
        scow.ok("image", "inspect", "-f", "{{.Config.Entrypoint}} {{.Os}}", "app:1") == "[e] linux"
    )
    found = json.loads(scow.ok("image", "inspect", "app:1", "base:1"))
    assert [one["RepoTags"] for one in found] == [["app:1"], ["base:1"]]
    assert found[0]["Config"]["StopSignal"] == "SIGQUIT"
    assert found[0]["GraphDriver"]["Data"]["LowerDir"].count(":") == 1
    assert found[0]["RootFS"]["Layers"][:2] == found[1]["RootFS"]["Layers"]
    scow.ok("create", "--name", "base", "--network", "none", "base:1")
    assert json.loads(scow.ok("image", "inspect", "base:1"))[0]["RepoTags"] == ["base:1"]
    done = scow("image", "inspect", "nope", "app:1")
    assert (done.code, len(json.loads(done.out))) == (1, 1)
    assert done.err == "scow: no such image: 'nope'\n"


def test_image_tree(scow: Scow) -> None:
    told = json.loads(scow.ok("image", "tree", "--format", "json", "app:1"))["waste"]
    rows = [
        (
            layer["files"],
            layer["bytes"],
            layer["removed"],
            layer["hidden_files"],
            layer["hidden_bytes"],
        )
        for layer in told["layers"]
    ]
    assert rows == [
        (4, 3 * KIB + 1, 0, 0, 0),
        (2, 66 * KIB, 1, 2, 2 * KIB),
        (1, 1, 1, 3, 67 * KIB),
    ]
    assert told["total_bytes"] == 69 * KIB + 2
    assert told["visible_bytes"] == 2  # keep and d/new
    assert told["layers"][2]["wasted"][0] == {"path": "/big", "bytes": 64 * KIB}
    text = scow.ok("image", "tree", "-a", "app:1")
    assert "hidden by upper layers 70.7kB" in text
    assert "    65.5kB  /big\n" in text
    store = ImageStore(scow.env["SCOW_ROOT"])
    assert told["total_bytes"] == store.get("app:1").size


def test_names_of_one_file_count_once(tmp_path: Path) -> None:
    """Hidden is a file when the last of its names is."""
    import tarfile

    from fixtures.handmade import Entry
    from scow.image.waste import find_waste

    both = [file("a", b"x" * 4096), Entry("b", tarfile.LNKTYPE, target="a")]
    archive = Archive()
    archive.add("one:1", [pack(both), pack([removed("a")])])
    archive.add("two:1", [pack(both), pack([removed("a")]), pack([removed("b")])])
    store = ImageStore(f"{tmp_path}/root")
    store.load(BytesIO(archive.write(tmp_path / "x.tar").read_bytes()))
    one, two = (find_waste(store, store.get(name)) for name in ("one:1", "two:1"))
    assert (one.total_bytes, one.visible_bytes) == (4096, 4096)
    assert (two.total_bytes, two.visible_bytes, two.layers[2].hidden_bytes) == (4096, 0, 4096)
