"""Hostile and odd layer tars through the whole pipeline (reference: the checklist of bad inputs, E).

Every case runs twice: with the applet as installed, and with one built with ASan and UBSan. Nothing
outside the layer may change, whatever comes in: the `layer` fixture compares a canary.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.layertar import (
    END,
    Layer,
    directory,
    entry,
    hardlink,
    header,
    padded,
    pax,
    run_sanitized,
    symlink,
)
from scow.image import unpack as unpack_module
from scow.native import spawn
from scow.native.errors import IntegrityError, ResourceExhausted
from scow.native.fd import OwnedFd

pytestmark = pytest.mark.root

NATIVE = Path(__file__).parents[2] / "native"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> str:
    binary = str(tmp_path_factory.mktemp("untar") / "scow-untar")
    flags = "-std=gnu11 -g -O1 -D_GNU_SOURCE -DUNTAR_STANDALONE -Wall -Wextra -Wshadow -Wconversion -Werror"
    checks = "-fsanitize=address,undefined -fno-sanitize-recover=all"
    sources = sorted(str(path) for path in NATIVE.glob("untar*.c"))
    subprocess.run(["gcc", *flags.split(), *checks.split(), *sources, "-o", binary], check=True)
    return binary


@pytest.fixture(params=["installed", "sanitized"])
def layer(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Layer]:
    if request.param == "sanitized":
        run_sanitized.binary = request.getfixturevalue("sanitized")  # type: ignore[attr-defined]
        monkeypatch.setattr(spawn, "run_applet", run_sanitized)
    made = Layer(tmp_path)
    before = os.lstat(made.canary), os.lstat(tmp_path).st_mode
    yield made
    assert (os.lstat(made.canary), os.lstat(tmp_path).st_mode) == before
    assert [(p.name, p.read_text()) for p in made.canary.iterdir()] == [("f", "host")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["canary", "layer"]


KINDS = {"file": b"0", "directory": b"5", "symlink": b"2", "hardlink": b"1", "fifo": b"6"}
SPARSE = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")

REFUSED: dict[str, tuple[bytes, str]] = {
    **{
        f"E1 {kind} {name.decode()}": (
            entry(name, kind=flag, link=b"x" if flag in b"12" else b""),
            r"'\.\.'",
        )
        for name in (b"../x", b"a/../../x", b"..", b"a/..", b"/../x")
        for kind, flag in KINDS.items()
    },
    **{
        f"E17 root as {kind} {name.decode() or 'empty'}": (
            entry(name, kind=KINDS[kind], link=b"/tmp"),
            "root of a layer" if name else "no name",
        )
        for name in (b".", b"./", b"/", b"/.", b"./.", b"")
        for kind in ("symlink", "hardlink", "fifo")
    },
    "E8 symlink loop": (symlink(b"a", b"b") + symlink(b"b", b"a") + entry(b"a/f"), "ymbolic link"),
    "E10 loop through what is missing": (symlink(b"a", b"x/../a") + entry(b"a/f"), "ymbolic link"),
    "E12 chain of 41": (
        b"".join(symlink(b"l%d" % i, b"l%d" % (i + 1)) for i in range(45)) + entry(b"l0/f"),
        "ymbolic link",
    ),
    "E14 link to directory": (directory(b"d") + hardlink(b"h", b"d"), "directory"),
    "E14 link upwards": (hardlink(b"h", b"../x"), "no path"),
    "E14 link to root": (hardlink(b"h", b"/"), "no path"),
    "E14 link to whiteout": (entry(b".wh.x") + hardlink(b"h", b"x"), "whiteout"),
    "E18 .wh.": (entry(b".wh."), "whiteout of nothing"),
    "E18 .wh..": (entry(b"d/.wh.."), "whiteout of nothing"),
    "E18 .wh...": (entry(b".wh..."), "whiteout of nothing"),
    "E18 .wh.../x": (entry(b".wh.../x"), "whiteout of nothing"),
    "E18 .wh.a/b": (entry(b".wh.a/b"), "whiteout of nothing"),
    "E21 char 0:0": (entry(b"x", kind=b"3"), "whiteout"),
    "E21 device number": (entry(b"x", kind=b"3", device=(0x1FFF, 1)), "does not exist"),
    "E22 uid -1": (pax((b"uid", b"4294967295")) + entry(b"x"), "not an id"),
    "E22 uid beyond": (pax((b"uid", b"99999999999")) + entry(b"x"), "not an id"),
    "E22 uid negative": (entry(b"x", uid=b"\xff" * 8), "not an id"),
    "E23 long value": (
        pax((b"SCHILY.xattr.user.big", b"v" * 70000)) + entry(b"x"),
        "attribute 'user.big'",
    ),
    "E23 long name": (
        pax((b"SCHILY.xattr.user." + b"n" * 300, b"v")) + entry(b"x"),
        "cannot set attribute",
    ),
    "E23 many": (
        pax(*((b"SCHILY.xattr.user.%d" % i, b"v") for i in range(200))) + entry(b"x"),
        "more than 128",
    ),
    "E24 NUL": (pax((b"path", b"a\0b")) + entry(b"x"), "NUL"),
    "E24 traversal": (pax((b"path", b"../../x")) + entry(b"x"), r"'\.\.'"),
    "E24 linkpath 1 MiB": (pax((b"linkpath", b"l" * (1 << 19))) + symlink(b"x", b"y"), "longer"),
    "E24 header 2 MiB": (header(b"p", kind=b"x", size=2 << 20) + bytes(2 << 20), "longer than"),
    "E24 global 2 GiB": (header(b"p", kind=b"g", size=2 << 30), "longer than"),
    "E24 bad length": (entry(b"p", b"99 path=x\n", kind=b"x") + entry(b"x"), "bad record"),
    "E24 zero length": (entry(b"p", b"0 path=x\n", kind=b"x") + entry(b"x"), "bad record"),
    "E24 length overflow": (entry(b"p", b"9" * 30 + b" a=b\n", kind=b"x"), "bad record"),
    "E24 length beyond": (entry(b"p", b"99999999999 a=b\n", kind=b"x") + entry(b"x"), "bad record"),
    "E24 zero length after a record": (
        entry(b"p", b"6 a=b\n0 c=d\n", kind=b"x") + entry(b"x"),
        "bad record",
    ),
    "E24 no key": (entry(b"p", b"5 =x\n", kind=b"x") + entry(b"x"), "bad key"),
    "E24 size override": (pax((b"size", b"99999")) + entry(b"x", b"data"), "ends in the middle"),
    "E24 size huge": (pax((b"size", b"18446744073709551615")) + entry(b"x"), "size|number"),
    "E24 sparse 10^9 segments": (
        pax(*SPARSE, (b"GNU.sparse.realsize", b"9")) + entry(b"x", padded(b"1000000000\n")),
        "segments",
    ),
    "E24 sparse map of several headers": (
        pax((b"GNU.sparse.map", b"0,0," * 250_000 + b"0,0")) * 5 + entry(b"x"),
        "segments",
    ),
    "E24 sparse outside": (
        pax(*SPARSE, (b"GNU.sparse.realsize", b"9")) + entry(b"x", padded(b"1\n8\n4\n") + b"data"),
        "outside",
    ),
    "E24 sparse overlap": (
        pax(*SPARSE, (b"GNU.sparse.realsize", b"99"))
        + entry(b"x", padded(b"2\n0\n4\n2\n4\n") + b"datadata"),
        "outside",
    ),
    "E24 sparse sum": (
        pax(*SPARSE, (b"GNU.sparse.realsize", b"99")) + entry(b"x", padded(b"1\n0\n4\n") + b"dat"),
        "does not match",
    ),
    "E24 sparse wraps": (
        pax(*SPARSE, (b"GNU.sparse.realsize", b"99"))
        + entry(b"x", padded(b"1\n9223372036854775807\n9223372036854775807\n")),
        "outside",
    ),
    "E24 sparse number wraps": (
        pax(*SPARSE, (b"GNU.sparse.realsize", b"9"))
        + entry(b"x", padded(b"1\n18446744073709551616\n4\n") + b"data"),
        "bad number",
    ),
    "E24 sparse torn": (pax(*SPARSE) + entry(b"x", b"3\n1\n"), "middle|number"),
    "E24 sparse map text": (pax((b"GNU.sparse.map", b"0,4,9")) + entry(b"x"), "middle"),
    "E25 long component": (pax((b"path", b"n" * 256)) + entry(b"x"), "too long"),
    "E25 long path": (pax((b"path", b"d/" * 2100)) + entry(b"x"), "longer than 4095"),
    "E25 GNU long name": (entry(b"L", b"a/" * 4000, kind=b"L") + entry(b"x"), "longer than 4095"),
    "E25 GNU long name without an end": (
        entry(b"L", b"a/" * 2048, kind=b"L") + entry(b"x"),
        "longer than 4095",
    ),
    "E26 size wraps": (entry(b"x", size=b"\x80\x01" + bytes(10)), "bad size"),
    "E26 truncated data": (header(b"x", size=5000) + bytes(512), "ends in the middle"),
    "E26 truncated padding": (header(b"x", size=5) + b"12345", "ends in the middle"),
    "E26 garbage after the end": (entry(b"x") + END + b"garbage" * 100, "after the end"),
    "E26 lone zero block": (bytes(512) + entry(b"x"), "lone zero"),
    "E26 checksum": (b"y" + entry(b"x")[1:] + END, "checksum"),
    "E26 not a tar": (b"\x7fELF" + b"q" * 2000, "checksum"),
    "E26 negative size": (entry(b"x", size=b"\xff" * 12), "negative"),
    "E26 size 8 EiB": (entry(b"x", size=b"\x80\0\0\0\x80" + bytes(7)), "size"),
    "E26 size of 7 EiB": (entry(b"x", size=b"\x80\0\0\0\x7f" + b"\xff" * 7), "middle"),
    "E26 bad octal": (entry(b"x", size=b"12x45678901"), "bad size"),
    "E28 deep": (pax((b"path", b"d/" * 1030 + b"f")) + entry(b"x"), "deeper than 1024"),
    "E37 unknown type": (entry(b"x", kind=b"Q"), "unknown entry type"),
    "E39 below a file": (entry(b"f") + entry(b"f/x"), "Not a directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(layer: Layer, case: str) -> None:
    tar, reason = REFUSED[case]
    with pytest.raises(IntegrityError, match=reason) as caught:
        layer.unpack(tar + END)
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)


def test_symlinked_parents_resolve_inside(layer: Layer) -> None:
    """E7-E11: what the links name is made in the layer; a relative, an absolute, one that climbs."""
    out = str(layer.canary).encode()
    layer.unpack(
        symlink(b"a", out)
        + entry(b"a/f", b"evil")
        + symlink(b"r", b"../../../../" + out)
        + entry(b"r/g", b"evil")
        + symlink(b"p", b"/proc/self/root")
        + entry(b"p/h", b"evil")
        + directory(b"a/d")
        + symlink(b"t", b"..")
        + entry(b"t/i", b"evil")
        + symlink(b"sub/abs", b"/elsewhere/x")
        + entry(b"sub/abs/j", b"from the root of the layer, not from here")
        + END
    )
    inside = out.decode().lstrip("/")
    assert {f"{inside}/f", f"{inside}/g", f"{inside}/d", "proc/self/root/h", "i"} <= layer.names()
    assert "elsewhere/x/j" in layer.names()


def test_final_symlink_is_replaced_not_followed(layer: Layer) -> None:
    """CVE-2021-32760: a later entry of the same name changes neither the target nor its mode."""
    target = str(layer.canary / "f").encode()
    for name in (b"file", b"dir", b"hard", b"fifo"):
        layer.unpack(
            symlink(name, target if name != b"dir" else str(layer.canary).encode())
            + {
                b"file": entry(name, b"new", mode=0o777),
                b"dir": directory(name, 0o777),
                b"hard": entry(b"src", b"s") + hardlink(name, b"src"),
                b"fifo": entry(name, kind=b"6", mode=0o777),
            }[name]
            + END
        )
        assert not (layer.root / name.decode()).is_symlink()
    assert (layer.root / "file").read_text() == "new"


def test_hard_links(layer: Layer) -> None:
    """E13-E16: absolute names are the layer's; a link to a symlink is a link to the symlink."""
    out = layer.unpack(
        entry(b"d/a", b"data")
        + hardlink(b"b", b"/d/a")
        + symlink(b"s", str(layer.canary / "f").encode())
        + hardlink(b"t", b"s")
        + hardlink(b"later", b"z")
        + entry(b"z", b"z")
        + hardlink(b"b", b"d/a")
        + hardlink(b"low", b"usr/bin/x")
        + END
    )
    assert layer.stat("b").st_ino == layer.stat("d/a").st_ino
    assert layer.stat("b").st_nlink == 2
    assert layer.stat("t").st_ino == layer.stat("s").st_ino
    assert out.needs.links == ((b"later", b"z"), (b"low", b"usr/bin/x"))
    assert out.needs.implied == (b"d",)


def test_too_many_hard_links(layer: Layer) -> None:
    """E34: ext4 takes 65,000 links to an inode."""
    with OwnedFd(os.open(layer.root, os.O_RDONLY)) as fd:
        limit = os.pathconf(fd.fileno(), "PC_LINK_MAX")
    if limit > 70000:
        pytest.skip(f"this file system takes {limit} links")
    tar = entry(b"a") + b"".join(hardlink(b"l%d" % i, b"a") for i in range(limit + 1)) + END
    with pytest.raises(IntegrityError, match=r"entry 'l.*Too many links"):
        layer.unpack(tar)


def test_whiteouts(layer: Layer) -> None:
    """E19, E20 and layer.md: a whiteout is about lower layers, wherever it stands in the tar."""
    out = layer.unpack(
        entry(b"d/.wh.gone")
        + entry(b"same", b"new")
        + entry(b".wh.same")
        + entry(b".wh.late")
        + entry(b"late", b"new")
        + directory(b"old")
        + entry(b".wh.old")
        + entry(b".wh.new")
        + directory(b"new", 0o700)
        + entry(b".wh.made")
        + entry(b"made/x")
        + entry(b"o/before")
        + entry(b"o/.wh..wh..opq")
        + entry(b"o/after")
        + entry(b".wh..wh.plnk/1.2", b"aufs")
        + entry(b".wh..wh.aufs", b"aufs")
        + END
    )
    assert layer.names() == {
        *("d", "d/gone", "same", "late", "old", "new", "made", "made/x"),
        *("o", "o/before", "o/after"),
    }
    assert layer.is_whiteout("d/gone")
    assert (layer.root / "same").read_text() == (layer.root / "late").read_text() == "new"
    assert [n for n in ("old", "new", "made", "o", "d") if layer.is_opaque(n)] == [
        *("old", "new", "made", "o"),
    ]
    assert stat.S_IMODE(layer.stat("new").st_mode) == 0o700
    assert not out.needs.opaque_root


def test_opaque_root_is_told(layer: Layer) -> None:
    assert layer.unpack(entry(b".wh..wh..opq") + entry(b"x") + END).needs.opaque_root


def test_modes_and_owners(layer: Layer) -> None:
    """E22, E33: exact modes, also where the parent is 0000, set-id or the owner changes."""
    layer.unpack(
        directory(b"locked", 0)
        + entry(b"locked/f", b"x", mode=0)
        + directory(b"sgid", 0o2775, uid=7)
        + entry(b"sgid/f", mode=0o644)
        + directory(b"sgid/d", 0o755)
        + entry(b"sgid/i/f", mode=0o644)
        + pax((b"uid", b"4294967294"), (b"gid", b"123456"))
        + entry(b"suid", b"x", mode=0o7777)
        + entry(b"dev", kind=b"4", mode=0o6640, uid=9, device=(7, 300))
        + END
    )
    seen = {name: layer.stat(name) for name in layer.names()}
    modes = {name: oct(stat.S_IMODE(st.st_mode)) for name, st in seen.items()}
    assert modes == {
        "locked": "0o0",
        "locked/f": "0o0",
        "sgid": "0o2775",
        "sgid/f": "0o644",
        "sgid/d": "0o755",
        "sgid/i": "0o755",
        "sgid/i/f": "0o644",
        "suid": "0o7777",
        "dev": "0o6640",
    }
    assert (seen["suid"].st_uid, seen["suid"].st_gid) == (4294967294, 123456)
    assert seen["dev"].st_rdev == os.makedev(7, 300)


CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
CAPABILITY_3 = struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, 1000)


def test_extended_attributes(layer: Layer) -> None:
    """E23: overlayfs's own and foreign labels are dropped; capabilities survive the chown."""
    acl = struct.pack("<IHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF)
    layer.unpack(
        pax(
            (b"SCHILY.xattr.security.capability", CAPABILITY),
            (b"SCHILY.xattr.user.note", b"a\0=\nb"),
            (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
            (b"SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            (b"SCHILY.xattr.user.overlay.opaque", b"y"),
            (b"SCHILY.xattr.security.selinux", b"evil_t"),
            (b"LIBARCHIVE.xattr.user.b%2564", b"aGVsbG8="),
        )
        + entry(b"ping", b"x", mode=0o755, uid=5)
        + pax((b"SCHILY.xattr.security.capability", CAPABILITY_3))
        + entry(b"ping3", b"x")
        + pax((b"SCHILY.xattr.trusted.overlay.opaque", b"y"), (b"SCHILY.xattr.user.d", b"1"))
        + directory(b"d")
        + pax((b"SCHILY.xattr.system.posix_acl_default", acl))
        + directory(b"acl")
        + entry(b"acl/f", mode=0o644)
        + pax((b"SCHILY.xattr.user.d", b"1"))
        + symlink(b"s", b"t")
        + END
    )
    seen = {n: set(os.listxattr(layer.root / n, follow_symlinks=False)) for n in layer.names()}
    assert seen == {
        "ping": {"security.capability", "user.note", "user.b%64"},
        "ping3": {"security.capability"},
        "d": {"user.d"},
        "acl": {"system.posix_acl_default"},
        "acl/f": set(),
        "s": set(),
    }
    assert os.getxattr(layer.root / "ping", "security.capability") == CAPABILITY
    assert os.getxattr(layer.root / "ping", "user.note") == b"a\0=\nb"
    assert os.getxattr(layer.root / "ping", "user.b%64") == b"hello"


def test_names_are_bytes(layer: Layer) -> None:
    """E25, E32: nothing is normalised, decoded or folded."""
    raw = [
        b"\xff\xfe",
        b"new\nline",
        b"esc\x1b[0m",
        b"e\xcc\x81",
        b"\xc3\xa9",
        b"A",
        b"a",
        b"n" * 255,
    ]
    layer.unpack(b"".join(pax((b"path", name)) + entry(b"x") for name in raw) + END)
    assert sorted(os.listdir(os.fsencode(layer.root))) == sorted(raw)


def test_dialects(layer: Layer) -> None:
    """V7, old GNU, ustar prefix, long names, global headers, sockets, NUL type, odd slashes."""
    layer.unpack(
        entry(b"v7", b"1", magic=b"", kind=b"\0")
        + entry(b"v7dir/", magic=b"", kind=b"\0", mode=0o711)
        + entry(b"tail", b"2", tail=b"pre/fix")
        + entry(b"gnu", b"3", magic=b"ustar  \0", tail=b"12345678901")
        + pax((b"path", b"global"), kind=b"g")
        + entry(b"after-global", b"8")
        + entry(b"L", b"long/" * 40 + b"name\0", kind=b"L")
        + entry(b"K", b"t/" * 150 + b"\0", kind=b"K")
        + entry(b"ignored", kind=b"2", link=b"ignored")
        + entry(b"./dot//x/./y/", kind=b"5")
        + entry(b"/abs", b"4")
        + entry(b"sock", kind=b"s")
        + entry(b"label", kind=b"V")
        + entry(b"contiguous", b"5", kind=b"7")
        + entry(b"base256", b"6", size=b"\x80" + bytes(10) + b"\x01")
        + pax((b"path", b"kept"), (b"path", b""))
        + entry(b"taken-back", b"7")
        + header(b"lnk-with-size", kind=b"2", link=b"x", size=7)
        + bytes(512)
    )
    long = "long/" * 40 + "name"
    files = {
        "v7": "1",
        "pre/fix/tail": "2",
        "gnu": "3",
        "abs": "4",
        "contiguous": "5",
        "base256": "6",
    }
    files |= {"taken-back": "7", "after-global": "8"}
    assert {n: (layer.root / n).read_text() for n in files} == files
    assert os.readlink(layer.root / long) == "t/" * 150
    assert (layer.root / "dot/x/y").is_dir()
    assert stat.S_IMODE(layer.stat("v7dir").st_mode) == 0o711
    assert not {"sock", "label", "global", "kept"} & layer.names()


def test_ends(layer: Layer) -> None:
    """E26: no end blocks, one, padding, nothing at all."""
    for tar in (b"", entry(b"x"), entry(b"x") + bytes(512), entry(b"x") + bytes(10240)):
        layer.unpack(tar)


def test_duplicates_last_wins(layer: Layer) -> None:
    """E29: by unlink; a directory in the way goes with all that is in it."""
    layer.unpack(
        directory(b"a")
        + b"".join(entry(b"a/%d/%d/f" % (i, j)) for i in range(9) for j in range(9))
        + entry(b"a", b"file")
        + entry(b"h1", b"shared")
        + hardlink(b"h2", b"h1")
        + entry(b"h2", b"own")
        + entry(b"b")
        + directory(b"b")
        + entry(b"b/x")
        + directory(b"c")
        + symlink(b"l", b"c")
        + entry(b"l/one")
        + directory(b"l")
        + entry(b"l/two")
        + END
    )
    assert layer.names() == {*("a", "h1", "h2", "b", "b/x", "c", "c/one", "l", "l/two")}
    assert (layer.root / "h1").read_text() == "shared"
    assert layer.is_opaque("b")  # a lower directory `b` was replaced by the file


def test_times(layer: Layer) -> None:
    """E31: nanoseconds, before 1970, far future; directories after their children."""
    layer.unpack(
        pax((b"mtime", b"1.5"))
        + directory(b"d")
        + pax((b"mtime", b"-1.25"))
        + entry(b"d/neg")
        + pax((b"mtime", b"253402300799.9999999999"))
        + entry(b"d/far")
        + pax((b"mtime", b"9" * 60))
        + entry(b"d/absurd")
        + pax((b"mtime", b"7.000000001"))
        + symlink(b"s", b"t")
        + entry(b"base256", mtime=b"\xff" * 12)
        + directory(b"./", 0o711, mtime=99)
        + entry(b"d/last")
        + END
    )
    seen = {n: layer.stat(n).st_mtime_ns for n in ("d", "d/neg", "s", "base256", ".")}
    assert seen == {
        "d": 1500000000,
        "d/neg": -1250000000,
        "s": 7000000001,
        "base256": -1000000000,
        ".": 99000000000,
    }


def test_many_directories_spill(layer: Layer) -> None:
    """More directory times than fit into memory (256 KiB)."""
    names = [b"%s/%d" % (b"long-directory-name" * 4, i) for i in range(5000)]
    layer.unpack(b"".join(directory(n, mtime=i + 1) for i, n in enumerate(names)) + END)
    seen = [layer.stat(n.decode()).st_mtime_ns for n in names]
    assert seen == [(i + 1) * 10**9 for i in range(5000)]
    assert len(layer.names()) == 5001


def test_limits(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    """E28: bytes and entries. A bomb stops at the limit."""
    monkeypatch.setattr(unpack_module, "MAX_ENTRIES", 10)
    layer.unpack(b"".join(entry(b"x") for _ in range(10)) + END)
    with pytest.raises(ResourceExhausted, match="more than 10 entries"):
        layer.unpack(b"".join(entry(b"x") for _ in range(11)) + END)
    with pytest.raises(ResourceExhausted, match="limit of 100000 bytes"):
        layer.unpack(entry(b"x", bytes(200000)) + END, limit_bytes=100000)


def test_huge_sparse_file(layer: Layer) -> None:
    """E35: a terabyte of hole is no data, in the three PAX forms and the old GNU one."""
    size = b"1099511627776"
    where = 1 << 30
    old = struct.pack(
        "12s12s72sc12s", b"%011o" % where, b"%011o" % 4, b"", b"\0", b"%011o" % (1 << 33)
    )
    layer.unpack(
        pax(*SPARSE, (b"GNU.sparse.realsize", size), (b"GNU.sparse.name", b"v1"))
        + entry(b"GNUSparseFile.1/v1", padded(b"1\n%d\n4\n" % where) + b"data")
        + pax((b"GNU.sparse.map", b"%d,4" % where), (b"GNU.sparse.size", size))
        + entry(b"v01", b"data")
        + pax(
            *((b"GNU.sparse.size", size), (b"GNU.sparse.numblocks", b"1")),
            *((b"GNU.sparse.offset", b"%d" % where), (b"GNU.sparse.numbytes", b"4")),
        )
        + entry(b"v00", b"data")
        + entry(b"gnu", b"data", kind=b"S", magic=b"ustar  \0", tail=bytes(41) + old)
        + END
    )
    for name in ("v1", "v01", "v00", "gnu"):
        st = layer.stat(name)
        assert st.st_size == (1 << 33 if name == "gnu" else int(size))
        assert st.st_blocks * 512 < 1 << 20
        with (layer.root / name).open("rb") as stream:
            assert os.pread(stream.fileno(), 6, where - 1) == b"\0data\0"


def test_torn_by_one_byte(layer: Layer) -> None:
    """Every prefix of a small archive: an error or a whole file, never a crash."""
    tar = pax((b"path", b"d/f")) + entry(b"x", b"data") + END
    for size in range(0, len(tar), 73):
        with contextlib.suppress(IntegrityError):
            layer.unpack(tar[:size])


def test_flipped_bytes(layer: Layer) -> None:
    """A cheap fuzzer: header bytes changed, the checksum made right again."""
    import random

    chance = random.Random(7)
    tar = bytearray(
        pax((b"path", b"d/f"), (b"SCHILY.xattr.user.a", b"1"), (b"mtime", b"1.5"))
        + entry(b"x", b"data")
        + entry(b"gnu", b"data", kind=b"S", tail=bytes(41) + b"\0" * 110)
        + hardlink(b"h", b"d/f")
        + END
    )
    for _ in range(150):
        bad = bytearray(tar)
        for _ in range(chance.randrange(1, 4)):
            bad[chance.randrange(len(tar) - 1024)] = chance.choice(b"\0 /.09=\n\x80\xffxLKS")
        for at in (0, 1024, 2048, 3072):
            block = bad[at : at + 512]
            block[148:156] = b" " * 8
            bad[at + 148 : at + 156] = b"%06o\0 " % sum(block)
        # A crash would be another error: the unpacker ended without a report.
        with contextlib.suppress(IntegrityError, ResourceExhausted):
            layer.unpack(bytes(bad))
