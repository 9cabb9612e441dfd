"""The strict parsers: badinput.md sections A and B, row by row."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scow.cri import parse, parse_limits, parse_network, parse_storage
from scow.cri.options import HostEntry, Mount, Tmpfs, Ulimit, UserSpec
from scow.native.errors import ScowError

ALL: dict[str, Callable[[str, str], Any]] = {
    name: getattr(module, name)
    for module in (parse, parse_limits, parse_network, parse_storage)
    for name in vars(module)
    if name.startswith("parse_") and getattr(module, name).__module__ == module.__name__
}
TWO_TEXTS = [
    f
    for n, f in ALL.items()
    if n
    not in (
        "parse_int",
        "parse_device_rate",
        "parse_target",
        "parse_volume_name",
        "parse_namespace",
    )
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64m", 64 << 20),
        ("64M", 64 << 20),
        ("64mb", 64 << 20),
        ("64MiB", 64 << 20),
        ("1.5g", 3 << 29),
        ("512", 512),
        ("512b", 512),
        ("1t", 1 << 40),
        ("0", 0),
        ("2ki", 2048),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse.parse_size("--memory", text) == value


@pytest.mark.parametrize(
    "text",
    ["", " 512m", "512m ", "1e3", "inf", "NaN", "10X", "9999999999g", "0x10m", "-1", "1_0", "+1", "1.",
     ".5", "1..2", "12", "5m", str(2**63), str(2**64), "m", "1bb", "1mib2", "٣m", "1\n", "1kk", "1ib", "--"],
)  # fmt: skip
def test_bad_memory(text: str) -> None:
    with pytest.raises(ScowError, match="--memory") as caught:
        parse_limits.parse_memory("--memory", text)
    assert "\n" not in str(caught.value)


def test_memory_bounds() -> None:
    assert parse_limits.parse_memory("-m", "0") is None
    assert parse_limits.parse_memory("-m", "6m") == 6 << 20
    assert parse_limits.parse_memory_swap("--memory-swap", "-1") == -1
    with pytest.raises(ScowError, match="6291456"):
        parse_limits.parse_memory("-m", "5m")


@pytest.mark.parametrize(
    "text", ["0", "-1", "1e9", "0.001", "3", "nan", "", "1,5", "0.0000000001", "1e-1"]
)
def test_bad_cpus(text: str) -> None:
    with pytest.raises(ScowError, match=r"0\.01 to 2"):
        parse_limits.parse_cpus("--cpus", text, available=2)


def test_cpus() -> None:
    assert parse_limits.parse_cpus("--cpus", "0.5", available=2) == 500_000_000
    assert parse_limits.parse_cpus("--cpus", "2", available=2) == 2_000_000_000
    assert parse_limits.parse_cpus("--cpus", "0.01", available=2) == 10_000_000


@pytest.mark.parametrize(
    ("parser", "bad", "good"),
    [
        (
            parse_limits.parse_cpu_shares,
            ["1", "262145", "-1", "x"],
            {"0": None, "2": 2, "1024": 1024},
        ),
        (parse_limits.parse_cpu_period, ["999", "1000001", "-1"], {"0": None, "1000": 1000}),
        (parse_limits.parse_cpu_quota, ["999", "-2"], {"0": None, "-1": -1, "1000": 1000}),
        (
            parse_limits.parse_pids,
            ["-2", str(2**31), str(2**63), "1.5"],
            {"0": -1, "-1": -1, "5": 5},
        ),
        (parse_limits.parse_blkio_weight, ["9", "1001"], {"0": None, "10": 10, "1000": 1000}),
        (parse.parse_timeout, ["-5", "1e9", "", "5s"], {"-1": -1, "0": 0, "10": 10}),
    ],
)
def test_ranges(
    parser: Callable[[str, str], Any], bad: list[str], good: dict[str, int | None]
) -> None:
    for text in bad:
        with pytest.raises(ScowError):
            parser("--x", text)
    for text, value in good.items():
        assert parser("--x", text) == value


@pytest.mark.parametrize(
    ("text", "named"),
    [("0-2147483647", "no cpu 4 "), ("3-1", "'3-1'"), ("0,,1", "''"), ("a", "'a'"), ("7", "no cpu 7"),
     ("", "''"), ("0-", "'0-'"), ("-1", "'-1'"), ("0,5-6", "no cpu 5"), ("1" * 10**6, "too long"), ("0;1", "'0;1'")],
)  # fmt: skip
def test_bad_cpuset(text: str, named: str) -> None:
    with (
        pytest.raises(ScowError, match="0-3")
        if named[:2] == "no"
        else pytest.raises(ScowError) as caught
    ):
        parse_limits.parse_cpuset("--cpuset-cpus", text, available="0-3")
    assert named in str(caught.value)


def test_cpuset() -> None:
    assert parse_limits.parse_cpuset("--cpuset-cpus", "0-2,5", available="0-2,4-7") == "0-2,5"
    with pytest.raises(ScowError, match="no cpu 3"):
        parse_limits.parse_cpuset("--cpuset-cpus", "0-5", available="0-2,4-7")


@pytest.mark.parametrize(
    "text",
    [
        "nofile=2048:1024",
        "nofile=-5",
        "nofile",
        "x=1",
        "nofile=-1",
        "nofile=1:",
        "core=-1:5",
        "nofile=" + "9" * 12,
    ],
)
def test_bad_ulimit(text: str) -> None:
    with pytest.raises(ScowError, match="--ulimit"):
        parse_limits.parse_ulimit("--ulimit", text)


def test_ulimit() -> None:
    assert parse_limits.parse_ulimit("--ulimit", "nofile=64:128") == Ulimit("nofile", 64, 128)
    assert parse_limits.parse_ulimit("--ulimit", "core=-1") == Ulimit("core", -1, -1)
    assert Ulimit("core", 0, 0).oci_name == "RLIMIT_CORE"


@pytest.mark.parametrize(
    "text",
    [
        "2147483648",
        "4294967295",
        str(2**32),
        "-1",
        "+1",
        "0x0",
        "1_0",
        "１２",
        ":",
        "1:",
        ":1",
        "a:b:c",
        "a" * 65536,
        "a b",
        "",
        "a/b",
        "a\n",
    ],
)
def test_bad_user(text: str) -> None:
    with pytest.raises(ScowError, match="--user"):
        parse.parse_user("--user", text)


def test_user() -> None:
    assert parse.parse_user("-u", "0") == UserSpec(0)
    assert parse.parse_user("-u", "1000:100") == UserSpec(1000, 100)
    assert parse.parse_user("-u", "www-data:adm") == UserSpec("www-data", "adm")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/abs",
        "-x",
        " a",
        "a\n",
        "a\0",
        "a" * 129,
        "🚢",
        "%s",
        "a;reboot",
        "a" * 64,
    ],
)
def test_bad_name(text: str) -> None:
    with pytest.raises(ScowError, match="--name") as caught:
        parse.parse_name("--name", text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["a", "web", "Web_1.2-x", "a" * 128, "0"])
def test_name(text: str) -> None:
    assert parse.parse_name("--name", text) == text


def test_env() -> None:
    host = {"HOME": "/root"}
    assert parse.parse_env("-e", "A=1=2", host=host) == "A=1=2"
    assert parse.parse_env("-e", "A=", host=host) == "A="
    assert parse.parse_env("-e", "A=1\nB", host=host) == "A=1\nB"
    assert parse.parse_env("-e", "HOME", host=host) == "HOME=/root"
    assert parse.parse_env("-e", "UNSET", host=host) is None


@pytest.mark.parametrize("text", ["=x", "", "A=b\0c", "A=" + "x" * 131072])
def test_bad_env_tells_no_value(text: str) -> None:
    with pytest.raises(ScowError) as caught:
        parse.parse_env("--env", text, host={})
    assert "b\\x00" not in str(caught.value)
    assert "xxx" not in str(caught.value)


def test_env_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(b"\xef\xbb\xbf# comment\nA=1\r\n\n  B=two words \nHOME\nNOPE\nC=\xff\n")
    found = parse.read_env_file("--env-file", str(file), host={"HOME": "/h"})
    assert found == ["A=1", "B=two words ", "HOME=/h", "C=\udcff"]
    assert os.fsencode(found[-1]) == b"C=\xff"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"A=1\nB C=2\n", "line 2"), (b"=x\n", "line 1"), (b"A=1\nB=\0\n", "line 2")],
)
def test_bad_env_file(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "env"
    file.write_bytes(content)
    with pytest.raises(ScowError, match=reason):
        parse.read_env_file("--env-file", str(file))


def test_env_file_kinds(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "big").write_bytes(b"#" * (1024 * 1024 + 1))
    for name, reason in (
        ("none", "no such file"),
        ("fifo", "not a regular"),
        ("big", "1 MiB"),
        (".", "regular"),
    ):
        with pytest.raises(ScowError, match=reason):
            parse.read_env_file("--env-file", str(tmp_path / name))


@pytest.mark.parametrize("text", ["a" * 65, "a b", "a\n", "-a", "a-", "", ".", "a..b", "ä", "a_b"])
def test_bad_hostname(text: str) -> None:
    with pytest.raises(ScowError, match="64"):
        parse_network.parse_hostname("--hostname", text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("RTMIN+3", 37),
        ("SIGRTMAX", 64),
        ("64", 64),
        ("RTMAX-1", 63),
    ],
)
def test_signal(text: str, number: int) -> None:
    assert parse.parse_signal("-s", text) == number


@pytest.mark.parametrize(
    "text", ["FOO", "0", "65", "sig9", "SIGRTMIN+40", "", "-9", "RTMIN+", "９", " 9", "1e1"]
)
def test_bad_signal(text: str) -> None:
    with pytest.raises(ScowError, match="TERM"):
        parse.parse_signal("--stop-signal", text)


def test_labels() -> None:
    assert parse.parse_label("-l", "a=b=c") == ("a", "b=c")
    assert parse.parse_label("-l", "a") == ("a", "")
    for text in ("=x", "", "scow.id=1", "a b=1", "a=" + "x" * 70000):
        with pytest.raises(ScowError):
            parse.parse_label("--label", text)


def test_capability() -> None:
    assert parse.parse_capability("--cap-add", "net_admin") == "CAP_NET_ADMIN"
    assert parse.parse_capability("--cap-add", "CAP_SYS_ADMIN") == "CAP_SYS_ADMIN"
    assert parse.parse_capability("--cap-add", "all") == "ALL"
    with pytest.raises(ScowError) as caught:
        parse.parse_capability("--cap-add", "NET_ADMN")
    assert caught.value.hint == "did you mean 'NET_ADMIN'?"
    with pytest.raises(ScowError):
        parse.parse_capability("--cap-add", "CAP_ALL")


def test_volumes() -> None:
    assert parse_storage.parse_volume("-v", "/a:/b") == Mount(
        "bind", "/a", "/b", create_source=True
    )
    assert parse_storage.parse_volume("-v", "/a:/b/:ro").read_only
    assert parse_storage.parse_volume("-v", "data:/b") == Mount("volume", "data", "/b")
    assert parse_storage.parse_volume("-v", "/b") == Mount("volume", "", "/b")
    assert parse_storage.parse_volume("-v", "/a:/b:rslave").propagation == "rslave"
    assert parse_storage.parse_volume("-v", "./x:/b").source == os.path.abspath("x")


@pytest.mark.parametrize(
    "text",
    [
        "a/b:/c",
        ":",
        "a:b:c:d",
        "/a:/b:ro,rw",
        "/a:b",
        "/a:/",
        "/a:/b:what",
        "/a:/../b",
        "a b:/c",
        ":/c",
        "/a:",
        "x:/y:z:w",
        "/a:/b:nocopy",
        "/a:/b:ro,ro",
    ],
)
def test_bad_volume(text: str) -> None:
    with pytest.raises(ScowError, match="-v"):
        parse_storage.parse_volume("-v", text)


def test_mount(tmp_path: Path) -> None:
    mount = parse_storage.parse_mount("--mount", f"type=bind,src={tmp_path},dst=/x,ro")
    assert mount == Mount("bind", str(tmp_path), "/x", read_only=True)
    assert parse_storage.parse_mount("--mount", "type=tmpfs,target=/t,tmpfs-size=1m") == Tmpfs(
        "/t", 1 << 20
    )
    assert parse_storage.parse_mount("--mount", "source=v,target=/t") == Mount("volume", "v", "/t")


@pytest.mark.parametrize(
    "text",
    ["", "type=bind,src=/nonexistent-x,dst=/x", "type=what,dst=/x", "type=tmpfs,dst=/x,src=/y", "dst=/x,dst=/y", "type=bind,dst=/x",
     "type=bind,src=rel,dst=/x", "type=volume,src=v", "src,dst=/x", "type=bind,src=/tmp,dst=/x,foo=1", "type=bind,src=/tmp,dst=/x,ro=maybe"],
)  # fmt: skip
def test_bad_mount(text: str) -> None:
    with pytest.raises(ScowError):
        parse_storage.parse_mount("--mount", text)


def test_tmpfs() -> None:
    assert parse_storage.parse_tmpfs("--tmpfs", "/x") == Tmpfs("/x")
    found = parse_storage.parse_tmpfs("--tmpfs", "/x:size=64m,mode=700,exec,uid=5")
    assert (found.size_bytes, found.mode, found.noexec, found.uid) == (64 << 20, 0o700, False, 5)
    for text in (
        "/x:size=-1",
        "/x:foo=bar",
        "/x:ro,rw",
        "x",
        "/x:mode=999",
        "/",
        "/x:size=1,size=2",
    ):
        with pytest.raises(ScowError):
            parse_storage.parse_tmpfs("--tmpfs", text)


def test_device() -> None:
    device = parse_limits.parse_device("--device", "/dev/null:/dev/x:r")
    assert (device.host_path, device.container_path, device.permissions) == (
        "/dev/null",
        "/dev/x",
        "r",
    )
    assert parse_limits.parse_device("--device", "/dev/null:wr").permissions == "rw"
    for text in (
        "/dev/nope",
        "/etc/passwd",
        "/dev/../etc",
        "/dev/null:/dev/x:rwx",
        "/dev",
        "null",
        "/dev/null:/dev/x:rr",
        "/dev/null:/a:r:w",
    ):
        with pytest.raises(ScowError):
            parse_limits.parse_device("--device", text)


def test_sysctl() -> None:
    assert parse_network.parse_sysctl("--sysctl", "net.core.somaxconn=8") == (
        "net.core.somaxconn",
        "8",
    )
    assert parse_network.parse_sysctl("--sysctl", "kernel/shmmax=8") == ("kernel.shmmax", "8")
    for text in (
        "kernel.panic=1",
        "net.core",
        "net..x=1",
        "net.ipv4.../x=1",
        "vm.swappiness=1",
        "net.a=\n",
    ):
        with pytest.raises(ScowError):
            parse_network.parse_sysctl("--sysctl", text)


def test_hosts_and_addresses() -> None:
    assert parse_network.parse_add_host("--add-host", "db:10.0.0.1") == HostEntry("db", "10.0.0.1")
    assert parse_network.parse_add_host("--add-host", "db=::1") == HostEntry("db", "::1")
    assert parse_network.parse_add_host("--add-host", "db:[::1]") == HostEntry("db", "::1")
    for text in ("a:b:c", "a:1.2.3", "db", ":1.2.3.4", "a:1.2.3.4\n", "a b:1.2.3.4"):
        with pytest.raises(ScowError):
            parse_network.parse_add_host("--add-host", text)
    for text in ("1.2.3", "01.2.3.4", "x", "1.2.3.4\n"):
        with pytest.raises(ScowError):
            parse_network.parse_ip("--dns", text)
    for text in ("01:00:00:00:00:00", "00:00:00:00:00:00", "02:42", "02:42:ac:11:00:zz"):
        with pytest.raises(ScowError):
            parse_network.parse_mac("--mac-address", text)


def test_network_mode() -> None:
    assert str(parse_network.parse_network("--network", "default")) == "bridge"
    assert str(parse_network.parse_network("--network", "container:web")) == "container:web"
    for text in ("", "container:", "container", "mynet", "host:x", "HOST"):
        with pytest.raises(ScowError):
            parse_network.parse_network("--network", text)


@pytest.mark.parametrize(
    "text", ["", "linux", "linux/", "LINUX/amd64", "windows/amd64", "linux/a/b/c", "linux/am d"]
)
def test_bad_platform(text: str) -> None:
    with pytest.raises(ScowError):
        parse.parse_platform("--platform", text)


def test_cgroup_parent() -> None:
    assert parse_limits.parse_cgroup_parent("--cgroup-parent", "/jobs/night") == "jobs/night"
    for text in ("", "/", "..", "a/../b", "a//b", "a\n", "./a"):
        with pytest.raises(ScowError):
            parse_limits.parse_cgroup_parent("--cgroup-parent", text)


@example('a\r"b')
@given(st.text(max_size=60))
def test_parsers_only_say_no_in_one_line(text: str) -> None:
    for parser in TWO_TEXTS:
        try:
            parser("--x", text)
        except ScowError as error:
            if not str(error).isprintable():
                pytest.fail(f"{parser}: {error!r}")
