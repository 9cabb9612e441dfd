"""The images of `make bench-images`, made of Debian packages by mmdebstrap, apt and umoci.

Kept as OCI layouts below /var/cache/scow-bench (or SCOW_BENCH_CACHE), named by this file: a changed
recipe makes new ones. Tags: `small` (minbase, one layer) and `big` (eight layers, about 1 GB and
60,000 files), each also as `-zstd`. No scow code runs here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from fixtures.images import SUITE, archive_hooks, install, recompress, run

CACHE = Path(os.environ.get("SCOW_BENCH_CACHE", "/var/cache/scow-bench"))
TAGS = ("small", "small-zstd", "big", "big-zstd")
# One layer each, upon minbase.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("git", "openssh-client"),
    ("python3", "python3-pip"),
    ("libperl-dev", "perl-doc", "libwww-perl", "libmoose-perl"),
    ("nodejs", "npm"),
    ("gcc", "g++", "make"),
    ("cmake", "ninja-build"),
    ("python3-numpy",),
)


def ensure() -> Path:
    """The OCI layout with all tags, made now (a few minutes) if it is not there."""
    place = CACHE / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            for old in CACHE.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="new.") as top:
                layout = Path(top, "layout")
                make(layout)
                layout.rename(place)
    return place


def make(layout: Path) -> None:
    """All tags."""
    work = layout.parent
    tarball = work / "root.tar"
    run("mmdebstrap", "-q", "--variant=minbase", *archive_hooks(), SUITE, tarball)
    run("umoci", "init", "--layout", layout)
    for tag in ("small", "big"):
        run("umoci", "new", "--image", f"{layout}:{tag}")
        run("umoci", "raw", "add-layer", "--image", f"{layout}:{tag}", tarball)
        run("umoci", "config", "--image", f"{layout}:{tag}", "--config.cmd", "/bin/bash")
    tarball.unlink()
    bundle = work / "bundle"
    run("umoci", "unpack", "--image", f"{layout}:big", bundle)
    for packages in LAYERS:
        install(bundle / "rootfs", *packages)
        for cache in bundle.glob("rootfs/var/cache/apt/*.bin"):  # 70 MB in each layer
            cache.unlink()
        run("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:big", bundle)
    shutil.rmtree(bundle)
    for tag in ("small", "big"):
        recompress(layout, tag, f"{tag}-zstd")
    run("umoci", "gc", "--layout", layout)
