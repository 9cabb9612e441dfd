"""Links, devices and files of a hostile root where the runtime itself mounts, makes and reads.

Through scow-oci; docs/security.md is the table. Next to each refusal is the twin that real images need.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from fixtures.bundle import Bundle
from fixtures.canary import SECRET
from fixtures.hostile import World, bind, capabilities, facts, mount, until, without_mount

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
UP = "../" * 16
FORMS = ("{canary}", UP + "{canary}", "/proc/1/root{canary}", "/proc/self/fd/5", "/{name}")


def replace(box: Bundle, name: str, target: object) -> None:
    """Put a link where the root has something."""
    path = box.rootfs / name
    if not path.is_symlink() and path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(str(target))


# --- proc and sys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("form", [*FORMS, "/tmp", "/nowhere"])
def test_proc_and_sys_that_are_links(world: World, name: str, form: str) -> None:
    """CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: the masks and labels would go to another tree."""
    box = world.bundle()
    replace(box, name, form.format(canary=world.canary, name=name))
    world.refused(box, says=f"'/{name}'")


def test_mounts_on_procfs(world: World) -> None:
    """CVE-2019-16884, CVE-2025-52881: volumes over /proc, by name, by "..", by links of the image."""
    box = world.bundle()
    source = world.base / "source"
    (source / "attr").mkdir(parents=True)
    (box.rootfs / "link").symlink_to("/proc")
    (box.rootfs / "deep").symlink_to("/proc/sys/kernel")
    (box.rootfs / "self").symlink_to("proc/self/attr")
    targets = (
        "/proc", "/proc/", "//proc", "/proc/sys", "/proc/self/attr", "//proc/sys", "/proc/../proc/sys",
        "/proc/./sys", "/link/sys", "/link", "/deep", "/self", "/proc/../deep", "/proc/../link/self/attr",
        "/x/../proc/sys", "proc/sys", "/proc/1", "/proc/sys/kernel/core_pattern", "/proc/uptime/../sys",
    )  # fmt: skip
    changes = [
        lambda box, to=to, kind=kind: box.config["mounts"].append(kind(to))
        for to in targets
        for kind in (lambda to: bind(source, to), lambda to: mount(to, "tmpfs", "tmpfs"))
    ]
    for number, done in enumerate(world.variants(box, changes)):
        assert done.code == 1, (targets[number // 2], done)
        world.clean_refusal(box, done)


def test_files_of_proc_that_lxcfs_gives(world: World) -> None:
    """The positive twin: exact names that may lie on procfs, and a directory that is named alike."""
    box = world.bundle()
    (world.base / "file").write_text("from lxcfs\n")
    for name in ("cpuinfo", "meminfo", "uptime", "stat", "loadavg", "swaps", "diskstats"):
        box.config["mounts"].append(bind(world.base / "file", f"/proc/{name}", "ro"))
    box.config["mounts"].append(bind(world.base, "/procs/x"))
    box.script("cat /proc/uptime /proc/loadavg /procs/x/file")
    assert world.ok(box) == "from lxcfs\n" * 3


def test_the_label_and_sysctl_files_are_the_kernels(world: World) -> None:
    """CVE-2025-52881: without any /proc of its own, writes of the runtime still reach the real ones."""
    box = world.bundle()
    without_mount(box, "/proc")
    (box.rootfs / "proc/sys/net/core").mkdir(parents=True)
    (box.rootfs / "proc/sys/net/core/somaxconn").write_text("fake\n")
    (box.rootfs / "proc/1").mkdir()
    (box.rootfs / "proc/1/oom_score_adj").symlink_to(f"{world.canary}/secret")
    box.linux.update(sysctl={"net.core.somaxconn": "77"}, maskedPaths=[], readonlyPaths=[])
    box.process["oomScoreAdj"] = 100
    box.process["args"] = ["sleep", "100"]
    pid = world.start(box)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "100\n"
    assert (box.rootfs / "proc/sys/net/core/somaxconn").read_text() == "fake\n"


# --- masked and read-only paths ---------------------------------------------------------------------


def test_masks_are_not_of_the_images_dev(world: World) -> None:
    """CVE-2025-31133, CVE-2025-62161: /dev is the image's own, its null a link to a setting of the kernel."""
    aims = ("/proc/sys/kernel/core_pattern", f"{world.canary}/secret", "/proc/sysrq-trigger", "/etc/passwd")  # fmt: skip
    for number, aim in enumerate(aims):
        box = world.bundle(f"mask{number}")
        without_mount(box, "/dev", "/dev/pts", "/dev/shm")
        own = world.base / f"dev{number}"
        own.mkdir()
        (own / "null").symlink_to(aim)
        box.config["mounts"].append(bind(own, "/dev"))
        paths = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/etc/passwd"]
        box.linux["maskedPaths"] = paths
        box.script(
            "cat /proc/keys /proc/timer_list /etc/passwd | wc -c; ls /sys/firmware | wc -l; "
            "for p in /proc/keys /proc/kcore /etc/passwd; do (echo evil > $p) 2>/dev/null && echo WROTE $p; done; true"
        )
        assert world.ok(box).split() == ["0", "0"]


def test_masks_need_not_be_there_but_must_not_be_links(world: World) -> None:
    """A path that is missing is passed over; one that leads elsewhere is no reason to leave it open."""
    box = world.bundle()
    box.linux["maskedPaths"] = ["/nowhere", "/proc/nosuch/x", "/etc/passwd/x", "/etc/group"]
    box.linux["readonlyPaths"] = ["/nowhere", "/proc/nosuch", "/tmp"]
    box.script(
        "wc -c < /etc/group; touch /tmp/x 2>&1 | grep -c Read-only; touch /home/x && echo fine"
    )
    assert world.ok(box).split() == ["0", "1", "fine"]
    (box.rootfs / "masked").symlink_to("/etc/passwd")
    for kind in ("maskedPaths", "readonlyPaths"):
        changed = [lambda box, kind=kind: box.linux.update({kind: ["/masked"]})]
        world.clean_refusal(box, world.variants(box, changed)[0])


def test_masks_stay_with_rights_to_mount(world: World) -> None:
    """The covers are read-only mounts: what can be written through one is nothing."""
    box = world.bundle()
    box.linux["maskedPaths"] = ["/proc/keys", "/sys/firmware"]
    box.process["capabilities"] = capabilities("SYS_ADMIN", "DAC_OVERRIDE")
    box.script(
        "(echo x > /proc/keys) 2>/dev/null && echo WROTE; (echo x > /sys/firmware/x) 2>/dev/null && echo MADE; "
        "grep -c ' ro,nosuid,nodev,noexec,relatime - tmpfs scow-mask' /proc/self/mountinfo"
    )
    assert world.ok(box).split() == ["2"]


# --- dev --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tmpfs", [True, False])
@pytest.mark.parametrize("name", ["dev", "dev/pts", "dev/shm", "dev/mqueue", "dev/null", "dev/fd"])
def test_a_dev_that_leads_out(world: World, name: str, tmpfs: bool) -> None:
    """CVE-2026-41579, CVE-2026-47766: nodes, links and mount points are made inside of the root, or not."""
    box = world.bundle()
    box.config["mounts"].append(mount("/dev/mqueue", "mqueue", "mqueue"))
    if not tmpfs:
        without_mount(box, "/dev")
    box.linux["devices"] = [{"path": "/dev/own", "type": "c", "major": 1, "minor": 3}]
    box.script(
        f"echo ran; cat {world.canary}/secret /dev/pts/secret /dev/shm/secret /dev/secret; true"
    )
    changes: list[object] = []
    for form in FORMS:
        replace(box, name, form.format(canary=world.canary, name=name))
        done = world.run(box)
        assert done.code == 0 or done.err.count("\n") == 1, done
        assert SECRET not in done.out + done.err
        changes.append(done.code)
        replace(box, name, "x")
        (box.rootfs / name).unlink()
    if tmpfs and name != "dev":
        assert changes == [0] * len(FORMS)  # covered by a mount of ours: it does not matter


def test_a_dev_that_is_linked_inside_of_the_root_works(world: World) -> None:
    """The positive twin: absolute and relative links to a directory of the image, and a dangling one."""
    for number, target in enumerate(("/system/dev", "system/dev", "/not/yet")):
        box = world.bundle(f"dev{number}")
        (box.rootfs / "system/dev").mkdir(parents=True)
        replace(box, "dev", target)
        box.script("echo x > /dev/null && head -c 3 /dev/zero | wc -c; readlink /dev/stdin")
        assert world.ok(box).split() == ["3", "/proc/self/fd/0"]


def test_devices_that_are_listed_and_what_is_there_already(world: World) -> None:
    box = world.bundle()
    box.linux["devices"] = [
        {"path": "/dev/dir/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"path": "/dev/pipe", "type": "p"},
    ]  # fmt: skip
    box.script("stat -c '%F %t:%T %a %u %g' /dev/dir/own /dev/pipe")
    out = world.ok(box).splitlines()
    assert out[0] == "character special file 1:5 640 3 4"
    assert out[1].startswith("fifo")
    without_mount(box, "/dev")
    (box.rootfs / "dev/dir").mkdir()
    (box.rootfs / "dev/dir/own").write_text("a file")
    assert "exists" in world.refused(box, says="/dev/dir/own")


# --- mount destinations -----------------------------------------------------------------------------


def test_mount_destinations_through_links(world: World) -> None:
    """CVE-2021-30465, CVE-2024-45310: what is missing is made inside; "/" and magic links are not gone through."""
    box = world.bundle()
    source = world.base / "source"
    source.mkdir()
    (source / "mine").write_text("mine\n")
    for number, form in enumerate(FORMS):
        (box.rootfs / f"l{number}").symlink_to(form.format(canary=world.canary, name=f"l{number}"))
    look = f"cat /*/secret {world.canary}/secret /*/new/mine {world.canary}/new/mine; echo end"
    codes: list[int] = []
    changes = []
    for number in range(len(FORMS)):
        for below in ("/new", "/sub/deep", "/secret/x"):
            for kind in (
                bind(source, f"/l{number}{below}"),
                mount(f"/l{number}{below}", "tmpfs", "tmpfs"),
            ):
                changes.append(
                    lambda box, kind=kind: (box.config["mounts"].append(kind), box.script(look))
                )
    for done in world.variants(box, changes):
        assert SECRET not in done.out + done.err
        assert "Traceback" not in done.err
        codes.append(done.code)
    # Absolute and relative ones stay inside; those of procfs and the loop are refused.
    assert codes == [0] * 12 + [1] * 18
    assert not (world.canary.path / "new").exists()


def test_mount_destinations_of_real_images(world: World) -> None:
    """Twins: /var/run links, dangling links, a missing file, a tmpfs's mode (broken by fixes elsewhere)."""
    box = world.bundle()
    source = world.base / "file"
    source.write_text("from the host\n")
    (box.rootfs / "run").mkdir()
    (box.rootfs / "var").mkdir()
    (box.rootfs / "var/run").symlink_to("/run")
    (box.rootfs / "dangling").symlink_to("/data/new/dir")
    (box.rootfs / "sticky").mkdir()
    (box.rootfs / "sticky").chmod(0o1777)
    (box.rootfs / "etc/resolv.conf").symlink_to("../run/stub/resolv.conf")
    box.config["mounts"] += [
        bind(source, "/var/run/sock"), bind(source, "/etc/resolv.conf"), bind(source, "/a/b/c"),
        mount("/dangling/t", "tmpfs", "tmpfs"), mount("/sticky", "tmpfs", "tmpfs"),
        mount("/made", "tmpfs", "tmpfs"), mount("/mode", "tmpfs", "tmpfs", "mode=700"),
    ]  # fmt: skip
    box.script("cat /run/sock /run/stub/resolv.conf /a/b/c; stat -c %a /sticky /made /mode; grep -c /data/new/dir/t /proc/self/mountinfo")  # fmt: skip
    out = world.ok(box)
    assert out.count("from the host") == 3
    assert out.split()[-4:] == ["1777", "1777", "700", "1"]


def test_a_root_that_is_a_link_and_files_of_the_bundle(world: World) -> None:
    """CVE-2015-1335, CVE-2026-23954: the root itself is a link; config.json, pid file and log are links."""
    box = world.bundle()
    box.rootfs.rename(world.base / "moved")
    box.rootfs.symlink_to(str(world.canary))
    world.refused(box, says="symbolic link")
    box.rootfs.unlink()
    (world.base / "moved").rename(box.rootfs)
    # A name that is planted where the pid file is made first is not written through.
    box.process["args"] = ["true"]
    (world.base / ".pid").symlink_to(f"{world.canary}/secret")
    world.ok(box, "--pid-file", str(world.base / "pid"))
    assert (world.base / "pid").read_text().isdigit()


def test_a_root_that_was_changed_by_its_first_run(world: World) -> None:
    """CVE-2015-3629, CVE-2015-3630, CVE-2015-3631: the second start sees what the first one left."""
    for name in ("etc", "dev", "proc", "sys"):
        box = world.bundle(f"again-{name}")
        box.process["capabilities"] = capabilities("SYS_ADMIN", "DAC_OVERRIDE")
        box.script(
            f"cd /; umount -l /{name} 2>/dev/null; mv /{name} /old && ln -s {world.canary} /{name}"
        )
        world.run(box)
        assert (box.rootfs / name).is_symlink(), name
        box.script(f"cat /{name}/secret; echo end")
        done = world.run(box)
        assert SECRET not in done.out + done.err
        assert (done.code == 1) == (name in ("proc", "sys")), done


# --- files that the runtime reads -------------------------------------------------------------------


def test_a_passwd_that_is_none(world: World) -> None:
    """CVE-2024-9676, CVE-2026-47262, CVE-2025-4437: HOME is looked for without hanging and within bounds."""
    box = world.bundle()
    passwd = box.rootfs / "etc/passwd"
    box.script("echo $HOME")
    makers = {
        "fifo": lambda: os.mkfifo(passwd),
        "zero": lambda: os.mknod(passwd, 0o020666, os.makedev(1, 5)),
        "directory": passwd.mkdir,
        "loop": lambda: passwd.symlink_to("passwd"),
        "magic": lambda: passwd.symlink_to("/proc/self/root/etc/passwd"),
        "host": lambda: passwd.symlink_to(f"{world.canary}/passwd"),
        "sparse": lambda: (passwd.touch(), os.truncate(passwd, 1 << 30)),
        "long": lambda: passwd.write_bytes(b"root" * 3_000_000),
    }
    for make in makers.values():
        if passwd.is_dir():
            passwd.rmdir()
        else:
            passwd.unlink()
        make()
        assert world.variants(box, [lambda box: None])[0].out == "/\n"


def test_a_passwd_that_is_linked_inside_of_the_root(world: World) -> None:
    """CVE-2024-5154's twin: the link of an image that has its files elsewhere is followed, inside."""
    box = world.bundle()
    (box.rootfs / "nix/store").mkdir(parents=True)
    (box.rootfs / "nix/store/passwd").write_text("root:x:0:0::/inside:/bin/sh\n")
    replace(box, "etc/passwd", "/nix/store/passwd")
    box.script("echo $HOME")
    assert world.ok(box) == "/inside\n"
    replace(box, "etc/passwd", f"{UP}{box.rootfs}/nix/store/passwd")
    assert world.ok(box) == "/\n"


def test_an_etc_that_leads_out_and_files_that_engines_mount_in_it(world: World) -> None:
    """CVE-2024-5154: /etc of the image is a link to the host; hosts, hostname, mtab go inside or nowhere."""
    box = world.bundle()
    (world.base / "hosts").write_text("managed\n")
    (box.rootfs / "etc").rename(box.rootfs / "old")
    for form in FORMS:
        replace(box, "etc", form.format(canary=world.canary, name="etc"))
        box.config["mounts"] = box.config["mounts"][:5]
        for name in ("hosts", "hostname", "resolv.conf", "mtab"):
            box.config["mounts"].append(bind(world.base / "hosts", f"/etc/{name}"))
        box.script("cat /etc/hosts; echo written >> /etc/mtab")
        done = world.run(box)
        assert done.out in ("managed\n", ""), done
        assert (world.base / "hosts").read_text().startswith("managed")
        (world.base / "hosts").write_text("managed\n")


# --- cgroup and rootfs mounts -----------------------------------------------------------------------


@pytest.mark.parametrize("private", [True, False])
def test_the_cgroup_file_system_is_read_only(world: World, private: bool) -> None:
    """CVE-2023-25809, CVE-2022-0492: no directory can be made, no release_agent written, whoever's view it is."""
    box = world.bundle()
    kinds = ["pid", "network", "ipc", "uts", "mount"] + ["cgroup"] * private
    box.linux["namespaces"] = [{"type": kind} for kind in kinds]
    box.config["mounts"].append(
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro", "nosuid", "nodev", "noexec")
    )
    box.process["capabilities"] = capabilities("DAC_OVERRIDE", "CHOWN", "FOWNER")
    box.script(
        "cd /sys/fs/cgroup; for d in . *; do mkdir $d/x 2>/dev/null && echo MADE $d; "
        "for f in release_agent notify_on_release tasks cgroup.procs devices.allow; do "
        "[ -e $d/$f ] && (echo x > $d/$f) 2>/dev/null && echo WROTE $d/$f; done; done; "
        "find . -mindepth 2 -type d; find . -type f | wc -l; mount -t cgroup -o memory x /tmp 2>/dev/null && echo MOUNTED; true"
    )
    out = world.ok(box).split()
    assert len(out) == 1
    assert int(out[0]) > 5  # and what is there can be read


def test_a_read_only_root_and_a_private_one(world: World) -> None:
    box = world.bundle()
    box.config["root"]["readonly"] = True
    box.script("touch /x 2>&1; touch /dev/shm/x && echo fine; grep ' / / ' /proc/self/mountinfo | grep -E 'shared|master'; true")  # fmt: skip
    assert re.fullmatch(r"touch: .*Read-only file system\nfine\n", world.ok(box))


# --- hooks ------------------------------------------------------------------------------------------


def test_hooks_get_their_own_environment_and_nothing_of_the_image(world: World) -> None:
    """CVE-2025-23266, CVE-2024-0132: LD_PRELOAD and PATH of the container reach no hook of the host."""
    box = world.bundle()
    evil = ["LD_PRELOAD=/evil.so", "PATH=/evil:/bin", "PYTHONPATH=/evil", "SECRET=of-the-container"]
    box.process["env"] = evil
    log = world.base / "hooks"
    script = f"{{ echo hook $1; cat /proc/self/environ | tr '\\0' '\\n'; ls -l /proc/self/fd | wc -l; }} >> {log}"
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    box.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", script, "sh", kind], "env": ["OWN=1", "PATH=/usr/bin:/bin"]}]
        for kind in kinds
    }  # fmt: skip
    box.process["args"] = ["sh", "-c", "true"]
    done = world.run(box, env={**os.environ, "CALLER": "secret-of-the-caller"})
    assert done.code == 0, done
    told = log.read_text()
    assert [line.split()[1] for line in told.splitlines() if line.startswith("hook")] == list(kinds)
    assert told.count("OWN=1") == len(kinds)
    assert "evil" not in told
    assert "secret" not in told.lower()
    # 0, 1, 2, the listing's own, and "total"
    assert {line for line in told.splitlines() if line.isdigit()} == {"5"}


def test_state_is_what_hooks_read_and_not_json_of_the_image(world: World) -> None:
    """An annotation with quotes, newlines and control characters is one string in every hook's state."""
    box = world.bundle()
    wild = 'x","status":"stopped\n\r\t\\ \u2028 é \x01'
    box.config["annotations"] = {"k": wild, 'q"\n': "v"}
    kinds = ("prestart", "createContainer", "poststop")
    box.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {world.base}/{kind}"], "env": ["PATH=/bin"]}]
        for kind in kinds
    }  # fmt: skip
    box.process["args"] = ["true"]
    world.ok(box)
    for kind in kinds:
        state = json.loads((world.base / kind).read_text())
        assert state["annotations"] == {"k": wild, 'q"\n': "v"}
        assert state["status"] in ("creating", "stopped")


def test_nothing_of_the_image_runs_for_the_host(world: World) -> None:
    """CVE-2022-1227, CVE-2019-14271: ps, exec, state, events, pause and delete start no program of it."""
    box = world.bundle()
    ran = world.base / "ran"
    ran.mkdir()
    trojan = "#!/bin/busybox sh\n/bin/busybox touch /ran/$0\nexec /bin/busybox true\n"
    (box.rootfs / "usr/bin").mkdir(parents=True)
    for name in ("ps", "nsenter", "id", "mount", "umount", "scow-init", "runc", "getent"):
        for place in ("bin", "usr/bin"):
            (box.rootfs / place / name).unlink(missing_ok=True)
            (box.rootfs / place / name).write_text(trojan)
            (box.rootfs / place / name).chmod(0o755)
    (box.rootfs / "etc/ld.so.preload").write_text("/evil.so\n")
    box.config["mounts"].append(bind(ran, "/ran"))
    box.process["args"] = ["sleep", "100"]
    world.start(box)
    for words in (("ps",), ("state",), ("events", "--stats"), ("pause",), ("resume",), ("update", "--pids-limit", "99")):  # fmt: skip
        world.oci.ok(*words, "box")
    assert world.exec(box, "true").code == 0
    world.oci.ok("delete", "--force", "box")
    assert list(ran.iterdir()) == []


def test_no_file_is_made_below_tmp(world: World) -> None:
    """CVE-2020-27534: predictable names in /tmp; the state directory is the only place that is written to."""
    import subprocess

    box = world.bundle()
    box.write()
    box.process["args"] = ["true"]
    log = world.base / "strace"
    subprocess.run(
        ["strace", "-f", "-o", str(log), "-e", "trace=openat,open,mkdir,mkdirat,mknodat,symlinkat,rename,renameat2",
         *world.oci.argv, "run", "-b", str(box.path), "box"],
        check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    made = [line for line in log.read_text().splitlines() if "O_CREAT" in line or "mkdir" in line or "rename" in line]  # fmt: skip
    assert made
    own = (str(world.base), "/sys/fs/cgroup", "/proc/", "/dev/")
    outside = [
        line
        for line in made
        if (path := re.search(r'"(/[^"]*)"', line)) and not path[1].startswith(own)
    ]
    assert outside == []


def test_modes_of_the_state(world: World) -> None:
    """CVE-2021-41091, CVE-2021-41103: nobody but root gets below the state directory, also when it was open."""
    box = world.bundle()
    box.process["args"] = ["sleep", "100"]
    world.start(box)
    assert stat.S_IMODE(world.oci.root.stat().st_mode) == 0o700
    for path in (world.oci.root / "box", *(world.oci.root / "box").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    until(lambda: '"running"' in world.oci.ok("state", "box"))
    assert facts(world.exec(box, "probe", "open", "r", f"/proc/1/root{world.oci.root}").out).popitem()[1] == "ENOENT"  # fmt: skip
