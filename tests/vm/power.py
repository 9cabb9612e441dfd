"""`make test-power`: cut the power of a guest in the middle of a pull, many times, and look what is left.

    power.py [--cycles 30] [--seed N]

Each cycle boots the guest of `make test-vm` with a start of its own (no systemd: 5 s instead of 13), looks at
the store that the cycle before left (power_guest.py), pulls, and is killed some moment after the pull has come so
far, in percent; both are random.

What a kill of QEMU loses: all that the guest had in memory only, its whole page cache with the journal's
open transaction, as a power cut does. What it keeps: all that the guest's kernel had sent to its disk, flushed
or not, as a disk with a battery does. A disk that reorders in its own cache is not modelled.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from fixtures import checkout  # noqa: E402  # tests/ is a package for pytest only
from vm import image  # noqa: E402

BOOT_LIMIT_S = 1800.0
LAYERS, FILES = 6, 300  # files of each layer
INIT = """\
#!/busybox sh
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /busybox insmod /$module.ko; done
while [ ! -b /dev/vdc ]; do /busybox sleep 0.1; done
/busybox mount -t ext4 /dev/vda /root
/busybox mkdir -p /root/work /root/store
/busybox mount -t ext4 -o ro /dev/vdb /root/work
/busybox mount -t ext4 /dev/vdc /root/store
/busybox mount -t proc proc /root/proc
/busybox mount -t sysfs sys /root/sys
/busybox mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
/busybox mount -t devtmpfs dev /root/dev
/busybox mount -t tmpfs tmpfs /root/run
/busybox mount -t tmpfs tmpfs /root/tmp
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root
export PYTHONPATH=/work/site PYTHONDONTWRITEBYTECODE=1 SCOW_ROOT=/store/scow SCOW_RUN=/run/scow
/busybox chroot /root /bin/sh -c 'modprobe overlay; ip link set lo up; python3 /work/power_guest.py'
/busybox umount /root/store
/busybox poweroff -f
"""


def layer(number: int, rng: random.Random) -> tuple[bytes, dict[str, list[object]]]:
    """A layer tar, and what must lie in its directory."""
    out = io.BytesIO()
    golden: dict[str, list[object]] = {}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname = kind, mode, link
            info.uid, info.size, info.mtime = number, len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))

        for directory in range(10):
            add(f"d{directory}", tarfile.DIRTYPE, 0o755)
            golden[f"d{directory}"] = [stat.S_IFDIR, 0o755, number]
        for file in range(FILES):
            name, mode = f"d{file % 10}/f{number}.{file}", rng.choice([0o644, 0o755, 0o4755])
            data = rng.randbytes(rng.choice([0, 40, 900, 3000, 30000])) * rng.choice([1, 1, 2, 8])
            add(name, tarfile.REGTYPE, mode, data)
            digest = hashlib.sha256(data).hexdigest()
            golden[name] = [stat.S_IFREG, mode, number, len(data), digest]
        add(f"d0/s{number}", tarfile.SYMTYPE, 0o777, link="f0")
        golden[f"d0/s{number}"] = [stat.S_IFLNK, "f0"]
        if number:
            add(f"d1/.wh.f{number - 1}.1", tarfile.REGTYPE, 0o644)
            golden[f"d1/f{number - 1}.1"] = ["whiteout"]
    return out.getvalue(), golden


def make_image(work: Path) -> None:
    """The image as blobs by their digest and by its tag, and golden.json."""
    (work / "blobs").mkdir()
    rng = random.Random(7)
    golden: dict[str, object] = {}
    layers: list[dict[str, object]] = []

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (work / "blobs" / digest).write_bytes(data)
        kind = f"application/vnd.oci.image.{kind}"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    for number in range(LAYERS):
        tar, facts = layer(number, rng)
        golden[hashlib.sha256(tar).hexdigest()] = facts
        layers.append(put(gzip.compress(tar, 1, mtime=0), "layer.v1.tar+gzip"))
    config = {"architecture": "amd64", "os": "linux", "config": {}}
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{name}" for name in golden]}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config | {"rootfs": rootfs}).encode(), "config.v1+json"),
        "layers": layers,
    }
    data = json.dumps(manifest).encode()
    put(data, "manifest.v1+json")
    (work / "blobs/latest").write_bytes(data)
    (work / "golden.json").write_text(json.dumps(golden))


class Machine:
    """The guest's files, and a disk that outlives each cut."""

    def __init__(self, place: Path) -> None:
        guest = image.ensure()
        for name in ("disk", "vmlinuz", "initramfs"):
            os.link(guest.directory / name, place / name)  # another recipe's build takes them away
        start = image.Cpio()
        start.add("init", 0o100755, INIT.format(modules=" ".join(image.MODULES)).encode())
        initrd = (place / "initramfs").read_bytes() + gzip.compress(start.finish(), 1)
        (place / "initrd").write_bytes(initrd)
        work = place / "work"
        work.mkdir()
        with zipfile.ZipFile(checkout.build_wheel(work)) as wheel:
            wheel.extractall(work / "site")
        (work / "power_guest.py").write_bytes((ROOT / "tests/vm/power_guest.py").read_bytes())
        make_image(work)
        image.run("mke2fs", "-q", "-t", "ext4", "-d", work, place / "work.disk", "256M")
        image.run("mke2fs", "-q", "-t", "ext4", place / "store.disk", "512M")
        self._place = place

    def command(self, words: str) -> list[str]:
        """No flush of the host's is asked for: what is in its page cache outlives QEMU."""
        place, accelerator = self._place, os.environ.get("SCOW_VM_ACCEL", "tcg,thread=multi")
        return [
            "qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-accel", accelerator,
            "-smp", "2", "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-nic", "none", "-kernel", f"{place}/vmlinuz", "-initrd", f"{place}/initrd",
            "-append", f"console=ttyS0 panic=-1 mitigations=off random.trust_cpu=on quiet {words}",
            "-drive", f"file={place}/disk,format=raw,if=virtio,snapshot=on,cache=unsafe",
            "-drive", f"file={place}/work.disk,format=raw,if=virtio,read-only=on",
            "-drive", f"file={place}/store.disk,format=raw,if=virtio,cache=writeback",
            "-serial", f"file:{place}/console", "-serial", "stdio",
        ]  # fmt: skip

    def boot(self, words: str, percent: int | None, then_s: float = 0.0) -> list[str]:
        """One life of the guest; a kernel that on a busy host takes its timer for broken gets another one."""
        for _ in range(5):
            told = self._live(words, percent, then_s)
            if told is not None:
                return told
            console = (self._place / "console").read_text(errors="replace")
            if "timer doesn't work" not in console:
                break
        sys.exit("\n".join(["the guest did not come so far:", *console.splitlines()[-40:]]))

    def _live(self, words: str, percent: int | None, then_s: float) -> list[str] | None:
        """What it told until the end, or until `then_s` after a pull was `percent` done, when its power went."""
        machine = subprocess.Popen(
            self.command(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert machine.stdout
        os.set_blocking(machine.stdout.fileno(), False)
        lines: list[str] = []
        text, is_pulling = "", False
        limit = time.monotonic() + BOOT_LIMIT_S
        cut = limit
        try:
            while time.monotonic() < cut and machine.poll() is None:
                text += (machine.stdout.read() or b"").decode(errors="replace")
                *whole, text = text.replace("\r", "").split("\n")
                for line in whole:
                    lines.append(line)
                    is_pulling = is_pulling or line == "pulling"
                    if percent is not None and is_pulling and done(line) >= percent:
                        cut = min(cut, time.monotonic() + then_s)
                time.sleep(0.02)
        finally:
            machine.kill()
            machine.wait()
            machine.stdout.close()
        if ("end" not in lines) if percent is None else cut == limit:
            return None
        return [
            line for line in lines if line not in ("pulling", "end") and not line.startswith("at ")
        ]


def done(line: str) -> int:
    """The percent that a line of the guest tells of a pull; -1 for other lines."""
    told = re.fullmatch(r"at (\d+)", line)
    return int(told[1]) if told else 100 if line == "pulled" else -1


def main() -> int:
    """0 when nothing that was listed or named is damaged after any cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    rng, started = random.Random(given.seed), time.monotonic()
    seen: list[str] = []
    with tempfile.TemporaryDirectory(prefix="scow-power.", dir="/var/tmp") as top:
        machine = Machine(Path(top))
        print(f"seed {given.seed}", flush=True)
        for number in range(given.cycles):
            percent, after = rng.randrange(101), rng.uniform(0, 2)
            told = machine.boot("", percent, after)
            seen += told
            how = f"cut {after:.1f} s after {percent} %"
            print(f"{number:3}: {' | '.join(told)} | then {how}", flush=True)
        told = machine.boot("last", None)
        seen += told
        print(f"end: {' | '.join(told)}", flush=True)
    bad = [line for line in seen if line.startswith("BAD")]
    half = sum(bool(re.match(r"checked: [1-5] layers", line)) for line in seen)
    print(
        f"{given.cycles} cuts in {time.monotonic() - started:.0f} s, {half} left some layers of {LAYERS}, bad {len(bad)}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
