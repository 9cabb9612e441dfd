"""The image's configuration: what its author says about running it.

What belongs here: the data. What must not: acting on it, reading behaviour of scow from labels or
annotations (CVE-2026-53488), or parsing (config_document.py), which the start of a container does
not need.
"""

from __future__ import annotations

import msgspec

from scow.image.digest import DiffID


class Healthcheck(msgspec.Struct, frozen=True):
    """Docker's health check; times in nanoseconds, 0 for the default."""

    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


class ImageConfig(msgspec.Struct, frozen=True):
    """The `config` object. None for entrypoint and cmd means: not given."""

    env: tuple[str, ...] = ()  # each KEY=VALUE
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    user: str = ""
    working_dir: str = ""  # absolute, or "" for not given
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()  # each PORT[-PORT]/PROTOCOL
    stop_signal: str = ""
    labels: dict[str, str] = {}
    healthcheck: Healthcheck | None = None


class ConfigDocument(msgspec.Struct, frozen=True):
    """A whole config document."""

    architecture: str
    os: str
    variant: str
    created: str  # as written, or "" where that is no date; for show only
    author: str
    config: ImageConfig
    diff_ids: tuple[DiffID, ...]
