"""Images that aim at the host: links, fifos, devices and huge files where a runtime works.

Each is run, entered by exec, stopped and started again; a canary of the host never changes, and
what is refused is refused by one clear line. Next to the refusals are the twins that must work.
"""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.canary import SECRET, Canary
from fixtures.command import Done, Scow
from fixtures.handmade import (
    Archive,
    Entry,
    Json,
    busybox_layer,
    directory,
    fifo,
    file,
    link,
    node,
    pack,
    removed,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


class Host:
    """The command line, the host's canary, and images made to order."""

    def __init__(self, scow: Scow, canary: Canary, work: Path) -> None:
        self.scow = scow
        self.canary = canary
        self._work = work
        self._base = busybox_layer()
        self._images = 0

    def image(self, *entries: Entry, config: Json | None = None) -> str:
        """Load an image of busybox and `entries`; gives its name."""
        return self.images([(entries, config or {})])[0]

    def images(self, wanted: list[tuple[tuple[Entry, ...], Json]]) -> list[str]:
        """Load several from one archive."""
        archive = Archive()
        names: list[str] = []
        for entries, config in wanted:
            self._images += 1
            names.append(f"hostile:{self._images}")
            archive.add(
                names[-1], [self._base, pack(entries)], {"Cmd": ["sleep", "1000"], **config}
            )
        path = archive.write(self._work / "image.tar")
        self.scow.ok("load", "-i", str(path))
        path.unlink()
        return names

    def try_load(self, config: Json, *entries: Entry) -> tuple[str, Done]:
        """Load one whose configuration may be refused."""
        self._images += 1
        name = f"hostile:{self._images}"
        archive = Archive()
        archive.add(name, [self._base, pack(entries)], config)
        path = archive.write(self._work / "image.tar")
        done = self.scow("load", "-i", str(path))
        path.unlink()
        return name, done

    def run(self, image: str, *words: str, options: tuple[str, ...] = ()) -> Done:
        """One run to the end, without a network."""
        return self.scow("run", "--rm", "--network", "none", *options, image, *words)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Host:
    base = tmp_path_factory.mktemp("hostile")
    (base / "canary").mkdir()
    (base / "work").mkdir()
    scow = Scow(str(base / "root"), str(base / "run"))
    return Host(scow, Canary(base / "canary"), base / "work")


@pytest.fixture
def host(shared: Host) -> Iterator[Host]:
    before = shared.canary.facts()
    yield shared
    shared.scow.remove_all()
    assert shared.canary.changed_since(before) == {}


def refused(done: Done, *codes: int) -> str:
    """Check that it is a refusal in one clear line; gives the line."""
    lines = done.err.splitlines()
    assert done.code in (codes or (125,)), (done.code, done.out, done.err)
    assert lines, "a refusal without a word"
    assert lines[0].startswith("scow: "), done.err
    assert len(lines) <= 2, done.err
    assert "Traceback" not in done.err
    assert SECRET not in done.out + done.err
    return lines[0]


# --- links, everywhere where scow itself works ------------------------------------------------

UP = "../" * 12
FORMS = {
    "absolute": "{canary}",
    "relative": UP + "{canary}",
    "dangling": "/nowhere/at/all",
    "root": "/proc/self/root{canary}",
    "first-root": "/proc/1/root{canary}",
    "descriptor": "/proc/self/fd/3",
    "loop": "/{name}",
}
LEADS_INSIDE = ("absolute", "relative", "dangling")
# name in the image -> name in the canary
PLACES = {
    "files": {
        "etc/hosts": "hosts", "etc/hostname": "hostname", "etc/resolv.conf": "resolv.conf",
        "etc/mtab": "mtab", "run": "a", "var/run": "a",
    },
    "tmp": {"tmp": "a"},
    "work": {"work": "sub"},
    "data": {"data": "sub"},
    "etc": {"etc": ""},
    "dev": {"dev": ""},
    "in-dev": {"dev/pts": "pts", "dev/shm": "shm", "dev/null": "null", "dev/console": "null", "dev/ptmx": "ptmx"},
    "proc": {"proc": ""},
    "sys": {"sys": ""},
    "in-sys": {"sys/fs/cgroup": "sub", "sys/firmware": "sub"},
}  # fmt: skip


# What is always covered by mounts of our own is not tried in every form.
COVERED = ("in-dev", "in-sys", "tmp")
TRIED = [
    (place, form)
    for place in PLACES
    for form in FORMS
    if place not in COVERED or form in ("absolute", "root", "loop")
]


def works(place: str, form: str) -> bool:
    """Whether an image with such a link can be run at all."""
    if place in COVERED:
        return True
    if place in ("proc", "sys"):
        return False
    return form in LEADS_INSIDE


@pytest.mark.parametrize("place", PLACES)
def test_links_where_the_runtime_works(host: Host, place: str) -> None:
    config: Json = {"WorkingDir": "/work/inner"} if place == "work" else {}
    if place == "data":
        config["Volumes"] = {"/data": {}, "/data/inner": {}}
    forms = [form for at, form in TRIED if at == place]
    made = host.images([(linked(host, place, form), config) for form in forms])
    for form, image in zip(forms, made, strict=True):
        run_linked(host, image, works(place, form))


def linked(host: Host, place: str, form: str) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    for name, aim in PLACES[place].items():
        target = FORMS[form].format(canary=f"{host.canary}/{aim}", name=name)
        entries += [removed(name), link(name, target)]
    return tuple(entries)


def run_linked(host: Host, image: str, runs: bool) -> None:
    scow, canary = host.scow, host.canary
    done = scow("run", "-d", "--network", "none", "--name", "evil", image)
    if not runs:
        refused(done, 125, 126)
        assert scow("start", "evil").code != 0
        scow("rm", "evil")
        return
    assert done.code == 0, done.err
    look = (
        f"echo inside; cat {canary}/secret {canary}/hosts /etc/hosts /work/file; ls -R /data; pwd"
    )
    look += "; echo written >> /etc/hosts; echo x > /tmp/x; true"
    for again in (True, False):
        seen = scow("exec", "evil", "sh", "-c", look)
        assert "inside" in seen.out
        assert SECRET not in seen.out + seen.err
        if again:
            scow.ok("stop", "-t", "0", "evil")
            scow.ok("start", "evil")
    scow.ok("rm", "-f", "-v", "evil")


def test_a_container_that_replaces_its_own_mount_points(host: Host) -> None:
    """CVE-2015-3629: after the first run the root is as hostile as any image."""
    scow, canary = host.scow, host.canary
    image = host.image(directory("vol"), config={"Cmd": ["sh", "/evil"]})
    for name in ("etc", "dev", "proc", "sys"):
        swap = f"umount -l /{name} /etc/hosts; mv /{name} /old && ln -s {canary} /{name} && cat /{name}; true"
        scow.ok(
            "run",
            "--name",
            f"c-{name}",
            "--privileged",
            "--network",
            "none",
            image,
            "sh",
            "-c",
            swap,
        )
        again = scow("start", "-a", f"c-{name}")
        assert SECRET not in again.out + again.err
        if name in ("proc", "sys"):
            assert f"'/{name}'" in refused(again, 125, 126, 1)
    # Without privileges a container can at least rename the directory above its name files.
    scow.ok(
        "run",
        "--name",
        "plain",
        "--network",
        "none",
        image,
        "sh",
        "-c",
        f"mv /etc /old; ln -s {canary} /etc",
    )
    again = scow("start", "-a", "plain")
    assert SECRET not in again.out + again.err


def test_no_name_file_leads_a_mount_onto_procfs(host: Host) -> None:
    targets = (
        "/proc/sys/kernel/core_pattern",
        "/proc/1/environ",
        "/proc/self/attr/current",
        "/proc/sysrq-trigger",
    )
    made = host.images(
        [((removed("etc/hosts"), link("etc/hosts", target)), {}) for target in targets]
    )
    for image in made:
        refused(host.run(image, "true"), 125, 126)


# --- working directories ------------------------------------------------------------------------


def test_no_descriptor_is_a_working_directory(host: Host) -> None:
    """CVE-2024-21626: from the image, from -w, through a link, and by exec."""
    links = [link(f"cwd{number}", f"/proc/self/fd/{number}") for number in range(12)]
    image = host.image(*links, config={"WorkingDir": "/proc/self/fd/7"})
    refused(host.run(image, "pwd"), 125, 126, 127)
    for path in (
        "/proc/self/fd/9",
        "/proc/self/fd/9/../../..",
        "/cwd8",
        "/proc/1/fd/8",
        "/proc/self/fd/8/",
    ):
        refused(host.run(image, "pwd", options=("-w", path)), 125, 126, 127)
    host.scow.ok("run", "-d", "--network", "none", "-w", "/", "--name", "box", image)
    for number in range(3, 12):
        for path in (f"/proc/self/fd/{number}", f"/cwd{number}"):
            done = host.scow(
                "exec", "-w", path, "box", "cat", "/proc/self/cwd/secret", "./../../etc/shadow"
            )
            assert done.code != 0, path
            assert "scow: " in done.err, (path, done.err)
    # What is there is inside, even by such a name.
    assert host.scow.ok("exec", "-w", "/proc/self/root", "box", "pwd") == "/"


def test_a_command_reached_through_descriptors_is_not_found(host: Host) -> None:
    image = host.image()
    for number in (3, 5, 8):
        for tail in ("", "/../../bin/sh", "/bin/sh"):
            done = host.run(image, f"/proc/self/fd/{number}{tail}", "-c", "echo escaped")
            assert done.code in (126, 127), done
            assert "escaped" not in done.out


# --- the runtime's own executable -----------------------------------------------------------------


def test_an_interpreter_that_is_the_runtime_itself(host: Host) -> None:
    """CVE-2019-5736: what the container can open of us is a sealed memfd that does nothing."""
    image = host.image(
        file("entry", "#!/proc/self/exe\n", 0o755),
        link("scow-monitor", "/proc/self/exe"),
        file("monitor", "#!/scow-monitor\n", 0o755),
        link("scow-untar", "/proc/self/exe"),
        file("untar", "#!/scow-untar\n", 0o755),
    )
    for script in ("/entry", "/monitor", "/untar", "/proc/self/exe"):
        done = host.run(image, script)
        assert done.code not in (0, 125), (script, done)
        assert "Traceback" not in done.err


def test_no_write_to_the_executable_of_a_process_that_enters(host: Host) -> None:
    hunter = (
        "n=0; while :; do for d in /proc/[0-9]*; do [ $d = /proc/1 ] && continue; "
        "if ( echo evil > $d/exe ) 2>/dev/null; then echo WROTE $d $(readlink $d/exe); fi; "
        "[ -e $d/exe ] && n=$((n+1)); done; done"
    )
    image = host.image()
    host.scow.ok("run", "-d", "--network", "none", "--name", "hunter", image, "sh", "-c", hunter)
    for _ in range(20):
        assert host.scow("exec", "hunter", "/bin/busybox", "true").code == 0
    assert "WROTE" not in host.scow.ok("logs", "hunter").replace("/bin/busybox", "own")


# --- users ------------------------------------------------------------------------------------------

BAD_PASSWD = {
    "fifo": fifo("etc/passwd"),
    "zero": node("etc/passwd", 1, 5),
    "directory": directory("etc/passwd"),
    "loop": link("etc/passwd", "/etc/passwd"),
    "magic": link("etc/passwd", "/proc/self/root/etc/passwd"),
    "environ": link("etc/passwd", "/proc/self/environ"),
    "huge": file("etc/passwd", b"evil:x:0:0::/:/bin/sh\n" * 550_000),
    "long line": file("etc/passwd", b"evil" * 3_000_000),
}


def test_a_passwd_that_is_none(host: Host) -> None:
    made = host.images([((removed("etc/passwd"), entry), {}) for entry in BAD_PASSWD.values()])
    for kind, image in zip(BAD_PASSWD, made, strict=True):
        begin = time.monotonic()
        refused(host.run(image, "id", options=("-u", "evil")))
        assert time.monotonic() - begin < 60, kind


def test_a_passwd_that_leads_to_the_host(host: Host) -> None:
    for target in (f"{host.canary}/passwd", f"{UP}{host.canary}/passwd"):
        image = host.image(removed("etc/passwd"), link("etc/passwd", target))
        assert "'evil'" in refused(host.run(image, "id", options=("-u", "evil")))


def test_a_passwd_swapped_in_a_running_container(host: Host, tmp_path: Path) -> None:
    scow = host.scow
    swaps = (
        "mknod passwd p",
        f"ln -s {host.canary}/passwd passwd",
        "ln -s /proc/1/root/etc/shadow passwd",
        "ln -s passwd passwd",
        "mkdir passwd",
    )
    steps = (
        f"until [ -e /go/{n} ]; do sleep 0.02; done; mv passwd old.{n}; {swap}; touch /go/done.{n}"
        for n, swap in enumerate(swaps)
    )
    script = f"cd /etc; {'; '.join(steps)}; sleep 1000"
    scow.ok(
        "run",
        "-d",
        "--network",
        "none",
        "-v",
        f"{tmp_path}:/go",
        "--name",
        "box",
        host.image(),
        "sh",
        "-c",
        script,
    )
    for number, swap in enumerate(swaps):
        (tmp_path / str(number)).touch()
        deadline = time.monotonic() + 60
        while not (tmp_path / f"done.{number}").exists():
            assert time.monotonic() < deadline, scow("logs", "box")
            time.sleep(0.02)
        begin = time.monotonic()
        refused(scow("exec", "-u", "evil", "box", "id"), 125, 126)
        assert time.monotonic() - begin < 60, swap


def test_a_linked_passwd_inside_of_the_root_works(host: Host) -> None:
    entries = (
        removed("etc/passwd"), directory("nix"), directory("nix/store"),
        file("nix/store/passwd", "root:x:0:0::/root:/bin/sh\nnixer:x:1234:55::/nix:/bin/sh\n"),
        link("etc/passwd", "/nix/store/passwd"),
    )  # fmt: skip
    done = host.run(
        host.image(*entries), "sh", "-c", "id -u; id -g; echo $HOME", options=("-u", "nixer")
    )
    assert done.out.split() == ["1234", "55", "/nix"], done.err


USERS = {
    "1000": "1000", "0": "0", "65534": "65534", "": "0", "2147483648": None, "4294967295": None,
    "4294967296": None, "18446744073709551616": None, "-1": None, "+0": None, "0x0": None, "1_0": None,
    "１０": None, " 0": None, "1:": None, ":0": None, "1:2:3": None, "nobody\n": None,
}  # fmt: skip


def test_users_that_are_digits_or_nearly(host: Host) -> None:
    """CVE-2016-3697, CVE-2024-40635, CVE-2026-46680: digits are a number and nothing else."""
    for user, uid in USERS.items():
        row = f"{user.strip()}:x:0:0::/:/bin/sh\n" if user.strip() else ""
        entry = file("etc/passwd", row + "root:x:0:0::/root:/bin/sh\n")
        image, loaded = host.try_load({"User": user, "Cmd": ["id", "-u"]}, entry)
        if loaded.code:
            assert uid is None, user
            refused(loaded, 1, 125)
        elif uid is None:
            refused(host.run(image))
        else:
            done = host.run(image)
            assert done.out.split() == [uid], (user, done.err)


def test_groups_are_those_of_the_image_and_no_more(host: Host) -> None:
    """CVE-2022-36109: a rule against a group holds for whoever has it as primary group."""
    image = host.image(
        file("etc/passwd", "root:x:0:0::/root:/bin/sh\nu:x:1000:50::/:/bin/sh\n"),
        file("etc/group", "root:x:0:\nmain:x:50:\nextra:x:60:u\nother:x:70:x\n"),
    )
    for words, expected in (
        (("-u", "u"), "50 60"),
        (("-u", "u:other"), "70"),
        (("-u", "1000"), "50 60"),
        (("-u", "1000:2000"), "2000"),
        (("-u", "u", "--group-add", "extra", "--group-add", "99"), "50 60 99"),
        (("-u", "77"), "0"),
    ):
        done = host.run(image, "id", "-G", options=words)
        assert done.out.split() == expected.split(), (words, done)


# --- the configuration of an image ------------------------------------------------------------------


def test_variables_are_never_taken_from_the_host(host: Host) -> None:
    for entry in ("HOME", "*", "PATH*", "=x", "", "SCOW_ROOT", "A=1\0B=2", "LC_ALL"):
        image, loaded = host.try_load({"Env": ["OK=1", entry], "Cmd": ["env"]})
        refused(loaded if loaded.code else host.run(image), 1, 125)


def test_variables_of_the_image_reach_the_program_and_nobody_else(host: Host) -> None:
    env = [
        "LD_PRELOAD=/evil.so", "PYTHONPATH=/evil", "PATH=/evil:/bin", "SCOW_ROOT=/evil", "SCOW_RUN=/evil",
        "LD_LIBRARY_PATH=/evil", "HOME=/x\ny", "TWO=a=b", "EMPTY=",
    ]  # fmt: skip
    done = host.run(host.image(config={"Env": env}), "env")
    assert done.code == 0
    for entry in env:
        assert entry in done.out
    assert not any(name in done.out for name in ("SUDO", "SSH", "VIRTUAL_ENV", "LC_ALL"))


RESERVED = {
    "scow.auto-remove": "true", "scow.privileged": "true", "scow.cgroup": "/", "scow.log": "/etc/x",
    "io.containerd.runc.v2.group": "x", "containerd.io/restart.loguri": "binary:///bin/sh?-c=id",
    "io.kubernetes.cri-o.userns-mode": "host", "org.systemd.property.ExecStart": "/bin/sh",
    "run.oci.hooks.stderr": "/dev/kmsg", "run.oci.keep_original_groups": "1", "org.opencontainers.image.stopSignal": "KILL",
    "com.docker.official": "1", "io.podman.annotations.privileged": "TRUE", "a": "\n", "{{.ID}}": "{{.Names}}",
}  # fmt: skip


def test_labels_are_only_labels(host: Host) -> None:
    image = host.image(config={"Labels": RESERVED, "StopSignal": "USR1"})
    plain = host.image(config={"StopSignal": "USR1"})
    show = (
        "grep -E 'Cap|Seccomp|NoNew' /proc/self/status; cat /proc/self/cgroup /proc/self/limits; id"
    )
    assert host.run(image, "sh", "-c", show).out == host.run(plain, "sh", "-c", show).out
    host.scow.ok("run", "-d", "--network", "none", "--name", "labelled", image)
    assert "labelled" in host.scow.ok("ps")
    host.scow.ok("kill", "labelled")
    host.scow.ok("wait", "labelled")
    assert "labelled" in host.scow.ok("ps", "-a")
    shown = host.scow.inspect("labelled")
    assert shown["HostConfig"].get("Privileged") is False


VOLUMES = {
    "/data": True, "/etc": True, "/new/a/b": True, "/link/x": True, "/tmp": True,
    "/proc": False, "/proc/self/attr": False, "/proc/sys": False, "/../../etc": False,
    "/proc/self/root/etc": False, "/": False, "relative": False, "/loop/x": False, "/toproc/sys": False,
}  # fmt: skip


@pytest.mark.parametrize("wanted", [True, False])
def test_volumes_of_an_image(host: Host, wanted: bool) -> None:
    """CVE-2022-23648, CVE-2019-16884: filled from inside, mounted inside, and not on procfs."""
    entries = [
        link("link", str(host.canary)), link("loop", "/loop"), link("toproc", "/proc"),
        directory("data"), file("data/file", "from the image\n"),
    ]  # fmt: skip
    for path in [path for path, runs in VOLUMES.items() if runs is wanted]:
        image, loaded = host.try_load({"Volumes": {path: {}}, "Cmd": ["sleep", "9"]}, *entries)
        if loaded.code:
            assert not wanted, path
            refused(loaded, 1, 125)
            continue
        look = f"cat /data/file; ls -R {path}; cat {path}/secret; echo end"
        done = host.run(image, "sh", "-c", look)
        if wanted:
            assert "end" in done.out, path
            assert SECRET not in done.out + done.err
        else:
            refused(done, 125, 126)


def test_what_is_copied_into_a_volume(host: Host) -> None:
    """Links are copied as links, devices and fifos are left out, holes stay holes."""
    sparse = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "data/holes",
        "GNU.sparse.realsize": str(8 << 30),
    }  # fmt: skip
    image = host.image(
        directory("data"), link("data/link", f"{host.canary}/secret"), fifo("data/fifo"),
        node("data/null", 1, 3), file("data/first", "x" * 100_000),
        *(Entry(f"data/hard{n}", tarfile.LNKTYPE, target="data/first") for n in range(50)),
        Entry("GNUSparseFile.0/holes", data=b"1\n0\n1\n".ljust(512, b"\0") + b"Z", pax=sparse),
        config={"Volumes": {"/data": {}}},
    )  # fmt: skip
    look = "ls -l /data; cat /data/link; du -sk /data; stat -c %h /data/first"
    done = host.run(image, "sh", "-c", look)
    assert "secret" in done.out
    assert SECRET not in done.out + done.err
    assert re.search(r" /data/link|link -> ", done.out)
    assert not re.search(r"\b(fifo|null)$", done.out, re.MULTILINE)
    assert f"{8 << 30}" in done.out
    used = int(re.search(r"^(\d+)\s+/data$", done.out, re.MULTILINE)[1])  # type: ignore[index]  # the line is there
    assert used < 1000, "holes or hard links became data"
    assert done.out.split()[-1] == "51"


# --- twins of the refusals: what real images have ---------------------------------------------------


def test_links_of_real_images_work(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    image = host.image(
        directory("run"), directory("run/lock"), removed("var/run"), link("var/run", "/run"),
        link("var/lock", "../run/lock"), link("srv", "data/../data"), directory("data"),
        removed("etc/mtab"), link("etc/mtab", "/proc/self/mounts"), link("abs", "/data/new/dir"),
        removed("etc/resolv.conf"), link("etc/resolv.conf", "../run/resolv/stub.conf"),
    )  # fmt: skip
    mounts = (
        "-v",
        f"{tmp_path}:/var/run/sock",
        "-v",
        f"{tmp_path}:/srv/in",
        "-v",
        f"{tmp_path}:/abs",
        "--tmpfs",
        "/var/lock/x",
    )
    look = "cat /run/sock/file /data/in/file /data/new/dir/file; grep -c lock/x /etc/mtab; cat /etc/resolv.conf"
    done = host.run(image, "sh", "-c", look, options=(*mounts, "--dns", "9.9.9.9"))
    assert done.out.count("from the host") == 3, (done.out, done.err)
    assert "nameserver 9.9.9.9" in done.out


def test_proc_files_that_lxcfs_gives_may_be_covered(host: Host, tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("1.00 1.00\n")
    image = host.image()
    done = host.run(
        image, "cat", "/proc/uptime", options=("-v", f"{tmp_path}/uptime:/proc/uptime:ro")
    )
    assert done.out == "1.00 1.00\n", done.err
    for target in (
        "/proc/self/attr",
        "/proc/sys",
        "/proc/1",
        "/proc/sys/kernel/core_pattern",
        "/proc",
        "/proc/../proc",
    ):
        refused(host.run(image, "true", options=("-v", f"{tmp_path}:{target}")))


def test_programs_of_an_image_are_never_run_for_the_host(host: Host, tmp_path: Path) -> None:
    """CVE-2022-1227, CVE-2019-14271, CVE-2014-9357, CVE-2026-41567: nothing of the image but what the user asked for."""
    trojan = (
        f"#!/bin/busybox sh\n/bin/busybox echo ran $0 >> {tmp_path}/ran\nexec /bin/busybox true\n"
    )
    names = (
        "ps",
        "nsenter",
        "tar",
        "xz",
        "gzip",
        "unpigz",
        "id",
        "ip",
        "nft",
        "mount",
        "umount",
        "scow",
    )
    entries = [file(f"usr/local/bin/{name}", trojan, 0o755) for name in names]
    entries.append(file("etc/ld.so.preload", "/evil.so\n"))
    scow = host.scow
    scow.ok(
        "run",
        "-d",
        "--network",
        "none",
        "-v",
        f"{tmp_path}:{tmp_path}",
        "--name",
        "box",
        host.image(*entries),
    )
    for words in (
        ("inspect", "box"),
        ("logs", "box"),
        ("stats", "--no-stream", "box"),
        ("ps",),
        ("exec", "box", "/bin/true"),
        ("diff", "box"),
        ("commit", "box", "copy:1"),
        ("export", "-o", f"{tmp_path}/box.tar", "box"),
        ("cp", "box:/etc/ld.so.preload", f"{tmp_path}/out"),
        ("cp", f"{tmp_path}/out", "box:/in"),
        ("save", "-o", f"{tmp_path}/image.tar", "copy:1"),
        ("load", "-i", f"{tmp_path}/image.tar"),
    ):
        scow.ok(*words)
    with tarfile.open(tmp_path / "in.tar.xz", "w:xz") as tar:
        tar.addfile(tarfile.TarInfo("unpacked"))
    scow("cp", "-", "box:/", stdin=(tmp_path / "in.tar.xz").read_bytes())
    scow.ok("rmi", "copy:1")
    scow.ok("stop", "-t", "0", "box")
    scow.ok("rm", "box")
    assert not (tmp_path / "ran").exists()
