"""Whether compressed layers stay once they are unpacked (docs/images.md, docs/adr/013).

What belongs here: reading that one setting. What must not: what follows from it (dropped.py).
"""

from __future__ import annotations

import os
import tomllib

from scow.image.digest import quote
from scow.image.document import MAX_DOCUMENT_BYTES
from scow.image.files import read_file
from scow.native.errors import InvalidArgument, ScowError

CONFIG_FILE = "/etc/scow/scow.toml"
VARIABLE = "SCOW_KEEP_BLOBS"
ALWAYS, NEEDED = "always", "needed"


def drops_blobs() -> bool:
    """Whether blobs go that are not needed any more; the environment beats the file.

    Raises InvalidArgument for a setting, or a file, that makes no sense.
    """
    place = f"${VARIABLE}"
    text: object = os.environ.get(VARIABLE)
    if not text:
        place, text = f"'{CONFIG_FILE}'", _configured()
    if text not in (ALWAYS, NEEDED):
        raise InvalidArgument(
            f"invalid keep-blobs {quote(str(text))} in {place}",
            hint="'always' keeps compressed layers, 'needed' only those that cannot be fetched again",
        )
    return text == NEEDED


def _configured() -> object:
    try:
        document = tomllib.loads(read_file(CONFIG_FILE, MAX_DOCUMENT_BYTES).decode())
    except FileNotFoundError:
        return ALWAYS
    except (OSError, ValueError, ScowError) as e:
        raise InvalidArgument(f"cannot read '{CONFIG_FILE}': {e}") from e
    images = document.get("images", {})
    if not isinstance(images, dict):
        raise InvalidArgument(f"cannot read '{CONFIG_FILE}': [images] is not a table")
    return images.get("keep-blobs", ALWAYS)
