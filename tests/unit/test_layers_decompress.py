"""Decompression by magic bytes: formats, members, frames, damage, bombs."""

from __future__ import annotations

import gzip
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from scow.image.decompress import MAX_PIECE, MAX_ZSTD_WINDOW, Decompressor
from scow.native.errors import IntegrityError, Unsupported

TEXT = b"".join(b"%d lines of a layer\n" % i for i in range(60000))
SKIPPABLE = b"\x53\x2a\x4d\x18" + (9).to_bytes(4, "little") + b"chunk toc"


def run(data: bytes, step: int = 1 << 16) -> bytes:
    decompressor = Decompressor()
    pieces: list[bytes] = []
    for start in range(0, len(data), step):
        pieces.extend(decompressor.feed(data[start : start + step]))
    pieces.extend(decompressor.finish())
    assert all(len(piece) <= MAX_PIECE for piece in pieces)
    return b"".join(pieces)


def zstd(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


GOOD = {
    "plain": TEXT,
    "gzip": gzip.compress(TEXT),
    "gzip members": gzip.compress(TEXT[:70001]) + gzip.compress(b"") + gzip.compress(TEXT[70001:]),
    "gzip stored": gzip.compress(TEXT, 0),
    "gzip padding": gzip.compress(TEXT) + bytes(700),
    "zstd": zstd(TEXT),
    "zstd checksum": zstd(TEXT, write_checksum=True),
    "zstd no size": zstd(TEXT, write_content_size=False),
    "zstd frames": zstd(TEXT[:5]) + zstd(b"") + zstd(TEXT[5:]),
    "zstd skippable": SKIPPABLE + zstd(TEXT[:9]) + SKIPPABLE + zstd(TEXT[9:]) + SKIPPABLE,
    "zstd stored": zstd(TEXT, level=-50),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("step", [1000, 65536, 1 << 24])
def test_good(name: str, step: int) -> None:
    assert run(GOOD[name], step) == TEXT


@pytest.mark.parametrize(
    "data", [gzip.compress(TEXT[:3000]), zstd(TEXT[:3000]), SKIPPABLE + zstd(b"x")]
)
def test_byte_by_byte_and_torn(data: bytes) -> None:
    whole = run(data, 1)
    for size in range(4, len(data)):
        if data[:size] == SKIPPABLE:
            continue  # a whole frame
        with pytest.raises(IntegrityError, match="ends in the middle"):
            run(data[:size])
    assert whole


@pytest.mark.parametrize("data", [b"", b"x", b"\x1f", b"hello"])
def test_shorter_than_any_magic(data: bytes) -> None:
    assert run(data, 1) == data


BAD = {
    "gzip junk": (gzip.compress(TEXT) + b"junk", "junk after the end"),
    "gzip padding then junk": (gzip.compress(TEXT) + bytes(9) + b"junk", "junk after the end"),
    "gzip crc": (gzip.compress(TEXT)[:-8] + b"\1\2\3\4" + gzip.compress(TEXT)[-4:], "bad gzip"),
    "gzip data": (gzip.compress(TEXT)[:50] + b"\xff" * 99 + gzip.compress(TEXT)[149:], "bad gzip"),
    "zstd junk": (zstd(TEXT) + b"junkjunkjunk", "junk after the end"),
    "zstd checksum": (zstd(TEXT, write_checksum=True)[:-1] + b"\0", "bad zstd"),
    "zstd block": (zstd(TEXT)[:9] + b"\xff" * 400, "bad zstd"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_damage(name: str, step: int) -> None:
    data, reason = BAD[name]
    with pytest.raises(IntegrityError, match=reason):
        run(data, step)


@pytest.mark.parametrize(
    "head", [b"\xfd7zXZ\0", b"BZh91AY&SY", b"\x04\x22\x4d\x18xx", b"\x1f\x9dxxxx"]
)
def test_other_formats_are_named(head: bytes) -> None:
    with pytest.raises(Unsupported, match="unsupported compression"):
        run(head + bytes(100))


@pytest.mark.parametrize(
    "header",
    [bytes([0, (21 << 3)]), bytes([0xE0]) + (1 << 31).to_bytes(8, "little")],
    ids=["told", "the content's size"],
)
def test_zstd_window_is_limited(header: bytes) -> None:
    """E27: 2 GiB, in both places where a frame may ask for them."""
    with pytest.raises(Unsupported, match=f"larger than {MAX_ZSTD_WINDOW}"):
        run(b"\x28\xb5\x2f\xfd" + header + b"\1\0\0")


def test_zstd_dictionary_is_named() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        b"sample %d of a dictionary %d" % (i, i * 7) for i in range(2000)
    ]
    dictionary = zstandard.train_dictionary(4096, samples)
    with pytest.raises(Unsupported, match="dictionary"):
        run(zstd(TEXT, dict_data=dictionary))


@pytest.mark.parametrize("compress", [zstd, gzip.compress])
def test_bombs_come_in_pieces(compress: object) -> None:
    bomb = compress(bytes(64 << 20))  # type: ignore[operator]
    assert len(bomb) < 100000
    for _ in range(2):
        total = 0
        for piece in Decompressor().feed(bomb):
            assert len(piece) <= MAX_PIECE
            total += len(piece)
        assert total == 64 << 20


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.binary(max_size=3000), max_size=4),
    st.sampled_from(["gz", "zst"]),
    st.integers(1, 999),
)
def test_any_members(parts: list[bytes], kind: str, step: int) -> None:
    pack = gzip.compress if kind == "gz" else zstd
    data = b"".join(pack(part) for part in parts)
    assert run(data, step) == b"".join(parts)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 9000), st.binary(min_size=1, max_size=3), st.booleans())
def test_changed_bytes_never_surprise(at: int, change: bytes, is_gzip: bool) -> None:
    data = bytearray(gzip.compress(TEXT[:9000]) if is_gzip else zstd(TEXT[:9000]))
    at %= len(data)
    data[at : at + len(change)] = change
    try:
        run(bytes(data))
    except (IntegrityError, Unsupported):
        pass


def test_deflate_without_header_is_not_gzip() -> None:
    assert run(zlib.compress(TEXT)) == zlib.compress(TEXT)
