"""Paths below a hostile root, in C (with the sanitizers) and in Python: the same cases for both."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scow.native.fs import Root, remove_tree, write_atomic

ROOT = Path(__file__).resolve().parents[2]
COMPILE = ["gcc", "-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-Werror"]  # fmt: skip
COMPILE += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{ROOT}/native"]
MakeDirectories = Callable[[Path, str], str]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("native_paths") / "paths"
    sources = [f"{ROOT}/tests/unit/c/test_native_paths.c", f"{ROOT}/native/paths.c"]
    subprocess.run([*COMPILE, *sources, "-o", str(target)], check=True)
    return target


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root beside a canary, with links out of it of every kind."""
    (tmp_path / "canary").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "etc").mkdir()
    (root / "abs").symlink_to(tmp_path / "canary")
    (root / "rel").symlink_to("../canary")
    (root / "far").symlink_to("../../../../../../../../../../canary")
    (root / "run").symlink_to("var/run")
    (root / "loop").symlink_to("loop")
    (root / "up").symlink_to("..")
    (root / "etc" / "inside").symlink_to("/new/place")
    return root


def run(program: Path, root: Path, what: str, path: str) -> list[str]:
    done = subprocess.run([program, root, what, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(params=["c", "python"])
def make_directories(request: pytest.FixtureRequest, program: Path) -> MakeDirectories:
    """mkdir -p; says where it ended, or the errno."""

    def in_c(root: Path, path: str) -> str:
        words = run(program, root, "dir", path)
        return words[2] if words[0] == "ok" else errno.errorcode[int(words[0])]

    def in_python(root: Path, path: str) -> str:
        try:
            with Root.at(str(root)) as top, top.makedirs(path) as made:
                return os.readlink(f"/proc/self/fd/{made.fileno()}")
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    return in_c if request.param == "c" else in_python


@pytest.mark.parametrize(
    ("path", "ends"),
    [
        ("/a/b/c", "a/b/c"),
        ("a//b/./c/", "a/b/c"),
        ("/etc/x", "etc/x"),
        ("/", ""),
        ("/run/lock", "var/run/lock"),
        ("/etc/inside/deep", "new/place/deep"),
        ("/far/x", "canary/x"),
        ("/rel/x", "canary/x"),
        ("/up/x", "x"),
        ("/../../x", "x"),
        ("/etc/../../y", "y"),
    ],
)
def test_directories_are_made_inside(
    make_directories: MakeDirectories, tree: Path, path: str, ends: str
) -> None:
    assert make_directories(tree, path) == str(tree / ends)
    assert not list((tree.parent / "canary").iterdir())
    assert sorted(entry.name for entry in tree.parent.iterdir()) == ["canary", "root"]


def test_an_absolute_link_is_of_the_root(make_directories: MakeDirectories, tree: Path) -> None:
    target = str(tree.parent / "canary")
    assert make_directories(tree, "/abs/x") == f"{tree}{target}/x"
    assert not list((tree.parent / "canary").iterdir())


@pytest.mark.parametrize(
    ("path", "name"), [("/loop/x", "ELOOP"), ("/" + "n" * 300, "ENAMETOOLONG")]
)
def test_refused_directories(
    make_directories: MakeDirectories, tree: Path, path: str, name: str
) -> None:
    assert make_directories(tree, path) == name


def test_a_file_in_the_way(make_directories: MakeDirectories, tree: Path) -> None:
    (tree / "plain").write_text("")
    assert make_directories(tree, "/plain/x") == "ENOTDIR"


def test_files_are_made_through_dangling_links(program: Path, tree: Path) -> None:
    (tree / "etc" / "mtab").symlink_to("../../../canary/mtab")
    assert run(program, tree, "file", "/etc/mtab")[2] == str(tree / "canary/mtab")
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("/c/d")
    assert run(program, tree, "file", "a")[2] == str(tree / "c/d")
    assert run(program, tree, "file", "loop") == [str(errno.ELOOP)]
    assert not list((tree.parent / "canary").iterdir())


@pytest.mark.parametrize("path", ["", "/", "/etc/", "/etc/.", "/etc/..", "..", "."])
def test_a_last_component_must_be_a_name(program: Path, tree: Path, path: str) -> None:
    assert run(program, tree, "parent", path) == [str(errno.EINVAL)]


def test_parents(program: Path, tree: Path) -> None:
    assert run(program, tree, "parent", "/rel/x/y")[2:] == [str(tree / "canary/x"), "y"]


def test_reading_a_file(tree: Path) -> None:
    (tree.parent / "secret").write_text("host")
    (tree / "etc" / "passwd").write_bytes(b"root:x:0:0")
    (tree / "etc" / "leak").symlink_to("../../secret")
    (tree / "etc" / "magic").symlink_to("/proc/self/fd/0")
    os.mkfifo(tree / "etc" / "fifo")
    with Root.at(str(tree)) as root:
        assert root.read_file("/etc/passwd", 10) == b"root:x:0:0"
        for path, name in [
            ("/etc/passwd", "EFBIG"),
            ("/etc/leak", "ENOENT"),
            ("/etc/magic", "ENOENT"),
            ("/etc/fifo", "EINVAL"),
            ("/etc", "EINVAL"),
        ]:
            with pytest.raises(OSError) as caught:
                root.read_file(path, 9)
            assert errno.errorcode[caught.value.errno] == name, path
        assert root.exists("/etc/passwd")
        assert not root.exists("/etc/leak")
        assert root.readlink("/etc/leak") == "../../secret"


def test_writing_a_file_follows_nothing(tree: Path) -> None:
    with Root.at(str(tree)) as root:
        root.write_file("/rel2", b"x", 0o600)
        with pytest.raises(FileExistsError):
            root.write_file("/rel", b"x")
        with pytest.raises(FileNotFoundError):
            root.write_file("/nowhere/x", b"x")
        with pytest.raises(ValueError, match="O_EXCL"):
            root.open("/x", os.O_CREAT | os.O_WRONLY, 0o600)
    assert (tree / "rel2").read_bytes() == b"x"


def test_removing_a_tree_leaves_what_links_point_to(tree: Path) -> None:
    (tree.parent / "canary" / "keep").write_text("")
    with Root.at(str(tree.parent)) as parent:
        remove_tree(parent.fileno(), "root")
        remove_tree(parent.fileno(), "root")  # gone already
        for name in ("", ".", "..", "a/b"):
            with pytest.raises(OSError):
                remove_tree(parent.fileno(), name)
    assert not tree.exists()
    assert (tree.parent / "canary" / "keep").exists()


def test_removing_a_link_removes_the_link(tree: Path) -> None:
    (tree.parent / "canary" / "keep").write_text("")
    with Root.at(str(tree)) as root:
        remove_tree(root.fileno(), "rel")
    assert not (tree / "rel").is_symlink()
    assert (tree.parent / "canary" / "keep").exists()


def test_removing_a_very_deep_tree(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with Root.at(str(tmp_path)) as parent:
        remove_tree(parent.fileno(), "d")
    assert not list(tmp_path.iterdir())


def test_atomic_writing(tmp_path: Path) -> None:
    write_atomic(str(tmp_path), "state", b"one", 0o644)
    write_atomic(str(tmp_path), "state", b"two", 0o640, durable=False)
    assert (tmp_path / "state").read_bytes() == b"two"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o640
    (tmp_path / "dir").mkdir()
    with pytest.raises(OSError):
        write_atomic(str(tmp_path), "dir", b"x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["dir", "state"]
