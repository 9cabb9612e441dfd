"""Which namespaces' sysctls a container may have set: its own, and joined ones that are not the host's.

A pod's first container sets those of the pod's network, which it joins by path.
"""

from __future__ import annotations

import os

from scow.runtime.spec import Spec

_FILES = {"network": "net", "mount": "mnt"}


def own_namespaces(spec: Spec) -> frozenset[str]:
    """Types of namespaces that are not the runtime's; a path that cannot be read is refused elsewhere."""
    return frozenset(
        item.type
        for item in spec.linux.namespaces
        if not item.path or _differs(item.path, item.type)
    )


def _differs(path: str, kind: str) -> bool:
    try:
        theirs, ours = os.stat(path), os.stat(f"/proc/self/ns/{_FILES.get(kind, kind)}")
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)
