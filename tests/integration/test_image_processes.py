"""Pulls in processes of their own: one download for two, a resume after kill -9, a bomb's memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from fixtures.fake_registry import FakeRegistry, Handler
from scow.image.digest import hex_of, parse_diff_id
from scow.image.layers import LayerStore
from scow.image.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from scow.image.store import ImageStore

pytestmark = pytest.mark.root

BOMB_BYTES = 192 << 20
# Beside the interpreter: queues, windows, the buffers of a few layers.
ROOM_KB = 64 << 10

PROGRAM = """
import re, sys
from scow.image.store import ImageStore

def peak():  # ru_maxrss would remember what the process was before its execve
    with open("/proc/self/status") as stream:
        return int(re.search(r"VmHWM:\\s+(\\d+)", stream.read())[1])

import scow.image.pull, scow.image.transport, scow.image.unpack
before = peak()
ImageStore(sys.argv[1]).pull(sys.argv[2])
print(peak() - before)
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    monkeypatch.setenv("HOME", str(tmp_path))
    fake = FakeRegistry()
    yield fake
    fake.close()


def layer_tar(files: dict[str, bytes]) -> bytes:
    """A layer's archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def start(root: Path, registry: FakeRegistry) -> subprocess.Popen[str]:
    """A pull in another process."""
    argv = [sys.executable, "-c", PROGRAM, str(root), f"{registry.host}/team/app"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> int:
    """Its peak of memory above what it began with, in KiB."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return int(output)


def blob_requests(registry: FakeRegistry) -> list[str]:
    """The digests of the blobs that were asked for, in their order."""
    return [path.rpartition("/")[2] for _, path, _ in registry.log if "/blobs/" in path]


def test_two_processes_download_a_blob_once(scow_root: Path, registry: FakeRegistry) -> None:
    registry.add_image(*(layer_tar({f"f{n}": os.urandom(300_000)}) for n in range(3)))
    both_ask = threading.Barrier(2, timeout=30)

    def hold(handler: Handler) -> bool:
        if handler.command == "HEAD":
            both_ask.wait()  # both are past the start when the first layer is sent
        return False

    registry.hooks.append(hold)
    pulls = [start(scow_root, registry) for _ in range(2)]
    for process in pulls:
        finish(process)
    layers = [digest for digest in blob_requests(registry) if len(registry.blobs[digest]) > 1000]
    assert sorted(layers) == sorted(set(layers))
    assert len(layers) == 3
    assert ImageStore(str(scow_root)).verify() == []


def test_a_killed_process_leaves_what_it_had_fetched(
    scow_root: Path, registry: FakeRegistry
) -> None:
    top = registry.add_image(layer_tar({"file": os.urandom(6_000_000)}))
    digest = json.loads(registry.manifests[top["digest"]][1])["layers"][0]["digest"]
    data = registry.blobs[digest]
    killed = threading.Event()
    half = threading.Event()

    def stop_at_half(handler: Handler) -> bool:
        if not handler.path.endswith(digest) or killed.is_set():
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.wfile.flush()
        half.set()
        killed.wait(30)
        handler.close_connection = True
        return True

    registry.hooks.append(stop_at_half)
    store = ImageStore(str(scow_root))
    process = start(scow_root, registry)
    assert half.wait(30)
    path = Path(store.content.ingest_path(digest))
    for _ in range(600):
        if path.exists() and path.stat().st_size == len(data) // 2:
            break
        threading.Event().wait(0.05)
    process.kill()
    process.communicate()
    killed.set()
    finish(start(scow_root, registry))
    last = [headers for _, path, headers in registry.log if path.endswith(digest)][-1]
    assert last["Range"] == f"bytes={len(data) // 2}-"
    store.verify(repair=True)
    assert store.verify() == []


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_bomb_is_unpacked_in_little_memory(
    scow_root: Path, registry: FakeRegistry, kind: str
) -> None:
    """A thousand times as much comes out as goes in; the pieces stay small."""
    member = tarfile.TarInfo("zeros")
    member.size = BOMB_BYTES
    head, zeros = member.tobuf(), bytes(1 << 20)
    diff = hashlib.sha256(head)
    packed = io.BytesIO()
    if kind == "gzip":
        stream = gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1)
    else:
        stream = zstandard.ZstdCompressor().stream_writer(packed, closefd=False)
    with stream:
        stream.write(head)
        for _ in range(BOMB_BYTES >> 20):
            stream.write(zeros)
            diff.update(zeros)
        stream.write(bytes(1024))
        diff.update(bytes(1024))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff.hexdigest()}"]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": registry.add_blob(json.dumps(config).encode(), OCI_CONFIG),
        "layers": [registry.add_blob(packed.getvalue(), f"{OCI_LAYER}+{kind}")],
    }
    registry.add_manifest(document, tag="latest")
    assert len(packed.getvalue()) * 100 < BOMB_BYTES
    assert finish(start(scow_root, registry)) < ROOM_KB


def test_a_layer_is_synced_when_it_is_to_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is only unpacked to be compared goes to no disk; what gets a name does, layer.json too."""
    seen: list[bool] = []
    store = LayerStore(str(tmp_path))
    tar = layer_tar({"file": b"x"})
    diff_id = parse_diff_id("sha256:" + hashlib.sha256(tar).hexdigest())
    staged = tmp_path / ".staging" / hex_of(diff_id)

    def sync(fd: int) -> None:
        seen.append((staged / "layer.json").exists() and (staged / "diff/file").exists())

    monkeypatch.setattr("scow.native.sys.syncfs", sync)
    store.unpack(diff_id, [tar])
    assert seen == [True]
    assert not store.compare(diff_id, [tar], mend=False)
    assert seen == [True]
    assert store.compare(diff_id, [tar], mend=True) == []
    assert seen == [True, True]
