"""crun as Debian's unstable has it, unpacked beside and never installed.

The ordinary client fetches it: apt, with lists and a cache of its own, no packages installed as far as
it knows (so that it brings the libraries, too), and this machine's own mirror.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from runtimes import Failed

_LOADER = b"/lib64/ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def crun(directory: Path) -> list[str]:
    """The command line of it; `directory` has a short name and is kept for as long as it is used."""
    mirror = _mirror()
    (directory / "lists/partial").mkdir(parents=True)
    (directory / "archives/partial").mkdir(parents=True)
    (directory / "status").touch()
    (directory / "sources").write_text(f"deb {mirror} unstable main\n")
    settings = {
        "Dir::Etc::sourcelist": directory / "sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": directory / "lists",
        "Dir::State::status": directory / "status",
        "Dir::Cache::archives": directory / "archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
    _run([*apt, "update"])
    _run([*apt, "install", "-y", "--no-install-recommends", "--download-only", "crun"])
    for package in (directory / "archives").glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(directory / "root")])
    return [_with_its_own_loader(directory)]


def _mirror() -> str:
    """Where this machine gets its packages from."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN)"]
    listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = [line.split()[0] for line in listed.splitlines() if line.endswith(" Debian")]
    plain = sorted({uri for uri in found if "security" not in uri})
    if not plain:
        raise Failed("apt knows no mirror of Debian")
    return plain[0]


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{argv[0]}: {(done.stderr or done.stdout).strip()[-300:]}")


def _with_its_own_loader(directory: Path) -> str:
    """The program, made to ask for the loader and the libraries that came with it.

    Through `ld.so PROGRAM` it would be another program to itself: it copies and executes its own file.
    """
    root = directory / "root"
    loader, program = directory / "ld.so", root / "usr/bin/crun"
    loader.symlink_to(root / _LIBRARIES / "ld-linux-x86-64.so.2")
    text = program.read_bytes()
    place = os.fsencode(loader)
    if len(place) > len(_LOADER) or len(re.findall(re.escape(_LOADER) + b"\0", text)) != 1:
        raise Failed(f"cannot write '{loader}' in place of the loader's name")
    fresh = directory / "crun"
    fresh.write_bytes(text.replace(_LOADER, place.ljust(len(_LOADER), b"\0"), 1))
    fresh.chmod(0o755)
    return str(fresh)


def library_path(directory: Path) -> dict[str, str]:
    """The environment that it needs."""
    return {"LD_LIBRARY_PATH": str(directory / "root" / _LIBRARIES)}
