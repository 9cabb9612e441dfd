"""Runs in the guest of `make test-power`, as all that runs there: looks at what the last power cut left, then pulls.

Lines on the second serial port tell the host where it is: "checked ...", "pulling", "at 40", "pulled", "BAD ...".
What is looked at is read without scow's help; what it must be is in golden.json, made on the host with tarfile.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

WORK = Path("/work")
STORE = Path("/store/scow")
PORT = 5000
NAME = f"127.0.0.1:{PORT}/power:latest"
BLOB = re.compile(r"/v2/power/(?:blobs|manifests)/(?:sha256:)?([a-z0-9]+)")


def tell(text: str) -> None:
    with open("/dev/ttyS1", "w", buffering=1) as port:
        port.write(f"{text}\n")


class Blobs(http.server.BaseHTTPRequestHandler):
    """As much of a registry as a pull asks for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = BLOB.fullmatch(self.path)
        path = WORK / "blobs" / found[1] if found else WORK
        if self.path != "/v2/" and not path.is_file():
            self.answer(404, b"{}")
            return
        data = path.read_bytes() if path.is_file() else b"{}"
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span:
            self.answer(200, data)
            return
        first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        extra = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self.answer(206, data[first : last + 1], extra)

    do_HEAD = do_GET

    def answer(self, status: int, data: bytes, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        kind = "application/octet-stream"
        if "/manifests/" in self.path:
            kind = "application/vnd.oci.image.manifest.v1+json"
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self.send_header("Docker-Content-Digest", digest)
        headers = {"Content-Type": kind, "Content-Length": str(len(data)), "Accept-Ranges": "bytes"}
        for key, value in (headers | (extra or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


def scow(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["/opt/scow/bin/python", "-m", "scow.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def facts(path: str) -> list[object]:
    """What golden.json says of one name; a whiteout is ["whiteout"]."""
    st = os.lstat(path)
    if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
        return ["whiteout"]
    found: list[object] = [stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), st.st_uid]
    if stat.S_ISLNK(st.st_mode):
        return [stat.S_IFMT(st.st_mode), os.readlink(path)]
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as file:
            found += [st.st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    return found


def damage() -> tuple[list[str], int, int]:
    """What is wrong in the layers that have their name; how many they are, and their files."""
    golden = json.loads((WORK / "golden.json").read_text())
    bad: list[str] = []
    layers = files = 0
    for place in sorted((STORE / "layers").glob("[0-9a-f]*")):
        if place.name not in golden or not (place / "layer.json").exists():
            continue  # without layer.json it does not exist for scow
        layers += 1
        tree, wanted = str(place / "diff"), golden[place.name]
        seen: dict[str, list[object]] = {}
        for top, below, names in os.walk(tree):
            for name in below + names:
                path = f"{top}/{name}"
                seen[path[len(tree) + 1 :]] = facts(path)
        files += len(seen)
        for name in sorted(seen.keys() | wanted.keys()):
            if seen.get(name) != wanted.get(name):
                bad.append(f"{place.name[:12]}/{name}: {seen.get(name)}, not {wanted.get(name)}")
    return bad, layers, files


def check() -> bool:
    """One look; whether the image is listed."""
    started = time.monotonic()
    listed = scow("images", "-q")
    bad, layers, files = damage()
    if listed.returncode or listed.stderr:
        bad.append(f"scow images: {listed.returncode} {listed.stderr}")
    is_listed = bool(listed.stdout.strip())
    if is_listed:
        golden = json.loads((WORK / "golden.json").read_text())
        missing = [n for n in golden if not (STORE / "layers" / n / "layer.json").exists()]
        bad += [f"listed without layer {name}" for name in missing]
    told = scow("system", "check")
    left = [line for line in told.stdout.splitlines() if "nothing damaged" not in line]
    # Leftovers of a pull that was cut are no damage; what is damaged says so.
    bad += [f"check: {line}" for line in left if re.search(r"damage|lacks", line)]
    if told.returncode not in (0, 1):
        bad.append(f"scow system check: {told.returncode} {told.stderr}")
    mended = scow("system", "check", "--repair")
    if mended.returncode:
        bad.append(f"after --repair: {mended.stdout} {mended.stderr}")
    for line in bad[:20]:
        tell(f"BAD {line}")
    seconds = time.monotonic() - started
    tell(
        f"checked: {layers} layers, {files} files, listed {int(is_listed)}, leftovers {len(left)}, "
        f"bad {len(bad)}, {seconds:.0f} s: {'; '.join(left)[:300]}"
    )
    return is_listed


def progress() -> int:
    """How far a pull is, in percent: half of it are the bytes that came, half the layers that have their name."""
    golden = json.loads((WORK / "golden.json").read_text())
    whole = sum(path.stat().st_size for path in (WORK / "blobs").iterdir())
    come = 0
    for path in [*STORE.glob("images/ingest/sha*"), *STORE.glob("images/blobs/*/*")]:
        with suppress(FileNotFoundError):
            come += path.stat().st_size
    named = sum((STORE / "layers" / name / "layer.json").exists() for name in golden)
    return min(come * 50 // whole, 50) + named * 50 // len(golden)


def tell_progress() -> None:
    last = -1
    while True:
        now = progress()
        if now != last:
            tell(f"at {now}")
        last = now
        time.sleep(0.1)


def main() -> None:
    """Look, pull, remove, pull ... until the power goes; with "last" once, and end."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Blobs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    is_listed = check()
    threading.Thread(target=tell_progress, daemon=True).start()
    is_last = "last" in Path("/proc/cmdline").read_text().split()
    while True:
        # What is whole is taken away, what is half is gone on with.
        if is_listed and (done := scow("rmi", "-f", NAME)).returncode:
            tell(f"BAD rmi: {done.stderr}")
        tell("pulling")
        done = scow("pull", "-q", "--plain-http", NAME)
        if done.returncode:
            tell(f"BAD pull: {done.returncode} {done.stdout} {done.stderr}")
        tell("pulled")
        is_listed = True
        if is_last:
            check()
            tell("end")
            return


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        tell(f"BAD {type(error).__name__}: {error}")
        sys.exit(1)
