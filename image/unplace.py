"""A tar from anywhere, unpacked below a directory that may be a container's.

What belongs here: headers -> Placer. tarfile reads the headers only (CVE-2025-4517 and its family are
in its extraction), and none that is long; each name is checked and made through descriptors.
"""

from __future__ import annotations

import os
import stat
import tarfile
from typing import IO, cast

from scow.image.digest import quote
from scow.image.place import Placer, Thing, open_directory
from scow.image.tarindex import MAX_HEADER_DATA
from scow.image.tarwriter import COPY_BYTES
from scow.native.errors import IntegrityError, InvalidArgument
from scow.native.fs import Root

_KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


class _Bounded:
    """The archive, as long as nobody wants much of it at once: tarfile takes a whole header into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > max(MAX_HEADER_DATA, COPY_BYTES):
            raise IntegrityError(
                f"cannot read the tar archive: a header of {size} bytes is too long"
            )
        return self._file.read(size)


def unpack_tar(fd: int, root: Root, path: str, *, archive: bool) -> list[str]:
    """Unpack the tar in the file `fd` into the directory `path`; returns what was left out."""
    with open_directory(root, path) as directory, open(os.dup(fd), "rb") as file:
        placer = Placer(directory.fileno(), archive=archive)
        file.seek(0)
        try:
            bounded = cast("IO[bytes]", _Bounded(file))
            with tarfile.open(fileobj=bounded, mode="r:", errors="surrogateescape") as tar:
                for member in tar:
                    _place(placer, tar, member)
                    # It would keep every header to the end.
                    tar.members = []  # type: ignore[attr-defined]  # typeshed does not tell of it
        except (tarfile.TarError, EOFError) as error:
            raise IntegrityError(f"cannot read the tar archive: {error}") from error
        placer.finish()
    return placer.left_out


def _place(placer: Placer, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    name = _checked(member.name)
    if not name:
        return
    thing = Thing(
        name,
        _KINDS.get(member.type, stat.S_IFREG) | (member.mode & 0o7777),
        member.uid,
        member.gid,
        int(member.mtime * 10**9),
        link=member.linkname,
        device=os.makedev(member.devmajor, member.devminor),
        xattrs=tuple(
            (key.removeprefix("SCHILY.xattr."), value.encode("utf-8", "surrogateescape"))
            for key, value in member.pax_headers.items()
            if key.startswith("SCHILY.xattr.")
        ),
    )
    if member.islnk():
        placer.link(thing, _checked(member.linkname))
    elif member.isreg():
        placer.put(thing, cast("IO[bytes]", tar.extractfile(member)))
    elif member.type in _KINDS:
        placer.put(thing)
    else:
        raise InvalidArgument(f"the archive has {quote(name)} of an unknown kind {member.type!r}")


def _checked(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidArgument(f"the archive has {quote(name)}, which leads out of it")
    return "/".join(parts)
