"""Where the image that comes with scow lies."""

from __future__ import annotations

import os


def layout_path() -> str:
    """The OCI layout of `scow/hello`, made by the build beside this file."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "hello-image")
