"""Taking names off images without removing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scow.image.digest import quote
from scow.image.reference import parse_reference
from scow.image.store import find_entry, place_entry
from scow.native.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from scow.image.store import ImageStore


def untag(store: ImageStore, image: str, names: Sequence[str] = ()) -> list[str]:
    """Take the given names, or all, off an image, which stays under its id; returns those taken.

    Raises NotFound for a name that it does not have; then it keeps all of them.
    """
    wanted = [parse_reference(name) for name in names]
    if any(reference.digest is not None for reference in wanted):
        raise InvalidArgument("cannot untag a name with a digest: it is not a tag")
    with store.content.locked():
        entries = store.content.read_index()
        visible = [e for e in entries if e.image_id and not e.is_deleting]
        entry = find_entry(visible, image)
        same = [e for e in visible if e.image_id == entry.image_id and e.name]
        gone = {str(reference) for reference in wanted} or {e.name for e in same}
        for reference in wanted:
            if str(reference) not in {e.name for e in same}:
                raise NotFound(f"image {quote(image)} has no name {quote(reference.familiar)}")
        doomed = [e for e in same if e.name in gone]
        kept = [e for e in entries if e not in doomed]
        for each in doomed:
            # Without a name: it keeps the image, or the digest that the image came under.
            kept = place_entry(kept, each.annotated(name=""))
        store.content.write_index(kept)
    return [parse_reference(e.name).familiar for e in doomed]
