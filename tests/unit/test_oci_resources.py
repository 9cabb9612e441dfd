"""What `create` makes of linux.resources before the cgroup has it."""

from __future__ import annotations

import json

import pytest

from scow.runtime.oci_create import resources_of
from scow.runtime.spec import decode_spec


@pytest.mark.parametrize(
    ("version", "limit", "found"),
    [("1.0.2-dev", 0, -1), ("1.2.1", 0, -1), ("1.3.0", 0, 0), ("1.0.2", 7, 7), ("1.3.0", -1, -1)],
)
def test_a_limit_of_no_processes(version: str, limit: int, found: int) -> None:
    """Until 1.3 it was how an engine said that there is none."""
    config = {
        "ociVersion": version,
        "root": {"path": "rootfs"},
        "linux": {"resources": {"pids": {"limit": limit}}},
    }
    resources = resources_of(decode_spec(json.dumps(config).encode(), "config.json"))
    assert resources.pids is not None
    assert resources.pids.limit == found
