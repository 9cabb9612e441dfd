"""Builds the guest: a Debian 12 with systemd on a disk, a kernel, and a small initramfs.

The disk is made by mmdebstrap and tests/vm/provision.sh, the script of the Vagrant lab, and kept
below /var/cache/scow-tests by its recipe: this file, the script, the dependencies of the package.
What changes with every run (the tests, the wheel of scow) is on a second disk: see run.py.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROVISION = ROOT / "tests/vm/provision.sh"
CACHE = Path(os.environ.get("SCOW_TEST_CACHE", "/var/cache/scow-tests")) / "guest"
APT_ARCHIVES = Path("/var/cache/apt/archives")
SUITE = "bookworm"
DISK = "4G"
SYSTEM = ("systemd", "systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "busybox-static")
SYSTEM += ("apparmor",)  # its parser: the labels of scow-oci are tested where AppArmor is enabled
# In the order in which they need each other; ext4 is built in.
MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev")
MODULES += ("virtio_pci", "virtio_blk")
# What only costs time at the start of a machine that lives for minutes.
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer")
MASKED += ("getty@tty1.service", "serial-getty@ttyS0.service", "systemd-timesyncd.service")
MASKED += ("e2scrub_reap.service", "dpkg-db-backup.timer", "systemd-networkd.service")
# The tests start their own.
MASKED += ("docker.service", "docker.socket", "containerd.service", "podman.service")
MASKED += ("podman.socket", "podman-restart.service", "podman-auto-update.timer")
MASKED += ("apparmor.service",)

UNIT = """\
[Unit]
Description=the tests of scow
[Service]
Type=oneshot
ExecStart=/bin/bash /work/start
ExecStopPost=/bin/systemctl poweroff --no-block
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
"""

INIT = """\
#!/busybox sh
/busybox mount -t proc proc /proc
/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /busybox insmod /$module.ko; done
while [ ! -b /dev/vda ]; do /busybox sleep 0.1; done
/busybox mount -t ext4 /dev/vda /root
/busybox umount /proc
exec /busybox switch_root /root /sbin/init
"""


@dataclass(frozen=True, slots=True)
class Guest:
    """The files that QEMU boots."""

    directory: Path

    @property
    def disk(self) -> Path:
        """ext4 without a partition table; to be used with a snapshot, it is shared."""
        return self.directory / "disk"

    @property
    def kernel(self) -> Path:
        """Debian's own."""
        return self.directory / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        """busybox and the modules without which the disk is not seen."""
        return self.directory / "initramfs"


def run(*argv: str | os.PathLike[str], env: dict[str, str] | None = None) -> None:
    """Run a tool; its output is shown when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(os.fspath, argv))}: failed\n{done.stdout}{done.stderr}")


def requirements() -> list[str]:
    """What scow and its tests need from the package index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


def recipe_key() -> str:
    """Names the guest: another recipe is another guest."""
    parts = [Path(__file__).read_bytes(), PROVISION.read_bytes(), repr(requirements()).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def ensure() -> Guest:
    """The guest, built now if it is not there; older ones go."""
    place = CACHE / recipe_key()
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            print("building the guest (once, about two minutes)", flush=True)
            for path in CACHE.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            with tempfile.TemporaryDirectory(dir=CACHE) as top:
                fresh = Path(top, "guest")
                fresh.mkdir()
                build(Guest(fresh), Path(top))
                fresh.rename(place)
    return Guest(place)


def build(guest: Guest, work: Path) -> None:
    """Make the root file system, then the three files from it."""
    root, wheels = work / "root", work / "wheels"
    run(sys.executable, "-m", "pip", "wheel", "-q", "-w", wheels, *requirements())
    bootstrap(root, wheels)
    [kernel] = (root / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, guest.kernel)
    version = kernel.name.removeprefix("vmlinuz-")
    write_initramfs(guest.initramfs, root / "lib/modules" / version)
    configure(root)
    for path in (root / "boot").glob("initrd*"):
        path.unlink()
    run("mke2fs", "-q", "-t", "ext4", "-d", root, guest.disk, DISK)


def bootstrap(root: Path, wheels: Path) -> None:
    """mmdebstrap, and in its chroot the provisioning script, with pip's packages at hand."""
    wanted = subprocess.run(
        [PROVISION, "list", "run", "engines"], capture_output=True, text=True, check=True
    ).stdout.split()
    pip = "env PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels"
    words = " ".join(f"'{word}'" for word in requirements())
    run(
        "mmdebstrap",
        "-q",
        "--variant=minbase",
        f"--include={' '.join((*SYSTEM, *wanted))}",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        '--setup-hook=mkdir -p "$1/var/cache/apt/archives"',
        f'--setup-hook=cp {APT_ARCHIVES}/*.deb "$1/var/cache/apt/archives/" || true',
        f"--customize-hook=copy-in {PROVISION} /usr/local/sbin",
        f"--customize-hook=copy-in {wheels} /",
        '--customize-hook=chroot "$1" provision.sh packages run engines',
        f'--customize-hook=chroot "$1" {pip} provision.sh python {words}',
        '--customize-hook=rm -r "$1/wheels"',
        SUITE,
        root,
    )


def configure(root: Path) -> None:
    """No password, no waiting; the tests start by themselves and the machine goes off after them."""
    (root / "etc/fstab").write_text("/dev/vdb /work ext4 defaults 0 0\n")
    (root / "work").mkdir()
    (root / "etc/hostname").write_text("scow-guest\n")
    units = root / "etc/systemd/system"
    (units / "scow-tests.service").write_text(UNIT)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/scow-tests.service").symlink_to("../scow-tests.service")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")


def write_initramfs(target: Path, modules: Path) -> None:
    """A newc cpio archive, as the kernel's Documentation/driver-api/early-userspace describes it."""
    archive = Cpio()
    for name in ("proc", "dev", "root"):
        archive.add(name, 0o040755)
    archive.add("busybox", 0o100755, Path("/bin/busybox").read_bytes())
    for name in MODULES:
        [path] = modules.rglob(f"{name}.ko")
        archive.add(path.name, 0o100644, path.read_bytes())
    archive.add("init", 0o100755, INIT.format(modules=" ".join(MODULES)).encode())
    target.write_bytes(gzip.compress(archive.finish(), 1))


class Cpio:
    """A cpio archive in memory; Debian's cpio is one package less to install."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.inode = 0

    def add(self, name: str, mode: int, content: bytes = b"") -> None:
        """Append one entry: a header of thirteen hexadecimal numbers, the name, the content."""
        self.inode += 1
        path = name.encode() + b"\0"
        numbers = (self.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        self.data += b"070701" + b"".join(b"%08X" % number for number in numbers)
        self.append(path)
        self.append(content)

    def append(self, part: bytes) -> None:
        """Append and fill up to four bytes, which is how each part ends."""
        self.data += part
        self.data += bytes(-len(self.data) % 4)

    def finish(self) -> bytes:
        """The whole archive."""
        self.add("TRAILER!!!", 0)
        return bytes(self.data)


if __name__ == "__main__":
    print(ensure().directory)
