"""Mount options and propagation, as the container's own mountinfo has them; beside runc and crun."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures import kernel
from fixtures.bundle import SCOW_OCI, Bundle, Done, Runtime, without_unified
from scow.runtime.mounts import Options
from scow.runtime.oci_features import features
from scow.runtime.oci_mounts import _SUPERBLOCK, _known_words
from scow.runtime.spec import SpecMount

TOP = f"scow-oci-mounts-{os.getpid()}"
MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo; proc(5)."""

    options: frozenset[str]
    tags: tuple[str, ...]
    fstype: str
    data: frozenset[str]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    kernel.need(kernel.mount_refused)
    made = Bundle(tmp_path / "bundle", f"/{TOP}/x")
    made.path.chmod(0o755)
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir(0o755)
    return made


def runtime(tmp_path: Path, source: Path, name: str = "scow") -> Runtime:
    """A runtime whose host has a tmpfs with all flags on `source`, and a plain one below it, shared."""
    argv = {
        "scow": SCOW_OCI,
        "runc": ["runc"],
        "crun": without_unified(["crun"], tmp_path / "empty"),
    }[name]
    script = (
        'mount -t tmpfs -o noatime,nosuid,nodev,noexec source "$0" && mkdir -m 755 "$0/below" && '
        'mount -t tmpfs below "$0/below" && exec "$@"'
    )
    host = ["unshare", "-m", "--propagation", "shared", "sh", "-c", script, str(source)]
    return Runtime([*host, *argv], tmp_path / f"state-{name}")


@pytest.fixture
def oci(tmp_path: Path, source: Path) -> Runtime:
    return runtime(tmp_path, source)


@pytest.fixture
def all_three(tmp_path: Path, source: Path) -> Iterator[dict[str, Runtime]]:
    for name in ("runc", "crun"):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
    yield {name: runtime(tmp_path, source, name) for name in ("scow", "runc", "crun")}
    for parent in Path("/sys/fs/cgroup").glob(f"*/{TOP}"):
        parent.rmdir()  # runc and crun leave it


def run(oci: Runtime, bundle: Bundle, script: str = "cat /proc/self/mountinfo") -> Done:
    bundle.script(script)
    bundle.write()
    return oci("run", "-b", str(bundle.path), "x")


def mounts(done: Done) -> dict[str, Mount]:
    assert done.code == 0, done.err
    found: dict[str, Mount] = {}
    for line in done.out.splitlines():
        fields = line.split()
        dash = fields.index("-")
        found[fields[4]] = Mount(
            frozenset(fields[5].split(",")),
            tuple(re.sub(r":\d+", "", tag) for tag in fields[6:dash]),
            fields[dash + 1],
            frozenset(fields[dash + 3].split(",")),
        )
    return found


def add(
    bundle: Bundle, destination: str, kind: str, where: str, *options: str, **more: Any
) -> None:
    entry = {"destination": destination, "type": kind, "source": where, "options": list(options)}
    bundle.config["mounts"].append({**entry, **more})


# --- propagation ----------------------------------------------------------------------------------

PROPAGATION = [
    ("shared",),
    ("rshared",),
    ("slave",),
    ("rprivate",),
    ("unbindable",),
    ("rslave", "rshared"),
    ("shared", "private"),
]


@pytest.mark.cgroup_v1
@pytest.mark.parametrize("words", PROPAGATION)
def test_propagation_of_every_mount(
    all_three: dict[str, Runtime], bundle: Bundle, source: Path, words: tuple[str, ...]
) -> None:
    add(bundle, "/new", "tmpfs", "tmpfs", *words)
    add(bundle, "/bound", "bind", str(source), "rbind", *words)
    done = {name: run(oci, bundle) for name, oci in all_three.items()}
    # crun 1.8 takes one option of several in a way that the kernel refuses
    found = {name: mounts(d) for name, d in done.items() if name != "crun" or d.code == 0}
    for path in ("/new", "/bound", "/bound/below"):
        tags = {name: all_mounts[path].tags for name, all_mounts in found.items()}
        assert tags.pop("scow") in tags.values(), (path, tags)
    if words == ("rshared",):
        assert found["scow"]["/new"].tags == ("shared",)


@pytest.mark.cgroup_v1
@pytest.mark.parametrize(
    "kind", ["", "private", "rprivate", "slave", "rslave", "shared", "rshared"]
)
def test_propagation_of_the_root(all_three: dict[str, Runtime], bundle: Bundle, kind: str) -> None:
    bundle.linux["rootfsPropagation"] = kind
    tags = {name: mounts(run(oci, bundle))["/"].tags for name, oci in all_three.items()}
    assert tags["scow"] in (tags["runc"], tags["crun"]), tags


def test_an_unbindable_root(oci: Runtime, bundle: Bundle) -> None:
    bundle.linux["rootfsPropagation"] = "unbindable"
    assert mounts(run(oci, bundle))["/"].tags == ("unbindable",)


# --- attributes -----------------------------------------------------------------------------------

ALL_FLAGS = {"rw", "nosuid", "nodev", "noexec", "noatime"}


@pytest.mark.parametrize(
    ("words", "top", "below"),
    [
        (("rbind",), ALL_FLAGS, {"rw", "relatime"}),
        (("rbind", "ro"), ALL_FLAGS - {"rw"} | {"ro"}, {"rw", "relatime"}),
        (("rbind", "rro"), ALL_FLAGS - {"rw"} | {"ro"}, {"ro", "relatime"}),
        (("rbind", "suid", "dev", "exec"), {"rw", "noatime"}, {"rw", "relatime"}),
        (("rbind", "relatime"), ALL_FLAGS - {"noatime"} | {"relatime"}, {"rw", "relatime"}),
        (("rbind", "atime"), ALL_FLAGS - {"noatime"} | {"relatime"}, {"rw", "relatime"}),
        (("rbind", "norelatime"), ALL_FLAGS, {"rw", "relatime"}),
        (("rbind", "strictatime", "atime"), ALL_FLAGS - {"noatime"}, {"rw", "relatime"}),
        (("rbind", "rnoatime", "rnodiratime"), ALL_FLAGS | {"nodiratime"}, {"rw", "noatime", "nodiratime"}),
        (("rbind", "rnosuid", "rnodev", "rnoexec"), ALL_FLAGS, {"rw", "nosuid", "nodev", "noexec", "relatime"}),
        (("rbind", "rnosymfollow"), ALL_FLAGS | {"nosymfollow"}, {"rw", "relatime", "nosymfollow"}),
        (("rbind", "rsuid", "rexec", "rdev", "ratime"), {"rw", "relatime"}, {"rw", "relatime"}),
        (("rbind", "rro", "rw"), ALL_FLAGS, {"ro", "relatime"}),
        (("rbind", "rstrictatime"), ALL_FLAGS - {"noatime"}, {"rw"}),
        (("rbind", "sync", "dirsync", "lazytime", "iversion", "loud", "defaults"), ALL_FLAGS, {"rw", "relatime"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_user_namespace", [False, True])
def test_attributes_of_a_bind(
    oci: Runtime,
    bundle: Bundle,
    source: Path,
    words: tuple[str, ...],
    top: set[str],
    below: set[str],
    in_user_namespace: bool,
) -> None:
    """What is not said stays as the source has it; what is said wins, also over its flags."""
    if in_user_namespace:
        bundle.linux["namespaces"].append({"type": "user"})
        bundle.linux.update(uidMappings=MAPS, gidMappings=MAPS)
        (bundle.rootfs / "b").mkdir()
    add(bundle, "/b", "bind", str(source), *words)
    found = mounts(run(oci, bundle))
    assert (found["/b"].options, found["/b/below"].options) == (top, below)


def test_every_option_that_features_lists_is_known() -> None:
    listed = features()["mountOptions"]
    assert isinstance(listed, list)
    for word in listed:
        options = Options(SpecMount("/x", "tmpfs", options=_known_words((word,))))
        assert {key for key, _ in options.data} <= _SUPERBLOCK, word


def test_options_of_a_new_file_system(oci: Runtime, bundle: Bundle) -> None:
    add(
        bundle,
        "/t",
        "tmpfs",
        "tmpfs",
        "noatime",
        "nosuid",
        "sync",
        "size=64k",
        "nr_inodes=77",
        "ro",
    )
    add(bundle, "/u", "tmpfs", "tmpfs", "strictatime", "nosymfollow", "mode=711", "uid=5")
    found = mounts(run(oci, bundle))
    assert found["/t"].options == {"ro", "nosuid", "noatime"}
    assert found["/t"].data >= {"sync", "size=64k", "nr_inodes=77"}
    assert found["/u"].options == {"rw", "nosymfollow"}
    assert found["/u"].data >= {"mode=711", "uid=5"}
    add(bundle, "/v", "tmpfs", "tmpfs", "nonsense")
    assert run(oci, bundle).code == 1


def test_a_mount_is_changed_afterwards(oci: Runtime, bundle: Bundle, source: Path) -> None:
    add(bundle, "/dev", "", "", "remount", "ro", "noexec", "noatime")
    add(bundle, "/b", "bind", str(source), "rbind")
    add(bundle, "/b", "bind", "", "remount", "bind", "rro", "relatime", "rprivate", "rshared")
    found = mounts(run(oci, bundle))
    assert found["/dev"].options == {"ro", "nosuid", "noexec", "noatime"}
    assert found["/dev/shm"].options >= {"rw"}
    assert found["/b"].options == ALL_FLAGS - {"rw", "noatime"} | {"ro", "relatime"}
    assert found["/b/below"].options == {"ro", "relatime"}
    assert found["/b"].tags == found["/b/below"].tags == ("shared",)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_read_only_dev_has_its_devices(oci: Runtime, bundle: Bundle, terminal: bool) -> None:
    [dev] = [mount for mount in bundle.config["mounts"] if mount["destination"] == "/dev"]
    dev["options"].append("ro")
    bundle.process["terminal"] = terminal
    done = run(oci, bundle, "touch /dev/x 2>&1; echo fine > /dev/null && echo fine")
    assert done.out.split("\r\n" if terminal else "\n")[:2] == ["touch: /dev/x: Read-only file system", "fine"], done.err  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [
        ("/dev", "", "", "remount", "size=1m"),
        ("/etc", "", "", "remount", "ro"),
        ("/b", "bind", "/etc", "bind", "size=1m"),
    ],
)
def test_what_the_kernel_would_drop_is_an_error(
    oci: Runtime, bundle: Bundle, entry: tuple[str, ...]
) -> None:
    add(bundle, *entry)
    assert run(oci, bundle).code == 1


# --- ids ------------------------------------------------------------------------------------------

OWNERS = "stat -c %u:%g /b /b/file; stat -c %u:%g /b/below"


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """A directory and a tmpfs below it, on file systems that know id maps."""
    made = tmp_path / "owned"
    (made / "below").mkdir(parents=True)
    (made / "file").touch()
    os.chown(made / "file", 7, 8)
    return made


def mapped_runtime(tmp_path: Path, owned: Path) -> Runtime:
    script = 'mount -t tmpfs -o uid=3 below "$0/below" && exec "$@"'
    host = ["unshare", "-m", "sh", "-c", script, str(owned)]
    return Runtime([*host, *SCOW_OCI], tmp_path / "state-mapped")


def shift(first: int) -> list[dict[str, int]]:
    return [{"containerID": 0, "hostID": first, "size": 100}]


@pytest.mark.parametrize(("word", "below"), [("idmap", "3:0"), ("ridmap", "5003:6000")])
def test_ids_of_a_mount_are_mapped(
    bundle: Bundle, tmp_path: Path, owned: Path, word: str, below: str
) -> None:
    maps = {"uidMappings": shift(5000), "gidMappings": shift(6000)}
    add(bundle, "/b", "bind", str(owned), "rbind", word, **maps)
    done = run(mapped_runtime(tmp_path, owned), bundle, OWNERS)
    assert done.out.split() == ["5000:6000", "5007:6008", below], done.err


def test_mappings_alone_are_enough(bundle: Bundle, tmp_path: Path, owned: Path) -> None:
    maps = {"uidMappings": shift(5000), "gidMappings": shift(6000)}
    add(bundle, "/b", "bind", str(owned), "bind", **maps)
    done = run(mapped_runtime(tmp_path, owned), bundle, OWNERS)
    assert done.out.split()[:2] == ["5000:6000", "5007:6008"], done.err


def test_the_maps_of_the_container_where_none_are_given(
    bundle: Bundle, tmp_path: Path, owned: Path
) -> None:
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux.update(uidMappings=MAPS, gidMappings=MAPS)
    (bundle.rootfs / "b").mkdir()
    add(bundle, "/b", "bind", str(owned), "bind", "idmap")
    done = run(mapped_runtime(tmp_path, owned), bundle, OWNERS)
    assert done.out.split()[:2] == ["0:0", "7:8"], done.err


@pytest.mark.parametrize(
    ("kind", "options", "maps", "words"),
    [
        ("bind", ["bind", "idmap"], {}, "without mappings"),
        ("bind", ["bind"], {"uidMappings": shift(5)}, "come together"),
        ("tmpfs", ["idmap"], {"uidMappings": shift(5), "gidMappings": shift(5)}, "not a bind"),
    ],
)
def test_id_maps_that_cannot_be(
    oci: Runtime, bundle: Bundle, source: Path, kind: str, options: list[str], maps: dict[str, Any], words: str
) -> None:  # fmt: skip
    add(bundle, "/b", kind, str(source), *options, **maps)
    done = run(oci, bundle)
    assert (done.code, words in done.err) == (1, True), done.err


# --- destinations ---------------------------------------------------------------------------------


def test_the_content_of_the_image_is_copied_up(oci: Runtime, bundle: Bundle) -> None:
    there = bundle.rootfs / "data"
    there.mkdir()
    there.chmod(0o757)
    (there / "file").write_text("content\n")
    os.chown(there / "file", 11, 12)
    (there / "file").chmod(0o4755)
    (there / "link").symlink_to("/nowhere")
    os.chown(there, 13, 14)
    add(bundle, "/data", "tmpfs", "tmpfs", "tmpcopyup", "size=1m")
    add(bundle, "/none", "tmpfs", "tmpfs", "tmpcopyup")
    script = (
        "stat -c '%a %u:%g' /data /data/file; cat /data/file; readlink /data/link; touch /data/x; "
        "ls /none; stat -c %a /none"
    )
    done = run(oci, bundle, script)
    assert done.out.splitlines() == ["757 13:14", "4755 11:12", "content", "/nowhere", "1777"]
    assert not (there / "x").exists()


def test_what_another_mount_hides_is_not_copied_up(oci: Runtime, bundle: Bundle) -> None:
    (bundle.rootfs / "data/sub").mkdir(parents=True)
    (bundle.rootfs / "data/sub/file").touch()
    add(bundle, "/data", "tmpfs", "tmpfs")
    add(bundle, "/data/sub", "tmpfs", "tmpfs", "tmpcopyup")
    assert run(oci, bundle, "ls /data/sub").out == ""


def test_only_a_tmpfs_can_be_copied_to(oci: Runtime, bundle: Bundle) -> None:
    add(bundle, "/data", "ramfs", "ramfs", "tmpcopyup")
    assert "tmpcopyup" in run(oci, bundle).err


@pytest.mark.parametrize("target", ["/etc", "../../../../etc", "/link2"])
def test_destinations_never_leave_the_root(
    oci: Runtime, bundle: Bundle, source: Path, target: str
) -> None:
    name = f"scow-mount-test-{os.getpid()}"
    (bundle.rootfs / "mnt").symlink_to(target)
    (bundle.rootfs / "link2").symlink_to("../../etc")
    add(bundle, f"/mnt/{name}/deep", "bind", str(source), "rbind")
    add(bundle, f"/mnt/{name}/file", "bind", "/etc/hostname", "bind")
    found = mounts(run(oci, bundle))
    assert {f"/etc/{name}/deep", f"/etc/{name}/deep/below", f"/etc/{name}/file"} <= set(found)
    assert not Path("/etc", name).exists()
    assert (bundle.rootfs / "etc" / name / "deep").is_dir()
    assert (bundle.rootfs / "etc" / name / "file").is_file()


def test_a_link_to_nowhere_is_followed_inside(oci: Runtime, bundle: Bundle, source: Path) -> None:
    (bundle.rootfs / "gone").symlink_to("/a/b/c")
    add(bundle, "/gone/d", "bind", str(source), "bind")
    assert "/a/b/c/d" in mounts(run(oci, bundle))


# --- cgroups --------------------------------------------------------------------------------------


@pytest.mark.cgroup_v1
@pytest.mark.parametrize("has_namespace", [False, True])
@pytest.mark.parametrize("option", ["ro", "rw"])
def test_the_cgroup_mount(oci: Runtime, bundle: Bundle, has_namespace: bool, option: str) -> None:
    kernel.need(kernel.cgroup_v1_missing)
    if has_namespace:
        bundle.linux["namespaces"].append({"type": "cgroup"})
    add(bundle, "/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", option)
    found = mounts(run(oci, bundle))
    assert found["/sys/fs/cgroup"].fstype == "tmpfs"
    assert found["/sys/fs/cgroup/memory"].options >= {option, "nosuid", "noexec", "nodev"}
    script = "cat /sys/fs/cgroup/pids/tasks; ls /sys/fs/cgroup/memory | grep -c scow || true"
    assert run(oci, bundle, script).out.split()[:1] == ["1"]
