"""Image and options as one, and the limits that come of it."""

from __future__ import annotations

import pytest

from scow.cri import limits as limits_
from scow.cri.merge import merge
from scow.cri.options import ContainerOptions, Limits, UserSpec
from scow.image.config import ImageConfig
from scow.native.errors import InvalidArgument

IMAGE = ImageConfig(
    env=("PATH=/bin", "A=image"),
    entrypoint=("/entry",),
    cmd=("default",),
    user="web:staff",
    working_dir="/srv",
    stop_signal="SIGQUIT",
    labels={"a": "image", "b": "image"},
)


@pytest.mark.parametrize(
    ("options", "argv"),
    [
        (ContainerOptions(), ("/entry", "default")),
        (ContainerOptions(command=("x", "y")), ("/entry", "x", "y")),
        (ContainerOptions(entrypoint=("/mine",)), ("/mine",)),
        (ContainerOptions(entrypoint=("/mine",), command=("x",)), ("/mine", "x")),
        (ContainerOptions(entrypoint=(), command=("x",)), ("x",)),
    ],
)
def test_which_command_is_run(options: ContainerOptions, argv: tuple[str, ...]) -> None:
    assert merge(IMAGE, options).argv == argv


def test_the_user_wins_and_the_image_fills_in() -> None:
    merged = merge(IMAGE, ContainerOptions(environment=("A=mine", "C=3"), labels={"a": "mine"}))
    assert merged.env == ("PATH=/bin", "A=mine", "C=3")
    assert merged.labels == {"a": "mine", "b": "image"}
    assert merged.user == UserSpec("web", "staff")
    assert merged.working_dir == "/srv"
    assert merged.stop_signal == 3


@pytest.mark.parametrize("options", [ContainerOptions(), ContainerOptions(entrypoint=("",))])
def test_nothing_to_run_is_an_error(options: ContainerOptions) -> None:
    with pytest.raises(InvalidArgument, match="command"):
        merge(ImageConfig(), options)


@pytest.mark.parametrize("user", ["4294967295", "-1", "1_0", "1:", "a:b:c", "+1", "1"])
def test_an_images_user_is_read_as_strictly_as_a_flag(user: str) -> None:
    image = ImageConfig(cmd=("true",), user=user)
    if user == "1":
        assert merge(image, ContainerOptions()).user == UserSpec(1)
        return
    with pytest.raises(InvalidArgument):
        merge(image, ContainerOptions())


def test_the_defaults_hold_a_fork_bomb_and_deny_devices_first() -> None:
    made = limits_.build_resources(Limits(), [], privileged=False)
    assert made.pids is not None
    assert made.pids.limit == 2048
    assert made.memory is None
    assert made.devices is not None
    assert made.devices[0].allow is False
    assert all(rule.allow for rule in made.devices[1:])


def test_cpus_become_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    made = limits_.build_resources(Limits(nano_cpus=1_500_000_000), [], privileged=False)
    assert made.cpu is not None
    assert (made.cpu.quota, made.cpu.period) == (150_000, 100_000)
    with pytest.raises(InvalidArgument, match="this host has 4"):
        limits_.build_resources(Limits(nano_cpus=5 * 10**9), [], privileged=False)


def test_memory_brings_as_much_swap_where_swap_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for counted, swap in ((True, 128 << 20), (False, None)):
        monkeypatch.setattr(limits_, "counts_swap", lambda counted=counted: counted)
        made = limits_.build_resources(Limits(memory_bytes=64 << 20), [], privileged=False)
        assert made.memory is not None
        assert made.memory.swap == swap
