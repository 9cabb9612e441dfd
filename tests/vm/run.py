"""`make test-vm`: boot the guest with the checkout's tests and this build of scow, show what happens.

The guest has no network. It gets a second disk with a wheel of scow, the tests and an image, runs
what is marked `cgroup_v2` or `guest`, and tells the result on its second serial port. It is plain emulation,
about ten times slower than the host; SCOW_VM_ACCEL=kvm uses a KVM that works.

    run.py                       the chosen part
    run.py tests/FILE ... [-k ...]   these files, what is slow too; SCOW_VM_LIMIT_S=3600 for as long as that takes
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from fixtures import checkout, images  # noqa: E402  # tests/ is a package for pytest only
from vm import image  # noqa: E402

MEMORY = "2048"
WORK_DISK = "512M"
LIMIT_S = float(os.environ.get("SCOW_VM_LIMIT_S", "840"))
END = re.compile(rb"^scow-guest: exit (\d+)", re.MULTILINE)

START = """\
#!/bin/bash
# Runs in the guest, as the only thing that it does.
export HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 SCOW_CI=1 COLUMNS=120
export PATH=/opt/scow/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
stty -F /dev/ttyS1 -opost 2>/dev/null
echo "guest: $(uname -r), $(stat -fc %T /sys/fs/cgroup), up $(cut -d. -f1 /proc/uptime) s"
provision.sh install /work/*.whl
cd /work/checkout || exit 1
timeout {limit} python -m pytest -p no:cacheprovider --color=no --timeout=300 {arguments}
echo "scow-guest: exit $?"
"""


def chosen() -> list[str]:
    """The guest's part: its files are named, because to collect all of them would take minutes."""
    tests = [name for name in checkout.files() if re.fullmatch(r"tests/(.*/)?test_\w+\.py", name)]
    marks = re.compile(r"mark\.(cgroup_v2|guest)\b")
    return [
        "-m",
        "(cgroup_v2 or guest) and not slow",
        # What is run with a warm process and without is run without: it is the same code. Docker runs with systemd only.
        "-k",
        "not warm and not test_oci_docker",
        *sorted(n for n in tests if marks.search((ROOT / n).read_text())),
    ]


def make_work_disk(directory: Path, arguments: list[str]) -> Path:
    """The second disk: a wheel of scow, the tests, a busybox image, and what to start."""
    tree = directory / "tree"
    checkout.copy(tree / "checkout", below=("tests/", "pyproject.toml"))
    checkout.build_wheel(tree)
    for name, tag in (("busybox", "latest"), ("many", "many")):
        source = f"oci:{images.ensure(name)}:{tag}"
        image.run("skopeo", "copy", "-q", source, f"oci-archive:{tree}/{name}.tar:{name}:latest")
    is_chosen = not any(word.startswith("tests/") for word in arguments)
    words = [*chosen(), *arguments] if is_chosen else arguments
    start = START.format(arguments=shlex.join(words), limit=int(LIMIT_S - 90))
    (tree / "start").write_text(start)
    disk = directory / "work"
    image.run("mke2fs", "-q", "-t", "ext4", "-d", tree, disk, WORK_DISK)
    return disk


def qemu_command(guest: image.Guest, work: Path, console: Path) -> list[str]:
    """The machine: two processors, two disks, two serial ports, no network."""
    # Emulation unless asked: a /dev/kvm inside another machine may be there and not work.
    chosen = os.environ.get("SCOW_VM_ACCEL", "tcg,thread=multi")
    return [
        "qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-accel", chosen,
        "-smp", "2", "-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none",
        "-no-reboot", "-nic", "none",
        "-kernel", str(guest.kernel), "-initrd", str(guest.initramfs),
        "-append", "console=ttyS0 panic=-1 mitigations=off random.trust_cpu=on",
        "-drive", f"file={guest.disk},format=raw,if=virtio,snapshot=on,cache=unsafe",
        "-drive", f"file={work},format=raw,if=virtio,cache=unsafe",
        "-serial", f"file:{console}", "-serial", "stdio",
    ]  # fmt: skip


def boot(command: list[str]) -> bytes:
    """Run the machine until it goes off or the time is over; show and return what it tells."""
    told = bytearray()
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    timer = threading.Timer(LIMIT_S, machine.kill)
    timer.start()
    try:
        assert machine.stdout
        while part := machine.stdout.read1(4096):
            told += part
            sys.stdout.buffer.write(part)
            sys.stdout.flush()
        machine.wait()
    finally:
        timer.cancel()
        machine.kill()
        machine.wait()
    return bytes(told)


def main() -> int:
    """The exit status of pytest in the guest; 1 when it did not get that far."""
    guest = image.ensure()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scow-guest.") as top:
        console = Path(top, "console")
        work = make_work_disk(Path(top), sys.argv[1:])
        told = boot(qemu_command(guest, work, console))
        end = END.search(told)
        if end is None:
            lines = console.read_text(errors="replace").splitlines()[-60:]
            print("the guest did not finish; the end of its console:", *lines, sep="\n")
    print(f"guest: {time.monotonic() - started:.0f} s in all")
    return int(end[1]) if end else 1


if __name__ == "__main__":
    sys.exit(main())
