"""The corpus of hostile layers, row by row (E1 to E40 of the checklist of bad inputs): each as an image that is loaded.

What is refused leaves no image, no layer and no leftover; what is taken in is looked at as a container sees it.
A canary beside the store never changes. The same tars, and more of them, meet the unpacker alone, with
sanitizers, in tests/integration/test_layers_corpus.py. Each test's id begins with its row.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.layerhost import Host, show
from fixtures.layertar import END, directory, entry, hardlink, header, padded, pax, sparse, symlink
from fixtures.layouts import Layout, digest

pytestmark = pytest.mark.root

FIFO, SOCKET, CONTIGUOUS = b"6", b"s", b"7"
OUT = b"/canary-of-the-host"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


KINDS = {"file": b"0", "directory": b"5", "symlink": b"2", "hard link": b"1", "fifo": FIFO}


def every_kind(row: str, name: bytes, says: str, *kinds: str) -> dict[str, tuple[list[bytes], str]]:
    shown = name.decode() or "empty"
    return {
        f"{row} {kind} {shown}": ([entry(name, kind=KINDS[kind], link=b"x") + END], says)
        for kind in kinds or KINDS
    }


def xattr(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    return (b"SCHILY.xattr." + name, value)


LINKS_41 = b"".join(symlink(b"l%d" % i, b"l%d" % (i + 1)) for i in range(41))

REFUSED: dict[str, tuple[list[bytes], str]] = {
    **every_kind("E1", b"../x", r"'\.\.'"),
    **every_kind("E3", b"a/../../x", r"'\.\.'"),
    **every_kind("E4", b"..", r"'\.\.'"),
    **every_kind("E5", b"", "no name"),
    **every_kind("E6", b"./.", "root of a layer", "symlink", "hard link", "fifo", "file"),
    **every_kind("E17", b".", "root of a layer", "symlink", "hard link", "fifo", "file"),
    **every_kind("E17", b"/", "root of a layer", "symlink", "hard link", "fifo"),
    "E10 loop": ([symlink(b"a", b"b") + symlink(b"b", b"a") + entry(b"a/f")], "ymbolic link"),
    "E12 chain of 41": ([LINKS_41 + entry(b"l0/f")], "ymbolic link"),
    "E14 link upwards": ([hardlink(b"h", b"../x")], "no path"),
    "E15 missing": ([entry(b"a"), hardlink(b"h", b"none")], "no file in this or a lower layer"),
    "E15 to a directory": ([directory(b"d") + hardlink(b"h", b"d")], "directory"),
    **{
        f"E18 {name.decode()}": ([entry(b"a"), entry(name)], "whiteout of nothing")
        for name in (b".wh.", b".wh..", b".wh...", b".wh.../x", b".wh.a/b", b"d/.wh..")
    },
    "E21 forged whiteout": ([entry(b"x", kind=b"3", device=(0, 0))], "whiteout"),
    "E21 device number": ([entry(b"x", kind=b"3", device=(0x1FFF, 1))], "does not exist"),
    "E22 uid 2^32-1": ([pax((b"uid", b"4294967295")) + entry(b"x")], "not an id"),
    "E22 negative uid": ([entry(b"x", uid=b"\xff" * 8)], "not an id"),
    "E23 value of 68 KiB": ([pax(xattr(b"user.big", b"v" * 70000)) + entry(b"x")], "user.big"),
    "E23 name of 300": ([pax(xattr(b"user." + b"n" * 300, b"v")) + entry(b"x")], "attribute"),
    "E24 NUL": ([pax((b"path", b"a\0b")) + entry(b"x")], "NUL"),
    "E24 traversal": ([pax((b"path", b"../../x")) + entry(b"x")], r"'\.\.'"),
    "E24 size": ([pax((b"size", b"99999")) + entry(b"x", b"data")], "ends in the middle"),
    "E24 linkpath": ([pax((b"linkpath", b"l" * (1 << 20))) + symlink(b"x", b"y")], "longer"),
    "E24 global": ([header(b"p", kind=b"g", size=2 << 30)], "longer than"),
    "E24 10^9 segments": (
        [sparse((b"GNU.sparse.realsize", b"9")) + entry(b"x", padded(b"1000000000\n"))],
        "segments",
    ),
    "E25 long name": ([entry(b"L", b"a/" * 4000, kind=b"L") + entry(b"x")], "longer than 4095"),
    "E25 long component": ([pax((b"path", b"n" * 256)) + entry(b"x")], "too long"),
    "E26 truncated": (
        [header(b"x", size=5000) + bytes(512)],
        "ends in the middle at|in the middle",
    ),
    "E26 garbage": (
        [entry(b"x") + END + b"garbage" * 100],
        "at byte .* after the end|after the end",
    ),
    "E26 checksum": ([b"y" + entry(b"x")[1:]], "byte 0: bad checksum|checksum"),
    "E26 negative size": ([entry(b"x", size=b"\xff" * 12)], "negative"),
    "E26 8 EiB": ([entry(b"x", size=b"\x80\0\0\0\x80" + bytes(7))], "size"),
    "E28 deep": ([pax((b"path", b"d/" * 1030 + b"f")) + entry(b"x")], "deeper than 1024"),
    "E37 unknown type": ([entry(b"x", kind=b"Q")], "unknown entry type"),
    "E39 below a file": ([entry(b"f") + entry(b"f/x")], "Not a directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(host: Host, case: str) -> None:
    tars, says = REFUSED[case]
    layout = Layout()
    layout.image(*tars)
    host.refused(layout, says)
    if case != "E15 missing":  # there both layers are good, and do not go together
        assert digest(tars[-1]) not in host.layers.list()


# What is seen through all layers; a name that is not there is "nothing".
ACCEPTED: dict[str, tuple[list[bytes], dict[str, str]]] = {
    "E2 absolute name": ([entry(b"/abs/f", b"1")], {"abs/f": "file 1"}),
    "E6 root": ([directory(b"./.", 0o711) + entry(b"./a/./f", b"1")], {"a/f": "file 1"}),
    "E7 below a link": (
        [symlink(b"d", OUT) + entry(b"d/f", b"1")],
        {"d": f"-> {OUT.decode()}", OUT.decode(): "directory", f"{OUT.decode()}/f": "file 1"},
    ),
    "E8 below a link of a lower layer": (
        [symlink(b"d", OUT), entry(b"d/f", b"1")],
        {"d": "directory", "d/f": "file 1", OUT.decode(): "nothing"},
    ),
    "E9 climbs": ([symlink(b"d", b"../../..") + entry(b"d/f", b"1")], {"f": "file 1"}),
    "E11 magic": (
        [symlink(b"d", b"/proc/self/root") + entry(b"d/f", b"1")],
        {"proc/self/root/f": "file 1"},
    ),
    "E12 chain of 39": (
        [b"".join(symlink(b"l%d" % i, b"l%d" % (i + 1)) for i in range(39)) + directory(b"l39")
         + entry(b"l0/f", b"1")],
        {"l39/f": "file 1"},
    ),
    "E13 absolute link": ([entry(b"d/a", b"1") + hardlink(b"h", b"/d/a")], {"h": "file 1"}),
    "E15 later entry": ([hardlink(b"h", b"z") + entry(b"z", b"1")], {"h": "file 1"}),
    "E16 to a link": (
        [symlink(b"s", OUT + b"/f") + hardlink(b"h", b"s"), hardlink(b"g", b"s")],
        {"h": f"-> {OUT.decode()}/f", "g": f"-> {OUT.decode()}/f"},
    ),
    "E16 to a lower file": ([entry(b"d/a", b"1"), hardlink(b"h", b"d/a")], {"h": "file 1"}),
    "E18 good name": ([entry(b".a") + entry(b"wh"), entry(b".wh..a")], {".a": "nothing", "wh": "file "}),
    "E19 opaque": (
        [entry(b"o/low"), entry(b"o/.wh..wh..opq") + entry(b"o/new", b"2")],
        {"o/low": "nothing", "o/new": "file 2"},
    ),
    "E19 opaque root": ([entry(b"low"), entry(b".wh..wh..opq") + entry(b"x")], {"low": "nothing"}),
    "E19 of what is not there": ([entry(b"a"), entry(b".wh.none")], {"none": "nothing"}),
    "E20 same name": (
        [entry(b"a", b"1"), entry(b".wh.a") + entry(b"a", b"2")], {"a": "file 2"}
    ),
    "E20 aufs": (
        [entry(b".wh..wh.plnk/1.2") + entry(b".wh..wh.aufs") + entry(b"a")],
        {".wh..wh.plnk": "nothing", "a": "file "},
    ),
    "E21 device": ([entry(b"tty", kind=b"3", device=(5, 0))], {"tty": "device"}),
    "E29 three types": (
        [directory(b"n") + entry(b"n/x") + symlink(b"n", OUT) + entry(b"n", b"last")],
        {"n": "file last", OUT.decode(): "nothing"},
    ),
    "E29 file over a lower directory": ([entry(b"n/x"), entry(b"n", b"2")], {"n": "file 2"}),
    "E30 file over a lower link": (
        [directory(b"d") + symlink(b"n", b"d"), entry(b"n", b"2")], {"n": "file 2", "d": "directory"}
    ),
    "E30 directory over a lower file": (
        [entry(b"n", b"1"), directory(b"n") + entry(b"n/x", b"2")], {"n/x": "file 2"}
    ),
    "E32 case and form": (
        [entry(b"A", b"1") + entry(b"a", b"2") + entry(b"\xc3\xa9", b"3") + entry(b"e\xcc\x81", b"4")],
        {"A": "file 1", "a": "file 2", "\u00e9": "file 3", "e\u0301": "file 4"},
    ),
    "E37 kinds": (
        [entry(b"s", kind=SOCKET) + entry(b"p", kind=FIFO) + entry(b"c", b"1", kind=CONTIGUOUS)
         + entry(b"v", b"2", kind=b"\0")],
        {"s": "nothing", "p": "fifo", "c": "file 1", "v": "file 2"},
    ),
    "E26 no end": ([entry(b"x", b"1")], {"x": "file 1"}),
    "E26 padding": ([entry(b"x", b"1") + bytes(20480)], {"x": "file 1"}),
    "E26 V7": ([entry(b"x", b"1", magic=b"", kind=b"\0")], {"x": "file 1"}),
    "E24 size of another dialect": (
        [pax((b"SCHILY.realsize", b"%d" % (1 << 60))) + entry(b"x", b"1")], {"x": "file 1"}
    ),
    "E24 global header": ([pax((b"path", b"../../g"), kind=b"g") + entry(b"x", b"1")], {"x": "file 1"}),
    "E25 bytes": ([entry(b"a\nb", b"1") + entry(b"\x1b[0m", b"2")], {"a\nb": "file 1"}),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(host: Host, case: str) -> None:
    tars, wanted = ACCEPTED[case]
    with host.root(*tars) as root:
        assert {name: show(root, name) for name in wanted} == wanted


def test_hard_links_through_links_of_lower_layers(host: Host) -> None:
    """E16: a link of a lower layer that names a directory of the host leads to one of the image, or nowhere."""
    inside = str(host.canary).encode().lstrip(b"/")
    layout = Layout()
    layout.image(symlink(b"d", b"/" + inside), hardlink(b"h", b"d/f"))
    host.refused(layout, "no file in this or a lower layer")
    lower = symlink(b"d", b"/" + inside) + entry(inside + b"/f", b"the image's")
    with host.root(lower, hardlink(b"h", b"d/f")) as root:
        assert show(root, "h") == "file the image's"


CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
CAPABILITY_3 = struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, 1000)


def test_attributes_row_by_row(host: Host) -> None:
    """E22, E23, E31, E33, E38: modes, owners, times and extended attributes as they are given, or dropped."""
    tar = (
        directory(b"locked", 0)
        + entry(b"locked/f", b"1", mode=0)
        + directory(b"read-only", 0o555)
        + entry(b"read-only/f", b"1", mode=0o7777)
        + pax((b"uid", b"4294967294"), (b"uname", b"daemon"))
        + entry(b"far", b"1")
        + pax((b"uname", b"daemon"), (b"gname", b"daemon"))
        + entry(b"named", b"1")
        + pax(
            xattr(b"security.capability", CAPABILITY),
            xattr(b"trusted.overlay.opaque", b"y"),
            xattr(b"user.overlay.redirect", b"/etc"),
            xattr(b"security.selinux", b"evil_t"),
        )
        + entry(b"ping", b"1", uid=5)
        + pax(xattr(b"security.capability", CAPABILITY_3))
        + entry(b"ping3", b"1")
        + pax(xattr(b"trusted.overlay.opaque", b"y"))
        + directory(b"lower")
        + b"".join(
            pax((key, value)) + entry(name)
            for name, key, value in (
                (b"negative", b"mtime", b"-1.25"),
                (b"9999", b"mtime", b"253402300799.9999999999"),
                (b"atime", b"atime", b"7"),
            )
        )
    )
    with host.root(entry(b"lower/f", b"seen"), tar) as root:
        base = f"/proc/self/fd/{root.fileno()}"
        seen = {name: os.lstat(f"{base}/{name}") for name in os.listdir(base)}
        below = {name: os.lstat(f"{base}/{name}/f") for name in ("locked", "read-only")}
        assert [oct(stat.S_IMODE(seen[n].st_mode)) for n in below] == ["0o0", "0o555"]
        assert [oct(stat.S_IMODE(st.st_mode)) for st in below.values()] == ["0o0", "0o7777"]
        assert [seen[n].st_uid for n in ("far", "named", "ping")] == [4294967294, 0, 5]
        assert os.getxattr(f"{base}/ping", "security.capability") == CAPABILITY
        assert os.getxattr(f"{base}/ping3", "security.capability") == CAPABILITY_3
        assert os.listxattr(f"{base}/ping") == ["security.capability"]
        assert show(root, "lower/f") == "file seen"  # the forged mark hides nothing
        assert seen["negative"].st_mtime_ns == -1250000000
        assert seen["9999"].st_mtime > 2**33  # as late as the file system can say
        assert seen["atime"].st_mtime == 0
