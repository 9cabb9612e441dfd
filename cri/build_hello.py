"""Builds the embedded image scow/hello: an OCI image layout around one static program.

Run by the build (`make hello`, setup.py), never by scow itself. It needs a C compiler and nothing
else, and the same source gives the same bytes: no time, no owner, no host name goes in.
What must not go in: anything that the built package needs at run time.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE = os.path.join(ROOT, "tests", "payload", "hello.c")
LAYOUT = os.path.join(ROOT, "cri", "hello-image")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
FLAGS = ["-static", "-Os", "-Wall", "-Wextra", "-Wshadow", "-s"]
# image-spec says RFC 3339; a fixed one keeps the digest a function of the source.
CREATED = "1970-01-01T00:00:00Z"


def compile_program(source: str) -> bytes:
    """The static program: musl where it is there (80 KB), else the C library's (800 KB)."""
    compiler = shutil.which("musl-gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("cannot build scow/hello: no musl-gcc and no cc")
    with tempfile.TemporaryDirectory() as directory:
        program = os.path.join(directory, "hello")
        subprocess.run([compiler, *FLAGS, "-o", program, source], check=True)
        with open(program, "rb") as stream:
            return stream.read()


def make_layer(program: bytes) -> bytes:
    """A layer tar with the program and nothing else; a container's directories are made by scow."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("hello")
        member.mode = 0o755
        member.size = len(program)
        archive.addfile(member, io.BytesIO(program))
    return stream.getvalue()


class Layout:
    """An OCI image layout that is being written."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        os.makedirs(os.path.join(directory, "blobs", "sha256"))

    def blob(self, media_type: str, data: bytes) -> dict[str, object]:
        """Write one blob, return its descriptor."""
        value = hashlib.sha256(data).hexdigest()
        self.write(os.path.join("blobs", "sha256", value), data)
        return {"mediaType": media_type, "digest": f"sha256:{value}", "size": len(data)}

    def document(self, media_type: str, value: object) -> dict[str, object]:
        """Write one JSON blob, return its descriptor."""
        return self.blob(media_type, encode(value))

    def write(self, name: str, data: bytes) -> None:
        """Write one file of the layout."""
        with open(os.path.join(self.directory, name), "wb") as stream:
            stream.write(data)


def encode(value: object) -> bytes:
    """JSON as short as it can be, always the same."""
    return json.dumps(value, separators=(",", ":")).encode()


def write_layout(directory: str, program: bytes) -> None:
    """Write the whole image to `directory`, which must not exist."""
    oci = "application/vnd.oci.image"
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    layout = Layout(directory)
    tar = make_layer(program)
    layer = layout.blob(f"{oci}.layer.v1.tar+gzip", gzip.compress(tar, mtime=0))
    config = layout.document(
        f"{oci}.config.v1+json",
        {
            "created": CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Cmd": ["/hello"],
                "Env": ["PATH=/"],
                "Labels": {"org.opencontainers.image.title": "scow/hello"},
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}"],
            },
            "history": [{"created": CREATED, "created_by": "cri/build_hello.py"}],
        },
    )
    manifest = layout.document(
        f"{oci}.manifest.v1+json",
        {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": config,
            "layers": [layer],
        },
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    manifest["platform"] = {"architecture": architecture, "os": "linux"}
    layout.write("oci-layout", encode({"imageLayoutVersion": "1.0.0"}))
    index = {"schemaVersion": 2, "mediaType": f"{oci}.index.v1+json", "manifests": [manifest]}
    layout.write("index.json", encode(index))


def build(directory: str = LAYOUT, source: str = SOURCE) -> None:
    """Compile and write the layout, in place of one that is there."""
    program = compile_program(source)
    fresh = f"{directory}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    write_layout(fresh, program)
    shutil.rmtree(directory, ignore_errors=True)
    os.rename(fresh, directory)


if __name__ == "__main__":
    build(*sys.argv[1:])
