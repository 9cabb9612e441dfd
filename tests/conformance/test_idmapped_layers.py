"""Layers below a user namespace: an image's root is the namespace's, and nothing on the disk is changed."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fixtures.bundle import Bundle
from fixtures.hostile import World, facts
from scow.image import overlay
from scow.image.overlay import mount_overlay
from scow.native import sys as native
from scow.native.errors import InvalidArgument, ScowError, SetupError, Unsupported
from scow.native.fd import OwnedFd
from scow.native.idmap import IdMap, open_user_namespace

pytestmark = pytest.mark.root

MAP = IdMap(((0, 100000, 65536),), ((0, 200000, 65536),))
OTHER = IdMap(((0, 300000, 65536),), ((0, 300000, 65536),))
# VFS_CAP_REVISION_2 | effective, permitted CAP_NET_RAW: as an image has it
NET_RAW = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


class Stack:
    """A layer with everything that ids matter to, and a container's own directories."""

    def __init__(self, base: Path, layer: Path) -> None:
        self.layer, self.under = layer, base / "under"
        self.own = base / "own"
        for path in (self.under, self.own / "upper", self.own / "work"):
            path.mkdir(parents=True)

    def mount(self, idmap: IdMap | None) -> OwnedFd:
        return mount_overlay(
            [str(self.layer), str(self.under)],
            str(self.own / "upper"),
            str(self.own / "work"),
            idmap=idmap,
        )


class Stage(ExitStack):
    """Bundles on mounted trees; the mounts go with it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def bundle(self, name: str, tree: OwnedFd, ids: IdMap | None) -> Bundle:
        made = self._world.bundle(name)
        made.process["noNewPrivileges"] = False
        target = str(made.rootfs)
        native.move_mount(
            tree.fileno(), "", native.AT_FDCWD, target, native.MOVE_MOUNT_F_EMPTY_PATH
        )
        self.callback(native.umount2, target, native.MNT_DETACH)
        if ids is not None:
            made.linux["namespaces"].append({"type": "user"})
            for key, lines in (("uidMappings", ids.uid), ("gidMappings", ids.gid)):
                made.linux[key] = [
                    {"containerID": a, "hostID": b, "size": count} for a, b, count in lines
                ]
        return made


def fill(layer: Path, probe: Path) -> Path:
    bundle = Bundle(layer.parent / "made", "")
    bundle.rootfs.rename(layer)
    for name, mode in (("plain", 0o755), ("suid", 0o4755), ("capable", 0o755)):
        shutil.copy(probe, layer / name)
        (layer / name).chmod(mode)
    os.setxattr(layer / "capable", "security.capability", NET_RAW)
    (layer / "bobs").write_text("of bob\n")
    os.chown(layer / "bobs", 1000, 1000)
    (layer / "beyond").write_text("of nobody in the map\n")
    os.chown(layer / "beyond", 70000, 70000)
    (layer / "beyond").chmod(0o666)
    return layer


def disk(layer: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(layer.rglob("*")):
        st = path.lstat()
        found[str(path)] = (st.st_ino, st.st_uid, st.st_gid, st.st_mode, st.st_ctime_ns)
    return found


@pytest.fixture(params=["detached", "attached"])
def way(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """The way of Linux 6.15, which takes detached directories, and the one of the kernels before."""
    real = overlay._mount
    if request.param == "attached":

        def refuse(lowers: Sequence[str], *others: Any) -> OwnedFd:
            if lowers[0].startswith("/proc/self/fd/"):
                raise SetupError("not attached", step="mount overlay", errno=errno.EINVAL)
            return real(lowers, *others)

        monkeypatch.setattr(overlay, "_mount", refuse)

    def ours() -> list[str]:
        """Without what others on the host mount and unmount meanwhile."""
        place = str(tmp_path_factory.getbasetemp())
        return [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if place in line
        ]

    before = ours()
    yield
    assert ours() == before
    assert threading.active_count() == 1


@pytest.fixture
def stack(world: World, probe: Path) -> Stack:
    return Stack(world.base / "stack", fill(world.base / "layer", probe))


@pytest.mark.guest
@pytest.mark.usefixtures("way")
def test_ids_of_the_image_are_those_inside(world: World, stack: Stack) -> None:
    before = disk(stack.layer)
    with stack.mount(MAP) as tree, Stage(world) as stage:
        for name, ids in {
            "plain": (100000, 200000),
            "bobs": (101000, 201000),
            "beyond": (65534, 65534),
            "": (100000, 200000),
        }.items():
            seen = os.stat(f"/proc/self/fd/{tree.fileno()}/{name}")
            assert (seen.st_uid, seen.st_gid) == ids, name
        bundle = stage.bundle("box", tree, MAP)
        bundle.script(
            "stat -c '%n %u:%g' plain bobs beyond bin .; id -u; cat bobs;"
            "echo new > new; chown 5:6 new; stat -c '%n %u:%g' new; chown 1000:7 bobs; mkdir tmp/d;"
            "(echo x >> beyond) 2>/dev/null || echo refused; rm etc/group"
        )
        assert world.ok(bundle).replace("\n", " ") == (
            "plain 0:0 bobs 1000:1000 beyond 65534:65534 bin 0:0 . 0:0 0 of bob new 5:6 refused "
        )
    upper = stack.own / "upper"
    for name, ids in {"new": (5, 6), "bobs": (1000, 7), "tmp/d": (0, 0)}.items():
        seen = (upper / name).lstat()
        assert (seen.st_uid, seen.st_gid) == ids, name  # as a layer made of it must have them
    assert (upper / "etc/group").lstat().st_rdev == 0
    assert disk(stack.layer) == before


@pytest.mark.guest
@pytest.mark.usefixtures("way")
def test_suid_and_file_capabilities_hold_inside(world: World, stack: Stack) -> None:
    with stack.mount(MAP) as tree, Stage(world) as stage:
        bundle = stage.bundle("box", tree, MAP)
        bundle.process["user"] = {"uid": 1000, "gid": 1000}
        for name in ("bounding", "permitted", "effective"):
            bundle.process["capabilities"][name] = ["CAP_NET_RAW"]
        seen: dict[str, dict[str, str]] = {}
        for program in ("plain", "suid", "capable"):
            bundle.process["args"] = [f"/{program}", "show"]
            seen[program] = facts(world.ok(bundle))
    assert seen["plain"]["ids"] == "1000 1000 1000 1000"
    assert seen["suid"]["ids"] == "1000 0 1000 1000"
    assert [int(seen[name]["CapEff"], 16) for name in ("plain", "capable")] == [0, 1 << 13]


@pytest.mark.usefixtures("way")
def test_one_layer_below_a_plain_container_and_two_mapped_ones(world: World, stack: Stack) -> None:
    before = disk(stack.layer)
    others = [Stack(world.base / f"other{n}", stack.layer) for n in range(2)]
    with (
        stack.mount(None) as plain,
        others[0].mount(MAP) as one,
        others[1].mount(OTHER) as two,
        Stage(world) as stage,
    ):
        trees = {"plain": (plain, None), "one": (one, MAP), "two": (two, OTHER)}
        boxes = [stage.bundle(name, tree, ids) for name, (tree, ids) in trees.items()]
        for box, tree, uid in zip(boxes, (plain, one, two), (0, 100000, 300000), strict=True):
            box.process["args"] = ["sleep", "1000"]
            world.start(box)
            seen = os.stat(f"/proc/self/fd/{tree.fileno()}/plain")
            assert (seen.st_uid, seen.st_size) == (uid, (stack.layer / "plain").stat().st_size)
        for box in boxes:
            assert world.exec(box, "stat", "-c", "%u", "/plain").out == "0\n"
            assert world.exec(box, "sh", "-c", f"echo {box.path.name} > /etc/group").code == 0
        for box in boxes:
            assert world.exec(box, "cat", "/etc/group").out == f"{box.path.name}\n"
            world.oci.ok("delete", "--force", box.path.name)
    assert disk(stack.layer) == before


def test_another_map_at_the_next_start(stack: Stack) -> None:
    """The upper directory, too, has the ids of an image: no chown when the map is another one."""
    (stack.own / "upper/mine").touch()
    os.chown(stack.own / "upper/mine", 7, 7)
    for ids, uid in ((MAP, 100007), (OTHER, 300007), (None, 7)):
        with stack.mount(ids) as tree:
            assert os.stat(f"/proc/self/fd/{tree.fileno()}/mine").st_uid == uid


def test_who_is_not_in_the_map_owns_nothing(stack: Stack) -> None:
    """Not even the host's root, which would leave a file that the container knows no owner of."""
    with stack.mount(MAP) as tree, pytest.raises(OSError, match="too large") as caught:
        Path(f"/proc/self/fd/{tree.fileno()}/new").touch()
    assert caught.value.errno == errno.EOVERFLOW


def test_what_cannot_be_mapped(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = ["/proc/self", "/proc/sys"]
    with pytest.raises(Unsupported, match="cannot map the ids of '/proc/self'") as caught:
        mount_overlay(proc, idmap=MAP)
    assert "from 5.12" in str(caught.value.hint)
    with pytest.raises(ScowError, match="uid_map of a user namespace: EINVAL"):
        stack.mount(IdMap(((0, 5, 0),), ((0, 5, 0),)))
    with pytest.raises(SetupError, match="No such file"):
        mount_overlay([str(stack.layer), str(tmp_path / "none")], idmap=MAP)
    with pytest.raises(InvalidArgument):
        mount_overlay([str(stack.layer)], idmap=MAP)

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(native, "fsconfig_create", refuse)
    monkeypatch.setattr(overlay, "_mount_by_options", refuse)
    with pytest.raises(Unsupported, match="on id-mapped directories") as caught:
        stack.mount(MAP)
    assert "5.19" in str(caught.value.hint)


def test_namespaces_made_by_many_threads_do_not_wait_for_each_other() -> None:
    """Each maker's child held the pipes of the others: two that met waited for ever."""
    made: list[OwnedFd] = []

    def work() -> None:
        for _ in range(10):
            made.append(open_user_namespace(MAP))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 60
    for namespace in made:
        namespace.close()
