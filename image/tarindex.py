"""Where the files of an image archive lie in it.

What belongs here: finding regular files and links in a tar that can be seeked. What must not:
unpacking; nothing of an archive is ever written under a name that the archive chose. Layers are
untarred elsewhere, by C. Python's tarfile is not used for reading: it takes PAX headers of any size
into memory. Sources: POSIX pax "Interchange Format"; GNU tar's long names.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass

from scow.image.digest import quote
from scow.native.errors import IntegrityError, InvalidArgument

BLOCK = 512
MAX_MEMBERS = 100_000
MAX_HEADER_DATA = 1 << 20
MAX_NAME_BYTES = 16 << 20  # of all members and links together: they are kept in memory
MAX_LINK_HOPS = 8
_FILE_TYPES = (b"0", b"\0", b"7")


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file's place in the archive, or a link's target."""

    offset: int
    size: int
    link: str = ""


class TarIndex:
    """The files of a tar by their plain names; the descriptor is borrowed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._members: dict[str, Member] = {}
        self._scan()

    def __contains__(self, name: str) -> bool:
        return _plain_name(name) in self._members

    def find(self, name: str) -> Member:
        """The regular file `name`, through links inside the archive; InvalidArgument if none."""
        current = _plain_name(name)
        for _ in range(MAX_LINK_HOPS):
            member = self._members.get(current)
            if member is None:
                raise InvalidArgument(f"the archive has no file {quote(name)}")
            if not member.link:
                return member
            base = "" if member.link.startswith("/") else os.path.dirname(current)
            current = _plain_name(f"{base}/{member.link}")
        raise InvalidArgument(f"links in the archive go in circles at {quote(name)}")

    def read(self, name: str, limit: int) -> bytes:
        """A whole small file."""
        member = self.find(name)
        if member.size > limit:
            raise InvalidArgument(f"{quote(name)} has {member.size} bytes, more than {limit}")
        return b"".join(self.chunks(member))

    def chunks(
        self, member: Member, offset: int = 0, size: int = 1 << 20
    ) -> Generator[bytes, None, None]:
        """The bytes of a file from `offset` on."""
        position, end = member.offset + offset, member.offset + member.size
        while position < end:
            chunk = os.pread(self._fd, min(size, end - position), position)
            if not chunk:
                raise IntegrityError("the archive ends in the middle of a file")
            position += len(chunk)
            yield chunk

    def _scan(self) -> None:
        end = os.fstat(self._fd).st_size
        position, count, override = 0, 0, dict[str, str]()
        name_bytes = 0
        while position + BLOCK <= end:
            header = os.pread(self._fd, BLOCK, position)
            if header == bytes(BLOCK):
                return
            count += 1
            if count > MAX_MEMBERS:
                raise InvalidArgument(f"the archive has more than {MAX_MEMBERS} members")
            _check_sum(header, position)
            size = _number(header[124:136], position)
            kind, data = header[156:157], position + BLOCK
            if kind in (b"x", b"L", b"K", b"g"):
                position = self._next(data, size, end)
                if kind != b"g":
                    override |= self._header_data(kind, data, size)
                continue
            if "size" in override:
                size = _decimal(override["size"])
            name_bytes += sum(map(len, override.values()))
            if name_bytes > MAX_NAME_BYTES:
                raise InvalidArgument(f"the archive has names of more than {MAX_NAME_BYTES} bytes")
            if kind in _FILE_TYPES:
                self._members[_plain_name(override.get("path") or _name(header))] = Member(
                    data, size
                )
            elif kind in (b"1", b"2"):
                link = override.get("linkpath") or _text(header[157:257])
                # A hard link names its target from the root of the archive, a symlink from beside.
                target = "/" + link if kind == b"1" else link
                name = _plain_name(override.get("path") or _name(header))
                self._members[name] = Member(0, 0, target)
                size = 0
            else:
                size = 0 if kind in (b"3", b"4", b"5", b"6") else size
            override = {}
            position = self._next(data, size, end)
        if count == 0:
            raise InvalidArgument("not a tar archive")
        if position < end and os.pread(self._fd, BLOCK, position).strip(b"\0"):
            raise IntegrityError("the archive is cut off")

    def _next(self, data: int, size: int, end: int) -> int:
        if data + size > end:
            raise IntegrityError(
                f"the archive is cut off: it should have at least {data + size} bytes, it has {end}"
            )
        return data + (size + BLOCK - 1) // BLOCK * BLOCK

    def _header_data(self, kind: bytes, offset: int, size: int) -> dict[str, str]:
        if size > MAX_HEADER_DATA:
            raise InvalidArgument(f"an extended header of the archive has {size} bytes")
        data = os.pread(self._fd, size, offset)
        if kind in (b"L", b"K"):
            return {"path" if kind == b"L" else "linkpath": _text(data)}
        return _pax_records(data)


def _pax_records(data: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 9)
        digits = data[position:space] if space > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        record = data[space + 1 : position + length]
        if length < 5 or not record.endswith(b"\n") or b"=" not in record:
            raise InvalidArgument("an extended header of the archive is malformed")
        key, _, value = record[:-1].partition(b"=")
        if key in (b"path", b"linkpath", b"size"):
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        position += length
    return records


def _check_sum(header: bytes, position: int) -> None:
    expected = _number(header[148:156], position)
    if sum(header[:148]) + 8 * 0x20 + sum(header[156:]) != expected:
        if position == 0:
            raise InvalidArgument("not a tar archive")
        raise IntegrityError(f"the archive is damaged at offset {position}")


def _number(field: bytes, position: int) -> int:
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        digits = field.split(b"\0")[0].strip(b" ")
        if digits.strip(b"01234567"):
            kind = InvalidArgument if position == 0 else IntegrityError
            raise kind("not a tar archive" if position == 0 else "the archive has a bad number")
        value = int(digits or b"0", 8)
    if value >= 1 << 62:
        raise IntegrityError(f"the archive is damaged at offset {position}")
    return value


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidArgument("an extended header of the archive is malformed")
    return int(text)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _plain_name(name: str) -> str:
    """`./a//b/../c` as `a/c`: the names are keys only, so going above the top means nothing."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
