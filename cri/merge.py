"""What is run: the image's configuration and the user's options, merged once, at create.

image-spec conversion.md: a command replaces Cmd, `--entrypoint` drops Cmd, environment and labels
of the user win. The result is stored in the record; the image is not asked again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from scow.cri.options import ContainerOptions, UserSpec
from scow.native.errors import InvalidArgument

if TYPE_CHECKING:
    from scow.image.config import ImageConfig
    from scow.image.store import Image

DEFAULT_STOP_SIGNAL = 15
# execve(2): one string may be 32 pages long.
MAX_STRING = 128 << 10


class Merged(msgspec.Struct, frozen=True):
    """Image and options as one."""

    argv: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: UserSpec
    stop_signal: int
    labels: dict[str, str]


def merge(config: ImageConfig, options: ContainerOptions) -> Merged:
    """Merge; raises InvalidArgument where nothing is left to run or a value cannot be."""
    from scow.cri import parse

    if options.entrypoint is not None:
        argv = options.entrypoint + options.command
    else:
        argv = (config.entrypoint or ()) + (options.command or config.cmd or ())
    if not argv or not argv[0]:
        raise InvalidArgument(
            f"cannot run image '{options.image_name}': it names no command and none was given",
            hint="give a command after the image: scow run IMAGE COMMAND",
        )
    env: dict[str, str] = {}
    for entry in config.env + options.environment:
        key, _, value = entry.partition("=")
        env[key] = value
    for text in (*argv, *options.environment):
        if len(os.fsencode(text)) >= MAX_STRING:
            raise InvalidArgument(
                f"an argument or variable is longer than the kernel's {MAX_STRING} bytes: "
                f"'{text[:40]}...'"
            )
    user = options.user
    if user is None:
        user = parse.parse_user("image User", config.user) if config.user else UserSpec(0)
    if options.stop_signal is not None:
        stop_signal = options.stop_signal
    elif config.stop_signal:
        stop_signal = parse.parse_signal("image StopSignal", config.stop_signal)
    else:
        stop_signal = DEFAULT_STOP_SIGNAL
    return Merged(
        argv=argv,
        env=tuple(f"{key}={value}" for key, value in env.items()),
        working_dir=options.working_dir or config.working_dir or "/",
        user=user,
        stop_signal=stop_signal,
        labels={**config.labels, **options.labels},
    )


def check_platform(image: Image, name: str) -> None:
    """Refuse what is no image, or for another machine, before anything is made."""
    if image.artifact_type:
        from scow.image.artifacts import no_image

        raise no_image(image)
    machine = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}.get(
        os.uname().machine, os.uname().machine
    )
    if image.os != "linux" or image.architecture != machine:
        raise InvalidArgument(
            f"cannot run image '{name or image.id[7:19]}': it is for {image.os}/{image.architecture}, "
            f"this host is linux/{machine}",
            hint=f"pull it with --platform linux/{machine}",
        )
