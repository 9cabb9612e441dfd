"""The image that comes with scow: its name, and where the build has put it.

What must not go in: how it is made (cri/build_hello.py, which the build runs).
"""

from __future__ import annotations

import os

BUILTIN_IMAGE = "scow/hello"


def layout_path() -> str:
    """The OCI layout of `scow/hello`, beside this file."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "hello-image")


def reference_is_builtin(reference: str) -> bool:
    """Whether `reference` names the image that comes with scow."""
    return reference in (BUILTIN_IMAGE, f"{BUILTIN_IMAGE}:latest")
