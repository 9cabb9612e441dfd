"""Pushing to a registry that misbehaves, byte by byte (badinput.md F, image.md section 4).

The registry is a thread on loopback; the layer store is a stand-in that unpacks nothing.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from fixtures.push_server import Handler, PushServer, sha
from scow.image import push as push_module
from scow.image import registry_list, upload
from scow.image.credentials import Credentials
from scow.image.digest import DiffID, Digest
from scow.image.install import install_image, read_image_document
from scow.image.manifest import Descriptor
from scow.image.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from scow.image.progress import SilentProgress
from scow.image.push import Pushed, SilentPush, push_image
from scow.image.reference import parse_reference
from scow.image.registry_list import RegistryLists
from scow.image.registry_write import RegistryWriter, Session
from scow.image.store import ImageStore
from scow.image.tee import Cancelled
from scow.image.transport import Patience
from scow.native.errors import (
    IntegrityError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RegistryError,
    Unsupported,
)

QUICK = Patience(connect_s=2, idle_s=5, attempts=3, backoff_s=0.01, retry_after_limit_s=0.3)
BIG = os.urandom(3 << 20)  # three pieces, and not to be compressed


class NoLayers:
    """A layer store that takes everything and has nothing."""

    def __init__(self) -> None:
        self.unpacked: set[DiffID] = set()

    def has(self, diff_id: DiffID) -> bool:
        return diff_id in self.unpacked

    def info(self, diff_id: DiffID) -> Any:
        return SimpleNamespace(size=1)

    def stack(self, diff_ids: Sequence[DiffID]) -> list[str]:
        return [f"/{d[7:]}" for d in reversed(diff_ids)]

    def unpack(self, diff_id: DiffID, chunks: Iterator[bytes], *, limit_bytes: int = 0) -> None:
        for _ in chunks:
            pass
        self.unpacked.add(diff_id)

    def sync_names(self) -> None:
        """It has no names."""


class Blobs:
    """Where an image comes from that no registry has."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def add(self, data: bytes, media_type: str) -> dict[str, Any]:
        self.blobs[sha(data)] = data
        return {"mediaType": media_type, "digest": sha(data), "size": len(data)}

    def open_blob(self, descriptor: Descriptor, offset: int) -> Any:
        def chunks() -> Iterator[bytes]:
            yield self.blobs[descriptor.digest][offset:]

        return chunks()


@pytest.fixture
def server() -> Iterator[PushServer]:
    running = PushServer()
    yield running
    running.close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("HOME", str(tmp_path))  # no logins of this machine
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    layers: Any = NoLayers()
    return ImageStore(str(tmp_path / "root"), layers=layers)


def add_image(
    store: ImageStore, name: str, *layers: bytes, suffix: str = "+gzip", **more: object
) -> str:
    """Put an image of such layer blobs into the store; returns the manifest's digest."""
    source = Blobs()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha(b"tar" + layer) for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": source.add(json.dumps(config).encode(), OCI_CONFIG),
        "layers": [source.add(layer, OCI_LAYER + suffix) for layer in layers],
        **more,
    }
    data = json.dumps(manifest, indent=1).encode()  # no form that scow would give it
    document = read_image_document(data, Digest(sha(data)), OCI_MANIFEST, name)
    with store.content.lease() as lease:
        entry = install_image(
            store,
            source,
            document,
            lease,
            what=name,
            platform=None,
            progress=SilentProgress(),
        )
        store.add(entry.annotated(name=str(parse_reference(name))))
        lease.finish()
    return sha(data)


def push(store: ImageStore, name: str, **more: Any) -> Pushed:
    return push_image(store, name, patience=QUICK, **more)


@pytest.fixture
def name(server: PushServer, store: ImageStore) -> str:
    """An image with a large and a small layer, under a name at the server."""
    name = f"{server.host}/team/app:1"
    add_image(store, name, BIG, gzip.compress(b"small", mtime=0))
    return name


def once(hook: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    """A hook that works a single time."""
    left = [True]

    def run(handler: Handler) -> bool:
        if left and hook(handler):
            left.clear()
            return True
        return False

    return run


def is_big(handler: Handler, method: str) -> bool:
    return handler.command == method and handler.length > (1 << 20)


def assert_pushed(server: PushServer, store: ImageStore, name: str, digest: str) -> None:
    assert sha(server.manifests["team/app/1"]) == digest
    manifest = json.loads(server.manifests["team/app/1"])
    for part in [manifest["config"], *manifest["layers"]]:
        kept = store.content.read_blob(part["digest"], 1 << 30)
        assert server.blobs[f"team/app/{part['digest']}"] == kept
    assert server.open_uploads() == 0
    assert f"{name.rpartition(':')[0]}@{digest}" in store.get(name).digests


def test_byte_for_byte_and_only_once(server: PushServer, store: ImageStore, name: str) -> None:
    digest = store.get(name).manifest_digest
    pushed = push(store, name)
    assert (pushed.digest, pushed.size) == (digest, len(server.manifests["team/app/1"]))
    assert_pushed(server, store, name, digest)
    # Blobs first, the manifest last of all.
    assert [m for m, path, _ in server.log if "/manifests/" in path] == ["PUT"]
    assert "/manifests/" in server.log[-1][1]
    server.log.clear()
    push(store, name)
    assert server.methods() == ["HEAD"] * 3 + ["PUT"]


def test_small_blobs_are_one_request(server: PushServer, store: ImageStore, name: str) -> None:
    server.takes_posts = True
    assert_pushed(server, store, name, push(store, name).digest)
    small = [sha(data) for data in server.blobs.values() if len(data) < 1000]
    assert len(small) == 2, "the config and a layer"
    for digest in small:
        assert server.methods(digest) == ["HEAD"]
        posted = [path for method, path, _ in server.log if method == "POST" and digest[7:] in path]
        assert len(posted) == 1
    assert server.methods("uploads").count("POST") == 3
    assert server.methods("uploads").count("PUT") == 1, "the large one"


def test_a_registry_that_does_not_take_posts_is_asked_once(
    server: PushServer, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers as the spec says, or by an error, or hangs up: the blobs get there all the same."""
    monkeypatch.setattr(push_module, "PARALLEL_BLOBS", 1)

    def refuse(handler: Handler) -> bool:
        if handler.command != "POST" or "digest=" not in handler.path:
            return False
        handler.refuse(400)
        return True

    def hang_up(handler: Handler) -> bool:
        if handler.command != "POST" or "digest=" not in handler.path:
            return False
        handler.close_connection = True
        return True

    for number, hooks in enumerate(([], [refuse], [hang_up])):
        server.hooks[:] = hooks
        server.log.clear()
        server.blobs.clear()
        name = f"{server.host}/team/app:1"
        add_image(store, name, *(b"%d %d" % (number, layer) for layer in range(3)))
        assert_pushed(server, store, name, push(store, name).digest)
        asked = [path for method, path, _ in server.log if method == "POST" and "digest=" in path]
        assert len(asked) == 1
        assert server.methods("uploads").count("PUT") == 4


def test_a_damaged_small_blob_is_our_own_fault(
    server: PushServer, store: ImageStore, name: str
) -> None:
    server.takes_posts = True
    config = store.get(name).id
    with open(store.content.blob_path(config), "r+b") as file:
        file.write(b"[")
    with pytest.raises(IntegrityError, match="in the content store is damaged"):
        push(store, name)
    assert server.open_uploads() == 0


def test_mount_from_another_repository(server: PushServer, store: ImageStore, name: str) -> None:
    push(store, name)
    server.log.clear()
    pushed = push(store, name, destination=f"{server.host}/other/app:2")
    assert server.methods().count("POST") == 3
    assert "PUT" not in server.methods("/blobs/")
    query = parse_qs(urlsplit(next(p for m, p, _ in server.log if m == "POST")).query)
    assert query["from"] == ["team/app"]
    assert sha(server.manifests["other/app/2"]) == pushed.digest


def test_a_mount_that_is_not_granted_is_an_upload(
    server: PushServer, store: ImageStore, name: str
) -> None:
    push(store, name)
    server.blobs.clear()  # the registry has collected them: the mount's answer is an upload
    push(store, name, destination=f"{server.host}/other/app:2")
    assert sum(key.startswith("other/app/") for key in server.blobs) == 3
    server.hooks.append(lambda h: "mount=" in h.path and not h.refuse(403))
    push(store, name, destination=f"{server.host}/third/app:2")
    assert sum(key.startswith("third/app/") for key in server.blobs) == 3
    assert server.open_uploads() == 0


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("where", ["HEAD", "POST", "PUT blob", "PUT manifest"])
def test_fine_at_the_next_try(
    server: PushServer, store: ImageStore, name: str, status: int, where: str
) -> None:
    method, _, kind = where.partition(" ")
    part = "/manifests/" if kind == "manifest" else "/blobs/"
    server.hooks.append(
        once(
            lambda h: (
                h.command == method
                and part in h.path
                and not h.refuse(status, headers={"Retry-After": "0"})
            )
        )
    )
    assert_pushed(server, store, name, push(store, name).digest)


def test_a_cut_upload_goes_on_where_it_was(
    server: PushServer, store: ImageStore, name: str
) -> None:
    kept = (1 << 20) + 4711
    server.hooks.append(once(lambda h: is_big(h, "PUT") and not h.cut(kept)))
    assert_pushed(server, store, name, push(store, name).digest)
    patches = [headers for m, _, headers in server.log if m == "PATCH"]
    assert [h["Content-Range"] for h in patches] == [f"{kept}-{len(BIG) - 1}"]
    assert "GET" in server.methods("/uploads/")


def test_a_lost_upload_begins_again(server: PushServer, store: ImageStore, name: str) -> None:
    def lose(handler: Handler) -> bool:
        if not is_big(handler, "PUT"):
            return False
        server.uploads[int(urlsplit(handler.path).path.rpartition("/")[2])] = None
        handler.refuse(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
        return True

    server.hooks.append(once(lose))
    assert_pushed(server, store, name, push(store, name).digest)


def test_a_registry_that_loses_everything_ends(
    server: PushServer, store: ImageStore, name: str
) -> None:
    """Each time some of it arrives and is kept, and then all of it is lost."""

    def lose(handler: Handler) -> bool:
        if handler.command != "PATCH":
            return False
        server.uploads[int(urlsplit(handler.path).path.rpartition("/")[2])] = None
        handler.refuse(404)
        return True

    server.hooks.append(lambda h: is_big(h, "PUT") and not h.cut(1 << 20))
    server.hooks.append(lose)
    with pytest.raises(RegistryError):
        push(store, name)
    assert server.methods().count("PUT") < 20
    assert server.open_uploads() == 0


def test_a_wrong_offset_is_asked_for(server: PushServer, store: ImageStore, name: str) -> None:
    """The registry kept less than it said at first: 416, and then the right place."""
    server.hooks.append(once(lambda h: is_big(h, "PUT") and not h.cut(2 << 20)))

    def forget(handler: Handler) -> bool:
        if handler.command != "PATCH":
            return False
        held = server.uploads[int(urlsplit(handler.path).path.rpartition("/")[2])]
        assert held is not None
        del held[1 << 20 :]
        handler.refuse(416)
        return True

    server.hooks.append(once(forget))
    assert_pushed(server, store, name, push(store, name).digest)
    ranges = [headers["Content-Range"] for m, _, headers in server.log if m == "PATCH"]
    assert ranges == [f"{2 << 20}-{len(BIG) - 1}", f"{1 << 20}-{len(BIG) - 1}"]


def test_too_large_at_once_goes_in_chunks(
    server: PushServer, store: ImageStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "CHUNK_BYTES", 1 << 20)
    server.hooks.append(lambda h: h.length > (2 << 20) and not h.refuse(413))
    assert_pushed(server, store, name, push(store, name).digest)
    ranges = [headers["Content-Range"] for m, _, headers in server.log if m == "PATCH"]
    assert ranges == [f"{n << 20}-{((n + 1) << 20) - 1}" for n in range(3)]


def test_chunks_are_as_large_as_the_registry_asks(
    server: PushServer, store: ImageStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "CHUNK_BYTES", 1 << 20)
    server.more = {"OCI-Chunk-Min-Length": str(3 << 19)}
    server.hooks.append(lambda h: h.length > (2 << 20) and not h.refuse(413))
    assert_pushed(server, store, name, push(store, name).digest)
    ranges = [headers["Content-Range"] for m, _, headers in server.log if m == "PATCH"]
    assert ranges == [f"{n * (3 << 19)}-{(n + 1) * (3 << 19) - 1}" for n in range(2)]


def test_too_large_even_so(server: PushServer, store: ImageStore, name: str) -> None:
    server.hooks.append(lambda h: h.length > (1 << 20) and not h.refuse(413))
    with pytest.raises(RegistryError, match="too large for registry") as caught:
        push(store, name)
    assert "limits the size of requests" in (caught.value.hint or "")
    assert server.open_uploads() == 0


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (
            403,
            b'{"errors":[{"code":"DENIED","message":"quota exceeded"}]}',
            PermissionDenied,
            "quota",
        ),
        (404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}', NotFound, "repository does not exist there"),
        (405, b'{"errors":[{"code":"UNSUPPORTED"}]}', RegistryError, "does not allow starting"),
        (429, b"", RegistryError, "too many requests"),
        (507, b"", RegistryError, "status 507"),
    ],
)
def test_refusals_in_words(
    server: PushServer,
    store: ImageStore,
    name: str,
    status: int,
    body: bytes,
    kind: type[Exception],
    words: str,
) -> None:
    server.hooks.append(lambda h: h.command == "POST" and not h.refuse(status, body))
    with pytest.raises(kind, match=words):
        push(store, name)
    assert server.manifests == {}


def test_a_failure_cancels_the_other_uploads(
    server: PushServer, store: ImageStore, name: str
) -> None:
    server.hooks.append(lambda h: is_big(h, "PUT") and not h.refuse(403))
    with pytest.raises(PermissionDenied, match="denies pushing blob"):
        push(store, name)
    assert server.open_uploads() == 0
    assert "DELETE" in server.methods("/uploads/")
    assert server.manifests == {}
    assert os.listdir(store.content.ingest_dir) == []


def test_a_failure_ends_what_is_on_its_way(
    server: PushServer, store: ImageStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    works: list[Any] = []
    make = vars(push_module)["_BlobPush"]
    monkeypatch.setattr(
        push_module, "_BlobPush", lambda *args: works.append(make(*args)) or works[-1]
    )
    server.hooks.append(lambda h: h.command == "PUT" and not h.refuse(403))
    with pytest.raises(PermissionDenied):
        push(store, name)
    assert works[0].stop.is_set()
    with (
        open(store.content.blob_path(Digest(sha(BIG))), "rb") as file,
        RegistryWriter(parse_reference(name), patience=QUICK) as registry,
    ):
        blob = upload.BlobFile(file.fileno(), Digest(sha(BIG)), len(BIG))
        session = registry.begin_upload()
        assert server.open_uploads() == 1
        other = upload.BlobUpload(
            registry, blob, session, SilentPush(), layer="any", stop=works[0].stop
        )
        with pytest.raises(Cancelled):
            other.run()
    assert server.open_uploads() == 0


def test_a_blob_that_the_registry_lost_meanwhile(
    server: PushServer, store: ImageStore, name: str
) -> None:
    def lose(handler: Handler) -> bool:
        if "/manifests/" in handler.path:
            server.blobs.clear()
        return False

    server.hooks.append(lose)
    with pytest.raises(RegistryError, match="lacks a blob that the manifest names"):
        push(store, name)


def test_a_registry_that_stored_something_else(
    server: PushServer, store: ImageStore, name: str
) -> None:
    digest = "sha256:" + "0" * 64
    server.hooks.append(
        lambda h: (
            "/manifests/" in h.path and not h.refuse(201, headers={"Docker-Content-Digest": digest})
        )
    )
    with pytest.raises(IntegrityError, match=f"the registry has '{digest}'"):
        push(store, name)
    assert store.get(name).digests == ()


def test_a_damaged_blob_is_our_own_fault(server: PushServer, store: ImageStore, name: str) -> None:
    path = store.content.blob_path(Digest(sha(BIG)))
    with open(path, "r+b") as file:
        file.write(b"\0\0\0\0\0\0\0\0")
    with pytest.raises(IntegrityError, match="in the content store is damaged"):
        push(store, name)
    assert server.manifests == {}


def test_a_blob_that_is_not_kept(server: PushServer, store: ImageStore, name: str) -> None:
    push(store, name)
    os.unlink(store.content.blob_path(Digest(sha(BIG))))
    push(store, name)  # the registry has it: nothing is missing
    server.blobs.clear()
    with pytest.raises(NotFound, match="not kept here"):
        push(store, name)


# -- where the registry sends us ------------------------------------------------------------------


def test_another_host_gets_no_credentials(server: PushServer, store: ImageStore) -> None:
    other = PushServer()
    try:
        name = f"{server.host}/team/app:1"
        add_image(store, name, BIG)

        def demand(handler: Handler) -> bool:
            if handler.headers.get("Authorization"):
                return False
            handler.refuse(401, headers={"WWW-Authenticate": 'Basic realm="here"'})
            return True

        server.hooks.append(demand)
        server.location = f"http://{other.host}{{path}}?key=1"
        other.hooks.append(lambda h: not h.refuse(201 if h.command == "PUT" else 204))
        server.hooks.append(lambda h: "/manifests/" in h.path and not h.refuse(201))
        push(store, name, credentials=Credentials("sailor", "secret"))
        assert other.methods() == ["PUT", "PUT"]
        assert all("Authorization" not in headers for _, _, headers in other.log)
        assert all("key=1&digest=sha256" in path for _, path, _ in other.log)
    finally:
        other.close()


def test_a_token_that_ends_in_the_middle(server: PushServer, store: ImageStore, name: str) -> None:
    """The registry asks for another login when a blob is on its way."""
    asked: list[str] = []

    def demand(handler: Handler) -> bool:
        if handler.command != "PUT" or handler.headers.get("Authorization"):
            return False
        asked.append(handler.path)
        handler.refuse(401, headers={"WWW-Authenticate": 'Basic realm="here"'})
        return True

    server.hooks.append(demand)
    pushed = push(store, name, credentials=Credentials("sailor", "secret"))
    assert asked
    assert_pushed(server, store, name, pushed.digest)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        (
            "/v2/a/b/blobs/uploads/1?x=%2F",
            "https://reg.example.com:5000/v2/a/b/blobs/uploads/1?x=%2F",
        ),
        # A registry behind a proxy that ends TLS: the same host is never spoken to less safely.
        ("http://reg.example.com:5000/u?a=b", "https://reg.example.com:5000/u?a=b"),
        ("http://reg.example.com/u", None),
        ("http://other.example.com/u", None),
        ("https://127.0.0.1/u", None),
    ],
)
def test_uploads_never_leave_tls(location: str, url: str | None) -> None:
    with RegistryWriter(parse_reference("reg.example.com:5000/a/b")) as registry:
        answer: Any = SimpleNamespace(
            headers={"Location": location}, url="https://reg.example.com:5000/v2/a/b/blobs/uploads/"
        )
        session = Session("")
        if url is None:
            with pytest.raises(RegistryError, match="leads"):
                registry.move(session, answer)
        else:
            registry.move(session, answer)
            assert session.url == url
            assert session.with_digest(Digest("sha256:x")) == f"{url}&digest=sha256%3Ax"


@pytest.mark.parametrize(
    "location", ["http://169.254.169.254{path}", "file:///etc/passwd", "http://[::1", "//", ""]
)
def test_wrong_places_are_not_gone_to(
    server: PushServer, store: ImageStore, name: str, location: str
) -> None:
    server.location = location
    with pytest.raises(RegistryError):
        push(store, name)
    assert server.manifests == {}


def test_what_cannot_be_pushed(server: PushServer, store: ImageStore, name: str) -> None:
    image = store.get(name)
    with pytest.raises(InvalidArgument, match="does not say where to"):
        push(store, image.id)
    with pytest.raises(InvalidArgument, match="a digest is not a tag"):
        push(store, name, destination=f"{server.host}/a@{image.manifest_digest}")
    with pytest.raises(NotFound, match="no such image"):
        push(store, f"{server.host}/nobody:1")
    push(store, image.id[7:19], destination=f"{server.host}/by/id")
    assert "by/id/latest" in server.manifests


def test_one_image_in_place_of_a_list_is_said(
    server: PushServer, store: ImageStore, name: str
) -> None:
    told: list[str] = []

    class Sink(SilentPush):
        def warning(self, message: str) -> None:
            told.append(message)

    repository = name.rpartition(":")[0]
    with store.content.locked():
        entries = store.content.read_index()
        changed = [e.annotated(repo_digest=f"{repository}@sha256:{'1' * 64}") for e in entries]
        store.content.write_index(changed)
    push(store, name, destination=f"{server.host}/other:1", progress=Sink())
    assert told == []
    push(store, name, progress=Sink())
    assert len(told) == 1
    assert "several platforms" in told[0]
    push(store, name, progress=Sink())  # the tag is this very image now
    assert len(told) == 1


def test_progress_is_told_in_order(server: PushServer, store: ImageStore, name: str) -> None:
    events: list[tuple[str, str, int]] = []

    class Sink(SilentPush):
        def exists(self, blob: str, size: int) -> None:
            events.append(("exists", blob, size))

        def start(self, blob: str, size: int) -> None:
            events.append(("start", blob, size))

        def sent(self, blob: str, count: int) -> None:
            events.append(("sent", blob, count))

        def restarted(self, blob: str) -> None:
            events.append(("restarted", blob, 0))

        def done(self, blob: str) -> None:
            events.append(("done", blob, 0))

    server.hooks.append(once(lambda h: is_big(h, "PUT") and not h.cut(1 << 20)))
    push(store, name, progress=Sink())
    of_big = [(word, count) for word, blob, count in events if blob == sha(BIG)]
    assert of_big[0] == ("start", len(BIG))
    assert of_big[-1] == ("done", 0)
    again = of_big.index(("restarted", 0))
    assert sum(count for word, count in of_big[again:] if word == "sent") == len(BIG)


# -- subjects and lists ---------------------------------------------------------------------------


def test_a_subject_is_put_on_the_list_where_the_registry_keeps_none(
    server: PushServer, store: ImageStore
) -> None:
    subject = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "5" * 64, "size": 7}
    tag = "sha256-" + "5" * 64
    names = [f"{server.host}/team/app:{n}" for n in (1, 2)]
    digests = [
        add_image(store, n, n.encode(), subject=subject, annotations={"n": n}) for n in names
    ]
    for name in (*names, names[0]):
        push(store, name)
    index = json.loads(server.manifests[f"team/app/{tag}"])
    assert [m["digest"] for m in index["manifests"]] == digests
    assert index["manifests"][0]["annotations"] == {"n": names[0]}
    assert index["manifests"][0]["artifactType"] == OCI_CONFIG, "of the config, for want of another"
    with RegistryLists(parse_reference(names[0]), patience=QUICK) as registry:
        found = registry.referrers(Digest("sha256:" + "5" * 64))
    assert [d.digest for d in found] == digests
    del server.manifests[f"team/app/{tag}"]
    server.more = {"OCI-Subject": subject["digest"]}  # type: ignore[dict-item]  # is a str
    push(store, names[0])
    assert f"team/app/{tag}" not in server.manifests


def lists(server: PushServer, name: str = "team/app") -> RegistryLists:
    return RegistryLists(parse_reference(f"{server.host}/{name}"), patience=QUICK)


def serve_pages(server: PushServer, pages: dict[str, tuple[object, str]]) -> None:
    """Answer each path and query with a document and a Link header."""

    def answer(handler: Handler) -> bool:
        if handler.path not in pages:
            return False
        document, link = pages[handler.path]
        headers = {"Link": link} if link else {}
        handler.reply(200, json.dumps(document).encode(), headers)
        return True

    server.hooks.append(answer)


def test_tags_come_in_pages(server: PushServer) -> None:
    first = "/v2/team/app/tags/list?n=1000"
    serve_pages(
        server,
        {
            first: (
                {"name": "x", "tags": ["a", "b"]},
                '</v2/team/app/tags/list?last=b>; rel="next"',
            ),
            "/v2/team/app/tags/list?last=b": (
                {"tags": ["c"]},
                f'<https://{server.host}/v2/team/app/tags/list?last=c&n=9>; title="a, b"; rel=next',
            ),
            "/v2/team/app/tags/list?last=c&n=9": ({"tags": None}, '<elsewhere>; rel="prev"'),
        },
    )
    with lists(server) as registry:
        assert list(registry.tags()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "link",
    [
        "<http://example.com/v2/team/app/tags/list?x>; rel=next",
        "</v2/other/tags/list>; rel=next",
        "</metadata>; rel=next",
        "</v2/team/app/tags/list?n=1000>; rel=next",  # in a circle
    ],
)
def test_pages_lead_nowhere_else(server: PushServer, link: str) -> None:
    serve_pages(server, {"/v2/team/app/tags/list?n=1000": ({"tags": ["a"]}, link)})
    with lists(server) as registry, pytest.raises(RegistryError, match="page"):
        list(registry.tags())
    assert len(server.log) == 1


def test_pages_without_end(server: PushServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_list, "MAX_PAGES", 20)
    count = iter(range(10**6))

    def more(handler: Handler) -> bool:
        link = f"</v2/team/app/tags/list?last={next(count)}>; rel=next"
        handler.reply(200, b'{"tags":["a"]}', {"Link": link})
        return True

    server.hooks.append(more)
    with lists(server) as registry, pytest.raises(RegistryError, match="more than 20 pages"):
        list(registry.tags())


def test_referrers_by_the_registry(server: PushServer) -> None:
    digest = Digest("sha256:" + "1" * 64)
    entries = [
        {"mediaType": OCI_MANIFEST, "digest": "sha256:" + c * 64, "size": 2, "artifactType": kind}
        for c, kind in (("a", "sig"), ("b", "sbom"))
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    path = f"/v2/team/app/referrers/{digest}"
    serve_pages(server, {path: (index, ""), f"{path}?artifactType=sbom": (index, "")})
    with lists(server) as registry:
        assert len(registry.referrers(digest)) == 2
        # A registry that did not filter: then it is done here.
        assert [d.artifact_type for d in registry.referrers(digest, "sbom")] == ["sbom"]
        assert registry.referrers(Digest("sha256:" + "2" * 64)) == []


def test_removal(server: PushServer, store: ImageStore, name: str) -> None:
    push(store, name)
    answers = {"1": 405, "sha256:" + "a" * 64: 405, "sha256:" + "b" * 64: 202}
    server.hooks.append(
        lambda h: h.command == "DELETE" and not h.refuse(answers[h.path.rpartition("/")[2]])
    )
    with RegistryWriter(parse_reference(name), patience=QUICK) as registry:
        with pytest.raises(Unsupported, match="cannot remove a tag by itself"):
            registry.delete_manifest("1")
        with pytest.raises(RegistryError, match="does not allow removing") as caught:
            registry.delete_manifest("sha256:" + "a" * 64)
        assert "turned off" in (caught.value.hint or "")
        registry.delete_manifest("sha256:" + "b" * 64)
        registry.delete_blob(Digest("sha256:" + "b" * 64))
