"""--filter KEY=VALUE: the same key again is "or", another key is "and"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from scow.cli.parser import printable
from scow.native.errors import InvalidArgument

T = TypeVar("T")


def parse_filters(texts: list[str], known: tuple[str, ...]) -> dict[str, list[str]]:
    """The values by key."""
    filters: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise InvalidArgument(
                f"invalid --filter '{printable(text)}': KEY=VALUE with one of {', '.join(known)}"
            )
        filters.setdefault(key, []).append(value)
    return filters


def keep(
    items: list[T], filters: Mapping[str, list[str]], tests: Mapping[str, Callable[[T, str], bool]]
) -> list[T]:
    """The items that pass."""
    return [
        item
        for item in items
        if all(any(tests[key](item, v) for v in values) for key, values in filters.items())
    ]


def matches_label(labels: Mapping[str, str], wanted: str) -> bool:
    """`label=key` or `label=key=value`."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)
